//! What an agent refuses to start with: it says what to do, ends with 1, and leaves everything as it was.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Command,
};

use anyhow::Result;
use sluice_tests::{
    Agent, Client, World,
    agent::program,
    pins,
    system::{bpffs, eventually, unique},
};

use crate::{
    forge,
    stage::{FRONTEND, LIMIT, Stage, assert_exact, weighted},
};

/// Starts an agent that must end with 1 and say all of `words`.
#[track_caller]
fn refused(agent: &mut Agent, words: &[&str]) -> Result<()> {
    let before = agent.log().len();
    agent.spawn()?;
    let status = agent.wait(LIMIT)?;
    let log = agent.log().split_off(before);
    assert_eq!(status.code(), Some(1), "{log}");
    for word in words {
        assert!(log.contains(word), "{word:?} is not in\n{log}");
    }
    Ok(())
}

fn still_steered(client: &Client) {
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.75), ("b2", 0.25)]);
}

#[test]
fn tables_of_another_version_are_refused() -> Result<()> {
    let mut stage = Stage::weights("version", &[3, 1])?;
    let client = stage.client()?;
    stage.agent.kill()?;
    let mut version = 0;
    forge::meta(&stage.agent, |meta| version = std::mem::replace(&mut meta.abi_version, 4711))?;
    refused(&mut stage.agent, &["4711", &version.to_string(), "sluice uninstall"])?;
    still_steered(&client);
    forge::meta(&stage.agent, |meta| meta.abi_version = version)?;
    stage.agent.start()?;
    still_steered(&client);
    assert_eq!(stage.agent.get("/v1/services/shop")?.expect_status(200).json()["status"]["generation"], 1);
    Ok(())
}

#[test]
fn tables_of_another_size_are_refused() -> Result<()> {
    for flag in ["--max-services", "--max-backends", "--max-nodes", "--max-frontends", "--max-slots"] {
        let world = World::new("size")?;
        let (_one, _two) = (world.tcp("10.0.0.1:8080", "b1")?, world.tcp("10.0.0.2:8080", "b2")?);
        let mut agent = world.agent()?.argument(flag).argument("4096");
        agent.start()?;
        agent.put("/v1/services/shop", &weighted(&[3, 1]).json())?.expect_status(201);
        let client = world.client()?;
        agent.kill()?;
        let mut other = agent.sibling().argument(flag).argument("8192");
        refused(&mut other, &[flag, "4096", "8192"])?;
        still_steered(&client);
        agent.start()?;
        still_steered(&client);
    }
    Ok(())
}

#[test]
fn a_second_agent_is_refused() -> Result<()> {
    let stage = Stage::weights("second", &[3, 1])?;
    let client = stage.client()?;
    let links = pins::names(stage.agent.bpffs());
    // All the same; its tables alone; its store alone; its socket alone; its cgroup alone.
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let flags = [
        ("--socket", text(&stage.agent.socket())),
        ("--state-dir", text(&stage.agent.state_dir())),
        ("--bpffs", text(stage.agent.bpffs())),
        ("--cgroup", text(stage.world.cgroup.path())),
    ];
    refused(&mut stage.agent.sibling(), &[])?;
    for (flag, value) in &flags {
        let home = tempfile::tempdir()?;
        let own = bpffs()?.join(unique("own"));
        let mut command = Command::new(program()?);
        command.args(["agent", "--listen", "off", "--cgroup"]).arg(stage.world.cgroup.path());
        for (name, default) in
            [("--socket", home.path().join("s")), ("--state-dir", home.path().join("d")), ("--bpffs", own.clone())]
        {
            command.arg(name).arg(if name == *flag { Path::new(value) } else { &default });
        }
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{flag}: {said}");
        assert!(said.contains("agent") && said.contains(value.as_str()), "{flag}: {said}");
        assert_eq!(pins::names(&own), Vec::<String>::new(), "{flag}: nothing is left behind");
    }
    // The first does not notice.
    assert_eq!(pins::names(stage.agent.bpffs()), links);
    still_steered(&client);
    stage.zero("shop/b2")?;
    assert_eq!(client.spread(FRONTEND, 20).answered_by("b1"), 20);
    Ok(())
}

/// An agent in a fresh place with these flags instead of the usual ones; returns how it ended and what it said.
fn start_in(
    world: &World,
    change: &[(&str, &Path)],
    prepare: impl FnOnce(&mut Command),
) -> Result<(Option<i32>, String)> {
    let home = tempfile::tempdir()?;
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o1777))?;
    let own = bpffs()?.join(unique("start"));
    let mut command = Command::new(program()?);
    command.args(["agent", "--listen", "off"]);
    for (flag, usual) in [
        ("--socket", home.path().join("s")),
        ("--state-dir", home.path().join("d")),
        ("--bpffs", own.clone()),
        ("--cgroup", world.cgroup.path().to_owned()),
    ] {
        let changed = change.iter().find(|(name, _)| *name == flag);
        command.arg(flag).arg(changed.map_or(usual.as_path(), |(_, path)| *path));
    }
    prepare(&mut command);
    let output = command.output()?;
    assert_eq!(pins::names(&own), Vec::<String>::new(), "nothing is half attached");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{said}");
    Ok((output.status.code(), said))
}

#[test]
fn without_bpffs_it_says_how_to_mount_one() -> Result<()> {
    let world = World::new("bpffs")?;
    let elsewhere = tempfile::tempdir()?;
    let path = elsewhere.path().join("pins");
    let (code, said) = start_in(&world, &[("--bpffs", &path)], |_| {})?;
    assert_eq!(code, Some(1));
    assert!(said.contains("mount -t bpf") && said.contains("--bpffs"), "{said}");
    assert!(!path.exists());
    Ok(())
}

#[test]
fn a_bad_cgroup_is_refused() -> Result<()> {
    let world = World::new("cgroup")?;
    for bad in ["/sys/fs/cgroup/no/such/cgroup", "/tmp", "/etc/hostname"] {
        let (code, said) = start_in(&world, &[("--cgroup", Path::new(bad))], |_| {})?;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(bad), "{said}");
    }
    let (_, said) = start_in(&world, &[("--cgroup", Path::new("/tmp"))], |_| {})?;
    assert!(said.contains("cgroup (v2)") && said.contains("--cgroup"), "{said}");
    Ok(())
}

#[test]
fn without_rights_it_says_which() -> Result<()> {
    let world = World::new("rights")?;
    let copied = tempfile::tempdir()?;
    // Where everybody may run it.
    fs::set_permissions(copied.path(), fs::Permissions::from_mode(0o755))?;
    let copy = copied.path().join("sluice");
    fs::copy(program()?, &copy)?;
    let home = tempfile::tempdir()?;
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o1777))?;
    let mut command = Command::new(&copy);
    command.args(["agent", "--listen", "off", "--socket"]).arg(home.path().join("s"));
    command.arg("--state-dir").arg(home.path().join("d")).arg("--cgroup").arg(world.cgroup.path());
    command.arg("--bpffs").arg(bpffs()?.join(unique("rights"))).uid(65534).gid(65534);
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("root") || said.contains("CAP_"), "{said}");
    Ok(())
}

#[test]
fn without_cgroup2_it_says_so() -> Result<()> {
    let home = tempfile::tempdir()?;
    // In a mount namespace of its own, where no cgroup2 is left; if one is, nothing is started: it would be the root.
    let script = r#"
        mount --make-rprivate / 2>/dev/null
        for point in $(sed -n 's/^[^-]* \(\/[^ ]*\) [^-]* - cgroup2 .*/\1/p' /proc/self/mountinfo); do umount -l "$point"; done
        grep -q ' - cgroup2 ' /proc/self/mountinfo && exit 99
        exec "$0" agent --listen off --socket "$1/s" --state-dir "$1/d" --bpffs "$2"
    "#;
    let own = bpffs()?.join(unique("no-cgroup2"));
    let output =
        Command::new("unshare").args(["-m", "sh", "-c", script]).arg(program()?).arg(home.path()).arg(&own).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cgroup2") || said.contains("cgroup v2") || said.contains("cgroup (v2)"), "{said}");
    assert!(!own.exists());
    Ok(())
}

#[test]
fn a_broken_store_is_refused_and_steering_stays() -> Result<()> {
    let mut stage = Stage::weights("broken", &[3, 1])?;
    let client = stage.client()?;
    stage.agent.kill()?;
    let store = stage.agent.state_dir().join("sluice.redb");
    let whole = fs::read(&store)?;
    for broken in [b"not a store at all".to_vec(), whole[..whole.len() / 3].to_vec()] {
        fs::write(&store, broken)?;
        refused(&mut stage.agent, &["sluice.redb"])?;
        still_steered(&client);
    }
    fs::write(&store, whole)?;
    stage.agent.start()?;
    still_steered(&client);
    Ok(())
}

#[test]
fn settings_that_make_no_sense_are_refused() -> Result<()> {
    let world = World::new("settings")?;
    let run = |arguments: &[&str]| -> Result<(Option<i32>, String)> {
        start_in(&world, &[], |command| {
            command.args(arguments);
        })
    };
    let missing = tempfile::tempdir()?;
    let missing = missing.path().join("nothing-here.yaml");
    let (code, said) = run(&["--apply", &missing.to_string_lossy()])?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("nothing-here.yaml"), "{said}");
    let (code, said) = run(&["--max-services", "0"])?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("max-services"), "{said}");
    // Words that are none of the command line's: wrong usage.
    assert_eq!(run(&["--no-such-flag"])?.0, Some(2));
    assert_eq!(run(&["--log-format", "xml"])?.0, Some(2));
    Ok(())
}

#[test]
fn nobody_has_to_read_the_logs() -> Result<()> {
    let world = World::new("unread")?;
    let home = tempfile::tempdir()?;
    let (own, socket) = (bpffs()?.join(unique("unread")), home.path().join("s"));
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let mut agent = Command::new(program()?)
        .args(["agent", "--listen", "off", "--cgroup"])
        .arg(world.cgroup.path())
        .arg("--socket")
        .arg(&socket)
        .arg("--state-dir")
        .arg(home.path().join("d"))
        .arg("--bpffs")
        .arg(&own)
        .stderr(writer.try_clone()?)
        .spawn()?;
    let get = |name: Option<&str>| -> Result<_> {
        let writer = writer.try_clone()?;
        Ok(Command::new(program()?)
            .args(["get", "services"])
            .args(name)
            .arg("--socket")
            .arg(&socket)
            .stderr(writer)
            .status()?)
    };
    let served = eventually("the agent serves", LIMIT, || get(None).ok().filter(|status| status.success()));
    // A verb that has something to complain about is not killed by it either.
    let refused = get(Some("none"));
    let alive = agent.try_wait();
    agent.kill()?;
    agent.wait()?;
    let removed = Command::new(program()?).args(["uninstall", "--keep-state", "--bpffs"]).arg(&own).output()?;
    assert!(removed.status.success(), "{removed:?}");
    assert!(served.is_ok() && alive?.is_none());
    assert_eq!(refused?.code(), Some(1));
    Ok(())
}

#[test]
fn logs_can_be_json() -> Result<()> {
    let world = World::new("json")?;
    let mut agent = world.agent()?.log_format("json");
    agent.start()?;
    agent.put("/v1/services/shop", &weighted(&[1]).json())?.expect_status(201);
    let log = agent.log();
    let lines: Vec<serde_json::Value> = log.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert!(lines.iter().any(|line| line["level"] == "INFO" && line["timestamp"].is_string()), "{log}");
    Ok(())
}
