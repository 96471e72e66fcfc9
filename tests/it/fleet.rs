//! A server and its agents as processes, in network namespaces of their own, over links that drop, reset and slow down.

use super::stage::{JOBCELL, PATIENCE, engine, root, said, until, write_secret};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::process::Child;

/// Namespaces made by this process so far.
static MADE: AtomicU32 = AtomicU32::new(0);

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// True when namespaces can be made; else says loudly that the test is skipped.
fn networks() -> bool {
    let may = Command::new("ip").args(["netns", "list"]).status().is_ok_and(|status| status.success())
        && std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    assert!(
        may || std::env::var("JOBCELL_TEST_ENGINE").as_deref() != Ok("required"),
        "network namespaces need root and iproute2 (Debian: apt-get install iproute2), and JOBCELL_TEST_ENGINE=required"
    );
    if !may {
        eprintln!("SKIPPED: network namespaces need root and iproute2");
    }
    may
}

/// A server's namespace, with a link to each of its agents' namespaces.
struct Network {
    server: String,
    agents: Vec<String>,
}

impl Network {
    fn new(agents: usize) -> Self {
        let tag = format!("jc{}x{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let server = format!("{tag}s");
        run("ip", &["netns", "add", &server]);
        let mut network = Self { server, agents: Vec::new() };
        run("ip", &["-n", &network.server, "link", "set", "lo", "up"]);
        for number in 1..=agents {
            let agent = format!("{tag}a{number}");
            run("ip", &["netns", "add", &agent]);
            network.agents.push(agent.clone());
            // Made inside the namespaces: names of links are bounded, and never seen outside.
            let near = format!("v{number}");
            run(
                "ip",
                &["-n", &network.server, "link", "add", &near, "type", "veth", "peer", "name", "up0", "netns", &agent],
            );
            for (space, link, end) in [(&network.server, near.as_str(), 1), (&agent, "up0", 2)] {
                run("ip", &["-n", space, "addr", "add", &format!("10.77.{number}.{end}/24"), "dev", link]);
                run("ip", &["-n", space, "link", "set", link, "up"]);
            }
            run("ip", &["-n", &agent, "link", "set", "lo", "up"]);
        }
        network
    }

    fn inside(&self, agent: usize, args: &[&str]) {
        run("ip", &[&["netns", "exec", &self.agents[agent]], args].concat());
    }

    /// Nothing goes through any more, and nobody is told.
    fn drop_all(&self, agent: usize) {
        self.inside(agent, &["iptables", "-w", "10", "-I", "INPUT", "-i", "up0", "-j", "DROP"]);
        self.inside(agent, &["iptables", "-w", "10", "-I", "OUTPUT", "-o", "up0", "-j", "DROP"]);
    }

    /// Every connection is reset, at both ends.
    fn reset_all(&self, agent: usize) {
        for way in [["INPUT", "-i"], ["OUTPUT", "-o"]] {
            let rule = ["up0", "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"];
            self.inside(agent, &[&["iptables", "-w", "10", "-I"], &way[..], &rule[..]].concat());
        }
    }

    fn heal(&self, agent: usize) {
        self.inside(agent, &["iptables", "-w", "10", "-F"]);
    }

    fn slow(&self, agent: usize) {
        self.inside(
            agent,
            &["tc", "qdisc", "add", "dev", "up0", "root", "tbf", "rate", "4mbit", "burst", "32kb", "latency", "200ms"],
        );
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.agents.iter().chain([&self.server]) {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// What the agents of a fleet are called.
const NAMES: [&str; 2] = ["one", "two"];

/// A server with two agents.
struct Fleet {
    network: Network,
    dir: tempfile::TempDir,
    server: Child,
    agents: Vec<Child>,
    host: String,
    config: PathBuf,
}

fn spawn(space: &str, dir: &Path, name: &str, args: &[&str], env: &[(&str, &str)]) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join(format!("{name}.log"))).expect("opens");
    tokio::process::Command::new("ip")
        .args(["netns", "exec", space, JOBCELL])
        .args(args)
        .arg("--data-dir")
        .arg(dir.join(name))
        .env("JOBCELL_DOCKER__SHARED", "true")
        .env("RUST_LOG", "info")
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("clones"))
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("starts")
}

impl Fleet {
    async fn start(host: &str, settings: &str) -> Self {
        let network = Network::new(2);
        let dir = tempfile::tempdir().expect("a folder");
        let config = dir.path().join("server.yaml");
        std::fs::write(&config, settings).expect("writes");
        let server = Self::serve(&network, dir.path(), &config);
        let mut fleet = Self { network, dir, server, agents: Vec::new(), host: host.to_owned(), config };
        fleet.answers().await;
        for (index, name) in NAMES.into_iter().enumerate() {
            let (code, key, err) = fleet.cli(&["agents", "add", name]).await;
            assert_eq!(code, 0, "{err}");
            write_secret(&fleet.dir.path().join(format!("{name}.key")), &key);
            let agent = fleet.agent(index, name);
            fleet.agents.push(agent);
        }
        fleet.online(&NAMES).await;
        fleet
    }

    fn serve(network: &Network, dir: &Path, config: &Path) -> Child {
        let config = config.to_str().expect("text");
        spawn(&network.server, dir, "server", &["server", "--listen", "0.0.0.0:7807", "--config", config], &[])
    }

    fn agent(&self, index: usize, name: &str) -> Child {
        let config = self.dir.path().join(format!("{name}.yaml"));
        let key = self.dir.path().join(format!("{name}.key"));
        let text = format!(
            "agent: {{name: {name}, slots: 4, grace: 10m, labels: {{name: {name}}}}}\nbackends:\n  main: {{url: \"http://10.77.{}.1:7807\", key_file: {}}}\n",
            index + 1,
            key.display()
        );
        std::fs::write(&config, text).expect("writes");
        let args = ["agent", "--listen", "127.0.0.1:0", "--config", config.to_str().expect("text")];
        spawn(&self.network.agents[index], self.dir.path(), name, &args, &[("DOCKER_HOST", &self.host)])
    }

    async fn cli(&self, args: &[&str]) -> (i32, String, String) {
        let data = self.dir.path().join("server");
        let run = tokio::process::Command::new("ip")
            .args(["netns", "exec", &self.network.server, JOBCELL, "--data-dir"])
            .arg(data)
            .args(args)
            .stdin(Stdio::null())
            .output();
        said(&tokio::time::timeout(PATIENCE, run).await.expect("ends in time").expect("runs"))
    }

    async fn json(&self, args: &[&str]) -> Value {
        let (code, out, err) = self.cli(&[args, &["-o", "json"]].concat()).await;
        serde_json::from_str(&out).unwrap_or_else(|_| panic!("{args:?} ends with {code}: {out}{err}\n{}", self.logs()))
    }

    async fn answers(&self) {
        until("the server", || async { (self.cli(&["agents", "list"]).await.0 == 0).then_some(()) }).await;
    }

    async fn online(&self, names: &[&str]) {
        until("the agents", || async {
            let list = self.json(&["agents", "list"]).await;
            let online = |name: &&str| {
                let agents = list["agents"].as_array().into_iter().flatten();
                agents.into_iter().any(|agent| agent["name"] == **name && agent["state"] == "online")
            };
            names.iter().all(online).then_some(())
        })
        .await;
    }

    async fn submit(&self, spec: &str) -> String {
        let file = self.dir.path().join(format!("job-{}.yaml", MADE.fetch_add(1, Ordering::Relaxed)));
        std::fs::write(&file, spec).expect("writes");
        let (code, out, err) = self.cli(&["job", "submit", file.to_str().expect("text")]).await;
        assert_eq!(code, 0, "{err}");
        out.trim().to_owned()
    }

    /// Waits until it runs; gives its agent's number.
    async fn runs(&self, id: &str) -> usize {
        until("it runs", || async {
            let job = self.json(&["job", "get", id]).await;
            let index = NAMES.iter().position(|name| job["agent"] == *name);
            index.filter(|_| job["phase"] == "running")
        })
        .await
    }

    async fn ended(&self, id: &str) -> Value {
        until("its end", || async { Some(self.json(&["job", "get", id]).await).filter(|job| !job["ending"].is_null()) })
            .await
    }

    async fn ended_at_once(&self, id: &str, wanted: &str) {
        let job = self.ended(id).await;
        assert_eq!(
            (job["ending"]["verdict"].as_str(), job["attempt"].as_u64()),
            (Some("succeeded"), Some(1)),
            "{job}\n{}",
            self.logs()
        );
        assert_eq!(job["log"]["complete"], true, "{job}\n{}", self.logs());
        let (_, out, err) = self.cli(&["job", "logs", id]).await;
        assert!(out == wanted, "{} bytes in place of {}: {err}", out.len(), wanted.len());
    }

    /// What an agent says of itself. Through its own loopback: no fault of a link is in the way.
    fn health(&self, agent: usize) -> Value {
        let file = std::fs::read_to_string(self.dir.path().join(NAMES[agent]).join("health")).expect("is there");
        let script = "import sys, urllib.request as r\ntry: a = r.urlopen(sys.argv[1], timeout=5)\nexcept r.HTTPError as e: a = e\nprint(a.read().decode())";
        let url = format!("{}/healthz", file.trim());
        let args = ["netns", "exec", &self.network.agents[agent], "python3", "-c", script, &url];
        let output = Command::new("ip").args(args).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"))
    }

    /// Waits until an agent's log has a line with all of this.
    async fn says(&self, agent: usize, parts: &[&str]) {
        let file = self.dir.path().join(format!("{}.log", NAMES[agent]));
        until(&parts.join(", "), || async {
            let log = std::fs::read_to_string(&file).unwrap_or_default();
            log.lines().any(|line| parts.iter().all(|part| line.contains(part))).then_some(())
        })
        .await;
    }

    fn logs(&self) -> String {
        let read = |name| std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        ["server.log", "one.log", "two.log"].map(read).join("\n")
    }

    async fn stop(mut self) {
        for child in self.agents.iter_mut().chain([&mut self.server]) {
            run("kill", &["-TERM", &child.id().expect("runs").to_string()]);
        }
        for child in self.agents.iter_mut().chain([&mut self.server]) {
            let code = tokio::time::timeout(PATIENCE, child.wait()).await.expect("ends").expect("is waited for").code();
            assert_eq!(code, Some(0));
        }
    }
}

/// A line every 100 ms, for five seconds.
const TICKS: &str = "preset: bash\nscript: for i in $(seq 50); do echo tick $i; sleep 0.1; done\n";

fn ticks() -> String {
    (1..=50).map(|number| format!("tick {number}\n")).collect()
}

#[tokio::test]
async fn links_that_reset_drop_and_slow_down_lose_nothing() {
    let Some(host) = engine().filter(|_| networks()) else { return };
    let fleet = Fleet::start(&host, "queue: {lease: 20s}").await;
    // Reset: every connection breaks at once, and new ones are refused. The agent is not ready, and says why.
    let job = fleet.submit(TICKS).await;
    let agent = fleet.runs(&job).await;
    until("it to be ready", || async { fleet.health(agent)["ready"].as_bool().filter(|ready| *ready) }).await;
    fleet.network.reset_all(agent);
    fleet.says(agent, &["the log stream is cut"]).await;
    let told =
        until("it to be unready", || async { Some(fleet.health(agent)).filter(|told| told["ready"] == false) }).await;
    let reason = told["components"]["backend"]["reason"].as_str();
    assert!(reason.is_some_and(|reason| reason.starts_with("main: ")), "{told}");
    assert!(fleet.json(&["job", "get", &job]).await["ending"].is_null());
    fleet.network.heal(agent);
    fleet.ended_at_once(&job, &ticks()).await;
    until("it to be ready again", || async { fleet.health(agent)["ready"].as_bool().filter(|ready| *ready) }).await;
    // Drop: nobody is told, and the job ends while nothing goes through.
    let job = fleet.submit(TICKS).await;
    let agent = fleet.runs(&job).await;
    fleet.network.drop_all(agent);
    fleet.says(agent, &["attempt ended", &job]).await;
    assert!(fleet.json(&["job", "get", &job]).await["ending"].is_null());
    fleet.network.heal(agent);
    fleet.ended_at_once(&job, &ticks()).await;
    // Slow: a megabyte over half a megabyte a second.
    fleet.network.slow(0);
    fleet.network.slow(1);
    let job = fleet.submit("preset: bash\nscript: for i in $(seq 20000); do printf 'line %06d of a long output that takes a while\\n' $i; done\n").await;
    let wanted: String =
        (1..=20_000).map(|number| format!("line {number:06} of a long output that takes a while\n")).collect();
    fleet.ended_at_once(&job, &wanted).await;
    fleet.stop().await;
}

#[tokio::test]
async fn a_server_that_is_killed_comes_back_to_its_jobs_and_a_lost_agents_job_goes_to_the_other() {
    let Some(host) = engine().filter(|_| networks()) else { return };
    let mut fleet = Fleet::start(&host, "queue: {lease: 6s}").await;
    let job = fleet.submit(TICKS).await;
    fleet.runs(&job).await;
    fleet.server.kill().await.expect("is killed");
    fleet.server = Fleet::serve(&fleet.network, fleet.dir.path(), &fleet.config);
    fleet.answers().await;
    fleet.ended_at_once(&job, &ticks()).await;
    fleet.online(&NAMES).await;

    // A cancel goes down the stream, and does not wait for the next renewal.
    let job = fleet.submit("preset: bash\nscript: sleep 600\n").await;
    fleet.runs(&job).await;
    let (code, out, err) = fleet.cli(&["job", "cancel", &job, "--wait"]).await;
    assert!(code == 0 && out.contains("canceled"), "{out}{err}");

    // So does a forced one, which waits for no grace.
    let job = fleet.submit("preset: bash\nscript: trap '' TERM; while :; do sleep 0.1; done\n").await;
    fleet.runs(&job).await;
    let (code, out, err) = fleet.cli(&["job", "cancel", &job, "--force", "--wait"]).await;
    assert!(code == 0 && out.contains("canceled"), "{out}{err}");

    let job = fleet.submit("preset: bash\nscript: sleep 2; echo done\n").await;
    let agent = fleet.runs(&job).await;
    fleet.agents[agent].kill().await.expect("is killed");
    let ended = fleet.ended(&job).await;
    assert_eq!(
        (ended["ending"]["verdict"].as_str(), ended["attempt"].as_u64()),
        (Some("succeeded"), Some(2)),
        "{ended}"
    );
    assert_eq!(ended["agent"], ["two", "one"][agent]);
    let reasons: Vec<&str> =
        ended["history"].as_array().expect("a history").iter().filter_map(|event| event["reason"].as_str()).collect();
    assert!(reasons.contains(&"lease_expired"), "{reasons:?}");
    // The dead one comes back and removes what it left behind.
    let name = NAMES[agent];
    fleet.agents[agent] = fleet.agent(agent, name);
    let owner = std::fs::read_to_string(fleet.dir.path().join(name).join("owner")).expect("is there");
    let label = format!("label=jobcell.owner={}", owner.trim());
    let left = || super::stage::docker(&host, &["ps", "--all", "--quiet", "--filter", &label]);
    until("its cells to be removed", || async { left().is_empty().then_some(()) }).await;
    fleet.stop().await;
}

#[tokio::test]
async fn jobs_go_where_they_can_run_and_those_that_cannot_say_why() {
    let Some(host) = engine().filter(|_| networks()) else { return };
    let fleet = Fleet::start(&host, "queue: {groups: {lock: 1}}").await;
    // A batch that only one agent may run: it does, all of it, while the other one is idle.
    let mut jobs = Vec::new();
    for number in 0..8 {
        let name = NAMES[number % 2];
        let spec = format!("preset: bash\nscript: echo here\nrequires: {{labels: {{name: {name}}}}}\n");
        jobs.push((fleet.submit(&spec).await, name));
    }
    for (job, name) in &jobs {
        assert_eq!(fleet.ended(job).await["agent"], *name);
    }
    // Nobody has it: it waits, and says for each agent what is in the way.
    let nowhere = fleet.submit("preset: bash\nscript: x\nrequires: {labels: {name: [three, four]}}\n").await;
    let (code, out, err) = fleet.cli(&["job", "explain", &nowhere]).await;
    assert!(code == 0 && out.contains("(no_agent_suits)"), "{out}{err}");
    assert!(out.contains("two (online): its label name is two, and four or three is required"), "{out}");
    let large = fleet.submit("preset: go\nscript: x\nresources: {memory: 4TiB}\n").await;
    let told = fleet.json(&["job", "explain", &large]).await;
    let codes: Vec<&str> = told["agents"][0]["obstacles"]
        .as_array()
        .expect("obstacles")
        .iter()
        .filter_map(|one| one["code"].as_str())
        .collect();
    assert_eq!(codes, ["preset", "too_large"], "{told}");
    // One of a group at a time, over both agents; the second follows when the first has ended.
    let hold = "preset: bash\nscript: sleep 2\nlabels: {lock: db}\n";
    let first = fleet.submit(hold).await;
    fleet.runs(&first).await;
    let second = fleet.submit(hold).await;
    let other = fleet.submit("preset: bash\nscript: echo\nlabels: {lock: web}\n").await;
    assert_eq!(fleet.json(&["job", "explain", &second]).await["code"], "held_back");
    fleet.ended(&other).await;
    let second = fleet.ended(&second).await;
    let first = fleet.ended(&first).await;
    let at = |job: &Value, phase: &str| {
        let events = job["history"].as_array().expect("a history").iter();
        events
            .filter(|event| event["phase"] == phase)
            .filter_map(|event| event["at"].as_u64())
            .next()
            .expect("was there")
    };
    assert!(at(&second, "claimed") >= at(&first, "ended"), "{first} {second}");
    // Apart: both at once, on different agents.
    let apart = "preset: bash\nscript: sleep 2\nlabels: {db: m}\nrequires: {apart: [db]}\n";
    let (left, right) = (fleet.submit(apart).await, fleet.submit(apart).await);
    let places = (fleet.runs(&left).await, fleet.runs(&right).await);
    assert_ne!(places.0, places.1);
    let (code, out, _) = fleet.cli(&["agents", "list"]).await;
    assert!(code == 0 && out.contains("name=one") && out.contains("1/4"), "{out}");
    for job in [&left, &right] {
        fleet.ended(job).await;
    }
    for job in [&nowhere, &large] {
        fleet.cli(&["job", "cancel", job]).await;
    }
    fleet.stop().await;
}

#[tokio::test]
async fn the_conformance_command_judges_a_server() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("server.yaml");
    std::fs::write(&config, "queue: {lease: 1s}").expect("writes");
    let data = dir.path().join("server");
    let mut server = tokio::process::Command::new(JOBCELL);
    server.args(["server", "--quiet", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&data).arg("--config").arg(&config);
    let mut server = server.stdin(Stdio::null()).kill_on_drop(true).spawn().expect("starts");
    let read = |name: &str| std::fs::read_to_string(data.join(name)).ok().map(|text| text.trim().to_owned());
    let url = until("the server", || async { read("endpoint") }).await;
    let run = |args: &[&str], env: &[(&str, &str)]| {
        let mut command = tokio::process::Command::new(JOBCELL);
        command.args(args).arg("--data-dir").arg(&data).envs(env.iter().copied()).stdin(Stdio::null());
        async move { said(&tokio::time::timeout(PATIENCE, command.output()).await.expect("ends").expect("runs")) }
    };
    let (code, key, err) = run(&["agents", "add", "suite"], &[]).await;
    assert_eq!(code, 0, "{err}");
    let env = [("JOBCELL_AGENT_KEY", key.trim())];
    let (code, out, err) = run(&["conformance", &url], &env).await;
    assert_eq!((code, out.trim()), (0, "15 cases: 0 failed, 0 left out"), "{err}");
    assert!(err.contains("passed   output: output arrives byte for byte before the end is told"), "{err}");
    // With a job in the queue nothing can be judged.
    let job = dir.path().join("job.yaml");
    std::fs::write(&job, "image: x\ncommand: [x]\n").expect("writes");
    assert_eq!(run(&["job", "submit", job.to_str().expect("text")], &[]).await.0, 0);
    let (code, out, err) = run(&["conformance", &url, "-o", "json"], &env).await;
    let told: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        (code, told["failed"].as_u64(), told["cases"][0]["verdict"].as_str()),
        (1, Some(1), Some("failed")),
        "{err}"
    );
    run_kill(&mut server).await;
}

async fn run_kill(child: &mut Child) {
    run("kill", &["-TERM", &child.id().expect("runs").to_string()]);
    assert_eq!(
        tokio::time::timeout(PATIENCE, child.wait()).await.expect("ends").expect("is waited for").code(),
        Some(0)
    );
}

#[tokio::test]
async fn keys_and_engines_have_one_agent_each() {
    let Some(host) = engine() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let agent = |args: &[&str], env: &[(&str, &str)]| {
        let mut command = tokio::process::Command::new(JOBCELL);
        command.args(["agent", "--listen", "127.0.0.1:0", "--data-dir"]).arg(dir.path().join("agent")).args(args);
        command.env("DOCKER_HOST", &host).envs(env.iter().copied()).stdin(Stdio::null()).current_dir(root());
        async move { said(&tokio::time::timeout(PATIENCE, command.output()).await.expect("ends").expect("runs")) }
    };
    let (code, _, err) = agent(&[], &[]).await;
    assert!(code == 78 && err.contains("--backend"), "{err}");
    let (code, _, err) = agent(&["--backend", "http://127.0.0.1:1"], &[]).await;
    assert!(code == 78 && err.contains("JOBCELL_AGENT_KEY"), "{err}");
    let (code, _, err) = agent(&["--backend", "ftp://x"], &[("JOBCELL_AGENT_KEY", "k")]).await;
    assert!(code == 78 && err.contains("backends.main.url"), "{err}");
    // Somebody holds the engine's lock.
    let id = super::stage::docker(&host, &["info", "--format", "{{.ID}}"]);
    let id: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
    let held = std::fs::File::options().create(true).append(true).open(format!("/run/lock/jobcell-engine-{id}.lock"));
    let held = held.expect("opens");
    held.lock().expect("locks");
    let (code, _, err) = agent(&["--backend", "http://127.0.0.1:1"], &[("JOBCELL_AGENT_KEY", "k")]).await;
    assert!(code == 69 && err.contains("docker.shared"), "{err}");
}
