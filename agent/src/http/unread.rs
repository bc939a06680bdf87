//! Bodies that an answer did not need, such as that of a request to a path that there is not. A small one is read to its
//! end before the answer, so that the connection goes on; a large one ends the connection, see [`super::accept`].

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderValue, header},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::timeout;

/// Most bytes that are read past an answer.
const SMALL: usize = 64 << 10;
/// How long they may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers once what the handler left of a small body was read.
pub async fn finish(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let waits = request.headers().contains_key(header::EXPECT);
    let mut rest = None;
    let request = request.map(|body| {
        let shared = SharedBody(Arc::new(Mutex::new(ReadBody { body, is_begun: false })));
        Body::new(rest.insert(shared).clone())
    });
    let mut response = next.run(request).await;
    let Some(mut rest) = rest else { return response };
    // To read would ask a caller for a body that it keeps until it is told to go on.
    let is_kept = waits && !rest.lock().is_begun;
    if is_kept || !timeout(PATIENCE, rest.end()).await.unwrap_or(false) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// One body for the handler, and for what it leaves.
#[derive(Clone)]
struct SharedBody(Arc<Mutex<ReadBody>>);

struct ReadBody {
    body: Body,
    is_begun: bool,
}

impl SharedBody {
    fn lock(&self) -> MutexGuard<'_, ReadBody> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads to the end, unless that is far.
    async fn end(&mut self) -> bool {
        let mut left = SMALL;
        while let Some(frame) = self.frame().await {
            let length = frame.ok().map(|frame| frame.data_ref().map_or(0, Bytes::len));
            match length.and_then(|length| left.checked_sub(length)) {
                Some(less) => left = less,
                None => return false,
            }
        }
        true
    }
}

impl HttpBody for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut held = self.lock();
        held.is_begun = true;
        Pin::new(&mut held.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().body.size_hint()
    }
}
