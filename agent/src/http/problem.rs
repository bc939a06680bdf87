//! Errors as the API tells them: `application/problem+json`, RFC 9457.

use std::{error::Error, fmt};

use axum::{
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoResponses, ToSchema};

use crate::{
    engine::client::ChangeError,
    model::{Name, Refusal, RefusalKind},
};

pub const MEDIA_TYPE: &str = "application/problem+json";

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `about:blank`: the status says what kind it is.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    pub status: u16,
    /// What is wrong, and what to do.
    pub detail: String,
    /// Path of the field at fault, as in `spec.backends[2].address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Which of the body's documents it is, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<usize>,
    /// Services that stand in the way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Name>,
}

/// Problems of reads.
#[derive(IntoResponses)]
#[allow(dead_code)]
pub enum ReadProblems {
    /// The query has an unknown parameter, or a value that makes no sense.
    #[response(status = 400, content_type = "application/problem+json")]
    Query(Problem),
    /// There is no such thing.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(Problem),
    /// Too many of these are being answered on this listener.
    #[response(status = 503, content_type = "application/problem+json")]
    Busy(Problem),
}

/// Problems of writes.
#[derive(IntoResponses)]
#[allow(dead_code)]
pub enum WriteProblems {
    /// The query has an unknown parameter, or a value that makes no sense.
    #[response(status = 400, content_type = "application/problem+json")]
    Query(Problem),
    /// Over TCP, writes need the bearer token.
    #[response(status = 401, content_type = "application/problem+json")]
    Token(Problem),
    /// Over TCP without a token file, there are no writes.
    #[response(status = 403, content_type = "application/problem+json")]
    ReadOnly(Problem),
    /// There is no such thing.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(Problem),
    /// The body took too long.
    #[response(status = 408, content_type = "application/problem+json")]
    Slow(Problem),
    /// Something stands in the way; `services` names what.
    #[response(status = 409, content_type = "application/problem+json")]
    Conflict(Problem),
    /// If-Match or If-None-Match does not hold: somebody changed it.
    #[response(status = 412, content_type = "application/problem+json")]
    Stale(Problem),
    /// The body is too large.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(Problem),
    /// The media type of the body is unknown.
    #[response(status = 415, content_type = "application/problem+json")]
    MediaType(Problem),
    /// The body is invalid; `field` names where.
    #[response(status = 422, content_type = "application/problem+json")]
    Invalid(Problem),
    /// The kernel or the disk said no. The agent tries again.
    #[response(status = 500, content_type = "application/problem+json")]
    Failed(Problem),
    /// The agent is stopping, or reads other large bodies.
    #[response(status = 503, content_type = "application/problem+json")]
    Stopping(Problem),
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank".into(),
            title: status.canonical_reason().unwrap_or("Error").into(),
            status: status.as_u16(),
            detail: detail.into(),
            field: None,
            document: None,
            services: Vec::new(),
        }
    }

    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub fn stale(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, detail)
    }

    /// This listener serves as many of these as it may.
    pub fn busy(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail).at(field)
    }

    /// The same, with the field at fault.
    pub fn at(self, field: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..self }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal.kind {
            RefusalKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            RefusalKind::NotFound => StatusCode::NOT_FOUND,
            RefusalKind::Conflict => StatusCode::CONFLICT,
            RefusalKind::Stale => StatusCode::PRECONDITION_FAILED,
        };
        let detail = refusal.to_string();
        let Refusal { field, document, services, .. } = refusal;
        Self { field, document, services, ..Self::new(status, detail) }
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Refused(refusal) => refusal.into(),
            ChangeError::WithoutRoom(services) => {
                let first = services.into_values().next();
                first.unwrap_or_else(|| Refusal::malformed("a table finds no room")).into()
            }
            ChangeError::Failed(error) => error.into(),
            ChangeError::Stopping => Self::new(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping"),
        }
    }
}

/// An error that is no problem already is unexpected: a failure of the agent.
impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        let error = match error.downcast() {
            Ok(problem) => return problem,
            Err(error) => error,
        };
        tracing::error!("a request failed: {error:#}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Error for Problem {}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // A struct of texts and numbers always becomes JSON.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(MEDIA_TYPE));
        if status == StatusCode::UNAUTHORIZED {
            let scheme = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
