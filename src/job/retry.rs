//! What follows on the end of a try: another one, or none. Pure: also the pause before the next try comes from the job's id and the
//! number of the attempt, so that whoever decides again decides the same.

use super::{AttemptId, Cause, LogTotals, Millis, Retry, UnixMillis};
use serde::{Deserialize, Serialize};

/// Whose turn it is after an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Nobody's: the job did what it was to do.
    Success,
    /// The job's: another try may help when its owner says so.
    Failure,
    /// Ours: the job could not be run, or not to its end.
    Infrastructure,
    /// Its owner's, or the operator's: another try would end in the same way, or is not wanted.
    Permanent,
}

/// The try that follows on one that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextTry {
    /// It is not handed out before.
    pub not_before: UnixMillis,
    /// Which one it is, from 2. Attempts that were given back do not count.
    pub number: u32,
    /// How many there are when they all end like the last one.
    pub of: u32,
    /// Code of the end that it follows on.
    pub cause: String,
}

/// A try that has ended and was followed by another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastTry {
    /// The number of its attempt: its output is found under it.
    pub attempt: u32,
    /// Who held it.
    pub agent: String,
    /// When it started to run; absent when it never did, or when nobody knows.
    pub started_at: Option<UnixMillis>,
    /// When it ended.
    pub ended_at: UnixMillis,
    /// Why.
    pub cause: Cause,
    /// The cause in words.
    pub message: String,
    /// What its log holds, as its agent said.
    pub log: LogTotals,
}

/// That something a job needs is away for a while, such as its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Later {
    /// For so long it is of no use to try.
    pub after: Millis,
    /// Why, as a sentence.
    pub reason: String,
}

/// That a job was given back until later, which costs it no try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutOff {
    /// It is not handed out before.
    pub not_before: UnixMillis,
    /// How often in a row, from 1.
    pub times: u32,
    /// Why, as a sentence.
    pub reason: String,
}

impl PutOff {
    /// An attempt that was given back until later, after one that was too, or not. It waits longer each time, up to a minute, and jobs that were
    /// put off together do not come back together.
    pub fn after(attempt: AttemptId, before: Option<&Self>, later: &Later, now: UnixMillis) -> Self {
        let times = before.map_or(0, |before| before.times);
        let asked = later.after.as_u64().clamp(PUT_OFF.0, PUT_OFF.1);
        let doubled = 2u64.checked_pow(times).and_then(|doublings| asked.checked_mul(doublings));
        let pause = doubled.unwrap_or(u64::MAX).min(PUT_OFF.1);
        let plain = |c: &char| !c.is_control();
        Self {
            // Never less: it is of no use before.
            not_before: now.plus(Millis::new(pause + scattered(attempt) % (pause / 4 + 1))),
            times: times.saturating_add(1),
            reason: later.reason.chars().filter(plain).take(MOST_REASON).collect(),
        }
    }
}

/// The least and the most milliseconds that a job is put off for, before they are scattered by a quarter.
const PUT_OFF: (u64, u64) = (1_000, 60_000);
/// Characters of the reason that are kept.
const MOST_REASON: usize = 400;

/// Tries so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tried {
    /// The one that has just ended included.
    pub all: u32,
    /// Those before it that were retried after a failure of the job's own.
    pub failures: u32,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Then {
    /// It has ended as it did.
    Over,
    /// It has ended because no try is left that there would have been, for this reason.
    GivenUp(String),
    /// It is tried again.
    Again(NextTry),
}

/// Decides. `infrastructure`: tries after ends that are ours, of a job that does not say how many.
pub fn then(
    attempt: AttemptId,
    rules: &Retry,
    cause: &Cause,
    tried: Tried,
    infrastructure: u32,
    now: UnixMillis,
) -> Then {
    let class = cause.class();
    let class = if class == Class::Success && mutant!(RetriedAfterSuccess) { Class::Infrastructure } else { class };
    let (used, limit) = match class {
        Class::Success | Class::Permanent => return Then::Over,
        Class::Failure if rules.failure == 0 || !is_wanted(rules, cause) => return Then::Over,
        Class::Failure => (tried.failures, rules.failure),
        Class::Infrastructure => {
            let failures = if mutant!(TriesMixed) { 0 } else { tried.failures };
            (tried.all - 1 - failures, rules.infrastructure.unwrap_or(infrastructure))
        }
    };
    if used >= limit {
        let which = match tried.all {
            1 => "its only try".to_owned(),
            all => format!("the last of {all} tries"),
        };
        return Then::GivenUp(format!("{which} ended with {}", cause.code()));
    }
    Then::Again(NextTry {
        not_before: now.plus(pause(attempt, rules, tried.all)),
        number: tried.all + 1,
        of: tried.all + limit - used,
        cause: cause.code().to_owned(),
    })
}

fn is_wanted(rules: &Retry, cause: &Cause) -> bool {
    rules.exit_codes.is_empty() || rules.exit_codes.contains(&cause.process_exit_code())
}

/// The pause after the try of that number: doubled each time, up to the longest, and then between half of it and all of it, so that
/// jobs that ended together do not come back together.
fn pause(attempt: AttemptId, rules: &Retry, tries: u32) -> Millis {
    let doubled = 2u64.checked_pow(tries - 1).and_then(|times| rules.backoff.as_u64().checked_mul(times));
    let pause = doubled.unwrap_or(u64::MAX).min(rules.backoff_max.as_u64());
    let half = pause / 2;
    Millis::new(half + scattered(attempt) % (pause - half + 1))
}

/// A number that looks like a random one: the finishing step of splitmix64.
fn scattered(attempt: AttemptId) -> u64 {
    let mut x = attempt.job.low_bits() ^ u64::from(attempt.attempt).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobId;
    use proptest::prelude::*;

    fn attempt(number: u32) -> AttemptId {
        AttemptId::new("018bcfe5-6be8-730e-b0a3-c55f4e8584bb".parse().expect("an id"), number)
    }

    fn lost() -> Cause {
        Cause::CellLost { reason: "gone".into() }
    }

    fn exit(exit_code: i32) -> Cause {
        Cause::ExitCode { exit_code }
    }

    /// What follows, and which try of how many.
    fn after(rules: &Retry, cause: &Cause, all: u32, failures: u32) -> String {
        let tried = Tried { all, failures };
        match then(attempt(all), rules, cause, tried, 2, UnixMillis::new(0)) {
            Then::Over => "over".to_owned(),
            Then::GivenUp(reason) => reason,
            Then::Again(next) => format!("{} of {}", next.number, next.of),
        }
    }

    #[test]
    fn what_is_put_off_again_and_again_waits_longer_up_to_a_bound() {
        let later = |ms| Later { after: Millis::new(ms), reason: format!("web1 is\n{}", "away ".repeat(200)) };
        let now = UnixMillis::new(1_000_000);
        let (mut last, mut pauses) = (None, Vec::new());
        for number in 1..=8 {
            let put_off = PutOff::after(attempt(number), last.as_ref(), &later(4_000), now);
            assert_eq!((put_off.times, put_off.reason.chars().count()), (number, 400));
            assert!(!put_off.reason.contains('\n'));
            pauses.push(put_off.not_before.since(now).as_u64());
            last = Some(put_off);
        }
        for (pause, least) in pauses.iter().zip([4_000u64, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000, 60_000]) {
            assert!((least..=least + least / 4).contains(pause), "{pauses:?}");
        }
        for (asked, least) in [(0, 1_000), (u64::MAX, 60_000)] {
            let pause = PutOff::after(attempt(1), None, &later(asked), now).not_before.since(now).as_u64();
            assert!((least..=least + least / 4).contains(&pause), "{asked}: {pause}");
        }
    }

    #[test]
    fn each_class_has_tries_of_its_own() {
        let plain = Retry::default();
        assert_eq!(after(&plain, &lost(), 1, 0), "2 of 3");
        assert_eq!(after(&plain, &lost(), 2, 0), "3 of 3");
        assert_eq!(after(&plain, &lost(), 3, 0), "the last of 3 tries ended with cell_lost");
        assert_eq!(after(&Retry::never(), &lost(), 1, 0), "its only try ended with cell_lost");
        for over in [exit(0), exit(1), Cause::Canceled, Cause::Timeout { limit: Millis::new(1) }] {
            assert_eq!(after(&plain, &over, 1, 0), "over", "{over:?}");
        }
        let some = Retry { failure: 2, infrastructure: Some(1), ..Retry::default() };
        assert_eq!(after(&some, &exit(1), 1, 0), "2 of 3");
        assert_eq!(
            after(
                &some,
                &Cause::OutOfMemory { limit: crate::job::ByteSize::new(1), peak: crate::job::ByteSize::new(1) },
                2,
                1
            ),
            "3 of 3"
        );
        assert_eq!(after(&some, &exit(1), 3, 2), "the last of 3 tries ended with exit_code");
        // One that was ours between them takes none of the job's.
        assert_eq!(after(&some, &lost(), 2, 1), "3 of 3");
        assert_eq!(after(&some, &exit(1), 3, 1), "4 of 4");
        assert_eq!(after(&some, &lost(), 4, 2), "the last of 4 tries ended with cell_lost");
        for never in [Cause::Canceled, Cause::PresetMissing { preset: "x".into() }, exit(0)] {
            assert_eq!(after(&some, &never, 1, 0), "over", "{never:?}");
        }
    }

    #[test]
    fn exit_codes_are_those_that_a_waiting_command_has() {
        let rules = Retry { failure: 1, exit_codes: [75, 124, 137].into(), ..Retry::default() };
        for (cause, wanted) in [
            (exit(75), "2 of 2"),
            (exit(1), "over"),
            (Cause::Timeout { limit: Millis::new(1) }, "2 of 2"),
            (Cause::Signal { signal: 9 }, "2 of 2"),
            (Cause::Signal { signal: 11 }, "over"),
        ] {
            assert_eq!(after(&rules, &cause, 1, 0), wanted, "{cause:?}");
        }
        assert_eq!(after(&rules, &exit(1), 2, 1), "over", "its end is its own, not the want of tries");
        assert_eq!(after(&rules, &lost(), 1, 0), "2 of 3", "ours are not theirs");
    }

    #[test]
    fn pauses_grow_to_the_longest_and_jobs_are_scattered() {
        let rules = Retry { backoff: Millis::from_secs(10), backoff_max: Millis::from_secs(60), ..Retry::default() };
        for (tries, longest) in [(1, 10_000), (2, 20_000), (3, 40_000), (4, 60_000), (5, 60_000), (101, 60_000)] {
            let pause = pause(attempt(tries), &rules, tries).as_u64();
            assert!((longest / 2..=longest).contains(&pause), "{tries}: {pause}");
        }
        let id = JobId::new(UnixMillis::new(1));
        let pauses: std::collections::BTreeSet<u64> =
            (1..=100).map(|number| pause(AttemptId::new(id, number), &rules, 9).as_u64()).collect();
        assert!(
            pauses.len() > 90 && pauses.last().expect("some") - pauses.first().expect("some") > 20_000,
            "{pauses:?}"
        );
        let none = Retry { backoff: Millis::new(0), ..Retry::default() };
        assert_eq!(pause(attempt(1), &none, 7), Millis::new(0));
    }

    proptest! {
        /// Whatever the tries of a job come to, in whatever order: there is an end to them.
        #[test]
        fn tries_end(ends in prop::collection::vec(any::<bool>(), 250), failure in 0u32..=100, infrastructure in 0u32..=100) {
            let rules = Retry { failure, infrastructure: Some(infrastructure), ..Retry::default() };
            let (mut tried, mut over) = (Tried { all: 0, failures: 0 }, false);
            for ours in ends {
                tried.all += 1;
                let cause = if ours { lost() } else { exit(1) };
                match then(attempt(tried.all), &rules, &cause, tried, 7, UnixMillis::new(5)) {
                    Then::Again(next) => {
                        prop_assert!(next.number == tried.all + 1 && next.of >= next.number);
                        prop_assert!(next.not_before >= UnixMillis::new(5));
                        tried.failures += u32::from(!ours);
                    }
                    Then::Over | Then::GivenUp(_) => {
                        over = true;
                        break;
                    }
                }
            }
            prop_assert!(over && tried.all <= failure + infrastructure + 1);
        }
    }
}
