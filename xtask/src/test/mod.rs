//! `cargo xtask test`: format, lints, unit tests, and the black-box tests on this kernel and on older ones.
//! Every stage runs, whatever became of the one before. The last line is the sum.

mod binaries;
mod count;
mod host;

use std::{
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{build::cargo, setup, vm};
pub use binaries::{Binaries, built};
pub use count::{Counter, Outcome};
pub use host::missing_rights;

/// The kernels that the virtual machines run when none is named.
pub const KERNELS: [&str; 2] = ["6.1", "6.12"];

#[derive(clap::Args)]
pub struct Arguments {
    /// Only format, lints and unit tests (may be combined with --host and --vm)
    #[arg(long)]
    checks: bool,
    /// Only the black-box tests on this machine
    #[arg(long)]
    host: bool,
    /// Only the black-box tests in a virtual machine with this kernel, for example 6.12; may be repeated
    #[arg(long, value_name = "KERNEL")]
    vm: Vec<String>,
    /// Only tests whose name contains this
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// What emulates the processor of the virtual machines: tcg works everywhere, kvm is faster
    #[arg(long, value_name = "NAME", default_value = "tcg", env = "SLUICE_VM_ACCELERATOR")]
    accelerator: String,
}

/// Runs the stages asked for and prints the table.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut table = Table::default();
    let everything = !arguments.checks && !arguments.host && arguments.vm.is_empty();
    let filter = arguments.filter.as_deref();

    let missing = host::missing_rights();
    let on_host = arguments.host || (everything && missing.is_none());
    let needs = setup::Needs {
        checks: everything || arguments.checks,
        programs: on_host && missing.is_none(),
        namespaces: on_host && missing.is_none(),
        machines: everything || !arguments.vm.is_empty(),
        ..setup::Needs::default()
    };
    // Before what cannot be done without: machines do without these programs, if they must.
    let shared = needs.machines && shared();
    if let Err(error) = setup::ensure_ready(needs) {
        table.add("set-up", Duration::ZERO, Outcome::failure(format!("{error:#}")));
        return Ok(table.finish());
    }

    if everything || arguments.checks {
        // A filter asks for certain tests; format and lints are not among them.
        if filter.is_none() {
            table.run("format", || count::check(cargo().args(["fmt", "--all", "--", "--check"])));
            table.run("lints", || count::check(&mut lints(&["--workspace", "--all-targets"])));
            // `--all-targets` leaves it out, as `cargo test` does.
            let integration = ["--package", "sluice-tests", "--test", "integration"];
            table.run("lints of black-box tests", || count::check(&mut lints(&integration)));
        }
        table.run("unit tests", || count::tests(&mut unit_tests(filter), filter));
    }

    if everything && let Some(missing) = &missing {
        println!("\nThe black-box tests need rights that this user does not have here ({missing});");
        println!("they run in virtual machines only.");
    }
    let kernels: Vec<&str> = match (everything, arguments.vm.is_empty()) {
        (true, _) => KERNELS.to_vec(),
        (false, _) => arguments.vm.iter().map(String::as_str).collect(),
    };
    if on_host || !kernels.is_empty() {
        run_black_box(&mut table, arguments, on_host, missing, &kernels, shared);
    }
    Ok(table.finish())
}

/// Whether virtual machines will find real clients and servers; says so if not.
fn shared() -> bool {
    let ready = setup::ensure_ready(setup::Needs { programs: true, machines: true, ..setup::Needs::default() });
    let reason = match ready {
        Ok(()) if vm::virtiofsd().is_some() => return true,
        Ok(()) => "virtiofsd is not installed".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    println!("Tests with real clients and servers are left out in virtual machines: {reason}");
    false
}

fn run_black_box(
    table: &mut Table,
    arguments: &Arguments,
    on_host: bool,
    missing: Option<String>,
    kernels: &[&str],
    shared: bool,
) {
    let filter = arguments.filter.as_deref();
    let start = Instant::now();
    announce("building the agent and the black-box tests");
    let binaries = match Binaries::build() {
        Ok(binaries) => binaries,
        Err(error) => {
            table.add("black-box tests", start.elapsed(), Outcome::failure(format!("{error:#}")));
            return;
        }
    };
    println!("built in {:.1} s", start.elapsed().as_secs_f64());
    let here = on_host && missing.is_none();
    if on_host {
        let release = host::kernel_release();
        table.run(&format!("black-box, here ({release})"), || match missing {
            Some(missing) => bail!("this user has not the rights for it: {missing}"),
            None => host::run(&binaries, filter),
        });
    }
    for (number, kernel) in kernels.iter().enumerate() {
        // Once is enough for what is the same on every kernel.
        let outside = !here && number + 1 == kernels.len();
        let selection = vm::Selection { filter, shared, outside };
        table.run(&format!("black-box, Linux {kernel}"), || {
            vm::test(kernel, &binaries, selection, &arguments.accelerator)
        });
    }
}

fn lints(selection: &[&str]) -> Command {
    let mut command = cargo();
    command.arg("clippy").args(selection).args(["--", "--deny", "warnings"]);
    command
}

fn unit_tests(filter: Option<&str>) -> Command {
    let mut command = binaries::statically("test");
    command.args(["--no-fail-fast", "--"]).args(filter);
    command
}

fn announce(what: &str) {
    println!("\n=== {what}");
}

#[derive(Debug, Default)]
struct Table {
    rows: Vec<(String, Duration, Outcome)>,
}

impl Table {
    fn run(&mut self, name: &str, stage: impl FnOnce() -> Result<Outcome>) {
        announce(name);
        let start = Instant::now();
        let outcome = stage().unwrap_or_else(|error| Outcome::failure(format!("{error:#}")));
        if outcome.failed > 0 && !outcome.note.is_empty() {
            println!("{name}: {}", outcome.note);
        }
        self.add(name, start.elapsed(), outcome);
    }

    fn add(&mut self, name: &str, time: Duration, outcome: Outcome) {
        self.rows.push((name.to_owned(), time, outcome));
    }

    /// Prints the table and, alone on the last line, the sum.
    fn finish(self) -> ExitCode {
        let width = self.rows.iter().map(|(name, ..)| name.len()).max().unwrap_or(0).max(5);
        println!("\n{:width$}  passed  failed  left out     time", "stage");
        for (name, time, outcome) in &self.rows {
            let Outcome { passed, failed, skipped, note } = outcome;
            let time = format!("{:.1} s", time.as_secs_f64());
            println!("{name:width$}  {passed:6}  {failed:6}  {skipped:8}  {time:>7}  {note}");
        }
        let sum = |of: fn(&Outcome) -> u64| self.rows.iter().map(|(.., outcome)| of(outcome)).sum::<u64>();
        let (passed, failed) = (sum(|outcome| outcome.passed), sum(|outcome| outcome.failed));
        println!("\n{passed} passed, {failed} failed");
        // Nothing run at all, for example by a filter that matches nothing, is no success.
        if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
