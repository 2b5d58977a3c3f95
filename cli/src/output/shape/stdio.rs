//! Programs on standard streams: imported, running, run by `up`.

use serde::Serialize;

use super::super::{Shape, columns, fields};

/// An imported program, and how far it has come.
#[derive(Debug, Serialize)]
pub(crate) struct StdioProgram {
    pub(crate) name: String,
    pub(crate) state: &'static str,
    pub(crate) log: String,
}

impl Shape for Vec<StdioProgram> {
    fn text(&self) -> String {
        let rows =
            self.iter().map(|program| [program.name.clone(), program.state.to_owned(), program.log.clone()]);
        columns(["STDIO PROGRAM", "STATE", "LOG"], rows, "There are no stdio programs.")
    }
}

/// A program that `run` serves.
#[derive(Debug, Serialize)]
pub(crate) struct Running {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) eras: Vec<&'static str>,
    pub(crate) enabled: bool,
    pub(crate) mcp: Option<String>,
}

impl Shape for Running {
    fn text(&self) -> String {
        let rows = fields([
            ("MCP", self.mcp.clone().unwrap_or_default()),
            ("endpoint", self.url.clone()),
            ("eras", self.eras.join(", ")),
        ]);
        format!("Server {} is served. Ctrl-C stops it.\n\n{rows}", self.name)
    }
}

/// An entry of another client's configuration file, and what comes of it.
#[derive(Debug, Serialize)]
pub(crate) struct Imported {
    pub(crate) name: String,
    pub(crate) source: String,
    pub(crate) kind: &'static str,
    pub(crate) target: String,
    pub(crate) result: &'static str,
    pub(crate) detail: String,
}

impl Shape for [Imported] {
    fn text(&self) -> String {
        let rows = self.iter().map(|entry| {
            let Imported { name, source, kind, target, result, detail } = entry;
            let name = if name.is_empty() { "-" } else { name };
            let reason = if detail.is_empty() { String::new() } else { format!(": {detail}") };
            let kind = if kind.is_empty() { "-" } else { kind };
            [name.to_owned(), source.clone(), kind.to_owned(), target.clone(), format!("{result}{reason}")]
        });
        columns(["NAME", "IN THE FILE", "KIND", "TARGET", "RESULT"], rows, "The file names no servers.")
    }
}
