//! The process dies, and another one goes on: same job, same bytes, one end.

use super::stage::{Up, cause, docker, engine, id, until};
use serde_json::{Value, json};

/// What a job of so many lines writes.
fn lines(count: u32) -> String {
    (1..=count).map(|line| format!("line {line}\n")).collect()
}

/// The job ended well, at its first try, and all of its output is there, once.
async fn is_whole(up: &Up, job: &Value, count: u32) {
    assert_eq!(cause(job), "exit_code", "{job}\n{}", up.log());
    assert_eq!((&job["ending"]["process_exit_code"], &job["attempt"]), (&json!(0), &json!(1)), "{job}\n{}", up.log());
    assert_eq!(job["log"]["complete"], true, "{job}");
    assert_eq!(up.text(job, "stdout").await, lines(count));
    let events: Vec<&str> =
        job["history"].as_array().expect("a list").iter().filter_map(|event| event["phase"].as_str()).collect();
    assert_eq!(events, ["queued", "claimed", "preparing", "running", "ended"]);
}

#[tokio::test]
async fn a_job_goes_on_when_its_agent_is_killed_in_the_middle_of_its_output() {
    let Some(host) = engine() else { return };
    let mut up = Up::start(&host, "").await;
    let script = "for ((i = 1; i <= 400; i++)); do echo line $i; sleep 0.01; done";
    let job = up.submit(&json!({"preset": "bash", "script": script})).await;
    for seen in [40, 120, 200, 300] {
        let line = format!("line {seen}\n");
        until("output", || async { up.text(&job, "stdout").await.contains(&line).then_some(()) }).await;
        up.crash().await;
    }
    is_whole(&up, &up.ended(&job).await, 400).await;
    up.stop().await;
}

#[tokio::test]
async fn an_end_that_came_while_no_agent_was_there_is_told_by_the_next_one() {
    let Some(host) = engine() else { return };
    let mut up = Up::start(&host, "").await;
    let script = "echo before; read -r -t 600 line < <(sleep 2; echo); echo after; exit 7";
    let job = up.submit(&json!({"preset": "bash", "script": script})).await;
    until("output", || async { (up.text(&job, "stdout").await == "before\n").then_some(()) }).await;
    up.kill().await;
    // Its warden is alone when the job has ended.
    let cell = up.containers()[0].clone();
    let alone = || async { (docker(&host, &["top", &cell, "-o", "pid"]).lines().count() == 2).then_some(()) };
    until("the job's end", alone).await;
    up.revive().await;
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), &job["ending"]["process_exit_code"]), ("exit_code", &json!(7)), "{job}\n{}", up.log());
    assert_eq!(up.text(&job, "stdout").await, "before\nafter\n");
    assert!(job["usage"]["wall"].as_str().is_some() || job["usage"]["wall"].is_number(), "{job}");
    up.stop().await;
}

/// Death at moments that nobody has chosen, with jobs in every phase.
#[tokio::test]
async fn many_short_jobs_survive_an_agent_that_is_killed_again_and_again() {
    let Some(host) = engine() else { return };
    let mut up = Up::start(&host, "agent: {slots: 4}\nqueue: {lease: 10s}\n").await;
    let mut jobs = Vec::new();
    for _ in 0..24 {
        let script = "for ((i = 1; i <= 2000; i++)); do echo line $i; done";
        let spec = json!({"preset": "bash", "script": script, "resources": {"cpu": "250m", "memory": "64MiB"}});
        jobs.push(up.submit(&spec).await);
    }
    let ended = async |up: &Up| up.get("/v1/jobs?phase=ended&limit=100").await["jobs"].as_array().map_or(0, Vec::len);
    for deaths in 1..=8 {
        // Each life gets something done, or it would only be a test of starting.
        until("an end", || async { (ended(&up).await >= deaths).then_some(()) }).await;
        up.crash().await;
    }
    for job in &jobs {
        let job = up.ended(job).await;
        assert_eq!(cause(&job), "exit_code", "{job}\n{}", up.log());
        assert_eq!(up.text(&job, "stdout").await, lines(2000), "{job}");
        assert_eq!(job["log"]["complete"], true, "{job}");
    }
    up.stop().await;
}

#[tokio::test]
async fn a_cell_that_is_gone_is_lost_and_a_stray_is_removed_and_others_are_left_alone() {
    let Some(host) = engine() else { return };
    let mut up = Up::start(&host, "").await;
    let job = up.submit(&json!({"preset": "bash", "script": "echo begun; sleep 600"})).await;
    until("output", || async { (up.text(&job, "stdout").await == "begun\n").then_some(()) }).await;
    let owner = std::fs::read_to_string(up.data().join("owner")).expect("there");
    let other = docker(&host, &["create", "--label", "jobcell.owner=00000000", "jobcell/bash:1", "true"]);
    up.kill().await;
    docker(&host, &["rm", "--force", &up.containers()[0]]);
    // Of ours, and no attempt that anybody knows.
    let stray = format!("jobcell.owner={}", owner.trim());
    docker(&host, &["run", "--detach", "--network", "none", "--label", &stray, "jobcell/bash:1", "sleep", "600"]);
    up.revive().await;
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), &job["log"]["complete"]), ("cell_lost", &json!(false)), "{job}");
    assert_eq!(up.text(&job, "stdout").await, "begun\n");
    until("the stray's end", || async { up.containers().is_empty().then_some(()) }).await;
    assert!(docker(&host, &["ps", "--all", "--quiet", "--no-trunc"]).contains(&other));
    docker(&host, &["rm", &other]);
    // What is canceled after the agent came back ends, too.
    let job = up.submit(&json!({"preset": "bash", "script": "sleep 600"})).await;
    up.phase(&job, "running").await;
    up.crash().await;
    let path = format!("/v1/jobs/{}/cancel", id(&job));
    assert!(up.call(reqwest::Method::POST, &path, None).await.status().is_success());
    assert_eq!(cause(&up.ended(&job).await), "canceled");
    up.stop().await;
}
