//! What names resolved to the last time, for while the resolver is dead: a connection that was allowed yesterday shall not
//! fail today because nobody answers what its host is called. A resolver that does answer is always believed, and what is
//! remembered is checked again like everything else.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

/// For so long a name is remembered that nobody resolves any more.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// So long the resolver is waited for where something is remembered.
const PATIENCE: Duration = Duration::from_secs(1);
/// For so long it is not asked again after it did not answer.
const LEFT_ALONE: Duration = Duration::from_secs(5);
/// Most names.
const MOST: usize = 20_000;
/// How a resolver says that there is no such name, or no address for it, in glibc, musl and macOS; everything else means that
/// it could not be asked.
const ANSWERS: [&str; 4] = ["not known", "does not resolve", "No address associated", "has no address"];

/// What is remembered; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Names(Arc<Mutex<HashMap<String, Known>>>);

#[derive(Debug, Clone)]
struct Known {
    addrs: Vec<IpAddr>,
    at: Instant,
    left_alone_until: Option<Instant>,
}

impl Names {
    /// The addresses of a host, by a resolver or by what it said last.
    pub(super) async fn look_up<R>(&self, look_up: R, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>
    where
        R: AsyncFnOnce(&str, u16) -> io::Result<Vec<SocketAddr>>,
    {
        let known = self.0.lock().get(host).filter(|known| known.at.elapsed() < KEPT).cloned();
        let Some(known) = known else {
            let found = look_up(host, port).await?;
            self.remember(host, &found);
            return Ok(found);
        };
        let remembered = || known.addrs.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        if known.left_alone_until.is_some_and(|until| Instant::now() < until) {
            return Ok(remembered());
        }
        let found = timeout(PATIENCE, look_up(host, port)).await;
        match found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(found) => {
                self.remember(host, &found);
                Ok(found)
            }
            Err(error) if is_answer(&error) => {
                self.0.lock().remove(host);
                Err(error)
            }
            Err(error) => {
                tracing::warn!(host, %error, "the resolver does not answer, going on with what it said last");
                if let Some(known) = self.0.lock().get_mut(host) {
                    known.left_alone_until = Some(Instant::now() + LEFT_ALONE);
                }
                Ok(remembered())
            }
        }
    }

    fn remember(&self, host: &str, found: &[SocketAddr]) {
        let mut names = self.0.lock();
        if names.len() >= MOST && !names.contains_key(host) {
            names.retain(|_, known| known.at.elapsed() < KEPT);
        }
        if names.len() < MOST || names.contains_key(host) {
            let addrs = found.iter().map(SocketAddr::ip).collect();
            names.insert(host.to_owned(), Known { addrs, at: Instant::now(), left_alone_until: None });
        }
    }
}

/// Whether the resolver was heard: that there is no such name is an answer.
fn is_answer(error: &io::Error) -> bool {
    let told = error.to_string();
    ANSWERS.iter().any(|answer| told.contains(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(ip: [u8; 4]) -> Vec<SocketAddr> {
        vec![SocketAddr::from((ip, 80))]
    }

    async fn dead(_: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        Err(io::Error::other("failed to lookup address information: Temporary failure in name resolution"))
    }

    async fn silent(_: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        std::future::pending().await
    }

    async fn gone(_: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        Err(io::Error::other("failed to lookup address information: Name or service not known"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_resolver_is_replaced_by_what_it_said_last() {
        let names = Names::default();
        assert!(names.look_up(dead, "a", 80).await.is_err(), "nothing is known yet");
        let found = async |_: &str, _: u16| Ok(addrs([10, 0, 0, 1]));
        assert_eq!(names.look_up(found, "a", 80).await.unwrap(), addrs([10, 0, 0, 1]));
        assert_eq!(names.look_up(dead, "a", 80).await.unwrap(), addrs([10, 0, 0, 1]));
        let asked = async |_: &str, _: u16| panic!("it is left alone for a while");
        assert_eq!(names.look_up(asked, "a", 80).await.unwrap(), addrs([10, 0, 0, 1]));
        assert_eq!(names.look_up(dead, "b", 80).await.unwrap_err().kind(), io::ErrorKind::Other);

        tokio::time::advance(LEFT_ALONE).await;
        let before = Instant::now();
        assert_eq!(names.look_up(silent, "a", 443).await.unwrap()[0].port(), 443);
        assert_eq!(before.elapsed(), PATIENCE);

        tokio::time::advance(LEFT_ALONE).await;
        let moved = async |_: &str, _: u16| Ok(addrs([10, 0, 0, 2]));
        assert_eq!(names.look_up(moved, "a", 80).await.unwrap(), addrs([10, 0, 0, 2]));
        tokio::time::advance(KEPT).await;
        assert!(names.look_up(dead, "a", 80).await.is_err(), "a day is long enough");
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_gone_is_gone() {
        let names = Names::default();
        let found = async |_: &str, _: u16| Ok(addrs([10, 0, 0, 1]));
        names.look_up(found, "a", 80).await.unwrap();
        assert!(names.look_up(gone, "a", 80).await.is_err());
        assert!(names.look_up(dead, "a", 80).await.is_err(), "and is not remembered");
    }

    #[tokio::test]
    async fn what_this_system_says_of_a_name_that_is_none_is_an_answer() {
        // Without a resolver the system says something else, and that is none.
        let error = super::super::look_up("waffles.invalid", 80).await.unwrap_err().to_string();
        let unheard = ["Temporary failure", "Try again"].iter().any(|text| error.contains(text));
        assert!(is_answer(&io::Error::other(error.clone())) != unheard, "{error}");
    }
}
