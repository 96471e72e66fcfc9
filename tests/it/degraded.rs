//! An agent whose host is in a bad way: it says so, takes no jobs, and goes on by itself.

use super::stage::{Up, cause, engine, id, until};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;

/// A small file system in memory; gone with the value, and so is the folder above it.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&at).expect("makes");
        let options = format!("size={size},mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&at).status();
        assert!(mounted.expect("mount runs").success(), "a tmpfs needs root");
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
        let _ = std::fs::remove_dir_all(self.0.parent().expect("has one"));
    }
}

/// The agent's part of the health report.
async fn says(up: &Up, words: &str) -> Option<()> {
    let (_, health) = up.plain("/healthz").await?;
    let health: Value = serde_json::from_str(&health).ok()?;
    health["components"]["agent"]["reason"].as_str().unwrap_or_default().contains(words).then_some(())
}

#[tokio::test]
async fn a_disk_that_fills_up_stops_claims_then_output_and_nothing_is_lost() {
    let Some(host) = engine() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    let _small = Small::mount(data.clone(), "200m");
    let up = Up::start_in(dir, &host, "agent: {disk_floor: 100MiB}").await;
    until("readiness", || async { up.plain("/readyz").await.filter(|(status, _)| *status == 200) }).await;
    let script =
        "echo begun; while [ ! -e go ]; do sleep 0.05; done; head -c 60000000 /dev/zero | tr '\\0' x; echo end";
    let slow = script.replace("while [ ! -e go ]; do sleep 0.05; done", "sleep 8");
    let job = up.submit(&json!({"preset": "bash", "script": slow})).await;
    up.phase(&job, "running").await;
    // 180 of 200 MiB: less than a quarter of the floor is left.
    let filler = data.join("filler");
    std::fs::write(&filler, vec![1; 180 << 20]).expect("fits");
    until("a sentence", || says(&up, "running jobs wait when they write")).await;
    let waits = up.submit(&json!({"preset": "bash", "script": "echo later"})).await;
    // Ready means that a job would be run.
    assert_eq!(up.plain("/readyz").await.map(|(status, _)| status), Some(503));
    // Its output has nowhere to go, so it cannot end.
    let path = format!("/v1/jobs/{}?wait=10s", id(&job));
    let job = up.get(&path).await;
    assert!(job["ending"].is_null(), "{job}");
    assert_eq!(up.get(&format!("/v1/jobs/{}", id(&waits))).await["phase"], "queued");
    std::fs::remove_file(&filler).expect("is there");
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), &job["log"]["complete"]), ("exit_code", &json!(true)), "{job}");
    assert_eq!(job["log"]["stdout"]["bytes"], 60_000_010);
    assert_eq!(cause(&up.ended(&waits).await), "exit_code");
    up.stop().await;
}

#[tokio::test]
async fn a_host_that_fails_job_after_job_takes_none_for_a_while() {
    let Some(host) = engine() else { return };
    // A profile that lets too much through: every cell is weaker than it has to be.
    let dir = tempfile::tempdir().expect("a folder");
    let profile = dir.path().join("weak.json");
    let weak =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]});
    std::fs::write(&profile, weak.to_string()).expect("writes");
    let up =
        Up::start(&host, &format!("docker: {{seccomp_profile: '{}'}}\nagent: {{slots: 1}}", profile.display())).await;
    for _ in 0..5 {
        assert_eq!(cause(&up.bash("true").await), "cell_weaker");
    }
    until("a sentence", || says(&up, "5 jobs in a row failed because of this host")).await;
    let job = up.submit(&json!({"preset": "bash", "script": "true"})).await;
    let explained = until("an explanation", || async {
        let told = up.get(&format!("/v1/jobs/{}/explain", id(&job))).await;
        told.to_string().contains("failed because of this host").then_some(told)
    })
    .await;
    assert_eq!(explained["phase"], "queued", "{explained}");
    up.stop().await;
}
