//! A backend that misbehaves is taken out by what the kernel counts of its connections, and comes back when it has healed.

mod rules;
mod slow;

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::{Client, Report, Service, World};
use socket2::{Domain, Socket, Type};

use crate::stage::{FRONTEND, Stage, backend_address, weighted};

/// A stage with servers b1, b2 ... and a service with these rules.
pub fn watched(label: &str, backends: usize, outlier: Value) -> Result<Stage> {
    // The agent lives with the servers, where it can try them.
    let mut stage = Stage::probing(label, |agent| agent)?;
    for number in 1..=backends {
        stage.tcp(&backend_address(number), &format!("b{number}"))?;
    }
    stage.put(&service(backends, outlier))?;
    Ok(stage)
}

pub fn service(backends: usize, outlier: Value) -> Service {
    weighted(&vec![1; backends]).set("outlier", outlier)
}

/// Out for long, so that nothing comes back while a test looks.
pub fn forever() -> Value {
    json!({"baseEjectionTime": "1h", "maxEjectionTime": "1h"})
}

/// Connects until the backend is out, one call after the other; returns how many failed.
pub fn until_out(stage: &Stage, client: &Client, backend: &str) -> Result<usize> {
    let mut failed = 0;
    for _ in 0..200 {
        match client.connect(FRONTEND) {
            Ok(_) => {}
            Err(_) => failed += 1,
        }
        if stage.backend("shop", backend)?["state"] == "unhealthy" {
            return Ok(failed);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("{backend} is still in after 200 connections, of which {failed} failed")
}

/// The rule and the stage that the API shows.
pub fn ejection(status: &Value) -> (String, String) {
    let reasons = status["health"]["reasons"].as_array().expect("reasons");
    let reason = reasons.iter().find(|reason| reason["author"] == "outlier").expect("an ejection");
    let text = |field: &str| reason[field].as_str().unwrap_or_default().to_owned();
    assert!(!text("message").is_empty(), "{reason}");
    (text("rule"), text("stage"))
}

/// A listener whose queue is full: the kernel drops every SYN, as a network does that was cut.
struct Silent {
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Silent {
    fn new(world: &World, address: &str) -> Result<Self> {
        let address: SocketAddr = address.parse()?;
        world.namespace.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(0)?;
            let mut queued = Vec::new();
            // A queue of 0 holds one; what does not fit is not answered.
            while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
                queued.push(stream);
                anyhow::ensure!(queued.len() < 8, "the queue of a listener is never full");
            }
            Ok(Self { _listener: socket.into(), _queued: queued })
        })
    }
}

pub fn refused(report: &Report) -> u64 {
    let errors = report.errors();
    assert!(errors.keys().all(|error| error == "ECONNREFUSED"), "{errors:?}");
    errors.values().sum()
}
