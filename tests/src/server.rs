//! Servers that say their name, so that a client knows who answered. Each runs on one thread of its own.
//!
//! TCP: greets with "name\n", then answers each line "text" with "name: text". Some lines do more: "sleep 200" answers
//! after 200 ms, "bytes 1000" with 1,000 more bytes and a line end, "close" ends the connection, "reset" resets it.
//! UDP: answers "text" with "name: text". HTTP: answers GET with "name\n" in the body and in the header `server`; the
//! path /sleep/200 takes 200 ms.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU16, AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming, header::SERVER, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, UdpSocket},
    runtime, sync,
};

use crate::Namespace;

/// A running server. Dropping it closes the listener and every connection.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: Option<sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    accepted: AtomicU64,
    open: AtomicU64,
    requests: AtomicU64,
    status: AtomicU16,
    clients: Mutex<BTreeSet<SocketAddr>>,
}

#[derive(Clone, Copy)]
enum Kind {
    Echo,
    Http,
    Datagrams,
}

impl Server {
    /// A TCP server that greets and echoes.
    pub fn tcp(namespace: &Namespace, address: SocketAddr, name: &str) -> Result<Self> {
        Self::start(namespace, address, name, Kind::Echo)
    }

    /// A UDP server that echoes.
    pub fn udp(namespace: &Namespace, address: SocketAddr, name: &str) -> Result<Self> {
        Self::start(namespace, address, name, Kind::Datagrams)
    }

    /// An HTTP/1.1 server with keep-alive.
    pub fn http(namespace: &Namespace, address: SocketAddr, name: &str) -> Result<Self> {
        Self::start(namespace, address, name, Kind::Http)
    }

    /// The address it really has, also where port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The name it answers with.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Connections accepted since the start.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Connections open now.
    pub fn open(&self) -> u64 {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Lines, datagrams or HTTP requests received since the start.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// The addresses that connections and datagrams came from.
    pub fn clients(&self) -> BTreeSet<SocketAddr> {
        self.shared.clients.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The status of HTTP answers from now on; 200 at first.
    pub fn set_status(&self, status: u16) {
        self.shared.status.store(status, Ordering::SeqCst);
    }

    fn start(namespace: &Namespace, address: SocketAddr, name: &str, kind: Kind) -> Result<Self> {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            accepted: AtomicU64::new(0),
            open: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            status: AtomicU16::new(200),
            clients: Mutex::default(),
        });
        let (stop, stopped) = sync::oneshot::channel();
        let (bound, address_of) = mpsc::channel();
        // A thread stays in the namespace of the thread that started it.
        let thread = namespace.run({
            let shared = Arc::clone(&shared);
            move || {
                let builder = thread::Builder::new().name(shared.name.clone());
                builder.spawn(move || serve(kind, address, &shared, &bound, stopped))
            }
        });
        let thread = Some(thread.context("starting a server's thread")?);
        let bound = address_of.recv().context("a server has died")?;
        let bound = bound.with_context(|| format!("binding the server {name} to {address}"))?;
        Ok(Self { shared, address: bound, stop: Some(stop), thread })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Bound = mpsc::Sender<io::Result<SocketAddr>>;

fn serve(kind: Kind, address: SocketAddr, shared: &Arc<Shared>, bound: &Bound, stopped: sync::oneshot::Receiver<()>) {
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = bound.send(Err(error));
            return;
        }
    };
    let result = runtime.block_on(async {
        tokio::select! {
            result = async {
                match kind {
                    Kind::Echo | Kind::Http => accept(kind, address, shared, bound).await,
                    Kind::Datagrams => datagrams(address, shared, bound).await,
                }
            } => result,
            _ = stopped => Ok(()),
        }
    });
    // Nobody waits for the address any more if it was bound; then this says nothing to anyone.
    if let Err(error) = result {
        let _ = bound.send(Err(error));
    }
}

async fn accept(kind: Kind, address: SocketAddr, shared: &Arc<Shared>, bound: &Bound) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let _ = bound.send(listener.local_addr());
    loop {
        let (stream, client) = listener.accept().await?;
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        shared.note(client);
        let open = Open::count(shared);
        tokio::spawn(async move {
            // How a connection ends is the client's business.
            match kind {
                Kind::Echo | Kind::Datagrams => drop(echo(stream, &open.0).await),
                Kind::Http => drop(http(stream, &open.0).await),
            }
        });
    }
}

async fn datagrams(address: SocketAddr, shared: &Arc<Shared>, bound: &Bound) -> io::Result<()> {
    let socket = UdpSocket::bind(address).await?;
    let _ = bound.send(socket.local_addr());
    let mut buffer = vec![0; 65_536];
    loop {
        // An error here is the echo of an answer that nobody wanted (ICMP).
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        shared.requests.fetch_add(1, Ordering::SeqCst);
        shared.note(client);
        let mut answer = format!("{}: ", shared.name).into_bytes();
        answer.extend(buffer.iter().take(length));
        let _ = socket.send_to(&answer, client).await;
    }
}

async fn echo(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let _ = stream.set_nodelay(true);
    stream.write_all(format!("{}\n", shared.name).as_bytes()).await?;
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let (verb, number) = line.split_once(' ').unwrap_or((&line, ""));
        match (verb, number.parse()) {
            ("sleep", Ok(millis)) => tokio::time::sleep(Duration::from_millis(millis)).await,
            ("bytes", Ok(count)) => {
                let many = vec![b'x'; usize::try_from(count).unwrap_or(0)];
                writer.write_all(&many).await?;
                writer.write_all(b"\n").await?;
                continue;
            }
            ("close", _) => return Ok(()),
            ("reset", _) => return SockRef::from(writer.as_ref()).set_linger(Some(Duration::ZERO)),
            _ => {}
        }
        writer.write_all(format!("{}: {line}\n", shared.name).as_bytes()).await?;
    }
    Ok(())
}

async fn http(stream: TcpStream, shared: &Shared) -> Result<()> {
    let _ = stream.set_nodelay(true);
    let answer = async |request: Request<Incoming>| {
        shared.requests.fetch_add(1, Ordering::SeqCst);
        if let Some(millis) = request.uri().path().strip_prefix("/sleep/").and_then(|text| text.parse().ok()) {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        request.into_body().collect().await?;
        let answer = Response::builder().status(shared.status.load(Ordering::SeqCst)).header(SERVER, &shared.name);
        anyhow::Ok(answer.body(format!("{}\n", shared.name))?)
    };
    http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await?;
    Ok(())
}

impl Shared {
    fn note(&self, client: SocketAddr) {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).insert(client);
    }
}

/// Counts a connection as open while it lives, however it ends.
struct Open(Arc<Shared>);

impl Open {
    fn count(shared: &Arc<Shared>) -> Self {
        shared.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}
