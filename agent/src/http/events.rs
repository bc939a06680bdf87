//! /v1/events: what happened, as server-sent events that can be resumed.

use std::{convert::Infallible, time::Duration};

use axum::{
    Extension,
    extract::State,
    http::HeaderMap,
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::{
    App,
    access::Admission,
    parameters::Ask,
    problem::{Problem, ReadProblems},
    stream,
    views::List,
};
use crate::view::events::{Event, EventBatch, EventKind};

/// Events read from the log at once.
const AT_ONCE: usize = 256;
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// `false`: answer with the events that are held, as a JSON collection, and end.
    #[param(required = false)]
    follow: bool,
    /// As the header Last-Event-ID, for those who cannot set it. 0 begins with the oldest event held.
    #[param(required = false)]
    after: Option<u64>,
}

impl Default for EventsQuery {
    fn default() -> Self {
        Self { follow: true, after: None }
    }
}

/// Events from now on, or after the one that the header Last-Event-ID names (0: from the oldest held). Each has an id,
/// its kind as the event's name and an `Event` as data. An event `missed` says that there were others in between.
#[utoipa::path(get, path = "/v1/events", operation_id = "stream_events", tag = "traffic",
    params(EventsQuery, ("Last-Event-ID" = Option<String>, Header, description = "Id of the last event seen")),
    responses((status = 200, description = "Without end, unless follow=false",
        content((Event = "text/event-stream"), (List<Event> = "application/json"))), ReadProblems))]
pub async fn stream(
    State(app): State<App>,
    Extension(admission): Extension<Admission>,
    headers: HeaderMap,
    Ask(query): Ask<EventsQuery>,
) -> Result<Response, Problem> {
    let seen = match headers.get("last-event-id") {
        // An empty id is what a browser sends that has seen none.
        Some(value) if !value.is_empty() => Some(parse(value.as_bytes())?),
        _ => query.after,
    };
    if !query.follow {
        return stream::list(&app.clone(), move |items| {
            let batch = app.handle.events().after(seen.unwrap_or(0), usize::MAX);
            batch.events.iter().try_for_each(|event| items.push(&**event))
        })
        .await;
    }
    let seen = seen.unwrap_or_else(|| app.handle.events().newest());
    let place = app.stream_place()?;
    let (sender, receiver) = mpsc::channel(AT_ONCE);
    tokio::spawn(async move {
        tokio::select! {
            () = follow(app, seen, sender) => {}
            () = admission.lapsed() => {}
        }
        drop(place);
    });
    let stream = ReceiverStream::new(receiver);
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

type Sender = mpsc::Sender<Result<sse::Event, Infallible>>;

/// Sends until the reader goes away or the agent stops.
async fn follow(app: App, mut seen: u64, sender: Sender) {
    let mut stopping = app.stopping.clone();
    loop {
        let batch = tokio::select! {
            batch = app.handle.events().wait_after(seen, AT_ONCE) => batch,
            () = sender.closed() => return,
            () = stopped(&mut stopping) => return,
        };
        for event in frames(&batch) {
            if sender.send(Ok(event)).await.is_err() {
                return;
            }
        }
        seen = batch.events.last().map_or(seen, |event| event.id);
    }
}

/// Returns when the agent stops.
pub async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: the agent has stopped.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

fn frames(batch: &EventBatch) -> impl Iterator<Item = sse::Event> {
    // Without an id: a reader that loses the connection here resumes from the event before.
    let missed = batch.missed.then(|| {
        sse::Event::default()
            .event(EventKind::Missed.name())
            .data("{\"message\":\"events in between are no longer held\"}")
    });
    let events = batch.events.iter().map(|event| {
        // Texts and numbers always become JSON.
        let data = serde_json::to_string(&**event).unwrap_or_default();
        sse::Event::default().id(event.id.to_string()).event(event.kind.name()).data(data)
    });
    missed.into_iter().chain(events)
}

fn parse(value: &[u8]) -> Result<u64, Problem> {
    let number = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
    number.ok_or_else(|| Problem::bad_request("Last-Event-ID must be the id of an event").at("Last-Event-ID"))
}
