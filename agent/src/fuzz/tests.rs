//! The short run: seeds, and thousands of inputs made from them by a generator that always does the same.

use std::panic::{AssertUnwindSafe, catch_unwind};

use sluice_common::pick::mix;

use super::{LIMITS, TARGETS, patched, seeds, seeds::SHOP, with};
use crate::{
    kernel,
    model::{
        State,
        parse::{self, DocumentFormat},
    },
};

/// Inputs for each target.
const INPUTS: u64 = 1000;

/// Draws numbers.
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.0) % end.max(1) as u64) as usize
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        start..start + self.below((length - start).min(40) + 1)
    }
}

/// A seed with a few changes of the kinds that parsers stumble over.
fn input(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    const WORDS: [u32; 8] = [0, 1, 0xff, 0x7fff_ffff, u32::MAX, 0x0400_0001, 0x0a00_0000, 0x8000_0000];
    const TEXTS: [&str; 12] = [
        "null",
        "-1",
        "1e999",
        "\"\"",
        "[]",
        "{}",
        ": ",
        "\n---\n",
        "0x",
        "\u{fffd}",
        "\\u0000",
        "99999999999999999999",
    ];
    let mut draw = Draw(number);
    let mut bytes = seeds[draw.below(seeds.len())].clone();
    for _ in 0..=draw.below(6) {
        let range = draw.range(bytes.len());
        match draw.below(7) {
            0 => drop(bytes.splice(range, [])),
            1 => {
                let copied = bytes[range.clone()].to_vec();
                bytes.splice(range.start..range.start, copied);
            }
            2 => {
                let other = &seeds[draw.below(seeds.len())];
                let copied = other[draw.range(other.len())].to_vec();
                bytes.splice(range, copied);
            }
            3 => drop(bytes.splice(range, TEXTS[draw.below(TEXTS.len())].bytes())),
            4 if bytes.len() >= 4 => {
                let at = draw.below(bytes.len() / 4) * 4;
                bytes[at..at + 4].copy_from_slice(&WORDS[draw.below(WORDS.len())].to_ne_bytes());
            }
            5 => bytes.truncate(range.start.max(1)),
            _ => {
                if let Some(byte) = bytes.get_mut(range.start) {
                    *byte ^= 1 << draw.below(8);
                }
            }
        }
    }
    bytes
}

#[test]
fn seeds_are_accepted() {
    for seed in seeds("yaml") {
        parse::documents(&seed, DocumentFormat::Yaml).unwrap();
    }
    let shop = parse::documents(SHOP.as_bytes(), DocumentFormat::Yaml).unwrap().remove(0).document;
    let shop = with(&State::new(LIMITS), shop).unwrap();
    for seed in seeds("json") {
        let is_patch = parse::value(&seed, DocumentFormat::Json).is_ok_and(|patch| patched(&shop, &patch).is_some());
        assert!(is_patch || parse::documents(&seed, DocumentFormat::Json).is_ok(), "{}", seed.escape_ascii());
    }
    let [answer, refusal] = seeds("netlink").try_into().unwrap();
    assert!(kernel::sock_diag::read_answer(&answer).unwrap().is_some());
    assert_eq!(kernel::sock_diag::read_answer(&refusal).unwrap_err().raw_os_error(), Some(libc::ENOENT));
}

#[test]
fn no_bytes_break_a_promise() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name}");
        let made = (0..INPUTS).map(|number| input(&seeds, number));
        for bytes in seeds.iter().cloned().chain(made) {
            if catch_unwind(AssertUnwindSafe(|| target(&bytes))).is_err() {
                panic!("{name} does not bear this: b\"{}\"", bytes.escape_ascii());
            }
        }
    }
}
