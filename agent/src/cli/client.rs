//! A client of the agent's API, over its Unix socket or over TCP. One connection for each request.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    client::conn::http1,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, WARNING},
};
use hyper_util::rt::TokioIo;
use jiff::SignedDuration;
use nix::unistd::geteuid;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream, rustls::pki_types::ServerName};

use super::{
    failure::Failure,
    output::{self, duration},
    tls::TlsOptions,
};
use crate::{host::ownership, http::problem::Problem, settings};

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Longest silence in an answer without an end: the agent says something every 15 s, and may be stopped for a while.
const SILENCE: Duration = Duration::from_secs(90);

pub struct Client {
    address: Address,
    token: Option<String>,
    patience: Duration,
}

enum Address {
    Socket(PathBuf),
    /// `host:port`
    Tcp(String),
    Tls {
        authority: String,
        connector: TlsConnector,
        ca: PathBuf,
    },
}

impl Client {
    /// # Errors
    /// When the URL or the token file is of no use.
    pub fn new(
        socket: Option<PathBuf>,
        server: Option<String>,
        token_file: Option<&Path>,
        tls: &TlsOptions,
    ) -> Result<Self, Failure> {
        let address = match server.map(|url| authority(&url)).transpose()? {
            Some((authority, false)) => Address::Tcp(authority),
            Some((authority, true)) => {
                let (connector, ca) = (tls.connector()?, tls.ca.clone().unwrap_or_default());
                Address::Tls { authority, connector, ca }
            }
            None => Address::Socket(socket.unwrap_or_else(|| settings::SOCKET.into())),
        };
        // Whoever may use the socket needs no token.
        let token = token_file.filter(|_| !matches!(address, Address::Socket(_))).map(|path| {
            let text =
                fs::read_to_string(path).with_context(|| format!("reading the token file {}", path.display()))?;
            // Of a file with names, the first is ours.
            let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
            Ok::<_, anyhow::Error>(line.split_whitespace().next_back().unwrap_or_default().to_owned())
        });
        Ok(Self { address, token: token.transpose()?, patience: PATIENCE })
    }

    /// How long the agent may take to answer from now on.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// The command line of another verb to the same agent.
    pub fn verb(&self, words: &str) -> String {
        match &self.address {
            Address::Socket(path) if path == Path::new(settings::SOCKET) => format!("sluice {words}"),
            Address::Socket(path) => format!("sluice --socket {} {words}", path.display()),
            Address::Tcp(authority) => format!("sluice --server http://{authority} {words}"),
            Address::Tls { authority, ca, .. } => {
                format!("sluice --server https://{authority} --ca {} {words}", ca.display())
            }
        }
    }

    /// # Errors
    /// When nobody answers, or the agent refuses.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.call(Method::GET, path, None).await
    }

    /// # Errors
    /// When nobody answers, or the agent refuses.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, Failure> {
        self.call(Method::POST, path, Some(("application/json", body.to_string().into()))).await
    }

    /// # Errors
    /// When nobody answers, or the agent refuses.
    pub async fn patch<T: DeserializeOwned>(&self, path: &str, patch: &Value) -> Result<T, Failure> {
        self.call(Method::PATCH, path, Some(("application/merge-patch+json", patch.to_string().into()))).await
    }

    /// A request with a body of any media type. An empty answer reads as null.
    ///
    /// # Errors
    /// When nobody answers, or the agent refuses.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<T, Failure> {
        let answer = async {
            let response = self.send(method, path, body, &[]).await?;
            let status = response.status();
            for warning in response.headers().get_all(WARNING) {
                let text = warning.to_str().unwrap_or_default();
                output::note(format!(
                    "Warning: {}",
                    text.strip_prefix("299 sluice ").unwrap_or(text).trim_matches('"')
                ));
            }
            let bytes = response.into_body().collect().await.context("reading the agent's answer")?.to_bytes();
            Ok::<_, Failure>((status, bytes))
        };
        let Ok(answered) = timeout(self.patience, answer).await else { return Err(self.hung(self.patience).await) };
        let (status, bytes) = answered?;
        if !status.is_success() {
            return Err(problem(status, &bytes));
        }
        let text: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        let read = serde_json::from_slice(text);
        Ok(read.context("the agent's answer cannot be understood: are agent and client of the same version?")?)
    }

    /// The answer as it comes.
    ///
    /// # Errors
    /// When nobody answers, or the agent refuses.
    pub async fn stream(&self, path: &str, headers: &[(&str, &str)]) -> Result<Incoming, Failure> {
        let sent = timeout(self.patience, self.send(Method::GET, path, None, headers)).await;
        let Ok(response) = sent else { return Err(self.hung(self.patience).await) };
        let response = response?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let bytes = response.into_body().collect().await.context("reading the agent's answer")?.to_bytes();
        Err(problem(status, &bytes))
    }

    /// The next piece of an answer without an end.
    ///
    /// # Errors
    /// When the agent stops, or says nothing for longer than it does while it runs.
    pub async fn piece(&self, body: &mut Incoming) -> Result<Option<Bytes>, Failure> {
        loop {
            let Ok(frame) = timeout(SILENCE, body.frame()).await else { return Err(self.hung(SILENCE).await) };
            match frame.transpose().context("the agent stopped")? {
                None => return Ok(None),
                Some(frame) => match frame.into_data() {
                    Ok(data) => return Ok(Some(data)),
                    // Trailers.
                    Err(_) => continue,
                },
            }
        }
    }

    /// Of an agent that took a request and did not answer: whether it is there at all, and where to look.
    async fn hung(&self, patience: Duration) -> Failure {
        let patience = duration(patience.try_into().unwrap_or(SignedDuration::MAX));
        match &self.address {
            Address::Tcp(authority) | Address::Tls { authority, .. } => Failure::TimedOut(format!(
                "the agent at {authority} did not answer within {patience}: it hangs, or has much to do (--timeout waits longer)"
            )),
            Address::Socket(path) => match timeout(CONNECT_PATIENCE, UnixStream::connect(path)).await {
                Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => unreachable_socket(path, &error),
                Ok(Ok(stream)) => {
                    let process = stream.peer_cred().ok().and_then(|peer| peer.pid());
                    let process = process.map_or("the agent".to_owned(), |pid| format!("the agent, process {pid},"));
                    Failure::TimedOut(format!(
                        "{process} takes connections on {} and did not answer within {patience}: it hangs, is stopped, or has \
                         much to do (--timeout waits longer)",
                        path.display()
                    ))
                }
                _ => Failure::TimedOut(format!(
                    "the agent at {} did not answer within {patience}, and takes no connection now: it hangs",
                    path.display()
                )),
            },
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
        headers: &[(&str, &str)],
    ) -> Result<Response<Incoming>, Failure> {
        let host = match &self.address {
            Address::Socket(_) => "sluice",
            Address::Tcp(authority) | Address::Tls { authority, .. } => authority,
        };
        let mut request = Request::builder().method(method).uri(path).header(HOST, host).header(ACCEPT, "*/*");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let (media, bytes) = body.unzip();
        if let Some(media) = media {
            request = request.header(CONTENT_TYPE, media);
        }
        let request = request.body(Full::new(bytes.unwrap_or_default())).context("making the request")?;
        match &self.address {
            Address::Socket(path) => {
                let connect = timeout(CONNECT_PATIENCE, UnixStream::connect(path));
                let stream = connect.await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
                let stream = stream.map_err(|error| unreachable_socket(path, &error))?;
                check_server(&stream, path)?;
                exchange(stream, request).await
            }
            Address::Tcp(authority) => exchange(connect(authority).await?, request).await,
            Address::Tls { authority, connector, .. } => {
                let stream = connect(authority).await?;
                exchange(secure(authority, connector, stream).await?, request).await
            }
        }
    }
}

/// # Errors
/// When somebody else has put the socket into a directory that all may write, as they may while no agent runs.
fn check_server(stream: &UnixStream, path: &Path) -> Result<(), Failure> {
    let server = stream.peer_cred().context("asking who serves the socket")?.uid();
    if server == 0 || server == geteuid().as_raw() || !ownership::is_shared(path.parent().unwrap_or(Path::new("/"))) {
        return Ok(());
    }
    Err(Failure::Failed(anyhow!(
        "{} is served by the user {server}, who may be anybody: the directory is open to all. Nothing was asked. Have the \
         agent's --socket in a directory of its own, as /run/sluice",
        path.display()
    )))
}

async fn connect(authority: &str) -> Result<TcpStream, Failure> {
    let connect = timeout(CONNECT_PATIENCE, TcpStream::connect(authority));
    let stream = connect.await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
    stream.map_err(|error| unreachable_server(authority, error))
}

async fn secure(authority: &str, connector: &TlsConnector, stream: TcpStream) -> Result<TlsStream<TcpStream>, Failure> {
    let (host, _) = authority.rsplit_once(':').unwrap_or((authority, ""));
    let name = ServerName::try_from(host.trim_start_matches('[').trim_end_matches(']').to_owned());
    let name =
        name.map_err(|_| Failure::Usage(format!("--server https://{authority}: {host} is no name of a host")))?;
    let connect = timeout(CONNECT_PATIENCE, connector.connect(name, stream));
    let Ok(connected) = connect.await else {
        return Err(Failure::TimedOut(format!("whoever answers at {authority} does not speak TLS: is it http://?")));
    };
    connected.map_err(|error| {
        Failure::Failed(anyhow!("the agent at {authority} and this command do not trust each other: {error}"))
    })
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.context("talking to the agent").map_err(Failure::Unreachable)?;
    // It ends with the answer; what goes wrong with it is the answer's error too.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(|error| {
        if error.is_parse() {
            return Failure::Failed(anyhow!("whoever answers does not speak HTTP: is it https://?"));
        }
        Failure::Unreachable(anyhow::Error::new(error).context("asking the agent: did it stop?"))
    })
}

fn problem(status: StatusCode, bytes: &[u8]) -> Failure {
    match serde_json::from_slice::<Problem>(bytes) {
        Ok(problem) => problem.into(),
        Err(_) => Failure::Failed(anyhow!(
            "whoever answered ({status}) does not speak like an agent: check the address\n{}",
            String::from_utf8_lossy(bytes)
        )),
    }
}

fn unreachable_socket(path: &Path, error: &std::io::Error) -> Failure {
    let path = path.display();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => Failure::Unreachable(anyhow!(
            "no agent answers on {path}: is the agent running (`sluice agent`)? \
             For another one use --socket PATH or --server http://HOST:PORT"
        )),
        ErrorKind::PermissionDenied => Failure::Failed(anyhow!(
            "you may not use {path}: run this as root or as a member of the socket's group, \
             or use --server http://HOST:PORT"
        )),
        ErrorKind::TimedOut => Failure::TimedOut(format!("the agent at {path} does not take the connection")),
        _ => Failure::Failed(anyhow!("connecting to {path}: {error}")),
    }
}

fn unreachable_server(authority: &str, error: std::io::Error) -> Failure {
    if error.kind() == ErrorKind::TimedOut {
        return Failure::TimedOut(format!("nobody answers at {authority}"));
    }
    let advice = format!("no agent answers at {authority}: is the agent running there, with --listen {authority}?");
    Failure::Unreachable(anyhow::Error::new(error).context(advice))
}

/// `host:port` of a URL, and whether it is spoken to over TLS.
fn authority(url: &str) -> Result<(String, bool), Failure> {
    let wrong =
        |why: &str| Failure::Usage(format!("--server {url}: {why}; write http://HOST:PORT or https://HOST:PORT"));
    let uri = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let uri: Uri = uri.parse().map_err(|_| wrong("this is no URL of an agent"))?;
    match (uri.scheme_str(), uri.authority()) {
        (Some(scheme @ ("http" | "https")), Some(authority))
            if uri.path_and_query().is_none_or(|path| path == "/") && !url.contains('@') =>
        {
            let port = authority.port_u16().unwrap_or(9180);
            Ok((format!("{}:{port}", authority.host()), scheme == "https"))
        }
        _ => Err(wrong("this is no URL of an agent")),
    }
}

/// A piece of a path or query, with everything else than letters, digits and `-._~` percent-encoded (RFC 3986).
pub fn encode(text: &str) -> String {
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, RESERVED).to_string()
}

/// `path` with the parameters that are given.
pub fn with_query(path: &str, parameters: &[(&str, Option<String>)]) -> String {
    let given = parameters.iter().filter_map(|(name, value)| Some(format!("{name}={}", encode(value.as_deref()?))));
    let query: Vec<_> = given.collect();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        for (url, expected) in [
            ("http://127.0.0.1:9180", "127.0.0.1:9180"),
            ("http://host/", "host:9180"),
            ("host:80", "host:80"),
            ("http://[::1]:9180", "[::1]:9180"),
            ("http://[::1]", "[::1]:9180"),
            ("host/", "host:9180"),
            ("https://host", "host:9180"),
        ] {
            assert_eq!(authority(url).unwrap(), (expected.to_owned(), url.starts_with("https")), "{url}");
        }
        for url in ["https://", "ftp://host", "", "http://", "http://host/path", "host/?a", "http://user@host", "a b"] {
            assert!(matches!(authority(url), Err(Failure::Usage(_))), "{url}");
        }
    }

    #[test]
    fn odd_characters_are_encoded() {
        assert_eq!(encode("a b/ü~"), "a%20b%2F%C3%BC~");
        assert_eq!(with_query("/x", &[("a", None), ("b", Some("1&2".into()))]), "/x?b=1%262");
        assert_eq!(with_query("/x", &[("a", None)]), "/x");
    }
}
