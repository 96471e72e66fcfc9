//! Jobs whose keeper did not end by itself: killed, by an agent's order or by somebody, or dead of a mistake. What they leave comes to the
//! hub, which adopts it, ends it, removes the folder, and only then tells the end.
//!
//! ```text
//!   keeper killed ──► adopted: killed until none is left ──► folder removed, by a child ──► told
//! ```
//! Owns every child of the hub's that is no keeper. What is adopted says itself whose it is, by the job's variable or by its parent; what does
//! not is of those who were lost last. So a process that nobody can end holds up the end of its own job, for a while, and no other's.
//! Must never tell an end before, and never say of one that nothing is left when something is.

use super::Setup;
use crate::place::{Host, MARK};
use crate::sys::{self, host};
use crate::tree::{self, Seen};
use std::collections::{BTreeMap, BTreeSet};

/// Between two looks for what is left, which is longer each time.
const PAUSE_NS: u64 = 2_000_000;
const LONGEST_PAUSE_NS: u64 = 250_000_000;
/// How long what runs as another user holds up an end: no signal of ours reaches it.
const OUT_OF_REACH_NS: u64 = 5_000_000_000;
/// How long what was killed and does not go does: it waits in the kernel, for a disk or a file server.
const STUCK_NS: u64 = 20_000_000_000;
/// At a time.
const MOST_REMOVERS: usize = 8;

/// What a remover says by its exit code.
const REMOVED: i32 = 0;
const STILL_THERE: i32 = 1;
const STILL_RUNS: i32 = 2;

/// What could not be done.
const OF_ANOTHER_USER: &str = "processes of it run as another user";
const NOT_ENDED: &str = "processes of it cannot be ended";
const UNSEEN: &str = "processes of it cannot be seen";

/// One of them.
pub(super) struct Lost {
    pub(super) name: String,
    /// The number that its keeper has in the hub; nothing where there was none.
    pub(super) serial: Option<u64>,
    /// Connections that want to know when it is gone.
    pub(super) killers: Vec<u32>,
    /// What could not be done.
    pub(super) left: Option<&'static str>,
}

/// An adopted process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    since: u64,
    refused: bool,
    /// Nobody waits for it any more.
    given_up: bool,
    /// Of which jobs it may be.
    whose: BTreeSet<u64>,
}

/// By process number and beginning.
#[derive(Debug, Default)]
struct Adopted(BTreeMap<(i32, u64), Known>);

impl Adopted {
    /// Somebody who is about to be killed. `marked` is of which lost job it says it is; `fresh` are those of which it may be if nothing else is known.
    fn meet(&mut self, one: &Seen, marked: Option<BTreeSet<u64>>, fresh: impl FnOnce() -> BTreeSet<u64>, now: u64) {
        if self.0.contains_key(&(one.pid, one.began)) {
            return;
        }
        let parent = || self.0.range((one.parent, 0)..=(one.parent, u64::MAX)).next_back();
        let whose = marked.or_else(|| parent().map(|(_, known)| known.whose.clone())).unwrap_or_else(fresh);
        let known = Known { since: now, refused: false, given_up: false, whose };
        self.0.insert((one.pid, one.began), known);
    }

    /// These were there, and were killed, as far as they can be.
    fn look(&mut self, seen: &[Seen], now: u64) {
        let there: BTreeMap<(i32, u64), bool> = seen.iter().map(|one| ((one.pid, one.began), one.refused)).collect();
        self.0.retain(|key, _| there.contains_key(key));
        for (key, known) in &mut self.0 {
            known.refused = there[key];
            let patience = if known.refused { OUT_OF_REACH_NS } else { STUCK_NS };
            known.given_up |= now >= known.since.saturating_add(patience);
        }
    }

    /// Whether a job's end waits for one of them.
    fn holds_up(&self, serial: u64) -> bool {
        self.0.values().any(|known| !known.given_up && known.whose.contains(&serial))
    }

    /// What is to be said of a job that nothing holds up.
    fn left(&self, serial: u64) -> Option<&'static str> {
        let mut of_it = self.0.values().filter(|known| known.whose.contains(&serial)).peekable();
        of_it.peek()?;
        Some(if of_it.all(|known| known.refused) { OF_ANOTHER_USER } else { NOT_ENDED })
    }
}

/// Keepers that the hub has not seen end.
#[derive(Clone, Copy)]
pub(super) struct Alive<'a> {
    pub(super) names: &'a BTreeMap<String, u64>,
    pub(super) pids: &'a BTreeMap<i32, u64>,
}

impl Alive<'_> {
    /// Those that have ended nevertheless: what they left has come to us already.
    fn ended(self) -> impl Iterator<Item = u64> {
        self.pids.iter().filter(|(pid, _)| !host::is_running(**pid)).map(|(_, serial)| *serial)
    }

    fn ended_as(self, name: &str) -> Option<u64> {
        let serial = self.names.get(name)?;
        self.ended().find(|ended| ended == serial)
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Losses {
    adopted: Vec<Lost>,
    /// Of these, whose processes were not looked for yet.
    fresh: BTreeSet<u64>,
    known: Adopted,
    /// Since when the kernel says that there is somebody, and nobody is seen.
    unseen: Option<u64>,
    to_remove: Vec<Lost>,
    removers: BTreeMap<i32, Lost>,
    look_at: u64,
    pause: u64,
    /// Done, and to be told.
    pub(super) done: Vec<Lost>,
}

impl Losses {
    /// One whose keeper has just ended, and had this number.
    pub(super) fn add(&mut self, lost: Lost) {
        (self.look_at, self.pause) = (0, 0);
        self.fresh.extend(lost.serial);
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
            lost.left = lost.left.or(match code {
                REMOVED => None,
                STILL_THERE => Some("its folder cannot be removed"),
                STILL_RUNS => Some(NOT_ENDED),
                _ => Some("who was to remove its folder has died"),
            });
            self.done.push(lost);
        }
    }

    /// Ends what was adopted, and removes folders.
    pub(super) fn turn(&mut self, setup: &Setup, alive: Alive<'_>, now: u64) {
        if !self.adopted.is_empty() && now >= self.look_at {
            let spared: BTreeSet<i32> = alive.pids.keys().chain(self.removers.keys()).copied().collect();
            self.end_adopted(alive, &spared, now);
            self.pause = (2 * self.pause).clamp(PAUSE_NS, LONGEST_PAUSE_NS);
            self.look_at = now.saturating_add(self.pause);
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

    /// Kills all that is there, and lets go of the jobs of which nobody is left whom it is worth to wait for.
    fn end_adopted(&mut self, alive: Alive<'_>, spared: &BTreeSet<i32>, now: u64) {
        let fresh = std::mem::take(&mut self.fresh);
        let all: BTreeSet<u64> = self.adopted.iter().filter_map(|lost| lost.serial).collect();
        // What comes up later is of any that is still there.
        let fresh = if fresh.is_empty() { all } else { fresh };
        let (known, adopted) = (&mut self.known, &self.adopted);
        let seen = tree::signal_each(sys::SIGKILL, spared, |one| {
            // Of a job that is not among these it says nothing: what a job makes of its variables is its own affair.
            let named = tree::variable(one.pid, MARK).and_then(|mark| {
                let name = mark.strip_suffix('.')?;
                let lost = adopted.iter().find(|lost| lost.name == name).and_then(|lost| lost.serial);
                lost.or_else(|| alive.ended_as(name))
            });
            let marked = named.map(|serial| BTreeSet::from([serial]));
            known.meet(one, marked, || fresh.iter().copied().chain(alive.ended()).collect(), now);
        });
        known.look(&seen, now);
        // Where the kernel lists no children, waiting is the only other word, if there is nobody else to wait for.
        let blind = seen.is_empty() && spared.is_empty() && !tree::lists_children() && host::has_children();
        self.unseen = blind.then(|| self.unseen.unwrap_or(now));
        if self.unseen.is_some_and(|since| now < since.saturating_add(STUCK_NS)) {
            return;
        }
        for mut lost in std::mem::take(&mut self.adopted) {
            let serial = lost.serial.unwrap_or_default();
            if self.known.holds_up(serial) {
                self.adopted.push(lost);
            } else {
                lost.left = self.known.left(serial).or(self.unseen.map(|_| UNSEEN));
                self.to_remove.push(lost);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pid: i32, parent: i32, refused: bool) -> Seen {
        Seen { pid, parent, began: 7, refused }
    }

    #[test]
    fn what_cannot_be_ended_holds_up_its_own_job_for_a_while_and_no_other() {
        let (one, two) = (BTreeSet::from([1]), BTreeSet::from([2]));
        let mut adopted = Adopted::default();
        // A shell of the first job with somebody else's program below, then the second job is lost, which has a daemon without variables.
        let shell = [seen(10, 1, false), seen(11, 10, true)];
        adopted.meet(&shell[0], Some(one.clone()), || BTreeSet::from([1, 9]), 0);
        adopted.meet(&shell[1], None, || BTreeSet::from([1, 9]), 0);
        adopted.look(&shell, 0);
        assert!(adopted.holds_up(1) && !adopted.holds_up(9));
        let later = [seen(11, 1, true), seen(20, 1, false)];
        later.iter().for_each(|process| adopted.meet(process, None, || two.clone(), 1));
        adopted.look(&later, 1);
        assert!(adopted.holds_up(1) && adopted.holds_up(2));
        // What was killed goes; the other is given up, and is no reason for anything that comes later.
        adopted.look(&later[..1], OUT_OF_REACH_NS);
        assert_eq!((adopted.holds_up(1), adopted.left(1)), (false, Some(OF_ANOTHER_USER)));
        assert_eq!((adopted.holds_up(2), adopted.left(2)), (false, None));
        adopted.meet(&later[0], None, || two.clone(), OUT_OF_REACH_NS);
        assert_eq!(adopted.left(2), None);
    }

    #[test]
    fn what_is_killed_and_does_not_go_is_given_up_too() {
        let mut adopted = Adopted::default();
        let stuck = [seen(10, 1, false)];
        adopted.meet(&stuck[0], None, || BTreeSet::from([1]), 0);
        adopted.look(&stuck, STUCK_NS - 1);
        assert!(adopted.holds_up(1));
        adopted.look(&stuck, STUCK_NS);
        assert_eq!((adopted.holds_up(1), adopted.left(1)), (false, Some(NOT_ENDED)));
        adopted.look(&[], STUCK_NS);
        assert_eq!(adopted.left(1), None);
    }
}
