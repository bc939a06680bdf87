//! Time on the wall: what steering adds to a connect, to a connection, and to nothing else. Direct and steered take turns.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use sluice_tests::interrupt;

use crate::{
    Scale,
    bed::{Side, Steered, elsewhere, frontends},
    bpf::{Attachment, Hook, Little},
    report::{Figure, Report, Samples, Target, Unit},
    worker::{Answer, Task},
};

const SERVICES: u32 = 1000;

/// Added to connect(), and to connections from start to end.
pub fn added(scale: Scale, report: &mut Report) -> Result<()> {
    const GROUP: &str = "Added time on the wall, against a cgroup without programs";
    let mut plain = Side::new("plain")?;
    let mut floor = Side::new("floor")?;
    let hooks = [Hook::Connect4, Hook::SockOps, Hook::SockRelease];
    let attach = |hook| Attachment::new(floor.cgroup.path(), hook, Little::Empty);
    let _empty: Vec<Attachment> = hooks.into_iter().map(attach).collect::<Result<_>>()?;
    let mut steered = Steered::new(SERVICES, 4)?;
    let (frontends, others) = (frontends(SERVICES, false), elsewhere(SERVICES));
    let (rounds, calls) = (scale.of(60), u64::from(scale.of(4)));
    for (name, task) in [
        ("connect() of one UDP socket", udp_connects as Make),
        ("a UDP socket with its connect() and close()", udp_sockets),
        (TCP, tcp_connections),
    ] {
        let (direct, steer) = (task(&others, calls), task(&frontends, calls));
        let mut direct_each = Samples::default();
        let mut differences = [Samples::default(), Samples::default(), Samples::default()];
        for _ in 0..rounds {
            interrupt::check()?;
            // The turn of each is between two turns of the base line, so that a drift of the machine cancels out.
            let mut before = plain.worker.run(&direct)?.each;
            for (index, differences) in differences.iter_mut().enumerate() {
                let worker = if index == 0 { &mut floor.worker } else { &mut steered.side.worker };
                let with = worker.run(if index == 2 { &steer } else { &direct })?.each;
                let after = plain.worker.run(&direct)?.each;
                differences.push(with - f64::midpoint(before, after));
                direct_each.push(after);
                before = after;
            }
        }
        report.add(Figure::median(GROUP, format!("{name}: direct"), &direct_each, Unit::Nanoseconds));
        let names = ["empty programs add", "address that is none: adds", "frontend: adds"];
        for (index, (what, samples)) in names.into_iter().zip(&differences).enumerate() {
            let figure = Figure::median(GROUP, format!("{name}: {what}"), samples, Unit::Nanoseconds);
            let tracked = index == 2 && name == TCP;
            report.add(if tracked { figure.target(Target::AtMost(1500.0)) } else { figure });
        }
    }
    Ok(())
}

/// Makes the task of a kind of call.
type Make = fn(&[SocketAddr], u64) -> Task;

const TCP: &str = "a TCP connection from socket() to both close()";

fn udp_connects(to: &[SocketAddr], calls: u64) -> Task {
    Task::UdpConnects { to: to.to_vec(), calls: 1000 * calls }
}

fn udp_sockets(to: &[SocketAddr], calls: u64) -> Task {
    Task::UdpSockets { to: to.to_vec(), calls: 500 * calls }
}

fn tcp_connections(to: &[SocketAddr], calls: u64) -> Task {
    Task::TcpConnections { to: to.to_vec(), calls: 200 * calls }
}

/// Direct and steered, by turns.
pub fn ratios(scale: Scale, report: &mut Report) -> Result<()> {
    const GROUP: &str = "Steered over direct, in alternating pairs";
    let mut plain = Side::new("plain")?;
    let mut steered = Steered::new(SERVICES, 4)?;
    let (frontends, others) = (frontends(SERVICES, false), elsewhere(SERVICES));
    let pairs = scale.of(40);
    let millis = u64::from(scale.of(4)) * 50;
    let first = |of: &[SocketAddr]| of.first().copied().context("no address");
    let (frontend, other) = (first(&frontends)?, first(&others)?);
    let connections = |to: &[SocketAddr]| Task::Connections { to: to.to_vec(), threads: 2, millis, pause_micros: 0 };

    let pair = (connections(&others), connections(&frontends));
    let rates = turns(&mut plain, &mut steered, pairs, &pair, |answer| answer.rate)?;
    report.add(Figure::median(GROUP, "connections a second, direct", &rates.direct, Unit::PerSecond));
    report.add(Figure::median(GROUP, "connections a second, steered", &rates.steered, Unit::PerSecond));
    let figure = Figure::median(GROUP, "connections a second: ratio", &rates.ratios, Unit::Ratio);
    report.add(figure.target(Target::AtLeast(0.93)));

    let pair = (Task::Stream { to: other, millis }, Task::Stream { to: frontend, millis });
    let rates = turns(&mut plain, &mut steered, pairs, &pair, |answer| answer.rate)?;
    report.add(Figure::median(GROUP, "throughput of one connection, direct", &rates.direct, Unit::BytesPerSecond));
    let figure = Figure::median(GROUP, "throughput of one connection: ratio", &rates.ratios, Unit::Ratio);
    report.add(figure.target(Target::Same));

    let calls = 500 * u64::from(scale.of(4));
    let pair = (Task::RoundTrips { to: other, calls }, Task::RoundTrips { to: frontend, calls });
    let times = turns(&mut plain, &mut steered, pairs, &pair, |answer| answer.each)?;
    report.add(Figure::median(GROUP, "round trip on one connection, direct", &times.direct, Unit::Nanoseconds));
    let figure = Figure::median(GROUP, "round trip on one connection: ratio", &times.ratios, Unit::Ratio);
    report.add(figure.target(Target::Same));
    Ok(())
}

#[derive(Default)]
struct Turns {
    direct: Samples,
    steered: Samples,
    ratios: Samples,
}

fn turns(
    plain: &mut Side,
    steered: &mut Steered,
    pairs: u32,
    (direct, steer): &(Task, Task),
    figure: fn(Answer) -> f64,
) -> Result<Turns> {
    let mut turns = Turns::default();
    let mut before = figure(plain.worker.run(direct)?);
    for _ in 0..pairs {
        interrupt::check()?;
        let with = figure(steered.side.worker.run(steer)?);
        let after = figure(plain.worker.run(direct)?);
        turns.direct.push(after);
        turns.steered.push(with);
        turns.ratios.push(with / f64::midpoint(before, after));
        before = after;
    }
    Ok(turns)
}
