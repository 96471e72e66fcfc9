//! Jobs on other hosts, in plain mode, as a user sees them.

use super::super::stage::{Up, cause, fact, id, until};
use super::sshd::{self, Folder, Sshd};
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;

/// No engine is needed, and none is asked.
pub(super) const NO_ENGINE: &str = "unix:///nowhere/docker.sock";

/// A server, and a `jobcell up` that knows it as `web1`. `None` when there is no sshd.
pub(super) async fn stage(sshd_settings: &str, settings: &str) -> Option<(Folder, Sshd, Up)> {
    if !sshd::present() {
        return None;
    }
    let folder = Folder::new();
    let sshd = folder.sshd(sshd_settings);
    let up = up_with(&folder, &inventory(&folder, &sshd), settings).await;
    Some((folder, sshd, up))
}

/// An inventory with that server.
pub(super) fn inventory(folder: &Folder, sshd: &Sshd) -> String {
    format!(
        "hosts:\n  web1: {{address: {}, port: {}, login: {}, credential: user}}\ncredentials:\n  user: {{key_file: {}}}\nknown_hosts: [{}]\n",
        sshd.address,
        sshd.port,
        sshd::login(),
        folder.shown("user"),
        folder.shown("known_hosts")
    )
}

pub(super) async fn up_with(folder: &Folder, inventory: &str, settings: &str) -> Up {
    use std::os::unix::fs::PermissionsExt;
    let file = folder.write("inventory.yaml", inventory);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("sets the mode");
    let settings = format!("docker: {{enabled: false}}\nssh: {{inventory: '{}'}}\n{settings}", file.display());
    Up::start(NO_ENGINE, &settings).await
}

/// Stops it cleanly, with nothing left that it knows of.
pub(super) async fn stop(mut up: Up) {
    until("no records", || async { records(&up).is_empty().then_some(()) }).await;
    up.signal("-TERM");
    assert_eq!(up.exit_code().await, Some(0), "{}", up.log());
    // A warden that stayed would go by itself, after a while.
    let base = super::resident::base(&up);
    for pid in super::resident::wardens(&base, "jobcell-hub") {
        sshd::must("kill", &["-KILL", &pid.to_string()]);
    }
    let _ = std::fs::remove_dir_all(base);
}

/// What it knows to have begun on hosts.
pub(super) fn records(up: &Up) -> Vec<String> {
    records_in(&up.data())
}

/// The same of an agent, by its data directory.
pub(crate) fn records_in(data: &Path) -> Vec<String> {
    let mut known = std::collections::BTreeSet::new();
    for line in std::fs::read_to_string(data.join("ssh/records")).unwrap_or_default().lines() {
        // The last one may be on its way.
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        let own = line["own"].as_str().expect("a name").to_owned();
        if line["record"].is_null() {
            known.remove(&own)
        } else {
            known.insert(own)
        };
    }
    known.into_iter().collect()
}

pub(super) fn on(target: &Value, more: &Value) -> Value {
    let mut spec = json!({"target": target});
    for (key, value) in more.as_object().expect("a map") {
        spec[key] = value.clone();
    }
    spec
}

fn plain(host: &str) -> Value {
    json!({"host": host, "mode": "plain"})
}

pub(super) fn script(text: &str) -> Value {
    on(&plain("web1"), &json!({"script": text}))
}

/// Processes of a job, by the variable that all of them have.
pub(super) fn processes(job: &Value) -> Vec<u32> {
    marked(id(job))
}

/// The same of a job with this id.
pub(crate) fn marked(id: &str) -> Vec<u32> {
    let mark = format!("JOBCELL_CELL={}-", id.replace('-', ""));
    let has = |pid: &u32| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|one| one.starts_with(mark.as_bytes()))
    };
    let pids =
        std::fs::read_dir("/proc").expect("reads").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(has).collect()
}

#[tokio::test]
async fn a_job_runs_on_its_host_and_leaves_nothing() {
    let Some((_folder, _sshd, up)) = stage("", "").await else { return };
    let text = "pwd; cat; echo \"$GREETING $1\"; echo err >&2; sleep 300 & exit 3";
    let spec = on(
        &plain("web1"),
        &json!({"script": text, "stdin": "given\n", "env": {"GREETING": "it's\n\"me\""}, "name": "first"}),
    );
    let job = up.run(&spec).await;
    assert_eq!((cause(&job), &job["ending"]["cause"]["exit_code"]), ("exit_code", &json!(3)), "{job}\n{}", up.log());
    let out = up.text(&job, "stdout").await;
    let (folder, rest) = out.split_once('\n').expect("a line");
    assert!(folder.contains("/.jobcell/"), "{out}");
    assert_eq!(rest, "given\nit's\n\"me\" \n");
    assert_eq!(up.text(&job, "stderr").await, "err\n");
    assert_eq!(job["log"]["complete"], true, "{job}");
    assert_eq!((fact(&job, "mode"), fact(&job, "host"), fact(&job, "login")), ("plain", "web1", sshd::login()));
    assert_eq!(fact(&job, "isolation"), "none: shared login");
    until("its folder goes", || async { (!std::path::Path::new(folder).exists()).then_some(()) }).await;
    until("its processes go", || async { processes(&job).is_empty().then_some(()) }).await;

    let quiet = up.run(&on(&plain("web1"), &json!({"command": ["true"]}))).await;
    assert_eq!(quiet["ending"]["verdict"], "succeeded", "{quiet}");
    let signal = up.run(&script("kill -s SEGV $$")).await;
    assert_eq!((cause(&signal), &signal["ending"]["cause"]["signal"]), ("signal", &json!(11)), "{signal}");
    let missing = up.run(&on(&plain("web1"), &json!({"command": ["no-such-program"]}))).await;
    assert_eq!(cause(&missing), "program_not_found", "{missing}");
    let data = up.run(&on(&plain("web1"), &json!({"command": ["/etc/passwd"]}))).await;
    assert_eq!(cause(&data), "program_not_executable", "{data}");
    let nowhere = up.run(&on(&plain("web1"), &json!({"command": ["true"], "workdir": "/no/such"}))).await;
    assert_eq!(cause(&nowhere), "workdir_unusable", "{nowhere}");
    stop(up).await;
}

#[tokio::test]
async fn bytes_of_any_kind_and_number_arrive() {
    let Some((_folder, _sshd, up)) = stage("", "").await else { return };
    // No line ends, NUL, halves of characters, and more than every buffer on the way.
    let job =
        up.run(&script("head -c 20000000 /dev/zero | tr '\\0' 'x'; printf '\\0\\377\\303'; printf '\\351' >&2")).await;
    assert_eq!(job["ending"]["verdict"], "succeeded", "{job}");
    let out = up.stream(&job, "stdout").await;
    assert_eq!((out.len(), &out[20_000_000..]), (20_000_003, b"\0\xff\xc3".as_slice()));
    assert!(out[..20_000_000].iter().all(|byte| *byte == b'x'));
    assert_eq!(up.stream(&job, "stderr").await, b"\xe9");
    stop(up).await;
}

#[tokio::test]
async fn stops_end_the_whole_tree() {
    let Some((_folder, _sshd, up)) = stage("", "agent: {grace: 1s}\n").await else { return };
    let stubborn = "trap '' TERM; setsid sleep 300 & echo begun; while :; do sleep 0.1; done";
    let job = up.submit(&script(stubborn)).await;
    until("output", || async { (up.text(&job, "stdout").await == "begun\n").then_some(()) }).await;
    assert!(processes(&job).len() >= 2);
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&job)), None).await;
    let job = up.ended(&job).await;
    assert_eq!(cause(&job), "canceled", "{job}");
    until("its processes go", || async { processes(&job).is_empty().then_some(()) }).await;

    // One that hears TERM has its last word.
    let polite = "trap 'echo bye; exit 0' TERM; echo begun; while :; do sleep 0.1; done";
    let mut spec = script(polite);
    spec["timeout"] = json!("1s");
    let job = up.run(&spec).await;
    assert_eq!((cause(&job), up.text(&job, "stdout").await.as_str()), ("timeout", "begun\nbye\n"), "{job}");

    let mut spec = script("echo begun; sleep 300");
    spec["silence_timeout"] = json!("1s");
    assert_eq!(cause(&up.run(&spec).await), "silence");
    let mut spec = script("yes");
    spec["resources"] = json!({"output": "64KiB"});
    let job = up.run(&spec).await;
    assert_eq!((cause(&job), up.stream(&job, "stdout").await.len()), ("output_limit", 65_536), "{job}");
    until("no processes", || async { processes(&job).is_empty().then_some(()) }).await;
    stop(up).await;
}

#[tokio::test]
async fn a_job_whose_connection_is_cut_is_ended_there_and_told_as_lost() {
    let Some((_folder, sshd, up)) = stage("", "agent: {grace: 1s}\nqueue: {max_attempts: 1}\n").await else { return };
    let job = up.submit(&script("trap '' TERM; echo begun; while :; do sleep 0.1; done")).await;
    until("output", || async { (up.text(&job, "stdout").await == "begun\n").then_some(()) }).await;
    sshd.cut();
    let job = up.ended(&job).await;
    assert_eq!(cause(&job), "cell_lost", "{job}");
    assert!(processes(&job).is_empty(), "it does not run when it is told as lost");
    assert_eq!((up.text(&job, "stdout").await.as_str(), &job["log"]["complete"]), ("begun\n", &json!(false)), "{job}");
    let metrics = || async { up.plain("/metrics").await.map(|(_, body)| body).unwrap_or_default() };
    until("the metrics", || async { metrics().await.contains("jobcell_ssh_hosts{breaker=\"admit\"} 1").then_some(()) })
        .await;
    // The host is well, and takes the next one.
    assert_eq!(up.run(&script("true")).await["ending"]["verdict"], "succeeded");
    stop(up).await;
}

#[tokio::test]
async fn the_jobs_of_an_agent_that_dies_end_and_the_next_one_says_so() {
    let Some((_folder, _sshd, mut up)) = stage("", "agent: {grace: 1s}\nqueue: {max_attempts: 1}\n").await else {
        return;
    };
    let job = up.submit(&script("echo begun; setsid sleep 300 & sleep 300")).await;
    until("output", || async { (up.text(&job, "stdout").await == "begun\n").then_some(()) }).await;
    assert_eq!(records(&up).len(), 1);
    up.kill().await;
    until("its processes go", || async { processes(&job).is_empty().then_some(()) }).await;
    up.revive().await;
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), up.text(&job, "stdout").await.as_str()), ("cell_lost", "begun\n"), "{job}");
    until("its record goes", || async { records(&up).is_empty().then_some(()) }).await;
    stop(up).await;
}

#[tokio::test]
async fn an_agent_that_hands_over_waits_for_jobs_on_hosts() {
    let Some((_folder, _sshd, mut up)) =
        stage("", "agent: {drain_mode: handover, drain_timeout: 60s}\nqueue: {max_attempts: 1}\n").await
    else {
        return;
    };
    let job = up.submit(&script("echo begun; sleep 2; echo done")).await;
    until("output", || async { (up.text(&job, "stdout").await == "begun\n").then_some(()) }).await;
    up.signal("-TERM");
    assert_eq!(up.exit_code().await, Some(0), "{}", up.log());
    std::fs::remove_file(up.data().join("endpoint")).ok();
    up.revive().await;
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), up.text(&job, "stdout").await.as_str()), ("exit_code", "begun\ndone\n"), "{job}");
    stop(up).await;
}

#[tokio::test]
async fn a_host_that_is_away_holds_up_no_other_job_at_a_start() {
    let Some((folder, sshd, mut up)) = stage("", "queue: {max_attempts: 1}\n").await else { return };
    let job = up.submit(&script("echo begun; sleep 300")).await;
    until("output", || async { (up.text(&job, "stdout").await == "begun\n").then_some(()) }).await;
    up.kill().await;
    // Now a connection to it stands, and nothing is ever said.
    sshd.signal(rustix::process::Signal::STOP);
    let other = folder.sshd("");
    let text = inventory(&folder, &sshd).replace(
        "credentials:",
        &format!(
            "  web2: {{address: {}, port: {}, login: {}, credential: user}}\ncredentials:",
            other.address,
            other.port,
            sshd::login()
        ),
    );
    std::fs::write(folder.path("inventory.yaml"), text).expect("writes");
    up.revive().await;
    let began = std::time::Instant::now();
    let quick = up.run(&on(&plain("web2"), &json!({"command": ["true"]}))).await;
    assert_eq!(quick["ending"]["verdict"], "succeeded", "{quick}");
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
    sshd.signal(rustix::process::Signal::CONT);
    let job = up.ended(&job).await;
    assert_eq!(cause(&job), "cell_lost", "{job}");
    stop(up).await;
}

#[tokio::test]
async fn a_host_that_is_not_to_be_believed_or_reached_gets_no_job() {
    if !sshd::present() {
        return;
    }
    let folder = Folder::new();
    let (known, stranger) = (folder.sshd(""), folder.stranger(""));
    let host = |name: &str, port: u16, address: &str| {
        format!("  {name}: {{address: {address}, port: {port}, login: {}, credential: user}}\n", sshd::login())
    };
    let inventory = inventory(&folder, &known).replace(
        "credentials:",
        &(host("stranger", stranger.port, &stranger.address) + &host("nobody", 1, "127.0.0.1") + "credentials:"),
    );
    let up = up_with(&folder, &inventory, "queue: {max_attempts: 1}\n").await;
    let reason = |job: &Value| job["ending"]["cause"]["reason"].as_str().unwrap_or_default().to_owned();
    for (host, code, wanted) in [
        ("stranger", "host_refused", "ssh scan"),
        ("nobody", "host_unreachable", ""),
        ("unheard-of", "host_refused", "inventory has no host"),
    ] {
        let mut spec = on(&json!({"host": host}), &json!({"command": ["true"]}));
        spec["retry"] = json!({"infrastructure": 0});
        let job = up.run(&spec).await;
        assert_eq!((cause(&job), &job["ending"]["verdict"]), (code, &json!("cell_error")), "{job}");
        assert!(reason(&job).contains(wanted), "{job}");
    }
    for (field, value) in [
        ("artifacts", json!([{"path": "x"}])),
        ("inputs", json!([{"path": "x", "text": "y"}])),
        ("on_cancel", json!({"command": ["true"]})),
        ("resources", json!({"disk": "1MiB"})),
    ] {
        let mut spec = script("touch /tmp/ran-although-it-should-not");
        spec[field] = value;
        let job = up.run(&spec).await;
        assert_eq!(cause(&job), "target_unsupported", "{job}");
        assert!(job["ending"]["cause"]["field"].as_str().is_some_and(|at| at.starts_with(field)), "{job}");
    }
    assert!(!std::path::Path::new("/tmp/ran-although-it-should-not").exists());
    stop(up).await;
}

#[tokio::test]
async fn a_server_that_gives_one_channel_gives_one_job_at_a_time_and_stops_still_work() {
    let Some((_folder, _sshd, up)) = stage("MaxSessions 1\n", "").await else { return };
    let long = up.submit(&script("echo begun; sleep 300")).await;
    until("output", || async { (up.text(&long, "stdout").await == "begun\n").then_some(()) }).await;
    let jobs = [up.submit(&script("echo a")).await, up.submit(&script("echo b")).await];
    for job in &jobs {
        assert_eq!(up.ended(job).await["ending"]["verdict"], "succeeded", "{}", up.log());
    }
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&long)), None).await;
    assert_eq!(cause(&up.ended(&long).await), "canceled");
    stop(up).await;
}

#[tokio::test]
async fn a_secret_is_nowhere_but_in_its_job() {
    let Some((_folder, _sshd, up)) = stage("", "").await else { return };
    let mut spec = script("echo \"is $TOKEN\"; echo ${#TOKEN}; ls run 2>&1; tr '\\0' ' ' < /proc/$$/cmdline; sleep 1");
    spec["secrets"] = json!({"TOKEN": {"value": "s3cr3t-t0ken"}});
    let job = up.submit(&spec).await;
    until("output", || async { up.text(&job, "stdout").await.contains("\n12\n").then_some(()) }).await;
    let seen = |pid: u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("s3cr3t")
    };
    let pids =
        std::fs::read_dir("/proc").expect("reads").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    assert_eq!(pids.filter(|pid| seen(*pid)).count(), 0, "no argument has it");
    let job = up.ended(&job).await;
    let out = up.text(&job, "stdout").await;
    assert!(out.starts_with("is ***\n12\n") && out.contains("No such file") && !out.contains("s3cr3t"), "{out}");
    stop(up).await;
}

#[tokio::test]
async fn an_inventory_is_read_again_when_it_changes() {
    let Some((folder, sshd, up)) = stage("", "").await else { return };
    let mut spec = on(&plain("web2"), &json!({"command": ["true"]}));
    spec["retry"] = json!({"infrastructure": 0});
    assert_eq!(cause(&up.run(&spec).await), "host_refused");
    let path = folder.path("inventory.yaml");
    let good = inventory(&folder, &sshd);
    std::fs::write(&path, "hosts: 3\n").expect("writes");
    up.signal("-HUP");
    let health = || async { up.plain("/healthz").await.map(|(_, body)| body).unwrap_or_default() };
    until("the bad one is told", || async { health().await.contains("last good inventory").then_some(()) }).await;
    assert_eq!(up.run(&script("true")).await["ending"]["verdict"], "succeeded");
    std::fs::write(&path, good.replace("web1", "web2")).expect("writes");
    up.signal("-HUP");
    until("the new one holds", || async { (!health().await.contains("last good inventory")).then_some(()) }).await;
    let job = up.run(&spec).await;
    assert_eq!(job["ending"]["verdict"], "succeeded", "{job}");
    stop(up).await;
}
