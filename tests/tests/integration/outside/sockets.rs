//! Who is left alone: sockets with the chosen mark, and addresses that are no frontend.

use anyhow::Result;
use sluice_tests::Options;

use crate::{
    sockets::{MARK, one},
    stage::{FRONTEND, Stage},
};

#[test]
fn the_mark_can_be_chosen_and_switched_off() -> Result<()> {
    for (flag, mark, expected) in [("7", 7, "original"), ("7", MARK, "b1"), ("0", 0, "b1"), ("0", MARK, "b1")] {
        let mut stage = Stage::with("mark-flag", |agent| agent.argument("--mark").argument(flag))?;
        stage.tcp(FRONTEND, "original")?;
        let service = stage.service(&[1])?;
        stage.put(&service)?;
        let client = stage.client()?;
        let answer = client.connect_with(FRONTEND, &Options::default().mark(mark))?.line()?;
        assert_eq!(answer, expected, "--mark {flag}, SO_MARK {mark}");
    }
    Ok(())
}

#[test]
fn an_address_that_is_no_frontend_is_untouched() -> Result<()> {
    let mut stage = one("untouched")?;
    stage.tcp("10.0.0.9:80", "other")?;
    stage.udp("10.0.0.9:53", "other-dns")?;
    let client = stage.client()?;
    let other = client.connect("10.0.0.9:80")?;
    assert_eq!((other.line()?, other.peer()?), ("other".to_owned(), "10.0.0.9:80".parse()?));
    let udp = client.datagrams_to("10.0.0.9:53")?;
    assert_eq!(udp.exchange("x")?, ("other-dns: x".to_owned(), "10.0.0.9:53".parse()?));
    // A backend stays reachable at its own address, and is told apart from steered connections.
    let direct = client.connect("10.0.0.1:8080")?;
    assert_eq!((direct.line()?, direct.peer()?), ("b1".to_owned(), "10.0.0.1:8080".parse()?));
    assert_eq!(stage.count("shop", "b1", "newConnections")?, 0);
    assert_eq!(stage.count("shop", "b1", "activeConnections")?, 0);
    Ok(())
}
