//! What an operator can do with a process that runs: change its settings, and ask how it stands.

use super::stage::{Up, engine, id, said, until};
use reqwest::Method;
use serde_json::{Value, json};

/// Waits until health says this of the settings, and gives the reason.
async fn settings_are(up: &Up, state: &str, reason: &str) {
    until(&format!("settings that are {state}: {reason}"), || async {
        let (_, body) = up.plain("/healthz").await?;
        let all: Value = serde_json::from_str(&body).expect("is JSON");
        let found = &all["components"]["settings"];
        let said = found["reason"].as_str().unwrap_or_default();
        (found["state"] == state && said.contains(reason)).then_some(())
    })
    .await;
}

fn write(up: &Up, settings: &str) {
    // In one step, as an editor does it: nobody reads half of it.
    let (file, fresh) = (up.dir.path().join("config.yaml"), up.dir.path().join("config.new"));
    std::fs::write(&fresh, settings).expect("writes");
    std::fs::rename(fresh, file).expect("renames");
}

async fn stop(up: Up, job: &Value) {
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel?force=true", id(job)), None).await;
    up.ended(job).await;
    up.stop().await;
}

#[tokio::test]
async fn settings_are_read_again_and_what_is_different_is_told_by_key() {
    let Some(host) = engine() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let settings = "agent: {slots: 2}\ntelemetry: {log_filter: warn}";
    let up = Up::start_with(dir, &host, settings, &[("RUST_LOG", "")]).await;
    settings_are(&up, "ok", "").await;
    let job = up.submit(&json!({"preset": "bash", "script": "sleep 300"})).await;
    up.phase(&job, "running").await;
    assert!(!up.log().contains("INFO"));

    write(&up, "agent: {slots: 3}\ntelemetry: {log_filter: 'warn,jobcell=info'}");
    up.signal("-HUP");
    settings_are(&up, "degraded", "after a restart: agent.slots").await;
    let log = up.log();
    let line = |what: &str| log.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}: {log}"));
    assert!(line("holds after a restart").contains(r#""key":"agent.slots","from":"2","to":"3""#), "{log}");
    assert!(line("holds from now on").contains(r#""level":"INFO""#), "{log}");

    write(&up, "agent: {slots: many}\ntelemetry: {log_filter: error}");
    // Nobody signals this time.
    settings_are(&up, "degraded", "agent.slots").await;
    settings_are(&up, "degraded", "what was read before holds").await;
    assert_eq!(up.plain("/readyz").await.map(|(status, _)| status), Some(200));
    // A probe that is given the same file hears how the process is; another process would not start with it.
    let file = up.dir.path().join("config.yaml").display().to_string();
    let (code, told, err) = said(&up.command(&["--config", &file, "health"]).await);
    assert!(
        code == 0 && told.contains("is well; settings is degraded (") && told.contains("agent.slots"),
        "{told}{err}"
    );
    let (code, _, err) = said(&up.command(&["--config", &file, "config", "check"]).await);
    assert!(code == 78 && err.contains("agent.slots"), "{code} {err}");
    let none = up.dir.path().join("none.yaml").display().to_string();
    std::fs::write(&none, "# agent: {slots: 3}\n").expect("writes");
    let (code, told, err) = said(&up.command(&["--config", &none, "config", "check"]).await);
    assert!(code == 0 && told.trim() == format!("the settings are good; read: {none}"), "{told}{err}");

    write(&up, "agent: {slots: 2}\ntelemetry: {log_filter: 'warn,jobcell=info'}");
    settings_are(&up, "ok", "").await;
    up.phase(&job, "running").await;
    stop(up, &job).await;
}

#[tokio::test]
async fn a_signal_has_the_state_told() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let job = up.submit(&json!({"preset": "bash", "script": "sleep 300"})).await;
    up.phase(&job, "running").await;
    up.signal("-USR1");
    let line = until("the state", || async {
        up.log().lines().find(|line| line.contains("jobcell::state")).map(str::to_owned)
    })
    .await;
    let line: Value = serde_json::from_str(&line).expect("is JSON");
    let told: Value = serde_json::from_str(line["state"].as_str().expect("a text")).expect("is JSON");
    assert_eq!(told["health"]["ready"], true, "{told}");
    assert_eq!(told["state"]["attempts"]["count"], 1, "{told}");
    let first = &told["state"]["attempts"]["first"][0];
    assert_eq!(first["stage"], "committed", "{told}");
    assert!(first["attempt"].as_str().is_some_and(|attempt| attempt.contains(id(&job))), "{told}");
    assert!(told["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{told}");
    stop(up, &job).await;
}

#[tokio::test]
async fn a_signal_that_comes_before_the_settings_are_read_ends_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let pipe = dir.path().join("config.yaml");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("runs").success());
    let mut server = tokio::process::Command::new(super::stage::JOBCELL);
    server.args(["server", "--listen", "127.0.0.1:0", "--config"]).arg(&pipe);
    server.arg("--data-dir").arg(dir.path().join("data")).kill_on_drop(true);
    let mut server = server.stdin(std::process::Stdio::null()).spawn().expect("starts");
    // Opened when somebody reads: the settings are waited for.
    let opening = tokio::task::spawn_blocking(move || std::fs::File::options().write(true).open(pipe));
    let mut settings =
        tokio::time::timeout(super::stage::PATIENCE, opening).await.expect("reads").expect("joins").expect("opens");
    let pid = server.id().expect("runs").to_string();
    let signal = |name: &str| {
        assert!(std::process::Command::new("kill").args([name, &pid]).status().expect("runs").success());
    };
    signal("-USR1");
    std::io::Write::write_all(&mut settings, b"# nothing but a word\n").expect("is read");
    drop(settings);
    until("the endpoint file", || async { super::stage::read(&dir.path().join("data/endpoint")) }).await;
    signal("-TERM");
    let ended = tokio::time::timeout(super::stage::PATIENCE, server.wait()).await.expect("ends in time");
    assert_eq!(ended.expect("is waited for").code(), Some(0));
}
