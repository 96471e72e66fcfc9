//! Layers, origins, and the example file.

use super::*;
use crate::job::ByteSize;
use std::collections::BTreeMap;
use std::path::PathBuf;

pub(super) const EXAMPLE: &str = include_str!("../../config/jobcell.example.yaml");

/// The host that the example file is written for.
pub(super) fn host() -> HostFacts {
    HostFacts {
        cores: 2,
        memory: ByteSize::from_mib(8192),
        root: true,
        hostname: "host".into(),
        user_data: PathBuf::from("/home/u/.local/share"),
    }
}

fn input() -> LoadInput {
    // A file that is not there would be an error, and the usual one may be there on the machine of a test.
    let dir = std::env::temp_dir();
    LoadInput { file: Some(dir.join("none.yaml")), env: BTreeMap::new(), flags: Vec::new(), host: host() }
}

fn with_file(text: &str) -> (tempfile::TempDir, LoadInput) {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, text).expect("writes");
    (dir, LoadInput { file: Some(file), ..input() })
}

fn load_text(text: &str) -> Result<Config, crate::job::Problems> {
    let (_dir, input) = with_file(text);
    load(&input)
}

#[test]
fn the_example_file_says_every_default_and_nothing_else() {
    let example: serde_json::Value = serde_saphyr::from_str(EXAMPLE).expect("is YAML");
    let (_dir, input) = with_file(EXAMPLE);
    let loaded = load(&input).expect("loads");
    assert_eq!(loaded.agent.memory, ByteSize::from_mib(8192));
    let texts = |value: &serde_json::Value| value.to_string();
    assert_eq!(texts(&example), texts(&keys::defaults(&input.host)));
}

#[test]
fn the_example_file_describes_each_key_as_the_table_does() {
    let mut described = Vec::new();
    let (mut comment, mut path) = (Vec::new(), Vec::new());
    for line in EXAMPLE.lines() {
        let text = line.trim_start();
        let depth = (line.len() - text.len()) / 2;
        if let Some(more) = text.strip_prefix("# ") {
            comment.push(more);
        } else if let Some((name, _)) = text.split_once(':') {
            path.truncate(depth);
            path.push(name);
            // What is in a preset is described with it.
            if path.len() == 1 || path[0] != "presets" {
                described.push((path.join("."), comment.join(" ")));
            }
            comment.clear();
        } else {
            comment.clear();
        }
    }
    let keys = keys::KEYS.iter().map(|key| (key.path.to_owned(), key.about.to_owned()));
    let sections = keys::SECTIONS.iter().map(|(path, about)| ((*path).to_owned(), (*about).to_owned()));
    let mut wanted: Vec<(String, String)> = keys.chain(sections).collect();
    wanted.sort();
    described.sort();
    assert_eq!(described, wanted);
}

#[test]
fn a_file_of_comments_was_read_and_an_empty_one_says_nothing() {
    let (dir, input) = with_file("# server: {max_body: 2MiB}\n");
    let loaded = inspect(&input).expect("loads");
    assert_eq!(loaded.files, [dir.path().join("config.yaml")]);
    assert!(loaded.settings.iter().all(|one| one.from == "built-in"));
    let (_dir, input) = with_file(" \n");
    assert!(inspect(&input).expect("loads").files.is_empty(), "it may be about to be written");
}

#[test]
fn what_holds_is_told_with_where_it_came_from() {
    let (dir, mut input) = with_file("server: {max_body: 2MiB}\npresets: {'py3.12': {image: x, interpreter: [sh]}}\n");
    std::fs::create_dir(dir.path().join("conf.d")).expect("makes");
    std::fs::write(dir.path().join("conf.d/10.yaml"), "presets: {bash: {image: mine}}\n").expect("writes");
    input.env.insert("JOBCELL_AGENT__SLOTS".into(), "7".into());
    input.env.insert("DOCKER_HOST".into(), "tcp://user:secret@h:1/x".into());
    input.flags.push(("server.listen", "127.0.0.1:3".into()));
    let loaded = inspect(&input).expect("loads");
    let (main, more) = (dir.path().join("config.yaml"), dir.path().join("conf.d/10.yaml"));
    assert_eq!(loaded.files, [main.clone(), more.clone()]);
    let (main, more) = (main.display().to_string(), more.display().to_string());
    for (key, value, from) in [
        ("data_dir", "\"/var/lib/jobcell\"", "built-in"),
        ("server.listen", "\"127.0.0.1:3\"", "flag for server.listen"),
        ("server.max_body", "\"2MiB\"", &main),
        ("agent.slots", "7", "variable JOBCELL_AGENT__SLOTS"),
        ("docker.host", "\"tcp://…@h:1/x\"", "variable DOCKER_HOST"),
        ("presets.bash.image", "\"mine\"", &more),
        ("presets.bash.interpreter", "[\"/bin/bash\"]", "built-in"),
        ("presets.py3.12.image", "\"x\"", &main),
    ] {
        let found = loaded.settings.iter().find(|one| one.key == key).unwrap_or_else(|| panic!("{key} is missing"));
        assert_eq!((found.value.to_string().as_str(), found.from.as_str()), (value, from), "{key}");
    }
    assert_eq!(loaded.document["presets"]["py3.12"]["image"], "x");

    // With nothing changed, the document is the built-in one, key by key, but for the engine that was found.
    let (_dir, input) = with_file("{}");
    let mut document = inspect(&input).expect("loads").document;
    assert_eq!(document["docker"]["host"], "unix:///var/run/docker.sock");
    document["docker"]["host"] = "".into();
    assert_eq!(document.to_string(), keys::defaults(&input.host).to_string());
}

#[test]
fn later_layers_win() {
    let (dir, mut input) = with_file("server: {listen: '127.0.0.1:1'}\nqueue: {lease: 5s}\nagent: {slots: 7}\n");
    std::fs::create_dir(dir.path().join("conf.d")).expect("makes");
    std::fs::write(dir.path().join("conf.d/10.yaml"), "queue: {lease: 6s, max_queued: 5}\n").expect("writes");
    std::fs::write(dir.path().join("conf.d/20.yaml"), "queue: {lease: 7s}\n").expect("writes");
    input.env.insert("JOBCELL_QUEUE__MAX_QUEUED".into(), "9".into());
    input.env.insert("JOBCELL_DATA_DIR".into(), "/d".into());
    input.flags.push(("server.listen", "127.0.0.1:3".into()));
    let config = load(&input).expect("loads");
    assert_eq!(config.queue.lease.to_string(), "7s");
    assert_eq!((config.queue.max_queued, config.agent.slots), (9, 7));
    assert_eq!((config.server.listen.port(), config.data_dir), (3, PathBuf::from("/d")));
}

#[test]
fn all_problems_are_listed_with_their_origin() {
    let (_dir, mut input) = with_file(
        "servr: {listen: x}\nserver: {listen: nowhere}\nqueue: {lease: 0s}\npresets: {go: {image: x}}\ntelemetry: {log_filter: 'a=b=c'}\n",
    );
    input.env.insert("JOBCELL_AGENT__SLOTS".into(), "many".into());
    input.env.insert("JOBCELL_AGENT__SLOT".into(), "1".into());
    let text = load(&input).expect_err("is bad").to_string();
    for wanted in [
        "servr: unknown key",
        "did you mean `server`?",
        "server.listen: `nowhere` is not an address (from ",
        "queue.lease: 0s is out of range",
        "agent.slots: is not a whole number in range (from variable JOBCELL_AGENT__SLOTS)",
        "agent.slot: unknown key (from variable JOBCELL_AGENT__SLOT); did you mean `slots`?",
        "telemetry.log_filter: `a=b=c` is no filter: ",
        "presets.go: lacks an image or an interpreter",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in:\n{text}");
    }
}

#[test]
fn a_named_file_that_is_missing_is_an_error_and_an_empty_one_is_not() {
    assert!(load(&input()).expect_err("missing").to_string().contains("cannot be read"));
    let (_dir, input) = with_file("# nothing\n");
    assert!(load(&input).is_ok());
}

#[test]
fn what_is_empty_changes_nothing_and_what_is_no_section_is_told_once() {
    let (_dir, input) = with_file("server:\nqueue: {lease: }\n");
    assert_eq!(load(&input).expect("loads").queue.lease.to_string(), "5m");
    for (text, wanted) in [
        ("server: here", "server: is not a map"),
        ("queue: {lease: []}", "queue.lease: is not a text"),
        ("server: {listen: {}}", "server.listen: is not a text"),
        ("presets: [a]", "presets: is not a map"),
        ("presets: {a: b}", "presets.a: is not a map"),
        ("secrets: [a]", "secrets: is not a map"),
        ("secrets: {a: hunter2}", "secrets.a: does not say where it is"),
        ("secrets: {a: 'file:relative'}", "secrets.a: does not say where it is"),
        ("secrets: {a: 'credential:../b'}", "secrets.a: does not say where it is"),
        ("secrets: {a: 'env:'}", "secrets.a: does not say where it is"),
        ("blobs: {grace: 15m}", "artifacts.timeout: is more than half of blobs.grace"),
        ("secrets: {'a b': 'env:X'}", "secrets.a b: is no name that a job can ask for"),
    ] {
        let (_dir, input) = with_file(text);
        let problems = load(&input).expect_err("is bad").to_string();
        assert!(problems.starts_with(wanted) && problems.lines().count() == 1, "{text}: {problems}");
        assert!(!problems.contains("hunter2"), "{problems}");
    }
}

#[test]
fn the_engine_is_found_by_docker_host() {
    let (_dir, mut input) = with_file("{}");
    assert_eq!(load(&input).expect("loads").docker.host, "unix:///var/run/docker.sock");
    input.env.insert("DOCKER_HOST".into(), "tcp://h:1".into());
    assert_eq!(load(&input).expect("loads").docker.host, "tcp://h:1");
}

#[test]
fn a_rate_that_nothing_gets_through_with_is_no_rate() {
    let (_dir, input) = with_file("egress: {max_rate: 10KiB}");
    let told = load(&input).expect_err("too slow").to_string();
    assert!(told.contains("egress.max_rate") && told.contains("64KiB or more"), "{told}");
    for good in ["0B", "64KiB", "1MiB"] {
        let (_dir, input) = with_file(&format!("egress: {{max_rate: {good}}}"));
        assert!(load(&input).is_ok(), "{good}");
    }
}

#[test]
fn counters_have_names_that_prometheus_takes_and_bounds() {
    let good =
        "telemetry: {counters: {rows: {output: imported, labels: {team: app/team}, series: 5}, plain: {output: x}}}";
    let counters = load_text(good).expect("is good").telemetry.counters;
    assert_eq!((counters[0].name.as_str(), counters[0].series, counters[1].series), ("plain", 100, 5));
    for (bad, path) in [
        ("Rows: {output: x}", "telemetry.counters.Rows"),
        ("rows_total: {output: x}", "telemetry.counters.rows_total"),
        ("rows: {}", "telemetry.counters.rows.output"),
        ("rows: {output: x, label: {}}", "telemetry.counters.rows.label"),
        ("rows: {output: x, labels: {Team: a}}", "telemetry.counters.rows.labels.Team"),
        ("rows: {output: x, labels: {a: b, c: d, e: f, g: h, i: j}}", "telemetry.counters.rows.labels"),
        ("rows: {output: x, series: 1001}", "telemetry.counters.rows.series"),
        ("rows: 5", "telemetry.counters.rows"),
    ] {
        let problems = load_text(&format!("telemetry: {{counters: {{{bad}}}}}")).expect_err(bad).to_string();
        assert!(problems.contains(path), "{bad}: {problems}");
    }
}

#[test]
fn a_collector_has_an_address() {
    let endpoint = |url: &str| load_text(&format!("telemetry: {{otlp: {{endpoint: \"{url}\"}}}}"));
    let otlp = endpoint("http://127.0.0.1:4318").expect("is good").telemetry.otlp;
    assert_eq!(otlp.map(|otlp| otlp.url).as_deref(), Some("http://127.0.0.1:4318/v1/traces"));
    assert!(endpoint("").expect("is good").telemetry.otlp.is_none());
    assert!(endpoint("https://c:4318").expect("with TLS").telemetry.otlp.is_some());
    let problems = endpoint("c:4318").expect_err("is none").to_string();
    assert!(problems.contains("telemetry.otlp.endpoint") && problems.contains("https://host:4318"), "{problems}");
}
