//! The limits of a job by their paths: what an operator can bound, and what was given where less was given than asked for.
//!
//! A limit is one line of [`LIMITS`]; everything else follows from it.

use super::JobSpec;
use crate::job::{BadUnit, ByteSize, Cpus, Millis, Problems};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// More than any number: a job that may have it set no bound.
pub const UNBOUNDED: u64 = u64::MAX;

/// One limit of a spec.
#[derive(Debug)]
pub struct Limit {
    /// Where it is in the spec.
    pub path: &'static str,
    kind: Kind,
    of: fn(&JobSpec) -> Option<u64>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Cores,
    Size,
    Span,
    Count,
}

/// Every limit there is. A job without one has its default; `None` is for a job that it has no meaning for, or that takes what the
/// agent's own settings give.
pub static LIMITS: [Limit; 10] = [
    limit("resources.cpu", Kind::Cores, |spec| asked(spec.resources.cpu.as_milli().into())),
    limit("resources.memory", Kind::Size, |spec| asked(spec.resources.memory.as_u64())),
    limit("resources.pids", Kind::Count, |spec| asked(spec.resources.pids.into())),
    limit("resources.disk", Kind::Size, |spec| spec.resources.disk.map(ByteSize::as_u64)),
    limit("resources.inodes", Kind::Count, |spec| spec.resources.inodes),
    limit("resources.output", Kind::Size, |spec| spec.resources.output.map(ByteSize::as_u64)),
    limit("resources.nofile", Kind::Count, |spec| spec.resources.nofile),
    limit("timeout", Kind::Span, |spec| Some(spec.timeout.as_u64())),
    limit("silence_timeout", Kind::Span, |spec| Some(spec.silence_timeout.map_or(UNBOUNDED, Millis::as_u64))),
    limit("on_cancel.timeout", Kind::Span, |spec| spec.on_cancel.as_ref().map(|after| after.timeout.as_u64())),
];

/// Zero is none: a job on another host is held to what it asks for.
fn asked(value: u64) -> Option<u64> {
    Some(value).filter(|value| *value > 0)
}

const fn limit(path: &'static str, kind: Kind, of: fn(&JobSpec) -> Option<u64>) -> Limit {
    Limit { path, kind, of }
}

/// A limit that was made smaller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clamp {
    /// Where it is in the spec.
    pub path: String,
    /// What the job asked for.
    pub asked: String,
    /// What it got.
    pub given: String,
}

impl Limit {
    /// The one at `path`.
    pub fn at(path: &str) -> Option<&'static Self> {
        LIMITS.iter().find(|limit| limit.path == path)
    }

    /// What a job has of it.
    pub fn of(&self, spec: &JobSpec) -> Option<u64> {
        (self.of)(spec)
    }

    /// A value as people write it.
    pub fn show(&self, value: u64) -> String {
        match self.kind {
            _ if value == UNBOUNDED => "none".to_owned(),
            Kind::Cores => Cpus::from_milli(u32::try_from(value).unwrap_or(u32::MAX)).to_string(),
            Kind::Size => ByteSize::new(value).to_string(),
            Kind::Span => Millis::new(value).to_string(),
            Kind::Count => value.to_string(),
        }
    }

    /// Reads what people write. Errors: it is no value of this kind, or none that a job could have.
    pub fn read(&self, text: &str) -> Result<u64, BadUnit> {
        let value = match self.kind {
            Kind::Cores => u64::from(text.parse::<Cpus>()?.as_milli()),
            Kind::Size => text.parse::<ByteSize>()?.as_u64(),
            Kind::Span => text.parse::<Millis>()?.as_u64(),
            Kind::Count => text.trim().parse().map_err(|_| BadUnit("expected a whole number".to_owned()))?,
        };
        // Its range is the spec's to say.
        let mut document = json!({"image": "x", "command": ["x"], "on_cancel": {"command": ["x"]}});
        self.put(&mut document, value);
        match JobSpec::check(&document, &super::SpecRules::default()) {
            Ok(_) => Ok(value),
            Err(problems) => {
                Err(BadUnit(problems.iter().map(|one| format!("{}; {}", one.reason, one.fix)).collect::<String>()))
            }
        }
    }

    /// The spec with another value of it. Errors: one that no job can have.
    pub fn set(&self, spec: &JobSpec, value: u64) -> Result<JobSpec, Problems> {
        let mut document = serde_json::to_value(spec).expect("a spec has only string keys");
        self.put(&mut document, value);
        Ok(JobSpec::check_stored(&document)?.with_secrets_of(spec))
    }

    fn put(&self, document: &mut Value, value: u64) {
        let place = self.path.split('.').fold(document, |at, key| &mut at[key]);
        *place = match self.kind {
            Kind::Count => Value::from(value),
            Kind::Cores | Kind::Size | Kind::Span => Value::from(self.show(value)),
        };
    }
}

impl JobSpec {
    /// All its limits, by path, as people write them.
    pub fn limits(&self) -> BTreeMap<String, String> {
        let one = |limit: &Limit| Some((limit.path.to_owned(), limit.show(limit.of(self)?)));
        LIMITS.iter().filter_map(one).collect()
    }

    /// What was given of it where that differs from what it asks for. Limits that are not known here are passed over: whoever gave
    /// them may be of a newer version.
    pub fn clamped_to(&self, given: &BTreeMap<String, String>) -> Vec<Clamp> {
        let one = |limit: &Limit| {
            let asked = limit.show(limit.of(self)?);
            let given = given.get(limit.path).filter(|given| **given != asked)?.clone();
            Some(Clamp { path: limit.path.to_owned(), asked, given })
        };
        LIMITS.iter().filter_map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::SpecRules;

    fn spec(more: &Value) -> JobSpec {
        let mut document = json!({"image": "x", "command": ["x"]});
        for (key, value) in more.as_object().into_iter().flatten() {
            document[key] = value.clone();
        }
        JobSpec::check(&document, &SpecRules::default()).expect("valid")
    }

    #[test]
    fn every_limit_is_read_shown_and_set_and_nothing_else_of_the_spec_changes() {
        let all = json!({"timeout": "2h", "silence_timeout": "30m", "on_cancel": {"command": ["x"], "timeout": "1m"},
            "resources": {"cpu": 4, "memory": "2GiB", "pids": 1000, "disk": "64MiB", "inodes": 4096, "output": "1MiB", "nofile": 1024},
            "env": {"A": "b"}});
        let before = spec(&all);
        for limit in &LIMITS {
            let less = limit.of(&before).expect("has it") / 2;
            assert_eq!(limit.read(&limit.show(less)), Ok(less), "{}", limit.path);
            let after = limit.set(&before, less).expect("a job can have it");
            let clamp = Clamp { path: limit.path.to_owned(), asked: limit.show(less * 2), given: limit.show(less) };
            assert_eq!(before.clamped_to(&after.limits()), [clamp]);
            assert_eq!(limit.set(&after, less * 2).expect("and back"), before, "{}", limit.path);
        }
        assert_eq!(before.clamped_to(&before.limits()), []);
    }

    #[test]
    fn no_bound_is_more_than_any_and_what_a_job_does_not_have_is_none() {
        let silence = Limit::at("silence_timeout").expect("is there");
        let plain = spec(&json!({}));
        assert_eq!((silence.of(&plain), silence.show(UNBOUNDED).as_str()), (Some(UNBOUNDED), "none"));
        assert_eq!(Limit::at("on_cancel.timeout").expect("is there").of(&plain), None);
        let bounded = silence.set(&plain, 60_000).expect("a job can have it");
        let told = plain.clamped_to(&bounded.limits());
        assert_eq!((told[0].asked.as_str(), told[0].given.as_str()), ("none", "1m"));
    }

    #[test]
    fn what_no_job_could_have_is_no_limit() {
        let read = |path: &str, text: &str| Limit::at(path).expect("is there").read(text);
        for (path, text) in
            [("resources.memory", "1MiB"), ("resources.pids", "0"), ("timeout", "30"), ("resources.cpu", "NaN")]
        {
            assert!(read(path, text).is_err(), "{path} {text}");
        }
    }
}
