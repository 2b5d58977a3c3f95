//! How the process takes memory from the system, how much it has, and how much it may have.

use std::fs;
use std::path::{Path, PathBuf};

/// A control group without a limit says a number that no machine has.
const UNLIMITED: u64 = 1 << 60;

/// Takes memory in small pages only. A program of many small, short-lived values touches a little of each huge page and
/// keeps all of it: a proxy under load was measured at four times the resident memory. Call it first in `main`; where
/// the system does not know the setting, nothing changes.
pub fn small_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages stay on");
    }
}

/// Bytes of memory that the process holds; none where the system does not say.
#[must_use]
pub fn resident() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Bytes of memory that the process may hold, by the control group that it was started in (version 2 or 1): the smallest
/// limit of the group and of those above it. None where there is no limit, or none to be seen.
#[must_use]
pub fn group_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_of(&groups, Path::new("/sys/fs/cgroup"))
}

/// Reads `/proc/self/cgroup`, then the limits below `root`.
fn limit_of(groups: &str, root: &Path) -> Option<u64> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (base, file) = match controllers {
            "" => (root.to_path_buf(), "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // In a container the path is often that of the host, and the group itself is mounted at the root.
        let mut group: PathBuf = base.join(path.trim_start_matches('/'));
        loop {
            limits.extend(read_limit(&group.join(file)));
            if group == base || !group.pop() {
                break;
            }
        }
    }
    limits.into_iter().min()
}

fn read_limit(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let limit: u64 = text.trim().parse().ok()?;
    (limit < UNLIMITED).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_has_some_memory() {
        assert!(resident().unwrap() > 100_000);
    }

    #[test]
    fn the_smallest_limit_of_a_group_and_those_above_counts() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let file = dir.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        put("memory.max", "max\n");
        put("pods/memory.max", "268435456\n");
        put("pods/proxy/memory.max", "max\n");
        put("memory/old/memory.limit_in_bytes", "1000000\n");
        put("memory/memory.limit_in_bytes", "9223372036854771712\n");
        let limit = |groups: &str| limit_of(groups, dir.path());
        assert_eq!(limit("0::/pods/proxy\n"), Some(268_435_456), "the pod's");
        assert_eq!(limit("0::/\n"), None, "no limit");
        assert_eq!(limit("0::/elsewhere/on/the/host\n"), None, "the path is not to be seen from here");
        assert_eq!(limit("5:cpu,cpuacct:/x\n3:memory:/old\n"), Some(1_000_000), "version 1");
        assert_eq!(limit("3:memory:/\n"), None, "version 1 says a huge number for none");
        assert_eq!(limit("nonsense"), None);
    }
}
