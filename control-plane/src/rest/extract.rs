//! What every request goes through: the frame round it, the checks before it, and the reading of bodies and
//! queries, where every wrong field is named.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::RequestPartsExt as _;
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, MatchedPath, Path, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::FutureExt as _;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;
use waffles_core::FieldError;
use waffles_runtime::host::{BROWSERS, Foreign};
use waffles_runtime::task;

use super::{Door, Problem};
use crate::authz::{self, OpCtx, Rule};
use crate::error::Error;

/// Bytes of a body at the most: far above the largest server specification.
const BODY_MOST: usize = 512 * 1024;
/// Bytes of a path and query.
const TARGET_MOST: usize = 8 * 1024;
/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);
/// How long a request may take; less than the connection allows, so that the caller is told why.
const REQUEST_TIME: Duration = Duration::from_secs(14);
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Names under which people put credentials into URLs, where logs and histories keep them.
const CREDENTIAL_PARAMETERS: [&str; 10] = [
    "accesstoken",
    "apikey",
    "auth",
    "authorization",
    "bearer",
    "jwt",
    "key",
    "password",
    "refreshtoken",
    "token",
];

/// The id of a request, in its extensions.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestId(pub(super) Uuid);

/// The frame round every request, whatever its end: its id, its time, headers, problem documents, panics.
pub(super) async fn frame(State(door): State<Arc<Door>>, mut request: Request, next: Next) -> Response {
    let id = Uuid::now_v7();
    request.extensions_mut().insert(RequestId(id));
    let answer = match refuse_early(&door, &request) {
        Err(problem) => axum::response::IntoResponse::into_response(problem),
        Ok(()) => {
            let run = tokio::time::timeout(REQUEST_TIME, next.run(request));
            match AssertUnwindSafe(run).catch_unwind().await {
                Ok(Ok(response)) => response,
                Ok(Err(late)) => Problem::from(Error::Unavailable {
                    retry_after: Duration::from_secs(1),
                    source: late.into(),
                })
                .render(id),
                Err(panic) => {
                    task::report_panic(panic.as_ref());
                    Problem::from(Error::internal("a handler panicked")).render(id)
                }
            }
        }
    };
    let mut response = match answer.extensions().get::<Problem>() {
        Some(problem) => {
            let mut rendered = problem.render(id);
            rendered
                .headers_mut()
                .extend(answer.headers().get(header::ALLOW).map(|a| (header::ALLOW, a.clone())));
            rendered
        }
        None => answer,
    };
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(REQUEST_ID, id);
    }
    for (name, value) in BROWSERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// What is refused before anyone asks who calls.
fn refuse_early(door: &Door, request: &Request) -> Result<(), Problem> {
    let (uri, headers) = (request.uri(), request.headers());
    if let Err(foreign) = door.hosts.check(uri, headers) {
        let reason = match foreign {
            Foreign::Host => "this Host is not one that the control plane answers to; see --public-host",
            Foreign::Origin => "pages of other origins may not call the control plane; see --allow-origin",
        };
        return Err(Problem::new(StatusCode::FORBIDDEN, "origin", reason));
    }
    if uri.path().len() + uri.query().map_or(0, str::len) > TARGET_MOST {
        return Err(Problem::new(StatusCode::URI_TOO_LONG, "too_long", "the URL is too long"));
    }
    if !is_canonical(uri.path()) {
        return Err(Problem::bad_request("the path is not in its plain form"));
    }
    for name in [header::AUTHORIZATION, API_KEY, header::CONTENT_TYPE, header::CONTENT_ENCODING] {
        if headers.get_all(&name).iter().nth(1).is_some() {
            return Err(Problem::bad_request(format!("the header {name} is there more than once")));
        }
    }
    let plain = headers.get(header::CONTENT_ENCODING).is_none_or(|coding| coding == "identity");
    if !plain {
        let detail = "bodies are read without a content coding only";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_encoding", detail));
    }
    if holds_credential(uri) {
        return Err(Problem::bad_request(
            "credentials do not belong in a URL; use the header `authorization`",
        ));
    }
    Ok(())
}

/// Every path we have is made of letters, digits and a few signs, so an escape, a doubled slash or a dot
/// segment is an attempt to be read differently by someone in between.
fn is_canonical(path: &str) -> bool {
    path.starts_with('/')
        && !path.contains("//")
        && path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~:@".contains(&b))
        && path.split('/').all(|segment| segment != "." && segment != "..")
}

fn holds_credential(uri: &Uri) -> bool {
    let query = uri.query().unwrap_or_default().as_bytes();
    url::form_urlencoded::parse(query).any(|(name, value)| {
        let plain: String =
            name.chars().filter(|c| c.is_ascii_alphanumeric()).map(|c| c.to_ascii_lowercase()).collect();
        CREDENTIAL_PARAMETERS.contains(&plain.as_str())
            || ["wfl_", "wfr_", "wfj_", "wfp_", "wfs_", "eyJ"].iter().any(|prefix| value.starts_with(prefix))
    })
}

/// Asks who calls and whether the route is for them. A route without a row in the table is for nobody.
pub(super) async fn guard(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match admit(&door, &parts).await {
        Ok(ctx) => {
            parts.extensions.insert(ctx);
            next.run(Request::from_parts(parts, body)).await
        }
        Err(problem) => axum::response::IntoResponse::into_response(problem),
    }
}

async fn admit(door: &Door, parts: &Parts) -> Result<OpCtx, Problem> {
    let path = parts.extensions.get::<MatchedPath>().map(MatchedPath::as_str).unwrap_or_default();
    let (rule, act) = authz::route(&parts.method, path).ok_or(Error::Denied)?;
    let id = parts.extensions.get::<RequestId>().map_or_else(Uuid::now_v7, |id| id.0);
    let peer = parts.extensions.get::<ConnectInfo<std::net::SocketAddr>>();
    let address = peer.map(|ConnectInfo(peer)| peer.ip());
    let identity = &door.services.identity;
    let ctx = match rule {
        Rule::Public => identity.anonymous(id, address),
        _ => match credential(&parts.headers)? {
            Some(credential) => identity.authenticate(&credential, id, address).await?,
            None => identity.anonymous(id, address),
        },
    };
    ctx.enter((rule, act))?;
    Ok(ctx)
}

fn credential(headers: &HeaderMap) -> Result<Option<SecretString>, Problem> {
    let text = |value: &HeaderValue| value.to_str().map(str::to_owned).map_err(|_| Error::Unauthenticated);
    match (headers.get(header::AUTHORIZATION), headers.get(API_KEY)) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => {
            Err(Problem::bad_request("give one credential: `authorization` or `x-api-key`"))
        }
        (None, Some(key)) => Ok(Some(text(key)?.into())),
        (Some(authorization), None) => {
            let authorization = text(authorization)?;
            let (scheme, credential) = authorization.split_once(' ').ok_or(Error::Unauthenticated)?;
            match scheme.eq_ignore_ascii_case("bearer") && !credential.is_empty() {
                true => Ok(Some(credential.trim().to_owned().into())),
                false => Err(Error::Unauthenticated.into()),
            }
        }
    }
}

/// Who acts, put there by [`guard`]. A handler that is not behind it has nothing to call a service with.
pub(super) struct Actor(pub(super) OpCtx);

impl<S: Send + Sync> FromRequestParts<S> for Actor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<OpCtx>().cloned().map(Self).ok_or_else(|| Error::Denied.into())
    }
}

/// The one variable part of a path.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match parts.extract::<Path<String>>().await {
            Ok(Path(name)) if name.len() <= 255 => Ok(Self(name)),
            _ => Err(Problem::bad_request("the path cannot be read")),
        }
    }
}

/// The two variable parts of a path.
pub(super) struct Names(pub(super) String, pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Names {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match parts.extract::<Path<(String, String)>>().await {
            Ok(Path((one, two))) if one.len() <= 255 && two.len() <= 255 => Ok(Self(one, two)),
            _ => Err(Problem::bad_request("the path cannot be read")),
        }
    }
}

/// The version that a change is based on: in the body, in `If-Match`, or the same in both.
pub(super) fn based_on(body: Option<u64>, headers: &HeaderMap) -> Result<u64, Error> {
    match (body, if_match(headers)?) {
        (Some(body), Some(header)) if body != header => {
            Err(Error::invalid("version", "differs from the one in If-Match"))
        }
        (body, header) => body.or(header).ok_or_else(|| Error::invalid("version", "is missing")),
    }
}

fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Error> {
    let Some(tag) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = tag.to_str().unwrap_or_default();
    let version = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).and_then(|v| v.parse().ok());
    version.map(Some).ok_or_else(|| Error::invalid("if-match", "must be one version in quotes"))
}

/// The answer with the version of what it shows as its `ETag`.
pub(super) fn tagged(mut response: Response, version: u64) -> Response {
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{version}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            let detail = "the body must be `content-type: application/json`";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", detail));
        }
        let too_large = || Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the body is too large");
        let announced =
            request.headers().get(header::CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: usize| length > BODY_MOST) {
            return Err(too_large());
        }
        let body = axum::body::to_bytes(request.into_body(), BODY_MOST);
        let bytes = match tokio::time::timeout(BODY_TIME, body).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(_)) => return Err(too_large()),
            Err(_) => {
                let detail = "the body did not arrive in time";
                return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail));
            }
        };
        read_json(&bytes).map(Self)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = given.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
}

fn read_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // No database keeps a NUL in a text, and nobody needs one.
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| Problem::bad_request(format!("the body is not JSON: {}", place(&error))))?;
    // Serde would read a list as the fields in their order, past the check for unknown ones.
    if !value.is_object() {
        return Err(Error::invalid("body", "must be a JSON object").into());
    }
    if let Some(field) = with_nul(&value, String::new()) {
        return Err(Error::invalid(field, "must not hold a NUL").into());
    }
    // Read once more from the text, since a value keeps only the last of two fields of one name.
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.inner().to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default();
        wrong_field(path, reason).into()
    })
}

fn place(error: &serde_json::Error) -> String {
    format!("it breaks at line {} column {}", error.line(), error.column())
}

/// Names the field that serde complains of. Of an unknown one it says the name and what it knows instead.
fn wrong_field(path: String, reason: &str) -> Error {
    let quoted = |start: &str| reason.strip_prefix(start)?.split('`').next();
    let path = if path == "." { String::new() } else { path };
    let join = |name: &str| match path.is_empty() {
        true => name.to_owned(),
        false if path == name || path.ends_with(&format!(".{name}")) => path.clone(),
        false => format!("{path}.{name}"),
    };
    if let Some(name) = quoted("unknown field `") {
        return Error::invalid(join(name), "is not a field that this version knows");
    }
    if let Some(name) = quoted("missing field `") {
        return Error::invalid(join(name), "is missing");
    }
    if let Some(name) = quoted("duplicate field `") {
        return Error::invalid(join(name), "is there more than once");
    }
    let field = if path.is_empty() { "body".to_owned() } else { path };
    // What was found there may be a secret in the wrong place, so only what was expected is told.
    let reason = match reason.rsplit_once(", expected ") {
        Some((_, expected)) => format!("expected {expected}"),
        None => reason.to_owned(),
    };
    Error::invalid(field, format!("cannot be read: {reason}"))
}

fn with_nul(value: &Value, path: String) -> Option<String> {
    match value {
        Value::String(text) => text.contains('\0').then_some(path),
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(i, item)| with_nul(item, format!("{path}[{i}]")))
        }
        Value::Object(fields) => fields.iter().find_map(|(name, field)| {
            let dot = if path.is_empty() { "" } else { "." };
            if name.contains('\0') {
                Some(path.clone())
            } else {
                with_nul(field, format!("{path}{dot}{name}"))
            }
        }),
        _ => None,
    }
}

/// The query of a request, taken apart parameter by parameter; what nobody took is refused by name.
pub(super) struct Params {
    given: Vec<(String, String)>,
    problems: Vec<FieldError>,
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(Self::read(parts.uri.query().unwrap_or_default()))
    }
}

impl Params {
    fn read(query: &str) -> Self {
        let given = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        Self { given, problems: Vec::new() }
    }

    /// Every value of a parameter.
    pub(super) fn all(&mut self, name: &str) -> Vec<String> {
        let (taken, left) = std::mem::take(&mut self.given).into_iter().partition(|(given, _)| given == name);
        self.given = left;
        let values: Vec<String> = Vec::from_iter(taken).into_iter().map(|(_, value)| value).collect();
        if values.iter().any(|value| value.contains('\0')) {
            self.wrong(name, "must not hold a NUL");
        }
        values
    }

    /// The value of a parameter that may stand there once; an empty one counts as absent.
    pub(super) fn one(&mut self, name: &str) -> Option<String> {
        let mut values = self.all(name);
        if values.len() > 1 {
            self.wrong(name, "is there more than once");
        }
        values.pop().filter(|value| !value.is_empty())
    }

    /// The same, read as a value of another type.
    pub(super) fn read_as<T>(
        &mut self,
        name: &str,
        wanted: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.one(name)?;
        let value = read(&text);
        if value.is_none() {
            self.wrong(name, &format!("must be {wanted}"));
        }
        value
    }

    /// `limit` and `cursor`.
    pub(super) fn page(&mut self, most: u32) -> crate::page::Page {
        let wanted = format!("a number from 1 to {most}");
        let in_range = |text: &str| text.parse().ok().filter(|size| (1..=most).contains(size));
        let size = self.read_as("limit", &wanted, in_range).unwrap_or(0);
        crate::page::Page { size, cursor: self.one("cursor").unwrap_or_default() }
    }

    fn wrong(&mut self, name: &str, reason: &str) {
        self.problems.push(FieldError::new(name, reason));
    }

    /// To be called last: refuses what was wrong and what nobody asked for.
    pub(super) fn done(mut self) -> Result<(), Problem> {
        for (name, _) in &self.given {
            let name = crate::audit::clean(name, 64);
            self.problems.push(FieldError::new(name, "is not a parameter of this request"));
        }
        if self.problems.is_empty() { Ok(()) } else { Err(Error::Invalid(self.problems).into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field_of(problem: &Problem) -> String {
        format!("{problem:?}")
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[serde(rename = "list")]
        _list: Vec<Inner>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[serde(rename = "number")]
        _number: u8,
    }

    #[test]
    fn a_body_is_refused_by_the_name_of_its_wrong_field() {
        for (body, field) in [
            (r#"{"list":[{"number":1}],"extra":1}"#, "field: \"extra\""),
            (r#"{"list":[{"number":1,"other":1}]}"#, "field: \"list[0].other\""),
            (r#"{"list":[{"number":"x"}]}"#, "field: \"list[0].number\""),
            (r#"{"list":[{}]}"#, "field: \"list[0].number\""),
            (r#"{"list":[],"list":[]}"#, "field: \"list\""),
            (r#"{"list":[{"number":"a\u0000"}]}"#, "field: \"list[0].number\""),
            ("[]", "field: \"body\""),
            (r#"[[{"number":1}]]"#, "field: \"body\""),
            ("{", "not JSON"),
            ("{\"list\":[]} x", "not JSON"),
        ] {
            let problem = read_json::<Outer>(body.as_bytes()).unwrap_err();
            assert!(field_of(&problem).contains(field), "{body}: {problem:?}");
        }
        assert!(read_json::<Outer>(br#"{"list":[{"number":1}]}"#).is_ok());
    }

    #[test]
    fn paths_that_could_be_read_differently_are_refused() {
        assert!(is_canonical("/api/v1/servers/demo-1") && is_canonical("/"));
        for path in ["//api", "/api/../x", "/api/./x", "/a%2fb", "/a;b", "/a\\b", "/a%00", "x", "/.."] {
            assert!(!is_canonical(path), "{path}");
        }
    }

    #[test]
    fn credentials_in_a_url_are_found() {
        for query in ["api_key=x", "API-KEY=x", "access_token=x", "name=wfl_x", "q=eyJabc", "token="] {
            assert!(holds_credential(&format!("/x?{query}").parse().unwrap()), "{query}");
        }
        assert!(!holds_credential(&Uri::from_static("/x?name=token&tag=api_key&limit=3")));
    }

    #[test]
    fn a_query_is_refused_by_the_name_of_its_wrong_parameter() {
        let mut params = Params::read("tag=a&tag=b&name=x&name=y&limit=0&odd=1");
        assert_eq!(params.all("tag"), ["a", "b"]);
        params.one("name");
        params.page(500);
        let problem = field_of(&params.done().unwrap_err());
        for field in ["name", "limit", "odd"] {
            assert!(problem.contains(&format!("field: \"{field}\"")), "{problem}");
        }
    }
}
