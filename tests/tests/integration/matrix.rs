//! The loss matrix in its short form: no client loses a request while its servers leave and come back.

use std::time::Duration;

use anyhow::Result;
use sluice_tests::matrix::{
    Cell, Effort, Outcome,
    Says::{self, IdleClose, Nothing, Stream},
    ServerKind::{self, Nginx, Node, Postgres, Redis},
    run,
};

/// A pool gives the connection that came back last: between two requests of all workers together there is more than the
/// time of quiet, or the pool never rests.
const EFFORT: Effort =
    Effort { seconds: 14, workers: 4, think: Duration::from_millis(1200), idle_close: "100ms", deadline: "10s" };

fn play(client: &'static str, server: ServerKind, work: &'static str, says: Says) -> Result<Outcome> {
    play_with(client, server, work, says, EFFORT)
}

fn play_with(
    client: &'static str,
    server: ServerKind,
    work: &'static str,
    says: Says,
    effort: Effort,
) -> Result<Outcome> {
    let outcome = run(&Cell { client, server, work, says }, &effort)?;
    let report = &outcome.report;
    println!(
        "{} {work}: {} requests, {} failed {:?}; {} of {} drains drained, {} closed, slowest {:.1?}",
        report.client,
        report.requests,
        report.failed,
        report.errors,
        outcome.drained(),
        outcome.drains.len(),
        outcome.closed(),
        outcome.slowest()
    );
    assert!(report.servers.len() == 2, "both have served: {:?}", report.servers);
    Ok(outcome)
}

/// Requests and answers in turn: every drain empties its backend, and nothing is lost.
///
/// A client that takes a connection out of its pool in the instant in which that is closed finds out when it writes, and
/// some then give the request up: one in some thousand drained connections. So a loss must come twice.
fn lossless(client: &'static str, server: ServerKind, work: &'static str, says: Says) -> Result<()> {
    let mut outcome = play(client, server, work, says)?;
    if outcome.report.failed == 1 {
        println!("once more");
        outcome = play(client, server, work, says)?;
    }
    assert_eq!(outcome.report.failed, 0, "{:?}", outcome.report.errors);
    assert!(outcome.drained() >= 2, "{:?}", outcome.drains);
    assert!(outcome.closed() > 0, "nothing was idle: {:?}", outcome.drains);
    Ok(())
}

/// Streams live to the deadline, and on.
fn kept(client: &'static str, work: &'static str) -> Result<()> {
    let outcome = play_with(client, Node, work, Stream, Effort { deadline: "2s", ..EFFORT })?;
    assert_eq!((outcome.report.failed, outcome.closed()), (0, 0), "{:?}", outcome.report.errors);
    Ok(())
}

#[test]
fn host_requests() -> Result<()> {
    lossless("http_requests.py", Node, "quick", Nothing)
}

#[test]
fn host_requests_with_nginx() -> Result<()> {
    lossless("http_requests.py", Nginx, "quick", Nothing)
}

#[test]
fn host_requests_that_take_long() -> Result<()> {
    lossless("http_requests.py", Node, "slow", Nothing)
}

#[test]
fn host_httpx() -> Result<()> {
    lossless("http_httpx.py", Node, "quick", Nothing)
}

#[test]
fn host_aiohttp() -> Result<()> {
    lossless("http_aiohttp.py", Node, "quick", Nothing)
}

#[test]
fn host_node_agent() -> Result<()> {
    lossless("http_agent.mjs", Node, "quick", Nothing)
}

#[test]
fn host_undici() -> Result<()> {
    lossless("http_undici.mjs", Node, "quick", Nothing)
}

#[test]
fn host_java() -> Result<()> {
    lossless("HttpPool.java", Node, "quick", Nothing)
}

#[test]
fn host_curl() -> Result<()> {
    lossless("curl_reuse.sh", Node, "quick", Nothing)
}

#[test]
fn host_redis() -> Result<()> {
    lossless("redis_pool.py", Redis, "quick", Nothing)
}

/// A service whose answers have pauses says how long they are.
#[test]
fn host_answers_with_pauses() -> Result<()> {
    let outcome = play("http_agent.mjs", Node, "chunked", IdleClose("5s"))?;
    assert_eq!(outcome.report.failed, 0, "{:?}", outcome.report.errors);
    Ok(())
}

#[test]
fn host_server_sent_events() -> Result<()> {
    kept("http_agent.mjs", "sse")
}

#[test]
fn host_websockets() -> Result<()> {
    kept("http_aiohttp.py", "websocket")
}

/// This pool does not look at a connection before it hands it out: each one that is closed costs a query, whoever closes
/// it. No other is lost; a service like this says `protocol: stream`.
#[test]
fn host_a_pool_that_does_not_look() -> Result<()> {
    let outcome = play("postgres_pool.py", Postgres, "quick", Nothing)?;
    assert!(outcome.report.failed <= outcome.closed(), "{:?}", outcome.report.errors);
    let outcome = play("postgres_pool.py", Postgres, "quick", Stream)?;
    assert_eq!(outcome.report.failed, 0, "{:?}", outcome.report.errors);
    Ok(())
}
