//! JSON-RPC messages as the bridge reads them: only the envelope, the rest is kept as it was written. A name that
//! stands twice in an object that is read is refused, for two readers could see two different messages.

use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// The `_meta` key that only a request of the stateless revision has.
const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
/// The `_meta` key by which a stateless request asks for log messages.
const LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
/// The `_meta` key that says which subscription a notification is for.
const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// A JSON object with its names in order and its values as text.
#[derive(Debug, Default)]
pub(crate) struct Object(Vec<(String, Box<RawValue>)>);

impl Object {
    /// Reads a text.
    pub(crate) fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The text of a value.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value.get())
    }

    /// A value that is a string.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?).ok()
    }

    /// Names and values in their order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.get()))
    }

    /// A value that is an object.
    pub(crate) fn object(&self, name: &str) -> Option<Self> {
        Self::parse(self.get(name)?).ok()
    }

    /// Puts a value in its place. The text must be JSON.
    fn set(&mut self, name: &str, text: String) -> Result<(), serde_json::Error> {
        let value = RawValue::from_string(text)?;
        match self.0.iter_mut().find(|(own, _)| own == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Object;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut entries: Vec<(String, Box<RawValue>)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if entries.iter().any(|(own, _)| *own == name) {
                        return Err(A::Error::custom("a name stands twice"));
                    }
                    entries.push((name, value));
                }
                Ok(Object(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Wants an answer.
    Request,
    /// Wants none.
    Notification,
    /// Is one: a result or an error.
    Answer,
}

/// One message.
#[derive(Debug)]
pub(crate) struct Message {
    envelope: Object,
    kind: Kind,
    method: String,
}

/// Why a text is no message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    /// It is no JSON object, or one with a name twice.
    #[error("it is no JSON object that can be read in one way only")]
    Json(#[source] serde_json::Error),
    /// It is JSON, but no JSON-RPC message.
    #[error("it is no JSON-RPC 2.0 message")]
    Envelope,
}

impl Message {
    /// Reads one message.
    pub(crate) fn parse(text: &str) -> Result<Self, Unreadable> {
        let envelope = Object::parse(text).map_err(Unreadable::Json)?;
        if envelope.text("jsonrpc").as_deref() != Some("2.0") {
            return Err(Unreadable::Envelope);
        }
        // An id is a string or a number; the only other thing that MCP has seen is `null` in an error.
        let is_id = |raw: &str| raw.starts_with(['"', '-']) || raw.starts_with(|c: char| c.is_ascii_digit());
        let id = envelope.get("id");
        let answer = envelope.get("result").is_some() != envelope.get("error").is_some();
        let method = envelope.text("method");
        let kind = match (envelope.get("method").is_some(), id) {
            (true, Some(id)) if is_id(id) && method.is_some() => Kind::Request,
            (true, None) if method.is_some() => Kind::Notification,
            (false, Some(id)) if answer && is_id(id) => Kind::Answer,
            (false, None | Some("null")) if envelope.get("error").is_some() => Kind::Answer,
            _ => return Err(Unreadable::Envelope),
        };
        Ok(Self { envelope, kind, method: method.unwrap_or_default() })
    }

    /// What it is.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The method; empty for answers.
    pub(crate) fn method(&self) -> &str {
        &self.method
    }

    /// The id as it was written.
    pub(crate) fn id(&self) -> Option<&str> {
        self.envelope.get("id")
    }

    /// A value of `params` as it was written.
    pub(crate) fn param(&self, name: &str) -> Option<String> {
        self.envelope.object("params")?.get(name).map(str::to_owned)
    }

    /// The result, where it is an answer with one.
    pub(crate) fn result(&self) -> Option<Object> {
        self.envelope.object("result")
    }

    /// The code of the error, where it is one.
    pub(crate) fn error_code(&self) -> Option<i64> {
        self.envelope.object("error")?.get("code")?.parse().ok()
    }

    fn meta(&self, name: &str) -> Option<String> {
        self.envelope.object("params")?.object("_meta")?.get(name).map(str::to_owned)
    }

    /// The revision in a request's metadata, which only the stateless revision has.
    pub(crate) fn version(&self) -> Option<String> {
        serde_json::from_str(&self.meta(VERSION)?).ok()
    }

    /// Whether a stateless request asks for log messages.
    pub(crate) fn wants_logs(&self) -> bool {
        self.meta(LOG_LEVEL).is_some()
    }

    /// The progress token that a request gives, as it was written.
    pub(crate) fn progress_token(&self) -> Option<String> {
        self.meta("progressToken")
    }

    /// The subscription that a notification is for, as it was written.
    pub(crate) fn subscription(&self) -> Option<String> {
        self.meta(SUBSCRIPTION)
    }

    /// Gives it another id.
    pub(crate) fn set_id(&mut self, id: &str) -> Result<(), serde_json::Error> {
        self.envelope.set("id", id.to_owned())
    }

    /// Gives a request another progress token.
    pub(crate) fn set_progress_token(&mut self, token: &str) -> Result<(), serde_json::Error> {
        self.edit_meta("progressToken", token)
    }

    /// Gives a notification another subscription. A listening request's result is tagged too.
    pub(crate) fn set_subscription(&mut self, id: &str) -> Result<(), serde_json::Error> {
        self.edit_meta(SUBSCRIPTION, id)
    }

    /// Puts the client's id into the tag of a listening request's result.
    pub(crate) fn set_result_subscription(&mut self, id: &str) -> Result<(), serde_json::Error> {
        let Some(mut result) = self.result() else { return Ok(()) };
        let Some(mut meta) = result.object("_meta").filter(|meta| meta.get(SUBSCRIPTION).is_some()) else {
            return Ok(());
        };
        meta.set(SUBSCRIPTION, id.to_owned())?;
        result.set("_meta", serde_json::to_string(&meta)?)?;
        self.envelope.set("result", serde_json::to_string(&result)?)
    }

    /// Gives a progress notification another token.
    pub(crate) fn set_param(&mut self, name: &str, text: &str) -> Result<(), serde_json::Error> {
        let mut params = self.envelope.object("params").unwrap_or_default();
        params.set(name, text.to_owned())?;
        self.envelope.set("params", serde_json::to_string(&params)?)
    }

    fn edit_meta(&mut self, name: &str, text: &str) -> Result<(), serde_json::Error> {
        let mut params = self.envelope.object("params").unwrap_or_default();
        let mut meta = params.object("_meta").unwrap_or_default();
        meta.set(name, text.to_owned())?;
        params.set("_meta", serde_json::to_string(&meta)?)?;
        self.envelope.set("params", serde_json::to_string(&params)?)
    }

    /// The message as one line, without the line's end.
    pub(crate) fn line(&self) -> Result<String, serde_json::Error> {
        Ok(one_line(serde_json::to_string(&self.envelope)?))
    }
}

/// A JSON text on one line. Within strings line ends are escaped, so those that are there are only blanks.
pub(crate) fn one_line(text: String) -> String {
    if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], " ") } else { text }
}

/// An error as an answer. Without an id where the message could not be read: `null` is none of MCP's ids.
pub(crate) fn error(id: Option<&str>, code: i64, message: &str, data: Option<serde_json::Value>) -> String {
    let mut error = serde_json::json!({ "code": code, "message": message });
    if let (Some(data), Some(fields)) = (data, error.as_object_mut()) {
        fields.insert("data".to_owned(), data);
    }
    match id {
        Some(id) => format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#),
        None => format!(r#"{{"jsonrpc":"2.0","error":{error}}}"#),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Message {
        Message::parse(text).unwrap()
    }

    #[test]
    fn a_message_is_told_by_its_envelope() {
        for (text, kind) in [
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, Kind::Request),
            (r#"{"jsonrpc":"2.0","id":"a","method":"ping","params":{}}"#, Kind::Request),
            (r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#, Kind::Notification),
            (r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, Kind::Answer),
            (r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"?"}}"#, Kind::Answer),
        ] {
            assert_eq!(read(text).kind(), kind, "{text}");
        }
        for text in [
            "",
            "hello",
            "[]",
            r#"{"id":1,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":7}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}"#,
        ] {
            assert!(Message::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_what_is_edited_changes() {
        let text = r#"{"jsonrpc":"2.0","id":"7","method":"tools/call","params":{"name":"é","arguments":{"n":1.0,"big":12345678901234567890,"n2":1e3},"_meta":{"progressToken":7,"x/y":[ 1 ]}}}"#;
        let mut message = read(text);
        assert_eq!(message.line().unwrap(), text);
        assert_eq!(message.progress_token().as_deref(), Some("7"));
        message.set_id("12").unwrap();
        message.set_progress_token("12").unwrap();
        let edited = text
            .replace(r#""id":"7""#, r#""id":12"#)
            .replace(r#""progressToken":7"#, r#""progressToken":12"#);
        assert_eq!(message.line().unwrap(), edited);
    }

    #[test]
    fn a_message_stands_on_one_line() {
        let text =
            "{\r\n \"jsonrpc\": \"2.0\",\n \"id\": 1, \"method\": \"x\", \"params\": {\n\"a\": \"b\\n\"}}";
        let line = read(text).line().unwrap();
        assert!(!line.contains(['\n', '\r']), "{line}");
        assert_eq!(read(&line).param("a").as_deref(), Some(r#""b\n""#));
    }

    #[test]
    fn the_tag_of_a_subscription_becomes_the_clients_id() {
        let key = "io.modelcontextprotocol/subscriptionId";
        let mut note =
            read(&format!(r#"{{"jsonrpc":"2.0","method":"n","params":{{"_meta":{{"{key}":3}}}}}}"#));
        assert_eq!(note.subscription().as_deref(), Some("3"));
        note.set_subscription(r#""mine""#).unwrap();
        assert_eq!(note.subscription().as_deref(), Some(r#""mine""#));
        let mut end = read(&format!(r#"{{"jsonrpc":"2.0","id":3,"result":{{"_meta":{{"{key}":3}}}}}}"#));
        end.set_result_subscription(r#""mine""#).unwrap();
        assert!(end.line().unwrap().contains(&format!(r#""{key}":"mine""#)));
        let mut plain = read(r#"{"jsonrpc":"2.0","id":3,"result":{}}"#);
        plain.set_result_subscription("1").unwrap();
        assert_eq!(plain.line().unwrap(), r#"{"jsonrpc":"2.0","id":3,"result":{}}"#);
    }

    #[test]
    fn an_error_has_the_id_or_none() {
        assert_eq!(
            error(Some("\"a\""), -32600, "no", None),
            r#"{"jsonrpc":"2.0","id":"a","error":{"code":-32600,"message":"no"}}"#
        );
        assert!(!error(None, -32700, "no", None).contains("id"));
    }
}
