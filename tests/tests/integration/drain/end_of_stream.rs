//! How a connection that a drain closes looks from both ends.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener},
    sync::mpsc::{self, Receiver},
    thread,
};

use anyhow::{Context, Result};
use serde_json::json;
use sluice_tests::{Client, Errno, Namespace, Service};

use super::{QUIET, drain, ends};
use crate::stage::{FRONTEND, LIMIT, Stage};

/// A server that answers each line with itself, and tells how its connections ended: `None` with the end of the stream.
pub fn echo(namespace: &Namespace, address: &str) -> Result<Receiver<Option<ErrorKind>>> {
    let address: SocketAddr = address.parse()?;
    let listener = namespace.run(|| TcpListener::bind(address))?;
    let (sender, ended) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let sender = sender.clone();
            thread::spawn(move || {
                let (mut stream, mut bytes) = (stream, [0; 512]);
                let end = loop {
                    match stream.read(&mut bytes) {
                        Ok(0) => break None,
                        Ok(length) => drop(stream.write_all(&bytes[..length])),
                        Err(error) => break Some(error.kind()),
                    }
                };
                let _ = sender.send(end);
            });
        }
    });
    Ok(ended)
}

/// Callers in a namespace of their own, behind a link; `here` is the end of the servers.
pub fn across(stage: &Stage, here: &str, there: &str, prefix: u8) -> Result<(Namespace, Client)> {
    let callers = Namespace::new()?;
    stage.world.namespace.link(&callers, (here.parse()?, prefix), (there.parse()?, prefix))?;
    // Packets that come from nowhere are refused.
    callers.sysctl("ipv4/conf/all/rp_filter", "1")?;
    let client = Client::start(Some(&stage.world.cgroup), Some(&callers))?;
    Ok((callers, client))
}

#[test]
fn both_ends_of_an_idle_connection_read_the_end_of_the_stream() -> Result<()> {
    let stage = Stage::new("eof")?;
    let (_callers, far) = across(&stage, "10.1.0.1", "10.1.0.2", 24)?;
    let (_callers6, far6) = across(&stage, "fd00:1::1", "fd00:1::2", 64)?;
    let near = stage.client()?;
    let cases = [
        ("near", &near, FRONTEND, "10.1.0.1:8080"),
        ("far", &far, "10.96.0.11:80", "10.1.0.1:8081"),
        ("near6", &near, "[fd00:96::10]:80", "[fd00:1::1]:8080"),
        ("far6", &far6, "[fd00:96::11]:80", "[fd00:1::1]:8081"),
        ("mapped", &near, "[fd00:96::12]:80", "10.1.0.1:8082"),
    ];
    for (name, client, frontend, backend) in cases {
        let server = echo(&stage.world.namespace, backend)?;
        stage.put(&Service::new(name, frontend).backend("b1", backend, 1))?;
        let connection = client.connect(frontend)?;
        assert_eq!(connection.exchange("hello")?, "hello", "{name}");
        let id = drain(&stage, &format!("{name}/b1"), &json!({"idleClose": QUIET, "force": true}))?;
        assert_eq!(connection.line().err(), Some(Errno::ENODATA), "{name}: the end of the stream");
        let end = server.recv_timeout(LIMIT).context(name)?;
        assert_eq!(end, None, "{name}: the server reads it, too");
        let ended = ends(&stage, &id)?;
        assert_eq!((&ended["phase"], &ended["closedIdle"]), (&json!("drained"), &json!(1)), "{name}: {ended}");
        // Who wants another way gets it.
        stage.restore(&format!("{name}/b1"))?;
        stage.put(&Service::new(name, frontend).set("closeAs", "abort").backend("b1", backend, 1))?;
        let connection = client.connect(frontend)?;
        assert_eq!(connection.exchange("hello")?, "hello", "{name}");
        drain(&stage, &format!("{name}/b1"), &json!({"idleClose": QUIET, "force": true}))?;
        assert_eq!(connection.line().err(), Some(Errno::ECONNABORTED), "{name}");
        assert_eq!(server.recv_timeout(LIMIT).context(name)?, Some(ErrorKind::ConnectionReset), "{name}");
    }
    Ok(())
}

#[test]
fn who_came_without_sluice_reads_the_end_of_the_stream_too() -> Result<()> {
    let stage = Stage::new("eof-in")?;
    let (callers, _) = across(&stage, "10.1.0.1", "10.1.0.2", 24)?;
    let outside = Client::start(None, Some(&callers))?;
    let server = echo(&stage.world.namespace, "10.1.0.1:8080")?;
    stage.put(&Service::new("shop", FRONTEND).backend("b1", "10.1.0.1:8080", 1))?;
    // In the agent's cgroup: it looks at the namespace of the servers.
    let _near = stage.client()?;
    let stranger = outside.connect("10.1.0.1:8080")?;
    assert_eq!(stranger.exchange("hello")?, "hello");
    let id = drain(&stage, "shop/b1", &json!({"idleClose": QUIET, "closeInbound": "idle", "force": true}))?;
    assert_eq!(stranger.line().err(), Some(Errno::ENODATA));
    assert_eq!(server.recv_timeout(LIMIT)?, None);
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], &ended["closedInbound"]), (&json!("drained"), &json!(1)), "{ended}");
    Ok(())
}
