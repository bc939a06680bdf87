//! What happened, in order: kept in memory, resumable by id.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

/// Events kept for readers that resume.
pub const KEPT: usize = 8192;

/// Something that an operator may want to know of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Grows with every event, across restarts of the agent too: microseconds since 1970, plus what makes it unique.
    pub id: u64,
    pub time: Timestamp,
    pub kind: EventKind,
    /// `service/shop`, `node/node-1` or `shop/n1`; absent when the event is about the agent itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    pub message: String,
    /// Of a change: who asked for it, as `user root (0), process 4711 (sluice)`, `token ops from 10.0.0.1`,
    /// `certificate CN=ops from 10.0.0.1` or `file /etc/sluice/shop.yaml`. Absent when the agent does it by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub by: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum EventKind {
    AgentStarted,
    ServiceCreated,
    ServiceChanged,
    ServiceDeleted,
    /// A program on this host listens on a new frontend: callers that are steered go past it.
    FrontendInUse,
    NodeCreated,
    NodeChanged,
    NodeDeleted,
    BackendChanged,
    Zeroed,
    Restored,
    DrainStarted,
    /// Another phase, with what is left.
    DrainMoved,
    Drained,
    DrainDeadlineReached,
    /// By a restore, or because the target left the configuration.
    DrainCancelled,
    /// A zero with an expiry ended by itself.
    ZeroExpired,
    /// Probes or reports say that backends are not ready (any more).
    BackendUnready,
    BackendReady,
    /// A rule has taken backends out.
    Ejected,
    /// Backends that were ejected get a few connections again.
    TrialStarted,
    /// Backends that were ejected are back.
    EjectionEnded,
    /// So few backends of a service are healthy that all of them serve.
    PanicStarted,
    PanicEnded,
    WarmupStarted,
    WarmupEnded,
    /// What an earlier agent left in the kernel was taken over.
    Adopted,
    SourceApplied,
    /// A document could not be used; what was there before stays.
    SourceFailed,
    /// Files would remove more than the brake allows at once: it waits until that is accepted.
    ShrinkHeld,
    /// Somebody has accepted it.
    ShrinkAccepted,
    /// The kernel said no; it is tried again.
    KernelFailed,
    /// Programs were detached, or pins removed; they are put back.
    AttachmentLost,
    AttachmentRestored,
    /// Programs of others have come to our hooks, or gone.
    NeighboursChanged,
    /// The disk said no: what holds in the kernel is not saved, and it is tried again.
    StoreFailed,
    /// Everything that holds is saved again.
    StoreRecovered,
    /// The TCP address is taken by another program; it is tried again.
    ListenFailed,
    /// The TCP address is served.
    ListenRecovered,
    /// Events between the one asked for and the next are no longer held.
    Missed,
}

/// The last [`KEPT`] events, and a way to wait for the next.
pub struct EventLog {
    ring: Mutex<RecentEvents>,
    /// Id of the newest event.
    newest: watch::Sender<u64>,
}

struct RecentEvents {
    events: VecDeque<Arc<Event>>,
    capacity: usize,
    /// Events up to this id are not held: dropped here, or recorded by an earlier agent.
    gone: u64,
    newest: u64,
}

/// Events after some id, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventBatch {
    /// Whether there were others in between that are no longer held.
    pub missed: bool,
    pub events: Vec<Arc<Event>>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self::new(KEPT)
    }
}

impl EventLog {
    /// Ids grow from one agent to the next while the clock advances. A reader that resumes from before this agent is
    /// told that events may be missing.
    pub fn new(capacity: usize) -> Self {
        let gone = micros(Timestamp::now());
        let ring = RecentEvents { events: VecDeque::new(), capacity: capacity.max(1), gone, newest: gone };
        Self { ring: Mutex::new(ring), newest: watch::Sender::new(gone) }
    }

    /// Holds what an earlier agent has kept, oldest first. What else there was is not held.
    pub fn restore(&self, kept: Vec<Event>) {
        let mut ring = self.ring();
        let start = ring.gone;
        let kept = kept.into_iter().filter(|event| event.id <= start);
        let events = kept.map(Arc::new).chain(std::mem::take(&mut ring.events));
        ring.events = events.collect();
    }

    /// Adds an event that happens now.
    pub fn record(&self, kind: EventKind, object: Option<String>, message: impl Into<String>) -> Arc<Event> {
        self.record_by(None, kind, object, message)
    }

    /// As [`EventLog::record`], of what somebody asked for.
    pub fn record_by(
        &self,
        by: Option<Arc<str>>,
        kind: EventKind,
        object: Option<String>,
        message: impl Into<String>,
    ) -> Arc<Event> {
        let event = Event { id: 0, time: Timestamp::now(), kind, object, message: message.into(), by };
        self.add(event)
    }

    /// Adds an event under an id of its own.
    fn add(&self, event: Event) -> Arc<Event> {
        let mut ring = self.ring();
        let id = micros(event.time).max(ring.newest + 1);
        let event = Arc::new(Event { id, ..event });
        if ring.events.len() == ring.capacity
            && let Some(dropped) = ring.events.pop_front()
        {
            ring.gone = ring.gone.max(dropped.id);
        }
        ring.events.push_back(event.clone());
        ring.newest = id;
        // Under the lock, so that a woken reader finds ids in order.
        self.newest.send_replace(id);
        event
    }

    /// Id of the newest event, or of the last one before this agent.
    pub fn newest(&self) -> u64 {
        self.ring().newest
    }

    /// At most `limit` of the events after `id`; 0 stands for the oldest held.
    pub fn after(&self, id: u64, limit: usize) -> EventBatch {
        let ring = self.ring();
        // An id that was never given out is another host's, or of a clock that was set back since.
        let is_foreign = id > ring.newest;
        let id = if is_foreign { 0 } else { id };
        let start = ring.events.partition_point(|event| event.id <= id);
        EventBatch {
            missed: is_foreign || id != 0 && id < ring.gone,
            events: ring.events.iter().skip(start).take(limit).cloned().collect(),
        }
    }

    /// As [`EventLog::after`], and waits until there is at least one.
    pub async fn wait_after(&self, id: u64, limit: usize) -> EventBatch {
        let mut newest = self.newest.subscribe();
        loop {
            let batch = self.after(id, limit);
            if !batch.events.is_empty() {
                return batch;
            }
            // The sender lives in `self`: it cannot go away while this runs.
            let _ = newest.changed().await;
        }
    }

    fn ring(&self) -> MutexGuard<'_, RecentEvents> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventKind {
    /// The name of this kind on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AgentStarted => "agentStarted",
            Self::ServiceCreated => "serviceCreated",
            Self::ServiceChanged => "serviceChanged",
            Self::ServiceDeleted => "serviceDeleted",
            Self::FrontendInUse => "frontendInUse",
            Self::NodeCreated => "nodeCreated",
            Self::NodeChanged => "nodeChanged",
            Self::NodeDeleted => "nodeDeleted",
            Self::BackendChanged => "backendChanged",
            Self::Zeroed => "zeroed",
            Self::Restored => "restored",
            Self::DrainStarted => "drainStarted",
            Self::DrainMoved => "drainMoved",
            Self::Drained => "drained",
            Self::DrainDeadlineReached => "drainDeadlineReached",
            Self::DrainCancelled => "drainCancelled",
            Self::ZeroExpired => "zeroExpired",
            Self::BackendUnready => "backendUnready",
            Self::BackendReady => "backendReady",
            Self::Ejected => "ejected",
            Self::TrialStarted => "trialStarted",
            Self::EjectionEnded => "ejectionEnded",
            Self::PanicStarted => "panicStarted",
            Self::PanicEnded => "panicEnded",
            Self::WarmupStarted => "warmupStarted",
            Self::WarmupEnded => "warmupEnded",
            Self::Adopted => "adopted",
            Self::SourceApplied => "sourceApplied",
            Self::SourceFailed => "sourceFailed",
            Self::ShrinkHeld => "shrinkHeld",
            Self::ShrinkAccepted => "shrinkAccepted",
            Self::KernelFailed => "kernelFailed",
            Self::AttachmentLost => "attachmentLost",
            Self::AttachmentRestored => "attachmentRestored",
            Self::NeighboursChanged => "neighboursChanged",
            Self::StoreFailed => "storeFailed",
            Self::StoreRecovered => "storeRecovered",
            Self::ListenFailed => "listenFailed",
            Self::ListenRecovered => "listenRecovered",
            Self::Missed => "missed",
        }
    }
}

impl fmt::Debug for EventLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLog").field("newest", &self.newest()).finish_non_exhaustive()
    }
}

fn micros(time: Timestamp) -> u64 {
    u64::try_from(time.as_microsecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(log: &EventLog, message: &str) -> u64 {
        log.record(EventKind::ServiceChanged, Some("service/shop".into()), message).id
    }

    fn messages(batch: &EventBatch) -> Vec<&str> {
        batch.events.iter().map(|event| event.message.as_str()).collect()
    }

    #[test]
    fn ids_grow_even_when_the_clock_stands_still_or_goes_back() {
        let log = EventLog::new(8);
        let now = Timestamp::now();
        let hour_ago = now - jiff::SignedDuration::from_hours(1);
        let ids = [now, now, hour_ago, now].map(|time| log.add(event(0, time)).id);
        assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    }

    fn event(id: u64, time: Timestamp) -> Event {
        Event { id, time, kind: EventKind::Adopted, object: None, message: "kept".into(), by: None }
    }

    #[test]
    fn what_an_earlier_agent_has_kept_comes_first() {
        let log = EventLog::new(2);
        let start = log.newest();
        let first = record(&log, "a");
        let old = start - 1_000_000;
        log.restore(vec![event(old, Timestamp::now()), event(start + 1_000_000_000, Timestamp::now())]);
        assert_eq!(messages(&log.after(0, 10)), ["kept", "a"], "none of the future");
        let resumed = log.after(old, 10);
        assert_eq!((resumed.missed, messages(&resumed)), (true, vec!["a"]), "other events are gone");
        record(&log, "b");
        assert!(log.after(old, 10).missed && !log.after(first, 10).missed);
    }

    #[test]
    fn ids_go_on_after_a_restart() {
        let last = record(&EventLog::new(8), "a");
        assert!(record(&EventLog::new(8), "b") > last);
    }

    #[test]
    fn a_reader_resumes_after_the_id_it_has_seen() {
        let log = EventLog::new(8);
        let first = record(&log, "a");
        record(&log, "b");
        record(&log, "c");
        assert_eq!(messages(&log.after(first, 10)), ["b", "c"]);
        assert_eq!(messages(&log.after(first, 1)), ["b"]);
        assert_eq!(messages(&log.after(0, 10)), ["a", "b", "c"]);
        assert!(!log.after(first, 10).missed && !log.after(0, 10).missed);
    }

    #[test]
    fn a_reader_is_told_of_what_is_no_longer_held() {
        let log = EventLog::new(2);
        let first = record(&log, "a");
        let second = record(&log, "b");
        record(&log, "c");
        record(&log, "d");
        let batch = log.after(first, 10);
        assert_eq!((batch.missed, messages(&batch)), (true, vec!["c", "d"]));
        assert!(!log.after(second, 10).missed, "b was the last one dropped, and was seen");
        let of_an_earlier_agent = log.after(first - 1_000_000, 10);
        assert!(of_an_earlier_agent.missed);
        let of_another_clock = log.after(first + 1_000_000_000_000, 10);
        assert!(of_another_clock.missed && !of_another_clock.events.is_empty());
    }

    #[tokio::test]
    async fn a_waiting_reader_wakes_with_the_next_event() {
        let log = Arc::new(EventLog::new(8));
        let seen = record(&log, "a");
        let waiting = tokio::spawn({
            let log = log.clone();
            async move { log.wait_after(seen, 10).await }
        });
        tokio::task::yield_now().await;
        record(&log, "b");
        assert_eq!(messages(&waiting.await.unwrap()), ["b"]);
    }

    #[test]
    fn names_are_those_on_the_wire() {
        for kind in [EventKind::AgentStarted, EventKind::ZeroExpired, EventKind::Missed, EventKind::Zeroed] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
