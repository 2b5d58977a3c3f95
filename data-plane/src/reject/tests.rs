use waffles_mcp::{Limits, Message};

use super::*;

/// One of each kind. A new variant does not compile until it has its name here; give it a line in `samples` too.
fn name(reject: &Reject) -> &'static str {
    match reject {
        Reject::UnknownPath => "UnknownPath",
        Reject::MethodNotAllowed => "MethodNotAllowed",
        Reject::ForeignHost => "ForeignHost",
        Reject::ForeignOrigin => "ForeignOrigin",
        Reject::Header(_) => "Header",
        Reject::CredentialInUrl => "CredentialInUrl",
        Reject::Unauthenticated(_) => "Unauthenticated",
        Reject::UnsupportedMediaType => "UnsupportedMediaType",
        Reject::NotAcceptable => "NotAcceptable",
        Reject::TooLarge(_) => "TooLarge",
        Reject::SlowBody => "SlowBody",
        Reject::Parse(_) => "Parse",
        Reject::Head(_) => "Head",
        Reject::UnexpectedAnswer => "UnexpectedAnswer",
        Reject::Refused => "Refused",
        Reject::InitializeInBatch => "InitializeInBatch",
        Reject::UnsupportedVersion(_) => "UnsupportedVersion",
        Reject::UnknownServer(_) => "UnknownServer",
        Reject::ServerDisabled => "ServerDisabled",
        Reject::UnknownTool { .. } => "UnknownTool",
        Reject::Forbidden(_) => "Forbidden",
        Reject::UnknownSession => "UnknownSession",
        Reject::AuditUnavailable => "AuditUnavailable",
        Reject::Unchecked(_) => "Unchecked",
        Reject::Upstream { .. } => "Upstream",
        Reject::CircuitOpen(_) => "CircuitOpen",
        Reject::ServerBusy(_) => "ServerBusy",
        Reject::TooMany(_) => "TooMany",
        Reject::Limited(_) => "Limited",
        Reject::MethodNotFound { .. } => "MethodNotFound",
        Reject::BadLevel => "BadLevel",
        Reject::SessionRequired => "SessionRequired",
        Reject::BadRequestState(_) => "BadRequestState",
        Reject::NoAnswer => "NoAnswer",
        Reject::NoWayToAsk => "NoWayToAsk",
        Reject::Unknown(..) => "Unknown",
        Reject::BadCursor => "BadCursor",
        Reject::PeerGone => "PeerGone",
        Reject::Cancelled => "Cancelled",
        Reject::NotReady => "NotReady",
        Reject::Overloaded(_) => "Overloaded",
        Reject::TooManyHeaders => "TooManyHeaders",
        Reject::Internal(_) => "Internal",
    }
}

fn samples() -> Vec<Reject> {
    let parse = |text: &'static str| {
        Reject::Parse(Message::parse(Bytes::from_static(text.as_bytes()), &Limits::default()).unwrap_err())
    };
    let limited = |kind| {
        Reject::Limited(Box::new(Limited {
            kind,
            limit: "few".into(),
            rule: "limit:few".into(),
            retry_after: Duration::from_secs(7),
            policy: "\"few\";q=5;w=60".into(),
            state: "\"few\";r=0;t=7".into(),
        }))
    };
    let mut samples = vec![
        limited(LimitKind::Rate),
        limited(LimitKind::Quota),
        limited(LimitKind::Concurrent),
        limited(LimitKind::Streams),
        Reject::UnknownPath,
        Reject::MethodNotAllowed,
        Reject::ForeignHost,
        Reject::ForeignOrigin,
        Reject::Header(HeaderError::Mismatch("mcp-name".into())),
        Reject::CredentialInUrl,
        Reject::Unauthenticated("no_credential"),
        Reject::UnsupportedMediaType,
        Reject::NotAcceptable,
        Reject::TooLarge(1),
        Reject::SlowBody,
        parse("{"),
        parse(r#"{"jsonrpc":"2.0","id":1,"id":1,"method":"ping"}"#),
        Reject::Head(HeadError::NoMethod),
        Reject::Head(HeadError::Missing("name")),
        Reject::UnexpectedAnswer,
        Reject::TooMany("sessions"),
        Reject::CircuitOpen(Duration::from_millis(1)),
        Reject::ServerBusy(Duration::ZERO),
        Reject::MethodNotFound { modern: true },
        Reject::MethodNotFound { modern: false },
        Reject::BadLevel,
        Reject::SessionRequired,
        Reject::BadRequestState("forged_request_state"),
        Reject::NoAnswer,
        Reject::NoWayToAsk,
        Reject::Unknown("prompt", "x".into()),
        Reject::BadCursor,
        Reject::PeerGone,
        Reject::Cancelled,
        Reject::Refused,
        Reject::InitializeInBatch,
        Reject::UnsupportedVersion("2027-01-01".into()),
        Reject::UnknownServer("registry".into()),
        Reject::ServerDisabled,
        Reject::UnknownTool { tool: "echo".into(), rule: "server:tools".into() },
        Reject::Forbidden("key:read_only".into()),
        Reject::UnknownSession,
        Reject::AuditUnavailable,
        Reject::Unchecked(crate::keys::Missing::Away),
        Reject::Unchecked(crate::keys::Missing::Busy),
    ];
    use UpstreamFault as Up;
    for fault in [
        Up::Unreachable,
        Up::Closed,
        Up::TimedOut,
        Up::BrokeOff,
        Up::BadAnswer,
        Up::TooLarge,
        Up::NoRoom,
        Up::Credential,
        Up::Failed,
    ] {
        samples.push(Reject::upstream(fault, false));
        samples.push(Reject::upstream(fault, true));
    }
    samples.extend([Reject::Overloaded(1), Reject::TooManyHeaders]);
    samples.extend([Reject::NotReady, Reject::Internal("unusable_registration")]);
    samples
}

#[test]
fn every_refusal_stands_in_the_error_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/error_table.txt");
    let mut table = String::from("variant | status | code | reason | outcome | fault | retryable\n");
    for reject in samples() {
        let variant = match &reject {
            Reject::Upstream { sent: true, .. } => "Upstream (sent)",
            other => name(other),
        };
        let fault = format!("{:?}", reject.fault()).to_lowercase();
        table.push_str(&format!(
            "{variant} | {} | {} | {} | {} | {fault} | {}\n",
            reject.status().as_u16(),
            reject.code(),
            reject.reason(),
            reject.outcome().as_str(),
            reject.retryable(),
        ));
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        expected == table,
        "the error table changed; if on purpose, run with UPDATE_GOLDEN=1 and look at the diff:\n{table}"
    );
}

#[test]
fn only_what_never_left_may_be_sent_again() {
    for reject in samples() {
        let unsent = matches!(reject, Reject::Upstream { sent: false, .. });
        assert!(!reject.retryable() || unsent, "{reject:?}");
    }
}

#[test]
fn an_answer_shows_neither_the_rule_nor_an_address() {
    for reject in samples() {
        let message = reject.message(None, Uuid::nil());
        let text = String::from_utf8(message.to_vec()).unwrap();
        for hidden in ["registry", "server:tools", "key:read_only", "unusable"] {
            let shown = text.contains(hidden) && !reject.reason().contains(hidden);
            assert!(!shown, "{hidden} in {text}");
        }
    }
}

#[test]
fn a_server_in_trouble_says_when_to_ask_again_and_whether_the_call_may_have_run() {
    let of = |reject: Reject| {
        let response = reject.response(None, Uuid::nil());
        let after =
            response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
        let body: Value = serde_json::from_slice(response.body()).unwrap();
        (after, body["error"]["data"]["may_have_run"].clone())
    };
    let after = |seconds: &str| Some(seconds.to_owned());
    assert_eq!(of(Reject::CircuitOpen(Duration::from_millis(1001))), (after("2"), json!(false)));
    assert_eq!(of(Reject::ServerBusy(Duration::ZERO)), (after("1"), json!(false)));
    assert_eq!(of(Reject::upstream(UpstreamFault::BrokeOff, true)), (None, json!(true)));
    assert_eq!(of(Reject::upstream(UpstreamFault::Unreachable, false)), (None, json!(false)));
    assert_eq!(of(Reject::upstream(UpstreamFault::Credential, true)), (None, json!(false)));
    let failed = Reject::upstream(UpstreamFault::Failed, true).ask_again_in(Some(Duration::from_secs(7)));
    assert_eq!(of(failed), (after("7"), json!(true)));
    assert_eq!(of(Reject::BadLevel), (None, Value::Null));
}
