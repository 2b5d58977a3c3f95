//! Real clients and real servers: the official SDKs, the reference server and the conformance suite, through both
//! planes, same era on both sides.

use serde_json::json;
use waffles_proto::audit::v1::EventFilter;
use waffles_tests::programs::DemoServer;
use waffles_tests::sdk::{self, Sdk, SdkServer};
use waffles_tests::{Era, Waffles};

#[tokio::test]
async fn every_official_client_does_all_it_does_directly() {
    let demo = DemoServer::start().await;
    let waffles = Waffles::start().await;
    waffles.add_server("demo", &demo.url).await;
    let url = waffles.proxies[0].server_url("demo");
    for (client, era) in Sdk::ALL {
        let report = sdk::check(client, era, &url, &waffles.admin.secret).await;
        assert!(report.failed.is_empty(), "{client:?} {era:?}: {:#?}", report.failed);
        assert!(report.passed.len() >= 18, "{client:?} {era:?} ran only {:?}", report.passed);
    }
    let calls =
        EventFilter { action: "mcp.tools/call".into(), target: "echo".into(), ..EventFilter::default() };
    let events = waffles.audited(calls, Sdk::ALL.len()).await;
    assert!(
        events.iter().all(|event| event.server_name == "demo" && event.principal_name == "admin@localhost")
    );
}

#[tokio::test]
async fn the_conformance_suite_loses_nothing_on_the_way() {
    let fixture = SdkServer::conformance().await;
    let waffles = Waffles::start().await;
    waffles.add_server("conformance", &fixture.url).await;
    let via_url = waffles.proxies[0].server_url("conformance");
    let folder = tempfile::tempdir().unwrap();
    for revision in ["2025-11-25", "2026-07-28"] {
        let file = |name: &str| folder.path().join(format!("{name}-{revision}.json"));
        let (direct, via) = (file("direct"), file("via"));
        sdk::conformance(&fixture.url, revision, None, &direct).await;
        sdk::conformance(&via_url, revision, Some(&waffles.admin.secret), &via).await;
        let passed = std::fs::read_to_string(&direct).unwrap().matches(r#""status""#).count();
        assert!(passed > 30, "the direct run of {revision} has hardly any checks");
        assert_eq!(sdk::lost(&direct, &via).await, "", "{revision}");
    }
}

#[tokio::test]
async fn the_reference_server_is_served_too() {
    let everything = SdkServer::everything().await;
    let waffles = Waffles::start().await;
    waffles.add_server("everything", &everything.url).await;
    let client = waffles.client("everything").of(Era::Sessions).await;
    let tools = client.ask(1, "tools/list", json!({})).await.unwrap().result();
    assert!(tools["tools"].as_array().unwrap().len() > 5, "{tools}");
    let echoed = client.call("echo", json!({"message": "waffles"})).await.unwrap().result();
    assert!(echoed["content"][0]["text"].as_str().unwrap().contains("waffles"), "{echoed}");
    let resources = client.ask(3, "resources/list", json!({})).await.unwrap().result();
    let uri = resources["resources"][0]["uri"].clone();
    let read = client.ask(4, "resources/read", json!({"uri": uri})).await.unwrap().result();
    assert!(read["contents"][0].is_object(), "{read}");
    let prompts = client.ask(5, "prompts/list", json!({})).await.unwrap().result();
    assert!(!prompts["prompts"].as_array().unwrap().is_empty());
}
