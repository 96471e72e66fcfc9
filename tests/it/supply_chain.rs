//! What is in the program, as it is told: the CycloneDX document and the licences of others, made by scripts/sbom.py and read by what is not ours.

use super::stage::root;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// A Python with the readers of scripts/readers.txt; `None` after saying loudly that the test is skipped.
pub(crate) fn readers() -> Option<&'static Path> {
    static MADE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let make = || {
        let output = Command::new(root().join("scripts/readers.sh")).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            return Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
        }
        let required = std::env::var("JOBCELL_TEST_ENGINE").as_deref() == Ok("required");
        assert!(!required, "no readers, and JOBCELL_TEST_ENGINE=required: {said}");
        eprintln!("SKIPPED: no readers: {said}");
        None
    };
    MADE.get_or_init(make).as_deref()
}

/// Has a reader read a text on its standard input: whether it was content, and what it said.
pub(crate) fn read_by(reader: &Path, args: &[&str], text: &str) -> (bool, String) {
    let mut command = Command::new(reader);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("runs");
    // Its pipe's end tells it that this is all; one that is not content may close it first.
    let _ = child.stdin.take().expect("a pipe").write_all(text.as_bytes());
    let (code, out, err) = super::stage::said(&child.wait_with_output().expect("ends"));
    (code == 0, out + &err)
}

/// Both documents, made for one moment.
fn made(dir: &Path) -> (String, String) {
    let mut command = Command::new(root().join("scripts/sbom.py"));
    let output = command.arg(dir).env("SOURCE_DATE_EPOCH", "1790000000").output().expect("python3 runs");
    assert!(output.status.success(), "sbom.py: {}", String::from_utf8_lossy(&output.stderr));
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("reads");
    (read("jobcell.cdx.json"), read("THIRD-PARTY"))
}

#[test]
fn the_list_of_what_is_in_the_program_is_whole_and_the_same_each_time() {
    let dir = tempfile::tempdir().expect("a folder");
    let (text, licences) = made(&dir.path().join("one"));
    assert_eq!((text.clone(), licences.clone()), made(&dir.path().join("two")));
    let bom: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(bom["metadata"]["timestamp"], "2026-09-21T14:13:20Z");
    assert_eq!(bom["metadata"]["component"]["version"], env!("CARGO_PKG_VERSION"));
    let components = bom["components"].as_array().expect("a list");
    // Every crate that the manifest asks for, and none that only tests have.
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("reads");
    let section = |name: &str| {
        let (_, rest) = manifest.split_once(&format!("\n[{name}]\n")).expect("the section");
        let lines = rest.lines().take_while(|line| !line.starts_with('['));
        lines.filter_map(|line| line.split_once(" = ")).map(|(name, _)| name.to_owned()).collect::<BTreeSet<_>>()
    };
    let linked = |name: &str| components.iter().any(|one| one["name"] == name && one["scope"] == "required");
    let asked = section("dependencies");
    assert!(asked.len() > 40, "{asked:?}");
    for name in &asked {
        assert!(linked(name), "{name} is not listed");
        assert!(licences.contains(&format!("\n  {name} ")), "{name} has no licence");
    }
    for name in ["insta", "proptest", "jsonschema", "jobcell"] {
        assert!(components.iter().all(|one| one["name"] != name), "{name} is listed");
    }
    // What is written in C, and the language's own library, which no lock file has.
    for name in ["sqlite", "zstd", "aws-lc", "rust-std"] {
        assert!(linked(name), "{name} is not listed");
    }
    // Procedural macros work at the build, and are not in what comes out of it.
    let scope = |name: &str| components.iter().find(|one| one["name"] == name).map(|one| one["scope"].clone());
    assert_eq!(scope("serde_derive"), Some("excluded".into()));
    for one in components {
        assert!(one["licenses"][0]["expression"].as_str().is_some_and(|text| text != "NOASSERTION"), "{one}");
        let crate_of_ours = one["purl"].as_str().is_some_and(|purl| purl.starts_with("pkg:cargo/"));
        assert!(!crate_of_ours || one["hashes"][0]["content"].as_str().is_some_and(|sum| sum.len() == 64), "{one}");
    }
}

/// Reads with the schema of CycloneDX itself.
const CYCLONEDX: &str = "\
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
found = JsonStrictValidator(SchemaVersion.V1_5).validate_str(sys.stdin.read())
sys.exit(None if found is None else str(found)[:2000])
";

#[test]
fn the_list_is_a_cyclonedx_document() {
    let Some(python) = readers() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let (text, _) = made(dir.path());
    let (content, said) = read_by(python, &["-c", CYCLONEDX], &text);
    assert!(content, "{said}");
    // The reader is one that says no.
    let (content, _) = read_by(python, &["-c", CYCLONEDX], &text.replacen("\"library\"", "\"thing\"", 1));
    assert!(!content);
}

/// Whether one may take it under the licences that are allowed: `A OR B`, `A AND (B OR C)`, as SPDX has them.
fn allowed(expression: &str, allow: &BTreeSet<&str>) -> bool {
    // By the operator that binds least, outside of brackets.
    for (word, all) in [(" OR ", false), (" AND ", true)] {
        let (mut depth, mut parts, mut from) = (0, Vec::new(), 0);
        for (at, byte) in expression.bytes().enumerate() {
            depth += i32::from(byte == b'(') - i32::from(byte == b')');
            if depth == 0 && expression[at..].starts_with(word) {
                parts.push(&expression[from..at]);
                from = at + word.len();
            }
        }
        if !parts.is_empty() {
            parts.push(&expression[from..]);
            let mut each = parts.into_iter().map(|part| allowed(part, allow));
            return if all { each.all(|good| good) } else { each.any(|good| good) };
        }
    }
    match expression.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => allowed(inner, allow),
        None => allow.contains(expression),
    }
}

/// The words in quotes behind a key of deny.toml, up to the end of its list.
fn listed<'a>(text: &'a str, key: &str, before: &str) -> BTreeSet<&'a str> {
    let (_, rest) = text.split_once(&format!("\n{key} = [\n")).expect("the key");
    let (list, _) = rest.split_once("\n]").expect("its end");
    list.lines().filter_map(|line| line.trim().strip_prefix(before)?.split('"').next()).collect()
}

/// What cargo-deny would say of licences and bans; it is built in minutes, and is not there in every run.
#[test]
fn what_is_in_the_program_is_what_deny_toml_allows() {
    let dir = tempfile::tempdir().expect("a folder");
    let bom: Value = serde_json::from_str(&made(dir.path()).0).expect("JSON");
    let deny = std::fs::read_to_string(root().join("deny.toml")).expect("reads");
    let (allow, banned) = (listed(&deny, "allow", "\""), listed(&deny, "deny", "{ crate = \""));
    assert!(allow.contains("Apache-2.0") && banned.contains("openssl-sys"), "{allow:?} {banned:?}");
    for one in bom["components"].as_array().expect("a list") {
        let (name, licence) = (one["name"].as_str().expect("a name"), &one["licenses"][0]["expression"]);
        assert!(!banned.contains(name), "{name} is banned");
        // SQLite's blessing asks for nothing.
        let free = licence == "blessing" || allowed(licence.as_str().expect("a text"), &allow);
        assert!(free, "{name}: {licence}");
    }
    assert!(
        allowed("(MIT OR X) AND ISC", &allow) && !allowed("MIT AND (X OR GPL-3.0)", &allow) && !allowed("X", &allow)
    );
}
