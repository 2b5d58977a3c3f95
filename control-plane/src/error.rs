//! What a service can answer besides its result, with whose fault it is and whether another try is safe.
//! `rest/extract.rs` turns it into problem documents, `tonic::Status` is made here.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use waffles_core::FieldError;
use waffles_core::credential::RandomFailed;
use waffles_core::seal::SealError;
use waffles_runtime::telemetry;

/// A service's refusal or failure. Whatever stands in the first six variants is shown to the caller; the
/// causes of the last two are only logged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not exist, or the actor may not know of it. Names it, such as `server demo`.
    #[error("{0} does not exist")]
    NotFound(String),
    /// It exists already. A whole sentence without a full stop.
    #[error("{0}")]
    Conflict(String),
    /// As things stand it cannot be done. A whole sentence without a full stop, with the next step.
    #[error("{0}")]
    NotNow(String),
    /// The tenant has as much as it may have.
    #[error("this tenant has {most} {things}, as many as it may have (the limit {limit})")]
    Full {
        /// The name of the limit.
        limit: &'static str,
        /// What it is.
        most: u64,
        /// Of what.
        things: &'static str,
    },
    /// Someone else changed it since the actor read it.
    #[error("it was changed meanwhile and is at version {current} now; read it again")]
    Stale {
        /// Its version.
        current: u64,
    },
    /// The request is wrong, field by field.
    #[error("{}", sentence(.0))]
    Invalid(Vec<FieldError>),
    /// No valid credential.
    #[error("a valid credential is needed")]
    Unauthenticated,
    /// The actor may know of it, but not do this.
    #[error("not permitted")]
    Denied,
    /// Too many attempts.
    #[error("too many attempts; try again later")]
    Throttled {
        /// When another try makes sense.
        retry_after: Duration,
    },
    /// Something Waffles needs is away; another try is safe.
    #[error("not available at the moment; try again")]
    Unavailable {
        /// When another try makes sense.
        retry_after: Duration,
        /// What is away.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A fault in Waffles.
    #[error("internal error")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// One wrong field.
    pub fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldError::new(field, reason)])
    }

    /// A fault in Waffles, in words.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(cause.into())
    }

    /// One stable word, as in problem documents and in the reason of `google.rpc.ErrorInfo`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::Conflict(_) => "conflict",
            Self::NotNow(_) => "not_now",
            Self::Full { .. } => "limit_reached",
            Self::Stale { .. } => "stale",
            Self::Invalid(_) => "invalid",
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::Throttled { .. } => "throttled",
            Self::Unavailable { .. } => "unavailable",
            Self::Internal(_) => "internal",
        }
    }

    /// When another try makes sense; none where it changes nothing.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after } | Self::Unavailable { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// Logs what the caller is not told. Called once, where the answer is made.
    pub fn log(&self, request_id: uuid::Uuid) {
        match self {
            Self::Internal(_) => {
                tracing::error!(request.id = %request_id, error = %telemetry::chain(self), "request failed");
            }
            Self::Unavailable { .. } => {
                tracing::warn!(request.id = %request_id, error = %telemetry::chain(self), "request not served");
            }
            _ => {}
        }
    }

    /// The gRPC answer, with details: the wrong fields, when to try again, the reason and the request's id.
    pub fn into_status(self, request_id: uuid::Uuid) -> Status {
        self.log(request_id);
        let code = match &self {
            Self::NotFound(_) => Code::NotFound,
            Self::Conflict(_) => Code::AlreadyExists,
            Self::NotNow(_) => Code::FailedPrecondition,
            Self::Full { .. } => Code::ResourceExhausted,
            Self::Stale { .. } => Code::Aborted,
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::Denied => Code::PermissionDenied,
            Self::Throttled { .. } => Code::ResourceExhausted,
            Self::Unavailable { .. } => Code::Unavailable,
            Self::Internal(_) => Code::Internal,
        };
        let mut details = ErrorDetails::new();
        details.set_request_info(request_id.to_string(), "");
        details.set_error_info(self.reason(), "waffles", std::collections::HashMap::new());
        if let Some(wait) = self.retry_after() {
            details.set_retry_info(Some(wait));
        }
        if let Self::Invalid(fields) = &self {
            for field in fields {
                details.add_bad_request_violation(&field.field, &field.reason);
            }
        }
        Status::with_error_details(code, self.to_string(), details)
    }
}

fn sentence(fields: &[FieldError]) -> String {
    let named: Vec<_> = fields.iter().map(ToString::to_string).collect();
    format!("the request is not valid: {}", named.join("; "))
}

/// Where the request has no id of its own.
impl From<Error> for Status {
    fn from(error: Error) -> Self {
        error.into_status(uuid::Uuid::now_v7())
    }
}

/// What a fresh connection or a little patience may cure is `Unavailable`. A broken constraint is the
/// caller's fault only where a service says so, before it comes here.
impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let passing = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            // An answer that breaks off, as while a connection is made to a server that stops.
            | sqlx::Error::Protocol(_)
            | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Database(database) => database.code().is_some_and(|code| is_passing(&code)),
            _ => false,
        };
        if passing {
            Self::Unavailable { retry_after: Duration::from_secs(1), source: error.into() }
        } else {
            Self::Internal(error.into())
        }
    }
}

/// Postgres: connection lost, shut down, out of connections, deadlock, serialization, statement time-out, a
/// standby that takes no writes. SQLite: busy, locked.
fn is_passing(code: &str) -> bool {
    ["08", "53"].iter().any(|class| code.len() == 5 && code.starts_with(class))
        || ["57P01", "57P02", "57P03", "57014", "40001", "40P01", "25006", "5", "6", "261", "517"]
            .contains(&code)
}

/// Whether a statement failed because a unique value is taken.
pub fn is_taken(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}

impl From<SealError> for Error {
    fn from(error: SealError) -> Self {
        Self::Internal(error.into())
    }
}

impl From<RandomFailed> for Error {
    fn from(error: RandomFailed) -> Self {
        Self::Internal(error.into())
    }
}

impl From<Vec<FieldError>> for Error {
    fn from(fields: Vec<FieldError>) -> Self {
        Self::Invalid(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_worth_another_try_and_a_bug_is_not() {
        let lost = Error::from(sqlx::Error::PoolTimedOut);
        assert!(lost.retry_after().is_some());
        let bug = Error::from(sqlx::Error::RowNotFound);
        assert_eq!(bug.reason(), "internal");
        assert!(is_passing("08006") && is_passing("5") && !is_passing("23505") && !is_passing("08"));
    }

    #[test]
    fn a_status_names_every_wrong_field_and_hides_causes() {
        let id = uuid::Uuid::now_v7();
        let fields = vec![FieldError::new("name", "is wrong"), FieldError::new("tags[1]", "is long")];
        let status = Error::Invalid(fields).into_status(id);
        let details = status.get_error_details();
        let named: Vec<_> =
            details.bad_request().unwrap().field_violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(named, ["name", "tags[1]"]);
        assert_eq!(details.request_info().unwrap().request_id, id.to_string());
        let hidden = Error::internal("SELECT password FROM users").into_status(id);
        assert_eq!(hidden.message(), "internal error");
    }
}
