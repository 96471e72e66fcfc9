//! Files that jobs leave at an agent elsewhere: they are at the server before the end is told, whoever dies on the way, and what is not there
//! is told of.

use super::stage::{JOBCELL, PATIENCE, cause, engine, id, read, until};
use jobcell::job::Digest;
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use tokio::process::Child;

struct Server {
    child: Child,
    url: String,
    key: String,
    http: reqwest::Client,
}

fn spawn(host: &str, dir: &Path, name: &str, args: &[&str], env: &[(&str, &str)]) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join(format!("{name}.log"))).expect("opens");
    let mut command = tokio::process::Command::new(JOBCELL);
    command.args(args).arg("--data-dir").arg(dir.join(name)).envs(env.iter().copied());
    command.env("DOCKER_HOST", host).env("JOBCELL_DOCKER__SHARED", "true").env("RUST_LOG", "info,jobcell=debug");
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("clones")).stderr(log).kill_on_drop(true);
    command.spawn().expect("starts")
}

impl Server {
    async fn start(host: &str, dir: &Path, settings: &str) -> Self {
        let config = dir.join("server.yaml");
        std::fs::write(&config, settings).expect("writes");
        let config = config.to_str().expect("text");
        let child = spawn(host, dir, "server", &["server", "--listen", "127.0.0.1:0", "--config", config], &[]);
        let url = until("the endpoint", || async { read(&dir.join("server/endpoint")) }).await;
        let key = read(&dir.join("server/admin.key")).expect("there");
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("builds");
        Self { child, url, key, http }
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Value {
        let request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key);
        let request = if body.is_null() { request } else { request.json(body) };
        request.send().await.expect("is answered").json().await.expect("is JSON")
    }

    async fn ended(&self, job: &Value) -> Value {
        let path = format!("/v1/jobs/{}?wait=20s", id(job));
        let ended =
            || async { Some(self.call(Method::GET, &path, &Value::Null).await).filter(|job| !job["ending"].is_null()) };
        until("the end", ended).await
    }

    async fn bytes(&self, job: &Value, path: &str) -> Vec<u8> {
        let url = format!("{}/v1/jobs/{}/artifacts/{path}", self.url, id(job));
        let answer = self.http.get(url).bearer_auth(&self.key).send().await.expect("is answered");
        assert_eq!(answer.status().as_u16(), 200, "{path}");
        answer.bytes().await.expect("reads").to_vec()
    }
}

/// Files with contents beneath a store's folder.
fn contents(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.flatten().map(|entry| if entry.path().is_dir() { contents(&entry.path()) } else { 1 }).sum()
}

async fn ends(mut child: Child, name: &str, dir: &Path) {
    let pid = child.id().expect("runs").to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
    let code = tokio::time::timeout(PATIENCE, child.wait()).await.expect("ends in time").expect("is waited for");
    let log = std::fs::read_to_string(dir.join(format!("{name}.log"))).unwrap_or_default();
    assert!(code.success(), "{log}");
}

#[tokio::test]
async fn files_are_at_the_server_before_the_end_also_when_the_agent_is_killed_on_the_way() {
    let Some(host) = engine() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::start(&host, dir.path(), "artifacts: {quota: 120MiB}\n").await;
    let made = server.call(Method::POST, "/v1/agents", &json!({"name": "one"})).await;
    let key = made["key"].as_str().expect("a key").to_owned();
    let args = ["agent", "--backend", &server.url, "--listen", "127.0.0.1:0"];
    let start = || spawn(&host, dir.path(), "agent", &args, &[("JOBCELL_AGENT_KEY", &key)]);
    let mut agent = start();
    // The same content twice is brought once.
    let script = "for n in 1 2 3 4; do head -c 25000000 /dev/urandom > f$n; done; cp f1 f5; sha256sum f* > sums
        echo \"progress 50 half\" > $JOBCELL_PROGRESS; echo a=b > $JOBCELL_OUTPUT; echo 'step begin x' > $JOBCELL_PROGRESS";
    let spec = json!({"preset": "bash", "script": script, "resources": {"disk": "256MiB"},
        "artifacts": ["f*", {"path": "sums", "required": true}]});
    let job = server.call(Method::POST, "/v1/jobs", &spec).await;
    let (there, here) = (dir.path().join("agent/blobs/content"), dir.path().join("server/blobs/content"));
    until("files on their way", || async { (contents(&there) > 0).then_some(()) }).await;
    agent.start_kill().expect("is killed");
    agent.wait().await.expect("is waited for");
    let now = server.call(Method::GET, &format!("/v1/jobs/{}", id(&job)), &Value::Null).await;
    assert!(now["ending"].is_null() && contents(&here) == 0, "it was too fast for this test: {now}");
    let agent_again = start();
    let done = server.ended(&job).await;
    assert_eq!(
        (cause(&done), &done["attempt"], &done["artifacts"]["complete"]),
        ("exit_code", &json!(1), &json!(true))
    );
    assert_eq!((&done["outputs"], &done["progress"]["message"]), (&json!({"a": "b"}), &json!("half")), "{done}");
    let sums = String::from_utf8(server.bytes(&done, "sums").await).expect("text");
    assert_eq!(sums.lines().count(), 5);
    for line in sums.lines() {
        let (sum, path) = line.split_once("  ").expect("a sum and a path");
        assert_eq!(Digest::of(&server.bytes(&done, path).await).hex(), sum, "{path}");
    }
    assert_eq!(contents(&here), 6, "four files, their sums and the list");

    // A server without room: who requires its files hears of it, and nobody else fails.
    let script = "head -c 50000000 /dev/urandom > f";
    let spec = |required: bool| {
        json!({"preset": "bash", "script": script, "retry": {"infrastructure": 0},
            "artifacts": [{"path": "f", "required": required}]})
    };
    for (required, wanted) in [(true, "artifacts_failed"), (false, "exit_code")] {
        let job = server.call(Method::POST, "/v1/jobs", &spec(required)).await;
        let done = server.ended(&job).await;
        let artifacts = &done["artifacts"];
        assert_eq!((cause(&done), &artifacts["problems"][0]["code"]), (wanted, &json!("not_delivered")), "{done}");
        assert_eq!((&artifacts["count"], &artifacts["complete"]), (&json!(0), &json!(false)));
    }
    ends(agent_again, "agent", dir.path()).await;
    ends(server.child, "server", dir.path()).await;
}
