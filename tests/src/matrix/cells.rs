//! Who meets whom.

use anyhow::{Context, Result};

use super::cell::{
    Cell,
    Expect::{Costs, Ended, Kept, Whole},
    Says::{IdleClose, Request, Stream},
    ServerKind::{Nginx, NginxTls, Node, NodeTls, Postgres, Redis},
};

/// The cell of this name.
pub fn cell(name: &str) -> Result<Cell> {
    CELLS.into_iter().find(|cell| cell.name == name).with_context(|| format!("the matrix has no cell {name}"))
}

/// A service whose answers have pauses says how long they are.
const PAUSES: u32 = 5;
/// After a handshake of TLS 1.3 the tickets of the server look like the answer to the first request, so the kernel waits
/// four times as long there: longer than the slowest answer.
const SLOW: u32 = 1;
const NEVER_IDLE: &str = "never idle: it keeps its connections, and they outlive the drain";
const SESSIONS: &str = "recognised as sessions, which outlive the drain";
const NO_LOOK: &str = "the pool does not look at a connection before it hands it out";
const NO_RETURN: &str = "it does not connect again: a client of it whose connection ends has ended";
const TICKETS: &str = "the first request after a handshake has four times that";
/// The rule takes an answer that follows the last request for the end of the matter.
const HELD_UP: &str = "a burst whose second answer is late looks answered meanwhile, so the service says its time";

pub const CELLS: [Cell; 63] = [
    // Requests of a millisecond.
    Cell::new("requests", "http_requests.py", Node, "quick"),
    Cell::new("httpx", "http_httpx.py", Node, "quick"),
    Cell::new("aiohttp", "http_aiohttp.py", Node, "quick"),
    Cell::new("agent", "http_agent.mjs", Node, "quick"),
    Cell::new("fetch", "http_fetch.mjs", Node, "quick"),
    Cell::new("undici", "http_undici.mjs", Node, "quick"),
    Cell::new("java", "HttpPool.java", Node, "quick"),
    // A call of curl ends after some seconds, and with it its connection.
    Cell::new("curl", "curl_reuse.sh", Node, "quick").expect(Ended),
    Cell::new("hyper", "hyper", Node, "quick"),
    Cell::new("requests-nginx", "http_requests.py", Nginx, "quick"),
    Cell::new("aiohttp-nginx", "http_aiohttp.py", Nginx, "quick"),
    Cell::new("agent-nginx", "http_agent.mjs", Nginx, "quick"),
    Cell::new("undici-nginx", "http_undici.mjs", Nginx, "quick"),
    Cell::new("java-nginx", "HttpPool.java", Nginx, "quick"),
    Cell::new("curl-nginx", "curl_reuse.sh", Nginx, "quick").expect(Ended),
    Cell::new("hyper-nginx", "hyper", Nginx, "quick"),
    Cell::new("bursts", "raw_pipelined.py", Node, "bursts"),
    Cell::new("bursts-nginx", "raw_pipelined.py", Nginx, "bursts"),
    // Of two seconds.
    Cell::new("requests-slow", "http_requests.py", Node, "slow"),
    Cell::new("httpx-slow", "http_httpx.py", Node, "slow"),
    Cell::new("aiohttp-slow", "http_aiohttp.py", Node, "slow"),
    Cell::new("agent-slow", "http_agent.mjs", Node, "slow"),
    Cell::new("fetch-slow", "http_fetch.mjs", Node, "slow"),
    Cell::new("undici-slow", "http_undici.mjs", Node, "slow"),
    Cell::new("java-slow", "HttpPool.java", Node, "slow"),
    Cell::new("curl-slow", "curl_reuse.sh", Node, "slow").expect(Ended),
    Cell::new("hyper-slow", "hyper", Node, "slow"),
    Cell::new("pipelined", "raw_pipelined.py", Node, "pipelined").says(IdleClose(PAUSES)).expect(Whole).note(HELD_UP),
    // Long polls: of eight.
    Cell::new("requests-poll", "http_requests.py", Node, "poll"),
    Cell::new("aiohttp-poll", "http_aiohttp.py", Node, "poll"),
    Cell::new("agent-poll", "http_agent.mjs", Node, "poll"),
    Cell::new("undici-poll", "http_undici.mjs", Node, "poll"),
    Cell::new("java-poll", "HttpPool.java", Node, "poll"),
    Cell::new("hyper-poll", "hyper", Node, "poll"),
    // Answers with pauses of three seconds.
    Cell::new("requests-chunked", "http_requests.py", Node, "chunked").says(IdleClose(PAUSES)).expect(Whole),
    Cell::new("httpx-chunked", "http_httpx.py", Node, "chunked").says(IdleClose(PAUSES)).expect(Whole),
    Cell::new("aiohttp-chunked", "http_aiohttp.py", Node, "chunked").says(IdleClose(PAUSES)).expect(Whole),
    Cell::new("agent-chunked", "http_agent.mjs", Node, "chunked").says(IdleClose(PAUSES)).expect(Whole),
    Cell::new("undici-chunked", "http_undici.mjs", Node, "chunked").says(IdleClose(PAUSES)).expect(Whole),
    Cell::new("java-chunked", "HttpPool.java", Node, "chunked").says(IdleClose(PAUSES)).expect(Whole),
    Cell::new("curl-chunked", "curl_reuse.sh", Node, "chunked").says(IdleClose(PAUSES)).expect(Whole),
    Cell::new("hyper-chunked", "hyper", Node, "chunked").says(IdleClose(PAUSES)).expect(Whole),
    // TLS 1.3.
    Cell::new("requests-tls", "http_requests.py", NodeTls, "quick"),
    Cell::new("requests-tls-fresh", "http_requests.py", NodeTls, "fresh")
        .says(IdleClose(SLOW))
        .expect(Ended)
        .note(TICKETS),
    Cell::new("agent-tls", "http_agent.mjs", NodeTls, "quick"),
    Cell::new("agent-tls-slow", "http_agent.mjs", NodeTls, "slow").says(IdleClose(SLOW)).expect(Whole).note(TICKETS),
    Cell::new("agent-tls-fresh", "http_agent.mjs", NodeTls, "fresh").says(IdleClose(SLOW)).expect(Ended).note(TICKETS),
    Cell::new("undici-tls-slow", "http_undici.mjs", NodeTls, "slow").says(IdleClose(SLOW)).expect(Whole).note(TICKETS),
    Cell::new("curl-tls-slow", "curl_reuse.sh", NodeTls, "slow").says(IdleClose(SLOW)).expect(Whole).note(TICKETS),
    Cell::new("requests-nginx-tls", "http_requests.py", NginxTls, "quick"),
    Cell::new("agent-nginx-tls", "http_agent.mjs", NginxTls, "quick"),
    // Streams.
    Cell::new("agent-sse", "http_agent.mjs", Node, "sse").says(Stream).expect(Kept),
    Cell::new("aiohttp-sse", "http_aiohttp.py", Node, "sse").says(Stream).expect(Kept),
    Cell::new("agent-websocket", "http_agent.mjs", Node, "websocket").says(Stream).expect(Kept),
    Cell::new("aiohttp-websocket", "http_aiohttp.py", Node, "websocket").says(Stream).expect(Kept),
    // Redis.
    Cell::new("redis", "redis_pool.py", Redis, "quick"),
    Cell::new("redis-slow", "redis_pool.py", Redis, "slow"),
    Cell::new("redis-benchmark", "redis_benchmark.sh", Redis, "busy").expect(Kept).note(NEVER_IDLE),
    // PostgreSQL: sessions.
    Cell::new("psycopg", "postgres_pool.py", Postgres, "quick").expect(Kept).note(SESSIONS),
    Cell::new("psycopg-request", "postgres_pool.py", Postgres, "quick").says(Request).expect(Costs).note(NO_LOOK),
    Cell::new("pgbench", "pgbench.sh", Postgres, "quick").expect(Kept).note(SESSIONS),
    Cell::new("pgbench-request", "pgbench.sh", Postgres, "quick").says(Request).expect(Costs).note(NO_RETURN),
    Cell::new("pgbench-fresh", "pgbench.sh", Postgres, "fresh").expect(Ended),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_differ() {
        assert_eq!(CELLS.iter().map(|cell| cell.name).collect::<BTreeSet<_>>().len(), CELLS.len());
    }
}
