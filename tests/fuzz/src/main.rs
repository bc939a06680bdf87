//! libFuzzer over one target of `sluice::fuzz`: the one that SLUICE_FUZZ_TARGET names, beginning with its seeds, which
//! it writes to the directory SLUICE_FUZZ_SEEDS.
#![no_main]

use std::{env, fs, path::PathBuf, sync::OnceLock};

use libfuzzer_sys::fuzz_target;
use sluice::fuzz;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fuzz_target!(
    init: begin(),
    |bytes: &[u8]| {
        if let Some(target) = TARGET.get() {
            target(bytes);
        }
    }
);

/// Before the first input is read.
fn begin() {
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("{name} is not set: use `cargo xtask fuzz`"));
    let name = variable("SLUICE_FUZZ_TARGET");
    let found = fuzz::TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = found.unwrap_or_else(|| panic!("{name} is none of {:?}", fuzz::TARGETS.map(|(known, _)| known)));
    let directory = PathBuf::from(variable("SLUICE_FUZZ_SEEDS"));
    for (number, seed) in fuzz::seeds(&name).iter().enumerate() {
        let file = directory.join(format!("seed-{number}"));
        fs::write(&file, seed).unwrap_or_else(|error| panic!("writing {}: {error}", file.display()));
    }
    TARGET.get_or_init(|| *target);
}
