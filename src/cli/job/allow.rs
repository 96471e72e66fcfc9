//! `--allow`: places that a job may reach, beside those that its spec names.

use super::many::{self, Document};
use crate::cli::Failure;
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

/// The same for the text of one spec: it stays as it is when there is nothing to add. Errors: it is no YAML.
pub(super) fn add_to(name: &str, text: String, allow: &[String]) -> Result<String, Failure> {
    if allow.is_empty() {
        return Ok(text);
    }
    let mut documents = many::documents(name, &text)?;
    let [Document { spec, .. }] = &mut documents[..] else {
        return Err(Failure::usage(format!("{name}: holds several jobs, and one is wanted")));
    };
    add(spec, allow);
    Ok(spec.to_string())
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
        let text = add_to("f", "image: x\n".to_owned(), &["a:1".to_owned()]).expect("one document");
        assert_eq!(text, r#"{"image":"x","egress":{"allow":["a:1"]}}"#);
        assert_eq!(add_to("f", "# as it is\nx: 1".to_owned(), &[]).expect("untouched"), "# as it is\nx: 1");
        assert!(add_to("f", "x: 1\n---\nx: 2\n".to_owned(), &["a:1".to_owned()]).is_err());
    }
}
