//! Who may do what: everything over the Unix socket; over TCP what a token's or a certificate's role allows, and without
//! one the reads that nobody has locked up.

use std::{fmt, future::pending, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tokio::time::sleep;

use super::{problem::Problem, requester::RequestPeer, tokens::TokenFile};

/// A read that is not free: watching decisions replaces programs.
const MONITOR: &str = "/v1/monitor";
/// How often those are asked again who read an answer without an end.
const AGAIN: Duration = Duration::from_secs(1);
/// Reads of monitors and health checks, which have no secrets.
const OPEN: [&str; 3] = ["/metrics", "/healthz", "/readyz"];

/// What somebody may do; each includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Read,
    Operate,
}

/// What a listener lets its callers do.
#[derive(Clone, Debug)]
pub enum Access {
    Everything,
    Guarded(Arc<Gate>),
}

/// Who gets which role over TCP.
#[derive(Debug, Default)]
pub struct Gate {
    /// Tokens of the role operate.
    pub operate: Option<TokenFile>,
    /// Tokens of the role read. With them, reads are not free.
    pub read: Option<TokenFile>,
    /// Whether callers may show certificates: their role is read. With them, reads are not free.
    pub certificates: bool,
    /// Certificates of the role operate, by subject or name.
    pub operators: Vec<String>,
}

/// Who asked for a change, in words; each request that may change something has it as an extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestAuthor(pub Arc<str>);

/// What a read was let in by; each has it as an extension. Answers without an end ask it again.
#[derive(Clone, Debug)]
pub struct Admission(Option<Guarded>);

/// Over TCP.
#[derive(Clone, Debug)]
struct Guarded {
    gate: Arc<Gate>,
    wanted: Role,
    requester: Option<RequestPeer>,
    bearer: Option<Box<[u8]>>,
}

impl Access {
    /// What a request finds on TCP when nothing is set up: reads for all.
    pub fn reads_only() -> Self {
        Self::Guarded(Arc::default())
    }
}

/// Lets a request pass, or answers why not.
pub async fn check(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    let has_certificate = request.extensions().get::<RequestPeer>().is_some_and(|peer| peer.certificate().is_some());
    let allowed = allow(&access, &request);
    match allowed {
        Ok((author, admission)) => {
            if is_read(request.method()) {
                request.extensions_mut().insert(admission);
            } else {
                request.extensions_mut().insert(author);
            }
            next.run(request).await
        }
        Err(problem) => {
            // Nobody vouches for a certificate any more that has got no role. Whoever has another one comes again with it.
            let is_over = problem.status == StatusCode::UNAUTHORIZED && has_certificate;
            let mut response = problem.into_response();
            if is_over {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    }
}

fn allow(access: &Access, request: &Request) -> Result<(RequestAuthor, Admission), Problem> {
    let path = request.uri().path();
    let requester = request.extensions().get::<RequestPeer>();
    let gate = match access {
        Access::Guarded(gate) if !OPEN.contains(&path) || !is_read(request.method()) => gate,
        Access::Everything | Access::Guarded(_) => return Ok((RequestAuthor::new(requester, None), Admission(None))),
    };
    let wanted = if is_read(request.method()) && path != MONITOR { Role::Read } else { Role::Operate };
    let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let bearer = given.and_then(|value| {
        let (scheme, credentials) = value.split_at_checked("bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(credentials.trim_ascii())
    });
    let author = gate.admit(wanted, requester, bearer)?;
    let (requester, bearer) = (requester.cloned(), bearer.map(Into::into));
    Ok((author, Admission(Some(Guarded { gate: gate.clone(), wanted, requester, bearer }))))
}

impl Admission {
    /// Returns once the token or certificate that it was given for holds no longer.
    pub async fn lapsed(&self) {
        let Some(Guarded { gate, wanted, requester, bearer }) = &self.0 else { return pending().await };
        while gate.admit(*wanted, requester.as_ref(), bearer.as_deref()).is_ok() {
            sleep(AGAIN).await;
        }
    }
}

impl Gate {
    fn admit(
        &self,
        wanted: Role,
        requester: Option<&RequestPeer>,
        bearer: Option<&[u8]>,
    ) -> Result<RequestAuthor, Problem> {
        let of = |tokens: &Option<TokenFile>, role| Some((role, tokens.as_ref()?.find(bearer?)?));
        let by_token = of(&self.operate, Role::Operate).or_else(|| of(&self.read, Role::Read));
        let by_token = by_token.map(|(role, name)| (role, RequestAuthor::new(requester, Some(&name))));
        let by_certificate = self.certified(requester).map(|role| (role, RequestAuthor::new(requester, None)));
        let best = by_token.into_iter().chain(by_certificate).max_by_key(|(role, _)| *role);
        match best {
            Some((role, author)) if role >= wanted => Ok(author),
            _ if wanted == Role::Read && !self.locks_reads() => Ok(RequestAuthor::new(requester, None)),
            _ if wanted == Role::Operate && self.operate.is_none() && self.operators.is_empty() => {
                let detail =
                    "this address serves reads only: use the Unix socket, or start the agent with --token-file";
                Err(Problem::new(StatusCode::FORBIDDEN, detail))
            }
            Some((role, RequestAuthor(who))) => {
                let detail = format!("{who} has the role {role}, and this needs {wanted}");
                Err(Problem::new(StatusCode::FORBIDDEN, detail))
            }
            None if bearer.is_some() => Err(Problem::new(StatusCode::UNAUTHORIZED, "the token is another one")),
            None => {
                let what = if wanted == Role::Read { "reads need a token" } else { "writes need the agent's token" };
                let other = if self.certificates { ", or show a certificate" } else { "" };
                let detail = format!("{what}: send `Authorization: Bearer TOKEN` (sluice --token-file FILE){other}");
                Err(Problem::new(StatusCode::UNAUTHORIZED, detail))
            }
        }
    }

    /// The role that a certificate gives now.
    fn certified(&self, requester: Option<&RequestPeer>) -> Option<Role> {
        let certificate = requester?.vouched()?;
        Some(if certificate.is_one_of(&self.operators) { Role::Operate } else { Role::Read })
    }

    /// Whether reads need a role.
    pub fn locks_reads(&self) -> bool {
        self.read.is_some() || self.certificates
    }
}

impl RequestAuthor {
    fn new(requester: Option<&RequestPeer>, token: Option<&str>) -> Self {
        let who = match (token, requester) {
            (Some(token), Some(RequestPeer::Remote(remote))) => format!("token {token} from {}", remote.there),
            (Some(token), _) => format!("token {token}"),
            (None, Some(requester)) => requester.to_string(),
            (None, None) => "somebody".to_owned(),
        };
        // Processes and authorities choose what they are called.
        Self(who.replace(char::is_control, "?").into())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Operate => "operate",
        })
    }
}

/// Methods that change nothing.
pub fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::http::requester::Remote;

    fn tokens(directory: &Path, name: &str, text: &str) -> Option<TokenFile> {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        Some(TokenFile::open(&path).unwrap())
    }

    fn remote() -> RequestPeer {
        RequestPeer::Remote(Remote { here: [10, 0, 0, 1].into(), there: [10, 0, 0, 2].into(), shown: None })
    }

    #[test]
    fn each_token_has_its_role_and_changes_have_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let operate = tokens(directory.path(), "operate", "ann 0123456789abcdef\nbob fedcba9876543210\n");
        let read = tokens(directory.path(), "read", "monitor-may-read-this");
        let gate = Gate { operate, read, ..Gate::default() };
        let admit = |role, token: Option<&str>| {
            let admitted = gate.admit(role, Some(&remote()), token.map(str::as_bytes));
            admitted.map(|RequestAuthor(who)| who.to_string()).map_err(|problem| problem.status)
        };
        assert_eq!(admit(Role::Operate, Some("fedcba9876543210")).unwrap(), "token bob from 10.0.0.2");
        assert!(admit(Role::Read, Some("fedcba9876543210")).is_ok());
        assert_eq!(admit(Role::Read, Some("monitor-may-read-this")).unwrap(), "token read from 10.0.0.2");
        assert_eq!(admit(Role::Operate, Some("monitor-may-read-this")), Err(403));
        assert_eq!((admit(Role::Read, None), admit(Role::Read, Some("x"))), (Err(401), Err(401)));
        assert_eq!(admit(Role::Operate, None), Err(401));
    }

    #[test]
    fn reads_are_free_until_somebody_locks_them_up() {
        let open = Gate::default();
        assert!(open.admit(Role::Read, Some(&remote()), None).is_ok());
        assert_eq!(open.admit(Role::Operate, Some(&remote()), None).unwrap_err().status, 403);
        let certified = Gate { certificates: true, ..Gate::default() };
        assert_eq!(certified.admit(Role::Read, Some(&remote()), None).unwrap_err().status, 401);
    }

    #[test]
    fn whoever_asks_is_named_in_one_line() {
        let local = RequestPeer::Local { uid: 0, process: Some(1) };
        let RequestAuthor(who) = RequestAuthor::new(Some(&local), None);
        assert!(who.starts_with("user root (0), process 1 ("), "{who}");
        let RequestAuthor(who) = RequestAuthor::new(None, Some("a\nb"));
        assert_eq!(&*who, "token a?b");
    }
}
