//! Refusals of one kind from one place become one line a minute, after the first few; and so do those of all strangers together, wherever they
//! come from, after some more. Decides without a clock of its own.

use super::{Event, Who};
use crate::job::{Millis, UnixMillis};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// Refusals of a kind that have lines of their own, in each minute.
const FIRST: u64 = 5;
const MINUTE: Millis = Millis::from_secs(60);
/// Kinds that are told apart at a time; what is beyond counts as one kind, from nowhere.
const MOST: usize = 1024;

/// Lines that all strangers have together in each minute: addresses are cheap.
const STRANGERS: u64 = 100;

/// Where, by whom, what, and why.
type Kind = (Option<IpAddr>, Who, Option<&'static str>, Option<String>);

/// What is being counted.
#[derive(Debug, Default)]
pub(super) struct Folding {
    seen: HashMap<Kind, Seen>,
    /// Lines of strangers in a minute, and when that began.
    strangers: u64,
    minute: Option<UnixMillis>,
}

/// Whose an address is: one of IPv6 is any of the 2^64 that its holder has.
fn network(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        four @ IpAddr::V4(_) => four,
    }
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
        let mut kind = (event.from.map(network), event.who.clone(), Some(event.action), event.detail.clone());
        if self.minute.is_none_or(|minute| event.at.since(minute) >= MINUTE) {
            (self.minute, self.strangers) = (Some(event.at), 0);
        }
        let stranger = event.who == Who::Nobody;
        let too_many = (stranger && self.strangers >= STRANGERS) || self.seen.len() >= MOST;
        if too_many && !self.seen.contains_key(&kind) {
            kind = (None, Who::Nobody, None, None);
        }
        let new = || Seen { since: event.at, count: 0, last: event.clone() };
        let seen = self.seen.entry(kind).or_insert_with(new);
        seen.count += 1;
        if seen.count <= FIRST {
            self.strangers += u64::from(stranger);
            return Some(event);
        }
        seen.last = event;
        None
    }

    /// Those of minutes that are over, or of all (`None`), with the number of those that had no lines.
    pub(super) fn ended(&mut self, now: Option<UnixMillis>) -> Vec<Event> {
        let mut ended = Vec::new();
        self.seen.retain(|(from, who, _, detail), seen| {
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
    fn strangers_from_everywhere_have_some_lines_together_and_keys_have_theirs_beside_them() {
        let mut folding = Folding::default();
        let stranger =
            |from: IpAddr, at: u64| Event { who: Who::Nobody, from: Some(from), ..refused([0; 4], at, "unauthorized") };
        let lines = (0..100_000_u32).filter(|n| folding.see(stranger(n.to_be_bytes().into(), 0)).is_some()).count();
        assert!((100..=105).contains(&lines), "{lines} lines");
        assert!(folding.seen.len() < 200, "{} kinds", folding.seen.len());
        let of_key = Event { who: Who::Key { name: "ci".to_owned(), role: "read" }, ..refused([9; 4], 1, "forbidden") };
        assert!(folding.see(of_key).is_some(), "is not in it");
        let told: u64 = folding.ended(Some(UnixMillis::new(60_000))).iter().filter_map(|event| event.count).sum();
        assert_eq!(told + lines as u64, 100_000);
        assert!(folding.see(stranger([1, 2, 3, 4].into(), 60_001)).is_some(), "a new minute");
    }

    #[test]
    fn addresses_of_one_network_are_one_place() {
        let mut folding = Folding::default();
        let from = |text: String| Some(text.parse::<IpAddr>().expect("an address"));
        let seen = (0..1000).filter(|n| {
            let event = refused([0; 4], 0, "unauthorized");
            folding.see(Event { from: from(format!("2001:db8::{n:x}")), ..event }).is_some()
        });
        assert_eq!(seen.count(), 5);
        let other = Event { from: from("2001:db8:0:1::1".to_owned()), ..refused([0; 4], 0, "unauthorized") };
        assert!(folding.see(other).is_some());
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
