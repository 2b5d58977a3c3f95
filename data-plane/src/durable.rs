//! Files that are whole or absent, whenever the machine stops: written beside their place, synced, moved into
//! it. Everything is readable by its owner only, since snapshots and records hold secrets.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Puts a file in place of what was there.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = beside(path);
    let mut file = open_options().truncate(true).open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&beside, path)?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// Like [`replace`], without waiting for the disk: after a power cut the file may be damaged, so that its
/// reader must be able to do without it.
pub(crate) fn replace_lazily(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = beside(path);
    open_options().truncate(true).open(&beside)?.write_all(content)?;
    fs::rename(&beside, path)
}

/// Makes a directory, and those above it, for its owner only.
pub(crate) fn directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes new and renamed files survive a power cut.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Opens for writing, made where absent, readable by its owner only.
pub(crate) fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    path.with_file_name(name)
}
