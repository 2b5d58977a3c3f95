//! A proxy without a control plane: its data directory is given a snapshot, and it serves that for ever. With a scripted
//! server behind it, and the audit records that it wrote.

use std::path::Path;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use prost::Message as _;
use secrecy::ExposeSecret as _;
use uuid::Uuid;
use waffles_core::audit::Event;
use waffles_core::credential::{ApiKey, ApiKeyParts, Claims, KeyLimits, Pepper, generate_key};
use waffles_core::limit::{Limit, LimitSpec};
use waffles_core::namespace::{Namespace, NamespaceSpec};
use waffles_core::policy::{Rule, RuleSpec};
use waffles_core::principal::Principal;
use waffles_core::seal::{SealKey, SealRing};
use waffles_core::server::{Credential, Endpoint, Server, Spec, Timeouts};
use waffles_core::snapshot::{Settings, Snapshot, TokenKey};
use waffles_core::wire::{self, Update};
use waffles_data_plane::state::Disk;
use waffles_proto::audit::v1 as audit_pb;
use waffles_proto::discovery::v1 as pb;

use crate::programs::{DataPlane, DataPlaneOptions};
use crate::{McpClient, McpServer};

/// `iss` and `aud` of access tokens.
pub const ISSUER: &str = "waffles";
/// `kid` of access tokens.
pub const KID: &str = "seeded";
const PEPPER: [u8; 32] = [7; 32];

/// What a proxy's snapshot is made of.
#[derive(Debug)]
pub struct Seed {
    resources: Vec<pb::Resource>,
    pkcs8: Vec<u8>,
    /// Of the token key, for forgeries that use it as a shared secret.
    pub public_key: [u8; 32],
    /// Grows with each change that a running proxy shall take over.
    pub revision: u64,
}

impl Default for Seed {
    fn default() -> Self {
        Self::new()
    }
}

impl Seed {
    /// Settings and a token key, and nobody and nothing else.
    pub fn new() -> Self {
        let pair = Ed25519KeyPair::generate().expect("there are random numbers");
        let pkcs8 = pair.to_pkcs8v1().expect("a key can be written").as_ref().to_vec();
        let public_key = pair.public_key().as_ref().try_into().expect("an Ed25519 key has 32 bytes");
        let ring = SealRing::new(vec![SealKey::new(1, &[9; 32])]);
        let settings = Settings::new(PEPPER, ring, ISSUER.into(), ISSUER.into());
        let resources = vec![
            wire::settings_resource(&settings),
            wire::token_key_resource(&TokenKey { kid: KID.into(), public_key }),
        ];
        Self { resources, pkcs8, public_key, revision: 1 }
    }

    /// A principal of the default tenant.
    pub fn principal(&mut self, name: &str, role: &str) -> Uuid {
        self.principal_with(name, role, |_| {})
    }

    /// A principal that differs.
    pub fn principal_with(&mut self, name: &str, role: &str, change: impl FnOnce(&mut Principal)) -> Uuid {
        let mut principal = Principal {
            id: Uuid::now_v7(),
            tenant: waffles_core::DEFAULT_TENANT.into(),
            name: name.into(),
            roles: vec![role.into()],
            active: true,
            ..Principal::default()
        };
        change(&mut principal);
        self.resources.push(wire::principal_resource(&principal));
        principal.id
    }

    /// A key of a principal: the whole text.
    pub fn key(&mut self, owner: Uuid, limits: KeyLimits) -> String {
        self.key_with(owner, |parts| parts.limits = limits)
    }

    /// A key that differs.
    pub fn key_with(&mut self, owner: Uuid, change: impl FnOnce(&mut ApiKeyParts)) -> String {
        let key = generate_key().expect("there are random numbers");
        let text = key.text.expose_secret().to_owned();
        let mut parts = ApiKeyParts {
            id: key.id,
            tenant: waffles_core::DEFAULT_TENANT.into(),
            name: "seeded".into(),
            owner,
            limits: KeyLimits::default(),
            created_at: Utc::now(),
            expires_at: None,
            revoked_at: None,
            not_after: None,
        };
        change(&mut parts);
        let compiled = ApiKey::compile(parts).expect("the limits can be read");
        self.resources.push(wire::key_resource(&compiled, &Pepper::new(&PEPPER).hash(&text)));
        text
    }

    /// A server of the default tenant at this URL, with short time limits.
    pub fn server(&mut self, name: &str, url: &str, change: impl FnOnce(&mut Server)) -> Uuid {
        let seconds = std::time::Duration::from_secs;
        let timeouts =
            Timeouts { connect: seconds(2), first_byte: seconds(20), idle: seconds(20), total: seconds(60) };
        let endpoints = vec![Endpoint::at(url.parse().expect("it is a URL"))];
        let mut server = Server {
            id: Uuid::now_v7(),
            tenant: waffles_core::DEFAULT_TENANT.into(),
            spec: Spec { name: name.into(), endpoints, timeouts, ..Spec::default() },
            credential: Credential::None,
            enabled: true,
            version: 1,
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
        };
        change(&mut server);
        self.resources.push(wire::server_resource(&server));
        server.id
    }

    /// A rule of the default tenant.
    pub fn rule(&mut self, spec: RuleSpec) -> Uuid {
        let rule = Rule { id: Uuid::now_v7(), tenant: waffles_core::DEFAULT_TENANT.into(), spec };
        self.resources.push(wire::rule_resource(&rule));
        rule.id
    }

    /// A limit of the default tenant.
    pub fn limit(&mut self, spec: LimitSpec) -> Uuid {
        let limit = Limit { id: Uuid::now_v7(), tenant: waffles_core::DEFAULT_TENANT.into(), spec };
        self.resources.push(wire::limit_resource(&limit));
        limit.id
    }

    /// A namespace of the default tenant.
    pub fn namespace(&mut self, spec: NamespaceSpec) -> Uuid {
        let namespace = Namespace {
            id: Uuid::now_v7(),
            tenant: waffles_core::DEFAULT_TENANT.into(),
            spec,
            version: 1,
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
        };
        self.resources.push(wire::namespace_resource(&namespace));
        namespace.id
    }

    /// What a token for this principal says: good for a minute.
    pub fn claims(&self, principal: Uuid) -> Claims {
        let now = Utc::now().timestamp();
        Claims {
            iss: ISSUER.into(),
            aud: ISSUER.into(),
            sub: principal,
            tenant: waffles_core::DEFAULT_TENANT.into(),
            sid: Uuid::now_v7(),
            iat: now,
            exp: now + 60,
        }
    }

    /// A token, signed as the control plane does.
    pub fn token(&self, claims: &impl serde::Serialize) -> String {
        let header = Header { kid: Some(KID.into()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_ed_der(&self.pkcs8))
            .expect("a token can be signed")
    }

    /// A token of exactly these texts, with a signature that is right for them.
    pub fn token_of(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let pair = Ed25519KeyPair::from_pkcs8(&self.pkcs8).expect("the key is one");
        let signature = pair.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    /// Takes the token key away and has another one under this name; tokens are signed with it from now on.
    pub fn rotate_token_key(&mut self, kid: &str) {
        let other = Self::new();
        let is_key = |resource: &pb::Resource| matches!(resource.kind, Some(pb::resource::Kind::TokenKey(_)));
        self.resources.retain(|resource| !is_key(resource));
        let key = TokenKey { kid: kid.into(), public_key: other.public_key };
        self.resources.push(wire::token_key_resource(&key));
        (self.pkcs8, self.public_key) = (other.pkcs8, other.public_key);
        self.revision += 1;
    }

    /// The whole without its principals, but for those that are made now.
    pub fn without_principals(&self, make: impl FnOnce(&mut Self)) -> Snapshot {
        let is_one =
            |resource: &pb::Resource| matches!(resource.kind, Some(pb::resource::Kind::Principal(_)));
        let resources = self.resources.iter().filter(|resource| !is_one(resource)).cloned().collect();
        let mut other = Self {
            resources,
            pkcs8: self.pkcs8.clone(),
            public_key: self.public_key,
            revision: self.revision + 1,
        };
        make(&mut other);
        other.snapshot()
    }

    /// The whole as a proxy keeps it.
    pub fn snapshot(&self) -> Snapshot {
        let (snapshot, refused) = Snapshot::default().with_update(Update {
            lineage: "seeded".into(),
            revision: self.revision,
            full: true,
            resources: self.resources.clone(),
            removed: Vec::new(),
        });
        assert_eq!(refused, []);
        snapshot
    }

    /// Puts the snapshot into the data directory of a proxy that does not run.
    pub fn save(&self, data_dir: &Path) {
        let disk = Disk::open(data_dir).expect("the data directory can be used");
        disk.save(&self.snapshot()).expect("a snapshot can be saved");
    }
}

/// A seeded proxy in front of a scripted server, which is registered as `demo`, and a principal with a key.
#[derive(Debug)]
pub struct Seeded {
    // Stopped first.
    pub proxy: DataPlane,
    pub upstream: McpServer,
    pub seed: Seed,
    /// Who the key belongs to.
    pub alice: Uuid,
    /// Alice's key.
    pub key: String,
}

impl Seeded {
    /// The usual one.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// One whose server differs.
    pub async fn with(change: impl FnOnce(&mut Server)) -> Self {
        Self::made(DataPlaneOptions::default(), change, |_, _| {}).await
    }

    /// One that has more in its snapshot; the second argument is the URL of the scripted server.
    pub async fn and(more: impl FnOnce(&mut Seed, &str)) -> Self {
        Self::made(DataPlaneOptions::default(), |_| {}, more).await
    }

    /// One that differs in all ways.
    pub async fn made(
        options: DataPlaneOptions,
        change: impl FnOnce(&mut Server),
        more: impl FnOnce(&mut Seed, &str),
    ) -> Self {
        let upstream = McpServer::start().await;
        let mut seed = Seed::new();
        let alice = seed.principal("alice", "user");
        let key = seed.key(alice, KeyLimits::default());
        seed.server("demo", &upstream.url(), change);
        more(&mut seed, &upstream.url());
        let proxy = Self::proxy(&seed, options).await;
        Self { proxy, upstream, seed, alice, key }
    }

    /// One more proxy with the same snapshot.
    pub async fn another(&self) -> DataPlane {
        self.another_with(DataPlaneOptions::default()).await
    }

    /// One more proxy with the same snapshot, that is started in another way.
    pub async fn another_with(&self, options: DataPlaneOptions) -> DataPlane {
        Self::proxy(&self.seed, options).await
    }

    /// One that listens on every address, not on loopback alone.
    pub async fn public(options: DataPlaneOptions) -> Self {
        Self::made(DataPlaneOptions { public: true, ..options }, |_| {}, |_, _| {}).await
    }

    async fn proxy(seed: &Seed, options: DataPlaneOptions) -> DataPlane {
        let mut proxy = DataPlane::start_seeded(|dir| seed.save(dir), options).await;
        proxy.ready().await;
        proxy
    }

    /// A client of `demo` with Alice's key.
    pub fn client(&self) -> McpClient {
        self.anonymous().with_bearer(&self.key)
    }

    /// A client of `demo` without a credential.
    pub fn anonymous(&self) -> McpClient {
        McpClient::new(&self.proxy.server_url("demo"))
    }

    /// The audit records that are on disk, oldest first.
    pub fn records(&self) -> Vec<Event> {
        records(&self.proxy.data_dir().join("spool"))
    }

    /// Those of one action, such as `mcp.tools/call`.
    pub fn records_of(&self, action: &str) -> Vec<Event> {
        self.records().into_iter().filter(|record| record.action == action).collect()
    }

    /// The one record of this action.
    pub fn record_of(&self, action: &str) -> Event {
        let mut found = self.records_of(action);
        assert_eq!(found.len(), 1, "one record of {action}: {:#?}", self.records());
        found.remove(0)
    }

    /// The one record beside those of the handshake.
    pub fn record(&self) -> Event {
        let handshake = ["mcp.initialize", "mcp.notifications/initialized"];
        let mut found = self.records();
        found.retain(|record| !handshake.contains(&record.action.as_str()));
        assert_eq!(found.len(), 1, "{found:#?}");
        found.remove(0)
    }
}

/// The records of a spool that a proxy may be writing: a record whose end is not there yet is left out.
pub fn records(spool: &Path) -> Vec<Event> {
    const SEGMENT_HEAD: usize = 24;
    const HEAD: usize = 48;
    let mut segments: Vec<_> = std::fs::read_dir(spool)
        .expect("the spool is there")
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    segments.sort();
    let mut records = Vec::new();
    for segment in segments {
        let bytes = std::fs::read(segment).expect("a segment can be read");
        let mut rest = bytes.get(SEGMENT_HEAD..).unwrap_or_default();
        while let Some((head, behind)) = rest.split_first_chunk::<HEAD>() {
            let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let Some((payload, behind)) = behind.split_at_checked(length) else { break };
            let event = audit_pb::Event::decode(payload).expect("a record is an event");
            records.push(wire::event_from_proto(event).expect("an event has its fields"));
            rest = behind;
        }
    }
    records
}
