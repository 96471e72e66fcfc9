//! Whether there is room for more output. Who watches the disk, or what a backend has not got yet, says so here; whoever brings output
//! waits, and so does the job in the end: nothing is dropped that the job has not said may be.

use crate::job::AttemptId;
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::watch;

/// What there is no room for, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Full {
    /// Why there is none for anybody.
    all: BTreeSet<String>,
    /// By who said it: the attempts that have more than their share.
    some: BTreeMap<String, BTreeSet<AttemptId>>,
    /// By who said it: why there will be none for some time.
    stalled: BTreeMap<String, String>,
}

impl Full {
    /// Whether output of this attempt has to wait.
    pub fn holds_up(&self, attempt: AttemptId) -> bool {
        !self.all.is_empty() || self.some.values().any(|attempts| attempts.contains(&attempt))
    }
}

/// The room of one store.
#[derive(Debug, Clone)]
pub struct Room(watch::Sender<Full>);

impl Default for Room {
    fn default() -> Self {
        Self(watch::Sender::new(Full::default()))
    }
}

impl Room {
    /// Says that `what` stands in everybody's way, or no more.
    pub fn set(&self, what: &str, in_the_way: bool) {
        self.0.send_if_modified(
            |full| {
                if in_the_way { full.all.insert(what.to_owned()) } else { full.all.remove(what) }
            },
        );
    }

    /// Says which attempts have more than their share, as `who` sees it, and why that will last, if it will.
    pub fn share(&self, who: &str, beyond: BTreeSet<AttemptId>, stalled: Option<String>) {
        self.0.send_if_modified(|full| {
            let before = full.clone();
            full.some.insert(who.to_owned(), beyond);
            match stalled {
                Some(why) => drop(full.stalled.insert(who.to_owned(), why)),
                None => drop(full.stalled.remove(who)),
            }
            *full != before
        });
    }

    /// What there is no room for, now and whenever that changes.
    pub fn subscribe(&self) -> watch::Receiver<Full> {
        self.0.subscribe()
    }

    /// Why more jobs would have no room for their output; `None` when they would.
    pub fn obstacle(&self) -> Option<String> {
        let full = self.0.borrow();
        let reasons: Vec<&str> = full.all.iter().chain(full.stalled.values()).map(String::as_str).collect();
        (!reasons.is_empty()).then(|| reasons.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{JobId, UnixMillis};

    #[test]
    fn one_that_has_more_than_its_share_waits_alone_and_a_full_disk_stops_all() {
        let (room, attempt) = (Room::default(), || AttemptId::new(JobId::new(UnixMillis::new(1)), 1));
        let (flood, quiet) = (attempt(), attempt());
        let holds_up = || [flood, quiet].map(|attempt| room.subscribe().borrow().holds_up(attempt));
        room.share("main", [flood].into(), None);
        assert_eq!((holds_up(), room.obstacle()), ([true, false], None));
        room.share("main", [flood].into(), Some("main takes nothing".into()));
        assert_eq!(room.obstacle().as_deref(), Some("main takes nothing"));
        room.share("main", BTreeSet::new(), None);
        room.set("the disk", true);
        assert_eq!((holds_up(), room.obstacle().as_deref()), ([true, true], Some("the disk")));
        room.set("the disk", false);
        assert_eq!((holds_up(), room.obstacle()), ([false, false], None));
    }
}
