//! A request that is answered as wanted. HTTP/1.1 in clear text; one connection for each.

use std::net::TcpStream;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Method, Request, Response,
    body::{Body, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::{
    Found, Subject,
    tcp::{self, Dial, Handshake},
};
use crate::{
    control::readiness::{Cause, ProbeFailure},
    model::{ProbeMethod, Readiness},
};

/// Most bytes of a body that are searched, and of the head of an answer.
const LIMIT: usize = 64 << 10;

pub async fn probe(subject: &Subject, mark: u32) -> Found {
    let limit = subject.readiness.timeout.duration();
    timeout(limit, ask(subject, mark)).await.unwrap_or_else(|_| Err(subject.no_answer()))
}

async fn ask(subject: &Subject, mark: u32) -> Found {
    let socket = match tcp::dial(subject.target(), mark, Handshake::Whole) {
        Ok(Dial::Connected(socket)) => Ok(socket),
        Ok(Dial::Waits(socket)) => tcp::connected(socket).await,
        Err(error) => Err(error),
    };
    let stream = socket.map(TcpStream::from).and_then(tokio::net::TcpStream::from_std);
    let stream = stream.map_err(|error| tcp::failure(&error))?;
    let request = request(subject)?;
    let mut client = http1::Builder::new();
    client.max_buf_size(LIMIT);
    let (mut sender, connection) = client.handshake(TokioIo::new(stream)).await.map_err(|error| failure(&error))?;
    let mut connection = std::pin::pin!(connection);
    let answer = async {
        let answer = sender.send_request(request).await.map_err(|error| failure(&error))?;
        judge(&subject.readiness, answer).await
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        biased;
        found = &mut answer => found,
        // What was read before the connection ended is still judged.
        _ = &mut connection => answer.await,
    }
}

fn request(subject: &Subject) -> Result<Request<Empty<Bytes>>, ProbeFailure> {
    let Readiness { method, path, headers, .. } = &*subject.readiness;
    let method = match method.unwrap_or_default() {
        ProbeMethod::Get => Method::GET,
        ProbeMethod::Head => Method::HEAD,
        ProbeMethod::Post => Method::POST,
        ProbeMethod::Options => Method::OPTIONS,
    };
    let mut request = Request::builder().method(method).uri(path.as_deref().unwrap_or("/"));
    let is_said = |name: header::HeaderName| headers.keys().any(|key| key.eq_ignore_ascii_case(name.as_str()));
    if !is_said(header::HOST) {
        request = request.header(header::HOST, subject.target().to_string());
    }
    if !is_said(header::USER_AGENT) {
        request = request.header(header::USER_AGENT, concat!("sluice/", env!("CARGO_PKG_VERSION")));
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.header(header::CONNECTION, "close").body(Empty::new());
    request.map_err(|error| ProbeFailure::new(Cause::Setup, format!("no request can be made: {error}")))
}

async fn judge(readiness: &Readiness, answer: Response<Incoming>) -> Found {
    let status = answer.status().as_u16();
    if !readiness.accepts(status) {
        return Err(ProbeFailure::new(Cause::Status(status), format!("HTTP {status}, wanted {}", readiness.wanted())));
    }
    match &readiness.body {
        None => Ok(()),
        Some(text) if contains(answer.into_body(), text.as_bytes()).await? => Ok(()),
        Some(_) => {
            Err(ProbeFailure::new(Cause::Body, format!("HTTP {status}, and the wanted text is not in the body")))
        }
    }
}

/// Whether the text is in the first 64 KiB of the body; the rest is not read.
async fn contains(
    mut body: impl Body<Data = Bytes, Error = hyper::Error> + Unpin,
    text: &[u8],
) -> Result<bool, ProbeFailure> {
    let mut read = BytesMut::new();
    while read.len() < LIMIT {
        let Some(frame) = body.frame().await else { return Ok(false) };
        let Ok(data) = frame.map_err(|error| failure(&error))?.into_data() else { continue };
        // The text may begin in an earlier piece.
        let from = read.len().saturating_sub(text.len() - 1);
        let room = LIMIT - read.len();
        read.extend_from_slice(data.get(..room).unwrap_or(&data));
        if read[from..].windows(text.len()).any(|window| window == text) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn failure(error: &hyper::Error) -> ProbeFailure {
    if error.is_parse() {
        return ProbeFailure::new(Cause::NoHttp, "the answer is no HTTP/1: is this a TLS port?");
    }
    ProbeFailure::new(Cause::Broken, "the connection ended before the answer did")
}
