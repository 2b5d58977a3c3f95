//! An authority: a key that certifies proxies and the gRPC port. It certifies exactly that, with names that are ours to
//! give and never the requester's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKey, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use uuid::Uuid;
use waffles_core::proxy::{Fingerprint, ProxyIdentity};
use waffles_core::seal::SealRing;
use waffles_runtime::tls::certificate;
use waffles_runtime::tls::mutual::Own;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::store::enrolment::AuthorityRow;

/// How long an authority that was made here could serve.
const LIFE: TimeDelta = TimeDelta::days(3650);
/// How long a certificate of the gRPC port is good.
pub(super) const SERVER_LIFE: Duration = Duration::from_secs(7 * 86_400);
/// Clocks that are this far behind take a new certificate still; less for one of a short life.
const MOST_BACKDATE: i64 = 300;

/// Why an authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read.
    #[error("{flag}: cannot read {}", .path.display())]
    File {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{flag}: {} holds no {wanted}", .path.display())]
    Form {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
    /// Certificates cannot be made with it.
    #[error("the authority cannot be used")]
    Unusable(#[from] rcgen::Error),
}

/// Where an authority from outside lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityFiles {
    /// Its certificate; others behind it are believed as well.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// An authority.
pub(super) struct Authority {
    /// None for one from a file.
    pub(super) id: Option<Uuid>,
    pub(super) der: CertificateDer<'static>,
    /// Its key certified by the one before.
    pub(super) bridge: Option<CertificateDer<'static>>,
    pub(super) created_at: DateTime<Utc>,
    issuer: Issuer<'static, KeyPair>,
}

/// A key that someone proved to hold.
pub(super) struct Requested(PublicKey);

impl Requested {
    /// Reads a request and checks that it was signed with the key it is for.
    pub(super) fn read(der: &[u8]) -> Result<Self, Error> {
        let wrong = |reason: &str| Error::invalid("request", reason);
        let der = CertificateSigningRequestDer::from(der);
        let read = CertificateSigningRequestParams::from_der(&der)
            .map_err(|_| wrong("is not a request for a certificate, signed with its own key (PKCS #10)"))?;
        let known = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519];
        if !known.contains(&read.public_key.algorithm()) {
            return Err(wrong("must be for a key on the curves P-256, P-384 or Ed25519"));
        }
        Ok(Self(read.public_key))
    }

    /// By which the key is known again.
    pub(super) fn hash(&self) -> Vec<u8> {
        use rcgen::PublicKeyData as _;
        certificate::fingerprint(self.0.der_bytes()).to_vec()
    }
}

impl Authority {
    /// Makes one, and what is stored of it.
    pub(super) fn make(
        before: Option<&Self>,
        seal: &SealRing,
        now: DateTime<Utc>,
    ) -> Result<(Self, AuthorityRow), Error> {
        let id = Uuid::now_v7();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(internal)?;
        let mut params = params(now - TimeDelta::hours(1), now + LIFE)?;
        params.distinguished_name.push(DnType::CommonName, format!("Waffles authority {id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let der = params.self_signed(&key).map_err(internal)?.der().clone();
        let bridge = match before {
            Some(before) => Some(params.signed_by(&key, &before.issuer).map_err(internal)?.der().clone()),
            None => None,
        };
        let sealed_key = seal.seal(&purpose(id), &Zeroizing::new(key.serialize_der()))?;
        let row = AuthorityRow {
            id,
            certificate: der.to_vec(),
            bridge: bridge.as_ref().map(|bridge| bridge.to_vec()),
            sealed_key,
            created_at: now,
        };
        let issuer = Issuer::new(params, key);
        Ok((Self { id: Some(id), der, bridge, created_at: now, issuer }, row))
    }

    /// Opens a stored one.
    pub(super) fn open(row: AuthorityRow, seal: &SealRing) -> Result<Self, Error> {
        let key = Zeroizing::new(seal.open(&purpose(row.id), &row.sealed_key)?);
        let key = KeyPair::try_from(key.as_slice()).map_err(internal)?;
        let der = CertificateDer::from(row.certificate);
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(internal)?;
        let bridge = row.bridge.map(CertificateDer::from);
        Ok(Self { id: Some(row.id), der, bridge, created_at: row.created_at, issuer })
    }

    /// Reads one from files, and what else is believed.
    pub(super) fn from_files(
        files: &AuthorityFiles,
    ) -> Result<(Self, Vec<CertificateDer<'static>>), AuthorityError> {
        const CERTIFICATE: &str = "--ca-cert-file";
        const KEY: &str = "--ca-key-file";
        let form = |flag, path: &Path, wanted| AuthorityError::Form { flag, path: path.to_owned(), wanted };
        let pem = read(CERTIFICATE, &files.certificate)?;
        let mut all = certificate::from_pem(&pem).unwrap_or_default().into_iter();
        let wanted = "certificate in PEM form";
        let der = all.next().ok_or_else(|| form(CERTIFICATE, &files.certificate, wanted))?;
        let pem = Zeroizing::new(read(KEY, &files.key)?);
        let key = std::str::from_utf8(&pem).ok().and_then(|pem| KeyPair::from_pem(pem).ok());
        let key = key.ok_or_else(|| form(KEY, &files.key, "private key in PEM form (PKCS #8)"))?;
        let read = Facts::read(&der).filter(|facts| facts.is_authority);
        let facts = read.ok_or_else(|| {
            form(CERTIFICATE, &files.certificate, "certificate of an authority before all others")
        })?;
        if facts.public_key != key.public_key_raw() {
            return Err(form(KEY, &files.key, "key that belongs to the first certificate of --ca-cert-file"));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok((Self { id: None, der, bridge: None, created_at: DateTime::UNIX_EPOCH, issuer }, all.collect()))
    }

    /// By which it is pinned.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        certificate::fingerprint(&self.der)
    }

    /// Certifies a proxy.
    pub(super) fn certify(
        &self,
        requested: &Requested,
        identity: &ProxyIdentity,
        serial: Uuid,
        now: DateTime<Utc>,
        end: DateTime<Utc>,
    ) -> Result<CertificateDer<'static>, Error> {
        let backdate = ((end - now).num_seconds() / 24).clamp(0, MOST_BACKDATE);
        let mut params = params(now - TimeDelta::seconds(backdate), end)?;
        params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
        params.distinguished_name.push(DnType::CommonName, identity.id.to_string());
        let uri = Ia5String::try_from(identity.to_string()).map_err(internal)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        leaf(&mut params, ExtendedKeyUsagePurpose::ClientAuth);
        Ok(params.signed_by(&requested.0, &self.issuer).map_err(internal)?.der().clone())
    }

    /// Certifies the gRPC port, with a key made for this.
    pub(super) fn certify_server(&self, names: &[String], now: DateTime<Utc>) -> Result<Own, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(internal)?;
        let end = now + TimeDelta::from_std(SERVER_LIFE).unwrap_or(TimeDelta::days(7));
        let mut params = params(now - TimeDelta::seconds(MOST_BACKDATE), end)?;
        params.subject_alt_names = CertificateParams::new(names).map_err(internal)?.subject_alt_names;
        params.distinguished_name.push(DnType::CommonName, "Waffles control plane");
        leaf(&mut params, ExtendedKeyUsagePurpose::ServerAuth);
        let der = params.signed_by(&key, &self.issuer).map_err(internal)?.der().clone();
        Ok(Own { chain: vec![der], key: PrivateKeyDer::Pkcs8(key.serialize_der().into()) })
    }
}

/// What is looked at of an authority from outside.
struct Facts {
    is_authority: bool,
    public_key: Vec<u8>,
}

impl Facts {
    fn read(der: &[u8]) -> Option<Self> {
        use x509_parser::prelude::{FromDer as _, X509Certificate};
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let constraints = certificate.basic_constraints().ok()?;
        Some(Self {
            is_authority: constraints.is_some_and(|constraints| constraints.value.ca),
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
        })
    }
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, AuthorityError> {
    std::fs::read(path).map_err(|source| AuthorityError::File { flag, path: path.to_owned(), source })
}

fn leaf(params: &mut CertificateParams, usage: ExtendedKeyUsagePurpose) {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
}

/// A certificate's times have whole seconds.
fn params(start: DateTime<Utc>, end: DateTime<Utc>) -> Result<CertificateParams, Error> {
    let moment = |time: DateTime<Utc>| {
        let seconds = u64::try_from(time.timestamp()).map_err(internal)?;
        Ok::<_, Error>(rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds))
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = moment(start)?;
    params.not_after = moment(end)?;
    Ok(params)
}

/// What the key of an authority is sealed for.
pub(crate) fn purpose(id: Uuid) -> Vec<u8> {
    crate::secrets::keys::authority(id)
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::internal(error)
}
