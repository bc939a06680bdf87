//! Who may do what over TLS, by tokens and by the group of the socket; and who is said to have done it.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, Result};
use serde_json::Value;
use sluice_tests::{
    Namespace,
    agent::{free_port, program},
    certificates::{Authority, Certificate},
    http::{Endpoint, Request},
};

use crate::stage::{Stage, weighted};

const TOKEN: &str = "token-of-16-or-more";
/// No group of any host that this runs on.
const GROUP: u32 = 47_110;
const NOBODY: u32 = 65_534;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A verb over TLS.
fn over_tls(port: u16, ca: &Path, own: Option<&Certificate>, words: &[&str]) -> Result<Output> {
    let mut command = Command::new(program()?);
    command.args(words).env("SLUICE_SERVER", format!("https://localhost:{port}")).env("SLUICE_CA", ca);
    if let Some(Certificate { chain, key }) = own {
        command.arg("--cert").arg(chain).arg("--key").arg(key);
    }
    command.output().context("running sluice")
}

/// Who did what to an object, the oldest first.
fn authors(stage: &Stage, object: &str) -> Result<Vec<String>> {
    let events = stage.agent.get("/v1/events?follow=false&after=0")?.expect_status(200).json();
    let items = events["items"].as_array().context("items")?.iter().filter(|event| event["object"] == object);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(items.filter(|event| event["by"].is_string()).map(|event| text(&event["by"])).collect())
}

#[test]
fn certificates_and_tokens_have_roles_and_names() -> Result<()> {
    let authority = Authority::new()?;
    let own = authority.issue("agent", &["localhost"])?;
    let (ops, viewer) = (authority.issue("ops", &[])?, authority.issue("viewer", &[])?);
    let tokens = authority.file().with_file_name("tokens");
    fs::write(&tokens, format!("ann {TOKEN}\n"))?;
    let port = free_port(&Namespace::host()?)?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut stage = Stage::with("roles", |agent| {
        let agent = agent.listen(&format!("127.0.0.1:{port}")).argument("--tls-operators").argument("ops");
        let files = [("cert", &own.chain), ("key", &own.key), ("client-ca", &authority.file())];
        let agent = files
            .into_iter()
            .fold(agent, |agent, (flag, file)| agent.argument(&format!("--tls-{flag}")).argument(&text(file)));
        agent.argument("--token-file").argument(&text(&tokens))
    })?;
    stage.put(&weighted(&[1, 1]))?;
    let ca = authority.file();
    let run = |own: Option<&Certificate>, words: &[&str]| over_tls(port, &ca, own, words);

    let strange = run(None, &["get"])?;
    assert!(strange.status.code() == Some(1) && said(&strange).contains("show a certificate"), "{}", said(&strange));
    assert_eq!(run(Some(&viewer), &["get"])?.status.code(), Some(0));
    let refused = run(Some(&viewer), &["weight", "shop/b1", "9"])?;
    let wanted = "certificate CN=viewer from 127.0.0.1 has the role read, and this needs operate";
    assert!(refused.status.code() == Some(1) && said(&refused).contains(wanted), "{}", said(&refused));
    let done = run(Some(&ops), &["weight", "shop/b1", "2"])?;
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    let done = run(None, &["weight", "shop/b1", "3", "--token-file", &text(&tokens)])?;
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    let done = run(Some(&ops), &["drain", "shop/b2", "--reason", "disks"])?;
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));

    // The change, the drain, the log and the next agent name who asked.
    let root = "user root (0), process ";
    let by = authors(&stage, "shop/b1")?;
    assert_eq!(by, ["certificate CN=ops from 127.0.0.1", "token ann from 127.0.0.1"]);
    let by = authors(&stage, "service/shop")?;
    assert!(by.len() == 1 && by[0].starts_with(root), "{by:?}");
    let drain = &stage.agent.get("/v1/operations")?.json()["items"][0];
    assert_eq!(drain["by"], "certificate CN=ops from 127.0.0.1", "{drain}");
    assert!(stage.agent.log().contains("token ann from 127.0.0.1"), "{}", stage.agent.log());
    stage.agent.kill()?;
    stage.agent.start()?;
    let by = authors(&stage, "shop/b1")?;
    assert_eq!(by, ["certificate CN=ops from 127.0.0.1", "token ann from 127.0.0.1"]);
    assert_eq!(authors(&stage, "shop/b2")?[0], "certificate CN=ops from 127.0.0.1");
    let shown = stage.agent.cli(&["events"])?;
    assert!(String::from_utf8_lossy(&shown.stdout).contains("[token ann from 127.0.0.1]"));

    // Without TLS there is no answer, and another authority is believed by neither side.
    let plain = stage.agent.cli(&["get", "--server", &format!("http://localhost:{port}")])?;
    assert!(plain.status.code() == Some(1) && said(&plain).contains("is it https://?"), "{}", said(&plain));
    let other = Authority::new()?;
    let doubted = over_tls(port, &other.file(), Some(&ops), &["get"])?;
    assert!(doubted.status.code() == Some(1) && said(&doubted).contains("do not trust"), "{}", said(&doubted));
    assert_ne!(run(Some(&other.issue("ops", &[])?), &["get"])?.status.code(), Some(0));
    // Another certificate holds from its next connection on.
    other.issue_to(&own.chain, &own.key, "agent", &["localhost"])?;
    assert_ne!(run(Some(&ops), &["get"])?.status.code(), Some(0));
    assert_eq!(over_tls(port, &other.file(), Some(&ops), &["get"])?.status.code(), Some(0));
    Ok(())
}

#[test]
fn reads_may_need_a_token_too() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (operate, read) = (directory.path().join("operate"), directory.path().join("read"));
    fs::write(&operate, TOKEN)?;
    fs::write(&read, format!("{TOKEN}-to-read"))?;
    let port = free_port(&Namespace::host()?)?;
    let stage = Stage::with("readers", |agent| {
        let agent = agent.listen(&format!("127.0.0.1:{port}")).argument("--token-file");
        let agent = agent.argument(&operate.to_string_lossy()).argument("--read-token-file");
        agent.argument(&read.to_string_lossy())
    })?;
    stage.put(&weighted(&[1]))?;
    let tcp = Endpoint::Tcp(([127, 0, 0, 1], port).into());
    let ask = |method: &str, path: &str, token: &str| {
        let request = Request::new().header("authorization", &format!("Bearer {token}"));
        anyhow::Ok(tcp.request(method, path, &request)?.status)
    };
    for open in ["/healthz", "/readyz", "/metrics"] {
        tcp.request("GET", open, &Request::new())?.expect_status(200);
    }
    let strange = tcp.request("GET", "/v1/services", &Request::new())?.expect_status(401);
    assert!(strange.header("www-authenticate").is_some());
    let reader = format!("{TOKEN}-to-read");
    assert_eq!((ask("GET", "/v1/services", &reader)?, ask("GET", "/v1/services", TOKEN)?), (200, 200));
    assert_eq!((ask("DELETE", "/v1/services/shop", &reader)?, ask("GET", "/v1/monitor", &reader)?), (403, 403));
    assert_eq!(ask("DELETE", "/v1/services/shop", TOKEN)?, 204);
    assert_eq!(authors(&stage, "service/shop")?.last().map(String::as_str), Some("token operate from 127.0.0.1"));
    Ok(())
}

#[test]
fn members_of_the_group_use_the_socket_and_others_do_not() -> Result<()> {
    let stage = Stage::with("members", |agent| agent.argument("--socket-group").argument(&GROUP.to_string()))?;
    stage.put(&weighted(&[1, 1]))?;
    let socket = stage.agent.socket();
    let metadata = fs::metadata(&socket)?;
    assert_eq!((metadata.gid(), metadata.mode() & 0o777), (GROUP, 0o660));
    // Tests live in a directory that others cannot enter.
    fs::set_permissions(socket.parent().context("a directory")?, Permissions::from_mode(0o755))?;
    let copied = tempfile::tempdir()?;
    fs::set_permissions(copied.path(), Permissions::from_mode(0o755))?;
    let copy = copied.path().join("sluice");
    fs::copy(program()?, &copy)?;
    let run = |group: u32| {
        let mut command = Command::new(&copy);
        command.args(["zero", "node/n1"]).arg("--socket").arg(&socket).uid(NOBODY).gid(group);
        command.output().context("running sluice")
    };
    let stranger = run(GROUP + 1)?;
    assert!(stranger.status.code() == Some(1) && said(&stranger).contains("you may not use"), "{}", said(&stranger));
    let member = run(GROUP)?;
    assert_eq!(member.status.code(), Some(0), "{}", said(&member));
    let by = authors(&stage, "node/n1")?;
    assert!(by.len() == 1 && by[0].contains("(65534), process "), "{by:?}");
    let zero = &stage.agent.get("/v1/operations")?.json()["items"][0];
    assert_eq!(zero["by"], by[0].as_str(), "{zero}");
    Ok(())
}
