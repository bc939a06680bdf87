//! The loss matrix in its short form: no client loses a request while its servers leave and come back. The cells that
//! `usr_` tests play also run in virtual machines; `cargo xtask bench --filter matrix` plays all there are, and
//! `cargo xtask bench --filter matrix/NAME` those whose names have this in them.

use std::{
    io::{Write, stderr},
    time::Duration,
};

use anyhow::Result;
use sluice_tests::{
    matrix::{self, Cell, Effort, Expect, Outcome, cell, closes_in_one_step},
    system,
};

/// A pool gives the connection that came back last: between two requests of all workers together there is more than the
/// time of quiet, or the pool never rests.
const EFFORT: Effort = Effort {
    seconds: 14,
    workers: 4,
    think: Duration::from_millis(1200),
    idle_close: "100ms",
    deadline: "10s",
    quiet: false,
};

/// An emulated machine takes a fraction of a second for what takes a millisecond elsewhere.
const EFFORT_IF_EMULATED: Effort = Effort {
    seconds: 30,
    workers: 2,
    think: Duration::from_millis(2000),
    idle_close: "500ms",
    deadline: "20s",
    ..EFFORT
};

/// Plays a cell and judges it.
///
/// A client that takes a connection out of its pool in the instant in which that is closed finds out when it writes, and
/// some then give the request up: one in some hundred drained connections on a busy machine. So such a loss must come
/// twice. A request that has reached a server is never lost.
pub fn play(name: &str) -> Result<()> {
    let cell = cell(name)?;
    let mut outcome = play_once(&cell)?;
    if outcome.report.failed == 1 && outcome.reached.unwrap_or(0) == 0 && cell.expect != Expect::Costs {
        writeln!(stderr(), "{name}: once more")?;
        outcome = play_once(&cell)?;
    }
    judge(&cell, &outcome)
}

fn play_once(cell: &Cell) -> Result<Outcome> {
    let outcome = matrix::run(cell, if emulated() { &EFFORT_IF_EMULATED } else { &EFFORT })?;
    print!("{}", outcome.log);
    // Not by a macro: results are for everybody, not only for who looks at a failed test.
    writeln!(stderr(), "{}", outcome.row(cell))?;
    assert_eq!(outcome.served(), 2, "both have served: {outcome:?}");
    Ok(outcome)
}

fn emulated() -> bool {
    system::patience(Duration::from_secs(1)) > Duration::from_secs(1)
}

fn judge(cell: &Cell, outcome: &Outcome) -> Result<()> {
    let (failed, closed) = (outcome.report.failed, outcome.closed());
    let in_one_step = || -> Result<bool> { if failed == 0 { Ok(true) } else { closes_in_one_step() } };
    if cell.expect == Expect::Costs || !in_one_step()? {
        // By netlink, a request that goes out between the look and the close is lost. Nothing else is.
        assert!(failed <= closed, "{failed} lost, {closed} closed: {:?}", outcome.report.errors);
    } else {
        assert_eq!(failed, 0, "{:?}", outcome.report.errors);
    }
    let enough = if emulated() { 1 } else { 2 };
    match cell.expect {
        Expect::Moved => {
            assert!(outcome.drained() >= enough, "{:?}", outcome.drains);
            assert!(closed > 0, "nothing was idle: {:?}", outcome.drains);
        }
        Expect::Ended => assert!(outcome.drained() >= enough, "{:?}", outcome.drains),
        Expect::Kept => assert_eq!(closed, 0, "{:?}", outcome.drains),
        Expect::Whole | Expect::Costs => {}
    }
    Ok(())
}

#[test]
fn usr_requests() -> Result<()> {
    play("requests")
}

#[test]
fn host_requests_with_nginx() -> Result<()> {
    play("requests-nginx")
}

#[test]
fn host_requests_that_take_long() -> Result<()> {
    play("requests-slow")
}

#[test]
fn host_httpx() -> Result<()> {
    play("httpx")
}

#[test]
fn host_aiohttp() -> Result<()> {
    play("aiohttp")
}

#[test]
fn host_undici() -> Result<()> {
    play("undici")
}

#[test]
fn host_java() -> Result<()> {
    play("java")
}

#[test]
fn host_hyper() -> Result<()> {
    play("hyper")
}

#[test]
fn usr_redis() -> Result<()> {
    play("redis")
}

#[test]
fn host_redis_benchmark() -> Result<()> {
    play("redis-benchmark")
}

#[test]
fn host_bursts() -> Result<()> {
    play("bursts")
}

#[test]
fn host_bursts_that_are_held_up() -> Result<()> {
    play("pipelined")
}

#[test]
fn host_long_polls() -> Result<()> {
    play("aiohttp-poll")
}

/// A service whose answers have pauses says how long they are.
#[test]
fn host_answers_with_pauses() -> Result<()> {
    play("agent-chunked")
}

#[test]
fn host_tls() -> Result<()> {
    play("requests-nginx-tls")
}

#[test]
fn host_tls_with_requests_that_take_long() -> Result<()> {
    play("agent-tls-slow")
}

/// The server's session tickets come after the first request, and look like its answer.
#[test]
fn host_tls_with_a_connection_for_each_request() -> Result<()> {
    play("agent-tls-fresh")
}

#[test]
fn host_server_sent_events() -> Result<()> {
    play("agent-sse")
}

#[test]
fn host_websockets() -> Result<()> {
    play("aiohttp-websocket")
}

/// This pool does not look at a connection before it hands it out: each one that is closed costs a query, whoever closes
/// it. No other is lost, and none is closed unless the service asks for it.
#[test]
fn host_a_pool_that_does_not_look() -> Result<()> {
    play("psycopg")?;
    play("psycopg-request")
}

/// Nor does this one ever connect again.
#[test]
fn host_pgbench() -> Result<()> {
    play("pgbench")?;
    play("pgbench-request")
}

#[test]
fn host_pgbench_with_a_session_for_each_transaction() -> Result<()> {
    play("pgbench-fresh")
}
