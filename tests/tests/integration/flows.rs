//! Sessions of datagrams on unconnected sockets, as QUIC and SIP have them: where a service is a `stream` they stay with
//! a backend that takes nothing new, and a drain counts them and moves them at its deadline.

use anyhow::{Result, bail};
use serde_json::{Value, json};
use sluice_tests::{Client, Datagrams, Service};

use crate::{
    drain::{drain, ends, reaches},
    stage::Stage,
};

/// What the sockets of one family use.
#[derive(Clone, Copy)]
pub struct Family {
    pub service: &'static str,
    pub frontend: &'static str,
    pub backends: [&'static str; 2],
    wildcard: &'static str,
}

pub const FOUR: Family = Family {
    service: "quic",
    frontend: "10.96.0.20:443",
    backends: ["10.0.0.1:8443", "10.0.0.2:8443"],
    wildcard: "0.0.0.0:0",
};
const SIX: Family = Family {
    service: "quic6",
    frontend: "[fd00:96::20]:443",
    backends: ["[fd00::1]:8443", "[fd00::2]:8443"],
    wildcard: "[::]:0",
};

/// A service that is a stream, with backends b1 and b2 on the nodes n1 and n2.
pub fn service(family: Family) -> Service {
    let service = Service::new(family.service, &format!("{}/udp", family.frontend)).set("protocol", "stream");
    let [one, two] = family.backends;
    service.backend_on("n1", "b1", one, 1).backend_on("n2", "b2", two, 1)
}

/// Those services, with their servers.
pub fn stage(label: &str, families: &[Family]) -> Result<Stage> {
    let mut stage = Stage::new(label)?;
    for family in families {
        for (address, name) in family.backends.iter().zip(["b1", "b2"]) {
            // The servers of both families have the same names.
            let server = stage.world.udp(address, name)?;
            stage.servers.insert((*address).to_owned(), server);
        }
        stage.put(&service(*family))?;
    }
    Ok(stage)
}

/// A socket with a session at this server.
pub fn session<'a>(client: &'a Client, family: Family, server: &str) -> Result<Datagrams<'a>> {
    for _ in 0..4 {
        let socket = client.datagrams(family.wildcard)?;
        if answers(&socket, family)? == server {
            return Ok(socket);
        }
    }
    bail!("no session went to {server}")
}

/// Who answers the next datagram of a session.
pub fn answers(socket: &Datagrams<'_>, family: Family) -> Result<String> {
    let (answer, source) = socket.exchange_with("x", family.frontend)?;
    assert_eq!(source, family.frontend.parse()?);
    Ok(answer.trim_end_matches(": x").to_owned())
}

/// How many flows `/v1/connections` counts at a node.
pub fn flows(stage: &Stage, node: &str) -> Result<Value> {
    Ok(stage.agent.get(&format!("/v1/connections?node={node}"))?.expect_status(200).json()["flows"].clone())
}

#[test]
fn sessions_of_a_stream_stay_through_a_drain_and_move_at_its_deadline() -> Result<()> {
    let stage = stage("flows", &[FOUR, SIX])?;
    let client = stage.client()?;
    let mut sessions = Vec::new();
    for family in [FOUR, SIX] {
        sessions.push((family, session(&client, family, "b1")?));
        // A socket that is closed has none, and one that nobody has answered.
        drop(session(&client, family, "b1")?);
        for _ in 0..2 {
            client.datagrams(family.wildcard)?.send_to("x", family.frontend)?;
        }
    }
    let picked = stage.count("quic", "b1", "newConnections")?;
    let id = drain(&stage, "node/n1", &json!({"deadline": "10m"}))?;
    let waiting = reaches(&stage, &id, |operation| operation["phase"] == "waiting")?;
    assert_eq!((&waiting["remaining"]["flows"], &waiting["remaining"]["total"]), (&json!(2), &json!(0)), "{waiting}");
    assert!(waiting["message"].as_str().is_some_and(|text| text.contains("2 flows of datagrams")), "{waiting}");
    assert_eq!(flows(&stage, "n1")?, 2);
    for (family, socket) in &sessions {
        assert_eq!(answers(socket, *family)?, "b1", "in the middle of a session");
        for _ in 0..4 {
            assert_eq!(answers(&client.datagrams(family.wildcard)?, *family)?, "b2", "a new session");
        }
    }
    // What stays is nothing new.
    let status = stage.agent.get("/v1/nodes/n1")?.json()["status"].clone();
    assert_eq!(status["newConnectionsSinceZero"], 0, "{status}");
    assert_eq!(stage.count("quic", "b1", "newConnections")?, picked);
    // The same drain, which is to end now.
    assert_eq!(drain(&stage, "node/n1", &json!({"deadline": "0s"}))?, id);
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], &ended["remaining"]["flows"]), (&json!("deadlineReached"), &json!(2)), "{ended}");
    for (family, socket) in &sessions {
        assert_eq!(answers(socket, *family)?, "b2", "the deadline is over");
    }
    assert_eq!(flows(&stage, "n1")?, 0);
    // A new drain has nothing to wait for.
    let id = drain(&stage, "node/n1", &json!({}))?;
    assert_eq!(ends(&stage, &id)?["phase"], "drained");
    Ok(())
}
