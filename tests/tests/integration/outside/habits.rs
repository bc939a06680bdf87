//! The command line as operators are used to it: kinds before names, lists that come back, changes judged by what comes of
//! them, followers that outlive an agent, narrow screens.

use std::{fs, process::Output};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sluice_tests::{Program, Service, agent, system::eventually};

use crate::stage::{FRONTEND, LIMIT, Stage, assert_exact, weighted};

const OTHER: &str = "10.96.0.11:80";

/// A verb that ends with this code: what it printed, and what it said.
#[track_caller]
fn run(stage: &Stage, words: &[&str], code: i32) -> Result<(String, String)> {
    let Output { status, stdout, stderr } = stage.agent.cli(words)?;
    let (printed, said) = (String::from_utf8(stdout)?, String::from_utf8(stderr)?);
    assert_eq!(status.code(), Some(code), "sluice {}:\n{printed}{said}", words.join(" "));
    Ok((printed, said))
}

/// A verb that goes on until it is dropped.
fn follower(stage: &Stage, words: &[&str]) -> Result<Program> {
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let mut line = vec![text(&agent::program()?), "--socket".into(), text(&stage.agent.socket())];
    line.extend(words.iter().map(|word| (*word).to_owned()));
    Program::start(None, None, &line)
}

fn says(program: &Program, what: &str) -> Result<()> {
    let said = eventually(what, LIMIT, || program.log().contains(what).then_some(()));
    said.with_context(|| program.log())
}

/// The file with these documents.
fn file(directory: &tempfile::TempDir, documents: &[Value]) -> Result<String> {
    let path = directory.path().join("documents.json");
    fs::write(&path, documents.iter().map(Value::to_string).collect::<Vec<_>>().join("\n"))?;
    Ok(path.to_string_lossy().into_owned())
}

#[test]
fn what_is_listed_can_be_applied_and_what_is_not_can_be_pruned() -> Result<()> {
    let stage = Stage::weights("lists", &[3, 1])?;
    let client = stage.client()?;
    let directory = tempfile::tempdir()?;
    for kind in ["services", "nodes", "service/shop", "node/n1"] {
        let listed = directory.path().join("listed.yaml");
        fs::write(&listed, run(&stage, &["get", kind, "-o", "yaml"], 0)?.0)?;
        let listed = listed.to_string_lossy().into_owned();
        run(&stage, &["apply", "-f", &listed], 0)?;
        let (again, _) = run(&stage, &["apply", "-f", &listed], 0)?;
        assert!(again.lines().count() > 0 && again.lines().all(|line| line.ends_with("unchanged")), "{kind}: {again}");
        assert_eq!(run(&stage, &["diff", "-f", &listed], 0)?.0, "", "{kind}");
    }
    // A name may have its kind before it.
    assert!(run(&stage, &["describe", "service/shop"], 0)?.0.contains(FRONTEND));
    run(&stage, &["zero", "service/shop/b2"], 0)?;
    run(&stage, &["restore", "shop/b2"], 0)?;
    assert!(run(&stage, &["zero", "service/shop"], 2)?.1.contains("shop/n1"));

    // Two services exchange their frontends; one gets another name and keeps its frontend.
    let other = |name: &str, frontend: &str| Service::new(name, frontend).backend("x", "10.0.0.2:8080", 1).json();
    let shop = |frontend: &str| Service::new("shop", frontend).backend("x", "10.0.0.1:8080", 1).json();
    run(&stage, &["apply", "-f", &file(&directory, &[shop(FRONTEND), other("cart", OTHER)])?], 0)?;
    let exchanged = file(&directory, &[shop(OTHER), other("cart", FRONTEND)])?;
    let (differs, _) = run(&stage, &["diff", "-f", &exchanged], 1)?;
    assert!(differs.contains("service/cart (then)") && client.spread(FRONTEND, 4).answered_by("b1") == 4, "{differs}");
    run(&stage, &["apply", "-f", &exchanged], 0)?;
    assert_eq!((client.spread(FRONTEND, 4).answered_by("b2"), client.spread(OTHER, 4).answered_by("b1")), (4, 4));

    let renamed = file(&directory, &[shop(OTHER), other("basket", FRONTEND)])?;
    assert!(run(&stage, &["apply", "-f", &renamed], 1)?.1.contains("is a frontend of cart already"));
    let words = ["apply", "-f", &renamed, "--prune", "--dry-run"];
    let (would, _) = run(&stage, &words, 0)?;
    assert!(would.contains("service/cart deleted (dry run)"), "{would}");
    assert!(run(&stage, &["diff", "-f", &renamed, "--prune"], 1)?.0.contains("--- service/cart (now)"));
    run(&stage, &["get", "service/cart"], 0)?;
    let (done, _) = run(&stage, &words[..4], 0)?;
    assert!(done.contains("service/basket created") && done.contains("service/cart deleted"), "{done}");
    run(&stage, &["get", "service/cart"], 1)?;
    assert_eq!(client.spread(FRONTEND, 4).answered_by("b2"), 4);
    // What cannot be compared is no difference.
    run(&stage, &["diff", "-f", "/no/such/file"], 2)?;
    Ok(())
}

#[test]
fn a_prune_that_takes_too_much_waits_until_it_is_accepted() -> Result<()> {
    let stage = Stage::new("prune-brake")?;
    let service = |name: &str, host: u8| Service::new(name, &format!("10.96.1.{host}:80")).json();
    let directory = tempfile::tempdir()?;
    let all = file(&directory, &[service("a", 1), service("b", 2), service("c", 3)])?;
    run(&stage, &["apply", "-f", &all], 0)?;
    let one = file(&directory, &[service("a", 1)])?;
    let (_, said) = run(&stage, &["apply", "-f", &one, "--prune"], 4)?;
    assert!(
        said.contains("2 of 3 services") && said.contains("--accept-shrink") && !said.contains("--force"),
        "{said}"
    );
    let (differs, _) = run(&stage, &["diff", "-f", &one, "--prune"], 1)?;
    assert!(differs.contains("--- service/b (now)") && differs.contains("--- service/c (now)"), "{differs}");
    assert_eq!(run(&stage, &["get", "services"], 0)?.0.lines().count(), 4, "nothing is gone");
    run(&stage, &["apply", "-f", &one, "--prune", "--accept-shrink"], 0)?;
    assert_eq!(run(&stage, &["get", "services"], 0)?.0.lines().count(), 2);
    Ok(())
}

#[test]
fn a_group_gets_another_weight_and_capacity_is_guarded_with_numbers() -> Result<()> {
    let mut stage = Stage::new("group-weight")?;
    for number in 1..=3 {
        stage.tcp(&format!("10.0.0.{number}:8080"), &format!("b{number}"))?;
    }
    let client = stage.client()?;
    let service = |stable: u32, canary: u32| {
        Service::new("shop", FRONTEND)
            .set("minReadyPercent", 60)
            .group("stable", stable)
            .group("canary", canary)
            .backend_in("stable", "b1", "10.0.0.1:8080", 1)
            .backend_in("stable", "b2", "10.0.0.2:8080", 1)
            .backend_in("canary", "b3", "10.0.0.3:8080", 98)
    };
    stage.put(&service(90, 10))?;
    let weight = |group: &str, weight: &str, code| run(&stage, &["weight", "shop", "--group", group, weight], code);
    let (told, _) = weight("canary", "30", 0)?;
    assert!(told.contains("canary weight 30: 25.00 %"), "{told}");
    assert_exact(&client.spread(FRONTEND, 80), 16, &[("b1", 0.375), ("b2", 0.375), ("b3", 0.25)]);
    assert!(weight("none", "5", 1)?.1.contains("has no group none"));
    assert!(weight("canary", "many", 2)?.1.contains("write a whole number"));
    stage.agent.patch("/v1/services/shop/groups/canary", &json!({"weight": 10}))?.expect_status(200);
    let group = stage.agent.get("/v1/services/shop/groups/canary")?.expect_status(200).json();
    assert_eq!((&group["weight"], &group["desiredShare"]), (&json!(10), &json!(0.1)), "{group}");

    // By their weights the canary alone would be nearly all of the service; by their shares it is a tenth of it.
    let (_, said) = weight("stable", "0", 4)?;
    assert!(said.contains("shop (10 % open, 60 % wanted)") && said.contains("--force"), "{said}");
    let (_, said) = run(&stage, &["weight", "shop/b1", "0"], 4)?;
    assert!(said.contains("shop (55 % open, 60 % wanted)"), "{said}");
    let (_, said) = run(&stage, &["zero", "shop/b1"], 4)?;
    assert!(said.contains("shop (55 % open, 60 % wanted)"), "{said}");
    let directory = tempfile::tempdir()?;
    let shut = file(&directory, &[service(0, 10).json()])?;
    assert!(run(&stage, &["apply", "-f", &shut], 4)?.1.contains("shop (10 % open, 60 % wanted)"));
    run(&stage, &["diff", "-f", &shut], 1)?;
    assert_eq!(stage.status("shop")?["groups"][0]["weight"], 90, "nothing of it has happened");
    run(&stage, &["zero", "shop/b3"], 0)?;
    run(&stage, &["restore", "shop/b3"], 0)?;
    run(&stage, &["apply", "-f", &shut, "--force"], 0)?;
    assert_eq!(client.spread(FRONTEND, 8).answered_by("b3"), 8);
    // The last open backend is not closed by its weight without a word, whatever the percentage.
    stage.put(&weighted(&[1, 1]))?;
    run(&stage, &["weight", "shop/b1", "0"], 0)?;
    assert!(run(&stage, &["weight", "shop/b2", "0"], 4)?.1.contains("shop (nothing open)"));
    run(&stage, &["weight", "shop/b2", "0", "--force"], 0)?;
    Ok(())
}

#[test]
fn followers_go_on_over_a_restart_and_a_wait_ends_when_it_should() -> Result<()> {
    let mut stage = Stage::weights("followers", &[1, 1])?;
    let events = follower(&stage, &["events", "--follow"])?;
    let watching = follower(&stage, &["get", "nodes", "--watch"])?;
    says(&events, "service/shop")?;
    says(&watching, "NAME")?;
    stage.agent.kill()?;
    let waiting = follower(&stage, &["wait", "node/n1", "--for", "zeroed", "--timeout", "60s"])?;
    says(&events, "waiting for one")?;
    stage.agent.start()?;
    let before = watching.log().lines().count();
    run(&stage, &["zero", "node/n1", "--reason", "after the restart"], 0)?;
    says(&events, "after the restart")?;
    says(&waiting, "node/n1 is zeroed after")?;
    eventually("the row of n1 comes again", LIMIT, || {
        let log = watching.log();
        log.lines().skip(before).any(|line| line.starts_with("n1") && line.contains("zero")).then_some(())
    })?;
    assert!(run(&stage, &["wait", "shop/b1", "--for", "ready", "--timeout", "0s"], 3)?.1.contains("its state is zero"));
    run(&stage, &["wait", "shop/b2", "--for", "ready"], 0)?;
    assert!(run(&stage, &["wait", "service/shop", "--for", "ready", "--timeout", "0s"], 3)?.1.contains("zero"));
    run(&stage, &["restore", "node/n1"], 0)?;
    run(&stage, &["wait", "service/shop", "--for", "ready"], 0)?;
    run(&stage, &["drain", "shop/b1"], 0)?;
    run(&stage, &["wait", "shop/b1", "--for", "drained"], 0)?;
    run(&stage, &["wait", "shop/none", "--for", "drained"], 1)?;
    Ok(())
}

#[test]
fn a_narrow_screen_keeps_what_happens_and_names_are_completed() -> Result<()> {
    let stage = Stage::weights("narrow", &[3, 1])?;
    let of = |columns: &str, words: &[&str]| -> Result<String> {
        let mut command = std::process::Command::new(agent::program()?);
        command.args(words).env("SLUICE_SOCKET", stage.agent.socket()).env("COLUMNS", columns);
        Ok(String::from_utf8(command.output()?.stdout)?)
    };
    for words in [&["top", "--once", "--interval", "100ms"][..], &["describe", "shop"], &["get"], &["get", "nodes"]] {
        let (narrow, wide) = (of("80", words)?, of("200", words)?);
        let table = narrow.lines().find(|line| line.contains("FAILED")).with_context(|| narrow.clone())?;
        assert!(table.contains("ACTIVE") && table.contains("NEW"), "{narrow}");
        assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
        assert!(wide.len() >= narrow.len(), "{wide}");
    }
    // As bash asks what may come after `sluice zero `.
    let mut shell = std::process::Command::new(agent::program()?);
    shell.env("SLUICE_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "4").env("_CLAP_COMPLETE_COMP_TYPE", "9");
    shell.env("_CLAP_COMPLETE_SPACE", "true").env("_CLAP_IFS", "\n");
    let socket = stage.agent.socket();
    shell.args(["--", "sluice", "--socket"]).arg(&socket).args(["zero", ""]);
    let answered = String::from_utf8(shell.output()?.stdout)?;
    for name in ["shop/b1", "shop/b2", "node/n1"] {
        assert!(answered.lines().any(|line| line == name), "{name} in {answered}");
    }
    let (page, _) = run(&stage, &["man", "drain"], 0)?;
    assert!(page.contains(".TH") && page.contains("deadline"), "{page}");
    Ok(())
}
