//! Quantities with their units in the type, read from and written as what people type: `30s`, `512MiB`, `0.5`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Text that is not a quantity; the message says what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadUnit(pub(crate) String);

/// A moment: milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(u64);

impl UnixMillis {
    /// From milliseconds since 1970.
    pub const fn new(millis: u64) -> Self {
        Self(millis)
    }
    /// Milliseconds since 1970.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
    /// The wall clock. The only clock read in this room, here so that everybody reads the same one.
    pub fn now() -> Self {
        #[cfg(test)]
        if let Some(at) = virtual_now() {
            return at;
        }
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
    /// This moment moved later by `span`, saturating.
    #[must_use]
    pub fn plus(self, span: Millis) -> Self {
        Self(self.0.saturating_add(span.0))
    }
    /// Time from `earlier` to this moment; zero if it is not earlier.
    pub fn since(self, earlier: Self) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }
}

/// RFC 3339 in UTC with milliseconds, e.g. `2026-11-21T08:30:00.125Z`.
impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, rest) = (self.0 / 86_400_000, self.0 % 86_400_000);
        // Civil date from a day count: the proleptic Gregorian calendar in 400-year eras, years starting in March.
        let z = days + 719_468;
        let (era, day_of_era) = (z / 146_097, z % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (h, m, s, ms) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60, rest % 1000);
        write!(f, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
    }
}

/// A length of time in whole milliseconds. Text: a number and a unit (`ms s m h d`), several may follow each other
/// (`1m30s`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(u64);

impl Millis {
    /// From milliseconds.
    pub const fn new(millis: u64) -> Self {
        Self(millis)
    }
    /// From whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds * 1000)
    }
    /// Milliseconds.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
    /// Both, one after the other; saturating.
    #[must_use]
    pub const fn and(self, more: Self) -> Self {
        Self(self.0.saturating_add(more.0))
    }
    /// As the standard library's type.
    pub const fn as_duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl From<Duration> for Millis {
    fn from(span: Duration) -> Self {
        Self(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    }
}

const TIME_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl FromStr for Millis {
    type Err = BadUnit;
    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let bad = || BadUnit("expected a duration such as 500ms, 30s, 10m or 1h30m".to_owned());
        let mut rest = text.trim();
        let mut total: u64 = 0;
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
            let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
            let unit_len = rest[digits..].find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len() - digits);
            let (unit, tail) = rest[digits..].split_at(unit_len);
            let factor = TIME_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?.1;
            total = number
                .checked_mul(factor)
                .and_then(|part| total.checked_add(part))
                .ok_or_else(|| BadUnit("the duration is too large".to_owned()))?;
            rest = tail;
        }
        Ok(Self(total))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, factor) in TIME_UNITS {
            if rest >= factor {
                write!(f, "{}{unit}", rest / factor)?;
                rest %= factor;
            }
        }
        Ok(())
    }
}

/// A number of bytes. Text: `512MiB`, `64KiB`, `2GiB`, `10MB` (powers of 1000), or plain bytes `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(u64);

impl ByteSize {
    /// From bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }
    /// From binary megabytes.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib * 1024 * 1024)
    }
    /// Bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
    pub(crate) fn is_none(&self) -> bool {
        self.0 == 0
    }
}

const SIZE_UNITS: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

impl FromStr for ByteSize {
    type Err = BadUnit;
    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let bad = || BadUnit("expected a size such as 64KiB, 512MiB or 2GiB".to_owned());
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| bad())?;
        let factor = match text[digits..].trim() {
            "" | "B" => 1,
            unit => SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?.1,
        };
        number.checked_mul(factor).map(Self).ok_or_else(|| BadUnit("the size is too large".to_owned()))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, factor) in [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return write!(f, "{}{unit}", self.0 / factor);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// Processor share in thousandths of one core. Text or number: `0.5`, `2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpus(u32);

impl Cpus {
    /// From thousandths of a core.
    pub const fn from_milli(milli: u32) -> Self {
        Self(milli)
    }
    /// Thousandths of a core.
    pub const fn as_milli(self) -> u32 {
        self.0
    }
    pub(crate) fn is_none(&self) -> bool {
        self.0 == 0
    }
}

impl FromStr for Cpus {
    type Err = BadUnit;
    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let bad = || BadUnit("expected a number of cores between 0.01 and 1024, such as 0.5 or 2".to_owned());
        let cores: f64 = text.trim().parse().map_err(|_| bad())?;
        if !(0.01..=1024.0).contains(&cores) {
            return Err(bad());
        }
        // In range, so the conversion is exact to a thousandth.
        Ok(Self((cores * 1000.0).round() as u32))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0) / 1000.0)
    }
}

/// Serde by text, for types whose text form is the wire form.
macro_rules! serde_by_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_by_text!(Millis, ByteSize, Cpus);

/// In a test whose runtime has a paused clock, wall time goes with it: leases run out when the test lets time pass.
#[cfg(test)]
fn virtual_now() -> Option<UnixMillis> {
    static BEGAN: std::sync::OnceLock<(UnixMillis, std::time::Instant)> = std::sync::OnceLock::new();
    tokio::runtime::Handle::try_current().ok()?;
    let (wall, instant) = BEGAN.get_or_init(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        (UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)), std::time::Instant::now())
    });
    let elapsed = tokio::time::Instant::now().into_std().saturating_duration_since(*instant);
    let now = wall.plus(elapsed.into());
    Some(UnixMillis(now.0.saturating_add_signed(crate::seeded::clock_off())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_read_what_people_type() {
        for (text, millis) in [("500ms", 500), ("30s", 30_000), ("10m", 600_000), ("1h30m", 5_400_000), ("0s", 0)] {
            assert_eq!(text.parse(), Ok(Millis::new(millis)), "{text}");
        }
        for bad in ["", "30", "s", "-1s", "1.5h", "1e3s", "30 sec", "99999999999999999999s", "1d1x"] {
            assert!(bad.parse::<Millis>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_and_cores_read_what_people_type() {
        assert_eq!("512MiB".parse(), Ok(ByteSize::from_mib(512)));
        assert_eq!("4096".parse(), Ok(ByteSize::new(4096)));
        assert_eq!("10MB".parse(), Ok(ByteSize::new(10_000_000)));
        assert!("-1MiB".parse::<ByteSize>().is_err() && "99999999999GiB".parse::<ByteSize>().is_err());
        assert_eq!("0.5".parse(), Ok(Cpus::from_milli(500)));
        for bad in ["NaN", "inf", "0", "-1", "1e308", ""] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad}");
        }
    }

    #[test]
    fn moments_print_as_rfc_3339() {
        assert_eq!(UnixMillis::new(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(UnixMillis::new(951_782_400_000).to_string(), "2000-02-29T00:00:00.000Z");
        assert_eq!(UnixMillis::new(1_700_000_000_123).to_string(), "2023-11-14T22:13:20.123Z");
    }

    proptest! {
        #[test]
        fn text_forms_round_trip(millis in any::<u64>(), bytes in any::<u64>(), milli in 10u32..=1_024_000) {
            prop_assert_eq!(Millis::new(millis).to_string().parse(), Ok(Millis::new(millis)));
            prop_assert_eq!(ByteSize::new(bytes).to_string().parse(), Ok(ByteSize::new(bytes)));
            prop_assert_eq!(Cpus::from_milli(milli).to_string().parse(), Ok(Cpus::from_milli(milli)));
        }
    }
}
