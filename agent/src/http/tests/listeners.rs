//! Who may do what on which listener, over real sockets.

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

use crate::{
    http::{
        Access, Bound, Gate, serve,
        testing::{Agent, shop},
        tokens::TokenFile,
    },
    settings::{Listen, LogFormat, Settings},
};

fn settings(directory: &Path) -> Settings {
    Settings {
        socket: directory.join("run").join("sluice.sock"),
        listen: Listen::On("127.0.0.1:0".parse().unwrap()),
        socket_group: None,
        token_file: None,
        read_token_file: None,
        tls: None,
        tls_operators: Vec::new(),
        allow_host: Vec::new(),
        state_dir: directory.join("state"),
        bpffs: directory.join("bpf"),
        cgroup: directory.join("cgroup"),
        apply: Vec::new(),
        log_format: LogFormat::Text,
        log_level: "info".into(),
        mark: 0,
        limits: crate::model::Limits { services: 8, backends: 8, nodes: 8, frontends: 8 },
        max_slots: 64,
        census_interval: Duration::from_secs(30),
        probing: crate::settings::Probing::default(),
        brake: crate::settings::Brake::default(),
    }
}

#[tokio::test]
async fn over_tcp_reads_are_free_and_writes_need_the_token() {
    let agent = Agent::with_shop().await;
    let json = ("content-type", "application/json");
    let with = |token: &'static str| [json, ("authorization", token)];
    let reads = Access::reads_only();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "secret-of-16-characters").unwrap();
    let gate = Gate { operate: Some(TokenFile::open(&file).unwrap()), ..Gate::default() };
    let token = Access::Guarded(Arc::new(gate));
    let token = || token.clone();
    for path in ["/v1/services", "/metrics", "/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(agent.send_as(reads.clone(), Method::GET, path, &[], "").await.0, 200, "{path}");
        assert_eq!(agent.send_as(token(), Method::GET, path, &[], "").await.0, 200, "{path}");
    }
    let put = |access, headers: [(&'static str, &'static str); 2]| {
        let agent = &agent;
        async move {
            let (status, head, _) =
                agent.send_as(access, Method::PUT, "/v1/services/shop", &headers, shop().to_string()).await;
            (status.as_u16(), head.contains_key("www-authenticate"))
        }
    };
    assert_eq!(put(reads.clone(), with("Bearer secret-of-16-characters")).await, (403, false));
    assert_eq!(put(token(), [json, ("x-none", "")]).await, (401, true));
    for wrong in [
        "Bearer wrong",
        "Bearer ",
        "secret-of-16-characters",
        "Basic secret-of-16-characters",
        "Bearer secret-of-16-characterss",
        "Bearer secret-of-16-characters x",
    ] {
        assert_eq!(put(token(), with(wrong)).await, (401, true), "{wrong:?}");
    }
    for right in ["Bearer secret-of-16-characters", "bearer secret-of-16-characters", "Bearer  secret-of-16-characters"]
    {
        assert_eq!(put(token(), with(right)).await, (200, false), "{right:?}");
    }
    for (method, path) in [
        (Method::DELETE, "/v1/services/shop"),
        (Method::PATCH, "/v1/services/shop"),
        (Method::POST, "/v1/nodes/node-1/zero"),
        (Method::POST, "/v1/apply?dryRun=true"),
        (Method::GET, "/v1/monitor?pid=1"),
        (Method::POST, "/v1/nothing"),
    ] {
        let (status, ..) = agent.send_as(reads.clone(), method.clone(), path, &[], "").await;
        assert_eq!(status, 403, "{method} {path}");
    }
}

async fn ask<S: AsyncReadExt + AsyncWriteExt + Unpin>(mut stream: S, request: &[u8]) -> String {
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn both_listeners_serve_until_the_agent_stops() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let agent = Agent::with_shop().await;
    let bound = Bound::new(&settings).await.unwrap();
    let address = bound.address().unwrap();
    assert_ne!(address.port(), 0);
    assert_eq!(std::fs::metadata(&settings.socket).unwrap().permissions().mode() & 0o777, 0o660);
    let serving = tokio::spawn(serve(bound, agent.app.clone(), agent.stop.subscribe()));

    let get = b"GET /v1/services/shop HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let delete = b"DELETE /v1/services/shop HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    assert!(ask(TcpStream::connect(address).await.unwrap(), get).await.starts_with("HTTP/1.1 200"));
    assert!(ask(TcpStream::connect(address).await.unwrap(), delete).await.starts_with("HTTP/1.1 403"));
    assert!(ask(UnixStream::connect(&settings.socket).await.unwrap(), get).await.starts_with("HTTP/1.1 200"));

    let second = Bound::new(&settings).await.err().unwrap();
    assert!(format!("{second:#}").contains("another agent answers"), "{second:#}");
    // An address of documentation, which no host has.
    let strange = Listen::On("192.0.2.1:9180".parse().unwrap());
    let strange = Settings { listen: strange, socket: directory.path().join("other"), ..settings.clone() };
    assert!(format!("{:#}", Bound::new(&strange).await.err().unwrap()).contains("--listen"));

    let _open = UnixStream::connect(&settings.socket).await.unwrap();
    assert!(ask(UnixStream::connect(&settings.socket).await.unwrap(), delete).await.starts_with("HTTP/1.1 204"));
    agent.stop.send_replace(true);
    tokio::time::timeout(Duration::from_secs(20), serving).await.unwrap().unwrap().unwrap();
    assert!(!settings.socket.exists());
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn an_address_that_is_taken_is_served_once_it_is_free() {
    let directory = tempfile::tempdir().unwrap();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let settings = Settings { listen: Listen::On(address), ..settings(directory.path()) };
    let agent = Agent::with_shop().await;
    let bound = Bound::new(&settings).await.unwrap();
    assert_eq!((bound.address(), bound.listens()), (None, format!("{address} once it is free")));
    let serving = tokio::spawn(serve(bound, agent.app.clone(), agent.stop.subscribe()));
    let local = async |path| ask(UnixStream::connect(&settings.socket).await.unwrap(), &get(path)).await;
    assert!(local("/v1/services/shop").await.starts_with("HTTP/1.1 200"));
    let (ready, events) = (local("/readyz").await, local("/v1/events?follow=false").await);
    assert!(ready.starts_with("HTTP/1.1 200") && ready.contains(&format!("{address} is taken")), "{ready}");
    assert_eq!(events.matches("listenFailed").count(), 1, "{events}");
    drop(other);
    let freed = Instant::now();
    let stream = loop {
        match TcpStream::connect(address).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
        assert!(freed.elapsed() < Duration::from_secs(10), "it is free and not served");
    };
    assert!(ask(stream, &get("/v1/services/shop")).await.starts_with("HTTP/1.1 200"));
    let (ready, events) = (local("/readyz").await, local("/v1/events?follow=false").await);
    assert!(ready.ends_with("\r\n\r\nready\n") && events.contains("listenRecovered"), "{ready} {events}");
    serving.abort();
}

#[tokio::test]
async fn an_agent_that_waits_for_its_address_ends_when_it_is_told_to() {
    let directory = tempfile::tempdir().unwrap();
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // The near end of a connection takes an address, too.
    let caller = std::net::TcpStream::connect(server.local_addr().unwrap()).unwrap();
    let settings = Settings { listen: Listen::On(caller.local_addr().unwrap()), ..settings(directory.path()) };
    let agent = Agent::new();
    let bound = Bound::new(&settings).await.unwrap();
    let serving = tokio::spawn(serve(bound, agent.app.clone(), agent.stop.subscribe()));
    assert!(ask(UnixStream::connect(&settings.socket).await.unwrap(), &get("/healthz")).await.ends_with("ok\n"));
    agent.stop.send_replace(true);
    tokio::time::timeout(Duration::from_secs(2), serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_body_that_is_too_large_is_answered_though_all_of_it_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let agent = Agent::new();
    let bound = Bound::new(&settings).await.unwrap();
    let address = bound.address().unwrap();
    let serving = tokio::spawn(serve(bound, agent.app.clone(), agent.stop.subscribe()));
    let length = 5_000_000;
    let mut request = format!(
        "PUT /v1/services/x HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    )
    .into_bytes();
    request.resize(request.len() + length, b' ');
    let answer = ask(UnixStream::connect(&settings.socket).await.unwrap(), &request).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("application/problem+json"), "{answer}");
    // Over TCP the token is asked for first.
    let head = &request[..request.len() - length];
    let answer = ask(TcpStream::connect(address).await.unwrap(), head).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    // Many documents at once may be larger, on this host.
    let apply = String::from_utf8(request).unwrap().replace("PUT /v1/services/x", "POST /v1/apply");
    let answer = ask(UnixStream::connect(&settings.socket).await.unwrap(), apply.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 422"), "{answer}");
    serving.abort();
}

/// What the answer to a request begins with whose body comes a moment after its head, and what it is for the next one on
/// the same connection.
async fn in_two_segments<S: AsyncReadExt + AsyncWriteExt + Unpin>(mut stream: S, head: &str, body: &[u8]) -> String {
    stream.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    stream.write_all(body).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn an_answer_that_needs_no_body_arrives_and_the_connection_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let agent = Agent::with_shop().await;
    let bound = Bound::new(&settings).await.unwrap();
    let address = bound.address().unwrap();
    let serving = tokio::spawn(serve(bound, agent.app.clone(), agent.stop.subscribe()));
    for (line, local, remote) in [
        ("POST /v1/services", 405, 403),
        ("POST /v1/nothing", 404, 403),
        ("DELETE /v1/services/shop?colour=red", 400, 403),
        ("GET /v1/nothing", 404, 404),
    ] {
        let head = format!("{line} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n");
        let answers = [
            (local, in_two_segments(UnixStream::connect(&settings.socket).await.unwrap(), &head, b"{}").await),
            (remote, in_two_segments(TcpStream::connect(address).await.unwrap(), &head, b"{}").await),
        ];
        for (status, answer) in answers {
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
            assert!(answer.contains("HTTP/1.1 200") && answer.ends_with("ok\n"), "{line}: {answer}");
        }
    }
    // A large one is answered, and ends the connection: the answer arrives though all of the body is sent.
    let large = vec![b' '; 3_000_000];
    let head = format!("POST /v1/nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", large.len());
    let answer = in_two_segments(TcpStream::connect(address).await.unwrap(), &head, &large).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("connection: close"), "{answer}");
    let answer = in_two_segments(UnixStream::connect(&settings.socket).await.unwrap(), &head, &large).await;
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("connection: close"), "{answer}");
    serving.abort();
}

#[tokio::test]
async fn who_listens_on_tcp_is_asked_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let agent = Agent::new();
    let bound = Bound::new(&settings).await.unwrap();
    let address = bound.address().unwrap();
    let serving = tokio::spawn(serve(bound, agent.app.clone(), agent.stop.subscribe()));
    for (lines, status) in [
        (format!("host: {address}\r\n"), 200),
        ("host: localhost\r\n".to_owned(), 200),
        (String::new(), 400),
        (format!("host: {address}\r\nhost: evil.example\r\n"), 400),
        ("host: evil.example\r\n".to_owned(), 421),
    ] {
        let request = format!("GET /healthz HTTP/1.1\r\n{lines}connection: close\r\n\r\n");
        let answer = ask(TcpStream::connect(address).await.unwrap(), request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{lines:?}: {answer}");
    }
    let absolute = format!("GET http://evil.example/healthz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    let answer = ask(TcpStream::connect(address).await.unwrap(), absolute.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
    // The socket has no name.
    let get = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    assert!(ask(UnixStream::connect(&settings.socket).await.unwrap(), get).await.starts_with("HTTP/1.1 200"));
    serving.abort();
}

#[tokio::test]
async fn a_place_that_others_may_write_gets_no_socket() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { listen: Listen::Off, ..settings(directory.path()) };
    let place = settings.socket.parent().unwrap();
    std::fs::create_dir_all(place).unwrap();
    let set_mode = |mode| std::fs::set_permissions(place, std::fs::Permissions::from_mode(mode)).unwrap();
    set_mode(0o777);
    let error = format!("{:#}", Bound::new(&settings).await.err().unwrap());
    assert!(error.contains("everybody may write it"), "{error}");
    set_mode(0o1777);
    drop(Bound::new(&settings).await.unwrap());
}

#[tokio::test]
async fn a_socket_that_nobody_answers_is_replaced_and_a_file_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { listen: Listen::Off, ..settings(directory.path()) };
    std::fs::create_dir_all(settings.socket.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&settings.socket).unwrap());
    let bound = Bound::new(&settings).await.unwrap();
    assert_eq!(bound.address(), None);
    drop(bound);
    assert!(!settings.socket.exists());
    std::fs::write(&settings.socket, "precious").unwrap();
    let error = format!("{:#}", Bound::new(&settings).await.err().unwrap());
    assert!(error.contains("no socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&settings.socket).unwrap(), "precious");
}
