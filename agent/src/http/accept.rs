//! The connections of one listener: how many there may be, and how long each may take over what it sends and reads. Those
//! who are slow take nothing from the other listener, and give their place back.

use std::{future::poll_fn, os::fd::AsFd, sync::Arc, time::Duration};

use axum::{Router, serve::Listener};
use hyper::{
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, sink},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_io_timeout::TimeoutStream;

use super::{crowd::Crowd, events::stopped, prompt::PromptStream, requester::RequestPeer, tls::Tls};

/// How long a head may take from the moment in which it could begin: also how long a connection may be idle.
const HEAD: Duration = Duration::from_secs(10);
/// How long an answer may wait for a caller that reads nothing of it.
const STALL: Duration = Duration::from_secs(15);
/// Most bytes of a head.
const HEAD_BYTES: usize = 64 << 10;
/// What is read and thrown away after the last answer, so that a caller that still sends gets the answer: a close with
/// something unread takes it back.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 64 << 20;

/// What is behind a listener.
pub struct Door {
    pub router: Router,
    /// Most connections at a time.
    pub most: u32,
    pub tls: Option<Arc<Tls>>,
}

/// Serves until `stopping` turns true, and then the requests that are under way. When there are as many connections as
/// there may be, one more takes the place of another, see [`Crowd`], or (on this host) waits for it.
pub async fn run<L: Listener>(
    mut listener: L,
    door: Door,
    requester: impl Fn(&L::Io) -> Option<RequestPeer> + Send,
    mut stopping: watch::Receiver<bool>,
) where
    L::Io: AsFd,
{
    let Door { router, most, tls } = door;
    let places = Arc::new(Semaphore::new(most as usize));
    let crowd = Crowd::default();
    loop {
        let next = async {
            let (stream, _) = listener.accept().await;
            if places.available_permits() == 0 {
                crowd.make_room();
            }
            (stream, places.clone().acquire_owned().await)
        };
        let (stream, place) = tokio::select! {
            next = next => next,
            () = stopped(&mut stopping) => break,
        };
        // Of one that has gone already, nothing is known.
        let Some(requester) = requester(&stream) else { continue };
        let (router, tls, stopping) = (router.clone(), tls.clone(), stopping.clone());
        let seat = requester.address().map(|address| crowd.enter(address));
        tokio::spawn(async move {
            let served = secured(PromptStream::new(stream), tls, router, requester, stopping);
            match &seat {
                Some(seat) => tokio::select! { () = served => {}, () = seat.taken() => {} },
                None => served.await,
            }
            drop((seat, place));
        });
    }
    drop(listener);
    // All are back when the last connection has ended. The semaphore is never closed.
    let _ = places.acquire_many(most).await;
}

async fn secured<S>(
    stream: S,
    tls: Option<Arc<Tls>>,
    router: Router,
    requester: RequestPeer,
    stopping: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(tls) = tls else { return connection(stream, router, requester, stopping).await };
    match timeout(HEAD, tls.accept(stream)).await {
        Ok(Ok((stream, shown))) => connection(stream, router, requester.with(shown), stopping).await,
        Ok(Err(error)) => tracing::debug!("a connection from {requester} is no TLS that can be used: {error}"),
        Err(_) => {}
    }
}

async fn connection<S>(stream: S, router: Router, requester: RequestPeer, mut stopping: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(STALL));
    let routes = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(requester.clone());
        Box::pin(routes.call(request))
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut is_stopping = false;
    let ended = loop {
        tokio::select! {
            ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break ended,
            () = stopped(&mut stopping), if !is_stopping => {
                is_stopping = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    };
    let mut stream = connection.into_parts().io.into_inner();
    // Nobody waits any longer for a caller that was too slow, nor when the agent stops.
    if is_stopping || ended.is_err_and(|error| error.is_timeout()) {
        return;
    }
    let linger = async {
        stream.shutdown().await?;
        copy(&mut stream.take(LINGER_BYTES), &mut sink()).await
    };
    let _ = timeout(LINGER, linger).await;
}
