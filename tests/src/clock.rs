//! A clock that a test sets: a small library that is loaded before a program's own, and adds what the test says to the time
//! of day and to the time since boot. What sleeps in the kernel sleeps as long as it would.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static volatile int64_t *offsets;
static int (*ask)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    ask = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("TEST_CLOCK");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0) return;
    void *memory = mmap(0, 16, PROT_READ, MAP_SHARED, file, 0);
    if (memory != MAP_FAILED) offsets = memory;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    if (!ask) ask = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int answer = ask(clock, time);
    if (answer == 0 && offsets) {
        if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) time->tv_sec += offsets[0];
        if (clock == CLOCK_MONOTONIC || clock == CLOCK_BOOTTIME) time->tv_sec += offsets[1];
    }
    return answer;
}
"#;

/// A clock for programs that are started with [`TestClock::env`].
#[derive(Debug)]
pub struct TestClock {
    dir: tempfile::TempDir,
}

impl TestClock {
    /// One that is right.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("there is room");
        let source = dir.path().join("clock.c");
        std::fs::write(&source, SOURCE).expect("there is room");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(dir.path().join("clock.so"))
            .arg(&source)
            .arg("-ldl")
            .output()
            .expect("there is a C compiler");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let clock = Self { dir };
        clock.write(0, 0);
        clock
    }

    /// What a program must find in its environment.
    pub fn env(&self) -> Vec<(String, String)> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        vec![
            ("LD_PRELOAD".into(), text(self.dir.path().join("clock.so"))),
            ("TEST_CLOCK".into(), text(self.file())),
        ]
    }

    /// Somebody sets the time of day.
    pub fn set(&self, seconds: i64) {
        let (_, boot) = self.read();
        self.write(seconds, boot);
    }

    /// Time passes.
    pub fn pass(&self, time: Duration) {
        let seconds = i64::try_from(time.as_secs()).expect("not that long");
        let (day, boot) = self.read();
        self.write(day + seconds, boot + seconds);
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("offsets")
    }

    fn read(&self) -> (i64, i64) {
        let bytes = std::fs::read(self.file()).expect("it was written");
        let at = |place: usize| i64::from_ne_bytes(bytes[place..place + 8].try_into().expect("eight bytes"));
        (at(0), at(8))
    }

    /// In place, since programs have the file in their memory.
    fn write(&self, day: i64, boot: i64) {
        use std::io::Write as _;
        let path: &Path = &self.file();
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .expect("it is ours");
        let bytes = [day.to_ne_bytes(), boot.to_ne_bytes()].concat();
        file.write_all(&bytes).expect("there is room");
    }
}

impl Default for TestClock {
    fn default() -> Self {
        Self::new()
    }
}
