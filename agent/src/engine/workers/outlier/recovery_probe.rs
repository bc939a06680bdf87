//! Recovery probes: one connection of the agent's own to each backend whose time out is over. It is marked, so that
//! nothing steers it.

use std::{
    io::{Error, ErrorKind},
    net::SocketAddr,
    sync::mpsc::Sender,
    thread,
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{net::TcpSocket, task::JoinSet, time::timeout};

use super::OutlierMessage;
use crate::{control::outlier::RecoveryProbe, kernel::Waker, model::BackendId};

/// A backend that is to be probed, and where.
pub type ProbeTarget = (BackendId, SocketAddr);

/// How long a backend may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Connections at once: a network that is cut leaves thousands to be probed.
const AT_ONCE: usize = 512;

/// Probes all of them and ends; what came of it is told in few batches.
pub fn spawn(backends: Vec<ProbeTarget>, mark: u32, messages: Sender<OutlierMessage>, waker: Waker) {
    thread::spawn(move || {
        for some in backends.chunks(AT_ONCE) {
            if messages.send(OutlierMessage::Probed(probe_all(some, mark))).is_err() {
                return;
            }
            waker.wake();
        }
    });
}

pub(super) fn probe_all(backends: &[ProbeTarget], mark: u32) -> Vec<(BackendId, RecoveryProbe)> {
    let ids = || backends.iter().map(|(backend, _)| *backend);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return ids().map(|id| (id, RecoveryProbe::Failed(format!("could not be probed: {error}")))).collect();
        }
    };
    runtime.block_on(async {
        let mut probes = JoinSet::new();
        for (backend, address) in backends.iter().copied() {
            probes.spawn(async move { (backend, probe(address, mark).await) });
        }
        probes.join_all().await
    })
}

async fn probe(address: SocketAddr, mark: u32) -> RecoveryProbe {
    let connect = async { socket(address, mark)?.connect(address).await };
    match timeout(PATIENCE, connect).await {
        Ok(Ok(stream)) => {
            // Leaves nothing behind that waits on either side.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            RecoveryProbe::Answered
        }
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            RecoveryProbe::Failed("refused the connection".into())
        }
        Ok(Err(error)) => RecoveryProbe::Failed(format!("could not be reached: {error}")),
        Err(_) => RecoveryProbe::Failed(format!("did not answer within {} s", PATIENCE.as_secs())),
    }
}

fn socket(address: SocketAddr, mark: u32) -> Result<TcpSocket, Error> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    Ok(TcpSocket::from_std_stream(socket.into()))
}
