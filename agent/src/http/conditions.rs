//! If-Match and If-None-Match, RFC 9110 section 13.1. The ETag of a service is its generation.
//!
//! An ETag stands for the document, not for the status that a GET shows beside it: it guards writes, and no GET is
//! answered with 304. By hand: the crate headers would save thirty lines and bring four others, one of them for SHA-1.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts},
};

use super::problem::Problem;

/// The conditions of a write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Tags {
    /// `*`
    Any,
    /// Generations. Other tags cannot be this agent's.
    Of(Vec<u64>),
}

impl Conditions {
    /// What the change must find: `Some(0)` nothing, `Some(n)` generation n, `None` does not matter.
    /// `current` is the generation that is there now.
    ///
    /// # Errors
    /// 412 when it is clear already that a condition does not hold.
    pub fn expected(&self, current: Option<u64>) -> Result<Option<u64>, Problem> {
        if let Some(tags) = &self.if_match {
            let found = current.filter(|generation| tags.contain(*generation));
            return match (found, current) {
                (Some(generation), _) => Ok(Some(generation)),
                (None, Some(generation)) => Err(Problem::stale(format!(
                    "it is at generation {generation} now, which If-Match does not name: somebody changed it. Read it again"
                ))),
                (None, None) => Err(Problem::stale("it does not exist, and If-Match asks for it")),
            };
        }
        match (&self.if_none_match, current) {
            (Some(tags), Some(generation)) if tags.contain(generation) => {
                Err(Problem::stale(format!("it exists already, at generation {generation}")))
            }
            (Some(Tags::Any), None) => Ok(Some(0)),
            _ => Ok(None),
        }
    }

    fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        Ok(Self {
            if_match: tags(headers, header::IF_MATCH, true)?,
            if_none_match: tags(headers, header::IF_NONE_MATCH, false)?,
        })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Conditions {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::read(&parts.headers)
    }
}

/// The ETag of a generation.
pub fn etag(generation: u64) -> (HeaderName, HeaderValue) {
    // Digits and quotes always are a header value.
    let value = HeaderValue::from_str(&format!("\"{generation}\"")).unwrap_or(HeaderValue::from_static("\"\""));
    (header::ETAG, value)
}

impl Tags {
    fn contain(&self, generation: u64) -> bool {
        match self {
            Self::Any => true,
            Self::Of(generations) => generations.contains(&generation),
        }
    }
}

/// `strong`: weak tags match nothing (RFC 9110, 8.8.3.2).
fn tags(headers: &HeaderMap, name: HeaderName, strong: bool) -> Result<Option<Tags>, Problem> {
    let mut found = None;
    for value in headers.get_all(&name) {
        let malformed = || Problem::bad_request(format!("{name} must be * or quoted tags, as in \"7\""));
        let text = value.to_str().map_err(|_| malformed())?;
        for tag in text.split(',').map(str::trim) {
            if tag == "*" {
                return Ok(Some(Tags::Any));
            }
            let (weak, tag) = tag.strip_prefix("W/").map_or((false, tag), |tag| (true, tag));
            let opaque = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).ok_or_else(malformed)?;
            let tags = found.get_or_insert_with(Vec::new);
            if !(weak && strong) {
                tags.extend(opaque.parse::<u64>().ok());
            }
        }
    }
    Ok(found.map(Tags::Of))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions(name: HeaderName, value: &str) -> Result<Conditions, Problem> {
        Conditions::read(&HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())]))
    }

    /// `Err` stands for 412.
    type Expected = Result<Option<u64>, ()>;

    #[test]
    fn every_condition() {
        let table: [(HeaderName, &str, Option<u64>, Expected); 13] = [
            (header::IF_MATCH, "\"3\"", Some(3), Ok(Some(3))),
            (header::IF_MATCH, "\"2\", \"3\"", Some(3), Ok(Some(3))),
            (header::IF_MATCH, "\"2\"", Some(3), Err(())),
            (header::IF_MATCH, "\"3\"", None, Err(())),
            (header::IF_MATCH, "\"someone-elses\"", Some(3), Err(())),
            (header::IF_MATCH, "W/\"3\"", Some(3), Err(())),
            (header::IF_MATCH, "*", Some(3), Ok(Some(3))),
            (header::IF_MATCH, "*", None, Err(())),
            (header::IF_NONE_MATCH, "*", None, Ok(Some(0))),
            (header::IF_NONE_MATCH, "*", Some(3), Err(())),
            (header::IF_NONE_MATCH, "\"3\"", Some(3), Err(())),
            (header::IF_NONE_MATCH, "W/\"3\"", Some(3), Err(())),
            (header::IF_NONE_MATCH, "\"2\"", Some(3), Ok(None)),
        ];
        for (name, value, current, expected) in table {
            let found = conditions(name.clone(), value).unwrap().expected(current);
            assert_eq!(
                found.map_err(|problem| assert_eq!(problem.status, 412)),
                expected,
                "{name}: {value}, {current:?}"
            );
        }
        assert_eq!(Conditions::default().expected(Some(3)), Ok(None));
        assert_eq!(conditions(header::IF_MATCH, "3").unwrap_err().status, 400, "tags are quoted");
    }
}
