//! What an operator does with an installation that lives long: what is old goes, what is kept is copied and put back, and an agent that is
//! not trusted gets nothing.

use super::stage::{Up, cause, engine, id, said};
use reqwest::Method;
use serde_json::{Value, json};

async fn json_of(up: &Up, args: &[&str]) -> (i32, Value) {
    let (code, out, err) = said(&up.command(&[args, &["-o", "json"]].concat()).await);
    (code, serde_json::from_str(&out).unwrap_or_else(|_| panic!("{args:?}: {code} {out}{err}")))
}

#[tokio::test]
async fn old_jobs_and_output_go_and_who_asks_for_them_is_told() {
    let Some(host) = engine() else { return };
    let settings = "retention: {jobs_max: 3, output_max: 60B, jobs_keep: 0s, output_keep: 0s}";
    let up = Up::start(&host, settings).await;
    let mut jobs = Vec::new();
    for n in 0..5 {
        jobs.push(up.bash(&format!("echo job {n}")).await);
    }
    let (code, would) = json_of(&up, &["job", "gc", "--dry-run"]).await;
    assert_eq!((code, &would["dry_run"], &would["jobs"]), (0, &json!(true), &json!(2)), "{would}");
    assert_eq!(up.get("/v1/jobs").await["jobs"].as_array().map(Vec::len), Some(5), "nothing has gone");
    let (code, gone) = json_of(&up, &["job", "gc"]).await;
    assert_eq!((code, &gone["jobs"], &gone["outputs"]), (0, &would["jobs"], &would["outputs"]), "{gone}");
    for (n, job) in jobs.iter().enumerate() {
        let logs = up.call(Method::GET, &format!("/v1/jobs/{}/logs", id(job)), None).await;
        match n {
            0 | 1 => assert_eq!(logs.status().as_u16(), 404, "job {n}"),
            4 => assert_eq!(logs.text().await.expect("reads"), "job 4\n"),
            _ => {
                assert_eq!(logs.status().as_u16(), 410, "job {n}");
                let problem: Value = logs.json().await.expect("JSON");
                assert!(
                    problem["detail"].as_str().is_some_and(|why| why.contains("retention.output_max")),
                    "{problem}"
                );
                assert!(up.get(&format!("/v1/jobs/{}", id(job))).await["output_gone_at"].is_u64());
                for stream in ["logs/events", "logs/live"] {
                    let live = up.call(Method::GET, &format!("/v1/jobs/{}/{stream}", id(job)), None).await;
                    // A socket that is none is refused before it is asked what for.
                    assert!([410, 400].contains(&live.status().as_u16()), "{stream}: {}", live.status());
                }
            }
        }
    }
    let metrics = up.plain("/metrics").await.expect("answers").1;
    assert!(metrics.contains("jobcell_retention_removed_total{what=\"jobs\"} 2"), "{metrics}");
    let (_, lines) = json_of(&up, &["audit", "--action", "job.gc"]).await;
    assert!(lines.to_string().contains("2 jobs; output of 2 more"), "{lines}");
    up.stop().await;
}

#[tokio::test]
async fn a_backup_is_made_looked_at_and_put_back_and_goes_on() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "agent: {slots: 2}").await;
    let job = up.bash("echo kept").await;
    let backup = up.dir.path().join("backup");
    let backup = backup.to_str().expect("a path");
    let (code, made) = json_of(&up, &["backup", "create", backup]).await;
    assert_eq!((code, &made["ended"]), (0, &json!(1)), "{made}");
    let (code, _, err) = said(&up.command(&["backup", "create", backup]).await);
    assert!(code == 1 && err.contains("is not empty"), "{err}");
    let (code, out, _) = said(&up.command(&["backup", "verify", backup]).await);
    assert!(code == 0 && out.ends_with("whole\n"), "{out}");
    let (code, _, err) = said(&up.command(&["backup", "restore", backup]).await);
    assert!(code == 69 && err.contains("stop it first"), "{code} {err}");
    let data = up.data();
    let kept = std::path::Path::new(backup).to_owned();
    let dir = up.retire().await;
    std::fs::rename(&data, dir.path().join("before")).expect("renames");
    // Nothing runs: the program alone.
    let restored = std::process::Command::new(super::stage::JOBCELL)
        .args(["backup", "restore"])
        .arg(&kept)
        .arg("--data-dir")
        .arg(&data)
        .output()
        .expect("runs");
    let (code, out, err) = said(&restored);
    assert!(code == 0 && out.contains("as it was at") && err.contains("wait again"), "{code} {out}{err}");
    let up = Up::start_in(dir, &host, "agent: {slots: 2}").await;
    assert_eq!(up.text(&job, "stdout").await, "kept\n");
    let next = up.bash("echo on").await;
    assert_eq!((up.text(&next, "stdout").await.as_str(), cause(&next)), ("on\n", "exit_code"));
    up.stop().await;
}

#[tokio::test]
async fn a_quarantined_agent_gets_nothing_over_restarts_until_it_is_trusted_again() {
    let Some(host) = engine() else { return };
    let mut up = Up::start(&host, "agent: {name: here, slots: 2}").await;
    let runs = up
        .submit(&json!({"preset": "bash", "script": "read -r x < <(sleep 600)", "retry": {"infrastructure": 0}}))
        .await;
    up.phase(&runs, "running").await;
    let (code, _, err) = said(&up.command(&["quarantine", "here", "--reason", ""]).await);
    assert!(code == 2 && err.contains("reason"), "{code} {err}");
    let (code, answer) = json_of(&up, &["quarantine", "here", "--reason", "its key leaked", "--stop"]).await;
    assert_eq!((code, &answer["stopped"], &answer["drained"]["quarantined"]), (0, &json!(1), &json!(true)), "{answer}");
    let ended = up.ended(&runs).await;
    assert_eq!(cause(&ended), "agent_lost", "{ended}");
    up.crash().await;
    let (_, table, _) = said(&up.command(&["agents", "list"]).await);
    assert!(table.contains("quarantined: its key leaked"), "{table}");
    let waits = up.submit(&json!({"preset": "bash", "script": "echo later"})).await;
    assert!(up.plain("/metrics").await.expect("answers").1.contains("jobcell_agents_quarantined 1"));
    let (code, _, err) = said(&up.command(&["resume", "here"]).await);
    assert!(code != 0 && err.contains("--quarantined"), "{code} {err}");
    said(&up.command(&["drain", "here", "--reason", "a new kernel"]).await);
    let explained = up.get(&format!("/v1/jobs/{}/explain", id(&waits))).await;
    assert!(
        explained["reason"].as_str().is_some_and(|why| why.contains("quarantined by an operator: its key")),
        "{explained}"
    );
    let (code, _, err) = said(&up.command(&["resume", "here", "--quarantined"]).await);
    assert_eq!(code, 0, "{err}");
    up.ended(&waits).await;
    up.stop().await;
}
