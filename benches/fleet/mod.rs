//! Processes of the program under test, and their API.

use reqwest::{Client, Method};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;
/// Calls by the file that was synced.
pub type Syncs = BTreeMap<&'static str, u64>;

/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(300);
const JOBCELL: &str = env!("CARGO_BIN_EXE_jobcell");

/// Waits until `ready` gives something.
pub async fn wait_for<T>(what: &str, ready: impl Fn() -> Option<T>) -> Outcome<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ready() {
            return Ok(found);
        }
        if Instant::now() > end {
            return Err(format!("waited in vain for {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Lines of a file that contain a text.
pub fn lines_with(path: &Path, text: &str) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().filter(|line| line.contains(text)).count()
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// One process, on a data directory that goes with the value.
pub struct Member {
    dir: tempfile::TempDir,
    child: Child,
    arguments: Vec<String>,
    url: String,
    key: String,
    traced: bool,
    http: Client,
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Member {
    pub async fn up(settings: &str) -> Outcome<Self> {
        Self::with(settings, &["up", "--listen", "127.0.0.1:0"], "", false).await
    }

    /// Its calls of fsync and fdatasync are noted.
    pub async fn up_traced(settings: &str) -> Outcome<Self> {
        Self::with(settings, &["up", "--listen", "127.0.0.1:0"], "", true).await
    }

    pub async fn server() -> Outcome<Self> {
        Self::with("", &["server", "--listen", "127.0.0.1:0"], "", false).await
    }

    /// An agent of this server.
    pub async fn agent(&self, name: &str, settings: &str) -> Outcome<Self> {
        let add = Command::new(JOBCELL).arg("--data-dir").arg(self.data()).args(["agents", "add", name]).output()?;
        let key = String::from_utf8(add.stdout)?.trim().to_owned();
        Self::with(settings, &["agent", "--listen", "127.0.0.1:0", "--backend", &self.url], &key, false).await
    }

    async fn with(settings: &str, arguments: &[&str], key: &str, traced: bool) -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("config.yaml"), settings)?;
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let child = spawn(dir.path(), &arguments, key, traced)?;
        let http = Client::builder().no_proxy().timeout(PATIENCE).build()?;
        let mut member = Self { dir, child, arguments, url: String::new(), key: key.to_owned(), traced, http };
        if member.is_agent() {
            return Ok(member);
        }
        member.endpoint().await?;
        Ok(member)
    }

    fn is_agent(&self) -> bool {
        self.arguments[0] == "agent"
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Waits for the API of a process that was started, and until it can work.
    pub async fn endpoint(&mut self) -> Outcome<()> {
        let data = self.data();
        self.url = wait_for("the endpoint", || read(&data.join("endpoint"))).await?;
        self.key = read(&data.join("admin.key")).ok_or("no key")?;
        let end = Instant::now() + PATIENCE;
        while !self
            .http
            .get(format!("{}/readyz", self.url))
            .send()
            .await
            .is_ok_and(|answer| answer.status().is_success())
        {
            if Instant::now() > end {
                return Err("it is not ready: does an engine answer?".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) -> Outcome<()> {
        self.child.kill()?;
        self.child.wait()?;
        let _ = std::fs::remove_file(self.data().join("endpoint"));
        Ok(())
    }

    /// Starts it again, a server where it was.
    pub fn revive(&mut self) -> Outcome<()> {
        let mut arguments = self.arguments.clone();
        if arguments[0] == "server" {
            arguments[2] = self.url.trim_start_matches("http://").to_owned();
        }
        let _ = std::fs::remove_file(self.log_path());
        self.child = spawn(self.dir.path(), &arguments, &self.key, self.traced)?;
        Ok(())
    }

    /// Waits until an agent has settled what an earlier process left.
    pub async fn settled(&self) -> Outcome<()> {
        let owner = format!("label=jobcell.owner={}", read(&self.data().join("owner")).ok_or("no owner")?);
        let gone = || {
            let list = Command::new("docker").args(["ps", "--all", "--quiet", "--filter", &owner]).output().ok()?;
            list.stdout.is_empty().then_some(())
        };
        wait_for("the cells' end", gone).await
    }

    /// Asks it to end, and waits for that.
    pub async fn stop(mut self) -> Outcome<()> {
        let mut pid = self.child.id().to_string();
        if self.traced {
            // The tracer's only child.
            pid = read(Path::new(&format!("/proc/{pid}/task/{pid}/children"))).ok_or("no child")?;
        }
        Command::new("kill").arg(pid.trim()).status()?;
        let end = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > end {
                return Err("it does not stop".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Outcome<reqwest::Response> {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.json(body);
        }
        Ok(request.send().await?.error_for_status()?)
    }

    #[allow(dead_code, reason = "not every bench has contents")]
    /// Uploads a content that is `piece` again and again; gives its name.
    pub async fn upload(&self, piece: &[u8], times: u64) -> Outcome<String> {
        let piece = bytes::Bytes::copy_from_slice(piece);
        let pieces = futures_util::stream::iter((0..times).map(move |_| Ok::<_, std::io::Error>(piece.clone())));
        let request = self.http.post(format!("{}/v1/blobs", self.url)).bearer_auth(&self.key);
        let stored = request.body(reqwest::Body::wrap_stream(pieces)).send().await?.error_for_status()?;
        let stored: Value = stored.json().await?;
        Ok(stored["digest"].as_str().ok_or_else(|| stored.to_string())?.to_owned())
    }

    #[allow(dead_code, reason = "not every bench has contents")]
    /// What the kernel says of the process's memory, in bytes.
    pub fn memory(&self, key: &str) -> Outcome<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with(key)).ok_or("no such line")?;
        let kib: f64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
        Ok(kib * 1024.0)
    }

    pub async fn submit(&self, spec: &Value) -> Outcome<String> {
        let job: Value = self.call(Method::POST, "/v1/jobs", Some(spec)).await?.json().await?;
        Ok(job["id"].as_str().ok_or_else(|| job.to_string())?.to_owned())
    }

    pub async fn job(&self, id: &str) -> Outcome<Value> {
        Ok(self.call(Method::GET, &format!("/v1/jobs/{id}"), None).await?.json().await?)
    }

    pub async fn ended(&self, id: &str) -> Outcome<Value> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let answer = self.call(Method::GET, &format!("/v1/jobs/{id}?wait=20s"), None).await?;
            let job: Value = answer.json().await?;
            if !job["ending"].is_null() {
                return Ok(job);
            }
        }
        Err(format!("{id} does not end").into())
    }

    pub async fn succeeded(&self, id: &str) -> Outcome<()> {
        let job = self.ended(id).await?;
        if job["ending"]["verdict"] == "succeeded" { Ok(()) } else { Err(job["ending"].to_string().into()) }
    }

    pub async fn run(&self, spec: &Value) -> Outcome<()> {
        let id = self.submit(spec).await?;
        self.succeeded(&id).await
    }

    pub async fn phase(&self, id: &str, phase: &str) -> Outcome<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let job = self.job(id).await?;
            if job["history"].as_array().is_some_and(|all| all.iter().any(|event| event["phase"] == phase)) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("waited in vain for {phase}: {job}").into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn cancel(&self, id: &str, force: bool) -> Outcome<()> {
        self.call(Method::POST, &format!("/v1/jobs/{id}/cancel?force={force}"), None).await.map(drop)
    }

    pub async fn output(&self, id: &str) -> Outcome<Vec<u8>> {
        self.stream(id, "both").await
    }

    pub async fn stream(&self, id: &str, stream: &str) -> Outcome<Vec<u8>> {
        let (mut all, mut from) = (Vec::new(), "1".to_owned());
        loop {
            let path = format!("/v1/jobs/{id}/logs?stream={stream}&from={from}&max_bytes=8000000");
            let answer = self.call(Method::GET, &path, None).await?;
            let header =
                |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
            let (next, end) = (header("jobcell-next-seq").ok_or("no header")?, header("jobcell-log-end"));
            all.extend(answer.bytes().await?);
            if end.as_deref() == Some("true") || next == from {
                return Ok(all);
            }
            from = next;
        }
    }

    /// Bytes of output that lie in its log store.
    pub fn log_bytes(&self) -> u64 {
        size(&self.data().join("logs"))
    }

    pub fn syncs(&self) -> Outcome<Syncs> {
        let mut counts = Syncs::new();
        for line in std::fs::read_to_string(self.dir.path().join("strace"))?.lines() {
            for (file, text) in [("journal", "/journal.db"), ("queue", "/queue.db"), ("log", "/logs/")] {
                *counts.entry(file).or_default() += u64::from(line.contains(text) && !line.contains("resumed"));
            }
        }
        Ok(counts)
    }
}

fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let size_of =
        |path: PathBuf| if path.is_dir() { size(&path) } else { path.metadata().map_or(0, |file| file.len()) };
    entries.map(|entry| size_of(entry.path())).sum()
}

fn spawn(dir: &Path, arguments: &[String], key: &str, traced: bool) -> Outcome<Child> {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log"))?;
    let mut command = if traced {
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-qq", "-e", "trace=fsync,fdatasync", "-o"]).arg(dir.join("strace")).arg(JOBCELL);
        command
    } else {
        Command::new(JOBCELL)
    };
    command.args(arguments).arg("--data-dir").arg(dir.join("data")).arg("--config").arg(dir.join("config.yaml"));
    command.env("JOBCELL_DOCKER__SHARED", "true").env("RUST_LOG", "info");
    if arguments[0] == "agent" {
        command.env("JOBCELL_AGENT_KEY", key);
    }
    Ok(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?)
}
