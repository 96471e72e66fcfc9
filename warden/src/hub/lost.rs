//! Jobs whose keeper did not end by itself: killed, by an agent's order or by somebody, or dead of a mistake. What they leave comes to the
//! hub, which adopts it, ends it, removes the folder, and only then tells the end.
//!
//! ```text
//!   keeper killed ──► adopted: killed until none is left ──► folder removed, by a child ──► told
//! ```
//! Owns every child of the hub's that is no keeper. Must never tell an end before.

use super::Setup;
use crate::place::Host;
use crate::sys::{self, host};
use crate::tree;
use std::collections::{BTreeMap, BTreeSet};

/// Between two looks for what is left, which is longer each time.
const PAUSE_NS: u64 = 2_000_000;
const LONGEST_PAUSE_NS: u64 = 250_000_000;
/// How long what runs as another user holds up an end: no signal of ours reaches it.
const OUT_OF_REACH_NS: u64 = 5_000_000_000;
/// At a time.
const MOST_REMOVERS: usize = 8;

/// What a remover says by its exit code.
const REMOVED: i32 = 0;
const STILL_THERE: i32 = 1;
const STILL_RUNS: i32 = 2;

/// One of them.
pub(super) struct Lost {
    pub(super) name: String,
    pub(super) attached: Option<(u32, u16)>,
    /// The process that its keeper was.
    pub(super) keeper: i32,
    pub(super) killers: Vec<u32>,
    /// How its keeper ended; nothing where there was none.
    pub(super) code: Option<i32>,
    /// What could not be done.
    pub(super) left: Option<&'static str>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Losses {
    adopted: Vec<Lost>,
    to_remove: Vec<Lost>,
    removers: BTreeMap<i32, Lost>,
    look_at: u64,
    pause: u64,
    out_of_reach: Option<u64>,
    /// Done, and to be told.
    pub(super) done: Vec<Lost>,
}

impl Losses {
    pub(super) fn add(&mut self, lost: Lost) {
        // Whoever was there alone has waited already.
        (self.look_at, self.pause, self.out_of_reach) = (0, 0, None);
        self.adopted.push(lost);
    }

    /// A folder without a keeper.
    pub(super) fn remove(&mut self, lost: Lost) {
        self.to_remove.push(lost);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.adopted.is_empty() && self.to_remove.is_empty() && self.removers.is_empty() && self.done.is_empty()
    }

    pub(super) fn find(&mut self, name: &str) -> Option<&mut Lost> {
        let all = self.adopted.iter_mut().chain(&mut self.to_remove).chain(self.removers.values_mut());
        all.chain(&mut self.done).find(|lost| lost.name == name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let all = self.adopted.iter().chain(&self.to_remove).chain(self.removers.values()).chain(&self.done);
        all.map(|lost| lost.name.as_str())
    }

    pub(super) fn wake_at(&self) -> Option<u64> {
        (!self.adopted.is_empty()).then_some(self.look_at)
    }

    /// A child that is no keeper has ended.
    pub(super) fn ended(&mut self, pid: i32, code: i32) {
        // Something adopted has gone; whether it was the last is to be seen.
        self.look_at = 0;
        if let Some(mut lost) = self.removers.remove(&pid) {
            lost.left = match code {
                REMOVED => lost.left,
                STILL_THERE => Some("its folder cannot be removed"),
                STILL_RUNS => Some("processes of it cannot be ended"),
                _ => Some("who was to remove its folder has died"),
            };
            self.done.push(lost);
        }
    }

    /// Ends what was adopted, and removes folders.
    pub(super) fn turn(&mut self, setup: &Setup, keepers: impl Iterator<Item = i32>, now: u64) {
        if !self.adopted.is_empty() && now >= self.look_at {
            let spared: BTreeSet<i32> = keepers.chain(self.removers.keys().copied()).collect();
            let found = tree::signal(sys::SIGKILL, &spared);
            self.pause = (2 * self.pause).clamp(PAUSE_NS, LONGEST_PAUSE_NS);
            self.look_at = now.saturating_add(self.pause);
            let stuck = found.there > 0 && found.there == found.out_of_reach;
            let since = stuck.then(|| *self.out_of_reach.get_or_insert(now));
            self.out_of_reach = since;
            let given_up = since.is_some_and(|since| now >= since.saturating_add(OUT_OF_REACH_NS));
            if found.there == 0 || given_up {
                for lost in &mut self.adopted {
                    lost.left = given_up.then_some("processes of it run as another user");
                }
                self.to_remove.append(&mut self.adopted);
            }
        }
        while self.removers.len() < MOST_REMOVERS
            && let Some(mut lost) = self.to_remove.pop()
        {
            let place = setup.place(&lost.name);
            match host::copy_of_us() {
                Ok(Some(pid)) => drop(self.removers.insert(pid, lost)),
                Ok(None) => remove(&place),
                Err(_) => {
                    lost.left = Some("no process can be started to remove its folder");
                    self.done.push(lost);
                }
            }
        }
    }
}

/// Runs in a copy of the hub, which goes on meanwhile: a folder can be large.
fn remove(place: &Host) -> ! {
    host::call_us(c"jobcell-remover");
    // A group of its own, or whoever ends a group would end this too.
    let _ = host::own_session();
    host::close_others();
    // What an earlier hub left was never ours, and has no parent to tell it by.
    let ended = place.end_marked();
    let code = match place.remove() {
        Ok(()) if ended => REMOVED,
        Ok(()) => STILL_RUNS,
        Err(_) => STILL_THERE,
    };
    std::process::exit(code)
}
