//! Programs as they are, through a frontend: none of them knows that it is steered. They run on the host only.

use std::{fs, time::Duration};

use anyhow::Result;
use sluice_tests::{
    Program, Service, World,
    daemons::{Daemon, is_up, nginx, nginx_config, open_directory, postgres, redis},
    program,
    system::eventually,
};

use crate::stage::{LIMIT, Stage};

/// Runs a program in the steered cgroup to its end.
fn run(world: &World, words: &[&str]) -> Result<String> {
    program::output(Some(&world.cgroup), Some(&world.namespace), words)
}

/// Two nginx, 3:1, behind 10.96.0.10:80.
fn web(label: &str) -> Result<(Stage, Vec<Daemon>)> {
    let stage = Stage::new(label)?;
    let mut servers = Vec::new();
    let mut service = Service::new("web", "10.96.0.10:80");
    for (name, address, weight) in [("w1", "10.0.0.1:18080", 3), ("w2", "10.0.0.2:18080", 1)] {
        let at: std::net::SocketAddr = address.parse()?;
        stage.world.namespace.address(at.ip())?;
        servers.push(nginx(&stage.world.namespace, name, at, None)?);
        service = service.backend_on(name, name, address, weight);
    }
    stage.put(&service)?;
    Ok((stage, servers))
}

fn assert_shares(stage: &Stage, answers: &str, first: usize, second: usize) -> Result<()> {
    let count = |name: &str| answers.lines().filter(|line| *line == name).count();
    assert_eq!((count("w1"), count("w2")), (first, second), "{answers}");
    let new = |backend| stage.count("web", backend, "newConnections");
    println!("{} and {} connections", new("w1")?, new("w2")?);
    Ok(())
}

#[test]
fn host_curl_and_nginx() -> Result<()> {
    let (stage, _servers) = web("curl")?;
    let mut answers = String::new();
    for _ in 0..8 {
        answers += &run(&stage.world, &["curl", "-sS", "--max-time", "20", "http://10.96.0.10/"])?;
    }
    assert_shares(&stage, &answers, 6, 2)?;
    // The remote address is the frontend's, as far as curl can see; a kept connection stays where it is.
    let format = "%{remote_ip}:%{remote_port} %{num_connects}\n";
    let urls = "http://10.96.0.10/[1-5]";
    let seen = run(&stage.world, &["curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", format, urls])?;
    assert_eq!(seen, "10.96.0.10:80 1\n10.96.0.10:80 0\n10.96.0.10:80 0\n10.96.0.10:80 0\n10.96.0.10:80 0\n");
    stage.zero("node/w1")?;
    let after = run(&stage.world, &["curl", "-sS", "--max-time", "20", "http://10.96.0.10/"])?;
    assert_eq!(after, "w2\n");
    Ok(())
}

#[test]
fn host_nginx_as_a_proxy_is_steered_too() -> Result<()> {
    let (stage, _servers) = web("proxy")?;
    let directory = open_directory()?;
    let config = directory.path().join("nginx.conf");
    let server = "server { listen 127.0.0.1:18081; location / { proxy_pass http://10.96.0.10:80; } }";
    fs::write(&config, nginx_config(&directory, server))?;
    let words = ["nginx", "-c", &config.to_string_lossy(), "-e", "stderr"];
    let mut proxy = Program::start(Some(&stage.world.cgroup), Some(&stage.world.namespace), &words)?;
    is_up(&stage.world.namespace, "127.0.0.1:18081".parse()?, &mut proxy)?;
    let mut answers = String::new();
    for _ in 0..8 {
        answers += &run(&stage.world, &["curl", "-sS", "--max-time", "20", "http://127.0.0.1:18081/"])?;
    }
    assert_shares(&stage, &answers, 6, 2)
}

#[test]
fn host_python_http_client() -> Result<()> {
    let (stage, _servers) = web("python")?;
    let script = r#"
import http.client, urllib.request
for _ in range(4):
    print(urllib.request.urlopen("http://10.96.0.10/", timeout=20).read().decode(), end="")
pool = [http.client.HTTPConnection("10.96.0.10", timeout=20) for _ in range(4)]
for connection in pool:
    connection.request("GET", "/")
    first = connection.getresponse().read().decode()
    assert connection.sock.getpeername() == ("10.96.0.10", 80), connection.sock.getpeername()
    for _ in range(3):
        connection.request("GET", "/")
        assert connection.getresponse().read().decode() == first
    print(first, end="")
"#;
    let answers = run(&stage.world, &["python3", "-c", script])?;
    assert_shares(&stage, &answers, 6, 2)
}

#[test]
fn host_python_event_loop() -> Result<()> {
    let (stage, _servers) = web("asyncio")?;
    // Sockets that do not block: connect() says EINPROGRESS.
    let script = r#"
import asyncio
async def one():
    reader, writer = await asyncio.open_connection("10.96.0.10", 80)
    assert writer.get_extra_info("peername") == ("10.96.0.10", 80)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    body = (await reader.read()).split(b"\r\n\r\n", 1)[1].decode()
    writer.close()
    return body
async def main():
    print("".join(await asyncio.gather(*[one() for _ in range(40)])), end="")
asyncio.run(main())
"#;
    let answers = run(&stage.world, &["python3", "-c", script])?;
    assert_shares(&stage, &answers, 30, 10)
}

#[test]
fn host_node_http_client() -> Result<()> {
    let (stage, _servers) = web("node")?;
    let script = r#"
const http = require("http");
const get = (agent) => new Promise((resolve, reject) => {
    http.get({ host: "10.96.0.10", port: 80, agent }, (response) => {
        const peer = response.socket.remoteAddress + ":" + response.socket.remotePort;
        if (peer !== "10.96.0.10:80") reject(new Error(peer));
        let body = "";
        response.on("data", (chunk) => (body += chunk)).on("end", () => resolve(body));
    }).on("error", reject);
});
(async () => {
    for (let i = 0; i < 4; i++) process.stdout.write(await get(false));
    const agents = [1, 2, 3, 4].map(() => new http.Agent({ keepAlive: true, maxSockets: 1 }));
    for (const agent of agents) {
        const first = await get(agent);
        for (let i = 0; i < 3; i++) if ((await get(agent)) !== first) throw new Error("moved");
        process.stdout.write(first);
    }
    agents.forEach((agent) => agent.destroy());
})().catch((error) => { console.error(error); process.exit(1); });
"#;
    let answers = run(&stage.world, &["node", "-e", script])?;
    assert_shares(&stage, &answers, 6, 2)
}

#[test]
fn host_redis() -> Result<()> {
    let stage = Stage::new("redis")?;
    let mut servers = Vec::new();
    for address in ["10.0.0.1:16379", "10.0.0.2:16379"] {
        let at: std::net::SocketAddr = address.parse()?;
        stage.world.namespace.address(at.ip())?;
        servers.push(redis(&stage.world.namespace, at)?);
    }
    let service = Service::new("redis", "10.96.0.10:6379");
    stage.put(&service.backend("r1", "10.0.0.1:16379", 1).backend("r2", "10.0.0.2:16379", 1))?;
    let cli = |address: &str, port: &str, words: &[&str]| -> Result<String> {
        run(&stage.world, &[&["redis-cli", "-h", address, "-p", port], words].concat())
    };
    cli("10.0.0.1", "16379", &["set", "who", "r1"])?;
    cli("10.0.0.2", "16379", &["set", "who", "r2"])?;
    let mut seen: Vec<String> = (0..6).map(|_| cli("10.96.0.10", "6379", &["get", "who"])).collect::<Result<_>>()?;
    seen.sort();
    assert_eq!(seen.concat(), "r1\nr1\nr1\nr2\nr2\nr2\n");
    // Thousands of requests over many connections, pipelines included.
    let bench = [
        "redis-benchmark",
        "-h",
        "10.96.0.10",
        "-p",
        "6379",
        "-n",
        "4000",
        "-c",
        "20",
        "-P",
        "4",
        "-t",
        "ping,set,get",
        "-q",
    ];
    let report = run(&stage.world, &bench)?;
    assert!(report.matches("requests per second").count() >= 3 && !report.contains("rror"), "{report}");
    stage.count_is("redis", "r1", "activeConnections", 0)?;
    assert_eq!(stage.metric("sluice_resets_total", &[("service", "redis")])?, 0.0);
    let [one, two] = ["r1", "r2"].map(|backend| stage.count("redis", backend, "newConnections"));
    assert!(one?.abs_diff(two?) <= 1, "half of the connections each");
    Ok(())
}

#[test]
fn host_postgres() -> Result<()> {
    let stage = Stage::new("postgres")?;
    let mut servers = Vec::new();
    let mut service = Service::new("db", "10.96.0.10:5432");
    for (name, address) in [("p1", "10.0.0.1:15432"), ("p2", "10.0.0.2:15432")] {
        let at: std::net::SocketAddr = address.parse()?;
        stage.world.namespace.address(at.ip())?;
        servers.push(postgres(&stage.world.namespace, name, at)?);
        service = service.backend(name, address, 1);
    }
    stage.put(&service)?;
    let psql = |url: &str, sql: &str| {
        run(&stage.world, &["psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql, url])
    };
    for (name, address) in [("p1", "10.0.0.1:15432"), ("p2", "10.0.0.2:15432")] {
        let sql = format!("create table who (name text); insert into who values ('{name}')");
        psql(&format!("postgresql://postgres@{address}/postgres"), &sql)?;
        run(
            &stage.world,
            &["pgbench", "-i", "-q", "-s", "1", "-h", &address[..8], "-p", "15432", "-U", "postgres", "postgres"],
        )?;
    }
    let frontend = "postgresql://postgres@10.96.0.10:5432/postgres";
    let mut seen: Vec<String> = (0..4).map(|_| psql(frontend, "select name from who")).collect::<Result<_>>()?;
    seen.sort();
    assert_eq!(seen.concat(), "p1\np1\np2\np2\n");
    // Sessions, transactions, and a connection for each of 100 transactions.
    let bench = |more: &[&str]| {
        let words = ["pgbench", "-h", "10.96.0.10", "-p", "5432", "-U", "postgres", "-c", "4", "-j", "2"];
        run(&stage.world, &[&words[..], more, &["postgres"]].concat())
    };
    for more in [["-t", "50"].as_slice(), &["-t", "25", "-C", "-S"]] {
        let report = bench(more)?;
        assert!(report.contains("number of failed transactions: 0") || !report.contains("failed"), "{report}");
    }
    // A session outlives a zero; who comes after goes elsewhere.
    let words = [
        "psql",
        "-X",
        "-A",
        "-t",
        "-q",
        "-c",
        "select name from who",
        "-c",
        "select pg_sleep(2)",
        "-c",
        "select name from who",
        frontend,
    ];
    let mut session = Program::start(Some(&stage.world.cgroup), Some(&stage.world.namespace), &words)?;
    eventually("the session is there", LIMIT, || (session.log().lines().count() >= 1).then_some(()))?;
    let first = session.log().lines().next().unwrap_or_default().to_owned();
    stage.zero(&format!("db/{first}"))?;
    assert_ne!(psql(frontend, "select name from who")?.trim(), first);
    assert!(session.wait(Duration::from_secs(30))?.success(), "{}", session.log());
    let names: Vec<String> = session.log().lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    assert_eq!(names, [first.clone(), first]);
    Ok(())
}
