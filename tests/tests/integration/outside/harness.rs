//! The harness itself.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::Result;
use sluice_tests::{
    Cgroup, Client, Errno, Load, Namespace, Options, Program, Server, World,
    client::Transport,
    http::{Endpoint, Request},
    program,
    system::{eventually, now},
};

#[test]
fn a_client_is_where_it_was_put() -> Result<()> {
    let world = World::new("place")?;
    let client = world.client()?;
    let place = client.place();
    let name = world.cgroup.path().file_name().unwrap().to_string_lossy().into_owned();
    assert!(place["cgroup"].ends_with(&name), "{place:?}");
    let namespace = world.namespace.run(|| std::fs::read_link("/proc/thread-self/ns/net"))?;
    assert_eq!(PathBuf::from(&place["namespace"]), namespace);
    assert_eq!(world.cgroup.processes()?, [client.id()]);
    Ok(())
}

#[test]
fn a_cgroup_goes_away_with_what_is_inside() -> Result<()> {
    let cgroup = Cgroup::new("gone")?;
    let path = cgroup.path().to_owned();
    let mut program = Program::start(Some(&cgroup), None, &["sleep", "1000"])?;
    eventually("the program is inside", Duration::from_secs(5), || {
        (!cgroup.processes().ok()?.is_empty()).then_some(())
    })?;
    drop(cgroup);
    assert!(!path.exists());
    program.wait(Duration::from_secs(5))?;
    Ok(())
}

#[test]
fn guards_undo_themselves_when_a_test_panics() {
    let result = std::panic::catch_unwind(|| {
        let world = World::new("panic").unwrap();
        let _server = world.tcp("10.9.0.1:80", "s").unwrap();
        let client = world.client().unwrap();
        let _connection = client.connect("10.9.0.1:80").unwrap();
        std::panic::panic_any(world.cgroup.path().to_owned());
    });
    let path = *result.unwrap_err().downcast::<PathBuf>().unwrap();
    assert!(!path.exists());
}

#[test]
fn counts_who_answers() -> Result<()> {
    let world = World::new("count")?;
    let server = world.tcp("10.9.0.1:80", "one")?;
    let client = world.client()?;
    let report = client.spread("10.9.0.1:80", 200);
    assert_eq!((report.answered_by("one"), report.errors().len()), (200, 0));
    assert_eq!(server.accepted(), 200);
    let threads = client.run(&Load::connects("10.9.0.1:80").count(200).threads(4));
    assert_eq!(threads.answered_by("one"), 200);
    Ok(())
}

#[test]
fn connections_stay_open_until_they_are_dropped() -> Result<()> {
    let world = World::new("open")?;
    let server = world.tcp("10.9.0.1:80", "one")?;
    let client = world.client()?;
    let mut kept = Vec::new();
    for _ in 0..50 {
        let connection = client.connect("10.9.0.1:80")?;
        assert_eq!(connection.line()?, "one");
        kept.push(connection);
    }
    assert_eq!(server.open(), 50);
    assert_eq!(kept[7].exchange("hello")?, "one: hello");
    assert_eq!(kept[7].peer()?, "10.9.0.1:80".parse()?);
    kept.truncate(20);
    eventually("the server sees the closes", Duration::from_secs(5), || (server.open() == 20).then_some(()))?;
    Ok(())
}

#[test]
fn errors_come_back_exactly() -> Result<()> {
    let world = World::new("errno")?;
    let client = world.client()?;
    assert_eq!(client.connect("127.0.0.1:9").unwrap_err(), Errno::ECONNREFUSED);
    assert_eq!(client.connect("192.0.2.1:9").unwrap_err(), Errno::ENETUNREACH);
    assert_eq!(client.spread("127.0.0.1:9", 3).errors(), [("ECONNREFUSED".to_owned(), 3)].into());
    // A neighbour that does not answer: the limit is kept and said as such.
    let there = Namespace::new()?;
    let link = world.namespace.link(&there, (ip("10.8.0.1"), 24), (ip("10.8.0.2"), 24))?;
    there.ip(&format!("neighbour flush dev {}", link.there))?;
    let short = Options::default().timeout_millis(200);
    assert_eq!(client.connect_with("10.8.0.77:9", &short).unwrap_err(), Errno::ETIMEDOUT);
    Ok(())
}

#[test]
fn a_reset_and_a_close_look_different() -> Result<()> {
    let world = World::new("reset")?;
    let _server = world.tcp("10.9.0.1:80", "one")?;
    let client = world.client()?;
    let (first, second) = (client.connect("10.9.0.1:80")?, client.connect("10.9.0.1:80")?);
    assert_eq!((first.line()?, second.line()?), ("one".to_owned(), "one".to_owned()));
    assert_eq!(first.exchange("close").unwrap_err(), Errno::ENODATA);
    assert_eq!(second.exchange("reset").unwrap_err(), Errno::ECONNRESET);
    Ok(())
}

#[test]
fn source_address_and_mark_are_set() -> Result<()> {
    let world = World::new("source")?;
    let server = world.tcp("10.9.0.1:80", "one")?;
    world.namespace.address(ip("10.9.0.50"))?;
    let client = world.client()?;
    let connection = client.connect_with("10.9.0.1:80", &Options::default().from("10.9.0.50:0").mark(7))?;
    assert_eq!(connection.local()?.ip(), ip("10.9.0.50"));
    connection.line()?;
    assert_eq!(server.clients().into_iter().map(|client| client.ip()).collect::<Vec<_>>(), [ip("10.9.0.50")]);
    Ok(())
}

#[test]
fn both_families_and_mapped_addresses_work() -> Result<()> {
    let world = World::new("family")?;
    let _four = world.tcp("10.9.0.1:80", "four")?;
    let _six = world.tcp("[fd00:9::1]:80", "six")?;
    let client = world.client()?;
    assert_eq!(client.connect("[fd00:9::1]:80")?.line()?, "six");
    let mapped = client.connect("[::ffff:10.9.0.1]:80")?;
    assert_eq!(mapped.line()?, "four");
    assert_eq!(mapped.peer()?, "[::ffff:10.9.0.1]:80".parse()?);
    Ok(())
}

#[test]
fn datagrams_go_and_come() -> Result<()> {
    let world = World::new("udp")?;
    let (_four, _six) = (world.udp("10.9.0.1:53", "four")?, world.udp("[fd00:9::1]:53", "six")?);
    let client = world.client()?;
    let connected = client.datagrams_to("10.9.0.1:53")?;
    assert_eq!(connected.exchange("a")?, ("four: a".to_owned(), "10.9.0.1:53".parse()?));
    let open = client.datagrams("0.0.0.0:0")?;
    assert_eq!(open.exchange_with("b", "10.9.0.1:53")?, ("four: b".to_owned(), "10.9.0.1:53".parse()?));
    assert_eq!(open.peer().unwrap_err(), Errno::ENOTCONN);
    let six = client.datagrams("[::]:0")?;
    assert_eq!(six.exchange_with("c", "[fd00:9::1]:53")?.0, "six: c");
    assert_eq!(six.exchange_with("d", "[::ffff:10.9.0.1]:53")?.1, "[::ffff:10.9.0.1]:53".parse()?);
    connected.disconnect()?;
    assert_eq!(connected.send("nowhere").unwrap_err(), Errno::EDESTADDRREQ);
    let short = client.datagrams_with(&Options::default().timeout_millis(50), Some("10.9.0.1:54"))?;
    short.send("nobody listens")?;
    assert_eq!(short.receive().unwrap_err(), Errno::ECONNREFUSED);
    Ok(())
}

#[test]
fn a_socket_can_be_disconnected_and_connected_again() -> Result<()> {
    let world = World::new("again")?;
    let (_one, _two) = (world.tcp("10.9.0.1:80", "one")?, world.tcp("10.9.0.2:80", "two")?);
    let client = world.client()?;
    let connection = client.connect("10.9.0.1:80")?;
    assert_eq!(connection.line()?, "one");
    connection.disconnect()?;
    connection.reconnect("10.9.0.2:80")?;
    assert_eq!(connection.line()?, "two");
    Ok(())
}

#[test]
fn fast_open_and_multipath_connect() -> Result<()> {
    let world = World::new("transport")?;
    let _server = world.tcp("10.9.0.1:80", "one")?;
    let client = world.client()?;
    let fast = client.connect_with("10.9.0.1:80", &Options::default().transport(Transport::FastOpen))?;
    fast.send("hello\n")?;
    assert_eq!((fast.line()?, fast.line()?), ("one".to_owned(), "one: hello".to_owned()));
    // A kernel may be built without it.
    match client.connect_with("10.9.0.1:80", &Options::default().transport(Transport::Mptcp)) {
        Ok(multipath) => assert_eq!(multipath.line()?, "one"),
        Err(errno) => assert!([Errno::EPROTONOSUPPORT, Errno::ENOPROTOOPT].contains(&errno), "{errno}"),
    }
    Ok(())
}

#[test]
fn namespaces_are_joined_by_a_link() -> Result<()> {
    let world = World::new("link")?;
    let there = Namespace::new()?;
    world.namespace.link(&there, (ip("10.8.0.1"), 24), (ip("10.8.0.2"), 24))?;
    let _server = Server::tcp(&there, "10.8.0.2:80".parse()?, "far")?;
    let client = world.client()?;
    assert_eq!(client.connect("10.8.0.2:80")?.line()?, "far");
    // A third namespace has no way there.
    let alone = Namespace::new()?;
    let outside = Client::start(Some(&world.cgroup), Some(&alone))?;
    assert_eq!(outside.connect("10.8.0.2:80").unwrap_err(), Errno::ENETUNREACH);
    Ok(())
}

#[test]
fn a_load_goes_on_while_the_test_acts() -> Result<()> {
    let world = World::new("load")?;
    let server = world.tcp("10.9.0.1:80", "one")?;
    let client = world.client()?;
    let load = client.begin(&Load::exchanges("10.9.0.1:80").threads(2).pause(Duration::from_millis(1)));
    load.reached(20, Duration::from_secs(10))?;
    assert_eq!(server.accepted(), 2);
    let moment = now();
    drop(server);
    let more = load.attempts() + 4;
    load.reached(more, Duration::from_secs(10))?;
    let report = load.stop();
    assert!(report.answered_by("one") >= 16, "{:?}", report.by_server());
    assert!(report.last_start("one").unwrap() < now());
    let refused = report.since(moment).errors();
    assert!(refused.contains_key("ECONNREFUSED"), "{refused:?}");
    Ok(())
}

#[test]
fn a_server_answers_http_with_its_status() -> Result<()> {
    let host = Namespace::host()?;
    let server = Server::http(&host, "127.0.0.1:0".parse()?, "web")?;
    let endpoint = Endpoint::Tcp(server.address());
    let answer = endpoint.request("GET", "/", &Request::new())?.expect_status(200);
    assert_eq!((answer.text().as_str(), answer.header("server")), ("web\n", Some("web")));
    server.set_status(503);
    endpoint.request("POST", "/x", &Request::json(&serde_json::json!({"a": 1})))?.expect_status(503);
    assert_eq!(server.requests(), 2);
    Ok(())
}

#[test]
fn a_taken_address_is_an_error() -> Result<()> {
    let host = Namespace::host()?;
    let server = Server::tcp(&host, "127.0.0.1:0".parse()?, "first")?;
    assert!(Server::tcp(&host, server.address(), "second").is_err());
    Ok(())
}

#[test]
fn programs_run_inside_and_their_output_is_kept() -> Result<()> {
    let world = World::new("program")?;
    let inside = program::output(Some(&world.cgroup), Some(&world.namespace), &["cat", "/proc/self/cgroup"])?;
    let name = world.cgroup.path().file_name().unwrap().to_string_lossy().into_owned();
    assert!(inside.contains(&name), "{inside}");
    let mut program = Program::start(None, None, &["echo", "said"])?;
    assert!(program.wait(Duration::from_secs(5))?.success());
    assert_eq!(program.log(), "said\n");
    assert!(program::output(None, None, &["false"]).is_err());
    Ok(())
}

#[test]
fn the_port_of_a_server_is_real() -> Result<()> {
    let world = World::new("port")?;
    let server = Server::tcp(&world.namespace, SocketAddr::from(([127, 0, 0, 1], 0)), "one")?;
    assert_ne!(server.address().port(), 0);
    Ok(())
}

#[test]
fn an_agent_is_killed_started_again_and_removed() -> Result<()> {
    let world = World::new("agent")?;
    let mut agent = world.agent()?;
    agent.start()?;
    let first = agent.id().unwrap();
    agent.get("/healthz")?.expect_status(200);
    agent.kill()?;
    assert!(agent.get("/healthz").is_err());
    assert!(agent.bpffs().exists(), "the kernel's side stays");
    agent.start()?;
    assert_ne!(agent.id(), Some(first));
    assert!(agent.terminate()?.success(), "{}", agent.log());
    let bpffs = agent.bpffs().to_owned();
    drop(agent);
    assert!(!bpffs.exists());
    Ok(())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
