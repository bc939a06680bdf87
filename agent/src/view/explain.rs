//! Where a connection would go and why: candidates with their shares, and why the others are out.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{health::HealthStatus, operations::Operations};
use crate::{
    host::caller::Caller,
    kernel::readings::Readings,
    model::{Backend, Balance, Frontend, Name, OnNoBackend, Service, State, Zero},
    view::published::{ProgrammedBackend, Published},
};

/// What happens to a connection to an address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub to: Frontend,
    pub verdict: ExplainedVerdict,
    /// One sentence that says it all.
    pub message: String,
    pub service: Option<Name>,
    pub balance: Option<Balance>,
    /// With `balance: hash`, the backend of this caller, read from the kernel's tables.
    pub backend: Option<Name>,
    /// What was supposed of the caller because nobody said it.
    pub assumed: Vec<String>,
    /// Backends that take connections now.
    pub candidates: Vec<Candidate>,
    /// Backends that take none.
    pub out: Vec<Excluded>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Verdict)]
pub enum ExplainedVerdict {
    /// The address is no frontend: the connection goes where it was meant to.
    Untouched,
    Steered,
    /// No backend is open: the caller gets ECONNREFUSED.
    Refused,
    /// No backend is open: the connection goes to the original address.
    Passed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    pub backend: Name,
    pub address: String,
    pub node: Option<Name>,
    pub group: Option<Name>,
    /// Share of the service's new connections, 0..=1.
    pub share: f64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Excluded {
    pub backend: Name,
    pub address: String,
    pub why: String,
}

/// Explains a connection to `to`. `caller` matters for `balance: hash` only.
///
/// # Errors
/// When the tables cannot be read.
pub fn explain(
    published: &Published,
    readings: &dyn Readings,
    operations: &Operations,
    to: Frontend,
    caller: Option<&Caller>,
) -> Result<Explanation> {
    let state = &published.state;
    let Some(service) = state.frontend(&to).and_then(|id| state.service_by_id(id)) else {
        return Ok(Explanation {
            to,
            verdict: ExplainedVerdict::Untouched,
            message: format!("{to} is no frontend of any service: the connection goes there untouched"),
            service: None,
            balance: None,
            backend: None,
            assumed: Vec::new(),
            candidates: Vec::new(),
            out: Vec::new(),
        });
    };
    let (candidates, out) = sort(published, operations, service);
    let backend = match (service.balance, caller) {
        (Balance::Hash, Some(caller)) => {
            let id = readings.pick(service.id, caller.client.draw())?;
            id.and_then(|id| service.backends.iter().find(|backend| backend.id == id))
                .map(|backend| backend.name.clone())
        }
        (Balance::Hash, None) | (Balance::Spread | Balance::Scatter | Balance::Random, _) => None,
    };
    let verdict = match (candidates.is_empty(), service.on_no_backend) {
        (false, _) => ExplainedVerdict::Steered,
        (true, OnNoBackend::Refuse) => ExplainedVerdict::Refused,
        (true, OnNoBackend::Pass) => ExplainedVerdict::Passed,
    };
    let assumed = caller.filter(|_| service.balance == Balance::Hash).map(|caller| caller.assumed.clone());
    Ok(Explanation {
        to,
        verdict,
        message: sentence(service, verdict, candidates.len(), backend.as_ref()),
        service: Some(service.name.clone()),
        balance: Some(service.balance),
        backend,
        assumed: assumed.unwrap_or_default(),
        candidates,
        out,
    })
}

fn sort(published: &Published, operations: &Operations, service: &Service) -> (Vec<Candidate>, Vec<Excluded>) {
    let state = &published.state;
    let table = published.programmed.get(&service.id);
    let (mut candidates, mut out) = (Vec::new(), Vec::new());
    for backend in &service.backends {
        let programmed = table.and_then(|table| table.backends.iter().find(|held| held.id == backend.id));
        match why_out(state, operations, service, backend, programmed) {
            Some(why) => {
                out.push(Excluded { backend: backend.name.clone(), address: backend.address.to_string(), why });
            }
            None => candidates.push(Candidate {
                backend: backend.name.clone(),
                address: backend.address.to_string(),
                node: state.node_by_id(backend.node).map(|node| node.name.clone()),
                group: state.backend_document(service, backend).group,
                share: programmed.map_or(0.0, |programmed| programmed.programmed_share),
            }),
        }
    }
    // Until the table is rebuilt, slots of backends that were just closed fall to the others in proportion.
    let open: f64 = candidates.iter().map(|candidate| candidate.share).sum();
    if open > 0.0 {
        candidates.iter_mut().for_each(|candidate| candidate.share /= open);
    }
    (candidates, out)
}

fn why_out(
    state: &State,
    operations: &Operations,
    service: &Service,
    backend: &Backend,
    programmed: Option<&ProgrammedBackend>,
) -> Option<String> {
    let said = |zero: &Zero| {
        let reason = if zero.reason.is_empty() { String::new() } else { format!(": {}", zero.reason) };
        let drain = state.drain(backend).or(zero.drain.as_ref()).and_then(|drain| operations.get(&drain.operation));
        let drain = drain.map(|operation| format!("; drain {}", operation.sentence())).unwrap_or_default();
        format!("by {} at {:.0}{reason}{drain}", zero.owner, zero.since)
    };
    if let Some(zero) = &backend.zero {
        return Some(format!("zeroed {}", said(zero)));
    }
    let node = state.node_by_id(backend.node);
    if let Some((node, zero)) = node.and_then(|node| Some((node, node.zero.as_ref()?))) {
        return Some(format!("node {} was zeroed {}", node.name, said(zero)));
    }
    if backend.weight == 0 {
        return Some("its weight is 0".to_owned());
    }
    if !backend.is_fit(state.panics(service)) {
        return HealthStatus::of(backend).map(|health| health.sentence());
    }
    let group = service.groups.get(backend.group as usize);
    match programmed {
        None => Some("the kernel's table does not have it yet".to_owned()),
        Some(programmed) if programmed.programmed_share > 0.0 => None,
        Some(_) if group.is_some_and(|group| group.weight == 0) => {
            Some(format!("its group {} has weight 0", group.map_or("", |group| group.name.as_str())))
        }
        Some(programmed) if programmed.desired_share > 0.0 => {
            Some(format!("its share of {:.4} % is less than one slot of the table", programmed.desired_share * 100.0))
        }
        Some(_) => Some("the kernel's table gives it nothing yet".to_owned()),
    }
}

fn sentence(service: &Service, verdict: ExplainedVerdict, candidates: usize, backend: Option<&Name>) -> String {
    let name = &service.name;
    match (verdict, backend) {
        (ExplainedVerdict::Steered, Some(backend)) => format!("service {name} sends this caller to {backend}"),
        (ExplainedVerdict::Steered, None) => {
            let how = match service.balance {
                Balance::Spread => "in turn by weight",
                Balance::Scatter => "in turn by weight, in a scattered order",
                Balance::Random => "at random by weight",
                Balance::Hash => "by the caller (say who calls to learn which)",
            };
            match candidates {
                1 => format!("service {name} has one open backend, and sends all to it"),
                more => format!("service {name} chooses one of {more} backends, {how}"),
            }
        }
        (ExplainedVerdict::Refused, _) => {
            format!("service {name} has no open backend: the caller gets ECONNREFUSED at once")
        }
        (ExplainedVerdict::Passed, _) => {
            format!("service {name} has no open backend: the connection goes to the original address")
        }
        (ExplainedVerdict::Untouched, _) => "the connection goes there untouched".to_owned(),
    }
}
