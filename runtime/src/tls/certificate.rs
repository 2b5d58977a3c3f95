//! What our programs read of a certificate, and its forms: DER on the wire, PEM in files.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Characters on a line of PEM.
const LINE: usize = 64;

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The URIs among the names of its subject.
    pub uris: Vec<String>,
    /// Its number, as the issuer wrote it.
    pub serial: Vec<u8>,
    /// From when it is good, in seconds since 1970.
    pub not_before: i64,
    /// Until when.
    pub not_after: i64,
}

impl Facts {
    /// Reads a certificate; none where it cannot be read whole. Says nothing about who issued it.
    #[must_use]
    pub fn read(der: &[u8]) -> Option<Self> {
        let ([], certificate) = X509Certificate::from_der(der).ok()? else { return None };
        let names = certificate.subject_alternative_name().ok()?;
        let uri = |name: &GeneralName<'_>| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        };
        let uris = names.map(|names| names.value.general_names.iter().filter_map(uri).collect());
        let validity = certificate.validity();
        Some(Self {
            uris: uris.unwrap_or_default(),
            serial: certificate.raw_serial().to_vec(),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        })
    }
}

/// The SHA-256 of a certificate, by which it is pinned.
#[must_use]
pub fn fingerprint(der: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, der).as_ref());
    bytes
}

/// A certificate in PEM form.
#[must_use]
pub fn to_pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(LINE) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// Every certificate of a PEM text, in its order; none where one of them cannot be read.
#[must_use]
pub fn from_pem(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_says_its_names_and_times() {
        let uri = "spiffe://a/proxy/b/c";
        let mut params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI(uri.try_into().unwrap()));
        params.serial_number = Some(rcgen::SerialNumber::from_slice(&[1, 2, 3]));
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        let made = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let facts = Facts::read(made.der()).unwrap();
        assert_eq!((facts.uris.as_slice(), facts.not_before), ([uri.to_owned()].as_slice(), 1_767_225_600));
        assert_eq!(facts.serial, [1, 2, 3]);
        assert_eq!(from_pem(to_pem(made.der()).as_bytes()).unwrap(), [made.der().clone()]);
        assert_eq!(to_pem(made.der()), made.pem().replace("\r\n", "\n"));
        assert_eq!(Facts::read(b"nonsense"), None);
        assert_eq!(Facts::read(&[made.der().as_ref(), b"x"].concat()), None);
    }
}
