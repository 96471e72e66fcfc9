//! How often a job is tried again, as its spec says. What follows on an end is decided in [`crate::job::retry`].

use crate::job::fields::{Fields, shown, type_name};
use crate::job::{Millis, Problems};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// More tries than these change nothing any more.
const MOST: u64 = 100;
const MOST_CODES: usize = 64;
const DEFAULT_BACKOFF: Millis = Millis::from_secs(1);
const DEFAULT_BACKOFF_MAX: Millis = Millis::from_secs(300);
const LONGEST: Millis = Millis::from_secs(24 * 3600);

/// How often, after what, and how much later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Retry {
    /// More tries after ends that are the job's own doing.
    pub failure: u32,
    /// More tries after ends that are not; without a number, as many as the backend gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub infrastructure: Option<u32>,
    /// Pause before the second try; doubled with each one.
    pub backoff: Millis,
    /// The longest pause.
    pub backoff_max: Millis,
    /// Only after failures with one of these exit codes, as a waiting command has them. Empty: after any.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub exit_codes: BTreeSet<u8>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            failure: 0,
            infrastructure: None,
            backoff: DEFAULT_BACKOFF,
            backoff_max: DEFAULT_BACKOFF_MAX,
            exit_codes: BTreeSet::new(),
        }
    }
}

impl Retry {
    /// One try, whatever comes of it.
    pub fn never() -> Self {
        Self { infrastructure: Some(0), ..Self::default() }
    }

    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

pub(super) fn check(map: &Map<String, Value>, p: &mut Problems) -> Retry {
    let mut fields = Fields::new("retry", map);
    let failure = count(&mut fields, "failure", p).unwrap_or(0);
    let infrastructure = count(&mut fields, "infrastructure", p);
    let backoff = span(&mut fields, "backoff", "1s", p);
    let backoff_max = span(&mut fields, "backoff_max", "5m", p);
    let codes = fields.take("exit_codes");
    fields.finish(p);
    let exit_codes = codes.map(|codes| exit_codes(codes, p)).unwrap_or_default();
    if codes.is_some() && failure == 0 {
        p.add("retry.exit_codes", "has no effect without `failure`", "say how often: `failure: 2`");
    }
    let backoff = backoff.unwrap_or(DEFAULT_BACKOFF.min(backoff_max.unwrap_or(LONGEST)));
    // A pause that is longer than the default's longest one is meant as it is written.
    let longest = backoff_max.unwrap_or(DEFAULT_BACKOFF_MAX.max(backoff));
    if backoff > longest {
        p.add("retry.backoff", format!("{backoff} is longer than backoff_max, {longest}"), "raise backoff_max");
    }
    Retry { failure, infrastructure, backoff, backoff_max: longest, exit_codes }
}

fn count(fields: &mut Fields<'_>, key: &'static str, p: &mut Problems) -> Option<u32> {
    let value = fields.take(key)?;
    match value.as_u64().filter(|count| *count <= MOST).and_then(|count| u32::try_from(count).ok()) {
        Some(count) => Some(count),
        None => {
            p.add(
                fields.path(key),
                format!("`{}` is not a number of retries", shown(&value.to_string())),
                format!("write a whole number from 0 to {MOST}"),
            );
            None
        }
    }
}

fn span(fields: &mut Fields<'_>, key: &'static str, example: &str, p: &mut Problems) -> Option<Millis> {
    let span = fields.parsed::<Millis>(key, example, p)?;
    if span > LONGEST {
        p.add(fields.path(key), format!("{span} is out of range"), format!("choose at most {LONGEST}"));
        return None;
    }
    Some(span)
}

fn exit_codes(value: &Value, p: &mut Problems) -> BTreeSet<u8> {
    let Some(items) = value.as_array().filter(|items| !items.is_empty() && items.len() <= MOST_CODES) else {
        let reason = match value {
            Value::Array(items) => format!("has {} entries", items.len()),
            other => format!("is {}", type_name(other)),
        };
        p.add("retry.exit_codes", reason, format!("give a list of 1 to {MOST_CODES} exit codes, such as [75]"));
        return BTreeSet::new();
    };
    let mut codes = BTreeSet::new();
    for (n, item) in items.iter().enumerate() {
        match item.as_u64().and_then(|code| u8::try_from(code).ok()).filter(|code| *code > 0) {
            Some(code) => drop(codes.insert(code)),
            None => p.add(
                format!("retry.exit_codes[{n}]"),
                format!("`{}` is not the exit code of a failure", shown(&item.to_string())),
                "write a whole number from 1 to 255",
            ),
        }
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{JobSpec, SpecRules};
    use serde_json::json;

    fn checked(retry: &Value) -> Result<JobSpec, String> {
        let document = json!({"preset": "bash", "script": "x", "retry": retry});
        JobSpec::check(&document, &SpecRules::default()).map_err(|problems| problems.to_string())
    }

    #[test]
    fn what_is_left_out_has_its_default_and_what_is_written_reads_back() {
        let plain = checked(&Value::Null).expect("valid");
        assert_eq!((plain.retry(), checked(&json!({})).as_ref()), (&Retry::default(), Ok(&plain)));
        assert!(serde_json::to_value(&plain).expect("writes").get("retry").is_none(), "older programs read it too");
        let wanted = Retry {
            failure: 2,
            infrastructure: Some(0),
            backoff: Millis::from_secs(600),
            backoff_max: Millis::from_secs(600),
            exit_codes: [75, 124].into(),
        };
        let written = json!({"failure": 2, "infrastructure": 0, "backoff": "10m", "exit_codes": [124, 75]});
        let spec = checked(&written).expect("valid");
        assert_eq!(spec.retry(), &wanted);
        let canonical = serde_json::to_value(&spec).expect("writes");
        assert_eq!(serde_json::from_value::<JobSpec>(canonical).expect("reads back"), spec);
        let short = checked(&json!({"backoff_max": "100ms"})).expect("valid");
        assert_eq!(short.retry().backoff, Millis::new(100));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        for (retry, wanted) in [
            (json!(3), "retry: is a number"),
            (json!({"failures": 1}), "retry.failures: unknown key; did you mean `failure`?"),
            (json!({"failure": 101}), "retry.failure: `101` is not a number of retries"),
            (json!({"failure": -1}), "retry.failure: `-1`"),
            (json!({"infrastructure": "two"}), "retry.infrastructure: "),
            (json!({"backoff": "2d"}), "retry.backoff: 2d is out of range"),
            (json!({"backoff": "1m", "backoff_max": "10s"}), "retry.backoff: 1m is longer than backoff_max, 10s"),
            (json!({"exit_codes": [75]}), "retry.exit_codes: has no effect without `failure`"),
            (json!({"failure": 1, "exit_codes": 75}), "retry.exit_codes: is a number"),
            (json!({"failure": 1, "exit_codes": []}), "retry.exit_codes: has 0 entries"),
            (json!({"failure": 1, "exit_codes": [1, 0, 256]}), "retry.exit_codes[2]: `256`"),
        ] {
            let told = checked(&retry).expect_err("is wrong");
            assert!(told.contains(wanted), "{retry}: {told}");
        }
    }
}
