//! How costs grow with services, with backends of a service and with open connections. Where the design says that they do
//! not, the curve must be flat.
//!
//! The kernel's tables are as large as each point needs: their sizes are settings.

mod page;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::interrupt;

use crate::{
    Scale,
    bed::{Steered, elsewhere, worker},
    bpf::{self, Attached, Hook, Stats},
    drain::EACH,
    report::{Figure, Report, Samples, Target, Unit},
    scale::{MIB, resident},
    worker::{PORT, Task},
};

/// What is measured at each point, in this order.
const QUANTITIES: [(&str, Unit); 7] = [
    ("connect4, steered", Unit::Nanoseconds),
    ("connect4, steered, new TCP socket", Unit::Nanoseconds),
    ("connect4, not a frontend", Unit::Nanoseconds),
    ("one weight change, request to answer", Unit::Microseconds),
    ("zero of a node, request to kernel", Unit::Microseconds),
    ("memory of the agent", Unit::Mebibytes),
    ("memory of the kernel's tables", Unit::Mebibytes),
];
/// Those of the quantities that should not grow, and how many times larger they may be at the end than at the beginning:
/// what is far apart in memory misses more caches.
const FLAT: [(usize, f64); 3] = [(0, 3.0), (2, 3.0), (4, 3.0)];

const SERVICES: [u32; 5] = [10, 100, 1000, 10_000, 100_000];
const BACKENDS: [u32; 4] = [1, 10, 100, 1000];
const CONNECTIONS: [u64; 5] = [1000, 10_000, 100_000, 300_000, 1_000_000];
/// Services with many backends each.
const FEW: u32 = 10;
/// Backends that the connections are spread over: each takes as many as a client has ports.
const POOL: u32 = 32;
/// Frontends that are connected to by turns.
const TURNS: u32 = 4096;
/// Services of one request.
const PORTION: u32 = 10_000;
/// Memory that connections may take, their sockets at both ends included.
const MEMORY: f64 = 12.0 * 1024.0 * MIB;
/// Memory that the machine keeps.
const RESERVE: f64 = 2.0 * 1024.0 * MIB;
/// Time for opening connections.
const PATIENCE: Duration = Duration::from_secs(180);
/// Time for changes of one kind at one point; after it a few are enough.
const CHANGES: Duration = Duration::from_secs(5);
const FEWEST: u32 = 5;

/// Quantities over one size.
struct Curve {
    /// What there are more and more of.
    what: &'static str,
    group: &'static str,
    note: String,
    points: Vec<(u64, [f64; QUANTITIES.len()])>,
}

type Measure = fn(Scale) -> Result<Curve>;

/// The curves, by the name of the part.
const MEASURES: [(&str, Measure); 3] = [("services", services), ("backends", backends), ("connections", connections)];

/// Measures all curves, or those that are wanted, and writes the page.
pub fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let _stats = Stats::on()?;
    let mut curves = Vec::new();
    for (_, measure) in MEASURES.iter().filter(|(name, _)| scale.wants(name)) {
        let curve = measure(scale)?;
        curve.tell(report);
        curves.push(curve);
    }
    page::write(&curves, scale)
}

impl Curve {
    fn new(what: &'static str, group: &'static str, note: &str) -> Self {
        Self { what, group, note: note.to_owned(), points: Vec::new() }
    }

    fn tell(&self, report: &mut Report) {
        for (size, values) in &self.points {
            for ((name, unit), value) in QUANTITIES.iter().zip(values) {
                report.add(Figure::new(self.group, format!("{size} {}: {name}", self.what), *value, *unit));
            }
        }
        if let [(first, least), .., (last, most)] = &self.points[..] {
            for (quantity, limit) in FLAT {
                let name = format!("{}, {last} against {first} {}", QUANTITIES[quantity].0, self.what);
                let figure = Figure::new(self.group, name, most[quantity] / least[quantity], Unit::Ratio);
                report.add(figure.target(Target::AtMost(limit)));
            }
        }
    }
}

fn services(scale: Scale) -> Result<Curve> {
    let mut curve = Curve::new("services", "Curves: services", "Two backends a service, on two nodes.");
    for number in SERVICES.into_iter().filter(|number| !scale.quick || *number <= 10_000) {
        let mut bed = Steered::sized(&sizes(number, 2))?;
        fill(&bed, number, 2)?;
        curve.points.push((number.into(), look(&mut bed, number, scale)?));
    }
    Ok(curve)
}

fn backends(scale: Scale) -> Result<Curve> {
    let mut curve =
        Curve::new("backends", "Curves: backends of a service", "Ten services, each with a backend on each node.");
    for number in BACKENDS {
        let mut bed = Steered::sized(&sizes(FEW, number))?;
        fill(&bed, FEW, number)?;
        curve.points.push((number.into(), look(&mut bed, FEW, scale)?));
    }
    Ok(curve)
}

/// As many as there is memory and time for.
fn connections(scale: Scale) -> Result<Curve> {
    let note = "Tracked TCP connections to one service of 32 backends; both ends are on this host.";
    let mut curve = Curve::new("connections", "Curves: open connections", note);
    let mut bed = Steered::sized(&sizes(1, POOL))?;
    fill(&bed, 1, POOL)?;
    let mut crowd = Vec::new();
    let (start, before, mut held) = (Instant::now(), available()?, 0);
    for number in CONNECTIONS.into_iter().filter(|number| !scale.quick || *number <= 10_000) {
        let each = (before - available()?) / held.max(1) as f64;
        let time = start.elapsed().mul_f64(number as f64 / held.max(1) as f64);
        // What the first point took says little.
        let is_known = held >= 10_000;
        let memory = each * number as f64;
        if is_known && (memory > MEMORY || memory > before - RESERVE || time > PATIENCE) {
            curve.note += &format!(
                " {number} would take {:.1} GiB and {:.0} s to open, more than this bench gives them.",
                memory / MIB / 1024.0,
                time.as_secs_f64()
            );
            break;
        }
        while held < number {
            interrupt::check()?;
            let (mut worker, namespace) = worker(&bed.side.cgroup)?;
            let idle = EACH.min(number - held);
            worker.run(&Task::Hold { to: frontend(0), idle, busy: 0 })?;
            crowd.push((worker, namespace));
            held += idle;
        }
        curve.points.push((number, look(&mut bed, 1, scale)?));
    }
    let each = (before - available()?) / held.max(1) as f64 / 1024.0;
    curve.note += &format!(" The machine has {each:.1} KiB less for each, the sockets of both ends included.");
    Ok(curve)
}

/// Sizes of the tables, with a little room.
fn sizes(services: u32, backends: u32) -> [(&'static str, u64); 4] {
    let roomy = |number: u32| u64::from(number) * 5 / 4 + 64;
    [
        ("SLUICE_MAX_SERVICES", roomy(services)),
        // TCP and UDP.
        ("SLUICE_MAX_FRONTENDS", roomy(2 * services)),
        ("SLUICE_MAX_BACKENDS", roomy(services * backends)),
        ("SLUICE_MAX_NODES", roomy(backends)),
    ]
}

fn fill(bed: &Steered, services: u32, backends: u32) -> Result<()> {
    for first in (0..services).step_by(PORTION as usize) {
        interrupt::check()?;
        bed.apply(&document(first..services.min(first + PORTION), backends))?;
    }
    Ok(())
}

/// One of the services' frontends is tried after the other.
fn look(bed: &mut Steered, services: u32, scale: Scale) -> Result<[f64; QUANTITIES.len()]> {
    let step = (services / TURNS).max(1);
    let to: Vec<_> = (0..services).step_by(step as usize).map(frontend).collect();
    let others = elsewhere(1000);
    let rounds = scale.of(12);
    let connects = |to| Task::UdpConnects { to, calls: 4000 };
    let steered = hook(bed, &connects(to.clone()), rounds)?;
    let fresh = hook(bed, &Task::TcpConnections { to, calls: 400 }, rounds)?;
    let direct = hook(bed, &connects(others), rounds)?;
    let rounds = scale.of(100);
    let change = weights(bed, services, rounds)?;
    let zero = zeros(bed, rounds)?;
    let tables = bpf::memory_of_maps(bed.agent.bpffs())? as f64 / MIB;
    Ok([steered, fresh, direct, change, zero, resident(bed)?, tables])
}

/// Median of rounds, nanoseconds in connect4.
fn hook(bed: &mut Steered, task: &Task, rounds: u32) -> Result<f64> {
    let program = Attached::find(bed.side.cgroup.path(), Hook::Connect4)?;
    let mut samples = Samples::default();
    for _ in 0..rounds {
        interrupt::check()?;
        let before = program.runs()?;
        bed.side.worker.run(task)?;
        let runs = program.runs()?.since(before);
        samples.push(runs.nanos as f64 / runs.count.max(1) as f64);
    }
    Ok(samples.quantile(0.5))
}

/// Median time of a change, microseconds.
fn weights(bed: &Steered, services: u32, rounds: u32) -> Result<f64> {
    let (mut samples, end) = (Samples::default(), Instant::now() + CHANGES);
    for round in (0..rounds).take_while(|round| *round < FEWEST || Instant::now() < end) {
        interrupt::check()?;
        let path = format!("/v1/services/s{}/backends/b0", round * 31 % services);
        let start = Instant::now();
        let answer = bed.agent.patch(&path, &json!({"weight": 5 + round % 7}))?;
        samples.push(start.elapsed().as_secs_f64() * 1e6);
        ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.text());
    }
    Ok(samples.quantile(0.5))
}

/// Median time from the request until the kernel has it, microseconds. Every service has a backend on this node.
fn zeros(bed: &Steered, rounds: u32) -> Result<f64> {
    let (mut samples, end) = (Samples::default(), Instant::now() + CHANGES);
    for _ in (0..rounds).take_while(|round| *round < FEWEST || Instant::now() < end) {
        interrupt::check()?;
        // The only node may be among them.
        let zero = bed.agent.post("/v1/nodes/node-0/zero", &json!({"reason": "bench", "force": true}))?;
        ensure!(zero.status == 200, "a zero: {} {}", zero.status, zero.text());
        let proof: Value = zero.json();
        samples.push(proof["programmedInMicroseconds"].as_f64().context("no programmedInMicroseconds")?);
        let restore = bed.agent.post("/v1/nodes/node-0/restore", &json!({}))?;
        ensure!(restore.status == 200, "a restore: {} {}", restore.status, restore.text());
    }
    Ok(samples.quantile(0.5))
}

fn document(services: Range<u32>, backends: u32) -> String {
    let one = |service| {
        let backend = |number| {
            let address = backend(service, number, backends);
            format!("\n  - {{name: b{number}, address: \"{address}\", node: node-{number}, weight: 30}}")
        };
        let (at, backends) = (frontend(service), (0..backends).map(backend).collect::<String>());
        format!(
            "---\napiVersion: sluice.dev/v1\nkind: SteeredService\nmetadata: {{name: s{service}}}\n\
             spec:\n  frontends: [\"{at}\", \"{at}/udp\"]\n  backends:{backends}\n"
        )
    };
    services.map(one).collect()
}

/// In 10.96.0.0/13, where no backend is.
fn frontend(service: u32) -> SocketAddr {
    address(0x0a60_0000 + service, 80)
}

/// One address for each, from 10.0.0.0 on.
fn backend(service: u32, number: u32, backends: u32) -> SocketAddr {
    address(0x0a00_0100 + service * backends + number, PORT)
}

fn address(bits: u32, port: u16) -> SocketAddr {
    SocketAddrV4::new(Ipv4Addr::from_bits(bits), port).into()
}

/// Memory that the machine could still give, bytes.
fn available() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo").context("reading the machine's memory")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().context("reading MemAvailable")?;
    Ok(kib * 1024.0)
}
