//! Probes of servers and commands that behave, and of those that do not.

use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

async fn probe_with(address: SocketAddr, readiness: Value, hooks: Option<PathBuf>) -> Found {
    let name = |text| Name::new(text).unwrap();
    let readiness: Readiness = serde_json::from_value(readiness).unwrap();
    let readiness = Arc::new(readiness);
    let subject = Subject { service: name("shop"), backend: name("b1"), node: Some(name("n1")), address, readiness };
    match begin(&Arc::new(subject), &Arc::new(Means { mark: 0, hooks })) {
        Begun::Done(found) => found,
        Begun::Goes(probe) => probe.await,
    }
}

async fn probe(address: SocketAddr, readiness: Value) -> Found {
    probe_with(address, readiness, None).await
}

fn message(found: Found) -> String {
    found.unwrap_err().message
}

/// A server that does this with each connection, after it has read what comes first.
async fn server<F: Future<Output = ()> + Send>(serve: impl Fn(TcpStream, String) -> F + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let length = stream.read(&mut request).await.unwrap_or(0);
            serve(stream, String::from_utf8_lossy(&request[..length]).into_owned()).await;
        }
    });
    address
}

/// A server that answers with these bytes and ends the connection.
async fn answering(answer: &'static [u8]) -> SocketAddr {
    server(move |mut stream, _| async move {
        let _ = stream.write_all(answer).await;
    })
    .await
}

async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn an_open_port_is_ready_and_its_server_is_not_bothered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    assert_eq!(probe(address, json!({"kind": "tcp"})).await, Ok(()));
    // Had the probe's handshake been a whole one, that connection would come first.
    let _caller = TcpStream::connect(address).await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    accepted.write_all(b"x").await.unwrap();
    assert_eq!(accepted.peer_addr().unwrap(), _caller.local_addr().unwrap());
    let other: SocketAddr = "127.0.0.1:1".parse().unwrap();
    assert_eq!(probe(other, json!({"kind": "tcp", "port": address.port()})).await, Ok(()), "the port of the document");
}

#[tokio::test]
async fn a_closed_port_says_so() {
    let address = closed_port().await;
    for kind in ["tcp", "http"] {
        assert_eq!(message(probe(address, json!({"kind": kind})).await), "connection refused");
    }
}

#[tokio::test]
async fn a_request_is_what_the_document_says() {
    let address = server(|mut stream, request| async move {
        let body = request.replace("\r\n", "|");
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await;
    let http = |body: &str| {
        json!({"kind": "http", "path": "/health?deep=1", "method": "OPTIONS", "headers": {"Host": "shop", "X-A": "b"},
            "body": body})
    };
    for said in ["OPTIONS /health?deep=1 HTTP/1.1|", "shop|", "x-a: b|", "connection: close|"] {
        assert_eq!(probe(address, http(said)).await, Ok(()), "{said}");
    }
    let usual = json!({"kind": "http", "body": format!("host: {address}|")});
    assert_eq!(probe(address, usual).await, Ok(()));
    let wrong = message(probe(address, http("nothing of this")).await);
    assert_eq!(wrong, "HTTP 200, and the wanted text is not in the body");
}

#[tokio::test]
async fn a_status_is_judged_and_a_redirect_is_not_followed() {
    let moved = answering(b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(probe(moved, json!({"kind": "http"})).await, Ok(()));
    let found = probe(moved, json!({"kind": "http", "status": ["200"]})).await;
    assert_eq!(message(found), "HTTP 302, wanted 200");
    let broken = answering(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(message(probe(broken, json!({"kind": "http"})).await), "HTTP 503, wanted 200-399");
    let old = answering(b"HTTP/1.0 200 OK\r\n\r\nall is well").await;
    assert_eq!(probe(old, json!({"kind": "http", "body": "is well"})).await, Ok(()));
}

#[tokio::test]
async fn what_is_no_http_is_told_and_what_ends_early_too() {
    let tls = answering(b"\x15\x03\x03\x00\x02\x02\x46").await;
    assert!(message(probe(tls, json!({"kind": "http"})).await).contains("TLS"));
    let silent = answering(b"").await;
    let found = message(probe(silent, json!({"kind": "http"})).await);
    assert_eq!(found, "the connection ended before the answer did");
}

#[tokio::test]
async fn an_endless_answer_ends() {
    let endless = server(|mut stream, _| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nready").await;
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    })
    .await;
    let http = |body: &str| json!({"kind": "http", "timeout": "60s", "body": body});
    assert_eq!(probe(endless, http("ready")).await, Ok(()));
    assert!(message(probe(endless, http("steady")).await).contains("not in the body"), "64 KiB are enough");
}

#[tokio::test]
async fn who_does_not_answer_in_time_has_failed() {
    let slow = server(|mut stream, _| async move {
        for byte in b"HTTP/1.1 200 OK\r\n".iter().cycle() {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(message(probe(slow, json!({"kind": "http", "timeout": "300ms"})).await), "no answer within 300ms");
}

struct Hooks(tempfile::TempDir);

impl Hooks {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn add(&self, name: &str, text: &str, mode: u32) {
        let file = self.0.path().join(name);
        fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
    }

    async fn run(&self, command: Value, timeout: &str) -> Found {
        let readiness = json!({"kind": "exec", "command": command, "timeout": timeout});
        // A file that another test's child still holds for writing cannot be run yet.
        loop {
            let address = "[fd00::1]:80".parse().unwrap();
            match probe_with(address, readiness.clone(), Some(self.0.path().to_owned())).await {
                Err(failure) if failure.message.contains("busy") => {}
                found => return found,
            }
        }
    }
}

#[tokio::test]
async fn a_command_is_told_which_backend_it_is_about() {
    let hooks = Hooks::new();
    hooks.add("say", "echo noise >&2; echo $1 $(env | grep ^SLUICE | sort); exit 3", 0o755);
    let found = hooks.run(json!(["say", "hello"]), "20s").await.unwrap_err();
    let said = "hello SLUICE_ADDRESS=[fd00::1]:80 SLUICE_BACKEND=b1 SLUICE_IP=fd00::1 SLUICE_NODE=n1 SLUICE_PORT=80 \
        SLUICE_SERVICE=shop";
    assert_eq!((found.cause, found.message), (Cause::Exit(3), format!("exit status 3: {said}")));
    hooks.add("good", "exit 0", 0o755);
    assert_eq!(hooks.run(json!(["good"]), "20s").await, Ok(()));
}

#[tokio::test]
async fn a_command_that_hangs_is_killed_with_its_children() {
    let hooks = Hooks::new();
    let mark = hooks.0.path().join("pids");
    hooks.add("hang", &format!("sleep 100 & echo $! $$ > {}; wait", mark.display()), 0o755);
    let began = Instant::now();
    assert!(message(hooks.run(json!(["hang"]), "1s").await).contains("did not end within 1s"));
    assert!(began.elapsed().as_secs() < 50);
    let pids = fs::read_to_string(mark).unwrap();
    for pid in pids.split_whitespace() {
        let is_gone = || match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        while !is_gone() {
            assert!(began.elapsed().as_secs() < 50, "{pid} is still there");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
    hooks.add("leave", &format!("sleep 100 & echo $! > {}; exit 0", hooks.0.path().join("left").display()), 0o755);
    assert_eq!(hooks.run(json!(["leave"]), "30s").await, Ok(()), "a child with its output open holds nothing up");
    assert!(began.elapsed().as_secs() < 50);
}

#[tokio::test]
async fn megabytes_of_output_do_no_harm() {
    let hooks = Hooks::new();
    hooks.add("talk", "head -c 8000000 /dev/zero; echo; echo the end; exit 1", 0o755);
    assert_eq!(message(hooks.run(json!(["talk"]), "50s").await), "exit status 1: the end");
}

#[tokio::test]
async fn only_files_of_the_directory_itself_are_run() {
    let hooks = Hooks::new();
    std::os::unix::fs::symlink("/bin/true", hooks.0.path().join("link")).unwrap();
    fs::create_dir(hooks.0.path().join("sub")).unwrap();
    hooks.add("plain", "exit 0", 0o644);
    for (name, said) in [("link", "no file of"), ("sub", "no file of"), ("none", "No such file"), ("plain", "denied")] {
        let found = message(hooks.run(json!([name]), "20s").await);
        assert!(found.contains(said), "{name}: {found}");
    }
    let none = probe("127.0.0.1:1".parse().unwrap(), json!({"kind": "exec", "command": ["x"]})).await;
    assert!(message(none).contains("--hooks"));
}
