use serde_json::{Value, json};

use super::*;

fn may(capabilities: &Value, method: &str, params: &Value) -> bool {
    allows(capabilities.to_string().as_bytes(), method, params.to_string().as_bytes())
}

#[test]
fn only_what_was_declared_may_be_asked() {
    let (form, url) = (json!({"message": "m"}), json!({"mode": "url"}));
    for (elicitation, by_form, by_url) in [
        (json!({}), true, false),
        (json!({"form": {}}), true, false),
        (json!({"url": {}}), false, true),
        (json!({"form": {}, "url": {}}), true, true),
        (json!({"url": null}), true, false),
        (json!(null), false, false),
        (json!(true), false, false),
    ] {
        let capabilities = json!({"elicitation": elicitation});
        assert_eq!(may(&capabilities, "elicitation/create", &form), by_form, "{elicitation}");
        assert_eq!(
            may(&capabilities, "elicitation/create", &json!({"mode": "form"})),
            by_form,
            "{elicitation}"
        );
        assert_eq!(may(&capabilities, "elicitation/create", &url), by_url, "{elicitation}");
    }
    let (plain, tools) = (json!({"sampling": {}}), json!({"sampling": {"tools": {}}}));
    for with_tools in [json!({"tools": []}), json!({"toolChoice": {}})] {
        assert!(!may(&plain, "sampling/createMessage", &with_tools));
        assert!(may(&tools, "sampling/createMessage", &with_tools));
    }
    assert!(may(&plain, "sampling/createMessage", &json!({"messages": []})));
    assert!(may(&json!({"roots": {}}), "roots/list", &json!({})));
    let all = json!({"roots": {}, "sampling": {}, "elicitation": {}});
    for none in [json!({}), json!([])] {
        for method in ["roots/list", "sampling/createMessage", "elicitation/create"] {
            assert!(!may(&none, method, &json!({})), "{method}");
        }
    }
    assert!(!may(&all, "ping", &json!({})) && !may(&all, "tools/call", &json!({})));
}

#[test]
fn capabilities_that_mean_the_same_have_one_text() {
    for (given, want) in [
        (r#"{}"#, "{}"),
        (r#"{"x":{},"experimental":{"a":{}},"extensions":{"a/b":{}},"tasks":{}}"#, "{}"),
        (r#"{"elicitation":{}}"#, r#"{"elicitation":{}}"#),
        (r#"{"elicitation":{"form":{"a":1}}}"#, r#"{"elicitation":{}}"#),
        (r#"{"elicitation":{"url":{},"form":{}}}"#, r#"{"elicitation":{"form":{},"url":{}}}"#),
        (r#"{"elicitation":{"url":{}}}"#, r#"{"elicitation":{"url":{}}}"#),
        (r#"{"elicitation":null,"roots":null,"sampling":false}"#, "{}"),
        (
            r#"{"sampling":{"tools":{},"context":{}},"roots":{"listChanged":true}}"#,
            r#"{"roots":{"listChanged":true},"sampling":{"context":{},"tools":{}}}"#,
        ),
        (r#"{"roots":{"listChanged":false}, "sampling":{}}"#, r#"{"roots":{},"sampling":{}}"#),
        ("[1]", "{}"),
    ] {
        let once = normalise(given.as_bytes());
        assert_eq!(once, want, "{given}");
        assert_eq!(normalise(&once), once);
    }
}

#[test]
fn nobody_is_offered_a_mode_that_the_revision_lacks() {
    let all = br#"{"elicitation":{"form":{},"url":{}},"roots":{},"sampling":{"tools":{}}}"#;
    let only_url = br#"{"elicitation":{"url":{}}}"#;
    for (revision, want, want_url) in [
        (Revision::V2024_11_05, r#"{"roots":{},"sampling":{}}"#, "{}"),
        (Revision::V2025_03_26, r#"{"roots":{},"sampling":{}}"#, "{}"),
        (Revision::V2025_06_18, r#"{"elicitation":{},"roots":{},"sampling":{}}"#, "{}"),
        (
            Revision::V2025_11_25,
            r#"{"elicitation":{"form":{},"url":{}},"roots":{},"sampling":{"tools":{}}}"#,
            r#"{"elicitation":{"url":{}}}"#,
        ),
    ] {
        assert_eq!(for_revision(all, revision), want, "{revision}");
        assert_eq!(for_revision(only_url, revision), want_url, "{revision}");
    }
}

#[test]
fn what_servers_can_do_is_read_and_joined() {
    let read = |value: Value| Capabilities::parse(value.to_string().as_bytes());
    let one = read(json!({"tools": {"listChanged": true}, "logging": {}, "x": {}}));
    let two =
        read(json!({"tools": {}, "resources": {"subscribe": true}, "prompts": {"listChanged": "true"}}));
    let both = Capabilities::union([one, two, read(json!({"completions": {}}))]);
    let stated = json!({"completions": {}, "logging": {}, "prompts": {}, "resources": {"subscribe": true},
        "tools": {"listChanged": true}});
    assert_eq!(serde_json::from_slice::<Value>(&both.to_json()).unwrap(), stated);
    assert_eq!(read(stated), both);
    assert_eq!(one.or(two), two.or(one));
    assert_eq!(read(json!({"tools": true, "prompts": null})), Capabilities::default());
    assert_eq!(Capabilities::union([]).to_json(), "{}");
}
