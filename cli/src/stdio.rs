//! The programs that `server import` noted and `up` and `run` start: a file beside the context file, which only its owner
//! can read, because the environment of a program may hold secrets, and only its owner can write, because what it names
//! is run. Nothing but wafflectl on this host ever reads it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::bridge;
use crate::context::{Store, is_open_to_others, is_own, replace_private};
use crate::failure::Failure;

const FILE_NAME: &str = "stdio.toml";

/// The content of the file.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Programs {
    /// By the name of the server that each becomes.
    #[serde(default)]
    pub(crate) servers: BTreeMap<String, Program>,
}

/// One program.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Program {
    /// The program, found on the path where it is no path.
    pub(crate) command: String,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) args: Vec<String>,
    /// Where it runs; none is where wafflectl runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cwd: Option<PathBuf>,
    /// More environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) env: BTreeMap<String, String>,
}

impl From<Program> for bridge::Command {
    fn from(program: Program) -> Self {
        let Program { command, args, cwd, env } = program;
        Self { program: command.into(), args: args.into_iter().map(Into::into).collect(), env, cwd }
    }
}

/// Where the file of a context file stands.
pub(crate) fn path(store: &Store) -> PathBuf {
    store.path().with_file_name(FILE_NAME)
}

/// The programs in a file; none when there is no file.
pub(crate) fn load(path: &Path) -> anyhow::Result<Programs> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Programs::default()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    if !is_own(path) || is_open_to_others(path) {
        let message = format!("{} is open to other users, and says what is run", path.display());
        let next =
            format!("Look at it, then take it for yourself: `chown` it and `chmod 600 {}`.", path.display());
        return Err(Failure::failed(message).next(next).into());
    }
    // The cause is not shown whole: it quotes the line, which may hold a secret.
    toml::from_str(&text).map_err(|error: toml::de::Error| {
        Failure::failed(format!("{} cannot be used: {}", path.display(), error.message()))
            .next("Correct it, or move it away and import again.")
            .into()
    })
}

/// Replaces a file.
pub(crate) fn save(path: &Path, programs: &Programs) -> anyhow::Result<()> {
    let text = toml::to_string_pretty(programs).context("cannot write the programs as TOML")?;
    replace_private(path, &text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn programs() -> Programs {
        let program = Program {
            command: "npx".to_owned(),
            args: vec!["-y".to_owned(), "a server".to_owned()],
            cwd: Some("/srv".into()),
            env: BTreeMap::from([("TOKEN".to_owned(), "secret".to_owned())]),
        };
        Programs { servers: BTreeMap::from([("files".to_owned(), program)]) }
    }

    #[test]
    fn the_file_is_private_and_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(&Store::at(&folder.path().join("wafflectl.toml")));
        assert!(load(&path).unwrap().servers.is_empty());
        save(&path, &programs()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(load(&path).unwrap().servers == programs().servers);
    }

    #[test]
    fn a_file_that_others_can_write_is_not_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        save(&path, &programs()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660)).unwrap();
        let error = load(&path).err().unwrap().to_string();
        assert!(error.contains("open to other users"), "{error}");
    }

    #[test]
    fn a_broken_file_is_refused_without_quoting_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        save(&path, &Programs::default()).unwrap();
        std::fs::write(&path, "[servers.a]\ncommand = \"x\"\nenv = { TOKEN = secret }\n").unwrap();
        let error = format!("{:#}", load(&path).err().unwrap());
        assert!(error.contains("cannot be used") && !error.contains("secret"), "{error}");
    }
}
