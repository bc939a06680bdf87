//! An agent without a kernel: an engine that applies changes to a state and keeps counters in memory.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Instant,
};

use anyhow::{Result, bail};
use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode, header},
};
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde_json::Value;
use sluice_common::{
    tables::Counters,
    verdict::{Program, Verdict},
};
use tokio::sync::watch;
use tower::ServiceExt;

use super::{Access, App, router::router};
use crate::{
    engine::{
        Handle,
        client::{ChangeError, Command, Done, MonitorHandle, Options},
    },
    host::clock,
    kernel::{gauges::UNUSED, readings::Readings, sockets::Census},
    model::{BackendId, Change, Limits, Outcome, Refusal, Service, ServiceId, State, Target},
    telemetry::Instruments,
    view::{
        events::{EventKind, EventLog},
        published::{AgentReadiness, Before, ProgrammedBackend, ProgrammedService, Published, ZeroProof},
    },
};

/// The agent under test.
pub struct Agent {
    pub app: App,
    pub readings: Arc<Numbers>,
    pub stop: watch::Sender<bool>,
    pub published: watch::Receiver<Arc<Published>>,
}

/// Readings that a test sets.
#[derive(Default)]
pub struct Numbers {
    pub counters: Mutex<HashMap<u32, Counters>>,
    pub census: Mutex<Option<Census>>,
    pub flows: Mutex<BTreeMap<BackendId, u64>>,
    /// What a pick answers.
    pub picked: Mutex<Option<BackendId>>,
}

impl Readings for Numbers {
    fn counters(&self, ids: &[BackendId]) -> Result<Vec<Counters>> {
        let counters = self.counters.lock().unwrap();
        Ok(ids.iter().map(|id| counters.get(&id.0).copied().unwrap_or(UNUSED)).collect())
    }

    fn no_backend(&self, _: ServiceId) -> Result<u64> {
        Ok(3)
    }

    fn streaks(&self, ids: &[BackendId]) -> Vec<sluice_common::streak::FailureStreak> {
        vec![Default::default(); ids.len()]
    }
    fn turns(&self, ids: &[BackendId]) -> Vec<sluice_common::streak::Turns> {
        vec![Default::default(); ids.len()]
    }
    fn signals_lost(&self) -> u64 {
        0
    }
    fn verdicts(&self) -> Result<Vec<(Program, Verdict, u64)>> {
        Ok(vec![(Program::Connect4, Verdict::Steered, 7)])
    }

    fn pick(&self, _: ServiceId, _: u64) -> Result<Option<BackendId>> {
        Ok(*self.picked.lock().unwrap())
    }

    fn census(&self) -> Result<Census> {
        match &*self.census.lock().unwrap() {
            Some(census) => Ok(census.clone()),
            None => bail!("this kernel cannot iterate over socket storage"),
        }
    }

    fn flows(&self) -> Result<BTreeMap<BackendId, u64>> {
        Ok(self.flows.lock().unwrap().clone())
    }
}

impl Default for Agent {
    fn default() -> Self {
        Self::with_limits(Limits { services: 64, backends: 256, nodes: 64, frontends: 256 })
    }
}

impl Agent {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with_limits(limits: Limits) -> Self {
        let readings = Arc::new(Numbers::default());
        let events = Arc::new(EventLog::new(16));
        let (commands, asked) = mpsc::channel();
        let (publish, published) = watch::channel(Arc::new(Published {
            state: State::new(limits),
            programmed: imbl::OrdMap::new(),
            ramps: Default::default(),
            zeros: imbl::OrdMap::new(),
            problems: imbl::OrdMap::new(),
            ready: AgentReadiness::Ready,
            missing: Default::default(),
            history: crate::view::history::History::default(),
        }));
        let instruments = Arc::new(Instruments::new().unwrap());
        let steering =
            Steering { publish, readings: readings.clone(), events: events.clone(), instruments: instruments.clone() };
        thread::spawn(move || steering.run(&asked));
        let monitor = MonitorHandle::absent();
        let handle =
            Handle::new(commands, published.clone(), readings.clone(), events, Arc::default(), instruments, monitor);
        let (stop, stopping) = watch::channel(false);
        Self { app: App::new(handle, stopping), readings, stop, published }
    }

    /// With the service `shop`: n1 (node-1) and n2 (node-2), 75 to 25.
    pub async fn with_shop() -> Self {
        let agent = Self::new();
        let (status, _, body) = agent.put("/v1/services/shop", &shop()).await;
        assert_eq!(status, 201, "{body}");
        agent
    }

    pub fn router(&self, access: Access) -> Router {
        router(self.app.clone(), access)
    }

    pub fn published(&self) -> Arc<Published> {
        self.published.borrow().clone()
    }

    pub fn backend_id(&self, service: &str, backend: &str) -> BackendId {
        let published = self.published();
        let service = published.state.service(service).unwrap();
        service.backends.iter().find(|held| held.name == backend).unwrap().id
    }

    pub fn set(&self, id: BackendId, counters: Counters) {
        self.readings.counters.lock().unwrap().insert(id.0, counters);
    }

    pub async fn get(&self, path: &str) -> (StatusCode, HeaderMap, Value) {
        self.send(Method::GET, path, &[], "").await
    }

    pub async fn put(&self, path: &str, document: &Value) -> (StatusCode, HeaderMap, Value) {
        self.send(Method::PUT, path, &[("content-type", "application/json")], document.to_string()).await
    }

    pub async fn patch(&self, path: &str, patch: &Value) -> (StatusCode, HeaderMap, Value) {
        let headers = [("content-type", "application/merge-patch+json")];
        self.send(Method::PATCH, path, &headers, patch.to_string()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, HeaderMap, Value) {
        self.send(Method::POST, path, &[("content-type", "application/json")], body.to_string()).await
    }

    /// The answer, with its body as JSON, or as text where it is none. Every error must be a problem, and every answer what
    /// the description says.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> (StatusCode, HeaderMap, Value) {
        self.send_as(Access::Everything, method, path, headers, body).await
    }

    pub async fn send_as(
        &self,
        access: Access,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> (StatusCode, HeaderMap, Value) {
        let mut request = Request::builder().method(method.clone()).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.router(access).oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        if head.status.is_client_error() || head.status.is_server_error() {
            assert_eq!(head.headers[header::CONTENT_TYPE], super::problem::MEDIA_TYPE, "{method} {path}");
            assert_eq!(value["status"], head.status.as_u16(), "{method} {path}: {value}");
            assert!(!value["detail"].as_str().unwrap().is_empty(), "{method} {path}: {value}");
        }
        super::tests::contract::check(&method, path, head.status, &value);
        (head.status, head.headers, value)
    }
}

/// A service document.
pub fn shop() -> Value {
    serde_json::json!({
        "apiVersion": "sluice.dev/v1",
        "kind": "SteeredService",
        "metadata": {"name": "shop"},
        "spec": {
            "frontends": ["10.96.0.10:80"],
            "backends": [
                {"name": "n1", "address": "10.0.0.1:8080", "node": "node-1", "weight": 75},
                {"name": "n2", "address": "10.0.0.2:8080", "node": "node-2", "weight": 25},
            ],
        },
    })
}

struct Steering {
    publish: watch::Sender<Arc<Published>>,
    readings: Arc<Numbers>,
    events: Arc<EventLog>,
    instruments: Arc<Instruments>,
}

impl Steering {
    fn run(self, asked: &mpsc::Receiver<Command>) {
        while let Ok(command) = asked.recv() {
            // Only a real engine is sent the others.
            #[allow(clippy::single_match, unreachable_patterns)]
            match command {
                Command::Change { changes, options, reply } => {
                    let _ = reply.send(self.change(&changes, options));
                }
                _ => {}
            }
        }
    }

    fn change(&self, changes: &[Change], options: Options) -> Result<Done, ChangeError> {
        let mut next = (**self.publish.borrow()).clone();
        let before = next.state.clone();
        let mut outcome = Outcome::Unchanged;
        for change in changes {
            let applied = next.state.apply(change, Timestamp::now())?;
            next.state = applied.state;
            outcome = applied.outcome;
            match change {
                Change::Zero { target, .. } if outcome != Outcome::Unchanged => {
                    next.zeros.insert(target.clone(), Arc::new(self.prove(&next.state, target, &options)?));
                }
                Change::Restore { target } => drop(next.zeros.remove(target)),
                _ => {}
            }
        }
        next.programmed = next.state.services().map(|s| (s.id, Arc::new(self.program(&next.state, s)))).collect();
        let published = Arc::new(next);
        if !options.dry_run {
            self.publish.send_replace(published.clone());
            self.instruments.applied(options.received.elapsed());
            if changes.iter().any(|change| matches!(change, Change::Zero { .. })) {
                self.instruments.zeroed(options.received.elapsed());
            }
            self.events.record(EventKind::ServiceChanged, None, format!("{} changes", changes.len()));
        }
        Ok(Done {
            outcome,
            before,
            programmed_in: options.received.elapsed(),
            acknowledged_at: Timestamp::now(),
            published,
            plan: if options.dry_run { vec!["write the table of shop".into()] } else { Vec::new() },
            unsaved: None,
        })
    }

    fn prove(&self, state: &State, target: &Target, options: &Options) -> Result<ZeroProof, Refusal> {
        let ids: Vec<BackendId> = match target {
            Target::Node(node) => {
                let node = state.node(node.as_str()).unwrap();
                state.node_backends(node.id).map(|(_, backend)| backend.id).collect()
            }
            Target::Backend { service, backend } => {
                let service = state.service(service.as_str()).unwrap();
                service.backends.iter().filter(|held| held.name == *backend).map(|held| held.id).collect()
            }
        };
        let since = clock::monotonic_ns();
        Ok(ZeroProof {
            at: Timestamp::now(),
            monotonic_ns: clock::monotonic_ns(),
            before: ids
                .iter()
                .zip(self.readings.counters(&ids).unwrap())
                .map(|(id, counters)| (*id, Before { picked: counters.picked, since }))
                .collect(),
            programmed_in: Instant::now() - options.received,
            unattached: None,
        })
    }

    /// Shares by weight alone.
    fn program(&self, state: &State, service: &Service) -> ProgrammedService {
        let weight = |backend| if state.is_open(backend) { backend.weight } else { 0 };
        let total: u32 = service.backends.iter().map(weight).sum();
        let backends = service.backends.iter().map(|backend| {
            let share = f64::from(weight(backend)) / f64::from(total.max(1));
            let (desired_share, programmed_share) = (share, share);
            let effective_weight = weight(backend);
            ProgrammedBackend {
                id: backend.id,
                effective_weight,
                desired_share,
                programmed_share,
                picked_before: 0,
                earlier: Default::default(),
            }
        });
        ProgrammedService {
            generation: service.generation,
            since: Timestamp::now(),
            length: total,
            share_error: 0.0,
            spilled: Vec::new(),
            backends: backends.collect(),
        }
    }
}

/// Labels and value of the samples of a metric.
pub fn samples(text: &str, name: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        (labels.is_empty() || labels.starts_with('{')).then(|| (labels.to_owned(), value.parse().unwrap()))
    });
    lines.collect()
}
