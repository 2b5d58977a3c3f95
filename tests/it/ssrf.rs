//! Nobody reaches a network through the gateway that it was not opened to: whatever spelling of an address is written,
//! through whichever door, and whatever a server says once it is called. A canary listens on all addresses of this machine.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::net::TcpListener;
use waffles_proto::registry::v1 as registry;
use waffles_runtime::task;
use waffles_tests::programs::{command, http_client};
use waffles_tests::waffles::{endpoint, spec};
use waffles_tests::{
    Behaviour, DataPlaneOptions, Era, McpServer, PATIENCE, RawServer, Waffles, WafflesOptions,
};

/// A port that counts who connects.
struct Canary {
    addr: SocketAddr,
    seen: Arc<AtomicUsize>,
}

impl Canary {
    async fn on(addr: &str) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&seen);
        task::spawn("canary", async move {
            loop {
                if listener.accept().await.is_ok() {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Self { addr, seen }
    }

    fn connections(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

/// Hosts, each written to reach this machine, a metadata service, or a network behind the gateway.
const HOSTS: &[&str] = &[
    // Loopback, as it is and as old resolvers read it.
    "127.0.0.1",
    "127.0.0.2",
    "127.255.255.254",
    "127.1",
    "127.0.1",
    "127.000.000.001",
    "0177.0.0.1",
    "0177.0.0.01",
    "0177.1",
    "0x7f.0.0.1",
    "0x7f.0.1",
    "0x7f.1",
    "0x7F.0x0.0x0.0x1",
    "127.0x1",
    "0x7f000001",
    "2130706433",
    "017700000001",
    "127.0.0.1.",
    "0x7f.1.",
    // No address, which the kernel takes for this machine.
    "0",
    "0.0.0.0",
    "0x0",
    "00",
    "0.1",
    "1",
    // The same behind escapes and other scripts.
    "%31%32%37.0.0.1",
    "127%2e0%2e0%2e1",
    "%30x7f.1",
    "１２７.０.０.１",
    "127。0。0。1",
    "127．0．0．1",
    "127｡0｡0｡1",
    "①②⑦.⓪.⓪.①",
    "⓪ⓧ⑦ⓕ.1",
    "127.0.0.1\u{ad}",
    // Names of this machine.
    "localhost",
    "LOCALHOST",
    "LocalHost",
    "localhost.",
    "loc%61lhost",
    "ｌｏｃａｌｈｏｓｔ",
    "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
    "loca\u{ad}lhost",
    "localhost。",
    // IPv6, as it is and with IPv4 inside.
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[0000:0000:0000:0000:0000:0000:0000:0001]",
    "[::0001]",
    "[0::1]",
    "[::]",
    "[0:0:0:0:0:0:0:0]",
    "[::0.0.0.0]",
    "[::127.0.0.1]",
    "[::7f00:1]",
    "[::ffff:127.0.0.1]",
    "[::FFFF:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[0:0:0:0:0:ffff:127.0.0.1]",
    "[::ffff:127.0.0.2]",
    "[::ffff:0.0.0.0]",
    "[::ffff:0:0]",
    "[::ffff:0:127.0.0.1]",
    "[::ffff:0:7f00:1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::0.0.0.0]",
    "[64:ff9b:1::127.0.0.1]",
    "[64:ff9b:1:ffff:ffff:ffff:7f00:1]",
    "[2002:7f00:1::]",
    "[2002:7f00:0001::1]",
    "[2001::7f00:1]",
    "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
    "[2001:470::5efe:7f00:1]",
    "[2001:470::200:5efe:7f00:1]",
    "[::1%25lo]",
    "[::1%lo]",
    // Metadata services.
    "169.254.169.254",
    "169.254.169.253",
    "169.254.169.123",
    "169.254.170.2",
    "169.254.170.23",
    "169.254.0.23",
    "169.254.1.1",
    "0251.0376.0251.0376",
    "0xA9.0xFE.0xA9.0xFE",
    "0xa9fea9fe",
    "2852039166",
    "025177524776",
    "169.16689662",
    "169.254.43518",
    "169.254.0xa9fe",
    "169。254。169。254",
    "１６９.２５４.１６９.２５４",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[::169.254.169.254]",
    "[::a9fe:a9fe]",
    "[64:ff9b::169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::a9fe:a9fe]",
    "[64:ff9b:1:fffe::169.254.169.254]",
    "[2002:a9fe:a9fe::]",
    "[2002:a9fe:a9fe::1]",
    "[2001:0:4136:e378:8000:63bf:5601:5601]",
    "[2001:470::5efe:a9fe:a9fe]",
    "[fd00:ec2::254]",
    "[fd00:0ec2:0:0:0:0:0:254]",
    "[fd00:ec2::253]",
    "[fd00:ec2::23]",
    "[fd20:ce::254]",
    "[fd00:42::42]",
    "100.100.100.200",
    "0x646464c8",
    "1684301000",
    "[::ffff:100.100.100.200]",
    "168.63.129.16",
    "0xa83f8110",
    "2822734096",
    "[::ffff:168.63.129.16]",
    "[64:ff9b::a83f:8110]",
    "192.0.0.192",
    // Link-local, site-local, unique local.
    "[fe80::1]",
    "[fe80::a9fe:a9fe]",
    "[febf::1]",
    "[fec0::1]",
    "[feff::1]",
    "[fc00::1]",
    "[fd00::1]",
    "[fd12:3456:789a::1]",
    // Private and shared networks.
    "10.0.0.1",
    "10.255.255.255",
    "10.1",
    "012.0.0.1",
    "0xa000001",
    "167772161",
    "172.16.0.1",
    "172.31.255.254",
    "0xac100001",
    "192.168.0.1",
    "192.168.1",
    "0300.0250.0.1",
    "0xc0a80001",
    "3232235521",
    "100.64.0.1",
    "100.127.255.254",
    "[::ffff:10.0.0.1]",
    "[::ffff:c0a8:1]",
    "[::ffff:172.16.0.1]",
    "[64:ff9b::10.0.0.1]",
    "[64:ff9b::192.168.0.1]",
    "[2002:a00:1::]",
    "[2002:c0a8:1::]",
    // Everyone, many, nobody.
    "255.255.255.255",
    "0xffffffff",
    "4294967295",
    "224.0.0.1",
    "239.255.255.250",
    "[ff02::1]",
    "[ff05::1:3]",
    "[::ffff:224.0.0.1]",
    "[64:ff9b::e000:1]",
    "240.0.0.1",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "[2001:db8::1]",
    "[3fff::1]",
    "[100::1]",
    "[5f00::1]",
    "[4000::1]",
];

/// Whole URLs, where the trick lies beside the host; `{port}` is the canary's.
const URLS: &[&str] = &[
    "https://127.0.0.1:{port}/mcp",
    "HTTP://127.0.0.1:{port}/mcp",
    " http://127.0.0.1:{port}/mcp ",
    "http://127.0.0.1:{port}/mcp\t",
    "http://127.0.0.1:0{port}/mcp",
    "ht\ntp://127.0.0.1:{port}/mcp",
    "http://127.0\t.0.1:{port}/mcp",
    "http:127.0.0.1:{port}/mcp",
    "http:/127.0.0.1:{port}/mcp",
    "http:////127.0.0.1:{port}/mcp",
    "http:\\\\127.0.0.1:{port}\\mcp",
    "http://\\127.0.0.1:{port}/mcp",
    "http://@127.0.0.1:{port}/mcp",
    "http://:@127.0.0.1:{port}/mcp",
    "http://a@127.0.0.1:{port}/mcp",
    "http://example.com@127.0.0.1:{port}/mcp",
    "http://example.com:80@127.0.0.1:{port}/mcp",
    "http://127.0.0.1:{port}\\@example.com/mcp",
    "http://127.0.0.1:{port}?@example.com/mcp",
    "http://127.0.0.1:{port}#@example.com/mcp",
    "http://127.0.0.1:{port}/@example.com/mcp",
    "http://127.0.0.1:{port};@example.com/mcp",
    "ftp://127.0.0.1:{port}/mcp",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/_GET",
    "unix:/var/run/docker.sock",
    "ws://127.0.0.1:{port}/mcp",
    "//127.0.0.1:{port}/mcp",
    "127.0.0.1:{port}",
    // Ports that are no business of a gateway, wherever they are.
    "http://8.8.8.8:22/mcp",
    "http://8.8.8.8:25/mcp",
    "https://1.1.1.1:53/mcp",
    "http://[2606:4700:4700::1111]:23/mcp",
    "http://8.8.8.8:1/mcp",
];

fn forms(port: u16) -> Vec<String> {
    let hosts = HOSTS.iter().map(|host| format!("http://{host}:{port}/mcp"));
    let urls = URLS.iter().map(|url| url.replace("{port}", &port.to_string()));
    hosts.chain(urls).collect()
}

async fn closed() -> Waffles {
    closed_but_for(&[]).await
}

async fn closed_but_for(args: &[&str]) -> Waffles {
    let args = args.iter().map(ToString::to_string).collect();
    let data_plane = DataPlaneOptions { closed: true, args, ..DataPlaneOptions::default() };
    Waffles::with(WafflesOptions { data_plane, ..WafflesOptions::default() }).await
}

/// How a call of this server ends.
async fn outcome(waffles: &Waffles, server: &str) -> String {
    let client = waffles.client(server).of(Era::Stateless).await;
    let answer = client.call("echo", json!({})).await.unwrap();
    answer.message()["error"]["data"]["reason"].as_str().unwrap_or("served").to_owned()
}

/// What a call ends with that went nowhere: the address is closed, or there is none to the name.
fn is_nowhere(outcome: &str) -> bool {
    ["upstream_address_closed", "upstream_unreachable"].contains(&outcome)
}

#[tokio::test]
async fn no_spelling_of_a_closed_address_is_connected_to_through_any_door() {
    let canary = Canary::on("[::]:0").await;
    let waffles = closed().await;
    let forms = forms(canary.addr.port());
    assert!(forms.len() >= 180, "there are {} forms", forms.len());
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    let mut count = |what: &str| *outcomes.entry(what.to_owned()).or_default() += 1;

    // Written through gRPC and REST, and by a file that `wafflectl` imports.
    let http = http_client();
    let rest = waffles.control_plane.http_url("/api/v1/servers");
    let mut registered: Vec<(String, &String)> = Vec::new();
    let mut file = serde_json::Map::new();
    for (i, form) in forms.iter().enumerate() {
        let spec =
            registry::ServerSpec { name: format!("grpc-{i}"), endpoints: vec![endpoint(form)], ..spec() };
        let request = registry::CreateServerRequest { spec: Some(spec), disabled: false };
        match waffles.registry().create_server(request).await {
            Ok(_) => registered.push((format!("grpc-{i}"), form)),
            Err(refused) => {
                assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{form}: {refused}");
                count("refused by gRPC");
            }
        }
        let body = json!({"name": format!("rest-{i}"), "endpoints": [{"url": form}]});
        let answer = http.post(&rest).bearer_auth(&waffles.admin.secret).json(&body).send().await.unwrap();
        match answer.status().as_u16() {
            201 => registered.push((format!("rest-{i}"), form)),
            status => {
                assert!(status == 400 || status == 422, "{form}: {status}");
                let problem = answer.text().await.unwrap();
                assert!(problem.contains("endpoints[0].url"), "{form}: {problem}");
                count("refused by REST");
            }
        }
        file.insert(format!("cli-{i}"), json!({"type": "http", "url": form}));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clients.json");
    let text = json!({"mcpServers": file}).to_string();
    std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    let said =
        wafflectl(&waffles, folder.path(), &["server", "import", "--partial", path.to_str().unwrap()]).await;
    let listed = wafflectl(&waffles, folder.path(), &["--output", "json", "server", "list"]).await;
    let listed: Value = serde_json::from_str(&listed).unwrap_or_else(|_| panic!("{listed}\n{said}"));
    let names: Vec<&str> = listed.as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
    for (i, form) in forms.iter().enumerate() {
        let name = format!("cli-{i}");
        match names.contains(&name.as_str()) {
            true => registered.push((name, form)),
            false => count("refused by import"),
        }
    }
    assert!(registered.iter().filter(|(name, _)| name.starts_with("cli-")).count() > 50, "{said}");

    // And called.
    waffles.settled().await;
    for (name, form) in &registered {
        let outcome = outcome(&waffles, name).await;
        assert!(is_nowhere(&outcome), "{form:?} of {name} ended with {outcome}");
        count(&outcome);
    }
    // Edited: what was good once.
    waffles.add_server("edited", "http://192.0.43.8:9/mcp").await;
    for form in forms.iter().step_by(9) {
        let url = format!("{rest}/edited");
        let body = json!({"endpoints": [{"url": form}]});
        let answer = http.put(url).bearer_auth(&waffles.admin.secret).json(&body).send().await.unwrap();
        if answer.status().is_success() {
            waffles.settled().await;
            let outcome = outcome(&waffles, "edited").await;
            assert!(is_nowhere(&outcome), "{form:?}, edited, ended with {outcome}");
        }
    }
    // And as the second endpoint beside one that nobody listens at.
    let listed = registry::ServerSpec {
        name: "many".into(),
        endpoints: vec![
            endpoint("http://127.0.0.1:9/mcp"),
            endpoint(&format!("http://[::1]:{}/mcp", canary.addr.port())),
        ],
        ..spec()
    };
    waffles.add(listed).await;
    assert!(is_nowhere(&outcome(&waffles, "many").await));
    assert_eq!(canary.connections(), 0, "{outcomes:?}");
    assert!(outcomes["upstream_address_closed"] > 150, "{outcomes:?}");
    // That nothing arrived means something: the canary does count.
    drop(tokio::net::TcpStream::connect(("127.0.0.1", canary.addr.port())).await.unwrap());
    waffles_tests::until("the canary counts", PATIENCE, || async { canary.connections() == 1 }).await;
}

async fn wafflectl(waffles: &Waffles, folder: &std::path::Path, args: &[&str]) -> String {
    let config = folder.join("wafflectl.toml");
    let (grpc, key) = (waffles.control_plane.grpc_url(), &waffles.admin.secret);
    std::fs::write(&config, format!("[contexts.here]\ngrpc = {grpc:?}\napi_key = {key:?}\n")).unwrap();
    let mut wafflectl = command("wafflectl", None);
    wafflectl.arg("--config").arg(&config).args(args);
    let output = tokio::time::timeout(PATIENCE, wafflectl.output()).await.unwrap().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    format!("{}{}", String::from_utf8_lossy(&output.stdout), if output.status.success() { "" } else { &err })
}

#[tokio::test]
async fn what_a_server_says_leads_nowhere_else() {
    let canary = Canary::on("127.0.0.2:0").await;
    let there = format!("http://{}/mcp", canary.addr);
    // One address of this machine is open, the canary's is not.
    let waffles = closed_but_for(&["--allow-upstream-cidr", "127.0.0.1/32"]).await;
    let server = McpServer::start().await;
    waffles.add_server("says", &server.url()).await;
    assert_eq!(outcome(&waffles, "says").await, "served");

    let raw = |status: u16, headers: &[(&str, &str)]| Behaviour::Raw {
        status,
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        body: bytes::Bytes::from_static(b"{}"),
    };
    let mut behaviours = Vec::new();
    for status in [300, 301, 302, 303, 305, 307, 308] {
        behaviours.push(raw(status, &[("location", there.as_str())]));
    }
    let challenge = format!("Bearer resource_metadata=\"{there}\", realm=\"{there}\"");
    behaviours.push(raw(401, &[("www-authenticate", challenge.as_str()), ("location", there.as_str())]));
    behaviours.push(raw(407, &[("proxy-authenticate", "Basic"), ("location", there.as_str())]));
    let other = format!("h2=\"{}\"; ma=60", canary.addr);
    behaviours.push(raw(421, &[("alt-svc", other.as_str())]));
    behaviours.push(raw(
        200,
        &[
            ("content-type", "application/json"),
            ("location", there.as_str()),
            ("content-location", there.as_str()),
            ("refresh", &format!("0; url={there}")),
            ("link", &format!("<{there}>; rel=preload")),
            ("alt-svc", other.as_str()),
        ],
    ));
    for era in Era::BOTH {
        for behaviour in &behaviours {
            for method in ["tools/call", "tools/list", "resources/read", "ping"] {
                server.on_method(method, behaviour.clone());
                let client = waffles.client("says").of(era).await;
                let params = json!({"name": "echo", "uri": there, "arguments": {"url": there}});
                client.ask(1, method, params).await.unwrap();
            }
            server.on_get(behaviour.clone());
            waffles.client("says").of(era).await.get().await.ok();
        }
    }
    // Before anything was found out of it: discovery, probing and handshakes follow nothing either.
    for (i, behaviour) in behaviours.iter().enumerate() {
        let fresh = McpServer::start().await;
        for method in ["initialize", "server/discover", "notifications/initialized", "ping", "tools/call"] {
            fresh.on_method(method, behaviour.clone());
        }
        fresh.on_get(behaviour.clone());
        let transport = registry::Transport::Auto.into();
        let name = format!("fresh-{i}");
        let spec = registry::ServerSpec {
            name: name.clone(),
            endpoints: vec![endpoint(&fresh.url())],
            transport,
            ..spec()
        };
        waffles.add(spec).await;
        for era in Era::BOTH {
            let client = waffles.client(&name).with("mcp-protocol-version", era.revision());
            client.call("echo", json!({})).await.unwrap();
            client.post(waffles_tests::mcp_client::initialize("2025-11-25").to_string()).await.unwrap();
        }
    }
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn an_older_server_sends_messages_to_its_own_host_only() {
    let canary = Canary::on("127.0.0.2:0").await;
    let waffles = closed_but_for(&["--allow-upstream-cidr", "127.0.0.1/32"]).await;
    let addr = canary.addr;
    let targets = [
        format!("http://{addr}/messages"),
        format!("//{addr}/messages"),
        format!("http:\\\\{addr}\\messages"),
        format!("\\\\{addr}\\messages"),
        format!("https://{addr}/messages"),
        format!("http://127.0.0.1@{addr}/messages"),
    ];
    for (i, target) in targets.iter().enumerate() {
        let said = target.clone();
        let server = RawServer::start(move |mut connection| {
            let said = said.clone();
            async move {
                while let Some((head, _)) = connection.request().await {
                    let answer = match head.starts_with("get ") {
                        true => format!(
                            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nevent: endpoint\ndata: {said}\n\n"
                        ),
                        false => "HTTP/1.1 405 No\r\ncontent-length: 0\r\n\r\n".to_owned(),
                    };
                    connection.write(answer).await;
                }
            }
        })
        .await;
        let name = format!("sse-{i}");
        let transport = registry::Transport::Sse.into();
        let spec = registry::ServerSpec {
            name: name.clone(),
            endpoints: vec![endpoint(&server.url())],
            transport,
            ..spec()
        };
        waffles.add(spec).await;
        let ended = outcome(&waffles, &name).await;
        assert_ne!(ended, "served", "{target}");
        assert!(server.requests() > 0, "{target}: the stream was opened");
    }
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn what_is_ours_is_closed_whatever_is_open() {
    // Everything private is open, as `wafflectl up` has it.
    let waffles = Waffles::start().await;
    let (proxy, plane) = (&waffles.proxies[0], &waffles.control_plane);
    for (i, addr) in [plane.grpc, plane.http, plane.admin, proxy.admin, proxy.mcp].iter().enumerate() {
        for (j, host) in
            ["127.0.0.1", "localhost", "[::1]", "127.0.0.2", "[::ffff:127.0.0.1]"].iter().enumerate()
        {
            let name = format!("own-{i}-{j}");
            waffles.add_server(&name, &format!("http://{host}:{}/mcp", addr.port())).await;
            assert_eq!(outcome(&waffles, &name).await, "upstream_address_closed", "{host}:{}", addr.port());
        }
    }
}

#[tokio::test]
async fn the_database_and_redis_are_closed_too() {
    let postgres = waffles_tests::Postgres::shared().await;
    let redis = waffles_tests::Redis::start().await;
    let canary = Canary::on("127.0.0.1:0").await;
    let mut options = WafflesOptions::default();
    options.control_plane.database_url = Some(postgres.database().await);
    options.control_plane.redis_url = Some(redis.url());
    let waffles = Waffles::with(options.clone()).await;
    for (name, url) in [
        ("db", options.control_plane.database_url.unwrap()),
        ("redis", options.control_plane.redis_url.unwrap()),
    ] {
        let authority =
            url.split("://").nth(1).unwrap().split('/').next().unwrap().rsplit('@').next().unwrap();
        waffles.add_server(name, &format!("http://{authority}/mcp")).await;
        assert_eq!(outcome(&waffles, name).await, "upstream_address_closed", "{authority}");
    }
    // Beside them everything is open.
    waffles.add_server("beside", &format!("http://{}/mcp", canary.addr)).await;
    let client = waffles.client("beside").of(Era::Stateless).await;
    drop(tokio::time::timeout(std::time::Duration::from_millis(500), client.call("echo", json!({}))).await);
    assert!(canary.connections() > 0);
}
