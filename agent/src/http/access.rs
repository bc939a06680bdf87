//! Who may do what: everything over the Unix socket; over TCP reads, and writes only with the bearer token.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use axum::{
    extract::{Request, State},
    http::{Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use subtle::ConstantTimeEq;

use super::problem::Problem;
use crate::host::ownership;

/// A read that is not free: watching decisions replaces programs.
const MONITOR: &str = "/v1/monitor";

/// What a listener lets its callers do.
#[derive(Clone, Debug)]
pub enum Access {
    Everything,
    ReadsOnly,
    /// Reads for all, writes for those who know the token.
    WritesWith(TokenFile),
}

/// Shortest token, in bytes: a shorter one can be guessed.
const SHORTEST: usize = 16;
/// Longest file of a token, in bytes.
const LONGEST: u64 = 4096;

/// The file of a token, which is read again whenever it is another one.
#[derive(Clone, Debug)]
pub struct TokenFile {
    path: PathBuf,
    held: Arc<Mutex<HeldToken>>,
}

#[derive(Debug)]
struct HeldToken {
    file: Option<Version>,
    /// `None`: the file is of no use, and nobody gets in.
    token: Option<Token>,
}

/// Differs when the file was written or replaced: inode, size, and when it was changed.
type Version = (u64, u64, i64, i64);

/// The secret of a token file.
struct Token(Box<[u8]>);

impl TokenFile {
    /// Reads the token: all of the file, without white space around it.
    ///
    /// # Errors
    /// When the file cannot be read, holds no token that is long enough, or others may write it.
    pub fn open(path: &Path) -> Result<Self> {
        let (token, file) = Token::read(path)?;
        let held = HeldToken { file: Some(file), token: Some(token) };
        Ok(Self { path: path.to_owned(), held: Arc::new(Mutex::new(held)) })
    }

    /// Whether `given` is the token that the file holds now.
    fn holds(&self, given: &[u8]) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let file = fs::metadata(&self.path).ok().map(|metadata| version(&metadata));
        if file.is_none() || file != held.file {
            held.token = match Token::read(&self.path) {
                Ok((token, file)) => {
                    tracing::info!("the token is read again: {} is another file than before", self.path.display());
                    held.file = Some(file);
                    Some(token)
                }
                Err(error) => {
                    // Said once of each version.
                    if held.token.is_some() || held.file != file {
                        tracing::error!("writes over TCP are refused: {error:#}");
                    }
                    held.file = file;
                    None
                }
            };
        }
        held.token.as_ref().is_some_and(|token| token.is(given))
    }
}

impl Token {
    fn read(path: &Path) -> Result<(Self, Version)> {
        let reading = || format!("reading the token file {}", path.display());
        ownership::check(path).with_context(reading)?;
        let (text, metadata) = ownership::read_text(path, LONGEST).with_context(reading)?;
        let token = text.trim();
        ensure!(
            token.len() >= SHORTEST,
            "the token in {} has {} characters, and can be guessed: write {SHORTEST} or more, as `openssl rand -hex 32` does",
            path.display(),
            token.len()
        );
        ensure!(
            token.bytes().all(|byte| byte.is_ascii_graphic()),
            "the token in {} has characters that a header cannot carry: use letters, digits and punctuation",
            path.display()
        );
        if metadata.mode() & 0o004 != 0 {
            tracing::warn!("everybody on this host may read the token in {}: `chmod o-r` it", path.display());
        }
        Ok((Self(token.as_bytes().into()), version(&metadata)))
    }

    /// Compares in a time that depends on the lengths only, so that nobody can feel their way to the secret.
    fn is(&self, given: &[u8]) -> bool {
        self.0.ct_eq(given).into()
    }
}

fn version(metadata: &Metadata) -> Version {
    (metadata.ino(), metadata.size(), metadata.ctime(), metadata.ctime_nsec())
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(secret)")
    }
}

/// Lets a request pass, or answers why not.
pub async fn check(State(access): State<Access>, request: Request, next: Next) -> Response {
    match allow(&access, &request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn allow(access: &Access, request: &Request) -> Result<(), Problem> {
    if is_read(request.method()) && request.uri().path() != MONITOR {
        return Ok(());
    }
    let token = match access {
        Access::Everything => return Ok(()),
        Access::ReadsOnly => {
            let detail = "this address serves reads only: use the Unix socket, or start the agent with --token-file";
            return Err(Problem::new(StatusCode::FORBIDDEN, detail));
        }
        Access::WritesWith(token) => token,
    };
    let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let bearer = given.and_then(|value| {
        let (scheme, credentials) = value.split_at_checked("bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(credentials.trim_ascii())
    });
    match bearer {
        Some(given) if token.holds(given) => Ok(()),
        Some(_) => Err(Problem::new(StatusCode::UNAUTHORIZED, "the token is another one")),
        None => {
            let detail = "writes need the agent's token: send `Authorization: Bearer TOKEN` (sluice --token-file FILE)";
            Err(Problem::new(StatusCode::UNAUTHORIZED, detail))
        }
    }
}

/// Methods that change nothing.
pub fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SECRET: &str = "0123456789abcdef";

    #[test]
    fn a_token_is_all_of_it() {
        let token = Token(SECRET.as_bytes().into());
        assert!(token.is(SECRET.as_bytes()));
        for wrong in ["", "0", "0123456789abcdeF", "0123456789abcdef ", "0123456789abcdef0"] {
            assert!(!token.is(wrong.as_bytes()), "{wrong:?}");
        }
    }

    #[test]
    fn a_token_file_holds_one_secret_that_cannot_be_guessed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, format!("  {SECRET}\n")).unwrap();
        assert!(TokenFile::open(&path).unwrap().holds(SECRET.as_bytes()));
        for useless in ["\n", "short", "two words of sixteen"] {
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
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, SECRET).unwrap();
        let file = TokenFile::open(&path).unwrap();
        let new = "another-secret-of-more";
        fs::write(&path, new).unwrap();
        assert!(!file.holds(SECRET.as_bytes()) && file.holds(new.as_bytes()));
        fs::remove_file(&path).unwrap();
        assert!(!file.holds(new.as_bytes()) && !file.holds(b""));
        fs::write(&path, SECRET).unwrap();
        assert!(file.holds(SECRET.as_bytes()));
    }
}
