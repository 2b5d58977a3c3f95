//! The official Rust SDK as a client, through both planes, in both eras: tools, progress, questions, sampling,
//! resources, prompts, and a call that is given up.

#![allow(deprecated, reason = "sampling is deprecated, and every revision that is served still has it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use rmcp::model::{
    CallToolRequestParams, ClientCapabilities, ClientConfig, CreateMessageRequestParams, CreateMessageResult,
    ElicitRequestParams, ElicitResult, ElicitationAction, ErrorData, GetPromptRequestParams, Implementation,
    ProgressNotificationParam, ProtocolVersion, ReadResourceRequestParams, SamplingMessage,
};
use rmcp::service::{
    ClientLifecycleMode, ClientServiceExt as _, NotificationContext, RequestContext, RunningService,
};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ClientHandler, RoleClient};
use serde_json::{Value, json};
use waffles_tests::programs::DemoServer;
use waffles_tests::{Era, PATIENCE, Waffles, eventually};

/// Answers what it is asked, and counts the progress it hears of.
#[derive(Debug, Clone, Default)]
struct Asked {
    progress: Arc<AtomicUsize>,
}

impl ClientHandler for Asked {
    fn get_info(&self) -> ClientConfig {
        let capabilities = ClientCapabilities::builder().enable_elicitation().enable_sampling().build();
        ClientConfig::new(capabilities, Implementation::new("waffles-tests", "1"))
    }

    async fn create_elicitation(
        &self,
        _request: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        Ok(ElicitResult::new(ElicitationAction::Accept).with_content(json!({"answer": "with syrup"})))
    }

    async fn create_message(
        &self,
        _request: CreateMessageRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<CreateMessageResult, ErrorData> {
        Ok(CreateMessageResult::new(SamplingMessage::assistant_text("said the model"), "model".into()))
    }

    async fn on_progress(
        &self,
        _progress: ProgressNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        self.progress.fetch_add(1, Ordering::SeqCst);
    }
}

async fn connect(url: &str, key: &str, era: Era, asked: Asked) -> RunningService<RoleClient, Asked> {
    let config = StreamableHttpClientTransportConfig::with_uri(url.to_owned()).auth_header(key);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let transport = StreamableHttpClientTransport::with_client(client, config);
    let lifecycle = match era {
        Era::Sessions => ClientLifecycleMode::Initialize,
        Era::Stateless => {
            ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
        }
    };
    asked.serve_with_lifecycle(transport, lifecycle).await.unwrap()
}

async fn call(client: &RunningService<RoleClient, Asked>, tool: &'static str, arguments: Value) -> String {
    let arguments = arguments.as_object().cloned().unwrap_or_default();
    let request = CallToolRequestParams::new(tool).with_arguments(arguments);
    let result = tokio::time::timeout(PATIENCE, client.call_tool(request)).await.unwrap().unwrap();
    serde_json::to_string(&result).unwrap()
}

#[tokio::test]
async fn the_rust_sdk_does_all_it_does_directly() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let demo = DemoServer::start().await;
    let waffles = Waffles::start().await;
    waffles.add_server("demo", &demo.url).await;
    let url = waffles.proxies[0].server_url("demo");
    for era in Era::BOTH {
        let asked = Asked::default();
        let client = connect(&url, &waffles.admin.secret, era, asked.clone()).await;
        let tools = client.list_all_tools().await.unwrap();
        assert!(tools.iter().any(|tool| tool.name == "echo"), "{era:?}");
        assert!(call(&client, "echo", json!({"message": "hello"})).await.contains("hello"));
        assert!(call(&client, "add", json!({"a": 2, "b": 3})).await.contains('5'));
        assert!(call(&client, "ask", json!({"question": "How?"})).await.contains("with syrup"), "{era:?}");
        assert!(
            call(&client, "sample", json!({"prompt": "Well?"})).await.contains("said the model"),
            "{era:?}"
        );
        call(&client, "progress", json!({"steps": 3, "delay_ms": 20})).await;
        eventually(PATIENCE, || async {
            let heard = asked.progress.load(Ordering::SeqCst);
            ensure!(heard >= 1, "no progress was heard of in {era:?}");
            Ok(())
        })
        .await;
        let read = client.read_resource(ReadResourceRequestParams::new("demo://greeting")).await.unwrap();
        assert!(!serde_json::to_string(&read).unwrap().is_empty());
        assert!(!client.list_all_resource_templates().await.unwrap().is_empty());
        let arguments = json!({"name": "Ada"}).as_object().cloned().unwrap();
        let prompt = GetPromptRequestParams::new("greet").with_arguments(arguments);
        let prompt = client.get_prompt(prompt).await.unwrap();
        assert!(serde_json::to_string(&prompt).unwrap().contains("Ada"));

        // A client that goes away in the middle of a call leaves one record that says so, and nobody else notices.
        let slow = CallToolRequestParams::new("slow")
            .with_arguments(json!({"seconds": 30}).as_object().cloned().unwrap());
        assert!(tokio::time::timeout(Duration::from_millis(300), client.call_tool(slow)).await.is_err());
        assert!(call(&client, "echo", json!({"message": "still here"})).await.contains("still here"));
        client.cancel().await.unwrap();
    }
}
