//! Nanoseconds inside the programs, as the kernel counts them. Its two clock reads are inside: an empty program, measured
//! in the same run, shows how much that is.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use sluice_tests::interrupt;

use crate::{
    Scale,
    bed::{Side, Steered, elsewhere, elsewhere6, frontends},
    bpf::{Attached, Attachment, Hook, Little, Stats},
    report::{Figure, Report, Samples, Target, Unit},
    worker::Task,
};

const GROUP: &str = "In the programs, by the kernel's clock, with 1,000 services";
const SERVICES: u32 = 1000;
/// What limits the memory of a socket's options, of which socket storage is one; a setting of each namespace since
/// Linux 6.8.
const OPTION_MEMORY: &str = "core/optmem_max";

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
    /// This one instead of the agent's, in a cgroup where nothing else is attached.
    little: Option<Little>,
    hook: Hook,
    per: Per,
    task: Task,
    target: Option<Target>,
}

struct Bed {
    steered: Steered,
    bare: Side,
}

/// Measures every hook.
pub fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let mut bed = Bed { steered: Steered::new(SERVICES, 4)?, bare: Side::new("bare")? };
    let (rounds, calls) = (scale.of(25), u64::from(scale.of(4)));
    let _stats = Stats::on()?;

    let (v4, v6) = (frontends(SERVICES, false), frontends(SERVICES, true));
    let (others, others6) = (elsewhere(SERVICES), elsewhere6(SERVICES));
    let one: Vec<_> = v4.iter().copied().take(1).collect();
    let other: Vec<_> = others.iter().copied().take(1).collect();
    let first = *v4.first().context("no frontend")?;
    let udp = |to: &[_]| Task::UdpConnects { to: to.to_vec(), calls: 1000 * calls };
    let tcp = |to: &[_]| Task::TcpConnections { to: to.to_vec(), calls: 100 * calls };
    let exchange = |to: &[_]| Task::Exchanges { to: to.to_vec(), calls: 250 * calls };
    let names = |to| Task::PeerNames { to, calls: 1000 * calls };
    let case = |name, hook, per, task| Case { name, little: None, hook, per, task, target: None };
    let run = |name, hook, task| case(name, hook, Per::Run, task);
    let call = |name, hook, task| case(name, hook, Per::Call, task);
    let little = |little, case| Case { little: Some(little), ..case };
    let at_most = |limit, case| Case { target: Some(Target::AtMost(limit)), ..case };
    use Hook::{Connect4, Connect6, Getpeername4, Recvmsg4, Sendmsg4, SockOps, SockRelease};

    let stateless = [
        at_most(120.0, run("connect4, frontend, without a record", Connect4, udp(&v4))),
        run("connect4, one frontend again and again, without a record", Connect4, udp(&one)),
    ];
    let cases = [
        little(Little::Empty, run("an empty program on connect4: the floor", Connect4, udp(&others))),
        little(Little::Clock, run("a program that only reads the clock", Connect4, udp(&others))),
        at_most(60.0, run("connect4, address that is none", Connect4, udp(&others))),
        run("connect4, one address that is none again and again", Connect4, udp(&other)),
        run("connect6, address that is none", Connect6, udp(&others6)),
        run("connect4, frontend, with a record, UDP", Connect4, udp(&v4)),
        run("connect4, one frontend again and again, with a record, UDP", Connect4, udp(&one)),
        run("connect6, frontend, with a record, UDP", Connect6, udp(&v6)),
        run("connect4, frontend, new TCP socket", Connect4, tcp(&v4)),
        run("connect6, frontend, new TCP socket", Connect6, tcp(&v6)),
        run("connect4, address that is none, new TCP socket", Connect4, tcp(&others)),
        little(Little::Empty, call("an empty sock_ops: the floor, a connection in all", SockOps, tcp(&others))),
        call("sock_ops, unsteered, a connection in all", SockOps, tcp(&others)),
        call("sock_ops, steered, a connection in all", SockOps, tcp(&v4)),
        run("sock_release, unsteered", SockRelease, tcp(&others)),
        run("sock_release, steered", SockRelease, tcp(&v4)),
        run("sendmsg4, address that is none", Sendmsg4, exchange(&others)),
        run("sendmsg4, frontend, flow there already", Sendmsg4, exchange(&one)),
        run("sendmsg4, 800 frontends by turns from one socket", Sendmsg4, exchange(&v4)),
        run("recvmsg4, unsteered", Recvmsg4, exchange(&others)),
        run("recvmsg4, from a backend", Recvmsg4, exchange(&one)),
        run("getpeername4, unsteered", Getpeername4, names(*others.first().context("no address")?)),
        run("getpeername4, steered", Getpeername4, names(first)),
    ];

    // With no memory for options the kernel makes no record: what is left is the choice and the rewrite.
    let setting = Path::new("/proc/sys/net").join(OPTION_MEMORY);
    let normal = bed.steered.side.namespace.run(|| fs::read_to_string(setting));
    if let Ok(normal) = normal {
        bed.steered.side.namespace.sysctl(OPTION_MEMORY, "0")?;
        measure(&mut bed, &stateless, rounds, report)?;
        bed.steered.side.namespace.sysctl(OPTION_MEMORY, normal.trim())?;
    }
    measure(&mut bed, &cases, rounds, report)
}

/// Rounds over all cases, so that what disturbs the machine for a while disturbs all of them.
fn measure(bed: &mut Bed, cases: &[Case], rounds: u32, report: &mut Report) -> Result<()> {
    let mut samples = vec![Samples::default(); cases.len()];
    for _ in 0..rounds {
        for (case, samples) in cases.iter().zip(&mut samples) {
            interrupt::check()?;
            let side = if case.little.is_some() { &mut bed.bare } else { &mut bed.steered.side };
            let attach = |little| Attachment::new(side.cgroup.path(), case.hook, little);
            let _attached = case.little.map(attach).transpose()?;
            let program = Attached::find(side.cgroup.path(), case.hook)?;
            let before = program.runs()?;
            let answer = side.worker.run(&case.task).with_context(|| case.name.to_owned())?;
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
