//! A world with an agent that steers it and servers that say who they are: where most tests begin. And what many tests
//! assert.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::{Agent, Client, Report, Server, Service, World, http::Response, system::eventually};

/// Nothing outside the world has this address, and the world has no route to it: who dials it and gets an answer was
/// steered.
pub const FRONTEND: &str = "10.96.0.10:80";

/// Long enough for an emulated machine, which stretches it further.
pub const LIMIT: Duration = Duration::from_secs(20);

/// What a test plays on. Fields are dropped in this order.
pub struct Stage {
    pub agent: Agent,
    pub servers: BTreeMap<String, Server>,
    pub world: World,
}

impl Stage {
    /// An agent that knows no service yet, and no servers.
    pub fn new(label: &str) -> Result<Self> {
        Self::with(label, |agent| agent)
    }

    /// As [`Stage::new`], with other flags.
    pub fn with(label: &str, flags: impl FnOnce(Agent) -> Agent) -> Result<Self> {
        let world = World::new(label)?;
        let mut agent = flags(world.agent()?);
        agent.start()?;
        Ok(Self { agent, servers: BTreeMap::new(), world })
    }

    /// As [`Stage::with`], with an agent that lives where the servers do: its probes reach them.
    pub fn probing(label: &str, flags: impl FnOnce(Agent) -> Agent) -> Result<Self> {
        let world = World::new(label)?;
        let mut agent = flags(world.agent()?.inside(&world.namespace)?);
        agent.start()?;
        Ok(Self { agent, servers: BTreeMap::new(), world })
    }

    /// As [`Stage::probing`], with an agent that steers itself too.
    pub fn probing_steered(label: &str) -> Result<Self> {
        let world = World::new(label)?;
        let mut agent = world.agent()?.inside(&world.namespace)?.steered();
        agent.start()?;
        Ok(Self { agent, servers: BTreeMap::new(), world })
    }

    /// A service of TCP backends on [`FRONTEND`]: b1, b2 ... with these weights, on nodes n1, n2 ..., each with its server.
    pub fn weights(label: &str, weights: &[u32]) -> Result<Self> {
        let mut stage = Self::new(label)?;
        let service = stage.service(weights)?;
        stage.put(&service)?;
        Ok(stage)
    }

    /// The document of [`Stage::weights`], not applied; the servers are started.
    pub fn service(&mut self, weights: &[u32]) -> Result<Service> {
        for number in 1..=weights.len() {
            self.tcp(&backend_address(number), &format!("b{number}"))?;
        }
        Ok(weighted(weights))
    }

    /// Starts a TCP server.
    pub fn tcp(&mut self, address: &str, name: &str) -> Result<()> {
        let server = self.world.tcp(address, name)?;
        self.servers.insert(name.to_owned(), server);
        Ok(())
    }

    /// Starts an HTTP server.
    pub fn http(&mut self, address: &str, name: &str) -> Result<()> {
        let server = self.world.http(address, name)?;
        self.servers.insert(name.to_owned(), server);
        Ok(())
    }

    /// Starts a UDP server.
    pub fn udp(&mut self, address: &str, name: &str) -> Result<()> {
        let server = self.world.udp(address, name)?;
        self.servers.insert(name.to_owned(), server);
        Ok(())
    }

    pub fn client(&self) -> Result<Client> {
        self.world.client()
    }

    /// PUTs a document that must be accepted.
    pub fn put(&self, service: &Service) -> Result<Response> {
        let response = self.agent.put(&format!("/v1/services/{}", service.name()), &service.json())?;
        assert!(matches!(response.status, 200 | 201), "{}: {}", response.status, response.text());
        Ok(response)
    }

    /// `status` of a service.
    pub fn status(&self, service: &str) -> Result<Value> {
        let answer = self.agent.get(&format!("/v1/services/{service}"))?.expect_status(200).json();
        Ok(answer["status"].clone())
    }

    /// The status of one backend, as the service shows it.
    pub fn backend(&self, service: &str, backend: &str) -> Result<Value> {
        let status = self.status(service)?;
        let backends = status["backends"].as_array().expect("a list of backends");
        Ok(backends.iter().find(|held| held["name"] == backend).expect("the backend").clone())
    }

    /// Waits until a backend of "shop" has this state, and returns its status.
    pub fn becomes(&self, backend: &str, state: &str) -> Result<Value> {
        let mut last = Value::Null;
        let became = eventually("the backend's state", LIMIT, || {
            last = self.backend("shop", backend).ok()?;
            (last["state"] == state).then(|| last.clone())
        });
        became.map_err(|error| error.context(format!("{backend} is not {state}: {last}")))
    }

    /// A number in the status of a backend.
    pub fn count(&self, service: &str, backend: &str, field: &str) -> Result<u64> {
        let status = self.backend(service, backend)?;
        Ok(status[field].as_u64().unwrap_or_else(|| panic!("{field} in {status}")))
    }

    /// Waits until a number in the status of a backend is as expected: what the kernel counts at the end of a
    /// connection comes a moment after the client's close.
    pub fn count_is(&self, service: &str, backend: &str, field: &str, expected: u64) -> Result<()> {
        let mut last = 0;
        let reached = eventually(field, LIMIT, || {
            last = self.count(service, backend, field).ok()?;
            (last == expected).then_some(())
        });
        reached.map_err(|error| error.context(format!("{service}/{backend}: {field} is {last}, not {expected}")))
    }

    /// A metric that must be there.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(self.agent.metric(name, labels)?.unwrap_or_else(|| panic!("no {name} with {labels:?}")))
    }

    /// Zeroes "node/NAME" or "SERVICE/BACKEND" and returns the answer.
    pub fn zero(&self, target: &str) -> Result<Value> {
        Ok(self.agent.post(&path(target, "zero"), &json!({}))?.expect_status(200).json())
    }

    /// Gives the weight back.
    pub fn restore(&self, target: &str) -> Result<Value> {
        Ok(self.agent.post(&path(target, "restore"), &json!({}))?.expect_status(200).json())
    }
}

/// The path of an action on "node/NAME" or "SERVICE/BACKEND".
pub fn path(target: &str, action: &str) -> String {
    match target.split_once('/') {
        Some(("node", node)) => format!("/v1/nodes/{node}/{action}"),
        Some((service, backend)) => format!("/v1/services/{service}/backends/{backend}/{action}"),
        None => panic!("{target:?} is neither node/NAME nor SERVICE/BACKEND"),
    }
}

/// The address of backend b`number` of [`Stage::weights`].
pub fn backend_address(number: usize) -> String {
    format!("10.0.0.{number}:8080")
}

/// Service "shop" on [`FRONTEND`] with backends b1, b2 ... on nodes n1, n2 ... It says that it carries requests: its servers
/// greet, which would make sessions of its connections.
pub fn weighted(weights: &[u32]) -> Service {
    let shop = Service::new("shop", FRONTEND).set("protocol", "request");
    weights.iter().zip(1..).fold(shop, |service, (weight, number)| {
        service.backend_on(&format!("n{number}"), &format!("b{number}"), &backend_address(number), *weight)
    })
}

/// That of any `window` consecutive answers each server gave its share, to within one.
#[track_caller]
pub fn assert_exact(report: &Report, window: usize, shares: &[(&str, f64)]) {
    assert_eq!(report.errors(), BTreeMap::new());
    let order: Vec<&str> = report.order().collect();
    assert!(order.len() >= window, "only {} answers", order.len());
    let known: Vec<&str> = shares.iter().map(|(server, _)| *server).collect();
    if let Some(stranger) = order.iter().find(|server| !known.contains(server)) {
        panic!("{stranger} has answered, and is none of {known:?}");
    }
    for (start, some) in order.windows(window).enumerate() {
        for (server, share) in shares {
            let count = some.iter().filter(|answer| *answer == server).count();
            let wanted = share * window as f64;
            // The sum of many small shares is not exact.
            let off = (count as f64 - wanted).abs();
            assert!(
                off < 1.0 + 1e-9,
                "{server} answered {count} of {window} from {start} on, and {wanted} is its share"
            );
        }
    }
}

/// That a count is what a fair draw of `draws` with probability `share` gives, to five standard deviations: a test that
/// draws fails by chance less than once in a million runs.
#[track_caller]
pub fn assert_roughly(what: &str, count: u64, draws: u64, share: f64) {
    let (count, draws) = (count as f64, draws as f64);
    let deviation = (draws * share * (1.0 - share)).sqrt();
    let off = (count - draws * share).abs();
    assert!(off <= 5.0 * deviation + 1.0, "{what}: {count} of {draws}, expected about {}", draws * share);
}

/// That nothing happened but answers.
#[track_caller]
pub fn assert_all_answered(report: &Report) {
    assert_eq!(report.errors(), BTreeMap::new(), "of {} attempts", report.attempts.len());
}
