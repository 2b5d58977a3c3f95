//! Contexts: which Waffles to talk to and as whom. They stand in one file that only its owner can read, and
//! that is replaced whole, never edited in place.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use crate::args::Global;
use crate::failure::Failure;

/// The file's name in a data directory and in the configuration folder.
pub(crate) const FILE_NAME: &str = "wafflectl.toml";
/// Where `wafflectl up` keeps its things unless told otherwise.
pub(crate) const DATA_DIR: &str = "./waffles-data";

/// The content of a context file.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Contexts {
    /// The context that is used when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    /// By name.
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, Context>,
}

/// One Waffles, and a credential for it.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Context {
    /// Address of the control plane's gRPC port, such as `http://127.0.0.1:8082`.
    pub(crate) grpc: String,
    /// The authority (PEM) that certifies the gRPC port; needed where its address begins with `https://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<String>,
    /// Address of the control plane's HTTP port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) http: Option<String>,
    /// Address of the data plane's MCP endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mcp: Option<String>,
    /// The tenant of the credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tenant: Option<String>,
    /// An API key.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "exposed_maybe")]
    pub(crate) api_key: Option<SecretString>,
    /// A session; where there is one, it is used rather than the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tokens: Option<Tokens>,
}

/// The tokens of a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tokens {
    /// The account that logged in.
    pub(crate) email: String,
    /// JWT, short-lived.
    #[serde(serialize_with = "exposed")]
    pub(crate) access: SecretString,
    /// When it ends.
    pub(crate) access_expires_at: DateTime<Utc>,
    /// Good for one refresh.
    #[serde(serialize_with = "exposed")]
    pub(crate) refresh: SecretString,
    /// When it ends.
    pub(crate) refresh_expires_at: DateTime<Utc>,
}

impl Context {
    /// The tenant that its credential is of.
    pub(crate) fn tenant(&self) -> &str {
        self.tenant.as_deref().unwrap_or(waffles_core::DEFAULT_TENANT)
    }
}

// Secrets do not serialise by themselves. This file is the one place where they are meant to be written.
fn exposed<S: serde::Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose_secret())
}

fn exposed_maybe<S: serde::Serializer>(
    secret: &Option<SecretString>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => exposed(secret, serializer),
        None => serializer.serialize_none(),
    }
}

/// A context file on disk.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    path: PathBuf,
}

impl Store {
    /// The file that is used: the one named, else that of `wafflectl up` in the working folder, else the one in
    /// the user's configuration folder.
    pub(crate) fn locate(global: &Global) -> anyhow::Result<Self> {
        if let Some(path) = &global.config {
            return Ok(Self::at(path));
        }
        let local = Path::new(DATA_DIR).join(FILE_NAME);
        // A file that another user left in a shared folder could send passwords and keys to another host.
        if is_own(&local) {
            return Ok(Self::at(&local));
        }
        let folder = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .filter(|folder| folder.is_absolute())
            .or_else(|| std::env::home_dir().map(|home| home.join(".config")));
        let Some(folder) = folder else {
            return Err(Failure::usage("there is no home folder to keep contexts in")
                .next("Name a file with --config or WAFFLES_CONFIG.")
                .into());
        };
        Ok(Self::at(&folder.join("waffles").join(FILE_NAME)))
    }

    /// A file at a path, whether it exists or not.
    pub(crate) fn at(path: &Path) -> Self {
        Self { path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()) }
    }

    /// Where it stands.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The contexts; none when there is no file.
    pub(crate) fn load(&self) -> anyhow::Result<Contexts> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Contexts::default()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", self.path.display()));
            }
        };
        // The cause is not shown: it quotes the line, which may hold a key.
        toml::from_str(&text).map_err(|error: toml::de::Error| {
            Failure::failed(format!("{} is not a context file: {}", self.path.display(), error.message()))
                .next("Correct the file, or move it away and log in again.")
                .into()
        })
    }

    /// Replaces the file.
    pub(crate) fn save(&self, contexts: &Contexts) -> anyhow::Result<()> {
        let text = toml::to_string_pretty(contexts).context("cannot write the contexts as TOML")?;
        replace_private(&self.path, &text)
    }

    /// Held while the file is read, changed and written, so that two commands at once do not lose each other's
    /// change, or use one refresh token twice.
    pub(crate) fn lock(&self) -> anyhow::Result<File> {
        make_private_folder(self.path.parent().unwrap_or(Path::new(".")))?;
        let path = self.path.with_extension("toml.lock");
        let open = || -> std::io::Result<File> {
            let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        open().with_context(|| format!("cannot lock {}", path.display()))
    }

    /// Changes the file under its lock.
    pub(crate) fn change(
        &self,
        edit: impl FnOnce(&mut Contexts) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let _lock = self.lock()?;
        let mut contexts = self.load()?;
        edit(&mut contexts)?;
        self.save(&contexts)
    }
}

impl Contexts {
    /// The name of the context in use: the one asked for, else the current one, else the only one. Where that one is of
    /// another tenant than the one asked for, the one of that tenant at the same control plane, if there is one and no other.
    pub(crate) fn chosen(&self, global: &Global) -> Option<String> {
        let only = || match self.contexts.len() {
            1 => self.contexts.keys().next().cloned(),
            _ => None,
        };
        if let Some(name) = &global.context {
            return Some(name.clone());
        }
        let name = self.current.clone().or_else(only)?;
        let (Some(tenant), Some(context)) = (global.tenant.as_deref(), self.contexts.get(&name)) else {
            return Some(name);
        };
        if context.tenant() == tenant {
            return Some(name);
        }
        let there = |(_, other): &(&String, &Context)| other.tenant() == tenant && other.grpc == context.grpc;
        let mut found = self.contexts.iter().filter(there);
        match (found.next(), found.next()) {
            (Some((other, _)), None) => Some(other.clone()),
            _ => Some(name),
        }
    }
}

/// Makes a folder that only its owner can enter; one that exists keeps its mode.
pub(crate) fn make_private_folder(folder: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))
}

/// Replaces a file that only its owner can read: first a new one beside it, whole and on disk, then a rename.
pub(crate) fn replace_private(path: &Path, text: &str) -> anyhow::Result<()> {
    make_private_folder(path.parent().unwrap_or(Path::new(".")))?;
    let fresh = path.with_extension(format!("toml.{}", std::process::id()));
    let written = write_private(&fresh, text.as_bytes()).and_then(|()| std::fs::rename(&fresh, path));
    if let Err(error) = written {
        drop(std::fs::remove_file(&fresh));
        return Err(error).with_context(|| format!("cannot write {}", path.display()));
    }
    Ok(())
}

/// Whether others than the owner may read a file.
pub(crate) fn is_open_to_others(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.mode() & 0o077 != 0)
}

/// Whether a file is the caller's own, and nobody else can write it.
pub(crate) fn is_own(path: &Path) -> bool {
    let me = rustix::process::geteuid().as_raw();
    std::fs::symlink_metadata(path)
        .is_ok_and(|file| file.is_file() && file.uid() == me && file.mode() & 0o022 == 0)
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contexts() -> Contexts {
        let moment = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let context = Context {
            grpc: "http://127.0.0.1:8082".into(),
            mcp: Some("http://127.0.0.1:8080/mcp".into()),
            api_key: Some("wfl_key".into()),
            tokens: Some(Tokens {
                email: "admin@localhost".into(),
                access: "access-token".into(),
                access_expires_at: moment,
                refresh: "wfr_token".into(),
                refresh_expires_at: moment,
            }),
            ..Context::default()
        };
        Contexts { current: Some("local".into()), contexts: BTreeMap::from([("local".into(), context)]) }
    }

    #[test]
    fn a_context_file_is_private_and_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(&folder.path().join("deep").join(FILE_NAME));
        assert!(store.load().unwrap().contexts.is_empty());
        store.save(&contexts()).unwrap();
        assert_eq!(std::fs::metadata(store.path()).unwrap().mode() & 0o777, 0o600);
        assert!(!is_open_to_others(store.path()));
        let read = store.load().unwrap();
        let context = &read.contexts["local"];
        assert_eq!(read.current.as_deref(), Some("local"));
        assert_eq!(context.api_key.as_ref().unwrap().expose_secret(), "wfl_key");
        let tokens = context.tokens.as_ref().unwrap();
        assert_eq!(tokens.refresh.expose_secret(), "wfr_token");
        assert_eq!(tokens.access_expires_at.timestamp(), 1_800_000_000);
        let left: Vec<_> = std::fs::read_dir(folder.path().join("deep")).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing but the file is left");
    }

    #[test]
    fn a_broken_file_is_refused_without_quoting_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        std::fs::write(&path, "[contexts.a]\napi_key = wfl_secret\n").unwrap();
        let error = format!("{:#}", Store::at(&path).load().unwrap_err());
        assert!(error.contains("is not a context file") && !error.contains("wfl_secret"), "{error}");
    }

    #[test]
    fn the_context_named_goes_before_the_current_one() {
        let mut contexts = contexts();
        let mut global = Global::default();
        assert_eq!(contexts.chosen(&global).as_deref(), Some("local"));
        global.context = Some("other".into());
        assert_eq!(contexts.chosen(&global).as_deref(), Some("other"));
        global.context = None;
        contexts.current = None;
        assert_eq!(contexts.chosen(&global).as_deref(), Some("local"));
    }

    #[test]
    fn a_tenant_finds_the_context_that_is_in_it() {
        let mut contexts = contexts();
        let other =
            |grpc: &str| Context { grpc: grpc.into(), tenant: Some("acme".into()), ..Context::default() };
        contexts.contexts.insert("elsewhere".into(), other("http://elsewhere:8082"));
        let acme = Global { tenant: Some("acme".into()), ..Global::default() };
        assert_eq!(contexts.chosen(&acme).as_deref(), Some("local"), "one elsewhere is not meant");
        contexts.contexts.insert("theirs".into(), other("http://127.0.0.1:8082"));
        assert_eq!(contexts.chosen(&acme).as_deref(), Some("theirs"));
        let default = Global { tenant: Some("default".into()), ..Global::default() };
        assert_eq!(contexts.chosen(&default).as_deref(), Some("local"));
        let named = Global { context: Some("local".into()), ..acme.clone() };
        assert_eq!(contexts.chosen(&named).as_deref(), Some("local"), "a context that is named is used");
        contexts.contexts.insert("theirs-too".into(), other("http://127.0.0.1:8082"));
        assert_eq!(contexts.chosen(&acme).as_deref(), Some("local"), "of two it is neither");
    }

    #[test]
    fn secrets_do_not_print() {
        let text = format!("{:?}", contexts());
        assert!(!text.contains("wfl_key") && !text.contains("wfr_token") && !text.contains("access-token"));
    }
}
