//! A redis of one's own on a free loopback port, nothing on disk, gone at the end.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::watchdog::{Dir, Guarded};
use crate::{PATIENCE, eventually};

/// A running instance.
#[derive(Debug)]
pub struct Redis {
    port: u16,
    server: Mutex<Option<(Child, Guarded)>>,
    dir: Dir,
}

impl Redis {
    /// A new instance.
    pub async fn start() -> Self {
        let redis = Self {
            port: crate::programs::free_port(),
            server: Mutex::new(None),
            dir: Dir::new("waffles-redis-"),
        };
        redis.launch().await;
        redis
    }

    /// `redis://127.0.0.1:…`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Kills it as a crash would; what it held is lost.
    pub fn kill9(&self) {
        if let Some((mut child, _guarded)) = self.server.lock().take() {
            drop(child.kill());
            child.wait().expect("a killed process ends");
        }
    }

    /// Has it do something, such as `FLUSHALL`.
    pub async fn order(&self, command: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.expect("redis listens");
        stream.write_all(format!("{command}\r\n").as_bytes()).await.expect("redis reads");
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await.expect("redis answers");
        assert_eq!(&answer, b"+OK\r\n", "{command}");
    }

    /// Stops it where it stands: connections stay open, and nothing is answered.
    pub fn hang(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Lets it go on where it was stopped.
    pub fn go_on(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        if let Some((child, _)) = &*self.server.lock() {
            let pid = rustix::process::Pid::from_child(child);
            rustix::process::kill_process(pid, signal).expect("it runs");
        }
    }

    /// Starts it again, empty, on the same port; kills it first where it runs.
    pub async fn restart(&self) {
        self.kill9();
        self.launch().await;
    }

    async fn launch(&self) {
        let child = Command::new("redis-server")
            .args([
                "--bind",
                "127.0.0.1",
                "--port",
                &self.port.to_string(),
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(self.dir.path().join("log")).unwrap())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("there is a redis-server; scripts/test-deps.sh installs it");
        let guarded = Guarded::group(child.id());
        *self.server.lock() = Some((child, guarded));
        eventually(PATIENCE, || async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            stream.write_all(b"PING\r\n").await?;
            let mut answer = [0; 7];
            stream.read_exact(&mut answer).await?;
            anyhow::ensure!(&answer == b"+PONG\r\n", "redis answers otherwise");
            Ok(())
        })
        .await;
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill9();
    }
}
