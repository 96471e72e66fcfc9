//! Cells under gVisor's runsc, on an engine of the tests' own: another kernel, other facts, and the same care.

use super::private::Private;
use super::programs;
use super::stage::{Up, cause, engine, fact, until};
use serde_json::json;
use std::process::Command;

/// Without an own network, which cells do not have, it refuses the namespace of this engine.
const WRAPPER: &str = "#!/bin/sh\nexec runsc --network=none \"$@\"\n";

#[tokio::test]
async fn a_cell_under_gvisor_shows_its_kernel_and_one_that_only_claims_a_filter_gets_no_job() {
    if Command::new("runsc").arg("--version").output().is_err() {
        assert!(std::env::var("JOBCELL_TEST_ENGINE").as_deref() != Ok("required"), "runsc is not installed");
        return eprintln!("SKIPPED: runsc is not installed");
    }
    let Some(private) = engine().and_then(|_| Private::prepare()) else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let wrapper = dir.path().join("runsc");
    programs::put(&wrapper, WRAPPER, 0o755);
    // The same one under a name that says nothing.
    let options = ["runsc", "other"].map(|name| format!("--add-runtime={name}={}", wrapper.display()));
    private.start_with(&[&options[0], &options[1]], None);
    let host = private.host();

    let up = Up::start(&host, "docker: {oci_runtime: runsc}\nagent: {grace: 1s}").await;
    let job = up.bash("id -u; dmesg | head -1; echo x > /workspace/y && cat /workspace/y; ls /dev/kmsg; exit 3").await;
    assert_eq!((cause(&job), job["ending"]["process_exit_code"].as_u64()), ("exit_code", Some(3)), "{job}");
    let out = up.text(&job, "stdout").await;
    assert!(out.contains("Starting gVisor") && out.ends_with("x\n"), "{out}");
    assert_eq!(out.lines().next(), Some(fact(&job, "uid")));
    for (key, value) in [
        ("kernel", "gvisor"),
        ("cap_eff", "0000000000000000"),
        ("interfaces", "lo"),
        ("root_readonly", "1"),
        ("try.mount", "EPERM"),
    ] {
        assert_eq!(fact(&job, key), value, "{key}");
    }
    let tree = "setsid sleep 600 & trap 'echo asked' TERM; echo up; while :; do sleep 0.1; done";
    let job = up.run(&json!({"preset": "bash", "script": tree, "timeout": "3s"})).await;
    assert_eq!((cause(&job), up.text(&job, "stdout").await.as_str()), ("timeout", "up\nasked\n"));
    until("no cell", || async { up.containers().is_empty().then_some(()) }).await;
    up.stop().await;

    let up = Up::start(&host, "docker: {oci_runtime: other}").await;
    let job = up.bash("echo ran").await;
    assert_eq!(cause(&job), "cell_weaker");
    let missing: Vec<&str> = job["ending"]["cause"]["mismatches"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["key"].as_str())
        .collect();
    assert!(["kernel", "seccomp", "no_new_privs", "pids_limit"].iter().all(|key| missing.contains(key)), "{missing:?}");
    assert!(up.stream(&job, "stdout").await.is_empty());
    up.stop().await;
}
