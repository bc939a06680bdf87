//! `sluice wait`: until a node, a backend or a service has reached a state.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use jiff::SignedDuration;
use tokio::time::{sleep, timeout};

use super::{
    candidates,
    client::{Client, encode},
    failure::Failure,
    follow::is_away,
    names::Named,
    output::{self, duration},
};
use crate::{
    http::views::{BackendView, NodeView, ServiceView},
    model::OperationPhase,
    view::{
        operations::Operation,
        proof::ZeroStatus,
        status::{AdminState, BackendStatus, NodeStatus},
    },
};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How long an answer may be late.
pub(super) const LATE: Duration = Duration::from_secs(1);

/// Wait until a node, a backend or a service has reached a state
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sluice wait shop/n1 --for ready --timeout 5m\n  sluice wait node/node-1 --for drained\n  \
        sluice wait shop --for ready\n\n\
        A backend is ready when it takes its whole weight, a node when it is not zeroed and nothing on it is unhealthy, a service when \
        all of its backends are and one of them has a weight. An agent that is away is waited for.\n\
        Exit codes: 0 reached; 3 not within --timeout, or not any more, since the drain ended at its deadline; 1 there is no such thing."
)]
pub struct WaitArguments {
    /// SERVICE, node/NODE or SERVICE/BACKEND
    #[arg(add = candidates::named())]
    target: String,
    /// The state
    #[arg(long = "for", value_enum, hide_possible_values = true, value_name = "zeroed|drained|ready")]
    state: WaitState,
    /// Wait no longer than this; 0s looks once [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = patience)]
    timeout: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WaitState {
    Zeroed,
    Drained,
    Ready,
}

/// What a look has found.
struct WaitLook {
    reached: bool,
    /// The state in words.
    state: String,
    /// The zeros without which it would be reached.
    zeros: Vec<ZeroStatus>,
}

impl WaitArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let start = Instant::now();
        let patience = self.patience();
        let named = Named::read(&self.target);
        loop {
            let left = patience.saturating_sub(start.elapsed());
            let look = timeout(left + LATE, self.look(client, &named)).await;
            let look = look.unwrap_or_else(|_| Err(Failure::TimedOut("the agent does not answer".to_owned())));
            let last = match look {
                Ok(WaitLook { reached: true, .. }) => {
                    let took = duration(SignedDuration::try_from(start.elapsed()).unwrap_or_default());
                    return output::print(&format!("{} is {} after {took}\n", self.target, self.state.name()));
                }
                Ok(WaitLook { state, zeros, .. }) => {
                    if self.state == WaitState::Drained {
                        self.give_up(client, &zeros).await?;
                    }
                    format!("its state is {state}")
                }
                Err(failure) if is_away(&failure) || matches!(failure, Failure::TimedOut(_)) => failure.to_string(),
                Err(failure) => return Err(failure),
            };
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                let waited = duration(SignedDuration::try_from(patience).unwrap_or_default());
                return Err(Failure::TimedOut(format!(
                    "{} is not {} after {waited}: {last}",
                    self.target,
                    self.state.name()
                )));
            }
            sleep(left.min(PAUSE)).await;
        }
    }

    fn patience(&self) -> Duration {
        let said = self.timeout.as_ref().and_then(|text| text.parse::<SignedDuration>().ok()?.try_into().ok());
        said.unwrap_or(PATIENCE)
    }

    async fn look(&self, client: &Client, named: &Named) -> Result<WaitLook, Failure> {
        match named {
            Named::Node(node) => {
                let view: NodeView = client.get(&format!("/v1/nodes/{}", encode(node))).await?;
                Ok(self.node(view.status))
            }
            Named::Backend { service, backend } => {
                let path = format!("/v1/services/{}/backends/{}", encode(service), encode(backend));
                let view: BackendView = client.get(&path).await?;
                Ok(self.backends(vec![view.status]))
            }
            Named::Service(service) => {
                let view: ServiceView = client.get(&format!("/v1/services/{}", encode(service))).await?;
                let takes_none = view.status.backends.iter().all(|backend| backend.effective_weight == 0);
                Ok(match self.backends(view.status.backends) {
                    WaitLook { reached: true, zeros, .. } if self.state == WaitState::Ready && takes_none => {
                        WaitLook { reached: false, state: "without any weight".to_owned(), zeros }
                    }
                    look => look,
                })
            }
        }
    }

    fn node(&self, status: NodeStatus) -> WaitLook {
        let reached = match self.state {
            WaitState::Zeroed => status.zero.is_some(),
            WaitState::Drained => status.state == AdminState::Drained,
            WaitState::Ready => status.state == AdminState::Ready && status.unhealthy == 0,
        };
        let unhealthy =
            if status.unhealthy > 0 { format!(", {} on it unhealthy", status.unhealthy) } else { String::new() };
        WaitLook { reached, state: format!("{}{unhealthy}", status.state.name()), zeros: Vec::from_iter(status.zero) }
    }

    /// All of them, or what is missing.
    fn backends(&self, all: Vec<BackendStatus>) -> WaitLook {
        let is_reached = |status: &BackendStatus| match self.state {
            WaitState::Zeroed => status.zero.is_some(),
            WaitState::Drained => status.state == AdminState::Drained,
            WaitState::Ready => status.state == AdminState::Ready,
        };
        let missing: Vec<_> = all.into_iter().filter(|status| !is_reached(status)).collect();
        let state = match missing.as_slice() {
            [one] => one.state.name().to_owned(),
            several => several.iter().map(|b| format!("{} {}", b.name, b.state.name())).collect::<Vec<_>>().join(", "),
        };
        let reached = missing.is_empty();
        WaitLook { reached, state, zeros: missing.into_iter().filter_map(|status| status.zero).collect() }
    }

    /// # Errors
    /// When a drain has ended and left something: it is not drained any more.
    async fn give_up(&self, client: &Client, zeros: &[ZeroStatus]) -> Result<(), Failure> {
        for id in zeros.iter().filter_map(|zero| zero.drain.as_ref()) {
            match client.get::<Operation>(&format!("/v1/operations/{}", encode(id))).await {
                Ok(drain) if drain.phase == OperationPhase::DeadlineReached => {
                    return Err(Failure::TimedOut(format!("{} is not drained: {}", self.target, drain.message)));
                }
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }
}

impl WaitState {
    const fn name(self) -> &'static str {
        match self {
            Self::Zeroed => "zeroed",
            Self::Drained => "drained",
            Self::Ready => "ready",
        }
    }
}

fn patience(text: &str) -> Result<String, String> {
    match text.parse::<SignedDuration>() {
        Ok(span) if !span.is_negative() => Ok(text.to_owned()),
        _ => Err("write a time such as 90s or 5m, or 0s to look once".to_owned()),
    }
}
