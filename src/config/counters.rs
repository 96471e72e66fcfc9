//! `telemetry.counters`: what of jobs' outputs is added up in metrics.

use super::check::Reader;
use crate::telemetry::{CounterSpec, MOST_COUNTERS, MOST_LABELS, MOST_SERIES};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const PATH: &str = "telemetry.counters";
/// Series of a counter that does not say.
const SERIES: u64 = 100;
/// Characters of a name.
const NAME: usize = 64;

/// A name in Prometheus' sense, in small letters.
fn is_name(name: &str) -> bool {
    name.len() <= NAME
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

impl Reader<'_> {
    pub(super) fn counters(&mut self) -> Vec<CounterSpec> {
        let Value::Object(counters) = self.get(PATH).clone() else { return Vec::new() };
        if counters.len() > MOST_COUNTERS {
            let reason = format!("has {} counters; at most {MOST_COUNTERS} are kept", counters.len());
            self.bad(PATH, reason, "leave some out");
            return Vec::new();
        }
        counters.iter().filter_map(|(name, counter)| self.counter(name, counter)).collect()
    }

    fn counter(&mut self, name: &str, counter: &Value) -> Option<CounterSpec> {
        let path = format!("{PATH}.{}", crate::job::shown(name));
        if !is_name(name) || name.ends_with("_total") {
            let fix = "use up to 64 of a-z, 0-9 and _, beginning with a letter; jobcell_custom_ and _total are added";
            self.bad(&path, "is no name of a counter", fix);
            return None;
        }
        if !counter.is_object() {
            self.bad(&path, "is not a map", "give `output: NAME`, the output of jobs that is added up");
            return None;
        }
        self.unknown(&path, counter, &json!({"output": null, "labels": null, "series": null, "help": null}));
        let output = counter.get("output").and_then(Value::as_str).unwrap_or_default();
        if output.is_empty() {
            self.bad(&format!("{path}.output"), "is missing", "name the output of jobs that is added up");
        }
        let labels = self.counter_labels(&path, counter.get("labels"));
        let series = counter.get("series").map_or(Some(SERIES), Value::as_u64);
        let series = series.filter(|series| (1..=MOST_SERIES).contains(series));
        if series.is_none() {
            let fix = format!("choose between 1 and {MOST_SERIES}");
            self.bad(&format!("{path}.series"), "is not a whole number in range", fix);
        }
        let usual = format!("What jobs say in their output {output}, added up");
        let help = counter.get("help").and_then(Value::as_str).map_or(usual, str::to_owned);
        Some(CounterSpec {
            name: name.to_owned(),
            output: output.to_owned(),
            labels,
            series: series.and_then(|series| usize::try_from(series).ok()).unwrap_or(1),
            help: crate::job::one_line(&help, 200),
        })
    }

    fn counter_labels(&mut self, path: &str, labels: Option<&Value>) -> BTreeMap<String, String> {
        let path = format!("{path}.labels");
        let labels = match labels {
            None => return BTreeMap::new(),
            Some(Value::Object(labels)) => labels,
            Some(_) => {
                self.bad(&path, "is not a map", "write {label: label of jobs}");
                return BTreeMap::new();
            }
        };
        if labels.len() > MOST_LABELS {
            self.bad(&path, format!("has {} labels; at most {MOST_LABELS} are kept", labels.len()), "leave some out");
        }
        let mut all = BTreeMap::new();
        for (label, of) in labels {
            match of.as_str().filter(|of| !of.is_empty()) {
                Some(of) if is_name(label) => drop(all.insert(label.clone(), of.to_owned())),
                _ => {
                    let fix = "write {label: label of jobs}; a label has up to 64 of a-z, 0-9 and _";
                    self.bad(&format!("{path}.{}", crate::job::shown(label)), "is no label", fix);
                }
            }
        }
        all
    }
}
