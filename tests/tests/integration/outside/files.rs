//! Documents from files: applied at the start, watched, and never half.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde_json::json;
use sluice_tests::{Agent, Client, Errno, Server, Service, World, system::eventually};
use tempfile::TempDir;

use crate::stage::{FRONTEND, LIMIT, assert_exact, weighted};

/// A watched directory with one good file.
struct Desk {
    agent: Agent,
    client: Client,
    directory: TempDir,
    _servers: Vec<Server>,
    world: World,
}

impl Desk {
    fn new(label: &str, documents: &[(&str, String)]) -> Result<Self> {
        let world = World::new(label)?;
        let servers =
            (1..=3).map(|n| world.tcp(&format!("10.0.0.{n}:8080"), &format!("b{n}"))).collect::<Result<_>>()?;
        let directory = tempfile::tempdir()?;
        for (name, text) in documents {
            fs::write(directory.path().join(name), text)?;
        }
        let agent = world.agent_with(directory.path())?;
        let client = world.client()?;
        Ok(Self { agent, client, directory, _servers: servers, world })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.file(name), text)?)
    }

    /// Waits until the agent has applied or refused something: its next event of that kind.
    fn wait_for(&self, what: &str, mut done: impl FnMut(&Self) -> bool) -> Result<()> {
        eventually(what, LIMIT, || done(self).then_some(()))
    }

    /// Waits until this many documents were refused.
    fn errors(&self, count: f64) -> Result<()> {
        let labels = [("source", "file")];
        let seen = |desk: &Self| desk.agent.metric("sluice_config_errors_total", &labels).ok().flatten();
        self.wait_for("the problem is counted", |desk| seen(desk).is_some_and(|errors| errors >= count))
    }

    fn steers(&self, shares: &[(&str, f64)]) {
        assert_exact(&self.client.spread(FRONTEND, 200), 100, shares);
    }

    /// Waits until b1 has this weight.
    fn weight(&self, weight: u32) -> Result<()> {
        self.wait_for("the weight is there", |desk| {
            let backend = desk.agent.get("/v1/services/shop/backends/b1");
            backend.is_ok_and(|answer| answer.status == 200 && answer.json()["weight"] == weight)
        })
    }
}

fn shop(weights: &[u32]) -> String {
    weighted(weights).json().to_string()
}

#[test]
fn a_changed_file_is_applied() -> Result<()> {
    let desk = Desk::new("watch", &[("shop.yaml", shop(&[3, 1]))])?;
    desk.steers(&[("b1", 0.75), ("b2", 0.25)]);
    desk.write("shop.yaml", &shop(&[1, 1]))?;
    desk.weight(1)?;
    desk.steers(&[("b1", 0.5), ("b2", 0.5)]);
    // As careful programs do it: a new file in the place of the old.
    desk.write(".shop.new", &shop(&[9, 1]))?;
    fs::rename(desk.file(".shop.new"), desk.file("shop.yaml"))?;
    desk.weight(9)?;
    desk.steers(&[("b1", 0.9), ("b2", 0.1)]);
    // More files, several documents in one, JSON too.
    let more = [Service::new("a", "10.96.1.1:80"), Service::new("b", "10.96.1.2:80")];
    let more: Vec<String> =
        more.iter().map(|s| s.clone().backend("x", "10.0.0.3:8080", 1).json().to_string()).collect();
    desk.write("more.json", &more.join("\n"))?;
    desk.wait_for("both are there", |desk| {
        ["10.96.1.1:80", "10.96.1.2:80"].iter().all(|to| desk.client.spread(to, 1).answered_by("b3") == 1)
    })?;
    // The kernel has it before the API shows it.
    desk.wait_for("both are shown", |desk| desk.agent.get("/v1/services/b").is_ok_and(|answer| answer.status == 200))?;
    // A file that goes takes what it brought, and nothing else.
    fs::remove_file(desk.file("more.json"))?;
    desk.wait_for("both are gone", |desk| desk.agent.get("/v1/services/b").is_ok_and(|answer| answer.status == 404))?;
    desk.agent.get("/v1/services/a")?.expect_status(404);
    assert_eq!(desk.client.connect("10.96.1.1:80").unwrap_err(), Errno::ENETUNREACH);
    desk.steers(&[("b1", 0.9), ("b2", 0.1)]);
    Ok(())
}

#[test]
fn a_bad_file_changes_nothing_and_is_reported() -> Result<()> {
    let desk = Desk::new("bad", &[("shop.yaml", shop(&[3, 1]))])?;
    let whole = shop(&[1, 3]);
    let thief = Service::new("thief", FRONTEND).backend("x", "10.0.0.3:8080", 1).json().to_string();
    let mut unknown = weighted(&[1, 3]).json();
    unknown["spec"]["weigth"] = json!(1);
    let huge = format!("{whole}\n# {}\n", "x".repeat(5 << 20));
    let bad: [(&str, String); 10] = [
        ("half", whole[..whole.len() / 2].to_owned()),
        ("empty", String::new()),
        ("only a comment", "# nothing here\n".to_owned()),
        ("another kind", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shop}\ndata: {}\n".to_owned()),
        ("a list", "- 1\n- 2\n".to_owned()),
        ("no text", "\u{0}\u{1}".to_owned()),
        ("an unknown field", unknown.to_string()),
        ("negative", whole.replace("\"weight\":1", "\"weight\":-1")),
        ("5 MB", huge),
        ("good and bad", format!("{whole}\n---\n{{\"kind\": \"Nothing\"}}\n")),
    ];
    for (number, (what, text)) in bad.iter().enumerate() {
        desk.write("shop.yaml", text)?;
        desk.errors(number as f64 + 1.0)?;
        println!("{what}: {}", desk.agent.log().lines().rfind(|line| line.contains("ERROR")).unwrap_or_default());
        desk.steers(&[("b1", 0.75), ("b2", 0.25)]);
        // And good again, so that the next is a change.
        let times = number as u32 + 2;
        desk.write("shop.yaml", &shop(&[3 * times, times]))?;
        desk.weight(3 * times)?;
    }
    assert!(desk.agent.log().contains("shop.yaml"), "the log names the file");
    // A second file that wants what is taken: it is refused, the first stays.
    desk.write("thief.yaml", &thief)?;
    desk.errors(bad.len() as f64 + 1.0)?;
    desk.agent.get("/v1/services/thief")?.expect_status(404);
    desk.steers(&[("b1", 0.75), ("b2", 0.25)]);
    // Names that are no documents are left alone.
    desk.write("notes.txt", "buy milk")?;
    desk.write(".hidden.yaml", "[")?;
    fs::create_dir(desk.file("sub"))?;
    fs::write(desk.file("sub").join("x.yaml"), "[")?;
    desk.write("shop.yaml", &shop(&[7, 1]))?;
    desk.weight(7)?;
    let labels = [("source", "file")];
    let errors = desk.agent.metric("sluice_config_errors_total", &labels)?;
    assert_eq!(errors, Some(bad.len() as f64 + 1.0), "{}", desk.agent.log());
    Ok(())
}

#[test]
fn a_bad_file_does_not_keep_an_agent_from_starting() -> Result<()> {
    let mut desk = Desk::new("bad-start", &[("shop.yaml", shop(&[3, 1])), ("zzz.yaml", "spec: [".to_owned())])?;
    desk.steers(&[("b1", 0.75), ("b2", 0.25)]);
    // Broken while no agent looks: the last good state goes on.
    desk.agent.kill()?;
    desk.write("shop.yaml", "kind: [")?;
    desk.agent.start()?;
    desk.steers(&[("b1", 0.75), ("b2", 0.25)]);
    desk.errors(1.0)?;
    desk.write("shop.yaml", &shop(&[1, 1]))?;
    desk.weight(1)?;
    desk.steers(&[("b1", 0.5), ("b2", 0.5)]);
    Ok(())
}

#[test]
fn what_the_api_changed_stays_until_the_file_changes() -> Result<()> {
    let mut desk = Desk::new("between", &[("shop.yaml", shop(&[1, 1]))])?;
    desk.agent.patch("/v1/services/shop/backends/b1", &json!({"weight": 4}))?.expect_status(200);
    desk.agent.post("/v1/nodes/n2/zero", &json!({"reason": "testing"}))?.expect_status(200);
    desk.agent.kill()?;
    desk.agent.start()?;
    desk.weight(4)?;
    desk.steers(&[("b1", 1.0)]);
    // Touched, or written with the same content, it has not changed.
    desk.write("shop.yaml", &shop(&[1, 1]))?;
    desk.write("other.yaml", &Service::new("other", "10.96.1.1:80").json().to_string())?;
    desk.wait_for("the other is there", |desk| desk.agent.get("/v1/services/other").is_ok_and(|a| a.status == 200))?;
    desk.weight(4)?;
    // A new content is applied, and the zero outlives it.
    desk.write("shop.yaml", &shop(&[3, 1]))?;
    desk.weight(3)?;
    desk.steers(&[("b1", 1.0)]);
    desk.agent.post("/v1/nodes/n2/restore", &json!({}))?.expect_status(200);
    desk.steers(&[("b1", 0.75), ("b2", 0.25)]);
    Ok(())
}

#[test]
fn a_change_while_no_agent_runs_is_seen_by_the_next() -> Result<()> {
    let documents =
        [("shop.yaml", shop(&[1, 1])), ("other.yaml", Service::new("other", "10.96.1.1:80").json().to_string())];
    let mut desk = Desk::new("asleep", &documents)?;
    desk.agent.get("/v1/services/other")?.expect_status(200);
    desk.agent.terminate()?;
    desk.write("shop.yaml", &shop(&[3, 1]))?;
    fs::remove_file(desk.file("other.yaml"))?;
    desk.steers(&[("b1", 0.5), ("b2", 0.5)]);
    desk.agent.start()?;
    desk.steers(&[("b1", 0.75), ("b2", 0.25)]);
    desk.wait_for("what the other file brought is gone", |desk| {
        desk.agent.get("/v1/services/other").is_ok_and(|answer| answer.status == 404)
    })
}

#[test]
fn a_directory_may_be_swapped_by_one_link() -> Result<()> {
    // As Kubernetes mounts a ConfigMap.
    let mut desk = Desk::new("swap", &[])?;
    let root = desk.directory.path().join("mount");
    let version = |name: &str, weights: &[u32]| -> Result<PathBuf> {
        let directory = root.join(name);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("shop.yaml"), shop(weights))?;
        Ok(directory)
    };
    let swap = |to: &Path| -> Result<()> {
        symlink(to, root.join("..tmp"))?;
        Ok(fs::rename(root.join("..tmp"), root.join("..data"))?)
    };
    swap(&version("..1", &[3, 1])?)?;
    symlink("..data/shop.yaml", root.join("shop.yaml"))?;
    desk.agent.terminate()?;
    desk.agent = desk.world.agent_with(&root)?;
    desk.steers(&[("b1", 0.75), ("b2", 0.25)]);
    swap(&version("..2", &[1, 1])?)?;
    fs::remove_dir_all(root.join("..1"))?;
    desk.weight(1)?;
    desk.steers(&[("b1", 0.5), ("b2", 0.5)]);
    Ok(())
}

#[test]
fn events_tell_what_came_from_files() -> Result<()> {
    let desk = Desk::new("events", &[("shop.yaml", shop(&[3, 1]))])?;
    let mut lines = desk.agent.endpoint().stream("/v1/events", &sluice_tests::http::Request::new())?;
    desk.write("shop.yaml", "kind: [")?;
    let failed =
        lines.find_map(|line| line.ok().filter(|line| line.starts_with("data:") && line.contains("shop.yaml")));
    let event: serde_json::Value = serde_json::from_str(failed.expect("an event").trim_start_matches("data:"))?;
    assert!(event["message"].as_str().is_some_and(|message| message.contains("shop.yaml")), "{event}");
    Ok(())
}

#[test]
fn a_directory_that_is_suddenly_empty_takes_nothing_away_until_that_is_accepted() -> Result<()> {
    let documents = [
        ("shop.yaml", shop(&[1, 1])),
        ("a.yaml", Service::new("a", "10.96.1.1:80").backend("x", "10.0.0.3:8080", 1).json().to_string()),
    ];
    let mut desk = Desk::new("emptied", &documents)?;
    desk.agent.terminate()?;
    // The usual brake.
    let first = desk.agent;
    desk.agent = first.sibling().apply(desk.directory.path());
    desk.agent.start()?;
    for (name, _) in &documents {
        fs::remove_file(desk.file(name))?;
    }
    desk.wait_for("it is held", |desk| desk.agent.get("/readyz").is_ok_and(|answer| answer.status == 503))?;
    let why = desk.agent.get("/readyz")?.text();
    assert!(why.contains("sluice accept-shrink") && why.contains("2 of 2 services"), "{why}");
    desk.steers(&[("b1", 0.5), ("b2", 0.5)]);
    let service = desk.agent.get("/v1/services/shop")?.expect_status(200).json();
    let origin = &service["status"]["origin"];
    assert!(origin["file"].as_str().is_some_and(|file| file.ends_with("/shop.yaml")), "{service}");
    assert!(origin["problem"].as_str().is_some_and(|why| why.contains("held")), "{service}");
    let accepted = desk.agent.cli(&["accept-shrink"])?;
    assert!(accepted.status.success(), "{accepted:?}");
    desk.agent.get("/v1/services/shop")?.expect_status(404);
    desk.agent.get("/readyz")?.expect_status(200);
    assert_eq!(desk.agent.cli(&["accept-shrink"])?.status.code(), Some(4), "nothing is held any more");
    // Before the first one takes everything away.
    desk.agent.kill()?;
    Ok(())
}

#[test]
fn a_change_to_what_a_file_brought_says_what_becomes_of_it() -> Result<()> {
    let desk = Desk::new("edited", &[("shop.yaml", shop(&[1, 1]))])?;
    let patched = desk.agent.patch("/v1/services/shop/backends/b1", &json!({"weight": 3}))?.expect_status(200);
    assert!(
        patched.header("warning").is_some_and(|text| text.contains("shop.yaml")),
        "{:?}",
        patched.header("warning")
    );
    let service = desk.agent.get("/v1/services/shop")?.expect_status(200).json();
    assert_eq!(service["status"]["origin"]["edited"], true, "{service}");
    let deleted = desk.agent.cli(&["delete", "shop"])?;
    let said = String::from_utf8_lossy(&deleted.stderr).into_owned();
    assert!(deleted.status.success() && said.contains("stays deleted until"), "{said}");
    Ok(())
}

#[test]
fn a_name_that_is_no_text_keeps_no_other_file_from_what_it_asks_for() -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let desk = Desk::new("odd-name", &[("shop.yaml", shop(&[1, 1]))])?;
    let odd = desk.directory.path().join(std::ffi::OsStr::from_bytes(b"odd\xff.yaml"));
    let forged = desk.file("odd\nERROR forged.yaml");
    fs::write(&odd, "nothing")?;
    fs::write(&forged, "nothing")?;
    desk.errors(2.0)?;
    fs::remove_file(&odd)?;
    fs::remove_file(&forged)?;
    fs::remove_file(desk.file("shop.yaml"))?;
    desk.wait_for("what the other file brought is gone", |desk| {
        desk.agent.get("/v1/services/shop").is_ok_and(|answer| answer.status == 404)
    })?;
    assert!(desk.agent.log().lines().all(|line| !line.starts_with("ERROR forged")), "{}", desk.agent.log());
    Ok(())
}
