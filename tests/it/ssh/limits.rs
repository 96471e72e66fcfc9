//! Limits of jobs on hosts: held by a control group of the job's own where the login may make some, and said to be missed where it may not.

use super::super::stage::{Up, cause, fact, id, until};
use super::jobs::{on, stage, stop};
use super::resident::{base, has_said, hubs, wardens};
use super::sshd::{self, Sshd, must};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// Where the login may make control groups while a test runs.
enum Given {
    /// Version 1: groups that are the login's, with a server in them; gone with the value, and with them whoever is there.
    Own(Vec<PathBuf>),
    /// Version 2: the login lingers, and its own systemd gives its hubs scopes below this folder.
    Scopes(PathBuf),
}

impl Given {
    /// `None` where there are none to give.
    fn to(sshd: &Sshd) -> Option<Self> {
        match std::fs::exists("/sys/fs/cgroup/cgroup.controllers").expect("looks") {
            true => Self::scopes(),
            false => Self::own(sshd),
        }
    }

    fn own(sshd: &Sshd) -> Option<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup").expect("reads");
        let folder = |controller: &str| {
            let has =
                |line: &&str| line.split(':').nth(1).is_some_and(|all| all.split(',').any(|one| one == controller));
            let below = own.lines().find(has)?.splitn(3, ':').nth(2)?.trim_matches('/');
            Some(PathBuf::from("/sys/fs/cgroup").join(controller).join(below)).filter(|folder| folder.is_dir())
        };
        let all: Option<Vec<PathBuf>> = CONTROLLERS.iter().map(|name| folder(name)).collect();
        let Some(all) = all.filter(|_| rustix::process::geteuid().is_root()) else {
            eprintln!("SKIPPED: only root can give control groups of version 1 away");
            return None;
        };
        let name = format!("jobcell-test-{}", sshd.pid());
        let folders: Vec<PathBuf> = all.into_iter().map(|folder| folder.join(&name)).collect();
        for folder in &folders {
            std::fs::create_dir(folder).expect("makes");
            let door = folder.join("cgroup.procs");
            std::fs::write(&door, sshd.pid().to_string()).expect("goes in");
            must("chown", &[sshd::login(), &folder.display().to_string(), &door.display().to_string()]);
        }
        Some(Self::Own(folders))
    }

    /// Only where somebody has made the login linger: to do so here would change what other tests see of it.
    fn scopes() -> Option<Self> {
        let uid = must("id", &["-u", sshd::login()]);
        let uid = uid.trim();
        let folder = PathBuf::from(format!("/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service"));
        let given = std::fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
        let lingers = PathBuf::from("/var/lib/systemd/linger").join(sshd::login()).exists();
        if lingers && CONTROLLERS.iter().all(|name| given.split_ascii_whitespace().any(|one| one == *name)) {
            return Some(Self::Scopes(folder));
        }
        eprintln!(
            "SKIPPED: with version 2 the login has to linger, and its user@.service has to have cpu, memory and pids"
        );
        None
    }

    /// Groups of jobs.
    fn jobs(&self) -> Vec<PathBuf> {
        match self {
            Self::Own(folders) => folders.iter().flat_map(|folder| below(folder)).collect(),
            Self::Scopes(folder) => in_scopes(folder),
        }
    }

    /// How many of them one job has.
    fn of_one(&self) -> usize {
        match self {
            Self::Own(folders) => folders.len(),
            Self::Scopes(_) => 1,
        }
    }

    /// A script that prints its own limits of memory, processes and the processor; what it prints with those of the test, and what stands there
    /// where nothing binds it.
    fn limits(&self) -> (&'static str, &'static str, [&'static str; 2]) {
        match self {
            Self::Own(_) => (OWN_LIMITS, "67108864\n20\n50000\n", ["max", "-1"]),
            Self::Scopes(_) => (OWN_LIMITS_V2, "67108864\n20\n50000 100000\n", ["max", "max 100000"]),
        }
    }
}

/// Folders in a folder; none where it has gone meanwhile.
fn below(folder: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    all.filter(|path| path.is_dir()).collect()
}

/// Groups of jobs in scopes somewhere below.
fn in_scopes(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for one in below(folder) {
        let name = one.file_name().expect("a name").to_string_lossy().into_owned();
        match name.starts_with("jobcell-") && !name.ends_with(".scope") && name != "jobcell-hub" {
            true => found.push(one),
            false => found.extend(in_scopes(&one)),
        }
    }
    found
}

impl Drop for Given {
    fn drop(&mut self) {
        let Self::Own(folders) = self else { return };
        for folder in folders.iter().flat_map(|folder| below(folder)).chain(folders.iter().cloned()) {
            let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while std::fs::remove_dir(&folder).is_err() && std::time::Instant::now() < end {
                for pid in std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default().lines() {
                    let _ = std::process::Command::new("kill").args(["-KILL", pid]).status();
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
}

fn job(command: &[&str], resources: &Value) -> Value {
    on(&json!({"host": "web1"}), &json!({"command": command, "resources": resources}))
}

const OWN_LIMITS: &str = r#"
own() { sed -nE "s/^[0-9]+:(.*,)?$1(,.*)?:(.*)/\3/p" /proc/self/cgroup; }
cat "/sys/fs/cgroup/memory$(own memory)/memory.limit_in_bytes" "/sys/fs/cgroup/pids$(own pids)/pids.max" \
  "/sys/fs/cgroup/cpu$(own cpu)/cpu.cfs_quota_us"
"#;
const OWN_LIMITS_V2: &str =
    "own=$(sed -n 's/^0:://p' /proc/self/cgroup); cd \"/sys/fs/cgroup$own\" && cat memory.max pids.max cpu.max";

fn reasons(job: &Value) -> Vec<&str> {
    job["history"].as_array().expect("one").iter().filter_map(|event| event["reason"].as_str()).collect()
}

#[tokio::test]
async fn a_job_is_held_to_what_it_asks_for() {
    let Some((_folder, sshd, up)) = stage("", "agent: {slots: 2}\n").await else { return };
    let Some(given) = Given::to(&sshd) else { return stop(up).await };
    let all = json!({"memory": "64MiB", "pids": 20, "cpu": 0.5});
    let (own, bound, unbound) = given.limits();
    let held = up.run(&job(&["sh", "-c", own], &all)).await;
    assert_eq!(up.text(&held, "stdout").await, bound, "{held}\n{}", up.log());
    assert_eq!(fact(&held, "limits"), "memory 64MiB, pids 20, cpu 0.5");
    assert_eq!(fact(&held, "cgroup"), "its own where it asks for limits");
    assert_eq!(
        (fact(&held, "cgroup_limits"), reasons(&held).contains(&"started")),
        ("memory,pids,cpu", true),
        "{held}"
    );
    let none = || until("no groups", || async { given.jobs().is_empty().then_some(()) });
    none().await;

    // Whoever asks for nothing is bound by nothing, and costs no group.
    let free = up.run(&job(&["sh", "-c", own], &json!({}))).await;
    let told = up.text(&free, "stdout").await;
    assert!(told.lines().skip(1).eq(unbound), "{told}");
    assert_eq!(free["spec"]["resources"], json!({}), "{free}");

    let eats = up.run(&job(&["tail", "/dev/zero"], &json!({"memory": "64MiB"}))).await;
    assert_eq!(cause(&eats), "out_of_memory", "{eats}");
    assert_eq!(eats["ending"]["cause"]["limit"], "64MiB", "{eats}");
    let forks = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1 & done; wait; exit 0";
    let forks = up.run(&job(&["bash", "-c", forks], &json!({"pids": 6}))).await;
    let met = forks["usage"]["limits_met"].as_array().expect("some").clone();
    assert!(met.len() == 1 && met[0]["name"] == "pids", "{forks}");
    none().await;
    stop(up).await;
    drop(sshd);
}

#[tokio::test]
async fn an_agent_that_comes_back_knows_what_its_jobs_are_held_to() {
    let Some((_folder, sshd, mut up)) = stage("", "queue: {max_attempts: 1}\n").await else { return };
    let Some(given) = Given::to(&sshd) else { return stop(up).await };
    let (own, bound, _) = given.limits();
    let script = format!("echo here; while [ ! -e on ]; do sleep 0.05; done; {own}");
    let spec = job(&["sh", "-c", &script], &json!({"memory": "64MiB", "pids": 20, "cpu": 0.5}));
    let held = up.submit(&spec).await;
    has_said(&up, &held, "here").await;
    up.kill().await;
    assert_eq!(given.jobs().len(), given.of_one(), "it runs on in its groups");
    up.revive().await;
    let work = base(&up).join(id(&held).replace('-', "") + "-1-0").join("work");
    std::fs::write(work.join("on"), "").expect("writes");
    let held = up.ended(&held).await;
    assert_eq!(up.text(&held, "stdout").await, format!("here\n{bound}"), "{held}\n{}", up.log());
    assert_eq!(
        (fact(&held, "cgroup_limits"), fact(&held, "limits")),
        ("memory,pids,cpu", "memory 64MiB, pids 20, cpu 0.5"),
        "{held}"
    );
    until("no groups", || async { given.jobs().is_empty().then_some(()) }).await;
    stop(up).await;
    drop(sshd);
}

#[tokio::test]
async fn groups_go_with_their_jobs_whoever_is_killed() {
    let Some((_folder, sshd, up)) = stage("", "").await else { return };
    let Some(given) = Given::to(&sshd) else { return stop(up).await };
    let stays = |up: &Up| {
        let folder = base(up);
        move |name: &str| wardens(&folder, name)
    };
    let mut spec = job(&["sh", "-c", "echo here; setsid sleep 300 & sleep 300"], &json!({"pids": 50}));
    spec["retry"] = json!({"infrastructure": 0});
    let lost = up.submit(&spec).await;
    has_said(&up, &lost, "here").await;
    assert_eq!(given.jobs().len(), given.of_one());
    for pid in stays(&up)("jobcell-keeper") {
        must("kill", &["-KILL", &pid.to_string()]);
    }
    assert_eq!(cause(&up.ended(&lost).await), "cell_lost");
    until("no groups", || async { given.jobs().is_empty().then_some(()) }).await;

    // Hub and keeper at the same moment. And one of a job that no agent asks for any more: the next hub removes it.
    let lost = up.submit(&spec).await;
    has_said(&up, &lost, "here").await;
    for group in given.jobs() {
        let name = group.file_name().expect("a name").to_string_lossy().into_owned();
        let (prefix, _) = name.rsplit_once(&id(&lost).replace('-', "")).expect("named by its job");
        let before = group.with_file_name(format!("{prefix}of-before"));
        std::fs::create_dir_all(before.join("below")).expect("makes");
        must("chown", &["-R", sshd::login(), &before.display().to_string()]);
    }
    let both: Vec<u32> = [stays(&up)("jobcell-keeper"), hubs(&up)].concat();
    assert_eq!(both.len(), 2);
    let pids: Vec<String> = both.iter().map(u32::to_string).collect();
    must("kill", &["-KILL", &pids[0], &pids[1]]);
    assert_eq!(cause(&up.ended(&lost).await), "cell_lost");
    let next = up.run(&job(&["true"], &json!({"pids": 50}))).await;
    assert_eq!(cause(&next), "exit_code", "{next}\n{}", up.log());
    until("no groups", || async { given.jobs().is_empty().then_some(()) }).await;
    stop(up).await;
    drop(sshd);
}

#[tokio::test]
async fn limits_that_nobody_can_hold_a_job_to_are_named() {
    let Some((_folder, _sshd, up)) = stage("", "").await else { return };
    let asks = |mode: &str| {
        on(
            &json!({"host": "web1", "mode": mode}),
            &json!({"command": ["true"], "resources": {"memory": "64MiB", "cpu": 0.5}}),
        )
    };
    let free = up.run(&asks("auto")).await;
    assert_eq!((cause(&free), fact(&free, "mode")), ("exit_code", "resident"), "{free}\n{}", up.log());
    let missed = fact(&free, "limits_not_in_force");
    assert!(missed.starts_with("memory 64MiB, cpu 0.5: ") && missed.contains("control group"), "{missed}");
    assert!(reasons(&free).contains(&"started_unlimited"), "{free}");
    let plain = up.run(&asks("plain")).await;
    assert!(fact(&plain, "limits_not_in_force").contains("plain mode"), "{plain}");
    assert!(reasons(&plain).contains(&"started_plain"), "{plain}");
    stop(up).await;
}
