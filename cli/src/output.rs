//! Results on standard output: tables for people, JSON and YAML for scripts. What a result looks like stands
//! in `output/shape.rs`.

use std::io::{IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::args::Format;

pub(crate) mod shape;

/// A result that can be printed.
pub(crate) trait Shape: Serialize {
    /// As people read it.
    fn text(&self) -> String;
}

/// Prints a result.
pub(crate) fn print<S: Shape + ?Sized>(format: Format, result: &S) -> anyhow::Result<()> {
    line(&match format {
        Format::Table => result.text(),
        Format::Json => serde_json::to_string_pretty(result)?,
        Format::Yaml => yaml_serde::to_string(result)?.trim_end().to_owned(),
    })
}

/// Prints one of a series of results: as one line of JSON, or one YAML document.
pub(crate) fn print_one<S: Shape + ?Sized>(format: Format, result: &S) -> anyhow::Result<()> {
    line(&match format {
        Format::Table => result.text(),
        Format::Json => serde_json::to_string(result)?,
        Format::Yaml => format!("---\n{}", yaml_serde::to_string(result)?.trim_end()),
    })
}

/// Prints a result whose JSON is one line.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    match written {
        // Whoever read the output has seen enough (`| head`).
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => Ok(written?),
    }
}

/// Says something to the person at the terminal, without mixing it into the result.
pub(crate) fn note(text: &str) {
    // Nobody listens on a closed standard error, and the work goes on without.
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// Whether a person reads standard output.
pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Text from elsewhere without what could steer a terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The same, with line ends and tabs kept.
pub(crate) fn clean_lines(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { ' ' } else { c }).collect()
}

/// Rows under a heading, in aligned columns.
pub(crate) fn columns<const N: usize>(
    heading: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
    empty: &str,
) -> String {
    let mut table = new_table();
    table.set_header(heading);
    for row in rows {
        table.add_row(row.map(|cell| clean(&cell)));
    }
    if table.is_empty() {
        return empty.to_owned();
    }
    tidy(&table)
}

/// Names and values below each other; what is empty is left out.
pub(crate) fn fields<'a>(rows: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut table = new_table();
    for (name, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([format!("{name}:"), clean_lines(&value)]);
    }
    tidy(&table)
}

fn new_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn tidy(table: &Table) -> String {
    let lines: Vec<String> =
        table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_cannot_steer_a_terminal() {
        let rows = [["a".to_owned(), "1".to_owned()], ["long\u{1b}[2Jname".to_owned(), "2".to_owned()]];
        let text = columns(["NAME", "N"], rows, "none");
        assert_eq!(text, "NAME          N\na             1\nlong [2Jname  2");
        assert_eq!(columns(["NAME"], [], "There is none."), "There is none.");
    }

    #[test]
    fn empty_fields_are_left_out() {
        let text =
            fields([("name", "demo".to_owned()), ("tags", String::new()), ("version", "3".to_owned())]);
        assert_eq!(text, "name:     demo\nversion:  3");
    }
}
