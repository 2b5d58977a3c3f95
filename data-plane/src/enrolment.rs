//! This proxy's place among the control plane's: it joins with a token, once, keeps the certificate that it gets for it,
//! and renews that at half of its life. A proxy whose certificate has ended serves on, says so, and joins again as soon
//! as there is a new token. Its keys are made here and never leave.

mod card;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, RwLock};
use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Code;
use uuid::Uuid;
use waffles_core::proxy::{JoinToken, ProxyIdentity};
use waffles_proto::proxy::v1 as pb;
use waffles_proto::proxy::v1::enrolment_service_client::EnrolmentServiceClient;
use waffles_runtime::drain::Drain;
use waffles_runtime::tls::mutual::{self, Trust};
use waffles_runtime::{task, telemetry};
use zeroize::Zeroizing;

use crate::link::{Address, BackOff, LinkError, OPEN_TIME, dial};
use crate::state::DiskError;
use card::{Card, Key};

/// How often is looked for a token while one is needed, and otherwise.
const LOOK: Duration = Duration::from_millis(200);
const LOOK_IDLY: Duration = Duration::from_secs(1);
/// Longer files hold something else.
const MOST_TOKEN: u64 = 4096;

/// What the task needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the control plane is.
    pub address: Address,
    /// Where key and certificate are kept.
    pub data_dir: PathBuf,
    /// Where a join token lies, or will.
    pub token_file: Option<PathBuf>,
    /// Who this proxy is.
    pub proxy_id: Uuid,
    /// Its name, for people.
    pub name: String,
}

/// Whether this proxy belongs to its control plane, and the means to show it.
#[derive(Debug)]
pub struct Membership {
    config: Config,
    held: RwLock<Held>,
    news: watch::Sender<u64>,
    live: Mutex<Live>,
}

/// What lies on disk, too.
#[derive(Debug)]
struct Held {
    key: Key,
    card: Option<Arc<Member>>,
}

/// A proxy that was certified.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) identity: ProxyIdentity,
    pub(crate) tls: Arc<ClientConfig>,
    card: Card,
    begins_at: DateTime<Utc>,
    ends_at: DateTime<Utc>,
}

#[derive(Debug, Default)]
struct Live {
    error: Option<String>,
    told: Option<&'static str>,
    renewals: u64,
    /// The control plane does not let the present certificate in.
    refused: bool,
}

impl Member {
    fn new(card: Card, key: &Key, proxy_id: Uuid) -> Result<Self, String> {
        let (identity, begins_at, ends_at) = card.read().ok_or("the certificate cannot be read")?;
        if identity.id != proxy_id {
            return Err(format!("the certificate is that of proxy {}", identity.id));
        }
        let own = card.own(key);
        let tls = mutual::client(Trust::Authorities(&card.authorities), Some(own))
            .map_err(|error| telemetry::chain(&error).to_string())?;
        Ok(Self { identity, tls, card, begins_at, ends_at })
    }

    fn is_over(&self, now: DateTime<Utc>) -> bool {
        self.ends_at <= now
    }

    fn is_due(&self, now: DateTime<Utc>) -> bool {
        self.begins_at + (self.ends_at - self.begins_at) / 2 <= now
    }
}

impl Membership {
    /// Reads what is on disk. What is damaged counts as absent: the proxy then joins anew.
    ///
    /// # Errors
    /// When no key can be made or kept.
    pub fn open(config: Config) -> Result<Arc<Self>, DiskError> {
        let (key, card) = card::load(&config.data_dir)?;
        let card = card.and_then(|card| match Member::new(card, &key, config.proxy_id) {
            Ok(member) => Some(Arc::new(member)),
            Err(error) => {
                tracing::error!(error, "the certificate on disk is not used; a join token is needed");
                None
            }
        });
        let held = RwLock::new(Held { key, card });
        Ok(Arc::new(Self { config, held, news: watch::Sender::default(), live: Mutex::default() }))
    }

    /// The proof that this proxy belongs, as long as there is one.
    pub(crate) fn current(&self) -> Result<Arc<Member>, LinkError> {
        let member = self.held.read().card.clone().ok_or(LinkError::NotEnrolled)?;
        if member.is_over(Utc::now()) { Err(LinkError::CertificateEnded) } else { Ok(member) }
    }

    /// Counts certificates. Whoever waits to try again need not wait any longer.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// How many seconds the certificate is good still; negative without one.
    pub fn seconds_left(&self) -> i64 {
        let held = self.held.read();
        held.card.as_ref().map_or(-1, |member| (member.ends_at - Utc::now()).num_seconds().max(-1))
    }

    /// For the admin port.
    pub fn report(&self) -> serde_json::Value {
        let member = self.held.read().card.clone();
        let live = self.live.lock();
        let state = match &member {
            None => "not enrolled: a join token is needed",
            Some(member) if member.is_over(Utc::now()) => {
                "the certificate has ended: a join token is needed; what is known is served on"
            }
            Some(_) if live.refused => "shut out by the control plane; what is known is served on",
            Some(_) => "enrolled",
        };
        serde_json::json!({
            "state": state,
            "identity": member.as_ref().map(|member| member.identity.to_string()),
            "group": member.as_ref().map(|member| member.identity.group.clone()),
            "certificate_ends_at": member.as_ref().map(|member| member.ends_at.to_rfc3339()),
            "authorities": member.as_ref().map(|member| member.card.fingerprints()),
            "renewals": live.renewals,
            "error": live.error,
        })
    }

    /// A stream ended so. A certificate that is not let in is worth no more than none.
    pub(crate) fn note(&self, error: &LinkError) {
        if matches!(error, LinkError::Status(status) if status.code() == Code::PermissionDenied) {
            self.live.lock().refused = true;
        }
    }

    /// A stream is open.
    pub(crate) fn welcomed(&self) {
        self.live.lock().refused = false;
    }

    /// The control plane says whom to believe from now on.
    pub(crate) fn learn(&self, authorities: &[Vec<u8>]) {
        let Some(member) = self.held.read().card.clone() else { return };
        let authorities: Vec<_> = authorities.iter().map(|der| CertificateDer::from(der.clone())).collect();
        if authorities.is_empty() || authorities == member.card.authorities {
            return;
        }
        let card = Card { authorities, ..member.card.clone() };
        let key = self.held.read().key.clone();
        match self.take(key, card) {
            Ok(()) => tracing::info!("the control plane's authorities have changed"),
            Err(error) => tracing::error!(error, "new authorities of the control plane are not taken"),
        }
    }

    /// Keeps a certificate, and uses it from now on.
    fn take(&self, key: Key, card: Card) -> Result<(), String> {
        let member = Member::new(card, &key, self.config.proxy_id)?;
        card::save(&self.config.data_dir, &key, Some(&member.card))
            .map_err(|error| telemetry::chain(&error).to_string())?;
        *self.held.write() = Held { key, card: Some(Arc::new(member)) };
        self.live.lock().refused = false;
        self.news.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn join(&self, token: &JoinToken) -> Result<(), LinkError> {
        let key = self.held.read().key.clone();
        let request = pb::EnrollRequest {
            token: token.expose().to_owned(),
            proxy_id: self.config.proxy_id.to_string(),
            name: self.config.name.clone(),
            request: key.request().map_err(|_| LinkError::Contract("no request can be made"))?,
        };
        let tls = mutual::client(Trust::Fingerprint(*token.authority()), None)
            .map_err(|_| LinkError::Contract("TLS cannot be configured"))?;
        let channel = dial(&self.config.address, tls).await?;
        let mut client = EnrolmentServiceClient::new(channel);
        let answer = tokio::time::timeout(OPEN_TIME, client.enroll(request)).await;
        let answer = answer.map_err(|_| LinkError::Timeout("the certificate"))??;
        self.certified(key, answer.into_inner().certificate)
    }

    async fn renew(&self, member: &Member) -> Result<(), LinkError> {
        let key = Key::generate().map_err(|_| LinkError::Contract("no key can be made"))?;
        let request = key.request().map_err(|_| LinkError::Contract("no request can be made"))?;
        let channel = dial(&self.config.address, Arc::clone(&member.tls)).await?;
        let request = pb::RenewRequest { request };
        let mut client = EnrolmentServiceClient::new(channel);
        let answer = tokio::time::timeout(OPEN_TIME, client.renew(request)).await;
        let answer = answer.map_err(|_| LinkError::Timeout("the certificate"))??;
        self.certified(key, answer.into_inner().certificate)
    }

    fn certified(&self, key: Key, certificate: Option<pb::Certificate>) -> Result<(), LinkError> {
        let pb::Certificate { chain, authorities, .. } = certificate.unwrap_or_default();
        let certificates = |list: Vec<Vec<u8>>| list.into_iter().map(CertificateDer::from).collect();
        let card = Card { chain: certificates(chain), authorities: certificates(authorities) };
        self.take(key, card).map_err(LinkError::Certificate)
    }

    /// The token in the file, if there is one.
    fn token(&self) -> Option<JoinToken> {
        let path = self.config.token_file.as_ref()?;
        if std::fs::metadata(path).ok()?.len() > MOST_TOKEN {
            return None;
        }
        let text = Zeroizing::new(std::fs::read_to_string(path).ok()?);
        JoinToken::parse(text.trim())
    }

    /// Says what is wrong once, not with each attempt.
    fn failed(&self, what: &'static str, error: &LinkError) {
        let text = telemetry::chain(error).to_string();
        let mut live = self.live.lock();
        if live.error.as_ref() != Some(&text) {
            tracing::warn!(error = text, "{what}");
        }
        live.error = Some(text);
    }

    fn tell(&self, state: &'static str) {
        let mut live = self.live.lock();
        if live.told.replace(state) != Some(state) {
            tracing::error!(
                token.file = self.config.token_file.as_ref().map(|path| path.display().to_string()),
                "{state}"
            );
        }
    }
}

/// Starts the task. It ends with the drain.
pub fn spawn(membership: &Arc<Membership>, drain: Drain) {
    let keeper = Keeper {
        membership: Arc::clone(membership),
        tried: None,
        back_off: BackOff::new(),
        not_before: Instant::now(),
    };
    task::spawn("enrolment", async move {
        tokio::select! {
            () = drain.ended() => {}
            () = keeper.run() => {}
        }
    });
}

struct Keeper {
    membership: Arc<Membership>,
    /// A token that was used, or refused.
    tried: Option<JoinToken>,
    back_off: BackOff,
    /// When the next attempt may be made.
    not_before: Instant,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            let member = self.membership.held.read().card.clone();
            let now = Utc::now();
            let needed = member.as_ref().is_none_or(|member| member.is_over(now));
            let refused = self.membership.live.lock().refused;
            if self.not_before <= Instant::now() {
                match self.token(member.as_deref(), needed || refused) {
                    Some(token) => self.join(token).await,
                    None if needed => self.membership.tell(match member {
                        None => "not enrolled with the control plane: a join token is needed",
                        Some(_) => "the certificate has ended, serving what is known: a join token is needed",
                    }),
                    None => {}
                }
                if let Some(member) = member.filter(|member| !needed && member.is_due(now)) {
                    self.renew(&member).await;
                }
            }
            tokio::time::sleep(if needed { LOOK } else { LOOK_IDLY }).await;
        }
    }

    /// A token to join with: any that is new while there is no certificate that is let in, else one of another Waffles, which an
    /// operator has put there for this.
    fn token(&self, member: Option<&Member>, needed: bool) -> Option<JoinToken> {
        let token = self.membership.token()?;
        let is_tried = self.tried.as_ref().is_some_and(|tried| tried.is(&token));
        let is_foreign = member.is_none_or(|member| !member.card.knows(token.authority()));
        (!is_tried && (needed || is_foreign)).then_some(token)
    }

    async fn join(&mut self, token: JoinToken) {
        match self.membership.join(&token).await {
            Ok(()) => {
                self.tried = Some(token);
                self.succeeded("joined the control plane's proxies");
            }
            Err(error) => {
                if is_final(&error) {
                    self.tried = Some(token);
                }
                self.membership.failed("cannot join the control plane's proxies", &error);
                self.not_before = Instant::now() + self.back_off.after(&error);
            }
        }
    }

    async fn renew(&mut self, member: &Member) {
        match self.membership.renew(member).await {
            Ok(()) => {
                self.membership.live.lock().renewals += 1;
                self.succeeded("renewed the certificate");
            }
            Err(error) => {
                self.membership.failed("cannot renew the certificate, trying again", &error);
                self.not_before = Instant::now() + self.back_off.after(&error);
            }
        }
    }

    fn succeeded(&mut self, what: &'static str) {
        self.back_off.reset();
        let mut live = self.membership.live.lock();
        (live.error, live.told) = (None, None);
        let member = self.membership.held.read().card.clone();
        tracing::info!(
            proxy.identity = member.as_ref().map(|member| member.identity.to_string()),
            ends_at = member.as_ref().map(|member| member.ends_at.to_rfc3339()),
            "{what}"
        );
    }
}

/// Whether the same token is worth no other attempt.
fn is_final(error: &LinkError) -> bool {
    match error {
        LinkError::Status(status) => matches!(
            status.code(),
            // One that is shut out may be let in again while the token is good.
            Code::Unauthenticated | Code::AlreadyExists | Code::InvalidArgument
        ),
        LinkError::Certificate(_) => true,
        _ => false,
    }
}
