//! The plain REST form for scripts: one HTTP request, one JSON object, no handshake and no special headers. Each call
//! becomes one request of the stateless revision; what can go wrong comes back as a problem document (RFC 9457).

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method as HttpMethod, Request, Response, StatusCode, Uri, header};
use hyper::body::{Body as _, Incoming};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use waffles_mcp::jsonrpc::code;
use waffles_mcp::translate::Client;
use waffles_mcp::translate::handshake::{Described, initialize_result};
use waffles_mcp::translate::input::read_input_required;
use waffles_mcp::translate::request::{Extra, to_stateless};
use waffles_mcp::{HeadError, Id, Limits, Message, Method, Revision, head, headers};

use super::Visit;
use super::messages::Messages;
use crate::gateway::{Door, Gateway};
use crate::limit::{RATE_LIMIT, RATE_LIMIT_POLICY};
use crate::overload::Priority;
use crate::reject::{Reject, UpstreamFault};
use crate::stream::Body;

/// The id of each request: nothing else shares its answer.
const ID: u64 = 1;
/// How this client calls itself.
const INFO: &str = concat!(r#"{"name":"waffles-rest","version":""#, env!("CARGO_PKG_VERSION"), r#""}"#);
/// The headers of an answer that are for everybody.
const TOLD: [http::HeaderName; 6] = [
    header::WWW_AUTHENTICATE,
    header::RETRY_AFTER,
    header::CONNECTION,
    header::ALLOW,
    RATE_LIMIT_POLICY,
    RATE_LIMIT,
];

/// What can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// What the server says of itself.
    Initialize,
    /// `POST tools/list`.
    ToolsList,
    /// `POST tools/call`.
    ToolsCall,
    /// `GET resources/list`.
    ResourcesList,
    /// `GET resources/read`.
    ResourcesRead,
    /// `POST prompts/list`.
    PromptsList,
    /// `POST prompts/get`.
    PromptsGet,
}

impl Call {
    /// Reads the part of a path behind the server's name.
    pub fn parse(path: &str) -> Option<Self> {
        Some(match path {
            "initialize" => Self::Initialize,
            "tools/list" => Self::ToolsList,
            "tools/call" => Self::ToolsCall,
            "resources/list" => Self::ResourcesList,
            "resources/read" => Self::ResourcesRead,
            "prompts/list" => Self::PromptsList,
            "prompts/get" => Self::PromptsGet,
            _ => return None,
        })
    }

    /// Whether it is a GET; the others are POSTs.
    fn is_read(self) -> bool {
        matches!(self, Self::ResourcesList | Self::ResourcesRead)
    }

    /// How much it matters when there is no room for all.
    pub fn priority(self) -> Priority {
        Priority::of(&self.method())
    }

    fn method(self) -> Method {
        match self {
            // What `initialize` is for in the revisions with sessions.
            Self::Initialize => Method::ServerDiscover,
            Self::ToolsList => Method::ToolsList,
            Self::ToolsCall => Method::ToolsCall,
            Self::ResourcesList => Method::ResourcesList,
            Self::ResourcesRead => Method::ResourcesRead,
            Self::PromptsList => Method::PromptsList,
            Self::PromptsGet => Method::PromptsGet,
        }
    }
}

/// Serves one call.
pub async fn serve(
    gateway: &Arc<Gateway>,
    door: &Door,
    call: Call,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Response<Body> {
    let (parts, mut body) = request.into_parts();
    let mut visit = Visit::open(gateway, door, peer, &parts, "rest");
    let prepared = prepare(&mut visit, call, &mut body).await;
    let (message, headers) = match prepared {
        Ok(prepared) => prepared,
        Err(reject) => {
            let mut refused = visit.refuse(&reject, Some(&mut body)).await.map(Body::full);
            if matches!(reject, Reject::MethodNotAllowed) {
                let verb = HeaderValue::from_static(if call.is_read() { "GET" } else { "POST" });
                refused.headers_mut().insert(header::ALLOW, verb);
            }
            return told(call, refused).await;
        }
    };
    let caller = visit.caller();
    visit.pass();
    told(call, caller.post(message, headers).await).await
}

/// The request of the stateless revision that stands for a call, and its mirrored headers.
async fn prepare(
    visit: &mut Visit<'_>,
    call: Call,
    body: &mut Incoming,
) -> Result<(Bytes, HeaderMap), Reject> {
    let wanted = if call.is_read() { HttpMethod::GET } else { HttpMethod::POST };
    if visit.parts.method != wanted {
        return Err(Reject::MethodNotAllowed);
    }
    visit.identify().await?;
    let params = match call {
        Call::ResourcesList => queried(&visit.parts.uri, "cursor")?,
        Call::ResourcesRead => queried(&visit.parts.uri, "uri")?,
        _ if body.is_end_stream() => Bytes::from_static(b"{}"),
        _ => visit.read(body).await?,
    };
    request(call, &params)
}

fn request(call: Call, params: &[u8]) -> Result<(Bytes, HeaderMap), Reject> {
    // One value and nothing behind it, before it becomes part of a larger text.
    let params = match serde_json::from_slice::<&RawValue>(params) {
        // Said to `server/discover`, the words of `initialize` would mean something else.
        Ok(_) if call == Call::Initialize => "{}",
        Ok(params) => params.get(),
        Err(_) => {
            let unread = Message::parse(Bytes::copy_from_slice(params), &Limits::default());
            return Err(unread.err().map_or(Reject::Internal("unreadable_body"), Reject::from));
        }
    };
    let method = call.method();
    let plain = format!(r#"{{"jsonrpc":"2.0","id":{ID},"method":"{method}","params":{params}}}"#);
    let message = Message::parse(plain.into(), &Limits::default())?;
    head(&message)?;
    let client =
        Client { capabilities: Bytes::from_static(b"{}"), info: Some(Bytes::from_static(INFO.as_bytes())) };
    let message = to_stateless(&message, None, &client, &Extra::default());
    let message = Message::parse(message, &Limits::default())?;
    let mut mirrored = HeaderMap::new();
    headers::write(&head(&message)?, Revision::V2026_07_28, &mut mirrored);
    Ok((message.bytes().clone(), mirrored))
}

/// The `params` that a query stands for: this one parameter, at most once.
fn queried(uri: &Uri, name: &'static str) -> Result<Bytes, Reject> {
    let query = uri.query().unwrap_or_default();
    let mut values = url::form_urlencoded::parse(query.as_bytes())
        .filter_map(|(key, value)| (key == name).then_some(value));
    let params = match (values.next(), values.next()) {
        (None, _) => json!({}),
        (Some(value), None) => json!({name: value}),
        (Some(_), Some(_)) => return Err(Reject::Head(HeadError::NotAString(name))),
    };
    Ok(params.to_string().into())
}

/// The answer in plain JSON.
async fn told(call: Call, response: Response<Body>) -> Response<Body> {
    let (status, headers) = (response.status(), response.headers().clone());
    let id = Id::number(ID);
    let mut messages = Messages::of(response, Some(id.clone()));
    let mut last = None;
    while let Some(message) = messages.next().await {
        // What is said on the way, a script has no ear for.
        last = Message::parse(message, &Limits::RESPONSE).ok().filter(|last| last.id() == Some(&id));
    }
    let problem = match last.as_ref().map(|last| (last.result(), last.error())) {
        Some((Some(result), _)) => match finished(call, result) {
            Ok(result) => return keeping(plain(StatusCode::OK, "application/json", result), &headers),
            Err(problem) => problem,
        },
        Some((_, Some(error))) => Problem::of(call, status, &error),
        _ => Problem::from(&Reject::upstream(UpstreamFault::BadAnswer, true)),
    };
    keeping(problem.response(), &headers)
}

/// What a request is told that comes to none of the calls; `headers` are those of the refusal in its other form.
pub fn refusal(reject: &Reject, headers: &HeaderMap) -> Response<Body> {
    keeping(Problem::from(reject).response(), headers)
}

fn keeping(mut response: Response<Body>, headers: &HeaderMap) -> Response<Body> {
    for name in TOLD {
        if let Some(value) = headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

/// The bare result, where it is one.
fn finished(call: Call, result: Bytes) -> Result<Bytes, Problem> {
    let bad = |_| Problem::from(&Reject::upstream(UpstreamFault::BadAnswer, true));
    if read_input_required(&result).map_err(bad)?.is_some() {
        return Err(Problem::needs_input(
            "the server asks for input, which this form of the API cannot give".into(),
        ));
    }
    if call != Call::Initialize {
        return Ok(result);
    }
    let described = Described::from_discover(&result).map_err(bad)?;
    Ok(initialize_result(&described, described.revision))
}

/// What went wrong, as RFC 9457 has it.
#[derive(Debug, PartialEq, Eq)]
struct Problem {
    status: StatusCode,
    detail: String,
    code: i64,
    reason: String,
    request_id: Option<String>,
}

impl Problem {
    /// A JSON-RPC error and the status that it came with.
    fn of(call: Call, status: StatusCode, error: &[u8]) -> Self {
        let error: Value = serde_json::from_slice(error).unwrap_or_default();
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(ToOwned::to_owned);
        let data = error.get("data");
        let code = error.get("code").and_then(Value::as_i64).unwrap_or(code::INTERNAL_ERROR);
        let detail = text(error.get("message")).unwrap_or_default();
        let reason = text(data.and_then(|data| data.get("reason")));
        let request_id = text(data.and_then(|data| data.get("request_id")));
        // Servers call it so as well, so that hidden and unknown tools look alike [2026-07-28 server/tools#error-handling].
        let unknown_tool = call == Call::ToolsCall
            && code == code::INVALID_PARAMS
            && detail.get(..12).is_some_and(|start| start.eq_ignore_ascii_case("unknown tool"));
        let reason = match reason {
            Some(reason) => reason,
            None if unknown_tool => "unknown_tool".into(),
            None => "server_error".into(),
        };
        if matches!(&*reason, "no_answer" | "no_way_to_ask") || code == code::MISSING_CLIENT_CAPABILITY {
            return Self { code, request_id, ..Self::needs_input(detail) };
        }
        let status = if status.is_success() { status_of(code, &reason) } else { status };
        Self { status, detail, code, reason, request_id }
    }

    fn needs_input(detail: String) -> Self {
        let reason = "needs_input".into();
        Self { status: StatusCode::CONFLICT, detail, code: code::INVALID_REQUEST, reason, request_id: None }
    }

    fn response(&self) -> Response<Body> {
        let mut document = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or_default(),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
            "reason": self.reason,
        });
        if let (Value::Object(document), Some(request_id)) = (&mut document, &self.request_id) {
            document.insert("request_id".into(), json!(request_id));
        }
        plain(self.status, "application/problem+json", document.to_string().into())
    }
}

impl From<&Reject> for Problem {
    fn from(reject: &Reject) -> Self {
        let (detail, reason) = (reject.to_string(), reject.told().to_owned());
        Self { status: reject.status(), detail, code: reject.code(), reason, request_id: None }
    }
}

/// The HTTP status of an error that MCP tells with status 200: those that came behind the head of a stream, and those
/// that are results of the method.
fn status_of(code: i64, reason: &str) -> StatusCode {
    match (reason, code) {
        ("unknown_tool", _) => StatusCode::NOT_FOUND,
        ("forbidden", _) => StatusCode::FORBIDDEN,
        ("upstream_timed_out", _) => StatusCode::GATEWAY_TIMEOUT,
        (_, code::METHOD_NOT_FOUND | code::RESOURCE_NOT_FOUND_LEGACY) => StatusCode::NOT_FOUND,
        (_, code::PARSE_ERROR | code::INVALID_REQUEST | code::INVALID_PARAMS | code::HEADER_MISMATCH) => {
            StatusCode::BAD_REQUEST
        }
        // What is left is the server's own trouble.
        _ => StatusCode::BAD_GATEWAY,
    }
}

fn plain(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_becomes_the_params_of_one_stateless_request() {
        let (message, headers) =
            request(Call::ToolsCall, br#" {"name":"echo","arguments":{"a":1.0}} "#).unwrap();
        let message: Value = serde_json::from_slice(&message).unwrap();
        assert_eq!(message["method"], "tools/call");
        assert_eq!(message["params"]["arguments"].to_string(), r#"{"a":1.0}"#);
        let meta = &message["params"]["_meta"];
        assert_eq!(meta["io.modelcontextprotocol/protocolVersion"], "2026-07-28");
        assert_eq!(meta["io.modelcontextprotocol/clientCapabilities"], json!({}));
        assert_eq!(meta["io.modelcontextprotocol/clientInfo"]["name"], "waffles-rest");
        assert_eq!(headers["mcp-method"], "tools/call");
        assert_eq!(headers["mcp-name"], "echo");
        assert_eq!(headers["mcp-protocol-version"], "2026-07-28");
        let said = br#"{"protocolVersion":"2025-11-25","capabilities":{"roots":{}}}"#;
        let (message, _) = request(Call::Initialize, said).unwrap();
        assert!(!String::from_utf8_lossy(&message).contains("roots"));
    }

    #[test]
    fn a_body_cannot_say_more_than_params() {
        for (body, reason) in [
            (&br#"{"name":"a"},"method":"tools/list""#[..], "trailing_data"),
            (br#"{"name":"a"},"x":{}"#, "trailing_data"),
            (br#"{"name":"a"}}"#, "trailing_data"),
            (br#"{"name":"a","name":"b"}"#, "duplicate_key"),
            (br#"{"name":"a","_meta":7}"#, "params_not_an_object"),
            (br#"{"arguments":{}}"#, "missing_field"),
            (br#"{"name":7}"#, "not_a_string"),
            (b"[]", "bad_params"),
            (b"{", "invalid_json"),
            (b"\xEF\xBB\xBF{}", "byte_order_mark"),
        ] {
            let refused = request(Call::ToolsCall, body).unwrap_err();
            assert_eq!(refused.reason(), reason, "{}", String::from_utf8_lossy(body));
            assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        }
    }

    #[test]
    fn a_query_says_one_thing_once() {
        let read = |uri: &'static str| queried(&Uri::from_static(uri), "uri");
        assert_eq!(read("/x?a=b&uri=test%3A%2F%2Fone%3Fq%3D%22").unwrap(), r#"{"uri":"test://one?q=\""}"#);
        assert_eq!(read("/x").unwrap(), "{}");
        assert!(read("/x?uri=a&uri=b").is_err());
        assert_eq!(request(Call::ResourcesRead, b"{}").unwrap_err().reason(), "missing_field");
    }

    #[test]
    fn an_error_gets_the_status_that_scripts_expect() {
        let check = |came: u16, error: Value, status: u16, reason: &str| {
            let came = StatusCode::from_u16(came).unwrap();
            let problem = Problem::of(Call::ToolsCall, came, error.to_string().as_bytes());
            assert_eq!((problem.status.as_u16(), &*problem.reason), (status, reason), "{error}");
        };
        let of = |code: i64, message: &str, reason: &str| json!({"code": code, "message": message, "data": {"reason": reason, "request_id": "r"}});
        check(200, of(-32602, "Unknown tool: x", "unknown_tool"), 404, "unknown_tool");
        check(200, json!({"code": -32602, "message": "Unknown tool: x"}), 404, "unknown_tool");
        check(200, json!({"code": -32602, "message": "a is missing"}), 400, "server_error");
        check(200, of(-32603, "", "upstream_timed_out"), 504, "upstream_timed_out");
        check(200, of(-32603, "", "upstream_broke_off"), 502, "upstream_broke_off");
        check(200, of(-32600, "", "forbidden"), 403, "forbidden");
        check(200, json!({"code": 7, "message": "no"}), 502, "server_error");
        check(200, json!({"code": -32601, "message": "no"}), 404, "server_error");
        check(401, of(-32600, "", "no_credential"), 401, "no_credential");
        check(429, of(-32603, "", "too_many"), 429, "too_many");
        check(200, of(-32603, "", "no_way_to_ask"), 409, "needs_input");
        check(400, json!({"code": -32021, "message": "elicitation"}), 409, "needs_input");
    }
}
