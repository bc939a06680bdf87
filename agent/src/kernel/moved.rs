//! Whether the pinned programs are on another cgroup than the one that is asked for: to take them along would end steering
//! there.

use std::io::ErrorKind;

use anyhow::{Context, Result, ensure};
use sluice_common::verdict::Program;

use super::{pins::Directory, sys};

/// # Errors
/// When a program is on another cgroup that still is there.
pub fn check(directory: &Directory, wanted: u64) -> Result<()> {
    for program in Program::ORDER {
        let pin = directory.link(program.name());
        let link = match sys::get_pinned(&pin) {
            Ok(link) => link,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("opening {}", pin.display())),
        };
        // 0 is one that is gone. A link that says nothing is replaced, as one that is lost.
        let held = sys::cgroup_link_info(&link).map_or(0, |info| info.cgroup_id);
        ensure!(
            held == 0 || held == wanted,
            "the programs that are pinned here steer another cgroup (number {held}; `bpftool cgroup tree` names it): \
             steering goes on there as it is. Give the agent the --cgroup that it had before, or a --bpffs, --state-dir and \
             --socket of its own, or start it once with --accept-move: then they steer the other cgroup no longer"
        );
    }
    Ok(())
}
