//! Refusals as problem documents (RFC 9457), all of one form. A handler answers with a `Problem`; the frame
//! round every request writes it, since it knows the request's id.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;
use waffles_core::FieldError;

use crate::error::Error;

/// The media type of problem documents.
pub(super) const PROBLEM_TYPE: &str = "application/problem+json";

/// A refusal on its way to the frame.
#[derive(Debug, Clone)]
pub(super) struct Problem(Arc<Kind>);

#[derive(Debug)]
enum Kind {
    /// What a service answered.
    Service(Error),
    /// What the edge itself refuses.
    Edge { status: StatusCode, reason: &'static str, detail: String },
}

impl Problem {
    /// A refusal of the edge: `reason` is one stable word, `detail` a sentence without a full stop.
    pub(super) fn new(status: StatusCode, reason: &'static str, detail: impl Into<String>) -> Self {
        Self(Arc::new(Kind::Edge { status, reason, detail: detail.into() }))
    }

    /// A malformed request.
    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", detail)
    }

    fn status(&self) -> StatusCode {
        match &*self.0 {
            Kind::Edge { status, .. } => *status,
            Kind::Service(error) => match error {
                Error::NotFound(_) => StatusCode::NOT_FOUND,
                Error::Conflict(_) | Error::NotNow(_) | Error::Full { .. } | Error::Stale { .. } => {
                    StatusCode::CONFLICT
                }
                Error::Invalid(_) => StatusCode::BAD_REQUEST,
                Error::Unauthenticated => StatusCode::UNAUTHORIZED,
                Error::Denied => StatusCode::FORBIDDEN,
                Error::Throttled { .. } => StatusCode::TOO_MANY_REQUESTS,
                Error::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
                Error::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
        }
    }

    /// The document as an answer.
    pub(super) fn render(&self, request_id: Uuid) -> Response {
        let status = self.status();
        let (reason, detail, errors, current, wait) = match &*self.0 {
            Kind::Edge { reason, detail, .. } => (*reason, detail.clone(), Vec::new(), None, None),
            Kind::Service(error) => {
                error.log(request_id);
                let (detail, errors) = match error {
                    Error::Invalid(fields) => ("the request is not valid".to_owned(), fields.clone()),
                    error => (error.to_string(), Vec::new()),
                };
                let current = match error {
                    Error::Stale { current } => Some(*current),
                    _ => None,
                };
                (error.reason(), detail, errors, current, error.retry_after())
            }
        };
        let body = ProblemBody {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Refused"),
            status: status.as_u16(),
            reason,
            detail,
            request_id,
            errors: errors.into_iter().map(WrongField::from).collect(),
            current_version: current,
        };
        // A document of texts and numbers can always be written.
        let bytes = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = Response::new(Body::from(bytes));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_TYPE));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"waffles\""));
        }
        if let Some(wait) = wait {
            headers.insert(header::RETRY_AFTER, seconds(wait).into());
        }
        response
    }
}

fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self(Arc::new(Kind::Service(error)))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Why a request was refused (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemBody {
    /// Always `about:blank`: `reason` tells problems apart.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The status in words.
    title: &'static str,
    /// The status.
    status: u16,
    /// One stable word, such as `not_found` or `stale`.
    reason: &'static str,
    /// What is wrong, for people.
    detail: String,
    /// Also in the header `x-request-id`, and in the logs.
    request_id: Uuid,
    /// Every wrong field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<WrongField>,
    /// The version that a change must be based on.
    #[serde(skip_serializing_if = "Option::is_none")]
    current_version: Option<u64>,
}

/// A field and what is wrong with it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WrongField {
    /// Path of the field, such as `endpoints[0].url`.
    field: String,
    /// What is wrong with it.
    reason: String,
}

impl From<FieldError> for WrongField {
    fn from(error: FieldError) -> Self {
        Self { field: error.field, reason: error.reason }
    }
}
