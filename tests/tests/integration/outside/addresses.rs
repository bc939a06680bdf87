//! What makes a frontend: address, port and protocol, and as many as a service needs.

use anyhow::Result;
use sluice_tests::{Errno, Service};

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
