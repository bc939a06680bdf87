//! Listeners: a Unix socket with everything, a TCP address with reads, or with writes for those who know the token.

use std::{
    fs::{self, Permissions},
    future::IntoFuture,
    io::ErrorKind,
    net::SocketAddr,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use axum::serve::ListenerExt;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
    task::JoinSet,
};

use super::{Access, App, Token, router::router};
use crate::settings::{Listen, Settings};

/// How long requests may go on once the agent stops.
const GRACE: Duration = Duration::from_secs(5);

/// Bound listeners; requests wait until [`serve`].
pub struct Bound {
    unix: UnixListener,
    socket: SocketFile,
    tcp: Option<(TcpListener, Access)>,
}

impl Bound {
    /// Binds what the settings ask for.
    ///
    /// # Errors
    /// When another agent answers on the socket, an address is taken, or the token cannot be read.
    pub async fn new(settings: &Settings) -> Result<Self> {
        let tcp = match settings.listen {
            Listen::Off => None,
            Listen::On(address) => {
                let access = match &settings.token_file {
                    Some(path) => Access::WritesWith(Token::read(path)?),
                    None => Access::ReadsOnly,
                };
                let listener = TcpListener::bind(address).await.with_context(|| {
                    format!("listening on {address}: is it taken? Choose another with --listen, or --listen off")
                })?;
                Some((listener, access))
            }
        };
        let (unix, socket) = bind(&settings.socket)?;
        Ok(Self { unix, socket, tcp })
    }

    pub fn socket(&self) -> &Path {
        &self.socket.path
    }

    /// The TCP address, with the port that the kernel chose where 0 was asked for.
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }
}

/// Serves until `stopping` turns true, and then for as long as running requests take, at most [`GRACE`].
///
/// # Errors
/// When a listener breaks.
pub async fn serve(bound: Bound, app: App, stopping: watch::Receiver<bool>) -> Result<()> {
    let Bound { unix, socket, tcp } = bound;
    let stopped = |mut stopping: watch::Receiver<bool>| async move {
        // An error means that the sender is gone, which is the end too.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    };
    let mut servers = JoinSet::new();
    let local = router(app.clone().with_bulk(), Access::Everything);
    servers.spawn(axum::serve(unix, local).with_graceful_shutdown(stopped(stopping.clone())).into_future());
    if let Some((listener, access)) = tcp {
        let listener = listener.tap_io(|stream| {
            // Answers are small and awaited; without it the worst is a delay.
            let _ = stream.set_nodelay(true);
        });
        let remote = router(app, access);
        servers.spawn(axum::serve(listener, remote).with_graceful_shutdown(stopped(stopping.clone())).into_future());
    }
    let ended = async {
        while let Some(ended) = servers.join_next().await {
            ended.context("a listener was interrupted")?.context("serving the API")?;
        }
        Ok(())
    };
    let result = tokio::select! {
        ended = ended => ended,
        () = async { stopped(stopping).await; tokio::time::sleep(GRACE).await } => Ok(()),
    };
    drop(socket);
    result
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

/// Binds a Unix socket of mode 0660. It is renamed into place once it has its mode, so that nobody else can connect in
/// between, and replaces a socket on which nobody answers.
fn bind(path: &Path) -> Result<(UnixListener, SocketFile)> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).with_context(|| format!("creating {} for the socket", parent.display()))?;
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
    let listener = UnixListener::bind(&fresh).with_context(|| format!("listening on {}", path.display()))?;
    let placed = place(&fresh, path);
    if placed.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    Ok((listener, placed.with_context(|| format!("putting the socket at {}", path.display()))?))
}

/// Removes a socket that an agent left behind. `false`: there is none, or somebody answers on it.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_stale(path: &Path) -> Result<bool> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if !is_socket || is_answered(path) {
        return Ok(false);
    }
    fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
    Ok(true)
}

fn place(fresh: &Path, path: &Path) -> Result<SocketFile> {
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
