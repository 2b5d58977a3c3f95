//! House rules that can be read off the sources: who may lean on whom, what stands where, what is documented. A failure
//! names the file and the rule; where the rule is wrong, ARCHITECTURE.md and this file change together.

#![allow(clippy::indexing_slicing, clippy::string_slice, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each crate and the crates of ours that it may depend on.
const CRATES: [(&str, &[&str]); 7] = [
    ("proto", &[]),
    ("mcp", &[]),
    ("core", &["waffles-proto"]),
    ("runtime", &[]),
    ("control-plane", &["waffles-proto", "waffles-mcp", "waffles-core", "waffles-runtime"]),
    ("data-plane", &["waffles-proto", "waffles-mcp", "waffles-core", "waffles-runtime"]),
    ("cli", &["waffles-proto", "waffles-core"]),
];

/// A layer: its modules, and those of them that their neighbours may use.
struct Row {
    modules: &'static [&'static str],
    open: &'static [&'static str],
}

const fn row(modules: &'static [&'static str]) -> Row {
    Row { modules, open: &[] }
}

/// From the ground up. A module uses rows below its own, and of its own row only what is open. `config` stands high, for
/// it knows the settings of every part, and no part knows it.
const CONTROL_PLANE: &[Row] = &[
    Row { modules: &["error", "page"], open: &["error"] },
    row(&["store", "cache"]),
    row(&["usage"]),
    row(&["authz", "quota"]),
    Row {
        modules: &[
            "registry",
            "namespaces",
            "policy",
            "limits",
            "identity",
            "audit",
            "analytics",
            "health",
            "discovery",
            "secrets",
            "proxies",
            "enrolment",
            "upkeep",
        ],
        // `audit::note`, `discovery::poke`, and the keys that several of them seal with.
        open: &["audit", "discovery", "secrets"],
    },
    // A tenant comes with its first namespace and account.
    row(&["tenants"]),
    // All services in one value, for the edge.
    row(&["services"]),
    row(&["grpc", "rest", "http", "ui", "metrics"]),
    row(&["config"]),
    row(&["app"]),
    row(&["main"]),
];

const DATA_PLANE: &[Row] = &[
    Row { modules: GROUND, open: GROUND },
    row(&["authn", "limit", "session"]),
    row(&["permit"]),
    row(&["tasks"]),
    row(&["listing", "record"]),
    // One conversation between two sides: what each part does is told apart, what it knows of the others is not.
    Row { modules: TALK, open: TALK },
    row(&["gateway"]),
    // Other ways to the same path.
    row(&["doors"]),
    row(&["server"]),
    row(&["listener"]),
    row(&["config"]),
    row(&["app"]),
    row(&["main"]),
];

const GROUND: &[&str] = &[
    "state",
    "discovery",
    "audit",
    "overload",
    "metrics",
    "reject",
    "durable",
    "keys",
    "link",
    "enrolment",
    "sightings",
    "health",
];

const TALK: &[&str] =
    &["upstream", "stream", "flow", "front", "bridge", "hub", "federation", "shared", "peers", "checks"];

#[test]
fn crates_depend_downwards_only() {
    let mut faults = Vec::new();
    for (folder, allowed) in CRATES {
        let manifest = manifest(folder);
        for name in dependencies(&manifest) {
            let ours = name.starts_with("waffles-") || name == "wafflectl";
            if ours && !allowed.contains(&name.as_str()) {
                faults.push(format!("{folder} must not depend on {name}"));
            }
        }
        if folder == "core"
            && manifest.lines().any(|line| line.starts_with("waffles-proto") && line.contains("rpc"))
        {
            faults.push("core takes the messages of proto only, not its services".to_owned());
        }
        if !manifest.contains("[lints]\nworkspace = true") && folder != "proto" {
            faults.push(format!("{folder} does not take the lints of the workspace"));
        }
    }
    assert_none(&faults);
}

#[test]
fn the_workspace_has_exactly_eight_crates() {
    let manifest = read(&root().join("Cargo.toml"));
    let members = manifest.lines().find(|line| line.starts_with("members")).expect("members are listed");
    let listed: BTreeSet<&str> = members.split('"').skip(1).step_by(2).collect();
    let known: BTreeSet<&str> = CRATES.iter().map(|(folder, _)| *folder).chain(["tests"]).collect();
    assert_eq!(listed, known);
}

#[test]
fn modules_of_the_control_plane_lean_on_lower_rows() {
    check_rows("control-plane", CONTROL_PLANE);
}

#[test]
fn modules_of_the_data_plane_lean_on_lower_rows() {
    check_rows("data-plane", DATA_PLANE);
}

#[test]
fn protocol_and_domain_do_no_io() {
    for package in ["waffles-mcp", "waffles-core"] {
        let tree = Command::new(env!("CARGO"))
            .args(["tree", "--offline", "--prefix", "none", "--edges", "normal", "--package", package])
            .current_dir(root())
            .output()
            .expect("cargo runs");
        assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
        let tree = String::from_utf8_lossy(&tree.stdout);
        let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        for banned in ["tokio", "hyper", "sqlx", "tonic", "reqwest", "axum"] {
            assert!(!names.contains(banned), "{package} depends on {banned}, maybe by another crate");
        }
    }
}

#[test]
fn migrations_come_in_pairs() {
    let of = |database: &str| -> BTreeSet<String> { names(&root().join("migrations").join(database)) };
    let (postgres, sqlite) = (of("postgres"), of("sqlite"));
    assert_eq!(postgres, sqlite);
    for (number, name) in (1..).zip(&postgres) {
        assert!(name.starts_with(&format!("{number:04}_")), "{name} should be number {number:04}");
    }
}

#[test]
fn no_file_is_a_drawer_for_leftovers() {
    let banned = ["mod", "util", "utils", "common", "types", "helpers", "misc", "traits", "models"];
    let mut faults = Vec::new();
    for path in all_sources() {
        for part in path.strip_prefix(root()).expect("it is inside").with_extension("").components() {
            let part = part.as_os_str().to_string_lossy();
            if banned.contains(&part.as_ref()) {
                faults.push(format!("{} has a name that says nothing", path.display()));
            }
        }
    }
    assert_none(&faults);
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let mut faults = Vec::new();
    for path in
        all_sources().into_iter().filter(|path| path.file_name().is_some_and(|name| name != "tests.rs"))
    {
        if !read(&path).starts_with("//!") {
            faults.push(format!("{} does not begin with //! and its purpose", path.display()));
        }
    }
    assert_none(&faults);
}

#[test]
fn tasks_are_named_and_listeners_have_timers() {
    let exceptions = [
        // The one place that may.
        ("tokio::spawn", "runtime/src/task.rs"),
        // A demonstration on loopback, not a door of the product.
        ("axum::serve", "cli/src/demo.rs"),
    ];
    let mut faults = Vec::new();
    for path in all_sources() {
        let text = production(&path);
        for banned in ["tokio::spawn", "axum::serve"] {
            let excepted = exceptions.iter().any(|(what, file)| *what == banned && path.ends_with(file));
            let used = text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(banned));
            if used && !excepted {
                faults.push(format!("{} uses {banned}", path.display()));
            }
        }
    }
    assert_none(&faults);
}

/// Lints name the functions (`clippy.toml`); this names the places where each may be used all the same, and why.
#[test]
fn one_connector_leads_out() {
    let exceptions = [
        // The connector itself.
        ("TcpStream::connect", "runtime/src/outbound.rs"),
        ("lookup_host", "runtime/src/outbound.rs"),
        // To the control plane, at the address that the operator gave.
        ("Endpoint::from_shared", "data-plane/src/link.rs"),
        ("TcpStream::connect", "runtime/src/tls/mutual.rs"),
        // On the machine of the person who says where to.
        ("Endpoint::from_shared", "cli/src/place.rs"),
        ("TcpStream::connect", "cli/src/place.rs"),
        ("reqwest::Client::builder", "cli/src/http.rs"),
    ];
    let ways = [
        "TcpStream::connect",
        "TcpSocket::",
        "UdpSocket::",
        "UnixStream::connect",
        "lookup_host",
        "to_socket_addrs",
        "reqwest::Client::new",
        "reqwest::Client::builder",
        "reqwest::ClientBuilder::",
        "reqwest::get",
        "client::legacy",
        "Endpoint::from_shared",
        "Endpoint::from_static",
        "Channel::from",
    ];
    let mut faults = Vec::new();
    for path in all_sources() {
        let text = production(&path);
        for way in ways {
            let excepted = exceptions.iter().any(|(what, file)| *what == way && path.ends_with(file));
            let used = text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(way));
            if used && !excepted {
                faults.push(format!(
                    "{} uses {way}; connect through waffles_runtime::outbound",
                    path.display()
                ));
            }
        }
    }
    assert_none(&faults);
}

#[test]
fn sql_stands_under_store_only() {
    let sql = ["SELECT ", "INSERT INTO ", "UPDATE ", "DELETE FROM ", "CREATE TABLE ", "sqlx::query"];
    let mut faults = Vec::new();
    for path in all_sources() {
        let inside = path.strip_prefix(root()).expect("it is inside").to_string_lossy().into_owned();
        if inside.starts_with("control-plane/src/store") {
            continue;
        }
        for line in production(&path).lines().filter(|line| !line.trim_start().starts_with("//")) {
            let text =
                line.split('"').skip(1).step_by(2).any(|text| sql.iter().any(|word| text.starts_with(word)));
            if text || line.contains("sqlx::query") {
                faults.push(format!("{inside}: {}", line.trim()));
            }
        }
    }
    assert_none(&faults);
}

/// On SQLite nothing else keeps tenants apart; on Postgres row-level security would hide the mistake.
#[test]
fn every_statement_over_a_tenants_table_names_the_tenant() {
    // What proxies are sent, what log-ins and tokens look for, and housekeeping: for all tenants, by their nature.
    const FOR_ALL: [(&str, &str); 35] = [
        ("accounts", "is_token"),
        ("accounts", "forget_tokens"),
        ("audit", "last_position"),
        ("data_keys", "is_older"),
        ("data_keys", "stale"),
        ("data_keys", "replace"),
        ("data_keys", "count"),
        ("grants", "load_roles"),
        ("health", "settle"),
        ("health", "sweep"),
        ("health", "orders_since"),
        ("health", "forget"),
        ("limits", "forget_usage"),
        ("limits", "load"),
        ("namespaces", "load"),
        ("principals", "principals"),
        ("principals", "any_user"),
        ("principals", "end_expired_keys"),
        ("principals", "rotate_session"),
        ("principals", "session_owner"),
        ("principals", "forget_sessions"),
        ("principals", "count_all_live_keys"),
        ("rules", "load"),
        ("servers", "load"),
        ("sessions", "announced"),
        ("sessions", "take_back"),
        // A chain has records of all tenants, of which others are told the digests.
        ("trail", "next_chain"),
        ("trail", "links"),
        ("trail", "has_unchained"),
        ("trail", "of_month"),
        ("trail", "older"),
        ("trail", "has_between"),
        ("trail", "hash_before"),
        ("trail", "delete_stretch"),
        ("trail", "delete_unchained"),
    ];
    let mut tables = BTreeSet::new();
    for migration in names(&root().join("migrations/sqlite")) {
        let text = read(&root().join("migrations/sqlite").join(migration));
        for table in text.split("CREATE TABLE ").skip(1) {
            let body = table.split(");").next().unwrap_or_default();
            if body.contains("\n    tenant ") {
                tables.insert(identifier(table));
            }
        }
    }
    assert!(tables.len() > 12, "{tables:?}");
    let mut faults = Vec::new();
    for path in sources(&root().join("control-plane/src/store")) {
        let file = path.file_stem().expect("it has a name").to_string_lossy().into_owned();
        let text = production(&path);
        let mut function = String::new();
        for (at, piece) in text.split('"').enumerate() {
            if at % 2 == 0 {
                if let Some((_, named)) = piece.rsplit_once("fn ") {
                    function = identifier(named);
                }
                continue;
            }
            let words: Vec<&str> = piece.split_whitespace().collect();
            let over = words.windows(2).any(|pair| {
                ["FROM", "INTO", "UPDATE", "JOIN"].contains(&pair[0]) && tables.contains(&identifier(pair[1]))
            });
            let excepted = FOR_ALL.contains(&(file.as_str(), function.as_str()));
            // A statement that is put together names it where its filter is put in.
            let continued = [");", "));"]
                .iter()
                .any(|end| text.contains(&format!("{piece}\"{end}\n            push_filter!")));
            if over && !piece.contains("tenant") && !excepted && !continued {
                faults.push(format!("{file}.rs, {function}: {}", words.join(" ")));
            }
        }
    }
    assert_none(&faults);
}

#[test]
fn every_setting_is_documented() {
    let page = read(&root().join("docs/configuration.md"));
    // The command line derives its names, so its chapter is checked in one direction only.
    let programs = page.split("\n## `wafflectl`").next().unwrap_or_default();
    let mut known = BTreeSet::new();
    for program in ["control-plane", "data-plane", "cli"] {
        for path in sources(&root().join(program).join("src")) {
            known.extend(settings(&production(&path)));
        }
    }
    let documented = settings(&page);
    let missing: Vec<&String> = known.difference(&documented).collect();
    assert!(missing.is_empty(), "docs/configuration.md does not mention {missing:?}");
    let described = settings(programs);
    let stale: Vec<&String> = described.difference(&known).collect();
    assert!(stale.is_empty(), "docs/configuration.md describes what no program reads: {stale:?}");
}

#[test]
fn lock_files_name_no_registry_host() {
    let mut faults = Vec::new();
    for folder in ["tools", "tests/sdk"] {
        for path in files(&root().join(folder)) {
            if path.ends_with("package-lock.json") && read(&path).contains("\"resolved\"") {
                faults.push(format!("{} says where packages came from; npm_config_omit_lockfile_registry_resolved=true leaves that out", path.display()));
            }
        }
    }
    assert_none(&faults);
}

fn check_rows(folder: &str, rows: &[Row]) {
    let rank = |module: &str| rows.iter().position(|row| row.modules.contains(&module));
    let src = root().join(folder).join("src");
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in sources(&src) {
        let inside = path.strip_prefix(&src).expect("it is inside").with_extension("");
        let module = inside.iter().next().expect("a file has a name").to_string_lossy().into_owned();
        // `lib` only declares the modules.
        if module != "lib" {
            uses.entry(module).or_default().extend(used_modules(&production(&path)));
        }
    }
    let mut faults = Vec::new();
    for (module, used) in &uses {
        let Some(own) = rank(module) else {
            faults.push(format!("{module} stands in no row: give it one here and in ARCHITECTURE.md"));
            continue;
        };
        for other in used.iter().filter(|other| *other != module) {
            match rank(other) {
                None => {}
                Some(row) if row > own => faults.push(format!("{module} uses {other}, which is above it")),
                Some(row) if row == own && !rows[row].open.contains(&other.as_str()) => {
                    faults.push(format!("{module} uses its neighbour {other}"));
                }
                Some(_) => {}
            }
        }
    }
    assert_none(&faults);
}

/// The first names behind `crate::`, also those of a group.
fn used_modules(text: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (start, prefix) in text.match_indices("crate::") {
        let rest = &text[start + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            used.insert(identifier(rest));
            continue;
        };
        let (mut depth, mut at_name) = (0, true);
        for (at, character) in group.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => at_name = true,
                character if at_name && character.is_alphabetic() => {
                    used.insert(identifier(&group[at..]));
                    at_name = false;
                }
                _ => {}
            }
        }
    }
    used
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()
}

/// Words that begin with `WAFFLES_`.
fn settings(text: &str) -> BTreeSet<String> {
    text.match_indices("WAFFLES_")
        .map(|(start, _)| identifier(&text[start..]))
        .filter(|name| name.len() > "WAFFLES_".len())
        .collect()
}

/// The names in `[dependencies]` and its kin; those for tests count too.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
        } else if inside && let Some((name, _)) = line.split_once(['=', '.']) {
            names.push(name.trim().to_owned());
        }
    }
    names
}

/// A file without its tests, which may do as they like.
fn production(path: &Path) -> String {
    if path.file_stem().is_some_and(|stem| stem == "tests") || path.iter().any(|part| part == "tests") {
        return String::new();
    }
    let text = read(path);
    // Tests stand at the foot of a file.
    let foot = ["\n#[cfg(test)]\nmod tests", "\n#[cfg(test)]\n#[allow("];
    let end = foot.iter().filter_map(|start| text.find(start)).min().unwrap_or(text.len());
    text[..end].to_owned()
}

/// The Rust files of all crates but this one.
fn all_sources() -> Vec<PathBuf> {
    CRATES.iter().flat_map(|(folder, _)| sources(&root().join(folder).join("src"))).collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    files(folder)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true if path.ends_with("node_modules") => {}
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".sql"))
        .collect()
}

fn manifest(folder: &str) -> String {
    read(&root().join(folder).join("Cargo.toml"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace holds this crate").to_owned()
}

#[track_caller]
fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}
