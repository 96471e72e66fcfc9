//! A warden on a host, and what goes away around it: connections, agents, the warden itself; and hosts that cannot have one.

use super::super::programs;
use super::super::stage::{Up, cause, fact, until};
use super::jobs::{NO_ENGINE, inventory, on, processes, records, stage, stop};
use super::resident::{base, has_said, hubs, script, wardens};
use super::sshd;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A job that counts for some seconds, and says first which process it is.
fn counting() -> Value {
    script("echo \"pid $$\"; i=0; while [ $i -lt 80 ]; do echo $i; i=$((i+1)); sleep 0.05; done")
}

/// It ran once, in one process, and all that it wrote is there.
async fn assert_whole(up: &Up, job: &Value) {
    assert_eq!((cause(job), &job["ending"]["verdict"]), ("exit_code", &json!("succeeded")), "{job}\n{}", up.log());
    assert_eq!((&job["attempt"], &job["log"]["complete"]), (&json!(1), &json!(true)), "{job}");
    let out = up.text(job, "stdout").await;
    let (first, rest) = out.split_once('\n').expect("a line");
    assert!(first.starts_with("pid ") && out.matches("pid").count() == 1, "{out}");
    let wanted: String = (0..80).map(|n| format!("{n}\n")).collect();
    assert_eq!(rest, wanted);
    assert!(processes(job).is_empty());
}

#[tokio::test]
async fn a_connection_that_is_cut_costs_a_job_nothing() {
    let Some((_folder, sshd, up)) = stage("", "queue: {max_attempts: 1}\n").await else { return };
    let job = up.submit(&counting()).await;
    for seen in ["\n10\n", "\n40\n"] {
        has_said(&up, &job, seen).await;
        let before = hubs(&up);
        sshd.cut();
        assert_eq!((before.len(), hubs(&up)), (1, before.clone()), "the warden stays");
    }
    let job = up.ended(&job).await;
    assert_whole(&up, &job).await;
    stop(up).await;
}

#[tokio::test]
async fn an_agent_that_is_killed_costs_a_job_nothing() {
    let Some((_folder, _sshd, mut up)) = stage("", "queue: {max_attempts: 1}\n").await else { return };
    let (job, short) = (up.submit(&counting()).await, up.submit(&script("sleep 1; echo short; exit 4")).await);
    has_said(&up, &job, "\n10\n").await;
    assert_eq!(records(&up).len(), 2);
    let before = processes(&job);
    up.kill().await;
    // One ends while nobody is there.
    until("the short one to end", || async { processes(&short).is_empty().then_some(()) }).await;
    assert!(before.iter().any(|pid| processes(&job).contains(pid)), "it runs on");
    up.revive().await;
    let (job, short) = (up.ended(&job).await, up.ended(&short).await);
    assert_whole(&up, &job).await;
    assert_eq!((&short["ending"]["cause"]["exit_code"], &short["attempt"]), (&json!(4), &json!(1)), "{short}");
    assert_eq!(up.text(&short, "stdout").await, "short\n");
    stop(up).await;
}

#[tokio::test]
async fn jobs_are_handed_over_to_the_next_start() {
    let Some((_folder, _sshd, mut up)) =
        stage("", "agent: {drain_mode: handover, drain_timeout: 60s}\nqueue: {max_attempts: 1}\n").await
    else {
        return;
    };
    let job = up.submit(&counting()).await;
    has_said(&up, &job, "\n10\n").await;
    up.signal("-TERM");
    assert_eq!(up.exit_code().await, Some(0), "{}", up.log());
    assert!(!processes(&job).is_empty(), "it was not waited for, and runs on");
    std::fs::remove_file(up.data().join("endpoint")).ok();
    up.revive().await;
    let job = up.ended(&job).await;
    assert_whole(&up, &job).await;
    stop(up).await;
}

#[tokio::test]
async fn a_job_to_which_no_way_is_known_any_more_is_waited_for() {
    if !sshd::present() {
        return;
    }
    let folder = sshd::Folder::new();
    let sshd = folder.sshd("");
    let good = inventory(&folder, &sshd);
    let path = folder.write("inventory.yaml", &good);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("sets the mode");
    let settings = format!(
        "docker: {{enabled: false, reconnect_timeout: 1s}}\nssh: {{inventory: '{}'}}\nqueue: {{max_attempts: 1}}\n",
        path.display()
    );
    let mut up = Up::start(NO_ENGINE, &settings).await;
    let job = up.submit(&counting()).await;
    has_said(&up, &job, "\n10\n").await;
    up.kill().await;
    std::fs::write(&path, good.replace("web1", "web2")).expect("writes");
    up.revive().await;
    until("it is missed", || async { up.log().contains("cannot be reached").then_some(()) }).await;
    // For longer than one that nobody could talk to is looked for.
    let missed = Instant::now();
    until("time to give up", || async { (missed.elapsed() > Duration::from_secs(3)).then_some(()) }).await;
    std::fs::write(&path, good).expect("writes");
    up.signal("-HUP");
    let job = up.ended(&job).await;
    assert_whole(&up, &job).await;
    stop(up).await;
}

#[tokio::test]
async fn with_its_warden_a_job_is_lost_and_nothing_of_it_is_left() {
    let Some((_folder, _sshd, up)) = stage("", "queue: {max_attempts: 1}\n").await else { return };
    for victim in ["jobcell-hub", "jobcell-keeper"] {
        let job = up.submit(&script("trap '' TERM; setsid sleep 300 & echo begun; sleep 300")).await;
        has_said(&up, &job, "begun").await;
        let [pid] = wardens(&base(&up), victim)[..] else { panic!("there is one {victim}") };
        sshd::must("kill", &["-KILL", &pid.to_string()]);
        let job = up.ended(&job).await;
        assert_eq!(cause(&job), "cell_lost", "{victim}: {job}\n{}", up.log());
        assert!(processes(&job).is_empty(), "it does not run when it is told as lost");
        assert_eq!((up.text(&job, "stdout").await.as_str(), &job["log"]["complete"]), ("begun\n", &json!(false)));
        let folders =
            || std::fs::read_dir(base(&up)).expect("reads").flatten().filter(|one| one.path().is_dir()).count();
        until("its folder goes", || async { (folders() == 0).then_some(()) }).await;
        // The next job has a warden again.
        let job = up.run(&script("true")).await;
        assert_eq!((&job["ending"]["verdict"], fact(&job, "mode")), (&json!("succeeded"), "resident"), "{job}");
    }
    stop(up).await;
}

#[tokio::test]
async fn what_was_changed_on_the_host_is_not_run() {
    let Some((_folder, sshd, up)) = stage("", "queue: {max_attempts: 1}\n").await else { return };
    let job = up.submit(&counting()).await;
    has_said(&up, &job, "\n5\n").await;
    let program = || {
        let files = std::fs::read_dir(base(&up)).expect("reads").flatten().map(|entry| entry.path());
        let is = |path: &std::path::PathBuf| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            name.starts_with("warden-") && !name.ends_with(".sock") && !name.ends_with(".lock")
        };
        files.filter(is).collect::<Vec<_>>()
    };
    let [file] = &program()[..] else { panic!("{:?}", program()) };
    let good = std::fs::read(file).expect("reads");
    let mark = up.dir.path().join("ran");
    let bad = up.dir.path().join("bad");
    std::fs::write(&bad, format!("#!/bin/sh\ntouch {}\n", mark.display())).expect("writes");
    std::fs::set_permissions(&bad, std::fs::Permissions::from_mode(0o755)).expect("sets the mode");
    std::fs::copy(&bad, file.with_extension("new")).expect("copies");
    std::fs::rename(file.with_extension("new"), file).expect("renames");
    sshd::must("chown", &[sshd::login(), &file.display().to_string()]);
    sshd.cut();
    let job = up.ended(&job).await;
    assert_whole(&up, &job).await;
    assert!(!mark.exists() && std::fs::read(file).expect("reads") == good, "it was replaced");
    stop(up).await;
}

/// A folder of programs that come before the host's own.
fn fakes(folder: &sshd::Folder, programs: &[(&str, &str)]) -> String {
    let path = folder.path("fakes");
    std::fs::create_dir_all(&path).expect("makes");
    for (name, text) in programs {
        let file = path.join(name);
        programs::put(&file, format!("#!/bin/sh\n{text}\n"), 0o755);
    }
    path.display().to_string()
}

async fn assert_plain(settings: &str, wanted: &str) {
    let Some((_folder, _sshd, up)) = stage(settings, "").await else { return };
    let job = up.run(&script("echo here")).await;
    assert_eq!((cause(&job), up.text(&job, "stdout").await.as_str()), ("exit_code", "here\n"), "{job}\n{}", up.log());
    assert_eq!(fact(&job, "mode"), "plain", "{job}");
    assert!(fact(&job, "plain_because").contains(wanted), "{job}");
    assert!(up.log().contains("no warden can stay there"), "{}", up.log());
    // What a shell cannot do is refused, with why there is nothing better.
    let mut spec = script("touch /tmp/ran-although-it-should-not");
    spec["inputs"] = json!([{"path": "x", "text": "y"}]);
    let job = up.run(&spec).await;
    assert_eq!(cause(&job), "target_unsupported", "{job}");
    assert!(job["ending"]["cause"]["reason"].as_str().is_some_and(|why| why.contains(wanted)), "{job}");
    stop(up).await;
}

#[tokio::test]
async fn a_host_that_cannot_have_a_warden_gets_its_jobs_in_plain_mode_and_says_why() {
    if !sshd::present() {
        return;
    }
    let folder = sshd::Folder::new();
    let path = |fakes: String| format!("SetEnv PATH={fakes}:/usr/bin:/bin\n");
    assert_plain(&path(fakes(&folder, &[("uname", "echo sparc64")])), "its processor is sparc64").await;
    std::fs::remove_dir_all(folder.path("fakes")).expect("removes");
    // As on a file system without execution.
    let no_exec =
        fakes(&folder, &[("chmod", "case $1 in 700) [ -d \"$2\" ] || exit 0;; esac; exec /bin/chmod \"$@\"")]);
    assert_plain(&path(no_exec), "cannot be run there").await;
    std::fs::remove_dir_all(folder.path("fakes")).expect("removes");
    let few = folder.path("few");
    std::fs::create_dir_all(&few).expect("makes");
    for entry in ["/usr/bin", "/bin"].into_iter().flat_map(|dir| std::fs::read_dir(dir).expect("reads").flatten()) {
        if entry.file_name() != "sha256sum" {
            let _ = std::os::unix::fs::symlink(entry.path(), few.join(entry.file_name()));
        }
    }
    assert_plain(&format!("SetEnv PATH={}\n", few.display()), "no sha256sum").await;
}

#[tokio::test]
async fn a_forced_command_gets_no_job() {
    let Some((_folder, _sshd, up)) = stage("ForceCommand /bin/echo only this\n", "").await else { return };
    let mut spec = on(&json!({"host": "web1"}), &json!({"command": ["true"]}));
    spec["retry"] = json!({"infrastructure": 0});
    let job = up.run(&spec).await;
    assert_eq!(cause(&job), "host_refused", "{job}");
    assert!(job["ending"]["cause"]["reason"].as_str().is_some_and(|why| why.contains("forced command")), "{job}");
    assert!(!Path::new(&base(&up)).exists());
    stop(up).await;
}
