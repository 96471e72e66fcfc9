//! What an operator does not allow: refused before anything is made, clamped where the policy says so, and changed while it runs.

use super::stage::{Up, cause, docker, engine, fact, id, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;

/// `jobcell up` by this policy, which is in a file of its own.
pub(crate) async fn up_by(host: &str, policy: &str, settings: &str) -> Up {
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path(), policy);
    let file = dir.path().join("policy.yaml");
    let up = Up::start_in(dir, host, &format!("policy: {{file: {}}}\n{settings}", file.display())).await;
    until("readiness", || async { up.plain("/readyz").await.filter(|(status, _)| *status == 200) }).await;
    up
}

pub(crate) fn write(dir: &Path, policy: &str) {
    let (fresh, file) = (dir.join("policy.new"), dir.join("policy.yaml"));
    std::fs::write(&fresh, policy).expect("writes");
    std::fs::rename(fresh, file).expect("renames");
}

/// Waits until health says this of the policy.
async fn policy_is(up: &Up, state: &str) -> String {
    until(state, || async {
        let (_, body) = up.plain("/healthz").await?;
        let all: Value = serde_json::from_str(&body).expect("is JSON");
        let found = all["components"]["policy"].clone();
        (found["state"] == state).then(|| found["reason"].as_str().unwrap_or_default().to_owned())
    })
    .await
}

/// A new policy, in force.
pub(crate) async fn change(up: &Up, policy: &str) {
    let before = up.log().matches("the policy was read").count();
    write(up.dir.path(), policy);
    up.signal("-HUP");
    until("the new policy", || async { (up.log().matches("the policy was read").count() > before).then_some(()) })
        .await;
}

/// Containers that the engine has made for a job since it was started, gone or not.
fn made(up: &Up, job: &Value, since: &str) -> Vec<String> {
    let label = format!("label=jobcell.job={}", id(job));
    let now = now();
    let args = [
        "events",
        "--since",
        since,
        "--until",
        &now,
        "--filter",
        &label,
        "--filter",
        "event=create",
        "--format",
        "{{.ID}}",
    ];
    docker(&up.host, &args).lines().map(str::to_owned).collect()
}

/// Later than all that has happened, in the form of `docker events`.
fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    format!("{}.{:09}", since.as_secs(), since.subsec_nanos())
}

#[tokio::test]
async fn the_agent_refuses_before_anything_is_made_and_the_door_says_so_at_once() {
    let Some(host) = engine() else { return };
    let open = "{version: 1, allow: {images: ['jobcell/*']}}";
    let up = up_by(&host, open, "agent: {slots: 1}\n").await;
    let since = now();
    let first = up
        .submit(
            &json!({"preset": "bash", "script": "until [ -e stop ]; do read -t 0.05 <> <(:); done", "timeout": "60s"}),
        )
        .await;
    up.phase(&first, "running").await;
    let second = up.submit(&json!({"preset": "bash", "script": "echo must not run", "labels": {"team": "x"}})).await;

    // What waits is judged by what holds when its turn comes.
    change(
        &up,
        "{version: 1, rules: [{name: team x, when: {labels: {team: x}}, allow: {images: ['r.example/**'], limits: {timeout: 1s}}}]}",
    )
    .await;
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&first)), None).await;
    let second = up.ended(&second).await;
    assert_eq!((cause(&second), second["ending"]["verdict"].as_str()), ("policy_refused", Some("cell_error")));
    let told = &second["ending"]["cause"];
    let codes: Vec<&str> =
        told["refusals"].as_array().expect("a list").iter().filter_map(|one| one["code"].as_str()).collect();
    assert_eq!((told["rule"].as_str(), codes), (Some("team x"), vec!["image_not_allowed", "above_maximum"]));
    let message = second["ending"]["message"].as_str().expect("a sentence");
    assert!(message.contains("image `jobcell/bash:1` is not on the list; allowed: r.example/**"), "{message}");
    assert_eq!((second["started_at"].is_null(), second["receipt"].as_array().map(Vec::len)), (true, Some(0)));
    assert_eq!(second["past_tries"].as_array().map(Vec::len), Some(0), "it is not tried again");
    assert_eq!((made(&up, &second, &since), made(&up, &first, &since).len()), (vec![], 1));

    // At the door of the same process: the same reasons, and no job.
    let jobs = up.get("/v1/jobs").await["jobs"].as_array().map(Vec::len);
    let spec = json!({"preset": "bash", "script": "x", "labels": {"team": "x"}});
    let response = up.call(Method::POST, "/v1/jobs", Some(&spec)).await;
    let status = response.status().as_u16();
    let problem: Value = response.json().await.expect("is JSON");
    assert_eq!((status, problem["code"].as_str()), (403, Some("policy_refused")));
    assert_eq!(problem["problems"][0]["path"], "image");
    let fine = json!({"preset": "bash", "script": "true"});
    let response = up.call(Method::POST, "/v1/jobs/bulk", Some(&json!([fine, spec]))).await;
    assert_eq!(response.status(), 403);
    let problem: Value = response.json().await.expect("is JSON");
    assert_eq!(problem["problems"][0]["path"], "[1].image");
    assert_eq!(up.get("/v1/jobs").await["jobs"].as_array().map(Vec::len), jobs);
    let partial = up.call(Method::POST, "/v1/jobs/bulk?partial=true", Some(&json!([fine, spec]))).await;
    let partial: Value = partial.json().await.expect("is JSON");
    assert_eq!(
        (partial["created"].as_u64(), partial["jobs"][1]["problem"]["code"].as_str()),
        (Some(1), Some("policy_refused"))
    );
    assert_eq!(cause(&up.ended(&partial["jobs"][0]["job"]).await), "exit_code");
    up.stop().await;
}

#[tokio::test]
async fn what_was_given_binds_and_is_told_also_after_a_crash() {
    let Some(host) = engine() else { return };
    let policy = "{version: 1, allow: {limits: {resources.memory: {max: 32MiB, over: clamp}, timeout: {max: 20s, over: clamp}, \
                  resources.pids: 200}}}";
    let mut up = up_by(&host, policy, "docker: {tmp_size: 1MiB, workspace_size: 1MiB}\n").await;
    let spec = json!({"preset": "bash", "script": "echo begun; until [ -e /tmp/stop ]; do read -t 0.05 <> <(:); done", "timeout": "2h",
        "resources": {"memory": "1GiB", "pids": 100}});
    let job = up.submit(&spec).await;
    up.phase(&job, "running").await;
    up.crash().await;
    until("readiness", || async { up.plain("/readyz").await.filter(|(status, _)| *status == 200) }).await;
    let job = up.ended(&job).await;
    assert_eq!(
        (cause(&job), job["ending"]["cause"]["limit"].as_str()),
        ("timeout", Some("20s")),
        "the timeout is what was given"
    );
    // 32 MiB, and what is beside the job: both tmpfs, /dev/shm and the warden's reserve.
    assert_eq!(fact(&job, "memory_limit_bytes"), ((32 + 1 + 1 + 16 + 8) << 20u64).to_string());
    let clamped = json!([
        {"path": "resources.memory", "asked": "1GiB", "given": "32MiB"},
        {"path": "timeout", "asked": "2h", "given": "20s"},
    ]);
    assert_eq!(job["clamped"], clamped);
    assert_eq!(job["spec"]["timeout"], "2h", "what was asked for stays as it was");
    let (_, shown, _) = super::stage::said(&up.command(&["job", "get", id(&job)]).await);
    assert!(shown.contains("timeout: 20s by the operator's policy, asked for 2h"), "{shown}");
    up.stop().await;
}

#[tokio::test]
async fn a_bad_file_is_told_of_and_the_last_good_policy_holds() {
    let Some(host) = engine() else { return };
    let up = up_by(&host, "{version: 1, allow: {presets: [python]}}", "").await;
    policy_is(&up, "ok").await;
    write(up.dir.path(), "{version: 1, allow: {preset: [bash]}}");
    up.signal("-HUP");
    let reason = policy_is(&up, "degraded").await;
    assert!(reason.contains("the last good policy holds") && reason.contains("allow.preset: unknown key"), "{reason}");
    assert!(reason.contains("did you mean `presets`?"), "{reason}");
    assert_eq!(up.plain("/readyz").await.map(|(status, _)| status), Some(200));
    let spec = json!({"preset": "bash", "script": "true"});
    assert_eq!(up.call(Method::POST, "/v1/jobs", Some(&spec)).await.status(), 403);
    std::fs::remove_file(up.dir.path().join("policy.yaml")).expect("removes");
    // Nobody signals this time.
    until("that it is gone", || async { policy_is(&up, "degraded").await.contains("cannot be read").then_some(()) })
        .await;
    assert_eq!(up.call(Method::POST, "/v1/jobs", Some(&spec)).await.status(), 403);
    write(up.dir.path(), "{version: 1, allow: {presets: [bash]}}");
    policy_is(&up, "ok").await;
    assert_eq!(cause(&up.run(&spec).await), "exit_code");
    up.stop().await;
}

#[tokio::test]
async fn a_job_that_is_there_is_found_by_its_key_whatever_the_policy_says_by_then() {
    let Some(host) = engine() else { return };
    let up = up_by(&host, "{version: 1}", "").await;
    let spec = json!({"preset": "bash", "script": "true", "idempotency_key": "once"});
    let other = json!({"preset": "bash", "script": "false", "idempotency_key": "once"});
    let fresh = json!({"preset": "bash", "script": "true", "idempotency_key": "fresh"});
    let job = up.submit(&spec).await;
    up.ended(&job).await;
    change(&up, "{version: 1, allow: {presets: []}}").await;
    let asked = |path: &'static str, body: Value| async {
        let body = body;
        let response = up.call(Method::POST, path, Some(&body)).await;
        (response.status().as_u16(), response.json::<Value>().await.expect("is JSON"))
    };
    let (status, found) = asked("/v1/jobs", spec.clone()).await;
    assert_eq!((status, id(&found)), (200, id(&job)));
    let (status, told) = asked("/v1/jobs", other.clone()).await;
    assert_eq!((status, told["code"].as_str()), (409, Some("key_conflict")));
    let (status, told) = asked("/v1/jobs", fresh.clone()).await;
    assert_eq!((status, told["code"].as_str()), (403, Some("policy_refused")));

    let (status, found) = asked("/v1/jobs/bulk", json!([spec])).await;
    assert_eq!((status, found["existing"].as_u64(), id(&found["jobs"][0]["job"])), (200, Some(1), id(&job)));
    let (status, told) = asked("/v1/jobs/bulk", json!([spec, fresh])).await;
    assert_eq!((status, told["problems"][0]["path"].as_str()), (403, Some("[1].preset")));
    let (status, found) = asked("/v1/jobs/bulk?partial=true", json!([spec, fresh])).await;
    assert_eq!((status, found["existing"].as_u64(), found["refused"].as_u64()), (200, Some(1), Some(1)));
    up.stop().await;
}
