//! The MCP door over TLS: HTTP/1.1 and HTTP/2, and a certificate that is replaced while the proxy runs.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use waffles_tests::programs::certificate;
use waffles_tests::{DataPlaneOptions, Era, McpClient, McpServer, Waffles, WafflesOptions, eventually};

async fn health(url: &str, trusted: &str, http2: bool) -> anyhow::Result<reqwest::Version> {
    let ca = reqwest::Certificate::from_pem(trusted.as_bytes())?;
    let client = reqwest::Client::builder().tls_certs_only([ca]).no_proxy().timeout(Duration::from_secs(5));
    let client = if http2 { client } else { client.http1_only() };
    let answer = client.build()?.get(url).send().await?;
    ensure!(answer.status() == 200, "{}", answer.status());
    Ok(answer.version())
}

#[tokio::test]
async fn a_replaced_certificate_is_served_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = certificate(dir.path());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let args = vec!["--tls-cert".into(), path("cert.pem"), "--tls-key".into(), path("key.pem")];
    let data_plane = DataPlaneOptions { args, ..DataPlaneOptions::default() };
    let waffles = Waffles::with(WafflesOptions { data_plane, ..WafflesOptions::default() }).await;
    let url = format!("https://{}/health", waffles.proxies[0].mcp);
    assert_eq!(health(&url, &first, false).await.unwrap(), reqwest::Version::HTTP_11);
    assert_eq!(health(&url, &first, true).await.unwrap(), reqwest::Version::HTTP_2);

    let second = certificate(dir.path());
    eventually(Duration::from_secs(30), || health(&url, &second, true)).await;
    assert!(health(&url, &first, true).await.is_err(), "the old certificate is still served");
}

#[tokio::test]
async fn calls_are_served_over_cleartext_http2_too() {
    let upstream = McpServer::start().await;
    let waffles = Waffles::start().await;
    waffles.add_server("demo", &upstream.url()).await;
    let expected =
        waffles.client("demo").of(Era::Stateless).await.call("echo", json!({"n": 1})).await.unwrap();
    let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
    let request = McpClient::new(&waffles.proxies[0].server_url("demo")).with_bearer(&waffles.admin.secret);
    let answer = client
        .get(format!("http://{}/ready", waffles.proxies[0].mcp))
        .headers(request.headers.clone())
        .send()
        .await
        .unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_2));
    assert_eq!(expected.status, 200);
}
