//! Which files of a job are kept when it is over, however it ended.

use crate::job::fields::{Fields, shown, type_name};
use crate::job::{ByteSize, Problems};
use serde::Serialize;
use serde_json::{Map, Value};

/// A warden has a bit for each.
const MOST_RULES: usize = 64;
const MOST_PATTERN: usize = 512;
const SIZES: std::ops::RangeInclusive<ByteSize> = ByteSize::new(1)..=ByteSize::from_mib(1024 * 1024);
const COUNTS: std::ops::RangeInclusive<u64> = 1..=1_000_000;

/// Files that are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArtifactRule {
    /// Beneath the workspace. In a name `*` stands for any characters and `?` for one, a name `**` for any folders; a folder stands for
    /// everything beneath it.
    pub path: String,
    /// The job has failed unless there is such a file, and all of them are kept.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    /// A file that changes while it is read is kept as it was read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub may_change: bool,
    /// Most bytes of one of them. Without it, the agent's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size: Option<ByteSize>,
    /// Most of them. Without it, the agent's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_count: Option<u64>,
}

pub(super) fn check(fields: &mut Fields<'_>, p: &mut Problems) -> Vec<ArtifactRule> {
    let Some(value) = fields.take("artifacts") else { return Vec::new() };
    let Some(items) = value.as_array() else {
        p.add(
            "artifacts",
            format!("is {}", type_name(value)),
            "give a list: [\"dist/**\", {path: report.xml, required: true}]",
        );
        return Vec::new();
    };
    if items.len() > MOST_RULES {
        p.add(
            "artifacts",
            format!("has {} entries", items.len()),
            format!("give at most {MOST_RULES}; `*` and `**` stand for many files"),
        );
        return Vec::new();
    }
    items.iter().enumerate().filter_map(|(n, item)| rule(&format!("artifacts[{n}]"), item, p)).collect()
}

fn rule(at: &str, item: &Value, p: &mut Problems) -> Option<ArtifactRule> {
    let plain;
    let map = match item {
        Value::Object(map) => map,
        Value::String(_) => {
            plain = Map::from_iter([("path".to_owned(), item.clone())]);
            &plain
        }
        other => {
            p.add(at, format!("is {}", type_name(other)), "write a path, or a map with `path`");
            return None;
        }
    };
    let mut fields = Fields::new(at, map);
    let path = fields.text("path", p).map(str::to_owned);
    let required = flag(&mut fields, "required", p);
    let may_change = flag(&mut fields, "may_change", p);
    let max_size = fields.parsed::<ByteSize>("max_size", "100MiB", p);
    if let Some(size) = max_size.filter(|size| !SIZES.contains(size)) {
        let fix = format!("choose between {} and {}", SIZES.start(), SIZES.end());
        p.add(fields.path("max_size"), format!("{size} is out of range"), fix);
    }
    let max_count = fields.take("max_count").and_then(|value| {
        let count = value.as_u64().filter(|count| COUNTS.contains(count));
        if count.is_none() {
            let fix = format!("write a whole number from {} to {}", COUNTS.start(), COUNTS.end());
            p.add(fields.path("max_count"), format!("`{}` is not a number of files", shown(&value.to_string())), fix);
        }
        count
    });
    let place = fields.path("path");
    let missing = map.get("path").is_none();
    fields.finish(p);
    let Some(path) = path else {
        if missing {
            p.add(place, "is missing", "say which files: `path: dist/**`");
        }
        return None;
    };
    let path = path.trim_end_matches('/').to_owned();
    if let Some(fault) = fault(&path) {
        p.add(
            place,
            format!("`{}` {fault}", shown(&path)),
            "write a path in the workspace, such as dist/** or report.xml",
        );
        return None;
    }
    Some(ArtifactRule { path, required, may_change, max_size, max_count })
}

fn flag(fields: &mut Fields<'_>, key: &'static str, p: &mut Problems) -> bool {
    match fields.take(key) {
        None => false,
        Some(Value::Bool(flag)) => *flag,
        Some(other) => {
            p.add(fields.path(key), format!("is {}", type_name(other)), "write true or false");
            false
        }
    }
}

fn fault(path: &str) -> Option<&'static str> {
    let names = || path.split('/');
    if path.is_empty() {
        Some("names nothing")
    } else if path.len() > MOST_PATTERN {
        Some("is longer than 512 bytes")
    } else if path.starts_with('/') {
        Some("is absolute: paths begin in the workspace")
    } else if path.chars().any(char::is_control) {
        Some("has control characters; `?` stands for one of any kind")
    } else if names().any(|name| name.is_empty() || name == "." || name == "..") {
        Some("has a name that is empty, `.` or `..`")
    } else if names().any(|name| name.contains("**") && name != "**") {
        Some("has `**` beside other characters: it stands for whole folders only")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{JobSpec, SpecRules};
    use serde_json::json;

    fn checked(artifacts: &Value) -> Result<JobSpec, String> {
        let document = json!({"preset": "bash", "script": "x", "artifacts": artifacts});
        JobSpec::check(&document, &SpecRules::default()).map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_rule_is_a_path_or_a_map_and_reads_back() {
        let written = json!(["dist/", {"path": "**/*.xml", "required": true, "may_change": true, "max_size": "1MiB", "max_count": 3}]);
        let spec = checked(&written).expect("valid");
        let [dist, xml] = spec.artifacts() else { panic!("two rules") };
        assert_eq!((dist.path.as_str(), dist.required, dist.max_size), ("dist", false, None));
        assert_eq!(
            (xml.required, xml.may_change, xml.max_size, xml.max_count),
            (true, true, Some(ByteSize::from_mib(1)), Some(3))
        );
        let canonical = serde_json::to_value(&spec).expect("writes");
        assert_eq!(serde_json::from_value::<JobSpec>(canonical).expect("reads back"), spec);
        let none = checked(&json!([])).expect("valid");
        assert!(serde_json::to_value(&none).expect("writes").get("artifacts").is_none(), "older programs read it too");
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        let many: Vec<String> = (0..65).map(|n| format!("f{n}")).collect();
        for (artifacts, wanted) in [
            (json!("dist"), "artifacts: is a string"),
            (json!([3]), "artifacts[0]: is a number"),
            (json!([{}]), "artifacts[0].path: is missing"),
            (json!([{"path": 3}]), "artifacts[0].path: "),
            (json!([{"path": "a", "need": true}]), "artifacts[0].need: unknown key"),
            (json!([{"path": "a", "required": "yes"}]), "artifacts[0].required: is a string"),
            (json!(["/etc/passwd"]), "is absolute"),
            (json!(["a/../b"]), "`..`"),
            (json!(["a//b"]), "is empty"),
            (json!([""]), "names nothing"),
            (json!(["/"]), "names nothing"),
            (json!(["a**/b"]), "beside other characters"),
            (json!(["a\nb"]), "control characters"),
            (json!(["a\u{0}b"]), "control characters"),
            (json!(["x".repeat(513)]), "is longer"),
            (json!([{"path": "a", "max_size": "0"}]), "artifacts[0].max_size: "),
            (json!([{"path": "a", "max_count": 0}]), "artifacts[0].max_count: `0`"),
            (json!([{"path": "a", "max_count": -1}]), "artifacts[0].max_count: `-1`"),
            (json!(many), "artifacts: has 65 entries"),
        ] {
            let told = checked(&artifacts).expect_err("is wrong");
            assert!(told.contains(wanted), "{artifacts}: {told}");
        }
    }
}
