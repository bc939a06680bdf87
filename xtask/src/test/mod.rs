//! `cargo xtask test`: format, lints, documentation, unit tests, and the black-box tests on this kernel and on older ones.
//! Every stage runs, whatever became of the one before. The last line is the sum.

mod checks;
mod dependencies;
mod host;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    binaries::Binaries,
    report::{Outcome, Table, announce},
    rights::missing_rights,
    setup, vm,
};

#[derive(clap::Args)]
pub struct Arguments {
    /// Only format, lints, documentation and unit tests (may be combined with --host and --vm)
    #[arg(long)]
    checks: bool,
    /// Only the black-box tests on this machine
    #[arg(long)]
    host: bool,
    /// Only the black-box tests in a virtual machine with this kernel, for example 6.12; may be repeated
    #[arg(long, value_name = "KERNEL")]
    vm: Vec<String>,
    /// In virtual machines also the tests that every kernel answers alike
    #[arg(long, requires = "vm")]
    all: bool,
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

    let missing = missing_rights();
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
        // A filter asks for certain tests; the other checks are not among them.
        for (name, check) in checks::STAGES.into_iter().filter(|_| filter.is_none()) {
            table.run(name, check);
        }
        table.run("unit tests", || checks::unit_tests(filter));
    }

    if everything && let Some(missing) = &missing {
        println!("\nThe black-box tests need rights that this user does not have here ({missing});");
        println!("they run in virtual machines only.");
    }
    let kernels: Vec<&str> = match (everything, arguments.vm.is_empty()) {
        (true, _) => vm::KERNELS.to_vec(),
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
    table.add("building black-box tests", start.elapsed(), Outcome::default());
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
        let all = arguments.all || (!here && arguments.vm.is_empty() && number + 1 == kernels.len());
        let selection = vm::Selection { filter, shared, all };
        table.run(&format!("black-box, Linux {kernel}"), || {
            // Who names a kernel wants tests to run there; who names a filter alone may mean others.
            if arguments.vm.is_empty() && filter.is_some() && !selection.any(&binaries.tests)? {
                return Ok(Outcome { note: "no test that runs there matches".to_owned(), ..Outcome::default() });
            }
            vm::test(kernel, &binaries, selection, &arguments.accelerator)
        });
    }
}
