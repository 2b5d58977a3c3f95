use super::super::{Head, Signer};
use super::*;
use crate::audit::Event;

const CHAIN: Uuid = Uuid::from_u128(7);
const PROXY: Uuid = Uuid::from_u128(8);

fn signer() -> Signer {
    Signer::new(&[3; 32])
}

fn time(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 123_456_000).unwrap()
}

fn event(sequence: u64) -> Event {
    let mut event = Event::new(Uuid::from_u128(u128::from(sequence) + 100), time(sequence as i64));
    event.tenant = "default".into();
    event.action = "mcp.tools/call".into();
    event.target = format!("tool-{sequence}");
    event
}

/// A chain of these records, in the order of writing.
fn chained(numbers: &[u64]) -> Vec<Recorded> {
    let mut previous = Hash::START;
    let mut records = Vec::new();
    for number in numbers {
        let link = Link::new(CHAIN, *number, &previous, &event(*number));
        previous = link.hash;
        records.push(Recorded::own(Some((CHAIN, *number, link)), event(*number), false));
    }
    records
}

fn bound(record: &Recorded) -> Bound {
    Bound { sequence: record.sequence, hash: record.hash.unwrap() }
}

/// Lines of an export with checkpoints at these records.
fn export(whole: &[Recorded], records: Vec<Recorded>, heads: &[u64], forgotten: Vec<Forgotten>) -> Vec<Line> {
    let header = Header {
        version: 1,
        tenant: "default".into(),
        exported_at: time(1000),
        since: None,
        payloads: true,
        public_key: signer().public_key(),
    };
    let mut lines = vec![Line::Export(header)];
    let mut previous = Hash::START;
    for (number, sequence) in (1..).zip(heads) {
        let record = whole.iter().find(|record| record.sequence == *sequence).unwrap();
        let heads = vec![Head { chain: CHAIN, sequence: *sequence, hash: record.hash.unwrap() }];
        let checkpoint =
            Checkpoint::sign(&signer(), number, time(*sequence as i64 + 60), previous, false, heads);
        previous = checkpoint.hash();
        lines.push(Line::Checkpoint(checkpoint));
    }
    let through = whole.last().map(bound);
    lines.push(Line::Chain(Chain { chain: CHAIN, proxy: Some(PROXY), after: None, through }));
    let end = End { records: records.len() as u64, checkpoints: heads.len() as u64 };
    lines.extend(records.into_iter().map(|record| Line::Record(Box::new(record))));
    lines.extend(forgotten.into_iter().map(Line::Forgotten));
    lines.push(Line::End(end));
    lines
}

/// Through JSON, as in a file.
fn verify(lines: &[Line]) -> Report {
    let mut verifier = Verifier::new(Some(signer().public_key()));
    for (number, line) in (1..).zip(lines) {
        verifier.text(number, &serde_json::to_string(line).unwrap());
    }
    verifier.finish()
}

fn ranges(report: &Report) -> Vec<(u64, u64)> {
    report.findings.iter().map(|f| (f.first.unwrap_or(0), f.last.unwrap_or(0))).collect()
}

#[test]
fn a_trail_as_it_was_written_has_no_findings() {
    let whole = chained(&[1, 2, 3, 7, 8, 9]);
    let report = verify(&export(&whole, whole.clone(), &[3, 8], Vec::new()));
    assert_eq!(report.findings, []);
    assert_eq!((report.events, report.lost, report.uncovered, report.checkpoints), (6, 3, 1, 2));
}

#[test]
fn an_edited_record_is_found_where_it_is() {
    let whole = chained(&[1, 2, 3, 4, 5, 6]);
    for place in 0..5 {
        let mut records = whole.clone();
        records[place].event.as_mut().unwrap().target = "harmless".into();
        let report = verify(&export(&whole, records, &[1, 2, 3, 4, 5], Vec::new()));
        let number = place as u64 + 1;
        assert_eq!(ranges(&report), [(number, number)], "{report:#?}");
        assert!(report.findings[0].event.is_some() && report.findings[0].proxy == Some(PROXY));
    }
}

#[test]
fn an_edit_whose_hashes_were_made_anew_is_found_by_the_checkpoints() {
    let whole = chained(&[1, 2, 3, 4, 5, 6]);
    let mut records = whole.clone();
    records[3].event.as_mut().unwrap().target = "harmless".into();
    let mut previous = records[2].hash.unwrap();
    for record in records.iter_mut().skip(3) {
        let link = Link::new(CHAIN, record.sequence, &previous, record.event.as_ref().unwrap());
        previous = link.hash;
        record.hash = Some(link.hash);
    }
    let report = verify(&export(&whole, records.clone(), &[2, 5], Vec::new()));
    assert_eq!(ranges(&report)[0], (3, 5), "{report:#?}");
    // The one record alone: the next one gives it away.
    records[4..].clone_from_slice(&whole[4..]);
    let report = verify(&export(&whole, records, &[2, 5], Vec::new()));
    assert_eq!(ranges(&report), [(4, 5)], "{report:#?}");
}

#[test]
fn what_was_taken_out_put_in_or_moved_is_found() {
    let whole = chained(&[1, 2, 3, 7, 8, 9]);
    let heads = [3, 9];
    let check = |records: Vec<Recorded>, expected: &[(u64, u64)]| {
        let report = verify(&export(&whole, records, &heads, Vec::new()));
        assert_eq!(ranges(&report), expected, "{report:#?}");
    };
    let without = |numbers: &[u64]| {
        let mut records = whole.clone();
        records.retain(|record| !numbers.contains(&record.sequence));
        records
    };
    check(without(&[2]), &[(1, 3)]);
    check(without(&[3]), &[(2, 7)]);
    check(without(&[1, 2]), &[(1, 3)]);
    check(without(&[8, 9]), &[(8, 9)]);
    check(without(&[1, 2, 3, 7, 8, 9]), &[(1, 9)]);
    let mut swapped = whole.clone();
    swapped.swap(1, 2);
    check(swapped, &[(1, 3), (2, 2)]);
    // Into the gap of what was lost, with a hash that fits.
    let mut inserted = whole.clone();
    let link = Link::new(CHAIN, 5, &whole[2].hash.unwrap(), &event(5));
    inserted.insert(3, Recorded::own(Some((CHAIN, 5, link)), event(5), false));
    check(inserted, &[(4, 5)]);
    let mut doubled = whole.clone();
    let mut double = whole[4].clone();
    double.event.as_mut().unwrap().target = "other".into();
    doubled.insert(4, double);
    let report = verify(&export(&whole, doubled, &heads, Vec::new()));
    assert!(!report.is_clean() && ranges(&report).iter().all(|(_, last)| *last == 8), "{report:#?}");
    let mut bare = whole.clone();
    bare.insert(2, Recorded::own(None, event(50), false));
    check(bare, &[(0, 0)]);
}

#[test]
fn what_was_dropped_because_of_its_age_is_told_from_what_was_taken_out() {
    let whole = chained(&[1, 2, 3, 7, 8, 9, 10]);
    let drop = |first: usize, last: usize| {
        let previous = if first == 0 { Hash::START } else { whole[first - 1].hash.unwrap() };
        let place = (whole[first].sequence, whole[last].sequence);
        Forgotten::sign(&signer(), CHAIN, place, (previous, whole[last].hash.unwrap()), time(0))
    };
    let kept = |numbers: &[usize]| numbers.iter().map(|place| whole[*place].clone()).collect::<Vec<_>>();
    let heads = [2, 8];
    let report = verify(&export(&whole, kept(&[4, 5, 6]), &heads, vec![drop(0, 1), drop(2, 3)]));
    assert_eq!(report.findings, []);
    assert_eq!(report.forgotten, 7);
    assert!(report.forgotten_before.is_some());
    let report = verify(&export(&whole, kept(&[0, 2, 5, 6]), &heads, vec![drop(1, 1), drop(3, 4)]));
    assert_eq!(report.findings, []);
    let report = verify(&export(&whole, Vec::new(), &heads, vec![drop(0, 6)]));
    assert_eq!(report.findings, []);
    // One more than was dropped is gone.
    let report = verify(&export(&whole, kept(&[5, 6]), &heads, vec![drop(0, 1), drop(2, 3)]));
    assert_eq!(ranges(&report), [(8, 9)], "{report:#?}");
    let mut forged = drop(0, 4);
    forged.last = 9;
    let report = verify(&export(&whole, kept(&[6]), &heads, vec![forged]));
    assert!(!report.is_clean());
}

#[test]
fn a_checkpoint_cannot_be_altered_or_taken_out() {
    let whole = chained(&[1, 2, 3, 4, 5, 6]);
    let lines = export(&whole, whole.clone(), &[2, 4, 6], Vec::new());
    for place in 1..=3 {
        let mut altered = lines.clone();
        let Line::Checkpoint(checkpoint) = &mut altered[place] else { unreachable!() };
        checkpoint.heads[0].sequence = 1;
        let report = verify(&altered);
        assert_eq!(report.findings[0].checkpoint, Some(place as u64), "{report:#?}");
        let mut removed = lines.clone();
        removed.remove(place);
        assert!(!verify(&removed).is_clean());
    }
    let mut other = Verifier::new(Some(Signer::new(&[4; 32]).public_key()));
    lines.into_iter().zip(1..).for_each(|(line, number)| other.line(number, line));
    assert!(other.finish().findings.len() > 3, "another key");
}

#[test]
fn what_the_control_plane_saw_come_otherwise_is_noted_and_no_finding() {
    let mut whole = chained(&[1, 2, 3]);
    // The proxy lost record 4 from its disk after it had been linked, and 6 was cleaned when it was taken in.
    let lost = Link::new(CHAIN, 4, &whole[2].hash.unwrap(), &event(4));
    let five = Link::new(CHAIN, 5, &lost.hash, &event(5));
    let given = Link::given(&signer(), (CHAIN, 5), &whole[2].hash.unwrap(), &event(5), five.hash);
    whole.push(Recorded::own(Some((CHAIN, 5, given)), event(5), false));
    let six = Link::new(CHAIN, 6, &five.hash, &event(66));
    let given = Link::given(&signer(), (CHAIN, 6), &five.hash, &event(6), six.hash);
    whole.push(Recorded::own(Some((CHAIN, 6, given)), event(6), false));
    let seven = Link::given(&signer(), (CHAIN, 7), &six.hash, &event(7), link_of(7, &six.hash));
    assert_eq!(seven.attest, None);
    whole.push(Recorded::own(Some((CHAIN, 7, seven)), event(7), false));
    let report = verify(&export(&whole, whole.clone(), &[7], Vec::new()));
    assert_eq!(report.findings, []);
    assert_eq!((report.attested, report.lost), (2, 1));
    for place in [3, 4] {
        let mut records = whole.clone();
        records[place].event.as_mut().unwrap().target = "harmless".into();
        assert!(!verify(&export(&whole, records, &[7], Vec::new())).is_clean());
        let mut records = whole.clone();
        records.remove(place - 1);
        assert!(!verify(&export(&whole, records, &[7], Vec::new())).is_clean());
    }
}

fn link_of(sequence: u64, previous: &Hash) -> Hash {
    Link::new(CHAIN, sequence, previous, &event(sequence)).hash
}

#[test]
fn another_tenants_records_are_verified_without_their_content() {
    let whole = chained(&[1, 2, 3, 4]);
    let mut records = whole.clone();
    let link = Link { digest: digest_of(&event(2)), hash: whole[1].hash.unwrap(), attest: None };
    records[1] = Recorded::foreign(Some((CHAIN, 2, link)));
    let report = verify(&export(&whole, records.clone(), &[4], Vec::new()));
    assert_eq!((report.findings.len(), report.foreign, report.events), (0, 1, 3));
    records[1].digest = Some(digest_of(&event(3)));
    assert_eq!(ranges(&verify(&export(&whole, records, &[4], Vec::new()))), [(1, 2)]);
}

#[test]
fn an_export_that_was_cut_off_says_so() {
    let whole = chained(&[1, 2, 3, 4]);
    let lines = export(&whole, whole.clone(), &[4], Vec::new());
    for most in 0..lines.len() {
        assert!(!verify(&lines[..most]).is_clean(), "{most} lines");
    }
    let mut verifier = Verifier::new(None);
    verifier.text(1, "{\"kind\":\"other\"}");
    assert!(verifier.finish().findings[0].to_string().contains("line 1"));
}
