//! Why a command ends without having done its work: what went wrong, the next step, and the exit code that
//! scripts see.

use std::process::ExitCode;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// How a command ended, as scripts see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Refused or failed.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// The control plane cannot be reached.
    Unreachable = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// A failure that a person can act on.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    next: Option<String>,
}

impl Failure {
    /// Something was refused or failed.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, message: message.into(), next: None }
    }

    /// The command was given wrongly.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, message: message.into(), next: None }
    }

    /// The control plane cannot be reached.
    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self { exit: Exit::Unreachable, message: message.into(), next: None }
    }

    /// Adds what to do about it.
    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// The next step, where one is known.
    pub(crate) fn next_step(&self) -> Option<&str> {
        self.next.as_deref()
    }
}

/// The exit code and the text for standard error.
pub(crate) fn report(error: &anyhow::Error) -> (Exit, String) {
    let failure = error.downcast_ref::<Failure>();
    let mut text = format!("error: {error:#}");
    if let Some(next) = failure.and_then(Failure::next_step) {
        text.push_str("\n  ");
        text.push_str(next);
    }
    (failure.map_or(Exit::Failed, |failure| failure.exit), text)
}

/// Whether a refusal says that there is no such thing.
pub(crate) fn is_missing(status: &Status) -> bool {
    status.code() == Code::NotFound
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let message = status.message().trim_end_matches('.').to_owned();
        let message = if message.is_empty() { status.code().description().to_owned() } else { message };
        let failed = Self::failed(message.clone());
        match status.code() {
            Code::InvalidArgument => {
                let fields: Vec<String> = status
                    .get_details_bad_request()
                    .map(|request| request.field_violations)
                    .unwrap_or_default()
                    .into_iter()
                    .map(|violation| format!("\n  {}: {}", violation.field, violation.description))
                    .collect();
                match fields.as_slice() {
                    [] => failed,
                    fields => Self::failed(format!("the request is wrong:{}", fields.concat())),
                }
            }
            Code::Unauthenticated => failed.next(
                "The credential of this context is missing, ended or revoked. Log in with `wafflectl login`.",
            ),
            Code::PermissionDenied => failed.next("See what this credential may do with `wafflectl whoami`."),
            Code::NotFound => failed.next("See what there is with the `list` command."),
            Code::Aborted => failed.next("Look at it again with the `get` command, then repeat the change."),
            Code::ResourceExhausted | Code::Unavailable if status.get_details_retry_info().is_some() => {
                let delay = status.get_details_retry_info().and_then(|retry| retry.retry_delay);
                let seconds = delay.map_or(1, |delay| delay.as_secs().max(1));
                failed.next(format!("Try again in {seconds} s."))
            }
            // Without a retry hint it was not the control plane that spoke, but the way to it; the client's own
            // time limit ends a request as cancelled.
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
                Self::unreachable(format!("the control plane does not answer: {message}"))
                    .next("Check the way to it with `wafflectl doctor`.")
            }
            Code::Unimplemented => failed.next(
                "The control plane does not know this request; compare `wafflectl version` with its own.",
            ),
            _ => failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn a_failure_keeps_its_exit_code_under_context() {
        let error = anyhow::Error::new(Failure::unreachable("no answer").next("Start it.")).context("outer");
        assert_eq!(report(&error), (Exit::Unreachable, "error: outer: no answer\n  Start it.".to_owned()));
    }

    #[test]
    fn every_wrong_field_is_named() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("name", "must be a DNS label");
        details.add_bad_request_violation("endpoints", "must be 1 to 16");
        let status = Status::with_error_details(Code::InvalidArgument, "wrong", details);
        let (exit, text) = report(&anyhow::Error::new(Failure::from(status)));
        assert_eq!(exit, Exit::Failed);
        assert!(text.contains("name: must be a DNS label") && text.contains("endpoints: must be 1 to 16"));
    }

    #[test]
    fn a_lost_control_plane_is_told_from_a_busy_one() {
        let lost = Failure::from(Status::unavailable("connection refused"));
        let silent = Failure::from(Status::cancelled("Timeout expired"));
        assert_eq!((lost.exit, silent.exit), (Exit::Unreachable, Exit::Unreachable));
        let details = ErrorDetails::with_retry_info(Some(std::time::Duration::from_secs(2)));
        let busy = Failure::from(Status::with_error_details(Code::Unavailable, "busy", details));
        assert_eq!((busy.exit, busy.next_step()), (Exit::Failed, Some("Try again in 2 s.")));
    }
}
