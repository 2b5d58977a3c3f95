use std::fs;

use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

struct World {
    folder: TempDir,
    paths: ServerPaths,
}

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let paths = ServerPaths { chain: folder.path().join("tls.crt"), key: folder.path().join("tls.key") };
    let world = World { folder, paths };
    world.rotate();
    world
}

impl World {
    /// Writes a new self-signed certificate and returns its PEM.
    fn rotate(&self) -> String {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(&self.paths.chain, made.cert.pem()).unwrap();
        fs::write(&self.paths.key, made.signing_key.serialize_pem()).unwrap();
        made.cert.pem()
    }

    /// Connects once, trusting the given authority, and tells the protocol that was agreed on.
    async fn handshake(&self, server: &ServerTls, ca: &str) -> std::io::Result<Option<Vec<u8>>> {
        let path = self.folder.path().join("ca.crt");
        fs::write(&path, ca).unwrap();
        let client = ClientTrust { extra_ca: Some(path), only_extra: true }.http1().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accept = async {
            let (stream, _) = listener.accept().await.unwrap();
            TlsAcceptor::from(server.config()).accept(stream).await
        };
        let connect = async {
            let stream = TcpStream::connect(addr).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            TlsConnector::from(client).connect(name, stream).await
        };
        let (_, connected) = tokio::join!(accept, connect);
        connected.map(|stream| stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec))
    }
}

#[tokio::test]
async fn a_new_certificate_is_used_without_a_restart() {
    let world = world();
    let old = fs::read_to_string(&world.paths.chain).unwrap();
    let mut server = ServerTls::load(world.paths.clone()).unwrap();
    assert_eq!(world.handshake(&server, &old).await.unwrap().unwrap(), b"http/1.1");
    assert_eq!(server.activate().await, Reload { changed: false, error: None });

    for _ in 0..3 {
        let new = world.rotate();
        assert_eq!(server.activate().await, Reload { changed: true, error: None });
        world.handshake(&server, &new).await.unwrap();
        world.handshake(&server, &old).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_broken_new_file_keeps_the_old_certificate() {
    let world = world();
    let old = fs::read_to_string(&world.paths.chain).unwrap();
    let mut server = ServerTls::load(world.paths.clone()).unwrap();

    // Half of a rotation, nonsense, and nothing at all.
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(&world.paths.chain, other.cert.pem()).unwrap();
    assert!(server.activate().await.error.unwrap().contains("cannot be used"));
    fs::write(&world.paths.chain, "nonsense").unwrap();
    assert!(server.activate().await.error.unwrap().contains("no usable certificate"));
    fs::remove_file(&world.paths.chain).unwrap();
    assert!(server.activate().await.error.unwrap().contains("cannot read"));
    world.handshake(&server, &old).await.unwrap();

    let new = world.rotate();
    assert_eq!(server.activate().await, Reload { changed: true, error: None });
    world.handshake(&server, &new).await.unwrap();
}

#[tokio::test]
async fn an_error_stays_on_show_until_the_files_are_good() {
    let world = world();
    let mut server = ServerTls::load(world.paths.clone()).unwrap();
    fs::write(&world.paths.key, "nonsense").unwrap();
    let first = server.activate().await;
    assert!(first.error.is_some());
    assert_eq!(server.activate().await, first);
}

#[test]
fn a_missing_key_is_named() {
    let world = world();
    fs::remove_file(&world.paths.key).unwrap();
    let error = ServerTls::load(world.paths.clone()).unwrap_err();
    assert!(error.to_string().contains("tls.key"), "{error}");
}
