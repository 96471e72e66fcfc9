//! Jobs that are ended, and output that nobody takes: silence, the command after a stop, a warden that hears nothing, gaps.

use super::stage::{Up, cause, docker, engine, id, said, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

async fn cancel(up: &Up, job: &Value, query: &str) {
    let response = up.call(Method::POST, &format!("/v1/jobs/{}/cancel{query}", id(job)), None).await;
    assert!(response.status().is_success(), "{}", response.status());
}

/// Waits until a job has written something.
async fn wrote(up: &Up, job: &Value) {
    until("output", || async { (!up.stream(job, "stdout").await.is_empty()).then_some(()) }).await;
}

#[tokio::test]
async fn a_job_that_says_nothing_for_too_long_is_ended_and_one_that_talks_is_not() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let spec = |script: &str| json!({"preset": "bash", "script": script, "silence_timeout": "1s"});
    let job = up.run(&spec("echo said; sleep 600")).await;
    assert_eq!((cause(&job), job["ending"]["verdict"].as_str()), ("silence", Some("timed_out")), "{job}");
    assert_eq!((&job["ending"]["process_exit_code"], &job["ending"]["cause"]["limit"]), (&json!(124), &json!("1s")));
    assert_eq!((up.text(&job, "stdout").await.as_str(), job["log"]["complete"].as_bool()), ("said\n", Some(true)));
    let job = up.run(&spec("for n in 1 2 3 4 5 6 7 8; do sleep 0.4; echo $n >&2; done")).await;
    assert_eq!((cause(&job), job["ending"]["process_exit_code"].as_u64()), ("exit_code", Some(0)), "{job}");
    up.stop().await;
}

#[tokio::test]
async fn a_command_runs_after_a_stop_when_all_else_is_gone_and_has_its_own_time() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "agent: {grace: 500ms}").await;
    let script = "setsid sleep 700 & echo here > state; trap '' TERM; echo up; sleep 600 & wait; wait; sleep 600";
    let spec = |after: &str, timeout: &str| {
        let on_cancel = json!({"command": ["/bin/bash", "-c", after], "timeout": timeout});
        json!({"preset": "bash", "script": script, "timeout": "5m", "on_cancel": on_cancel})
    };
    let after = "echo $JOBCELL_STOP_REASON $(cat state) $(grep -l sleep /proc/[0-9]*/comm | wc -l); exit 7";
    let job = up.submit(&spec(after, "10s")).await;
    wrote(&up, &job).await;
    cancel(&up, &job, "").await;
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), &job["usage"]["on_cancel_exit_code"]), ("canceled", &json!(7)), "{job}");
    assert_eq!(up.text(&job, "stdout").await, "up\ncancel here 0\n");
    assert_eq!(job["log"]["complete"], true);
    let shown = said(&up.command(&["job", "get", id(&job)]).await).1;
    assert!(shown.contains("its command ended with code 7"), "{shown}");

    // It is ended when its time is over, its own children too.
    let job = up.submit(&spec("setsid sleep 700 & echo begun; sleep 600", "300ms")).await;
    wrote(&up, &job).await;
    cancel(&up, &job, "").await;
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), &job["usage"]["on_cancel_exit_code"]), ("canceled", &json!(137)), "{job}");
    assert_eq!(up.text(&job, "stdout").await, "up\nbegun\n");

    // Who forces wants nothing more to run; and who ends by itself was not stopped.
    let job = up.submit(&spec("echo never", "10s")).await;
    wrote(&up, &job).await;
    cancel(&up, &job, "?force=true").await;
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), job["usage"].get("on_cancel_exit_code")), ("canceled", None), "{job}");
    let on_cancel = json!({"command": ["/bin/echo", "never"]});
    let job = up.run(&json!({"preset": "bash", "script": "echo done", "on_cancel": on_cancel})).await;
    assert_eq!((up.text(&job, "stdout").await.as_str(), job["usage"].get("on_cancel_exit_code")), ("done\n", None));
    // After a timeout too; what cannot be started is told.
    let on_cancel = json!({"command": ["/no/such/program"]});
    let job = json!({"preset": "bash", "script": "sleep 600", "timeout": "300ms", "on_cancel": on_cancel});
    let job = up.run(&job).await;
    assert_eq!((cause(&job), &job["usage"]["on_cancel_exit_code"]), ("timeout", &json!(127)), "{job}");
    up.stop().await;
}

#[tokio::test]
async fn a_cancel_is_carried_out_within_a_second_and_a_warden_that_does_not_hear_it_is_ended_from_outside() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "agent: {grace: 60s}").await;
    let submit = || async {
        let job = up.submit(&json!({"preset": "bash", "script": "echo up; sleep 600"})).await;
        wrote(&up, &job).await;
        job
    };
    let job = submit().await;
    let asked = Instant::now();
    cancel(&up, &job, "").await;
    assert_eq!(cause(&up.ended(&job).await), "canceled");
    assert!(asked.elapsed() < Duration::from_secs(5), "took {:?}", asked.elapsed());

    let job = submit().await;
    let container = up.containers().pop().expect("its cell");
    let pid = docker(&host, &["inspect", "--format", "{{.State.Pid}}", &container]);
    assert!(std::process::Command::new("kill").args(["-STOP", &pid]).status().expect("kill runs").success());
    let asked = Instant::now();
    cancel(&up, &job, "").await;
    let job = up.ended(&job).await;
    // Long before the grace of a minute.
    assert!(asked.elapsed() < Duration::from_secs(20), "took {:?}", asked.elapsed());
    assert_eq!((cause(&job), job["log"]["complete"].as_bool()), ("canceled", Some(false)), "{job}");
    assert_eq!(up.text(&job, "stdout").await, "up\n");
    up.stop().await;
}

#[tokio::test]
async fn output_that_nobody_takes_stalls_the_job_or_leaves_an_exact_gap() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    // 9 bytes a line, 1.8 MB at a time: more than the buffers hold.
    let script = "import sys, time\nfor n in range(1000000):\n    sys.stdout.write('%08d\\n' % n)\n    if n == 1000: sys.stdout.flush(); time.sleep(1)\n";
    let spec = |overflow: &str| json!({"preset": "python", "script": script, "output_overflow": overflow});
    for overflow in ["drop", "wait"] {
        let job = up.submit(&spec(overflow)).await;
        wrote(&up, &job).await;
        // Frozen: nobody takes what the job writes.
        up.signal("-STOP");
        let container = docker(&host, &["ps", "--filter", &format!("name={}", id(&job).replace('-', "")), "--quiet"]);
        let main_is_gone = || async {
            let processes = docker(&host, &["top", &container, "-o", "pid,comm"]);
            (overflow == "wait" || !processes.contains("python")).then_some(())
        };
        until("a job that does not wait", main_is_gone).await;
        if overflow == "wait" {
            let processes = docker(&host, &["top", &container, "-o", "pid,comm"]);
            assert!(processes.contains("python"), "{processes}");
        }
        up.signal("-CONT");
        let job = up.ended(&job).await;
        assert_eq!((cause(&job), job["log"]["complete"].as_bool()), ("exit_code", Some(true)), "{job}");
        let out = &job["log"]["stdout"];
        let (bytes, dropped) = (out["bytes"].as_u64().expect("a number"), out["dropped"].as_u64().unwrap_or_default());
        assert_eq!(bytes + dropped, 9_000_000);
        // Each byte is where the gaps before it say that it belongs.
        let (mut next, mut at, mut gaps) = (1u64, 0u64, Vec::new());
        loop {
            let page = up.get(&format!("/v1/jobs/{}/logs?format=json&from={next}&max_bytes=4000000", id(&job))).await;
            for frame in page["frames"].as_array().expect("frames") {
                if let Some(gap) = frame["gap"].as_u64() {
                    gaps.push(gap);
                    at += gap;
                    continue;
                }
                for byte in frame["text"].as_str().expect("text").bytes() {
                    let line = format!("{:08}\n", at / 9);
                    assert_eq!(byte, line.as_bytes()[(at % 9) as usize], "byte {at}");
                    at += 1;
                }
            }
            next = page["next"].as_u64().expect("a number");
            if page["end"] == true {
                break;
            }
        }
        assert_eq!((at, gaps.iter().sum::<u64>()), (9_000_000, dropped));
        assert_eq!(overflow == "drop", dropped > 1_000_000, "{dropped}");
        let told = job["log"]["gaps"].as_array().map_or(0, Vec::len);
        assert_eq!(told, gaps.len().min(64));
        let logs = said(&up.command(&["job", "logs", id(&job)]).await);
        assert_eq!((logs.0, logs.1.len() as u64), (0, bytes));
        let missing = format!("{dropped} bytes are missing");
        assert_eq!((dropped > 0, dropped > 0), (logs.2.contains(&missing), !logs.2.is_empty()), "{}", logs.2);
        let followed = said(&up.command(&["job", "logs", "--follow", id(&job)]).await);
        assert_eq!((followed.0, followed.1.len() as u64), (0, bytes), "{}", followed.2);
        assert_eq!(followed.2.matches("bytes of stdout are missing here").count(), gaps.len());
    }
    up.stop().await;
}
