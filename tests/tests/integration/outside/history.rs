//! Who changed what, and the way back from it.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::stage::{FRONTEND, Stage};

/// A verb that succeeds: what it printed.
fn run(stage: &Stage, words: &[&str]) -> Result<String> {
    let output = stage.agent.cli(words)?;
    let (printed, said) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    anyhow::ensure!(output.status.success(), "sluice {}: {said}", words.join(" "));
    Ok(printed)
}

fn history(stage: &Stage, words: &[&str]) -> Result<Vec<Value>> {
    let listed: Value = serde_json::from_str(&run(stage, &[&["history", "-o", "json"], words].concat())?)?;
    listed["items"].as_array().cloned().context("there are items")
}

fn weight(stage: &Stage) -> Result<Value> {
    Ok(stage.agent.get("/v1/services/shop/backends/b1")?.expect_status(200).json()["weight"].clone())
}

#[test]
fn what_somebody_changed_is_listed_and_can_be_undone() -> Result<()> {
    let mut stage = Stage::weights("history", &[1, 1])?;
    let client = stage.client()?;
    run(&stage, &["weight", "shop/b1", "7"])?;
    run(&stage, &["zero", "shop/b2", "--reason", "upgrade"])?;

    let listed = history(&stage, &[])?;
    let objects: Vec<_> = listed.iter().filter_map(|entry| entry["object"].as_str()).collect();
    assert_eq!(objects[..2], ["shop/b2", "shop/b1"]);
    assert!(listed[0]["by"].as_str().is_some_and(|by| by.contains("user ") && by.contains("process ")), "{listed:?}");
    let weighted = listed[1]["change"].to_string();
    let shown = run(&stage, &["history", "service/shop", "--limit", "2"])?;
    assert!(shown.contains(&weighted) && shown.contains("upgrade") && shown.lines().count() == 4, "{shown}");
    assert!(shown.lines().filter(|line| line.len() > 80).count() <= 2, "{shown}");

    // A dry run shows it, and what is undone is what was: the document without the zero that came later, and the zero.
    assert!(run(&stage, &["undo", &weighted, "--dry-run"])?.contains("service/shop is as it was"));
    assert_eq!(weight(&stage)?, 7);
    run(&stage, &["undo", &weighted])?;
    assert_eq!(weight(&stage)?, 1);
    assert_eq!(client.spread(FRONTEND, 4).answered_by("b1"), 4, "the zero holds");
    let zeroed = listed[0]["change"].to_string();
    assert!(run(&stage, &["undo", &zeroed])?.contains("shop/b2 is restored"));
    assert_eq!(client.spread(FRONTEND, 4).answered_by("b2"), 2);

    // Once more is refused, and says what to do: somebody has changed it since.
    let refused = stage.agent.cli(&["undo", &zeroed])?;
    let said = String::from_utf8(refused.stderr)?;
    assert!(refused.status.code() == Some(4) && said.contains("sluice history shop/b2"), "{said}");
    assert_eq!(stage.agent.cli(&["undo", "4711"])?.status.code(), Some(1));

    // An undo can be undone, by whoever comes later, with another agent: it was the last change.
    stage.agent.kill()?;
    stage.agent.start()?;
    let last = &history(&stage, &["--limit", "1"])?[0];
    let by = last["by"].as_str().unwrap_or_default();
    assert!(by.contains(&format!("to undo change {zeroed}")) && last["undoable"] == true, "{last}");
    run(&stage, &["undo"])?;
    assert_eq!(client.spread(FRONTEND, 4).answered_by("b1"), 4);
    let status = stage.backend("shop", "b2")?;
    assert_eq!(status["reason"], "upgrade", "{status}");

    // A service that was deleted comes back with the zeros of its backends.
    run(&stage, &["delete", "shop"])?;
    run(&stage, &["undo"])?;
    assert_eq!(client.spread(FRONTEND, 4).answered_by("b1"), 4);
    let shown = stage.agent.post("/v1/history/x/undo", &json!({}))?;
    assert_eq!(shown.status, 404, "{}", shown.text());

    // What the undo takes away is weighed as any change is.
    run(&stage, &["restore", "shop/b2"])?;
    stage.agent.patch("/v1/services/shop", &json!({"spec": {"minReadyPercent": 60}}))?.expect_status(200);
    let restored = history(&stage, &["shop/b2", "--limit", "1"])?[0]["change"].to_string();
    assert_eq!(stage.agent.cli(&["undo", &restored])?.status.code(), Some(4), "too little would be open");
    run(&stage, &["undo", &restored, "--force"])?;
    assert_eq!(client.spread(FRONTEND, 4).answered_by("b1"), 4);
    Ok(())
}
