//! How the process takes memory from the system.

/// Takes memory in small pages only. A program of many small, short-lived values touches a little of each huge page and
/// keeps all of it: a proxy under load was measured at four times the resident memory. Call it first in `main`; where
/// the system does not know the setting, nothing changes.
pub fn small_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages stay on");
    }
}
