//! Who may do what: everything over the Unix socket; over TCP reads, and writes only with the bearer token.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use axum::{
    extract::{Request, State},
    http::{Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use subtle::ConstantTimeEq;

use super::problem::Problem;

/// A read that is not free: watching decisions replaces programs.
const MONITOR: &str = "/v1/monitor";

/// What a listener lets its callers do.
#[derive(Clone, Debug)]
pub enum Access {
    Everything,
    ReadsOnly,
    /// Reads for all, writes for those who know the token.
    WritesWith(Token),
}

/// The secret of a token file.
#[derive(Clone)]
pub struct Token(Arc<[u8]>);

impl Token {
    /// Reads the token: all of the file, without white space around it.
    ///
    /// # Errors
    /// When the file cannot be read or is empty.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading the token file {}", path.display()))?;
        let token = text.trim();
        ensure!(!token.is_empty(), "the token file {} is empty: write a secret into it", path.display());
        ensure!(
            token.bytes().all(|byte| byte.is_ascii_graphic()),
            "the token in {} has characters that a header cannot carry: use letters, digits and punctuation",
            path.display()
        );
        Ok(Self::new(token))
    }

    pub fn new(token: &str) -> Self {
        Self(token.as_bytes().into())
    }

    /// Compares in a time that depends on the lengths only, so that nobody can feel their way to the secret.
    fn is(&self, given: &[u8]) -> bool {
        self.0.ct_eq(given).into()
    }
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
        Some(given) if token.is(given) => Ok(()),
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
    use super::*;

    #[test]
    fn a_token_is_all_of_it() {
        let token = Token::new("secret");
        assert!(token.is(b"secret"));
        for wrong in ["", "s", "secreT", "secret ", "secrets"] {
            assert!(!token.is(wrong.as_bytes()), "{wrong:?}");
        }
    }

    #[test]
    fn a_token_file_holds_one_secret() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, "  secret\n").unwrap();
        assert!(Token::read(&path).unwrap().is(b"secret"));
        for useless in ["\n", "two words"] {
            fs::write(&path, useless).unwrap();
            assert!(Token::read(&path).is_err(), "{useless:?}");
        }
        assert!(Token::read(&directory.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
