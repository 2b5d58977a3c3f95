//! Passwords: argon2id, off the async threads, few at a time, and as slow for an account that does not exist
//! as for one that does.

use std::sync::Arc;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use waffles_core::credential::random_text;

use crate::error::Error;

/// Longer ones are refused before they are hashed.
pub(crate) const PASSWORD_MOST: usize = 1024;
/// Characters of a generated password: 142 bits.
const GENERATED: usize = 24;
/// How long a log-in waits for its turn.
const PATIENCE: Duration = Duration::from_secs(2);

/// Hashes and checks passwords. Each takes 19 MiB and some 20 ms, so the number at a time is bounded.
#[derive(Clone)]
pub(crate) struct Passwords {
    turns: Arc<Semaphore>,
    decoy: Arc<str>,
}

impl Passwords {
    pub(crate) fn new() -> Result<Self, Error> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let decoy = hash(&generate_password()?)?;
        Ok(Self { turns: Arc::new(Semaphore::new((cores / 2).clamp(1, 8))), decoy: decoy.into() })
    }

    /// The stored form of a password.
    pub(crate) async fn hash(&self, password: SecretString) -> Result<String, Error> {
        let turn = self.turn().await?;
        let work = move || {
            let _turn = turn;
            hash(&password)
        };
        tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
    }

    /// Whether a password has this stored form. Without one, as much work is done for nothing.
    pub(crate) async fn verify(&self, password: SecretString, stored: Option<String>) -> Result<bool, Error> {
        let turn = self.turn().await?;
        let (stored, known) = match stored {
            Some(stored) => (stored, true),
            None => (self.decoy.to_string(), false),
        };
        let check = move || {
            let _turn = turn;
            let stored = PasswordHash::new(&stored).map_err(|e| Error::internal(e.to_string()))?;
            Ok(Argon2::default().verify_password(password.expose_secret().as_bytes(), &stored).is_ok())
        };
        let matches: Result<bool, Error> =
            tokio::task::spawn_blocking(check).await.map_err(Error::internal)?;
        Ok(matches? && known)
    }

    /// The turn goes with the work, which goes on when its caller hangs up: else callers that hang up at once
    /// could have any number of hashes made.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, Error> {
        match tokio::time::timeout(PATIENCE, self.turns.clone().acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(closed)) => Err(Error::internal(closed)),
            Err(late) => Err(Error::Unavailable { retry_after: PATIENCE, source: late.into() }),
        }
    }
}

fn hash(password: &SecretString) -> Result<String, Error> {
    let hash: PasswordHash = Argon2::default()
        .hash_password(password.expose_secret().as_bytes())
        .map_err(|e| Error::internal(e.to_string()))?;
    Ok(hash.to_string())
}

/// A password that nobody chose.
pub(crate) fn generate_password() -> Result<SecretString, Error> {
    Ok(random_text(GENERATED)?.into())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn who_hangs_up_keeps_the_turn_until_the_work_is_done() {
        let mut passwords = Passwords::new().unwrap();
        passwords.turns = Arc::new(Semaphore::new(1));
        // On a busy machine the work may be over before the look, so it looks more than once.
        let kept = (0..20).any(|_| {
            assert!(passwords.hash("x".into()).now_or_never().is_none());
            passwords.turns.available_permits() == 0
        });
        assert!(kept, "the turn went with the caller");
        passwords.hash("y".into()).await.unwrap();
        assert_eq!(passwords.turns.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_password_matches_its_own_hash_only() {
        let passwords = Passwords::new().unwrap();
        let stored = passwords.hash("right".into()).await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert!(passwords.verify("right".into(), Some(stored.clone())).await.unwrap());
        assert!(!passwords.verify("wrong".into(), Some(stored.clone())).await.unwrap());
        assert!(!passwords.verify("right".into(), None).await.unwrap());
        assert_ne!(passwords.hash("right".into()).await.unwrap(), stored);
    }
}
