//! What the gateway seals (sessions, the state of requests, places in lists) opens as what it was, for its purpose only;
//! nothing else opens at all.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use waffles_core::seal::{OVERHEAD, SealKey, SealRing};

const PURPOSE: &[u8] = b"fuzz 1";

/// The first two bytes say where a seal is damaged, the rest is a token, or what is sealed.
pub fn check(data: &[u8]) {
    let ring = SealRing::new(vec![SealKey::new(1, &[7; 32]), SealKey::new(0, &[9; 32])]);
    // A client sends what it likes, as text.
    assert!(ring.open(PURPOSE, data).is_err(), "a token that nobody sealed");
    if let Ok(bytes) = URL_SAFE_NO_PAD.decode(data) {
        assert!(ring.open(PURPOSE, &bytes).is_err(), "a token that nobody sealed");
    }
    let (at, plain) = data.split_at(data.len().min(2));
    let sealed = ring.seal(PURPOSE, plain).expect("there is a key");
    assert_eq!(sealed.len(), plain.len() + OVERHEAD);
    assert_eq!(ring.open(PURPOSE, &sealed).as_deref(), Ok(plain));
    assert!(ring.open(b"fuzz 2", &sealed).is_err(), "another purpose");
    assert!(SealRing::default().open(PURPOSE, &sealed).is_err(), "no key");
    let position = at.iter().fold(0, |at, byte| at * 256 + usize::from(*byte)) % sealed.len();
    let mut damaged = sealed.clone();
    damaged[position] ^= 1 << (position % 8);
    assert!(ring.open(PURPOSE, &damaged).is_err(), "damaged at {position}");
    assert!(ring.open(PURPOSE, &sealed[..position]).is_err(), "cut at {position}");
    assert!(ring.open(PURPOSE, &[&sealed[..], b"x"].concat()).is_err(), "longer");
}
