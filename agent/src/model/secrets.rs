//! Secrets of documents: values of a probe's headers that let it in somewhere. Whoever reads a document sees
//! [`REDACTED`] in their place, and whoever writes that back means the value that the agent holds.

use super::{
    Readiness, Refusal,
    document::{BackendDocument, ServiceDocument},
};

/// Stands for a secret.
pub const REDACTED: &str = "<redacted>";

/// Words in the name of a header whose value is a secret.
const TELLING: [&str; 15] = [
    "auth",
    "bearer",
    "cookie",
    "cred",
    "hmac",
    "jwt",
    "key",
    "pass",
    "psk",
    "pwd",
    "secret",
    "session",
    "sid",
    "signature",
    "token",
];

/// What a value begins with that is a secret whatever its header is called: schemes of RFC 7617, 6750 and 7616.
const SCHEMES: [&str; 3] = ["basic ", "bearer ", "digest "];

impl ServiceDocument {
    /// As it is shown.
    #[must_use]
    pub fn redacted(mut self) -> Self {
        self.spec.readiness = self.spec.readiness.map(Readiness::redacted);
        self.spec.backends = self.spec.backends.into_iter().map(BackendDocument::redacted).collect();
        self
    }

    /// Whether a secret was left out of what is written.
    pub fn is_redacted(&self) -> bool {
        let of_backends = self.spec.backends.iter().filter_map(|backend| backend.readiness.as_ref());
        self.spec.readiness.iter().chain(of_backends).any(Readiness::is_redacted)
    }

    /// With the secrets of `held` where this one leaves them out.
    ///
    /// # Errors
    /// `held` has none there.
    pub fn with_secrets(mut self, held: Option<&Self>) -> Result<Self, Refusal> {
        let held = held.map(|held| &held.spec);
        if let Some(readiness) = &mut self.spec.readiness {
            readiness.take_secrets(held.and_then(|held| held.readiness.as_ref()), "spec.readiness")?;
        }
        let is_redacted = |backend: &BackendDocument| backend.readiness.as_ref().is_some_and(Readiness::is_redacted);
        let backends = self.spec.backends.iter_mut().enumerate();
        for (index, backend) in backends.filter(|(_, backend)| is_redacted(backend)) {
            let known = held.and_then(|held| held.backends.iter().find(|known| known.name == backend.name));
            backend.take_secrets(known, &format!("spec.backends[{index}].readiness"))?;
        }
        Ok(self)
    }
}

impl BackendDocument {
    /// As it is shown.
    #[must_use]
    pub fn redacted(self) -> Self {
        Self { readiness: self.readiness.map(Readiness::redacted), ..self }
    }

    /// As [`ServiceDocument::with_secrets`]. `place` is the path of its readiness.
    ///
    /// # Errors
    /// `held` has none there.
    pub fn take_secrets(&mut self, held: Option<&Self>, place: &str) -> Result<(), Refusal> {
        let Some(readiness) = &mut self.readiness else { return Ok(()) };
        readiness.take_secrets(held.and_then(|held| held.readiness.as_ref()), place)
    }
}

impl Readiness {
    fn redacted(mut self) -> Self {
        for (name, value) in &mut self.headers {
            if is_telling(name) || is_credential(value) {
                *value = REDACTED.to_owned();
            }
        }
        self
    }

    fn is_redacted(&self) -> bool {
        self.headers.values().any(|value| value == REDACTED)
    }

    fn take_secrets(&mut self, held: Option<&Self>, place: &str) -> Result<(), Refusal> {
        for (name, value) in self.headers.iter_mut().filter(|(_, value)| *value == REDACTED) {
            let Some(secret) = held.and_then(|held| held.headers.get(name)) else {
                let why =
                    format!("{REDACTED} stands for a value that the agent holds, and it holds none: write the value");
                return Err(Refusal::invalid(format!("{place}.headers.{name}"), why));
            };
            value.clone_from(secret);
        }
        Ok(())
    }
}

fn is_telling(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    TELLING.iter().any(|word| name.contains(word))
}

fn is_credential(value: &str) -> bool {
    let begins =
        |scheme: &&str| value.trim_start().get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
    SCHEMES.iter().any(begins)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::parse::typed;

    fn document(of_service: &str, of_backend: &str) -> ServiceDocument {
        typed(json!({
            "apiVersion": "sluice.dev/v1", "kind": "SteeredService", "metadata": {"name": "shop"},
            "spec": {
                "frontends": ["10.96.0.10:80"],
                "readiness": {"kind": "http", "headers": {"Authorization": of_service, "Host": "shop"}},
                "backends": [{
                    "name": "n1", "address": "10.0.0.1:8080",
                    "readiness": {"kind": "http", "headers": {"X-Api-Key": of_backend}},
                }],
            },
        }))
        .unwrap()
    }

    #[test]
    fn names_and_values_tell_of_secrets() {
        let shown = |name: &str, value: &str| {
            let readiness: Readiness = typed(json!({"kind": "http", "headers": {name: value}})).unwrap();
            readiness.redacted().headers.into_values().next().unwrap()
        };
        for name in ["X-JWT", "X-Bearer", "X-PSK", "X-HMAC", "X-Sid", "X-Pwd", "X-Amz-Signature", "Private-Token"] {
            assert_eq!(shown(name, "s3cret"), REDACTED, "{name}");
        }
        for value in ["Bearer s3cret", "basic dXNlcg==", "DIGEST username=x", " Bearer x"] {
            assert_eq!(shown("X-Any", value), REDACTED, "{value}");
        }
        for value in ["shop", "Bearer", "basics of", "\u{e9}\u{e9}\u{e9}\u{e9}", ""] {
            assert_eq!(shown("X-Any", value), value);
        }
    }

    #[test]
    fn what_is_shown_can_be_written_back() {
        let held = document("Bearer s3cret", "k3y");
        let shown = held.clone().redacted();
        let text = serde_json::to_value(&shown).unwrap().to_string();
        assert!(!text.contains("s3cret") && !text.contains("k3y") && text.contains("\"Host\":\"shop\""), "{text}");
        assert!(shown.is_redacted() && !held.is_redacted());
        assert_eq!(shown.clone().with_secrets(Some(&held)).unwrap(), held);
        let new = document("Bearer n3w", REDACTED).with_secrets(Some(&held)).unwrap();
        assert_eq!(new, document("Bearer n3w", "k3y"));
        let refused = shown.with_secrets(None).unwrap_err();
        assert_eq!(refused.field.as_deref(), Some("spec.readiness.headers.Authorization"));
        let refused = document("x", REDACTED).with_secrets(None).unwrap_err();
        assert_eq!(refused.field.as_deref(), Some("spec.backends[0].readiness.headers.X-Api-Key"));
    }
}
