//! `cargo xtask bench compare`: Sluice beside what users would pick instead. IPVS, which few kernels of hosts have at hand,
//! runs in a virtual machine; both parts become one report.

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    build::{self, target_dir, workspace},
    rights::missing_rights,
    setup, vm,
};

/// The kernel of the virtual machine.
const KERNEL: &str = "6.12";
/// Who runs there.
const IN_MACHINE: &str = "direct,sluice,nftables,ipvs-nat,ipvs-dr";
const PROGRAMS: [&str; 3] = ["sluice", "sluice-bench", "sluice-test-client"];

#[derive(clap::Args)]
pub struct Arguments {
    /// Only measurements whose name contains this: connections, established, exactness, zero, loss, behaviour
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Fewer rounds: a first look, not a figure to quote
    #[arg(long)]
    quick: bool,
    /// Write the report to tests/reports rather than to target/bench/compare
    #[arg(long, conflicts_with_all = ["filter", "quick", "no_vm"])]
    publish: bool,
    /// Without the virtual machine, and so without IPVS
    #[arg(long)]
    no_vm: bool,
    /// What emulates the processor of the virtual machine: tcg works everywhere, kvm is faster
    #[arg(long, value_name = "NAME", default_value = "tcg", env = "SLUICE_VM_ACCELERATOR")]
    accelerator: String,
}

/// Installs the peers, builds, measures here and in a virtual machine, and writes the report.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(missing) = missing_rights() {
        bail!("the bench needs rights that this user has not here: {missing}");
    }
    let machines = !arguments.no_vm;
    setup::ensure_ready(setup::Needs { namespaces: true, peers: true, machines, ..setup::Needs::default() })?;
    let directory = build::release(&PROGRAMS)?;
    let bench = directory.join(PROGRAMS[1]);
    let readings = target_dir().join("bench/compare");
    fs::create_dir_all(&readings).with_context(|| format!("making {}", readings.display()))?;

    let start = Instant::now();
    let host = readings.join("host.json");
    let mut command = Command::new(&bench);
    command.arg("compare").args(words(arguments)).arg("--json").arg(&host);
    ensure!(command.status().context("starting the bench")?.success(), "the bench failed");
    println!("measured here in {:.0} s", start.elapsed().as_secs_f64());

    let machine = readings.join("vm.json");
    if machines {
        let start = Instant::now();
        let data = in_machine(arguments, &directory)?;
        fs::write(&machine, data).with_context(|| format!("writing {}", machine.display()))?;
        println!("measured in the virtual machine in {:.0} s, its start included", start.elapsed().as_secs_f64());
    }
    write(arguments, &bench, &host, machines.then_some(machine.as_path()), &readings)
}

/// The bench's words.
fn words(arguments: &Arguments) -> Vec<String> {
    let filter = arguments.filter.iter().flat_map(|filter| ["--filter".to_owned(), filter.clone()]);
    filter.chain(arguments.quick.then(|| "--quick".to_owned())).collect()
}

fn in_machine(arguments: &Arguments, directory: &Path) -> Result<String> {
    let words: Vec<String> = words(arguments).iter().map(|word| vm::quoted(word)).collect();
    let command = format!("sluice-bench compare --emulated --only {IN_MACHINE} {}", words.join(" "));
    // The same files as here: their libraries go with them.
    let files = PROGRAMS.map(|name| directory.join(name));
    let programs = files.iter().map(AsRef::as_ref).zip(PROGRAMS).collect();
    let job = vm::Job { programs, command, interactive: false, shared: false, limit: vm::LIMIT };
    vm::data(KERNEL, &job, &arguments.accelerator)
}

fn write(
    arguments: &Arguments,
    bench: &Path,
    host: &Path,
    machine: Option<&Path>,
    readings: &Path,
) -> Result<ExitCode> {
    let mut command = Command::new(bench);
    command.args(["compare", "write", "--host"]).arg(host);
    if let Some(machine) = machine {
        command.arg("--vm").arg(machine);
    }
    let line = ["cargo xtask bench compare".to_owned()].into_iter().chain(words(arguments));
    let line = line.chain(arguments.publish.then(|| "--publish".to_owned()));
    let line = line.chain(arguments.no_vm.then(|| "--no-vm".to_owned()));
    command.arg("--command").arg(line.collect::<Vec<_>>().join(" "));
    if arguments.publish {
        command.arg("--directory").arg(workspace().join("tests/reports"));
    } else {
        command.arg("--directory").arg(readings);
    }
    let status = command.status().context("starting the bench")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
