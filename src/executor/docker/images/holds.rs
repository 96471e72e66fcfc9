//! Which images are about to be used by this process, and which are being removed: never both.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Uses and removals, by the image's id. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub(super) struct Holds(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    removed: Notify,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<String, usize>,
    removing: HashSet<String>,
}

/// As long as it lives, the image is not removed by this process.
#[derive(Debug)]
pub(super) struct Hold(Holds, String);

/// As long as it lives, nobody gets a hold of the image.
#[derive(Debug)]
pub(super) struct Removal(Holds, String);

impl Holds {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes hold of an image; `None` after waiting for a removal of it: whether it is there has to be looked at again.
    pub(super) async fn hold(&self, id: &str) -> Option<Hold> {
        let mut waited = false;
        loop {
            // Listens before it looks, so that the end of a removal between the two is not missed.
            let removed = self.0.removed.notified();
            {
                let mut state = self.state();
                if !state.removing.contains(id) {
                    if waited {
                        return None;
                    }
                    *state.held.entry(id.to_owned()).or_default() += 1;
                    return Some(Hold(self.clone(), id.to_owned()));
                }
            }
            waited = true;
            removed.await;
        }
    }

    /// Begins a removal; `None` while the image is held, or is being removed.
    pub(super) fn remove(&self, id: &str) -> Option<Removal> {
        let mut state = self.state();
        let free = !state.held.contains_key(id) && state.removing.insert(id.to_owned());
        free.then(|| Removal(self.clone(), id.to_owned()))
    }

    /// Ids of those that are held.
    pub(super) fn held(&self) -> HashSet<String> {
        self.state().held.keys().cloned().collect()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if let Some(uses) = state.held.get_mut(&self.1) {
            *uses -= 1;
            if *uses == 0 {
                state.held.remove(&self.1);
            }
        }
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        self.0.state().removing.remove(&self.1);
        self.0.0.removed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_held_is_not_removed_and_what_is_removed_is_not_held() {
        let holds = Holds::default();
        let (one, two) = (holds.hold("a").await.expect("free"), holds.hold("a").await.expect("shared"));
        assert!(holds.remove("a").is_none());
        drop(one);
        assert!(holds.remove("a").is_none() && holds.held().contains("a"));
        drop(two);
        let removal = holds.remove("a").expect("free");
        assert!(holds.remove("a").is_none(), "one removal at a time");
        assert!(holds.hold("b").await.is_some(), "others are free");
        let other = holds.clone();
        let waits = tokio::join!(async move { other.hold("a").await.is_none() }, async {
            tokio::task::yield_now().await;
            drop(removal);
        });
        assert!(waits.0, "it is to look again");
        assert!(holds.hold("a").await.is_some());
    }
}
