//! A small HTTP/1.1 client that shows everything: status, headers, body. One connection for each request.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

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
    /// Names in lower case, in the order of arrival.
    pub headers: Vec<(String, String)>,
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
    /// The first header of this name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
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
        let mut reader = self.open(method, path, request)?;
        let (status, headers) = read_head(&mut reader).with_context(|| format!("{method} {path}"))?;
        let mut response = Response { status, headers, body: Vec::new() };
        if method != "HEAD" {
            response.body = read_body(&mut reader, &response).with_context(|| format!("{method} {path}"))?;
        }
        Ok(response)
    }

    /// Sends a request whose answer never ends (server-sent events) and returns its lines as they come.
    pub fn stream(&self, path: &str, request: &Request) -> Result<Lines> {
        let mut reader = self.open("GET", path, request)?;
        let (status, headers) = read_head(&mut reader)?;
        if status != 200 {
            bail!("GET {path}: status {status}");
        }
        let chunked = is_chunked(&headers);
        Ok(Lines { reader, chunked, waiting: Vec::new() })
    }

    fn open(&self, method: &str, path: &str, request: &Request) -> Result<BufReader<Box<dyn Stream>>> {
        let mut stream = self.connect()?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: sluice\r\nconnection: close\r\n");
        for (name, value) in &request.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !request.body.is_empty() || !matches!(method, "GET" | "HEAD" | "DELETE") {
            head.push_str(&format!("content-length: {}\r\n", request.body.len()));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).with_context(|| format!("sending {method} {path}"))?;
        // A server may refuse a body before it has read all of it: its answer tells more than the broken pipe.
        let _ = stream.write_all(&request.body);
        Ok(BufReader::new(stream))
    }

    fn connect(&self) -> Result<Box<dyn Stream>> {
        // Longer than any `timeout=` that tests ask the agent to wait for.
        let limit = Some(patience(Duration::from_secs(60)));
        match self {
            Self::Unix(path) => {
                let stream = UnixStream::connect(path).with_context(|| format!("connecting to {}", path.display()))?;
                stream.set_read_timeout(limit).context("setting a timeout")?;
                Ok(Box::new(stream))
            }
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
                stream.set_read_timeout(limit).context("setting a timeout")?;
                Ok(Box::new(stream))
            }
        }
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// The lines of an endless answer.
pub struct Lines {
    reader: BufReader<Box<dyn Stream>>,
    chunked: bool,
    waiting: Vec<u8>,
}

impl Iterator for Lines {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(end) = self.waiting.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.waiting.drain(..=end).collect();
                return Some(Ok(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            let read = if self.chunked { read_chunk(&mut self.reader) } else { read_some(&mut self.reader) };
            match read {
                Ok(bytes) if bytes.is_empty() => return None,
                Ok(bytes) => self.waiting.extend(bytes),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

type Headers = Vec<(String, String)>;

fn read_head(reader: &mut impl BufRead) -> Result<(u16, Headers)> {
    let first = read_line(reader)?;
    let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("no status in {first:?}"))?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            return Ok((status, headers));
        }
        let (name, value) = line.split_once(':').with_context(|| format!("no header in {line:?}"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn read_body(reader: &mut impl BufRead, response: &Response) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    if is_chunked(&response.headers) {
        loop {
            let chunk = read_chunk(reader)?;
            if chunk.is_empty() {
                return Ok(body);
            }
            body.extend(chunk);
        }
    }
    match response.header("content-length") {
        Some(length) => {
            body.resize(length.parse().context("reading content-length")?, 0);
            reader.read_exact(&mut body).context("reading the body")?;
        }
        None if response.status == 204 || response.status == 304 => {}
        None => {
            reader.read_to_end(&mut body).context("reading the body")?;
        }
    }
    Ok(body)
}

/// One chunk; empty at the end.
fn read_chunk(reader: &mut impl BufRead) -> Result<Vec<u8>> {
    let line = read_line(reader)?;
    let size = line.split(';').next().unwrap_or_default().trim();
    let size = usize::from_str_radix(size, 16).with_context(|| format!("no chunk size in {line:?}"))?;
    let mut chunk = vec![0; size];
    reader.read_exact(&mut chunk).context("reading a chunk")?;
    read_line(reader)?;
    Ok(chunk)
}

fn read_some(reader: &mut impl BufRead) -> Result<Vec<u8>> {
    let bytes = reader.fill_buf().context("reading")?.to_vec();
    reader.consume(bytes.len());
    Ok(bytes)
}

fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    let length = reader.read_line(&mut line).context("reading a line")?;
    if length == 0 {
        bail!("the connection ended too early");
    }
    Ok(line.trim_end().to_owned())
}

fn is_chunked(headers: &Headers) -> bool {
    headers.iter().any(|(name, value)| name == "transfer-encoding" && value.eq_ignore_ascii_case("chunked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(mut text: &[u8]) -> Result<Response> {
        let (status, headers) = read_head(&mut text)?;
        let mut response = Response { status, headers, body: Vec::new() };
        response.body = read_body(&mut text, &response)?;
        Ok(response)
    }

    #[test]
    fn joins_chunks() {
        let answer = parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
        assert_eq!(answer.unwrap().text(), "abcde");
    }

    #[test]
    fn reads_as_much_as_announced() {
        let answer = parse(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nETag: \"7\"\r\n\r\n{}more").unwrap();
        assert_eq!((answer.status, answer.header("etag"), answer.text().as_str()), (404, Some("\"7\""), "{}"));
    }

    #[test]
    fn a_broken_answer_is_an_error() {
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort").is_err());
        assert!(parse(b"").is_err());
    }
}
