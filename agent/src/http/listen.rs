//! Listeners: a Unix socket with everything, and a TCP address with what each caller's role allows.

use std::{
    fs::{self, Permissions},
    io::ErrorKind,
    net::SocketAddr,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt, chown},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use axum::{middleware, serve::ListenerExt};
use nix::sys::{
    resource::{Resource, getrlimit},
    stat::{Mode, fchmod},
};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
    task::JoinSet,
};

use super::{
    Access, App, Gate,
    accept::{self, Door},
    events::stopped,
    host::{self, Names},
    requester::RequestPeer,
    router::router,
    tls::Tls,
    tokens::TokenFile,
};
use crate::{
    host::ownership,
    settings::{Listen, Settings},
    view::events::EventKind,
};

/// How long requests may go on once the agent stops.
const GRACE: Duration = Duration::from_secs(5);
/// Connections at a time over the Unix socket, and over TCP; fewer where the agent may open few files.
const LOCAL_CONNECTIONS: u32 = 512;
const REMOTE_CONNECTIONS: u32 = 256;
/// When a peer that acknowledges nothing is given up.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// Between two attempts at an address that is taken.
const AGAIN: Duration = Duration::from_secs(1);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Bound listeners; requests wait until [`serve`].
pub struct Bound {
    unix: UnixListener,
    socket: SocketFile,
    tcp: Option<TcpDoor>,
    names: Names,
}

/// The TCP address.
struct TcpDoor {
    address: SocketAddr,
    /// `None` while another program has the address.
    listener: Option<TcpListener>,
    gate: Arc<Gate>,
    tls: Option<Arc<Tls>>,
}

impl Bound {
    /// Binds what the settings ask for.
    ///
    /// # Errors
    /// When another agent answers on the socket, the address is none that this agent can listen on, or the token cannot be
    /// read. An address that is taken is waited for by [`serve`]: any user of this host can take one.
    pub async fn new(settings: &Settings) -> Result<Self> {
        let tcp = match settings.listen {
            Listen::Off => None,
            Listen::On(address) => {
                let tls = settings.tls.as_ref().map(|files| Tls::open(files).map(Arc::new)).transpose()?;
                let gate = gate(settings)?;
                warn_of_wide(address, &gate, tls.is_some());
                let listener = match TcpListener::bind(address).await {
                    Err(error) if error.kind() == ErrorKind::AddrInUse => None,
                    bound => Some(bound.with_context(|| {
                        format!("listening on {address}: choose another with --listen, or --listen off")
                    })?),
                };
                Some(TcpDoor { address, listener, gate: Arc::new(gate), tls })
            }
        };
        let (unix, socket) = bind(&settings.socket, settings.socket_group)?;
        Ok(Self { unix, socket, tcp, names: settings.allow_host.as_slice().into() })
    }

    pub fn socket(&self) -> &Path {
        &self.socket.path
    }

    /// The TCP address, with the port that the kernel chose where 0 was asked for; `None` while another program has it.
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref()?.listener.as_ref()?.local_addr().ok()
    }

    /// The TCP address, in words.
    pub fn listens(&self) -> String {
        match (&self.tcp, self.address()) {
            (None, _) => "off".to_owned(),
            (Some(_), Some(address)) => address.to_string(),
            (Some(door), None) => format!("{} once it is free", door.address),
        }
    }
}

/// Serves until `stopping` turns true, and then for as long as running requests take, at most [`GRACE`].
///
/// # Errors
/// When a listener breaks.
pub async fn serve(bound: Bound, app: App, stopping: watch::Receiver<bool>) -> Result<()> {
    let Bound { unix, socket, tcp, names } = bound;
    let mut stop = stopping.clone();
    let mut servers = JoinSet::new();
    let local = router(app.clone().local(), Access::Everything);
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(files, _)| u32::try_from(files).unwrap_or(u32::MAX));
    // Strangers leave files to the Unix socket, and both to the agent's own work.
    let (local_most, remote_most) = (LOCAL_CONNECTIONS.min(files / 4), REMOTE_CONNECTIONS.min(files / 8));
    let door = Door { router: local, most: local_most.max(1), tls: None };
    servers.spawn(accept::run(unix, door, RequestPeer::local, stopping.clone()));
    if let Some(door) = tcp {
        servers.spawn(serve_tcp(door, names, app, remote_most.max(1), stopping));
    }
    let ended = async {
        while let Some(ended) = servers.join_next().await {
            ended.context("a listener was interrupted")?;
        }
        Ok(())
    };
    let result = tokio::select! {
        ended = ended => ended,
        () = async { stopped(&mut stop).await; tokio::time::sleep(GRACE).await } => Ok(()),
    };
    drop(socket);
    result
}

/// Serves the TCP address, from when nobody else has it.
async fn serve_tcp(door: TcpDoor, names: Names, app: App, most: u32, mut stopping: watch::Receiver<bool>) {
    let TcpDoor { address, listener, gate, tls } = door;
    let listener = match listener {
        Some(listener) => listener,
        None => tokio::select! {
            listener = once_free(address, &app) => listener,
            () = stopped(&mut stopping) => return,
        },
    };
    let listener = listener.tap_io(|stream| {
        // Answers are small and awaited. Without either option the worst is a delay, or a place that is held for long.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&*stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    });
    let remote = router(app, Access::Guarded(gate)).layer(middleware::from_fn_with_state(names, host::check));
    accept::run(listener, Door { router: remote, most, tls }, RequestPeer::remote, stopping).await;
}

/// Waits for an address that another program has, by listening on it or as its own end of a connection. Told once.
async fn once_free(address: SocketAddr, app: &App) -> TcpListener {
    let why = format!(
        "{address} is taken by another program: it is served once it is free. The Unix socket serves everything"
    );
    tracing::error!("{why}");
    app.handle.events().record(EventKind::ListenFailed, None, why);
    app.set_awaited(Some(address));
    let listener = loop {
        tokio::time::sleep(AGAIN).await;
        // Whatever is in the way by now: the agent has started, and goes on.
        if let Ok(listener) = TcpListener::bind(address).await {
            break listener;
        }
    };
    app.set_awaited(None);
    tracing::info!("{address} is free, and served");
    app.handle.events().record(EventKind::ListenRecovered, None, format!("{address} is free, and served"));
    listener
}

fn gate(settings: &Settings) -> Result<Gate> {
    let tokens = |file: &Option<PathBuf>| file.as_deref().map(TokenFile::open).transpose();
    Ok(Gate {
        operate: tokens(&settings.token_file)?,
        read: tokens(&settings.read_token_file)?,
        certificates: settings.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()),
        operators: settings.tls_operators.clone(),
    })
}

/// What is sent over TCP can be read on the way, and what everybody may read is read.
fn warn_of_wide(address: SocketAddr, gate: &Gate, is_secured: bool) {
    if address.ip().is_loopback() {
        return;
    }
    if !is_secured && (gate.operate.is_some() || gate.read.is_some()) {
        tracing::warn!(
            "tokens cross the network in clear text to {address}: give the agent --tls-cert and --tls-key, or listen on \
             a loopback address"
        );
    }
    if !gate.locks_reads() {
        tracing::warn!(
            "everybody who reaches {address} may read documents, connections and events: --read-token-file or \
             --tls-client-ca locks them up"
        );
    }
}

/// The file of a Unix socket; removed with this value, unless another agent has put its own there.
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            // If it stays, the next agent replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds a Unix socket of mode 0660, and of this group. It is renamed into place once it has its mode, so that nobody else can connect in
/// between, and replaces a socket on which nobody answers.
fn bind(path: &Path, group: Option<u32>) -> Result<(UnixListener, SocketFile)> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        // Members of the socket's group come through.
        let made = make_place(parent);
        made.with_context(|| format!("the directory of the socket, {}", parent.display()))?;
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) => {
            ensure!(
                metadata.file_type().is_socket(),
                "{} is there and is no socket: remove it, or choose another with --socket",
                path.display()
            );
            if is_answered(path) {
                bail!("another agent answers on {}: stop it, or give this one another --socket", path.display());
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("looking at {}", path.display())),
    }
    let mut name = path.file_name().context("--socket must name a file")?.to_owned();
    name.push(format!(".{}", process::id()));
    let fresh = path.with_file_name(name);
    let _ = fs::remove_file(&fresh);
    let listener = listen(&fresh).with_context(|| format!("listening on {}", path.display()))?;
    let placed = place(&fresh, path, group);
    if placed.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    Ok((listener, placed.with_context(|| format!("putting the socket at {}", path.display()))?))
}

/// Makes the directory of a socket. In one that others may write, they could put theirs in its place; what is shared as
/// /tmp is keeps each from that.
fn make_place(directory: &Path) -> Result<()> {
    if directory.exists() {
        return ownership::check_place(directory);
    }
    ownership::make_directory(directory, 0o755).map(drop)
}

/// A socket that nobody else can connect to: it is bound with the mode that it has before (Linux takes away what the
/// umask says, and adds nothing).
fn listen(path: &Path) -> Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(UnixListener::from_std(socket.into())?)
}

/// Removes a socket that an agent left behind. `false`: there is none, or somebody answers on it.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_stale(path: &Path) -> Result<bool> {
    if !is_stale(path) {
        return Ok(false);
    }
    fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
    Ok(true)
}

/// Whether it is a socket on which nobody answers.
pub fn is_stale(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    is_socket && !is_answered(path)
}

fn place(fresh: &Path, path: &Path, group: Option<u32>) -> Result<SocketFile> {
    if group.is_some() {
        chown(fresh, None, group)?;
    }
    fs::set_permissions(fresh, Permissions::from_mode(0o660))?;
    let inode = fs::symlink_metadata(fresh)?.ino();
    fs::rename(fresh, path)?;
    Ok(SocketFile { path: path.to_owned(), inode })
}

fn is_answered(path: &Path) -> bool {
    match UnixStream::connect(path) {
        Ok(_) => true,
        // Any other error: somebody may still listen.
        Err(error) => error.kind() != ErrorKind::ConnectionRefused && error.kind() != ErrorKind::NotFound,
    }
}
