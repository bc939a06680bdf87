//! The demo's acts. What the clients and the servers have seen is held against what was promised; the agent's own word
//! is shown, and believed in nothing.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{interrupt, system::eventually};

use crate::{
    load::{Habit, Load, Seen, micros},
    screen::{FRAME, Picture, Row, Screen},
    stage::{FRONTEND, SERVERS, Stage, name, node},
};

/// Requests a second.
const RATE: u32 = 400;
/// Clients that keep their connections, in the act of the drain.
const KEEPERS: u32 = 24;
/// How many connections a share may be off: the tables are exact, but an act begins and ends while each of the clients'
/// threads may have a connection under way.
const SLACK: f64 = 5.0;

/// A running demo.
#[derive(Debug)]
pub struct Show {
    stage: Stage,
    screen: Screen,
    /// What was seen when the act began.
    before: Seen,
    broken: u32,
}

impl Show {
    /// Sets the stage.
    pub fn new() -> Result<Self> {
        let mut screen = Screen::new();
        screen.say("Three web servers, web-1 on node-1 to web-3 on node-3, and their clients, each in a network");
        screen.say("namespace of its own. The clients, in a cgroup that the agent steers, know one address:");
        screen.say(&format!("{FRONTEND}. No route leads there."));
        screen.explain();
        Ok(Self { stage: Stage::new()?, screen, before: Seen::default(), broken: 0 })
    }

    /// All acts, one after the other. Returns how many promises were broken.
    pub fn play(&mut self) -> Result<u32> {
        self.even()?;
        self.canary()?;
        self.zero()?;
        self.restore()?;
        self.kill()?;
        self.books()?;
        self.leave()?;
        self.join()?;
        self.refuse()?;
        self.fall_silent()?;
        Ok(self.broken)
    }

    /// Goes on until somebody ends it, or as long as a shell runs.
    pub fn stay(&mut self, shell: bool) -> Result<()> {
        self.stage.load = Some(Load::start(&self.stage.cgroup, &self.stage.clients, FRONTEND, Habit::Anew(RATE))?);
        let (end, place) = if shell { ("the end of this shell", "Here") } else { ("Ctrl-C", "From another terminal") };
        self.begin(&format!("It stays up until {end}. {place}, for example:"))?;
        let sluice = sluice_tests::agent::program()?;
        let bin = sluice.parent().context("the program is in no directory")?.to_owned();
        let (socket, cgroup) = (self.stage.agent.socket(), self.stage.cgroup.path().display().to_string());
        if !shell {
            self.screen.say(&format!("  export PATH={}:$PATH SLUICE_SOCKET={}", bin.display(), socket.display()));
        }
        for line in [
            "sluice top",
            "sluice get services -o wide",
            "sluice describe shop",
            "sluice weight shop/web-3 20",
            "sluice zero node/node-1 --reason maintenance",
            "sluice restore node/node-1",
            "sluice drain node/node-2 --wait drained",
            "sluice explain 10.96.0.10:80",
            "sluice events --follow",
        ] {
            self.screen.say(&format!("  {line}"));
        }
        if shell {
            let mut shell = Command::new("setsid");
            let status = shell.args(["-c", "sh"]).env("SLUICE_SOCKET", socket).status();
            status.context("starting a shell")?;
            return Ok(());
        }
        let inside = format!("sluice-test-client run {cgroup} {}", self.stage.clients.path().display());
        self.screen.say(&format!("  {inside} curl -s http://{FRONTEND}/    # one more client"));
        while !interrupt::noted() {
            // Interrupted is how it ends.
            let _ = self.watch(Duration::from_secs(1));
        }
        Ok(())
    }

    fn even(&mut self) -> Result<()> {
        self.stage.put((&[], [""; SERVERS]))?;
        let load = Load::start(&self.stage.cgroup, &self.stage.clients, FRONTEND, Habit::Anew(RATE))?;
        self.stage.load = Some(load);
        self.begin("Even spread: a service with three backends of equal weight")?;
        self.watch(Duration::from_secs(8))?;
        self.shares("each backend a third", [1.0 / 3.0; SERVERS])
    }

    fn canary(&mut self) -> Result<()> {
        self.stage.put((&[("stable", 95), ("canary", 5)], ["stable", "stable", "canary"]))?;
        self.begin("Canary: web-1 and web-2 share 95 %, web-3 has the new release and gets 5 %")?;
        self.watch(Duration::from_secs(12))?;
        self.shares("5 % to the canary, to the connection", [0.475, 0.475, 0.05])
    }

    fn zero(&mut self) -> Result<()> {
        let (web, node) = (name(SERVERS), node(SERVERS));
        self.begin("Zero: the new release misbehaves, its node must get no new connection from now on")?;
        let asked = Instant::now();
        let answer = self.stage.act(&node, "zero", &json!({"reason": "the release misbehaves", "owner": "demo"}))?;
        let (took, moment) = (asked.elapsed(), micros());
        self.watch(Duration::from_secs(10))?;

        let status = &self.stage.node(&node)?["status"];
        let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
        let zeroed = text(&answer["zeroedAt"]);
        let micros = answer["programmedInMicroseconds"].as_u64().context("no programmedInMicroseconds")?;
        let later = status["newConnectionsSinceZero"].as_u64().context("no newConnectionsSinceZero")?;
        self.screen.say(&format!("  the request was read, and {micros} us later the kernel had it: {zeroed}"));
        self.screen.say(&format!("  the whole request took {:.1} ms", took.as_secs_f64() * 1e3));
        self.screen.say(&format!("  last new connection to {node}: {}", text(&status["lastNewConnectionAt"])));
        self.check(later == 0, &format!("new connections since the zero, counted in the kernel: {later}"));
        let last = self.seen()?.of(&web).last_start;
        let held = last < moment;
        let words = if held {
            format!("the clients' last request to {web} began {:.1} ms before the answer", (moment - last) as f64 / 1e3)
        } else {
            format!("a client reached {web} {:.1} ms after the answer", (last - moment) as f64 / 1e3)
        };
        self.check(held, &words);
        Ok(())
    }

    fn restore(&mut self) -> Result<()> {
        let answer = self.stage.act(&node(SERVERS), "restore", &json!({}))?;
        let micros = answer["programmedInMicroseconds"].as_u64().context("no programmedInMicroseconds")?;
        self.begin("Restore: the canary gets its 5 % back; nobody had to remember them")?;
        self.watch(Duration::from_secs(8))?;
        self.screen.say(&format!("  the kernel had it after {micros} us"));
        self.shares("5 % to the canary again", [0.475, 0.475, 0.05])
    }

    fn kill(&mut self) -> Result<()> {
        let counted = self.counted()?;
        self.stage.agent.kill()?;
        self.begin("kill -9 of the agent: the kernel steers on")?;
        self.watch(Duration::from_secs(6))?;
        self.shares("the same shares without an agent", [0.475, 0.475, 0.05])?;
        let during = self.seen()?.answered() - self.before.answered();
        self.screen.say(&format!("  {during} connections were steered without an agent"));

        let start = Instant::now();
        self.stage.agent.start()?;
        let took = start.elapsed();
        self.begin("The agent starts again, and takes over what it finds")?;
        self.watch(Duration::from_secs(5))?;
        self.screen.say(&format!("  ready after {:.0} ms", took.as_secs_f64() * 1e3));
        let again = self.counted()?;
        let words = format!("counts go on: {counted} connections before the kill, {again} now, {during} in between");
        self.check(again >= counted + during, &words);
        self.shares("the shares are as before", [0.475, 0.475, 0.05])
    }

    /// Three parties have counted on their own. A stop of the clients for a moment lets their books be compared.
    fn books(&mut self) -> Result<()> {
        self.begin("The books: what the clients, the servers and the kernel have counted")?;
        let load = self.stage.load.take().context("the clients are gone")?;
        let seen = load.finish()?;
        let accepted: u64 = self.stage.servers.iter().map(|server| server.accepted()).sum();
        let clients = seen.answered() + seen.failed();
        // A connection that has ended is counted a moment later.
        let kernel = eventually("the kernel's count", Duration::from_secs(1), || {
            self.counted().ok().filter(|count| *count == clients)
        });
        let kernel = kernel.or_else(|_| self.counted())?;
        let words = format!("clients {clients}, servers {accepted}, kernel {kernel} connections");
        self.check(clients == accepted && clients == kernel, &words);
        for (reason, count) in &seen.failures {
            self.screen.say(&format!("  {count} requests failed: {reason}"));
        }
        self.check(seen.failed() == 0, &format!("{} connections failed", seen.failed()));
        let strangers: u64 = seen.answers.iter().filter(|(name, _)| !self.is_server(name)).map(|(_, a)| a.count).sum();
        self.check(strangers == 0, &format!("{strangers} connections went to a wrong place"));
        Ok(())
    }

    /// A node leaves while clients keep their connections: first as it is where nobody closes what is idle.
    fn leave(&mut self) -> Result<()> {
        self.stage.put((&[], [""; SERVERS]))?;
        let habit = Habit::Kept(KEEPERS);
        self.stage.load = Some(Load::start(&self.stage.cgroup, &self.stage.clients, FRONTEND, habit)?);
        let node = node(1);
        self.begin(&format!("{KEEPERS} clients that keep their connections; {node} is to leave, nothing is closed"))?;
        self.watch(Duration::from_secs(3))?;
        let pinned = self.drain(&node, &json!({"idleClose": null, "deadline": "4s"}))?;
        let left = pinned["remaining"]["total"].as_u64().unwrap_or(0);
        self.screen
            .say(&format!("  after 4 s {left} connections to it are still there, and in use: it cannot be stopped"));
        self.stage.act(&node, "restore", &json!({}))?;

        self.begin(&format!("The same with a drain: what is idle between two requests is closed ({node})"))?;
        let start = Instant::now();
        let drained = self.drain(&node, &json!({"idleClose": "150ms", "deadline": "20s"}))?;
        let took = start.elapsed().as_secs_f64();
        let closed = drained["closedIdle"].as_u64().unwrap_or(0);
        let words = format!("{node} is {} after {took:.1} s; {closed} idle connections were closed", drained["phase"]);
        self.check(drained["phase"] == "drained" && closed > 0, &words);
        self.watch(Duration::from_secs(2))?;
        let (web, seen) = (name(1), self.seen()?);
        let requests = seen.answered() - self.before.answered();
        self.check(seen.failed() == 0, &format!("{} of {requests} requests failed meanwhile", seen.failed()));
        self.screen.say(&format!("  the servers that stay have taken over; {web} may be stopped"));
        self.stage.act(&node, "restore", &json!({}))?;
        self.stage.load.take().context("the clients are gone")?.finish().map(drop)
    }

    /// A node joins, and is cold.
    fn join(&mut self) -> Result<()> {
        let warmup = json!({"warmup": {"duration": "8s"}, "readiness": {"kind": "tcp", "period": "500ms"}});
        self.stage.put_with((&[], [""; SERVERS]), SERVERS - 1, warmup.clone())?;
        self.stage.load = Some(Load::start(&self.stage.cgroup, &self.stage.clients, FRONTEND, Habit::Anew(RATE))?);
        self.wait_for(1, "ready")?;
        self.begin("A node joins: web-3 is new and cold, and warms up over 8 s")?;
        self.stage.put_with((&[], [""; SERVERS]), SERVERS, warmup)?;
        self.watch(Duration::from_secs(2))?;
        let (web, seen) = (name(SERVERS), self.seen()?);
        let share = |seen: &Seen, before: &Seen| {
            let all = (seen.answered() - before.answered()).max(1);
            (seen.of(&web).count - before.of(&web).count) as f64 / all as f64
        };
        let first = share(&seen, &self.before);
        self.watch(Duration::from_secs(8))?;
        let before = self.seen()?;
        self.watch(Duration::from_secs(3))?;
        let last = share(&self.seen()?, &before);
        let words =
            format!("{web} got {:.1} % in its first 2 s, and {:.1} % when it was warm", first * 100.0, last * 100.0);
        self.check(first < 0.15 && (last - 1.0 / 3.0).abs() < 0.02, &words);
        let failed = self.seen()?.failed() - self.before.failed();
        self.check(failed == 0, &format!("{failed} requests failed meanwhile"));
        Ok(())
    }

    /// A server dies, nobody says so, and it comes back.
    fn refuse(&mut self) -> Result<()> {
        let rules = json!({"warmup": {"duration": "4s"},
            "outlier": {"baseEjectionTime": "2s", "maxEjectionTime": "10s", "trial": "2s"}});
        self.stage.put_with((&[], [""; SERVERS]), SERVERS, rules)?;
        self.begin("A server dies: web-2 refuses connections, and nobody tells")?;
        self.stage.stop(2);
        let took = self.wait_for(2, "unhealthy")?;
        let out = self.seen()?;
        self.watch(Duration::from_secs(1))?;
        let failed = out.failed() - self.before.failed();
        self.check(
            failed <= 20,
            &format!("it is out after {:.0} ms and {failed} refused callers", took.as_secs_f64() * 1e3),
        );
        self.say_why(2)?;
        self.stage.start(2)?;
        let took = self.wait_for(2, "ready")?;
        let words = format!(
            "it serves again: a trial of its own and a ramp later it is back, after {:.1} s",
            took.as_secs_f64()
        );
        self.check(true, &words);
        Ok(())
    }

    /// The cable of a node is pulled, and put back.
    fn fall_silent(&mut self) -> Result<()> {
        self.begin("A cable is pulled: web-1 answers nothing any more, and nobody tells")?;
        self.stage.cut(1, true)?;
        let took = self.wait_for(1, "unhealthy")?;
        let seconds = took.as_secs_f64();
        self.check(seconds <= 5.0, &format!("it is out {seconds:.1} s after its first silence"));
        self.say_why(1)?;
        self.stage.cut(1, false)?;
        let took = self.wait_for(1, "ready")?;
        self.screen.say(&format!("  the cable is back, and {:.1} s later so is the server", took.as_secs_f64()));
        self.stage.load.take().context("the clients are gone")?.finish().map(drop)
    }

    /// Shows what happens until a backend has this state; returns how long that took.
    fn wait_for(&mut self, number: usize, state: &str) -> Result<Duration> {
        const PATIENCE: Duration = Duration::from_secs(40);
        let start = Instant::now();
        while self.stage.backend(number)?["state"] != state {
            ensure!(start.elapsed() < PATIENCE, "{} is not {state} after {PATIENCE:?}", name(number));
            self.watch(FRAME)?;
        }
        Ok(start.elapsed())
    }

    /// The agent's own words.
    fn say_why(&mut self, number: usize) -> Result<()> {
        let backend = self.stage.backend(number)?;
        for reason in backend["health"]["reasons"].as_array().into_iter().flatten() {
            self.screen.say(&format!("  {}", reason["message"].as_str().unwrap_or_default()));
        }
        Ok(())
    }

    /// Drains a node, shows what happens meanwhile, and returns the operation at its end.
    fn drain(&mut self, node: &str, body: &Value) -> Result<Value> {
        let begun = self.stage.act(node, "drain", body)?;
        let id = begun["id"].as_str().context("the drain has no id")?.to_owned();
        loop {
            self.watch(FRAME)?;
            let now = self.stage.operation(&id)?;
            if !now["finishedAt"].is_null() {
                return Ok(now);
            }
        }
    }

    fn is_server(&self, name: &str) -> bool {
        self.stage.servers.iter().any(|server| server.name() == name)
    }

    /// Begins an act: what is counted from here on came after what was done before.
    fn begin(&mut self, title: &str) -> Result<()> {
        self.before = self.seen()?;
        self.screen.title(title);
        Ok(())
    }

    /// Shows what happens for some time.
    fn watch(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end && !interrupt::noted() {
            let picture = self.picture()?;
            self.screen.draw(&picture);
            thread::sleep(FRAME);
        }
        interrupt::check()
    }

    fn picture(&mut self) -> Result<Picture> {
        let load = self.stage.load.as_mut().context("the clients are gone")?;
        ensure!(load.runs(), "the clients have died");
        let (seen, rate) = (load.seen(), load.rate());
        let lived = self.stage.agent.id();
        let service = if lived.is_some() { self.stage.service()? } else { Value::Null };
        let status = service["status"]["backends"].as_array().map(Vec::as_slice).unwrap_or_default();
        let all = (seen.answered() - self.before.answered()).max(1) as f64;
        let rows = (1..=SERVERS).map(|number| {
            let backend = name(number);
            let held = status.iter().find(|status| status["name"] == backend.as_str()).unwrap_or(&Value::Null);
            let answers = seen.of(&backend).count - self.before.of(&backend).count;
            let (low, high) = (held["confidence95"][0].as_f64(), held["confidence95"][1].as_f64());
            Row {
                state: held["state"].as_str().unwrap_or("-").to_owned(),
                desired: held["desiredShare"].as_f64(),
                programmed: held["programmedShare"].as_f64(),
                observed: held["observedShare"].as_f64(),
                margin: low.zip(high).map(|(low, high)| (high - low) / 2.0),
                answers,
                answered: answers as f64 / all,
                backend,
            }
        });
        Ok(Picture {
            rows: rows.collect(),
            rate,
            connections: seen.answered() + seen.failed(),
            failures: seen.failed(),
            agent: lived.map_or_else(|| "dead".to_owned(), |id| format!("process {id}")),
        })
    }

    fn seen(&self) -> Result<Seen> {
        self.stage.load.as_ref().context("the clients are gone")?.seen_now()
    }

    /// New connections as the kernel has counted them.
    fn counted(&self) -> Result<u64> {
        let service = self.stage.service()?;
        service["status"]["newConnections"].as_u64().context("no newConnections")
    }

    /// Holds this act's answers against the shares that were asked for.
    fn shares(&mut self, what: &str, shares: [f64; SERVERS]) -> Result<()> {
        let seen = self.seen()?;
        let counts = [1, 2, 3].map(|number| seen.of(&name(number)).count - self.before.of(&name(number)).count);
        let all: u64 = counts.iter().sum();
        let off = counts.iter().zip(shares).map(|(count, share)| (*count as f64 - share * all as f64).abs());
        let off = off.fold(0.0, f64::max);
        let held = all > 0 && off <= SLACK;
        let counts = counts.map(|count| count.to_string()).join(" / ");
        self.check(held, &format!("{what}: {counts} of {all} connections, off by {off:.1} at most"));
        let failed = seen.failed() - self.before.failed();
        if failed > 0 {
            self.check(false, &format!("{failed} connections failed in this act"));
        }
        Ok(())
    }

    fn check(&mut self, held: bool, text: &str) {
        self.broken += u32::from(!held);
        self.screen.verdict(held, text);
    }
}
