use serde_json::json;

use super::*;
use crate::translate::tests::{message, parse, value};

#[test]
fn progress_comes_under_the_token_of_the_asker() {
    let progress = parse(
        r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":1.50, "progressToken":7}}"#,
    );
    assert_eq!(
        with_progress_token(&progress, r#""a""#),
        r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":1.50, "progressToken":"a"}}"#
    );
}

#[test]
fn a_tag_is_put_on_and_taken_off() {
    for (params, tagged_params) in [
        (None, json!({"_meta": {SUBSCRIPTION: 7}})),
        (Some(json!({"uri": "u"})), json!({"uri": "u", "_meta": {SUBSCRIPTION: 7}})),
        (Some(json!({"_meta": {"a": 1}})), json!({"_meta": {"a": 1, SUBSCRIPTION: 7}})),
    ] {
        let mut bare = json!({"jsonrpc": "2.0", "method": "notifications/resources/updated"});
        if let Some(params) = params {
            bare["params"] = params;
        }
        let sent = tagged(&message(&bare), &Id::number(7));
        let mut want = bare.clone();
        want["params"] = tagged_params;
        assert_eq!(value(&sent), want);
        let sent = parse(std::str::from_utf8(&sent).unwrap());
        assert_eq!(subscription_of(&sent), Some(Id::number(7)));
        assert_eq!(value(&untagged(&sent)), bare);
        let again = tagged(&sent, &Id::string("x"));
        want["params"]["_meta"][SUBSCRIPTION] = json!("x");
        assert_eq!(value(&again), want, "one tag takes the place of another");
    }
    let untagged_already = json!({"jsonrpc": "2.0", "method": "m", "params": {"x": 1}});
    assert_eq!(value(&untagged(&message(&untagged_already))), untagged_already);
    assert_eq!(subscription_of(&message(&untagged_already)), None);
}

#[test]
fn levels_are_ranked_as_in_syslog() {
    let ranks: Vec<_> = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"]
        .into_iter()
        .map(level_rank)
        .collect();
    assert_eq!(ranks, (0..8).map(Some).collect::<Vec<_>>());
    for unknown in ["", "Info", "warn", "trace"] {
        assert_eq!(level_rank(unknown), None, "{unknown}");
    }
}

fn filter(value: &serde_json::Value) -> Filter {
    Filter::parse(value.to_string().as_bytes()).unwrap()
}

#[test]
fn a_filter_reads_back_what_it_writes() {
    let whole = json!({
        "promptsListChanged": true, "resourceSubscriptions": ["a", "b"], "resourcesListChanged": true,
        "taskIds": ["t"], "toolsListChanged": true,
    });
    assert_eq!(value(&filter(&whole).to_json()), whole);
    assert!(filter(&json!({})).is_empty());
    assert_eq!(filter(&json!({})).to_json(), "{}");
    for nothing in [
        json!({"toolsListChanged": false, "resourceSubscriptions": []}),
        json!({"toolsListChanged": "true", "taskIds": "t", "x.y/z": true}),
    ] {
        assert!(filter(&nothing).is_empty(), "{nothing}");
    }
    assert!(Filter::parse(b"[]").is_err());
}

#[test]
fn filters_join_and_meet() {
    let one =
        filter(&json!({"toolsListChanged": true, "resourceSubscriptions": ["a", "b"], "taskIds": ["t"]}));
    let two = filter(&json!({"promptsListChanged": true, "resourceSubscriptions": ["b", "c"]}));
    assert_eq!(
        value(&one.union(&two).to_json()),
        json!({"toolsListChanged": true, "promptsListChanged": true,
            "resourceSubscriptions": ["a", "b", "c"], "taskIds": ["t"]})
    );
    assert_eq!(value(&one.intersect(&two).to_json()), json!({"resourceSubscriptions": ["b"]}));
    assert_eq!(one.intersect(&one.union(&two)), one);
}

#[test]
fn a_subscription_begins_and_ends_under_its_id() {
    let id = Id::string("s");
    let first = filter(&json!({"toolsListChanged": true})).acknowledged(&id);
    assert_eq!(
        value(&first),
        json!({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged",
            "params": {"_meta": {SUBSCRIPTION: "s"}, "notifications": {"toolsListChanged": true}}})
    );
    assert_eq!(value(&closing_result(&id)), json!({"resultType": "complete", "_meta": {SUBSCRIPTION: "s"}}));
}

#[test]
fn a_cancelled_request_is_named_with_the_type_of_its_id() {
    for id in [Id::number(7), Id::string("7")] {
        let sent = parse(std::str::from_utf8(&cancelled(&id, "the client has gone")).unwrap());
        assert_eq!(crate::head(&sent).unwrap().request_id, Some(id));
    }
}

#[test]
fn what_has_changed_is_named() {
    assert_eq!(
        value(&list_changed(&Method::ToolsListChanged)),
        json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
    );
    assert_eq!(
        value(&resource_updated("a\"b")),
        json!({"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": "a\"b"}})
    );
}
