//! Every client with every server, feature by feature; see `waffles_tests::matrix`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use futures_util::{StreamExt as _, stream};
use waffles_proto::auth::v1::KeyLimits;
use waffles_proto::registry::v1::{ServerSpec, Transport};
use waffles_tests::matrix::clients::Program;
use waffles_tests::matrix::servers::{SERVERS, vocabulary};
use waffles_tests::matrix::{
    CLIENTS, Cell, Client, Door, Server, Servers, Status, Target, Wire, cells, impossible, table,
};
use waffles_tests::sdk::{self, SdkServer};
use waffles_tests::waffles::{endpoint, spec};
use waffles_tests::{DataPlane, Era, Waffles};

mod rmcp;

/// How many client programs run at once.
const PROGRAMS: usize = 4;

/// Where a client finds a server at a door.
fn url(client: &Client, server: &Server, door: Door, servers: &Servers, proxy: &DataPlane) -> String {
    let base = match door {
        Door::Direct => return servers.url(server).to_owned(),
        Door::Alone => proxy.server_url(server.name),
        Door::Federated => format!("http://{}/mcp", proxy.mcp),
    };
    if client.wire == Wire::Sse { format!("{base}/sse") } else { base }
}

fn target(client: &Client, server: &Server, door: Door, url: String, token: &str) -> Target {
    let federated = door == Door::Federated;
    let mut skip = BTreeMap::new();
    // The other way round, it is found out whether what is said to be impossible really is.
    if std::env::var_os("MATRIX_IMPOSSIBLE").is_none() {
        for feature in waffles_tests::matrix::FEATURES {
            if let Some(reason) = impossible::reason(client, server, door, feature) {
                skip.insert(feature, reason);
            }
        }
    }
    Target {
        id: format!("{}/{door}", server.name),
        url,
        token: if door == Door::Direct { String::new() } else { token.to_owned() },
        era: if client.era == Era::Stateless { "stateless" } else { "sessions" },
        transport: client.wire,
        revision: client.revision,
        vocabulary: vocabulary(server),
        prefix: if federated { format!("{}__", server.name) } else { String::new() },
        uris: if federated { format!("wfl+{}+", server.name) } else { String::new() },
        skip,
    }
}

/// Why a cell is said to be impossible.
fn reason(cell: &Cell) -> Option<&'static str> {
    let client = CLIENTS.iter().find(|client| client.name == cell.client)?;
    let server = SERVERS.iter().find(|server| server.name == cell.server)?;
    impossible::reason(client, server, cell.door, cell.feature)
}

/// Whether a name is among those of this environment variable; without it, every name is.
#[expect(clippy::disallowed_methods, reason = "a test binary has no settings of its own")]
fn chosen(variable: &str, name: &str) -> bool {
    std::env::var(variable).map_or(true, |names| names.split(',').any(|each| each == name))
}

async fn run(client: &'static Client, targets: Vec<(&'static Server, Door, Target)>) -> Vec<Cell> {
    let asked: Vec<Target> = targets.iter().map(|(_, _, target)| target.clone()).collect();
    let (reports, errors) = match client.program {
        Program::Rmcp => (rmcp::run(&asked).await, String::new()),
        Program::Node(_) | Program::Python(_) => client.run(&asked).await,
    };
    let mut seen = Vec::new();
    for (server, door, target) in targets {
        match reports.iter().find(|report| report.id == target.id) {
            Some(report) => seen.extend(cells(client, server.name, door, report)),
            None => panic!("{} said nothing of {}:\n{errors}", client.name, target.id),
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_works_with_every_server() {
    let servers = Servers::start().await;
    let waffles = Waffles::start().await;
    for server in &SERVERS {
        let spec = ServerSpec {
            name: server.name.to_owned(),
            endpoints: vec![endpoint(servers.url(server))],
            transport: Transport::Auto.into(),
            ..spec()
        };
        waffles.add(spec).await;
    }
    let mut runs = Vec::new();
    for client in CLIENTS.iter().filter(|client| chosen("MATRIX_CLIENTS", client.name)) {
        let mut targets = Vec::new();
        for door in [Door::Direct, Door::Alone, Door::Federated] {
            // Everybody has a key of their own: some servers keep for a session what others of the same key would meet.
            let key = waffles.key(KeyLimits::default()).await;
            for server in SERVERS.iter().filter(|server| chosen("MATRIX_SERVERS", server.name)) {
                let meets = door != Door::Direct || client.meets(server);
                if meets && chosen("MATRIX_DOORS", &door.to_string()) {
                    let url = url(client, server, door, &servers, &waffles.proxies[0]);
                    targets.push((server, door, target(client, server, door, url, &key.secret)));
                }
            }
        }
        runs.push(run(client, targets));
    }
    let seen: Vec<Vec<Cell>> = stream::iter(runs).buffer_unordered(PROGRAMS).collect().await;
    let seen = seen.concat();
    let mut unexplained = String::new();
    for cell in &seen {
        match (cell.status, reason(cell)) {
            (Status::Fail, None) => writeln!(unexplained, "{cell}").unwrap(),
            (Status::Pass, Some(reason)) => writeln!(unexplained, "{cell}possible, though {reason}").unwrap(),
            _ => {}
        }
    }
    if let Some(path) = std::env::var_os("MATRIX_REPORT") {
        std::fs::write(path, seen.iter().map(|cell| format!("{cell}\n")).collect::<String>()).unwrap();
    }
    let failed = unexplained.lines().count();
    assert_eq!(failed, 0, "{failed} of {} cells are not explained:\n{unexplained}", seen.len());
    compare(&table::page(&seen));
}

/// Compares with the page in the repository, or writes it.
fn compare(page: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/compatibility.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, page).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == page, "docs/compatibility.md says something else; UPDATE_GOLDEN=1 writes it anew");
}

/// What a run through a bridge lacks, beside a server that speaks the client's revision itself, and why nothing can be done
/// about it: the revision of the run, the beginning of the loss, the reason.
const EXPLAINED: [(&str, &str, &str); 7] = [
    (
        "2025-11-25",
        "server-sse-polling: ",
        "2026-07-28 has no resumption, so the server closes no stream early, and there is nothing to come back for",
    ),
    (
        "2025-11-25",
        "server-sse-multiple-streams: server-sse-streams-functional: INFO: ",
        "the server answers in JSON, and streams are optional",
    ),
    (
        "2026-07-28",
        "server-stateless: sep-2575-missing-capability-http-400: ",
        "a tool of the session era says in its result that it cannot ask",
    ),
    (
        "2026-07-28",
        "server-stateless: sep-2575-server-rejects-undeclared-capability: ",
        "a tool of the session era says in its result that it cannot ask",
    ),
    (
        "2026-07-28",
        "input-required-result-ignore-extra-params: sep-2322-ignore-unexpected-params: ",
        "the suite answers under the key of its own server before it was asked; a session's question has no key",
    ),
    (
        "2026-07-28",
        "input-required-result-basic-elicitation: sep-2322-elicitation-complete: ",
        "the suite wants the key of its own server; a session's question has none",
    ),
    (
        "2026-07-28",
        "input-required-result-basic-elicitation: sep-2322-elicitation-incomplete: ",
        "the suite wants the key of its own server; a session's question has none",
    ),
];

#[tokio::test]
async fn a_bridge_gives_all_that_a_server_of_the_clients_era_gives() {
    let folder = tempfile::tempdir().unwrap();
    let both = SdkServer::conformance().await;
    let waffles = Waffles::start().await;
    let mut unexplained = String::new();
    for (era, other) in [(Era::Sessions, Era::Stateless), (Era::Stateless, Era::Sessions)] {
        let revision = era.revision();
        let file = |name: &str| folder.path().join(format!("{name}-{revision}.json"));
        let (direct, via) = (file("direct"), file("via"));
        let server = SdkServer::conformance_of(other).await;
        let name = format!("only-{}", other.revision());
        waffles.add_server(&name, &server.url).await;
        let url = waffles.proxies[0].server_url(&name);
        sdk::conformance(&both.url, revision, None, &direct).await;
        sdk::conformance(&url, revision, Some(&waffles.admin.secret), &via).await;
        let checks = std::fs::read_to_string(&direct).unwrap().matches(r#""status""#).count();
        assert!(checks > 30, "the direct run of {revision} has hardly any checks");
        let lost = sdk::lost(&direct, &via).await;
        for (_, loss, reason) in EXPLAINED.iter().filter(|(explained, ..)| *explained == revision) {
            let found = lost.lines().any(|line| line.starts_with(loss));
            assert!(found, "{revision}: {loss} is not lost any more, though: {reason}");
        }
        let explained =
            |line: &str| EXPLAINED.iter().any(|(of, loss, _)| *of == revision && line.starts_with(loss));
        // The last line is a count.
        let lines = lost.lines().rev().skip(1);
        for line in lines.filter(|line| !explained(line)) {
            writeln!(unexplained, "{revision} at a server of {}: {line}", other.revision()).unwrap();
        }
    }
    assert_eq!(unexplained, "");
}
