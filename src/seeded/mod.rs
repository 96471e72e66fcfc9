//! What makes a run of the whole agent the same each time: chance from a seed, wall time that can be set, work for other
//! threads done in place, processes that can be frozen and killed, and bugs that can be switched on. All of it belongs to the
//! thread of the run; without one, everything is as it is in production. Must never be part of a build that is no test.

mod mutants;
mod process;

pub(crate) use mutants::{Mutant, active, with_mutant};
pub(crate) use process::{Process, within};

use std::cell::{Cell, RefCell};
use std::time::Duration;

/// Numbers that follow from a seed (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `limit`, which is not zero.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// From `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True once in so many.
    pub(crate) fn once_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[usize::try_from(self.below(all.len() as u64)).expect("an index")]
    }
}

thread_local! {
    static CHANCE: RefCell<Option<Chance>> = const { RefCell::new(None) };
    static CLOCK_OFF_MS: Cell<i64> = const { Cell::new(0) };
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Until it is dropped, everything on this thread follows from the seed.
pub(crate) struct Seeded(());

impl Seeded {
    pub(crate) fn new(seed: u64) -> Self {
        CHANCE.set(Some(Chance::new(seed)));
        CLOCK_OFF_MS.set(0);
        panics();
        static HOOK: std::sync::Once = std::sync::Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                if CHANCE.with_borrow(Option::is_some) {
                    PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
                } else {
                    before(panic);
                }
            }));
        });
        Self(())
    }
}

impl Drop for Seeded {
    fn drop(&mut self) {
        CHANCE.set(None);
        CLOCK_OFF_MS.set(0);
    }
}

/// Panics since the last look; those of tasks would not be seen else.
pub(crate) fn panics() -> Vec<String> {
    PANICS.take()
}

/// A number that follows from the seed; `None` without one.
pub(crate) fn random() -> Option<u64> {
    CHANCE.with_borrow_mut(|chance| chance.as_mut().map(Chance::next))
}

/// Sets the wall clock of this thread, against what it would be.
pub(crate) fn set_clock_off(milliseconds: i64) {
    CLOCK_OFF_MS.set(milliseconds);
}

/// How far the wall clock is off.
pub(crate) fn clock_off() -> i64 {
    CLOCK_OFF_MS.get()
}

/// Does work for another thread in place; it takes a moment before, or after, or none. Gives the work back without a seed.
pub(crate) async fn in_place<T, W: FnOnce() -> T>(work: W) -> Result<T, W> {
    let Some(random) = random() else { return Err(work) };
    let moment = Duration::from_millis(random >> 8 & 3);
    if random & 3 == 1 {
        tokio::time::sleep(moment).await;
    }
    let done = work();
    if random & 3 == 2 {
        tokio::time::sleep(moment).await;
    }
    Ok(done)
}
