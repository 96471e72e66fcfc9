//! A server, its API on a real socket, and agents that reach it through a link that is cut again and again; the cells are
//! scripted, everything else is what runs in production.

use crate::agent::{Agent, AgentSettings, Drained};
use crate::audit::Audit;
use crate::backend::conformance::{Suite, desk::EmbeddedDesk, tests::passes};
use crate::backend::{Ask, Backend, Embedded, Http, HttpSettings, QueueSettings, Waited};
use crate::executor::scripted::{Scripted, line};
use crate::job::{AttemptId, ByteSize, Capacity, Cpus, JobId, JobSpec, Millis, SpecRules, Submitter, Verdict};
use crate::journal::MemoryJournal;
use crate::logstore::{FrameRef, LogStore, Stream};
use crate::protocol::agent::Announcement;
use crate::queue::{AnyStore, SqliteStore, Submitted};
use crate::server::{
    AgentDrains, AgentKeys, Connections, Doors, JoinTokens, LiveLimits, ServerSettings, UserKeys, router, serve,
};
use crate::supervise::spawn;
use crate::telemetry::{Health, Metrics};
use serde_json::json;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// Of an agent's output that the server has not got.
const SPOOL_MAX: u64 = 8 << 20;

struct Server {
    backend: Arc<Embedded>,
    keys: Vec<(String, String)>,
    url: String,
    stop: CancellationToken,
    dir: tempfile::TempDir,
}

async fn server(agents: &[&str]) -> Server {
    server_with(agents, Millis::from_secs(30)).await
}

async fn server_with(agents: &[&str], lease: Millis) -> Server {
    let dir = tempfile::tempdir().expect("a folder");
    let store = AnyStore::Sqlite(SqliteStore::open(&dir.path().join("queue.db")).expect("opens"));
    let logs = LogStore::open(&dir.path().join("logs"), 1 << 20).expect("opens");
    let queue = QueueSettings { max_queued: 10_000, lease, max_attempts: 3, stuck_after: Millis::from_secs(600) };
    let backend = Embedded::new(store, logs, queue);
    let agent_keys = AgentKeys::open(dir.path().join("agents.json")).expect("opens");
    let agent_drains = AgentDrains::open(dir.path().join("drains.json"), &backend).expect("opens");
    let mut keys = Vec::new();
    for name in agents {
        keys.push(((*name).to_owned(), agent_keys.add(name).await.expect("is new")));
    }
    let tokens = JoinTokens::open(dir.path().join("tokens.json")).expect("opens");
    let stop = CancellationToken::new();
    let settings = ServerSettings {
        max_body: 1 << 20,
        body_timeout: Duration::from_secs(60),
        wait_max: Duration::from_secs(60),
        viewers_max: 8,
        limits: LiveLimits::default(),
        origins: Vec::new(),
        rules: SpecRules::default(),
        gate: None,
        stopping: CancellationToken::new(),
    };
    let (health, metrics) = (Health::new(&[]), Arc::new(Metrics::new()));
    let of_people = UserKeys::open(dir.path().join("keys.json"), "admin").expect("opens");
    let bounds = Connections {
        most: 100,
        of_one: 100,
        header_timeout: Duration::from_secs(30),
        write_timeout: Duration::from_secs(60),
        tls: None,
        metrics: Arc::clone(&metrics),
    };
    let doors = Doors { users: of_people, agents: agent_keys, tokens, drains: agent_drains, audit: Audit::default() };
    let app = router(Arc::clone(&backend), health, metrics, doors, settings, stop.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}", listener.local_addr().expect("has one"));
    spawn("api", serve(listener, app, bounds, stop.clone(), Duration::from_secs(1)));
    spawn("expiry", Arc::clone(&backend).run_expiry(stop.clone()));
    Server { backend, keys, url, stop, dir }
}

/// A way to the server that cuts each connection after a random time, and counts the cuts.
async fn cutting(to: &str, least: u64, most: u64) -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}", listener.local_addr().expect("has one"));
    let (to, cuts) = (to.trim_start_matches("http://").to_owned(), Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&cuts);
    spawn("cutting link", async move {
        let mut links = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let (to, cuts) = (to.clone(), Arc::clone(&counted));
            links.spawn(async move {
                let Ok(mut far) = TcpStream::connect(to).await else { return };
                let random = u64::from(uuid::Uuid::new_v4().as_bytes()[0]);
                let life = Duration::from_millis(least + (most - least) * random / 255);
                let copy = tokio::io::copy_bidirectional(&mut near, &mut far);
                if tokio::time::timeout(life, copy).await.is_err() {
                    cuts.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    (url, cuts)
}

struct Running {
    executor: Scripted,
    agent: JoinHandle<Drained>,
    drain: CancellationToken,
    stop: CancellationToken,
    spool: std::path::PathBuf,
}

fn agent(server: &Server, index: usize, url: &str, slots: u32) -> Running {
    let (name, key) = server.keys[index].clone();
    let spool = server.dir.path().join(format!("spool-{name}"));
    let logs = LogStore::open(&spool, 1 << 20).expect("opens");
    let stop = CancellationToken::new();
    let rate = NonZeroU32::new(1000).expect("not zero");
    let http = HttpSettings { name: "main".into(), url: url.to_owned(), key, rate, spool_max: SPOOL_MAX };
    let backend: Arc<dyn Backend> = Arc::new(Http::new(http, logs.clone(), stop.clone()).expect("is made"));
    let executor = Scripted::default();
    let capacity =
        Capacity { slots, cpu: Cpus::from_milli(100_000), memory: ByteSize::from_mib(100_000), ..Capacity::default() };
    let settings = AgentSettings {
        announcement: Announcement { installation: name, capacity, ..Announcement::default() },
        capacity,
        claim_batch: 16,
        grace: Millis::from_secs(2),
        handover: false,
        drain_timeout: Duration::from_secs(30),
        reconnect: Duration::from_secs(30),
        keep: None,
        output_share: ByteSize::from_mib(32),
        gate: crate::admission::Gate::default(),
        secrets: crate::secrets::Providers::default(),
        disk: (std::path::PathBuf::new(), ByteSize::new(0)),
        sweep: crate::agent::SweepTimes::default(),
        outside: crate::egress::Outside::default(),
        traces: crate::telemetry::Traces::default(),
    };
    let journal = Arc::new(MemoryJournal::default());
    let agent =
        Agent::new(vec![backend], Arc::new(executor.clone()), journal, logs, settings, Arc::new(Metrics::new()));
    let drain = CancellationToken::new();
    let agent = spawn("agent", agent.run(drain.clone(), CancellationToken::new()));
    Running { executor, agent, drain, stop, spool }
}

impl Server {
    async fn submit(&self, command: &[&str]) -> JobId {
        let spec = JobSpec::check(&json!({"image": "x", "command": command}), &SpecRules::default()).expect("valid");
        match self.backend.submit(spec, None).await.expect("submits") {
            Submitted::Created(job) => job.id,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the end and checks that it was a good one, at the first try, with every byte in place.
    async fn ended_well(&self, id: JobId, frames: u64) {
        let Ok(Waited::Ended(job)) = self.backend.wait(id, Duration::from_secs(90)).await else {
            panic!("{id} never ends: {:?}", self.backend.get(id).await)
        };
        let ending = job.ending.as_ref().expect("ended");
        assert_eq!((ending.verdict, job.attempt), (Verdict::Succeeded, 1), "{id}: {:?}", job.history);
        assert!(job.log.complete, "{id}: {:?}", job.log);
        let mut reader = self.backend.logs().reader(AttemptId::new(id, 1)).expect("has a log");
        let found = reader.read(1, usize::MAX).expect("reads");
        let found: Vec<u8> = found.iter().flat_map(|frame| frame.bytes.to_vec()).collect();
        assert!(found == (1..=frames).flat_map(line).collect::<Vec<u8>>(), "{id}: another log");
    }
}

#[tokio::test]
async fn an_agent_elsewhere_hears_whose_job_it_is() {
    let server = server(&["one"]).await;
    let spec = JobSpec::check(&json!({"image": "x", "command": ["x"]}), &SpecRules::default()).expect("valid");
    server.backend.submit(spec, Some(Submitter { name: "ops".into(), key: Some("1".into()) })).await.expect("submits");
    let (name, key) = server.keys[0].clone();
    let logs = LogStore::open(&server.dir.path().join("spool"), 1 << 20).expect("opens");
    let rate = NonZeroU32::new(1000).expect("not zero");
    let http = HttpSettings { name, url: server.url.clone(), key, rate, spool_max: SPOOL_MAX };
    let stop = CancellationToken::new();
    let backend = Http::new(http, logs, stop.clone()).expect("is made");
    let free =
        Capacity { slots: 1, cpu: Cpus::from_milli(9_000), memory: ByteSize::from_mib(9_000), ..Capacity::default() };
    let ask = Ask { free, max: 1, wait: Duration::ZERO, load: crate::protocol::agent::Load::default() };
    backend.announce(&Announcement { capacity: free, ..Announcement::default() });
    let granted = backend.claim(ask, &stop).await.expect("claims");
    let whose: Vec<Option<&str>> = granted.iter().map(|grant| grant.submitter.as_deref()).collect();
    assert_eq!(whose, [Some("ops")]);
}

async fn close(agents: Vec<Running>) -> usize {
    let mut made = 0;
    for running in agents {
        running.drain.cancel();
        assert_eq!(running.agent.await.expect("ends"), Drained::Clean);
        running.stop.cancel();
        let world = running.executor.world();
        assert!(world.cells.is_empty() && world.started.values().all(|times| *times == 1), "{:?}", world.started);
        assert!(world.made > 0, "an agent that never had a job");
        made += world.made;
        // What was passed on is not kept twice.
        let left: Vec<_> = walk(&running.spool);
        assert!(left.len() <= 1, "{left:?}");
    }
    made
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] })
        .filter(|p| p.ends_with("seg"))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_jobs_over_three_agents_and_links_that_break_lose_no_byte() {
    let server = server(&["one", "two", "three"]).await;
    let mut agents = Vec::new();
    let mut cuts = Vec::new();
    for index in 0..3 {
        let (url, count) = cutting(&server.url, 50, 900).await;
        agents.push(agent(&server, index, &url, 16));
        cuts.push(count);
    }
    let mut jobs = Vec::new();
    for number in 0..1000u64 {
        let frames = 1 + number % 97;
        jobs.push((server.submit(&["echo", &frames.to_string()]).await, frames));
    }
    for (id, frames) in jobs {
        server.ended_well(id, frames).await;
    }
    assert_eq!(close(agents).await, 1000, "each job had one cell");
    let cuts: Vec<u32> = cuts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    assert!(cuts.iter().all(|count| *count >= 5), "links were hardly cut: {cuts:?}");
    server.stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_over_the_network_conforms() {
    let server = server_with(&["suite"], Millis::from_secs(1)).await;
    let logs = LogStore::open(&server.dir.path().join("spool"), 1 << 20).expect("opens");
    let rate = NonZeroU32::new(1000).expect("not zero");
    let settings = HttpSettings {
        name: "main".into(),
        url: server.url.clone(),
        key: server.keys[0].1.clone(),
        rate,
        spool_max: SPOOL_MAX,
    };
    let http = Http::new(settings, logs.clone(), server.stop.clone()).expect("is made");
    let desk = Arc::new(EmbeddedDesk(Arc::clone(&server.backend)));
    let suite = Suite::new(Arc::new(http), desk, logs, Duration::from_secs(5));
    passes(&suite, &[]).await;
    server.stop.cancel();
}

/// A restarted server knows no session: the first claim under the new one is a new claim, and the next ones wait for work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_forgot_its_agents_is_claimed_from_as_before() {
    let server = server(&["one"]).await;
    let (name, key) = server.keys[0].clone();
    let logs = LogStore::open(&server.dir.path().join("spool"), 1 << 20).expect("opens");
    let rate = NonZeroU32::new(1000).expect("not zero");
    let settings = HttpSettings { name: "main".into(), url: server.url.clone(), key, rate, spool_max: SPOOL_MAX };
    let http = Http::new(settings, logs, server.stop.clone()).expect("is made");
    let capacity =
        Capacity { slots: 1, cpu: Cpus::from_milli(9000), memory: ByteSize::from_mib(9000), ..Capacity::default() };
    http.announce(&Announcement { installation: name.clone(), capacity, ..Announcement::default() });
    let claim = async |wait: u64| {
        let ask = Ask { max: 1, free: capacity, wait: Duration::from_millis(wait), load: Default::default() };
        http.claim(ask, &CancellationToken::new()).await.expect("claims")
    };
    for _ in 0..20 {
        assert!(claim(0).await.is_empty());
    }
    server.backend.roster().remove(&name);
    for _ in 0..3 {
        let began = std::time::Instant::now();
        assert!(claim(200).await.is_empty());
        assert!(began.elapsed() >= Duration::from_millis(200), "it did not wait");
    }
    let id = server.submit(&["echo", "1"]).await;
    assert_eq!(claim(0).await.iter().map(|grant| grant.attempt.job).collect::<Vec<_>>(), [id]);
    server.stop.cancel();
}

/// A cut in the middle of output in the smallest pieces: what goes next is many frames, and one message of bounded size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_frames_of_a_byte_go_through() {
    let server = server(&["one"]).await;
    let logs = LogStore::open(&server.dir.path().join("spool"), 1 << 20).expect("opens");
    let rate = NonZeroU32::new(1000).expect("not zero");
    let (url, key) = (server.url.clone(), server.keys[0].1.clone());
    let http = Http::new(
        HttpSettings { name: "main".into(), url, key, rate, spool_max: SPOOL_MAX },
        logs.clone(),
        server.stop.clone(),
    );
    let http = http.expect("is made");
    let capacity =
        Capacity { slots: 1, cpu: Cpus::from_milli(9000), memory: ByteSize::from_mib(9000), ..Capacity::default() };
    http.announce(&Announcement { installation: "one".into(), capacity, ..Announcement::default() });
    server.submit(&["echo", "1"]).await;
    let ask = Ask { max: 1, free: capacity, wait: Duration::from_secs(5), load: Default::default() };
    let grant = http.claim(ask, &CancellationToken::new()).await.expect("claims").remove(0);
    // Written before anything is passed on, as after a long cut.
    let mut writer = logs.create(grant.attempt).expect("creates");
    for first in (1..=100_000u64).step_by(1000) {
        let frame = |seq| FrameRef { seq, stream: Stream::Stdout, time_us: seq, bytes: b"x", gap: 0 };
        writer.append(&(first..first + 1000).map(frame).collect::<Vec<_>>()).expect("appends");
    }
    http.log_began(grant.attempt, grant.token);
    assert!(http.flush_log(grant.attempt, 100_000).await);
    server.stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_does_not_starve_another_attempt() {
    let server = server(&["one"]).await;
    let url = server.url.clone();
    let running = agent(&server, 0, &url, 2);
    let flood = server.submit(&["echo", "200000"]).await;
    let quiet = server.submit(&["echo", "3"]).await;
    server.ended_well(quiet, 3).await;
    let other = server.backend.get(flood).await.expect("reads").expect("is there");
    assert!(other.ending.is_none(), "the quiet one waited for the flood");
    server.ended_well(flood, 200_000).await;
    close(vec![running]).await;
    server.stop.cancel();
}
