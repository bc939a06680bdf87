//! /v1/monitor: the decisions of the programs as they happen, as server-sent events.

use std::{convert::Infallible, path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::State,
    response::sse::{Event, KeepAlive, Sse},
};
use serde::Deserialize;
use tokio::sync::mpsc::{Receiver, channel};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use utoipa::IntoParams;

use super::{
    App,
    access::Admission,
    events::stopped,
    parameters::{self, Ask},
    problem::{Problem, ReadProblems},
};
use crate::{
    host::cgroups,
    model::Frontend,
    view::decisions::{MonitorFilter, Told},
};

const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct MonitorQuery {
    #[param(required = false)]
    service: Option<String>,
    /// Such as `10.96.0.10:80` or `10.96.0.10:53/udp`.
    #[param(required = false)]
    frontend: Option<String>,
    #[param(required = false)]
    pid: Option<u32>,
    /// Directory or name of a cgroup, such as `/system.slice/web.service`; the cgroups in it count too.
    #[param(required = false)]
    cgroup: Option<String>,
    /// Calls to addresses that are no frontend too.
    #[param(required = false)]
    all: bool,
}

/// What the programs decide from now on, and why: an event `decision` for each call that fits, with a `Decision` as data.
/// An event `lost` says how many came faster than they were taken. While somebody watches, the programs that choose a
/// backend are replaced by such as tell: over TCP this needs what a write needs.
#[utoipa::path(get, path = "/v1/monitor", operation_id = "monitor", tag = "traffic", params(MonitorQuery),
    responses((status = 200, description = "Without end", content((Told = "text/event-stream"))),
        (status = 401, description = "Over TCP it needs the bearer token", body = Problem,
            content_type = "application/problem+json"),
        (status = 403, description = "Over TCP without a token file it is not served", body = Problem,
            content_type = "application/problem+json"), ReadProblems))]
pub async fn stream(
    State(app): State<App>,
    Extension(admission): Extension<Admission>,
    Ask(query): Ask<MonitorQuery>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let filter = filter(&app, query).await?;
    let place = app.stream_place()?;
    let told = app.handle.watch(filter).await?;
    let (sender, receiver) = channel(1);
    tokio::spawn(async move {
        tokio::select! {
            () = pass_on(app, told, sender) => {}
            () = admission.lapsed() => {}
        }
        drop(place);
    });
    Ok(Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

async fn filter(app: &App, query: MonitorQuery) -> Result<MonitorFilter, Problem> {
    let MonitorQuery { service, frontend, pid, cgroup, all } = query;
    if let Some(service) = &service {
        let name = parameters::service(service)?;
        let published = app.handle.published();
        published
            .state
            .service(name.as_str())
            .ok_or_else(|| Problem::not_found(format!("there is no service {name}")))?;
    }
    let frontend = frontend.map(|text| text.parse::<Frontend>()).transpose();
    let frontend = frontend.map_err(|error| Problem::bad_request(error.to_string()).at("frontend"))?;
    let cgroup = match cgroup.map(PathBuf::from) {
        None => None,
        Some(path) => {
            let found = tokio::task::spawn_blocking(move || cgroups::find(&path)).await.map_err(anyhow::Error::new)?;
            Some(found.map_err(|error| Problem::bad_request(format!("{error:#}")).at("cgroup"))?)
        }
    };
    Ok(MonitorFilter { service, frontend, pid, cgroup, all })
}

type Sender = tokio::sync::mpsc::Sender<Result<Event, Infallible>>;

/// Sends until the reader goes away or the agent stops.
async fn pass_on(app: App, mut told: Receiver<Arc<Told>>, sender: Sender) {
    let mut stopping = app.stopping.clone();
    loop {
        let next = tokio::select! {
            next = told.recv() => next,
            () = sender.closed() => None,
            () = stopped(&mut stopping) => None,
        };
        let Some(next) = next else { return };
        let kind = match &*next {
            Told::Decision(_) => "decision",
            Told::Lost(_) => "lost",
        };
        // Texts and numbers always become JSON.
        let data = serde_json::to_string(&*next).unwrap_or_default();
        if sender.send(Ok(Event::default().event(kind).data(data))).await.is_err() {
            return;
        }
    }
}
