use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

struct Authority {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn authority(name: &str) -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let der = params.self_signed(&key).unwrap().der().clone();
    Authority { der, issuer: Issuer::new(params, key) }
}

impl Authority {
    fn certify(&self, usage: ExtendedKeyUsagePurpose, also: &[&Authority]) -> Own {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        params.extended_key_usages = vec![usage];
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let chain = std::iter::once(leaf).chain(also.iter().map(|also| also.der.clone())).collect();
        Own { chain, key: PrivateKeyDer::Pkcs8(key.serialize_der().into()) }
    }
}

/// Connects once. Tells whether the server has seen a certificate of the client.
async fn meet(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> io::Result<bool> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let accept = async {
        let (stream, _) = listener.accept().await?;
        let stream = TlsAcceptor::from(server).accept(stream).await?;
        Ok(stream.get_ref().1.peer_certificates().is_some())
    };
    let (seen, stream) = tokio::join!(accept, connect(client, "127.0.0.1", port, Duration::from_secs(5)));
    stream?;
    seen
}

#[tokio::test]
async fn both_sides_believe_their_authority_only() {
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let (server_use, client_use) = (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
    let roots = [ours.der.clone()];
    let serve = || server(ours.certify(server_use.clone(), &[&ours]), &roots).unwrap();
    let known = || ours.certify(client_use.clone(), &[]);
    assert!(meet(serve(), client(Trust::Authorities(&roots), Some(known())).unwrap()).await.unwrap());
    assert!(!meet(serve(), client(Trust::Authorities(&roots), None).unwrap()).await.unwrap());
    for stranger in [theirs.certify(client_use.clone(), &[]), ours.certify(server_use.clone(), &[])] {
        meet(serve(), client(Trust::Authorities(&roots), Some(stranger)).unwrap()).await.unwrap_err();
    }
    let wrong = client(Trust::Authorities(std::slice::from_ref(&theirs.der)), None).unwrap();
    meet(serve(), wrong).await.unwrap_err();
}

#[tokio::test]
async fn a_fingerprint_pins_the_authority_that_the_server_shows() {
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let usage = ExtendedKeyUsagePurpose::ServerAuth;
    let pin = |authority: &Authority| client(Trust::Fingerprint(fingerprint(&authority.der)), None).unwrap();
    let serve = |by: &Authority, shown: &[&Authority]| {
        server(by.certify(usage.clone(), shown), std::slice::from_ref(&ours.der)).unwrap()
    };
    assert!(!meet(serve(&ours, &[&theirs, &ours]), pin(&ours)).await.unwrap());
    // Shown is not certified.
    meet(serve(&theirs, &[&theirs, &ours]), pin(&ours)).await.unwrap_err();
    meet(serve(&ours, &[]), pin(&ours)).await.unwrap_err();
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let ours = authority("ours");
    let roots = [ours.der.clone()];
    let serve = server(ours.certify(ExtendedKeyUsagePurpose::ServerAuth, &[]), &roots).unwrap();
    let older = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(store(&roots).unwrap())
        .with_no_client_auth();
    meet(serve, Arc::new(older)).await.unwrap_err();
}
