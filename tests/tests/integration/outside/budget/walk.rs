//! Every way through a program, and how many look-ups are on it.
//!
//! Of a register it is known which table it names, and whether it holds what a look-up found: so the ways on which a table
//! has nothing are told from those on which it has. Everything else may go either way. A loop is gone through once.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::code::{Code, Instruction, LOOKUP, STORAGE};

/// Look-ups between a program's first instruction and its end, socket storage included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    pub fewest: u64,
    pub most: u64,
}

/// Registers r0 to r10.
const REGISTERS: usize = 11;

/// What is known of a register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Known {
    #[default]
    Nothing,
    /// It names the table of the wide load at this index.
    Table(usize),
    /// A look-up that found nothing.
    Null,
    /// A look-up that found something.
    Found,
}

type Registers = [Known; REGISTERS];

/// The fewest and the most look-ups, when these tables have nothing and all others have everything. `None` where no way
/// comes to an end.
pub fn reach(code: &Code, misses: &[&str]) -> Option<Reach> {
    Walk { code, misses, seen: HashMap::new() }.from(0, Registers::default())
}

struct Walk<'a> {
    code: &'a Code,
    misses: &'a [&'a str],
    /// From where a branch led. `None` while it is looked at, and where it comes to no end.
    seen: HashMap<(usize, Registers), Option<Reach>>,
}

impl Walk<'_> {
    fn from(&mut self, at: usize, registers: Registers) -> Option<Reach> {
        if let Some(reach) = self.seen.get(&(at, registers)) {
            return *reach;
        }
        self.seen.insert((at, registers), None);
        let reach = self.straight(at, registers);
        self.seen.insert((at, registers), reach);
        reach
    }

    /// To the next branch, and from there on.
    fn straight(&mut self, mut at: usize, mut registers: Registers) -> Option<Reach> {
        let mut lookups = 0;
        let rest = loop {
            let instruction = *self.code.instructions.get(at)?;
            let next = at + if instruction.is_wide() { 2 } else { 1 };
            let jump = next.checked_add_signed(isize::from(instruction.offset));
            match instruction.opcode {
                EXIT => break Some(Reach { fewest: 0, most: 0 }),
                GOTO => break self.from(jump?, registers),
                CALL => {
                    lookups += u64::from(matches!(instruction.helper(), Some(LOOKUP | STORAGE)));
                    let found = self.call(instruction, &registers);
                    registers[..=5].fill(Known::Nothing);
                    registers[0] = found;
                }
                WIDE => {
                    let named = self.code.tables.contains_key(&at);
                    registers[instruction.destination] = if named { Known::Table(at) } else { Known::Nothing };
                }
                COPY if instruction.offset == 0 => {
                    registers[instruction.destination] = registers[instruction.source];
                }
                opcode if matches!(opcode & 7, JUMP | JUMP32) => {
                    break match goes(instruction, registers[instruction.destination]) {
                        Some(true) => self.from(jump?, registers),
                        Some(false) => self.from(next, registers),
                        None => either(self.from(next, registers), self.from(jump?, registers)),
                    };
                }
                opcode if matches!(opcode & 7, LOAD | ALU | ALU64) => {
                    registers[instruction.destination] = Known::Nothing;
                }
                opcode if opcode & 0xe7 == ATOMIC => {
                    registers[instruction.source] = Known::Nothing;
                    registers[0] = Known::Nothing;
                }
                _ => {}
            }
            at = next;
        };
        rest.map(|rest| Reach { fewest: rest.fewest + lookups, most: rest.most + lookups })
    }

    /// What r0 holds after a call. The first argument names the table.
    fn call(&self, instruction: Instruction, registers: &Registers) -> Known {
        let (Some(LOOKUP | STORAGE), Known::Table(load)) = (instruction.helper(), registers[1]) else {
            return Known::Nothing;
        };
        let name = self.code.tables.get(&load).map(String::as_str).unwrap_or_default();
        if self.misses.contains(&name) { Known::Null } else { Known::Found }
    }
}

const EXIT: u8 = 0x95;
const GOTO: u8 = 0x05;
const CALL: u8 = 0x85;
const WIDE: u8 = 0x18;
const COPY: u8 = 0xbf;
/// Classes of instructions: the low three bits.
const LOAD: u8 = 1;
const ALU: u8 = 4;
const JUMP: u8 = 5;
const JUMP32: u8 = 6;
const ALU64: u8 = 7;
/// Without the bits for the size.
const ATOMIC: u8 = 0xc3;

/// Whether a comparison with zero jumps, where that is known.
fn goes(instruction: Instruction, known: Known) -> Option<bool> {
    let jumps_on_null = match (instruction.opcode, instruction.immediate) {
        (0x15, 0) => true,
        (0x55, 0) => false,
        _ => return None,
    };
    match known {
        Known::Null => Some(jumps_on_null),
        Known::Found => Some(!jumps_on_null),
        Known::Nothing | Known::Table(_) => None,
    }
}

fn either(one: Option<Reach>, other: Option<Reach>) -> Option<Reach> {
    match (one, other) {
        (Some(one), Some(other)) => {
            Some(Reach { fewest: one.fewest.min(other.fewest), most: one.most.max(other.most) })
        }
        (way, None) | (None, way) => way,
    }
}

#[test]
fn a_look_up_that_finds_nothing_ends_the_way() {
    // r1 = TABLE; call 1; if r0 == 0 goto the end; call 1; the end: exit
    let words: [[u8; 8]; 6] = [
        [0x18, 0x01, 0, 0, 0, 0, 0, 0],
        [0; 8],
        [0x85, 0, 0, 0, 1, 0, 0, 0],
        [0x15, 0, 1, 0, 0, 0, 0, 0],
        [0x85, 0, 0, 0, 1, 0, 0, 0],
        [0x95, 0, 0, 0, 0, 0, 0, 0],
    ];
    let instructions = words.map(Instruction::read).to_vec();
    let code = Code { instructions, tables: [(0, "TABLE".to_owned())].into() };
    assert_eq!(reach(&code, &["TABLE"]), Some(Reach { fewest: 1, most: 1 }));
    assert_eq!(reach(&code, &["OTHER"]), Some(Reach { fewest: 2, most: 2 }));
}
