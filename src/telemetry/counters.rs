//! Counters that an operator asks for: what jobs say in their outputs, added up.
//!
//! Owns their bounds. Names come from the settings alone; what comes from jobs are numbers, which are looked at, and values of labels, of
//! which each counter keeps so many combinations and no more.

use prometheus::{CounterVec, IntCounterVec, Opts, Registry};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

/// Counters that there may be.
pub const MOST_COUNTERS: usize = 32;
/// Labels of one.
pub const MOST_LABELS: usize = 4;
/// Combinations of labels' values that one may keep, at most.
pub const MOST_SERIES: u64 = 1000;
/// More than this at once is a job's mistake; up to there, whole numbers are exact.
const MOST: f64 = 9_007_199_254_740_992.0;

/// One counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterSpec {
    /// Between `jobcell_custom_` and `_total`.
    pub name: String,
    /// Which output of a job it adds up.
    pub output: String,
    /// Its labels, and the job's labels that they have their values from.
    pub labels: BTreeMap<String, String>,
    /// Combinations of values that are kept.
    pub series: usize,
    /// What it is, for people.
    pub help: String,
}

#[derive(Debug)]
struct One {
    spec: CounterSpec,
    counter: CounterVec,
    seen: Mutex<HashSet<Vec<String>>>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Counters {
    all: Vec<One>,
    dropped: IntCounterVec,
}

/// What a job says, as a number that can be added.
fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    // `inf` and `nan` are numbers for Rust, and hexadecimal ones are for nobody.
    let plain = text.len() <= 32 && text.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    let number = text.parse::<f64>().ok().filter(|_| plain)?;
    (0.0..=MOST).contains(&number).then_some(number)
}

impl Counters {
    /// Registers them. `dropped` counts what is not counted.
    pub(super) fn new(specs: &[CounterSpec], dropped: IntCounterVec, registry: &Registry) -> Self {
        let one = |spec: &CounterSpec| {
            let labels: Vec<&str> = spec.labels.keys().map(String::as_str).collect();
            let opts = Opts::new(format!("jobcell_custom_{}_total", spec.name), spec.help.clone());
            let counter = CounterVec::new(opts, &labels).expect("the settings have looked at its names");
            registry.register(Box::new(counter.clone())).expect("names of a map are different ones");
            for reason in ["series", "value"] {
                dropped.with_label_values(&[spec.name.as_str(), reason]);
            }
            One { spec: spec.clone(), counter, seen: Mutex::default() }
        };
        Self { all: specs.iter().map(one).collect(), dropped }
    }

    /// Adds what a try has given back.
    pub(super) fn add(&self, outputs: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) {
        for one in &self.all {
            let Some(said) = outputs.get(&one.spec.output) else { continue };
            let drop = |reason| self.dropped.with_label_values(&[one.spec.name.as_str(), reason]).inc();
            let Some(number) = number(said) else {
                drop("value");
                continue;
            };
            let values: Vec<String> =
                one.spec.labels.values().map(|label| labels.get(label).cloned().unwrap_or_default()).collect();
            let mut seen = one.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if !seen.contains(&values) && seen.len() >= one.spec.series {
                drop("series");
                continue;
            }
            let texts: Vec<&str> = values.iter().map(String::as_str).collect();
            one.counter.with_label_values(&texts).inc_by(number);
            seen.insert(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn metrics(series: usize) -> Metrics {
        let rows = CounterSpec {
            name: "rows".to_owned(),
            output: "imported".to_owned(),
            labels: map(&[("team", "app/team")]),
            series,
            help: "Rows".to_owned(),
        };
        Metrics::with_counters(&[rows])
    }

    #[test]
    fn what_jobs_say_is_added_up_by_their_labels() {
        let metrics = metrics(100);
        for (said, team) in [("10", Some("a")), (" 2.5 ", Some("a")), ("1e3", Some("b\"\n")), ("7", None)] {
            let labels = team.map(|team| map(&[("app/team", team), ("other", "x")])).unwrap_or_default();
            metrics.count_outputs(&map(&[("imported", said), ("unasked", "5")]), &labels);
        }
        metrics.count_outputs(&map(&[("unasked", "5")]), &map(&[]));
        let text = metrics.render();
        for wanted in [
            "jobcell_custom_rows_total{team=\"a\"} 12.5\n",
            "jobcell_custom_rows_total{team=\"b\\\"\\n\"} 1000\n",
            "jobcell_custom_rows_total{team=\"\"} 7\n",
            "jobcell_custom_dropped_total{counter=\"rows\",reason=\"series\"} 0\n",
        ] {
            assert!(text.contains(wanted), "{wanted} in {text}");
        }
    }

    #[test]
    fn nonsense_and_one_series_too_many_are_counted_and_left_out() {
        let metrics = metrics(2);
        for bad in ["", "x", "-1", "nan", "inf", "0x10", "1e300", "1 2", &"1".repeat(40)] {
            metrics.count_outputs(&map(&[("imported", bad)]), &map(&[]));
        }
        for team in ["a", "b", "c", "a", "d"] {
            metrics.count_outputs(&map(&[("imported", "1")]), &map(&[("app/team", team)]));
        }
        let text = metrics.render();
        assert!(text.contains("jobcell_custom_dropped_total{counter=\"rows\",reason=\"value\"} 9\n"), "{text}");
        assert!(text.contains("jobcell_custom_dropped_total{counter=\"rows\",reason=\"series\"} 2\n"), "{text}");
        assert!(text.contains("jobcell_custom_rows_total{team=\"a\"} 2\n") && !text.contains("team=\"c\""), "{text}");
    }
}
