//! The task that keeps what every replica must agree on: the authorities, the certificate of the gRPC port, and who is
//! shut out. It looks every two seconds, so that a word given to one replica is the word of all soon.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;
use waffles_core::policy::Permission;
use waffles_core::snapshot::{Kind, ResourceKey};
use waffles_runtime::task::{Driver, Task};
use waffles_runtime::telemetry;
use waffles_runtime::tls::certificate;
use waffles_runtime::tls::mutual;

use super::authority::{Authority, SERVER_LIFE};
use super::{Enrolment, Shown, distinct};
use crate::audit;
use crate::authz::OpCtx;
use crate::error::Error;
use crate::store::changes;
use crate::store::enrolment::{self as store, AuthorityRow};

/// A new authority issues once every replica has had time to hear of it.
const SETTLE: TimeDelta = TimeDelta::seconds(10);
/// How long one look may take.
const MOST: Duration = Duration::from_secs(10);

/// What is believed now.
pub(super) struct Trust {
    pub(super) domain: String,
    /// Newest first; never empty.
    authorities: Vec<Arc<Authority>>,
    /// Believed, and issuing nothing here.
    others: Vec<CertificateDer<'static>>,
    /// Of the rows or files that this was made from.
    source: Source,
    server: Arc<ServerConfig>,
    /// When the gRPC port's certificate is replaced, and who issued it.
    renew_at: DateTime<Utc>,
    issuer: [u8; 32],
}

#[derive(PartialEq, Eq)]
enum Source {
    Rows(Vec<AuthorityRow>),
    Files([u8; 32]),
}

impl Trust {
    /// Who issues now: the newest that everybody has heard of.
    pub(super) fn issuing(&self, now: DateTime<Utc>) -> Result<&Authority, Error> {
        issuing(&self.authorities, now)
    }

    /// Every authority that is believed.
    pub(super) fn believed(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.authorities.iter().map(|authority| &authority.der).chain(&self.others)
    }
}

impl Enrolment {
    /// Makes the authority where there is none, and the certificate of the gRPC port. To be called once the migrations
    /// are done.
    pub async fn bootstrap(&self) -> Result<(), Error> {
        let shared = &self.shared;
        let mut tx = shared.db.begin().await?;
        let fresh = format!("waffles-{}", Uuid::now_v7().simple());
        let domain = store::claim_trust_domain(&mut tx, &fresh).await?;
        if shared.settings.files.is_none() && store::authorities_in(&mut tx).await?.is_empty() {
            let (_, row) = Authority::make(None, &shared.seal, Utc::now())?;
            store::insert_authority(&mut tx, &row).await?;
            let detail = json!({"fingerprint": hex(&certificate::fingerprint(&row.certificate))});
            audit::note(&mut tx, &OpCtx::system(), "proxy.rotate_authority", "proxy-authority", detail)
                .await?;
        }
        tx.commit().await?;
        self.refresh(Some(domain)).await.map(drop)
    }

    /// The gRPC port's side of handshakes, as it is now.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, Error> {
        Ok(Arc::clone(&self.trust()?.server))
    }

    /// Makes a new authority. The one before is believed until its last certificate has ended.
    pub async fn rotate(&self, ctx: &OpCtx) -> Result<Vec<Shown>, Error> {
        ctx.require(Permission::ProxiesWrite)?;
        let shared = &self.shared;
        if shared.settings.files.is_some() {
            return Err(Error::Conflict(
                "the authority comes from --ca-cert-file; put the next certificate behind the present one \
                 there, wait until every proxy has renewed, then exchange the two and the key"
                    .to_owned(),
            ));
        }
        let trust = self.trust()?;
        let newest = trust.authorities.first().map(AsRef::as_ref);
        let (authority, row) = Authority::make(newest, &shared.seal, Utc::now())?;
        let mut tx = shared.db.begin().await?;
        store::insert_authority(&mut tx, &row).await?;
        let detail = json!({"fingerprint": hex(&authority.fingerprint())});
        audit::note(&mut tx, ctx, "proxy.rotate_authority", "proxy-authority", detail).await?;
        // Proxies hear of it with the settings.
        changes::append(&mut tx, &ResourceKey::new(Kind::Settings, "settings"), false).await?;
        tx.commit().await?;
        self.refresh(None).await?;
        self.authorities().await
    }

    /// The authorities, newest first.
    async fn authorities(&self) -> Result<Vec<Shown>, Error> {
        let trust = self.trust()?;
        let ends = store::authority_ends(&self.shared.db).await?;
        let shown = trust.authorities.iter().enumerate().map(|(i, authority)| Shown {
            fingerprint: hex(&authority.fingerprint()),
            pem: certificate::to_pem(&authority.der),
            created_at: authority.created_at,
            retires_at: ends.iter().find(|(id, _)| i > 0 && Some(*id) == authority.id).map(|(_, end)| *end),
        });
        Ok(shown.collect())
    }

    /// The driver of the task.
    pub fn driver(&self) -> Driver<Keeper> {
        Driver::new(Keeper { enrolment: self.clone(), failing: false }, Keeper::PERIOD)
    }

    /// Reads what is believed, and renews the certificate of the gRPC port when it is time. Says whether anything is
    /// new.
    async fn refresh(&self, domain: Option<String>) -> Result<bool, Error> {
        let shared = &self.shared;
        let now = Utc::now();
        let before = shared.trust.load_full();
        let domain = domain.or_else(|| before.as_ref().map(|trust| trust.domain.clone()));
        let domain = domain.ok_or_else(|| Error::internal("there is no trust domain yet"))?;
        let (authorities, others, source) = match &shared.settings.files {
            Some(files) => {
                let (authority, others) = Authority::from_files(files).map_err(Error::internal)?;
                let mut all = authority.der.to_vec();
                others.iter().for_each(|other| all.extend_from_slice(other));
                let source = Source::Files(certificate::fingerprint(&all));
                (vec![Arc::new(authority)], others, source)
            }
            None => {
                let rows = store::authorities(&shared.db).await?;
                let known = before.as_ref().filter(|trust| trust.source == Source::Rows(rows.clone()));
                let authorities = match known {
                    Some(trust) => trust.authorities.clone(),
                    None => {
                        let open = |row: &AuthorityRow| Authority::open(row.clone(), &shared.seal);
                        let opened: Result<Vec<_>, _> = rows.iter().map(open).collect();
                        opened?.into_iter().map(Arc::new).collect()
                    }
                };
                (authorities, Vec::new(), Source::Rows(rows))
            }
        };
        let issuing = issuing(&authorities, now)?;
        let issuer = issuing.fingerprint();
        let is_known = |old: &Arc<Trust>| old.source == source && old.renew_at > now && old.issuer == issuer;
        if before.as_ref().is_some_and(is_known) {
            return Ok(false);
        }
        let mut own = issuing.certify_server(&shared.settings.names, now)?;
        // Whoever knows only an older authority finds the way over the bridges, and whoever has a fingerprint finds
        // the authority itself.
        own.chain.extend(authorities.iter().filter_map(|authority| authority.bridge.clone()));
        let believed = distinct(authorities.iter().map(|authority| &authority.der).chain(&others));
        own.chain.extend(believed.iter().cloned());
        let server = mutual::server(own, &believed).map_err(Error::internal)?;
        let renew_at = now + TimeDelta::from_std(SERVER_LIFE / 2).unwrap_or(TimeDelta::days(1));
        let trust = Trust { domain, authorities, others, source, server, renew_at, issuer };
        shared.trust.store(Some(Arc::new(trust)));
        Ok(true)
    }

    /// Drops authorities that certify nobody any more.
    async fn drop_ended(&self, now: DateTime<Utc>) -> Result<bool, Error> {
        let shared = &self.shared;
        let ends = store::authority_ends(&shared.db).await?;
        let is_alive =
            |authority: &Arc<Authority>| ends.iter().any(|(id, end)| Some(*id) == authority.id && *end > now);
        if self.trust()?.authorities.iter().skip(1).all(is_alive) {
            return Ok(false);
        }
        let mut tx = shared.db.begin().await?;
        let dropped = store::drop_ended_authorities(&mut tx, now, now - SETTLE * 2).await?;
        if dropped.is_empty() {
            return Ok(false);
        }
        changes::append(&mut tx, &ResourceKey::new(Kind::Settings, "settings"), false).await?;
        tx.commit().await?;
        tracing::info!(count = dropped.len(), "authorities whose last certificate has ended are gone");
        self.refresh(None).await
    }

    async fn look(&self) -> Result<Report, Error> {
        let shared = &self.shared;
        let denials = store::denials(&shared.db).await?;
        let denied = denials.iter().filter(|(_, lifted_at)| lifted_at.is_none()).count();
        let denials: super::Denials = denials.into_iter().collect();
        shared.denied.send_if_modified(|known| {
            let news = *known != denials;
            if news {
                *known = denials;
            }
            news
        });
        let mut changed = self.refresh(None).await?;
        if self.trust()?.authorities.len() > 1 {
            changed |= self.drop_ended(Utc::now()).await?;
        }
        let authorities = self.trust()?.authorities.len();
        Ok(Report { authorities, denied, changed, error: None })
    }
}

fn issuing(authorities: &[Arc<Authority>], now: DateTime<Utc>) -> Result<&Authority, Error> {
    let settled = authorities.iter().find(|authority| authority.created_at + SETTLE <= now);
    let authority = settled.or(authorities.last());
    authority.map(AsRef::as_ref).ok_or_else(|| Error::internal("there is no authority"))
}

/// Keeps it all.
#[derive(Clone)]
pub struct Keeper {
    enrolment: Enrolment,
    failing: bool,
}

/// What one look found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    authorities: usize,
    denied: usize,
    changed: bool,
    error: Option<String>,
}

impl Keeper {
    /// How often it looks. A proxy that is shut out by another replica goes on for no longer.
    pub const PERIOD: Duration = Duration::from_secs(2);
}

impl Task for Keeper {
    const NAME: &'static str = "enrolment";
    type Report = Report;

    async fn activate(&mut self) -> Report {
        let looked = tokio::time::timeout(MOST, self.enrolment.look()).await;
        let looked = looked.unwrap_or_else(|_| Err(Error::internal("reading took too long")));
        match looked {
            Ok(report) => {
                self.failing = false;
                report
            }
            Err(error) => {
                let error = telemetry::chain(&error).to_string();
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(
                        error,
                        "what proxies are certified by, and who is shut out, cannot be read anew"
                    );
                }
                Report { error: Some(error), ..Report::default() }
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
