//! The figures of the spine, each beside a reference of the same minute. A report, not a test: it exits with an error only
//! when something is wrong (a job failed, bytes are missing), never because a number is.
//!
//! `cargo bench --bench spine -- [--short] [NAME…]` with the names cold, flood, queue, retention, idle.

mod asked;
mod kept;
mod raw;

use asked::Asked;
use futures_util::StreamExt;
use jobcell::job::{ByteSize, Capacity, Cause, Cpus, JobId, JobSpec, LogTotals, Millis, Report, SpecRules, UnixMillis};
use jobcell::queue::{ClaimAsk, Family, NewJob, Profile, SqliteStore, Store, Submitted};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// One kilobyte of 100-byte lines is about ten; a gigabyte is the figure's unit.
const LINE: &str =
    "the quick brown fox jumps over the lazy dog and then it does the whole thing again, once and twice\n";

#[tokio::main]
async fn main() -> Outcome<()> {
    let asked = Asked::read();
    let (short, wanted) = (asked.short, |name: &str| asked.wants(name));
    println!("{:<44} {:>12} {:>12} {:>8}   goal", "figure", "jobcell", "reference", "ratio");
    if wanted("queue") {
        queue(short).await?;
    }
    if wanted("retention") {
        kept::retention(short).await?;
    }
    if wanted("idle") || wanted("cold") || wanted("flood") {
        let up = Up::start().await?;
        if wanted("idle") {
            let rss = up.memory("VmRSS")?;
            row("idle memory of `up` (MB)", rss / 1e6, None, "<= 22 MB");
        }
        if wanted("cold") {
            cold(&up, if short { 5 } else { 20 }).await?;
        }
        if wanted("flood") {
            flood(&up, if short { 64 << 20 } else { 1 << 30 }).await?;
        }
    }
    Ok(())
}

fn row(name: &str, value: f64, reference: Option<f64>, goal: &str) {
    let (other, ratio) = match reference {
        Some(other) => (format!("{other:.1}"), format!("{:.2}", value / other)),
        None => ("-".to_owned(), "-".to_owned()),
    };
    println!("{name:<44} {value:>12.2} {other:>12} {ratio:>8}   {goal}");
}

fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() * percent / 100).min(values.len() - 1)]
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

/// Who claims, and reports.
const AGENT: &str = "bench";

fn ask() -> ClaimAsk {
    let capacity =
        Capacity { slots: 8, cpu: Cpus::from_milli(8000), memory: ByteSize::from_mib(16_384), ..Capacity::default() };
    let profile = Profile { presets: vec!["bash".to_owned()], capacity, ..Profile::default() };
    ClaimAsk {
        agent: AGENT.to_owned(),
        profile: Some(profile),
        peers: Vec::new(),
        free: capacity,
        max: 1,
        lease: Millis::from_secs(60),
        now: UnixMillis::now(),
    }
}

// ---- cold starts ----

async fn cold(up: &Up, rounds: usize) -> Outcome<()> {
    let engine = raw::Raw::connect().await?;
    // Warm both: the volume, the page cache.
    up.run(&json!({"preset": "bash", "command": ["true"]})).await?;
    engine.once().await?;
    let (mut ours, mut theirs, mut first, mut their_first) = (vec![], vec![], vec![], vec![]);
    let (mut cpu, mut queue_cpu) = (vec![], vec![]);
    for _ in 0..rounds {
        let before = up.cpu()?;
        let job = up.run(&json!({"preset": "bash", "command": ["true"]})).await?;
        let after = up.cpu()?;
        queue_cpu.push((after.1 - before.1) * 1e3);
        cpu.push((after.0 - before.0 - after.1 + before.1) * 1e3);
        let at = |phase: &str| {
            job["history"].as_array().and_then(|all| all.iter().find(|e| e["phase"] == phase)?["at"].as_f64())
        };
        ours.push(at("ended").ok_or("no end")? - at("claimed").ok_or("no claim")?);
        let reference = engine.once().await?;
        theirs.push(ms(reference.exit_known));
        their_first.push(ms(reference.first_byte));
        first.push(ms(up.first_byte().await?));
    }
    for percent in [50, 95] {
        let (one, other) = (percentile(&mut ours, percent), percentile(&mut theirs, percent));
        row(&format!("cold claim -> exit known, p{percent} (ms)"), one, Some(other), "<= 1.10 x the raw loop");
        let (one, other) = (percentile(&mut first, percent), percentile(&mut their_first, percent));
        row(&format!("submit -> first byte over HTTP, p{percent} (ms)"), one, Some(other), "<= reference + 8 ms");
    }
    row("agent and API, CPU per job, p50 (ms)", percentile(&mut cpu, 50), None, "<= 3 ms");
    row("queue, CPU per job, p50 (ms)", percentile(&mut queue_cpu, 50), None, "");
    Ok(())
}

// ---- the log path ----

async fn flood(up: &Up, bytes: usize) -> Outcome<()> {
    let lines = bytes / LINE.len();
    let total = lines * LINE.len();
    let script = format!(
        "import os\nblock = {LINE:?}.encode() * 655\nleft = {total}\nwhile left > 0:\n    left -= os.write(1, block[:left])\n"
    );
    let spec = json!({"preset": "python", "script": script});
    let mut wanted = Sha256::new();
    for _ in 0..lines {
        wanted.update(LINE);
    }
    let wanted: String = wanted.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let quiet = json!({"preset": "python", "script": script.replace("os.write(1", "os.write(null").replace("import os\n", "import os\nnull = os.open('/dev/null', os.O_WRONLY)\n")});
    let alone = up.run(&quiet).await?["usage"]["wall"].as_str().ok_or("no wall")?.parse::<Millis>()?;
    let before = up.memory("VmRSS")?;
    let cpu_before = up.cpu()?.0;
    let job = up.run(&spec).await?;
    let cpu = up.cpu()?.0 - cpu_before;
    if job["log"]["stdout"]["sha256"] != wanted.as_str() || job["log"]["complete"] != true {
        return Err(format!("bytes were lost: {}", job["log"]).into());
    }
    let grown = up.memory("VmHWM")? - before;
    let at = |phase: &str| {
        job["history"].as_array().and_then(|all| all.iter().find(|e| e["phase"] == phase)?["at"].as_f64())
    };
    let seconds = (at("ended").ok_or("no end")? - at("running").ok_or("no start")?) / 1e3;
    let (rate, reference) = (total as f64 / 1e6 / seconds, total as f64 / 1e6 / alone.as_duration().as_secs_f64());
    row("flood, cell -> log store (MB/s)", rate, Some(reference), ">= 150 MB/s (reference: to /dev/null)");
    row("agent CPU in that flood (s per GB)", cpu / (total as f64 / 1e9), None, "");
    row("memory growth of the agent in it (MB)", grown / 1e6, None, "<= 32 MB");
    let begun = Instant::now();
    let id = up.submit(&spec).await?;
    let (first, seen, sum) = up.watch(&id).await?;
    let seconds = begun.elapsed().as_secs_f64() - first.as_secs_f64();
    if seen != total || sum != wanted {
        return Err(format!("the viewer saw {seen} of {total} bytes").into());
    }
    row(
        "flood, on to a viewer over WebSocket (MB/s)",
        total as f64 / 1e6 / seconds,
        Some(rate),
        ">= 100 MB/s (reference: log store)",
    );
    Ok(())
}

// ---- the queue ----

fn spec() -> Outcome<JobSpec> {
    Ok(JobSpec::check(&json!({"preset": "bash", "script": "true"}), &SpecRules::default())
        .map_err(|problems| problems.to_string())?)
}

async fn add(store: &SqliteStore, spec: &JobSpec) -> Outcome<()> {
    let at = UnixMillis::now();
    match store
        .submit(
            NewJob {
                id: JobId::new(at),
                spec: spec.clone(),
                at,
                retry_of: None,
                submitter: None,
                quota: None,
                family: Family::Alone,
            },
            u64::MAX,
        )
        .await?
    {
        Submitted::Created(_) => Ok(()),
        other => Err(format!("not taken in: {other:?}").into()),
    }
}

/// Submit, claim, complete: three durable transitions.
async fn whole(store: &SqliteStore, spec: &JobSpec) -> Outcome<()> {
    add(store, spec).await?;
    let claim = store.claim(ask()).await?.claims.pop().ok_or("nothing to claim")?;
    let report = Report {
        attempt: claim.attempt,
        cause: Cause::ExitCode { exit_code: 0 },
        started_at: None,
        ended_at: UnixMillis::now(),
        usage: None,
        receipt: Vec::new(),
        given: std::collections::BTreeMap::new(),
        image: None,
        log: LogTotals::default(),
        results: jobcell::job::Results::default(),
        timings: Vec::new(),
    };
    store.complete(AGENT, &report, claim.token, UnixMillis::now(), 3).await?;
    Ok(())
}

async fn queue(short: bool) -> Outcome<()> {
    let spec = spec()?;
    let mut p99 = Vec::new();
    for depth in [1_000, 10_000] {
        let dir = tempfile::tempdir()?;
        let store = Arc::new(SqliteStore::open(&dir.path().join("queue.db"))?);
        fill(&store, &spec, depth).await?;
        let mut times = Vec::new();
        for _ in 0..if short { 200 } else { 500 } {
            let begun = Instant::now();
            store.claim(ask()).await?;
            times.push(ms(begun.elapsed()));
            add(&store, &spec).await?;
        }
        p99.push(percentile(&mut times, 99));
    }
    row("claim with 10,000 queued, p99 (ms)", p99[1], Some(p99[0]), "< 5 ms, flat (reference: 1,000 queued)");
    let dir = tempfile::tempdir()?;
    let store = Arc::new(SqliteStore::open(&dir.path().join("queue.db"))?);
    let single = 300;
    let begun = Instant::now();
    for _ in 0..single {
        whole(&store, &spec).await?;
    }
    let alone = f64::from(single * 3) / begun.elapsed().as_secs_f64();
    let (callers, each) = (200, if short { 20 } else { 60 });
    let begun = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (store, spec) = (Arc::clone(&store), spec.clone());
            jobcell::supervise::spawn("caller", async move {
                for _ in 0..each {
                    whole(&store, &spec).await.expect("a transition");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await?;
    }
    let grouped = f64::from(callers * each * 3) / begun.elapsed().as_secs_f64();
    row("durable transitions a second, in groups", grouped, Some(alone), ">= 10,000 (reference: one by one)");
    Ok(())
}

async fn fill(store: &Arc<SqliteStore>, spec: &JobSpec, depth: usize) -> Outcome<()> {
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let (store, spec) = (Arc::clone(store), spec.clone());
            jobcell::supervise::spawn("filler", async move {
                for _ in 0..depth / 100 {
                    add(&store, &spec).await.expect("a submit");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await?;
    }
    Ok(())
}

// ---- a running one ----

struct Up {
    child: Child,
    _dir: tempfile::TempDir,
    url: String,
    key: String,
    http: reqwest::Client,
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

impl Up {
    async fn start() -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        let data: PathBuf = dir.path().join("data");
        let child = Command::new(env!("CARGO_BIN_EXE_jobcell"))
            .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&data)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        let mut up = Self { child, _dir: dir, url: String::new(), key: String::new(), http };
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let text = |name: &str| std::fs::read_to_string(data.join(name)).unwrap_or_default().trim().to_owned();
            (up.url, up.key) = (text("endpoint"), text("admin.key"));
            let ready =
                up.http.get(format!("{}/readyz", up.url)).send().await.is_ok_and(|answer| answer.status().is_success());
            if ready {
                return Ok(up);
            }
            if Instant::now() > end {
                return Err("`jobcell up` is not ready: does an engine answer?".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A line of /proc/<pid>/status, in bytes.
    fn memory(&self, key: &str) -> Outcome<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(key)).ok_or("no such line")?;
        let kib: f64 = line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").trim().parse()?;
        Ok(kib * 1024.0)
    }

    /// Processor seconds so far: of all threads, and of the queue's alone.
    fn cpu(&self) -> Outcome<(f64, f64)> {
        // Nanoseconds on the processor, summed over threads: finer than the ticks of /proc/<pid>/stat.
        let (mut all, mut queue) = (0.0, 0.0);
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let file =
                |name: &str, path: &std::path::Path| std::fs::read_to_string(path.join(name)).unwrap_or_default();
            let path = thread?.path();
            let spent =
                file("schedstat", &path).split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or_default();
            all += spent;
            if file("comm", &path).starts_with("queue") {
                queue += spent;
            }
        }
        Ok((all / 1e9, queue / 1e9))
    }

    async fn submit(&self, spec: &Value) -> Outcome<String> {
        let request = self.http.post(format!("{}/v1/jobs", self.url)).bearer_auth(&self.key).json(spec);
        let job: Value = request.send().await?.json().await?;
        Ok(job["id"].as_str().ok_or_else(|| job.to_string())?.to_owned())
    }

    async fn run(&self, spec: &Value) -> Outcome<Value> {
        let id = self.submit(spec).await?;
        loop {
            let request = self.http.get(format!("{}/v1/jobs/{id}?wait=60s", self.url)).bearer_auth(&self.key);
            let job: Value = request.send().await?.json().await?;
            if job["ending"]["verdict"] == "succeeded" {
                return Ok(job);
            }
            if !job["ending"].is_null() {
                return Err(job["ending"].to_string().into());
            }
        }
    }

    async fn live(
        &self,
        id: &str,
    ) -> Outcome<impl StreamExt<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + use<>> {
        let url = format!("{}/v1/jobs/{id}/logs/live", self.url.replacen("http", "ws", 1));
        let mut request = url.into_client_request()?;
        request.headers_mut().insert("authorization", format!("Bearer {}", self.key).parse()?);
        Ok(tokio_tungstenite::connect_async(request).await?.0)
    }

    async fn first_byte(&self) -> Outcome<Duration> {
        let begun = Instant::now();
        let id = self.submit(&json!({"preset": "bash", "command": ["echo", "hello"]})).await?;
        let mut live = self.live(&id).await?;
        let mut first = None;
        while let Some(message) = live.next().await {
            match message? {
                Message::Binary(_) if first.is_none() => first = Some(begun.elapsed()),
                Message::Text(_) => return first.ok_or_else(|| "no output".into()),
                _ => {}
            }
        }
        Err("the stream broke".into())
    }

    /// Time to the first record, bytes, and their hash.
    async fn watch(&self, id: &str) -> Outcome<(Duration, usize, String)> {
        let begun = Instant::now();
        let mut live = self.live(id).await?;
        let (mut first, mut bytes, mut hash) = (None, 0, Sha256::new());
        while let Some(message) = live.next().await {
            match message? {
                Message::Binary(records) => {
                    first.get_or_insert_with(|| begun.elapsed());
                    let mut rest = &records[..];
                    while let Some(head) = rest.first_chunk::<21>() {
                        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
                        hash.update(&rest[21..21 + len]);
                        bytes += len;
                        rest = &rest[21 + len..];
                    }
                }
                Message::Text(_) => {
                    let hex = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
                    return Ok((first.unwrap_or_default(), bytes, hex));
                }
                _ => {}
            }
        }
        Err("the stream broke".into())
    }
}
