//! Dense ids, and tables indexed by them. Both are persistent: a clone costs the same whatever they hold.

use imbl::{OrdSet, Vector};

/// Free ids of one kind, the lowest first so that tables stay dense. An id that is taken comes back only by
/// [`Pool::release`]: in between its owner may be gone while connections still carry it.
#[derive(Clone, Debug)]
pub struct Pool {
    /// First id that was never taken.
    next: u32,
    /// One more than the last id.
    end: u32,
    free: OrdSet<u32>,
}

impl Pool {
    /// Ids from `first` (inclusive) to `end` (exclusive), all free.
    pub fn new(first: u32, end: u32) -> Self {
        Self { next: first, end, free: OrdSet::new() }
    }

    /// Takes the lowest free id. `None` when all are taken.
    pub fn take(&mut self) -> Option<u32> {
        if let Some(id) = self.free.remove_min() {
            return Some(id);
        }
        (self.next < self.end).then(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Takes `id` if it is free.
    pub fn reserve(&mut self, id: u32) {
        if id >= self.end || self.free.remove(&id).is_some() {
            return;
        }
        while self.next <= id {
            if self.next < id {
                self.free.insert(self.next);
            }
            self.next += 1;
        }
    }

    /// Gives `id` back.
    pub fn release(&mut self, id: u32) {
        if id < self.next {
            self.free.insert(id);
        }
    }
}

/// What stands under each id.
#[derive(Clone, Debug)]
pub struct IdTable<T: Clone>(Vector<Option<T>>);

impl<T: Clone> IdTable<T> {
    pub fn new() -> Self {
        Self(Vector::new())
    }

    pub fn get(&self, id: u32) -> Option<&T> {
        self.0.get(id as usize)?.as_ref()
    }

    pub fn set(&mut self, id: u32, value: Option<T>) {
        while self.0.len() <= id as usize {
            self.0.push_back(None);
        }
        self.0.set(id as usize, value);
    }

    /// In the order of ids.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.0).filter_map(|(id, value)| Some((id, value.as_ref()?)))
    }

    /// Ids under which something else stands than in `before`, ascending. What the two share whole is passed over.
    pub fn differences(&self, before: &Self, is_same: impl Fn(&T, &T) -> bool) -> Vec<u32> {
        let (mut ours, mut theirs) = (self.0.leaves(), before.0.leaves());
        let (mut our, mut their): (&[Option<T>], &[Option<T>]) = (&[], &[]);
        let (mut found, mut at) = (Vec::new(), 0);
        loop {
            if our.is_empty() {
                our = ours.next().unwrap_or_default();
            }
            if their.is_empty() {
                their = theirs.next().unwrap_or_default();
            }
            let both = match (our.len(), their.len()) {
                (0, 0) => return found,
                (0, only) | (only, 0) => only,
                (our, their) => our.min(their),
            };
            if !std::ptr::eq(our.as_ptr(), their.as_ptr()) {
                for (id, place) in (at..).zip(0..both) {
                    let (one, other) = (our.get(place), their.get(place));
                    let is_same = match (one.and_then(Option::as_ref), other.and_then(Option::as_ref)) {
                        (Some(one), Some(other)) => is_same(one, other),
                        (None, None) => true,
                        (Some(_), None) | (None, Some(_)) => false,
                    };
                    if !is_same {
                        found.push(id);
                    }
                }
            }
            our = our.get(both..).unwrap_or_default();
            their = their.get(both..).unwrap_or_default();
            at += both as u32;
        }
    }

    /// Changes what stands under each of `ids`, fastest when they ascend.
    pub fn update<V>(&mut self, ids: impl Iterator<Item = (u32, V)>, mut change: impl FnMut(u32, &mut T, V)) {
        let mut focus = self.0.focus_mut();
        for (id, value) in ids {
            if let Some(Some(slot)) = focus.get_mut(id as usize) {
                change(id, slot, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_comes_back_only_by_release() {
        let mut pool = Pool::new(1, 6);
        pool.reserve(3);
        pool.reserve(9);
        let taken: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(taken, [1, 2, 4, 5]);
        pool.release(4);
        pool.release(2);
        pool.release(4);
        let before = pool.clone();
        assert_eq!(std::iter::from_fn(|| pool.take()).collect::<Vec<_>>(), [2, 4]);
        pool = before;
        pool.reserve(2);
        assert_eq!(pool.take(), Some(4));
        assert_eq!(pool.take(), None);
    }
}
