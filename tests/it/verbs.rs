//! What is done to jobs by the command line: canceling many, by force, and what becomes of their output.

use super::stage::{PATIENCE, Up, engine, id, said, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// Ends by KILL alone, and says so when it is asked to end.
const DEAF: &str = "trap 'echo asked' TERM; echo up; while :; do sleep 0.1; done";

/// Runs a command with this on its standard input, which then ends.
async fn piped(up: &Up, args: &[&str], stdin: &[u8]) -> (i32, String, String) {
    let mut child = up.spawn(args);
    child.stdin.take().expect("a pipe").write_all(stdin).await.expect("writes");
    said(&tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("ends in time").expect("runs"))
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
        let (code, seen) = up.typed(&format!("job cancel {}", id(&first)), keys).await;
        assert!(
            code == 1 && seen.contains("Cancel this job? [y/N]") && seen.contains("nothing was canceled"),
            "{seen}"
        );
        assert!(seen.contains("verbs") && seen.contains("running"), "{seen}");
    }
    assert_eq!(up.get(&format!("/v1/jobs/{}", id(&first))).await["cancel_requested"], false);
    let (code, seen) = up.typed("job cancel --label team=blue --state queued", "y\n").await;
    assert!(code == 0 && seen.contains("Cancel this job?") && seen.contains("is canceled"), "{seen}");
    assert_eq!(up.ended(&waits).await["ending"]["verdict"], "canceled");
    let (code, seen) = up.typed("job cancel --state queued", "").await;
    assert!(code == 0 && seen.contains("no job is to be canceled"), "{seen}");
    let (code, seen) = up.typed(&format!("job cancel {} --yes --wait", id(&first)), "").await;
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
            until("the order to arrive", || async { up.text(&job, "stdout").await.contains("asked").then_some(()) })
                .await;
        }
        let early = up.call(Method::DELETE, &logs(&job), None).await;
        assert_eq!(early.status().as_u16(), 409);
        assert_eq!(early.json::<Value>().await.expect("JSON")["code"], "not_ended");
        let (code, out, err) = said(&up.command(&["job", "cancel", id(&job), "--force", "--cleanup"]).await);
        assert!(code == 0 && out.contains("canceled: canceled") && err.contains("its output is deleted"), "{out}{err}");
        let job = up.ended(&job).await;
        assert_eq!((job["ending"]["verdict"].as_str(), &job["log"]["complete"]), (Some("canceled"), &json!(true)));
        let bytes = job["log"]["stdout"]["bytes"].as_u64().expect("a number");
        assert!(if plain_first { bytes >= 9 } else { bytes == 3 }, "the record stays: {bytes} bytes");
        let gone = up.call(Method::GET, &logs(&job), None).await;
        assert_eq!(gone.status().as_u16(), 410);
        let gone = gone.json::<Value>().await.expect("JSON");
        assert!(
            gone["code"] == "gone" && gone["detail"].as_str().expect("a text").contains("was removed at"),
            "{gone}"
        );
        assert_eq!(up.call(Method::DELETE, &logs(&job), None).await.status().as_u16(), 204, "again does no harm");
        let (code, out, err) = said(&up.command(&["job", "logs", id(&job), "--follow"]).await);
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains("was removed at"), "{err}");
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

#[tokio::test]
async fn a_command_is_run_with_what_is_on_standard_input() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "agent: {slots: 2}").await;
    let (code, out, err) =
        piped(&up, &["exec", "--", "bash", "-c", "cat; echo err >&2; exit 7"], "a\nü\n".as_bytes()).await;
    assert_eq!((code, out.as_str()), (7, "a\nü\n"), "{err}");
    assert!(err.contains("err\n") && err.contains("failed: exited with code 7"), "{err}");
    let (code, out, err) =
        piped(&up, &["exec", "--quiet", "--no-stdin", "-e", "A=1 2", "printenv", "A"], b"not text \xff").await;
    assert_eq!((code, out.as_str(), err.as_str()), (0, "1 2\n", ""));
    let (code, _, err) = piped(&up, &["exec", "cat"], b"not text \xff").await;
    assert!(code == 2 && err.contains("is not text in UTF-8; ") && err.contains("--no-stdin"), "{err}");
    let (_, out, _) = said(&up.command(&["job", "list", "-o", "json"]).await);
    let list: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(list["jobs"].as_array().map(Vec::len), Some(2), "nothing was submitted in vain: {list}");

    let (code, _, err) = piped(&up, &["exec", "--time-limit=1s", "sleep", "600"], b"").await;
    assert!(code == 124 && err.contains("timed_out: "), "{err}");
    // Giving up is not ending.
    let (code, out, err) = piped(&up, &["exec", "--timeout=2s", "-o", "json", "sleep", "600"], b"").await;
    let job: Value = serde_json::from_str(&out).expect("JSON");
    assert!(
        code == 124 && job["ending"].is_null() && err.contains("gave up waiting after 2s; the job goes on"),
        "{err}"
    );
    up.phase(&job, "running").await;
    assert!(up.get(&format!("/v1/jobs/{}", id(&job))).await["ending"].is_null());
    assert_eq!(said(&up.command(&["job", "cancel", id(&job), "--wait"]).await).0, 0);
    up.stop().await;
}

#[tokio::test]
async fn the_first_interrupt_cancels_a_command_and_the_second_leaves() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "agent: {slots: 2, grace: 10m}").await;
    for (script, wanted) in [("echo up; sleep 600", "canceled: canceled"), (DEAF, "")] {
        let child = up.spawn(&["exec", "--no-stdin", "bash", "-c", script]);
        let job = until("the job", || async {
            let list = up.get("/v1/jobs?state=running").await;
            list["jobs"].as_array().and_then(|jobs| jobs.first()).cloned()
        })
        .await;
        until("its first line", || async { up.text(&job, "stdout").await.starts_with("up\n").then_some(()) }).await;
        let pid = child.id().expect("runs").to_string();
        let interrupt =
            || assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().expect("runs").success());
        interrupt();
        if script == DEAF {
            until("the order to arrive", || async { up.text(&job, "stdout").await.contains("asked").then_some(()) })
                .await;
            interrupt();
        }
        let output =
            tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("ends in time").expect("runs");
        let (code, _, err) = said(&output);
        assert!(code == 130 && err.contains("canceling the job") && err.contains(wanted), "{code}: {err}");
        let now = up.get(&format!("/v1/jobs/{}", id(&job))).await;
        assert_eq!((&now["cancel_requested"], now["ending"].is_null()), (&json!(true), script == DEAF), "{now}");
    }
    assert_eq!(said(&up.command(&["job", "cancel", "--state=running", "--force", "--wait"]).await).0, 0);
    up.stop().await;
}

#[tokio::test]
async fn who_waits_hears_why_and_for_so_long_at_most() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "agent: {slots: 1, grace: 10m}").await;
    let file = up.dir.path().join("gpu.yaml");
    std::fs::write(&file, "preset: bash\nscript: x\nrequires: {labels: {gpu: 'yes'}}\n").expect("writes");
    let file = file.to_str().expect("text");
    let told = |err: &str| err.matches("waiting: the only agent can never run it. ").count();
    for (how, files) in [("--wait", vec![file]), ("--follow", vec![file]), ("--wait", vec![file, file])] {
        let args = [&["job", "submit", how, "--timeout=8s"], &files[..]].concat();
        let (code, out, err) = said(&up.command(&args).await);
        assert!(
            code == 124 && told(&err) == 1 && err.contains("and yes is required; see `jobcell job explain "),
            "{err}"
        );
        assert!(err.contains("gave up waiting after 8s; "), "{err}");
        assert_eq!(out.contains(" queued"), files.len() > 1, "{out}");
    }
    let (code, _, err) = said(&up.command(&["job", "submit", "--quiet", "--wait", "--timeout=4s", file]).await);
    assert_eq!((code, told(&err)), (124, 0), "{err}");
    for args in
        [&["job", "submit", file, "--timeout=1s"] as &[&str], &["job", "cancel", "--state=queued", "--timeout=1s"]]
    {
        let (code, out, err) = said(&up.command(args).await);
        assert!(
            code == 2 && out.is_empty() && err.contains("--timeout says how long to wait: give --wait or "),
            "{err}"
        );
    }
    let queue: Value = serde_json::from_str(&said(&up.command(&["queue", "-o", "json"]).await).1).expect("JSON");
    assert_eq!((&queue["jobs"]["queued"], &queue["oldest"]["code"]), (&json!(5), &json!("no_agent_suits")), "{queue}");
    assert!(queue["oldest"]["waits_ms"].as_u64().is_some_and(|waits| waits > 20_000), "{queue}");
    assert_eq!(said(&up.command(&["job", "cancel", "--state=queued"]).await).0, 0);

    let job = runs(&up, DEAF).await;
    until("its first line", || async { up.text(&job, "stdout").await.starts_with("up\n").then_some(()) }).await;
    for which in [id(&job), "--label=team=blue"] {
        let (code, out, err) = said(&up.command(&["job", "cancel", which, "--wait", "--timeout=1s"]).await);
        assert!(code == 124 && out.is_empty() && err.contains("is asked to end and has not yet"), "{out}{err}");
    }
    assert_eq!(said(&up.command(&["job", "cancel", id(&job), "--force", "--wait", "--timeout=1m"]).await).0, 0);
    up.stop().await;
}
