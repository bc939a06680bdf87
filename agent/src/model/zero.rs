//! What a zero says, and what becomes of it when it is repeated.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Drain, DrainRequest, Refusal, Zero};

/// A zero as it was asked for.
#[derive(Clone, Copy)]
pub(super) struct AskedZero<'a> {
    pub zero: &'a Zero,
    pub drain: Option<&'a DrainRequest>,
    pub force: bool,
    pub now: Timestamp,
}

impl Zero {
    /// Longest owner, in bytes.
    pub const MAX_OWNER: usize = 253;
    /// Longest reason, in bytes.
    pub const MAX_REASON: usize = 1024;

    /// # Errors
    /// A refusal that names the field at fault.
    pub fn check(&self) -> Result<(), Refusal> {
        for (field, text, most) in [("owner", &self.owner, Self::MAX_OWNER), ("reason", &self.reason, Self::MAX_REASON)]
        {
            if text.len() > most {
                return Err(Refusal::invalid(field, format!("{} bytes; at most {most} are kept", text.len())));
            }
            if text.chars().any(char::is_control) {
                return Err(Refusal::invalid(field, "has control characters: write one line of plain text"));
            }
        }
        Ok(())
    }
}

impl AskedZero<'_> {
    /// The zero to set, or `None` when it is set like this already.
    ///
    /// To repeat a zero is safe: what is left out stays, and nobody ends another's zero early. Of two owners the one who
    /// wants it to hold longer prevails, and has it from then on; `force` takes the new time, or none, as it is. A drain
    /// has an owner of its own, who began it: see [`Drain::asked`].
    ///
    /// # Errors
    /// A refusal when it asks more of another's drain than that does.
    pub fn overlay(&self, old: Option<&Arc<Zero>>) -> Result<Option<Arc<Zero>>, Refusal> {
        const NOBODY: &str = "api";
        let new = self.zero;
        let by = if new.owner.is_empty() { NOBODY } else { &new.owner };
        let drain = match self.drain {
            Some(request) => Some(Drain::asked(old.and_then(|old| old.drain.as_ref()), request, by, self)?),
            None => old.and_then(|old| old.drain.clone()),
        };
        let Some(old) = old else {
            return Ok(Some(Arc::new(Zero { owner: by.to_owned(), since: self.now, drain, ..new.clone() })));
        };
        let is_own = old.owner == by;
        // Who says something more of a drain that lasts says nothing of the time after it.
        let says_nothing = is_own || new.owner.is_empty() || (self.drain.is_some() && old.lasting_drain().is_some());
        let expires = match (old.expires, new.expires) {
            (_, new) if self.force => new,
            (_, Some(new)) if is_own => Some(new),
            (Some(old), Some(new)) => Some(old.max(new)),
            (Some(old), None) if says_nothing => Some(old),
            (None, _) | (Some(_), None) => None,
        };
        // Or else it would be theirs the second time.
        let prevails = self.force || is_own || expires != old.expires;
        let said = |new: &String, old: &String| if new.is_empty() || !prevails { old.clone() } else { new.clone() };
        let (owner, reason) = (said(&new.owner, &old.owner), said(&new.reason, &old.reason));
        let new = Zero { owner, reason, since: old.since, expires, drain };
        Ok((**old != new).then(|| Arc::new(new)))
    }
}
