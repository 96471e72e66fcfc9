//! `jobcell doctor` on this host: what it says differs from host to host, but not that each check is made and has a remedy.

use super::stage::{JOBCELL, Up, engine, until};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Exit code, and the checks by name: verdict, and what was found.
fn doctor(host: &str, settings: &str) -> (i32, Vec<(String, String, String)>) {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("config.yaml"), settings).expect("writes");
    let mut command = Command::new(JOBCELL);
    command.arg("--config").arg(dir.path().join("config.yaml")).arg("--data-dir").arg(dir.path().join("data"));
    let output = command.args(["doctor", "-o", "json"]).env("DOCKER_HOST", host).output().expect("runs");
    let document: Value = serde_json::from_slice(&output.stdout).expect("is JSON");
    let text = |check: &Value, key: &str| check[key].as_str().expect("a text").to_owned();
    let checks: Vec<_> = document["checks"].as_array().expect("a list").iter().collect();
    for check in &checks {
        let remedy = check["remedy"].as_str().unwrap_or_default();
        assert_eq!(check["verdict"] == "ok", remedy.is_empty(), "{check}");
        assert!(!text(check, "found").is_empty(), "{check}");
    }
    let checks = checks.into_iter().map(|check| (text(check, "name"), text(check, "verdict"), text(check, "found")));
    (output.status.code().expect("ends"), checks.collect())
}

fn verdict<'a>(checks: &'a [(String, String, String)], name: &str) -> &'a str {
    &checks.iter().find(|(known, ..)| known == name).unwrap_or_else(|| panic!("no check {name}: {checks:?}")).1
}

#[test]
fn without_an_engine_the_host_is_looked_at_all_the_same() {
    assert!(!Path::new("/no/such.sock").exists());
    let (code, checks) = doctor("unix:///no/such.sock", "");
    assert_eq!((code, verdict(&checks, "engine"), verdict(&checks, "processor")), (1, "fail", "ok"));
    assert!(checks.len() >= 20 && checks.iter().any(|(_, _, found)| found.contains("/no/such.sock")), "{checks:?}");
    let (code, checks) = doctor("unix:///no/such.sock", "doctor: {checks: {engine: ignore}}");
    assert_eq!((code, verdict(&checks, "engine")), (0, "ignored"));
}

#[tokio::test]
async fn a_check_that_is_enforced_keeps_jobs_waiting_until_it_is_well() {
    const ABSENT: &str = "presets: {absent: {image: \"no.such/image:1\", interpreter: [/bin/sh]}}\n";
    let Some(host) = engine() else { return };
    let (code, checks) = doctor(&host, ABSENT);
    assert_eq!((code, verdict(&checks, "preset-images")), (0, "warn"), "{checks:?}");
    assert!(checks.len() >= 25, "{}", checks.len());
    let (_, checks) = doctor(&host, &format!("{ABSENT}doctor: {{checks: {{preset-images: ignore}}}}"));
    assert_eq!(verdict(&checks, "preset-images"), "ignored");
    let settings = format!("{ABSENT}doctor: {{checks: {{preset-images: enforce}}}}\n");
    let (code, checks) = doctor(&host, &settings);
    assert_eq!((code, verdict(&checks, "preset-images")), (1, "fail"));

    let mut up = Up::start_unready(&host, &settings).await;
    let said = until("a reason", || async {
        let (_, text) = up.plain("/healthz").await?;
        text.contains("doctor.checks").then_some(text)
    });
    let said = said.await;
    assert_eq!(up.plain("/readyz").await.map(|(status, _)| status), Some(503));
    assert!(said.contains("preset-images") && said.contains("no.such/image:1"), "{said}");
    // The operator changes their mind.
    up.kill().await;
    std::fs::write(up.dir.path().join("config.yaml"), "").expect("writes");
    up.revive().await;
    let job = up.bash("echo well").await;
    assert_eq!(up.text(&job, "stdout").await, "well\n");
    up.stop().await;
}
