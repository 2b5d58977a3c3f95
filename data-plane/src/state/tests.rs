use std::collections::BTreeSet;

use chrono::DateTime;
use url::Url;
use waffles_core::server::{Credential, Endpoint, Server, Spec};
use waffles_core::snapshot::{Kind, ResourceKey, Settings};
use waffles_core::wire::{Update, server_resource, settings_resource};

use super::*;

pub(crate) fn settings() -> pb::Resource {
    let seal = SealRing::new(vec![SealKey::new(1, &[2; 32])]);
    settings_resource(&Settings::new([1; 32], seal, "waffles".into(), "waffles".into()))
}

pub(crate) fn server(n: u128) -> pb::Resource {
    server_resource(&Server {
        id: Uuid::from_u128(n),
        tenant: "default".into(),
        spec: Spec {
            name: format!("server-{n}"),
            endpoints: vec![Endpoint::at(Url::parse("https://mcp.example.com/mcp").unwrap())],
            ..Spec::default()
        },
        credential: Credential::Bearer { token: "a-secret-token".into() },
        enabled: true,
        version: 1,
        created_at: DateTime::from_timestamp(1, 0).unwrap(),
        updated_at: DateTime::from_timestamp(2, 0).unwrap(),
    })
}

pub(crate) fn snapshot(lineage: &str, revision: u64, servers: u128) -> Snapshot {
    let mut resources = vec![settings()];
    resources.extend((1..=servers).map(server));
    let update = Update { lineage: lineage.into(), revision, full: true, resources, removed: vec![] };
    let (snapshot, refusals) = Snapshot::default().with_update(update);
    assert_eq!(refusals, []);
    snapshot
}

fn held(dir: &Path) -> Option<(String, u64)> {
    Disk::open(dir).unwrap().load().map(|snapshot| (snapshot.lineage, snapshot.revision))
}

#[test]
fn the_last_snapshot_comes_back_with_what_it_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(held(dir.path()), None);
    let disk = Disk::open(dir.path()).unwrap();
    for revision in 1..=5 {
        let mut next = snapshot("l", revision, u128::from(revision));
        next.refused = BTreeSet::from([ResourceKey::new(Kind::Server, "refused")]);
        disk.save(&next).unwrap();
        let found = Disk::open(dir.path()).unwrap().load().unwrap();
        assert_eq!(found.revision, revision);
        assert_eq!(found.servers().count() as u64, revision);
        assert_eq!(found.refused, next.refused);
    }
    assert!(!disk.is_foreign());
}

#[test]
fn no_secret_lies_open_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    Disk::open(dir.path()).unwrap().save(&snapshot("l", 1, 1)).unwrap();
    for entry in fs::read_dir(dir.path()).unwrap() {
        use std::os::unix::fs::PermissionsExt as _;
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        assert!(!bytes.windows(14).any(|part| part == b"a-secret-token"), "{path:?}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
    }
}

#[test]
fn a_damaged_snapshot_gives_way_to_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path()).unwrap();
    disk.save(&snapshot("l", 1, 1)).unwrap();
    disk.save(&snapshot("l", 2, 2)).unwrap();
    let newest = dir.path().join("snapshot.b");
    let whole = fs::read(&newest).unwrap();
    let mut mutations: Vec<Vec<u8>> = (0..whole.len()).step_by(3).map(|n| whole[..n].to_vec()).collect();
    for at in 0..whole.len() {
        let mut bad = whole.clone();
        bad[at] ^= 1 << (at % 8);
        mutations.push(bad);
    }
    mutations.push([whole.as_slice(), b"more"].concat());
    for bad in mutations {
        fs::write(&newest, &bad).unwrap();
        assert_eq!(held(dir.path()), Some(("l".into(), 1)));
    }
    fs::write(&newest, &whole).unwrap();
    assert_eq!(held(dir.path()), Some(("l".into(), 2)));
}

#[test]
fn with_both_damaged_there_is_none_and_the_next_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path()).unwrap();
    disk.save(&snapshot("l", 1, 1)).unwrap();
    disk.save(&snapshot("l", 2, 1)).unwrap();
    for slot in SLOTS {
        fs::write(dir.path().join(slot), b"nonsense").unwrap();
    }
    assert_eq!(held(dir.path()), None);
    Disk::open(dir.path()).unwrap().save(&snapshot("l", 3, 1)).unwrap();
    assert_eq!(held(dir.path()), Some(("l".into(), 3)));
}

#[test]
fn an_old_file_put_in_place_of_the_newest_does_not_win() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path()).unwrap();
    disk.save(&snapshot("l", 1, 1)).unwrap();
    let old = fs::read(dir.path().join("snapshot.a")).unwrap();
    disk.save(&snapshot("l", 2, 1)).unwrap();
    disk.save(&snapshot("l", 3, 1)).unwrap();
    fs::write(dir.path().join("snapshot.a"), &old).unwrap();
    assert_eq!(held(dir.path()), Some(("l".into(), 2)));
}

#[test]
fn an_older_revision_is_not_written_and_another_lineage_is() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path()).unwrap();
    disk.save(&snapshot("l", 7, 1)).unwrap();
    let refused = disk.save(&snapshot("l", 6, 1));
    assert!(matches!(refused, Err(DiskError::Older { offered: 6, held: 7 })), "{refused:?}");
    disk.save(&snapshot("l", 7, 2)).unwrap();
    disk.save(&snapshot("other", 2, 1)).unwrap();
    assert_eq!(held(dir.path()), Some(("other".into(), 2)));
}

#[test]
fn another_proxy_s_snapshot_does_not_open() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Disk::open(one.path()).unwrap().save(&snapshot("l", 1, 1)).unwrap();
    Disk::open(two.path()).unwrap();
    fs::copy(one.path().join("snapshot.a"), two.path().join("snapshot.a")).unwrap();
    assert_eq!(held(two.path()), None);
}

#[test]
fn a_damaged_key_costs_the_snapshot_and_not_the_start() {
    let dir = tempfile::tempdir().unwrap();
    Disk::open(dir.path()).unwrap().save(&snapshot("l", 1, 1)).unwrap();
    fs::write(dir.path().join("state.key"), b"short").unwrap();
    assert_eq!(held(dir.path()), None);
}

#[test]
fn a_proxy_keeps_its_identity() {
    let dir = tempfile::tempdir().unwrap();
    let id = proxy_id(dir.path()).unwrap();
    assert_eq!(proxy_id(dir.path()).unwrap(), id);
    fs::write(dir.path().join("proxy.id"), "nonsense").unwrap();
    assert!(proxy_id(dir.path()).unwrap_err().to_string().contains("proxy.id"));
}

#[test]
fn ten_thousand_servers_are_loaded_well_within_the_second_they_may_take() {
    let dir = tempfile::tempdir().unwrap();
    Disk::open(dir.path()).unwrap().save(&snapshot("l", 1, 10_000)).unwrap();
    let start = tokio::time::Instant::now();
    assert_eq!(held(dir.path()), Some(("l".into(), 1)));
    eprintln!("loaded in {:?}", start.elapsed());
}

#[tokio::test]
async fn a_replacement_is_told_to_those_who_follow() {
    let current = Current::new(Snapshot::default());
    let mut changes = current.changes();
    assert!(!changes.has_changed().unwrap());
    current.replace(snapshot("l", 4, 1));
    changes.changed().await.unwrap();
    assert_eq!(*changes.borrow_and_update(), 4);
    assert_eq!(current.load().revision, 4);
    current.replace(snapshot("l", 4, 2));
    assert!(changes.has_changed().unwrap(), "the same revision may hold something else");
}
