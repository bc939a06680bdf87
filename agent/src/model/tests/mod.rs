//! Tests of the model as a whole: changes by example, random sequences against a naive recomputation, and size.

mod changes;
mod parse;
mod random;
mod size;
mod together;
mod zeros;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Applied, Change, Limits, Name, Origin, Outcome, Refusal, Service, State, Target, Touched, Zero,
    document::{Document, NodeDocument, ServiceDocument},
    parse::document,
};

pub const LIMITS: Limits = Limits { services: 16_384, backends: 131_072, nodes: 16_384, frontends: 65_536 };

/// A state and what happened to it, for tests that read as a story.
pub struct World {
    pub state: State,
    pub touched: Touched,
    pub now: Timestamp,
}

impl World {
    pub fn new() -> Self {
        Self::with(LIMITS)
    }

    pub fn with(limits: Limits) -> Self {
        Self { state: State::new(limits), touched: Touched::default(), now: at(0) }
    }

    pub fn try_apply(&mut self, change: &Change) -> Result<Outcome, Refusal> {
        let Applied { state, touched, outcome } = self.state.apply(change, self.now)?;
        assert_eq!(state.revision() - self.state.revision(), u64::from(!touched.is_empty()));
        (self.state, self.touched) = (state, touched);
        Ok(outcome)
    }

    pub fn apply(&mut self, change: &Change) -> Outcome {
        self.try_apply(change).unwrap()
    }

    pub fn put(&mut self, name: &str, spec: Value) -> Outcome {
        self.apply(&put(name, spec))
    }

    pub fn refusal(&mut self, change: &Change) -> String {
        self.try_apply(change).unwrap_err().to_string()
    }

    pub fn service(&self, name: &str) -> &Service {
        self.state.service(name).unwrap()
    }

    pub fn id(&self, service: &str, backend: &str) -> u32 {
        self.service(service).backends.iter().find(|b| b.name == backend).unwrap().id.0
    }

    /// Names of the open backends of a service.
    pub fn open(&self, service: &str) -> Vec<&str> {
        let backends = self.service(service).backends.iter();
        backends.filter(|backend| self.state.is_open(backend)).map(|backend| backend.name.as_str()).collect()
    }
}

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn service(name: &str, spec: Value) -> Box<ServiceDocument> {
    let value = json!({
        "apiVersion": "sluice.dev/v1", "kind": "SteeredService", "metadata": {"name": name}, "spec": spec,
    });
    match document(value).unwrap().document {
        Document::Service(document) => document,
        Document::Node(_) => panic!("a node"),
    }
}

pub fn node(name: &str) -> Box<NodeDocument> {
    let value = json!({"apiVersion": "sluice.dev/v1", "kind": "Node", "metadata": {"name": name}});
    match document(value).unwrap().document {
        Document::Node(document) => document,
        Document::Service(_) => panic!("a service"),
    }
}

/// Two backends on two nodes behind one frontend.
pub fn shop() -> Value {
    json!({
        "frontends": ["10.96.0.10:80"],
        "backends": [
            {"name": "n1", "address": "10.0.0.1:8080", "node": "node-1"},
            {"name": "n2", "address": "10.0.0.2:8080", "node": "node-2"},
        ],
    })
}

pub fn put(name: &str, spec: Value) -> Change {
    Change::PutService { document: service(name, spec), origin: Origin::Api, if_match: None }
}

pub fn delete(service: &str) -> Change {
    Change::DeleteService { service: name(service), if_match: None }
}

pub fn patch(service: &str, patch: Value) -> Change {
    Change::PatchService { service: name(service), patch, if_match: None }
}

pub fn patch_backend(service: &str, backend: &str, patch: Value) -> Change {
    Change::PatchBackend { service: name(service), backend: name(backend), patch, if_match: None }
}

pub fn zero(target: &str) -> Change {
    zero_by(target, "ops", None, false)
}

pub fn force(target: &str) -> Change {
    zero_by(target, "ops", None, true)
}

pub fn zero_by(target: &str, owner: &str, expires: Option<Timestamp>, force: bool) -> Change {
    let zero = Zero { owner: owner.into(), reason: "test".into(), since: at(0), expires, drain: None };
    Change::Zero { target: self::target(target), zero, drain: None, force }
}

pub fn restore(target: &str) -> Change {
    Change::Restore { target: self::target(target) }
}

pub fn target(text: &str) -> Target {
    text.parse().unwrap()
}
