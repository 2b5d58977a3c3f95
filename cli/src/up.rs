//! `up`: a whole Waffles on this machine. Starts the two real programs side by side under a data folder,
//! writes a context, says that everything is ready, and stays as their keeper.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use crate::args::{Format, Global, UpArgs};
use crate::client::Client;
use crate::context::{Store, make_private_folder};
use crate::failure::Failure;
use crate::output::shape::{Admin, AdminPorts, Up};
use crate::output::{Shape, line, print, print_one};
use crate::place::Place;
use child::{Child, Program};
use first::{ADMIN, Credential};
use stdio::Runs;

pub(crate) mod child;
pub(crate) mod demo;
mod first;
mod stdio;

/// The context that `up` writes.
const CONTEXT: &str = "local";
/// How long the data plane may take to serve what it is told to.
const READY_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// How long a port of a Waffles that just ended may stay taken.
const PORT_LIMIT: Duration = Duration::from_secs(2);
/// How long after a failed start it may take to see that a program has died.
const DEATH_LIMIT: Duration = Duration::from_millis(300);
/// The data plane drains first, so that what it recorded last still reaches the control plane. This is
/// its own default.
const DATA_PLANE_GRACE: Duration = Duration::from_secs(30);
const CONTROL_PLANE_GRACE: Duration = Duration::from_secs(10);
/// On top of the grace, for flushing and ending.
const STOP_MARGIN: Duration = Duration::from_millis(2500);

/// What the control plane says when it is ready.
#[derive(Deserialize)]
struct ControlPlane {
    http: SocketAddr,
    grpc: SocketAddr,
    admin: SocketAddr,
    ca: String,
    bootstrap: Option<Bootstrap>,
}

impl ControlPlane {
    /// How operators reach it: in the clear where the port is on loopback, as it then allows.
    fn grpc_url(&self) -> String {
        let scheme = if self.grpc.ip().to_canonical().is_loopback() { "http" } else { "https" };
        format!("{scheme}://{}", dialled(self.grpc))
    }
}

/// The account that the first start made.
#[derive(Deserialize)]
struct Bootstrap {
    email: String,
    password: SecretString,
}

/// What the data plane says when its sockets are open.
#[derive(Deserialize)]
struct DataPlane {
    mcp: SocketAddr,
    admin: SocketAddr,
}

/// `up`.
pub(crate) async fn run(global: &Global, args: UpArgs) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let home = Home::open(&args.data_dir)?;
    let listener = if args.demo { Some(demo::listen(&home.path).await?) } else { None };
    let demo_url = listener.as_ref().map(demo::address).transpose()?;
    let mut demo = pin!(async {
        match listener {
            Some(listener) => {
                demo::log_to(&home.log("demo"))?;
                crate::demo::serve(listener, std::future::pending()).await
            }
            None => std::future::pending().await,
        }
    });
    let mut planes = Planes::default();
    let starter = Starter { global, args: &args, home: &home, demo_url };
    let ended = tokio::select! {
        ended = starter.serve(&mut planes) => ended,
        ended = &mut demo => ended.and_then(|()| anyhow::bail!("the demo server has ended")),
        () = signals.next() => Ok(()),
    };
    // The demo answers calls until the planes have drained. A second signal means: at once.
    let serve_demo = async {
        drop(demo.await);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = planes.stop() => {}
        () = serve_demo, if ended.is_ok() => {}
        () = signals.next() => planes.kill().await,
    }
    ended
}

/// The signals that end `up` and `run`.
pub(crate) struct Signals([Signal; 3]);

impl Signals {
    /// Catches them from now on.
    pub(crate) fn new() -> std::io::Result<Self> {
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        Ok(Self([signal(interrupt)?, signal(terminate)?, signal(hangup)?]))
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// The data folder, held by one `up` at a time.
struct Home {
    path: PathBuf,
    _lock: File,
}

impl Home {
    fn open(path: &Path) -> anyhow::Result<Self> {
        make_private_folder(&path.join("logs"))?;
        let path = path.canonicalize().with_context(|| format!("cannot open {}", path.display()))?;
        let lock_path = path.join("up.lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.with_context(|| format!("cannot open {}", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                let message = format!("another `wafflectl up` runs on {}", path.display());
                Err(Failure::failed(message)
                    .next("Stop it first, or start this one with another folder (--data-dir).")
                    .into())
            }
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", lock_path.display()))
            }
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }
}

/// The two programs, as far as they have been started, and the imported ones.
#[derive(Default)]
struct Planes {
    control: Option<Child>,
    data: Option<Child>,
    runs: Runs,
}

impl Planes {
    /// Waits until one of them ends, which none should.
    async fn died(&mut self) -> anyhow::Error {
        async fn one(child: &mut Option<Child>) -> anyhow::Error {
            match child {
                Some(child) => child.died().await,
                None => std::future::pending().await,
            }
        }
        tokio::select! {
            error = one(&mut self.control) => error,
            error = one(&mut self.data) => error,
        }
    }

    async fn stop(&mut self) {
        if let Some(data) = &mut self.data {
            data.stop(DATA_PLANE_GRACE + STOP_MARGIN).await;
        }
        // They answer calls until the data plane has drained, and leave the registry while there is one.
        self.runs.stop().await;
        if let Some(control) = &mut self.control {
            control.stop(CONTROL_PLANE_GRACE + STOP_MARGIN).await;
        }
    }

    async fn kill(&mut self) {
        for child in [&mut self.data, &mut self.control].into_iter().flatten() {
            child.kill().await;
        }
        self.runs.kill().await;
    }
}

/// What a start needs to know.
struct Starter<'a> {
    global: &'a Global,
    args: &'a UpArgs,
    home: &'a Home,
    demo_url: Option<String>,
}

impl Starter<'_> {
    /// Starts everything, says so, and watches until something ends.
    async fn serve(&self, planes: &mut Planes) -> anyhow::Result<()> {
        let up = match self.start(planes).await {
            Ok(up) => up,
            // When a program has died, that says more than the request which it left unanswered.
            Err(error) => {
                let died = tokio::time::timeout(DEATH_LIMIT, planes.died()).await;
                return Err(died.unwrap_or(error));
            }
        };
        match self.global.output {
            Format::Table => line(&self.welcome(&up))?,
            Format::Json => print_one(Format::Json, &up)?,
            Format::Yaml => print(Format::Yaml, &up)?,
        }
        Err(planes.died().await)
    }

    async fn start(&self, planes: &mut Planes) -> anyhow::Result<Up> {
        for (flag, addr) in [
            ("--mcp-addr", self.args.mcp_addr),
            ("--http-addr", self.args.http_addr),
            ("--grpc-addr", self.args.grpc_addr),
        ] {
            must_be_free(flag, addr).await?;
        }
        let imported = crate::stdio::load(&crate::stdio::path(&self.store()))?;
        let control_path = child::find("waffles-control-plane")?;
        let data_path = child::find("waffles-data-plane")?;
        let control = planes.control.insert(self.control_plane(&control_path).start()?);
        let announced: ControlPlane = control.announcement().await?;
        let grpc = announced.grpc_url();
        let place = Place::new(&grpc, Some(&announced.ca));
        let data = planes.data.insert(self.data_plane(data_path, announced.grpc).start()?);
        let (listening, credential, _) = tokio::try_join!(
            data.announcement::<DataPlane>(),
            self.credential(&announced, place, &control_path),
            self.join_token(&control_path).output(),
        )?;
        let mut up = Up {
            mcp: format!("{}/mcp", url(listening.mcp)),
            http: url(announced.http),
            grpc: grpc.clone(),
            admin_ports: AdminPorts {
                data_plane: listening.admin.to_string(),
                control_plane: announced.admin.to_string(),
            },
            admin: Admin { email: ADMIN.to_owned(), password: None },
            api_key: None,
            context: self.store().path().display().to_string(),
            stdio: Vec::new(),
        };
        if credential.is_new {
            up.admin.email.clone_from(&credential.email);
            up.admin.password = credential.password.as_ref().map(|text| text.expose_secret().to_owned());
            up.api_key = Some(credential.key.expose_secret().to_owned());
        }
        self.write_context(&up, &announced.ca, &credential)?;
        let ready = async {
            if let Some(demo) = &self.demo_url {
                let link = Client::link(place, Some(&credential.key)).await?;
                demo::register(link, demo).await?;
            }
            until_ready(listening.admin).await?;
            if self.demo_url.is_some() {
                demo::until_served(&up.mcp, &credential.key).await?;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            ready = ready => ready?,
            error = planes.died() => return Err(error),
        }
        for name in imported.servers.keys() {
            planes.runs.add(name, self.stdio_program(name)?);
        }
        up.stdio = planes.runs.started().await;
        Ok(up)
    }

    /// How an imported program is run. Its name is all that the command line shows of it.
    fn stdio_program(&self, name: &str) -> anyhow::Result<impl Fn() -> Program + Send + 'static> {
        let path = child::own().context("cannot find wafflectl itself")?;
        let mut args = flags([
            ("--config", self.store().path().into()),
            ("--context", self.context_name().into()),
            ("--output", "json".into()),
        ]);
        args.extend(["run".into(), name.into()]);
        let log = self.home.log(&format!("stdio-{name}"));
        let label = format!("stdio program {name}");
        Ok(move || Program {
            name: label.clone(),
            path: path.clone(),
            args: args.clone(),
            secrets: vec![("WAFFLES_DATABASE_URL", None), ("WAFFLES_REDIS_URL", None)],
            log: log.clone(),
        })
    }

    fn control_plane(&self, path: &Path) -> Program {
        let Self { args, .. } = self;
        let mut program = self.control_plane_program(path);
        program.args.extend(flags([
            ("--http-addr", args.http_addr.to_string().into()),
            ("--grpc-addr", args.grpc_addr.to_string().into()),
            ("--admin-addr", admin_addr(args.http_addr, 9081).to_string().into()),
            ("--log-format", "json".into()),
            ("--grace", format!("{}s", CONTROL_PLANE_GRACE.as_secs()).into()),
        ]));
        program.args.push("--announce".into());
        program
    }

    /// The control plane's program with what each of its commands needs.
    fn control_plane_program(&self, path: &Path) -> Program {
        Program {
            name: "the control plane".to_owned(),
            path: path.to_owned(),
            args: flags([("--data-dir", self.home.path.clone().into())]),
            secrets: vec![
                ("WAFFLES_DATABASE_URL", self.args.database_url.clone().map(Into::into)),
                ("WAFFLES_REDIS_URL", self.args.redis_url.clone().map(Into::into)),
            ],
            log: self.home.log("control-plane"),
        }
    }

    /// The token that the data plane joins with, if it is not a member yet or not any more.
    fn join_token(&self, path: &Path) -> Program {
        let mut program = self.control_plane_program(path);
        program.args.insert(0, "join-token".into());
        program.args.extend(flags([("--file", self.home.path.join("join.token").into())]));
        program
    }

    fn data_plane(&self, path: PathBuf, grpc: SocketAddr) -> Program {
        let Self { args, home, .. } = self;
        let mut arguments = flags([
            ("--control-plane", format!("https://{}", dialled(grpc)).into()),
            ("--join-token-file", home.path.join("join.token").into()),
            ("--data-dir", home.path.join("proxy").into()),
            ("--mcp-addr", args.mcp_addr.to_string().into()),
            // There is no load balancer, and whoever presses Ctrl-C waits.
            ("--linger", "0s".into()),
            ("--admin-addr", admin_addr(args.mcp_addr, 9080).to_string().into()),
            ("--log-format", "json".into()),
        ]);
        // On one machine the servers are where a gateway elsewhere must not reach: on loopback.
        arguments.extend(["--allow-private-upstreams=true".into(), "--announce".into()]);
        Program {
            name: "the data plane".to_owned(),
            path,
            args: arguments,
            secrets: vec![
                ("WAFFLES_DATABASE_URL", None),
                ("WAFFLES_REDIS_URL", args.redis_url.clone().map(Into::into)),
            ],
            log: home.log("data-plane"),
        }
    }

    fn store(&self) -> Store {
        match &self.global.config {
            Some(path) => Store::at(path),
            None => Store::at(&self.home.path.join(crate::context::FILE_NAME)),
        }
    }

    fn context_name(&self) -> &str {
        self.global.context.as_deref().unwrap_or(CONTEXT)
    }

    /// The key that wafflectl works with: the one of the context, else a new one made by the admin. When an
    /// earlier first start was interrupted, the admin's password is lost and a new one is made.
    async fn credential(
        &self,
        announced: &ControlPlane,
        grpc: Place<'_>,
        control_plane: &Path,
    ) -> anyhow::Result<Credential> {
        if let Some(Bootstrap { email, password }) = &announced.bootstrap {
            return first::made(grpc, email, password).await;
        }
        let context = self.store().load()?.contexts.remove(self.context_name());
        if let Some(key) = context.and_then(|context| context.api_key) {
            return first::kept(grpc, key, &self.store()).await;
        }
        let mut program = self.control_plane_program(control_plane);
        program.args.insert(0, "admin-password".into());
        let printed = program.output().await?;
        let password = printed.lines().map(str::trim).rfind(|line| !line.is_empty());
        let password = password.context("the control plane printed no new admin password")?;
        first::made(grpc, ADMIN, &password.into()).await
    }

    fn write_context(&self, up: &Up, ca: &str, credential: &Credential) -> anyhow::Result<()> {
        let name = self.context_name();
        self.store().change(|contexts| {
            let context = contexts.contexts.entry(name.to_owned()).or_default();
            context.grpc.clone_from(&up.grpc);
            context.ca = up.grpc.starts_with("https://").then(|| ca.to_owned());
            context.http = Some(up.http.clone());
            context.mcp = Some(up.mcp.clone());
            if credential.is_new {
                context.tenant = Some(waffles_core::DEFAULT_TENANT.to_owned());
                context.api_key = Some(credential.key.clone());
                // A session of another database is worth nothing.
                context.tokens = None;
            }
            if credential.is_new || contexts.current.is_none() {
                contexts.current = Some(name.to_owned());
            }
            Ok(())
        })
    }

    fn welcome(&self, up: &Up) -> String {
        let mut text = format!("Waffles is ready.\n\n{}", indented(&up.text()));
        if !up.stdio.is_empty() {
            text.push_str(&format!("\n\n{}", indented(&up.stdio.text())));
        }
        let logs = self.home.path.join("logs");
        text.push_str(&format!("\n\n  Logs are in {}.", logs.display()));
        if up.api_key.is_some() {
            text.push_str("\n  Keep the password and the key now: they are shown this once.");
        }
        let next = match self.demo_url {
            Some(_) => ["server tools demo", r#"call demo echo --args '{"message": "hello"}'"#],
            None => ["server add NAME http://HOST/mcp", "doctor"],
        };
        text.push_str("\n\nTry next, in another terminal:\n");
        let config = match Store::locate(&Global { config: None, ..self.global.clone() }) {
            Ok(found) if found.path() == self.store().path() => String::new(),
            _ => format!("--config {} ", up.context),
        };
        for command in next {
            text.push_str(&format!("\n  wafflectl {config}{command}"));
        }
        text.push_str("\n\nCtrl-C stops everything.");
        text
    }
}

impl Shape for Up {
    fn text(&self) -> String {
        crate::output::fields([
            ("MCP", format!("{} (one server: {}/servers/NAME)", self.mcp, self.mcp)),
            ("REST", self.http.clone()),
            ("gRPC", self.grpc.clone()),
            ("admin", self.admin.email.clone()),
            ("password", self.admin.password.clone().unwrap_or_default()),
            ("API key", self.api_key.clone().unwrap_or_default()),
            ("context", self.context.clone()),
        ])
    }
}

fn indented(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| format!("  {line}")).collect();
    lines.join("\n")
}

/// Waits until the data plane says that it serves a configuration.
async fn until_ready(admin: SocketAddr) -> anyhow::Result<()> {
    let client = crate::http::builder().timeout(Duration::from_secs(5)).build()?;
    let ready = format!("{}/ready", url(admin));
    let end = Instant::now() + READY_LIMIT;
    loop {
        let said = match client.get(&ready).send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => format!("{}: {}", answer.status(), answer.text().await.unwrap_or_default().trim()),
            Err(error) => crate::client::root(&error),
        };
        if Instant::now() > end {
            let message = format!("the data plane is not ready after {READY_LIMIT:?} ({said})");
            return Err(Failure::failed(message).next("See the logs in the data folder.").into());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The address a client dials for one that a program listens on.
fn url(addr: SocketAddr) -> String {
    format!("http://{}", dialled(addr))
}

fn dialled(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        std::net::IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

/// Refuses an address that is taken. The data plane itself could not tell: it shares its port between cores.
async fn must_be_free(flag: &str, addr: SocketAddr) -> anyhow::Result<()> {
    if addr.port() == 0 {
        return Ok(());
    }
    let end = Instant::now() + PORT_LIMIT;
    loop {
        let error = match std::net::TcpListener::bind(addr) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if error.kind() != std::io::ErrorKind::AddrInUse || Instant::now() > end {
            return Err(Failure::failed(format!("cannot listen on {addr}: {error}"))
                .next(format!("Choose another address with {flag} (port 0 is any free one)."))
                .into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Where a plane's admin port goes: the usual place, or any free one when the usual place is taken or the
/// plane's own port is any free one too.
fn admin_addr(own: SocketAddr, port: u16) -> SocketAddr {
    let usual = SocketAddr::from(([127, 0, 0, 1], port));
    let free = own.port() != 0 && std::net::TcpListener::bind(usual).is_ok();
    if free { usual } else { SocketAddr::from(([127, 0, 0, 1], 0)) }
}

fn flags<const N: usize>(flags: [(&str, OsString); N]) -> Vec<OsString> {
    flags.into_iter().flat_map(|(flag, value)| [flag.into(), value]).collect()
}
