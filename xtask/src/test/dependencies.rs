//! What is depended on: under which licences, from where, and whether it is used at all. cargo-deny does more, and takes
//! minutes to install on a clean machine: it runs where somebody has done that.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, de::DeserializeOwned};
use spdx::{Expression, Licensee, ParseMode};

use crate::{
    build::{cargo, workspace},
    report::{self, Outcome},
};

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";
const RULES: &str = ".deny.toml";

/// What `cargo metadata` says.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    license: Option<String>,
    /// None of this workspace has one.
    source: Option<String>,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    rename: Option<String>,
}

#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

/// The part of the workspace's Cargo.toml that matters here.
#[derive(Deserialize)]
struct Root {
    workspace: Shared,
}

#[derive(Deserialize)]
struct Shared {
    dependencies: toml::Table,
}

/// Checks all of it.
pub fn check() -> Result<Outcome> {
    let output = cargo().args(["metadata", "--format-version", "1", "--locked"]).output().context("starting cargo")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let Metadata { packages, workspace_members } =
        serde_json::from_slice(&output.stdout).context("reading what cargo metadata says")?;
    let mut wrong = licences(&packages, &read::<Rules>(RULES)?.licenses.allow)?;
    let foreign = packages.iter().filter(|package| package.source.as_ref().is_some_and(|source| source != CRATES_IO));
    wrong.extend(foreign.map(|package| format!("{} does not come from crates.io", package.name)));
    let members: Vec<_> = packages.iter().filter(|package| workspace_members.contains(&package.id)).collect();
    wrong.extend(unused(&members, &read::<Root>("Cargo.toml")?.workspace.dependencies)?);
    if !wrong.is_empty() {
        return Ok(Outcome { failed: wrong.len() as u64, note: wrong.join("; "), ..Outcome::default() });
    }
    let mut deny = cargo();
    deny.args(["deny", "--config", RULES]);
    if !cargo().args(["deny", "--version"]).output().is_ok_and(|output| output.status.success()) {
        return Ok(Outcome {
            passed: 1,
            note: "without advisories: cargo-deny is not here".to_owned(),
            ..Outcome::default()
        });
    }
    report::check(deny.args(["check"]))
}

fn read<T: DeserializeOwned>(file: &str) -> Result<T> {
    let text = fs::read_to_string(workspace().join(file)).with_context(|| format!("reading {file}"))?;
    toml::from_str(&text).with_context(|| format!("reading {file}"))
}

/// Packages whose licence leaves no choice that is allowed.
fn licences(packages: &[Package], allowed: &[String]) -> Result<Vec<String>> {
    let allowed: Vec<Licensee> =
        allowed.iter().map(|text| Licensee::parse(text).map_err(anyhow::Error::msg)).collect::<Result<_>>()?;
    let may = |license: &str| {
        // As older packages write it: MIT/Apache-2.0.
        let expression = Expression::parse_mode(license, ParseMode::LAX).map_err(anyhow::Error::msg)?;
        anyhow::Ok(expression.evaluate(|wanted| allowed.iter().any(|license| license.satisfies(wanted))))
    };
    let mut wrong = Vec::new();
    for Package { name, license, .. } in packages {
        let license = license.as_deref().unwrap_or("none");
        if !may(license).unwrap_or(false) {
            wrong.push(format!("{name} has the licence {license}, which {RULES} does not allow"));
        }
    }
    Ok(wrong)
}

/// Dependencies that no source of their package names, and those of the workspace that no package has.
fn unused(members: &[&Package], shared: &toml::Table) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut known = BTreeSet::new();
    for Package { name, manifest_path, dependencies, .. } in members {
        let mut text = String::new();
        collect(manifest_path.parent().context("a manifest without a directory")?, &mut text)?;
        for dependency in dependencies {
            known.insert(dependency.name.as_str());
            let path = dependency.rename.as_ref().unwrap_or(&dependency.name).replace('-', "_");
            if !names(&text, &path) {
                wrong.push(format!("{name} does not use {}", dependency.name));
            }
        }
    }
    let forgotten = shared.keys().filter(|name| !known.contains(name.as_str()));
    wrong.extend(forgotten.map(|name| format!("no package of the workspace depends on {name}")));
    Ok(wrong)
}

/// Adds the code below a directory, without comments that fill a line.
fn collect(directory: &Path, text: &mut String) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, text)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let code = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            text.extend(code.lines().filter(|line| !line.trim_start().starts_with("//")).flat_map(|line| [line, "\n"]));
        }
    }
    Ok(())
}

/// Whether code has a path that begins with this name.
fn names(text: &str, name: &str) -> bool {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    text.match_indices(name).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + name.len()..]);
        let is_begin = !before.ends_with(is_word) && !before.ends_with("::");
        is_begin && (after.starts_with("::") || (before.ends_with("use ") && !after.starts_with(is_word)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(license: &str) -> Package {
        let (id, name, license) = (String::new(), "x".to_owned(), Some(license.to_owned()));
        Package { id, name, license, source: None, manifest_path: PathBuf::new(), dependencies: Vec::new() }
    }

    #[test]
    fn one_licence_of_a_choice_is_enough_and_of_a_sum_all() {
        let allowed = ["MIT", "MPL-2.0", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
        let wrong = |license: &str| !licences(&[package(license)], &allowed).unwrap().is_empty();
        for good in ["MIT", "GPL-3.0-only OR MIT", "Apache-2.0/MIT", "MPL-2.0+", "Apache-2.0 WITH LLVM-exception"] {
            assert!(!wrong(good), "{good}");
        }
        for bad in ["GPL-3.0-only", "MIT AND GPL-3.0-only", "Apache-2.0", "", "my own"] {
            assert!(wrong(bad), "{bad}");
        }
    }

    #[test]
    fn a_dependency_is_used_where_a_path_begins_with_it() {
        for used in ["serde::de::Error", "use serde;", "#[serde::main]", "pub use serde as s;", "(serde::x)"] {
            assert!(names(used, "serde"), "{used}");
        }
        for unused in ["use serde_json::Value;", "#[serde(default)]", "my_serde::x", "use crate::serde::x;"] {
            assert!(!names(unused, "serde"), "{unused}");
        }
    }
}
