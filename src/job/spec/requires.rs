//! What a job asks of the agent that runs it: labels by value, by set, by exclusion, and not to be beside its like.

use crate::job::Problems;
use crate::job::fields::{Fields, shown, type_name};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Conditions on labels in one spec, and values in one condition.
const MOST: usize = 16;
const MAX_VALUE_BYTES: usize = 255;

/// The conditions; all of them have to hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Requires {
    /// On the agent's labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Wanted>,
    /// Labels of jobs: not on an agent that runs a job with the same value of one of them.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub apart: BTreeSet<String>,
}

/// What a label of the agent has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// One of these.
    OneOf(BTreeSet<String>),
    /// There, or not there, but none of these.
    NoneOf(BTreeSet<String>),
}

impl Wanted {
    /// Whether an agent with this value, or without the label, will do.
    pub fn fits(&self, value: Option<&str>) -> bool {
        match (self, value) {
            (Self::OneOf(values), Some(value)) => values.contains(value),
            (Self::OneOf(_), None) => false,
            (Self::NoneOf(values), Some(value)) => !values.contains(value),
            (Self::NoneOf(_), None) => true,
        }
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join(" or ");
        match self {
            Self::OneOf(values) => f.write_str(&list(values)),
            Self::NoneOf(values) => write!(f, "not {}", list(values)),
        }
    }
}

impl Serialize for Wanted {
    /// As a user would write it.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::OneOf(values) if values.len() == 1 => values.first().serialize(to),
            Self::OneOf(values) => values.serialize(to),
            Self::NoneOf(values) => {
                let mut map = to.serialize_map(Some(1))?;
                map.serialize_entry("not", values)?;
                map.end()
            }
        }
    }
}

impl Requires {
    /// Nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.apart.is_empty()
    }
}

pub(super) fn check(map: &Map<String, Value>, p: &mut Problems) -> Requires {
    let mut fields = Fields::new("requires", map);
    let labels = fields.map("labels", p).cloned().unwrap_or_default();
    let apart = fields.take("apart").cloned();
    fields.finish(p);
    let mut requires = Requires::default();
    if labels.len() > MOST {
        p.add("requires.labels", format!("has {} entries; at most {MOST} are kept", labels.len()), "remove some");
        return requires;
    }
    for (key, value) in &labels {
        let path = format!("requires.labels.{}", shown(key));
        if !is_key(key) {
            p.add(path, "is not a label's name", "use up to 63 letters, digits and - _ . /");
            continue;
        }
        if let Some(wanted) = wanted(&path, value, p) {
            requires.labels.insert(key.clone(), wanted);
        }
    }
    match apart {
        None => {}
        Some(Value::Array(keys)) if keys.len() <= MOST => {
            for (at, key) in keys.iter().enumerate() {
                match key.as_str().filter(|key| is_key(key)) {
                    Some(key) => drop(requires.apart.insert(key.to_owned())),
                    None => p.add(
                        format!("requires.apart[{at}]"),
                        "is not a label's name",
                        "name a label of jobs, such as team",
                    ),
                }
            }
        }
        Some(other) => {
            let reason = format!("is {}, or too long", type_name(&other));
            p.add("requires.apart", reason, format!("write a list of at most {MOST} labels of jobs, such as [team]"));
        }
    }
    requires
}

fn is_key(key: &str) -> bool {
    let grammar = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
    !key.is_empty() && key.len() <= 63 && key.bytes().all(grammar)
}

fn wanted(path: &str, value: &Value, p: &mut Problems) -> Option<Wanted> {
    match value {
        Value::Object(map) => {
            let mut fields = Fields::new(path, map);
            let not = fields.take("not").cloned();
            fields.finish(p);
            match not {
                Some(not) => values(&format!("{path}.not"), &not, p).map(Wanted::NoneOf),
                None => {
                    p.add(path, "has no `not`", "write a value, a list of values, or {not: [values]}");
                    None
                }
            }
        }
        other => values(path, other, p).map(Wanted::OneOf),
    }
}

fn values(path: &str, value: &Value, p: &mut Problems) -> Option<BTreeSet<String>> {
    let list = match value {
        Value::Array(list) => list.clone(),
        one => vec![one.clone()],
    };
    let text = |value: &Value| match value {
        Value::String(text) if !text.is_empty() && text.len() <= MAX_VALUE_BYTES => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let values: Option<BTreeSet<String>> = list.iter().map(text).collect();
    match values.filter(|values| !values.is_empty() && values.len() <= MOST) {
        Some(values) => Some(values),
        None => {
            p.add(
                path,
                "is neither a value nor a list of values",
                format!("write a text, or 1 to {MOST} texts in a list"),
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::job::{JobSpec, SpecRules};
    use serde_json::{Value, json};

    fn checked(requires: &Value) -> Result<JobSpec, String> {
        let document = json!({"preset": "bash", "script": "x", "requires": requires});
        JobSpec::check(&document, &SpecRules::default()).map_err(|problems| problems.to_string())
    }

    #[test]
    fn values_sets_and_exclusions_are_read_and_written_back() {
        let requires =
            json!({"labels": {"zone": "eu-1", "disk": ["nvme", "ssd"], "rack": {"not": ["r1"]}}, "apart": ["team"]});
        let spec = checked(&requires).expect("valid");
        assert_eq!(serde_json::to_value(spec.requires()).expect("writes"), requires);
        let labels = &spec.requires().labels;
        assert!(labels["zone"].fits(Some("eu-1")) && !labels["zone"].fits(Some("eu-2")) && !labels["zone"].fits(None));
        assert!(labels["disk"].fits(Some("ssd")) && !labels["disk"].fits(Some("tape")));
        assert!(labels["rack"].fits(None) && labels["rack"].fits(Some("r2")) && !labels["rack"].fits(Some("r1")));
        let again: JobSpec =
            serde_json::from_value(serde_json::to_value(&spec).expect("writes")).expect("is valid as it was written");
        assert_eq!(again, spec);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        for (requires, wanted) in [
            (json!({"label": {}}), "requires.label"),
            (json!({"labels": {"a b": "x"}}), "requires.labels.a b"),
            (json!({"labels": {"a": []}}), "requires.labels.a"),
            (json!({"labels": {"a": {"in": ["x"]}}}), "requires.labels.a"),
            (json!({"labels": {"a": true}}), "requires.labels.a"),
            (json!({"apart": "team"}), "requires.apart"),
            (json!({"apart": [1]}), "requires.apart[0]"),
        ] {
            let told = checked(&requires).expect_err("is wrong");
            assert!(told.contains(wanted), "{requires}: {told}");
        }
    }
}
