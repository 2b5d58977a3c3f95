//! The configuration files of other clients: Claude Desktop, Claude Code and Cursor (`mcpServers`), VS Code (`servers`,
//! alone or under `mcp` in its settings). Each entry becomes a server to register, a program to note, or a sentence
//! that says why it is neither.

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use waffles_core::server::{Credential, Transport};

use super::jsonc;
use crate::bridge::message::Object;
use crate::failure::Failure;
use crate::stdio::Program;

/// What an entry asks for.
pub(super) enum Wanted {
    /// A server with an address.
    Http {
        /// The address.
        url: String,
        /// How it speaks MCP.
        transport: Transport,
        /// What is presented to it.
        credential: Credential,
    },
    /// A program of this host.
    Stdio(Program),
}

/// One entry of a file.
pub(super) struct Found {
    /// Its name in the file.
    pub(super) source: String,
    /// What it asks for, or why it cannot be had.
    pub(super) wanted: Result<Wanted, String>,
}

/// The fields of an entry that are understood. Others say how a client shows it, and mean nothing here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    #[serde(rename = "type", alias = "transport")]
    kind: Option<String>,
    command: Option<String>,
    args: Vec<String>,
    env: BTreeMap<String, Setting>,
    #[serde(rename = "envFile")]
    env_file: Option<String>,
    cwd: Option<String>,
    #[serde(alias = "serverUrl")]
    url: Option<String>,
    headers: BTreeMap<String, String>,
    disabled: bool,
}

/// VS Code lets settings be numbers, and `null` for unset ones.
#[derive(Deserialize)]
#[serde(untagged)]
enum Setting {
    Text(String),
    Number(serde_json::Number),
    Flag(bool),
    Unset(()),
}

/// What is known of the variables that a file may name.
pub(super) type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Reads a file.
pub(super) fn entries(text: &str, variables: Variables<'_>) -> anyhow::Result<Vec<Found>> {
    let text = jsonc::plain(text);
    let unreadable = |error: serde_json::Error| {
        // The reader's own message may quote the file, which may hold secrets.
        let what = if error.is_data() {
            "no object, or one with a name twice"
        } else {
            "no JSON, not even with comments"
        };
        let message = format!("there is {what} at line {}, column {}", error.line(), error.column());
        Failure::failed(message).next("Give the file that Claude Desktop, VS Code or Cursor reads.")
    };
    let root = Object::parse(&text).map_err(unreadable)?;
    let servers = root
        .get("mcpServers")
        .or_else(|| root.get("servers"))
        .map(Object::parse)
        .or_else(|| Some(Object::parse(root.object("mcp")?.get("servers")?)));
    let Some(servers) = servers else {
        return Err(Failure::failed("the file has neither `mcpServers` nor `servers`")
            .next("Give the file that Claude Desktop, VS Code or Cursor reads.")
            .into());
    };
    let servers = servers.map_err(unreadable)?;
    let found = servers.entries().map(|(source, text)| Found {
        source: source.to_owned(),
        wanted: read::<Entry>(text).and_then(|entry| entry.wanted(variables)),
    });
    Ok(found.collect())
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    // serde names the field's type, and may quote its value.
    serde_json::from_str(text).map_err(|_| "a field has another type than such files have".to_owned())
}

impl Entry {
    fn wanted(self, variables: Variables<'_>) -> Result<Wanted, String> {
        if self.disabled {
            return Err("is disabled in the file".to_owned());
        }
        let mut filler = Filler { variables, missing: Vec::new() };
        let wanted = match (self.command.is_some(), self.url.is_some()) {
            (true, true) => return Err("has both a command and a URL".to_owned()),
            (false, false) => return Err("has neither a command nor a URL".to_owned()),
            (true, false) => Wanted::Stdio(self.program(&mut filler)?),
            (false, true) => self.server(&mut filler)?,
        };
        match filler.missing.as_slice() {
            [] => Ok(wanted),
            missing => Err(format!("needs a value for {}", missing.join(", "))),
        }
    }

    fn program(self, filler: &mut Filler<'_>) -> Result<Program, String> {
        if self.env_file.is_some() {
            return Err("has an envFile; write its variables under `env`".to_owned());
        }
        let text = |setting| match setting {
            Setting::Text(text) => Some(text),
            Setting::Number(number) => Some(number.to_string()),
            Setting::Flag(flag) => Some(flag.to_string()),
            Setting::Unset(()) => None,
        };
        let env = self.env.into_iter().filter_map(|(name, setting)| Some((name, text(setting)?)));
        Ok(Program {
            command: filler.fill(&self.command.unwrap_or_default()),
            args: self.args.iter().map(|arg| filler.fill(arg)).collect(),
            cwd: self.cwd.map(|cwd| filler.fill(&cwd).into()),
            env: env.map(|(name, value)| (name, filler.fill(&value))).collect(),
        })
    }

    fn server(self, filler: &mut Filler<'_>) -> Result<Wanted, String> {
        let transport = match self.kind.as_deref() {
            None => Transport::Auto,
            Some("http" | "streamable-http" | "streamableHttp" | "streamable_http") => {
                Transport::StreamableHttp
            }
            Some("sse") => Transport::Sse,
            Some(_) => return Err("has a type that is neither http, sse nor stdio".to_owned()),
        };
        // Those that each client sets by itself say nothing about the caller.
        let own =
            |name: &str| matches!(name, "accept" | "content-type" | "user-agent" | "mcp-protocol-version");
        let mut headers = self
            .headers
            .into_iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), filler.fill(&value)))
            .filter(|(name, _)| !own(name));
        let credential = match (headers.next(), headers.next()) {
            (None, _) => Credential::None,
            (Some(header), None) => credential(header)?,
            (Some(_), Some(_)) => {
                return Err("has more than one header; Waffles presents one credential".to_owned());
            }
        };
        drop(headers);
        Ok(Wanted::Http { url: filler.fill(&self.url.unwrap_or_default()), transport, credential })
    }
}

fn credential((name, value): (String, String)) -> Result<Credential, String> {
    if name != "authorization" {
        return Ok(Credential::Header { name, value: value.into() });
    }
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            Ok(Credential::Bearer { token: SecretString::from(token.trim().to_owned()) })
        }
        _ => Err(
            "has an Authorization header that is no bearer token; register it with `wafflectl server add`"
                .to_owned(),
        ),
    }
}

/// Puts values in the place of `${…}`, and notes those that nobody knows.
struct Filler<'a> {
    variables: Variables<'a>,
    missing: Vec<String>,
}

impl Filler<'_> {
    fn fill(&mut self, text: &str) -> String {
        let mut filled = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            filled.push_str(before);
            let Some((name, behind)) = after.split_once('}') else {
                filled.push_str("${");
                rest = after;
                continue;
            };
            match self.value(name) {
                Some(value) => filled.push_str(&value),
                None => {
                    let placeholder = format!("${{{name}}}");
                    if !self.missing.contains(&placeholder) {
                        self.missing.push(placeholder);
                    }
                }
            }
            rest = behind;
        }
        filled.push_str(rest);
        filled
    }

    /// `env:X` is VS Code's and Cursor's, `X` and `X:-otherwise` are Claude Code's. What a person would be asked for
    /// (`input:X`), and where an editor's folder is, nobody knows here.
    fn value(&self, name: &str) -> Option<String> {
        match name.split_once(':') {
            Some(("env", name)) => (self.variables)(name),
            Some((name, otherwise)) if otherwise.starts_with('-') => {
                (self.variables)(name).or_else(|| otherwise.strip_prefix('-').map(str::to_owned))
            }
            Some(_) => None,
            None if name == "userHome" => (self.variables)("HOME"),
            None if name == "/" || name == "pathSeparator" => Some("/".to_owned()),
            None => (self.variables)(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(name: &str) -> Option<String> {
        match name {
            "TOKEN" => Some("t0ken".to_owned()),
            "HOME" => Some("/home/me".to_owned()),
            _ => None,
        }
    }

    fn read(text: &str) -> Vec<Found> {
        entries(text, &variables).unwrap()
    }

    /// One entry on one line.
    fn shown(found: &Found) -> String {
        use secrecy::ExposeSecret as _;
        let what = match &found.wanted {
            Err(reason) => format!("! {reason}"),
            Ok(Wanted::Stdio(Program { command, args, cwd, env })) => {
                format!("{command} {args:?} {env:?} {cwd:?}")
            }
            Ok(Wanted::Http { url, transport, credential }) => {
                let credential = match credential {
                    Credential::Bearer { token } => format!("bearer {}", token.expose_secret()),
                    Credential::Header { name, value } => format!("{name} {}", value.expose_secret()),
                    _ => "none".to_owned(),
                };
                format!("{url} {transport:?} {credential}")
            }
        };
        format!("{}: {what}", found.source)
    }

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let shown: Vec<String> = read(text).iter().map(shown).collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn claude_desktop() {
        check(
            r#"{"mcpServers": {
                "Local Files": {"command": "npx", "args": ["-y", "files", "/tmp"], "env": {"DEBUG": "1"}},
                "broken": {"command": 7}
            }, "globalShortcut": ""}"#,
            &[
                r#"Local Files: npx ["-y", "files", "/tmp"] {"DEBUG": "1"} None"#,
                "broken: ! a field has another type than such files have",
            ],
        );
    }

    #[test]
    fn vs_code() {
        check(
            r#"{
                // Asked for once, and kept by VS Code.
                "inputs": [{"type": "promptString", "id": "key", "password": true}],
                "servers": {
                    "github": {"type": "http", "url": "https://api.example.com/mcp/"},
                    "old": {"type": "sse", "url": "http://localhost:3000/sse", "headers": {"X-Key": "${env:TOKEN}"}},
                    "asks": {"type": "stdio", "command": "uvx", "args": ["--key", "${input:key}"], "cwd": "${workspaceFolder}"},
                    "runs": {"type": "stdio", "command": "${userHome}/bin/run", "env": {"N": 1, "NO": null}, "cwd": "/srv"},
                    "file": {"command": "x", "envFile": ".env"}, /* last */
                },
            }"#,
            &[
                "github: https://api.example.com/mcp/ StreamableHttp none",
                "old: http://localhost:3000/sse Sse x-key t0ken",
                "asks: ! needs a value for ${input:key}, ${workspaceFolder}",
                r#"runs: /home/me/bin/run [] {"N": "1"} Some("/srv")"#,
                "file: ! has an envFile; write its variables under `env`",
            ],
        );
        check(r#"{"mcp": {"servers": {"a": {"url": "http://h/"}}}}"#, &["a: http://h/ Auto none"]);
    }

    #[test]
    fn cursor_and_claude_code() {
        check(
            r#"{"mcpServers": {
                "a": {"url": "https://h/mcp", "headers": {"Authorization": "Bearer ${env:TOKEN}", "Accept": "x"}},
                "b": {"url": "https://h/mcp", "headers": {"authorization": "bearer ${env:ELSEWHERE}"}},
                "c": {"url": "https://h/mcp", "headers": {"Authorization": "Basic eA=="}},
                "d": {"url": "https://h/mcp", "headers": {"X-A": "1", "X-B": "2"}},
                "e": {"type": "http", "url": "${BASE:-https://h}/mcp"},
                "f": {"url": "https://h/mcp", "command": "x"},
                "g": {},
                "h": {"url": "https://h/mcp", "disabled": true},
                "i": {"type": "websocket", "url": "https://h/mcp"},
                "j": {"command": "$x ${ y"}
            }}"#,
            &[
                "a: https://h/mcp Auto bearer t0ken",
                "b: ! needs a value for ${env:ELSEWHERE}",
                "c: ! has an Authorization header that is no bearer token; register it with `wafflectl server add`",
                "d: ! has more than one header; Waffles presents one credential",
                "e: https://h/mcp StreamableHttp none",
                "f: ! has both a command and a URL",
                "g: ! has neither a command nor a URL",
                "h: ! is disabled in the file",
                "i: ! has a type that is neither http, sse nor stdio",
                r#"j: $x ${ y [] {} None"#,
            ],
        );
    }

    #[test]
    fn another_file_is_refused() {
        for text in
            ["", "[]", "{}", "mcpServers:", r#"{"mcpServers": []}"#, r#"{"servers": {"a": {}, "a": {}}}"#]
        {
            assert!(entries(text, &variables).is_err(), "{text}");
        }
    }
}
