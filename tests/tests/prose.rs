//! The repository's prose: links lead somewhere, and examples say what they are for.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Every page of the repository.
fn pages() -> Vec<PathBuf> {
    let (mut pages, mut left) = (Vec::new(), vec![root().to_owned()]);
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && name != ".git" {
                left.push(path);
            } else if name.ends_with(".md") {
                pages.push(path);
            }
        }
    }
    assert!(pages.len() > 5, "{pages:?}");
    pages
}

/// The lines of a page without its code: fenced or indented blocks, and spans.
fn words(page: &Path) -> Vec<String> {
    let mut fenced = false;
    let mut words = Vec::new();
    for line in fs::read_to_string(page).unwrap().lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced && !line.starts_with("    ") {
            words.push(line.split('`').step_by(2).collect());
        }
    }
    words
}

/// What the links of a page point to.
fn links(page: &Path) -> Vec<String> {
    let of_line = |line: &String| -> Vec<String> {
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        targets.map(|(target, _)| target.to_owned()).collect()
    };
    words(page).iter().flat_map(of_line).collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(page).unwrap();
    let headings = text
        .lines()
        .filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')));
    let anchor = |heading: &str| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_somewhere() {
    let (mut followed, mut dead) = (0, Vec::new());
    for page in pages() {
        for link in links(&page).into_iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            followed += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            if !target.exists() || (!anchor.is_empty() && !anchors(&target).contains(anchor)) {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(dead.is_empty(), "links that lead nowhere:\n{}", dead.join("\n"));
    assert!(followed > 20, "{followed} links");
}

#[test]
fn each_example_says_what_it_is_for_and_is_listed() {
    let directory = root().join("agent/docs");
    let listed = links(&directory.join("documents.md"));
    for entry in fs::read_dir(directory.join("examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let text = fs::read_to_string(directory.join("examples").join(&name)).unwrap();
        assert!(text.starts_with("# "), "{name} begins without a word on what it is for");
        assert!(listed.contains(&format!("examples/{name}")), "{name} is not listed in documents.md");
    }
}

/// The rows of a table that begin with a link to a file and go on with names in code: what a walk through the code shows.
fn steps(page: &Path) -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(page).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| ")).map(|line| line.split(" | ").collect::<Vec<_>>());
    let step = |cells: Vec<&str>| {
        let (_, rest) = cells.first()?.split_once("](")?;
        let file = rest.split_once(')')?.0.to_owned();
        let names = cells.get(1)?.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        file.ends_with(".rs").then_some((file, names))
    };
    rows.filter_map(step).collect()
}

#[test]
fn walks_name_what_is_there() {
    let page = root().join("agent/docs/architecture.md");
    let steps = steps(&page);
    assert!(steps.len() > 20, "{} steps", steps.len());
    let mut missing = Vec::new();
    for (file, names) in steps {
        let source = fs::read_to_string(page.parent().unwrap().join(&file)).unwrap();
        for name in names {
            // `Type::method` is the method of a type that may be declared elsewhere.
            let last = name.rsplit("::").next().unwrap();
            let is_declared = ["fn", "struct", "enum", "trait", "const", "macro_rules!"]
                .iter()
                .any(|keyword| source.contains(&format!("{keyword} {last}")));
            let is_variant = source.lines().any(|line| line.trim_start().starts_with(last));
            if !is_declared && !is_variant {
                missing.push(format!("{file}: {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "names that are not in their files:\n{}", missing.join("\n"));
}

#[test]
fn every_table_is_in_the_architecture() {
    let registry = fs::read_to_string(root().join("common/src/registry.rs")).unwrap();
    let page = fs::read_to_string(root().join("agent/docs/architecture.md")).unwrap();
    let rows = registry.lines().map(str::trim).filter(|line| line.contains("=>") && line.ends_with("];"));
    let tables: Vec<&str> = rows.filter_map(|row| row.split_whitespace().nth(1)?.strip_suffix(':')).collect();
    assert!(tables.len() > 20, "{tables:?}");
    let words: BTreeSet<&str> = page.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let missing: Vec<_> = tables.iter().filter(|table| !words.contains(**table)).collect();
    assert!(missing.is_empty(), "tables that the architecture does not name: {missing:?}");
}
