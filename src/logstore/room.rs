//! Whether there is room for more output. Who watches the disk, or what a backend has not got yet, says so here; whoever brings output
//! waits, and so does the job in the end: nothing is dropped that the job has not said may be.

use std::collections::BTreeSet;
use tokio::sync::watch;

/// What stands in the way of more output, by its name.
#[derive(Debug, Clone)]
pub struct Room(watch::Sender<BTreeSet<String>>);

impl Default for Room {
    fn default() -> Self {
        Self(watch::Sender::new(BTreeSet::new()))
    }
}

impl Room {
    /// Says that `what` stands in the way, or no more.
    pub fn set(&self, what: &str, in_the_way: bool) {
        self.0.send_if_modified(|known| if in_the_way { known.insert(what.to_owned()) } else { known.remove(what) });
    }

    /// What stands in the way, now and whenever that changes.
    pub fn subscribe(&self) -> watch::Receiver<BTreeSet<String>> {
        self.0.subscribe()
    }

    /// What stands in the way, as a text; `None` when nothing does.
    pub fn obstacle(&self) -> Option<String> {
        let known = self.0.borrow();
        (!known.is_empty()).then(|| known.iter().cloned().collect::<Vec<_>>().join(", "))
    }
}
