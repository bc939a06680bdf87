//! The writer of FRONTENDS and of the filter before it, see [`sluice_common::frontends`].
#![allow(unsafe_code)]

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use sluice_common::{
    frontends::{Bucket, FILTER_ENTRIES, PLACES, PROBES, Place, filter_bit, index},
    registry::{FILTER, FRONTENDS},
    tables::Endpoint,
};

use super::{
    memory::{Window, beyond},
    object::Object,
    wait_for_readers,
};

/// Where a frontend is: its bucket, counted from its home on, and its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Spot {
    bucket: u32,
    place: usize,
    probes: u32,
}

/// Both tables, mapped. The order of stores makes each instant a valid one, also that at which the agent dies: a bit is
/// set before its frontend is there and cleared after the last one of its kind is gone, and a bucket that says that it
/// was passed for nothing costs a reader one look.
pub struct Frontends {
    filter: Window<u64>,
    /// Frontends of each bit that is set.
    bits: HashMap<u32, u32>,
    buckets: Window<Bucket>,
    mask: u32,
    /// Places that were freed a moment ago: a program may be reading them.
    freed: HashSet<(u32, usize)>,
    /// The same, oldest first.
    ages: VecDeque<(Instant, (u32, usize))>,
}

/// Programs run for microseconds.
const GRACE: Duration = Duration::from_secs(1);

impl Frontends {
    /// Takes over what the table holds.
    pub fn adopt(object: &Object) -> Result<Self> {
        let (map, length) = object.array(&FRONTENDS)?;
        let filter = Window::whole(object, &FILTER)?;
        ensure!(length.is_power_of_two(), "FRONTENDS has {length} buckets, which is no power of two");
        Self::new(filter, Window::new(&map, 0, length)?, length as u32 - 1)
    }

    fn new(filter: Window<u64>, buckets: Window<Bucket>, mask: u32) -> Result<Self> {
        let mut frontends =
            Self { filter, bits: HashMap::new(), buckets, mask, freed: HashSet::new(), ages: VecDeque::new() };
        frontends.count_passed()?;
        for (frontend, _) in frontends.entries() {
            *frontends.bits.entry(filter_bit(&frontend)).or_default() += 1;
        }
        (0..FILTER_ENTRIES).try_for_each(|entry| frontends.store_filter(entry))?;
        Ok(frontends)
    }

    /// Frontends with their services.
    pub fn entries(&self) -> Vec<(Endpoint, u32)> {
        self.taken().map(|(_, held)| (held.frontend, held.service - 1)).collect()
    }

    /// # Errors
    /// When there is no room for another frontend.
    pub fn put(&mut self, frontend: &Endpoint, service: u32) -> Result<()> {
        if let Some(spot) = self.find(frontend) {
            return self.store_service(spot, service + 1);
        }
        while let Some((_, place)) = self.ages.pop_front_if(|(at, _)| at.elapsed() >= GRACE) {
            self.freed.remove(&place);
        }
        let spot = match self.free(frontend) {
            Some(spot) => spot,
            None if self.freed.is_empty() => return Err(full()),
            None => {
                wait_for_readers();
                self.freed.clear();
                self.ages.clear();
                self.free(frontend).ok_or_else(full)?
            }
        };
        let bit = filter_bit(frontend);
        *self.bits.entry(bit).or_default() += 1;
        self.store_filter(bit / 64)?;
        for probes in 0..spot.probes {
            self.passed(index(frontend, probes, self.mask))?.fetch_add(1, Ordering::SeqCst);
        }
        let place = self.place(spot.bucket, spot.place)?;
        // SAFETY: a live mapping; no program trusts a free place that none has been reading.
        unsafe { (&raw mut (*place).frontend).write_volatile(*frontend) };
        self.store_service(spot, service + 1)
    }

    pub fn remove(&mut self, frontend: &Endpoint) -> Result<()> {
        let Some(spot) = self.find(frontend) else {
            return Ok(());
        };
        self.store_service(spot, 0)?;
        // Nobody asks for this one, so that no later reader takes the old frontend for that of a new service.
        let place = self.place(spot.bucket, spot.place)?;
        // SAFETY: aligned members of a live mapping.
        unsafe {
            (&raw mut (*place).frontend.protocol).write_volatile(0);
            (&raw mut (*place).frontend.port).write_volatile(0);
        }
        self.freed.insert((spot.bucket, spot.place));
        self.ages.push_back((Instant::now(), (spot.bucket, spot.place)));
        for probes in 0..spot.probes {
            self.passed(index(frontend, probes, self.mask))?.fetch_sub(1, Ordering::SeqCst);
        }
        let bit = filter_bit(frontend);
        if let Some(count) = self.bits.get_mut(&bit) {
            *count -= 1;
            if *count == 0 {
                self.bits.remove(&bit);
            }
        }
        self.store_filter(bit / 64)
    }

    fn find(&self, frontend: &Endpoint) -> Option<Spot> {
        self.spots(frontend).find(|spot| {
            let held = self.read(spot.bucket, spot.place);
            held.is_some_and(|held| held.service != 0 && held.frontend == *frontend)
        })
    }

    fn free(&self, frontend: &Endpoint) -> Option<Spot> {
        self.spots(frontend).find(|spot| {
            self.read(spot.bucket, spot.place).is_some_and(|held| held.service == 0)
                && !self.freed.contains(&(spot.bucket, spot.place))
        })
    }

    /// Everywhere that a frontend may be.
    fn spots(&self, frontend: &Endpoint) -> impl Iterator<Item = Spot> {
        let (frontend, mask) = (*frontend, self.mask);
        (0..PROBES).flat_map(move |probes| {
            let bucket = index(&frontend, probes, mask);
            (0..PLACES).map(move |place| Spot { bucket, place, probes })
        })
    }

    /// Places that are taken.
    fn taken(&self) -> impl Iterator<Item = (u32, Place)> {
        let places = (0..=self.mask).flat_map(|bucket| (0..PLACES).map(move |place| (bucket, place)));
        places.filter_map(|(bucket, place)| Some((bucket, self.read(bucket, place).filter(|held| held.service != 0)?)))
    }

    /// Makes the buckets say for what they were passed: the last agent may have died in the middle.
    fn count_passed(&self) -> Result<()> {
        let mut passed = vec![0; self.mask as usize + 1];
        for (bucket, held) in self.taken() {
            let path = (0..PROBES).map(|probes| index(&held.frontend, probes, self.mask));
            for before in path.take_while(|before| *before != bucket) {
                passed[before as usize] += 1;
            }
        }
        for (bucket, count) in (0..).zip(passed) {
            self.passed(bucket)?.store(count, Ordering::SeqCst);
        }
        Ok(())
    }

    fn read(&self, bucket: u32, place: usize) -> Option<Place> {
        // SAFETY: a live mapping, which this agent alone writes.
        self.place(bucket, place).ok().map(|place| unsafe { place.read_volatile() })
    }

    fn store_service(&self, spot: Spot, service: u32) -> Result<()> {
        let place = self.place(spot.bucket, spot.place)?;
        // SAFETY: an aligned word of a live mapping. What was stored before is seen with it.
        unsafe { AtomicU32::from_ptr(&raw mut (*place).service) }.store(service, Ordering::SeqCst);
        Ok(())
    }

    /// Stores 64 bits of the filter as they should be.
    fn store_filter(&self, entry: u32) -> Result<()> {
        let bits =
            (0..64).filter(|bit| self.bits.contains_key(&(entry * 64 + bit))).fold(0, |bits, bit| bits | 1 << bit);
        let at = self.filter.at(entry as usize).with_context(|| beyond(&FILTER, entry))?;
        // SAFETY: an aligned word of a live mapping.
        unsafe { AtomicU64::from_ptr(at) }.store(bits, Ordering::SeqCst);
        Ok(())
    }

    fn place(&self, bucket: u32, place: usize) -> Result<*mut Place> {
        let at = self.buckets.at(bucket as usize).with_context(|| beyond(&FRONTENDS, bucket))?;
        // SAFETY: inside the mapping; the callers stay below PLACES.
        Ok(unsafe { (&raw mut (*at).places).cast::<Place>().add(place) })
    }

    fn passed(&self, bucket: u32) -> Result<&AtomicU32> {
        let at = self.buckets.at(bucket as usize).with_context(|| beyond(&FRONTENDS, bucket))?;
        // SAFETY: an aligned word of a mapping that lives as long as `self`.
        Ok(unsafe { AtomicU32::from_ptr(&raw mut (*at).passed) })
    }
}

fn full() -> anyhow::Error {
    anyhow::anyhow!(
        "FRONTENDS is full: run the agent with a larger --max-frontends (after `sluice uninstall --keep-state`)"
    )
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::Ipv4Addr};

    use proptest::prelude::*;
    use sluice_common::{
        frontends::{Buckets, buckets, find},
        tables::{TCP, UDP},
    };

    use super::*;

    impl Buckets for Frontends {
        fn bucket(&self, index: u32) -> Option<*const Bucket> {
            self.buckets.at(index as usize).map(<*mut Bucket>::cast_const)
        }

        fn mask(&self) -> u32 {
            self.mask
        }
    }

    fn frontend(number: u16) -> Endpoint {
        Endpoint::new((Ipv4Addr::new(10, 96, 0, 10), number).into(), TCP)
    }

    fn table(frontends: u32) -> Frontends {
        let buckets = buckets(frontends);
        let filter = Window::anonymous(FILTER_ENTRIES as usize).unwrap();
        Frontends::new(filter, Window::anonymous(buckets as usize).unwrap(), buckets - 1).unwrap()
    }

    /// As a program does it.
    fn service_of(table: &Frontends, frontend: &Endpoint) -> Option<u32> {
        let bit = filter_bit(frontend);
        // SAFETY: inside the mapping.
        let bits = unsafe { *table.filter.at(bit as usize / 64)? };
        (bits >> (bit % 64) & 1 != 0).then(|| find(table, frontend))?
    }

    proptest! {
        /// What a program finds is what the agent has put, whatever came and went before, and an agent that takes over
        /// finds the same.
        #[test]
        fn a_program_finds_what_was_put(changes in proptest::collection::vec((0..24_u16, proptest::option::of(0..9_u32)), 0..120)) {
            let (mut table, mut held) = (table(16), HashMap::new());
            for (number, service) in changes {
                match service {
                    Some(service) => {
                        table.put(&frontend(number), service).unwrap();
                        held.insert(number, service);
                    }
                    None => {
                        table.remove(&frontend(number)).unwrap();
                        held.remove(&number);
                    }
                }
                for number in 0..24 {
                    prop_assert_eq!(service_of(&table, &frontend(number)), held.get(&number).copied());
                }
            }
            prop_assert_eq!(table.entries().len(), held.len());
            let passed = |table: &Frontends| (0..=table.mask).map(|bucket| table.passed(bucket).unwrap().load(Ordering::SeqCst)).collect::<Vec<_>>();
            let before = passed(&table);
            table.count_passed().unwrap();
            prop_assert_eq!(before, passed(&table));
        }
    }

    #[test]
    fn a_table_takes_as_many_as_it_was_made_for() {
        let mut table = table(16_384);
        for number in 0..16_384 {
            table.put(&frontend(number), u32::from(number)).unwrap();
        }
        for number in 0..16_384 {
            assert_eq!(service_of(&table, &frontend(number)), Some(u32::from(number)));
        }
        assert_eq!(service_of(&table, &frontend(20_000)), None);
    }

    #[test]
    fn services_of_two_protocols_fill_a_table() {
        let mut table = table(65_536);
        let frontends: Vec<Endpoint> = (0..65_536_u32)
            .map(|number| {
                let [_, high, middle, low] = (number / 2).to_be_bytes();
                let address = (Ipv4Addr::new(10, 96 + high, middle, low), 80).into();
                Endpoint::new(address, if number % 2 == 0 { TCP } else { UDP })
            })
            .collect();
        for (number, frontend) in (0..).zip(&frontends) {
            table.put(frontend, number).unwrap();
        }
        for (number, frontend) in (0..).zip(&frontends) {
            assert_eq!(service_of(&table, frontend), Some(number));
        }
    }

    #[test]
    fn a_full_table_says_so_and_keeps_what_it_has() {
        let mut table = table(16);
        let error = (0..128).find_map(|number| table.put(&frontend(number), 1).err()).unwrap();
        assert!(error.to_string().contains("--max-frontends"), "{error}");
        let held = table.entries().len();
        assert!((16..=64).contains(&held), "{held}");
        table.remove(&table.entries()[0].0.clone()).unwrap();
        assert_eq!(table.entries().len(), held - 1);
    }

    #[test]
    fn a_place_that_was_freed_waits_for_its_readers() {
        let mut table = table(16);
        table.put(&frontend(1), 1).unwrap();
        let spot = table.find(&frontend(1)).unwrap();
        table.remove(&frontend(1)).unwrap();
        table.put(&frontend(1), 2).unwrap();
        assert_ne!(table.find(&frontend(1)), Some(spot));
    }
}
