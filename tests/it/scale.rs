//! Many keys, many proxies, and the control plane's helpers dead or lying: proxies keep what they have, take no accident for
//! a removal, and hear of what may break them one at a time.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use secrecy::ExposeSecret as _;
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tokio::time::Instant;
use waffles_core::credential::{KeyLimits, generate_key};
use waffles_data_plane::state::Disk;
use waffles_proto::auth::v1::KeyLimits as WireLimits;
use waffles_proto::discovery::v1::FindKeysRequest;
use waffles_proto::discovery::v1::key_service_client::KeyServiceClient;
use waffles_proto::registry::v1 as registry;
use waffles_tests::clock::TestClock;
use waffles_tests::{
    Answer, ControlPlaneOptions, DataPlane, DataPlaneOptions, Dice, Era, Figure, McpClient, McpServer,
    PATIENCE, Postgres, Seed, Waffles, WafflesOptions, eventually,
};

fn wanted(variable: &str, usual: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

async fn call(url: &str, key: &str) -> anyhow::Result<Answer> {
    McpClient::new(url).with_bearer(key).of(Era::Stateless).await.call("echo", json!({"x": 1})).await
}

/// What a proxy says of its configuration.
async fn detail(proxy: &DataPlane) -> serde_json::Value {
    let answer = waffles_tests::programs::http_client().get(proxy.admin_url("/ready")).send().await.unwrap();
    answer.json::<serde_json::Value>().await.unwrap()["detail"].clone()
}

fn note(promise: &str, what: &str, goal: &str, measured: String, extent: String, met: bool) {
    let (promise, what, goal) = (promise.into(), what.into(), goal.into());
    Figure { promise, what, goal, measured, extent, met }.note();
}

#[tokio::test]
async fn keys_that_are_not_shipped_are_asked_for_and_outlive_the_control_plane() {
    let control_plane = ControlPlaneOptions {
        args: vec!["--keys-shipped-most".into(), "0".into()],
        ..ControlPlaneOptions::default()
    };
    let mut waffles = Waffles::with(WafflesOptions { control_plane, ..WafflesOptions::default() }).await;
    let upstream = McpServer::start().await;
    waffles.add_server("demo", &upstream.url()).await;
    let url = waffles.proxies[0].server_url("demo");
    let stranger = || generate_key().unwrap().text.expose_secret().to_owned();

    let revoked = waffles.key(WireLimits::default()).await;
    let unused = waffles.key(WireLimits::default()).await;
    for key in [&waffles.admin, &revoked] {
        let answer = call(&url, &key.secret).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let ready = detail(&waffles.proxies[0]).await;
    assert_eq!(ready["holds"]["api_keys"], 2, "those that were used, and no others: {ready}");
    let answer = call(&url, &stranger()).await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), answer.message()["error"]["data"]["reason"].as_str()),
        (401, Some("invalid_credential"))
    );

    let mut door = KeyServiceClient::new(waffles.authorized(&waffles.admin.secret));
    let refused = door.find_keys(FindKeysRequest { hashes: vec![vec![0; 32]] }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated, "only proxies ask: {refused}");

    let started = Instant::now();
    waffles.revoke(&revoked).await;
    eventually(Duration::from_secs(2), || async {
        let answer = call(&url, &revoked.secret).await?;
        ensure!(answer.status == 401, "a revoked key is good still");
        Ok(())
    })
    .await;
    note(
        "P07",
        "a key that was asked for is revoked",
        "≤ 1 s",
        format!("{:.0?}", started.elapsed()),
        "one".into(),
        started.elapsed() < Duration::from_secs(1),
    );

    // What is in force is on disk, keys included, since those are written first.
    waffles.settled().await;
    eventually(PATIENCE, || async {
        let detail = detail(&waffles.proxies[0]).await;
        ensure!(detail["saved_revision"] == detail["revision"], "not saved: {detail}");
        Ok(())
    })
    .await;
    waffles.control_plane.kill9().await;
    for round in ["the same run", "the next one"] {
        let answer = call(&url, &waffles.admin.secret).await.unwrap();
        assert_eq!(answer.status, 200, "{round}: {}", answer.text());
        let answer = call(&url, &revoked.secret).await.unwrap();
        assert_ne!(answer.status, 200, "{round}: a revoked key has come back");
        for key in [unused.secret.clone(), stranger()] {
            let answer = call(&url, &key).await.unwrap();
            let reason = answer.message()["error"]["data"]["reason"].clone();
            assert_eq!((answer.status.as_u16(), reason.as_str()), (503, Some("key_unchecked")), "{round}");
            assert!(answer.header("retry-after").is_some(), "{round}");
        }
        waffles.proxies[0].restart().await;
        waffles.proxies[0].ready().await;
    }
    waffles.control_plane.restart().await;
    eventually(PATIENCE, || async {
        let answer = call(&url, &unused.secret).await?;
        ensure!(answer.status == 200, "{}", answer.text());
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_keys_that_nobody_has_is_not_passed_on() {
    let control_plane = ControlPlaneOptions {
        args: vec!["--keys-shipped-most".into(), "0".into()],
        ..ControlPlaneOptions::default()
    };
    let waffles = Waffles::with(WafflesOptions { control_plane, ..WafflesOptions::default() }).await;
    let upstream = McpServer::start().await;
    waffles.add_server("demo", &upstream.url()).await;
    let url = waffles.proxies[0].server_url("demo");
    assert_eq!(call(&url, &waffles.admin.secret).await.unwrap().status, 200);
    let started = Instant::now();
    let flood = (0..1000).map(|_| async {
        let key = generate_key().unwrap().text.expose_secret().to_owned();
        call(&url, &key).await.unwrap().status.as_u16()
    });
    let mut asked = 0;
    for statuses in futures_util::future::join_all(flood).await.chunks(100) {
        assert!(statuses.iter().all(|status| [401, 503].contains(status)), "{statuses:?}");
        asked += statuses.iter().filter(|status| **status == 401).count();
        assert_eq!(
            call(&url, &waffles.admin.secret).await.unwrap().status,
            200,
            "whoever is known is served"
        );
    }
    // Eighty at once, and forty a second for one address.
    let most = 80 + 40 * (started.elapsed().as_secs() as usize + 1);
    assert!(asked <= most, "{asked} of 1000 unknown keys were asked for, more than {most}");
}

#[tokio::test]
async fn what_one_proxy_refuses_no_other_is_sent() {
    let url = Postgres::shared().await.database().await;
    let control_plane =
        ControlPlaneOptions { database_url: Some(url.clone()), ..ControlPlaneOptions::default() };
    let waffles =
        Waffles::with(WafflesOptions { control_plane, proxies: 3, ..WafflesOptions::default() }).await;
    let upstream = McpServer::start().await;
    let server = waffles.add_server("demo", &upstream.url()).await;

    // No door lets such a specification in; a hand in the database does.
    let mut database = PgConnection::connect(&url).await.unwrap();
    let spoiled = "UPDATE servers SET spec = jsonb_set(spec, '{redact}', '[\"\"]'), version = version + 1";
    assert_eq!(sqlx::query(spoiled).execute(&mut database).await.unwrap().rows_affected(), 1);
    let log = "WITH next AS (UPDATE meta SET revision = revision + 1 RETURNING revision)
        INSERT INTO revisions (revision, kind, resource_id, removed, at)
        SELECT revision, 'server', $1, false, now() FROM next";
    sqlx::query(log).bind(&server.id).execute(&mut database).await.unwrap();
    sqlx::query("SELECT pg_notify('waffles_revision', '')").execute(&mut database).await.unwrap();
    let started = Instant::now();
    let refusing = || async {
        let (proxies, _) = waffles.proxy_list().await?;
        let named = proxies.iter().filter_map(|proxy| proxy.last_nack.clone());
        Ok::<_, anyhow::Error>(named.filter(|nack| !nack.rejections.is_empty()).collect::<Vec<_>>())
    };
    let refused = eventually(PATIENCE, || async {
        let refused = refusing().await?;
        ensure!(!refused.is_empty(), "nobody refuses it yet");
        Ok(refused)
    })
    .await;
    let shown = started.elapsed();
    assert!(refused[0].rejections[0].reason.contains("redact"), "{refused:?}");
    // Everybody goes on, with what came after it too, and the one that refused it serves its last good form.
    waffles.add_server("other", &upstream.url()).await;
    waffles.set_enabled("other", false).await;
    waffles.settled().await;
    for proxy in &waffles.proxies {
        let answer = call(&proxy.server_url("demo"), &waffles.admin.secret).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let seen = refusing().await.unwrap().len();
    note(
        "P04",
        "proxies that ever saw a poisoned server",
        "≤ 1",
        seen.to_string(),
        "3 proxies".into(),
        seen == 1,
    );
    note(
        "P04",
        "its reason is shown",
        "≤ 2 s",
        format!("{shown:.1?}"),
        "3 proxies".into(),
        shown < Duration::from_secs(2),
    );
    assert_eq!(seen, 1, "of three proxies one tries it");
    assert!(shown < Duration::from_secs(2), "its reason is shown after {shown:?}");

    // A new one of the group is not sent it either, and its mended form goes to all.
    let late = DataPlane::start(&waffles.control_plane, DataPlaneOptions::default()).await;
    let mut late = late;
    late.ready().await;
    assert_eq!(refusing().await.unwrap().len(), 1);
    assert_eq!(call(&late.server_url("demo"), &waffles.admin.secret).await.unwrap().status, 200);
    let mended = "UPDATE servers SET spec = jsonb_set(spec, '{redact}', '[]'), version = version + 1 WHERE name = 'demo'";
    sqlx::query(mended).execute(&mut database).await.unwrap();
    sqlx::query(log).bind(&server.id).execute(&mut database).await.unwrap();
    waffles.set_enabled("other", true).await;
    waffles.settled().await;
    eventually(PATIENCE, || async {
        ensure!(refusing().await?.is_empty(), "it is refused still");
        Ok(())
    })
    .await;
}

/// A snapshot on disk, spoiled in one way.
fn spoil(dice: &mut Dice, dir: &Path, other: &Path) -> String {
    let slot = ["snapshot.a", "snapshot.b"][dice.roll(2)];
    let path = dir.join(slot);
    let mut bytes = std::fs::read(&path).unwrap();
    let what = match dice.roll(7) {
        0 => {
            let at = dice.roll(bytes.len().max(1));
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << dice.roll(8);
            }
            format!("bit at {at}")
        }
        1 => {
            let length = dice.roll(bytes.len().max(1));
            bytes.truncate(length);
            format!("cut to {length}")
        }
        2 => {
            bytes.clear();
            "empty".into()
        }
        3 => {
            let (from, length) = (dice.roll(bytes.len().max(1)), 1 + dice.roll(64));
            for byte in bytes.iter_mut().skip(from).take(length) {
                *byte = dice.roll(256) as u8;
            }
            format!("{length} bytes from {from}")
        }
        4 => {
            bytes.extend((0..1 + dice.roll(100)).map(|n| n as u8));
            "longer".into()
        }
        5 => {
            bytes = std::fs::read(other.join(slot)).unwrap();
            "another proxy's".into()
        }
        _ => {
            let twin = if slot == "snapshot.a" { "snapshot.b" } else { "snapshot.a" };
            bytes = std::fs::read(dir.join(twin)).unwrap();
            format!("{twin} in its place")
        }
    };
    std::fs::write(&path, bytes).unwrap();
    format!("{slot}: {what}")
}

#[test]
fn a_damaged_snapshot_is_the_one_before_or_none() {
    let mutations = wanted("WAFFLES_TEST_MUTATIONS", 200);
    let whole = |names: &[&str], seed: &mut Seed, dir: &Path| {
        for name in names {
            seed.server(name, "http://10.0.0.1:9000/mcp", |_| {});
        }
        seed.save(dir);
        seed.revision += 1;
    };
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut seed, mut other) = (Seed::new(), Seed::new());
    whole(&["one"], &mut seed, ours.path());
    whole(&["two", "three"], &mut seed, ours.path());
    whole(&["evil"], &mut other, theirs.path());
    whole(&["evil-too"], &mut other, theirs.path());
    let mut dice = Dice::new(7);
    let (mut newest, mut before, mut none) = (0, 0, 0);
    for round in 0..mutations {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(ours.path()).unwrap().flatten() {
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        let mut what = spoil(&mut dice, dir.path(), theirs.path());
        if round % 4 == 0 {
            what = format!("{what}, {}", spoil(&mut dice, dir.path(), theirs.path()));
        }
        let found = Disk::open(dir.path()).unwrap().load();
        let names = found.as_ref().map(|snapshot| {
            let mut names: Vec<String> = snapshot.servers().map(|e| e.server.spec.name.clone()).collect();
            names.sort();
            (snapshot.revision, names.join(" "))
        });
        match names.as_ref().map(|(revision, names)| (*revision, names.as_str())) {
            Some((2, "one three two")) => newest += 1,
            Some((1, "one")) => before += 1,
            None => none += 1,
            wrong => panic!("round {round}, {what}: {wrong:?}"),
        }
    }
    note(
        "P03",
        "damaged snapshots that were believed, or half of them",
        "0",
        "0".into(),
        format!("{mutations} mutations: {newest} newest, {before} before it, {none} none"),
        true,
    );
    assert!(newest > 0 && before > 0 && none > 0, "{newest} {before} {none}");
}

#[tokio::test]
async fn four_hundred_days_without_a_control_plane_take_nothing_away() {
    let clock = TestClock::new();
    let upstream = McpServer::start().await;
    let mut seed = Seed::new();
    let alice = seed.principal("alice", "user");
    let key = seed.key(alice, KeyLimits::default());
    let ends =
        seed.key_with(alice, |key| key.not_after = Some(chrono::Utc::now() + chrono::TimeDelta::days(30)));
    seed.server("demo", &upstream.url(), |_| {});
    let options = DataPlaneOptions { env: clock.env(), ..DataPlaneOptions::default() };
    let mut proxy = DataPlane::start_seeded(|dir| seed.save(dir), options).await;
    proxy.ready().await;
    let url = proxy.server_url("demo");
    let token = seed.token(&seed.claims(alice));
    for credential in [&key, &ends, &token] {
        assert_eq!(call(&url, credential).await.unwrap().status, 200);
    }
    let client = McpClient::new(&url).with_bearer(&key).of(Era::Stateless).await;
    let calls = wanted("WAFFLES_TEST_DAYS_CALLS", 400);
    let mut failed = 0;
    for number in 0..calls {
        // A day at a time, the time of day and the time since boot alike.
        if number % calls.div_ceil(400) == 0 {
            clock.pass(Duration::from_secs(86_400));
        }
        let answer = client.call("echo", json!({"x": number})).await;
        failed += usize::from(!answer.is_ok_and(|answer| answer.status == 200));
    }
    note(
        "P02",
        "failed calls, the control plane dead for 400 days",
        "0",
        failed.to_string(),
        format!("{calls} calls"),
        failed == 0,
    );
    assert_eq!(failed, 0);
    // What has an end of its own has ended, and so does its restart change nothing.
    assert_eq!(call(&url, &ends).await.unwrap().status, 401);
    assert_eq!(call(&url, &token).await.unwrap().status, 401);
    proxy.restart().await;
    proxy.ready().await;
    assert_eq!(call(&url, &key).await.unwrap().status, 200);
    assert!(!proxy.program.log().contains("panicked"));
}

#[tokio::test]
async fn a_clock_that_jumps_fails_no_call() {
    let clock = TestClock::new();
    let upstream = McpServer::start().await;
    let mut seed = Seed::new();
    let alice = seed.principal("alice", "user");
    let key = seed.key(alice, KeyLimits::default());
    seed.server("demo", &upstream.url(), |_| {});
    let options = DataPlaneOptions { env: clock.env(), ..DataPlaneOptions::default() };
    let mut proxy = DataPlane::start_seeded(|dir| seed.save(dir), options).await;
    proxy.ready().await;
    let client = McpClient::new(&proxy.server_url("demo")).with_bearer(&key).of(Era::Stateless).await;
    let mut made = 0;
    for seconds in [600, -600, 0, -3600, 0, 1, -1, 400 * 86_400, 0, -86_400] {
        clock.set(seconds);
        for _ in 0..20 {
            let answer = client.call("echo", json!({"x": 1})).await.unwrap();
            assert_eq!(answer.status, 200, "{seconds} s: {}", answer.text());
            made += 1;
        }
    }
    // Records are in the order of the calls, whatever the time said.
    let records = waffles_tests::seed::records(&proxy.data_dir().join("spool"));
    let calls = records.iter().filter(|record| record.action == "mcp.tools/call").count();
    note(
        "P02",
        "failed calls while the clock jumps",
        "0",
        "0".into(),
        format!("{made} calls, 10 jumps"),
        true,
    );
    assert_eq!(calls, made);
    assert!(!proxy.program.log().contains("panicked"));
    proxy.stop().await;
}

/// What the first proxy holds, and how many calls fail there meanwhile.
struct Fleet<'a> {
    waffles: &'a Waffles,
    servers: usize,
    failed: usize,
    calls: usize,
}

impl Fleet<'_> {
    async fn serves(&mut self, fault: &str) {
        for number in 0..20 {
            let proxy = &self.waffles.proxies[number % self.waffles.proxies.len()];
            let answer = call(&proxy.server_url("demo"), &self.waffles.admin.secret).await;
            self.calls += 1;
            if !answer.as_ref().is_ok_and(|answer| answer.status == 200) {
                self.failed += 1;
                eprintln!("{fault}: {answer:?}");
            }
        }
        for proxy in &self.waffles.proxies {
            let detail = detail(proxy).await;
            assert_eq!(detail["holds"]["servers"], self.servers, "{fault}: something was removed: {detail}");
        }
    }

    /// The control plane answers or says that it cannot, in time.
    async fn asked(&self, fault: &str) {
        let started = Instant::now();
        let answer = self.waffles.registry().list_servers(registry::ListServersRequest::default()).await;
        let took = started.elapsed();
        let fine = answer.as_ref().map_or_else(|status| status.code() == tonic::Code::Unavailable, |_| true);
        assert!(fine && took < Duration::from_millis(2500), "{fault}: {:?} after {took:?}", answer.err());
    }

    async fn recovers(&mut self, fault: &str, limit: Duration) -> Duration {
        let started = Instant::now();
        let name = format!("after-{}", self.servers);
        eventually(limit, || async {
            let spec = registry::ServerSpec {
                name: name.clone(),
                endpoints: vec![waffles_tests::waffles::endpoint("http://10.0.0.1:9000/mcp")],
                ..waffles_tests::waffles::spec()
            };
            let request = registry::CreateServerRequest { spec: Some(spec), disabled: false };
            match self.waffles.registry().create_server(request).await {
                Ok(_) => Ok(()),
                Err(status) if status.code() == tonic::Code::AlreadyExists => Ok(()),
                Err(status) => Err(anyhow::Error::from(status)),
            }
        })
        .await;
        let took = started.elapsed();
        self.servers += 1;
        self.waffles.settled().await;
        self.serves(fault).await;
        took
    }
}

#[tokio::test]
async fn eight_faults_of_the_database_remove_nothing() {
    let postgres = Postgres::start().await;
    let url = postgres.database().await;
    let name = url.rsplit('/').next().unwrap().to_owned();
    let control_plane =
        ControlPlaneOptions { database_url: Some(url.clone()), ..ControlPlaneOptions::default() };
    let waffles =
        Waffles::with(WafflesOptions { control_plane, proxies: 2, ..WafflesOptions::default() }).await;
    let upstream = McpServer::start().await;
    waffles.add_server("demo", &upstream.url()).await;
    let limit = Duration::from_secs(20);
    let mut fleet = Fleet { waffles: &waffles, servers: 1, failed: 0, calls: 0 };
    let mut slowest = Duration::ZERO;
    let mut faults = 0;

    for fault in ["killed", "restarted"] {
        postgres.kill9();
        fleet.serves(fault).await;
        fleet.asked(fault).await;
        postgres.restart().await;
        slowest = slowest.max(fleet.recovers(fault, limit).await);
        faults += 1;
    }

    postgres.freeze(true);
    fleet.serves("stopped").await;
    fleet.asked("stopped").await;
    postgres.freeze(false);
    slowest = slowest.max(fleet.recovers("stopped", limit).await);
    faults += 1;

    // Slow, and all connections busy: whoever holds a table holds up everybody who wants it.
    for (fault, table) in [("slow", "servers"), ("pool exhausted", "meta"), ("locked", "revisions")] {
        let mut holder = PgConnection::connect(&url).await.unwrap();
        let lock = format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE");
        sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut holder).await.unwrap();
        let asked = (0..if fault == "pool exhausted" { 30 } else { 3 }).map(|_| fleet.asked(fault));
        futures_util::future::join_all(asked).await;
        fleet.serves(fault).await;
        sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
        slowest = slowest.max(fleet.recovers(fault, limit).await);
        faults += 1;
    }

    let ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'waffles-control-plane'";
    let set = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
    postgres.execute("postgres", &set).await;
    postgres.execute("postgres", ends).await;
    fleet.serves("read-only").await;
    fleet.asked("read-only").await;
    postgres.execute("postgres", &format!("ALTER DATABASE {name} RESET default_transaction_read_only")).await;
    postgres.execute("postgres", ends).await;
    slowest = slowest.max(fleet.recovers("read-only", limit).await);
    faults += 1;

    // Tables that seem to be empty, while something is said to have changed.
    let hide = "DROP POLICY of_tenant ON servers; CREATE POLICY of_tenant ON servers USING (false) WITH CHECK (true);
        DROP POLICY of_tenant ON users; CREATE POLICY of_tenant ON users USING (false) WITH CHECK (true);
        DROP POLICY of_tenant ON tenants; CREATE POLICY of_tenant ON tenants USING (false) WITH CHECK (true);
        WITH next AS (UPDATE meta SET revision = revision + 1 RETURNING revision)
        INSERT INTO revisions (revision, kind, resource_id, removed, at)
        SELECT next.revision, 'server', servers.id::text, false, now() FROM next, servers WHERE servers.name = 'demo';
        SELECT pg_notify('waffles_revision', '')";
    let policy = |table: &str, column: &str| {
        format!(
            "DROP POLICY of_tenant ON {table}; CREATE POLICY of_tenant ON {table}
            USING (CASE WHEN (SELECT current_setting('waffles.scope', true)) = 'everywhere' THEN true
                ELSE {column} = (SELECT current_setting('waffles.tenant', true)) END)"
        )
    };
    let show = [policy("servers", "tenant"), policy("users", "tenant"), policy("tenants", "id")].join(";");
    postgres.execute(&name, hide).await;
    eventually(limit, || async {
        let log = waffles.control_plane.program.log();
        ensure!(log.contains("shows no tenant"), "it has not looked yet");
        Ok(())
    })
    .await;
    fleet.serves("empty").await;
    postgres.execute(&name, &show).await;
    slowest = slowest.max(fleet.recovers("empty", limit).await);
    faults += 1;

    assert_eq!(faults, 8);
    let Fleet { failed, calls, .. } = fleet;
    note("P05", "removals that nobody made", "0", "0".into(), format!("{faults} faults, 2 proxies"), true);
    note("P05", "failed calls meanwhile", "0", failed.to_string(), format!("{calls} calls"), failed == 0);
    note(
        "P05",
        "the control plane writes again after the fault",
        "≤ 2 s",
        format!("{slowest:.1?}"),
        format!("the slowest of {faults}"),
        slowest <= Duration::from_secs(2),
    );
    assert_eq!(failed, 0);
}

#[tokio::test]
async fn a_control_plane_that_starts_on_emptied_tables_publishes_nothing() {
    let postgres = Postgres::shared().await;
    let url = postgres.database().await;
    let control_plane =
        ControlPlaneOptions { database_url: Some(url.clone()), ..ControlPlaneOptions::default() };
    let mut waffles = Waffles::with(WafflesOptions { control_plane, ..WafflesOptions::default() }).await;
    let upstream = McpServer::start().await;
    for name in ["demo", "one", "two"] {
        waffles.add_server(name, &upstream.url()).await;
    }
    waffles.control_plane.kill9().await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(
        "CREATE SCHEMA kept; CREATE TABLE kept.servers AS SELECT * FROM servers; DELETE FROM servers",
    )
    .execute(&mut database)
    .await
    .unwrap();
    let mut command = waffles.control_plane.program_command();
    command.args(["--http-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"]);
    command.args(["--grpc-addr", &waffles.control_plane.grpc.to_string()]);
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let second = waffles_tests::Program::spawn("second", command, log.clone());
    eventually(PATIENCE, || async {
        let log = std::fs::read_to_string(&log).context("it has no log yet")?;
        ensure!(log.contains("stand in the revision log and not in their table"), "{log}");
        Ok(())
    })
    .await;
    // A proxy that knows nothing gets nothing rather than an empty registry, and the one that knows serves.
    let mut late = DataPlane::start(&waffles.control_plane, DataPlaneOptions::default()).await;
    let url = waffles.proxies[0].server_url("demo");
    for _ in 0..20 {
        assert_eq!(call(&url, &waffles.admin.secret).await.unwrap().status, 200);
    }
    let ready = waffles_tests::programs::http_client().get(late.admin_url("/ready")).send().await.unwrap();
    assert_eq!(ready.status(), 503, "it has no configuration");
    sqlx::raw_sql("INSERT INTO servers SELECT * FROM kept.servers").execute(&mut database).await.unwrap();
    late.ready().await;
    assert_eq!(call(&late.server_url("demo"), &waffles.admin.secret).await.unwrap().status, 200);
    drop(second);
}
