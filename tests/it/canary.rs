//! Secrets stay where they belong. Each is one of a kind; calls of every kind are made, and go wrong in every way; and then
//! everything that left the programs is searched for all of them: what servers received, logs at their most talkative,
//! metrics and pages of the admin ports, files, the database, answers.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use http::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, Row as _};
use waffles_core::credential::random_text;
use waffles_proto::registry::v1 as registry;
use waffles_tests::programs::{command, http_client};
use waffles_tests::waffles::{endpoint, spec};
use waffles_tests::{
    Answer, Behaviour, ControlPlaneOptions, DataPlaneOptions, Era, McpClient, McpServer, PATIENCE, Postgres,
    Waffles, WafflesOptions,
};

/// A secret, in every form in which it could be written down.
struct Secret {
    name: &'static str,
    forms: Vec<String>,
}

impl Secret {
    fn new(name: &'static str, text: &str) -> Self {
        Self::of(name, text.as_bytes())
    }

    fn of(name: &'static str, bytes: &[u8]) -> Self {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        // Base64 depends on what stands before, so the middle is looked for at each of three places.
        let shifted = (0..3).map(|shift| {
            let text = STANDARD_NO_PAD.encode([&vec![0; shift], bytes].concat());
            text[4..text.len() - 4].to_owned()
        });
        let mut forms = vec![latin(bytes), hex.to_uppercase(), hex];
        forms.extend(shifted);
        forms.push(URL_SAFE_NO_PAD.encode(bytes));
        forms.push(bytes.iter().map(|byte| format!("{byte}, ")).collect());
        Self { name, forms }
    }

    fn stands_in(&self, text: &str) -> bool {
        self.forms.iter().any(|form| text.contains(form.as_str()))
    }
}

/// Bytes as a text in which other bytes can be looked for.
fn latin(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// A text like no other.
fn canary() -> String {
    format!("Canary{}", random_text(32).unwrap())
}

/// What was found where.
#[derive(Default)]
struct Search {
    secrets: Vec<Secret>,
    found: Vec<String>,
    bytes: BTreeMap<String, usize>,
}

impl Search {
    /// Looks through something in which none but the named secrets may stand.
    fn through(&mut self, place: &str, bytes: &[u8], but: &[&str]) {
        let text = latin(bytes);
        *self.bytes.entry(place.split(' ').next().unwrap().to_owned()).or_default() += bytes.len();
        for secret in &self.secrets {
            if !but.contains(&secret.name) && secret.stands_in(&text) {
                let at = secret.forms.iter().find_map(|form| text.find(form.as_str())).unwrap_or(0);
                let around: String = text.chars().skip(at.saturating_sub(200)).take(400).collect();
                self.found.push(format!("{} in {place}: …{around}…", secret.name));
            }
        }
    }

    fn through_files(&mut self, place: &str, folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                self.through_files(place, &path);
                continue;
            }
            // The two files that hold one secret each, which is what they are for.
            let but: &[&str] = match path.file_name().and_then(|name| name.to_str()) {
                Some("master.key") => &["the master key", "the master key, written"],
                Some("proxy.token") => &["the proxies' token"],
                _ => &[],
            };
            // One that is written anew meanwhile is looked at under its final name.
            let Ok(bytes) = std::fs::read(&path) else { continue };
            self.through(&format!("{place} {}", path.display()), &bytes, but);
        }
    }
}

struct World {
    waffles: Waffles,
    search: Search,
    bearer: McpServer,
    basic: McpServer,
    header: McpServer,
}

impl World {
    async fn start(mut control_plane: ControlPlaneOptions, mut secrets: Vec<Secret>) -> Self {
        let talkative = || vec!["--log".to_owned(), "trace".to_owned()];
        control_plane.args.extend(talkative());
        let data_plane = DataPlaneOptions { args: talkative(), ..DataPlaneOptions::default() };
        let waffles = Waffles::with(WafflesOptions { control_plane, data_plane, proxies: 1 }).await;
        let data = waffles.control_plane.data_dir();
        let master = std::fs::read_to_string(data.join("master.key")).unwrap();
        let master = master.trim();
        let raw: Vec<u8> =
            (0..32).map(|i| u8::from_str_radix(&master[2 * i..2 * i + 2], 16).unwrap()).collect();
        secrets.push(Secret::new("the master key, written", master));
        secrets.push(Secret::of("the master key", &raw));
        if let Ok(token) = std::fs::read_to_string(data.join("proxy.token")) {
            secrets.push(Secret::new("the proxies' token", token.trim()));
        }
        secrets.push(Secret::new("the first password", &waffles.password));
        secrets.push(Secret::new("the caller's key", &waffles.admin.secret));
        let tokens = waffles.tokens().await;
        secrets.push(Secret::new("the caller's token", &tokens.access_token));
        // Its signature alone would do, to whoever has the rest.
        secrets.push(Secret::new("the token's signature", tokens.access_token.rsplit('.').next().unwrap()));
        secrets.push(Secret::new("the refresh token", &tokens.refresh_token));

        let (bearer, basic) = (McpServer::only(Era::Sessions).await, McpServer::only(Era::Stateless).await);
        let search = Search { secrets, ..Search::default() };
        let world = Self { waffles, search, bearer, basic, header: McpServer::start().await };
        world.with_tokens(&tokens.access_token).await
    }

    /// Registers servers with credentials and calls them in all ways.
    async fn with_tokens(mut self, access: &str) -> Self {
        let [bearer, password, value, dead] = [canary(), canary(), canary(), canary()];
        let user = "who";
        let pair = STANDARD.encode(format!("{user}:{password}"));
        self.search.secrets.extend([
            Secret::new("the bearer credential", &bearer),
            Secret::new("the basic credential", &password),
            Secret::new("the basic credential, written", &pair),
            Secret::new("the header credential", &value),
            Secret::new("the credential of a dead server", &dead),
        ]);
        use registry::credential::Kind;
        let credential = |kind| Some(registry::Credential { kind: Some(kind) });
        let token = |token: &str| Kind::Bearer(registry::BearerCredential { token: token.to_owned() });
        let basic = registry::BasicCredential { username: user.into(), password };
        let header = registry::HeaderCredential { name: "x-secret".into(), value };
        let full = registry::Capture::Full.into();
        for (name, url, kind) in [
            ("bearer", self.bearer.url(), token(&bearer)),
            ("basic", self.basic.url(), Kind::Basic(basic)),
            ("header", self.header.url(), Kind::Header(header)),
            ("dead", "http://127.0.0.1:9999/mcp".to_owned(), token(&dead)),
            ("closed", "http://127.0.0.1:22/mcp".to_owned(), token(&dead)),
        ] {
            let spec = registry::ServerSpec {
                name: name.into(),
                endpoints: vec![endpoint(&url)],
                credential: credential(kind),
                capture: full,
                ..spec()
            };
            self.waffles.add(spec).await;
        }
        self.call_in_all_ways(access).await;
        self
    }

    fn heard(&mut self, what: &str, answer: &Answer) {
        let head = format!("{:?}", answer.headers);
        self.search.through(&format!("answers to {what}"), head.as_bytes(), &[]);
        self.search.through(&format!("answers to {what}"), &answer.body, &[]);
    }

    async fn call_in_all_ways(&mut self, access: &str) {
        let proxy = self.waffles.proxies[0].mcp;
        let key = self.waffles.admin.secret.clone();
        for server in [&self.bearer, &self.basic, &self.header] {
            for (tool, behaviour) in [
                ("fails", Behaviour::Error { code: -32000, message: "no".into(), data: json!({}) }),
                ("hangs-up", Behaviour::HangUp),
                ("garbage", Behaviour::NotJson),
                ("cut", Behaviour::Truncated),
                ("streams", Behaviour::EchoSse),
                ("refused", raw(401)),
                ("forbidden", raw(403)),
                ("broken", raw(500)),
                ("moved", raw(307)),
            ] {
                server.on_tool(tool, behaviour);
            }
        }
        let paths = [
            "/mcp",
            "/mcp/namespaces/default",
            "/mcp/servers/bearer",
            "/mcp/servers/basic",
            "/mcp/servers/header",
            "/mcp/servers/dead",
            "/mcp/servers/closed",
            "/mcp/servers/unknown",
        ];
        let tools = [
            "echo",
            "fails",
            "hangs-up",
            "garbage",
            "cut",
            "streams",
            "refused",
            "forbidden",
            "broken",
            "moved",
            "bearer_echo",
            "no-such",
        ];
        for path in paths {
            for (shown, era) in [(&key[..], Era::Sessions), (access, Era::Stateless), (access, Era::Sessions)]
            {
                let base = McpClient::new(&format!("http://{proxy}{path}"))
                    .with_bearer(shown)
                    .with("cookie", &format!("session={shown}"))
                    .with("proxy-authorization", &format!("Bearer {shown}"))
                    .with("x-forwarded-authorization", shown);
                let client = match era {
                    Era::Stateless => base.of(era).await,
                    Era::Sessions => match opened(&base).await {
                        Some(client) => client,
                        None => base.with("mcp-protocol-version", era.revision()),
                    },
                };
                for tool in tools {
                    if let Ok(answer) = client.call(tool, json!({"a": 1})).await {
                        self.heard(path, &answer);
                    }
                }
                for (method, params) in [
                    ("tools/list", json!({})),
                    ("resources/read", json!({"uri": "file:///x"})),
                    ("prompts/get", json!({"name": "x"})),
                    ("no/such", json!({})),
                ] {
                    if let Ok(answer) = client.ask(2, method, params).await {
                        self.heard(path, &answer);
                    }
                }
                for body in ["{", "[]", "null", r#"{"jsonrpc":"2.0","id":1,"id":2}"#] {
                    if let Ok(answer) = client.post(body).await {
                        self.heard(path, &answer);
                    }
                }
                client.delete().await.ok();
            }
        }
        // The REST form, and HTTP+SSE.
        for server in ["bearer", "basic", "header", "dead"] {
            for call in ["tools/list", "tools/call", "resources/list"] {
                let client = McpClient::new(&format!("http://{proxy}/api/v1/gateway/{server}/{call}"));
                let client = client.with_bearer(&key);
                for (method, body) in [(Method::POST, r#"{"name":"echo","arguments":{}}"#), (Method::GET, "")]
                {
                    if let Ok(answer) = client.request(method, body.into()).await {
                        self.heard(call, &answer);
                    }
                }
            }
            let stream =
                McpClient::new(&format!("http://{proxy}/mcp/servers/{server}/sse")).with_bearer(&key);
            if let Ok(mut stream) = stream.get_stream().await {
                stream.event().await.ok();
            }
        }
        self.show_what_is_wrong(proxy).await;
    }

    /// Credentials that are not let in are secrets as well: a mistyped password is nearly one.
    async fn show_what_is_wrong(&mut self, proxy: std::net::SocketAddr) {
        let wrong = canary();
        let mut key = self.waffles.admin.secret.clone();
        key.replace_range(30..62, &wrong[..32]);
        let typed = canary();
        self.search.secrets.push(Secret::new("a credential that is none", &wrong));
        self.search.secrets.push(Secret::new("a key that is none", &key));
        self.search.secrets.push(Secret::new("a password that is wrong", &typed));
        let plane = self.waffles.control_plane.http;
        for base in [format!("http://{proxy}/mcp/servers/bearer"), format!("http://{plane}/api/v1/servers")] {
            for shown in [&wrong, &key] {
                let basic = STANDARD.encode(format!("who:{shown}"));
                for client in [
                    McpClient::new(&base).with_bearer(shown),
                    McpClient::new(&base).with("x-api-key", shown),
                    McpClient::new(&base).with("authorization", shown),
                    McpClient::new(&base).with("authorization", &format!("Basic {basic}")),
                    McpClient::new(&base).with("cookie", &format!("token={shown}")),
                    McpClient::new(&format!("{base}?api_key={shown}")),
                    McpClient::new(&format!("{base}?access_token={shown}")),
                ] {
                    for answer in [client.get().await, client.post("{}").await].into_iter().flatten() {
                        self.heard("what is not let in", &answer);
                    }
                }
            }
        }
        let http = http_client();
        let login = self.waffles.control_plane.http_url("/api/v1/auth/login");
        for body in [
            json!({"email": "admin@localhost", "password": typed}),
            json!({"email": "admin@localhost", "password": [typed]}),
            json!({"email": typed, "password": typed, "tenant": typed}),
            json!({"email": "admin@localhost", "password": {"a": typed}}),
            json!({"password": typed}),
            Value::String(typed.clone()),
        ] {
            let answer = http.post(&login).json(&body).send().await.unwrap();
            // What was typed into the field of a name may come back as one.
            let text = answer.text().await.unwrap();
            self.search.through("answers to a log-in", text.as_bytes(), &[]);
        }
        let refresh = self.waffles.control_plane.http_url("/api/v1/auth/refresh");
        http.post(&refresh).json(&json!({"refresh_token": format!("wfr_{wrong}")})).send().await.unwrap();
        // Registrations that cannot be read, with a credential in a place where none is looked for.
        let servers = self.waffles.control_plane.http_url("/api/v1/servers");
        for credential in [
            json!(wrong),
            json!({"type": "bearer", "token": [wrong]}),
            json!({"type": wrong}),
            json!({"type": "bearer", "token": format!("{wrong}\n")}),
            json!({"type": "header", "name": "host", "value": wrong}),
            json!({"type": "header", "name": "x-y", "value": {"a": wrong}}),
            json!([wrong]),
        ] {
            let body = json!({"name": "bad", "endpoints": [{"url": "http://127.0.0.1:9999"}], "credential": credential});
            let request = http.post(&servers).bearer_auth(&self.waffles.admin.secret).json(&body);
            let answer = request.send().await.unwrap();
            assert!(answer.status().is_client_error(), "{}", answer.status());
            let text = answer.text().await.unwrap();
            self.search.through("answers to a registration", text.as_bytes(), &[]);
        }
        let url = format!("http://who:{wrong}@127.0.0.1:9999/mcp");
        let body = json!({"name": "bad", "endpoints": [{"url": url}]});
        let answer =
            http.post(&servers).bearer_auth(&self.waffles.admin.secret).json(&body).send().await.unwrap();
        assert!(answer.status().is_client_error());
        self.search.through("answers to a registration", answer.text().await.unwrap().as_bytes(), &[]);
        waffles_tests::waffles::login(
            &waffles_tests::waffles::channel(&self.waffles.control_plane.grpc_url()),
            "admin@localhost",
            &typed,
        )
        .await
        .unwrap_err();
    }

    /// Everything that left the programs.
    async fn look(&mut self) {
        // What each server received: its own credential in every request, and no other secret in any.
        for (server, own) in [
            (&self.bearer, &["the bearer credential"][..]),
            (&self.basic, &["the basic credential", "the basic credential, written"]),
            (&self.header, &["the header credential"]),
        ] {
            let seen = server.seen();
            assert!(!seen.is_empty());
            for request in seen {
                let head = format!("{:?}", Shown(&request.headers));
                assert!(
                    self.search
                        .secrets
                        .iter()
                        .any(|secret| own.contains(&secret.name) && secret.stands_in(&head))
                );
                self.search.through("servers (heads)", head.as_bytes(), own);
                self.search.through("servers (bodies)", &request.body, &[]);
            }
        }
        let http = http_client();
        let (proxy, plane) = (&self.waffles.proxies[0], &self.waffles.control_plane);
        for addr in [proxy.admin, plane.admin] {
            let index: Value =
                http.get(format!("http://{addr}/")).send().await.unwrap().json().await.unwrap();
            for path in index["paths"].as_array().unwrap() {
                let url = format!("http://{addr}{}", path.as_str().unwrap());
                let text = http.get(&url).send().await.unwrap().text().await.unwrap();
                self.search.through(&format!("admin ports {url}"), text.as_bytes(), &[]);
            }
        }
        let key = &self.waffles.admin.secret;
        for path in [
            "servers",
            "servers/bearer",
            "servers/basic",
            "servers/header",
            "namespaces",
            "api-keys",
            "audit",
            "proxies",
            "status",
            "auth/me",
        ] {
            let url = plane.http_url(&format!("/api/v1/{path}"));
            let answer = http.get(&url).bearer_auth(key).send().await.unwrap();
            assert!(answer.status().is_success(), "{url}: {}", answer.status());
            self.search.through(&format!("rest {path}"), answer.text().await.unwrap().as_bytes(), &[]);
        }
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("wafflectl.toml");
        std::fs::write(&config, format!("[contexts.c]\ngrpc = {:?}\napi_key = {key:?}\n", plane.grpc_url()))
            .unwrap();
        for args in [
            &["server", "list"][..],
            &["server", "get", "bearer"],
            &["server", "get", "basic", "--output", "json"],
            &["server", "get", "header", "--output", "yaml"],
            &["key", "list"],
            &["audit", "search"],
            &["audit", "search", "--output", "json"],
            &["proxy", "list"],
            &["context", "list"],
            &["whoami"],
            &["server", "get", "nobody"],
        ] {
            let mut wafflectl = command("wafflectl", None);
            wafflectl.arg("--config").arg(&config).args(args);
            let output = tokio::time::timeout(PATIENCE, wafflectl.output()).await.unwrap().unwrap();
            self.search.through(&format!("wafflectl {args:?}"), &output.stdout, &[]);
            self.search.through(&format!("wafflectl {args:?}"), &output.stderr, &[]);
        }
        // The log, the spool, both generations of the snapshot, SQLite with its journal: all files there are.
        let (theirs, ours) = (proxy.data_dir().to_owned(), plane.data_dir().to_owned());
        assert!(proxy.program.log().contains("\"level\":\"TRACE\""), "the log is at its most talkative");
        assert!(theirs.join("snapshot.a").exists() && theirs.join("spool").exists());
        self.search.through_files("proxy's", &theirs);
        self.search.through_files("plane's", &ours);
    }

    fn none(&self) {
        assert!(
            self.search.found.is_empty(),
            "{} finds:\n{}",
            self.search.found.len(),
            self.search.found.join("\n")
        );
        eprintln!("looked through {:?} for {} secrets", self.search.bytes, self.search.secrets.len());
    }
}

/// Values also of headers that are marked as secret.
struct Shown<'a>(&'a http::HeaderMap);

impl std::fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, value) in self.0 {
            writeln!(f, "{name}: {}", latin(value.as_bytes()))?;
        }
        Ok(())
    }
}

fn raw(status: u16) -> Behaviour {
    let headers = vec![("location".to_owned(), "http://127.0.0.1:9999/".to_owned())];
    Behaviour::Raw { status, headers, body: bytes::Bytes::from_static(b"{}") }
}

/// A session, where one is to be had.
async fn opened(base: &McpClient) -> Option<McpClient> {
    let begin = waffles_tests::mcp_client::initialize(Era::Sessions.revision()).to_string();
    let answer = base.post(begin).await.ok()?;
    let session = answer.header("mcp-session-id")?.to_owned();
    Some(base.clone().with("mcp-protocol-version", Era::Sessions.revision()).with("mcp-session-id", &session))
}

#[tokio::test]
async fn no_secret_leaves_its_place_with_sqlite() {
    let mut world = World::start(ControlPlaneOptions::default(), Vec::new()).await;
    // What is in flight reaches the trail.
    waffles_tests::until("the spool is empty", PATIENCE, || async {
        world.waffles.spool_depth().await.is_ok_and(|depth| depth == 0)
    })
    .await;
    world.look().await;
    assert!(world.waffles.control_plane.stop().await.success());
    let files = world.waffles.control_plane.data_dir().to_owned();
    world.search.through_files("plane's", &files);
    world.none();
}

#[tokio::test]
async fn no_secret_leaves_its_place_with_postgres() {
    let password = canary();
    let url = Postgres::shared().await.database().await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    let role = format!("keeper_{}", random_text(8).unwrap().to_lowercase());
    let name = url.rsplit('/').next().unwrap();
    for statement in [
        format!("CREATE ROLE {role} LOGIN CREATEROLE PASSWORD '{password}'"),
        format!("ALTER DATABASE {name} OWNER TO {role}"),
        format!("ALTER SCHEMA public OWNER TO {role}"),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut database).await.unwrap();
    }
    let (_, place) = url.rsplit_once('@').unwrap();
    // In the environment, as the manual has it.
    let env = vec![("WAFFLES_DATABASE_URL".to_owned(), format!("postgres://{role}:{password}@{place}"))];
    let options = ControlPlaneOptions { env, ..ControlPlaneOptions::default() };
    let mut world = World::start(options, vec![Secret::new("the database's password", &password)]).await;
    waffles_tests::until("the spool is empty", PATIENCE, || async {
        world.waffles.spool_depth().await.is_ok_and(|depth| depth == 0)
    })
    .await;
    world.look().await;
    // All rows of all tables, as a dump has them: bytes in hexadecimal.
    let tables = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'public'";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut database).await.unwrap();
    assert!(tables.len() > 10);
    let mut rows = 0;
    for table in tables {
        let all = format!("SELECT t::text FROM {table} t");
        for row in sqlx::query(sqlx::AssertSqlSafe(all)).fetch_all(&mut database).await.unwrap() {
            let text: String = row.get(0);
            world.search.through(&format!("database {table}"), text.as_bytes(), &[]);
            rows += 1;
        }
    }
    assert!(rows > 20, "{rows} rows");
    world.none();
}

#[test]
fn nothing_that_holds_a_secret_prints_it() {
    use waffles_core::credential::Pepper;
    use waffles_core::seal::{SealKey, SealRing};
    use waffles_core::server::Credential;
    use waffles_core::snapshot::Settings;

    let bytes = *b"Canary-0123456789-0123456789-abc";
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let secret = Secret::of("the secret", &bytes);
    let ring = SealRing::new(vec![SealKey::new(1, &bytes)]);
    let mut seed = waffles_tests::Seed::new();
    let owner = seed.principal("alice", "user");
    let key = seed.key(owner, waffles_core::credential::KeyLimits::default());
    let token = Credential::Bearer { token: text.clone().into() };
    let password = Credential::Basic { username: "who".into(), password: text.clone().into() };
    let value = Credential::Header { name: "x-y".into(), value: text.clone().into() };
    for kind in [&token, &password, &value] {
        seed.server(&format!("s{}", seed.revision), "http://127.0.0.1:9/", |server| {
            server.credential = kind.clone()
        });
        seed.revision += 1;
    }
    let snapshot = seed.snapshot();
    let key = Secret::new("the key", &key);
    for (what, printed) in [
        ("a seal key", format!("{:?}", SealKey::new(1, &bytes))),
        ("a ring", format!("{ring:?} {ring:#?}")),
        ("a pepper", format!("{:?}", Pepper::new(&bytes))),
        ("settings", format!("{:#?}", Settings::new(bytes, ring.clone(), "i".into(), "a".into()))),
        ("credentials", format!("{token:?} {password:?} {value:#?}")),
        ("a snapshot", format!("{snapshot:#?}")),
        ("its servers", snapshot.servers().map(|entry| format!("{entry:?}")).collect()),
        ("an error", format!("{:?}", ring.open(b"p", &bytes))),
    ] {
        assert!(!secret.stands_in(&printed) && !key.stands_in(&printed), "{what}: {printed}");
    }
}
