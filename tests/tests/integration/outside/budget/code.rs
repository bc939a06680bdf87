//! eBPF instructions as they are in the object, before any kernel has changed them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// bpf_map_lookup_elem.
pub const LOOKUP: i32 = 1;
/// bpf_sk_storage_get.
pub const STORAGE: i32 = 107;

/// `struct bpf_insn` of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub opcode: u8,
    pub destination: usize,
    pub source: usize,
    pub offset: i16,
    pub immediate: i32,
}

impl Instruction {
    pub fn read(bytes: [u8; 8]) -> Self {
        let [opcode, registers, o0, o1, i0, i1, i2, i3] = bytes;
        Self {
            opcode,
            destination: usize::from(registers & 15),
            source: usize::from(registers >> 4),
            offset: i16::from_le_bytes([o0, o1]),
            immediate: i32::from_le_bytes([i0, i1, i2, i3]),
        }
    }

    /// The number of the helper that it calls. Calls of functions of the object have a source of 1.
    pub fn helper(self) -> Option<i32> {
        (self.opcode == 0x85 && self.source == 0).then_some(self.immediate)
    }

    pub fn is_wide(self) -> bool {
        self.opcode == 0x18
    }
}

/// A function, and the tables that its wide loads name, by the index of the instruction.
#[derive(Debug, Default)]
pub struct Code {
    pub instructions: Vec<Instruction>,
    pub tables: BTreeMap<usize, String>,
}

/// What a function is made of. A wide load counts as two instructions, as it does in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    pub instructions: u64,
    /// Places where a table is asked. Values of .rodata are no look-ups: they are constants after loading.
    pub lookups: u64,
    pub storage: u64,
    /// Places where any other helper is called.
    pub others: u64,
}

impl Cost {
    pub fn add(&mut self, other: &Self) {
        self.instructions += other.instructions;
        self.lookups += other.lookups;
        self.storage += other.storage;
        self.others += other.others;
    }
}

impl Code {
    pub fn cost(&self) -> Cost {
        let mut cost = Cost { instructions: self.instructions.len() as u64, ..Cost::default() };
        let mut at = 0;
        while let Some(instruction) = self.instructions.get(at) {
            match instruction.helper() {
                Some(LOOKUP) => cost.lookups += 1,
                Some(STORAGE) => cost.storage += 1,
                Some(_) => cost.others += 1,
                None => {}
            }
            at += if instruction.is_wide() { 2 } else { 1 };
        }
        cost
    }
}
