//! The table in `docs/compatibility.md`, written from what a run of the matrix saw.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::clients::CLIENTS;
use super::servers::SERVERS;
use super::{Cell, Door, FEATURES, Status};

const HEAD: &str = "\
# Who works with whom

Every client below, with every server below, through Waffles: at the server's own address and at
the federated one. This page is written by the test `matrix` from what it saw; `UPDATE_GOLDEN=1`
writes it anew. ✓ stands for a check that passed at both addresses, a letter for one that cannot
pass, with the reason in the list at the end: the specification rules it out, or one of the two
has no such thing. Where both stand, only the federated address cannot have it. Nothing else
occurs: the test fails on it.

The checks: the handshake (`initialize` or `server/discover`), listing tools, calling one, errors
of tools and of resources, progress, log messages with their level, cancellation (the server must
have heard of it), elicitation, sampling and roots in the middle of a call, resources, resource
templates, a subscription with an update, prompts, completion of prompts and templates, and word
of a changed list.
";

/// The whole page.
pub fn page(cells: &[Cell]) -> String {
    let mut reasons = Reasons::default();
    let mut tables = String::new();
    for client in &CLIENTS {
        let heads = FEATURES.map(|feature| feature.replace('-', " ")).join(" | ");
        write!(tables, "\n### {}\n\n| Server | {heads} |\n|{}\n", client.title, " --- |".repeat(17))
            .expect(ALL);
        for server in &SERVERS {
            let of = |feature: &str| {
                let found = cells.iter().filter(|cell| {
                    (cell.client, cell.server, cell.feature) == (client.name, server.name, feature)
                        && cell.door != Door::Direct
                });
                reasons.mark(found)
            };
            let marks = FEATURES.map(of).join(" | ");
            writeln!(tables, "| {} | {marks} |", server.title).expect(ALL);
        }
    }
    let mut page = String::from(HEAD);
    page.push_str("\n## By client\n");
    page.push_str(&tables);
    page.push_str("\n## Reasons\n\n");
    for (letter, reason) in reasons.listed() {
        writeln!(page, "* **{letter}**: {reason}").expect(ALL);
    }
    page
}

const ALL: &str = "a string takes all";

/// The reasons in the order in which they occurred.
#[derive(Debug, Default)]
struct Reasons(BTreeMap<String, usize>);

impl Reasons {
    fn mark<'a>(&mut self, cells: impl Iterator<Item = &'a Cell>) -> String {
        let mut marks: Vec<String> = Vec::new();
        let mut passed = false;
        for cell in cells {
            match cell.status {
                Status::Pass => passed = true,
                Status::Fail => marks.push("✗".to_owned()),
                Status::Unsupported => {
                    let next = self.0.len();
                    marks.push(letter(*self.0.entry(cell.detail.clone()).or_insert(next)));
                }
            }
        }
        marks.sort();
        marks.dedup();
        match (passed, marks.is_empty()) {
            (true, true) => "✓".to_owned(),
            (true, false) => format!("✓ {}", marks.join(" ")),
            (false, _) => marks.join(" "),
        }
    }

    fn listed(&self) -> Vec<(String, &str)> {
        let mut listed: Vec<_> = self.0.iter().map(|(reason, number)| (*number, reason.as_str())).collect();
        listed.sort_unstable();
        listed.into_iter().map(|(number, reason)| (letter(number), reason)).collect()
    }
}

/// a to z, then aa, ab and so on.
fn letter(number: usize) -> String {
    let last = char::from(b'a' + u8::try_from(number % 26).expect("it is below 26"));
    if number < 26 { last.to_string() } else { format!("{}{last}", letter(number / 26 - 1)) }
}
