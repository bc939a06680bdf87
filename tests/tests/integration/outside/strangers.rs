//! What users of the host without rights, and neighbours on the network, can do to an agent: nothing that others notice.

use std::{
    fs::{self, Permissions},
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::json;
use sluice_tests::{
    Agent, Namespace, Service, World,
    agent::{free_port, program},
    http::{Endpoint, Request},
    system::{bpffs, eventually, unique},
};

use crate::stage::{FRONTEND, LIMIT, Stage, weighted};

/// nobody, on most systems.
const NOBODY: u32 = 65534;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).map_or(0, |metadata| metadata.mode() & 0o7777)
}

/// A stage whose agent listens on TCP too, and where.
fn listening(label: &str) -> Result<(Stage, SocketAddr)> {
    let port = free_port(&Namespace::host()?)?;
    let stage = Stage::with(label, |agent| agent.listen(&format!("127.0.0.1:{port}")))?;
    Ok((stage, ([127, 0, 0, 1], port).into()))
}

/// That the Unix socket answers before a stranger who does nothing is given up.
#[track_caller]
fn answers(stage: &Stage, path: &str) {
    let asked = Instant::now();
    let answer = stage.agent.get(path).unwrap();
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    assert!(asked.elapsed() < sluice_tests::system::patience(Duration::from_secs(12)), "{path}: {:?}", asked.elapsed());
}

#[test]
fn requests_that_never_end_leave_the_socket_alone() -> Result<()> {
    let (stage, tcp) = listening("half-open")?;
    let mut half: Vec<TcpStream> = (0..600).map(|_| TcpStream::connect(tcp)).collect::<Result<_, _>>()?;
    for stream in &mut half {
        // One that was ended for its slowness says so here.
        let _ = stream.write_all(b"GET /v1/serv");
    }
    answers(&stage, "/v1/services");
    let agent = stage.agent.id().context("the agent runs")?;
    let files = fs::read_dir(format!("/proc/{agent}/fd"))?.count();
    assert!(files < 500, "strangers hold {files} files of the agent");
    // Whoever comes next gets a place of theirs.
    let asked = Instant::now();
    Endpoint::Tcp(tcp).request("GET", "/healthz", &Request::new())?.expect_status(200);
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    // The youngest have theirs still, and get no more time than any.
    let begun = Instant::now();
    let [silent, slow] = &mut half[598..] else { unreachable!("there are 600") };
    silent.set_read_timeout(Some(LIMIT))?;
    slow.set_read_timeout(Some(LIMIT))?;
    let trickle = slow.try_clone()?;
    thread::spawn(move || {
        let mut trickle = trickle;
        while trickle.write_all(b"i").is_ok() {
            thread::sleep(Duration::from_millis(500));
        }
    });
    assert_eq!(silent.read(&mut [0; 64]).unwrap_or(0), 0, "the agent ends it");
    assert_eq!(slow.read(&mut [0; 64]).unwrap_or(0), 0, "a byte now and then buys no time");
    assert!(begun.elapsed() < LIMIT);
    Ok(())
}

#[test]
fn readers_that_stop_reading_hold_up_nobody() -> Result<()> {
    let (stage, tcp) = listening("unread")?;
    // Longer than what the kernel buffers for a reader.
    let large = (0..8000).fold(Service::new("large", FRONTEND), |service, number| {
        service.backend(&format!("b{number}"), &format!("10.1.{}.{}:8080", number / 250, number % 250 + 1), 1)
    });
    stage.put(&large)?;
    let unread: Vec<TcpStream> = (0..600)
        .map(|_| {
            let mut stream = TcpStream::connect(tcp)?;
            stream.write_all(b"GET /v1/services HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
            Ok(stream)
        })
        .collect::<Result<_>>()?;
    thread::sleep(Duration::from_secs(2));
    for path in ["/v1/services", "/metrics", "/v1/connections", "/v1/nodes", "/healthz"] {
        answers(&stage, path);
    }
    drop(unread);
    let listed = eventually("room for others", LIMIT * 2, || {
        Endpoint::Tcp(tcp).request("GET", "/v1/services", &Request::new()).ok()
    })?;
    assert_eq!(listed.expect_status(200).json()["items"][0]["spec"]["backends"].as_array().map(Vec::len), Some(8000));
    Ok(())
}

#[test]
fn event_streams_are_bounded_on_each_listener() -> Result<()> {
    let (stage, tcp) = listening("streams")?;
    let open: Vec<TcpStream> = (0..80)
        .map(|_| {
            let mut stream = TcpStream::connect(tcp)?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
            Ok(stream)
        })
        .collect::<Result<_>>()?;
    let mut refused = 0;
    for mut stream in &open {
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        refused += usize::from(&status == b"HTTP/1.1 503");
    }
    assert!((1..80).contains(&refused), "{refused} of 80 refused");
    Endpoint::Tcp(tcp).request("GET", "/v1/events", &Request::new())?.expect_status(503);
    Endpoint::Tcp(tcp).request("GET", "/v1/services", &Request::new())?.expect_status(200);
    drop(stage.agent.endpoint().stream("/v1/events", &Request::new())?);
    drop(open);
    eventually("room again", LIMIT, || Endpoint::Tcp(tcp).stream("/v1/events", &Request::new()).ok())?;
    Ok(())
}

#[test]
fn a_request_whose_caller_has_left_is_not_carried_out() -> Result<()> {
    let stage = Stage::weights("left", &[1, 1])?;
    stage.agent.signal(Signal::SIGSTOP)?;
    let output = stage.agent.cli(&["weight", "shop/b1", "7", "--timeout", "1s"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    let process = format!("process {}", stage.agent.id().unwrap_or_default());
    assert!(said.contains(&process) && said.contains("did not answer within 1.0s"), "{said}");
    // Whole requests of callers that hang up, as many as wait to be accepted.
    for _ in 0..20 {
        let mut stream = std::os::unix::net::UnixStream::connect(stage.agent.socket())?;
        let body = r#"{"weight":9}"#;
        let length = body.len();
        let head = "PATCH /v1/services/shop/backends/b1 HTTP/1.1\r\nhost: x\r\ncontent-type: application/json";
        stream.write_all(format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}").as_bytes())?;
        stream.shutdown(Shutdown::Both)?;
    }
    stage.agent.signal(Signal::SIGCONT)?;
    answers(&stage, "/healthz");
    thread::sleep(Duration::from_secs(1));
    let shown = stage.agent.get("/v1/services/shop/backends/b1")?.expect_status(200).json();
    assert_eq!(shown["weight"], 1, "{shown}");
    Ok(())
}

#[test]
fn a_dead_agent_is_told_from_one_that_hangs() -> Result<()> {
    let mut stage = Stage::new("dead")?;
    stage.agent.signal(Signal::SIGSTOP)?;
    for words in [&["get"][..], &["events", "--follow"], &["monitor"], &["top", "--once"], &["describe", "shop"]] {
        let output = stage.agent.cli(&[words, &["--timeout", "300ms"]].concat())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(3) && said.contains("takes connections"), "{words:?}: {said}");
    }
    stage.agent.signal(Signal::SIGCONT)?;
    stage.agent.kill()?;
    let output = stage.agent.cli(&["get", "--timeout", "300ms"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("is the agent running"), "{said}");
    Ok(())
}

#[test]
fn the_flag_beats_the_environment() -> Result<()> {
    let stage = Stage::new("flag")?;
    let run = |words: &[&str]| {
        let mut command = Command::new(program()?);
        command.args(words).env("SLUICE_SERVER", "http://127.0.0.1:1").env("SLUICE_TOKEN_FILE", "/no/such/file");
        anyhow::Ok(command.output()?)
    };
    let socket = stage.agent.socket().to_string_lossy().into_owned();
    assert_eq!(run(&["get", "--socket", &socket])?.status.code(), Some(0));
    assert_eq!(run(&["--socket", &socket, "get"])?.status.code(), Some(0));
    assert_eq!(run(&["get"])?.status.code(), Some(1), "nobody is there");
    assert_eq!(run(&["get", "--socket", &socket, "--server", "http://127.0.0.1:1"])?.status.code(), Some(2));
    Ok(())
}

/// An agent of its own, with a socket and a store in places that are not there yet.
fn start_with_umask(world: &World, home: &Path, pins: &Path, umask: &str) -> Result<Child> {
    let script = format!("umask {umask}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(program()?).args(["agent", "--listen", "off", "--cgroup"]);
    command.arg(world.cgroup.path()).arg("--bpffs").arg(pins).arg("--socket").arg(home.join("run/s"));
    command.arg("--state-dir").arg(home.join("state")).stderr(Stdio::null());
    let child = command.spawn()?;
    eventually("the agent answers", LIMIT, || {
        Endpoint::Unix(home.join("run/s")).request("GET", "/readyz", &Request::new()).ok().filter(|a| a.status == 200)
    })?;
    Ok(child)
}

#[test]
fn modes_follow_no_umask() -> Result<()> {
    for umask in ["000", "077"] {
        let world = World::new("umask")?;
        let home = tempfile::tempdir()?;
        let pins = bpffs()?.join(unique("umask"));
        let mut agent = start_with_umask(&world, home.path(), &pins, umask)?;
        let modes = [
            (home.path().join("run"), 0o755),
            (home.path().join("run/s"), 0o660),
            (home.path().join("state"), 0o700),
            (home.path().join("state/sluice.redb"), 0o600),
            (pins.clone(), 0o700),
            (pins.join("maps"), 0o700),
            (pins.join("links"), 0o700),
        ];
        let found: Vec<_> = modes.iter().map(|(path, _)| (path.clone(), mode(path))).collect();
        agent.kill()?;
        agent.wait()?;
        let mut uninstall = Command::new(program()?);
        uninstall.arg("uninstall").arg("--bpffs").arg(&pins).arg("--state-dir").arg(home.path().join("state"));
        assert!(uninstall.arg("--socket").arg(home.path().join("run/s")).status()?.success());
        assert_eq!(found, modes, "umask {umask}");
    }
    Ok(())
}

#[test]
fn directories_of_others_are_refused() -> Result<()> {
    let world = World::new("theirs")?;
    let start = |agent: &mut Agent, word: &str| -> Result<()> {
        agent.spawn()?;
        let status = agent.wait(LIMIT)?;
        let log = agent.log();
        assert!(status.code() == Some(1) && log.contains(word), "{word}: {log}");
        Ok(())
    };
    for part in ["", "maps", "links"] {
        let mut agent = world.agent()?;
        let theirs = agent.bpffs().join(part);
        fs::create_dir_all(&theirs)?;
        chown(&theirs, Some(NOBODY), None)?;
        start(&mut agent, "belongs to the user 65534")?;
        assert_eq!(fs::metadata(&theirs)?.uid(), NOBODY);
        chown(&theirs, Some(0), None)?;
        fs::set_permissions(&theirs, Permissions::from_mode(0o777))?;
        start(&mut agent, "everybody may write it")?;
        fs::set_permissions(&theirs, Permissions::from_mode(0o755))?;
        agent.start()?;
        assert_eq!(mode(agent.bpffs()), 0o700);
    }
    let mut agent = world.agent()?;
    fs::create_dir_all(agent.state_dir())?;
    chown(agent.state_dir(), Some(NOBODY), None)?;
    start(&mut agent, "belongs to the user 65534")?;
    Ok(())
}

#[test]
fn host_locks_of_others_keep_no_agent_from_starting() -> Result<()> {
    let mut stage = Stage::weights("flock", &[1, 1])?;
    stage.agent.kill()?;
    // As a former version has left them.
    for (path, mode) in [
        (stage.agent.bpffs().to_owned(), 0o755),
        (stage.agent.state_dir(), 0o755),
        (stage.agent.state_dir().join("sluice.redb"), 0o600),
    ] {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    let held: Vec<Child> = [stage.agent.bpffs().to_owned(), stage.world.cgroup.path().to_owned()]
        .iter()
        .map(|path| {
            let mut command = Command::new("flock");
            command.arg("-s").arg(path).args(["sh", "-c", "echo held; exec sleep 60"]);
            let mut child = command.uid(NOBODY).gid(NOBODY).stdout(Stdio::piped()).spawn()?;
            let mut said = [0; 4];
            child.stdout.as_mut().context("its output")?.read_exact(&mut said)?;
            anyhow::Ok(child)
        })
        .collect::<Result<_>>()?;
    let started = stage.agent.start();
    for mut child in held {
        child.kill()?;
        child.wait()?;
    }
    started?;
    // Other agents are kept out as ever.
    let mut other = stage.agent.sibling();
    other.spawn()?;
    assert_eq!(other.wait(LIMIT)?.code(), Some(1));
    assert!(
        Command::new("flock").uid(NOBODY).arg("-n").arg(stage.agent.bpffs()).arg("true").status()?.code() != Some(0)
    );
    Ok(())
}

#[test]
fn hooks_that_others_may_write_do_not_run() -> Result<()> {
    let hooks = tempfile::tempdir()?;
    let ran = hooks.path().join("ran");
    let hook = hooks.path().join("check");
    fs::write(&hook, format!("#!/bin/sh\necho ran >{}\n", ran.display()))?;
    fs::set_permissions(&hook, Permissions::from_mode(0o777))?;
    let mut stage =
        Stage::probing("hooks", |agent| agent.argument("--hooks").argument(&hooks.path().to_string_lossy()))?;
    let service = stage.service(&[1])?;
    let readiness = json!({"kind": "exec", "command": ["check"], "period": "200ms"});
    stage.put(&service.set("readiness", readiness))?;
    eventually("it is said", LIMIT, || {
        let status = stage.backend("shop", "b1").ok()?.to_string();
        status.contains("everybody may write it").then_some(())
    })?;
    assert!(!ran.exists());
    fs::set_permissions(&hook, Permissions::from_mode(0o755))?;
    stage.becomes("b1", "ready")?;
    assert!(ran.exists());
    Ok(())
}

#[test]
fn secrets_of_probes_are_shown_to_nobody() -> Result<()> {
    let (stage, tcp) = listening("secrets")?;
    let readiness = json!({"kind": "http", "headers": {"Authorization": "Bearer s3cret", "Host": "shop"}});
    let service = weighted(&[1, 1]).set("readiness", readiness.clone());
    let made = stage.put(&service)?;
    let path = "/v1/services/shop";
    let patch = json!({"readiness": {"kind": "http", "headers": {"X-Api-Key": "s3cret"}}, "weight": 1});
    let patched = stage.agent.patch(&format!("{path}/backends/b2"), &patch)?.expect_status(200);
    let shown = stage.agent.get(path)?.expect_status(200);
    for answer in [
        made.text(),
        patched.text(),
        shown.text(),
        stage.agent.get("/v1/services")?.text(),
        Endpoint::Tcp(tcp).request("GET", path, &Request::new())?.text(),
        stage.agent.put(&format!("{path}?dryRun=true"), &weighted(&[2, 1]).set("readiness", readiness).json())?.text(),
        stage.agent.get("/v1/events?follow=false&after=0")?.text(),
        stage.agent.log(),
    ] {
        assert!(!answer.contains("s3cret"), "{answer}");
    }
    // What was shown is written back: nothing changes.
    let again = stage.agent.put(path, &shown.json())?.expect_status(200);
    assert_eq!(again.header("etag"), shown.header("etag"));
    let unknown = json!({"kind": "http", "headers": {"X-Token": "<redacted>"}});
    let refused = stage.agent.put(path, &weighted(&[1, 1]).set("readiness", unknown).json())?.expect_status(422).json();
    assert_eq!(refused["field"], "spec.readiness.headers.X-Token");
    Ok(())
}

/// While no agent runs, anybody may put a socket into a directory such as /tmp.
#[test]
fn a_socket_of_somebody_else_in_a_shared_directory_is_not_believed() -> Result<()> {
    const SERVE: &str = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\ns.listen()\n\
                         print(s.accept()[0].recv(1), flush=True)";
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), Permissions::from_mode(0o1777))?;
    let socket = directory.path().join("s.sock");
    let mut server = Command::new("python3")
        .args(["-c", SERVE])
        .arg(&socket)
        .uid(NOBODY)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting python3")?;
    eventually("it listens", LIMIT, || socket.exists().then_some(()))?;
    let output =
        Command::new(program()?).args(["zero", "node/n1", "--timeout", "2s", "--socket"]).arg(&socket).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains(&format!("served by the user {NOBODY}")), "{said}");
    server.kill()?;
    let heard = server.wait_with_output()?;
    let heard = String::from_utf8_lossy(&heard.stdout).into_owned();
    assert!(heard.is_empty() || heard == "b''\n", "it was asked nothing: {heard}");
    Ok(())
}
