//! What an agent makes of what another has left: zeros, documents, stores.

use std::{fs, thread, time::Duration};

use anyhow::Result;
use serde_json::json;
use sluice_tests::{
    Cgroup, Client, Load, Service, World,
    system::{eventually, now, rounds},
};

use crate::{
    restart::{more, pause},
    stage::{FRONTEND, LIMIT, Stage, assert_all_answered, assert_exact, path, weighted},
};

#[test]
fn a_zero_is_kept_with_all_that_was_said_about_it() -> Result<()> {
    let mut stage = Stage::weights("kept", &[1, 1])?;
    let client = stage.client()?;
    let said = json!({"reason": "disk is failing", "owner": "ops", "expires": "10h"});
    let answer = stage.agent.post("/v1/nodes/n1/zero", &said)?.expect_status(200).json();
    let kept = client.connect(FRONTEND)?;
    assert_eq!(kept.line()?, "b2");
    for graceful in [false, true] {
        if graceful {
            assert!(stage.agent.terminate()?.success());
        } else {
            stage.agent.kill()?;
        }
        stage.agent.start()?;
        let node = stage.agent.get("/v1/nodes/n1")?.expect_status(200).json();
        for field in ["reason", "owner", "expiresAt", "zeroedAt", "programmedInMicroseconds"] {
            assert_eq!(node["status"][field], answer[field], "{field}: {node}");
        }
        assert_eq!((&node["status"]["state"], &node["status"]["newConnectionsSinceZero"]), (&json!("zero"), &json!(0)));
        assert_eq!(client.spread(FRONTEND, 20).answered_by("b2"), 20);
        assert_eq!(kept.exchange("hello")?, "b2: hello");
    }
    stage.restore("node/n1")?;
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.5), ("b2", 0.5)]);
    Ok(())
}

#[test]
fn a_zero_expires_while_no_agent_runs() -> Result<()> {
    let mut stage = Stage::weights("late", &[1, 1])?;
    let client = stage.client()?;
    stage.agent.post("/v1/nodes/n1/zero", &json!({"expires": "1s"}))?.expect_status(200);
    stage.agent.kill()?;
    // Nobody is there to give it back.
    thread::sleep(Duration::from_millis(1200));
    assert_eq!(client.spread(FRONTEND, 20).answered_by("b2"), 20);
    stage.agent.start()?;
    eventually("it is ready again", LIMIT, || (stage.backend("shop", "b1").ok()?["state"] == "ready").then_some(()))?;
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.5), ("b2", 0.5)]);
    Ok(())
}

#[test]
fn killed_in_the_middle_of_a_request_the_agent_and_the_kernel_agree() -> Result<()> {
    let mut stage = Stage::weights("middle", &[1, 1])?;
    let client = stage.client()?;
    for round in 0..rounds(12) {
        let (endpoint, action) = (stage.agent.endpoint(), if round % 3 == 2 { "restore" } else { "zero" });
        let request = thread::spawn(move || {
            let body = sluice_tests::http::Request::json(&json!({}));
            // The agent may be dead before it answers.
            endpoint.request("POST", &path("node/n1", action), &body).map(|response| response.status).ok()
        });
        thread::sleep(Duration::from_micros(400 * round));
        stage.agent.kill()?;
        let answered = request.join().unwrap() == Some(200);
        let without = client.spread(FRONTEND, 20);
        assert_all_answered(&without);
        stage.agent.start()?;
        let state = stage.backend("shop", "b1")?["state"].clone();
        let with = client.spread(FRONTEND, 20);
        assert_all_answered(&with);
        let reached = (without.answered_by("b1"), with.answered_by("b1"));
        let expected = if state == "zero" { 0 } else { 10 };
        assert_eq!(reached.1, expected, "round {round}, {action}: {state}, answered: {answered}");
        if answered {
            let wanted = if action == "zero" { "zero" } else { "ready" };
            assert_eq!(state, wanted, "round {round}: an answer was given");
        }
        // What was in force while there was no agent is what the next agent finds.
        assert!(state != "ready" || action == "restore" || reached.0 == 10, "round {round}: a zero was lost");
    }
    Ok(())
}

#[test]
fn killed_while_documents_change_every_state_is_whole() -> Result<()> {
    let mut stage = Stage::weights("prefix", &[1, 1, 1, 1])?;
    let client = stage.client()?;
    let load = client.begin(&Load::connects(FRONTEND).threads(2).pause(pause()));
    for round in 0..rounds(6) {
        let endpoint = stage.agent.endpoint();
        let writer = thread::spawn(move || {
            // Members come and go, groups too, until nobody answers any more.
            for number in 0_u32.. {
                let weights = [number % 3, 1 + number % 5, number % 2, 1];
                let mut service = weighted(&weights[..2 + number as usize % 3]);
                if number % 4 == 0 {
                    service = service.set("balance", "random");
                }
                let body = sluice_tests::http::Request::json(&service.json());
                match endpoint.request("PUT", "/v1/services/shop", &body) {
                    Ok(response) => assert_eq!(response.status, 200, "{}", response.text()),
                    Err(_) => return number,
                }
            }
            0
        });
        more(std::slice::from_ref(&load))?;
        thread::sleep(Duration::from_millis(7 * round));
        stage.agent.kill()?;
        println!("round {round}: {} documents", writer.join().unwrap());
        stage.agent.start()?;
        let explained = stage.agent.get(&format!("/v1/explain?to={FRONTEND}"))?.expect_status(200).json();
        let mut candidates: Vec<&str> =
            explained["candidates"].as_array().unwrap().iter().map(|one| one["backend"].as_str().unwrap()).collect();
        candidates.sort_unstable();
        let dialled = stage.client()?.spread(FRONTEND, 200);
        assert_all_answered(&dialled);
        assert_eq!(dialled.by_server().keys().collect::<Vec<_>>(), candidates, "round {round}: {explained}");
    }
    assert_all_answered(&load.stop());
    Ok(())
}

#[test]
fn a_stopped_agent_leaves_steering_as_it_is() -> Result<()> {
    let mut stage = Stage::weights("stop", &[3, 1])?;
    let client = stage.client()?;
    stage.zero("shop/b2")?;
    let status = stage.agent.terminate()?;
    assert!(status.success(), "{status}");
    assert_eq!(client.spread(FRONTEND, 20).answered_by("b1"), 20);
    assert!(!stage.agent.socket().exists(), "its socket is gone");
    let error = stage.agent.cli(&["get", "services"])?;
    assert_eq!(error.status.code(), Some(1), "nobody answers: {error:?}");
    stage.agent.start()?;
    stage.restore("shop/b2")?;
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.75), ("b2", 0.25)]);
    Ok(())
}

#[test]
fn a_lost_store_is_made_anew_from_files_without_a_gap() -> Result<()> {
    let world = World::new("lost-store")?;
    let (_one, _two) = (world.tcp("10.0.0.1:8080", "b1")?, world.tcp("10.0.0.2:8080", "b2")?);
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("shop.json"), weighted(&[1, 1]).json().to_string())?;
    let mut agent = world.agent_with(directory.path())?;
    let client = world.client()?;
    let load = client.begin(&Load::connects(FRONTEND).threads(2).pause(pause()));
    for _ in 0..3 {
        more(std::slice::from_ref(&load))?;
        agent.kill()?;
        fs::remove_dir_all(agent.state_dir())?;
        agent.start()?;
    }
    more(std::slice::from_ref(&load))?;
    let report = load.stop();
    assert_all_answered(&report);
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.5), ("b2", 0.5)]);
    Ok(())
}

#[test]
fn another_store_does_not_take_over_the_tables() -> Result<()> {
    let mut stage = Stage::weights("other-store", &[1, 1])?;
    let client = stage.client()?;
    // A store with a service of its own, from an agent elsewhere.
    let elsewhere = World::new("elsewhere")?;
    let mut other = elsewhere.agent()?;
    other.start()?;
    let service = Service::new("theirs", "10.96.0.77:80").backend("x", "10.0.0.7:1", 1);
    other.put("/v1/services/theirs", &service.json())?.expect_status(201);
    other.kill()?;
    stage.agent.kill()?;
    let mine = stage.agent.state_dir();
    let aside = mine.with_extension("aside");
    fs::rename(&mine, &aside)?;
    copy(&other.state_dir(), &mine)?;
    stage.agent.spawn()?;
    let status = stage.agent.wait(LIMIT)?;
    assert_eq!(status.code(), Some(1));
    assert!(stage.agent.log().contains("--state-dir"), "{}", stage.agent.log());
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.5), ("b2", 0.5)]);
    fs::remove_dir_all(&mine)?;
    fs::rename(&aside, &mine)?;
    stage.agent.start()?;
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.5), ("b2", 0.5)]);
    Ok(())
}

#[test]
fn a_store_that_was_emptied_stops_the_start_until_that_is_accepted() -> Result<()> {
    let mut stage = Stage::weights("emptied", &[1, 1])?;
    let client = stage.client()?;
    stage.zero("node/n1")?;
    stage.agent.kill()?;
    let mine = stage.agent.state_dir();
    let aside = mine.with_extension("aside");
    fs::rename(&mine, &aside)?;
    stage.agent.spawn()?;
    assert_eq!(stage.agent.wait(LIMIT)?.code(), Some(1));
    let log = stage.agent.log();
    for word in ["--state-dir", "--accept-empty", "2 backends", "1 zero"] {
        assert!(log.contains(word), "{word} is not in {log}");
    }
    assert_eq!(client.spread(FRONTEND, 20).answered_by("b2"), 20, "steering goes on, and so does the zero");
    // The right one is taken as if nothing had been.
    fs::remove_dir_all(&mine)?;
    fs::rename(&aside, &mine)?;
    stage.agent.start()?;
    assert_eq!(stage.backend("shop", "b1")?["state"], "zero");
    stage.agent.kill()?;
    fs::remove_dir_all(&mine)?;
    let mut anew = stage.agent.sibling().argument("--accept-empty");
    anew.start()?;
    let services = anew.get("/v1/services")?.expect_status(200).json();
    assert_eq!(services["items"], json!([]));
    anew.kill()?;
    // And from then on it is the store of these tables.
    stage.agent.start()?;
    Ok(())
}

#[test]
fn an_older_copy_of_the_store_stops_the_start_until_that_is_accepted() -> Result<()> {
    let mut stage = Stage::weights("older", &[1, 1])?;
    let client = stage.client()?;
    stage.agent.kill()?;
    let mine = stage.agent.state_dir();
    let backup = mine.with_extension("backup");
    copy(&mine, &backup)?;
    stage.agent.start()?;
    stage.agent.patch("/v1/services/shop/backends/b1", &json!({"weight": 0}))?.expect_status(200);
    stage.agent.kill()?;
    fs::remove_dir_all(&mine)?;
    copy(&backup, &mine)?;
    stage.agent.spawn()?;
    assert_eq!(stage.agent.wait(LIMIT)?.code(), Some(1));
    assert!(stage.agent.log().contains("older copy"), "{}", stage.agent.log());
    assert_eq!(client.spread(FRONTEND, 20).answered_by("b2"), 20, "steering goes on as it was");
    let mut anew = stage.agent.sibling().argument("--accept-older");
    anew.start()?;
    assert_eq!(client.spread(FRONTEND, 20).answered_by("b2"), 10);
    anew.kill()?;
    // From then on it is the store of these tables.
    stage.agent.start()?;
    Ok(())
}

#[test]
fn a_record_that_says_something_else_stops_the_start_and_the_rest_is_kept() -> Result<()> {
    let mut stage = Stage::weights("flipped", &[1, 1])?;
    let client = stage.client()?;
    stage.zero("node/n1")?;
    assert!(stage.agent.terminate()?.success());
    let store = stage.agent.state_dir().join("sluice.redb");
    let mut bytes = fs::read(&store)?;
    let word = b"\"zero\":{";
    let places: Vec<_> = (0..bytes.len() - word.len()).filter(|at| bytes[*at..].starts_with(word)).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at + 4] = b'n';
    }
    fs::write(&store, bytes)?;
    stage.agent.spawn()?;
    assert_eq!(stage.agent.wait(LIMIT)?.code(), Some(1));
    assert!(stage.agent.log().contains("--accept-damage"), "{}", stage.agent.log());
    assert_eq!(client.spread(FRONTEND, 20).answered_by("b2"), 20);
    let mut rest = stage.agent.sibling().argument("--accept-damage");
    rest.start()?;
    let node = rest.get("/v1/nodes/n1")?.expect_status(200).json();
    assert_eq!(node["status"]["state"], "zero", "{node}");
    assert_eq!(client.spread(FRONTEND, 20).answered_by("b2"), 20);
    rest.kill()?;
    stage.agent.start()?;
    Ok(())
}

#[test]
fn programs_are_not_taken_to_another_cgroup_until_that_is_accepted() -> Result<()> {
    let mut stage = Stage::weights("stays", &[1, 1])?;
    let client = stage.client()?;
    let elsewhere = Cgroup::new("moved")?;
    let client_there = Client::start(Some(&elsewhere), Some(&stage.world.namespace))?;
    let even = [("b1", 0.5), ("b2", 0.5)];
    stage.agent.kill()?;
    let mut other = stage.agent.sibling().steering(elsewhere.path());
    other.spawn()?;
    assert_eq!(other.wait(LIMIT)?.code(), Some(1));
    let log = other.log();
    assert!(log.contains("--cgroup") && log.contains("--accept-move"), "{log}");
    assert_exact(&client.spread(FRONTEND, 20), 20, &even);
    assert_eq!(client_there.spread(FRONTEND, 4).answered_by("b1"), 0);
    let mut moved = other.argument("--accept-move");
    moved.start()?;
    assert_exact(&client_there.spread(FRONTEND, 20), 20, &even);
    assert_eq!(client.spread(FRONTEND, 4).answered_by("b1"), 0);
    Ok(())
}

fn copy(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

#[test]
fn programs_that_were_started_before_go_on() -> Result<()> {
    // A process that connects all the time does not notice that agents come and go, nor that steering begins.
    let world = World::new("before")?;
    let _server = world.tcp("10.0.0.1:8080", "b1")?;
    let _original = world.tcp(FRONTEND, "original")?;
    let client = world.client()?;
    let load = client.begin(&Load::connects(FRONTEND).threads(2).pause(pause()));
    more(std::slice::from_ref(&load))?;
    let mut agent = world.agent()?;
    agent.start()?;
    agent.put("/v1/services/shop", &weighted(&[1]).json())?.expect_status(201);
    let steered = now();
    more(std::slice::from_ref(&load))?;
    let ended = now();
    agent.delete("/v1/services/shop")?.expect_status(204);
    let untouched = now();
    more(std::slice::from_ref(&load))?;
    let report = load.stop();
    assert_all_answered(&report);
    let between = |from: Duration, to: Duration| -> Vec<&str> {
        let within = move |micros: u64| (from.as_micros()..to.as_micros()).contains(&u128::from(micros));
        let some = report.attempts.iter().filter(|attempt| within(attempt.start_micros));
        some.filter_map(|attempt| attempt.server.as_deref()).collect()
    };
    let during = between(steered, ended);
    assert!(!during.is_empty() && during.iter().all(|server| *server == "b1"), "{during:?}");
    let after = between(untouched, now());
    assert!(!after.is_empty() && after.iter().all(|server| *server == "original"), "{after:?}");
    Ok(())
}
