//! What must not outlive the test process, however that ends: a shell that waits for the end of its standard input,
//! then kills the processes and removes the directories it was told of. A `Drop` does not run in a killed process, nor
//! for a static.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::OnceLock;

use parking_lot::Mutex;

/// Reads `add SIGNAL:TARGET`, `gone SIGNAL:TARGET`, `dir PATH`, `gonedir PATH`. A target is a process, or minus a
/// process group. The second pass is for those who did not obey the first signal.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
targets= dirs=
while read -r verb arg; do
  case $verb in
    add) targets="$targets $arg" ;;
    gone) rest=; for t in $targets; do [ "$t" = "$arg" ] || rest="$rest $t"; done; targets=$rest ;;
    dir) dirs="$dirs $arg" ;;
    gonedir) rest=; for d in $dirs; do [ "$d" = "$arg" ] || rest="$rest $d"; done; dirs=$rest ;;
  esac
done
for t in $targets; do kill -s "${t%%:*}" -- "${t#*:}"; done
tries=0
for t in $targets; do
  while [ $tries -lt 50 ] && kill -s 0 -- "${t#*:}"; do tries=$((tries + 1)); sleep 0.1; done
  kill -s KILL -- "${t#*:}"
done
for d in $dirs; do rm -rf -- "$d"; done
"#;

static WATCHDOG: OnceLock<Mutex<ChildStdin>> = OnceLock::new();

fn tell(line: &str) {
    let watchdog = WATCHDOG.get_or_init(|| {
        #[allow(clippy::zombie_processes, reason = "it outlives this process")]
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of reach of a Ctrl-C that ends the tests.
            .process_group(0)
            .spawn()
            .expect("there is a shell");
        Mutex::new(child.stdin.take().expect("it is piped"))
    });
    // A dead watchdog is no reason to fail a test.
    drop(writeln!(watchdog.lock(), "{line}"));
}

/// Remembers a process or group (as `KILL:-123`) while it is held.
#[derive(Debug)]
pub struct Guarded(String);

impl Guarded {
    /// A process group that is killed.
    pub fn group(leader: u32) -> Self {
        Self::new(format!("KILL:-{leader}"))
    }

    /// A process that is asked to quit, as Postgres is, whose children then end too.
    pub fn quit(pid: u32) -> Self {
        Self::new(format!("QUIT:{pid}"))
    }

    fn new(target: String) -> Self {
        tell(&format!("add {target}"));
        Self(target)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        tell(&format!("gone {}", self.0));
    }
}

/// A temporary directory that is removed also when the test process is killed.
#[derive(Debug)]
pub struct Dir(tempfile::TempDir);

impl Dir {
    /// An empty directory with mode 0700.
    pub fn new(prefix: &str) -> Self {
        let dir =
            tempfile::Builder::new().prefix(prefix).tempdir().expect("a temporary directory can be made");
        let text = dir.path().to_str().expect("its path is text");
        assert!(
            !text.contains(char::is_whitespace),
            "the directory for temporary files has a blank in its path: {text}"
        );
        tell(&format!("dir {text}"));
        Self(dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // The `TempDir` removes it right after this.
        tell(&format!("gonedir {}", self.0.path().display()));
    }
}
