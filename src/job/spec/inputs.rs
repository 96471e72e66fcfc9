//! What the spec says of a job's inputs: files and archives that are in its workspace before it starts.
//!
//! Owns what a path in a workspace may be: the same rules hold for the names in archives. Must never read a content.

use crate::job::fields::{Fields, shown, type_name};
use crate::job::{Digest, Problems};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Inputs of one job.
const MOST_INPUTS: usize = 256;
/// Contents that stand in the spec itself, together. Half of the API's 1 MiB body.
pub const MAX_INLINE_BYTES: usize = 512 * 1024;
/// Files and folders that all inputs of a job make.
pub const MAX_INPUT_ENTRIES: u64 = 100_000;
/// Longest path, longest name in it, most names in it: less than any file system takes.
const MAX_PATH: usize = 1024;
const MAX_NAME: usize = 255;
const MAX_DEPTH: usize = 32;
/// Names that begin with this at the top of the workspace are jobcell's own.
const OWN_NAMES: &str = ".jobcell";
/// What a file takes of a workspace beside its bytes: it is memory, in whole pages.
const PAGE: u64 = 4096;

/// One input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Where it goes, relative to the workspace; of an archive the folder, and `.` is the workspace itself.
    pub path: String,
    /// What it is.
    pub content: InputContent,
}

/// Where the content of an input is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputContent {
    /// In the spec.
    Inline {
        /// The bytes.
        bytes: Vec<u8>,
        /// Mode 0755 and not 0644.
        executable: bool,
    },
    /// A content at the backend, as one file.
    File {
        /// Its name.
        blob: Digest,
        /// Mode 0755 and not 0644.
        executable: bool,
        /// Its size; the backend knows it.
        bytes: Option<u64>,
    },
    /// A tar archive at the backend, plain or packed by zstd.
    Archive {
        /// Its name.
        blob: Digest,
        /// What its files take of a workspace; the backend knows it.
        bytes: Option<u64>,
        /// How many files and folders it makes; the backend knows it.
        entries: Option<u64>,
    },
}

impl Input {
    /// The content at the backend that it needs.
    pub fn blob(&self) -> Option<Digest> {
        match &self.content {
            InputContent::Inline { .. } => None,
            InputContent::File { blob, .. } | InputContent::Archive { blob, .. } => Some(*blob),
        }
    }

    /// What it takes of a workspace, as far as that is known.
    pub fn room(&self) -> u64 {
        match &self.content {
            InputContent::Inline { bytes, .. } => in_pages(bytes.len() as u64),
            InputContent::File { bytes, .. } => in_pages(bytes.unwrap_or_default()),
            InputContent::Archive { bytes, .. } => bytes.unwrap_or_default(),
        }
    }

    /// Files and folders that it makes, as far as that is known, without the folders on its way.
    pub fn entries(&self) -> u64 {
        match &self.content {
            InputContent::Archive { entries, .. } => entries.unwrap_or_default(),
            InputContent::Inline { .. } | InputContent::File { .. } => 1,
        }
    }
}

/// What a file of so many bytes takes of a workspace.
pub fn in_pages(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX)
}

/// Why a path is none that a file in a workspace can have; `None` when it can. Not asked of `.`, which is the workspace.
pub fn input_path_fault(path: &str) -> Option<(&'static str, String)> {
    let fault = |code, text: String| Some((code, text));
    if path.is_empty() {
        return fault("empty_name", "is empty".to_owned());
    }
    if path.starts_with('/') {
        return fault("absolute", "begins with /, and paths are relative to the workspace".to_owned());
    }
    if path.len() > MAX_PATH {
        return fault("long_path", format!("is longer than {MAX_PATH} bytes"));
    }
    if path.chars().any(super::check::unprintable) {
        return fault("unprintable", "has a line break or another character that does not print".to_owned());
    }
    let names: Vec<&str> = path.split('/').collect();
    if names.len() > MAX_DEPTH {
        return fault("deep", format!("is more than {MAX_DEPTH} folders deep"));
    }
    for name in &names {
        match *name {
            ".." => return fault("parent", "has `..` in it".to_owned()),
            "" | "." => return fault("odd_path", "has an empty name or `.` in it".to_owned()),
            long if long.len() > MAX_NAME => {
                return fault("long_name", format!("has a name longer than {MAX_NAME} bytes in it"));
            }
            _ => {}
        }
    }
    if names[0].starts_with(OWN_NAMES) {
        return fault("own_name", format!("begins with {OWN_NAMES}, and such names are jobcell's own"));
    }
    None
}

pub(super) fn check(fields: &mut Fields<'_>, p: &mut Problems) -> Vec<Input> {
    let Some(value) = fields.take("inputs") else { return Vec::new() };
    let Value::Array(items) = value else {
        p.add("inputs", format!("is {}", type_name(value)), "give a list: [{path: data.txt, text: …}]");
        return Vec::new();
    };
    if items.len() > MOST_INPUTS {
        p.add(
            "inputs",
            format!("has {} entries; at most {MOST_INPUTS} are taken", items.len()),
            "pack them as an archive",
        );
        return Vec::new();
    }
    let mut inputs = Vec::with_capacity(items.len());
    for (n, item) in items.iter().enumerate() {
        let at = format!("inputs[{n}]");
        match item {
            Value::Object(map) => inputs.extend(input(&at, map, p).map(|input| (n, input))),
            other => p.add(at, format!("is {}", type_name(other)), "write {path: data.txt, text: …}"),
        }
    }
    together(&inputs, p);
    inputs.into_iter().map(|(_, input)| input).collect()
}

/// What only shows when all of them are looked at.
fn together(inputs: &[(usize, Input)], p: &mut Problems) {
    let inline: usize = inputs
        .iter()
        .map(|(_, input)| if let InputContent::Inline { bytes, .. } = &input.content { bytes.len() } else { 0 })
        .sum();
    if inline > MAX_INLINE_BYTES {
        p.add(
            "inputs",
            format!("have {inline} bytes in the spec itself; at most {MAX_INLINE_BYTES} fit"),
            "upload the larger ones and name them by `blob`",
        );
    }
    let entries: u64 = inputs.iter().fold(0, |sum, (_, input)| sum.saturating_add(input.entries()));
    if entries > MAX_INPUT_ENTRIES {
        let fix = "leave out what the job does not need, or have it unpack an archive by itself";
        p.add("inputs", format!("make {entries} files; at most {MAX_INPUT_ENTRIES} are made"), fix);
    }
    // Archives only name the folder that they go to; what is in them is looked at when they are read.
    let files = inputs.iter().filter(|(_, input)| !matches!(input.content, InputContent::Archive { .. }));
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (n, input) in files.clone() {
        if let Some(first) = seen.insert(input.path.to_lowercase(), *n) {
            let first = format!("is that of inputs[{first}] too, or differs from it in the case of letters only");
            p.add(format!("inputs[{n}].path"), first, "give each file a name of its own");
        }
    }
    for (n, input) in inputs {
        let path = input.path.to_lowercase();
        let mut above: Vec<&str> = path.match_indices('/').map(|(at, _)| &path[..at]).collect();
        if matches!(input.content, InputContent::Archive { .. }) {
            above.push(&path);
        }
        if let Some(file) = above.into_iter().find_map(|folder| seen.get(folder)) {
            p.add(
                format!("inputs[{n}].path"),
                format!("goes through inputs[{file}], which is a file"),
                "move one of the two",
            );
        }
    }
}

fn input(at: &str, map: &Map<String, Value>, p: &mut Problems) -> Option<Input> {
    let before = p.iter().count();
    let mut fields = Fields::new(at, map);
    let path = fields.text("path", p).map(str::to_owned);
    let text = fields.text("text", p);
    let base64 = fields.text("content_base64", p);
    let blob = fields.text("blob", p);
    let kind = fields.text("kind", p);
    let executable = mode(&mut fields, p);
    let bytes = number(&mut fields, "bytes", p);
    let entries = number(&mut fields, "entries", p);
    fields.finish(p);

    let archive = match kind {
        None | Some("file") => false,
        Some("archive") => true,
        Some(other) => {
            p.add(
                fields_path(at, "kind"),
                format!("`{}` is neither file nor archive", shown(other)),
                "write one of the two",
            );
            false
        }
    };
    let Some(path) = path else {
        if !map.contains_key("path") || map["path"].is_null() {
            p.add(fields_path(at, "path"), "is missing", "say where it goes, relative to the workspace");
        }
        return None;
    };
    if !(archive && path == ".")
        && let Some((_, fault)) = input_path_fault(&path)
    {
        let fix = "write a path such as data/in.txt, relative to the workspace";
        p.add(fields_path(at, "path"), format!("`{}` {fault}", shown(&path)), fix);
    }
    let only = |key: &str, given: bool, p: &mut Problems, why: &str| {
        if given {
            p.add(fields_path(at, key), why, "leave it out");
        }
    };
    let content = match (text, base64, blob) {
        (Some(text), None, None) => Some(text.as_bytes().to_vec()),
        (None, Some(base64), None) => match STANDARD.decode(base64) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                p.add(
                    fields_path(at, "content_base64"),
                    format!("is no base64: {error}"),
                    "write it in the standard alphabet, padded",
                );
                None
            }
        },
        (None, None, Some(blob)) => {
            let Ok(blob) = blob.parse() else {
                let reason = format!("`{}` is no content's name", shown(blob));
                p.add(fields_path(at, "blob"), reason, "write sha256: and 64 digits, as PUT /v1/blobs answers");
                return None;
            };
            let content = if archive {
                only("mode", executable.is_some(), p, "is for files; those of an archive have their own");
                InputContent::Archive { blob, bytes, entries }
            } else {
                only("entries", entries.is_some(), p, "is for archives");
                InputContent::File { blob, executable: executable.unwrap_or_default(), bytes }
            };
            return (p.iter().count() == before).then_some(Input { path, content });
        }
        (None, None, None) => {
            let wrong_type =
                ["text", "content_base64", "blob"].iter().any(|key| map.get(*key).is_some_and(|v| !v.is_null()));
            if !wrong_type {
                p.add(at, "has no content", "give `text`, `content_base64`, or `blob` of an uploaded content");
            }
            None
        }
        _ => {
            p.add(at, "has more than one content", "keep one of `text`, `content_base64` and `blob`");
            None
        }
    };
    only("kind", archive, p, "an archive has to be uploaded: name it by `blob`");
    only("bytes", bytes.is_some(), p, "is for `blob`");
    only("entries", entries.is_some(), p, "is for an archive by `blob`");
    let content = InputContent::Inline { bytes: content?, executable: executable.unwrap_or_default() };
    (p.iter().count() == before).then_some(Input { path, content })
}

fn fields_path(at: &str, key: &str) -> String {
    format!("{at}.{key}")
}

/// True for 0755. YAML reads 0755 as a number, and the digits are what was meant.
fn mode(fields: &mut Fields<'_>, p: &mut Problems) -> Option<bool> {
    let value = fields.take("mode")?;
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match text.strip_prefix('0').unwrap_or(&text) {
        "644" => Some(false),
        "755" => Some(true),
        _ => {
            let fix = "write \"0644\", or \"0755\" for a program";
            p.add(fields.path("mode"), format!("`{}` is no mode that a file can have here", shown(&text)), fix);
            None
        }
    }
}

fn number(fields: &mut Fields<'_>, key: &'static str, p: &mut Problems) -> Option<u64> {
    let value = fields.take(key)?;
    // The queue keeps numbers of 63 bits.
    let number = value.as_u64().filter(|number| *number <= i64::MAX as u64);
    if number.is_none() {
        p.add(
            fields.path(key),
            format!("`{}` is not a whole number", shown(&value.to_string())),
            "leave it out: the server knows",
        );
    }
    number
}

/// As a user would write it.
impl Serialize for Input {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("path", &self.path)?;
        let executable = match &self.content {
            InputContent::Inline { bytes, executable } => {
                match std::str::from_utf8(bytes) {
                    Ok(text) => map.serialize_entry("text", text)?,
                    Err(_) => map.serialize_entry("content_base64", &STANDARD.encode(bytes))?,
                }
                *executable
            }
            InputContent::File { blob, executable, bytes } => {
                map.serialize_entry("blob", blob)?;
                if let Some(bytes) = bytes {
                    map.serialize_entry("bytes", bytes)?;
                }
                *executable
            }
            InputContent::Archive { blob, bytes, entries } => {
                map.serialize_entry("blob", blob)?;
                map.serialize_entry("kind", "archive")?;
                if let Some(bytes) = bytes {
                    map.serialize_entry("bytes", bytes)?;
                }
                if let Some(entries) = entries {
                    map.serialize_entry("entries", entries)?;
                }
                false
            }
        };
        if executable {
            map.serialize_entry("mode", "0755")?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use crate::job::{Digest, JobSpec, SpecRules};
    use serde_json::{Value, json};

    fn check(inputs: &Value) -> Result<JobSpec, Vec<String>> {
        let document = json!({"preset": "bash", "script": "x", "inputs": inputs});
        JobSpec::check(&document, &SpecRules::default()).map_err(|problems| {
            problems.iter().map(|problem| format!("{}: {}", problem.path, problem.reason)).collect()
        })
    }

    #[test]
    fn what_is_written_is_read_back_equal() {
        let blob = Digest::of(b"x").to_string();
        let spec = check(&json!([
            {"path": "a.txt", "text": "hé\n"},
            {"path": "bin/run", "content_base64": "AP8=", "mode": "0755"},
            {"path": "big", "blob": blob, "mode": 755, "bytes": 5},
            {"path": ".", "blob": blob, "kind": "archive", "bytes": 8192, "entries": 3},
            {"path": "lib", "blob": blob, "kind": "archive"},
        ]))
        .expect("valid");
        assert_eq!(spec.inputs().len(), 5);
        let (room, entries) = spec.inputs_need();
        assert_eq!((room, entries), (3 * 4096 + 8192, 6));
        let written = serde_json::to_value(&spec).expect("serialises");
        assert_eq!(written["inputs"][1], json!({"path": "bin/run", "content_base64": "AP8=", "mode": "0755"}));
        assert_eq!(serde_json::from_value::<JobSpec>(written).expect("reads back"), spec);
        let none = serde_json::to_value(check(&json!([])).expect("valid")).expect("serialises");
        assert!(none.get("inputs").is_none());
    }

    #[test]
    fn every_problem_is_named_by_its_field() {
        let blob = Digest::of(b"x").to_string();
        for (input, wanted) in [
            (json!(5), "inputs[0]: is a number"),
            (json!({"text": "x"}), "inputs[0].path: is missing"),
            (json!({"path": 5, "text": "x"}), "inputs[0].path: is a number"),
            (json!({"path": "", "text": "x"}), "inputs[0].path: `` is empty"),
            (json!({"path": "/etc/x", "text": "x"}), "inputs[0].path: `/etc/x` begins with /"),
            (json!({"path": "a/../../x", "text": "x"}), "inputs[0].path: `a/../../x` has `..`"),
            (json!({"path": "a//x", "text": "x"}), "inputs[0].path: `a//x` has an empty name"),
            (json!({"path": "./x", "text": "x"}), "inputs[0].path: `./x` has an empty name or `.`"),
            (json!({"path": ".", "text": "x"}), "inputs[0].path: `.` has an empty name or `.`"),
            (json!({"path": "a\nb", "text": "x"}), "inputs[0].path: `a\\nb` has a line break"),
            (json!({"path": "a\u{0}b", "text": "x"}), "inputs[0].path: `a\\0b` has a line break"),
            (json!({"path": "x".repeat(256), "text": "x"}), "has a name longer than 255 bytes"),
            (json!({"path": "x/".repeat(33) + "x", "text": "x"}), "is more than 32 folders deep"),
            (json!({"path": "xy/".repeat(400), "text": "x"}), "is longer than 1024 bytes"),
            (json!({"path": ".jobcell-script", "text": "x"}), "such names are jobcell's own"),
            (json!({"path": "a"}), "inputs[0]: has no content"),
            (json!({"path": "a", "text": "x", "blob": blob}), "inputs[0]: has more than one content"),
            (json!({"path": "a", "text": 5}), "inputs[0].text: is a number"),
            (json!({"path": "a", "content_base64": "A"}), "inputs[0].content_base64: is no base64"),
            (json!({"path": "a", "blob": "sha256:abc"}), "inputs[0].blob: `sha256:abc` is no content's name"),
            (json!({"path": "a", "blob": blob, "kind": "zip"}), "inputs[0].kind: `zip` is neither"),
            (json!({"path": "a", "blob": blob, "kind": "archive", "mode": "0755"}), "inputs[0].mode: is for files"),
            (json!({"path": "a", "blob": blob, "entries": 5}), "inputs[0].entries: is for archives"),
            (json!({"path": "a", "blob": blob, "bytes": -1}), "inputs[0].bytes: `-1` is not a whole number"),
            (json!({"path": "a", "text": "x", "kind": "archive"}), "inputs[0].kind: an archive has to be uploaded"),
            (json!({"path": "a", "text": "x", "bytes": 1}), "inputs[0].bytes: is for `blob`"),
            (json!({"path": "a", "text": "x", "mode": "4755"}), "inputs[0].mode: `4755` is no mode"),
            (json!({"path": "a", "text": "x", "size": 1}), "inputs[0].size: unknown key"),
        ] {
            let said = check(&json!([input])).expect_err("is refused");
            assert!(said.len() == 1 && said[0].contains(wanted), "{input}: {said:?}");
        }
        let said = check(&json!({"path": "x"})).expect_err("is refused");
        assert_eq!(said, ["inputs: is a map"]);
    }

    #[test]
    fn what_only_shows_together_is_seen() {
        let blob = Digest::of(b"x").to_string();
        let file = |path: &str| json!({"path": path, "text": "x"});
        for (inputs, wanted) in [
            (json!([file("a"), file("a")]), "inputs[1].path: is that of inputs[0] too"),
            (json!([file("a/B"), file("A/b")]), "inputs[1].path: is that of inputs[0] too"),
            (json!([file("a/b"), file("a")]), "inputs[0].path: goes through inputs[1]"),
            (
                json!([file("a"), {"path": "a", "blob": blob, "kind": "archive"}]),
                "inputs[1].path: goes through inputs[0]",
            ),
            (
                json!([{"path": "a", "text": "x".repeat(300_000)}, {"path": "b", "text": "x".repeat(300_000)}]),
                "600000 bytes",
            ),
            (json!([{"path": "a", "blob": blob, "kind": "archive", "entries": 100_001}]), "make 100001 files"),
            (json!(vec![file("a"); 257]), "has 257 entries"),
        ] {
            let said = check(&inputs).expect_err("is refused");
            assert!(said.iter().any(|line| line.contains(wanted)), "{said:?}");
        }
        // Archives may share a folder with each other and with files.
        let archive = |path: &str| json!({"path": path, "blob": blob, "kind": "archive"});
        check(&json!([archive("."), archive("a"), file("a/b"), archive("a/c")])).expect("valid");
    }
}
