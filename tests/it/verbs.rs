//! What is done to jobs by the command line: canceling many, by force, and what becomes of their output.

use super::stage::{JOBCELL, PATIENCE, Up, engine, id, said, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// Ends by KILL alone.
const DEAF: &str = "trap '' TERM; echo up; while :; do sleep 0.1; done";

/// Runs a command with a terminal on which somebody types, and gives its exit code and all that is seen.
async fn typed(up: &Up, args: &str, keys: &str) -> (i32, String) {
    let line = format!("{JOBCELL} --data-dir {} {args}", up.data().display());
    let mut command = tokio::process::Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(keys.as_bytes()).await.expect("writes");
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("ends in time").expect("runs");
    drop(stdin);
    let (code, out, _) = said(&output);
    (code, out)
}

async fn runs(up: &Up, script: &str) -> Value {
    let job =
        up.submit(&json!({"preset": "bash", "script": script, "name": "verbs", "labels": {"team": "blue"}})).await;
    up.phase(&job, "running").await;
    job
}

#[tokio::test]
async fn a_terminal_is_asked_before_jobs_are_canceled() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "agent: {slots: 1}").await;
    let first = runs(&up, "sleep 600").await;
    let waits = up.submit(&json!({"preset": "bash", "script": "true", "labels": {"team": "blue"}})).await;
    for keys in ["\n", "n\n", "what?\n"] {
        let (code, seen) = typed(&up, &format!("job cancel {}", id(&first)), keys).await;
        assert!(
            code == 1 && seen.contains("Cancel this job? [y/N]") && seen.contains("nothing was canceled"),
            "{seen}"
        );
        assert!(seen.contains("verbs") && seen.contains("running"), "{seen}");
    }
    assert_eq!(up.get(&format!("/v1/jobs/{}", id(&first))).await["cancel_requested"], false);
    let (code, seen) = typed(&up, "job cancel --label team=blue --state queued", "y\n").await;
    assert!(code == 0 && seen.contains("Cancel this job?") && seen.contains("is canceled"), "{seen}");
    assert_eq!(up.ended(&waits).await["ending"]["verdict"], "canceled");
    let (code, seen) = typed(&up, "job cancel --state queued", "").await;
    assert!(code == 0 && seen.contains("no job is to be canceled"), "{seen}");
    let (code, seen) = typed(&up, &format!("job cancel {} --yes --wait", id(&first)), "").await;
    assert!(code == 0 && !seen.contains("[y/N]") && seen.contains("canceled: canceled"), "{seen}");
    up.stop().await;
}

#[tokio::test]
async fn a_forced_cancel_waits_for_no_grace_and_output_can_be_deleted() {
    let Some(host) = engine() else { return };
    // A grace that nobody here waits for.
    let up = Up::start(&host, "agent: {slots: 4, grace: 10m}").await;
    let logs = |job: &Value| format!("/v1/jobs/{}/logs", id(job));
    let quick = Instant::now();
    for plain_first in [false, true] {
        let job = runs(&up, DEAF).await;
        until("its first line", || async { (up.text(&job, "stdout").await == "up\n").then_some(()) }).await;
        if plain_first {
            up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&job)), None).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let early = up.call(Method::DELETE, &logs(&job), None).await;
        assert_eq!(early.status().as_u16(), 409);
        assert_eq!(early.json::<Value>().await.expect("JSON")["code"], "not_ended");
        let (code, out, err) = said(&up.command(&["job", "cancel", id(&job), "--force", "--cleanup"]).await);
        assert!(code == 0 && out.contains("canceled: canceled") && err.contains("its output is deleted"), "{out}{err}");
        let job = up.ended(&job).await;
        assert_eq!((job["ending"]["verdict"].as_str(), &job["log"]["complete"]), (Some("canceled"), &json!(true)));
        assert_eq!(job["log"]["stdout"]["bytes"], 3, "the record stays");
        let gone = up.call(Method::GET, &logs(&job), None).await;
        assert_eq!(gone.headers()["jobcell-log-end"], "true");
        assert_eq!(gone.text().await.expect("reads"), "");
        assert_eq!(up.call(Method::DELETE, &logs(&job), None).await.status().as_u16(), 204, "again does no harm");
        let (code, out, err) = said(&up.command(&["job", "logs", id(&job), "--follow"]).await);
        assert_eq!((code, out.as_str()), (0, ""), "{err}");
    }
    let jobs = [runs(&up, DEAF).await, runs(&up, DEAF).await];
    let (code, out, err) = said(&up.command(&["job", "cancel", "--label", "team=blue", "--force", "--wait"]).await);
    assert!(code == 0 && jobs.iter().all(|job| out.contains(&format!("{} canceled: canceled", id(job)))), "{out}{err}");
    assert!(quick.elapsed() < Duration::from_secs(80), "{:?}", quick.elapsed());
    for (method, path, status) in [
        (Method::DELETE, "/v1/jobs/01890000-0000-7000-8000-000000000000/logs", 404),
        (Method::DELETE, "/v1/jobs/x/logs", 400),
        (Method::POST, "/v1/jobs/01890000-0000-7000-8000-000000000000/cancel?force=maybe", 400),
    ] {
        assert_eq!(up.call(method, path, None).await.status().as_u16(), status, "{path}");
    }
    up.stop().await;
}
