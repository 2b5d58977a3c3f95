//! The channel between the planes: who comes in as a proxy, who does not, and what becomes of those who may not any more.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::{Code, Status};
use uuid::Uuid;
use waffles_proto::audit::v1::EventFilter;
use waffles_proto::discovery::v1 as discovery;
use waffles_proto::discovery::v1::discovery_service_client::DiscoveryServiceClient;
use waffles_proto::proxy::v1 as pb;
use waffles_proto::proxy::v1::enrolment_service_client::EnrolmentServiceClient;
use waffles_proto::registry::v1 as registry;
use waffles_proto::registry::v1::registry_service_client::RegistryServiceClient;
use waffles_runtime::tls::mutual::{self, Trust};
use waffles_tests::member::{Followed, Member, announced, dial, enroll, request, servers, upload};
use waffles_tests::programs::{command, http_client};
use waffles_tests::waffles::{Bearer, channel, endpoint, login, spec};
use waffles_tests::{
    ControlPlane, ControlPlaneOptions, DataPlane, DataPlaneOptions, Era, McpServer, PATIENCE, Waffles,
    WafflesOptions, eventually,
};

/// How long a denial may take to bite.
const BITES: Duration = Duration::from_secs(5);

/// Comes in and asks for the configuration: the servers that came, or why none did.
async fn ask(
    channel: Result<tonic::transport::Channel, Status>,
    hello: discovery::Hello,
) -> Result<Vec<String>, Status> {
    let mut followed = Followed::open(channel?, hello).await?;
    Ok(servers(&followed.update().await?))
}

fn short_lived(life: &str) -> ControlPlaneOptions {
    let args = vec!["--proxy-certificate-life".into(), life.into()];
    ControlPlaneOptions { args, ..ControlPlaneOptions::default() }
}

async fn with_short_life(life: &str, proxies: usize) -> Waffles {
    let control_plane = short_lived(life);
    Waffles::with(WafflesOptions { control_plane, proxies, ..WafflesOptions::default() }).await
}

/// What a proxy says of its enrolment.
async fn enrolment(proxy: &DataPlane) -> anyhow::Result<Value> {
    let answer = http_client().get(proxy.admin_url("/ready")).send().await?;
    ensure!(answer.status() == 200, "not ready: {}", answer.status());
    let body: Value = answer.json().await?;
    Ok(body["detail"]["enrolment"].clone())
}

async fn calls(waffles: &Waffles, proxy: usize, server: &str) -> u16 {
    let client = waffles_tests::McpClient::new(&waffles.proxies[proxy].server_url(server));
    let client = client.with_bearer(&waffles.admin.secret).of(Era::Stateless).await;
    client.call("echo", json!({})).await.map_or(0, |answer| answer.status.as_u16())
}

#[tokio::test]
async fn nobody_comes_in_as_a_proxy_who_is_none() {
    let upstream = McpServer::start().await;
    let waffles = Waffles::with(WafflesOptions { proxies: 0, ..WafflesOptions::default() }).await;
    let endpoints = vec![endpoint(&upstream.url())];
    waffles.add(registry::ServerSpec { name: "demo".into(), endpoints, ..spec() }).await;
    let plane = &waffles.control_plane;
    let member = Member::join(plane, "eu").await;
    let other = Member::join(plane, "us").await;
    let come = async |as_whom: &Member, hello| ask(as_whom.channel(plane).await, hello).await;
    assert_eq!(come(&member, member.hello()).await.unwrap(), ["demo"], "the test itself works");
    assert!(upload(member.channel(plane).await.unwrap(), member.id).await.is_ok());

    let bare = mutual::client(Trust::Authorities(&announced(plane)), None).unwrap();
    let nobody = async || dial(plane, bare.clone()).await;
    let hello = || member.hello();
    let mut refused: Vec<(&str, Result<Vec<String>, Status>)> = vec![
        ("no certificate", ask(nobody().await, hello()).await),
        ("another authority", come(&member.forged(), hello()).await),
        ("another group", come(&member, discovery::Hello { group: "us".into(), ..hello() }).await),
        ("no group", come(&member, discovery::Hello { group: String::new(), ..hello() }).await),
        (
            "another proxy's id",
            come(&member, discovery::Hello { proxy_id: other.id.to_string(), ..hello() }).await,
        ),
        ("in the clear", ask(Ok(channel(&plane.grpc_url())), hello()).await),
    ];
    let as_key = Bearer::new(&waffles.admin.secret);
    for (what, way) in [("in the clear", Ok(channel(&plane.grpc_url()))), ("over TLS", nobody().await)] {
        let mut client = DiscoveryServiceClient::with_interceptor(way.unwrap(), as_key.clone());
        let stream = client.stream(tokio_stream::empty()).await;
        refused.push((what, stream.map(|_| Vec::new())));
    }
    let uploads = [
        ("upload for another", upload(member.channel(plane).await.unwrap(), other.id).await),
        ("upload without a certificate", upload(nobody().await.unwrap(), member.id).await),
        ("upload in the clear", upload(channel(&plane.grpc_url()), member.id).await),
    ];
    refused.extend(uploads.into_iter().map(|(what, result)| (what, result.map(|_| Vec::new()))));
    let (_, asked) = request();
    let mut renewal = EnrolmentServiceClient::new(nobody().await.unwrap());
    let renewed = renewal.renew(pb::RenewRequest { request: asked }).await;
    refused.push(("renewal without a certificate", renewed.map(|_| Vec::new())));
    for (what, result) in &refused {
        let status = result.as_ref().expect_err(what);
        assert!(
            !matches!(status.code(), Code::Ok | Code::Internal | Code::DeadlineExceeded),
            "{what}: {status:?}"
        );
    }

    // Whoever has a proxy is no operator with it, even with an operator's key beside.
    let key = Bearer::new(&waffles.admin.secret);
    let taken = RegistryServiceClient::with_interceptor(member.channel(plane).await.unwrap(), key);
    let listed = { taken }.list_servers(registry::ListServersRequest::default()).await;
    assert_eq!(listed.unwrap_err().code(), Code::PermissionDenied);
    let mut taken = pb::proxy_service_client::ProxyServiceClient::new(member.channel(plane).await.unwrap());
    let more = taken.create_join_token(pb::CreateJoinTokenRequest::default()).await;
    assert_eq!(more.unwrap_err().code(), Code::PermissionDenied);

    // Still the proxy that it was.
    assert_eq!(come(&member, member.hello()).await.unwrap(), ["demo"]);
}

#[tokio::test]
async fn tls_1_2_and_the_clear_over_a_network_are_refused() {
    let options =
        ControlPlaneOptions { args: vec!["--public-host".into(), "cp.test".into()], ..Default::default() };
    let plane = ControlPlane::start(options).await;
    let mut roots = rustls::RootCertStore::empty();
    for authority in announced(&plane) {
        roots.add(authority).unwrap();
    }
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let older = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    dial(&plane, std::sync::Arc::new(older)).await.unwrap_err();

    // The same program, with its port on every interface: `dial` reaches it over loopback.
    let network = ControlPlane::start_on("0.0.0.0:0", ControlPlaneOptions::default()).await;
    let bootstrap = network.bootstrap.clone().unwrap();
    let enter = async |channel| login(&channel, &bootstrap.email, &bootstrap.password).await;
    let clear = format!("http://127.0.0.1:{}", network.grpc.port());
    enter(channel(&clear)).await.unwrap_err();
    let encrypted = mutual::client(Trust::Authorities(&announced(&network)), None).unwrap();
    enter(dial(&network, encrypted).await.unwrap()).await.unwrap();

    // wafflectl believes the authority of its context, and no other.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca.pem"), &network.ca).unwrap();
    std::fs::write(dir.path().join("other.pem"), &plane.ca).unwrap();
    let wafflectl = async |ca: &str, grpc: &str| {
        let mut run = command("wafflectl", None);
        run.arg("--config").arg(dir.path().join(format!("{ca}.toml"))).current_dir(dir.path());
        run.args(["login", "--email", &bootstrap.email, "--grpc", grpc, "--ca", ca]);
        run.env("WAFFLES_PASSWORD", &bootstrap.password);
        let output = run.output().await.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let url = format!("https://127.0.0.1:{}", network.grpc.port());
    let (code, said) = wafflectl("ca.pem", &url).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = wafflectl("other.pem", &url).await;
    assert_eq!(code, Some(3), "{said}");
}

#[tokio::test]
async fn a_join_token_is_good_once_and_for_its_time() {
    let waffles = Waffles::with(WafflesOptions { proxies: 0, ..WafflesOptions::default() }).await;
    let plane = &waffles.control_plane;

    // Twenty proxies race with one token.
    let token = plane.enroll("eu").await;
    let race = (0..20).map(async |_| {
        let (key, _) = request();
        enroll(plane, &token, Uuid::now_v7(), &key).await
    });
    let ends = futures_util::future::join_all(race).await;
    assert_eq!(ends.iter().filter(|end| end.is_ok()).count(), 1);
    for status in ends.iter().filter_map(|end| end.as_ref().err()) {
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    }

    let brief = pb::CreateJoinTokenRequest {
        group: "eu".into(),
        ttl: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
    };
    let old = waffles.roster().create_join_token(brief).await.unwrap().into_inner().token;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let (key, _) = request();
    let late = enroll(plane, &old, Uuid::now_v7(), &key).await.unwrap_err();
    assert_eq!(late.code(), Code::Unauthenticated);
    for (seconds, group) in [(0, "eu"), (601, "eu"), (60, "Not A Label")] {
        let ttl = Some(prost_types::Duration { seconds, nanos: 0 });
        let wrong = pb::CreateJoinTokenRequest { group: group.into(), ttl };
        let refused = waffles.roster().create_join_token(wrong).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }

    // A good token is not shown in the clear, and is not lost by a request that is none.
    let good = plane.enroll("eu").await;
    let (key, asked) = request();
    let id = Uuid::now_v7();
    let join = |request: Vec<u8>| pb::EnrollRequest {
        token: good.clone(),
        proxy_id: id.to_string(),
        name: "edge".into(),
        request,
    };
    let clear = EnrolmentServiceClient::new(channel(&plane.grpc_url())).enroll(join(asked)).await;
    assert_eq!(clear.unwrap_err().code(), Code::Unauthenticated);
    let bare = mutual::client(Trust::Authorities(&announced(plane)), None).unwrap();
    let mut over_tls = EnrolmentServiceClient::new(dial(plane, bare).await.unwrap());
    let nonsense = over_tls.enroll(join(b"nonsense".to_vec())).await.unwrap_err();
    assert_eq!(nonsense.code(), Code::InvalidArgument);
    let member = enroll(plane, &good, id, &key).await.unwrap();

    // Another key cannot take over the name of a proxy that is there; its own can join again.
    let token = plane.enroll("eu").await;
    let (stranger, _) = request();
    assert_eq!(enroll(plane, &token, id, &stranger).await.unwrap_err().code(), Code::AlreadyExists);
    let again = enroll(plane, &token, id, &key).await.unwrap();
    assert_eq!(again.uri(), member.uri());
    assert!(member.uri().ends_with(&format!("/proxy/eu/{id}")), "{}", member.uri());

    let joined = EventFilter { action: "proxy.enroll".into(), ..EventFilter::default() };
    let events = waffles.audit_search(joined).await.unwrap();
    assert_eq!(events.len(), 3);
    let everything = format!("{events:?}");
    assert!(!everything.contains(&good) && !everything.contains("wfj_"));
}

#[tokio::test]
async fn a_denied_proxy_is_cut_off_on_every_replica_and_serves_what_it_knew() {
    let upstream = McpServer::start().await;
    let database_url = Some(waffles_tests::Postgres::shared().await.database().await);
    let control_plane = ControlPlaneOptions { database_url: database_url.clone(), ..Default::default() };
    let waffles = Waffles::with(WafflesOptions { control_plane, ..WafflesOptions::default() }).await;
    waffles.add_server("demo", &upstream.url()).await;
    let master = waffles.control_plane.data_dir().join("master.key").display().to_string();
    let args = vec!["--master-key-file".into(), master];
    let second = ControlPlane::start(ControlPlaneOptions { database_url, args, ..Default::default() }).await;
    assert_eq!(second.ca, waffles.control_plane.ca, "replicas have one authority");

    // One that is played holds its stream with the other replica.
    let played = Member::join(&second, "default").await;
    let mut followed = Followed::open(played.channel(&second).await.unwrap(), played.hello()).await.unwrap();
    assert!(followed.update().await.unwrap().len() > 1);

    let deny = async |id: &str| {
        let request = pb::DenyProxyRequest { proxy: id.to_owned() };
        waffles.roster().deny_proxy(request).await.unwrap();
        Instant::now()
    };
    let at = deny(&played.id.to_string()).await;
    let end = followed.end(BITES).await;
    assert_eq!(end.code(), Code::PermissionDenied);
    assert!(at.elapsed() < BITES, "took {:?}", at.elapsed());
    for plane in [&waffles.control_plane, &second] {
        let refused = ask(played.channel(plane).await, played.hello()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        let sent = upload(played.channel(plane).await.unwrap(), played.id).await.unwrap_err();
        assert_eq!(sent.code(), Code::PermissionDenied);
        let mut renewal = EnrolmentServiceClient::new(played.channel(plane).await.unwrap());
        let renewed = renewal.renew(pb::RenewRequest { request: request().1 }).await.unwrap_err();
        assert_eq!(renewed.code(), Code::PermissionDenied);
    }

    // A real one serves on, and hears of nothing any more.
    assert_eq!(calls(&waffles, 0, "demo").await, 200);
    let id = waffles.proxies[0].proxy_id.clone();
    deny(&id).await;
    eventually(BITES, || async {
        let metrics = waffles.proxies[0].metrics().await;
        ensure!(metrics.contains("waffles_config_connected 0"), "it is connected still");
        anyhow::Ok(())
    })
    .await;
    waffles.set_enabled("demo", false).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(calls(&waffles, 0, "demo").await, 200);
    let (listed, _) = waffles.proxy_list().await.unwrap();
    assert!(listed.iter().find(|proxy| proxy.id == id).unwrap().denied);

    // Neither a new token alone nor the lifted denial alone lets it in again; both do.
    waffles.proxies[0].give_token(&waffles.control_plane.enroll("default").await);
    let allow = pb::AllowProxyRequest { proxy: played.id.to_string() };
    waffles.roster().allow_proxy(allow).await.unwrap();
    tokio::time::sleep(BITES).await;
    let refused = ask(played.channel(&second).await, played.hello()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "the certificate from before the denial");
    assert!(waffles.proxies[0].metrics().await.contains("waffles_config_connected 0"));
}

#[tokio::test]
async fn a_proxy_that_is_let_in_again_follows_again() {
    let waffles = Waffles::start().await;
    let id = waffles.proxies[0].proxy_id.clone();
    waffles.roster().deny_proxy(pb::DenyProxyRequest { proxy: id.clone() }).await.unwrap();
    eventually(BITES, || async {
        let metrics = waffles.proxies[0].metrics().await;
        ensure!(metrics.contains("waffles_config_connected 0"), "it is connected still");
        anyhow::Ok(())
    })
    .await;
    waffles.roster().allow_proxy(pb::AllowProxyRequest { proxy: id }).await.unwrap();
    waffles.proxies[0].give_token(&waffles.control_plane.enroll("default").await);
    waffles.settled_within(Duration::from_secs(20)).await;
}

#[tokio::test]
async fn certificates_are_renewed_at_half_of_their_life() {
    let upstream = McpServer::start().await;
    let waffles = with_short_life("8s", 1).await;
    waffles.add_server("demo", &upstream.url()).await;
    let renewals = eventually(Duration::from_secs(40), || async {
        let said = enrolment(&waffles.proxies[0]).await?;
        let renewals = said["renewals"].as_u64().unwrap_or(0);
        ensure!(renewals >= 4, "renewed {renewals} times: {said}");
        ensure!(said["state"] == "enrolled", "{said}");
        Ok(renewals)
    })
    .await;
    // Two lives have passed, and it is as it was.
    assert_eq!(calls(&waffles, 0, "demo").await, 200);
    waffles.add_server("later", &upstream.url()).await;
    assert_eq!(calls(&waffles, 0, "later").await, 200);
    let renewed = EventFilter { action: "proxy.renew".into(), ..EventFilter::default() };
    let events = waffles.audit_search(renewed).await.unwrap().len() as u64;
    assert!((renewals..=renewals + 3).contains(&events), "{events} certificates for {renewals} renewals");
}

#[tokio::test]
async fn a_proxy_whose_certificate_has_ended_serves_on_and_joins_again() {
    let upstream = McpServer::start().await;
    let mut waffles = with_short_life("6s", 1).await;
    waffles.add_server("demo", &upstream.url()).await;
    let old = Member::join(&waffles.control_plane, "default").await;
    waffles.control_plane.kill9().await;
    eventually(PATIENCE, || async {
        let said = enrolment(&waffles.proxies[0]).await?;
        ensure!(said["state"].as_str().is_some_and(|state| state.contains("has ended")), "{said}");
        Ok(())
    })
    .await;
    assert_eq!(calls(&waffles, 0, "demo").await, 200);
    waffles.control_plane.restart().await;
    let ends = waffles_runtime::tls::certificate::Facts::read(&old.own.chain[0]).unwrap().not_after;
    while chrono::Utc::now().timestamp() <= ends {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let refused = ask(old.channel(&waffles.control_plane).await, old.hello()).await;
    assert!(refused.is_err(), "an ended certificate was let in");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(waffles.proxies[0].metrics().await.contains("waffles_config_connected 0"));
    assert_eq!(calls(&waffles, 0, "demo").await, 200);

    // Also after a restart it serves, and then joins.
    waffles.proxies[0].kill9().await;
    waffles.proxies[0].restart().await;
    waffles.proxies[0].ready().await;
    assert_eq!(calls(&waffles, 0, "demo").await, 200);
    waffles.proxies[0].give_token(&waffles.control_plane.enroll("default").await);
    let given = Instant::now();
    waffles.settled_within(Duration::from_secs(10)).await;
    assert!(given.elapsed() < Duration::from_secs(10), "took {:?}", given.elapsed());
    waffles.add_server("later", &upstream.url()).await;
    assert_eq!(calls(&waffles, 0, "later").await, 200);
}

#[tokio::test]
async fn a_proxy_gets_the_servers_of_its_group_only() {
    let upstream = McpServer::start().await;
    let mut waffles = Waffles::with(WafflesOptions { proxies: 0, ..WafflesOptions::default() }).await;
    for group in ["eu", "us"] {
        let options = DataPlaneOptions { group: Some(group.into()), ..DataPlaneOptions::default() };
        waffles.proxies.push(DataPlane::start(&waffles.control_plane, options).await);
    }
    for proxy in &mut waffles.proxies {
        proxy.ready().await;
    }
    let add = |name: &str, groups: &[&str]| registry::ServerSpec {
        name: name.into(),
        endpoints: vec![endpoint(&upstream.url())],
        groups: groups.iter().map(ToString::to_string).collect(),
        ..spec()
    };
    waffles.add(add("everywhere", &[])).await;
    let server = waffles.add(add("european", &["eu"])).await;
    let known = async |proxy: usize| {
        let answer = http_client().get(waffles.proxies[proxy].admin_url("/snapshot")).send().await.unwrap();
        let body: Value = answer.json().await.unwrap();
        let mut names: Vec<String> = body["servers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|server| server["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(known(0).await, ["european", "everywhere"]);
    assert_eq!(known(1).await, ["everywhere"]);
    assert_eq!((calls(&waffles, 0, "european").await, calls(&waffles, 1, "european").await), (200, 404));

    // It moves to the other group, and then to both.
    let mut version = server.version;
    for (groups, expected) in [(vec!["us"], (404, 200)), (vec![], (200, 200)), (vec!["eu", "us"], (200, 200))]
    {
        let request = registry::UpdateServerRequest { spec: Some(add("european", &groups)), version };
        let answer = waffles.registry().update_server(request).await.unwrap().into_inner();
        version = answer.server.unwrap().version;
        waffles.settled().await;
        let now = (calls(&waffles, 0, "european").await, calls(&waffles, 1, "european").await);
        assert_eq!(now, expected, "{groups:?}");
    }

    // Who comes as a whole gets no more than who follows.
    let request = registry::UpdateServerRequest { spec: Some(add("european", &["eu"])), version };
    waffles.registry().update_server(request).await.unwrap();
    waffles.settled().await;
    let fresh = Member::join(&waffles.control_plane, "us").await;
    let came = ask(fresh.channel(&waffles.control_plane).await, fresh.hello()).await.unwrap();
    assert_eq!(came, ["everywhere"]);
}

#[tokio::test]
async fn an_authority_is_rotated_under_running_proxies() {
    let upstream = McpServer::start().await;
    let waffles = with_short_life("12s", 1).await;
    waffles.add_server("demo", &upstream.url()).await;
    let plane = &waffles.control_plane;
    let before = Member::join(plane, "default").await;
    let rotated = waffles.roster().rotate_authority(pb::RotateAuthorityRequest {}).await.unwrap();
    let rotated = rotated.into_inner().authorities;
    assert_eq!(rotated.len(), 2);
    let newest = rotated[0].fingerprint.clone();

    // Both are believed: one that joined before, and one that joins now.
    assert_eq!(ask(before.channel(plane).await, before.hello()).await.unwrap(), ["demo"]);
    let during = Member::join(plane, "default").await;
    assert_eq!(during.authorities.len(), 2);
    let only = |said: &Value| -> anyhow::Result<()> {
        let known = said["authorities"].as_array().context("no authorities")?;
        ensure!(*known == [json!(newest)], "{said}");
        Ok(())
    };
    eventually(Duration::from_secs(60), || async { only(&enrolment(&waffles.proxies[0]).await?) }).await;
    assert_eq!(calls(&waffles, 0, "demo").await, 200);
    waffles.add_server("later", &upstream.url()).await;
    assert_eq!(calls(&waffles, 0, "later").await, 200);
    let after = Member::join(plane, "default").await;
    assert_eq!(ask(after.channel(plane).await, after.hello()).await.unwrap(), ["demo", "later"]);
}

/// An authority in two files.
fn authority(dir: &std::path::Path, name: &str) -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let pem = params.self_signed(&key).unwrap().pem();
    std::fs::write(dir.join(format!("{name}.pem")), &pem).unwrap();
    std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    pem
}

#[tokio::test]
async fn an_authority_from_outside_certifies_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let pem = authority(dir.path(), "first");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let args = ["--ca-cert-file", &path("first.pem"), "--ca-key-file", &path("first.key")].map(str::to_owned);
    let control_plane = ControlPlaneOptions { args: args.into(), ..ControlPlaneOptions::default() };
    let waffles = Waffles::with(WafflesOptions { control_plane, ..WafflesOptions::default() }).await;
    assert_eq!(
        waffles_runtime::tls::certificate::from_pem(pem.as_bytes()).unwrap(),
        announced(&waffles.control_plane)
    );
    let refused = waffles.roster().rotate_authority(pb::RotateAuthorityRequest {}).await.unwrap_err();
    assert!(refused.message().contains("--ca-cert-file"), "{refused:?}");

    // The next one behind it is believed soon, by proxies too.
    let second = authority(dir.path(), "second");
    std::fs::write(dir.path().join("first.pem"), format!("{pem}{second}")).unwrap();
    eventually(PATIENCE, || async {
        let member = Member::join(&waffles.control_plane, "default").await;
        ensure!(member.authorities.len() == 2, "{} authorities", member.authorities.len());
        Ok(())
    })
    .await;
    let upstream = McpServer::start().await;
    waffles.add_server("demo", &upstream.url()).await;
    eventually(PATIENCE, || async {
        let said = enrolment(&waffles.proxies[0]).await?;
        ensure!(said["authorities"].as_array().is_some_and(|known| known.len() == 2), "{said}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn half_an_authority_from_outside_stops_the_start_by_name() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path(), "first");
    authority(dir.path(), "second");
    std::fs::write(dir.path().join("none.pem"), "nonsense").unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for (certificate, key, named) in [
        ("first.pem", "second.key", "--ca-key-file"),
        ("none.pem", "first.key", "--ca-cert-file"),
        ("first.pem", "none.pem", "--ca-key-file"),
        ("missing.pem", "first.key", "--ca-cert-file"),
    ] {
        let mut run = command("waffles-control-plane", None);
        run.arg("--data-dir").arg(dir.path().join("data")).arg("ca");
        run.args(["--ca-cert-file", &path(certificate), "--ca-key-file", &path(key)]);
        let output = run.output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(named), "{certificate} {key}: {said}");
    }
}
