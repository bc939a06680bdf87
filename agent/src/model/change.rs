//! A change of the desired state, and why one is refused.

use jiff::Timestamp;

use super::{
    BackendId, Name, NodeId, Origin, ServiceId, State, Zero,
    document::{NodeDocument, ServiceDocument},
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
    PutNode {
        document: Box<NodeDocument>,
    },
    /// Refused while a backend names it.
    DeleteNode {
        node: Name,
    },
    Zero {
        target: Target,
        zero: Zero,
        /// Do it even if a service is left without enough capacity.
        force: bool,
    },
    Restore {
        target: Target,
    },
}

/// What a zero, drain or restore is about. Written `node/NAME` or `SERVICE/BACKEND`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Node(Name),
    Backend { service: Name, backend: Name },
}

/// The next state, and what it differs in.
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
#[error("{}{message}", field.as_ref().map(|f| format!("{f}: ")).unwrap_or_default())]
pub struct Refusal {
    pub kind: RefusalKind,
    /// Path of the field at fault, as in `spec.backends[2].address`.
    pub field: Option<String>,
    /// A sentence that says what to do.
    pub message: String,
    /// Services that stand in the way (409).
    pub services: Vec<Name>,
}

impl State {
    /// The state after `change`. `now` is used for nothing but time stamps.
    ///
    /// # Errors
    /// A [`Refusal`] that names the field at fault.
    pub fn apply(&self, change: &Change, now: Timestamp) -> Result<Applied, Refusal> {
        let _ = (change, now);
        unimplemented!()
    }
}
