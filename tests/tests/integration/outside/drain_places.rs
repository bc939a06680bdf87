//! Which connections a drain waits for, by the rules of their service and by where they are.

use std::{thread, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::{Agent, Client, Namespace, Program, Server, Service, agent, program, system::eventually};

use crate::{
    drain::{QUIET, connection_to, drain, ends, is_closed, reaches},
    stage::{FRONTEND, LIMIT, Stage},
};

#[test]
fn streams_and_slow_services_keep_their_quiet_connections() -> Result<()> {
    let mut stage = Stage::new("stream")?;
    for (name, port) in [("b1", 8080), ("b2", 8081), ("b3", 8082)] {
        stage.tcp(&format!("10.0.0.1:{port}"), name)?;
    }
    let service = |name: &str, frontend: &str, backend: &str, port: u16| {
        let address = format!("10.0.0.1:{port}");
        Service::new(name, frontend).backend_on("n1", backend, &address, 1)
    };
    stage.put(&service("fast", FRONTEND, "b1", 8080).set("protocol", "request"))?;
    stage.put(&service("events", "10.96.0.11:80", "b2", 8081).set("protocol", "stream"))?;
    stage.put(&service("slow", "10.96.0.12:80", "b3", 8082).set("protocol", "request").set("idleClose", "1h"))?;
    let client = stage.client()?;
    let fast = connection_to(&client, "b1")?;
    let (events, slow) = (client.connect("10.96.0.11:80")?, client.connect("10.96.0.12:80")?);
    assert_eq!((events.line()?, events.exchange("x")?), ("b2".into(), "b2: x".into()));
    assert_eq!((slow.line()?, slow.exchange("x")?), ("b3".into(), "b3: x".into()));
    let id = drain(&stage, "node/n1", &json!({"idleClose": QUIET, "deadline": "4s", "force": true}))?;
    is_closed(&fast)?;
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], &ended["remaining"]["total"]), (&json!("deadlineReached"), &json!(2)), "{ended}");
    assert_eq!((events.exchange("y")?, slow.exchange("y")?), ("b2: y".into(), "b3: y".into()));
    Ok(())
}

#[test]
fn what_a_node_accepts_is_counted_only_where_the_node_is() -> Result<()> {
    let stage = Stage::weights("drain-here", &[1, 1])?;
    // In the agent's cgroup, and in the namespace of the servers.
    let _client = stage.client()?;
    stage.put(&Service::new("far", "10.96.0.20:80").backend_on("n9", "f1", "10.0.77.1:8080", 1))?;
    let id = drain(&stage, "node/n1", &json!({}))?;
    assert_eq!(ends(&stage, &id)?["remaining"]["inbound"], 0, "the server runs here");
    let id = drain(&stage, "node/n9", &json!({"force": true}))?;
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], ended["remaining"].get("inbound")), (&json!("drained"), None), "{ended}");
    Ok(())
}

/// As on a host where each pod has a namespace: six that have the address of b1, each with a process.
fn pods(stage: &Stage) -> Result<Vec<(Namespace, Client)>> {
    let pods = (0..6).map(|_| {
        let pod = Namespace::new()?;
        pod.address("10.0.0.1".parse()?)?;
        let process = Client::start(Some(&stage.world.cgroup), Some(&pod))?;
        Ok((pod, process))
    });
    pods.collect()
}

/// However many namespaces are left out because they are empty, this one is not.
#[test]
fn callers_beside_many_namespaces_are_closed_one_after_the_other() -> Result<()> {
    let stage = Stage::weights("drain-caller", &[1, 1])?;
    let _pods = pods(&stage)?;
    let there = Namespace::new()?;
    let _link = stage.world.namespace.link(&there, ("10.1.0.1".parse()?, 24), ("10.1.0.2".parse()?, 24))?;
    there.ip("route add default via 10.1.0.1")?;
    let caller = Client::start(Some(&stage.world.cgroup), Some(&there))?;
    let (first, second) = (connection_to(&caller, "b1")?, connection_to(&caller, "b1")?);
    second.send("half of ")?;
    let id = drain(&stage, "shop/b1", &json!({"idleClose": QUIET, "deadline": "10m"}))?;
    is_closed(&first)?;
    thread::sleep(Duration::from_secs(1));
    assert_eq!(second.exchange("a line")?, "b1: half of a line");
    is_closed(&second)?;
    assert_eq!(ends(&stage, &id)?["phase"], "drained");
    Ok(())
}

/// One that was found empty is looked at again when somebody comes.
#[test]
fn a_stranger_comes_to_one_of_many_namespaces() -> Result<()> {
    let stage = Stage::weights("drain-pods", &[1, 1])?;
    let pods = pods(&stage)?;
    let (last, _) = pods.last().expect("six of them");
    let _server = Server::tcp(last, "10.0.0.1:8080".parse()?, "pod")?;
    let client = stage.client()?;
    let busy = connection_to(&client, "b1")?;
    busy.send("half of ")?;
    let id = drain(&stage, "shop/b1", &json!({"idleClose": QUIET, "deadline": "10m"}))?;
    reaches(&stage, &id, |operation| operation["remaining"]["inFlight"] == 1)?;
    // The server of its backend has accepted it.
    let here = reaches(&stage, &id, |operation| operation["remaining"]["inbound"] == 1)?;
    thread::sleep(Duration::from_secs(1));
    let outside = Client::start(None, Some(last))?;
    let stranger = outside.connect("10.0.0.1:8080")?;
    assert_eq!(stranger.line()?, "pod", "{here}");
    reaches(&stage, &id, |operation| operation["remaining"]["inbound"] == 2)?;
    drop(busy);
    let left = reaches(&stage, &id, |operation| operation["remaining"]["total"] == 0)?;
    assert_eq!((&left["remaining"]["inbound"], &left["finishedAt"]), (&json!(1), &Value::Null), "{left}");
    drop(stranger);
    assert_eq!(ends(&stage, &id)?["phase"], "drained");
    Ok(())
}

/// A thread with a namespace of its own, in a process whose first thread has ended: as the server of b1, with one caller.
const THREAD: &str = r#"
import ctypes, socket, subprocess, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def serve():
    time.sleep(0.5)
    assert libc.unshare(0x40000000) == 0
    for words in ("link set lo up", "addr add 10.0.0.1/32 dev lo"):
        subprocess.run(["ip"] + words.split(), check=True)
    server = socket.create_server(("10.0.0.1", 8080))
    caller = socket.create_connection(("10.0.0.1", 8080))
    accepted = server.accept()
    print("accepted", flush=True)
    time.sleep(3600)
threading.Thread(target=serve).start()
libc.pthread_exit(None)
"#;

#[test]
fn what_a_thread_has_accepted_in_its_own_namespace_is_waited_for() -> Result<()> {
    let stage = Stage::weights("drain-thread", &[1, 1])?;
    let line = ["python3", "-c", THREAD].map(str::to_owned);
    let server = Program::start(Some(&stage.world.cgroup), None, &line)?;
    eventually("the thread serves", LIMIT, || server.log().contains("accepted").then_some(()))?;
    let id = drain(&stage, "shop/b1", &json!({"idleClose": "never", "deadline": "10m"}))?;
    let here = reaches(&stage, &id, |operation| operation["remaining"]["inbound"] == 1)?;
    thread::sleep(Duration::from_secs(1));
    assert_eq!(here["finishedAt"], Value::Null, "{here}");
    drop(server);
    assert_eq!(ends(&stage, &id)?["phase"], "drained");
    Ok(())
}

/// As a container without `hostPID`: its own namespace is visited, others where the kernel opens them by number, and the
/// drain says what is not known.
#[test]
fn usr_an_agent_that_sees_no_processes_closes_what_it_can_and_tells_the_rest() -> Result<()> {
    let mut stage = Stage::probing("drain-alone", Agent::alone)?;
    let service = stage.service(&[1, 1])?;
    stage.put(&service)?;
    let there = Namespace::new()?;
    let _link = stage.world.namespace.link(&there, ("10.1.0.1".parse()?, 24), ("10.1.0.2".parse()?, 24))?;
    there.ip("route add default via 10.1.0.1")?;
    let (here, elsewhere) = (stage.client()?, Client::start(Some(&stage.world.cgroup), Some(&there))?);
    let (near, far) = (connection_to(&here, "b1")?, connection_to(&elsewhere, "b1")?);
    let id = drain(&stage, "shop/b1", &json!({"idleClose": QUIET, "deadline": "3s"}))?;
    is_closed(&near)?;
    let ended = ends(&stage, &id)?;
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    let opens_by_number = (numbers.next(), numbers.next()) >= (Some(6), Some(18));
    assert_eq!(far.error().is_some(), opens_by_number, "{ended}");
    let left = u64::from(!opens_by_number);
    assert_eq!((&ended["phase"], &ended["remaining"]["total"]), (&json!("deadlineReached"), &json!(left)), "{ended}");
    let message = ended["message"].as_str().unwrap_or_default();
    assert!(message.contains("2 threads have accepted is not known") && message.contains("hostPID"), "{ended}");
    assert_eq!(message.contains("1 network namespace cannot be found"), !opens_by_number, "{ended}");
    Ok(())
}

#[test]
fn host_check_tells_where_processes_cannot_be_seen() -> Result<()> {
    let find = |words: &[&str]| -> Result<Value> {
        let agent = agent::program()?;
        let check = [&agent.to_string_lossy(), "check", "-o", "json"];
        let found: Value = serde_json::from_str(&program::output(None, None, &[words, &check].concat())?)?;
        let rows = found["items"].as_array().expect("rows");
        Ok(rows.iter().find(|row| row["feature"] == "network namespaces").expect("a row").clone())
    };
    let outside = find(&[])?;
    assert!(outside["detail"].as_str().is_some_and(|text| !text.contains("hostPID")), "{outside}");
    let inside = find(&["unshare", "--pid", "--fork", "--mount-proc"])?;
    assert_eq!(inside["status"], "degraded");
    assert!(inside["detail"].as_str().is_some_and(|text| text.contains("hostPID")), "{inside}");
    Ok(())
}
