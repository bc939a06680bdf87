//! What reads bytes of others, as functions of any bytes at all: they panic when a promise is broken. The unit tests run
//! each for a moment, always on the same inputs; `cargo xtask fuzz` runs one for as long as wanted, led by coverage.

mod seeds;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use serde_json::Value;
use sluice_common::flight::{Activity, BEGINNING_PATIENCE, EARLY, Side};

use crate::{
    kernel,
    model::{
        Change, Limits, Origin, State,
        document::Document,
        parse::{self, DocumentFormat},
    },
};

pub use seeds::seeds;

/// What takes any bytes, and panics when a promise is broken.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Target); 5] =
    [("yaml", yaml), ("json", json), ("btf", kernel::btf::fuzz), ("netlink", netlink), ("flight", flight)];

/// Files: what is accepted means the same when it is written out and read again.
fn yaml(bytes: &[u8]) {
    let Ok(parsed) = parse::documents(bytes, DocumentFormat::Yaml) else { return };
    for document in parsed.into_iter().map(|parsed| parsed.document) {
        let written = match &document {
            Document::Service(document) => serde_json::to_string(document),
            Document::Node(document) => serde_json::to_string(document),
        };
        let again = parse::documents(written.unwrap_or_default().as_bytes(), DocumentFormat::Json);
        assert_eq!(again.ok().and_then(|mut read| read.pop()).map(|read| read.document), Some(document));
    }
}

/// Bodies of requests: many documents as one change, and a merge patch of a service, which means the same twice.
fn json(bytes: &[u8]) {
    let documents = parse::documents(bytes, DocumentFormat::Json).unwrap_or_default();
    documents.into_iter().fold(State::new(LIMITS), |state, parsed| with(&state, parsed.document).unwrap_or(state));
    let shop = parse::documents(seeds::SHOP.as_bytes(), DocumentFormat::Yaml).unwrap_or_default().pop();
    let shop = shop.and_then(|parsed| with(&State::new(LIMITS), parsed.document));
    let (Some(shop), Ok(patch)) = (shop, parse::value(bytes, DocumentFormat::Json)) else { return };
    if let Some(once) = patched(&shop, &patch) {
        let generation = |state: &State| state.service("shop").map(|service| service.generation);
        let twice = patched(&once, &patch);
        assert_eq!(twice.as_ref().map(generation), Some(generation(&once)), "the second time it changes nothing");
    }
}

const LIMITS: Limits = Limits { services: 64, backends: 256, nodes: 64, frontends: 64 };

fn with(state: &State, document: Document) -> Option<State> {
    let change = match document {
        Document::Service(document) => Change::PutService { document, origin: Origin::Api, if_match: None },
        Document::Node(document) => Change::PutNode { document },
    };
    Some(state.apply(&change, Timestamp::UNIX_EPOCH).ok()?.state)
}

fn patched(state: &State, patch: &Value) -> Option<State> {
    let service = state.services().next()?.name.clone();
    let change = Change::PatchService { service, patch: patch.clone(), if_match: None };
    Some(state.apply(&change, Timestamp::UNIX_EPOCH).ok()?.state)
}

/// Answers of the kernel about sockets.
fn netlink(bytes: &[u8]) {
    let _ = kernel::sock_diag::read_answer(bytes);
}

/// The rule by which idle connections are closed: none in which a request may be on its way, by what the socket shows.
fn flight(bytes: &[u8]) {
    let mut bytes = bytes.iter().copied();
    let mut word = || u32::from_le_bytes(std::array::from_fn(|_| bytes.next().unwrap_or_default()));
    let (state, patience, hz) = (word() % 13, word(), word() % 1200);
    let side = if word() % 2 == 0 { Side::Caller } else { Side::Server };
    let activity = Activity {
        now: word(),
        last_sent: word(),
        last_received: word(),
        bytes_sent: word().into(),
        bytes_received: word().into(),
        unacknowledged: word(),
        unread: word(),
        last_segment: word(),
        keepalive: word(),
        hung_up: 0,
        segments_sent: word(),
        spoke_for: word(),
        multipath: word() % 2,
        written: word(),
        answered: word() % 2,
        ping_pong: word() % 3,
        acknowledged_late: word() % 2,
    };
    let began = u64::from(word()) * 1_000_000;
    let activity = activity.without_fin(state);
    let activity = if began == 0 { activity } else { activity.begun(began, u64::from(word()) * 1_000_000, hz) };
    if !activity.may_close(side, patience) {
        return;
    }
    let Activity { last_sent, last_received, bytes_sent, bytes_received, unacknowledged, unread, .. } = activity;
    assert!(activity.multipath == 0 && activity.quiet() >= patience, "{activity:?}");
    assert!(unacknowledged == 0 && unread == 0 && activity.last_segment as i32 >= 0, "{activity:?}");
    assert!(patience == 0 || activity.may_close(side, patience - 1), "less quiet is enough: {activity:?}");
    let is_done = side == Side::Caller && activity.hung_up == 1;
    if is_done {
        return;
    }
    let (asked, answered, asked_at, answered_at) = match side {
        Side::Caller => (bytes_sent, bytes_received, last_sent, last_received),
        Side::Server => (bytes_received, bytes_sent, last_received, last_sent),
    };
    assert!(asked == 0 || answered > 0, "asked and never answered: {activity:?}");
    assert!(answered == 0 || asked_at.wrapping_sub(answered_at) as i32 <= 0, "asked after the answer: {activity:?}");
    let is_probed = activity.keepalive != 0 && activity.quiet() >= activity.keepalive;
    let asked_last = match side {
        Side::Caller => bytes_sent > 0 && activity.last_segment == 0 && !is_probed,
        Side::Server => activity.last_segment > 0,
    };
    assert!(answered == 0 || !asked_last, "the peer's last segment tells of a request: {activity:?}");
    let knows = match side {
        Side::Caller => activity.last_segment > 0 || activity.answered == 1 || activity.ping_pong == 0,
        Side::Server => activity.last_segment == 0 && (!is_probed || activity.acknowledged_late == 1),
    };
    assert!(answered == 0 || asked_at != answered_at || knows, "nobody knows which came last: {activity:?}");
    let is_early = activity.spoke_for < EARLY && activity.segments_sent > 1;
    let waited = activity.quiet() >= patience.saturating_mul(BEGINNING_PATIENCE);
    assert!(waited || !(is_early && bytes_sent >= 200 && bytes_received >= 200), "a handshake: {activity:?}");
    assert!(waited || asked + answered > 0, "a first request may be on its way: {activity:?}");
}
