//! Secrets of a job: what it says of them, and, apart from that, the values that came with it.
//!
//! What is said is part of the spec as all the rest is. Values are not: they are in no document that is made of a spec, in no comparison
//! and in no debug form, so whoever stores, shows or sends a spec does not give them away. Who has to have them asks for them.

use super::check;
use crate::job::fields::{Fields, shown, type_name};
use crate::job::secret::{SECRET_FILES_MOST, SECRETS_BYTES, SECRETS_MOST, Secret};
use crate::job::{JobSpec, Problems};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Of a name by which a job asks for a secret.
const MOST_NAME: usize = 64;

/// What a job says of one of its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretAsk {
    /// Where its value comes from.
    pub source: SecretSource,
    /// The variable says where its file is, instead of being it.
    pub file: bool,
}

/// Where the value of a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// From the agent, which has one of this name.
    Named(String),
    /// It came with the job.
    Inline,
}

/// All of them, by the names of their variables.
#[derive(Debug, Clone, Default)]
pub(super) struct Secrets {
    asks: BTreeMap<String, SecretAsk>,
    values: BTreeMap<String, Held>,
}

/// A value that came with the job.
#[derive(Clone)]
enum Held {
    Open(Secret),
    /// For whoever has the key.
    Sealed(Arc<[u8]>),
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open(_) => "Open(***)",
            Self::Sealed(_) => "Sealed(***)",
        })
    }
}

impl PartialEq for Secrets {
    fn eq(&self, other: &Self) -> bool {
        self.asks == other.asks
    }
}

impl Eq for Secrets {}

impl Serialize for Secrets {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.asks.len()))?;
        for (name, ask) in &self.asks {
            let mut told = match &ask.source {
                SecretSource::Named(from) => json!({ "from": from }),
                SecretSource::Inline => json!({ "inline": true }),
            };
            if ask.file {
                told["as"] = json!("file");
            }
            map.serialize_entry(name, &told)?;
        }
        map.end()
    }
}

impl Secrets {
    pub(super) fn is_empty(&self) -> bool {
        self.asks.is_empty()
    }

    pub(super) fn names(&self, name: &str) -> bool {
        self.asks.contains_key(name)
    }
}

impl JobSpec {
    /// What it says of its secrets, by the names of their variables.
    pub fn secrets(&self) -> &BTreeMap<String, SecretAsk> {
        &self.secrets.asks
    }

    /// Whether values come with it, or came.
    pub fn has_inline_secrets(&self) -> bool {
        self.secrets.asks.values().any(|ask| ask.source == SecretSource::Inline)
    }

    /// A value that came with it.
    pub fn secret(&self, name: &str) -> Option<&Secret> {
        match self.secrets.values.get(name)? {
            Held::Open(secret) => Some(secret),
            Held::Sealed(_) => None,
        }
    }

    /// The same with its values sealed.
    #[must_use]
    pub fn sealed(mut self, seal: impl Fn(&str, &Secret) -> Vec<u8>) -> Self {
        for (name, held) in &mut self.secrets.values {
            if let Held::Open(secret) = held {
                *held = Held::Sealed(seal(name, secret).into());
            }
        }
        self
    }

    /// Its sealed values, with their names.
    pub fn sealed_secrets(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.secrets.values.iter().filter_map(|(name, held)| match held {
            Held::Sealed(bytes) => Some((name.as_str(), &**bytes)),
            Held::Open(_) => None,
        })
    }

    /// The same with these sealed values.
    #[must_use]
    pub fn with_sealed(mut self, sealed: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        self.secrets.values.extend(sealed.into_iter().map(|(name, bytes)| (name, Held::Sealed(bytes.into()))));
        self
    }

    /// The same with its sealed values opened; one that cannot be is gone.
    #[must_use]
    pub fn opened(mut self, open: impl Fn(&str, &[u8]) -> Option<Secret>) -> Self {
        self.secrets.values.retain(|name, held| {
            if let Held::Sealed(bytes) = held {
                match open(name, bytes) {
                    Some(secret) => *held = Held::Open(secret),
                    None => return false,
                }
            }
            true
        });
        self
    }

    /// The same with these values, of secrets that it says came with it.
    #[must_use]
    pub fn with_secrets(mut self, values: impl IntoIterator<Item = (String, Secret)>) -> Self {
        let asks = &self.secrets.asks;
        let came =
            values.into_iter().filter(|(name, _)| asks.get(name).is_some_and(|ask| ask.source == SecretSource::Inline));
        self.secrets.values.extend(came.map(|(name, value)| (name, Held::Open(value))));
        self
    }

    /// What its values take together.
    pub(super) fn secret_bytes(&self) -> usize {
        let bytes = |held: &Held| match held {
            Held::Open(secret) => secret.expose().len(),
            Held::Sealed(bytes) => bytes.len(),
        };
        self.secrets.values.values().map(bytes).sum()
    }

    /// Its values are not needed any more.
    pub fn forget_secrets(&mut self) {
        self.secrets.values.clear();
    }

    /// The same with the values of `other`, of which it is a version.
    pub(super) fn with_secrets_of(mut self, other: &Self) -> Self {
        self.secrets.values.clone_from(&other.secrets.values);
        self
    }
}

/// Reads `secrets`. `stored`: the document is one that a spec was written as, where values are told of and not there.
pub(super) fn check(map: &Map<String, Value>, stored: bool, p: &mut Problems) -> Secrets {
    let mut all = Secrets::default();
    if map.len() > SECRETS_MOST {
        p.add("secrets", format!("has {} entries; at most {SECRETS_MOST} are taken", map.len()), "remove some");
        return all;
    }
    for (name, value) in map {
        let path = format!("secrets.{}", shown(name));
        if let Some((reason, fix)) = check::variable_fault(name) {
            p.add(path, reason, fix);
            continue;
        }
        if let Some((ask, value)) = one(&path, value, stored, p) {
            all.values.extend(value.map(|value| (name.clone(), Held::Open(value))));
            all.asks.insert(name.clone(), ask);
        }
    }
    let files = all.asks.values().filter(|ask| ask.file).count();
    if files > SECRET_FILES_MOST {
        p.add("secrets", format!("has {files} that are files; at most {SECRET_FILES_MOST} are taken"), "remove some");
    }
    let held = |held: &Held| if let Held::Open(secret) = held { secret.expose().len() } else { 0 };
    let bytes: usize = all.values.values().map(held).sum();
    if bytes > SECRETS_BYTES {
        let reason = format!("has values of {bytes} bytes in all; at most {SECRETS_BYTES} fit");
        p.add("secrets", reason, "give the job a key, and what it opens in another way");
    }
    all
}

/// Reads what is said of one. No word of a value is ever in a problem.
fn one(path: &str, value: &Value, stored: bool, p: &mut Problems) -> Option<(SecretAsk, Option<Secret>)> {
    let map = match value {
        Value::String(from) => {
            let source = named(path, from, p)?;
            return Some((SecretAsk { source, file: false }, None));
        }
        Value::Object(map) => map,
        other => {
            p.add(path, format!("is {}", type_name(other)), "write the name of a secret of the agent, or {from: name}");
            return None;
        }
    };
    let mut fields = Fields::new(path, map);
    let from = fields.text("from", p);
    let value = fields.text("value", p);
    let inline = fields.take("inline").is_some();
    let file = match fields.text("as", p) {
        None | Some("env") => false,
        Some("file") => true,
        Some(other) => {
            p.add(fields.path("as"), format!("`{}` is not known", shown(other)), "write env or file");
            false
        }
    };
    let value_path = fields.path("value");
    fields.finish(p);
    let (source, value) = match (from, value) {
        (Some(from), None) if !inline => (named(&format!("{path}.from"), from, p)?, None),
        (None, Some(value)) => {
            let value = Secret::new(value.as_bytes().to_vec());
            if let Some((reason, fix)) = value.unfit(file) {
                p.add(value_path, reason, fix);
            }
            (SecretSource::Inline, Some(value))
        }
        (None, None) if inline && stored => (SecretSource::Inline, None),
        (None, None) if inline => {
            let reason = "says that a value came with the job once, and values are never shown";
            p.add(path, reason, "give `value` again, or `from`");
            return None;
        }
        (None, None) => {
            p.add(path, "says neither `from` nor `value`", "write {from: name of a secret of the agent}");
            return None;
        }
        _ => {
            p.add(path, "says more than one of `from`, `value` and `inline`", "keep `from` or `value`");
            return None;
        }
    };
    Some((SecretAsk { source, file }, value))
}

fn named(path: &str, name: &str, p: &mut Problems) -> Option<SecretSource> {
    if !is_secret_name(name) {
        // It may well be a value in the wrong place.
        let fix = "write the name that the secret has in the agent's settings; a value goes into {value: …}";
        p.add(path, "is not the name of a secret: letters, digits and - _ . only, at most 64", fix);
        return None;
    }
    Some(SecretSource::Named(name.to_owned()))
}

/// Whether an agent's secret can be called that.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let grammar = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=MOST_NAME).contains(&name.len()) && name.bytes().all(grammar)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::SpecRules;

    const VALUE: &str = "hunter2-canary";

    fn spec(secrets: &Value) -> Result<JobSpec, Problems> {
        let document = json!({"image": "x", "command": ["x"], "env": {"TAKEN": "1"}, "secrets": secrets});
        JobSpec::check(&document, &SpecRules::default())
    }

    #[test]
    fn values_are_in_nothing_that_is_made_of_a_spec() {
        let asked = json!({"A": "deploy", "B": {"from": "key", "as": "file"}, "C": {"value": VALUE}});
        let spec = spec(&asked).expect("valid");
        let written = serde_json::to_value(&spec).expect("serialises");
        let wanted = json!({"A": {"from": "deploy"}, "B": {"from": "key", "as": "file"}, "C": {"inline": true}});
        assert_eq!(written["secrets"], wanted);
        let everything = format!("{written} {spec:?} {spec:#?} {:?}", spec.limits());
        assert!(!everything.contains("hunter2"), "{everything}");
        let back: JobSpec = serde_json::from_value(written.clone()).expect("reads back");
        assert_eq!(back, spec);
        assert!(back.has_inline_secrets() && back.secret("C").is_none());
        assert_eq!(spec.secret("C").map(Secret::expose), Some(VALUE.as_bytes()));
        // Two that differ in a value are equal, also by their content's key.
        let mut other = asked;
        other["C"]["value"] = json!("another-value");
        let other = self::spec(&other).expect("valid");
        assert_eq!(other, spec);
        let key = |spec: JobSpec| spec.keyed_by_content().expect("has none").idempotency_key().map(str::to_owned);
        assert_eq!(key(other), key(spec));
        // What was written can be read back by us, and is not taken from anybody.
        let problems = JobSpec::check(&written, &SpecRules::default()).expect_err("refused").to_string();
        assert!(problems.contains("secrets.C: says that a value came with the job once"), "{problems}");
    }

    #[test]
    fn values_are_sealed_and_opened_and_kept_by_a_spec_with_less() {
        let spec = spec(&json!({"C": {"value": VALUE}})).expect("valid");
        let sealed = spec.clone().sealed(|name, secret| [name.as_bytes(), secret.expose()].concat());
        assert!(sealed.secret("C").is_none() && sealed == spec);
        let all: Vec<_> = sealed.sealed_secrets().map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).collect();
        let mut again: JobSpec = serde_json::from_value(serde_json::to_value(&spec).expect("s")).expect("reads back");
        again = again.with_sealed(all).opened(|name, bytes| Some(Secret::new(bytes[name.len()..].to_vec())));
        assert_eq!(again.secret("C").map(Secret::expose), Some(VALUE.as_bytes()));
        let limit = crate::job::Limit::at("resources.pids").expect("known");
        assert_eq!(limit.set(&again, 7).expect("valid").secret("C").map(Secret::expose), Some(VALUE.as_bytes()));
        assert!(again.clone().opened(|_, _| None).secret("C").is_some(), "it is open");
        again.forget_secrets();
        assert!(again.secret("C").is_none());
        // Nobody slips in what was not asked for.
        let more = again.with_secrets([("D".to_owned(), Secret::new(b"1234567".to_vec()))]);
        assert!(more.secret("D").is_none());
    }

    #[test]
    fn what_is_wrong_is_said_without_the_value() {
        for (secrets, wanted) in [
            (json!({"A": {"value": "12345"}}), "secrets.A.value: has 5 bytes, and fewer than 6 cannot be masked"),
            (json!({"A": {"value": 1_234_567}}), "secrets.A.value: is a number; quote it to make it a string"),
            (json!({"A": {"value": "hunter2\u{0}"}}), "secrets.A.value: has a NUL byte"),
            (json!({"A": {"value": "hunter2"}, "TAKEN": "x"}), "secrets.TAKEN: is in `env` too"),
            (json!({"A": {}}), "secrets.A: says neither `from` nor `value`"),
            (json!({"A": {"from": "x", "value": "hunter2"}}), "secrets.A: says more than one of"),
            (json!({"A": {"from": "x", "inline": true}}), "secrets.A: says more than one of"),
            (json!({"A": {"from": "x", "as": "tty"}}), "secrets.A.as: `tty` is not known"),
            (json!({"A": {"form": "x"}}), "did you mean `from`?"),
            (json!({"A": "hunter2 with blanks"}), "secrets.A: is not the name of a secret"),
            (json!({"A": 1}), "secrets.A: is a number"),
            (json!({"a-b": "x"}), "secrets.a-b: is not a variable name"),
            (json!({"LD_PRELOAD": "x"}), "secrets.LD_PRELOAD: steers the dynamic loader"),
            (json!({"JOBCELL_X": "x"}), "secrets.JOBCELL_X: is one of the names"),
            (json!(["x"]), "secrets: is a list"),
            (json!({"A": {"value": "x".repeat(40_000)}, "B": {"value": "y".repeat(40_000)}}), "80000 bytes in all"),
            (json!({"A": {"value": "x".repeat(70_000)}}), "secrets.A.value: has 70000 bytes"),
        ] {
            let problems = spec(&secrets).expect_err("refused").to_string();
            assert!(problems.contains(wanted), "{wanted}: {problems}");
            assert!(!problems.contains("hunter2") && !problems.contains("12345"), "{problems}");
        }
        let many = |count: usize, one: Value| -> Value {
            (0..count).map(|n| (format!("N{n}"), one.clone())).collect::<Map<_, _>>().into()
        };
        let problems = spec(&many(1025, json!("x"))).expect_err("refused").to_string();
        assert!(problems.contains("has 1025 entries"), "{problems}");
        let problems = spec(&many(65, json!({"from": "x", "as": "file"}))).expect_err("refused").to_string();
        assert!(problems.contains("has 65 that are files"), "{problems}");
        assert!(spec(&many(1024, json!("x"))).is_ok());
    }
}
