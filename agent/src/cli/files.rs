//! Documents of `-f`: files, directories, standard input.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};
use clap::Args;

use super::failure::Failure;
use crate::model::{
    document::Document,
    parse::{self, DocumentFormat},
};

#[derive(Debug, Args)]
pub struct Sources {
    /// File of documents (YAML or JSON, several separated by `---`), directory of such files, or - for standard input;
    /// may be repeated
    #[arg(short = 'f', long = "filename", required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

impl Sources {
    /// All documents, checked, as a stream of JSON, and the place of each.
    ///
    /// # Errors
    /// When a file cannot be read, or a document is wrong; the message names the file.
    pub fn read(&self) -> Result<(Vec<u8>, Vec<String>), Failure> {
        let (mut stream, mut places) = (Vec::new(), Vec::new());
        for path in self.files()? {
            let bytes = read(&path)?;
            let documents = parse::documents(&bytes, format(&path));
            for parsed in documents.map_err(|refusal| anyhow!("{}: {refusal}", name(&path)))? {
                write(&parsed.document, &mut stream)?;
                stream.push(b'\n');
                places.push(format!("{}: {}", name(&path), parsed.document.key()));
            }
        }
        Ok((stream, places))
    }

    fn files(&self) -> Result<Vec<PathBuf>, Failure> {
        let mut files = Vec::new();
        for path in &self.paths {
            if !path.is_dir() {
                files.push(path.clone());
                continue;
            }
            let found = list(path).with_context(|| format!("reading the directory {}", path.display()))?;
            if found.is_empty() {
                return Err(anyhow!("{} has no *.yaml, *.yml or *.json file", path.display()).into());
            }
            files.extend(found);
        }
        Ok(files)
    }
}

fn list(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let extension = path.extension().and_then(|extension| extension.to_str());
        if !is_hidden && matches!(extension, Some("yaml" | "yml" | "json")) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let result = if is_stdin(path) {
        std::io::stdin().read_to_end(&mut bytes).map(drop)
    } else {
        fs::read(path).map(|read| bytes = read)
    };
    result.with_context(|| format!("reading {}", name(path)))?;
    Ok(bytes)
}

fn write(document: &Document, stream: &mut Vec<u8>) -> Result<(), Failure> {
    let written = match document {
        Document::Service(document) => serde_json::to_writer(stream, document),
        Document::Node(document) => serde_json::to_writer(stream, document),
    };
    Ok(written.context("writing a document")?)
}

fn format(path: &Path) -> DocumentFormat {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => DocumentFormat::Json,
        Some("yaml" | "yml") => DocumentFormat::Yaml,
        _ => DocumentFormat::Auto,
    }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn name(path: &Path) -> String {
    if is_stdin(path) { "standard input".into() } else { path.display().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "apiVersion: sluice.dev/v1\nkind: Node\nmetadata: {name: NAME}\n";

    fn sources(path: &Path) -> Sources {
        Sources { paths: vec![path.to_owned()] }
    }

    #[test]
    fn a_directory_gives_its_documents_in_the_order_of_names() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("b.yml"), format!("{}---\n{}", NODE.replace("NAME", "b"), NODE.replace("NAME", "c"))).unwrap();
        fs::write(at("a.yaml"), NODE.replace("NAME", "a")).unwrap();
        fs::write(at(".hidden.yaml"), "half").unwrap();
        fs::write(at("notes.txt"), "half").unwrap();
        let (stream, places) = sources(directory.path()).read().unwrap();
        assert!(places[1].ends_with("b.yml: node/b"), "{places:?}");
        let stream = String::from_utf8(stream).unwrap();
        let names: Vec<_> =
            stream.lines().map(|line| line.split("\"name\":\"").nth(1).unwrap().split('"').next()).collect();
        assert_eq!(names, [Some("a"), Some("b"), Some("c")]);

        fs::write(at("c.yaml"), "kind: Node\nmetadata: {name: N}").unwrap();
        let Err(Failure::Failed(error)) = sources(directory.path()).read() else { panic!() };
        assert!(error.to_string().contains("c.yaml"), "{error}");
    }

    #[test]
    fn a_directory_without_documents_is_a_mistake() {
        let directory = tempfile::tempdir().unwrap();
        assert!(sources(directory.path()).read().is_err());
        assert!(sources(&directory.path().join("none.yaml")).read().is_err());
    }
}
