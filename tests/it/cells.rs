//! Cells from inside: who the job is, what it cannot do, what is known of it outside.

use super::stage::{Up, cause, docker, engine, fact, id, until};
use serde_json::json;
use std::time::{Duration, Instant};

#[tokio::test]
async fn the_receipt_shows_what_the_job_sees() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let job = up.bash("id -u; id -g; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; ls /sys/class/net; echo x > /nothing").await;
    let text = up.text(&job, "stdout").await;
    let uid = fact(&job, "uid");
    assert!(text.starts_with(&format!("{uid}\n{uid}\n")), "{text}");
    assert!(uid.parse::<u32>().is_ok_and(|uid| uid >= 200_000));
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "lo"] {
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
    assert!(up.text(&job, "stderr").await.contains("Read-only file system"));
    for (key, value) in [
        ("cap_eff", "0000000000000000"),
        ("no_new_privs", "1"),
        ("seccomp", "2"),
        ("interfaces", "lo"),
        ("root_readonly", "1"),
    ] {
        assert_eq!(fact(&job, key), value);
    }
    for tried in ["unshare_user", "mount", "socket_vsock", "raw_socket", "prlimit_pid1", "setpriority_pid1"] {
        assert_eq!(fact(&job, &format!("try.{tried}")), "EPERM");
    }
    assert_eq!(fact(&job, "try.io_uring"), "ENOSYS");
    up.stop().await;
}

#[tokio::test]
async fn two_cells_at_once_are_two_users_and_nothing_of_a_job_is_in_its_container() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let spec = json!({"preset": "bash", "script": "echo canary-script; read -r x; sleep 30", "stdin": "canary-stdin\n", "env": {"CANARY": "canary-env"}});
    let (one, two) = (up.submit(&spec).await, up.submit(&spec).await);
    up.phase(&one, "running").await;
    up.phase(&two, "running").await;
    let containers = up.containers();
    assert_eq!(containers.len(), 2);
    let mut users = Vec::new();
    for container in &containers {
        let inspected = docker(&host, &["inspect", container]);
        assert!(!inspected.contains("canary"), "{inspected}");
        users.push(docker(&host, &["inspect", "--format", "{{.Config.User}}", container]));
        let name = format!("/{container}");
        assert!([&one, &two].iter().any(|job| name.contains(&id(job).replace('-', ""))), "{name}");
    }
    assert_ne!(users[0], users[1]);
    for job in [&one, &two] {
        up.call(reqwest::Method::POST, &format!("/v1/jobs/{}/cancel", id(job)), None).await;
        assert_eq!(cause(&up.ended(job).await), "canceled");
    }
    up.stop().await;
}

#[tokio::test]
async fn a_job_cannot_harm_its_warden() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let script = r#"
import os, resource, signal, sys
def refused(what, call):
    try:
        call()
        print("NOT REFUSED:", what)
    except (PermissionError, OSError) as error:
        print("refused:", what)
refused("prlimit", lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0)))
refused("prlimit cpu", lambda: resource.prlimit(1, resource.RLIMIT_CPU, (1, 1)))
refused("setpriority", lambda: os.setpriority(os.PRIO_PROCESS, 1, 19))
refused("affinity", lambda: os.sched_setaffinity(1, {0}))
refused("fd", lambda: os.open("/proc/1/fd/1", os.O_WRONLY))
refused("mem", lambda: os.open("/proc/1/mem", os.O_RDWR))
refused("environ", lambda: open("/proc/1/environ", "rb").read())
for number in range(1, 32):
    if number not in (signal.SIGCHLD,):
        os.kill(1, number)
print("still here")
"#;
    let job = up.run(&json!({"preset": "python", "script": script})).await;
    let text = up.text(&job, "stdout").await;
    assert_eq!(job["ending"]["verdict"], "succeeded", "{text}{}", up.text(&job, "stderr").await);
    assert!(!text.contains("NOT REFUSED") && text.ends_with("still here\n"), "{text}");
    assert_eq!(text.matches("refused:").count(), 7);
    up.stop().await;
}

#[tokio::test]
async fn a_weaker_cell_never_runs_the_job() {
    let Some(host) = engine() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    // Everything allowed but one call, so that the mode is still "filter" and only what was tried tells.
    let profile = dir.path().join("weak.json");
    let weak =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]});
    std::fs::write(&profile, weak.to_string()).expect("writes");
    let up = Up::start(&host, &format!("docker: {{seccomp_profile: '{}'}}", profile.display())).await;
    let job = up.bash("echo it ran").await;
    assert_eq!((cause(&job), job["ending"]["verdict"].as_str()), ("cell_weaker", Some("cell_error")));
    let mismatches = job["ending"]["cause"]["mismatches"].to_string();
    assert!(mismatches.contains("try.prlimit_pid1") && mismatches.contains("try.setpriority_pid1"), "{mismatches}");
    assert_eq!(up.stream(&job, "both").await, b"");
    assert_eq!(job["log"]["frames"], 0);
    up.stop().await;
}

#[tokio::test]
async fn limits_bind_and_the_cause_is_named() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "docker: {tmp_size: 1MiB, workspace_size: 4MiB}").await;
    let hungry = json!({"preset": "python", "command": ["/usr/bin/python3", "-c", "x = bytearray(400 << 20)"], "resources": {"memory": "32MiB"}});
    let job = up.run(&hungry).await;
    assert_eq!((cause(&job), job["ending"]["process_exit_code"].as_u64()), ("out_of_memory", Some(137)), "{job}");
    let job = up.run(&json!({"preset": "bash", "script": "for i in $(seq 40); do sleep 5 & done; echo all", "resources": {"pids": 8}})).await;
    assert!(up.text(&job, "stderr").await.contains("Resource temporarily unavailable"), "{job}");
    let job = up.bash("head -c 8000000 /dev/zero > /workspace/full").await;
    assert!(up.text(&job, "stderr").await.contains("No space left on device"), "{job}");
    let job = up.bash("kill -SEGV $$").await;
    assert_eq!((cause(&job), job["ending"]["process_exit_code"].as_u64()), ("signal", Some(139)));
    up.stop().await;
}

#[tokio::test]
async fn a_timeout_ends_also_a_tree_that_ignores_term() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "agent: {grace: 1s}").await;
    let script = "trap '' TERM; (trap '' TERM; setsid sleep 600) & echo ready; sleep 600; sleep 600";
    let asked = Instant::now();
    let job = up.run(&json!({"preset": "bash", "script": script, "timeout": "2s"})).await;
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    assert_eq!((cause(&job), job["ending"]["process_exit_code"].as_u64()), ("timeout", Some(124)));
    assert_eq!(up.text(&job, "stdout").await, "ready\n");
    assert_eq!(job["log"]["complete"], true);
    up.stop().await;
}

#[tokio::test]
async fn a_cancel_ends_a_job_in_each_of_its_phases() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "agent: {slots: 1}").await;
    let cancel = |job: &serde_json::Value| format!("/v1/jobs/{}/cancel", id(job));
    let running = up
        .submit(&json!({"preset": "bash", "script": "trap 'echo told; exit 9' TERM; echo up; sleep 600 & wait"}))
        .await;
    let queued = up.submit(&json!({"preset": "bash", "script": "echo never"})).await;
    up.phase(&running, "running").await;
    let answer = up.call(reqwest::Method::POST, &cancel(&queued), None).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(cause(&answer.json().await.expect("JSON")), "canceled");
    until("the trap to be set", || async { (up.text(&running, "stdout").await == "up\n").then_some(()) }).await;
    let asked = Instant::now();
    assert_eq!(up.call(reqwest::Method::POST, &cancel(&running), None).await.status(), 202);
    let ended = up.ended(&running).await;
    assert_eq!((cause(&ended), ended["ending"]["process_exit_code"].as_u64()), ("canceled", Some(130)));
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!(up.text(&ended, "stdout").await, "up\ntold\n");
    let again = up.call(reqwest::Method::POST, &cancel(&running), None).await;
    assert_eq!(again.status(), 200);
    // Nothing of how the warden handles signals is left in the job.
    let job = up.bash("grep -E '^Sig(Blk|Ign):' /proc/self/status; yes | head -n 1").await;
    let zero = "0000000000000000";
    assert_eq!(up.text(&job, "both").await, format!("SigBlk:\t{zero}\nSigIgn:\t{zero}\ny\n"));
    up.stop().await;
}

#[tokio::test]
async fn stdin_env_and_workdir_reach_the_job() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let spec = json!({
        "preset": "bash", "script": "cat; echo \"$GREETING from $PWD as $HOME, $JOBCELL_ATTEMPT, $JOBCELL_JOB_ID, $TZ, ${0##*/}\"",
        "stdin": "line one\nline two\n", "env": {"GREETING": "hello", "HOME": "/tmp"}, "workdir": "/tmp",
    });
    let job = up.run(&spec).await;
    let wanted = format!("line one\nline two\nhello from /tmp as /tmp, 1, {}, UTC, .jobcell-script\n", id(&job));
    assert_eq!(up.text(&job, "stdout").await, wanted);
    up.stop().await;
}

#[tokio::test]
async fn a_job_may_ask_for_more_processors_than_there_are_and_for_a_hundredth_of_one() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "agent: {cpu: 512}").await;
    let job = up.run(&json!({"preset": "bash", "script": "true", "resources": {"cpu": 512}})).await;
    assert_eq!(job["ending"]["verdict"], "succeeded", "{job:#}");
    let quota = job["receipt"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|fact| fact[0] == "cpu_quota_us")
        .map(|fact| fact[1].clone());
    assert_eq!(quota, Some(json!("51200000")), "{job:#}");
    let least = up.run(&json!({"preset": "bash", "script": "true", "resources": {"cpu": 0.01}})).await;
    assert_eq!(least["ending"]["verdict"], "succeeded", "{least:#}");
    let response = up
        .call(
            reqwest::Method::POST,
            "/v1/jobs",
            Some(&json!({"preset": "bash", "script": "true", "resources": {"cpu": 0.009}})),
        )
        .await;
    assert_eq!(response.status().as_u16(), 422);
    up.stop().await;
}

#[tokio::test]
async fn a_job_runs_on_as_many_cores_as_it_may_use_the_time_of() {
    let Some(host) = engine() else { return };
    let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let spec = json!({"preset": "bash", "script": "grep Cpus_allowed_list /proc/self/status; nproc"});
    let free = Up::start(&host, "docker: {shared: true, pin_cores: false}").await;
    let job = free.run(&spec).await;
    assert!(free.text(&job, "stdout").await.ends_with(&format!("\n{all}\n")), "{job:#}");
    free.stop().await;
    if all < 2 {
        eprintln!("one core: nothing more to see here");
        return;
    }
    let mut up = Up::start(&host, "").await;
    let waits = json!({"preset": "bash", "script": "echo up; sleep 60", "resources": {"cpu": 0.6}});
    let first = up.submit(&waits).await;
    up.phase(&first, "running").await;
    // What runs since before the agent's end keeps its core to itself.
    up.crash().await;
    let second = up.run(&spec).await;
    let cores = |job: &serde_json::Value| fact(job, "cpus_allowed").to_owned();
    assert_eq!(up.text(&second, "stdout").await, format!("Cpus_allowed_list:\t{}\n1\n", cores(&second)));
    up.call(reqwest::Method::POST, &format!("/v1/jobs/{}/cancel", id(&first)), None).await;
    let first = up.ended(&first).await;
    assert_ne!(cores(&first), cores(&second), "{first:#}");
    up.stop().await;
}
