//! What one caller, one bad moment or one server's silence must not do to others at a federated door.

use std::time::Duration;

use serde_json::{Value, json};
use waffles_tests::{Behaviour, Era, until};

use super::{Farm, names};

#[tokio::test]
async fn an_error_for_one_caller_is_no_empty_list_for_others() {
    let farm = Farm::start().await;
    farm.beta.offer(json!({"tools": {}, "prompts": {"listChanged": true}}));
    let refusal = Behaviour::Error { code: -32603, message: "not now".into(), data: Value::Null };
    let good = Behaviour::Result(json!({"prompts": [{"name": "back"}], "ttlMs": 0, "cacheScope": "private"}));
    let alice = farm.client().of(Era::Stateless).await;
    let bob = farm.with_key(&farm.narrow).of(Era::Stateless).await;
    alice.ask(1, "prompts/list", json!({})).await.unwrap().result();
    // From now on the proxy would hear of changes, and so believes what it has read for minutes.
    until("the door listens", Duration::from_secs(5), || async { farm.beta.listeners() > 0 }).await;
    farm.beta.on_method("prompts/list", refusal);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    alice.ask(2, "prompts/list", json!({})).await.unwrap().result();
    farm.beta.on_method("prompts/list", good);
    let listed = bob.ask(3, "prompts/list", json!({})).await.unwrap().result();
    assert_eq!(names(&listed, "prompts", "name"), ["beta__back"], "{listed}");
}

#[tokio::test]
async fn every_kind_of_list_names_who_answers_it_badly() {
    let farm = Farm::start().await;
    let client = farm.client().of(Era::Stateless).await;
    let refusal = Behaviour::Error { code: -32603, message: "out of order".into(), data: Value::Null };
    for (method, list) in
        [("tools/list", "tools"), ("prompts/list", "prompts"), ("resources/list", "resources")]
    {
        farm.alpha.on_method(method, refusal.clone());
        let listed = client.ask(1, method, json!({})).await.unwrap().result();
        assert!(listed[list].as_array().is_some_and(|entries| !entries.is_empty()), "{listed}");
        assert_eq!(listed["_meta"]["io.waffles/unavailable"][0]["server"], "alpha", "{method}: {listed}");
    }
    // A server that never offered a list is not at fault when it does not have it.
    let farm = Farm::start().await;
    farm.alpha.offer(json!({"tools": {}}));
    farm.alpha.on_method("prompts/list", refusal);
    let client = farm.client().of(Era::Stateless).await;
    let listed = client.ask(2, "prompts/list", json!({})).await.unwrap().result();
    assert_eq!(listed.get("_meta"), None, "{listed}");
}

#[tokio::test]
async fn a_client_is_told_to_believe_a_list_for_no_longer_than_its_servers_say() {
    let farm = Farm::start().await;
    let client = farm.client().of(Era::Stateless).await;
    for _ in 0..4 {
        let listed = client.ask(1, "tools/list", json!({})).await.unwrap().result();
        assert_eq!(listed["ttlMs"], 0, "its servers say 0, whatever the proxy itself remembers");
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
}

#[tokio::test]
async fn templates_of_the_web_are_completed_by_who_lists_them() {
    let farm = Farm::start().await;
    let template = "https://example.com/{path}";
    let listed = json!({"resourceTemplates": [{"uriTemplate": template, "name": "web"}], "ttlMs": 0,
        "cacheScope": "private"});
    farm.beta.on_method("resources/templates/list", Behaviour::Result(listed));
    farm.beta.on_method("completion/complete", Behaviour::Result(json!({"completion": {"values": ["x"]}})));
    let client = farm.client().of(Era::Stateless).await;
    let reference = json!({"type": "ref/resource", "uri": template});
    let params = json!({"ref": reference, "argument": {"name": "path", "value": ""}});
    let completed = client.ask(1, "completion/complete", params).await.unwrap();
    assert_eq!(completed.message()["result"]["completion"]["values"], json!(["x"]), "{}", completed.text());
    assert_eq!(farm.beta.seen_of("completion/complete")[0].json()["params"]["ref"]["uri"], template);
}
