//! The shapes that scripts rely on, against golden files: run with `UPDATE_GOLDEN=1` and look at the diff.

use waffles_proto::auth::v1::KeyLimits;
use waffles_proto::registry::v1::{
    BasicCredential, Credential, Endpoint as EndpointPb, ServerSpec, Timeouts as TimeoutsPb, ToolFilter,
    credential,
};
use waffles_proto::tenant::v1 as tenant_pb;

use super::*;

fn at(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: 1_800_000_000 + seconds, nanos: 0 })
}

fn server() -> Server {
    let basic = BasicCredential { username: "waffles".into(), password: String::new() };
    let endpoint = |url: &str, weight, zone: &str| EndpointPb { url: url.into(), weight, zone: zone.into() };
    registry_pb::Server {
        id: "01a210b9-6ec8-7598-8d78-f041f90c7de4".into(),
        tenant: "default".into(),
        spec: Some(ServerSpec {
            name: "weather".into(),
            description: "Forecasts".into(),
            tags: vec!["a".into(), "b".into()],
            transport: registry_pb::Transport::StreamableHttp.into(),
            endpoints: vec![
                endpoint("https://a.example/mcp", 3, "eu-1"),
                endpoint("https://b.example/mcp", 0, ""),
            ],
            credential: Some(Credential { kind: Some(credential::Kind::Basic(basic)) }),
            timeouts: Some(TimeoutsPb {
                connect: Some(prost_types::Duration { seconds: 0, nanos: 500_000_000 }),
                ..TimeoutsPb::default()
            }),
            tools: Some(ToolFilter { allow: vec!["read_*".into()], deny: vec!["read_all".into()] }),
            audit: registry_pb::AuditMode::Strict.into(),
            capture: registry_pb::Capture::Full.into(),
            redact: vec!["password".into()],
            marks: vec![registry_pb::ToolMark {
                pattern: "read_*".into(),
                read_only: Some(true),
                open_world: Some(false),
                ..registry_pb::ToolMark::default()
            }],
            methods: vec!["vendor/*".into()],
            groups: vec!["eu".into()],
            resilience: Some(registry_pb::Resilience {
                max_concurrent: Some(64),
                ..registry_pb::Resilience::default()
            }),
            health: Some(registry_pb::HealthPolicy {
                check: registry_pb::HealthCheck::Tools.into(),
                fall: 5,
                ..registry_pb::HealthPolicy::default()
            }),
        }),
        enabled: true,
        version: 7,
        created_at: at(0),
        updated_at: at(60),
        seen: vec![registry_pb::SeenEra {
            proxy_id: "01a210b9-6dc1-75c8-be15-d403c64d2d9d".into(),
            proxy: "proxy-0".into(),
            endpoint: 1,
            era: "http_sse".into(),
            revision: "2024-11-05".into(),
            found_at: at(30),
        }],
        health: Some(registry_pb::HealthSummary {
            state: registry_pb::HealthState::Degraded.into(),
            reason: "credential".into(),
            since: at(45),
        }),
    }
    .into()
}

fn namespace() -> Namespace {
    let expose = registry_pb::Expose {
        allow: vec!["read_*".into()],
        deny: vec!["read_all".into()],
        resources_allow: vec!["file:*".into()],
        resources_deny: vec!["file:///etc/*".into()],
    };
    let member = |server: &str, prefix, expose| registry_pb::NamespaceMember {
        server: server.into(),
        prefix: Some(prefix),
        expose,
    };
    let level = |role: &str, level: registry_pb::Level| registry_pb::RoleLevel {
        role: role.into(),
        level: level.into(),
    };
    let principal = registry_pb::PrincipalLevel {
        principal: "alice@example.com".into(),
        level: registry_pb::Level::Execute.into(),
    };
    registry_pb::Namespace {
        id: "01a210b9-6ec8-7598-8d78-f041f90c7de4".into(),
        tenant: "default".into(),
        spec: Some(registry_pb::NamespaceSpec {
            name: "research".into(),
            description: "Reading only".into(),
            servers: vec![member("files", false, Some(expose)), member("weather", true, None)],
            levels: vec![
                level("user", registry_pb::Level::Execute),
                level("readonly", registry_pb::Level::View),
            ],
            principals: vec![principal],
            is_default: false,
            tool_search: true,
        }),
        version: 2,
        created_at: at(0),
        updated_at: at(60),
    }
    .into()
}

fn key() -> Key {
    let key = auth_pb::ApiKey {
        id: "hemzuoJp75CvRmU3".into(),
        tenant: "default".into(),
        name: "ci".into(),
        owner_id: "01a210b9-6dc1-75c8-be15-d403c64d2d9d".into(),
        owner_name: "admin@localhost".into(),
        limits: Some(KeyLimits {
            scopes: vec!["gateway:use".into()],
            servers: vec!["weather".into()],
            tools: vec!["read_*".into()],
            ip_ranges: vec!["10.0.0.0/8".into()],
            read_only: true,
            namespaces: vec!["research".into()],
        }),
        created_at: at(0),
        expires_at: at(3600),
        revoked_at: at(60),
        not_after: at(1800),
        last_used_at: at(120),
    };
    Key::from(key).with_secret("wfl_shown-once".into())
}

fn event() -> Event {
    audit_pb::Event {
        id: "01a210bb-ae18-7006-82c5-b316abf66a66".into(),
        tenant: "default".into(),
        occurred_at: at(0),
        action: "mcp.tools/call".into(),
        outcome: audit_pb::Outcome::Denied.into(),
        principal_name: "admin@localhost".into(),
        server_name: "weather".into(),
        target: "write_all".into(),
        rule: "key:tools".into(),
        reason: "unknown_tool".into(),
        http_status: 200,
        rpc_code: -32602,
        duration_us: 1234,
        request_payload: r#"{"a":1}"#.into(),
        response_payload: r#"{"cut":"#.into(),
        revision: 7,
        ..audit_pb::Event::default()
    }
    .into()
}

fn proxy() -> Proxy {
    let rejection = proxy_pb::Rejection {
        kind: "server".into(),
        name: "weather".into(),
        reason: "tools: cannot read [".into(),
    };
    let proxy = proxy_pb::Proxy {
        id: "c0ffd99b-b63e-4264-8964-312cdfbb2dfd".into(),
        name: "edge-1".into(),
        group: "default".into(),
        version: "0.1.0".into(),
        connected: true,
        last_seen_at: at(0),
        acknowledged_revision: 6,
        lag: 1,
        last_nack: Some(proxy_pb::Nack { revision: 6, at: at(0), rejections: vec![rejection] }),
        open_streams: 2,
        spool_depth: 3,
        lost_records: 4,
        certificate_expires_at: at(3600),
        denied: false,
    };
    Proxy::new(proxy, 7)
}

fn tenant() -> Tenant {
    let limits = tenant_pb::TenantLimits { max_servers: Some(10), ..Default::default() };
    let tenant = tenant_pb::Tenant {
        id: "acme".into(),
        description: "The road runners".into(),
        created_at: at(0),
        suspended_at: at(60),
        limits: Some(limits),
    };
    let admin = tenant_pb::CreateTenantResponse {
        admin_email: "ada@acme.example".into(),
        password_token: "wfs_x".into(),
        token_expires_at: at(86_400),
        ..Default::default()
    };
    let usage = tenant_pb::TenantUsage { servers: 3, namespaces: 1, principals: 7, api_keys: 2 };
    Tenant::from(tenant).with_usage(usage).with_admin(admin)
}

fn check(name: &str, shape: &impl Shape) {
    let text = format!("{}\n\n{}\n", serde_json::to_string_pretty(shape).unwrap(), shape.text());
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/shapes");
    let path = folder.join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "{name} is not as in {}:\n{text}", path.display());
}

#[test]
fn results_have_the_shapes_that_scripts_rely_on() {
    check("server", &server());
    check("namespace", &namespace());
    check("key", &key());
    check("event", &event());
    check("proxy", &proxy());
    check("tenant", &tenant());
    let principal = auth_pb::Principal {
        id: "01a210b9-6dc1-75c8-be15-d403c64d2d9d".into(),
        tenant: "default".into(),
        name: "admin@localhost".into(),
        roles: vec!["admin".into()],
        ..auth_pb::Principal::default()
    };
    let answer = auth_pb::GetSelfResponse {
        principal: Some(principal),
        permissions: vec!["servers:read".into()],
        api_key_id: String::new(),
    };
    check("whoami", &Whoami::new("local", answer));
}

#[test]
fn up_prints_exactly_the_line_of_the_contract() {
    let up = Up {
        mcp: "http://127.0.0.1:8080/mcp".into(),
        http: "http://127.0.0.1:8081".into(),
        grpc: "http://127.0.0.1:8082".into(),
        admin_ports: AdminPorts {
            data_plane: "127.0.0.1:9080".into(),
            control_plane: "127.0.0.1:9081".into(),
        },
        admin: Admin { email: "admin@localhost".into(), password: None },
        api_key: None,
        context: "/w/wafflectl.toml".into(),
        stdio: Vec::new(),
    };
    let line = concat!(
        r#"{"mcp":"http://127.0.0.1:8080/mcp","http":"http://127.0.0.1:8081","grpc":"http://127.0.0.1:8082","#,
        r#""admin_ports":{"data_plane":"127.0.0.1:9080","control_plane":"127.0.0.1:9081"},"#,
        r#""admin":{"email":"admin@localhost","password":null},"api_key":null,"context":"/w/wafflectl.toml"}"#
    );
    assert_eq!(serde_json::to_string(&up).unwrap(), line);
}

#[test]
fn a_tool_is_shown_with_what_it_needs() {
    let schema = serde_json::json!({"properties": {"a": {}, "b": {}}, "required": ["b"]});
    let tool = Tool {
        name: "add".into(),
        title: None,
        description: Some("Adds.\nAnd more.".into()),
        input_schema: schema,
    };
    assert_eq!([tool].as_slice().text(), "TOOL  ARGUMENTS  DESCRIPTION\nadd   a?, b      Adds.");
}
