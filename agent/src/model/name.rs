//! Names of services, backends, groups and nodes.

use std::{borrow::Borrow, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use smol_str::SmolStr;

/// Longest name, in bytes.
pub const MAX_NAME: usize = 253;

/// A name as Kubernetes writes them: lower-case letters, digits, `-`, `_` and `.`; a letter or digit at both ends
/// and around every dot; 1 to 253 characters. Cheap to clone: up to 23 bytes stand in place, more are shared.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(SmolStr);

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name must not be empty")]
    Empty,
    #[error("a name has at most {MAX_NAME} characters, not {0}")]
    TooLong(usize),
    #[error("{name:?} is no name: {bad:?} is not a lower-case letter, digit, '-', '_' or '.'")]
    Character { name: String, bad: char },
    #[error("{0:?} is no name: it must start and end with a letter or digit, and have one on both sides of every dot")]
    Edge(String),
}

impl Name {
    /// # Errors
    /// When `text` is no name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > MAX_NAME {
            return Err(NameError::TooLong(text.chars().count()));
        }
        if let Some(bad) = text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-' | '_' | '.')) {
            let name = text.to_owned();
            return Err(NameError::Character { name, bad });
        }
        let solid = |part: &str| {
            let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
            edge(part.chars().next()) && edge(part.chars().next_back())
        };
        if !text.split('.').all(solid) {
            return Err(NameError::Edge(text.to_owned()));
        }
        Ok(Self(SmolStr::new(text)))
    }

    /// Name of the one group of a service that names none.
    pub(super) fn default_group() -> Self {
        Self(SmolStr::new_static("default"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        self.0.as_str() == other
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        self.0.as_str() == *other
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name (text; quote it when it looks like a number)")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Name, E> {
                Name::new(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        let long = "a".repeat(MAX_NAME);
        for good in ["a", "shop", "n1", "node-1", "a.b-c.d", "shop_v2", "0", &long] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        for (bad, why) in [
            ("", "empty"),
            ("Shop", "'S'"),
            ("a b", "' '"),
            ("a/b", "'/'"),
            ("ünode", "'ü'"),
            ("a\u{0}", "'\\0'"),
            ("-a", "start"),
            ("a-", "start"),
            ("a..b", "dot"),
            (".", "dot"),
            ("..", "dot"),
            ("a-.b", "dot"),
            (&"a".repeat(MAX_NAME + 1), "at most 253"),
        ] {
            let error = Name::new(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad:?}: {error}");
        }
    }

    #[test]
    fn names_in_documents_are_checked() {
        assert_eq!(serde_json::from_str::<Name>("\"shop\"").unwrap(), "shop");
        assert!(serde_json::from_str::<Name>("7").unwrap_err().to_string().contains("quote it"));
        assert!(serde_json::from_str::<Name>("\"a b\"").unwrap_err().to_string().contains("no name"));
    }
}
