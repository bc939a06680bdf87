//! Looks that find thousands of new files, in portions: what others ask for comes in between.

use std::{collections::HashSet, path::PathBuf};

use crate::source::files::FileEvent;

/// Files in one portion.
const PORTION: usize = 256;

/// Takes looks apart.
#[derive(Debug)]
pub(super) struct Portions {
    /// Files that may have brought something.
    known: HashSet<PathBuf>,
}

impl Portions {
    pub fn new(known: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { known: known.into_iter().collect() }
    }

    /// New files first, some at a time: they take nothing away. All the others are one portion, because documents may
    /// move from one of them to another.
    pub fn of(&mut self, look: Vec<FileEvent>) -> Vec<Vec<FileEvent>> {
        if look.len() <= PORTION {
            self.known.extend(look.iter().map(|event| event.file().to_owned()));
            return vec![look];
        }
        let is_new = |event: &FileEvent| matches!(event, FileEvent::Changed { file, .. } if !self.known.contains(file));
        let (new, others): (Vec<_>, Vec<_>) = look.into_iter().partition(is_new);
        self.known.extend(new.iter().chain(&others).map(|event| event.file().to_owned()));
        let mut portions: Vec<_> = new.chunks(PORTION).map(<[FileEvent]>::to_vec).collect();
        if !others.is_empty() {
            portions.push(others);
        }
        portions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_comes_in_portions_and_everything_else_at_once() {
        let changed = |n: usize| FileEvent::Changed { file: format!("/{n}").into(), documents: Vec::new() };
        let removed = |n: usize| FileEvent::Removed { file: format!("/{n}").into() };
        let mut portions = Portions::new([PathBuf::from("/0")]);
        assert_eq!(portions.of(vec![changed(0), changed(1), removed(2)]).len(), 1);
        let look: Vec<_> = (0..1000).map(changed).chain((1000..2000).map(removed)).collect();
        let sizes: Vec<_> = portions.of(look).iter().map(Vec::len).collect();
        assert_eq!(sizes, [256, 256, 256, 229, 1003]);
    }
}
