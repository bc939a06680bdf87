//! `sluice uninstall` takes away what an agent has left in the kernel and on disk.

use std::process::Command;

use anyhow::Result;
use sluice_tests::{Errno, agent::program, system::eventually};

use crate::stage::{FRONTEND, LIMIT, Stage, assert_exact};

#[test]
fn uninstall_removes_every_trace() -> Result<()> {
    let mut stage = Stage::weights("uninstall", &[1])?;
    stage.tcp(FRONTEND, "original")?;
    let client = stage.client()?;
    let kept = client.connect(FRONTEND)?;
    assert_eq!(kept.line()?, "b1");
    // Not while an agent runs.
    let output = stage.agent.uninstall()?;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("stop it first"), "{output:?}");
    assert_eq!(client.connect(FRONTEND)?.line()?, "b1");
    stage.agent.get("/v1/services/shop")?.expect_status(200);
    stage.agent.kill()?;
    let output = stage.agent.uninstall()?;
    assert!(output.status.success(), "{output:?}");
    for path in [stage.agent.bpffs(), &stage.agent.state_dir(), &stage.agent.socket()] {
        assert!(!path.exists(), "{} is left", path.display());
    }
    // Links go when the kernel has let go of them, a moment later.
    eventually("connections pass", LIMIT, || {
        (client.connect(FRONTEND).ok()?.line().ok()? == "original").then_some(())
    })?;
    assert_eq!(client.spread(FRONTEND, 20).answered_by("original"), 20);
    assert_eq!(kept.exchange("hello")?, "b1: hello");
    // Once more: there is nothing to do, and that is no failure.
    assert!(stage.agent.uninstall()?.status.success());
    // What comes after begins from nothing.
    stage.agent.start()?;
    stage.agent.get("/v1/services/shop")?.expect_status(404);
    assert_eq!(client.connect(FRONTEND)?.line()?, "original");
    Ok(())
}

#[test]
fn uninstall_can_keep_the_state() -> Result<()> {
    let mut stage = Stage::weights("keep-state", &[3, 1])?;
    let client = stage.client()?;
    stage.zero("shop/b1")?;
    stage.agent.kill()?;
    let output = Command::new(program()?)
        .args(["uninstall", "--keep-state", "--bpffs"])
        .arg(stage.agent.bpffs())
        .arg("--state-dir")
        .arg(stage.agent.state_dir())
        .arg("--socket")
        .arg(stage.agent.socket())
        .output()?;
    assert!(output.status.success(), "{output:?}");
    eventually("connections pass", LIMIT, || {
        (client.connect(FRONTEND).err() == Some(Errno::ENETUNREACH)).then_some(())
    })?;
    stage.agent.start()?;
    assert_eq!(client.spread(FRONTEND, 20).answered_by("b2"), 20);
    stage.restore("shop/b1")?;
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.75), ("b2", 0.25)]);
    Ok(())
}
