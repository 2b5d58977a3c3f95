use waffles_core::seal::SealKey;
use waffles_mcp::Limits;

use super::*;

fn ring(byte: u8) -> SealRing {
    SealRing::new(vec![SealKey::new(byte, &[byte; 32])])
}

fn session() -> Session {
    let client = Client {
        capabilities: Bytes::from_static(br#"{"sampling":{}}"#),
        info: Some(Bytes::from_static(br#"{"name":"c","version":"1"}"#)),
    };
    Session::begin(Uuid::from_u128(1), "door".into(), Revision::V2025_06_18, &client).unwrap()
}

#[test]
fn any_proxy_with_the_same_key_goes_on_with_a_session() {
    let session = session();
    let id = session.seal(&ring(1), 1000).unwrap();
    let other = Sessions::default();
    let found = other.find(id.to_str().unwrap(), &ring(1), Uuid::from_u128(1), "door", 1001).unwrap();
    assert_eq!((found.nonce, found.revision), (session.nonce, Revision::V2025_06_18));
    assert_eq!(found.client, session.client);
    assert_eq!(other.len(), 1);
}

#[test]
fn a_session_of_another_principal_door_time_or_key_is_unknown() {
    let id = session().seal(&ring(1), 1000).unwrap();
    let id = id.to_str().unwrap();
    let sessions = Sessions::default();
    let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
    for (key, principal, door, now) in [
        (1, two, "door", 1001),
        (1, one, "other", 1001),
        (1, one, "door", 1001 + MAX_AGE),
        (2, one, "door", 1001),
    ] {
        let found = sessions.find(id, &ring(key), principal, door, now);
        assert!(matches!(found, Err(Reject::UnknownSession)));
    }
    let (mut cut, unmarked) = (id.to_owned(), id.trim_start_matches(MARK));
    cut.pop();
    for forged in ["g.", "g.abc", "g.!!", &cut, unmarked] {
        assert!(sessions.find(forged, &ring(1), one, "door", 1001).is_err(), "{forged}");
    }
    assert!(sessions.is_empty());
}

#[test]
fn an_ended_session_stays_ended() {
    let sessions = Sessions::default();
    let session = sessions.add(session()).unwrap();
    let id = session.seal(&ring(1), 1000).unwrap();
    let running = session.run(&Id::number(1));
    sessions.end(&session);
    assert!(!running.token.is_cancelled() && session.ended().is_cancelled());
    let found = sessions.find(id.to_str().unwrap(), &ring(1), session.principal, "door", 1001);
    assert!(matches!(found, Err(Reject::UnknownSession)));
}

#[tokio::test]
async fn an_answer_reaches_the_question_with_its_id_and_type() {
    let session = session();
    let (one, text) = (session.ask(Id::number(1)), session.ask(Id::string("1")));
    let answer = |id: &str| {
        let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#);
        Message::parse(Bytes::from(text), &Limits::default()).unwrap()
    };
    assert!(session.answer(answer("\"1\"")));
    assert!(!session.answer(answer("\"1\"")), "a second answer is for nobody");
    assert!(!session.answer(answer("2")));
    assert_eq!(text.await.unwrap().id(), Some(&Id::string("1")));
    drop(one);
    assert!(!session.answer(answer("1")), "nobody waits any more");
}

#[test]
fn two_requests_under_one_id_are_told_apart() {
    let session = Arc::new(session());
    let first = session.run(&Id::number(1));
    let second = session.run(&Id::number(1));
    drop(first);
    session.cancel(&Id::number(1));
    assert!(second.token.is_cancelled(), "the end of the first did not take the second's place");
}

#[test]
fn streams_are_kept_for_their_own_session_and_in_number() {
    let session = session();
    let first = session.stream();
    assert!(session.resume("s1-1").is_none(), "it is being read");
    for _ in 0..STREAMS {
        session.stream();
    }
    drop(first);
    assert_eq!(session.state.lock().streams.len(), STREAMS);
    for bad in ["", "s", "s1", "s1-", "s-1", "x1-1", "s1-x", "s99999999999999999999-1"] {
        assert!(session.resume(bad).is_none(), "{bad}");
    }
}
