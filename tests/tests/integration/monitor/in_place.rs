//! Which programs are in place before, while and after somebody watches, and what becomes of them without an agent.

use std::{fs, thread, time::Duration};

use anyhow::Result;
use nix::sys::signal::Signal;
use sluice_common::decision::LEASE;
use sluice_tests::system::eventually;

use super::{Monitor, are_back, path, programs, sizes};
use crate::stage::{FRONTEND, LIMIT, Stage, assert_all_answered, assert_exact, weighted};

#[test]
fn when_the_lease_is_over_nothing_is_told_until_the_agent_is_back() -> Result<()> {
    let stage = Stage::weights("lease", &[1])?;
    let (client, later) = (stage.client()?, stage.client()?);
    let monitor = Monitor::start(&stage.agent, &["-o", "json"])?;
    stage.agent.signal(Signal::SIGSTOP)?;
    assert_all_answered(&client.spread(FRONTEND, 1));
    // And the programs' clock goes by ticks.
    thread::sleep(Duration::from_nanos(LEASE) + Duration::from_secs(1));
    assert_all_answered(&client.spread(FRONTEND, 2));
    stage.agent.signal(Signal::SIGCONT)?;
    let of = |pid: u32| monitor.told().iter().filter(|told| told["pid"] == pid).count();
    eventually("it is told again", LIMIT, || {
        assert_all_answered(&later.spread(FRONTEND, 1));
        (of(later.id()) > 0).then_some(())
    })?;
    assert_eq!(of(client.id()), 1, "{}", monitor.0.log());
    assert!(!monitor.end()?.contains("lost"), "what nobody waits for is not lost");
    Ok(())
}

#[test]
fn tables_whose_pins_cannot_be_put_back_are_not_made_anew() -> Result<()> {
    let stage = Stage::weights("pins", &[1])?;
    let client = stage.client()?;
    let usual = programs(&stage.agent)?;
    let maps = stage.agent.bpffs().join("maps");
    let (pin, in_the_way) = (maps.join("SLOTS"), maps.join("SLOTS_new"));
    fs::create_dir(&in_the_way)?;
    fs::remove_file(&pin)?;
    let mut refused = Monitor::begin(&stage.agent, &[])?;
    assert_eq!(refused.0.wait(LIMIT)?.code(), Some(1), "{}", refused.0.log());
    assert!(refused.0.log().contains(&path(&pin)), "{}", refused.0.log());
    assert_eq!((pin.exists(), programs(&stage.agent)?), (false, usual.clone()));
    assert_all_answered(&client.spread(FRONTEND, 3));
    fs::remove_dir(&in_the_way)?;
    eventually("the pin is back", LIMIT, || pin.exists().then_some(()))?;
    Monitor::start(&stage.agent, &[])?.end()?;
    Ok(())
}

#[test]
fn usual_programs_are_put_back_under_links_without_pins() -> Result<()> {
    let stage = Stage::weights("again", &[1])?;
    let client = stage.client()?;
    let usual = programs(&stage.agent)?;
    let monitor = Monitor::start(&stage.agent, &[])?;
    // And the link cannot be pinned again.
    let links = stage.agent.bpffs().join("links");
    fs::create_dir(links.join("connect4_new"))?;
    fs::remove_file(links.join("connect4"))?;
    monitor.end()?;
    fs::remove_dir(links.join("connect4_new"))?;
    eventually("the pin is back", LIMIT, || links.join("connect4").exists().then_some(()))?;
    are_back(&stage.agent, &usual)?;
    assert_all_answered(&client.spread(FRONTEND, 3));
    Ok(())
}

#[test]
fn an_agent_that_ends_puts_the_usual_programs_back() -> Result<()> {
    let mut stage = Stage::weights("ends", &[1, 1])?;
    let client = stage.client()?;
    let usual = programs(&stage.agent)?;
    let mut monitor = Monitor::start(&stage.agent, &[])?;
    assert!(stage.agent.terminate()?.success());
    assert_eq!(programs(&stage.agent)?, usual);
    assert_eq!(monitor.0.wait(LIMIT)?.code(), Some(1), "{}", monitor.0.log());
    assert_exact(&client.spread(FRONTEND, 20), 10, &[("b1", 0.5), ("b2", 0.5)]);
    Ok(())
}

#[test]
fn killed_while_somebody_watches_it_steers_on() -> Result<()> {
    let mut stage = Stage::weights("killed", &[1, 1])?;
    let client = stage.client()?;
    let (usual, sizes_before) = (programs(&stage.agent)?, sizes(&stage.agent)?);
    let monitor = Monitor::start(&stage.agent, &[])?;
    let sizes_watched = sizes(&stage.agent)?;
    assert!(sizes_before.iter().zip(&sizes_watched).all(|(before, watched)| before != watched), "{sizes_watched:?}");
    stage.agent.kill()?;
    // More than the ring has room for: nobody reads it any more.
    let report = client.spread(FRONTEND, 3200);
    assert_exact(&report, 100, &[("b1", 0.5), ("b2", 0.5)]);
    assert_eq!(sizes(&stage.agent)?, sizes_watched);
    drop(monitor);
    stage.agent.start()?;
    assert_eq!(sizes(&stage.agent)?, sizes_before, "the next agent's start replaces them");
    assert!(programs(&stage.agent)?.iter().all(|(name, program)| usual[name] != *program), "all are its own");
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.5), ("b2", 0.5)]);
    assert_eq!(stage.status("shop")?["newConnections"], 3300);
    let monitor = Monitor::start(&stage.agent, &["-o", "json"])?;
    stage.put(&weighted(&[1, 0]))?;
    assert_eq!(client.spread(FRONTEND, 2).answered_by("b1"), 2);
    assert_eq!(monitor.decisions(2)?.len(), 2);
    Ok(())
}

/// Linux 6.1 refuses connect6 with messages.
fn is_refused_here() -> bool {
    fs::read_to_string("/proc/sys/kernel/osrelease").is_ok_and(|release| release.starts_with("6.1."))
}

#[test]
fn programs_speak_for_themselves_when_the_log_asks_for_it() -> Result<()> {
    let quiet = Stage::weights("silent", &[1])?;
    let usual = sizes(&quiet.agent)?;
    let mut stage = Stage::with("speaks", |agent| agent.log_level("info,sluice=debug,sluice_ebpf=debug"))?;
    let service = stage.service(&[1])?;
    stage.put(&service)?;
    let are_others = || sizes(&stage.agent).ok()?.iter().zip(&usual).all(|(now, usual)| now != usual).then_some(());
    if is_refused_here() {
        let says_so = || stage.agent.log().contains("the programs' own messages cannot be logged").then_some(());
        eventually("the agent says that the kernel refuses them", LIMIT, says_so)?;
        assert_eq!(sizes(&stage.agent)?, usual, "the usual programs stay");
        assert_all_answered(&stage.client()?.spread(FRONTEND, 3));
        return Ok(());
    }
    eventually("other programs are in place", LIMIT, are_others)?;
    let said = "the choice is backend";
    for stage in [&quiet, &stage] {
        assert_all_answered(&stage.client()?.spread(FRONTEND, 3));
    }
    eventually("the programs' messages", LIMIT, || (stage.agent.log().matches(said).count() == 3).then_some(()))?;
    assert!(!quiet.agent.log().contains(said), "{}", quiet.agent.log());
    // Who watches then sees the same programs.
    let monitor = Monitor::start(&stage.agent, &["-o", "json"])?;
    assert_all_answered(&stage.client()?.spread(FRONTEND, 1));
    assert_eq!(monitor.decisions(1)?.len(), 1);
    Ok(())
}
