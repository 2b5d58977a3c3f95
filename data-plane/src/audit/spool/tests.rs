use std::fs;

use tempfile::TempDir;

use super::*;

fn small() -> Limits {
    Limits { disk: 1 << 20, segment: 1 << 12, ring: 1 << 16, sync_every: Duration::from_millis(1) }
}

fn open(dir: &Path) -> Spool {
    Spool::open(dir, small()).unwrap()
}

fn append(spool: &Spool, payload: &[u8]) {
    let mut frame = vec![0; HEAD];
    frame.extend_from_slice(payload);
    spool.append(&mut frame);
}

fn text(n: u64) -> Vec<u8> {
    format!("record {n} {}", "x".repeat(usize::try_from(n % 90).unwrap())).into_bytes()
}

fn fill(spool: &Spool, numbers: std::ops::RangeInclusive<u64>) {
    for n in numbers {
        append(spool, &text(n));
    }
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("never: {what}");
}

fn settle(spool: &Spool) {
    eventually("synced", || {
        let stored = spool.shared.book.lock().stored;
        *spool.shared.synced.borrow() == stored
    });
}

fn read_all(spool: &Spool, after: u64) -> Vec<Record> {
    settle(spool);
    let mut cursor = Cursor::after(after);
    let mut all = Vec::new();
    loop {
        let records = spool.read(&mut cursor, 7, 1 << 16).unwrap();
        if records.is_empty() {
            return all;
        }
        all.extend(records);
    }
}

fn numbers(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.sequence).collect()
}

/// What a killed process leaves: the files as they are, without the spool's being closed.
fn killed(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

fn segment_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "seg"));
    files.sort();
    files
}

#[test]
fn records_come_back_in_order_over_segments_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let id = spool.id();
    fill(&spool, 1..=300);
    drop(spool);
    let spool = open(dir.path());
    fill(&spool, 301..=400);
    assert_eq!(spool.id(), id);
    assert!(segment_files(dir.path()).len() > 3);
    let records = read_all(&spool, 0);
    assert_eq!(numbers(&records), (1..=400).collect::<Vec<_>>());
    assert!(records.iter().all(|record| record.payload == text(record.sequence)));
    assert_eq!(numbers(&read_all(&spool, 390)), (391..=400).collect::<Vec<_>>());
    assert_eq!((spool.depth(), spool.lost()), (400, 0));
}

#[test]
fn a_killed_proxy_loses_no_record_that_was_appended() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    for n in 1..=200 {
        append(&spool, &text(n));
        if n % 17 == 0 {
            let left = killed(dir.path());
            let after = open(left.path());
            assert_eq!(numbers(&read_all(&after, 0)), (1..=n).collect::<Vec<_>>());
            append(&after, b"next");
            assert_eq!(read_all(&after, n)[0].sequence, n + 1);
        }
    }
}

#[test]
fn a_torn_end_costs_only_the_record_that_was_being_written() {
    let dir = tempfile::tempdir().unwrap();
    fill(&open(dir.path()), 1..=8);
    let file = &segment_files(dir.path())[0];
    let whole = fs::read(file).unwrap();
    for cut in 0..whole.len() {
        fs::write(file, &whole[..cut]).unwrap();
        let copy = killed(dir.path());
        let spool = open(copy.path());
        let before = read_all(&spool, 0);
        assert!(before.iter().all(|record| record.payload == text(record.sequence)), "cut at {cut}");
        let kept = before.len() as u64;
        assert_eq!(numbers(&before), (1..=kept).collect::<Vec<_>>(), "cut at {cut}");
        append(&spool, b"after");
        append(&spool, b"after");
        let after: Vec<_> = read_all(&spool, kept).into_iter().map(|record| record.payload).collect();
        assert_eq!(after, ["after", "after"], "cut at {cut}");
    }
}

#[test]
fn a_damaged_byte_costs_one_record_at_the_most_and_never_makes_a_wrong_one() {
    let dir = tempfile::tempdir().unwrap();
    fill(&open(dir.path()), 1..=6);
    let file = &segment_files(dir.path())[0];
    let whole = fs::read(file).unwrap();
    for at in 0..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = whole.clone();
            bad[at] ^= flip;
            fs::write(file, &bad).unwrap();
            let copy = killed(dir.path());
            let spool = open(copy.path());
            append(&spool, b"after");
            let mut records = read_all(&spool, 0);
            assert_eq!(records.pop().unwrap().payload, "after", "byte {at}");
            assert!(records.len() >= 5, "byte {at}: {records:?}");
            assert!(records.iter().all(|record| record.payload == text(record.sequence)), "byte {at}");
        }
    }
}

#[test]
fn damage_inside_an_older_segment_leaves_the_rest_readable() {
    let dir = tempfile::tempdir().unwrap();
    fill(&open(dir.path()), 1..=300);
    let files = segment_files(dir.path());
    let whole = fs::read(&files[1]).unwrap();
    for bad in [vec![], whole[..30].to_vec(), vec![0xff; whole.len()], whole[..whole.len() / 2].to_vec()] {
        fs::write(&files[1], &bad).unwrap();
        let copy = killed(dir.path());
        let spool = open(copy.path());
        let records = read_all(&spool, 0);
        assert!(records.len() > 200);
        assert_eq!(records.last().unwrap().sequence, 300);
        assert!(records.iter().all(|record| record.payload == text(record.sequence)));
    }
}

#[test]
fn bytes_inside_a_payload_are_not_taken_for_a_record() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let spool = open(dir.path());
    append(&spool, b"1");
    // A record of another spool, whole, as a client could send it: it does not know this one's id.
    let foreign = open(other.path());
    fill(&foreign, 1..=3);
    drop(foreign);
    let inner = fs::read(&segment_files(other.path())[0]).unwrap();
    append(&spool, &inner);
    append(&spool, b"3");
    drop(spool);
    let file = &segment_files(dir.path())[0];
    let mut bytes = fs::read(file).unwrap();
    // Damages the second record's head, so that its payload is searched.
    bytes[24 + HEAD + 1 + 2] ^= 0xff;
    fs::write(file, &bytes).unwrap();
    assert_eq!(numbers(&read_all(&open(dir.path()), 0)), [1, 3]);
}

#[test]
fn what_is_acknowledged_is_cut_off_and_not_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    fill(&spool, 1..=300);
    settle(&spool);
    let before = segment_files(dir.path()).len();
    spool.acknowledge(250);
    spool.acknowledge(90);
    assert_eq!((spool.acknowledged(), spool.depth()), (250, 50));
    eventually("segments dropped", || segment_files(dir.path()).len() < before - 2);
    eventually("position noted", || dir.path().join("position").exists());
    drop(spool);
    let spool = open(dir.path());
    assert_eq!((spool.acknowledged(), spool.depth()), (250, 50));
    spool.acknowledge(u64::MAX);
    assert_eq!((spool.acknowledged(), spool.depth()), (300, 0));
    fill(&spool, 301..=302);
    assert_eq!(numbers(&read_all(&spool, 300)), [301, 302]);
}

#[test]
fn a_number_is_never_used_twice_though_the_position_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    fill(&spool, 1..=300);
    settle(&spool);
    spool.acknowledge(300);
    eventually("segments dropped", || segment_files(dir.path()).len() == 1);
    drop(spool);
    fs::write(dir.path().join("position"), b"").unwrap();
    let spool = open(dir.path());
    append(&spool, b"next");
    assert_eq!(read_all(&spool, 300).iter().map(|record| record.sequence).next(), Some(301));
}

#[test]
fn a_lost_id_is_found_in_a_segment_and_an_empty_spool_gets_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let id = spool.id();
    fill(&spool, 1..=3);
    drop(spool);
    for bad in ["", "nonsense"] {
        fs::write(dir.path().join("spool.id"), bad).unwrap();
        let spool = open(dir.path());
        assert_eq!(spool.id(), id);
        assert_eq!(read_all(&spool, 0).len(), 3);
    }
    for file in segment_files(dir.path()) {
        fs::remove_file(file).unwrap();
    }
    fs::remove_file(dir.path().join("position")).unwrap();
    let spool = open(dir.path());
    assert_ne!(spool.id(), id, "numbers begin anew, so that the id must");
    append(&spool, b"first");
    assert_eq!(numbers(&read_all(&spool, 0)), [1]);
}

#[test]
fn two_proxies_never_share_a_spool() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    assert!(matches!(Spool::open(dir.path(), small()), Err(OpenError::InUse { .. })));
    drop(spool);
    open(dir.path());
}

#[test]
fn a_full_spool_keeps_records_in_memory_and_counts_exactly_those_it_loses() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { disk: 8 << 10, segment: 1 << 10, ring: 4 << 10, ..small() };
    let spool = Spool::open(dir.path(), limits).unwrap();
    assert!(spool.is_sound());
    fill(&spool, 1..=500);
    assert!(!spool.is_sound());
    let (lost, depth) = (spool.lost(), spool.depth());
    assert!(lost > 300, "{lost}");
    assert_eq!(depth, 500 - lost);
    let mut received = Vec::new();
    eventually("everything read", || {
        let records = read_all(&spool, spool.acknowledged());
        received.extend(numbers(&records));
        spool.acknowledge(received.last().copied().unwrap_or(0));
        spool.is_sound()
    });
    fill(&spool, 501..=505);
    received.extend(numbers(&read_all(&spool, received.last().copied().unwrap())));
    assert_eq!(spool.lost(), lost);
    assert_eq!(received.len() as u64 + lost, 505);
    assert!(received.is_sorted_by(|a, b| a < b));
    assert_eq!(received[received.len() - 5..], [501, 502, 503, 504, 505]);
    spool.acknowledge(505);
    assert_eq!(spool.depth(), 0);
    drop(spool);
    assert_eq!(open(dir.path()).lost(), lost, "the count outlives the process");
}

#[test]
fn strangers_fill_half_of_a_spool_and_leave_the_rest_to_callers() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { disk: 8 << 10, segment: 1 << 10, ring: 4 << 10, ..small() };
    let spool = Spool::open(dir.path(), limits).unwrap();
    for n in 1..=500 {
        let mut frame = vec![0; HEAD];
        frame.extend_from_slice(&text(n));
        spool.append_of_stranger(&mut frame);
    }
    let lost = spool.lost();
    assert!(lost > 300, "{lost}");
    assert_eq!(spool.depth(), 500 - lost);
    assert!(spool.is_sound(), "strangers stop strict calls");
    append(&spool, b"a caller");
    assert_eq!((spool.lost(), spool.depth()), (lost, 501 - lost));
    assert_eq!(read_all(&spool, 0).last().unwrap().payload, "a caller");
}

#[test]
fn what_the_disk_does_not_take_waits_in_memory_until_it_does() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("spool");
    let spool = open(&dir);
    fill(&spool, 1..=100);
    settle(&spool);
    let away = parent.path().join("away");
    fs::rename(&dir, &away).unwrap();
    fill(&spool, 101..=300);
    assert!(!spool.is_sound());
    assert_eq!((spool.depth(), spool.lost()), (300, 0));
    fs::rename(&away, &dir).unwrap();
    eventually("sound again", || spool.is_sound());
    assert_eq!(numbers(&read_all(&spool, 0)), (1..=300).collect::<Vec<_>>());
}

#[test]
fn numbers_lost_before_a_restart_are_not_used_again() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("spool");
    let spool = Spool::open(&dir, Limits { ring: 1 << 10, ..small() }).unwrap();
    fill(&spool, 1..=40);
    settle(&spool);
    let away = parent.path().join("away");
    fs::rename(&dir, &away).unwrap();
    fill(&spool, 41..=300);
    let lost = spool.lost();
    assert!(lost > 0);
    fs::rename(&away, &dir).unwrap();
    eventually("sound again", || spool.is_sound());
    drop(spool);
    let spool = open(&dir);
    append(&spool, b"next");
    let records = read_all(&spool, 0);
    assert_eq!(records.last().unwrap().sequence, 301);
    assert_eq!(records.len() as u64 + spool.lost(), 301);
}

#[test]
fn several_threads_may_append_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| fill(&spool, 1..=500));
        }
    });
    assert_eq!(numbers(&read_all(&spool, 0)), (1..=2000).collect::<Vec<_>>());
}

/// Whether each record follows from the one before it, from the first one of the spool on.
fn is_chained(spool: &Spool, records: &[Record]) -> bool {
    let mut previous = Hash::START;
    records.iter().all(|record| {
        let digest = trail::digest(&record.payload);
        previous = trail::link(spool.id(), record.sequence, &previous, &digest);
        record.hash == Some(previous)
    })
}

#[test]
fn the_chain_goes_on_over_kills_restarts_and_new_segments() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    fill(&spool, 1..=150);
    assert!(is_chained(&spool, &read_all(&spool, 0)));
    let left = killed(dir.path());
    drop(spool);
    for path in [dir.path(), left.path()] {
        let spool = open(path);
        fill(&spool, 151..=200);
        let records = read_all(&spool, 0);
        assert!(records.len() == 200 && is_chained(&spool, &records));
        drop(spool);
        // Torn at the end, begun and never used, and without its position.
        let last = segment_files(path).pop().unwrap();
        let whole = fs::read(&last).unwrap();
        fs::write(&last, &whole[..whole.len() - 5]).unwrap();
        fs::remove_file(path.join("position")).unwrap();
        let spool = open(path);
        append(&spool, b"after");
        let records = read_all(&spool, 0);
        assert!(records.len() == 200 && is_chained(&spool, &records));
    }
}

#[test]
fn the_chain_goes_on_behind_what_was_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    fill(&spool, 1..=300);
    let before = read_all(&spool, 0);
    spool.acknowledge(300);
    eventually("segments dropped", || segment_files(dir.path()).len() == 1);
    drop(spool);
    for file in segment_files(dir.path()) {
        fs::remove_file(file).unwrap();
    }
    let spool = open(dir.path());
    append(&spool, b"next");
    let mut records = before;
    records.extend(read_all(&spool, 300));
    assert!(records.len() == 301 && is_chained(&spool, &records));
}

#[test]
fn the_chain_goes_on_over_what_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { disk: 8 << 10, segment: 1 << 10, ring: 4 << 10, ..small() };
    let spool = Spool::open(dir.path(), limits).unwrap();
    fill(&spool, 1..=500);
    let lost = spool.lost();
    let mut records = Vec::new();
    eventually("everything read", || {
        records.extend(read_all(&spool, spool.acknowledged()));
        spool.acknowledge(records.last().map_or(0, |record: &Record| record.sequence));
        spool.is_sound()
    });
    fill(&spool, 501..=505);
    records.extend(read_all(&spool, records.last().unwrap().sequence));
    assert!(lost > 100 && records.len() as u64 + lost == 505);
    assert!(is_chained(&spool, &records), "a gap is no break");
}

#[test]
fn what_the_version_before_wrote_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let id = spool.id();
    fill(&spool, 1..=1);
    drop(spool);
    let mut seed = Hasher::new();
    seed.update(id.as_bytes());
    let mut bytes = [b"WFSPOOL1".as_slice(), id.as_bytes()].concat();
    for sequence in 1..=3_u64 {
        let payload = text(sequence);
        let mut checksum = seed.clone();
        checksum.update(&length(&payload).to_le_bytes());
        checksum.update(&payload);
        checksum.update(&sequence.to_le_bytes());
        bytes.extend_from_slice(&length(&payload).to_le_bytes());
        bytes.extend_from_slice(&checksum.finalize().to_le_bytes());
        bytes.extend_from_slice(&sequence.to_le_bytes());
        bytes.extend_from_slice(&payload);
    }
    fs::write(&segment_files(dir.path())[0], bytes).unwrap();
    fs::remove_file(dir.path().join("position")).unwrap();
    let spool = open(dir.path());
    append(&spool, &text(4));
    let records = read_all(&spool, 0);
    assert_eq!(numbers(&records), [1, 2, 3, 4]);
    assert!(records.iter().all(|record| record.payload == text(record.sequence)));
    assert_eq!(
        records.iter().map(|record| record.hash.is_some()).collect::<Vec<_>>(),
        [false, false, false, true]
    );
}
