//! `doctor`: every hop from this program to the servers, one after another, and for each that fails what to
//! do about it. A hop behind a failed one is skipped rather than blamed.

use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use waffles_proto::auth::v1::GetSelfRequest;
use waffles_proto::registry::v1::ListServersRequest;

use crate::args::Global;
use crate::client::{Chosen, Client, connect, root};
use crate::context::{Context, Store, is_open_to_others};
use crate::failure::Failure;
use crate::mcp::{self, Era};
use crate::output::print;
use crate::output::shape::{Check, Standing};
use crate::{proxy, server};

const LIMIT: Duration = Duration::from_secs(10);
/// Clocks further apart than this make tokens and key ends unreliable.
const SKEW_LIMIT: i64 = 30;

/// `doctor`.
pub(crate) async fn run(global: &Global) -> anyhow::Result<()> {
    let mut report = Report::default();
    examine(global, &mut report).await;
    print(global.output, report.0.as_slice())?;
    match report.0.iter().filter(|check| check.status == "failed").count() {
        0 => Ok(()),
        1 => Err(Failure::failed("one check failed").into()),
        n => Err(Failure::failed(format!("{n} checks failed")).into()),
    }
}

#[derive(Default)]
struct Report(Vec<Check>);

impl Report {
    fn add(&mut self, name: &str, status: &'static str, detail: impl Into<String>, next: Option<&str>) {
        self.0.push(Check {
            name: name.to_owned(),
            status,
            detail: detail.into(),
            next_step: next.map(str::to_owned),
        });
    }

    fn ok(&mut self, name: &str, detail: impl Into<String>) {
        self.add(name, "ok", detail, None);
    }

    fn warn(&mut self, name: &str, detail: impl Into<String>, next: &str) {
        self.add(name, "warning", detail, Some(next));
    }

    fn fail(&mut self, name: &str, detail: impl Into<String>, next: &str) {
        self.add(name, "failed", detail, Some(next));
    }

    fn skip(&mut self, name: &str, detail: impl Into<String>) {
        self.add(name, "skipped", detail, None);
    }

    /// A failure with its own next step.
    fn failure(&mut self, name: &str, error: &anyhow::Error) {
        let next = error.downcast_ref::<Failure>().and_then(Failure::next_step);
        self.add(name, "failed", format!("{error:#}"), next);
    }
}

async fn examine(global: &Global, report: &mut Report) {
    let chosen = match Store::locate(global).and_then(|store| check_file(&store, report).map(|()| store)) {
        Ok(_) => Chosen::find(global),
        Err(error) => Err(error),
    };
    let mut chosen = match chosen {
        Ok(chosen) => chosen,
        Err(error) => return report.failure("context", &error),
    };
    let context = &chosen.context;
    report.ok("context", format!("{}: gRPC {}", chosen.name, context.grpc));
    let (http, mcp) = (context.http.clone(), context.mcp.clone());

    check_grpc(&chosen.context, report).await;
    check_http(http.as_deref(), report).await;
    let credential = chosen.credential().await;
    match &credential {
        Ok(_) => {}
        Err(error) => report.failure("credential", error),
    }
    let serves = check_data_plane(mcp.as_deref(), report).await;
    let Ok(credential) = credential else { return };
    let names = match check_identity(global, report).await {
        Some(client) => {
            check_proxies(&client, report).await;
            check_registry(&client, report).await
        }
        None => Vec::new(),
    };
    let Some(mcp) = mcp.filter(|_| serves) else { return };
    if check_door(&mcp, &credential, report).await {
        for name in names {
            check_server(&mcp, &name, &credential, report).await;
        }
    }
}

fn check_file(store: &Store, report: &mut Report) -> anyhow::Result<()> {
    let path = store.path().display().to_string();
    store.load()?;
    if is_open_to_others(store.path()) {
        let next = format!("Run `chmod 600 {path}`.");
        report.warn("context file", format!("{path} can be read by others, and holds secrets"), &next);
    } else {
        report.ok("context file", path);
    }
    Ok(())
}

async fn check_grpc(context: &Context, report: &mut Report) {
    let grpc = &context.grpc;
    let channel = match connect(context).await {
        Ok(channel) => channel,
        Err(error) => return report.failure("control plane gRPC", &error),
    };
    let request = HealthCheckRequest { service: String::new() };
    let mut health = HealthClient::new(channel);
    let Ok(answer) = tokio::time::timeout(LIMIT, health.check(request)).await else {
        let next = "It accepts connections and does not answer: see its log, or start it again.";
        return report.fail("control plane gRPC", format!("{grpc}: no answer within {LIMIT:?}"), next);
    };
    match answer.map(|answer| answer.into_inner().status()) {
        Ok(ServingStatus::Serving) => report.ok("control plane gRPC", format!("{grpc} serves")),
        Ok(status) => report.fail(
            "control plane gRPC",
            format!("{grpc} says {}", status.as_str_name()),
            "Look at the control plane's /ready and its log: its database may be away.",
        ),
        Err(status) => report.failure("control plane gRPC", &Failure::from(status).into()),
    }
}

async fn get(url: &str) -> Result<(u16, String, Option<DateTime<Utc>>), String> {
    let client = crate::http::builder().timeout(LIMIT);
    let client = client.build().map_err(|error| root(&error))?;
    let answer = client.get(url).send().await.map_err(|error| root(&error))?;
    let date = answer.headers().get("date").and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| DateTime::parse_from_rfc2822(date).ok()).map(|date| date.to_utc());
    let status = answer.status().as_u16();
    let body = answer.text().await.unwrap_or_default();
    Ok((status, body.chars().take(300).collect::<String>().trim().to_owned(), date))
}

async fn check_http(http: Option<&str>, report: &mut Report) {
    const NAME: &str = "control plane HTTP";
    let Some(http) = http else {
        return report.skip(NAME, "the context does not say where it is (`wafflectl login --http URL`)");
    };
    match get(&format!("{}/ready", http.trim_end_matches('/'))).await {
        Ok((200, _, date)) => {
            report.ok(NAME, format!("{http} is ready"));
            check_clock(date, report);
        }
        Ok((status, body, date)) => {
            report.fail(
                NAME,
                format!("{http}/ready answers {status} {body}"),
                "See which gate is closed and the control plane's log: usually the database cannot be reached.",
            );
            check_clock(date, report);
        }
        Err(error) => {
            report.fail(
                NAME,
                format!("{http}: {error}"),
                "Check that it runs, and the address in the context.",
            );
        }
    }
}

fn check_clock(date: Option<DateTime<Utc>>, report: &mut Report) {
    const NAME: &str = "clock";
    let Some(date) = date else { return report.skip(NAME, "the control plane's answer has no date") };
    // The header has whole seconds, so that one second says nothing.
    let skew = (Utc::now() - date).num_seconds();
    match skew.abs() {
        0..=1 => report.ok(NAME, "agrees with the control plane's"),
        ..=SKEW_LIMIT => report.ok(NAME, format!("{skew} s from the control plane's")),
        _ => report.fail(
            NAME,
            format!("{skew} s from the control plane's"),
            "Synchronise the clocks (NTP): tokens and key ends are judged by them.",
        ),
    }
}

async fn check_identity(global: &Global, report: &mut Report) -> Option<Client> {
    const NAME: &str = "credential";
    let asked = async {
        let client = Client::open(global).await?;
        let answer = client.identity().get_self(GetSelfRequest {}).await.map_err(Failure::from)?;
        anyhow::Ok((client, answer.into_inner()))
    };
    let limited = tokio::time::timeout(LIMIT, asked).await;
    let limited = limited.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {LIMIT:?}")));
    match limited {
        Ok((client, answer)) => {
            let principal = answer.principal.unwrap_or_default();
            report.ok(NAME, format!("{} of tenant {}", principal.name, principal.tenant));
            Some(client)
        }
        Err(error) => {
            report.failure(NAME, &error);
            None
        }
    }
}

async fn check_proxies(client: &Client, report: &mut Report) {
    const NAME: &str = "proxies";
    let proxies = match proxy::list(client).await {
        Ok(proxies) => proxies,
        Err(error) => return report.failure(NAME, &error),
    };
    if proxies.is_empty() {
        report.fail(
            NAME,
            "none has ever connected",
            "Make a token with `wafflectl proxy enroll`, start a data plane with --control-plane and --join-token-file, and see its log.",
        );
    }
    for proxy in &proxies {
        let name = format!("proxy {}", proxy.name);
        let refused = proxy.refused();
        if !refused.is_empty() {
            let next = format!("Correct what is refused; details: `wafflectl proxy get {}`.", proxy.name);
            report.fail(&name, format!("refuses {}", refused.join("; ")), &next);
        } else if !proxy.connected {
            report.warn(
                &name,
                "is not connected; it serves what it last knew, if it runs",
                "If it should run: see its log and its way to the control plane's gRPC port.",
            );
        } else if proxy.lag > 0 {
            report.warn(
                &name,
                format!("is {} revisions behind", proxy.lag),
                "Look again in a moment; if it stays behind, see its log.",
            );
        } else {
            report.ok(&name, "connected, nothing refused, up to date");
        }
        match proxy.standing() {
            Standing::Good => {}
            Standing::Denied => report.warn(
                &name,
                "is shut out",
                "On purpose, nothing is to be done; else `wafflectl proxy allow` and a new token let it in again.",
            ),
            Standing::Ended => report.fail(
                &name,
                "has a certificate that has ended",
                "Give it a new token: `wafflectl proxy enroll`, to be put where its --join-token-file says.",
            ),
        }
        if proxy.lost_records > 0 {
            report.warn(
                &name,
                format!("has lost {} audit records for want of space", proxy.lost_records),
                "Give its data folder more space.",
            );
        }
    }
}

async fn check_registry(client: &Client, report: &mut Report) -> Vec<String> {
    const NAME: &str = "servers";
    let request = ListServersRequest { page_size: 500, ..ListServersRequest::default() };
    match server::list(client, request).await {
        Ok(servers) => {
            let enabled: Vec<String> = servers
                .iter()
                .filter(|server| server.enabled)
                .filter_map(|server| server.spec.as_ref().map(|spec| spec.name.clone()))
                .collect();
            report.ok(NAME, format!("{} registered, {} enabled", servers.len(), enabled.len()));
            enabled
        }
        Err(error) => {
            report.failure(NAME, &error);
            Vec::new()
        }
    }
}

/// Whether it makes sense to go on to the MCP endpoint.
async fn check_data_plane(mcp: Option<&str>, report: &mut Report) -> bool {
    const NAME: &str = "data plane";
    let Some(mcp) = mcp else {
        report.skip(NAME, "the context does not say where it is (`wafflectl login --mcp URL`)");
        return false;
    };
    let origin = url::Url::parse(mcp).map(|url| url.origin().ascii_serialization());
    let Ok(origin) = origin else {
        report.fail(NAME, format!("{mcp} is not an address"), "Correct it with `wafflectl login --mcp URL`.");
        return false;
    };
    match get(&format!("{origin}/ready")).await {
        Ok((200, ..)) => {
            report.ok(NAME, format!("{origin} is ready"));
            true
        }
        Ok((status, body, _)) => {
            report.fail(
                NAME,
                format!("{origin}/ready answers {status} {body}"),
                "It has no configuration yet or is draining: check its way to the control plane.",
            );
            false
        }
        Err(error) => {
            report.fail(
                NAME,
                format!("{origin}: {error}"),
                "Check that it runs, and the address in the context.",
            );
            false
        }
    }
}

/// The endpoint must refuse a stranger and know the credential. Which server it is asked for does not matter:
/// who asks is checked before what for.
async fn check_door(mcp: &str, credential: &SecretString, report: &mut Report) -> bool {
    const NAME: &str = "MCP endpoint";
    let url = format!("{}/servers/wafflectl-doctor", mcp.trim_end_matches('/'));
    let stranger = match post(&url, None).await {
        Ok(status) => status,
        Err(error) => {
            report.fail(NAME, format!("{url}: {error}"), "Check the address in the context.");
            return false;
        }
    };
    if stranger != 401 {
        report.fail(
            NAME,
            format!("answers {stranger} instead of 401 to a stranger"),
            "Check that this address is a Waffles data plane, and nothing before it answers in its place.",
        );
        return false;
    }
    match post(&url, Some(credential)).await {
        Ok(401) => {
            report.fail(
                NAME,
                "the data plane does not know the credential",
                "Check with `wafflectl proxy list` that the proxy is connected and up to date.",
            );
            false
        }
        Ok(_) => {
            report.ok(NAME, "refuses strangers and knows the credential");
            true
        }
        Err(error) => {
            report.fail(NAME, format!("{url}: {error}"), "Check the address in the context.");
            false
        }
    }
}

async fn post(url: &str, credential: Option<&SecretString>) -> Result<u16, String> {
    use secrecy::ExposeSecret as _;
    let client = crate::http::builder().timeout(LIMIT).build().map_err(|error| root(&error))?;
    let mut request = client
        .post(url)
        .header("accept", "application/json, text/event-stream")
        .header("content-type", "application/json")
        .body(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#);
    if let Some(credential) = credential {
        request = request.bearer_auth(credential.expose_secret());
    }
    request.send().await.map(|answer| answer.status().as_u16()).map_err(|error| root(&error))
}

async fn check_server(mcp: &str, name: &str, credential: &SecretString, report: &mut Report) {
    let title = format!("server {name}");
    let asked = async {
        let peer = mcp::connect(mcp, name, credential, Era::Auto).await?;
        let version = peer.protocol_version().unwrap_or_default();
        let tools = peer.list_all_tools().await.map_err(|error| mcp::failure(&error, name));
        peer.close().await;
        anyhow::Ok((version, tools?.len()))
    };
    match tokio::time::timeout(LIMIT, asked).await {
        Ok(Ok((version, tools))) => report.ok(&title, format!("speaks {version}, offers {tools} tools")),
        Ok(Err(error)) => {
            let next = format!(
                "See `wafflectl server get {name}` and `wafflectl audit search --server {name}`: is its address \
                 right, does it run, is its credential good?"
            );
            report.fail(&title, format!("{error:#}"), &next);
        }
        Err(_) => {
            report.fail(
                &title,
                format!("no answer within {LIMIT:?}"),
                "Check that it runs and is not overloaded.",
            );
        }
    }
}
