//! A client of the loss matrix: hyper, with the pool of hyper-util. It runs inside `sluice-test-client hyper`, takes the
//! arguments of the matrix's other clients and ends with the same report.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Uri;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::Report;

/// In which the last requests may end.
const GRACE: Duration = Duration::from_secs(15);
const LOCK: &str = include_str!("../../../Cargo.lock");

type Pool = Client<HttpConnector, Empty<Bytes>>;

/// Works as the arguments say, and prints the report.
pub fn main(arguments: impl Iterator<Item = String>) -> Result<()> {
    let words: Vec<String> = arguments.collect();
    let given: BTreeMap<&str, &str> = words.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let get = |name: &str| given.get(name).copied().with_context(|| format!("{name} is missing"));
    let number = |name: &str| get(name)?.parse::<u64>().with_context(|| format!("{name} is no number"));
    let work = get("--work")?.to_owned();
    let path = match work.as_str() {
        "quick" => "/quick",
        "slow" => "/slow",
        "poll" => "/poll",
        "chunked" => "/chunked?parts=3&pause=3000",
        _ => bail!("hyper has no work {work:?}"),
    };
    let uri: Uri = format!("{}{path}", get("--url")?).parse().context("--url is no URL")?;
    let (think, time) = (Duration::from_millis(number("--think")?), Duration::from_secs(number("--seconds")?));
    let workers = number("--workers")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let report = runtime.context("starting a runtime")?.block_on(load(uri, work, workers, think, time));
    println!("{}", serde_json::to_string(&report).context("writing the report")?);
    Ok(())
}

async fn load(uri: Uri, work: String, workers: u64, think: Duration, time: Duration) -> Report {
    // Everything is the library's default.
    let pool: Pool = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build_http();
    let client = format!("hyper {}, hyper-util {}", version("hyper"), version("hyper-util"));
    let report = Report { client, requests: 0, failed: 0, errors: BTreeMap::new(), servers: BTreeMap::new() };
    let (report, over) = (Arc::new(Mutex::new(report)), Arc::new(AtomicBool::new(false)));
    let worker = |number: u64| {
        let (pool, uri, work) = (pool.clone(), uri.clone(), work.clone());
        let (report, over) = (Arc::clone(&report), Arc::clone(&over));
        tokio::spawn(async move {
            // Between half of it and one and a half, so that the workers do not stay in step.
            for turn in number.. {
                let result = request(&pool, &uri, &work).await;
                note(&report, result);
                if over.load(Ordering::Relaxed) {
                    return;
                }
                sleep(think.mul_f64(0.5 + (turn * 7 % 11) as f64 / 10.0)).await;
            }
        })
    };
    let tasks: Vec<_> = (0..workers).map(worker).collect();
    sleep(time).await;
    over.store(true, Ordering::Relaxed);
    let all = async {
        for task in tasks {
            let _ = task.await;
        }
    };
    if timeout(GRACE, all).await.is_err() {
        note(&report, Err(anyhow::anyhow!("no end {GRACE:?} after the end of the work")));
    }
    report.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The name of the server that has answered.
async fn request(pool: &Pool, uri: &Uri, work: &str) -> Result<String> {
    let answer = pool.get(uri.clone()).await?;
    let status = answer.status();
    let server = answer.headers().get("x-server").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let body = answer.into_body().collect().await?.to_bytes();
    let right: String = match work {
        "chunked" => (1..=3).map(|part| format!("{{\"server\":\"{server}\",\"part\":{part}}}\n")).collect(),
        _ => format!("{}\n", json!({"server": server})),
    };
    ensure!(status == 200 && !server.is_empty() && body == right, "wrong answer: {status} from {server}: {body:?}");
    Ok(server)
}

fn note(report: &Mutex<Report>, result: Result<String>) {
    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
    report.requests += 1;
    match result {
        Ok(server) => *report.servers.entry(server).or_default() += 1,
        Err(error) => {
            report.failed += 1;
            let causes: Vec<_> = error.chain().map(ToString::to_string).collect();
            *report.errors.entry(causes.join(": ")).or_default() += 1;
        }
    }
}

/// Of a package in Cargo.lock.
fn version(package: &str) -> &'static str {
    let begin = LOCK.split_once(&format!("name = \"{package}\"\nversion = \"")).map(|(_, rest)| rest);
    begin.and_then(|rest| rest.split('"').next()).unwrap_or("of unknown version")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_known() {
        assert!(version("hyper").starts_with('1') && version("hyper-util").starts_with('0'));
    }
}
