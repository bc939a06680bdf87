//! Who is at the other end of a connection.

use std::{fmt, fs, net::IpAddr};

use tokio::net::{TcpStream, UnixStream};

use super::tls::{ClientCertificate, Shown};
use crate::host::users;

/// Whoever sends the requests of one connection; each request has it as an extension.
#[derive(Clone, Debug)]
pub enum RequestPeer {
    /// A process of this host, over the Unix socket.
    Local {
        uid: u32,
        process: Option<i32>,
    },
    Remote(Remote),
}

/// Over TCP.
#[derive(Clone, Debug)]
pub struct Remote {
    /// The address that the connection came to.
    pub here: IpAddr,
    pub there: IpAddr,
    /// Over TLS: the certificates that were shown.
    pub shown: Option<Shown>,
}

impl RequestPeer {
    /// `None`: it has gone already.
    pub fn local(stream: &UnixStream) -> Option<Self> {
        let peer = stream.peer_cred().ok()?;
        Some(Self::Local { uid: peer.uid(), process: peer.pid() })
    }

    /// As [`RequestPeer::local`].
    pub fn remote(stream: &TcpStream) -> Option<Self> {
        let (here, there) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
        Some(Self::Remote(Remote { here: here.ip(), there: there.ip().to_canonical(), shown: None }))
    }

    /// Once both sides have shown what they have.
    #[must_use]
    pub fn with(self, shown: Shown) -> Self {
        match self {
            Self::Local { .. } => self,
            Self::Remote(remote) => Self::Remote(Remote { shown: Some(shown), ..remote }),
        }
    }

    /// The certificate that it has shown, if somebody vouches for it still.
    pub fn vouched(&self) -> Option<&ClientCertificate> {
        match self {
            Self::Local { .. } => None,
            Self::Remote(remote) => remote.shown.as_ref()?.vouched(),
        }
    }

    /// The certificate that it showed when it came.
    pub fn certificate(&self) -> Option<&ClientCertificate> {
        match self {
            Self::Local { .. } => None,
            Self::Remote(remote) => remote.shown.as_ref()?.theirs.as_deref(),
        }
    }

    /// Where it is.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Local { .. } => None,
            Self::Remote(remote) => Some(remote.there),
        }
    }
}

/// As events and logs name it: the user and the process of the Unix socket, or the address.
impl fmt::Display for RequestPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid, process } => {
                match users::name(*uid) {
                    Some(name) => write!(f, "user {name} ({uid})")?,
                    None => write!(f, "user {uid}")?,
                }
                let Some(process) = process else { return Ok(()) };
                write!(f, ", process {process}")?;
                match fs::read_to_string(format!("/proc/{process}/comm")) {
                    Ok(command) => write!(f, " ({})", command.trim_end()),
                    // It has ended.
                    Err(_) => Ok(()),
                }
            }
            Self::Remote(remote) => match self.certificate() {
                Some(certificate) => write!(f, "certificate {} from {}", certificate.subject, remote.there),
                None => remote.there.fmt(f),
            },
        }
    }
}
