//! What is broken: an engine of its own, a server, a proxy in front of it, and agents that reach the server only through that.

use super::checker::Findings;
use super::proxy::Proxy;
use super::work::{Submitted, Work};
use crate::private::Private;
use crate::ssh::jobs::{marked, records_in};
use crate::ssh::resident::{home, wardens};
use crate::ssh::sshd::{self, Folder, Sshd};
use crate::stage::{JOBCELL, PATIENCE, engine, read, root, said, until, write_secret};
use reqwest::{Client, Method, Response};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// The shortest that a lease can be in production settings is what jobs here have.
const SERVER: &str = "queue: {lease: 10s}\n";
/// Settings of agents under which an engine that is away is noticed within a test's time.
const AGENT: &str = "docker: {shared: true, call_timeout: 5s, start_timeout: 10s, reconnect_timeout: 20s}\n";

/// For the world to come to rest: leases run out, tries wait, what is left is removed.
const REST: Duration = Duration::from_secs(120);

/// Dropped from the first to the last: who uses something goes before it.
pub(super) struct World {
    pub(super) agents: Vec<Agent>,
    server: Child,
    pub(super) proxy: Proxy,
    pub(super) engine: Private,
    /// Where the server answers without the proxy.
    url: String,
    key: String,
    http: Client,
    /// Everything that was submitted since the last look.
    pub(super) submitted: Vec<Submitted>,
    /// How long it may take to come to rest.
    pub(super) rest: Duration,
    /// Jobs of earlier looks.
    pub(super) judged: Vec<String>,
    /// Another host, where there is one.
    pub(super) host: Option<Host>,
    dir: tempfile::TempDir,
}

/// A server that jobs are sent to over SSH, and what opens it.
pub(super) struct Host {
    folder: Folder,
    pub(super) sshd: Sshd,
}

impl Host {
    fn new() -> Self {
        let folder = Folder::new();
        let sshd = folder.sshd("");
        let text = format!(
            "hosts:\n  web1: {{address: {}, port: {}, login: {}, credential: user}}\ncredentials:\n  user: {{key_file: {}}}\nknown_hosts: [{}]\n",
            sshd.address,
            sshd.port,
            sshd::login(),
            folder.shown("user"),
            folder.shown("known_hosts")
        );
        let file = folder.write("inventory.yaml", &text);
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).expect("sets the mode");
        Self { folder, sshd }
    }
}

pub(super) struct Agent {
    name: &'static str,
    pub(super) data: PathBuf,
    child: Child,
}

/// How an agent is started.
#[derive(Default)]
pub(super) struct Start {
    /// Of `JOBCELL_CRASH_AT`.
    pub(super) crash_at: Option<String>,
}

impl World {
    /// `None` after saying loudly that the test is skipped.
    pub(super) async fn new(agents: &[&'static str]) -> Option<Self> {
        Self::with(agents, &[], None).await
    }

    /// With more options of dockerd, and its data on a file system of that size.
    pub(super) async fn with(agents: &[&'static str], options: &[&str], data_size: Option<&str>) -> Option<Self> {
        Self::made(agents, options, data_size, None).await
    }

    /// With another host, that its agents reach over SSH.
    pub(super) async fn on_host(agents: &[&'static str]) -> Option<Self> {
        if !sshd::present() {
            return None;
        }
        Self::made(agents, &[], None, Some(Host::new())).await
    }

    async fn made(
        agents: &[&'static str],
        options: &[&str],
        data_size: Option<&str>,
        host: Option<Host>,
    ) -> Option<Self> {
        // The image comes from there.
        engine()?;
        let private = Private::prepare()?;
        private.start_with(options, data_size);
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("server.yaml"), SERVER).expect("writes");
        let server = serve(dir.path(), "127.0.0.1:0");
        let url = until("the server", || async { read(&dir.path().join("server/endpoint")) }).await;
        let key = read(&dir.path().join("server/admin.key")).expect("is there before the endpoint");
        let proxy = Proxy::start(url.trim_start_matches("http://").parse().expect("an address")).await;
        let http = Client::builder().no_proxy().timeout(PATIENCE).build().expect("builds");
        let (submitted, judged, rest) = (Vec::new(), Vec::new(), REST);
        let (engine, names, agents) = (private, agents, Vec::new());
        let mut world = Self { agents, server, proxy, engine, url, key, http, submitted, rest, judged, host, dir };
        for name in names {
            world.add_agent(name, None).await;
        }
        Some(world)
    }

    /// One more, with its data in a folder of its own, or in this one.
    pub(super) async fn add_agent(&mut self, name: &'static str, data: Option<PathBuf>) {
        let data = data.unwrap_or_else(|| self.dir.path().join(name));
        let server = self.dir.path().join("server");
        let run = Command::new(JOBCELL).arg("--data-dir").arg(server).args(["agents", "add", name]).output();
        let (code, key, err) = said(&run.await.expect("runs"));
        assert_eq!(code, 0, "{err}");
        let file = |kind: &str| self.dir.path().join(format!("{name}.{kind}"));
        write_secret(&file("key"), &key);
        let backend = format!("{{url: \"http://{}\", key_file: {}}}", self.proxy.address, file("key").display());
        let inventory = |host: &Host| format!("ssh: {{inventory: {}}}\n", host.folder.shown("inventory.yaml"));
        let hosts = self.host.as_ref().map(inventory).unwrap_or_default();
        let text = format!(
            "agent: {{name: {name}, slots: 4, grace: 1s, disk_floor: 0}}\nbackends: {{main: {backend}}}\n{AGENT}{hosts}"
        );
        std::fs::write(file("yaml"), text).expect("writes");
        let child = self.spawn_agent(name, &data, &Start::default());
        self.agents.push(Agent { name, data, child });
    }

    fn spawn_agent(&self, name: &str, data: &Path, start: &Start) -> Child {
        let mut command = Command::new(JOBCELL);
        command.args(["agent", "--listen", "127.0.0.1:0", "--config"]);
        command.arg(self.dir.path().join(format!("{name}.yaml"))).arg("--data-dir").arg(data);
        command.env("DOCKER_HOST", self.engine.host());
        if let Some(point) = &start.crash_at {
            command.env("JOBCELL_CRASH_AT", point);
        }
        spawn(self.dir.path(), name, command)
    }

    // ---- faults of processes ----

    /// kill -9.
    pub(super) async fn kill_agent(&mut self, index: usize) {
        self.agents[index].child.kill().await.expect("dies");
    }

    pub(super) fn start_agent(&mut self, index: usize, start: &Start) {
        let (name, data) = (self.agents[index].name, self.agents[index].data.clone());
        self.agents[index].child = self.spawn_agent(name, &data, start);
    }

    pub(super) fn signal_agent(&self, index: usize, signal: &str) {
        let pid = self.agents[index].child.id().expect("runs").to_string();
        assert!(std::process::Command::new("kill").args([signal, &pid]).status().expect("kill runs").success());
    }

    /// Waits until it has ended; gives the signal that ended it.
    pub(super) async fn death_of_agent(&mut self, index: usize) -> Option<i32> {
        let ended = tokio::time::timeout(PATIENCE, self.agents[index].child.wait()).await;
        let ended = ended.unwrap_or_else(|_| panic!("the agent does not die\n{}", self.log(index)));
        std::os::unix::process::ExitStatusExt::signal(&ended.expect("is waited for"))
    }

    pub(super) async fn restart_server(&mut self) {
        self.server.kill().await.expect("dies");
        std::fs::remove_file(self.dir.path().join("server/endpoint")).expect("it was there");
        self.server = serve(self.dir.path(), self.url.trim_start_matches("http://"));
        until("the server", || async { read(&self.dir.path().join("server/endpoint")) }).await;
    }

    // ---- jobs ----

    pub(super) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Response {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(super) async fn get(&self, path: &str) -> Value {
        let response = self.call(Method::GET, path, None).await;
        assert!(response.status().is_success(), "{path}: {}", response.status());
        response.json().await.expect("is JSON")
    }

    pub(super) async fn submit(&mut self, work: Work) -> String {
        let response = self.call(Method::POST, "/v1/jobs", Some(&work.spec())).await;
        let status = response.status();
        let job: Value = response.json().await.expect("is JSON");
        assert!(status.is_success(), "{status}: {job}");
        let id = job["id"].as_str().expect("an id").to_owned();
        self.submitted.push(Submitted { id: id.clone(), work });
        id
    }

    pub(super) async fn job(&self, id: &str) -> Value {
        self.get(&format!("/v1/jobs/{id}")).await
    }

    /// All bytes of one stream of one attempt.
    pub(super) async fn output(&self, id: &str, attempt: u64, stream: &str) -> Vec<u8> {
        let (mut all, mut from) = (Vec::new(), 1u64);
        loop {
            let path = format!("/v1/jobs/{id}/logs?stream={stream}&attempt={attempt}&from={from}&max_bytes=8000000");
            let response = self.call(Method::GET, &path, None).await;
            assert!(response.status().is_success(), "{path}: {}", response.status());
            let next = response.headers()["jobcell-next-seq"].to_str().expect("text").parse().expect("a number");
            all.extend(response.bytes().await.expect("reads"));
            if next == from {
                return all;
            }
            from = next;
        }
    }

    /// Waits until a job has written `line`.
    pub(super) async fn wrote(&self, id: &str, line: &str) {
        until(&format!("{id} to write {line:?}"), || async {
            let attempt = self.job(id).await["attempt"].as_u64().filter(|attempt| *attempt > 0)?;
            let out = self.output(id, attempt, "stdout").await;
            String::from_utf8_lossy(&out).contains(line).then_some(())
        })
        .await;
    }

    /// Waits until a job has ended; gives it.
    pub(super) async fn ended(&self, id: &str) -> Value {
        until(&format!("the end of {id}"), || async { Some(self.job(id).await).filter(|job| !job["ending"].is_null()) })
            .await
    }

    /// Waits until an agent's log has this.
    pub(super) async fn says(&self, index: usize, text: &str) {
        self.says_since(index, 0, text).await;
    }

    /// The same, behind so many bytes of it.
    pub(super) async fn says_since(&self, index: usize, from: usize, text: &str) {
        let said = || async { self.log(index).get(from..).is_some_and(|log| log.contains(text)).then_some(()) };
        until(&format!("agent {index} to say {text:?}"), said).await;
    }

    // ---- the other host ----

    /// The folders of the agents' installations there.
    fn bases(&self) -> Vec<PathBuf> {
        let owner = |agent: &Agent| read(&agent.data.join("owner")).map(|owner| home().join(".jobcell").join(owner));
        self.agents.iter().filter_map(owner).collect()
    }

    /// The wardens that stay there.
    pub(super) fn hubs(&self) -> Vec<u32> {
        self.bases().iter().flat_map(|base| wardens(base, "jobcell-hub")).collect()
    }

    /// What is left of jobs there, and of what agents know of them.
    pub(super) fn left_on_host(&self) -> Vec<String> {
        if self.host.is_none() {
            return Vec::new();
        }
        let entries = |dir: &Path| -> Vec<PathBuf> {
            std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
        };
        let folders = self.bases().into_iter().flat_map(|base| entries(&base)).filter(|path| path.is_dir());
        // What a hub has set aside for jobs to come is nobody's, as long as nothing is in it.
        let is_spare = |path: &PathBuf| {
            let named = path.file_name().is_some_and(|name| name.to_string_lossy().contains(".spare-"));
            named && entries(path).iter().all(|inner| inner.is_dir() && entries(inner).is_empty())
        };
        let folders = folders.filter(|path| !is_spare(path));
        let mut left: Vec<String> = folders.map(|path| path.display().to_string()).collect();
        left.extend(self.agents.iter().flat_map(|agent| records_in(&agent.data)));
        let jobs = self.submitted.iter().map(|one| &one.id).chain(&self.judged);
        left.extend(jobs.flat_map(|id| marked(id)).map(|pid| format!("process {pid} of a job")));
        left
    }

    // ---- the end ----

    /// An agent's log.
    pub(super) fn log(&self, index: usize) -> String {
        read(&self.dir.path().join(format!("{}.log", self.agents[index].name))).unwrap_or_default()
    }

    /// Ends everything as an operator would; what is left then is told by the findings.
    pub(super) async fn stop(mut self) -> Findings {
        let mut findings = Findings::default();
        for index in 0..self.agents.len() {
            self.signal_agent(index, "-TERM");
            let ended = tokio::time::timeout(Duration::from_secs(60), self.agents[index].child.wait()).await;
            let code = ended.ok().and_then(|ended| ended.expect("is waited for").code());
            if code != Some(0) {
                findings.orphans.push(format!("agent {} ends with {code:?}", self.agents[index].name));
            }
            findings.agent_at_rest(&self.agents[index].data);
        }
        findings.orphans.extend(self.engine.leftovers());
        findings.orphans.extend(self.left_on_host());
        // They would go by themselves, after a while.
        for pid in self.hubs() {
            sshd::must("kill", &["-KILL", &pid.to_string()]);
        }
        self.bases().iter().for_each(|base| drop(std::fs::remove_dir_all(base)));
        if !findings.orphans.is_empty() {
            self.keep_logs();
        }
        findings
    }

    /// For whoever has to find out: the folder is gone with the test.
    fn keep_logs(&self) {
        let kept = root().join("target/chaos").join(self.dir.path().file_name().expect("a name"));
        let copied = std::fs::create_dir_all(&kept).and_then(|()| {
            for entry in std::fs::read_dir(self.dir.path())? {
                let path = entry?.path();
                if path.extension().is_some_and(|kind| kind == "log") {
                    std::fs::copy(&path, kept.join(path.file_name().expect("a name")))?;
                }
            }
            Ok(())
        });
        eprintln!("the logs are kept in {}: {copied:?}", kept.display());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_logs();
        }
    }
}

fn serve(dir: &Path, listen: &str) -> Child {
    let mut command = Command::new(JOBCELL);
    command.args(["server", "--listen", listen, "--config"]).arg(dir.join("server.yaml"));
    command.arg("--data-dir").arg(dir.join("server"));
    spawn(dir, "server", command)
}

fn spawn(dir: &Path, name: &str, mut command: Command) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join(format!("{name}.log"))).expect("opens");
    command.env("RUST_LOG", "info,jobcell=debug").stdin(Stdio::null()).kill_on_drop(true);
    command.stdout(log.try_clone().expect("clones")).stderr(log).spawn().expect("starts")
}
