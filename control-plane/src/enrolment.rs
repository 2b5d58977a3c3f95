//! Who belongs to the channel between the planes: this Waffles is a small authority that certifies its proxies and its
//! own gRPC port. Join tokens are traded for certificates, certificates are renewed by themselves, and a proxy that is
//! shut out is so within seconds, on every replica and on streams that are open.

mod authority;
mod keeper;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use chrono::{DateTime, TimeDelta, Utc};
use rustls_pki_types::CertificateDer;
use serde_json::json;
use tokio::sync::watch;
use uuid::Uuid;
use waffles_core::audit::{clean, micros};
use waffles_core::credential::Pepper;
use waffles_core::policy::Permission;
use waffles_core::proxy::{DEFAULT_GROUP, JoinToken, ProxyIdentity, is_group};
use waffles_core::seal::SealRing;
use waffles_runtime::tls::certificate::{self, Facts};

use crate::audit;
use crate::authz::{OpCtx, ProxyPeer};
use crate::error::Error;
use crate::secrets::Secrets;
use crate::store::enrolment::{self as store, CertificateRow, TokenRow};
use crate::store::{Db, Tx, proxies};

use authority::Requested;
pub use authority::{AuthorityError, AuthorityFiles};
use keeper::Trust;
pub use keeper::{Keeper, Report};

/// The longest life of a join token, which is also the usual one.
pub const TOKEN_LIFE: Duration = Duration::from_secs(600);
/// The longest life of a proxy's certificate, which is also the usual one.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(86_400);
const MOST_NAME: usize = 128;
/// A request for a certificate has a few hundred bytes.
const MOST_REQUEST: usize = 16 * 1024;

/// What an operator may choose about it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a proxy's certificate is good.
    pub certificate_life: Duration,
    /// Names and addresses by which the gRPC port is reached.
    pub names: Vec<String>,
    /// An authority from outside.
    pub files: Option<AuthorityFiles>,
}

/// Enrolment; cheap to clone.
#[derive(Clone)]
pub struct Enrolment {
    shared: Arc<Shared>,
}

struct Shared {
    db: Db,
    seal: SealRing,
    pepper: Pepper,
    settings: Settings,
    trust: ArcSwapOption<Trust>,
    denied: watch::Sender<Denials>,
}

/// Who was ever shut out, and when that was lifted.
type Denials = HashMap<Uuid, Option<DateTime<Utc>>>;

/// A new join token.
#[derive(Debug)]
pub struct NewToken {
    /// The token; shown this once.
    pub token: JoinToken,
    /// The group of whoever joins with it.
    pub group: String,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

/// What a proxy asks to join with.
#[derive(Debug)]
pub struct Join {
    /// The token as it came.
    pub token: String,
    /// Who it says it is.
    pub proxy: Uuid,
    /// Its name.
    pub name: String,
    /// PKCS #10.
    pub request: Vec<u8>,
}

/// What a proxy gets.
#[derive(Debug)]
pub struct Issued {
    /// The certificate first.
    pub chain: Vec<Vec<u8>>,
    /// Whom the proxy believes from now on.
    pub authorities: Vec<Vec<u8>>,
    /// When the certificate ends.
    pub expires_at: DateTime<Utc>,
    /// The proxy's group.
    pub group: String,
}

/// An authority, as operators see it.
#[derive(Debug)]
pub struct Shown {
    /// In hexadecimal.
    pub fingerprint: String,
    /// Its certificate in PEM form.
    pub pem: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When its last certificate ends; none while it issues some.
    pub retires_at: Option<DateTime<Utc>>,
}

/// Why a proxy may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unwelcome {
    /// It is shut out.
    #[error("this proxy is shut out")]
    Denied,
    /// Its certificate has ended.
    #[error("the certificate has ended")]
    Ended,
}

impl Enrolment {
    /// On a database. Nothing is certified before [`Enrolment::bootstrap`].
    pub fn new(db: Db, secrets: &Secrets, settings: Settings) -> Self {
        let shared = Shared {
            db: db.everywhere(),
            seal: secrets.seal.clone(),
            pepper: Pepper::new(&secrets.pepper),
            settings,
            trust: ArcSwapOption::empty(),
            denied: watch::Sender::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Whose certificate this is that a handshake has verified: a proxy's of this Waffles, or nobody's.
    pub fn peer(&self, der: &[u8]) -> Option<ProxyPeer> {
        let facts = Facts::read(der)?;
        let [uri] = facts.uris.as_slice() else { return None };
        let identity = ProxyIdentity::parse(uri)?;
        // The number says when we issued it, to the millisecond.
        let (seconds, nanos) = Uuid::from_slice(&facts.serial).ok()?.get_timestamp()?.to_unix();
        let issued_at = DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)?;
        let ends_at = DateTime::from_timestamp(facts.not_after, 0)?;
        let ours = identity.trust_domain == self.trust().ok()?.domain;
        ours.then(|| ProxyPeer::certified(identity, issued_at, ends_at))
    }

    /// Whether a proxy may come in, or go on.
    pub fn check(&self, peer: &ProxyPeer) -> Result<(), Unwelcome> {
        if is_denied(&self.shared.denied.borrow(), peer) {
            return Err(Unwelcome::Denied);
        }
        if peer.ends_at() <= Utc::now() { Err(Unwelcome::Ended) } else { Ok(()) }
    }

    /// Waits until a proxy may not go on.
    pub async fn unwelcome(&self, peer: &ProxyPeer) -> Unwelcome {
        let mut denied = self.shared.denied.subscribe();
        let left = (peer.ends_at() - Utc::now()).to_std().unwrap_or_default();
        let shut_out = async {
            // The sender lives as long as this value.
            drop(denied.wait_for(|denied| is_denied(denied, peer)).await);
        };
        tokio::select! {
            () = shut_out => Unwelcome::Denied,
            () = tokio::time::sleep(left) => Unwelcome::Ended,
        }
    }

    /// Makes a join token.
    pub async fn create_token(
        &self,
        ctx: &OpCtx,
        group: &str,
        life: Option<Duration>,
    ) -> Result<NewToken, Error> {
        ctx.require(Permission::ProxiesWrite)?;
        let group = if group.is_empty() { DEFAULT_GROUP } else { group };
        if !is_group(group) {
            return Err(Error::invalid(
                "group",
                "must be a DNS label: 1 to 63 of a-z, 0-9 and inner hyphens",
            ));
        }
        let life = life.unwrap_or(TOKEN_LIFE);
        if !(Duration::from_secs(1)..=TOKEN_LIFE).contains(&life) {
            return Err(Error::invalid("ttl", "must be 1 s to 10 min"));
        }
        let token = JoinToken::generate(&self.trust()?.issuing(Utc::now())?.fingerprint())?;
        let now = micros(Utc::now());
        let expires_at = now + TimeDelta::from_std(life).unwrap_or(TimeDelta::minutes(10));
        let row = TokenRow {
            id: Uuid::now_v7(),
            hash: self.shared.pepper.hash(token.expose()),
            group: group.to_owned(),
            created_at: now,
            expires_at,
        };
        let mut tx = self.shared.db.begin().await?;
        store::insert_token(&mut tx, &row).await?;
        let detail = json!({"token": row.id, "expires_at": expires_at});
        audit::note(&mut tx, ctx, "proxy.create_join_token", &format!("proxy-group/{group}"), detail).await?;
        tx.commit().await?;
        Ok(NewToken { token, group: row.group, expires_at })
    }

    /// Trades a join token for a certificate. Every token that is not good is refused alike.
    pub async fn enroll(&self, ctx: &OpCtx, join: Join) -> Result<Issued, Error> {
        let requested = read_request(&join.request)?;
        let token = JoinToken::parse(&join.token).ok_or(Error::Unauthenticated)?;
        let now = micros(Utc::now());
        let mut tx = self.shared.db.begin().await?;
        let hash = self.shared.pepper.hash(token.expose());
        let used = store::use_token(&mut tx, &hash, join.proxy, now).await?;
        let (token, group) = used.ok_or(Error::Unauthenticated)?;
        // Whatever is refused from here on leaves the token as it was, since nothing is committed.
        if store::is_denied(&mut tx, join.proxy).await? {
            return Err(Error::Denied);
        }
        let keys = store::keys_of(&mut tx, join.proxy).await?;
        if !keys.is_empty() && !keys.contains(&requested.hash()) {
            return Err(Error::Conflict(format!(
                "proxy {} was enrolled with another key; with its data lost, it starts anew without its proxy.id",
                join.proxy
            )));
        }
        let (issued, row) = self.issue(&mut tx, &requested, join.proxy, &group, now).await?;
        let detail = json!({
            "token": token, "name": clean(&join.name, MOST_NAME), "group": group, "serial": row.serial,
            "expires_at": row.expires_at,
        });
        audit::note(&mut tx, ctx, "proxy.enroll", &format!("proxy/{}", join.proxy), detail).await?;
        tx.commit().await?;
        tracing::info!(proxy.id = %join.proxy, proxy.group = group, "a proxy has joined");
        Ok(issued)
    }

    /// Gives a proxy its next certificate.
    pub async fn renew(&self, ctx: &OpCtx, peer: &ProxyPeer, request: &[u8]) -> Result<Issued, Error> {
        let requested = read_request(request)?;
        let now = micros(Utc::now());
        let (proxy, group) = (peer.id(), peer.group());
        let mut tx = self.shared.db.begin().await?;
        if store::is_denied(&mut tx, proxy).await? {
            return Err(Error::Denied);
        }
        let (issued, row) = self.issue(&mut tx, &requested, proxy, group, now).await?;
        let detail = json!({"group": group, "serial": row.serial, "expires_at": row.expires_at});
        audit::note(&mut tx, ctx, "proxy.renew", &format!("proxy/{proxy}"), detail).await?;
        tx.commit().await?;
        Ok(issued)
    }

    /// Shuts a proxy out.
    pub async fn deny(&self, ctx: &OpCtx, proxy: &str) -> Result<Uuid, Error> {
        ctx.require(Permission::ProxiesWrite)?;
        let id = self.find(proxy).await?;
        let mut tx = self.shared.db.begin().await?;
        store::deny(&mut tx, id, Utc::now()).await?;
        audit::note(&mut tx, ctx, "proxy.deny", &format!("proxy/{id}"), json!({})).await?;
        tx.commit().await?;
        tracing::warn!(proxy.id = %id, "a proxy is shut out");
        self.shared.denied.send_modify(|denied| {
            denied.insert(id, None);
        });
        Ok(id)
    }

    /// Lets a proxy join again. Certificates that it has stay refused.
    pub async fn allow(&self, ctx: &OpCtx, proxy: &str) -> Result<Uuid, Error> {
        ctx.require(Permission::ProxiesWrite)?;
        let id = self.find(proxy).await?;
        let now = micros(Utc::now());
        let mut tx = self.shared.db.begin().await?;
        if store::allow(&mut tx, id, now).await? {
            audit::note(&mut tx, ctx, "proxy.allow", &format!("proxy/{id}"), json!({})).await?;
            tx.commit().await?;
            self.shared.denied.send_modify(|denied| {
                denied.insert(id, Some(now));
            });
        }
        Ok(id)
    }

    async fn find(&self, id_or_name: &str) -> Result<Uuid, Error> {
        let missing = || Error::NotFound(format!("proxy {}", clean(id_or_name, MOST_NAME)));
        if let Ok(id) = id_or_name.parse() {
            let known = proxies::by_id(&self.shared.db, id).await?.is_some()
                || store::has_certificate(&self.shared.db, id).await?;
            return if known { Ok(id) } else { Err(missing()) };
        }
        if id_or_name.contains('\0') {
            return Err(missing());
        }
        let row = proxies::by_name(&self.shared.db, id_or_name).await?;
        row.map(|row| row.id).ok_or_else(missing)
    }

    async fn issue(
        &self,
        tx: &mut Tx,
        requested: &Requested,
        proxy: Uuid,
        group: &str,
        now: DateTime<Utc>,
    ) -> Result<(Issued, CertificateRow), Error> {
        let trust = self.trust()?;
        let authority = trust.issuing(now)?;
        let life = TimeDelta::from_std(self.shared.settings.certificate_life).unwrap_or(TimeDelta::hours(24));
        let identity =
            ProxyIdentity { trust_domain: trust.domain.clone(), group: group.to_owned(), id: proxy };
        let row = CertificateRow {
            serial: Uuid::now_v7(),
            proxy,
            group: group.to_owned(),
            authority: authority.id,
            key_hash: requested.hash(),
            issued_at: now,
            expires_at: now + life,
        };
        let certificate = authority.certify(requested, &identity, row.serial, now, row.expires_at)?;
        store::insert_certificate(tx, &row).await?;
        let issued = Issued {
            chain: vec![certificate.to_vec()],
            authorities: trust.believed().map(|authority| authority.to_vec()).collect(),
            expires_at: row.expires_at,
            group: row.group.clone(),
        };
        Ok((issued, row))
    }

    /// The authorities, for proxies.
    pub fn believed(&self) -> Vec<Vec<u8>> {
        let trust = self.shared.trust.load();
        trust.iter().flat_map(|trust| trust.believed()).map(|authority| authority.to_vec()).collect()
    }

    /// The authorities in PEM form: what `wafflectl` and proxies may believe.
    pub fn authorities_pem(&self) -> Result<String, Error> {
        Ok(self.trust()?.believed().map(|authority| certificate::to_pem(authority)).collect())
    }

    fn trust(&self) -> Result<Arc<Trust>, Error> {
        self.shared.trust.load_full().ok_or_else(|| Error::internal("there is no authority yet"))
    }
}

fn read_request(request: &[u8]) -> Result<Requested, Error> {
    if request.len() > MOST_REQUEST {
        return Err(Error::invalid("request", "must have at most 16 KiB"));
    }
    Requested::read(request)
}

fn is_denied(denied: &Denials, peer: &ProxyPeer) -> bool {
    match denied.get(&peer.id()) {
        None => false,
        Some(None) => true,
        Some(Some(lifted_at)) => peer.issued_at() <= *lifted_at,
    }
}

/// The certificates of some authorities, without doubles.
fn distinct<'a>(
    authorities: impl Iterator<Item = &'a CertificateDer<'static>>,
) -> Vec<CertificateDer<'static>> {
    let mut distinct: Vec<CertificateDer<'static>> = Vec::new();
    for authority in authorities {
        if !distinct.contains(authority) {
            distinct.push(authority.clone());
        }
    }
    distinct
}
