//! Reads an export line by line and says what in it is not as it was written: nothing of it is believed but the public key.

use std::collections::{HashMap, VecDeque};
use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::line::{Bound, Chain, End, Header, Line, Recorded};
use super::{Checkpoint, Forgotten, Hash, Link, OWN_CHAIN, PublicKey, attested, digest_of};

/// How far back an insertion is looked for.
const MOST_INSERTED: usize = 64;
/// Findings that are kept; more are counted.
const MOST_FINDINGS: usize = 10_000;

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The line of the export, from 1; 0 where it is about what is not there.
    pub line: u64,
    /// The chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chain: Option<Uuid>,
    /// The proxy whose chain it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Uuid>,
    /// The first record that it may be about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<u64>,
    /// The last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<u64>,
    /// The checkpoint that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<u64>,
    /// The event that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<Uuid>,
    /// What is wrong.
    pub problem: String,
}

impl Finding {
    fn new(line: u64, problem: impl Into<String>) -> Self {
        Self {
            line,
            chain: None,
            proxy: None,
            first: None,
            last: None,
            checkpoint: None,
            event: None,
            problem: problem.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.chain, self.proxy) {
            (Some(OWN_CHAIN), _) => write!(f, "control plane, ")?,
            (Some(chain), Some(proxy)) => write!(f, "proxy {proxy}, epoch {chain}, ")?,
            (Some(chain), None) => write!(f, "epoch {chain}, ")?,
            (None, _) => {}
        }
        match (self.first, self.last) {
            (Some(first), Some(last)) if first == last => write!(f, "sequence {first}, ")?,
            (Some(first), Some(last)) => write!(f, "sequence {first} to {last}, ")?,
            _ => {}
        }
        if let Some(number) = self.checkpoint {
            write!(f, "checkpoint {number}, ")?;
        }
        if self.line > 0 {
            write!(f, "line {}", self.line)?;
        } else {
            write!(f, "no line")?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// What an export shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// By which the signatures were verified, in hexadecimal.
    pub public_key: String,
    /// Whose events they are.
    pub tenant: String,
    /// Events of the tenant.
    pub events: u64,
    /// Of those, such without the payloads that they have: their content was not verified.
    pub redacted: u64,
    /// Records of other tenants, of which the place was verified.
    pub foreign: u64,
    /// Events from before there were chains, which nothing protects.
    pub unchained: u64,
    /// Chains.
    pub chains: u64,
    /// Records that proxies lost, and never had stored: gaps in the numbers of chains that are whole.
    pub lost: u64,
    /// Records that the control plane noted as not following from the one before, or as changed when it took them in.
    pub attested: u64,
    /// Records that are not there because of their age.
    pub forgotten: u64,
    /// Everything before this was to be dropped because of its age.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forgotten_before: Option<DateTime<Utc>>,
    /// Checkpoints.
    pub checkpoints: u64,
    /// When the last of them was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpointed_at: Option<DateTime<Utc>>,
    /// Records that are newer than the last checkpoint that covers their chain: only the next one will protect them.
    pub uncovered: u64,
    /// What is not as it was written, in the order of the lines.
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub more_findings: u64,
}

impl Report {
    /// Whether everything is as it was written.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Reads an export.
#[derive(Debug, Default)]
pub struct Verifier {
    pinned: Option<PublicKey>,
    header: Option<Header>,
    first: Option<Checkpoint>,
    checkpoint: Option<(u64, Hash)>,
    heads: HashMap<Uuid, Vec<SignedHead>>,
    /// In the order of the export.
    chains: Vec<Uuid>,
    states: HashMap<Uuid, State>,
    forgotten: HashMap<Uuid, Vec<Forgotten>>,
    pending: Vec<Pending>,
    end: Option<End>,
    records: u64,
    report: Report,
}

/// A head and the checkpoint that it stands in.
#[derive(Debug, Clone, Copy)]
struct SignedHead {
    sequence: u64,
    hash: Hash,
    checkpoint: u64,
}

/// How far a chain was read.
#[derive(Debug)]
struct State {
    proxy: Option<Uuid>,
    through: Option<Bound>,
    last: Bound,
    /// Other hashes that the next record may follow: what the last one's should have been, or its double's.
    others: Vec<Hash>,
    /// What was before the last one.
    before: VecDeque<Bound>,
    /// How many of the chain's heads were looked at, and the last record that one of them vouches for.
    heads: usize,
    vouched: u64,
    records_since_head: u64,
}

/// A gap that only dropped records can explain.
#[derive(Debug)]
struct Pending {
    line: u64,
    chain: Uuid,
    after: Bound,
    /// Whether a checkpoint was signed for what is before the gap.
    vouched: bool,
    sequence: u64,
    link: Link,
    event: Option<Uuid>,
}

impl Verifier {
    /// Believes this key, or else the one that stands in the export.
    pub fn new(pinned: Option<PublicKey>) -> Self {
        Self { pinned, ..Self::default() }
    }

    /// Takes the next line, as text. `number` counts from 1.
    pub fn text(&mut self, number: u64, text: &str) {
        match serde_json::from_str(text) {
            Ok(line) => self.line(number, line),
            Err(error) => self.find(Finding::new(number, format!("cannot be read: {error}"))),
        }
    }

    /// Takes the next line.
    pub fn line(&mut self, number: u64, line: Line) {
        if self.header.is_none() && !matches!(line, Line::Export(_)) {
            self.find(Finding::new(number, "is not the beginning of an export"));
            // Goes on, with the pinned key or none, so that what there is gets looked at.
        }
        if self.end.is_some() {
            self.find(Finding::new(number, "stands behind the end"));
        }
        match line {
            Line::Export(header) => self.begin(number, header),
            Line::Checkpoint(checkpoint) => self.take_checkpoint(number, checkpoint),
            Line::Chain(chain) => self.take_chain(number, chain),
            Line::Record(record) => self.take_record(number, *record),
            Line::Forgotten(forgotten) => self.take_forgotten(number, forgotten),
            Line::End(end) => self.end = Some(end),
        }
    }

    /// What it comes to. Gaps are judged here, since what was dropped is told last.
    pub fn finish(mut self) -> Report {
        for pending in std::mem::take(&mut self.pending) {
            self.judge(&pending);
        }
        for chain in std::mem::take(&mut self.chains) {
            self.end_chain(chain);
        }
        self.look_for_missing_chains();
        match self.end {
            None => self.find(Finding::new(0, "the end of the export is missing")),
            Some(end) => {
                let seen = (self.records, self.report.checkpoints);
                if seen != (end.records, end.checkpoints) {
                    let problem = format!(
                        "the export says that it has {} records and {} checkpoints, but has {} and {}",
                        end.records, end.checkpoints, seen.0, seen.1
                    );
                    self.find(Finding::new(0, problem));
                }
            }
        }
        let last = |line: u64| if line == 0 { u64::MAX } else { line };
        self.report.findings.sort_by_key(|finding| last(finding.line));
        self.report
    }

    fn find(&mut self, finding: Finding) {
        if self.report.findings.len() < MOST_FINDINGS {
            self.report.findings.push(finding);
        } else {
            self.report.more_findings += 1;
        }
    }

    fn find_in(&mut self, chain: Uuid, (first, last): (u64, u64), finding: Finding) {
        let proxy = self.states.get(&chain).and_then(|state| state.proxy);
        self.find(Finding { chain: Some(chain), proxy, first: Some(first), last: Some(last), ..finding });
    }

    fn key(&self) -> Option<PublicKey> {
        self.pinned.or(self.header.as_ref().map(|header| header.public_key))
    }

    fn is_signed(&self, statement: &[u8], signature: &super::Signature) -> bool {
        self.key().is_some_and(|key| key.verifies(statement, signature))
    }

    fn begin(&mut self, line: u64, header: Header) {
        if self.header.is_some() {
            self.find(Finding::new(line, "a second export begins"));
            return;
        }
        if header.version != 1 {
            self.find(Finding::new(line, "is an export of a later version; use a newer wafflectl"));
        }
        if self.pinned.is_some_and(|pinned| pinned != header.public_key) {
            self.find(Finding::new(line, format!("is signed with another key: {}", header.public_key)));
        }
        self.report.tenant.clone_from(&header.tenant);
        self.report.public_key = self.pinned.unwrap_or(header.public_key).to_string();
        self.header = Some(header);
    }

    fn is_limited(&self) -> bool {
        self.header.as_ref().is_some_and(|header| header.since.is_some())
    }

    fn take_checkpoint(&mut self, line: u64, checkpoint: Checkpoint) {
        self.report.checkpoints += 1;
        let number = checkpoint.number;
        let found = |problem: String| Finding { checkpoint: Some(number), ..Finding::new(line, problem) };
        if !self.is_signed(&checkpoint.statement(), &checkpoint.signature) {
            self.find(found("its signature is wrong: it was altered, or signed with another key".into()));
            self.checkpoint = Some((number, checkpoint.hash()));
            return;
        }
        match self.checkpoint {
            Some((last, _)) if number <= last => {
                self.find(found(format!("stands behind checkpoint {last}")));
            }
            Some((last, previous)) if number == last + 1 => {
                if previous != checkpoint.previous {
                    self.find(found(format!("does not follow from checkpoint {last}")));
                }
            }
            // An export of the last days has the first one, and then those of the days.
            Some((1, _)) if self.is_limited() => {}
            None if number == 1 => {}
            last => {
                let first = last.map_or(1, |(last, _)| last + 1);
                self.find(found(format!("the checkpoints {first} to {} are missing", number - 1)));
            }
        }
        self.checkpoint = Some((number, checkpoint.hash()));
        self.report.checkpointed_at = Some(checkpoint.made_at);
        for head in &checkpoint.heads {
            let signed = SignedHead { sequence: head.sequence, hash: head.hash, checkpoint: number };
            self.heads.entry(head.chain).or_default().push(signed);
        }
        if number == 1 {
            self.first = Some(checkpoint);
        }
    }

    fn take_chain(&mut self, line: u64, chain: Chain) {
        let Chain { chain: id, proxy, after, through } = chain;
        if self.states.contains_key(&id) {
            let finding = Finding { chain: Some(id), proxy, ..Finding::new(line, "the chain begins twice") };
            return self.find(finding);
        }
        let after = after.unwrap_or(Bound { sequence: 0, hash: Hash::START });
        if after.sequence > 0 && !self.is_limited() {
            let problem = "the chain does not begin with its first record";
            self.find_in(id, (1, after.sequence), Finding { proxy, ..Finding::new(line, problem) });
        }
        if let Some(heads) = self.heads.get_mut(&id) {
            heads.sort_by_key(|head| (head.sequence, head.checkpoint));
        }
        let skipped = |head: &SignedHead| head.sequence <= after.sequence;
        let heads =
            self.heads.get(&id).map_or(0, |heads| heads.iter().take_while(|head| skipped(head)).count());
        let state = State {
            proxy,
            through,
            last: after,
            others: Vec::new(),
            before: VecDeque::new(),
            heads,
            vouched: after.sequence,
            records_since_head: 0,
        };
        self.states.insert(id, state);
        self.chains.push(id);
        self.report.chains += 1;
    }

    fn take_record(&mut self, line: u64, record: Recorded) {
        self.records += 1;
        let Some(digest) = self.digest(line, &record) else { return };
        let event = record.event.as_ref().map(|event| event.id);
        let (Some(chain), Some(hash)) = (record.chain, record.hash) else {
            return self.take_unchained(line, &record);
        };
        let link = Link { digest, hash, attest: record.attest };
        self.follow(line, (chain, record.sequence), link, event);
    }

    /// The digest of what is there, or of what is said to have been left out.
    fn digest(&mut self, line: u64, record: &Recorded) -> Option<Hash> {
        let found = |problem: &str| Finding {
            chain: record.chain,
            first: Some(record.sequence),
            last: Some(record.sequence),
            event: record.event.as_ref().map(|event| event.id),
            ..Finding::new(line, problem)
        };
        match (&record.event, record.digest) {
            (Some(event), given) => {
                self.report.events += 1;
                let digest = digest_of(event);
                match given {
                    Some(given) if given != digest => {
                        let shown = self.header.as_ref().is_some_and(|header| header.payloads);
                        let has_payloads =
                            !event.request_payload.is_empty() || !event.response_payload.is_empty();
                        if shown || has_payloads {
                            self.find(found("the event was altered: its digest is another one"));
                        }
                        self.report.redacted += 1;
                        Some(given)
                    }
                    _ => Some(digest),
                }
            }
            (None, Some(given)) => {
                self.report.foreign += 1;
                Some(given)
            }
            (None, None) => {
                self.find(found("is neither an event nor the digest of one"));
                None
            }
        }
    }

    fn take_unchained(&mut self, line: u64, record: &Recorded) {
        self.report.unchained += 1;
        let event = record.event.as_ref();
        // Only what was there when the first checkpoint was made may be without a place in a chain.
        let is_older = self.first.as_ref().is_some_and(|first| {
            first.unchained && event.is_some_and(|event| event.occurred_at < first.made_at)
        });
        if !is_older {
            let problem = "was inserted: it has no place in any chain";
            self.find(Finding { event: event.map(|event| event.id), ..Finding::new(line, problem) });
        }
    }

    fn follow(&mut self, line: u64, (chain, sequence): (Uuid, u64), link: Link, event: Option<Uuid>) {
        let Some(state) = self.states.get(&chain) else {
            let problem = "stands outside of its chain";
            let finding = Finding { event, ..Finding::new(line, problem) };
            return self.find_in(chain, (sequence, sequence), finding);
        };
        let (last, place) = (state.last, (chain, sequence));
        if sequence <= last.sequence {
            let problem = format!("is out of order, or a second one of its number, behind {}", last.sequence);
            let finding = Finding { event, ..Finding::new(line, problem) };
            self.find_in(chain, (sequence, sequence), finding);
            if let Some(state) = self.states.get_mut(&chain)
                && sequence == last.sequence
            {
                state.others.push(link.hash);
            }
            return;
        }
        let gap = sequence - last.sequence - 1;
        let candidates = || std::iter::once(&last.hash).chain(&state.others);
        let by_word = link.attest.is_some_and(|signature| {
            candidates().any(|previous| {
                self.is_signed(&attested(chain, sequence, previous, &link.digest, &link.hash), &signature)
            })
        });
        let mut others = Vec::new();
        let mut follows = by_word || candidates().any(|previous| link.follows(place, previous));
        if by_word {
            self.report.attested += 1;
        }
        if follows {
            self.report.lost += gap;
        } else if let Some(earlier) = state.before.iter().rev().find(|b| link.follows(place, &b.hash)) {
            let problem = format!("inserted: record {sequence} does not follow from it");
            self.find_in(chain, (earlier.sequence + 1, last.sequence), Finding::new(line, problem));
            follows = true;
        } else if gap > 0 {
            let vouched = state.vouched == last.sequence;
            self.pending.push(Pending { line, chain, after: last, vouched, sequence, link, event });
        } else {
            // What it follows was vouched for, or may have been altered together with its hash.
            let first = if state.vouched == last.sequence { sequence } else { last.sequence };
            others.push(super::link(chain, sequence, &last.hash, &link.digest));
            let problem = "altered, or its hash was: it does not follow from the record before it";
            let finding = Finding { event, ..Finding::new(line, problem) };
            self.find_in(chain, (first, sequence), finding);
        }
        self.advance(line, chain, Bound { sequence, hash: link.hash }, others, follows);
    }

    /// Moves on to a record, past the heads up to there.
    fn advance(&mut self, line: u64, chain: Uuid, to: Bound, others: Vec<Hash>, follows: bool) {
        let Some(state) = self.states.get_mut(&chain) else { return };
        state.before.push_back(std::mem::replace(&mut state.last, to));
        if state.before.len() > MOST_INSERTED {
            state.before.pop_front();
        }
        state.others = others;
        state.records_since_head += 1;
        let mut findings = Vec::new();
        let heads = self.heads.get(&chain).map_or(&[][..], Vec::as_slice);
        while let Some(head) = heads.get(state.heads).filter(|head| head.sequence <= to.sequence) {
            state.heads += 1;
            if head.sequence == to.sequence {
                state.records_since_head = 0;
                if head.hash != to.hash {
                    let problem = format!(
                        "rewritten: the hash of record {} is not the one that checkpoint {} was signed for",
                        to.sequence, head.checkpoint
                    );
                    findings.push((state.vouched + 1, to.sequence, problem));
                }
                state.vouched = to.sequence;
            } else if follows {
                // Where it does not, the gap is a finding anyway, or was dropped.
                let problem = format!("missing, though checkpoint {} was signed for it", head.checkpoint);
                findings.push((head.sequence, head.sequence, problem));
            }
        }
        for (first, last, problem) in findings {
            self.find_in(chain, (first, last), Finding::new(line, problem));
        }
    }

    fn take_forgotten(&mut self, line: u64, forgotten: Forgotten) {
        if !self.is_signed(&forgotten.statement(), &forgotten.signature) {
            let place = (forgotten.first, forgotten.last);
            let problem = "the word for what was dropped here has a wrong signature";
            return self.find_in(forgotten.chain, place, Finding::new(line, problem));
        }
        let before = self.report.forgotten_before;
        self.report.forgotten_before = before.max(Some(forgotten.before));
        self.forgotten.entry(forgotten.chain).or_default().push(forgotten);
    }

    /// How far a chain can be followed from a place through what was dropped.
    fn through_forgotten(&self, chain: Uuid, from: Bound, below: u64) -> (Bound, u64) {
        let mut at = from;
        let mut count = 0;
        let all = self.forgotten.get(&chain).map_or(&[][..], Vec::as_slice);
        loop {
            let next = all.iter().find(|f| {
                let joins = f.first <= at.sequence || f.previous == at.hash;
                joins && f.last > at.sequence && f.last < below
            });
            let Some(next) = next else { return (at, count) };
            count += next.last - at.sequence.max(next.first - 1);
            at = Bound { sequence: next.last, hash: next.hash };
        }
    }

    fn judge(&mut self, pending: &Pending) {
        let Pending { line, chain, after, vouched, sequence, link, event } = pending;
        let (reached, count) = self.through_forgotten(*chain, *after, *sequence);
        self.report.forgotten += count;
        let attest = |signature: super::Signature| {
            self.is_signed(&attested(*chain, *sequence, &reached.hash, &link.digest, &link.hash), &signature)
        };
        if link.follows((*chain, *sequence), &reached.hash) {
            self.report.lost += sequence - reached.sequence - 1;
        } else if link.attest.is_some_and(attest) {
            self.report.attested += 1;
        } else {
            let (first, last) = (reached.sequence + 1, sequence - 1);
            let problem = if first > last {
                "altered: it does not follow from what was dropped before it".to_owned()
            } else {
                format!("{first} to {last} are missing, or a record beside them was altered")
            };
            // Which of the two ends would not fit cannot be told, but where one of them was signed for.
            let signed = *vouched || reached != *after;
            let range = (if signed { first.min(*sequence) } else { reached.sequence }, *sequence);
            let finding = Finding { event: *event, ..Finding::new(*line, problem) };
            self.find_in(*chain, range, finding);
        }
    }

    fn end_chain(&mut self, chain: Uuid) {
        let Some(state) = self.states.get(&chain) else { return };
        let (last, through, vouched) = (state.last, state.through, state.vouched);
        self.report.uncovered += if last.sequence > vouched { state.records_since_head } else { 0 };
        let heads = self.heads.get(&chain).map_or(&[][..], Vec::as_slice);
        let signed = heads.iter().map(|head| head.sequence).max().unwrap_or(0);
        let wanted = through.map_or(0, |through| through.sequence).max(signed);
        if last.sequence < wanted {
            let (reached, count) = self.through_forgotten(chain, last, u64::MAX);
            self.report.forgotten += count;
            if reached.sequence < wanted {
                let finding = Finding::new(0, "missing at the end of the chain");
                self.find_in(chain, (reached.sequence + 1, wanted), finding);
            }
        } else if let Some(through) = through
            && through.sequence <= last.sequence
            && (through.sequence < last.sequence || through.hash != last.hash)
        {
            let first = through.sequence.min(last.sequence);
            let problem = "the control plane knows of another end of the chain";
            self.find_in(chain, (first, last.sequence), Finding::new(0, problem));
        }
    }

    /// Chains that were signed for and of which there is nothing.
    fn look_for_missing_chains(&mut self) {
        let mut missing = Vec::new();
        for (chain, heads) in &self.heads {
            if self.states.contains_key(chain) {
                continue;
            }
            let Some(last) = heads.iter().map(|head| head.sequence).max() else {
                continue;
            };
            let start = Bound { sequence: 0, hash: Hash::START };
            let (reached, _) = self.through_forgotten(*chain, start, u64::MAX);
            if reached.sequence < last {
                missing.push((*chain, reached.sequence + 1, last));
            }
        }
        missing.sort_unstable();
        for (chain, first, last) in missing {
            self.find_in(chain, (first, last), Finding::new(0, "the whole chain is missing"));
        }
    }
}

#[cfg(test)]
mod tests;
