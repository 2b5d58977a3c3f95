//! Tenants side by side on one Waffles: the same names everywhere, and no way across; one that is suspended is refused
//! everywhere within a second, and the other notices nothing.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use tempfile::TempDir;
use waffles_proto::audit::v1::audit_service_client::AuditServiceClient;
use waffles_proto::audit::v1::{EventFilter, SearchEventsRequest};
use waffles_proto::auth::v1::GetSelfRequest;
use waffles_proto::auth::v1::auth_service_client::AuthServiceClient;
use waffles_proto::registry::v1 as pb;
use waffles_proto::registry::v1::namespace_service_client::NamespaceServiceClient;
use waffles_proto::registry::v1::registry_service_client::RegistryServiceClient;
use waffles_proto::tenant::v1::{ResumeTenantRequest, SuspendTenantRequest};
use waffles_tests::programs::{command, http_client};
use waffles_tests::waffles::{Tenant, endpoint, login_in, spec};
use waffles_tests::{Answer, Era, McpClient, McpServer, PATIENCE, Waffles, eventually};

use crate::call::masked;

/// A tenant with a server `demo` in a namespace `team`.
struct Side {
    tenant: Tenant,
    server: McpServer,
}

impl Side {
    async fn settle(waffles: &Waffles, id: &str) -> Self {
        let (tenant, server) = (waffles.add_tenant(id).await, McpServer::start().await);
        let credential = || waffles.authorized(&tenant.key.secret);
        let demo = pb::ServerSpec { name: "demo".into(), endpoints: vec![endpoint(&server.url())], ..spec() };
        let request = pb::CreateServerRequest { spec: Some(demo), disabled: false };
        RegistryServiceClient::new(credential()).create_server(request).await.unwrap();
        let team = pb::NamespaceSpec {
            name: "team".into(),
            servers: vec![pb::NamespaceMember { server: "demo".into(), ..Default::default() }],
            levels: vec![pb::RoleLevel { role: "admin".into(), level: pb::Level::Execute.into() }],
            ..Default::default()
        };
        let request = pb::CreateNamespaceRequest { spec: Some(team) };
        NamespaceServiceClient::new(credential()).create_namespace(request).await.unwrap();
        waffles.settled().await;
        Self { tenant, server }
    }

    fn at(&self, waffles: &Waffles, path: &str) -> McpClient {
        let url = format!("http://{}{path}", waffles.proxies[0].mcp);
        McpClient::new(&url).with_bearer(&self.tenant.key.secret)
    }

    async fn call(&self, waffles: &Waffles, path: &str, tool: &str) -> Answer {
        self.at(waffles, path)
            .of(Era::Stateless)
            .await
            .call(tool, json!({"who": self.tenant.id}))
            .await
            .unwrap()
    }

    /// Who called its server.
    fn callers(&self) -> Vec<String> {
        let calls = self.server.seen_of("tools/call");
        calls
            .iter()
            .map(|seen| seen.json()["params"]["arguments"]["who"].as_str().unwrap().to_owned())
            .collect()
    }

    async fn trail(&self, waffles: &Waffles) -> Vec<waffles_proto::audit::v1::Event> {
        let mut audit = AuditServiceClient::new(waffles.authorized(&self.tenant.key.secret));
        let request = SearchEventsRequest { page_size: 1000, ..Default::default() };
        audit.search_events(request).await.unwrap().into_inner().events
    }
}

async fn both() -> [Waffles; 2] {
    [Waffles::start().await, Waffles::on_postgres().await]
}

#[tokio::test]
async fn two_tenants_with_the_same_names_serve_side_by_side() {
    for waffles in both().await {
        let sides = [Side::settle(&waffles, "acme").await, Side::settle(&waffles, "globex").await];
        for side in &sides {
            let own = format!("/t/{}/mcp/servers/demo", side.tenant.id);
            for (path, tool) in [
                ("/mcp/servers/demo", "echo"),
                ("/mcp/namespaces/team", "demo__echo"),
                ("/mcp", "demo__echo"),
                (own.as_str(), "echo"),
            ] {
                let answer = side.call(&waffles, path, tool).await;
                assert_eq!(answer.status, 200, "{path}: {}", answer.text());
                assert_eq!(answer.result()["structuredContent"]["who"], side.tenant.id, "{path}");
            }
        }
        for side in &sides {
            assert_eq!(
                side.callers(),
                vec![side.tenant.id.clone(); 4],
                "each server saw its own tenant alone"
            );
            let calls = EventFilter { action: "mcp.tools/call".into(), ..EventFilter::default() };
            let events = eventually(PATIENCE, || async {
                let mut audit = AuditServiceClient::new(waffles.authorized(&side.tenant.key.secret));
                let request = SearchEventsRequest {
                    filter: Some(calls.clone()),
                    page_size: 1000,
                    cursor: String::new(),
                };
                let events = audit.search_events(request).await?.into_inner().events;
                ensure!(events.len() >= 4, "{} of 4", events.len());
                Ok::<_, anyhow::Error>(events)
            })
            .await;
            assert!(events.len() == 4 && events.iter().all(|event| event.tenant == side.tenant.id));
        }
        // Whoever runs the whole Waffles sees how much there is, and nothing of it.
        let get = waffles_proto::tenant::v1::GetTenantRequest { id: "acme".into() };
        let shown = waffles.tenants().get_tenant(get).await.unwrap().into_inner();
        let usage = shown.usage.unwrap();
        assert_eq!((usage.servers, usage.namespaces, usage.principals, usage.api_keys), (1, 2, 1, 1));
        let seen = waffles.audit_search(EventFilter::default()).await.unwrap();
        assert!(seen.iter().all(|event| event.tenant == "default"), "{seen:#?}");
    }
}

#[tokio::test]
async fn no_door_leads_into_another_tenant() {
    for waffles in both().await {
        let (acme, globex) = (Side::settle(&waffles, "acme").await, Side::settle(&waffles, "globex").await);
        let only = pb::ServerSpec {
            name: "only-theirs".into(),
            endpoints: vec![endpoint(&globex.server.url())],
            ..spec()
        };
        let request = pb::CreateServerRequest { spec: Some(only), disabled: false };
        let credential = waffles.authorized(&globex.tenant.key.secret);
        RegistryServiceClient::new(credential).create_server(request).await.unwrap();
        waffles.settled().await;

        // A door of another tenant is told as one of a tenant that is not there, whatever stands behind it.
        for (theirs, nobody) in [
            ("/t/globex/mcp/servers/demo", "/t/nobody/mcp/servers/demo"),
            ("/t/globex/mcp/servers/only-theirs", "/t/nobody/mcp/servers/only-theirs"),
            ("/t/globex/mcp/namespaces/team", "/t/nobody/mcp/namespaces/team"),
            ("/t/globex/mcp", "/t/nobody/mcp"),
            ("/t/default/mcp", "/t/nobody/mcp"),
            ("/mcp/servers/only-theirs", "/mcp/servers/only-nobodys"),
        ] {
            let (theirs, nobody) =
                (acme.call(&waffles, theirs, "echo").await, acme.call(&waffles, nobody, "echo").await);
            assert_eq!((theirs.status, masked(&theirs)), (nobody.status, masked(&nobody)));
            assert!(theirs.status != 200, "{}", theirs.text());
        }
        // The doors for scripts, and headers and parameters that would name a tenant, if anything listened to them.
        let key = &acme.tenant.key.secret;
        let rest = async |path: &str, headers: &[(&str, &str)]| {
            let mut request = http_client()
                .post(format!("http://{}{path}", waffles.proxies[0].mcp))
                .bearer_auth(key)
                .json(&json!({"name": "echo", "arguments": {"who": "acme"}}));
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            let body: Value = answer.json().await.unwrap_or_default();
            (status, body)
        };
        let before = acme.callers().len();
        for headers in
            [&[][..], &[("x-tenant", "globex")], &[("x-waffles-tenant", "globex")], &[("tenant", "globex")]]
        {
            let (status, body) = rest("/api/v1/gateway/demo/tools/call", headers).await;
            assert_eq!(status, 200, "{body}");
        }
        assert_eq!(acme.callers().len(), before + 4, "each went to the caller's own tenant");
        assert!(globex.callers().is_empty(), "{:?}", globex.callers());

        // At the control plane the credential alone says which tenant.
        let listed = RegistryServiceClient::new(waffles.authorized(key))
            .list_servers(pb::ListServersRequest::default())
            .await
            .unwrap()
            .into_inner();
        assert_eq!(listed.servers.len(), 1);
        let http = async |path: &str| {
            let request = http_client().get(waffles.control_plane.http_url(path)).bearer_auth(key);
            let answer = request.header("x-tenant", "globex").send().await.unwrap();
            (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
        };
        let (status, body) = http("/api/v1/servers").await;
        assert_eq!((status, body["servers"].as_array().unwrap().len()), (200, 1), "{body}");
        let (status, body) = http("/api/v1/servers?tenant=globex").await;
        assert_eq!(status, 400, "a parameter that is none is refused: {body}");
        for path in ["/api/v1/tenants", "/api/v1/tenants/acme", "/api/v1/tenants/globex", "/api/v1/proxies"] {
            let (status, body) = http(path).await;
            assert_eq!(status, 403, "{path} is for those who run the whole Waffles: {body}");
        }
        assert!(acme.trail(&waffles).await.iter().all(|event| event.tenant == "acme"));

        // The log-in of one tenant's account is none in another, though the address is the same.
        let (email, password) = (&acme.tenant.email, &acme.tenant.password);
        let channel = waffles.channel();
        assert!(login_in(&channel, "acme", email, password).await.is_ok());
        for elsewhere in ["globex", "default", "", "nobody"] {
            let refused = login_in(&channel, elsewhere, email, password).await.unwrap_err();
            assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{elsewhere}: {refused}");
        }
    }
}

#[tokio::test]
async fn a_suspended_tenant_is_refused_everywhere_within_a_second() {
    for waffles in both().await {
        let (acme, globex) = (Side::settle(&waffles, "acme").await, Side::settle(&waffles, "globex").await);
        let path = "/mcp/servers/demo";
        assert_eq!(acme.call(&waffles, path, "echo").await.status, 200);
        let stream = acme.at(&waffles, path).of(Era::Sessions).await.get_stream().await.unwrap();
        let tokens =
            login_in(&waffles.channel(), "acme", &acme.tenant.email, &acme.tenant.password).await.unwrap();

        let suspend = SuspendTenantRequest { id: "acme".into() };
        let suspended = waffles.tenants().suspend_tenant(suspend).await.unwrap().into_inner().tenant.unwrap();
        assert!(suspended.suspended_at.is_some());
        for credential in [&acme.tenant.key.secret, &tokens.access_token] {
            let mut door = AuthServiceClient::new(waffles.authorized(credential));
            let refused = door.get_self(GetSelfRequest {}).await.unwrap_err();
            assert_eq!(refused.code(), tonic::Code::Unauthenticated, "the control plane knows at once");
        }
        let again = login_in(&waffles.channel(), "acme", &acme.tenant.email, &acme.tenant.password).await;
        assert_eq!(again.unwrap_err().code(), tonic::Code::Unauthenticated);
        for credential in [&acme.tenant.key.secret, &tokens.access_token] {
            eventually(Duration::from_secs(1), || async {
                let url = format!("http://{}{path}", waffles.proxies[0].mcp);
                let client = McpClient::new(&url).with_bearer(credential).of(Era::Stateless).await;
                let status = client.call("echo", json!({})).await?.status;
                ensure!(status == 401, "a proxy answers {status}");
                Ok(())
            })
            .await;
        }
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.rest()).await;
        assert!(ended.is_ok(), "the stream is open five seconds later");
        assert_eq!(globex.call(&waffles, path, "echo").await.status, 200, "the other one notices nothing");

        let resume = ResumeTenantRequest { id: "acme".into() };
        let resumed = waffles.tenants().resume_tenant(resume).await.unwrap().into_inner().tenant.unwrap();
        assert!(resumed.suspended_at.is_none());
        waffles.settled().await;
        assert_eq!(acme.call(&waffles, path, "echo").await.status, 200);
        let noted: Vec<String> = acme.trail(&waffles).await.into_iter().map(|event| event.action).collect();
        assert!(
            noted.contains(&"tenant.suspend".into()) && noted.contains(&"tenant.resume".into()),
            "{noted:?}"
        );
    }
}

#[tokio::test]
async fn the_command_line_makes_a_tenant_and_moves_there_when_told() {
    let waffles = Waffles::start().await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("wafflectl.toml");
    let (grpc, key) = (waffles.control_plane.grpc_url(), &waffles.admin.secret);
    std::fs::write(&file, format!("[contexts.here]\ngrpc = {grpc:?}\napi_key = {key:?}\n")).unwrap();
    let say = async |args: &[&str], password: &str| {
        let mut wafflectl = command("wafflectl", None);
        wafflectl.env("WAFFLES_PASSWORD", password);
        wafflectl.arg("--config").arg(&file).args(["--output", "json"]).args(args);
        let output = tokio::time::timeout(PATIENCE, wafflectl.output()).await.unwrap().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        (
            output.status.code().unwrap(),
            serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default(),
            told,
        )
    };
    let done = async |args: &[&str]| {
        let (code, value, told) = say(args, "").await;
        assert_eq!(code, 0, "{args:?}: {told}");
        value
    };
    let made = done(&["tenant", "add", "acme", "--admin", "Ada@acme.example", "--servers", "1"]).await;
    assert_eq!((&made["id"], &made["status"]), (&json!("acme"), &json!("active")));
    assert_eq!((&made["limits"]["servers"], &made["limits"]["principals"]), (&json!(1), &json!(10_000)));
    assert_eq!(made["admin"]["email"], "ada@acme.example");
    let token = made["admin"]["password_token"].as_str().unwrap().to_owned();
    let listed = done(&["tenant", "list"]).await;
    assert_eq!(
        listed.as_array().unwrap().iter().map(|one| &one["id"]).collect::<Vec<_>>(),
        ["acme", "default"]
    );
    assert!(!listed.to_string().contains(&token), "the token is shown once");

    let request = waffles_proto::auth::v1::SetPasswordRequest { token, password: "correct horse".into() };
    waffles_proto::auth::v1::principal_service_client::PrincipalServiceClient::new(waffles.channel())
        .set_password(request)
        .await
        .unwrap();
    let (code, _, told) = say(&["--tenant", "acme", "server", "list"], "").await;
    assert!(code == 2 && told.contains("--tenant acme login"), "{told}");
    let login = ["--tenant", "acme", "login", "--email", "ada@acme.example"];
    let (code, who, told) = say(&login, "correct horse").await;
    assert_eq!((code, &who["context"]), (0, &json!("acme")), "{told} {who}");
    done(&["context", "use", "here"]).await;
    done(&["--tenant", "acme", "server", "add", "one", "http://127.0.0.1:9/mcp"]).await;
    let (code, _, told) =
        say(&["--tenant", "acme", "server", "add", "two", "http://127.0.0.1:9/mcp"], "").await;
    assert!(code == 1 && told.contains("max_servers"), "{told}");
    assert_eq!(
        done(&["server", "list"]).await,
        json!([]),
        "without a word it is the current context's tenant"
    );
    assert_eq!(done(&["--tenant", "acme", "server", "list"]).await[0]["name"], "one");
    let (code, _, told) = say(&["--tenant", "acme", "tenant", "list"], "").await;
    assert_eq!(code, 1, "{told}");

    assert_eq!(
        done(&["tenant", "limits", "acme", "--servers", "none"]).await["limits"]["servers"],
        Value::Null
    );
    done(&["--tenant", "acme", "server", "add", "two", "http://127.0.0.1:9/mcp"]).await;
    assert_eq!(done(&["tenant", "get", "acme"]).await["usage"]["servers"], 2);
    assert_eq!(done(&["tenant", "suspend", "acme"]).await["status"], "suspended");
    let (code, _, told) = say(&["--tenant", "acme", "server", "list"], "").await;
    assert_eq!(code, 1, "{told}");
    assert_eq!(done(&["tenant", "resume", "acme"]).await["status"], "active");
    done(&["--tenant", "acme", "server", "list"]).await;
    let (code, _, told) = say(&["tenant", "suspend", "default"], "").await;
    assert!(code == 1 && told.contains("default"), "{told}");
}
