//! What makes the audit trail evident against tampering: each record is linked to the one before it by a hash, the heads of
//! all chains are signed now and then, and what was dropped on purpose is signed for too. The proxy links, the control
//! plane checks and signs, and anybody with an export and the public key verifies; all of them with what stands here.
//!
//! A chain is what one spool of a proxy holds, in the order of its sequence numbers; the control plane's own acts are a
//! chain as well. A gap in the numbers is no break: the hash of a record covers its own number and the hash of the one that
//! was written before it, so that a record that was lost is told apart from one that was taken out.

mod line;
mod verify;

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest as sha256};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use chrono::{DateTime, Utc};
use prost::Message as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::audit::Event;
use crate::wire;

pub use line::{Bound, Chain, End, Header, Line, Recorded};
pub use verify::{Finding, Report, Verifier};

/// The chain of the control plane's own acts.
pub const OWN_CHAIN: Uuid = Uuid::nil();

/// 32 bytes of SHA-256; in JSON, hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// What the first record of a chain follows.
    pub const START: Hash = Hash([0; 32]);

    /// From bytes; none where there are not 32.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Of some bytes.
    fn of(bytes: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(sha256(&SHA256, bytes).as_ref());
        Self(hash)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A signature; in JSON, hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl Signature {
    /// From bytes; none where there are not 64.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The public half of an audit key; in JSON and in files, hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Reads the hexadecimal form.
    pub fn parse(text: &str) -> Option<Self> {
        unhex(text.trim()).map(Self)
    }

    fn verifies(&self, statement: &[u8], signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(statement, &signature.0).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Signs for the control plane.
pub struct Signer(Ed25519KeyPair);

impl Signer {
    /// From 32 random bytes.
    pub fn new(seed: &[u8; 32]) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(seed).expect("an Ed25519 seed has 32 bytes"))
    }

    /// Who can tell that it was this one.
    pub fn public_key(&self) -> PublicKey {
        let mut key = [0; 32];
        key.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(key)
    }

    fn sign(&self, statement: &[u8]) -> Signature {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.0.sign(statement).as_ref());
        Signature(signature)
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.public_key())
    }
}

/// The digest of a record as it lies in a spool: the encoded message.
pub fn digest(encoded: &[u8]) -> Hash {
    Hash::of(encoded)
}

/// The digest of an event as it is stored. The same as that of its record in the spool, since an event survives both
/// databases unchanged: its time has whole microseconds, and its numbers fit.
pub fn digest_of(event: &Event) -> Hash {
    digest(&wire::event_to_proto(event.clone()).encode_to_vec())
}

/// The hash of a record: over its place, its content, and what was written before it.
pub fn link(chain: Uuid, sequence: u64, previous: &Hash, digest: &Hash) -> Hash {
    Hash::of(&statement(b"waffles audit link 1", chain, &[&sequence.to_be_bytes(), &previous.0, &digest.0]))
}

/// A record's place in its chain, as it is stored beside the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Of the event as it is stored.
    pub digest: Hash,
    /// Over everything up to here.
    pub hash: Hash,
    /// Where the record does not follow from the one before, or was changed on its way into the store: the control plane's
    /// word that it came so.
    pub attest: Option<Signature>,
}

impl Link {
    /// The link of an event that nobody else has linked.
    pub fn new(chain: Uuid, sequence: u64, previous: &Hash, event: &Event) -> Self {
        let digest = digest_of(event);
        Self { digest, hash: link(chain, sequence, previous, &digest), attest: None }
    }

    /// The link of an event that was stored as it came or otherwise, and whose hash was given by the proxy.
    pub fn given(
        signer: &Signer,
        (chain, sequence): (Uuid, u64),
        previous: &Hash,
        stored: &Event,
        hash: Hash,
    ) -> Self {
        let digest = digest_of(stored);
        let follows = link(chain, sequence, previous, &digest) == hash;
        let attest = || signer.sign(&attested(chain, sequence, previous, &digest, &hash));
        Self { digest, hash, attest: (!follows).then(attest) }
    }

    fn follows(&self, (chain, sequence): (Uuid, u64), previous: &Hash) -> bool {
        link(chain, sequence, previous, &self.digest) == self.hash
    }
}

fn attested(chain: Uuid, sequence: u64, previous: &Hash, digest: &Hash, hash: &Hash) -> Vec<u8> {
    let parts: [&[u8]; 4] = [&sequence.to_be_bytes(), &previous.0, &digest.0, &hash.0];
    statement(b"waffles audit note 1", chain, &parts)
}

/// How far a chain had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Which chain.
    pub chain: Uuid,
    /// Its last record.
    pub sequence: u64,
    /// That one's hash.
    pub hash: Hash,
}

/// The heads of all chains that had moved since the checkpoint before, signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// From 1, without gaps.
    pub number: u64,
    /// When it was made.
    pub made_at: DateTime<Utc>,
    /// [`Checkpoint::hash`] of the one before.
    pub previous: Hash,
    /// For the first one: whether there were events before there were chains. Nothing protects those.
    pub unchained: bool,
    /// By chain.
    pub heads: Vec<Head>,
    /// Over all of it.
    pub signature: Signature,
}

impl Checkpoint {
    /// Signs a checkpoint.
    pub fn sign(
        signer: &Signer,
        number: u64,
        made_at: DateTime<Utc>,
        previous: Hash,
        unchained: bool,
        mut heads: Vec<Head>,
    ) -> Self {
        heads.sort_by_key(|head| head.chain);
        let signature = Signature([0; 64]);
        let mut checkpoint = Self { number, made_at, previous, unchained, heads, signature };
        checkpoint.signature = signer.sign(&checkpoint.statement());
        checkpoint
    }

    /// What the next one follows.
    pub fn hash(&self) -> Hash {
        Hash::of(&self.statement())
    }

    fn statement(&self) -> Vec<u8> {
        let mut bytes = b"waffles audit checkpoint 1".to_vec();
        bytes.extend_from_slice(&self.number.to_be_bytes());
        bytes.extend_from_slice(&self.made_at.timestamp_micros().to_be_bytes());
        bytes.extend_from_slice(&self.previous.0);
        bytes.extend_from_slice(&u64::from(self.unchained).to_be_bytes());
        bytes.extend_from_slice(&(self.heads.len() as u64).to_be_bytes());
        for head in &self.heads {
            bytes.extend_from_slice(head.chain.as_bytes());
            bytes.extend_from_slice(&head.sequence.to_be_bytes());
            bytes.extend_from_slice(&head.hash.0);
        }
        bytes
    }
}

/// The control plane's word that it dropped a stretch of a chain because of its age.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forgotten {
    /// Which chain.
    pub chain: Uuid,
    /// The first record that was dropped.
    pub first: u64,
    /// The last one. Between them none was kept.
    pub last: u64,
    /// The hash before the first.
    pub previous: Hash,
    /// The hash of the last, from where the chain goes on.
    pub hash: Hash,
    /// Everything older than this was to be dropped.
    pub before: DateTime<Utc>,
    /// Over all of it.
    pub signature: Signature,
}

impl Forgotten {
    /// Signs for a stretch.
    pub fn sign(
        signer: &Signer,
        chain: Uuid,
        (first, last): (u64, u64),
        (previous, hash): (Hash, Hash),
        before: DateTime<Utc>,
    ) -> Self {
        let signature = Signature([0; 64]);
        let mut forgotten = Self { chain, first, last, previous, hash, before, signature };
        forgotten.signature = signer.sign(&forgotten.statement());
        forgotten
    }

    fn statement(&self) -> Vec<u8> {
        let before = self.before.timestamp_micros().to_be_bytes();
        let parts: [&[u8]; 5] =
            [&self.first.to_be_bytes(), &self.last.to_be_bytes(), &self.previous.0, &self.hash.0, &before];
        statement(b"waffles audit drop 1", self.chain, &parts)
    }
}

fn statement(domain: &[u8], chain: Uuid, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(144);
    bytes.extend_from_slice(domain);
    bytes.extend_from_slice(chain.as_bytes());
    for part in parts {
        bytes.extend_from_slice(part);
    }
    bytes
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = u8::try_from(digit(high)? * 16 + digit(low)?).ok()?;
    }
    Some(bytes)
}

macro_rules! as_hex {
    ($($name:ident),+) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                let mut text = String::with_capacity(2 * self.0.len());
                for byte in self.0 {
                    text.extend([byte >> 4, byte & 15].map(|digit| {
                        char::from_digit(digit.into(), 16).expect("four bits are one digit")
                    }));
                }
                to.serialize_str(&text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                unhex(&text).map(Self).ok_or_else(|| {
                    serde::de::Error::custom(concat!("no ", stringify!($name), " in hexadecimal"))
                })
            }
        }
    )+};
}

as_hex!(Hash, Signature, PublicKey);
