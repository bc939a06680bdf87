//! A value that a state machine announces and that others may overrule.

/// Announced values that may await their publication. There are more only if those in between are never published, as
/// of a backend that flips between ready and unready.
const PENDING: usize = 16;

/// A value whose changes a state machine announces, each once. They are published later, in the same order; some may be
/// skipped. A published value that was never announced was set by somebody else.
#[derive(Debug)]
pub struct Announced<T> {
    /// What was published last.
    published: T,
    /// Announced and not yet published, in order.
    pending: Vec<T>,
}

impl<T: Clone + PartialEq> Announced<T> {
    pub fn new(published: T) -> Self {
        Self { published, pending: Vec::new() }
    }

    /// What was announced last, or else what is published.
    pub fn current(&self) -> &T {
        self.pending.last().unwrap_or(&self.published)
    }

    pub fn announce(&mut self, value: T) {
        if self.pending.len() == PENDING {
            self.pending.remove(0);
        }
        self.pending.push(value);
    }

    /// Takes in what was published. `true`: somebody else has set it, and what was announced before is dropped.
    pub fn is_overruled(&mut self, published: T) -> bool {
        if published == self.published {
            return false;
        }
        let place = self.pending.iter().position(|pending| *pending == published);
        self.pending.drain(..place.map_or(self.pending.len(), |place| place + 1));
        self.published = published;
        place.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_late_or_in_part_is_the_machines_own() {
        let mut value = Announced::new(0);
        for announced in [1, 2, 3] {
            value.announce(announced);
        }
        assert_eq!([0, 2, 2].map(|published| value.is_overruled(published)), [false; 3]);
        assert_eq!(*value.current(), 3);
        assert!(!value.is_overruled(3) && *value.current() == 3);
    }

    #[test]
    fn changes_that_are_never_published_take_no_room() {
        let mut value = Announced::new(0);
        for _ in 0..1000 {
            value.announce(1);
            value.announce(0);
            assert!(!value.is_overruled(0) && *value.current() == 0);
        }
        assert_eq!(value.pending.len(), PENDING);
    }

    #[test]
    fn what_was_never_announced_or_was_left_behind_is_somebody_elses() {
        let mut value = Announced::new(0);
        value.announce(1);
        assert!(value.is_overruled(7) && *value.current() == 7);
        value.announce(8);
        assert!(!value.is_overruled(8));
        assert!(value.is_overruled(7), "it was published before, and 8 since");
        assert_eq!(*value.current(), 7);
    }
}
