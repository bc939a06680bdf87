//! Bodies of requests: how large, of which media type, and what is in them.

use std::time::{Duration, Instant};

use axum::{
    body::Body,
    extract::{FromRequest, Request},
    http::{HeaderMap, StatusCode, header},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{Allowance, App, problem::Problem};
use crate::model::{
    Refusal,
    parse::{self, DocumentFormat},
};

/// Most bytes of a body.
pub const LIMIT: usize = 4 << 20;
/// Most bytes of a body of /v1/apply over the Unix socket: 10,000 services of ten backends are 15 MB.
pub const BULK_LIMIT: usize = 64 << 20;
/// How long a body may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bodies up to this size are read at any time. Bytes.
const SMALL: usize = 64 << 10;

/// A request's body, read to its end.
#[derive(Debug)]
pub struct Input {
    /// When the head of the request had been read.
    pub received: Instant,
    media: Media,
    bytes: Bytes,
    /// Of a large body: what is made of it takes many times its size.
    _turn: Option<OwnedSemaphorePermit>,
}

/// As [`Input`], up to [`App`]'s limit for many documents.
#[derive(Debug)]
pub struct BulkInput(pub Input);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Media {
    Unsaid,
    Json,
    MergePatch,
    Yaml,
    Other(String),
}

impl Input {
    /// The format of documents in the body, and the body.
    ///
    /// # Errors
    /// 415 when it is neither JSON nor YAML.
    pub fn documents(&self) -> Result<(&Bytes, DocumentFormat), Problem> {
        let format = match &self.media {
            Media::Json => DocumentFormat::Json,
            Media::Yaml => DocumentFormat::Yaml,
            Media::Unsaid => DocumentFormat::Auto,
            Media::MergePatch | Media::Other(_) => {
                return Err(self.unsupported("application/json or application/yaml"));
            }
        };
        Ok((&self.bytes, format))
    }

    /// The body as a merge patch.
    ///
    /// # Errors
    /// 415 when it is something else, 422 when it is no JSON.
    pub fn patch(&self) -> Result<Value, Problem> {
        match &self.media {
            Media::Json | Media::MergePatch | Media::Unsaid => Ok(parse::value(&self.bytes, DocumentFormat::Json)?),
            Media::Yaml | Media::Other(_) => Err(self.unsupported("application/merge-patch+json or application/json")),
        }
    }

    /// The body as the options of an action, all of which are optional.
    ///
    /// # Errors
    /// 415 when it is no JSON, 422 when a field is unknown or makes no sense.
    pub fn options<T: DeserializeOwned + Default>(&self) -> Result<T, Problem> {
        if self.bytes.trim_ascii().is_empty() {
            return Ok(T::default());
        }
        match &self.media {
            Media::Json | Media::Unsaid => match parse::value(&self.bytes, DocumentFormat::Json)? {
                value @ Value::Object(_) => Ok(parse::typed(value)?),
                _ => Err(Refusal::malformed("the options are an object, and may be left out").into()),
            },
            Media::MergePatch | Media::Yaml | Media::Other(_) => Err(self.unsupported("application/json")),
        }
    }

    fn unsupported(&self, wanted: &str) -> Problem {
        let given = match &self.media {
            Media::Unsaid => "nothing",
            Media::Json => "application/json",
            Media::MergePatch => "application/merge-patch+json",
            Media::Yaml => "application/yaml",
            Media::Other(text) => text,
        };
        let detail = format!("the Content-Type is {given}; {wanted} is wanted here");
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
    }

    async fn read(request: Request, app: &App, limit: usize) -> Result<Self, Problem> {
        let received = Instant::now();
        let media = Media::of(request.headers());
        let length = announced(request.headers()).unwrap_or(limit);
        if length > limit {
            return Err(too_large(limit));
        }
        let turn = turn(app, length).await?;
        let bytes = timeout(PATIENCE, collect(&mut request.into_body(), limit)).await.map_err(|_| {
            let detail = format!("the body did not arrive within {} s", PATIENCE.as_secs());
            Problem::new(StatusCode::REQUEST_TIMEOUT, detail)
        })??;
        Ok(Self { received, media, bytes, _turn: turn })
    }
}

/// A few large bodies of a listener are in memory at a time, or one that is larger than most.
async fn turn(app: &App, length: usize) -> Result<Option<OwnedSemaphorePermit>, Problem> {
    if length <= SMALL {
        return Ok(None);
    }
    let Allowance { bodies, bodies_at_once, .. } = &app.allowance;
    let weight = if length > LIMIT { *bodies_at_once } else { 1 };
    match timeout(PATIENCE, bodies.clone().acquire_many_owned(weight)).await {
        Ok(turn) => Ok(Some(turn.map_err(anyhow::Error::new)?)),
        Err(_) => Err(Problem::busy("other large requests take their time: try again")),
    }
}

impl FromRequest<App> for Input {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        Self::read(request, app, LIMIT).await
    }
}

impl FromRequest<App> for BulkInput {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        Input::read(request, app, app.allowance.bulk_limit).await.map(Self)
    }
}

impl Media {
    fn of(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get(header::CONTENT_TYPE) else { return Self::Unsaid };
        let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        // Parameters such as charset change nothing: all of these are UTF-8.
        match text.split(';').next().map_or("", str::trim) {
            "" => Self::Unsaid,
            "application/json" => Self::Json,
            "application/merge-patch+json" => Self::MergePatch,
            // RFC 9512, and the names that were in use before it.
            "application/yaml" | "application/x-yaml" | "text/yaml" | "text/x-yaml" => Self::Yaml,
            other => Self::Other(other.to_owned()),
        }
    }
}

fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn collect(body: &mut Body, limit: usize) -> Result<Bytes, Problem> {
    let mut collected = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Problem::bad_request(format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if collected.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        collected.extend_from_slice(&data);
    }
    Ok(collected.freeze())
}

fn too_large(limit: usize) -> Problem {
    let detail = format!("the body is larger than {} MiB; /v1/apply over the Unix socket takes more", limit >> 20);
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
}
