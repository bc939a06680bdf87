//! Probes: the I/O of one probe of one backend. [`crate::control::readiness`] and [`crate::engine`] decide when, how
//! often, and what follows. Connections carry the mark that steering lets pass, so that a probe reaches its backend.

mod exec;
mod http;
mod tcp;

use std::{future::Future, net::SocketAddr, path::PathBuf, pin::Pin, sync::Arc};

use crate::{
    control::readiness::{Cause, ProbeFailure},
    model::{Name, Readiness, ReadinessKind},
};

/// What a probe found.
pub type Found = Result<(), ProbeFailure>;

/// A backend as a probe needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub service: Name,
    pub backend: Name,
    pub node: Option<Name>,
    pub address: SocketAddr,
    pub readiness: Arc<Readiness>,
}

/// What all probes share.
#[derive(Clone, Debug)]
pub struct Means {
    /// SO_MARK of the connections; 0 for none.
    pub mark: u32,
    /// Directory of the commands of `exec`.
    pub hooks: Option<PathBuf>,
}

/// A probe that has begun.
pub enum Begun {
    /// Over already: a server on this host answers within connect().
    Done(Found),
    /// Ends within the timeout, or a little later.
    Goes(Pin<Box<dyn Future<Output = Found> + Send>>),
}

/// Begins a probe. The future of [`Begun::Goes`] needs a runtime.
pub fn begin(subject: &Arc<Subject>, means: &Arc<Means>) -> Begun {
    let (subject, means) = (subject.clone(), means.clone());
    match subject.readiness.kind {
        ReadinessKind::Tcp => tcp::begin(subject.target(), subject.readiness.timeout, means.mark),
        ReadinessKind::Http => Begun::Goes(Box::pin(async move { http::probe(&subject, means.mark).await })),
        ReadinessKind::Exec => Begun::Goes(Box::pin(async move { exec::probe(&subject, &means).await })),
        ReadinessKind::Report | ReadinessKind::None => Begun::Done(Ok(())),
    }
}

impl Subject {
    /// Where connections of a probe go.
    fn target(&self) -> SocketAddr {
        let mut target = self.address;
        target.set_port(self.readiness.port.unwrap_or(target.port()));
        target
    }

    fn no_answer(&self) -> ProbeFailure {
        ProbeFailure::new(Cause::NoAnswer, format!("no answer within {}", self.readiness.timeout))
    }
}

impl ProbeFailure {
    fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into() }
    }

    fn setup(what: &str, error: &std::io::Error) -> Self {
        Self::new(Cause::Setup, format!("{what}: {error}"))
    }
}

#[cfg(test)]
mod tests;
