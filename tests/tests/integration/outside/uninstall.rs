//! `sluice uninstall` leaves the state where that is wanted.

use std::process::Command;

use anyhow::Result;
use sluice_tests::{Errno, agent::program, system::eventually};

use crate::stage::{FRONTEND, LIMIT, Stage, assert_exact};

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
