//! A change of the desired state, and why one is refused.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    BackendId, DrainEnd, DrainRequest, HealthUpdate, Name, NodeId, Origin, ServiceId, State, Zero,
    document::{NodeDocument, ServiceDocument},
    name::NameError,
};

/// One change. All may be repeated: the second time changes nothing.
#[derive(Clone, Debug)]
pub enum Change {
    PutService {
        document: Box<ServiceDocument>,
        origin: Origin,
        /// Refused as stale when the service's generation is another. `Some(0)`: it must not exist.
        if_match: Option<u64>,
    },
    /// JSON merge patch (RFC 7396) of the service's document.
    PatchService {
        service: Name,
        patch: serde_json::Value,
        if_match: Option<u64>,
    },
    DeleteService {
        service: Name,
        if_match: Option<u64>,
    },
    /// JSON merge patch of one backend of the document; `name` cannot change.
    PatchBackend {
        service: Name,
        backend: Name,
        patch: serde_json::Value,
        if_match: Option<u64>,
    },
    /// JSON merge patch of one group of the document; `name` cannot change.
    PatchGroup {
        service: Name,
        group: Name,
        patch: serde_json::Value,
        if_match: Option<u64>,
    },
    PutNode {
        document: Box<NodeDocument>,
    },
    /// Refused while a backend names it.
    DeleteNode {
        node: Name,
    },
    /// Takes a declaration back, as when its file is gone. Never refused: the node lives on while a backend names it
    /// or a zero holds it.
    UndeclareNode {
        node: Name,
    },
    Zero {
        target: Target,
        /// Without its drain, which `drain` asks for.
        zero: Zero,
        /// Empty the target too.
        drain: Option<DrainRequest>,
        /// Do it even if a service is left without enough capacity.
        force: bool,
    },
    Restore {
        target: Target,
    },
    /// Notes how drains have ended, all at the price of one.
    EndDrains {
        ends: Vec<Ending>,
    },
    /// What probes, reports and rules say of backends, all at the price of one. Never refused: what is said of a
    /// backend that is gone means nothing.
    UpdateHealth {
        updates: Vec<HealthUpdate>,
    },
}

/// How a drain has ended. It means nothing when another operation is at work by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    pub target: Target,
    pub operation: String,
    pub end: DrainEnd,
}

/// What a zero, drain or restore is about. Written `node/NAME` or `SERVICE/BACKEND`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Target {
    Node(Name),
    Backend { service: Name, backend: Name },
}

/// The next state, and what it differs in. To be saved whenever `touched` is not empty.
#[derive(Clone, Debug)]
pub struct Applied {
    pub state: State,
    pub touched: Touched,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Created,
    Replaced,
    /// Nothing that a reader of documents would see. (`touched` may name a service whose origin is another now.)
    Unchanged,
    Deleted,
}

/// Ids that a change concerns: the work of planning and saving is proportional to these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Made or changed: document, backends or zero of a backend.
    pub services: Vec<ServiceId>,
    /// With the name under which it was saved.
    pub removed_services: Vec<(ServiceId, Name)>,
    pub removed_backends: Vec<BackendId>,
    pub nodes: Vec<NodeId>,
    pub removed_nodes: Vec<(NodeId, Name)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// 422
    Invalid,
    /// 404
    NotFound,
    /// 409
    Conflict,
    /// 412
    Stale,
}

/// Why a change is refused. The state is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}{message}", document.map(|n| format!("document {n}: ")).unwrap_or_default(),
    field.as_ref().map(|f| format!("{f}: ")).unwrap_or_default())]
pub struct Refusal {
    pub kind: RefusalKind,
    /// Which of several documents, counted from 1.
    pub document: Option<usize>,
    /// Path of the field at fault, as in `spec.backends[2].address`.
    pub field: Option<String>,
    /// A sentence that says what to do.
    pub message: String,
    /// Services that stand in the way (409).
    pub services: Vec<Name>,
}

impl Touched {
    pub fn is_empty(&self) -> bool {
        let Self { services, removed_services, removed_backends, nodes, removed_nodes } = self;
        services.is_empty()
            && removed_services.is_empty()
            && removed_backends.is_empty()
            && nodes.is_empty()
            && removed_nodes.is_empty()
    }

    /// Adds what a later change touched.
    pub fn extend(&mut self, later: Self) {
        let Self { services, removed_services, removed_backends, nodes, removed_nodes } = later;
        self.services.extend(services);
        self.removed_services.extend(removed_services);
        self.removed_backends.extend(removed_backends);
        self.nodes.extend(nodes);
        self.removed_nodes.extend(removed_nodes);
    }
}

impl Refusal {
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..Self::malformed(message) }
    }

    /// Invalid as a whole: no field is at fault.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::of(RefusalKind::Invalid, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::of(RefusalKind::NotFound, message)
    }

    pub fn conflict(message: impl Into<String>, services: Vec<Name>) -> Self {
        Self { services, ..Self::of(RefusalKind::Conflict, message) }
    }

    pub fn stale(message: impl Into<String>) -> Self {
        Self::of(RefusalKind::Stale, message)
    }

    /// The same, of one of several documents.
    pub fn of_document(self, number: usize) -> Self {
        Self { document: Some(number), ..self }
    }

    /// The same, seen from outside of `place`.
    pub(super) fn inside(mut self, place: &str) -> Self {
        self.field = Some(match self.field {
            Some(field) => format!("{place}.{field}"),
            None => place.to_owned(),
        });
        self
    }

    /// The same, seen from inside of `place`. A field elsewhere stays as it is.
    pub(super) fn relative_to(mut self, place: &str) -> Self {
        let inner = self.field.as_deref().and_then(|field| field.strip_prefix(place)?.strip_prefix('.'));
        if let Some(inner) = inner.map(str::to_owned) {
            self.field = Some(inner);
        }
        self
    }

    fn of(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, document: None, field: None, message: message.into(), services: Vec::new() }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node/{node}"),
            Self::Backend { service, backend } => write!(f, "{service}/{backend}"),
        }
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl TryFrom<String> for Target {
    type Error = TargetError;

    fn try_from(text: String) -> Result<Self, TargetError> {
        text.parse()
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (first, second) = text.split_once('/').ok_or_else(|| TargetError::Form(text.to_owned()))?;
        let second = Name::new(second)?;
        Ok(if first == "node" {
            Self::Node(second)
        } else {
            Self::Backend { service: Name::new(first)?, backend: second }
        })
    }
}

/// Why a text is no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("{0:?} is no target: write node/NAME or SERVICE/BACKEND")]
    Form(String),
    #[error(transparent)]
    Name(#[from] NameError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_written() {
        for text in ["node/node-1", "shop/n1", "shop/node"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert!(matches!("node/node-1".parse(), Ok(Target::Node(_))));
        for (text, why) in
            [("shop", "SERVICE/BACKEND"), ("/n1", "empty"), ("shop/", "empty"), ("a/b/c", "'/'"), ("node/N", "'N'")]
        {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
