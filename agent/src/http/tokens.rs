//! Files of bearer tokens, which are read again when they change.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};
use subtle::ConstantTimeEq;

use crate::host::ownership::{self, Version};

/// Shortest token, in bytes: a shorter one can be guessed.
const SHORTEST: usize = 16;
/// Longest file, in bytes.
const LONGEST: u64 = 64 << 10;

/// A file with a token in each line, and with its name before it where there are several.
#[derive(Clone, Debug)]
pub struct TokenFile {
    path: PathBuf,
    held: Arc<Mutex<HeldTokens>>,
}

#[derive(Debug)]
struct HeldTokens {
    version: Option<Version>,
    /// Empty: the file is of no use, and nobody gets in.
    tokens: Vec<Token>,
}

/// One secret, and what it is called.
struct Token {
    name: Arc<str>,
    secret: Box<[u8]>,
}

impl TokenFile {
    /// Reads the tokens.
    ///
    /// # Errors
    /// When the file cannot be read, a token in it is too short, or others may write it.
    pub fn open(path: &Path) -> Result<Self> {
        let (tokens, version) = read(path)?;
        let held = HeldTokens { version: Some(version), tokens };
        Ok(Self { path: path.to_owned(), held: Arc::new(Mutex::new(held)) })
    }

    /// The name of a token that the file holds now.
    pub fn find(&self, given: &[u8]) -> Option<Arc<str>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let version = ownership::version(&self.path);
        if version.is_none() || version != held.version {
            match read(&self.path) {
                Ok((tokens, version)) => {
                    tracing::info!("{} has changed: its tokens are read again", self.path.display());
                    *held = HeldTokens { version: Some(version), tokens };
                }
                Err(error) => {
                    // Said once of each version.
                    if !held.tokens.is_empty() || held.version != version {
                        tracing::error!("nobody gets in by a token of this file: {error:#}");
                    }
                    *held = HeldTokens { version, tokens: Vec::new() };
                }
            }
        }
        // All are compared: the time tells nothing but how many there are.
        held.tokens.iter().filter(|token| token.is(given)).fold(None, |_, token| Some(token.name.clone()))
    }
}

fn read(path: &Path) -> Result<(Vec<Token>, Version)> {
    read_tokens(path).with_context(|| format!("reading the token file {}", path.display()))
}

fn read_tokens(path: &Path) -> Result<(Vec<Token>, Version)> {
    ownership::check(path)?;
    let (text, metadata) = ownership::read_text(path, LONGEST)?;
    let mut tokens: Vec<Token> = Vec::new();
    // A line that somebody has taken out by a `#` must not let anybody in.
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let token = Token::read(line, path)?;
        ensure!(tokens.iter().all(|other| other.name != token.name), "two of its tokens are called {}", token.name);
        tokens.push(token);
    }
    ensure!(!tokens.is_empty(), "it is empty: write a token of {SHORTEST} characters or more into it");
    ownership::warn_if_open(path, "the token")?;
    Ok((tokens, ownership::version_of(&metadata)))
}

impl Token {
    /// Of a line. A token that has no name is called as its file is.
    fn read(line: &str, path: &Path) -> Result<Self> {
        let words: Vec<_> = line.split_whitespace().collect();
        let (name, secret) = match words[..] {
            [secret] => (path.file_name().unwrap_or_default().to_string_lossy(), secret),
            [name, secret] => (name.into(), secret),
            _ => bail!("a line of it is neither TOKEN nor NAME TOKEN"),
        };
        ensure!(
            secret.len() >= SHORTEST,
            "a token of {} characters can be guessed: write {SHORTEST} or more, as `openssl rand -hex 32` does",
            secret.len()
        );
        ensure!(
            line.chars().all(|letter| !letter.is_control()) && secret.bytes().all(|byte| byte.is_ascii_graphic()),
            "a token has characters that a header cannot carry: use letters, digits and punctuation"
        );
        Ok(Self { name: name.as_ref().into(), secret: secret.as_bytes().into() })
    }

    /// Compares in a time that depends on the lengths only, so that nobody can feel their way to the secret.
    fn is(&self, given: &[u8]) -> bool {
        self.secret.ct_eq(given).into()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token({}, secret)", self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    const SECRET: &str = "0123456789abcdef";

    #[test]
    fn a_commented_line_lets_nobody_in() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        for (text, names) in [(format!("# {SECRET}old\nops {SECRET}\n"), Some(1)), (format!("#{SECRET}\n"), None)] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert_eq!(read_tokens(&path).ok().map(|(tokens, _)| tokens.len()), names);
        }
    }

    fn file() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ops-token");
        (directory, path)
    }

    #[test]
    fn a_token_is_all_of_it() {
        let token = Token::read(SECRET, Path::new("/x")).unwrap();
        assert!(token.is(SECRET.as_bytes()));
        for wrong in ["", "0", "0123456789abcdeF", "0123456789abcdef ", "0123456789abcdef0"] {
            assert!(!token.is(wrong.as_bytes()), "{wrong:?}");
        }
        assert!(!format!("{token:?}").contains(SECRET));
    }

    #[test]
    fn a_token_file_holds_secrets_that_cannot_be_guessed() {
        let (directory, path) = file();
        fs::write(&path, format!("  {SECRET}\n")).unwrap();
        assert_eq!(TokenFile::open(&path).unwrap().find(SECRET.as_bytes()).as_deref(), Some("ops-token"));
        for useless in
            ["\n", "short", "two short", "three words of-more-than-sixteen", "a 0123456789abcdef\na fedcba9876543210"]
        {
            fs::write(&path, useless).unwrap();
            assert!(TokenFile::open(&path).is_err(), "{useless:?}");
        }
        assert!(format!("{:#}", TokenFile::open(&directory.path().join("none")).unwrap_err()).contains("none"));
        fs::write(&path, SECRET).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let refused = format!("{:#}", TokenFile::open(&path).unwrap_err());
        assert!(refused.contains("everybody may write it"), "{refused}");
    }

    #[test]
    fn a_changed_token_holds_at_once_and_a_lost_one_lets_nobody_in() {
        let (_directory, path) = file();
        fs::write(&path, SECRET).unwrap();
        let file = TokenFile::open(&path).unwrap();
        let new = "another-secret-of-more";
        fs::write(&path, format!("ann {new}\n\nbob {SECRET}0\n")).unwrap();
        assert_eq!(file.find(SECRET.as_bytes()), None);
        assert_eq!(file.find(new.as_bytes()).as_deref(), Some("ann"));
        assert_eq!(file.find(b"0123456789abcdef0").as_deref(), Some("bob"));
        fs::remove_file(&path).unwrap();
        assert_eq!((file.find(new.as_bytes()), file.find(b"")), (None, None));
        fs::write(&path, SECRET).unwrap();
        assert!(file.find(SECRET.as_bytes()).is_some());
    }
}
