//! Moments as people and programs write them: milliseconds since 1970, or RFC 3339.

use super::UnixMillis;
use super::units::BadUnit;
use std::str::FromStr;

impl FromStr for UnixMillis {
    type Err = BadUnit;

    /// Digits alone are milliseconds since 1970; else a date and time with its offset. What is finer than a millisecond
    /// is cut off.
    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let parsed = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            text.parse().ok()
        } else {
            rfc3339(text)
        };
        parsed.map(Self::new).ok_or_else(|| {
            BadUnit("expected milliseconds since 1970, or a moment such as 2026-11-21T08:30:00Z".to_owned())
        })
    }
}

/// Milliseconds since 1970 of `YYYY-MM-DDThh:mm:ss[.fraction](Z|±hh:mm)`.
fn rfc3339(text: &str) -> Option<u64> {
    let (date, rest) = text.split_once(['T', 't'])?;
    let (year, month_day) = date.split_once('-')?;
    let (month, day) = month_day.split_once('-')?;
    let (year, month, day) = (number(year, 4)?, number(month, 2)?, number(day, 2)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let longest = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if day < 1 || day > longest {
        return None;
    }
    let at = rest.find(['Z', 'z', '+', '-'])?;
    let (time, zone) = rest.split_at(at);
    let offset = if zone.eq_ignore_ascii_case("z") {
        0
    } else {
        let (hours, minutes) = zone[1..].split_once(':')?;
        let (hours, minutes) = (number(hours, 2)?, number(minutes, 2)?);
        if hours > 23 || minutes > 59 {
            return None;
        }
        (hours * 60 + minutes) * if zone.starts_with('-') { -1 } else { 1 }
    };
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut parts = clock.split(':').map(|part| number(part, 2));
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    let digits = !fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit());
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 59 || !digits {
        return None;
    }
    let millis = fraction.bytes().chain(*b"000").take(3).fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + (minute - offset) * 60 + second;
    u64::try_from(seconds * 1000 + millis).ok()
}

/// Exactly so many digits.
fn number(text: &str, digits: usize) -> Option<i64> {
    let good = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| good)
}

/// Days from 1970 to a civil date: years start in March, in eras of 400.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn moments_are_read_in_both_forms_and_nothing_else_is() {
        for (text, millis) in [
            ("0", 0),
            ("1700000000123", 1_700_000_000_123),
            ("1970-01-01T00:00:00Z", 0),
            ("2023-11-14T22:13:20.123Z", 1_700_000_000_123),
            ("2023-11-14t23:13:20.1239+01:00", 1_700_000_000_123),
            ("2023-11-14T16:43:20.1-05:30", 1_700_000_000_100),
            ("2024-02-29T00:00:00Z", 1_709_164_800_000),
        ] {
            assert_eq!(text.parse().ok(), Some(UnixMillis::new(millis)), "{text}");
        }
        for bad in [
            "",
            "-1",
            "1.5",
            "yesterday",
            "2023-11-14",
            "2023-11-14T22:13Z",
            "2023-11-14T22:13:20",
            "2023-02-29T00:00:00Z",
            "2023-13-01T00:00:00Z",
            "2023-11-14T24:00:00Z",
            "2023-11-14T22:13:20.Z",
            "2023-11-14T22:13:20+1:00",
            "1969-12-31T23:59:59Z",
            "2023-11-14T22:13:20Zx",
            "٢٠٢٣-11-14T22:13:20Z",
            "99999999999999999999999",
        ] {
            assert!(bad.parse::<UnixMillis>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(millis in 0u64..253_402_300_800_000) {
            let moment = UnixMillis::new(millis);
            prop_assert_eq!(moment.to_string().parse().ok(), Some(moment));
        }
    }
}
