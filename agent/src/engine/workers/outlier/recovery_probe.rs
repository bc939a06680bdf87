//! One connection of the agent's own to each backend whose time out is over. It is marked: nothing steers it.

use std::{
    io::{Error, ErrorKind},
    net::SocketAddr,
    sync::mpsc::Sender,
    thread,
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{net::TcpSocket, task::JoinSet, time::timeout};

use super::News;
use crate::{control::outlier::Tried, kernel::Waker, model::BackendId};

/// A backend that is to be tried, and where.
pub type Wanted = (BackendId, SocketAddr);

/// How long a backend may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Connections at once: a network that is cut leaves thousands to be tried.
const AT_ONCE: usize = 512;

/// Tries them and ends; what came of it is told in few batches.
pub fn spawn(backends: Vec<Wanted>, mark: u32, news: Sender<News>, waker: Waker) {
    thread::spawn(move || {
        for some in backends.chunks(AT_ONCE) {
            if news.send(News::Tried(all(some, mark))).is_err() {
                return;
            }
            waker.wake();
        }
    });
}

pub(super) fn all(backends: &[Wanted], mark: u32) -> Vec<(BackendId, Tried)> {
    let ids = || backends.iter().map(|(backend, _)| *backend);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ids().map(|id| (id, Tried::Failed(format!("could not be tried: {error}")))).collect(),
    };
    runtime.block_on(async {
        let mut tries = JoinSet::new();
        for (backend, address) in backends.iter().copied() {
            tries.spawn(async move { (backend, one(address, mark).await) });
        }
        tries.join_all().await
    })
}

async fn one(address: SocketAddr, mark: u32) -> Tried {
    let connect = async { socket(address, mark)?.connect(address).await };
    match timeout(PATIENCE, connect).await {
        Ok(Ok(stream)) => {
            // Leaves nothing behind that waits on either side.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            Tried::Answered
        }
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            Tried::Failed("refused the connection".into())
        }
        Ok(Err(error)) => Tried::Failed(format!("could not be reached: {error}")),
        Err(_) => Tried::Failed(format!("did not answer within {} s", PATIENCE.as_secs())),
    }
}

fn socket(address: SocketAddr, mark: u32) -> Result<TcpSocket, Error> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    Ok(TcpSocket::from_std_stream(socket.into()))
}
