//! Places: of connections, and of what a key may hold open.
//!
//! Owns who has how many. No address has all places of connections, and some are kept for health and metrics, so that a probe is answered
//! when all others are taken; no key has more than half of the places of a kind. Waits for nothing.

use super::limits::network;
use crate::telemetry::Metrics;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections beyond the bound that are let in to ask for health and metrics alone; and those of one address among them.
pub(super) const KEPT: usize = 32;
pub(super) const KEPT_OF_ONE: usize = 8;

/// Connections of an address.
#[derive(Debug, Default, Clone, Copy)]
struct Of {
    open: usize,
    kept: usize,
}

#[derive(Debug, Default)]
struct Held {
    all: Of,
    by: HashMap<IpAddr, Of>,
}

#[derive(Debug)]
struct Bounds {
    most: usize,
    of_one: usize,
    held: Mutex<Held>,
    metrics: Arc<Metrics>,
}

/// All places of connections.
#[derive(Debug, Clone)]
pub(super) struct Places(Arc<Bounds>);

/// Why a connection has no ordinary place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// All are taken.
    All,
    /// Its address has its share.
    Address,
}

/// One place; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    of: Arc<Bounds>,
    from: IpAddr,
    kept: bool,
}

impl Places {
    pub(super) fn new(most: usize, of_one: usize, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Bounds { most, of_one, held: Mutex::default(), metrics }))
    }

    /// A place for a connection from there; one of those that are kept, with the reason, when there is no other. Errors: not even that.
    pub(super) fn take(&self, from: IpAddr) -> Result<(Place, Option<Full>), Full> {
        let from = network(from);
        let mut held = lock(&self.0.held);
        let of = held.by.get(&from).copied().unwrap_or_default();
        let full = match (held.all.open >= self.0.most, of.open >= self.0.of_one) {
            (true, _) => Some(Full::All),
            (false, true) => Some(Full::Address),
            (false, false) => None,
        };
        if let Some(full) = full
            && (held.all.kept >= KEPT || of.kept >= KEPT_OF_ONE)
        {
            return Err(full);
        }
        let kept = full.is_some();
        held.count(from, kept, |number| number + 1);
        self.0.metrics.connections.inc();
        Ok((Place { of: Arc::clone(&self.0), from, kept }, full))
    }
}

impl Held {
    fn count(&mut self, from: IpAddr, kept: bool, step: fn(usize) -> usize) {
        for of in [&mut self.all, self.by.entry(from).or_default()] {
            let number = if kept { &mut of.kept } else { &mut of.open };
            *number = step(*number);
        }
        self.by.retain(|address, of| *address != from || of.open + of.kept > 0);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.of.held).count(self.from, self.kept, |number| number.saturating_sub(1));
        self.of.metrics.connections.dec();
    }
}

fn lock<T>(held: &Mutex<T>) -> MutexGuard<'_, T> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What keys may hold open at the same time, of one kind.
#[derive(Debug, Clone)]
pub(super) struct Shares(Arc<Kind>);

#[derive(Debug)]
struct Kind {
    most: usize,
    held: Mutex<(usize, HashMap<String, usize>)>,
}

/// One of them; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Arc<Kind>,
    key: String,
}

/// Why a key gets no more: so many are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// By all together.
    All(usize),
    /// By this key.
    Own(usize),
}

impl Shares {
    /// So many in all, and half of them for each key.
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Kind { most, held: Mutex::default() }))
    }

    pub(super) fn take(&self, key: &str) -> Result<Share, Taken> {
        let own_most = self.0.most.div_ceil(2);
        let mut held = lock(&self.0.held);
        let (all, by) = &mut *held;
        if *all >= self.0.most {
            return Err(Taken::All(self.0.most));
        }
        if by.get(key).is_some_and(|own| *own >= own_most) {
            return Err(Taken::Own(own_most));
        }
        *all += 1;
        *by.entry(key.to_owned()).or_default() += 1;
        Ok(Share { of: Arc::clone(&self.0), key: key.to_owned() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = lock(&self.of.held);
        let (all, by) = &mut *held;
        *all = all.saturating_sub(1);
        if let Some(own) = by.get_mut(&self.key) {
            *own -= 1;
            if *own == 0 {
                by.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_has_its_share_and_health_has_places_of_its_own() {
        let places = Places::new(4, 3, Arc::new(Metrics::new()));
        let (one, other) = (address("10.0.0.1"), address("10.0.0.2"));
        let full = |from| places.take(from).map(|(place, full)| (drop(place), full).1);
        let mut held: Vec<Place> = (0..3).map(|_| places.take(one).expect("a place").0).collect();
        assert_eq!((full(one), full(other)), (Ok(Some(Full::Address)), Ok(None)));
        held.push(places.take(other).expect("a place").0);
        assert_eq!((full(one), full(other)), (Ok(Some(Full::All)), Ok(Some(Full::All))));
        // Of those that are kept, one address has some and not all.
        let kept: Vec<Place> = (0..KEPT_OF_ONE).map(|_| places.take(one).expect("one that is kept").0).collect();
        assert_eq!((full(one), full(other)), (Err(Full::All), Ok(Some(Full::All))));
        let many = (0..100).map(|n| places.take(address(&format!("10.0.1.{n}")))).filter_map(Result::ok);
        let others: Vec<_> = many.collect();
        assert_eq!(others.len() + kept.len(), KEPT);
        assert_eq!(places.0.metrics.connections.get(), 4 + 32);
        drop((held, kept, others));
        assert_eq!(full(one), Ok(None));
        assert!(lock(&places.0.held).by.is_empty() && places.0.metrics.connections.get() == 0);
    }

    #[test]
    fn an_address_of_ipv6_is_its_whole_network() {
        let places = Places::new(4, 1, Arc::new(Metrics::new()));
        let _held = places.take(address("2001:db8::1")).expect("a place");
        let (_place, full) = places.take(address("2001:db8::2")).expect("one that is kept");
        assert_eq!(full, Some(Full::Address));
        assert_eq!(places.take(address("2001:db8:0:1::1")).expect("a place").1, None);
    }

    #[test]
    fn no_key_has_more_than_half() {
        let shares = Shares::new(3);
        let mut held = vec![shares.take("a").expect("is free"), shares.take("a").expect("is free")];
        assert_eq!(shares.take("a").expect_err("has its half"), Taken::Own(2));
        held.push(shares.take("b").expect("is free"));
        assert_eq!(shares.take("c").expect_err("none is left"), Taken::All(3));
        drop(held);
        assert!(shares.take("a").is_ok() && lock(&shares.0.held).1.is_empty());
        assert!(Shares::new(1).take("a").is_ok(), "half of one is one");
    }
}
