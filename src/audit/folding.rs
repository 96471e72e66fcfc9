//! Refusals of one kind from one place become one line a minute, after the first few. Decides without a clock of its own.

use super::{Event, Who};
use crate::job::{Millis, UnixMillis};
use std::collections::HashMap;
use std::net::IpAddr;

/// Refusals of a kind that have lines of their own, in each minute.
const FIRST: u64 = 5;
const MINUTE: Millis = Millis::from_secs(60);
/// Kinds that are told apart at a time; what is beyond counts as one kind, from nowhere.
const MOST: usize = 1024;

/// Where, by whom, and why.
type Kind = (Option<IpAddr>, Who, Option<String>);

/// What is being counted.
#[derive(Debug, Default)]
pub(super) struct Folding {
    seen: HashMap<Kind, Seen>,
}

#[derive(Debug)]
struct Seen {
    since: UnixMillis,
    count: u64,
    last: Event,
}

impl Folding {
    /// One more; it comes back when it is to have a line of its own.
    pub(super) fn see(&mut self, event: Event) -> Option<Event> {
        let mut kind = (event.from, event.who.clone(), event.detail.clone());
        if self.seen.len() >= MOST && !self.seen.contains_key(&kind) {
            kind = (None, Who::Nobody, None);
        }
        let new = || Seen { since: event.at, count: 0, last: event.clone() };
        let seen = self.seen.entry(kind).or_insert_with(new);
        seen.count += 1;
        if seen.count <= FIRST {
            return Some(event);
        }
        seen.last = event;
        None
    }

    /// Those of minutes that are over, or of all (`None`), with the number of those that had no lines.
    pub(super) fn ended(&mut self, now: Option<UnixMillis>) -> Vec<Event> {
        let mut ended = Vec::new();
        self.seen.retain(|(from, who, detail), seen| {
            if now.is_some_and(|now| now.since(seen.since) < MINUTE) {
                return true;
            }
            if seen.count > FIRST {
                // Objects and addresses of those that were thrown together differ.
                let (from, who, detail) = (*from, who.clone(), detail.clone());
                let count = Some(seen.count - FIRST);
                ended.push(Event { from, who, detail, object: None, count, ..seen.last.clone() });
            }
            false
        });
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Outcome;

    fn refused(from: [u8; 4], at: u64, detail: &str) -> Event {
        let (at, from) = (UnixMillis::new(at), Some(IpAddr::from(from)));
        Event { at, from, ..Event::own("auth", Outcome::Refused, Some(detail.to_owned())) }
    }

    #[test]
    fn a_flood_is_five_lines_and_one_and_others_are_not_in_it() {
        let mut folding = Folding::default();
        let lines = (0..10_000).filter(|at| folding.see(refused([10, 0, 0, 1], *at, "unauthorized")).is_some()).count();
        assert_eq!(lines, 5);
        assert!(folding.see(refused([10, 0, 0, 2], 10_000, "unauthorized")).is_some());
        assert!(folding.see(refused([10, 0, 0, 1], 10_000, "forbidden")).is_some());
        assert_eq!(folding.ended(Some(UnixMillis::new(59_999))), []);
        let ended = folding.ended(Some(UnixMillis::new(60_000)));
        assert_eq!(ended.len(), 1, "the others had lines of their own");
        assert_eq!((ended[0].count, ended[0].at), (Some(9995), UnixMillis::new(9999)));
        assert!(folding.see(refused([10, 0, 0, 1], 60_001, "unauthorized")).is_some(), "a new minute");
    }

    #[test]
    fn what_is_kept_is_bounded_whoever_comes() {
        let mut folding = Folding::default();
        for n in 0..100_000_u32 {
            folding.see(refused(n.to_be_bytes(), 0, "unauthorized"));
        }
        assert!(folding.seen.len() <= MOST + 1);
        let ended = folding.ended(None);
        assert_eq!(ended.len(), 1);
        let rest = 100_000 - u64::try_from(MOST).expect("fits") - FIRST;
        assert_eq!((ended[0].from, ended[0].count), (None, Some(rest)));
        assert_eq!(folding.ended(None), []);
    }
}
