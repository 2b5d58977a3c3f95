//! The real programs as child processes: on free ports, with a data directory of their own, killed at the end. What they
//! wrote to stderr is shown when the test fails.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};

use crate::watchdog::{Dir, Guarded};
use crate::{PATIENCE, eventually};

/// How many lines of a program's log a failed test shows.
const SHOWN: usize = 80;

/// A loopback port that was free a moment ago, for programs that cannot be given port 0.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("there are free ports");
    listener.local_addr().expect("it is bound").port()
}

/// Where the program of this name is: beside the test executable, in the target directory of its profile, or where
/// `WAFFLES_TEST_PROGRAMS` says: what is told of memory and time, is told of the programs as they are shipped.
pub fn path(name: &str) -> PathBuf {
    path_in(&std::env::var_os("WAFFLES_TEST_PROGRAMS").map_or_else(beside, PathBuf::from), name)
}

fn path_in(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    assert!(
        path.exists(),
        "{} is not built. `make test` builds it; by hand: cargo build --workspace --bins",
        path.display()
    );
    path
}

fn beside() -> PathBuf {
    let mut dir = std::env::current_exe().expect("a process knows its program");
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    dir
}

/// A command for one of our programs, without settings of the environment that would reach it.
pub fn command(name: &str, cpu: Option<usize>) -> Command {
    command_of(path(name), cpu)
}

fn command_of(program: PathBuf, cpu: Option<usize>) -> Command {
    let mut command = match cpu {
        None => Command::new(program),
        Some(cpu) => {
            let mut command = Command::new("taskset");
            command.arg("-c").arg(cpu.to_string()).arg(program);
            command
        }
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WAFFLES_")) {
        command.env_remove(name);
    }
    command
}

/// As [`command`], for a program in this directory, where there is one.
fn program(dir: Option<&Path>, name: &str, cpu: Option<usize>) -> Command {
    command_of(dir.map_or_else(|| path(name), |dir| path_in(dir, name)), cpu)
}

/// The command, for a program that runs only while the core has nothing else to do.
pub fn idle(inner: &Command) -> Command {
    let mut outer = Command::new("chrt");
    outer.args(["--idle", "0"]);
    wrapped(outer, inner)
}

/// The command, for a program that may open so many files.
fn limited(inner: &Command, files: u64) -> Command {
    let mut outer = Command::new("sh");
    outer.arg("-c").arg(format!("ulimit -n {files}; exec \"$0\" \"$@\""));
    wrapped(outer, inner)
}

/// A command that runs another one, in that one's environment.
fn wrapped(mut outer: Command, inner: &Command) -> Command {
    let inner = inner.as_std();
    outer.arg(inner.get_program()).args(inner.get_args());
    for (name, _) in inner.get_envs() {
        outer.env_remove(name);
    }
    outer
}

/// Writes a fresh self-signed certificate for this machine and its key, `cert.pem` and `key.pem`, and returns the former.
pub fn certificate(dir: &Path) -> String {
    let key = rcgen::KeyPair::generate().expect("a key can be made");
    let params = rcgen::CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]);
    let signed = params.and_then(|params| params.self_signed(&key)).expect("a certificate can be made");
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).expect("the directory can be written to");
    std::fs::write(dir.join("cert.pem"), signed.pem()).expect("the directory can be written to");
    signed.pem()
}

/// A running child process, leader of its own group. Killed with the group when dropped.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: PathBuf,
    guarded: Option<Guarded>,
}

impl Program {
    /// Starts `command` with its standard error appended to the file `stderr`.
    pub fn spawn(name: &str, mut command: Command, stderr: PathBuf) -> Self {
        let log =
            std::fs::File::options().create(true).append(true).open(&stderr).expect("the log can be written");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|err| panic!("{name} cannot be started: {err}"));
        let guarded = child.id().map(Guarded::group);
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { name: name.to_owned(), child, stdout, stderr, guarded }
    }

    /// The next line of its standard output, as JSON.
    pub async fn announced<T: DeserializeOwned>(&mut self, limit: Duration) -> T {
        let line = self.line(limit).await;
        serde_json::from_str(&line)
            .unwrap_or_else(|err| panic!("{} announced something else ({err}): {line}", self.name))
    }

    /// The next line of its standard output.
    pub async fn line(&mut self, limit: Duration) -> String {
        let mut line = String::new();
        let read = tokio::time::timeout(limit, self.stdout.read_line(&mut line)).await;
        match read {
            Ok(Ok(1..)) => {}
            Ok(Ok(0)) => {
                let status = tokio::time::timeout(Duration::from_secs(5), self.child.wait()).await;
                panic!("{} ended before it was ready: {status:?}\n{}", self.name, self.log_tail())
            }
            Ok(Err(err)) => panic!("{} cannot be read: {err}", self.name),
            Err(_) => panic!("{} was not ready within {limit:?}\n{}", self.name, self.log_tail()),
        }
        line
    }

    /// What else it wrote to its standard output, once it has ended.
    pub async fn rest_of_stdout(&mut self) -> String {
        let mut rest = String::new();
        tokio::time::timeout(PATIENCE, self.stdout.read_to_string(&mut rest))
            .await
            .expect("its output ends")
            .expect("its output is text");
        rest
    }

    /// Its process id; 0 after its end.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// Everything it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.raw_pid() {
            kill_process(pid, signal).ok();
        }
    }

    /// Kills it and its children, and waits for its end.
    pub async fn kill9(&mut self) {
        if let Some(pid) = self.raw_pid() {
            kill_process_group(pid, Signal::KILL).ok();
        }
        self.wait(PATIENCE).await;
    }

    /// Asks it to end (SIGTERM) and says how it did.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(PATIENCE * 2).await
    }

    /// Waits for its end.
    pub async fn wait(&mut self, limit: Duration) -> ExitStatus {
        let Ok(status) = tokio::time::timeout(limit, self.child.wait()).await else {
            panic!("{} did not end within {limit:?}\n{}", self.name, self.log_tail())
        };
        self.guarded = None;
        status.expect("a child can be waited for")
    }

    fn raw_pid(&self) -> Option<Pid> {
        self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw)
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let shown = lines[lines.len().saturating_sub(SHOWN)..].join("\n");
        format!("--- last lines of {} ---\n{shown}\n---", self.name)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(pid) = self.raw_pid() {
            kill_process_group(pid, Signal::KILL).ok();
            // Its directory is removed next, so it must write no more. A killed process ends at once.
            for _ in 0..1000 {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}

/// What a control plane is started with.
#[derive(Debug, Clone, Default)]
pub struct ControlPlaneOptions {
    /// None: SQLite in its data directory.
    pub database_url: Option<String>,
    pub redis_url: Option<String>,
    /// More flags.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// The core it is bound to, of which it takes what nobody else wants: it stands on another machine where it matters.
    pub cpu: Option<usize>,
    /// Where its program is. None: where [`path`] says.
    pub programs: Option<PathBuf>,
}

/// What a control plane says when it is ready.
#[derive(Debug, Clone, Deserialize)]
pub struct ControlPlaneAnnounced {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    pub ca: String,
    pub bootstrap: Option<Bootstrap>,
}

/// The account of a first start.
#[derive(Debug, Clone, Deserialize)]
pub struct Bootstrap {
    pub email: String,
    pub password: String,
}

/// A running `waffles-control-plane`.
#[derive(Debug)]
pub struct ControlPlane {
    pub program: Program,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    /// The authority that certifies the gRPC port (PEM).
    pub ca: String,
    /// There on the first start with a database.
    pub bootstrap: Option<Bootstrap>,
    options: ControlPlaneOptions,
    dir: Dir,
}

impl ControlPlane {
    /// Starts one and waits until it is ready.
    pub async fn start(options: ControlPlaneOptions) -> Self {
        Self::start_on("127.0.0.1:0", options).await
    }

    /// Starts one with its gRPC port there.
    pub async fn start_on(grpc: &str, options: ControlPlaneOptions) -> Self {
        let dir = Dir::new("waffles-cp-");
        let any = ["127.0.0.1:0", grpc, "127.0.0.1:0"].map(str::to_owned);
        let (program, announced) = Self::launch(&options, dir.path(), any).await;
        let ControlPlaneAnnounced { http, grpc, admin, ca, bootstrap } = announced;
        Self { program, http, grpc, admin, ca, bootstrap, options, dir }
    }

    /// A token that one new proxy of the group joins with.
    pub async fn enroll(&self, group: &str) -> String {
        let mut command = Self::command(&self.options, self.dir.path());
        command.args(["join-token", "--group", group]);
        let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends");
        let output = output.expect("the control plane's program runs");
        assert!(output.status.success(), "no token: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("a token is text").trim().to_owned()
    }

    /// Another run of its program on the same database and files.
    pub fn program_command(&self) -> Command {
        Self::command(&self.options, self.dir.path())
    }

    /// From its next start on, its program is another one.
    pub fn use_programs(&mut self, dir: Option<PathBuf>) {
        self.options.programs = dir;
    }

    /// Where proxies reach it.
    pub fn channel_url(&self) -> String {
        format!("https://{}", self.grpc)
    }

    pub fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn http_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    pub fn grpc_url(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// Kills it as a crash would.
    pub async fn kill9(&mut self) {
        self.program.kill9().await;
    }

    /// Asks it to end and says how it did.
    pub async fn stop(&mut self) -> ExitStatus {
        self.program.stop().await
    }

    /// Starts it again on the same data and ports; kills it first where it runs.
    pub async fn restart(&mut self) {
        if self.program.is_running() {
            self.kill9().await;
        }
        let same = [self.http, self.grpc, self.admin].map(|addr| addr.to_string());
        let (program, announced) = Self::launch(&self.options, self.dir.path(), same).await;
        self.program = program;
        assert!(announced.bootstrap.is_none(), "a second start makes no account");
    }

    async fn launch(
        options: &ControlPlaneOptions,
        dir: &Path,
        [http, grpc, admin]: [String; 3],
    ) -> (Program, ControlPlaneAnnounced) {
        let mut command = Self::command(options, dir);
        command.arg("--announce");
        command.args(["--http-addr", &http, "--grpc-addr", &grpc, "--admin-addr", &admin]);
        let mut program = Program::spawn("waffles-control-plane", command, dir.join("stderr.log"));
        let announced = program.announced(PATIENCE).await;
        (program, announced)
    }

    /// The program, on its data.
    fn command(options: &ControlPlaneOptions, dir: &Path) -> Command {
        let mut command = program(options.programs.as_deref(), "waffles-control-plane", options.cpu);
        if options.cpu.is_some() {
            command = idle(&command);
        }
        command.arg("--data-dir").arg(dir);
        if let Some(url) = &options.database_url {
            command.args(["--database-url", url]);
        }
        if let Some(url) = &options.redis_url {
            command.args(["--redis-url", url]);
        }
        command.args(&options.args).envs(options.env.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// What a proxy is started with.
#[derive(Debug, Clone)]
pub struct DataPlaneOptions {
    /// None: the host's name.
    pub name: Option<String>,
    /// None: `default`.
    pub group: Option<String>,
    pub workers: usize,
    /// A seeded one listens on every address instead of loopback alone.
    pub public: bool,
    /// It connects to public addresses only, but for what its flags open.
    pub closed: bool,
    /// More flags.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Where its program is. None: where [`path`] says.
    pub programs: Option<PathBuf>,
    /// A command that it is started by, such as one that puts it in a namespace; `{dir}` stands for its data directory.
    pub wrap: Vec<String>,
    /// The address that it listens on, instead of loopback.
    pub listen: Option<IpAddr>,
    /// The core it is bound to.
    pub cpu: Option<usize>,
    /// How many files it may open.
    pub files: Option<u64>,
}

impl Default for DataPlaneOptions {
    fn default() -> Self {
        Self {
            name: None,
            group: None,
            workers: 1,
            public: false,
            closed: false,
            args: Vec::new(),
            env: Vec::new(),
            programs: None,
            wrap: Vec::new(),
            listen: None,
            cpu: None,
            files: None,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
struct DataPlaneAnnounced {
    mcp: SocketAddr,
    admin: SocketAddr,
    proxy_id: String,
}

/// A running `waffles-data-plane`.
#[derive(Debug)]
pub struct DataPlane {
    pub program: Program,
    pub mcp: SocketAddr,
    pub admin: SocketAddr,
    pub proxy_id: String,
    control_plane: String,
    options: DataPlaneOptions,
    dir: Dir,
}

impl DataPlane {
    /// Starts one that joins this control plane; it may not be ready yet.
    pub async fn start(control_plane: &ControlPlane, options: DataPlaneOptions) -> Self {
        let token = control_plane.enroll(options.group.as_deref().unwrap_or("default")).await;
        Self::start_at(control_plane.channel_url(), &token, options).await
    }

    /// Starts one that joins the control plane at this address.
    pub async fn start_at(control_plane: String, token: &str, options: DataPlaneOptions) -> Self {
        let dir = Dir::new("waffles-dp-");
        std::fs::write(token_file(dir.path()), token).expect("the token can be written");
        let any = SocketAddr::from((options.listen.unwrap_or(Ipv4Addr::LOCALHOST.into()), 0)).to_string();
        let (program, announced) =
            Self::launch(&options, dir.path(), &control_plane, [any.clone(), any]).await;
        let DataPlaneAnnounced { mcp, admin, proxy_id } = announced;
        Self { program, mcp, admin, proxy_id, control_plane, options, dir }
    }

    /// From its next start on, its program is another one.
    pub fn use_programs(&mut self, dir: Option<PathBuf>) {
        self.options.programs = dir;
    }

    /// Puts another join token where the proxy looks for one.
    pub fn give_token(&self, token: &str) {
        std::fs::write(token_file(self.dir.path()), token).expect("the token can be written");
    }

    /// Starts one without a control plane, on a data directory that `seed` has put a snapshot into.
    pub async fn start_seeded(seed: impl FnOnce(&Path), options: DataPlaneOptions) -> Self {
        let dir = Dir::new("waffles-dp-");
        seed(dir.path());
        // The discard port, where nothing listens.
        let control_plane = "https://127.0.0.1:9".to_owned();
        let mcp = if options.public { "0.0.0.0:0" } else { "127.0.0.1:0" };
        let any = [mcp, "127.0.0.1:0"].map(str::to_owned);
        let (program, announced) = Self::launch(&options, dir.path(), &control_plane, any).await;
        let DataPlaneAnnounced { mcp, admin, proxy_id } = announced;
        Self { program, mcp, admin, proxy_id, control_plane, options, dir }
    }

    /// Waits until it says that it can serve.
    pub async fn ready(&mut self) {
        self.ready_within(PATIENCE).await;
    }

    /// Waits until it says that it can serve, for no longer than `limit`.
    pub async fn ready_within(&mut self, limit: Duration) {
        assert!(self.program.is_running(), "the proxy has ended\n{}", self.program.log_tail());
        let url = self.admin_url("/ready");
        let client = http_client();
        eventually(limit, || async {
            let answer = client.get(&url).send().await?;
            anyhow::ensure!(answer.status().is_success(), "not ready: {}", answer.text().await?);
            Ok(())
        })
        .await;
    }

    /// The MCP endpoint of one server.
    pub fn server_url(&self, server: &str) -> String {
        format!("http://{}/mcp/servers/{server}", self.mcp)
    }

    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    /// Its metrics as text.
    pub async fn metrics(&self) -> String {
        let answer =
            http_client().get(self.admin_url("/metrics")).send().await.expect("the admin port answers");
        answer.text().await.expect("metrics are text")
    }

    /// The value of one of them, with its labels as they are written.
    pub async fn metric(&self, name: &str) -> f64 {
        let metrics = self.metrics().await;
        let line =
            metrics.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {metrics}"))
    }

    /// Waits until it takes connections.
    pub async fn takes_connections(&self) {
        eventually(PATIENCE, || TcpStream::connect(self.mcp)).await;
    }

    pub fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Kills it as a crash would.
    pub async fn kill9(&mut self) {
        self.program.kill9().await;
    }

    /// Asks it to end and says how it did.
    pub async fn stop(&mut self) -> ExitStatus {
        self.program.stop().await
    }

    /// Starts it again on the same data and ports; kills it first where it runs. It may not be ready yet.
    pub async fn restart(&mut self) {
        if self.program.is_running() {
            self.kill9().await;
        }
        let same = [self.mcp, self.admin].map(|addr| addr.to_string());
        let (program, announced) =
            Self::launch(&self.options, self.dir.path(), &self.control_plane, same).await;
        self.program = program;
        assert_eq!(announced.proxy_id, self.proxy_id, "a proxy keeps its id");
    }

    async fn launch(
        options: &DataPlaneOptions,
        dir: &Path,
        control_plane: &str,
        [mcp, admin]: [String; 2],
    ) -> (Program, DataPlaneAnnounced) {
        let mut command = program(options.programs.as_deref(), "waffles-data-plane", options.cpu);
        if let Some(files) = options.files {
            command = limited(&command, files);
        }
        if let Some((program, args)) = options.wrap.split_first() {
            let mut outer = Command::new(program);
            outer.args(args.iter().map(|arg| arg.replace("{dir}", &dir.to_string_lossy())));
            command = wrapped(outer, &command);
        }
        command.args([
            "--announce",
            "--control-plane",
            control_plane,
            "--mcp-addr",
            &mcp,
            "--admin-addr",
            &admin,
        ]);
        command.args([
            OsString::from("--data-dir"),
            dir.into(),
            "--join-token-file".into(),
            token_file(dir).into(),
        ]);
        command.args(["--workers", &options.workers.to_string()]);
        command.arg(format!("--allow-private-upstreams={}", !options.closed));
        if let Some(name) = &options.name {
            command.args(["--name", name]);
        }
        // Tests and benchmarks have no load balancer before them.
        if !options.args.iter().any(|arg| arg == "--linger") {
            command.args(["--linger", "0s"]);
        }
        // A program that is built for debugging, among tests that run beside each other, is late and busy all the time.
        for (flag, value) in [("--max-lag", "10s"), ("--max-strangers-per-address", "100000")] {
            if cfg!(debug_assertions) && !options.args.iter().any(|arg| arg.starts_with(flag)) {
                command.args([flag, value]);
            }
        }
        command.args(&options.args).envs(options.env.iter().map(|(name, value)| (name, value)));
        let mut program = Program::spawn("waffles-data-plane", command, dir.join("stderr.log"));
        let announced = program.announced(PATIENCE).await;
        (program, announced)
    }
}

/// Where a proxy with this data directory looks for a join token.
fn token_file(dir: &Path) -> PathBuf {
    dir.join("join.token")
}

/// The demo MCP server (`wafflectl demo-server`): tools, resources, prompts, both eras.
#[derive(Debug)]
pub struct DemoServer {
    pub program: Program,
    /// Its MCP endpoint.
    pub url: String,
    _dir: Dir,
}

impl DemoServer {
    /// Starts one.
    pub async fn start() -> Self {
        let dir = Dir::new("waffles-demo-");
        let mut command = command("wafflectl", None);
        command.args(["demo-server", "--addr", "127.0.0.1:0"]);
        let mut program = Program::spawn("wafflectl demo-server", command, dir.path().join("stderr.log"));
        // It says where it serves, as JSON or not.
        let line = program.line(PATIENCE).await;
        let start = line.find("http://").unwrap_or_else(|| panic!("the demo server says no URL: {line}"));
        let url = line[start..].split(['"', ' ', '\n']).next().expect("a split has a first part").to_owned();
        Self { program, url, _dir: dir }
    }
}

/// A client for plain requests, with an end to each.
pub fn http_client() -> reqwest::Client {
    // Fails where another test of this process was first.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().expect("a client can be made")
}
