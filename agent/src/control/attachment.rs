//! What is attached and pinned: looks find what is missing, which is told, put back, and told again.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sluice_common::verdict::Program;

use super::StateMachine;
use crate::model::Stamp;

/// Time between two looks while there is nothing new. The kernel tells nobody that a link was detached.
const PERIOD: Duration = Duration::from_secs(1);
/// After something was put back, the look that shows whether it holds.
const CONFIRM: Duration = Duration::from_millis(100);

/// What is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Programs that the kernel does not run.
    pub programs: Vec<Program>,
    /// Pins, by their paths: what they name would end with the agent.
    pub pins: Vec<String>,
    /// What stands in the way of putting it back.
    pub why: Option<String>,
}

/// A program of somebody else on one of our hooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub id: u32,
    /// As it was loaded; empty when the kernel does not say.
    pub name: String,
    /// Whether it runs before ours.
    pub before: bool,
}

/// By hook. Those that have no neighbour are not there.
pub type Neighbours = BTreeMap<Program, Vec<Neighbour>>;

/// What one look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachmentLook {
    pub missing: Missing,
    pub neighbours: Neighbours,
}

/// When it cannot be said that every connection was steered: since the last look that found all programs attached, until
/// the first one that did so again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unattached {
    pub from: Timestamp,
    pub to: Timestamp,
}

#[derive(Clone, Copy, Debug)]
pub enum AttachmentEvent<'a> {
    Looked(&'a AttachmentLook),
    /// What was missing could not be put back.
    NotPutBack(&'a str),
}

/// What has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachmentNews {
    /// All that is missing now.
    pub missing: Missing,
    pub lost: Missing,
    pub back: Missing,
    /// When programs are lost, until now; and when the last one is back.
    pub unattached: Option<Unattached>,
    /// Hooks whose neighbours are others now, with all of them.
    pub neighbours: Neighbours,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachmentAction {
    Tell(Box<AttachmentNews>),
    PutBack,
}

/// What the looks have found so far.
#[derive(Debug)]
pub struct AttachmentWatch {
    missing: Missing,
    /// Of the last look that found every program attached.
    attached: Timestamp,
    neighbours: Neighbours,
    next: u64,
    actions: VecDeque<AttachmentAction>,
}

impl AttachmentWatch {
    /// At `now` everything is attached.
    pub fn new(now: Stamp) -> Self {
        let actions = VecDeque::new();
        Self { missing: Missing::default(), attached: now.at, neighbours: Neighbours::new(), next: now.ns, actions }
    }

    fn looked(&mut self, look: &AttachmentLook, now: Stamp) {
        let missing = Missing { why: self.missing.why.clone(), ..look.missing.clone() };
        let (lost, back) = (missing.without(&self.missing), self.missing.without(&missing));
        let is_attached = missing.programs.is_empty();
        let is_over = is_attached && !back.programs.is_empty();
        let unattached = Unattached { from: self.attached, to: now.at };
        let unattached = (is_over || !lost.programs.is_empty()).then_some(unattached);
        if is_attached {
            self.attached = now.at;
        }
        let before = std::mem::replace(&mut self.neighbours, look.neighbours.clone());
        let is_other = |program: &Program| before.get(program) != look.neighbours.get(program);
        let hooks = before.keys().chain(look.neighbours.keys()).filter(|program| is_other(program));
        let neighbours = hooks.map(|hook| (*hook, look.neighbours.get(hook).cloned().unwrap_or_default())).collect();
        let is_news = !lost.is_empty();
        self.missing = if missing.is_empty() { Missing::default() } else { missing };
        let news = AttachmentNews { missing: self.missing.clone(), lost, back, unattached, neighbours };
        if is_news || !news.back.is_empty() || !news.neighbours.is_empty() {
            self.actions.push_back(AttachmentAction::Tell(Box::new(news)));
        }
        if !self.missing.is_empty() {
            self.actions.push_back(AttachmentAction::PutBack);
        }
        self.next = now.after(if is_news { CONFIRM } else { PERIOD }).ns;
    }
}

impl StateMachine for AttachmentWatch {
    type Event<'a> = AttachmentEvent<'a>;
    type Action = AttachmentAction;

    fn handle(&mut self, event: AttachmentEvent<'_>, now: Stamp) {
        match event {
            AttachmentEvent::Looked(look) => self.looked(look, now),
            AttachmentEvent::NotPutBack(why) if self.missing.why.as_deref() != Some(why) => {
                self.missing.why = Some(why.to_owned());
                let news = AttachmentNews { missing: self.missing.clone(), ..AttachmentNews::default() };
                self.actions.push_back(AttachmentAction::Tell(Box::new(news)));
            }
            AttachmentEvent::NotPutBack(_) => {}
        }
    }

    fn poll_timeout(&self) -> Option<u64> {
        Some(self.next)
    }

    fn next_action(&mut self) -> Option<AttachmentAction> {
        self.actions.pop_front()
    }
}

impl Missing {
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.pins.is_empty()
    }

    /// What is missing here and not there.
    fn without(&self, other: &Self) -> Self {
        let programs = self.programs.iter().filter(|program| !other.programs.contains(program));
        let pins = self.pins.iter().filter(|pin| !other.pins.contains(pin));
        Self { programs: programs.copied().collect(), pins: pins.cloned().collect(), why: None }
    }

    /// One sentence about the programs, if any are missing.
    pub fn unattached(&self) -> Option<String> {
        let names: Vec<_> = self.programs.iter().map(|program| program.name()).collect();
        let (is, them) = if names.len() == 1 { ("is", "it") } else { ("are", "them") };
        (!names.is_empty()).then(|| {
            format!("{} {is} not attached, and what needs {them} is not steered or not counted", names.join(", "))
        })
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pins = (!self.pins.is_empty()).then(|| format!("without its pin: {}", self.pins.join(", ")));
        let parts: Vec<_> = self.unattached().into_iter().chain(pins).chain(self.why.clone()).collect();
        f.write_str(&parts.join("; "))
    }
}

impl Unattached {
    /// The shortest time that has both in it.
    pub fn and(self, other: Self) -> Self {
        Self { from: self.from.min(other.from), to: self.to.max(other.to) }
    }

    /// What is left of it after `since`, if anything.
    pub fn after(self, since: Timestamp) -> Option<Self> {
        (self.to > since).then_some(Self { from: self.from.max(since), to: self.to })
    }
}

impl fmt::Display for Unattached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to } = self;
        write!(f, "between {from:.3} and {to:.3} programs were not attached, and nobody knows where connections went")
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() { "a program without a name" } else { &self.name };
        write!(f, "{name} (id {}, {} Sluice)", self.id, if self.before { "before" } else { "after" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(programs: &[Program], pins: &[&str]) -> AttachmentLook {
        let pins = pins.iter().map(|pin| (*pin).to_owned()).collect();
        let missing = Missing { programs: programs.to_vec(), pins, why: None };
        AttachmentLook { missing, ..AttachmentLook::default() }
    }

    /// What follows from a look, `millis` after an arbitrary boot, and the time to the next one.
    fn look(watch: &mut AttachmentWatch, millis: u64, look: &AttachmentLook) -> (Vec<AttachmentAction>, Duration) {
        let now = Stamp::test(millis);
        watch.handle(AttachmentEvent::Looked(look), now);
        (watch.actions(), watch.time_left(now).unwrap())
    }

    fn told(actions: &[AttachmentAction]) -> &AttachmentNews {
        match actions {
            [AttachmentAction::Tell(news), ..] => news,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_lost_is_told_then_put_back_then_looked_at_again() {
        let mut watch = AttachmentWatch::new(Stamp::test(0));
        let whole = looked(&[], &[]);
        assert_eq!(look(&mut watch, 100, &whole), (Vec::new(), PERIOD));
        let lost = looked(&[Program::Connect4], &["links/connect4"]);
        let (actions, next) = look(&mut watch, 1_100, &lost);
        assert_eq!((&told(&actions).lost, &actions[1], next), (&lost.missing, &AttachmentAction::PutBack, CONFIRM));
        let unattached = Unattached { from: Stamp::test(100).at, to: Stamp::test(1_100).at };
        assert_eq!(told(&actions).unattached, Some(unattached), "from the last look that found it");
        let (actions, next) = look(&mut watch, 1_200, &whole);
        let news = told(&actions);
        assert_eq!((&news.back, news.missing.is_empty(), next), (&lost.missing, true, PERIOD));
        let unattached = Unattached { from: Stamp::test(100).at, to: Stamp::test(1_200).at };
        assert_eq!((news.unattached, actions.len()), (Some(unattached), 1));
    }

    #[test]
    fn a_lost_pin_is_no_time_without_steering() {
        let mut watch = AttachmentWatch::new(Stamp::test(0));
        let (actions, _) = look(&mut watch, 100, &looked(&[], &["maps/NODES"]));
        assert_eq!((told(&actions).missing.unattached(), actions.len()), (None, 2));
        let (actions, _) = look(&mut watch, 200, &looked(&[], &[]));
        assert_eq!(told(&actions).unattached, None);
    }

    #[test]
    fn what_comes_back_late_is_tried_again_and_told_once() {
        let mut watch = AttachmentWatch::new(Stamp::test(0));
        let all = looked(&[Program::Connect4, Program::Connect6], &["links/connect4"]);
        look(&mut watch, 0, &all);
        for millis in [0, 1] {
            watch.handle(AttachmentEvent::NotPutBack("the cgroup is gone"), Stamp::test(millis));
        }
        let actions = watch.actions();
        assert_eq!((actions.len(), told(&actions).missing.why.as_deref()), (1, Some("the cgroup is gone")));
        assert_eq!(look(&mut watch, 100, &all), (vec![AttachmentAction::PutBack], PERIOD));
        // Steering is back before the pins are.
        let (actions, _) = look(&mut watch, 1_100, &looked(&[], &["links/connect4"]));
        let news = told(&actions);
        assert_eq!((news.unattached.is_some(), news.missing.pins.len(), actions.len()), (true, 1, 2));
        let (actions, _) = look(&mut watch, 1_200, &looked(&[], &[]));
        assert_eq!((told(&actions).unattached, &told(&actions).missing), (None, &Missing::default()));
    }

    #[test]
    fn a_change_among_the_neighbours_is_told_once() {
        let mut watch = AttachmentWatch::new(Stamp::test(0));
        let other = Neighbour { id: 7, name: "firewall".into(), before: true };
        let beside = AttachmentLook {
            neighbours: [(Program::Connect4, vec![other.clone()])].into(),
            ..AttachmentLook::default()
        };
        let (actions, _) = look(&mut watch, 0, &beside);
        assert_eq!(told(&actions).neighbours, beside.neighbours);
        assert!(look(&mut watch, 1, &beside).0.is_empty());
        let (actions, _) = look(&mut watch, 2, &looked(&[], &[]));
        assert_eq!(told(&actions).neighbours, [(Program::Connect4, Vec::new())].into());
        assert_eq!(other.to_string(), "firewall (id 7, before Sluice)");
    }

    #[test]
    fn times_without_steering_add_up_and_end_before_what_comes_later() {
        let at = |millis| Stamp::test(millis).at;
        let (first, second) = (Unattached { from: at(1), to: at(2) }, Unattached { from: at(8), to: at(9) });
        assert_eq!(second.and(first), Unattached { from: at(1), to: at(9) });
        assert_eq!((first.after(at(2)), second.after(at(8)), second.after(at(0))), (None, Some(second), Some(second)));
        assert_eq!(Unattached { from: at(1), to: at(9) }.after(at(5)), Some(Unattached { from: at(5), to: at(9) }));
    }
}
