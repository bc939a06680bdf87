//! A small HTTP/1.1 client that waits and shows everything: status, headers, body. One connection for each request.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    header::HOST,
    rt::{Read, Write},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    net::{TcpStream, UnixStream},
    runtime::{self, Runtime},
};

use crate::system::patience;

/// Where requests go.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

/// What a request carries besides method and path.
#[derive(Clone, Debug, Default)]
pub struct Request {
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// A complete answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// By name.
    pub headers: HeaderMap,
    /// The body, chunks joined.
    pub body: Vec<u8>,
}

impl Request {
    /// No headers, no body.
    pub fn new() -> Self {
        Self::default()
    }

    /// A JSON body.
    pub fn json(value: &Value) -> Self {
        Self::new().body("application/json", value.to_string())
    }

    /// A body of any media type.
    pub fn body(mut self, media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.header("content-type", media_type)
    }

    /// One more header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

impl Response {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; panics with the whole answer where it is not.
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("{error} in the answer {}: {}", self.status, self.text()),
        }
    }

    /// Asserts the status and returns the answer; a failure shows the body.
    #[track_caller]
    pub fn expect_status(self, status: u16) -> Self {
        assert_eq!(self.status, status, "the answer was {}: {}", self.status, self.text());
        self
    }
}

impl Endpoint {
    /// Sends a request and reads the whole answer.
    pub fn request(&self, method: &str, path: &str, request: &Request) -> Result<Response> {
        let answer = in_time(async {
            let (head, body) = self.send(method, path, request).await?.into_parts();
            let body = body.collect().await.context("reading the body")?.to_bytes().into();
            Ok(Response { status: head.status.as_u16(), headers: head.headers, body })
        });
        runtime()?.block_on(answer).with_context(|| format!("{method} {path}"))
    }

    /// Sends a request whose answer never ends (server-sent events) and returns its lines as they come.
    pub fn stream(&self, path: &str, request: &Request) -> Result<Lines> {
        let runtime = runtime()?;
        let answer = runtime.block_on(in_time(self.send("GET", path, request)))?;
        ensure!(answer.status() == 200, "GET {path}: status {}", answer.status());
        Ok(Lines { runtime, body: answer.into_body(), waiting: Vec::new() })
    }

    async fn send(&self, method: &str, path: &str, request: &Request) -> Result<hyper::Response<Incoming>> {
        let host = match self {
            Self::Unix(_) => "sluice".to_owned(),
            Self::Tcp(address) => address.to_string(),
        };
        let is_said = request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(HOST.as_str()));
        let mut asked = hyper::Request::builder().method(method).uri(path);
        if !is_said {
            asked = asked.header(HOST, host);
        }
        for (name, value) in &request.headers {
            asked = asked.header(name, value);
        }
        let asked = asked.body(Full::new(request.body.clone().into())).context("making the request")?;
        let mut connection = match self {
            Self::Unix(path) => {
                let stream = UnixStream::connect(path).await;
                connect(stream.with_context(|| format!("connecting to {}", path.display()))?).await?
            }
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await;
                connect(stream.with_context(|| format!("connecting to {address}"))?).await?
            }
        };
        connection.send_request(asked).await.context("asking")
    }
}

async fn connect<S>(stream: S) -> Result<SendRequest<Full<Bytes>>>
where
    TokioIo<S>: Read + Write + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await.context("beginning to speak HTTP")?;
    // It ends with the answer; what goes wrong with it is the answer's error too.
    tokio::spawn(connection);
    Ok(sender)
}

fn runtime() -> Result<Runtime> {
    runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime")
}

/// Longer than any `timeout=` that tests ask the agent to wait for.
async fn in_time<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(patience(Duration::from_secs(60)), answer).await.context("no answer")?
}

/// The lines of an endless answer.
pub struct Lines {
    runtime: Runtime,
    body: Incoming,
    waiting: Vec<u8>,
}

impl Iterator for Lines {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let Self { runtime, body, waiting } = self;
        loop {
            if let Some(end) = waiting.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = waiting.drain(..=end).collect();
                return Some(Ok(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            let frame = in_time(async { body.frame().await.transpose().context("reading the body") });
            match runtime.block_on(frame).transpose()? {
                Ok(frame) => waiting.extend(frame.data_ref().into_iter().flatten()),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        thread,
    };

    use super::*;
    use crate::{Namespace, Server};

    /// Answers the first request with these pieces, with a moment between them.
    fn answering(pieces: &'static [&'static str]) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            for piece in pieces {
                stream.write_all(piece.as_bytes()).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
        });
        Endpoint::Tcp(address)
    }

    #[test]
    fn lines_of_an_answer_without_an_end_come_as_they_are_said() {
        const PIECES: [&str; 4] = [
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "4\r\nid: \r\n",
            "6\r\n1\nid: \r\n",
            "3\r\n2\nx\r\n",
        ];
        let endpoint = answering(&PIECES);
        let mut lines = endpoint.stream("/", &Request::new()).unwrap();
        assert_eq!([lines.next().unwrap().unwrap(), lines.next().unwrap().unwrap()], ["id: 1", "id: 2"]);
        assert!(lines.next().unwrap().is_err(), "it broke off");
        assert!(answering(&["HTTP/1.1 503 No\r\n\r\n"]).stream("/", &Request::new()).is_err());
    }

    #[test]
    fn a_broken_answer_is_an_error() {
        for pieces in [&["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"], &[""], &["hello"]] as [&'static [_]; 3] {
            assert!(answering(pieces).request("GET", "/", &Request::new()).is_err(), "{pieces:?}");
        }
    }

    #[test]
    fn a_server_answers_with_its_name_and_its_status() {
        let server = Server::http(&Namespace::host().unwrap(), "127.0.0.1:0".parse().unwrap(), "web").unwrap();
        let endpoint = Endpoint::Tcp(server.address());
        let answer = endpoint.request("GET", "/sleep/20", &Request::new()).unwrap().expect_status(200);
        assert_eq!((answer.text().as_str(), answer.header("server")), ("web\n", Some("web")));
        server.set_status(503);
        let large = Request::new().body("text/plain", vec![b'x'; 1 << 20]);
        endpoint.request("POST", "/x", &large).unwrap().expect_status(503);
        assert_eq!((server.requests(), server.accepted()), (2, 2));
    }
}
