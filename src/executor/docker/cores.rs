//! Which cores a cell runs on. A cell that may take one core's worth of time wherever it likes takes half of each of two cores, and whoever
//! shares those waits for the kernel's tick; held to a core of its own it takes no other's, is never stopped for having used its share too
//! early, and what runs in it counts the cores that it really has.
//!
//! Owns what each core is promised to. The engine's word on how many there are is asked once; a core that is not there turns this off.
//! Must never refuse a cell: admission decides how many there are, and with more than fit, cores are shared.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// One core's time, in thousandths.
const WHOLE: u32 = 1000;

/// What is promised of each core.
#[derive(Debug)]
pub(super) struct Cores(Arc<Mutex<Promised>>);

#[derive(Debug)]
struct Promised {
    /// All there are, in the order in which they are given. None: nobody is held to any.
    order: Option<Vec<u32>>,
    /// Thousandths of each that are promised.
    load: BTreeMap<u32, u32>,
}

/// Cores of one cell, given back on drop.
#[derive(Debug)]
pub(super) struct Held {
    cores: Vec<u32>,
    part: u32,
    promised: Arc<Mutex<Promised>>,
}

impl Cores {
    /// Cores that are given in this order. Without one, cells run on all.
    pub(super) fn new(order: Option<Vec<u32>>) -> Self {
        Self(Arc::new(Mutex::new(Promised { order, load: BTreeMap::new() })))
    }

    /// For a cell that may take `cpu_milli` thousandths of a core. `None`: it runs on all.
    pub(super) fn take(&self, cpu_milli: u32) -> Option<Held> {
        let mut promised = self.lock();
        let wanted = cpu_milli.div_ceil(WHOLE).max(1);
        let part = cpu_milli.div_ceil(wanted);
        let cores = choose(promised.order.as_deref()?, &promised.load, wanted as usize, part)?;
        promised.add(&cores, part);
        Some(Held { cores, part, promised: Arc::clone(&self.0) })
    }

    /// Those that a cell of an earlier process has, by what its label says. How much of them is not known any more: all.
    pub(super) fn keep(&self, label: &str) -> Option<Held> {
        let cores: Vec<u32> = read(label)?;
        let mut promised = self.lock();
        promised.add(&cores, WHOLE);
        Some(Held { cores, part: WHOLE, promised: Arc::clone(&self.0) })
    }

    /// Nobody is held to any from now on.
    pub(super) fn turn_off(&self) {
        self.lock().order = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Promised> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Promised {
    fn add(&mut self, cores: &[u32], part: u32) {
        for core in cores {
            *self.load.entry(*core).or_default() += part;
        }
    }
}

impl Held {
    /// As the kernel writes it: `0-2,5`.
    pub(super) fn list(&self) -> String {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for &core in &self.cores {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == core => *last = core,
                _ => runs.push((core, core)),
            }
        }
        let run =
            |(first, last): &(u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
        runs.iter().map(run).collect::<Vec<_>>().join(",")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        for core in &self.cores {
            if let Some(load) = promised.load.get_mut(core) {
                *load = load.saturating_sub(self.part);
            }
        }
    }
}

/// `wanted` of the cores in `order`, ascending, for a cell that takes `part` thousandths of each: where it fits, those that are fullest, so
/// that whole ones stay whole; else those with the least on them. `None`: it takes all there are anyway.
fn choose(order: &[u32], load: &BTreeMap<u32, u32>, wanted: usize, part: u32) -> Option<Vec<u32>> {
    if wanted >= order.len() {
        return None;
    }
    let load_of = |core: &u32| load.get(core).copied().unwrap_or(0);
    let mut fitting: Vec<u32> = order.iter().copied().filter(|core| load_of(core) + part <= WHOLE).collect();
    // Both sorts are stable: among equals the order stays.
    fitting.sort_by_key(|core| std::cmp::Reverse(load_of(core)));
    if fitting.len() < wanted {
        fitting = order.to_vec();
        fitting.sort_by_key(load_of);
    }
    fitting.truncate(wanted);
    fitting.sort_unstable();
    Some(fitting)
}

/// The order in which `count` cores are given, from the `start`th on: first one of each physical core, as `siblings` of each says (`0,4` or
/// `0-1`; the kernel's thread_siblings_list), since two on one physical core share what it can do.
pub(super) fn order(count: u32, start: u32, siblings: impl Fn(u32) -> Option<String>) -> Vec<u32> {
    let turn = |core: u32| {
        let all = siblings(core).and_then(|list| read(&list)).unwrap_or_default();
        all.iter().position(|other| *other == core).unwrap_or(0)
    };
    let mut cores: Vec<u32> = (0..count).map(|core| (core + start % count.max(1)) % count).collect();
    cores.sort_by_key(|core| turn(*core));
    cores
}

/// What this host's kernel says of a core.
pub(super) fn siblings_here(core: u32) -> Option<String> {
    let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
    std::fs::read_to_string(Path::new(&path)).ok()
}

/// A list of cores as the kernel writes it. `None`: it is none.
fn read(list: &str) -> Option<Vec<u32>> {
    /// More than any host has; a list that says more is not believed.
    const MOST: u32 = 8192;
    let mut cores = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last >= MOST {
            return None;
        }
        cores.extend(first..=last);
    }
    Some(cores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn four() -> Cores {
        Cores::new(Some(vec![0, 1, 2, 3]))
    }

    #[test]
    fn cells_of_whole_cores_share_none() {
        let cores = four();
        let held: Vec<Held> = (0..4).map(|_| cores.take(1000).expect("held")).collect();
        let mut lists: Vec<String> = held.iter().map(Held::list).collect();
        lists.sort();
        assert_eq!(lists, ["0", "1", "2", "3"]);
        // One more than fit: shared, not refused.
        assert!(cores.take(1000).is_some());
    }

    #[test]
    fn parts_of_a_core_share_one_so_that_others_stay_whole() {
        let cores = four();
        let first = cores.take(500).expect("held");
        let second = cores.take(500).expect("held");
        assert_eq!((first.list(), second.list()), ("0".to_owned(), "0".to_owned()));
        assert_eq!(cores.take(1500).expect("held").list(), "1-2", "one and a half are three quarters of two");
        drop((first, second));
        assert_eq!(cores.take(2000).expect("held").list(), "0-1");
    }

    #[test]
    fn who_takes_all_is_held_to_none() {
        assert!(four().take(4000).is_none());
        assert!(four().take(3001).is_none(), "a part of each of four");
        assert!(Cores::new(None).take(1000).is_none());
        assert!(Cores::new(Some(vec![0])).take(100).is_none());
        let off = four();
        off.turn_off();
        assert!(off.take(1000).is_none());
    }

    #[test]
    fn what_an_earlier_process_gave_is_not_given_again() {
        let cores = four();
        let kept = cores.keep("0-1,3").expect("a list");
        assert_eq!(kept.list(), "0-1,3");
        assert_eq!(cores.take(1000).expect("held").list(), "2");
        drop(kept);
        assert_eq!(cores.take(1000).expect("held").list(), "0");
        for none in ["", "x", "1-", "0-99999999"] {
            assert!(cores.keep(none).is_none(), "{none}");
        }
    }

    #[test]
    fn one_of_each_physical_core_comes_first() {
        let pairs = |core: u32| Some(format!("{}-{}\n", core & !1, core | 1));
        assert_eq!(order(4, 0, pairs), [0, 2, 1, 3]);
        let halves = |core: u32| Some(format!("{},{}\n", core % 2, core % 2 + 2));
        assert_eq!(order(4, 0, halves), [0, 1, 2, 3]);
        assert_eq!(order(4, 6, |_| None), [2, 3, 0, 1], "from where it is told to begin");
        assert!(order(0, 3, |_| None).is_empty());
    }

    proptest! {
        /// Whatever comes and goes: what fits in whole cores never shares one, and nothing stays promised.
        #[test]
        fn whole_cores_are_never_shared_while_they_fit(steps in prop::collection::vec((any::<bool>(), 1u32..=2), 1..60)) {
            let cores = Cores::new(Some((0..8).collect()));
            let mut held: Vec<Held> = Vec::new();
            for (goes, wanted) in steps {
                let used: usize = held.iter().map(|one| one.cores.len()).sum();
                if goes && !held.is_empty() {
                    held.remove(0);
                } else if used + wanted as usize <= 8 {
                    held.push(cores.take(wanted * WHOLE).expect("fewer than all"));
                }
                let mut all: Vec<u32> = held.iter().flat_map(|one| one.cores.clone()).collect();
                let count = all.len();
                all.sort_unstable();
                all.dedup();
                prop_assert_eq!(all.len(), count);
            }
            held.clear();
            prop_assert!(cores.lock().load.values().all(|load| *load == 0));
        }
    }
}
