//! Layers, origins, and the example file.

use super::*;
use crate::job::ByteSize;
use std::collections::BTreeMap;
use std::path::PathBuf;

fn input() -> LoadInput {
    let host = HostFacts {
        cores: 2,
        memory: ByteSize::from_mib(8192),
        root: true,
        hostname: "host".into(),
        user_data: PathBuf::from("/home/u/.local/share"),
    };
    // A file that is not there would be an error, and the usual one may be there on the machine of a test.
    let dir = std::env::temp_dir();
    LoadInput { file: Some(dir.join("none.yaml")), env: BTreeMap::new(), flags: Vec::new(), host }
}

fn with_file(text: &str) -> (tempfile::TempDir, LoadInput) {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, text).expect("writes");
    (dir, LoadInput { file: Some(file), ..input() })
}

#[test]
fn the_example_file_says_every_default_and_nothing_else() {
    let text = include_str!("../../config/jobcell.example.yaml");
    let example: serde_json::Value = serde_saphyr::from_str(text).expect("is YAML");
    let (_dir, input) = with_file(text);
    let loaded = load(&input).expect("loads");
    assert_eq!(loaded.agent.memory, ByteSize::from_mib(8192));
    let texts = |value: &serde_json::Value| value.to_string();
    assert_eq!(texts(&example), texts(&keys::defaults(&input.host)));
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
    let (_dir, mut input) =
        with_file("servr: {listen: x}\nserver: {listen: nowhere}\nqueue: {lease: 0s}\npresets: {go: {image: x}}\n");
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
fn the_engine_is_found_by_docker_host() {
    let (_dir, mut input) = with_file("{}");
    assert_eq!(load(&input).expect("loads").docker.host, "unix:///var/run/docker.sock");
    input.env.insert("DOCKER_HOST".into(), "tcp://h:1".into());
    assert_eq!(load(&input).expect("loads").docker.host, "tcp://h:1");
}
