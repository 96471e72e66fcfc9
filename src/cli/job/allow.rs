//! `--allow`: places that a job may reach, beside those that its spec names.

use serde_json::{Value, json};

/// Adds them to a spec. What is wrong with one of them, or with what is there already, the API says.
pub(super) fn add(spec: &mut Value, allow: &[String]) {
    let Value::Object(map) = spec else { return };
    if allow.is_empty() {
        return;
    }
    let egress = map.entry("egress").or_insert_with(|| json!({}));
    let Value::Object(egress) = egress else { return };
    if let Value::Array(known) = egress.entry("allow").or_insert_with(|| json!([])) {
        known.extend(allow.iter().map(|place| json!(place)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_added_to_those_of_the_spec() {
        let with = |mut spec: Value| {
            add(&mut spec, &["a:1".to_owned()]);
            spec
        };
        assert_eq!(with(json!({})), json!({"egress": {"allow": ["a:1"]}}));
        let told = json!({"egress": {"allow": ["b"], "bytes": "1GiB"}});
        assert_eq!(with(told), json!({"egress": {"allow": ["b", "a:1"], "bytes": "1GiB"}}));
        for wrong in [json!([]), json!({"egress": 1}), json!({"egress": {"allow": "x"}})] {
            assert_eq!(with(wrong.clone()), wrong, "the API says what is wrong");
        }
    }
}
