//! The process behind a `Client` and a `Program` of the harness.
//!
//!     sluice-test-client serve CGROUP NAMESPACE              answers requests on its standard input
//!     sluice-test-client run CGROUP NAMESPACE PROGRAM ...    becomes PROGRAM
//!     sluice-test-client hyper --url URL ...                 is a client of the loss matrix
//!
//! CGROUP is a cgroup's directory, NAMESPACE a network namespace's file; "-" means to stay.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).peekable();
    let result = if words.next_if(|word| word == "hyper").is_some() {
        sluice_tests::matrix::hyper::main(words)
    } else {
        sluice_tests::client::inside::main()
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-test-client: {error:#}");
            ExitCode::FAILURE
        }
    }
}
