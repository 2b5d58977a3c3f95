//! What comes and what leaves, for every bridge between eras, in files that people read: `golden/*.txt`. A changed word
//! on the wire is a changed line in the diff; `UPDATE_GOLDEN=1` writes the files anew.

#[path = "golden/messages.rs"]
mod messages;
#[path = "golden/names.rs"]
mod names;
#[path = "golden/questions.rs"]
mod questions;

use std::path::Path;

use bytes::Bytes;
use waffles_mcp::translate::Client;
use waffles_mcp::{Limits, Message};

/// One file: a sentence on what it shows, and cases.
struct Page(String);

impl Page {
    fn new(about: &str) -> Self {
        Self(format!("{about}\n"))
    }

    /// One case: who speaks to whom of what, and the lines.
    fn case(&mut self, heading: &str, lines: &[(&str, &str)]) {
        self.0.push_str(&format!("\n# {heading}\n"));
        for (name, line) in lines {
            assert!(!line.contains('\n'), "one line each: {line}");
            self.0.push_str(&format!("{name:7} {line}\n"));
        }
    }

    /// A message and what becomes of it. What leaves must be as sound as what came.
    fn pair(&mut self, heading: &str, came: &str, leaves: impl AsRef<[u8]>) {
        let leaves = std::str::from_utf8(leaves.as_ref()).expect("translations are UTF-8");
        for text in [came, leaves] {
            let read: Result<serde_json::Value, _> = serde_json::from_str(text);
            assert!(read.is_ok(), "{heading}: {text}");
        }
        self.case(heading, &[("came", came), ("leaves", leaves)]);
    }

    fn check(self, name: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &self.0).expect("the golden file is writable");
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == self.0,
            "golden/{name} says something else; if on purpose, run with UPDATE_GOLDEN=1 and look at the diff:\n{}",
            self.0
        );
    }
}

fn message(text: &str) -> Message {
    Message::parse(Bytes::copy_from_slice(text.as_bytes()), &Limits::default()).expect("a sound message")
}

fn client() -> Client {
    Client {
        capabilities: Bytes::from_static(br#"{"elicitation":{},"roots":{}}"#),
        info: Some(Bytes::from_static(br#"{"name":"desk","version":"2"}"#)),
    }
}
