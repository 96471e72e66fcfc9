//! Whether the cell's file systems were full. The kernel counts no refused write, so this looks at them: whenever the job has written
//! something or a process of it has ended, since who finds no room says so, and often removes then what was in the way. Owns the
//! highest use that was seen. Must never cost much: it looks at most once in a millisecond, and at the end, and waits for nothing.

use crate::sys::Space;
use crate::wire::{Fact, Met};
use std::ffi::{CStr, CString};

const PAUSE_NS: u64 = 1_000_000;
/// Places, with the names of their limits.
const PLACES: [(&str, &str, &str); 3] =
    [("/workspace", "disk", "inodes"), ("/tmp", "tmp", "tmp_inodes"), ("/dev/shm", "shm", "shm_inodes")];

/// Asks the kernel.
pub(crate) type Ask = fn(&CStr) -> Option<Space>;

pub(crate) struct Room {
    ask: Ask,
    places: Vec<(CString, [Use; 2])>,
    look_at: u64,
}

/// How much of one thing there is, and was used.
#[derive(Debug, Clone, Copy)]
struct Use {
    name: &'static str,
    limit: u64,
    peak: u64,
    full: bool,
    times: u64,
}

impl Room {
    /// Of those places that the receipt says are the cell's own.
    pub(crate) fn new(receipt: &[Fact], ask: Ask) -> Self {
        let own = |place: &str| receipt.iter().any(|(key, kind)| *key == format!("mount.{place}") && kind == "tmpfs");
        let one = |name| Use { name, limit: 0, peak: 0, full: false, times: 0 };
        let places = PLACES.iter().filter(|(place, ..)| own(place));
        let places =
            places.filter_map(|(place, bytes, files)| Some((CString::new(*place).ok()?, [one(bytes), one(files)])));
        Self { ask, places: places.collect(), look_at: 0 }
    }

    pub(crate) fn look(&mut self, now: u64) {
        if now >= self.look_at {
            self.look_once_more(now);
        }
    }

    /// The same, however short ago it has looked: many a job is over within a millisecond of what it found no room for.
    pub(crate) fn look_once_more(&mut self, now: u64) {
        self.look_at = now.saturating_add(PAUSE_NS);
        for (place, [bytes, files]) in &mut self.places {
            if let Some(space) = (self.ask)(place) {
                bytes.see(space.bytes, space.bytes_free);
                files.see(space.files, space.files_free);
            }
        }
    }

    /// What was full at some time.
    pub(crate) fn met(&self) -> Vec<Met> {
        let uses = self.places.iter().flat_map(|(_, uses)| uses).filter(|one| one.times > 0);
        let met = |one: &Use| Met { name: one.name.to_owned(), limit: one.limit, peak: one.peak, times: one.times };
        uses.map(met).collect()
    }
}

impl Use {
    fn see(&mut self, limit: u64, free: u64) {
        // A file system without a limit says zero.
        let full = limit > 0 && free == 0;
        self.times += u64::from(full && !self.full);
        self.peak = self.peak.max(limit.saturating_sub(free));
        (self.limit, self.full) = (limit, full);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        static SPACE: Cell<Space> = const { Cell::new(Space { bytes: 0, bytes_free: 0, files: 0, files_free: 0 }) };
    }

    fn set(bytes_free: u64, files_free: u64) {
        SPACE.set(Space { bytes: 4096, bytes_free, files: 10, files_free });
    }

    fn room(kind: &str) -> Room {
        let receipt = [("mount./tmp".to_owned(), kind.to_owned()), ("mount./tmp.size".to_owned(), "4096".to_owned())];
        Room::new(&receipt, |place| (place == c"/tmp").then(|| SPACE.get()))
    }

    #[test]
    fn what_was_full_is_told_also_when_it_is_no_more() {
        let mut room = room("tmpfs");
        for (n, free) in [100, 0, 0, 4000, 0, 4000].into_iter().enumerate() {
            set(free, 3);
            room.look(n as u64 * PAUSE_NS);
        }
        assert_eq!(room.met(), [Met { name: "tmp".into(), limit: 4096, peak: 4096, times: 2 }]);
        set(4000, 0);
        room.look(6 * PAUSE_NS - 1);
        assert_eq!(room.met().len(), 1, "too early");
        room.look_once_more(6 * PAUSE_NS - 1);
        assert_eq!(room.met()[1], Met { name: "tmp_inodes".into(), limit: 10, peak: 10, times: 1 });
    }

    #[test]
    fn a_place_without_a_limit_is_never_full_and_one_of_the_hosts_is_not_looked_at() {
        let mut without = room("tmpfs");
        SPACE.set(Space::default());
        without.look(0);
        assert_eq!(without.met(), []);
        let mut hosts = room("ext4");
        set(0, 0);
        hosts.look(0);
        assert_eq!(hosts.met(), []);
    }
}
