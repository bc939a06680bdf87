//! From readings to a report: `compare write --host FILE [--vm FILE] --directory DIR --command WORDS`.

mod sections;
mod table;

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use super::readings::Readings;
use crate::page::Page;

/// The name of the report's files.
const NAME: &str = "compare";

const INTRO: &str = "Every candidate steers the clients of a network namespace (a host) of its own. All hosts and three \
nodes with backends hang on one bridge; frontends, backends and ports are the same for all. In each round every candidate has \
its turn, in another order each time (Williams squares, so that nobody always follows the same one); the first round of what has many only warms up. Numbers are medians with the least and \
the greatest of all samples; shares are means. The best value of a column is bold, whoever has it, with all whose samples \
overlap its own: within the noise they are equally good. Direct, the limit, is not judged. Proxies \
run beside the clients, so that a connection through them is two. Processor time is that of the whole machine (user, system, \
interrupts and soft interrupts in /proc/stat) with nothing subtracted: the clients' and the servers' own part is in it.\n\n\
The virtual machine is there for IPVS, which the host's kernel lacks. Its rows are emulated: compare them with the virtual \
machine's direct only; they are judged among themselves. IPVS has its defaults. TIME_WAIT is shortened for everybody, to 1 s in conntrack and to none in TCP, so that ports last: \
that is kind to proxies, which have two connections each. Peers are configured by the files in \
`tests/src/bin/sluice-bench/compare/peers`. keepalived takes no part: it would drive the same IPVS.";

/// Writes the report.
pub fn main(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let [mut host, mut vm, mut directory, mut command] = [const { None }; 4];
    while let Some(word) = arguments.next() {
        let value = Some(arguments.next().with_context(|| format!("{word} needs a value"))?);
        match word.as_str() {
            "--host" => host = value,
            "--vm" => vm = value,
            "--directory" => directory = value,
            "--command" => command = value,
            _ => bail!("unknown argument {word}"),
        }
    }
    let host = read(&host.context("no --host given")?)?;
    let vm = vm.map(|file| read(&file)).transpose()?;
    let command = command.context("no --command given")?;
    let page = Page {
        title: "Sluice and its alternatives".to_owned(),
        intro: INTRO.to_owned(),
        facts: facts(&host, vm.as_ref(), &command),
        sections: sections::all(&host, vm.as_ref()),
    };
    let directory = directory.context("no --directory given")?;
    page.write(Path::new(&directory), NAME)?;
    println!("{}", Path::new(&directory).join(NAME).with_extension("md").display());
    Ok(())
}

fn read(file: &str) -> Result<Readings> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
    serde_json::from_str(&text).with_context(|| format!("understanding {file}"))
}

fn facts(host: &Readings, vm: Option<&Readings>, command: &str) -> Vec<(String, String)> {
    let mut facts = vec![("command".to_owned(), format!("`{command}`"))];
    facts.extend(host.facts.iter().cloned());
    let there = vm.into_iter().flat_map(|vm| &vm.facts);
    facts.extend(there.map(|(name, value)| (format!("{name}, virtual machine"), value.clone())));
    facts
}
