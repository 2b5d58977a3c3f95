//! The figures behind the promises: every soak test and benchmark notes here what it was to show and what it saw, and
//! `waffles-report` makes one page of it. A figure is noted before it is judged, so that a miss is in the page too.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Names the file that figures are appended to, one JSON object a line; without it nothing is kept.
pub const VARIABLE: &str = "WAFFLES_REPORT";

/// One measured figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The promise, such as `P08`; for a benchmark that belongs to none, `bench`.
    pub promise: String,
    /// What was looked at, in a few words: the key of the line.
    pub what: String,
    /// What is promised, with its unit, such as `≤ 1.2`.
    pub goal: String,
    /// What was seen, with its unit.
    pub measured: String,
    /// How much of it was run, such as `100 of 1000 kills`, or `full`.
    pub extent: String,
    /// Whether the goal was met.
    pub met: bool,
}

impl Figure {
    /// Appends the figure to the file that [`VARIABLE`] names, and prints it.
    pub fn note(&self) {
        let line = serde_json::to_string(self).unwrap();
        eprintln!("figure: {line}");
        if let Some(path) = std::env::var_os(VARIABLE) {
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
            writeln!(file, "{line}").unwrap();
        }
    }
}

/// A page of all figures in a file. Of figures with the same promise and name, the last counts.
pub fn page(lines: &str) -> anyhow::Result<String> {
    let mut figures: BTreeMap<(String, String), Figure> = BTreeMap::new();
    for line in lines.lines().filter(|line| !line.trim().is_empty()) {
        let figure: Figure = serde_json::from_str(line)?;
        figures.insert((figure.promise.clone(), figure.what.clone()), figure);
    }
    let mut page = String::from(concat!(
        "| promise | what | goal | measured | extent | met |\n",
        "| --- | --- | --- | --- | --- | --- |\n"
    ));
    for figure in figures.values() {
        let Figure { promise, what, goal, measured, extent, met } = figure;
        let met = if *met { "yes" } else { "**no**" };
        writeln!(page, "| {promise} | {what} | {goal} | {measured} | {extent} | {met} |")?;
    }
    Ok(page)
}

/// [`page`] of a file.
pub fn page_of(path: &Path) -> anyhow::Result<String> {
    page(&std::fs::read_to_string(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_figure_of_a_name_counts_and_a_miss_is_shown() {
        let figure = |what: &str, measured: &str, met| Figure {
            promise: "P08".into(),
            what: what.into(),
            goal: "0 missing".into(),
            measured: measured.into(),
            extent: "full".into(),
            met,
        };
        let figures = [
            figure("kills", "3 missing", false),
            figure("kills", "0 missing", true),
            figure("power", "1 missing", false),
        ];
        let lines: String = figures.iter().map(|f| serde_json::to_string(f).unwrap() + "\n").collect();
        let page = page(&lines).unwrap();
        assert!(page.contains("| P08 | kills | 0 missing | 0 missing | full | yes |"), "{page}");
        assert!(page.contains("| P08 | power | 0 missing | 1 missing | full | **no** |"), "{page}");
        assert_eq!(page.lines().count(), 4, "{page}");
    }
}
