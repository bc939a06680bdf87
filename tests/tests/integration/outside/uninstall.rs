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
    let uninstall = |flags: &[&str]| -> Result<String> {
        let mut command = Command::new(program()?);
        command.arg("uninstall").args(flags).arg("--bpffs").arg(stage.agent.bpffs());
        command.arg("--state-dir").arg(stage.agent.state_dir()).arg("--socket").arg(stage.agent.socket());
        let output = command.output()?;
        assert!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    // A dry run names what would go, and leaves it.
    let would = uninstall(&["--dry-run"])?;
    let state = stage.agent.state_dir().to_string_lossy().into_owned();
    assert!(would.contains(&format!("would remove {state}")) && stage.agent.state_dir().is_dir(), "{would}");
    assert_eq!(client.spread(FRONTEND, 20).answered_by("b2"), 20);
    let would = uninstall(&["--dry-run", "--keep-state"])?;
    let done = uninstall(&["--keep-state"])?;
    assert_eq!(done, would.replace("would remove", "removed"));
    eventually("connections pass", LIMIT, || {
        (client.connect(FRONTEND).err() == Some(Errno::ENETUNREACH)).then_some(())
    })?;
    stage.agent.start()?;
    assert_eq!(client.spread(FRONTEND, 20).answered_by("b2"), 20);
    stage.restore("shop/b1")?;
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.75), ("b2", 0.25)]);
    Ok(())
}
