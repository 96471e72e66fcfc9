//! The settings as a JSON Schema, for editors. It is made from the table of keys, so it cannot know others.
//!
//! Nothing is required: each file is one layer of several, and may hold a part.

use super::HostFacts;
use super::keys::{KEYS, Kind, SECTIONS};
use super::maps::CHECKS;
use serde_json::{Map, Value, json};
use std::fmt::Display;

/// A JSON Schema (2020-12) of one settings file. Defaults are those on `host`.
pub fn schema(host: &HostFacts) -> Value {
    let mut root = section("Settings of jobcell: one file, or a part in conf.d.");
    for key in KEYS {
        let mut at = &mut root;
        let mut path = key.path.split('.').peekable();
        let mut so_far = String::new();
        while let Some(name) = path.next() {
            so_far = if so_far.is_empty() { name.to_owned() } else { format!("{so_far}.{name}") };
            at = &mut at["properties"][name];
            if path.peek().is_some() && at.is_null() {
                *at = section(about(&so_far));
            }
        }
        *at = value(key.kind, key.about, (key.default)(host));
    }
    let mut document = Map::new();
    document.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
    document.insert("title".into(), json!("jobcell"));
    if let Value::Object(root) = root {
        document.extend(root);
    }
    Value::Object(document)
}

fn about(path: &str) -> &'static str {
    SECTIONS.iter().find(|(name, _)| *name == path).map_or("", |(_, about)| about)
}

fn section(about: &str) -> Value {
    // All of its keys may be commented out.
    json!({ "description": about, "type": ["object", "null"], "additionalProperties": false, "properties": {} })
}

fn value(kind: Kind, about: &str, default: Value) -> Value {
    let between = |least: &dyn Display, most: &dyn Display| format!("{about} Between {least} and {most}.");
    let mut text = about.to_owned();
    let mut rules = match kind {
        Kind::Text | Kind::Filter => json!({ "type": "string" }),
        Kind::Name => json!({ "type": "string", "minLength": 1, "maxLength": 128 }),
        Kind::Address => json!({ "type": "string", "pattern": ":[0-9]{1,5}$" }),
        Kind::Engine => json!({ "type": "string", "pattern": "^$|^(unix|tcp|http)://" }),
        Kind::Choice(words) => json!({ "type": "string", "enum": words }),
        Kind::Number(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
        Kind::Duration(least, most) => {
            text = between(&least, &most);
            json!({ "type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$" })
        }
        Kind::Size(least, most) => {
            text = between(&least, &most);
            let pattern = "^[0-9]+ ?(B|KiB|MiB|GiB|TiB|kB|KB|MB|GB)?$";
            json!({
                "type": ["string", "integer"], "pattern": pattern, "minimum": least.as_u64(), "maximum": most.as_u64(),
            })
        }
        Kind::Cores(least, most) => {
            let cores = |cpus: crate::job::Cpus| f64::from(cpus.as_milli()) / 1000.0;
            json!({
                "type": ["number", "string"], "pattern": "^[0-9]+([.][0-9]+)?$",
                "minimum": cores(least), "maximum": cores(most),
            })
        }
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Presets => json!({ "type": "object", "additionalProperties": preset() }),
        Kind::Labels => json!({ "type": "object", "additionalProperties": { "type": ["string", "integer"] } }),
        Kind::Groups => {
            let most = json!({ "type": "integer", "minimum": 1, "maximum": 1_000_000 });
            json!({ "type": "object", "additionalProperties": most })
        }
        Kind::Checks => {
            let levels = json!({ "type": "string", "enum": ["ignore", "enforce"] });
            let named: Map<String, Value> = CHECKS.iter().map(|name| ((*name).to_owned(), levels.clone())).collect();
            json!({ "type": "object", "additionalProperties": false, "properties": named })
        }
        Kind::Secrets => {
            let source = json!({ "type": "string", "pattern": "^(env:.+|file:/.+|credential:.+)$" });
            json!({ "type": "object", "additionalProperties": source })
        }
        Kind::Origins => {
            let origin = json!({ "type": "string", "pattern": "^https?://[a-z0-9._:\\[\\]-]+$" });
            json!({ "type": "array", "items": origin })
        }
        Kind::Images => json!({ "type": "array", "items": { "type": "string" } }),
        Kind::Registries => json!({ "type": "object", "additionalProperties": registry() }),
        Kind::Counters => json!({ "type": "object", "additionalProperties": counter() }),
        Kind::Backends => json!({ "type": "object", "additionalProperties": backend() }),
    };
    rules["description"] = Value::from(text);
    rules["default"] = default;
    rules
}

fn counter() -> Value {
    json!({
        "description": "A counter of what jobs say.",
        "type": "object",
        "additionalProperties": false,
        "required": ["output"],
        "properties": {
            "output": { "type": "string", "minLength": 1, "description": "The output of jobs that is added up." },
            "labels": {
                "type": "object", "maxProperties": 4, "additionalProperties": { "type": "string", "minLength": 1 },
                "description": "Its labels, and the labels of jobs that they have their values from.",
            },
            "series": { "type": "integer", "minimum": 1, "maximum": 1000, "description": "Combinations of values that are kept." },
            "help": { "type": "string", "description": "What it is, for people." },
        },
    })
}

fn backend() -> Value {
    json!({
        "description": "A jobcell server.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "url": { "type": "string", "pattern": "^https?://", "description": "Its address." },
            "key_file": { "type": "string", "description": "The file with this agent's key." },
            "token_file": { "type": "string", "description": "The file with a join token, for an agent without a key." },
            "ca_file": { "type": "string", "description": "The file with the authorities that are believed." },
            "rate": { "type": "integer", "minimum": 1, "maximum": 100_000, "description": "Most calls in a second." },
        },
    })
}

fn registry() -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about });
    json!({
        "description": "A login at a registry.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "username": text("Its user."),
            "password_file": text("The file with the password."),
            "password_env": text("The variable with the password, or NAME_FILE with the file."),
            "password_credential": text("The name of a credential that systemd gives."),
            "helper": text("NAME of a program docker-credential-NAME that gives both."),
        },
    })
}

fn preset() -> Value {
    json!({
        "description": "A language environment.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "image": { "type": "string", "description": "The image of its cells." },
            "interpreter": {
                "type": "array",
                "description": "What runs a script that names no interpreter: program and arguments.",
                "items": { "type": "string" },
                "minItems": 1,
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{EXAMPLE, host};

    /// What of `value` the schema forbids, for the few words that the schema uses.
    fn wrong(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
        let types: Vec<&str> = match &schema["type"] {
            Value::String(one) => vec![one],
            many => many.as_array().expect("type").iter().filter_map(Value::as_str).collect(),
        };
        let kind = match value {
            Value::Object(_) => "object",
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Number(number) if number.is_u64() && types.contains(&"integer") => "integer",
            Value::Number(_) => "number",
            Value::Null => "null",
            Value::Bool(_) => "boolean",
        };
        let mut check = |good: bool, what: &str| {
            if !good {
                found.push(format!("{path}: {what}"));
            }
        };
        check(types.contains(&kind), "type");
        if let Some(text) = value.as_str() {
            let pattern = schema["pattern"].as_str().unwrap_or_default();
            check(regex_lite::Regex::new(pattern).expect("a pattern").is_match(text), "pattern");
            check(schema["enum"].as_array().is_none_or(|words| words.contains(value)), "enum");
            check(schema["minLength"].as_u64().is_none_or(|least| text.len() as u64 >= least), "minLength");
        }
        if let Some(number) = value.as_f64() {
            check(schema["minimum"].as_f64().is_none_or(|least| number >= least), "minimum");
            check(schema["maximum"].as_f64().is_none_or(|most| number <= most), "maximum");
        }
        for (at, item) in value.as_array().into_iter().flatten().enumerate() {
            wrong(&schema["items"], item, &format!("{path}[{at}]"), found);
        }
        for (name, inner) in value.as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            match (&schema["properties"][name], &schema["additionalProperties"]) {
                (known @ Value::Object(_), _) | (_, known @ Value::Object(_)) => wrong(known, inner, &path, found),
                _ => found.push(format!("{path}: unknown")),
            }
        }
    }

    fn validate(text: &str) -> Vec<String> {
        let mut found = Vec::new();
        wrong(&schema(&host()), &serde_saphyr::from_str(text).expect("is YAML"), "", &mut found);
        found
    }

    #[test]
    fn every_key_has_a_type_a_default_and_a_description() {
        let (schema, defaults) = (schema(&host()), crate::config::keys::defaults(&host()));
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        for key in KEYS {
            let at = key.path.split('.').fold(&schema, |at, name| &at["properties"][name]);
            let default = key.path.split('.').fold(&defaults, |at, name| &at[name]);
            assert!(!at["type"].is_null() && &at["default"] == default, "{}: {at}", key.path);
            assert!(at["description"].as_str().is_some_and(|text| text.ends_with(['.', '…'])), "{}: {at}", key.path);
        }
        for (path, about) in SECTIONS {
            let at = path.split('.').fold(&schema, |at, name| &at["properties"][name]);
            assert_eq!(at["description"], *about, "{path}");
        }
    }

    #[test]
    fn the_example_file_is_valid_and_what_is_wrong_is_not() {
        assert_eq!(validate(EXAMPLE), Vec::<String>::new());
        for (text, wanted) in [
            ("servr: {}", ".servr: unknown"),
            ("server: {listen: here}", ".server.listen: pattern"),
            ("server: {viewers_max: 0}", ".server.viewers_max: minimum"),
            ("queue: {lease: 60}", ".queue.lease: type"),
            ("queue: {lease: 60 s}", ".queue.lease: pattern"),
            ("agent: {memory: 8 gigs}", ".agent.memory: pattern"),
            ("presets: {go: {img: x}}", ".presets.go.img: unknown"),
            ("agent: {labels: {zone: true}}", ".agent.labels.zone: type"),
            ("queue: {groups: {team: 0}}", ".queue.groups.team: minimum"),
            ("backends: {main: {url: ftp://x}}", ".backends.main.url: pattern"),
            ("docker: {shared: 1}", ".docker.shared: type"),
            ("telemetry: {log_format: xml}", ".telemetry.log_format: enum"),
        ] {
            assert_eq!(validate(text), [wanted], "{text}");
        }
    }
}
