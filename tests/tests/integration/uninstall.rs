//! `sluice uninstall` takes away what an agent has left in the kernel and on disk.

use anyhow::Result;
use sluice_tests::system::eventually;

use crate::stage::{FRONTEND, LIMIT, Stage};

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
