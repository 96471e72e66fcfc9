//! The process dies, and another one goes on: same job, same bytes, one end.

use super::stage::{JOBCELL, PATIENCE, Up, cause, docker, engine, id, read, said, until};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use tokio::process::{Child, Command};

/// What a job of so many lines writes.
fn lines(count: u32) -> String {
    (1..=count).map(|line| format!("line {line}\n")).collect()
}

/// The job ended well, at its first try, and all of its output is there, once.
async fn is_whole(up: &Up, job: &Value, count: u32) {
    assert_eq!(cause(job), "exit_code", "{job}\n{}", up.log());
    assert_eq!((&job["ending"]["process_exit_code"], &job["attempt"]), (&json!(0), &json!(1)), "{job}\n{}", up.log());
    assert_eq!(job["log"]["complete"], true, "{job}");
    assert_eq!(up.text(job, "stdout").await, lines(count));
    let events: Vec<&str> =
        job["history"].as_array().expect("a list").iter().filter_map(|event| event["phase"].as_str()).collect();
    assert_eq!(events, ["queued", "claimed", "preparing", "running", "ended"]);
}

#[tokio::test]
async fn a_job_goes_on_when_its_agent_is_killed_in_the_middle_of_its_output() {
    let Some(host) = engine() else { return };
    let mut up = Up::start(&host, "").await;
    let script = "for ((i = 1; i <= 400; i++)); do echo line $i; sleep 0.01; done";
    let job = up.submit(&json!({"preset": "bash", "script": script})).await;
    for seen in [40, 120, 200, 300] {
        let line = format!("line {seen}\n");
        until("output", || async { up.text(&job, "stdout").await.contains(&line).then_some(()) }).await;
        up.crash().await;
    }
    is_whole(&up, &up.ended(&job).await, 400).await;
    up.stop().await;
}

#[tokio::test]
async fn an_end_that_came_while_no_agent_was_there_is_told_by_the_next_one() {
    let Some(host) = engine() else { return };
    let mut up = Up::start(&host, "").await;
    let script = "echo before; read -r -t 600 line < <(sleep 2; echo); echo after; exit 7";
    let job = up.submit(&json!({"preset": "bash", "script": script})).await;
    until("output", || async { (up.text(&job, "stdout").await == "before\n").then_some(()) }).await;
    up.kill().await;
    // Its warden is alone when the job has ended.
    let cell = up.containers()[0].clone();
    let alone = || async { (docker(&host, &["top", &cell, "-o", "pid"]).lines().count() == 2).then_some(()) };
    until("the job's end", alone).await;
    up.revive().await;
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), &job["ending"]["process_exit_code"]), ("exit_code", &json!(7)), "{job}\n{}", up.log());
    assert_eq!(up.text(&job, "stdout").await, "before\nafter\n");
    assert!(job["usage"]["wall"].as_str().is_some() || job["usage"]["wall"].is_number(), "{job}");
    up.stop().await;
}

/// Death at moments that nobody has chosen, with jobs in every phase.
#[tokio::test]
async fn many_short_jobs_survive_an_agent_that_is_killed_again_and_again() {
    let Some(host) = engine() else { return };
    let mut up = Up::start(&host, "agent: {slots: 4}\nqueue: {lease: 10s}\n").await;
    let mut jobs = Vec::new();
    for _ in 0..24 {
        let script = "for ((i = 1; i <= 2000; i++)); do echo line $i; done";
        let spec = json!({"preset": "bash", "script": script, "resources": {"cpu": 0.25, "memory": "64MiB"}});
        jobs.push(up.submit(&spec).await);
    }
    let ended = async |up: &Up| up.get("/v1/jobs?phase=ended&limit=100").await["jobs"].as_array().map_or(0, Vec::len);
    for deaths in 1..=8 {
        // Each life gets something done, or it would only be a test of starting.
        until("an end", || async { (ended(&up).await >= deaths).then_some(()) }).await;
        up.crash().await;
    }
    for job in &jobs {
        let job = up.ended(job).await;
        assert_eq!(cause(&job), "exit_code", "{job}\n{}", up.log());
        assert_eq!(up.text(&job, "stdout").await, lines(2000), "{job}");
        assert_eq!(job["log"]["complete"], true, "{job}");
    }
    up.stop().await;
}

#[tokio::test]
async fn a_cell_that_is_gone_is_lost_and_a_stray_is_removed_and_others_are_left_alone() {
    let Some(host) = engine() else { return };
    let mut up = Up::start(&host, "").await;
    let spec = json!({"preset": "bash", "script": "echo begun; sleep 600", "retry": {"infrastructure": 0}});
    let job = up.submit(&spec).await;
    until("output", || async { (up.text(&job, "stdout").await == "begun\n").then_some(()) }).await;
    let owner = std::fs::read_to_string(up.data().join("owner")).expect("there");
    let other = docker(&host, &["create", "--label", "jobcell.owner=00000000", "jobcell/bash:1", "true"]);
    up.kill().await;
    docker(&host, &["rm", "--force", &up.containers()[0]]);
    // Of ours, and no attempt that anybody knows.
    let stray = format!("jobcell.owner={}", owner.trim());
    docker(&host, &["run", "--detach", "--network", "none", "--label", &stray, "jobcell/bash:1", "sleep", "600"]);
    up.revive().await;
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), &job["log"]["complete"]), ("cell_lost", &json!(false)), "{job}");
    assert_eq!(up.text(&job, "stdout").await, "begun\n");
    until("the stray's end", || async { up.containers().is_empty().then_some(()) }).await;
    assert!(docker(&host, &["ps", "--all", "--quiet", "--no-trunc"]).contains(&other));
    docker(&host, &["rm", &other]);
    // What is canceled after the agent came back ends, too.
    let job = up.submit(&json!({"preset": "bash", "script": "sleep 600"})).await;
    up.phase(&job, "running").await;
    up.crash().await;
    let path = format!("/v1/jobs/{}/cancel", id(&job));
    assert!(up.call(reqwest::Method::POST, &path, None).await.status().is_success());
    assert_eq!(cause(&up.ended(&job).await), "canceled");
    up.stop().await;
}

/// A server and an agent as processes of their own, on loopback.
pub(crate) struct Pair {
    dir: tempfile::TempDir,
    host: String,
    url: String,
    server: Child,
    agent: Child,
}

impl Pair {
    async fn start(host: &str) -> Self {
        Self::start_with(host, "").await
    }

    /// `settings` is the agent's configuration, in YAML.
    pub(crate) async fn start_with(host: &str, settings: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("one.yaml"), settings).expect("writes");
        let server = process(dir.path(), "server", host, &["server", "--listen", "127.0.0.1:0"]);
        let url = until("the server", || async { read(&dir.path().join("server/endpoint")) }).await;
        let key = cli(dir.path(), &["agents", "add", "one"]).await;
        std::fs::write(dir.path().join("one.key"), &key).expect("writes");
        let agent = Self::agent(dir.path(), host, &url);
        Self { dir, host: host.to_owned(), url, server, agent }
    }

    fn agent(dir: &Path, host: &str, url: &str) -> Child {
        let settings = dir.join("one.yaml");
        let settings = settings.to_str().expect("text");
        process(dir, "one", host, &["agent", "--config", settings, "--listen", "127.0.0.1:0", "--backend", url])
    }

    pub(crate) async fn kill_agent(&mut self) {
        self.agent.kill().await.expect("dies");
    }

    pub(crate) fn revive_agent(&mut self) {
        self.agent = Self::agent(self.dir.path(), &self.host, &self.url);
    }

    pub(crate) async fn kill_server(&mut self) {
        self.server.kill().await.expect("dies");
        std::fs::remove_file(self.dir.path().join("server/endpoint")).expect("it was there");
    }

    pub(crate) async fn revive_server(&mut self) {
        let listen = self.url.trim_start_matches("http://");
        self.server = process(self.dir.path(), "server", &self.host, &["server", "--listen", listen]);
        until("the server", || async { read(&self.dir.path().join("server/endpoint")) }).await;
    }

    pub(crate) async fn submit(&self, script: &str) -> String {
        let spec = self.dir.path().join("job.json");
        std::fs::write(&spec, json!({"preset": "bash", "script": script}).to_string()).expect("writes");
        cli(self.dir.path(), &["job", "submit", spec.to_str().expect("text")]).await.trim().to_owned()
    }

    pub(crate) async fn job(&self, id: &str) -> Value {
        serde_json::from_str(&cli(self.dir.path(), &["job", "get", id, "-o", "json"]).await).expect("is JSON")
    }

    pub(crate) async fn log(&self, id: &str) -> String {
        cli(self.dir.path(), &["job", "logs", id]).await
    }

    /// Runs a command of the command line against the server.
    pub(crate) async fn cli(&self, args: &[&str]) -> String {
        cli(self.dir.path(), args).await
    }

    /// What one of the two has written.
    pub(crate) fn log_of(&self, name: &str) -> String {
        read(&self.dir.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    async fn is_whole(&self, id: &str, count: u32) {
        let ended = || async { Some(self.job(id).await).filter(|job| !job["ending"].is_null()) };
        let job = until("a job's end", ended).await;
        let said = || {
            ["server", "one"]
                .map(|name| read(&self.dir.path().join(format!("{name}.log"))))
                .map(Option::unwrap_or_default)
                .join("\n")
        };
        assert_eq!((cause(&job), &job["attempt"]), ("exit_code", &json!(1)), "{job}\n{}", said());
        assert_eq!((&job["log"]["complete"], self.log(id).await), (&json!(true), lines(count)), "{job}\n{}", said());
    }

    pub(crate) async fn stop(mut self) {
        for child in [&mut self.agent, &mut self.server] {
            let pid = child.id().expect("runs").to_string();
            assert!(std::process::Command::new("kill").arg(pid).status().expect("kill runs").success());
            assert_eq!(child.wait().await.expect("is waited for").code(), Some(0));
        }
        let owner = read(&self.dir.path().join("one/owner")).expect("there");
        let label = format!("label=jobcell.owner={owner}");
        assert_eq!(docker(&self.host, &["ps", "--all", "--quiet", "--filter", &label]), "");
        let spool: Vec<_> = std::fs::read_dir(self.dir.path().join("one/spool")).expect("is there").collect();
        let left = spool
            .into_iter()
            .flat_map(|dir| std::fs::read_dir(dir.expect("an entry").path()).expect("a folder"))
            .count();
        assert_eq!(left, 0, "output that nobody will fetch");
    }
}

fn process(dir: &Path, name: &str, host: &str, args: &[&str]) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join(format!("{name}.log"))).expect("opens");
    let key = read(&dir.join(format!("{name}.key"))).unwrap_or_default();
    Command::new(JOBCELL)
        .args(args)
        .arg("--data-dir")
        .arg(dir.join(name))
        .env("DOCKER_HOST", host)
        .env("JOBCELL_AGENT_KEY", key)
        .env("JOBCELL_DOCKER__SHARED", "true")
        .env("RUST_LOG", "info")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("clones"))
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("starts")
}

async fn cli(dir: &Path, args: &[&str]) -> String {
    let run = Command::new(JOBCELL).arg("--data-dir").arg(dir.join("server")).args(args).stdin(Stdio::null()).output();
    let output = tokio::time::timeout(PATIENCE, run).await.expect("ends in time").expect("runs");
    let (code, out, err) = said(&output);
    assert_eq!(code, 0, "{args:?}: {err}");
    out
}

const SLOW: &str = "for ((i = 1; i <= 300; i++)); do echo line $i; sleep 0.01; done";

#[tokio::test]
async fn an_agent_elsewhere_goes_on_when_it_is_killed_and_when_its_server_is() {
    let Some(host) = engine() else { return };
    let mut pair = Pair::start(&host).await;
    let id = pair.submit(SLOW).await;
    let reached = |log: &str, line: u32| log.contains(&format!("line {line}\n")).then_some(());
    until("output", || async { reached(&pair.log(&id).await, 30) }).await;
    pair.kill_agent().await;
    pair.revive_agent();
    until("output", || async { reached(&pair.log(&id).await, 120) }).await;
    pair.kill_server().await;
    pair.revive_server().await;
    until("output", || async { reached(&pair.log(&id).await, 200) }).await;
    pair.is_whole(&id, 300).await;
    pair.stop().await;
}

/// The job ends while its server is away, and the agent dies twice before the server is back.
#[tokio::test]
async fn an_end_waits_for_a_server_that_is_away_also_over_the_death_of_the_agent() {
    let Some(host) = engine() else { return };
    let mut pair = Pair::start(&host).await;
    let id = pair.submit(SLOW).await;
    until("output", || async { pair.log(&id).await.contains("line 30\n").then_some(()) }).await;
    pair.kill_server().await;
    pair.kill_agent().await;
    pair.revive_agent();
    // The journal says that it has ended.
    let journal = pair.dir.path().join("one.log");
    until("the end", || async { read(&journal).filter(|log| log.contains("attempt ended")) }).await;
    pair.kill_agent().await;
    pair.revive_agent();
    let label = format!("label=jobcell.owner={}", read(&pair.dir.path().join("one/owner")).expect("there"));
    let gone = || async { docker(&host, &["ps", "--all", "--quiet", "--filter", &label]).is_empty().then_some(()) };
    until("the cell's end", gone).await;
    pair.revive_server().await;
    pair.is_whole(&id, 300).await;
    pair.stop().await;
}

#[tokio::test]
async fn running_jobs_are_handed_over_to_the_next_start() {
    let Some(host) = engine() else { return };
    let mut up = Up::start(&host, "agent: {drain_mode: handover}\n").await;
    let job = up.submit(&json!({"preset": "bash", "script": SLOW})).await;
    until("output", || async { up.text(&job, "stdout").await.contains("line 30\n").then_some(()) }).await;
    up.signal("-TERM");
    assert_eq!(up.exit_code().await, Some(0));
    assert_eq!(up.containers().len(), 1, "it runs on");
    up.revive().await;
    is_whole(&up, &up.ended(&job).await, 300).await;
    up.stop().await;
}

/// Bytes of files below a folder.
fn size(dir: &Path) -> u64 {
    let entries =
        std::fs::read_dir(dir).map(|entries| entries.filter_map(Result::ok).collect()).unwrap_or_else(|_| Vec::new());
    entries
        .iter()
        .map(
            |entry| {
                if entry.path().is_dir() { size(&entry.path()) } else { entry.metadata().map_or(0, |file| file.len()) }
            },
        )
        .sum()
}

/// The server is frozen while a job writes much more than the spool may hold.
#[tokio::test]
async fn output_that_a_server_does_not_take_is_kept_up_to_the_spools_size_and_then_the_job_waits() {
    let Some(host) = engine() else { return };
    let pair = Pair::start_with(&host, "agent: {spool_max: 4MiB}").await;
    let id = pair.submit("echo begun; for ((n = 0; n < 40; n++)); do sleep 0.1; head -c 1000000 /dev/zero | tr '\\0' x; done; echo end").await;
    until("output", || async { (!pair.log(&id).await.is_empty()).then_some(()) }).await;
    let signal = |signal: &str| {
        let pid = pair.server.id().expect("runs").to_string();
        assert!(std::process::Command::new("kill").args([signal, &pid]).status().expect("kill runs").success());
    };
    signal("-STOP");
    let said = pair.dir.path().join("one.log");
    until("a full spool", || async { read(&said).filter(|log| log.contains("more than agent.spool_max")) }).await;
    let spool = pair.dir.path().join("one/spool");
    let mut last = size(&spool);
    until("a job that waits", || {
        let (before, now) = (last, size(&spool));
        last = now;
        async move {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            (before == now).then_some(())
        }
    })
    .await;
    // What came within the second in which nobody looked is on top of the bound.
    assert!((4 << 20..36 << 20).contains(&last), "{last}");
    signal("-CONT");
    let ended = || async { Some(pair.job(&id).await).filter(|job| !job["ending"].is_null()) };
    let job = until("the end", ended).await;
    assert_eq!((cause(&job), &job["log"]["complete"]), ("exit_code", &json!(true)), "{job}");
    assert_eq!(job["log"]["stdout"]["bytes"], 40_000_010, "{job}");
    until("jobs to be taken again", || async { read(&said).filter(|log| log.contains("jobs can be run")) }).await;
    pair.stop().await;
}
