//! Each rule, broken by a real server.

use std::{
    net::{SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use anyhow::Result;
use sluice_tests::{Load, client::Options, system::eventually};
use socket2::SockRef;

use super::{Silent, ejection, forever, until_out, watched};
use crate::stage::{FRONTEND, LIMIT, assert_all_answered, backend_address};

#[test]
fn a_backend_that_refuses_is_out_after_three_connections() -> Result<()> {
    let mut stage = watched("refuses", 3, forever())?;
    let client = stage.client()?;
    assert_all_answered(&client.spread(FRONTEND, 30));
    stage.servers.remove("b2");
    let failed = until_out(&stage, &client, "b2")?;
    assert!((3..=6).contains(&failed), "{failed} callers were refused");
    let status = stage.becomes("b2", "unhealthy")?;
    assert_eq!(ejection(&status), ("consecutiveFailures".into(), "out".into()));
    // It is closed at once; the table without it comes at leisure.
    eventually("a table without it", LIMIT, || {
        (stage.backend("shop", "b2").ok()?["effectiveWeight"] == 0).then_some(())
    })?;
    // Nobody meets it any more, and the others have its share.
    let report = client.spread(FRONTEND, 60);
    assert_all_answered(&report);
    assert_eq!((report.answered_by("b1"), report.answered_by("b3")), (30, 30));
    assert_eq!(stage.metric("sluice_ejections_active", &[("service", "shop")])?, 1.0);
    let rule = [("service", "shop"), ("rule", "consecutiveFailures")];
    assert_eq!(stage.metric("sluice_ejections_total", &rule)?, 1.0);
    Ok(())
}

#[test]
fn a_backend_that_leaves_syns_unanswered_is_out_within_seconds() -> Result<()> {
    let mut stage = watched("silent", 2, forever())?;
    let client = stage.client()?;
    assert_all_answered(&client.spread(FRONTEND, 10));
    stage.servers.remove("b2");
    let silent = Silent::new(&stage.world, &backend_address(2))?;
    // One caller at a time, who waits for as long as it takes.
    let patient = Options::default().timeout_millis(60_000);
    let load = client.begin(&Load::connects(FRONTEND).options(patient).pause(Duration::from_millis(20)));
    let status = stage.becomes("b2", "unhealthy")?;
    let rule = ejection(&status).0;
    assert!(["unanswered", "consecutiveFailures"].contains(&rule.as_str()), "{rule}");
    drop(silent);
    drop(load.stop());
    assert_all_answered(&client.spread(FRONTEND, 20));
    Ok(())
}

#[test]
fn a_backend_that_resets_before_its_first_byte_is_out() -> Result<()> {
    let mut stage = watched("resets", 2, forever())?;
    let client = stage.client()?;
    stage.servers.remove("b2");
    let address: SocketAddr = backend_address(2).parse()?;
    let listener = stage.world.namespace.run(|| TcpListener::bind(address))?;
    thread::spawn(move || {
        // It ends with the test program.
        for stream in listener.incoming().flatten() {
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    });
    let load = client.begin(&Load::connects(FRONTEND).pause(Duration::from_millis(5)));
    let out = stage.becomes("b2", "unhealthy")?;
    load.stop();
    assert_eq!(ejection(&out).0, "consecutiveEarlyResets");
    Ok(())
}
