//! What becomes of it when programs are detached or pins are lost, and when they are back: it is told, and zeros say what
//! is not proven any more.

use jiff::Timestamp;
use sluice_common::verdict::Program;

use super::event_loop::Engine;
use crate::{
    control::attachment::{AttachmentNews, Missing, Neighbour, Neighbours, Unattached},
    plan::DataPlane,
    source::store::Batch,
    view::events::EventKind,
};

impl<M: DataPlane> Engine<M> {
    /// Takes in what the watch has found.
    pub(super) fn attachment(&mut self, news: AttachmentNews) {
        let AttachmentNews { missing, lost, back, unattached, neighbours } = news;
        if !lost.is_empty() {
            tracing::error!("{lost}");
            self.instruments.lost_attachments(lost.programs.len(), lost.pins.len());
            self.note(EventKind::AttachmentLost, None, format!("{lost}; it is put back"));
        } else if let Some(why) = &missing.why {
            tracing::error!("what was attached or pinned cannot be put back, and it is tried again: {why}");
        }
        self.missing = missing;
        if let Some(unattached) = unattached {
            self.prove_less_and_save(unattached);
        }
        if !back.is_empty() {
            let message = returned(&back, unattached);
            tracing::warn!("{message}");
            self.note(EventKind::AttachmentRestored, None, message);
        }
        if !neighbours.is_empty() {
            let message = beside(&neighbours);
            tracing::warn!("{message}");
            self.note(EventKind::NeighboursChanged, None, message);
        }
        self.publish();
    }

    /// Looks whether everything is attached, for an answer that proves something. What is not is put back by the watch.
    pub(super) fn look_at_attachment(&mut self) -> bool {
        for program in self.machine.unattached() {
            if !self.missing.programs.contains(&program) {
                self.missing.programs.push(program);
            }
        }
        self.missing.programs.is_empty()
    }

    /// Tells what was not attached when this agent came: since when is not known.
    pub(super) fn tell_absent(&mut self, came: Timestamp) {
        let absent = std::mem::take(&mut self.absent);
        if absent.is_empty() {
            return;
        }
        let lost = Missing { programs: absent, ..Missing::default() };
        tracing::error!("when this agent came: {lost}");
        self.instruments.lost_attachments(lost.programs.len(), 0);
        self.note(EventKind::AttachmentLost, None, format!("when this agent came: {lost}"));
        self.prove_less_and_save(Unattached { from: Timestamp::UNIX_EPOCH, to: came });
        self.note(EventKind::AttachmentRestored, None, returned(&lost, None));
    }

    fn prove_less_and_save(&mut self, unattached: Unattached) {
        let extras = match self.prove_less(unattached) {
            Ok(extras) if extras.is_empty() => return,
            Ok(extras) => extras,
            Err(error) => return self.failed_to_save(&error),
        };
        if let Err(error) = self.store.commit_batch(&self.state, Batch { extras: &extras, ..Batch::default() }) {
            self.unsaved.extend(extras);
            self.failed_to_save(&error);
        }
    }
}

fn beside(neighbours: &Neighbours) -> String {
    let hook = |(hook, programs): (&Program, &Vec<Neighbour>)| {
        let programs: Vec<_> = programs.iter().map(ToString::to_string).collect();
        format!("{}: {}", hook.name(), if programs.is_empty() { "none".to_owned() } else { programs.join(", ") })
    };
    let hooks: Vec<_> = neighbours.iter().map(hook).collect();
    format!("other programs on the same hooks: {}", hooks.join("; "))
}

fn returned(back: &Missing, unattached: Option<Unattached>) -> String {
    let mut names: Vec<_> = back.programs.iter().map(|program| program.name().to_owned()).collect();
    names.extend(back.pins.iter().cloned());
    let mut text = format!("back: {}", names.join(", "));
    if let Some(unattached) = unattached {
        text += &format!("; {unattached}");
    }
    text
}
