//! The page of the curves.

use anyhow::Result;
use jiff::Timestamp;
use sluice_tests::agent;
use std::process::Command;

use super::{Curve, QUANTITIES};
use crate::{
    Scale,
    page::{Chart, Line, Page, Section},
    report::{commit, kernel, processor, processors, shown},
};

/// Quantities of one plot: its title, its axis and the quantities' numbers.
const PLOTS: [(&str, &str, &[usize]); 3] =
    [("In the program", "ns", &[0, 1, 2]), ("Time of a change", "us", &[3, 4]), ("Memory", "MiB", &[5, 6])];

/// Writes `curves.md` and its plots.
pub fn write(curves: &[Curve], scale: Scale) -> Result<()> {
    let quick = if scale.quick { " --quick" } else { "" };
    let part = scale.part.map(|part| format!("/{part}")).unwrap_or_default();
    let facts = [
        ("machine", format!("{}, {} processors", processor(), processors())),
        ("kernel", format!("Linux {}", kernel())),
        ("version", version()?),
        ("commit", commit().unwrap_or_default()),
        ("date", Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string()),
        ("command", format!("`cargo xtask bench --filter curves{part}{quick} --publish`")),
    ];
    let page = Page {
        title: "How Sluice grows".to_owned(),
        intro: "Nanoseconds are those in the program, by the kernel's clock, two readings of it included; each number is a \
                median. The kernel's tables are made as large as each point needs."
            .to_owned(),
        facts: facts.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        sections: curves.iter().map(section).collect(),
    };
    page.write(scale.pages, "curves")?;
    println!("\n{}", scale.pages.join("curves.md").display());
    Ok(())
}

fn version() -> Result<String> {
    let output = Command::new(agent::program()?).arg("--version").output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn section(curve: &Curve) -> Section {
    let columns = [curve.what].into_iter().chain(QUANTITIES.map(|(name, _)| name));
    let row = |(size, values): &(u64, [f64; QUANTITIES.len()])| {
        let cells = QUANTITIES.iter().zip(values).map(|((_, unit), value)| shown(*value, *unit));
        [size.to_string()].into_iter().chain(cells).collect()
    };
    let chart = |(title, unit, quantities): (&str, &str, &[usize])| Chart::Lines {
        title: format!("{title} against {}", curve.what),
        x: curve.what.to_owned(),
        y: unit.to_owned(),
        lines: quantities.iter().map(|quantity| line(curve, *quantity)).collect(),
    };
    Section {
        title: curve.group.trim_start_matches("Curves: ").to_owned(),
        text: curve.note.clone(),
        columns: columns.map(str::to_owned).collect(),
        rows: curve.points.iter().map(row).collect(),
        charts: PLOTS.map(chart).to_vec(),
    }
}

fn line(curve: &Curve, quantity: usize) -> Line {
    let points = curve.points.iter().map(|(size, values)| (*size as f64, values[quantity])).collect();
    Line { label: QUANTITIES[quantity].0.to_owned(), points }
}
