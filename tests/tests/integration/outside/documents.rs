//! What the documentation shows is true: its documents are accepted, its commands exist. The pages are on the host only.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};

use crate::stage::Stage;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The pages that users read, by name.
fn pages() -> Result<BTreeMap<String, String>> {
    let docs = Path::new(ROOT).join("agent/docs");
    let listed = fs::read_dir(&docs).context("listing agent/docs")?;
    let mut files: Vec<_> = listed.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "md"));
    files.push(Path::new(ROOT).join("README.md"));
    let read = |file: &std::path::PathBuf| {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        Ok((name, fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?))
    };
    files.iter().map(read).collect()
}

/// The fenced blocks of a page in this language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let (mut blocks, mut inside) = (Vec::new(), None);
    for line in page.lines() {
        match (&mut inside, line.strip_prefix("```")) {
            (None, Some(found)) => inside = Some((found == language, String::new())),
            (Some((wanted, block)), Some(_)) => {
                if *wanted {
                    blocks.push(std::mem::take(block));
                }
                inside = None;
            }
            (Some((_, block)), None) => *block += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    blocks
}

/// The words of each `sluice ...` in code: indented lines and spans.
fn commands(page: &str) -> Vec<Vec<String>> {
    let code = page.lines().flat_map(|line| match line.strip_prefix("    ") {
        Some(code) => vec![code.trim()],
        None => line.split('`').skip(1).step_by(2).collect(),
    });
    let called = code.filter_map(|code| code.strip_prefix("sluice "));
    let end = |word: &&str| !matches!(*word, "#" | "&" | "|" | "&&");
    called.map(|rest| rest.split_whitespace().take_while(end).map(str::to_owned).collect()).collect()
}

/// Runs a verb that must succeed; returns what it printed.
#[track_caller]
fn run(stage: &Stage, words: &[&str]) -> String {
    let output = stage.agent.cli(words).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "sluice {}: {said}", words.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn host_examples_go_together_and_steer() -> Result<()> {
    let stage = Stage::new("examples")?;
    run(&stage, &["apply", "-f", &format!("{ROOT}/agent/docs/examples")]);
    let services = stage.agent.get("/v1/services")?.expect_status(200).json();
    let services = services["items"].as_array().context("a list of services")?;
    assert!(services.len() > 5, "{} services", services.len());
    for service in services {
        for frontend in service["spec"]["frontends"].as_array().context("a list of frontends")? {
            let frontend = frontend.as_str().context("a frontend")?;
            assert!(run(&stage, &["explain", frontend]).contains(service["metadata"]["name"].as_str().unwrap()));
        }
    }
    Ok(())
}

#[test]
fn host_documents_in_pages_are_accepted() -> Result<()> {
    let stage = Stage::new("pages")?;
    let directory = tempfile::tempdir()?;
    let mut accepted = BTreeMap::new();
    for (name, page) in pages()? {
        for block in blocks(&page, "yaml") {
            let is_ours = block.contains("apiVersion: sluice.dev/");
            assert!(is_ours || !block.contains("kind: SteeredService"), "a part of a document in {name}:\n{block}");
            if is_ours {
                let file = directory.path().join("block.yaml");
                fs::write(&file, &block)?;
                println!("{name}:\n{block}");
                run(&stage, &["apply", "--dry-run", "-f", &file.to_string_lossy()]);
                *accepted.entry(name.clone()).or_insert(0) += 1;
            }
        }
    }
    for page in ["README.md", "documents.md", "joining.md", "outliers.md"] {
        assert!(accepted.contains_key(page), "no document in {page}: {accepted:?}");
    }
    Ok(())
}

#[test]
fn host_commands_in_pages_exist() -> Result<()> {
    let stage = Stage::new("commands")?;
    let mut helps: BTreeMap<String, String> = BTreeMap::new();
    for (name, page) in pages()? {
        for words in commands(&page) {
            let Some(verb) = words.first().filter(|verb| verb.chars().all(|c| c.is_ascii_lowercase())) else {
                continue;
            };
            let help = helps.entry(verb.clone()).or_insert_with(|| run(&stage, &[verb, "--help"]));
            for flag in words.iter().filter(|word| word.starts_with("--")) {
                let flag = flag.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
                assert!(help.contains(flag), "{name}: sluice {} has no {flag}", words.join(" "));
            }
        }
    }
    assert!(helps.len() > 10, "{:?}", helps.keys());
    // And the other way round: a verb that nobody is told of is missing.
    let help = run(&stage, &["--help"]);
    let verbs = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let verbs = verbs.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    for verb in verbs.filter(|verb| *verb != "help") {
        assert!(pages()?["commands.md"].contains(&format!("| `sluice {verb}")), "commands.md has no {verb}");
    }
    Ok(())
}
