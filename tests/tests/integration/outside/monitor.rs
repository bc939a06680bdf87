//! What a filter of `sluice monitor` lets out of the kernel.

use anyhow::Result;
use sluice_tests::{Client, Service, system::unique};

use crate::{
    monitor::{Monitor, path},
    stage::{FRONTEND, Stage, assert_all_answered},
};

#[test]
fn a_filter_keeps_the_others_in_the_kernel() -> Result<()> {
    let mut stage = Stage::weights("filter", &[1])?;
    stage.tcp("10.0.0.9:80", "o1")?;
    let other = "10.96.0.20:80";
    stage.put(&Service::new("other", other).backend("o1", "10.0.0.9:80", 1))?;
    let inner = stage.world.cgroup.child(&unique("inner"))?;
    let name = path(inner.path());
    let (outside, inside) = (stage.client()?, Client::start(Some(&inner), Some(&stage.world.namespace))?);
    let pid = inside.id().to_string();
    // 8 calls: each client to each of the two frontends, and twice to where no frontend is.
    let call = || {
        for client in [&outside, &inside] {
            assert_all_answered(&client.spread(FRONTEND, 1));
            assert_all_answered(&client.spread(other, 1));
            assert_all_answered(&client.spread("10.0.0.9:80", 2));
        }
    };
    let counted = || stage.metric("sluice_monitor_decisions_total", &[]);
    for (words, expected) in [
        (&["--all"][..], 8),
        (&[], 4),
        (&["--service", "other"], 2),
        (&["--service", "other", "--all"], 2),
        (&["--frontend", FRONTEND], 2),
        (&["--frontend", "10.0.0.9:80", "--all"], 4),
        (&["--frontend", "10.96.0.10:80/udp"], 0),
        (&["--pid", &pid], 2),
        (&["--cgroup", &name], 2),
        (&["--cgroup", &path(stage.world.cgroup.path())], 4),
        (&["--pid", &pid, "--service", "shop"], 1),
    ] {
        let before = counted()?;
        let monitor = Monitor::start(&stage.agent, &[words, &["-o", "json"]].concat())?;
        call();
        let told = monitor.decisions(expected)?;
        // What was told, and what came out of the kernel at all.
        assert_eq!((told.len(), counted()? - before), (expected, expected as f64), "{words:?}: {told:?}");
        monitor.end()?;
    }
    let nothing = stage.agent.cli(&["monitor", "--service", "nothing"])?;
    assert_eq!(nothing.status.code(), Some(1));
    assert!(String::from_utf8(nothing.stderr)?.contains("nothing"));
    for nonsense in [["--cgroup", "/no/such/cgroup"], ["--frontend", "here"]] {
        assert_eq!(stage.agent.cli(&["monitor", nonsense[0], nonsense[1]])?.status.code(), Some(2), "{nonsense:?}");
    }
    Ok(())
}
