//! The connections of one listener: how many there may be, and how long each may take over what it sends and reads. Those
//! who are slow take nothing from the other listener, and give their place back.

use std::{future::poll_fn, net::IpAddr, os::fd::AsFd, sync::Arc, time::Duration};

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

use super::{crowd::Crowd, events::stopped, host::AskedAt, prompt::PromptStream};

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

/// The two ends of a connection over the network.
#[derive(Clone, Copy)]
pub struct Ends {
    pub here: AskedAt,
    pub there: IpAddr,
}

/// Serves until `stopping` turns true, and then the requests that are under way. There are at most `most` connections at a
/// time. One more takes the place of another, see [`Crowd`], or (where `ends` has none) waits for it.
pub async fn run<L: Listener>(
    mut listener: L,
    most: u32,
    router: Router,
    ends: impl Fn(&L::Io) -> Option<Ends> + Send,
    mut stopping: watch::Receiver<bool>,
) where
    L::Io: AsFd,
{
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
        let (router, stopping) = (router.clone(), stopping.clone());
        let ends = ends(&stream);
        let seat = ends.map(|ends| crowd.enter(ends.there));
        tokio::spawn(async move {
            let served = connection(stream, router, ends.map(|ends| ends.here), stopping);
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

async fn connection<S>(stream: S, router: Router, at: Option<AskedAt>, mut stopping: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static,
{
    let mut stream = TimeoutStream::new(PromptStream::new(stream));
    stream.set_write_timeout(Some(STALL));
    let routes = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        if let Some(at) = at {
            request.extensions_mut().insert(at);
        }
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
