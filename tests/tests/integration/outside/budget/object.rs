//! The eBPF object inside the agent's program.

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SymbolKind, elf::EM_BPF, read::elf::ElfFile64};

use super::code::{Code, Instruction};

/// ELF, 64 bits, little endian, version 1.
const MAGIC: &[u8] = b"\x7fELF\x02\x01\x01";
/// Where an ELF header has its machine.
const MACHINE: usize = 18;
/// Functions that programs call are here.
const SHARED: &str = ".text";
/// A program that the object of the observed ones does not have.
const FOLLOWING: &str = "sock_ops";

/// A program, or a function that programs share.
#[derive(Debug)]
pub struct Function {
    /// The program's name; `.text` of what is shared.
    pub program: String,
    pub code: Code,
}

/// Finds the objects in the agent's program, and every function of the one that steers while nobody watches.
pub fn functions(binary: &[u8]) -> Result<Vec<Function>> {
    let machine = EM_BPF.to_le_bytes();
    let is_object = |at: &usize| binary[*at..].starts_with(MAGIC) && binary[*at + MACHINE..].starts_with(&machine);
    let starts = (0..binary.len().saturating_sub(MACHINE + 2)).filter(is_object);
    let objects = starts.map(|start| functions_of(&binary[start..])).collect::<Result<Vec<_>>>()?;
    let is_whole = |functions: &Vec<Function>| functions.iter().any(|function| function.program == FOLLOWING);
    let whole: Vec<_> = objects.into_iter().filter(is_whole).collect();
    let [_] = whole[..] else { bail!("{} eBPF objects with {FOLLOWING} in the agent instead of one", whole.len()) };
    Ok(whole.into_iter().flatten().collect())
}

fn functions_of(object: &[u8]) -> Result<Vec<Function>> {
    let object = ElfFile64::<object::Endianness>::parse(object).context("reading the eBPF object")?;
    let mut functions = Vec::new();
    for symbol in object.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let index = symbol.section_index().context("a function without a section")?;
        let section = object.section_by_index(index)?;
        let range = symbol.address()..symbol.address() + symbol.size();
        let bytes = section.data_range(range.start, symbol.size())?.context("a function beyond its section")?;
        let (words, rest) = bytes.as_chunks::<8>();
        ensure!(rest.is_empty(), "a function with half an instruction");
        let mut code =
            Code { instructions: words.iter().map(|word| Instruction::read(*word)).collect(), ..Code::default() };
        for (at, relocation) in section.relocations().filter(|(at, _)| range.contains(at)) {
            if let RelocationTarget::Symbol(target) = relocation.target() {
                let name = object.symbol_by_index(target)?.name()?.to_owned();
                code.tables.insert(usize::try_from((at - range.start) / 8)?, name);
            }
        }
        let program = if section.name()? == SHARED { SHARED } else { symbol.name()? };
        functions.push(Function { program: program.to_owned(), code });
    }
    Ok(functions)
}
