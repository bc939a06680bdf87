//! Which parts of SLOTS are free.

use imbl::{OrdMap, OrdSet};

/// Slots of one cache line: regions begin at a line and fill whole ones.
const LINE: u32 = 16;

/// A part of SLOTS that one table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub base: u32,
    pub length: u32,
}

/// Free parts of SLOTS, best fit, joined with their neighbours when they come back. A clone costs the same whatever it
/// holds: plans are made on one.
#[derive(Clone, Debug)]
pub struct Regions {
    by_base: OrdMap<u32, u32>,
    by_length: OrdSet<(u32, u32)>,
}

impl Region {
    /// The region that a table of so many entries at `base` takes.
    pub fn of(base: u32, entries: u32) -> Self {
        Self { base, length: entries.next_multiple_of(LINE) }
    }
}

impl Regions {
    pub fn new(slots: u32) -> Self {
        let mut regions = Self { by_base: OrdMap::new(), by_length: OrdSet::new() };
        regions.insert(0, slots / LINE * LINE);
        regions
    }

    /// Room for `entries` slots; `None` when no free part is large enough.
    pub fn take(&mut self, entries: u32) -> Option<Region> {
        let wanted = Region::of(0, entries).length;
        if wanted == 0 {
            return Some(Region { base: 0, length: 0 });
        }
        let &(length, base) = self.by_length.range((wanted, 0)..).next()?;
        self.remove(base, length);
        self.insert(base + wanted, length - wanted);
        Some(Region { base, length: wanted })
    }

    /// Marks a region as taken that an earlier agent wrote. `false`: it is not free.
    pub fn claim(&mut self, region: Region) -> bool {
        if region.length == 0 {
            return true;
        }
        let Some((&base, &length)) = self.by_base.range(..=region.base).next_back() else {
            return false;
        };
        if region.base + region.length > base + length {
            return false;
        }
        self.remove(base, length);
        self.insert(base, region.base - base);
        self.insert(region.base + region.length, base + length - region.base - region.length);
        true
    }

    pub fn give_back(&mut self, region: Region) {
        let Region { mut base, mut length } = region;
        if let Some((&before, &size)) = self.by_base.range(..base).next_back()
            && before + size == base
        {
            self.remove(before, size);
            (base, length) = (before, size + length);
        }
        if let Some(&size) = self.by_base.get(&(base + length)) {
            self.remove(base + length, size);
            length += size;
        }
        self.insert(base, length);
    }

    /// Free slots.
    #[cfg(test)]
    pub fn free(&self) -> u32 {
        self.by_base.values().sum()
    }

    fn insert(&mut self, base: u32, length: u32) {
        if length != 0 {
            self.by_base.insert(base, length);
            self.by_length.insert((length, base));
        }
    }

    fn remove(&mut self, base: u32, length: u32) {
        self.by_base.remove(&base);
        self.by_length.remove(&(length, base));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn regions_never_overlap_and_all_come_back(sizes in prop::collection::vec((0u32..300, any::<bool>()), 1..200)) {
            let mut regions = Regions::new(8192);
            let mut held: Vec<Region> = Vec::new();
            for (size, free) in sizes {
                if free && !held.is_empty() {
                    regions.give_back(held.remove(size as usize % held.len()));
                } else if let Some(region) = regions.take(size) {
                    for other in &held {
                        prop_assert!(region.base + region.length <= other.base || other.base + other.length <= region.base
                            || region.length == 0 || other.length == 0);
                    }
                    held.push(region);
                }
                prop_assert_eq!(regions.free() + held.iter().map(|r| r.length).sum::<u32>(), 8192);
            }
            let mut adopted = Regions::new(8192);
            for region in &held {
                prop_assert!(adopted.claim(*region));
            }
            prop_assert_eq!(adopted.free(), regions.free());
            for region in held {
                regions.give_back(region);
            }
            prop_assert_eq!(regions.take(8192), Some(Region { base: 0, length: 8192 }));
        }
    }

    #[test]
    fn what_is_taken_cannot_be_claimed() {
        let mut regions = Regions::new(64);
        assert!(regions.claim(Region::of(16, 20)));
        assert!(!regions.claim(Region::of(32, 1)));
        assert_eq!(regions.take(64), None);
    }
}
