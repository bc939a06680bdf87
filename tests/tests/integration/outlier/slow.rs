//! A backend that takes its time to answer a SYN.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use serde_json::json;
use sluice_tests::{Load, client::Options, system::eventually};
use socket2::{Domain, Socket, Type};

use super::{ejection, service, watched};
use crate::stage::{FRONTEND, LIMIT, assert_all_answered, backend_address};

/// Time between two connections that the slow one accepts.
const PACE: Duration = Duration::from_millis(200);

#[test]
fn a_backend_whose_connects_take_long_is_out_within_two_windows() -> Result<()> {
    let rules = |factor: u32| {
        json!({
            "consecutiveFailures": 0, "consecutiveEarlyResets": 0, "unanswered": "0s", "failurePercentage": 0,
            "successRateStdevFactor": 0, "connectTimeFactor": factor, "interval": "3s", "minimumVolume": 3,
            "minimumBackends": 3, "baseEjectionTime": "1h", "maxEjectionTime": "1h",
        })
    };
    let mut stage = watched("slow", 3, rules(0))?;
    let client = stage.client()?;
    assert_all_answered(&client.spread(FRONTEND, 30));
    stage.servers.remove("b2");
    // The queue of this listener holds one connection: who comes while it is full has to send the SYN again, which takes
    // a second.
    let address: SocketAddr = backend_address(2).parse()?;
    let listener = stage.world.namespace.run(|| -> Result<std::net::TcpListener> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(0)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    })?;
    let patient = Options::default().timeout_millis(4_000);
    let load = client.begin(&Load::connects(FRONTEND).options(patient).threads(12).pause(Duration::from_millis(10)));
    let answer = || listener.accept().map(|(stream, _)| std::io::Write::write_all(&mut &stream, b"b2\n")).is_ok();
    // A rule that is off ejects nobody, for as long as two windows and more.
    for _ in 0..40 {
        answer();
        std::thread::sleep(PACE);
    }
    assert_eq!(stage.backend("shop", "b2")?["state"], "ready");
    stage.put(&service(3, rules(20)))?;
    let mut paced = std::time::Instant::now();
    let out = eventually("the slow backend is out", LIMIT, || {
        if paced.elapsed() >= PACE {
            answer();
            paced = std::time::Instant::now();
        }
        stage.backend("shop", "b2").ok().filter(|status| status["state"] == "unhealthy")
    })?;
    assert_eq!(ejection(&out).0, "connectTimeFactor");
    while answer() {}
    drop(listener);
    drop(load.stop());
    let report = client.spread(FRONTEND, 20);
    assert_all_answered(&report);
    assert_eq!(report.answered_by("b2"), 0);
    Ok(())
}
