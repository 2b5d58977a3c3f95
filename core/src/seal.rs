//! Sealing: AES-256-GCM under keys that were made beforehand, so that nothing is derived per request.
//! A sealed value is the key's id (1 byte), a random nonce (12), the ciphertext and its tag (16). The purpose
//! stands in the associated data, so that a value sealed for one purpose opens for no other.

use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{hmac, rand};
use zeroize::Zeroizing;

/// Bytes of a tag.
pub const TAG: usize = 16;

/// Bytes that sealing adds.
pub const OVERHEAD: usize = 1 + NONCE_LEN + 16;

/// A value could not be sealed or opened. Says no more, so that it tells an attacker nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the sealed value cannot be opened")]
pub struct SealError;

/// One sealing key.
pub struct SealKey {
    id: u8,
    bytes: Zeroizing<[u8; 32]>,
    key: LessSafeKey,
}

impl SealKey {
    /// Takes 32 random bytes.
    pub fn new(id: u8, bytes: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, bytes).expect("an AES-256 key has 32 bytes");
        Self { id, bytes: Zeroizing::new(*bytes), key: LessSafeKey::new(key) }
    }

    /// Its id.
    pub fn id(&self) -> u8 {
        self.id
    }

    fn tag(&self, purpose: &[u8], parts: &[&[u8]]) -> [u8; TAG] {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &*self.bytes));
        for part in std::iter::once(&purpose).chain(parts) {
            // Each with its length, so that no two lists of parts read alike.
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut tag = [0; TAG];
        for (to, from) in tag.iter_mut().zip(context.sign().as_ref()) {
            *to = *from;
        }
        tag
    }

    /// The key itself, for the wire to a proxy.
    pub fn expose(&self) -> &[u8; 32] {
        &self.bytes
    }
}

impl Clone for SealKey {
    fn clone(&self) -> Self {
        Self::new(self.id, &self.bytes)
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealKey({}, ..)", self.id)
    }
}

/// Keys that overlap while they rotate: the first seals, all open. Whoever holds a clone sees the same keys, also after
/// they were replaced.
#[derive(Debug, Clone, Default)]
pub struct SealRing(Arc<ArcSwap<Vec<SealKey>>>);

impl SealRing {
    /// Takes the keys, the sealing one first.
    pub fn new(keys: Vec<SealKey>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(keys)))
    }

    /// Its keys of this moment.
    pub fn keys(&self) -> Arc<Vec<SealKey>> {
        self.0.load_full()
    }

    /// Takes other keys, the sealing one first.
    pub fn replace(&self, keys: Vec<SealKey>) {
        self.0.store(Arc::new(keys));
    }

    /// Seals a value for a purpose. Fails without a key, or where the system gives no random numbers.
    pub fn seal(&self, purpose: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let keys = self.0.load();
        let key = keys.first().ok_or(SealError)?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| SealError)?;
        let mut sealed = Vec::with_capacity(plain.len() + OVERHEAD);
        sealed.push(key.id);
        sealed.extend_from_slice(&nonce);
        let mut text = plain.to_vec();
        key.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(purpose), &mut text)
            .map_err(|_| SealError)?;
        sealed.extend_from_slice(&text);
        Ok(sealed)
    }

    /// A tag over some parts, the same whenever it is made. It hides nothing: it says that these belong together.
    pub fn tag(&self, purpose: &[u8], parts: &[&[u8]]) -> Result<[u8; TAG], SealError> {
        self.0.load().first().map(|key| key.tag(purpose, parts)).ok_or(SealError)
    }

    /// Whether a tag is one of these parts, under any of the keys.
    pub fn is_tag_of(&self, tag: &[u8], purpose: &[u8], parts: &[&[u8]]) -> bool {
        self.0.load().iter().any(|key| verify_slices_are_equal(&key.tag(purpose, parts), tag).is_ok())
    }

    /// Opens a value that was sealed for this purpose.
    pub fn open(&self, purpose: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (id, rest) = sealed.split_first().ok_or(SealError)?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>().ok_or(SealError)?;
        let keys = self.0.load();
        let key = keys.iter().find(|key| key.id == *id).ok_or(SealError)?;
        let mut text = text.to_vec();
        let plain = key
            .key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(purpose), &mut text)
            .map_err(|_| SealError)?
            .len();
        text.truncate(plain);
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_for_its_purpose_only() {
        let ring = SealRing::new(vec![SealKey::new(1, &[7; 32])]);
        let sealed = ring.seal(b"session", b"value").unwrap();
        assert_eq!(ring.open(b"session", &sealed).unwrap(), b"value");
        assert_eq!(ring.open(b"other", &sealed), Err(SealError));
        for i in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[i] ^= 1;
            assert_eq!(ring.open(b"session", &bad), Err(SealError), "byte {i}");
        }
        assert_eq!(ring.open(b"session", b""), Err(SealError));
    }

    #[test]
    fn a_tag_is_that_of_its_parts_alone() {
        let ring = SealRing::new(vec![SealKey::new(1, &[7; 32])]);
        let tag = ring.tag(b"p", &[b"ab", b"c"]).unwrap();
        assert_eq!(tag, ring.tag(b"p", &[b"ab", b"c"]).unwrap());
        assert!(ring.is_tag_of(&tag, b"p", &[b"ab", b"c"]));
        for (purpose, parts) in
            [(b"q", [&b"ab"[..], b"c"]), (b"p", [b"a", b"bc"]), (b"p", [b"abc", b""]), (b"p", [b"c", b"ab"])]
        {
            assert!(!ring.is_tag_of(&tag, purpose, &parts));
        }
        let newer = SealRing::new(vec![SealKey::new(2, &[8; 32]), SealKey::new(1, &[7; 32])]);
        assert!(newer.is_tag_of(&tag, b"p", &[b"ab", b"c"]));
        assert!(!newer.is_tag_of(&tag[..15], b"p", &[b"ab", b"c"]));
    }

    #[test]
    fn an_older_key_still_opens() {
        let old = SealRing::new(vec![SealKey::new(1, &[7; 32])]);
        let sealed = old.seal(b"p", b"value").unwrap();
        let both = SealRing::new(vec![SealKey::new(2, &[8; 32]), SealKey::new(1, &[7; 32])]);
        assert_eq!(both.open(b"p", &sealed).unwrap(), b"value");
        let new = SealRing::new(vec![SealKey::new(2, &[8; 32])]);
        assert_eq!(new.open(b"p", &sealed), Err(SealError));
        // Whoever has a clone of the old one follows.
        let held = old.clone();
        old.replace(vec![SealKey::new(2, &[8; 32])]);
        assert_eq!(held.open(b"p", &sealed), Err(SealError));
        assert_eq!(new.open(b"p", &held.seal(b"p", b"value").unwrap()).unwrap(), b"value");
    }
}
