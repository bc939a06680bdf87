//! The command line against a live agent: what it does to traffic, what it prints for programs, how it ends.

use std::{fs, process::Output};

use anyhow::Result;
use serde_json::Value;

use crate::stage::{FRONTEND, Stage, assert_exact, weighted};

/// Runs a verb that must end with this code; returns what it printed.
#[track_caller]
fn run(stage: &Stage, words: &[&str], code: i32) -> Result<String> {
    let Output { status, stdout, stderr } = stage.agent.cli(words)?;
    let (printed, said) = (String::from_utf8(stdout)?, String::from_utf8(stderr)?);
    assert_eq!(status.code(), Some(code), "sluice {}:\n{printed}{said}", words.join(" "));
    assert!(code == 0 || !said.is_empty(), "sluice {} fails without a word", words.join(" "));
    assert!(!printed.contains('\u{1b}') && !said.contains('\u{1b}'), "colour, and no terminal: {printed}{said}");
    Ok(printed)
}

#[test]
fn verbs_do_what_they_say() -> Result<()> {
    let mut stage = Stage::new("verbs")?;
    stage.service(&[1, 1])?;
    let client = stage.client()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("shop.yaml");
    let path = file.to_string_lossy().into_owned();
    fs::write(&file, weighted(&[3, 1]).json().to_string())?;
    let differs = stage.agent.cli(&["diff", "-f", &path])?;
    assert!(differs.status.code() == Some(1) && String::from_utf8_lossy(&differs.stdout).contains("shop"));
    assert_eq!(client.spread(FRONTEND, 1).errors().len(), 1, "a diff changes nothing");
    run(&stage, &["apply", "-f", &path], 0)?;
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.75), ("b2", 0.25)]);
    run(&stage, &["weight", "shop/b1", "9"], 0)?;
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.9), ("b2", 0.1)]);
    run(&stage, &["zero", "node/n1", "--reason", "testing", "--for", "1h"], 0)?;
    assert_eq!(client.spread(FRONTEND, 20).answered_by("b2"), 20);
    assert!(run(&stage, &["describe", "node/n1"], 0)?.contains("testing"));
    assert!(run(&stage, &["explain", FRONTEND], 0)?.contains("b2"));
    run(&stage, &["restore", "node/n1"], 0)?;
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.9), ("b2", 0.1)]);
    run(&stage, &["zero", "shop/b1"], 0)?;
    assert_eq!(client.spread(FRONTEND, 20).answered_by("b2"), 20);
    run(&stage, &["restore", "shop/b1"], 0)?;
    let kept = client.connect(FRONTEND)?;
    let server = kept.line()?;
    let words = ["connections", "--service", "shop", "--backend", &server, "-o", "wide"];
    assert!(run(&stage, &words, 0)?.contains(FRONTEND));
    assert!(run(&stage, &["get"], 0)?.contains("shop"));
    assert!(run(&stage, &["get", "nodes"], 0)?.contains("n2"));
    assert!(run(&stage, &["describe", "shop"], 0)?.contains(FRONTEND));
    assert!(run(&stage, &["events"], 0)?.contains("shop"));
    run(&stage, &["check"], 0)?;
    run(&stage, &["delete", "shop"], 0)?;
    assert_eq!(client.spread(FRONTEND, 1).errors().len(), 1);
    Ok(())
}

#[test]
fn programs_read_json() -> Result<()> {
    let stage = Stage::weights("json", &[3, 1])?;
    let json = |words: &[&str]| -> Result<Value> { Ok(serde_json::from_str(&run(&stage, words, 0)?)?) };
    assert_eq!(json(&["get", "services", "shop", "-o", "json"])?["metadata"]["name"], "shop");
    assert_eq!(json(&["get", "services", "-o", "json"])?["items"][0]["spec"]["frontends"][0], FRONTEND);
    assert_eq!(json(&["get", "nodes", "-o", "json"])?["items"].as_array().map(Vec::len), Some(2));
    let zero = json(&["zero", "shop/b2", "-o", "json"])?;
    assert_eq!((&zero["state"], &zero["newConnectionsSinceZero"]), (&"zero".into(), &0.into()));
    assert_eq!(json(&["explain", FRONTEND, "-o", "json"])?["verdict"], "steered");
    assert!(json(&["connections", "-o", "json"])?["items"].is_array());
    assert!(json(&["check", "-o", "json"])?.is_object() || json(&["check", "-o", "json"])?.is_array());
    assert!(run(&stage, &["get", "services", "-o", "yaml"], 0)?.contains("name: shop"));
    Ok(())
}

#[test]
fn exit_codes_tell_what_went_wrong() -> Result<()> {
    let stage = Stage::weights("codes", &[1])?;
    let directory = tempfile::tempdir()?;
    let bad = directory.path().join("bad.yaml");
    fs::write(&bad, "kind: Nothing\n")?;
    let bad = bad.to_string_lossy().into_owned();
    // Failed.
    run(&stage, &["get", "services", "none"], 1)?;
    run(&stage, &["zero", "node/none"], 1)?;
    run(&stage, &["delete", "none"], 1)?;
    run(&stage, &["apply", "-f", &bad], 1)?;
    run(&stage, &["apply", "-f", "/no/such/file"], 1)?;
    // Wrong usage.
    run(&stage, &["zero"], 2)?;
    run(&stage, &["zero", "nonsense"], 2)?;
    run(&stage, &["weight", "shop/b1", "many"], 2)?;
    run(&stage, &["weight", "shop/b1", "-1"], 2)?;
    run(&stage, &["no-such-verb"], 2)?;
    // Something stands in the way.
    run(&stage, &["zero", "node/n1"], 4)?;
    run(&stage, &["zero", "node/n1", "--force"], 0)?;
    // Nobody is there to ask.
    run(&stage, &["--socket", "/no/such/socket", "get"], 1)?;
    Ok(())
}
