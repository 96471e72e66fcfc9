//! Traces of a server and an agent that are processes of their own: each tells its part of one tree, and says who it is.

use super::ssh::sshd::{self, Folder};
use super::stage::{JOBCELL, PATIENCE, engine, read, root, said, until};
use super::traces::{CALLER, Collector, Manner, TRACE, find, hex, says, tree};
use opentelemetry_proto::tonic::trace::v1::Span;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::{Child, Command};

/// Who began the other trace.
const OTHER: &str = "a3ce929d0e0e47364bf92f3577b34da6";

/// A server and an agent, with a collector for both.
struct Apart {
    dir: tempfile::TempDir,
    collector: Collector,
    server: Option<Child>,
    agent: Option<Child>,
    url: String,
    key: String,
}

fn spawn(dir: &Path, name: &str, collector: &str, args: &[&str], env: &[(&str, &str)]) -> Child {
    let log = std::fs::File::create(dir.join(format!("{name}.log"))).expect("opens");
    Command::new(JOBCELL)
        .args(args)
        .args(["--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.join(name))
        .envs([("OTEL_EXPORTER_OTLP_ENDPOINT", collector), ("OTEL_SERVICE_NAME", name), ("RUST_LOG", "info")])
        .envs(env.iter().copied())
        .current_dir(root())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("clones"))
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("starts")
}

async fn stop(mut child: Child) {
    let pid = child.id().expect("runs").to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().expect("runs").success());
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await.expect("ends in time").expect("is waited for");
    assert_eq!(ended.code(), Some(0));
}

impl Apart {
    async fn start(host: &str, inventory: Option<&Path>) -> Self {
        let (dir, collector) = (tempfile::tempdir().expect("a folder"), Collector::start(Manner::Takes).await);
        let server = Some(spawn(dir.path(), "server", &collector.url, &["server"], &[]));
        let url = until("the endpoint file", || async { read(&dir.path().join("server/endpoint")) }).await;
        let key = read(&dir.path().join("server/admin.key")).expect("is there before the endpoint");
        let mut apart = Self { dir, collector, server, agent: None, url, key };
        let token = apart.cli(&["--quiet", "agents", "token", "create", "one"]).await;
        let inventory = inventory.map(|path| path.display().to_string()).unwrap_or_default();
        let env = [
            ("DOCKER_HOST", host),
            ("JOBCELL_DOCKER__SHARED", "true"),
            ("JOBCELL_JOIN_TOKEN", token.as_str()),
            ("JOBCELL_SSH__INVENTORY", inventory.as_str()),
        ];
        let env = if inventory.is_empty() { &env[..3] } else { &env[..] };
        let args = ["agent", "--backend", &apart.url];
        apart.agent = Some(spawn(apart.dir.path(), "agent", &apart.collector.url, &args, env));
        until("the agent", || async { apart.cli(&["agents", "list"]).await.contains("online").then_some(()) }).await;
        apart
    }

    async fn cli(&self, args: &[&str]) -> String {
        let run = Command::new(JOBCELL).arg("--data-dir").arg(self.dir.path().join("server")).args(args).output();
        let (code, out, err) = said(&tokio::time::timeout(PATIENCE, run).await.expect("ends in time").expect("runs"));
        assert_eq!(code, 0, "{args:?}: {err}");
        out.trim().to_owned()
    }

    async fn call(&self, method: Method, path: &str, spec: Option<(&Value, &str)>) -> Value {
        let http = Client::builder().no_proxy().timeout(PATIENCE).build().expect("builds");
        let mut request = http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key);
        if let Some((spec, trace)) = spec {
            request = request.json(spec).header("traceparent", format!("00-{trace}-{CALLER}-01"));
        }
        let answer = request.send().await.expect("answers");
        assert!(answer.status().is_success(), "{path}: {}\n{}", answer.status(), self.logs());
        answer.json().await.expect("is JSON")
    }

    /// Runs a job in this trace, to its end.
    async fn run(&self, spec: &Value, trace: &str) -> Value {
        let job = self.call(Method::POST, "/v1/jobs", Some((spec, trace))).await;
        let path = format!("/v1/jobs/{}", job["id"].as_str().expect("an id"));
        until("its end", || async {
            Some(self.call(Method::GET, &path, None).await).filter(|job| job["phase"] == "ended")
        })
        .await
    }

    fn logs(&self) -> String {
        ["server", "agent"]
            .map(|name| read(&self.dir.path().join(format!("{name}.log"))).unwrap_or_default())
            .join("\n")
    }

    /// The spans that a process has told, by its resource, with what that says of itself.
    fn told_by(&self, service: &str) -> (Vec<Span>, Option<String>) {
        let (mut spans, mut instance) = (Vec::new(), None);
        for of in self.collector.requests().into_iter().flat_map(|(_, request)| request.resource_spans) {
            let attributes = of.resource.expect("says who tells").attributes;
            // As a span's are read.
            let said = Span { attributes, ..Span::default() };
            if says(&said, "service.name").as_deref() == Some(service) {
                instance = says(&said, "service.instance.id");
                spans.extend(of.scope_spans.into_iter().flat_map(|of| of.spans));
            }
        }
        (spans, instance)
    }
}

/// An inventory with one sshd under two names; `None` when there is no sshd.
fn two_hosts() -> Option<(Folder, sshd::Sshd, PathBuf)> {
    if !sshd::present() {
        return None;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let host = |name: &str| {
        format!(
            "  {name}: {{address: {}, port: {}, login: {}, credential: user}}\n",
            sshd.address,
            sshd.port,
            sshd::login()
        )
    };
    let text = format!(
        "hosts:\n{}{}credentials:\n  user: {{key_file: {}}}\nknown_hosts: [{}]\n",
        host("web1"),
        host("web2"),
        folder.user_key().display(),
        folder.shown("known_hosts")
    );
    let path = folder.path("inventory.yaml");
    super::stage::write_secret(&path, &text);
    Some((folder, sshd, path))
}

#[tokio::test]
async fn a_server_and_an_agent_tell_one_tree_each_under_its_own_name() {
    let Some(host) = engine() else { return };
    let hosts = two_hosts();
    let mut apart = Apart::start(&host, hosts.as_ref().map(|(_, _, path)| path.as_path())).await;
    let script = "echo $TRACEPARENT";
    let job = apart.run(&json!({"name": "one", "preset": "bash", "script": script}), TRACE).await;
    assert_eq!(job["ending"]["verdict"], "succeeded", "{job}\n{}", apart.logs());
    let target = json!({"hosts": ["web1", "web2"], "mode": "plain"});
    let many = json!({"name": "many", "target": target, "script": script});
    let many = if hosts.is_some() { Some(apart.run(&many, OTHER).await) } else { None };
    let output = apart.cli(&["job", "logs", job["id"].as_str().expect("an id")]).await;

    let all = apart.cli(&["job", "list", "-o", "json"]).await;
    let owners = ["server", "agent"].map(|name| read(&apart.dir.path().join(name).join("owner")).expect("is there"));
    // What is left is told when a process stops.
    for process in [apart.agent.take(), apart.server.take()].into_iter().flatten() {
        stop(process).await;
    }

    let (of_server, server_is) = apart.told_by("server");
    let (of_agent, agent_is) = apart.told_by("agent");
    assert_eq!([server_is, agent_is].map(|instance| instance.expect("says which")), owners, "each is an installation");
    let mut told = tree(&of_server, TRACE);
    told.sort();
    assert_eq!(told, [format!("RUN one < {CALLER}"), "queued < RUN one".to_owned()]);
    let (root, attempt) = (find(&of_server, TRACE, "RUN one"), find(&of_agent, TRACE, "attempt 1"));
    assert_eq!(attempt.parent_span_id, root.span_id, "the agent's spans are below the server's");
    let run = find(&of_agent, TRACE, "run");
    assert_eq!(run.parent_span_id, attempt.span_id);
    assert_eq!(output, format!("00-{TRACE}-{}-01", hex(&run.span_id)), "and the job's are below the agent's");
    assert!(of_agent.iter().all(|span| !span.name.starts_with("RUN") && span.name != "queued"));

    let Some(many) = many else { return };
    assert_eq!(
        (&many["ending"]["cause"]["of"], &many["ending"]["cause"]["succeeded"]),
        (&json!(2), &json!(2)),
        "{many}"
    );
    let id = many["id"].as_str().expect("an id");
    let is_of = |span: &&Span, job: &str| says(span, "cicd.pipeline.run.id").as_deref() == Some(job);
    let whole = of_server.iter().find(|span| is_of(span, id)).expect("the job for all is told of");
    assert_eq!((hex(&whole.trace_id).as_str(), hex(&whole.parent_span_id).as_str()), (OTHER, CALLER));
    let all: Value = serde_json::from_str(&all).expect("is JSON");
    let parts = all["jobs"].as_array().expect("jobs").iter().filter(|job| job["parent"] == id);
    let parts: Vec<&str> = parts.map(|job| job["id"].as_str().expect("an id")).collect();
    assert_eq!(parts.len(), 2, "{all}");
    for part in parts {
        let part = of_server.iter().find(|span| is_of(span, part)).expect("each part is told of");
        assert_eq!((&part.trace_id, &part.parent_span_id), (&whole.trace_id, &whole.span_id), "below the job for all");
        let attempt = of_agent.iter().find(|span| span.parent_span_id == part.span_id).expect("and its try below it");
        assert_eq!((attempt.name.as_str(), &attempt.trace_id), ("attempt 1", &whole.trace_id));
        assert!(of_agent.iter().any(|span| span.parent_span_id == attempt.span_id && span.name == "run"));
    }
}
