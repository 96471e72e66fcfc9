//! How often whoever may ask: requests of each key, and refusals of each address.
//!
//! Owns the buckets. A key that is good is never kept out by what others do: refusals of an address count against those that are
//! refused, and against nobody else. What is kept is bounded, whoever comes.

mod bucket;

pub(super) use bucket::{Rate, Taken};

use super::problem::ProblemDocument;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use bucket::Bucket;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use utoipa::ToSchema;

/// Buckets of a kind. Those that are full say nothing and make room; when all are in use, the rest share one.
const MOST: usize = 10_000;

/// What the operator's configuration says for keys that have no limits of their own, and for strangers.
#[derive(Debug, Clone, Copy, Default)]
pub struct LimitSettings {
    /// Requests of a key in a second; 0 for no bound.
    pub rate: u32,
    /// Requests of a key at once.
    pub burst: u32,
    /// Jobs of a key that have not ended; 0 for no bound.
    pub jobs: u64,
    /// Refusals of an address in a second; 0 for no bound.
    pub refused_rate: u32,
    /// Refusals of an address at once.
    pub refused_burst: u32,
}

/// The settings as they are now: an operator may change them while the server runs. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub struct LiveLimits(Arc<Mutex<LimitSettings>>);

impl LiveLimits {
    /// From these on.
    pub fn new(settings: LimitSettings) -> Self {
        Self(Arc::new(Mutex::new(settings)))
    }

    fn current(&self) -> LimitSettings {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another number for one of them, by its name in the section `limits`, from the next request on. False when there is none of that name.
    pub fn set(&self, name: &str, number: u64) -> bool {
        let mut settings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let short = u32::try_from(number).unwrap_or(u32::MAX);
        match name {
            "rate" => settings.rate = short,
            "burst" => settings.burst = short,
            "jobs" => settings.jobs = number,
            "refused_rate" => settings.refused_rate = short,
            "refused_burst" => settings.refused_burst = short,
            _ => return false,
        }
        true
    }
}

/// Limits of one key. What is left out is as the settings say; 0 is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyLimits {
    /// Requests in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, maximum = 1_000_000)]
    pub(super) rate: Option<u32>,
    /// Requests at once, after a quiet time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 1_000_000)]
    pub(super) burst: Option<u32>,
    /// Jobs that have not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, maximum = 100_000_000)]
    pub(super) jobs: Option<u64>,
}

impl KeyLimits {
    /// Whether no number is beyond what is meant.
    pub(super) fn are_good(self) -> bool {
        self.rate.is_none_or(|rate| rate <= 1_000_000)
            && self.burst.is_none_or(|burst| (1..=1_000_000).contains(&burst))
            && self.jobs.is_none_or(|jobs| jobs <= 100_000_000)
    }

    /// With what the settings say of the rest.
    fn or(self, settings: LimitSettings) -> (Option<Rate>, Option<u64>) {
        let (per_second, burst) = (self.rate.unwrap_or(settings.rate), self.burst.unwrap_or(settings.burst).max(1));
        let jobs = self.jobs.unwrap_or(settings.jobs);
        ((per_second > 0).then_some(Rate { per_second, burst }), (jobs > 0).then_some(jobs))
    }
}

/// Buckets by what they are for.
#[derive(Debug)]
struct Buckets<K> {
    own: HashMap<K, Bucket>,
    shared: Bucket,
}

impl<K: Hash + Eq> Buckets<K> {
    fn take(&mut self, key: K, rate: Rate, now: u64) -> Taken {
        if self.own.len() >= MOST && !self.own.contains_key(&key) {
            self.own.retain(|_, bucket| !bucket.is_full(now));
            if self.own.len() >= MOST {
                return self.shared.take(rate, now);
            }
        }
        self.own.entry(key).or_default().take(rate, now)
    }
}

impl<K> Default for Buckets<K> {
    fn default() -> Self {
        Self { own: HashMap::new(), shared: Bucket::default() }
    }
}

/// All buckets.
#[derive(Debug)]
pub(super) struct Limits {
    settings: LiveLimits,
    begun: Instant,
    keys: Mutex<Buckets<String>>,
    strangers: Mutex<Buckets<Option<IpAddr>>>,
}

/// What a key may still do, for the headers of its answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    rate: Rate,
    taken: Taken,
}

impl Limits {
    pub(super) fn new(settings: LiveLimits) -> Self {
        Self { settings, begun: Instant::now(), keys: Mutex::default(), strangers: Mutex::default() }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Most jobs of a key with these limits that have not ended.
    pub(super) fn jobs(&self, own: KeyLimits) -> Option<u64> {
        own.or(self.settings.current()).1
    }

    /// One more request of a key; none for a key without bounds.
    pub(super) fn request(&self, key: &str, own: KeyLimits) -> Option<Budget> {
        let (rate, _) = own.or(self.settings.current());
        let rate = rate?;
        let taken = self.keys.lock().unwrap_or_else(PoisonError::into_inner).take(key.to_owned(), rate, self.now());
        Some(Budget { rate, taken })
    }

    /// One more refusal of an address. Gives how long it had better stay away, when it has had its share.
    pub(super) fn refusal(&self, from: Option<IpAddr>) -> Option<Duration> {
        let LimitSettings { refused_rate: per_second, refused_burst, .. } = self.settings.current();
        let rate = Rate { per_second: Some(per_second).filter(|rate| *rate > 0)?, burst: refused_burst.max(1) };
        let now = self.now();
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner).take(from.map(network), rate, now).wait
    }
}

/// Whose an address is: one of IPv6 is any of the 2^64 that its holder has.
pub(super) fn network(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        four @ IpAddr::V4(_) => four,
    }
}

/// Whole seconds, of which nobody is told less than there are.
pub(super) fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl Budget {
    /// Why a request is not let through, if it is not.
    pub(super) fn refusal(&self, key: &str) -> Option<ProblemDocument> {
        let wait = self.taken.wait?;
        let Rate { per_second, burst } = self.rate;
        let detail = format!(
            "the key `{key}` may make {per_second} requests in a second, and {burst} at once; wait, or have the operator run `jobcell \
             keys limit {key}`"
        );
        Some(ProblemDocument::new("rate_limited", detail).retry_after(seconds(wait)))
    }

    /// The answer, with what is left (`RateLimit` and `RateLimit-Policy` of the IETF's draft).
    pub(super) fn told(&self, mut response: Response) -> Response {
        let Rate { per_second, burst } = self.rate;
        let window = burst.div_ceil(per_second);
        let (left, reset) = (self.taken.left, seconds(self.taken.full_in));
        let fields = [
            ("ratelimit-policy", format!("\"key\";q={burst};w={window}")),
            ("ratelimit", format!("\"key\";r={left};t={reset}")),
        ];
        for (name, value) in fields {
            let value = HeaderValue::try_from(value).expect("digits and signs");
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: LimitSettings = LimitSettings { rate: 2, burst: 2, jobs: 7, refused_rate: 1, refused_burst: 2 };

    fn let_through(limits: &Limits, key: &str, own: KeyLimits) -> bool {
        limits.request(key, own).is_none_or(|budget| budget.refusal(key).is_none())
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_has_its_own_limits_or_those_of_the_settings_and_nobody_pays_for_another() {
        let limits = Limits::new(LiveLimits::new(SETTINGS));
        let (own, none) =
            (KeyLimits { burst: Some(3), ..KeyLimits::default() }, KeyLimits { rate: Some(0), ..KeyLimits::default() });
        let usual = KeyLimits::default();
        assert_eq!([0; 3].map(|_| let_through(&limits, "a", usual)), [true, true, false]);
        assert_eq!([0; 4].map(|_| let_through(&limits, "b", own)), [true, true, true, false]);
        assert!((0..1000).all(|_| let_through(&limits, "c", none)), "0 is no bound");
        assert_eq!((limits.jobs(usual), limits.jobs(KeyLimits { jobs: Some(0), ..usual })), (Some(7), None));
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!([0; 2].map(|_| let_through(&limits, "a", usual)), [true, false]);
        // Another limit holds from the next request on.
        assert!(let_through(&limits, "a", KeyLimits { burst: Some(9), ..usual }));
    }

    #[tokio::test(start_paused = true)]
    async fn other_settings_hold_from_the_next_request_on() {
        let live = LiveLimits::new(SETTINGS);
        let (limits, usual) = (Limits::new(live.clone()), KeyLimits::default());
        assert_eq!([0; 3].map(|_| let_through(&limits, "a", usual)), [true, true, false]);
        assert!(live.set("burst", 4) && live.set("jobs", 9) && !live.set("brust", 4));
        assert_eq!([0; 3].map(|_| let_through(&limits, "a", usual)), [true, true, false]);
        assert_eq!(limits.jobs(usual), Some(9));
        assert!(live.set("rate", 0) && let_through(&limits, "a", usual));
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_of_an_address_count_for_its_whole_network() {
        let limits = Limits::new(LiveLimits::new(SETTINGS));
        let at = |text: &str| Some(text.parse().expect("an address"));
        assert_eq!(limits.refusal(at("2001:db8::1")), None);
        assert_eq!(limits.refusal(at("2001:db8::ffff:2")), None);
        assert_eq!(limits.refusal(at("2001:db8:0:0:9::3")), Some(Duration::from_secs(1)));
        assert_eq!(limits.refusal(at("2001:db8:0:1::1")), None, "another network");
        assert_eq!(
            [at("10.0.0.1"), at("::ffff:10.0.0.1"), at("10.0.0.1")].map(|from| limits.refusal(from).is_some()),
            [false, false, true]
        );
        assert_eq!(limits.refusal(at("10.0.0.2")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_what_is_kept_is_bounded() {
        let limits = Limits::new(LiveLimits::new(SETTINGS));
        let refused = (0..50_000u32).filter(|n| limits.refusal(Some(IpAddr::from(n.to_be_bytes()))).is_some()).count();
        assert!(limits.strangers.lock().expect("whole").own.len() <= MOST);
        assert_eq!(refused, 50_000 - MOST - 2, "the rest share one bucket");
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(limits.refusal(Some([250, 0, 0, 1].into())), None, "who is quiet makes room");
        assert!(limits.strangers.lock().expect("whole").own.len() < 10);
    }
}
