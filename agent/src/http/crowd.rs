//! Who has the places of a listener that is full. Whoever has most of them loses the oldest to the next who comes, so that
//! one stranger cannot keep the others out.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// The connections of a listener, by where they come from.
#[derive(Clone, Default)]
pub struct Crowd(Arc<Mutex<Seats>>);

#[derive(Default)]
struct Seats {
    by_caller: BTreeMap<IpAddr, BTreeMap<u64, Arc<Notify>>>,
    /// Number of the newest.
    last: u64,
}

/// The place of one connection; given back with this value.
pub struct Seat {
    crowd: Crowd,
    caller: IpAddr,
    number: u64,
    taken: Arc<Notify>,
}

impl Crowd {
    /// One more connection from this address.
    pub fn enter(&self, address: IpAddr) -> Seat {
        let (caller, taken) = (caller(address), Arc::new(Notify::new()));
        let mut seats = self.lock();
        seats.last += 1;
        let number = seats.last;
        seats.by_caller.entry(caller).or_default().insert(number, taken.clone());
        Seat { crowd: self.clone(), caller, number, taken }
    }

    /// Ends the oldest connection of the caller who has most of them.
    pub fn make_room(&self) {
        let mut seats = self.lock();
        let greediest = seats.by_caller.values_mut().max_by_key(|of_caller| of_caller.len());
        if let Some((_, taken)) = greediest.and_then(BTreeMap::pop_first) {
            taken.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Returns when somebody else needs the place.
    pub async fn taken(&self) {
        self.taken.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.crowd.lock();
        let Some(of_caller) = seats.by_caller.get_mut(&self.caller) else { return };
        of_caller.remove(&self.number);
        if of_caller.is_empty() {
            seats.by_caller.remove(&self.caller);
        }
    }
}

/// Addresses that one caller has for the asking count as one: those of the loopback, and those of an IPv6 network.
fn caller(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        address if address.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_has_most_places_loses_the_oldest() {
        let crowd = Crowd::default();
        let enter = |address: &str| crowd.enter(address.parse().unwrap());
        let few = [enter("10.0.0.1"), enter("10.0.0.2")];
        let many = [enter("fd00::1"), enter("fd00::2"), enter("fd00::3:4"), enter("fd00::4")];
        let local = [enter("127.0.0.1"), enter("127.0.0.2"), enter("::1")];
        let is_taken = |seat: &Seat| Arc::strong_count(&seat.taken) == 1;
        crowd.make_room();
        assert_eq!(many.each_ref().map(is_taken), [true, false, false, false]);
        many[0].taken().await;
        drop(many);
        crowd.make_room();
        assert_eq!(local.each_ref().map(is_taken), [true, false, false]);
        drop(local);
        assert!(!few.iter().any(is_taken));
        drop(few);
        assert!(crowd.lock().by_caller.is_empty());
        crowd.make_room();
    }
}
