//! Named tasks. [`spawn`] is the only way to start one; a [`Supervisor`] starts those the process
//! cannot live without; a [`Driver`] runs periodic [`Task`]s one at a time.

mod driver;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

pub use driver::{Driver, Poker, Task, Tasks};

/// Panics seen in this process. A static, because a panic hook is one a process as well.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Starts a task that carries its name in a span. A panic is logged and counted, and shows in the
/// handle; the process lives on.
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    // At error level, so that no log filter takes the name away.
    let span = tracing::error_span!("task", task.name = name);
    #[allow(clippy::disallowed_methods, reason = "this is the one place that may")]
    tokio::spawn(guarded(future).instrument(span))
}

/// Like [`spawn`], for a task that is woken for every message that passes: it carries no span, since entering one
/// costs more than some of those messages. What it logs says itself what it is about.
pub fn spawn_hot<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    #[allow(clippy::disallowed_methods, reason = "this is the other place that may")]
    tokio::spawn(guarded(future))
}

/// Combinators and no `async` block, which would have room for the future twice: before and while it is polled.
fn guarded<F: Future>(future: F) -> impl Future<Output = F::Output> {
    AssertUnwindSafe(future).catch_unwind().map(|caught| match caught {
        Ok(output) => output,
        Err(panic) => {
            report_panic(panic.as_ref());
            std::panic::resume_unwind(panic)
        }
    })
}

/// How many panics tasks of this process have had.
#[must_use]
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Logs and counts a caught panic; for those who catch one themselves, such as a request's frame.
pub fn report_panic(panic: &(dyn std::any::Any + Send)) {
    PANICS.fetch_add(1, Ordering::Relaxed);
    tracing::error!(panic.message = panic_message(panic), "a task panicked");
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    match panic.downcast_ref::<&'static str>() {
        Some(message) => message,
        None => panic.downcast_ref::<String>().map_or("not a string", String::as_str),
    }
}

/// A critical task that ended, and how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("task {name} {}", if *.panicked { "panicked" } else { "ended" })]
pub struct Ended {
    /// The task.
    pub name: &'static str,
    /// Whether it panicked, as opposed to returning.
    pub panicked: bool,
}

/// Starts tasks the process cannot live without and tells when the first of them has ended, for
/// whatever reason. The program waits for that beside its signals, and stops waiting once it
/// drains, since critical tasks end then too.
#[derive(Debug, Clone, Default)]
pub struct Supervisor {
    first: Arc<watch::Sender<Option<Ended>>>,
}

impl Supervisor {
    /// One without tasks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a critical task.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let notice = Notice { supervisor: self.clone(), ended: Ended { name, panicked: true } };
        spawn(name, async move {
            future.await;
            notice.returned();
        })
    }

    /// The first critical task that ended.
    pub async fn ended(&self) -> Ended {
        let mut first = self.first.subscribe();
        let ended = first.wait_for(Option::is_some).await.expect("the sender lives in the same value");
        ended.clone().expect("waited for it")
    }
}

/// Reports on drop, which also sees an unwinding or an aborted task.
#[derive(Debug)]
struct Notice {
    supervisor: Supervisor,
    ended: Ended,
}

impl Notice {
    /// By value, so that the task owns the whole notice and not just the field set here.
    fn returned(mut self) {
        self.ended.panicked = false;
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        self.supervisor.first.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                *first = Some(self.ended.clone());
            }
            is_first
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_counted_and_the_process_lives() {
        let before = panics();
        let handle = spawn("fragile", async { panic!("on purpose") });
        assert!(handle.await.unwrap_err().is_panic());
        assert!(panics() > before);
    }

    #[tokio::test]
    async fn a_critical_task_that_returns_is_told() {
        let supervisor = Supervisor::new();
        supervisor.spawn("lasting", std::future::pending());
        supervisor.spawn("short", async {});
        let ended = supervisor.ended().await;
        assert_eq!(ended, Ended { name: "short", panicked: false });
        assert_eq!(ended.to_string(), "task short ended");
    }

    #[tokio::test]
    async fn a_critical_task_that_panics_is_told() {
        let supervisor = Supervisor::new();
        supervisor.spawn("fragile", async { panic!("on purpose") });
        assert_eq!(supervisor.ended().await, Ended { name: "fragile", panicked: true });
    }
}
