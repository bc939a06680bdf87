//! `sluice`: the daemon and the command line in one program.

fn main() -> std::process::ExitCode {
    sluice::cli::run()
}
