//! What a job asks to reach.

use super::check::{number, size};
use super::{NetworkMode, Seccomp};
use crate::job::egress::EgressRule;
use crate::job::fields::{Fields, shown, type_name};
use crate::job::{ByteSize, Problems};
use serde::Serialize;
use serde_json::{Map, Value};

/// More is no list of what a job needs.
const MOST_RULES: usize = 256;
const CONNECTIONS: std::ops::RangeInclusive<u64> = 1..=1_000_000_000;
const BYTES: std::ops::RangeInclusive<ByteSize> = ByteSize::new(1024)..=ByteSize::from_mib(1 << 30);

/// What a job may reach by the proxy in its cell; nothing when there are no rules.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Egress {
    /// Each place that it may reach.
    pub allow: Vec<EgressRule>,
    /// Connections in all, where it wants fewer than the agent's own most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// Bytes in both directions together, where it wants fewer than the agent's own most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<ByteSize>,
}

impl Egress {
    /// Nothing was asked for: the cell has no proxy.
    pub fn is_none(&self) -> bool {
        self.allow.is_empty()
    }
}

pub(super) fn check(map: &Map<String, Value>, p: &mut Problems) -> Egress {
    let mut fields = Fields::new("egress", map);
    let allow = match fields.take("allow") {
        Some(Value::Array(items)) if !items.is_empty() && items.len() <= MOST_RULES => rules(items, p),
        Some(Value::Array(items)) => {
            let reason = format!("has {} entries", items.len());
            p.add("egress.allow", reason, format!("give 1 to {MOST_RULES}, or leave `egress` out"));
            Vec::new()
        }
        Some(other) => {
            p.add("egress.allow", format!("is {}", type_name(other)), "give a list such as [\"pypi.org:443\"]");
            Vec::new()
        }
        None => {
            p.add("egress.allow", "is missing", "give a list such as [\"pypi.org:443\"], or leave `egress` out");
            Vec::new()
        }
    };
    let egress = Egress {
        allow,
        connections: number(&mut fields, "connections", "number of connections", &CONNECTIONS, p),
        bytes: size(&mut fields, "bytes", "1GiB", &BYTES, p),
    };
    fields.finish(p);
    egress
}

fn rules(items: &[Value], p: &mut Problems) -> Vec<EgressRule> {
    let mut rules = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let path = format!("egress.allow[{at}]");
        match item {
            Value::String(text) => match EgressRule::read(text) {
                Ok(rule) => rules.push(rule),
                Err(reason) => p.add(path, format!("`{}` {reason}", shown(text)), "correct it"),
            },
            other => p.add(path, format!("is {}", type_name(other)), "quote it to make it a string"),
        }
    }
    rules
}

/// Whether the rest of the job leaves room for it.
pub(super) fn fits(egress: &Egress, network: NetworkMode, seccomp: Option<Seccomp>, p: &mut Problems) {
    if egress.is_none() {
        return;
    }
    if network == NetworkMode::Bridge {
        p.add(
            "egress",
            "is given together with `network: bridge`, which reaches everything past it",
            "leave one of the two out",
        );
    }
    if seccomp == Some(Seccomp::Offline) {
        p.add(
            "egress",
            "is given together with `seccomp: offline`, under which nothing can connect to its proxy",
            "leave one of the two out",
        );
    }
}

#[cfg(test)]
mod tests {
    use crate::job::{JobSpec, SpecRules};
    use serde_json::{Value, json};

    fn check(more: &Value) -> Result<JobSpec, Vec<String>> {
        let mut document = json!({"image": "x", "command": ["x"]});
        document.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        let told = |problems: crate::job::Problems| problems.iter().map(ToString::to_string).collect();
        JobSpec::check(&document, &SpecRules::default()).map_err(told)
    }

    #[test]
    fn what_was_checked_checks_again_to_the_same() {
        let egress = json!({"allow": ["PyPI.org", "10.0.0.0/8:1-9"], "connections": 5, "bytes": "1GiB"});
        let spec = check(&json!({ "egress": egress })).expect("valid");
        let document = serde_json::to_value(&spec).expect("serialises");
        assert_eq!(document["egress"]["allow"], json!(["pypi.org:80,443", "10.0.0.0/8:1-9"]));
        assert_eq!(JobSpec::check(&document, &SpecRules::default()), Ok(spec));
        let without = serde_json::to_value(check(&json!({})).expect("valid")).expect("serialises");
        assert_eq!(without.get("egress"), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (egress, word) in [
            (json!({}), "egress.allow: is missing"),
            (json!({"allow": []}), "egress.allow: has 0 entries"),
            (json!({"allow": "x"}), "egress.allow: is a string"),
            (json!({"allow": [1]}), "egress.allow[0]: is a number"),
            (
                json!({"allow": ["x:443", "010.0.0.1:443"]}),
                "egress.allow[1]: `010.0.0.1:443` is an address in octal form",
            ),
            (json!({"allow": ["x"], "connections": 0}), "egress.connections"),
            (json!({"allow": ["x"], "bytes": "1B"}), "egress.bytes"),
            (json!({"allow": ["x"], "deny": []}), "egress.deny"),
        ] {
            let problems = check(&json!({ "egress": egress })).expect_err("refused");
            assert!(problems.iter().any(|problem| problem.contains(word)), "{egress}: {problems:?}");
        }
        let with =
            |key: &str, value: &str| check(&json!({"egress": {"allow": ["x"]}, key: value})).expect_err("refused");
        assert!(with("network", "bridge")[0].contains("reaches everything past it"));
        assert!(with("seccomp", "offline")[0].contains("nothing can connect to its proxy"));
    }
}
