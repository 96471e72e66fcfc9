//! What the tests stand on: a `jobcell up` process of their own, with its API, and an engine.

use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

/// The program under test.
pub(crate) const JOBCELL: &str = env!("CARGO_BIN_EXE_jobcell");
/// Nothing in these tests takes longer, also on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Most of what a test that fails says at once; all of it stands at the end.
const MOST_SAID: usize = 4000;

/// From now on a test that fails says why when it fails, too: what stands at the end of a long run is far from its neighbours, and what
/// watches a run may keep only a part of it.
fn say_failures_at_once() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let name = std::thread::current().name().unwrap_or("a thread").to_owned();
            let said: String = format!("{name}: {info}").chars().take(MOST_SAID).collect();
            // Not by a macro, whose words the test runner keeps.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("\nFAILS {said}\n").as_bytes());
            usual(info);
        }));
    });
}

/// The address of the shared engine, or `None` after saying loudly that the test is skipped.
pub(crate) fn engine() -> Option<String> {
    say_failures_at_once();
    let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    let answers = std::process::Command::new("docker")
        .args(["--host", &host, "version", "--format", "{{.Server.APIVersion}}"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if answers {
        return Some(host);
    }
    assert!(
        std::env::var("JOBCELL_TEST_ENGINE").as_deref() != Ok("required"),
        "no engine answers at {host}, and JOBCELL_TEST_ENGINE=required"
    );
    eprintln!("SKIPPED: no engine answers at {host}; scripts/engine.sh makes sure of one");
    None
}

/// Runs `docker` against `host` and gives its output.
pub(crate) fn docker(host: &str, args: &[&str]) -> String {
    let output = std::process::Command::new("docker").args(["--host", host]).args(args).output().expect("docker runs");
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The top of the source tree.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Waits until `ready` gives something.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ready: impl FnMut() -> F) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ready().await {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A file as whoever keeps a secret in one has it: others cannot read it.
pub(crate) fn write_secret(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("writes");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("sets");
}

/// A `jobcell up` of its own.
pub(crate) struct Up {
    child: Child,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) url: String,
    pub(crate) key: String,
    pub(crate) host: String,
    /// More variables of its process.
    env: Vec<(String, String)>,
    http: Client,
}

impl Up {
    /// Starts one and waits until it is ready. `settings` is more configuration, in YAML.
    pub(crate) async fn start(host: &str, settings: &str) -> Self {
        let up = Self::start_unready(host, settings).await;
        until("readiness", || async { up.plain("/readyz").await.filter(|(status, _)| *status == 200) }).await;
        up
    }

    /// Starts one and waits until its API answers.
    pub(crate) async fn start_unready(host: &str, settings: &str) -> Self {
        Self::start_in(tempfile::tempdir().expect("a folder"), host, settings).await
    }

    /// The same, with its data below `dir`.
    pub(crate) async fn start_in(dir: tempfile::TempDir, host: &str, settings: &str) -> Self {
        Self::start_with(dir, host, settings, &[]).await
    }

    /// The same, with more variables of its process.
    pub(crate) async fn start_with(dir: tempfile::TempDir, host: &str, settings: &str, env: &[(&str, &str)]) -> Self {
        let config = dir.path().join("config.yaml");
        std::fs::write(&config, settings).expect("writes");
        let env: Vec<(String, String)> =
            env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let child = spawn_up(host, dir.path(), &env);
        let data = dir.path().join("data");
        let url = until("the endpoint file", || async { read(&data.join("endpoint")) }).await;
        let key = read(&data.join("admin.key")).expect("the key is there before the endpoint");
        let http = Client::builder().no_proxy().timeout(PATIENCE).build().expect("builds");
        Self { child, dir, url, key, host: host.to_owned(), env, http }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("up.log")).unwrap_or_default()
    }

    /// A GET without a key: status and body.
    pub(crate) async fn plain(&self, path: &str) -> Option<(u16, String)> {
        let response = self.http.get(format!("{}{path}", self.url)).send().await.ok()?;
        Some((response.status().as_u16(), response.text().await.ok()?))
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key)
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Response {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.log()))
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, None).await.json().await.expect("is JSON")
    }

    /// Submits and gives the job as it was taken in.
    pub(crate) async fn submit(&self, spec: &Value) -> Value {
        let response = self.call(Method::POST, "/v1/jobs", Some(spec)).await;
        let status = response.status();
        let job: Value = response.json().await.expect("is JSON");
        assert!(status.is_success(), "{status}: {job}");
        job
    }

    /// Waits for a job's end.
    pub(crate) async fn ended(&self, job: &Value) -> Value {
        let path = format!("/v1/jobs/{}?wait=60s", id(job));
        until("a job's end", || async { Some(self.get(&path).await).filter(|job| !job["ending"].is_null()) }).await
    }

    /// Submits and waits for the end.
    pub(crate) async fn run(&self, spec: &Value) -> Value {
        let job = self.submit(spec).await;
        self.ended(&job).await
    }

    /// A bash script's job, run to its end.
    pub(crate) async fn bash(&self, script: &str) -> Value {
        self.run(&json!({"preset": "bash", "script": script})).await
    }

    /// Waits until a job is in a phase or beyond it.
    pub(crate) async fn phase(&self, job: &Value, phase: &str) {
        let path = format!("/v1/jobs/{}", id(job));
        let history = |job: Value| job["history"].as_array().cloned().unwrap_or_default();
        until(phase, || async {
            history(self.get(&path).await).iter().any(|event| event["phase"] == phase).then_some(())
        })
        .await;
    }

    /// All bytes of one stream, by the API.
    pub(crate) async fn stream(&self, job: &Value, stream: &str) -> Vec<u8> {
        let (mut all, mut from) = (Vec::new(), 1u64);
        loop {
            let path = format!("/v1/jobs/{}/logs?stream={stream}&from={from}&max_bytes=8000000", id(job));
            let response = self.call(Method::GET, &path, None).await;
            let header = |name: &str| response.headers()[name].to_str().expect("text").to_owned();
            let (next, end) = (header("jobcell-next-seq").parse().expect("a number"), header("jobcell-log-end"));
            all.extend(response.bytes().await.expect("reads"));
            if end == "true" || next == from {
                return all;
            }
            from = next;
        }
    }

    pub(crate) async fn text(&self, job: &Value, stream: &str) -> String {
        String::from_utf8(self.stream(job, stream).await).expect("UTF-8")
    }

    /// Names of containers of this installation.
    pub(crate) fn containers(&self) -> Vec<String> {
        let owner = read(&self.data().join("owner")).expect("there");
        let label = format!("label=jobcell.owner={owner}");
        let found = docker(&self.host, &["ps", "--all", "--filter", &label, "--format", "{{.Names}}"]);
        found.lines().map(str::to_owned).collect()
    }

    /// Ends it as a crash does, and starts another one on the same data directory.
    pub(crate) async fn crash(&mut self) {
        self.kill().await;
        self.revive().await;
    }

    /// Ends it as a crash does.
    pub(crate) async fn kill(&mut self) {
        self.signal("-KILL");
        self.exit_code().await;
        std::fs::remove_file(self.data().join("endpoint")).expect("it was there");
    }

    /// Starts another one on the same data directory, and waits until its API answers.
    pub(crate) async fn revive(&mut self) {
        self.child = spawn_up(&self.host, self.dir.path(), &self.env);
        self.url = until("the endpoint file", || async { read(&self.data().join("endpoint")) }).await;
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("runs")
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().expect("runs").to_string();
        let sent = std::process::Command::new("kill").args([signal, &pid]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// The exit code, once it has ended.
    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("ends in time").expect("is waited for").code()
    }

    /// Asks it to end; it must do so cleanly and leave nothing behind.
    pub(crate) async fn stop(mut self) {
        self.signal("-TERM");
        let code = self.exit_code().await;
        assert_eq!(code, Some(0), "{}", self.log());
        assert_eq!(self.containers(), Vec::<String>::new(), "{}", self.log());
    }

    /// The same, and gives what it leaves.
    pub(crate) async fn retire(mut self) -> tempfile::TempDir {
        self.signal("-TERM");
        let code = self.exit_code().await;
        assert_eq!(code, Some(0), "{}", self.log());
        assert_eq!(self.containers(), Vec::<String>::new(), "{}", self.log());
        self.dir
    }

    /// Starts a command of the command line against this one, with pipes.
    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        let mut command = Command::new(JOBCELL);
        command.arg("--data-dir").arg(self.data()).args(args).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts")
    }

    /// Runs a command with a terminal on which somebody types, and gives its exit code and all that is seen.
    pub(crate) async fn typed(&self, args: &str, keys: &str) -> (i32, String) {
        let line = format!("{JOBCELL} --data-dir {} {args}", self.data().display());
        let mut command = tokio::process::Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR").stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(keys.as_bytes()).await.expect("writes");
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("ends in time");
        drop(stdin);
        let (code, out, _) = said(&output.expect("runs"));
        (code, out)
    }

    /// Runs a command of the command line against this one.
    pub(crate) async fn command(&self, args: &[&str]) -> Output {
        let data = self.data();
        let run = Command::new(JOBCELL).arg("--data-dir").arg(data).args(args).stdin(Stdio::null()).output();
        tokio::time::timeout(PATIENCE, run).await.expect("ends in time").expect("runs")
    }
}

fn spawn_up(host: &str, dir: &Path, env: &[(String, String)]) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("up.log")).expect("opens");
    Command::new(JOBCELL)
        .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.join("data"))
        .arg("--config")
        .arg(dir.join("config.yaml"))
        .env("DOCKER_HOST", host)
        // Many of them use one engine at the same time.
        .env("JOBCELL_DOCKER__SHARED", "true")
        .env("RUST_LOG", "info")
        .envs(env.iter().cloned())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("clones"))
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("starts")
}

pub(crate) fn read(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

pub(crate) fn id(job: &Value) -> &str {
    job["id"].as_str().expect("a job has an id")
}

/// The code of a job's cause.
pub(crate) fn cause(job: &Value) -> &str {
    job["ending"]["cause"]["code"].as_str().unwrap_or_else(|| panic!("has not ended: {job}"))
}

pub(crate) fn fact<'a>(job: &'a Value, key: &str) -> &'a str {
    let facts = job["receipt"].as_array().expect("a receipt");
    facts
        .iter()
        .find(|fact| fact[0] == key)
        .and_then(|fact| fact[1].as_str())
        .unwrap_or_else(|| panic!("no {key}: {facts:?}"))
}

/// Runs a command to its end and gives exit code, standard output and standard error.
pub(crate) fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}
