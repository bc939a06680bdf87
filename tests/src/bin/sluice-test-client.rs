//! The process behind a `Client` and a `Program` of the harness.
//!
//!     sluice-test-client serve CGROUP NAMESPACE              answers requests on its standard input
//!     sluice-test-client run CGROUP NAMESPACE PROGRAM ...    becomes PROGRAM
//!
//! CGROUP is a cgroup's directory, NAMESPACE a network namespace's file; "-" means to stay.

use std::process::ExitCode;

fn main() -> ExitCode {
    match sluice_tests::client::inside::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-test-client: {error:#}");
            ExitCode::FAILURE
        }
    }
}
