//! Nanoseconds inside the programs, as the kernel counts them. Its two clock reads are inside: an empty program, measured
//! in the same run, shows how much that is.

use std::net::SocketAddr;

use anyhow::Result;

use crate::{
    bed::{Bed, Side, elsewhere, elsewhere6, frontend, frontend6, is_v6},
    bpf::{Attached, Hook, Stats},
    report::{Figure, Report, Samples, Target, Unit},
    worker::Task,
};

const GROUP: &str = "in the programs (kernel's own clock)";

/// What the time of a batch is divided by.
#[derive(Clone, Copy)]
enum Per {
    /// Runs of the program.
    Run,
    /// Calls of the task, where a call runs the program several times.
    Call,
}

struct Case<'a> {
    name: &'a str,
    side: fn(&mut Bed) -> &mut Side,
    hook: Hook,
    per: Per,
    task: Task,
    target: Option<Target>,
}

fn steered(bed: &mut Bed) -> &mut Side {
    &mut bed.steered
}

fn floor(bed: &mut Bed) -> &mut Side {
    &mut bed.floor
}

/// Measures every hook.
pub fn run(bed: &mut Bed, services: u32, quick: bool, report: &mut Report) -> Result<()> {
    let (rounds, scale) = if quick { (5, 1) } else { (25, 4) };
    let _stats = Stats::on()?;
    let v4: Vec<SocketAddr> = (0..services).filter(|service| !is_v6(*service)).map(frontend).collect();
    let v6: Vec<SocketAddr> = (0..services).filter(|service| is_v6(*service)).map(frontend6).collect();
    let others: Vec<SocketAddr> = (0..services).map(elsewhere).collect();
    let others6: Vec<SocketAddr> = (0..services).map(elsewhere6).collect();
    let one = || vec![frontend(0)];
    let udp = |to: &[SocketAddr]| Task::UdpConnects { to: to.to_vec(), calls: 1000 * scale };
    let tcp = |to: &[SocketAddr]| Task::TcpConnections { to: to.to_vec(), calls: 100 * scale };
    let exchange = |to: &[SocketAddr]| Task::Exchanges { to: to.to_vec(), calls: 250 * scale };
    let names = |to: SocketAddr| Task::PeerNames { to, calls: 1000 * scale };
    let case = |name, hook, per, task| Case { name, side: steered, hook, per, task, target: None };

    let stateless = Case {
        target: Some(Target::AtMost(120.0)),
        ..case("connect4, frontend, no record (the stateless part)", Hook::Connect4, Per::Run, udp(&v4))
    };
    // With no memory for options the kernel refuses to make a record: what is left is the choice and the rewrite.
    let normal = bed.steered.namespace.run(|| std::fs::read_to_string("/proc/sys/net/core/optmem_max"));
    let cases = [
        Case {
            side: floor,
            ..case("empty program, UDP connect (the floor)", Hook::Connect4, Per::Run, udp(&others))
        },
        Case {
            target: Some(Target::AtMost(60.0)),
            ..case("connect4, address that is none", Hook::Connect4, Per::Run, udp(&others))
        },
        case("connect6, address that is none", Hook::Connect6, Per::Run, udp(&others6)),
        case("connect4, frontend, record there already", Hook::Connect4, Per::Run, udp(&v4)),
        case("connect4, one frontend again and again", Hook::Connect4, Per::Run, udp(&one())),
        case("connect6, frontend, record there already", Hook::Connect6, Per::Run, udp(&v6)),
        case("connect4, frontend, new TCP socket", Hook::Connect4, Per::Run, tcp(&v4)),
        case("connect6, frontend, new TCP socket", Hook::Connect6, Per::Run, tcp(&v6)),
        case("connect4, address that is none, new TCP socket", Hook::Connect4, Per::Run, tcp(&others)),
        case("sock_ops, a steered connection in all", Hook::SockOps, Per::Call, tcp(&v4)),
        case("sock_ops, an unsteered connection in all", Hook::SockOps, Per::Call, tcp(&others)),
        Case {
            side: floor,
            ..case("empty sock_ops, a connection in all (the floor)", Hook::SockOps, Per::Call, tcp(&others))
        },
        case("sock_release, steered", Hook::SockRelease, Per::Run, tcp(&v4)),
        case("sock_release, unsteered", Hook::SockRelease, Per::Run, tcp(&others)),
        case("sendmsg4, frontend, flow there already", Hook::Sendmsg4, Per::Run, exchange(&v4)),
        case("sendmsg4, address that is none", Hook::Sendmsg4, Per::Run, exchange(&others)),
        case("recvmsg4, from a backend", Hook::Recvmsg4, Per::Run, exchange(&v4)),
        case("recvmsg4, from elsewhere", Hook::Recvmsg4, Per::Run, exchange(&others)),
        case("getpeername4, steered", Hook::Getpeername4, Per::Run, names(frontend(0))),
        case("getpeername4, unsteered", Hook::Getpeername4, Per::Run, names(elsewhere(0))),
    ];
    if let Ok(normal) = normal {
        let namespace = |bed: &Bed, value: &str| bed.steered.namespace.sysctl("core/optmem_max", value.trim());
        namespace(bed, "0")?;
        let measured = measure(bed, &[stateless], rounds, report);
        namespace(bed, &normal)?;
        measured?;
    }
    measure(bed, &cases, rounds, report)
}

/// Rounds over all cases, so that what disturbs the machine for a while disturbs all of them.
fn measure(bed: &mut Bed, cases: &[Case], rounds: u32, report: &mut Report) -> Result<()> {
    let mut samples = vec![Samples::default(); cases.len()];
    for _ in 0..rounds {
        for (case, samples) in cases.iter().zip(&mut samples) {
            sluice_tests::interrupt::check()?;
            let side = (case.side)(bed);
            let program = Attached::find(side.cgroup.path(), case.hook)?;
            let before = program.runs()?;
            let answer = side.worker.run(&case.task)?;
            let runs = program.runs()?.since(before);
            let number = match case.per {
                Per::Run => runs.count,
                Per::Call => answer.calls,
            };
            samples.push(runs.nanos as f64 / number.max(1) as f64);
        }
    }
    for (case, samples) in cases.iter().zip(&samples) {
        let figure = Figure::median(GROUP, case.name, samples, Unit::Nanoseconds);
        let figure = figure.note(format!("least {:.0}", samples.quantile(0.0)));
        report.add(match case.target {
            Some(target) => figure.target(target),
            None => figure,
        });
    }
    Ok(())
}
