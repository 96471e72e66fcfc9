//! Hosts, and engines, that are down: what waits for them uses up no tries, and nothing else waits.

use super::super::stage::{Up, cause, id, until};
use super::jobs::{NO_ENGINE, inventory, on, script, stop, up_with};
use super::sshd::{self, Folder};
use reqwest::Method;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

fn remote(more: &Value) -> Value {
    on(&json!({"host": "web1", "mode": "plain"}), more)
}

/// Jobs that fail with what was tried, until nobody tries any more.
async fn leave_alone(up: &Up) {
    for _ in 0..5 {
        let spec = remote(&json!({"command": ["true"], "retry": {"infrastructure": 0}}));
        let job = up.run(&spec).await;
        assert_eq!(cause(&job), "host_unreachable", "{job}\n{}", up.log());
    }
}

#[tokio::test]
async fn a_host_that_is_left_alone_costs_a_job_no_try_and_others_no_slot() {
    if !sshd::present() {
        return;
    }
    let folder = Folder::new();
    let mut sshd = folder.sshd("");
    let well = folder.sshd("");
    let (address, port, login) = (&well.address, well.port, sshd::login());
    let second = format!("hosts:\n  web2: {{address: {address}, port: {port}, login: {login}, credential: user}}\n");
    let both = inventory(&folder, &sshd).replace("hosts:\n", &second);
    let up = up_with(&folder, &both, "agent: {slots: 1}\n").await;
    sshd.kill();
    leave_alone(&up).await;
    // One that has no try to spare.
    let spec = remote(&json!({"script": "echo here", "retry": {"infrastructure": 0}}));
    let job = up.submit(&spec).await;
    let path = format!("/v1/jobs/{}", id(&job));
    let put_off = until("it is put off", || async {
        let job = up.get(&path).await;
        assert!(job["ending"].is_null(), "{job}\n{}", up.log());
        (!job["put_off"].is_null() && job["phase"] == "queued").then_some(job)
    })
    .await;
    let reason = put_off["put_off"]["reason"].as_str().expect("a sentence");
    assert!(reason.contains("web1") && reason.contains("left alone"), "{reason}");
    assert_eq!(put_off["history"].as_array().expect("one").last().expect("an entry")["reason"], "no_cell_yet");
    let told = up.get(&format!("{path}/explain")).await;
    assert!(told["code"] == "put_off" || told["phase"] != "queued", "{told}");
    // Its slot, the only one, is not held meanwhile.
    let (other, began) =
        (up.run(&on(&json!({"host": "web2", "mode": "plain"}), &json!({"command": ["true"]}))).await, Instant::now());
    assert_eq!(cause(&other), "exit_code", "{other}\n{}", up.log());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    sshd.restart();
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), &job["past_tries"]), ("exit_code", &json!([])), "{job}\n{}", up.log());
    assert_eq!(up.text(&job, "stdout").await, "here\n");
    assert!(job["put_off"].is_null(), "{job}");
    stop(up).await;
}

#[tokio::test]
async fn an_agent_whose_engine_is_away_takes_jobs_for_hosts() {
    if !sshd::present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let file = folder.write("inventory.yaml", &inventory(&folder, &sshd));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("sets the mode");
    let up = Up::start_unready(NO_ENGINE, &format!("ssh: {{inventory: '{}'}}\n", file.display())).await;
    let waiting = up.submit(&json!({"image": "debian:12", "command": ["true"]})).await;
    for _ in 0..2 {
        let job = up.run(&script("echo here")).await;
        assert_eq!(cause(&job), "exit_code", "{job}\n{}", up.log());
    }
    let told = up.get(&format!("/v1/jobs/{}/explain", id(&waiting))).await;
    assert_eq!(told["code"], "agents_away", "{told}");
    assert!(told["reason"].as_str().expect("a sentence").contains("no jobs in containers now"), "{told}");
    assert_eq!(up.get(&format!("/v1/jobs/{}", id(&waiting))).await["attempt"], 0, "nobody has claimed it");
    let agents = up.get("/v1/agents").await;
    assert_eq!(agents["agents"][0]["state"], "online", "{agents}");
    assert!(agents["agents"][0]["load"]["away"]["docker"].is_string(), "{agents}");
    let (_, metrics) = up.plain("/metrics").await.expect("answers");
    assert!(metrics.contains("jobcell_kind_away{kind=\"docker\"} 1"), "{metrics}");
    assert!(metrics.contains("jobcell_kind_away{kind=\"ssh\"} 0"), "{metrics}");
    // It can work, and not as it was told to: nobody should start it anew for that.
    assert_eq!(up.plain("/readyz").await.map(|(status, _)| status), Some(200));
    let health = up.get("/healthz").await;
    assert_eq!(health["components"]["engine"]["state"], "degraded", "{health}");
    let reason = health["components"]["engine"]["reason"].as_str().expect("a sentence");
    assert!(reason.contains("jobs for hosts are taken") && reason.contains("nowhere"), "{reason}");
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&waiting)), None).await;
    stop(up).await;
    drop(sshd);
}
