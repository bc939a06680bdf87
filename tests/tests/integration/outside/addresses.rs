//! What makes a frontend: address, port and protocol, and as many as a service needs.

use std::{fs, net::TcpListener};

use anyhow::Result;
use sluice_tests::{Errno, Namespace, Service, agent::free_port};

use crate::stage::Stage;

#[test]
fn port_and_protocol_are_part_of_a_frontend() -> Result<()> {
    let mut stage = Stage::new("ports")?;
    stage.tcp("10.0.0.1:8080", "web")?;
    stage.tcp("10.0.0.1:8443", "tls")?;
    stage.udp("10.0.0.1:8053", "dns")?;
    stage.put(&Service::new("web", "10.96.0.10:80").backend("web", "10.0.0.1:8080", 1))?;
    stage.put(&Service::new("tls", "10.96.0.10:443").backend("tls", "10.0.0.1:8443", 1))?;
    stage.put(&Service::new("dns", "10.96.0.10:80/udp").backend("dns", "10.0.0.1:8053", 1))?;
    let client = stage.client()?;
    assert_eq!(client.connect("10.96.0.10:80")?.line()?, "web");
    assert_eq!(client.connect("10.96.0.10:443")?.line()?, "tls");
    assert_eq!(client.datagrams_to("10.96.0.10:80")?.exchange("x")?.0, "dns: x");
    // Nothing else of that address is steered, and there is no way to it.
    assert_eq!(client.connect("10.96.0.10:81").unwrap_err(), Errno::ENETUNREACH);
    assert_eq!(client.datagrams_to("10.96.0.10:443").unwrap_err(), Errno::ENETUNREACH);
    Ok(())
}

#[test]
fn one_service_answers_on_all_of_its_frontends() -> Result<()> {
    let mut stage = Stage::new("frontends")?;
    stage.tcp("10.0.0.1:8080", "one")?;
    let frontends: Vec<String> = (1..=64).map(|number| format!("10.96.1.{number}:80")).collect();
    let service = Service::new("many", &frontends[0]).backend("one", "10.0.0.1:8080", 1);
    stage.put(&frontends[1..].iter().fold(service, |service, frontend| service.frontend(frontend)))?;
    let client = stage.client()?;
    for frontend in &frontends {
        let connection = client.connect(frontend)?;
        assert_eq!((connection.line()?, connection.peer()?), ("one".to_owned(), frontend.parse()?));
    }
    Ok(())
}

#[test]
fn frontends_that_others_need_are_refused_or_warned_of() -> Result<()> {
    let api = format!("127.0.0.1:{}", free_port(&Namespace::host()?)?);
    let stage = Stage::with("own-api", |agent| agent.listen(&api))?;
    let refused =
        stage.agent.put("/v1/services/api", &Service::new("api", &api).backend("b", "10.0.0.1:80", 1).json())?;
    let problem = refused.expect_status(422).json();
    assert_eq!(problem["field"], "spec.frontends[0]", "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|text| text.contains("serves its API")), "{problem}");

    let server = TcpListener::bind("127.0.0.1:0")?;
    let taken = server.local_addr()?.to_string();
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("shop.json");
    fs::write(&file, Service::new("shop", &taken).backend("b", "10.0.0.1:80", 1).json().to_string())?;
    let apply = || stage.agent.cli(&["apply", "-f", &file.to_string_lossy()]);
    let (first, second) = (apply()?, apply()?);
    let warning = String::from_utf8(first.stderr)?;
    assert!(first.status.success() && warning.contains(&taken) && warning.contains("listens there"), "{warning}");
    assert!(second.status.success() && second.stderr.is_empty(), "it is told once: {second:?}");
    let events = stage.agent.get("/v1/events?follow=false")?.expect_status(200).text();
    assert!(events.contains("frontendInUse") && events.contains(&taken), "{events}");
    Ok(())
}
