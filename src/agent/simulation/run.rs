//! One run: the world, the agents and their backend, and what happens to them.

use super::check::check;
use super::ledger::{Ledger, Note};
use super::scenario::{Fault, JobPlan, LONGEST_PAUSE, Scenario};
use super::server::{Flaky, Server, Wire};
use super::world::{Death, Ends, Now, link_faults, moments, watch_world};
use crate::agent::{Agent, AgentSettings, Drained, Status, SweepTimes};
use crate::backend::Backend;
use crate::executor::scripted::Scripted;
use crate::job::{ByteSize, Capacity, Cpus, JobId, Millis, UnixMillis};
use crate::journal::failing::FailingJournal;
use crate::journal::{Journal, MemoryJournal};
use crate::logstore::LogStore;
use crate::protocol::agent::Announcement;
use crate::queue::{Canceled, Submitted};
use crate::seeded::{self, Process, Seeded};
use crate::telemetry::Metrics;
use futures_util::FutureExt;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// What is left to do must be done so long after the last fault, on top of what the jobs take.
const PATIENCE: Duration = Duration::from_secs(1200);
/// When all is done, an answer to a claim may still be on its way, and with it what its agent does about it.
const LATE: Duration = Duration::from_secs(70);
/// Between two looks whether all is done.
const LOOK: u64 = 500;

/// Agents look for strays far more often than outside, so that they do so while jobs run and things go wrong.
const SWEEP: SweepTimes = SweepTimes { first: Duration::from_secs(5), every: Duration::from_secs(9) };

/// How a run went.
pub(super) struct Outcome {
    pub(super) violations: Vec<String>,
    pub(super) trace: Vec<String>,
    /// Causes of all jobs, and what happened besides.
    pub(super) seen: Vec<&'static str>,
}

/// Runs it. With `tells`, the trace is kept.
pub(super) fn run(scenario: &Scenario, tells: bool) -> Outcome {
    let _seeded = Seeded::new(scenario.seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.expect("a folder");
    let logs = LogStore::open(dir.path(), 1 << 20).expect("opens");
    runtime.block_on(async {
        let ledger = Arc::new(Ledger::new(tells));
        let mut stage = Stage::new(scenario, logs, &ledger);
        stage.play().await;
        let seen = check(scenario, &stage).await;
        for panic in seeded::panics() {
            ledger.violated(format!("a panic: {panic}"));
        }
        Outcome { violations: ledger.violations(), trace: ledger.trace(), seen }
    })
}

enum Event {
    Submit(usize),
    Fault(usize),
    Cancel { job: usize, force: bool },
    Start(usize),
    Thaw(usize, Process),
    WayBack(usize),
    EngineBack(usize),
    ServerBack,
    Force(usize, CancellationToken),
    LookDrained { agent: usize, life: u32, down: u64, since: u64 },
    Heal,
}

pub(super) struct Node {
    pub(super) world: Scripted,
    pub(super) journal: MemoryJournal,
    wire: Arc<Wire>,
    now: Now,
    capacity: Capacity,
    life: u32,
    alive: Option<Life>,
}

struct Life {
    process: Process,
    agent: JoinHandle<Drained>,
    status: watch::Receiver<Status>,
    metrics: Arc<Metrics>,
    drain: CancellationToken,
    force: CancellationToken,
    draining: bool,
}

pub(super) struct Stage<'a> {
    scenario: &'a Scenario,
    pub(super) ledger: Arc<Ledger>,
    pub(super) server: Arc<Server>,
    pub(super) nodes: Vec<Node>,
    /// In the order of the plan; none for one that was left out.
    pub(super) jobs: Vec<Option<JobId>>,
    began: Instant,
    /// The same moment, as the backend has it.
    began_at: UnixMillis,
    order: u32,
    line: BTreeMap<(u64, u32), Event>,
    deaths: (mpsc::Sender<Death>, mpsc::Receiver<Death>),
    /// When the last fault was over.
    pub(super) calm: Instant,
    healed: bool,
}

impl<'a> Stage<'a> {
    fn new(scenario: &'a Scenario, logs: LogStore, ledger: &Arc<Ledger>) -> Self {
        let server = Server::new(logs, scenario, Arc::clone(ledger));
        server.start();
        let deaths = mpsc::channel(64);
        let node = |(agent, plan): (usize, &super::scenario::AgentPlan)| {
            let calls = scenario.faults.iter().filter_map(|fault| match fault {
                Fault::Call { agent: of, call, nth, how } if *of == agent => Some((*call, *nth, *how)),
                _ => None,
            });
            let wire = server.wire(agent, calls.collect());
            let (world, journal) = (Scripted::default(), MemoryJournal::default());
            let now = Now::default();
            let ends =
                Ends { now: now.clone(), moments: Mutex::new(moments(scenario, agent)), deaths: deaths.0.clone() };
            watch_world(agent, &world, &journal, ledger, ends);
            world.world().link_faults = link_faults(scenario, agent);
            let capacity = Capacity {
                slots: plan.slots,
                cpu: Cpus::from_milli(64_000),
                memory: ByteSize::from_mib(1 << 20),
                ..Capacity::default()
            };
            Node { world, journal, wire, now, capacity, life: 0, alive: None }
        };
        let nodes: Vec<Node> = scenario.agents.iter().enumerate().map(node).collect();
        let (jobs, began) = (vec![None; scenario.jobs.len()], Instant::now());
        let ledger = Arc::clone(ledger);
        let mut stage = Self {
            scenario,
            ledger,
            server,
            nodes,
            jobs,
            began,
            began_at: UnixMillis::now(),
            order: 0,
            line: BTreeMap::new(),
            deaths,
            calm: began,
            healed: false,
        };
        for agent in 0..stage.nodes.len() {
            stage.at(0, Event::Start(agent));
        }
        for (number, job) in scenario.jobs.iter().enumerate().filter(|(_, job)| !job.left_out) {
            stage.at(job.at, Event::Submit(number));
        }
        for (number, fault) in scenario.faults.iter().enumerate() {
            if let Some(at) = starts_at(fault) {
                stage.at(at, Event::Fault(number));
            }
        }
        stage.at(scenario.healed_at(), Event::Heal);
        stage
    }

    /// When it began, as it is here and as the backend has it.
    pub(super) fn began(&self) -> (Instant, UnixMillis) {
        (self.began, self.began_at)
    }

    fn at(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.line.insert((at, self.order), event);
    }

    fn now(&self) -> u64 {
        self.ledger.ms(Instant::now())
    }

    async fn play(&mut self) {
        let mut idle_since = None;
        loop {
            let next = self.line.keys().next().map(|(at, _)| *at);
            idle_since = if next.is_none() && self.idle().await { idle_since.or(Some(Instant::now())) } else { None };
            if idle_since.is_some_and(|since| since.elapsed() >= LATE) {
                break;
            }
            let look = if idle_since.is_some() { 10 * LOOK } else { LOOK };
            let next = next.unwrap_or(self.now() + look);
            let longest: Duration = self.scenario.jobs.iter().map(|job| longest(job, self.scenario.max_attempts)).sum();
            if self.healed && Instant::now() > self.calm + PATIENCE + longest {
                self.give_up().await;
                break;
            }
            tokio::select! {
                biased;
                Some((agent, life, down)) = self.deaths.1.recv() => {
                    if self.nodes[agent].life == life {
                        self.kill(agent, down);
                    }
                }
                () = sleep_until(self.began + Duration::from_millis(next)) => {
                    while let Some(entry) = self.line.first_entry()
                        && entry.key().0 <= next
                    {
                        let event = entry.remove();
                        self.happen(event).await;
                    }
                }
            }
            self.look_at_agents().await;
        }
        self.close().await;
    }

    async fn happen(&mut self, event: Event) {
        match event {
            Event::Submit(number) => self.submit(number).await,
            Event::Fault(number) => {
                let fault = self.scenario.faults[number].clone();
                self.ledger.tell(|| format!("FAULT {fault:?}"));
                self.fault(&fault).await;
            }
            Event::Cancel { job, force } => self.cancel(job, force).await,
            Event::Start(agent) => self.start(agent),
            Event::Thaw(agent, process) => {
                self.ledger.tell(|| format!("a{agent} goes on"));
                process.thaw();
            }
            Event::WayBack(agent) => self.nodes[agent].wire.cut(None),
            Event::EngineBack(agent) => self.nodes[agent].world.world().away = false,
            Event::ServerBack if self.server.embedded().is_none() => self.server.start(),
            Event::ServerBack => {}
            Event::Force(agent, token) => {
                self.ledger.tell(|| format!("a{agent} is forced to end"));
                token.cancel();
            }
            Event::LookDrained { agent, life, down, since } => self.look_drained(agent, life, down, since).await,
            Event::Heal => {
                self.ledger.tell(|| "HEALED".to_owned());
                for node in &self.nodes {
                    node.wire.heal();
                    node.world.world().link_faults.clear();
                }
                self.healed = true;
                self.calm = Instant::now();
            }
        }
    }

    // ---- users ----

    async fn submit(&mut self, number: usize) {
        let Some(embedded) = self.server.embedded() else {
            return self.at(self.now() + 101, Event::Submit(number));
        };
        match embedded.submit(self.scenario.jobs[number].spec(), None).await {
            Ok(Submitted::Created(job)) => {
                self.ledger.named(job.id);
                // The number in the trace is the place in the plan.
                self.ledger
                    .tell(|| format!("submit of job {number}: {} is {}", job.id, self.scenario.jobs[number].command));
                self.jobs[number] = Some(job.id);
            }
            other => self.ledger.violated(format!("a submit came to {other:?}")),
        }
    }

    async fn cancel(&mut self, job: usize, force: bool) {
        let again = Event::Cancel { job, force };
        let (Some(embedded), Some(id)) = (self.server.embedded(), self.jobs[job]) else {
            if !self.scenario.jobs[job].left_out {
                self.at(self.now() + 103, again);
            }
            return;
        };
        match embedded.cancel_if(id, None, force).await {
            Ok(Canceled::Requested(_) | Canceled::Ended(_)) => self.ledger.note(0, Note::Canceled { job: id }),
            Ok(_) => {}
            Err(error) => self.ledger.violated(format!("a cancel came to {error}")),
        }
    }

    // ---- faults ----

    async fn fault(&mut self, fault: &Fault) {
        let now = Instant::now();
        let during = |ms: u64| now + Duration::from_millis(ms);
        match *fault {
            Fault::Crash { agent, down, .. } => self.kill(agent, down),
            Fault::Freeze { agent, lasts, .. } => {
                if let Some(life) = &self.nodes[agent].alive {
                    life.process.freeze();
                    let process = life.process.clone();
                    self.ledger.disturbed(Some(agent), now, during(lasts), "a freeze");
                    self.at(self.now() + lasts, Event::Thaw(agent, process));
                }
            }
            Fault::Drain { agent, force_after, down, .. } => {
                let (at, life) = (self.now(), self.nodes[agent].life);
                if let Some(alive) = self.nodes[agent].alive.as_mut().filter(|alive| !alive.draining) {
                    alive.draining = true;
                    alive.drain.cancel();
                    let force = alive.force.clone();
                    self.ledger.disturbed(Some(agent), now, during(down + 120_000), "a drain");
                    if let Some(after) = force_after {
                        self.at(at + after, Event::Force(agent, force));
                    }
                    self.at(at + 50, Event::LookDrained { agent, life, down, since: at });
                }
            }
            Fault::Outage { agent, lasts, hangs, .. } => {
                self.nodes[agent].wire.cut(Some(hangs));
                // The last call may take its whole deadline to notice, and the next try comes after a pause.
                self.ledger.disturbed(Some(agent), now, during(lasts + 25_000), "an outage");
                self.at(self.now() + lasts, Event::WayBack(agent));
            }
            Fault::EngineAway { agent, lasts, .. } => {
                self.nodes[agent].world.world().away = true;
                self.ledger.disturbed(Some(agent), now, during(lasts + 10_000), "the engine");
                self.at(self.now() + lasts, Event::EngineBack(agent));
            }
            Fault::EngineStalls { agent, lasts, .. } => {
                self.nodes[agent].world.world().stalled_until = Some(during(lasts));
                self.ledger.disturbed(Some(agent), now, during(lasts + 1_000), "a stall");
            }
            Fault::KillCell { agent, which, removed, .. } => {
                let running = self.nodes[agent].world.running();
                if let Some(name) = running.get(usize::try_from(which).unwrap_or_default() % running.len().max(1)) {
                    let attempt = name.parse().expect("an attempt");
                    self.ledger.note(agent, Note::CellKilled { attempt });
                    self.nodes[agent].world.end_cell(name);
                    if removed {
                        self.nodes[agent].world.take_away(name);
                    }
                }
            }
            Fault::BackendRestart { down, .. } => {
                self.server.stop();
                self.ledger.disturbed(None, now, during(down + 25_000), "the server");
                self.at(self.now() + down, Event::ServerBack);
            }
            Fault::Clock { by_s, .. } => {
                seeded::set_clock_off(seeded::clock_off() + by_s * 1000);
                self.ledger.disturbed(None, now, now, "the clock");
            }
            Fault::Cancel { job, force, .. } => self.cancel(job, force).await,
            Fault::CrashAtRecord { .. }
            | Fault::CrashWhen { .. }
            | Fault::JournalFails { .. }
            | Fault::Call { .. }
            | Fault::Link { .. } => {}
        }
    }

    // ---- agents ----

    fn start(&mut self, agent: usize) {
        let node = &mut self.nodes[agent];
        if node.alive.is_some() {
            return;
        }
        let plan = &self.scenario.agents[agent];
        let mut journal = FailingJournal::new(node.journal.clone());
        let mut deaths = 0;
        for fault in &self.scenario.faults {
            match *fault {
                Fault::CrashAtRecord { agent: of, life, nth, when, down } if of == agent && life == node.life => {
                    journal = journal.crash_at(nth, when);
                    deaths = down;
                }
                Fault::JournalFails { agent: of, life, call, nth, when } if of == agent && life == node.life => {
                    journal = journal.fail_at(call, nth, when);
                }
                _ => {}
            }
        }
        node.life += 1;
        let life = node.life;
        self.ledger.tell(|| format!("a{agent} starts, life {life}"));
        let settings = AgentSettings {
            announcement: Announcement { capacity: node.capacity, ..Announcement::default() },
            capacity: node.capacity,
            claim_batch: 16,
            grace: Millis::new(plan.grace_ms),
            handover: plan.handover,
            drain_timeout: Duration::from_secs(30),
            reconnect: Duration::from_secs(30),
            keep: None,
            output_share: ByteSize::from_mib(32),
            gate: crate::admission::Gate::default(),
            secrets: crate::secrets::Providers::default(),
            disk: (std::path::PathBuf::new(), ByteSize::new(0)),
            sweep: SWEEP,
            outside: crate::egress::Outside::default(),
            traces: crate::telemetry::Traces::default(),
        };
        let backend: Arc<dyn Backend> = Arc::new(Flaky::new(&self.server, &node.wire));
        let (drain, force) = (CancellationToken::new(), CancellationToken::new());
        let (executor, metrics) = (Arc::new(node.world.clone()), Arc::new(Metrics::new()));
        let (crashed, tell) = (journal.crashed(), self.deaths.0.clone());
        let journal: Arc<dyn Journal> = Arc::new(journal);
        let agent_itself =
            Agent::new(vec![backend], executor, journal, self.server.logs.clone(), settings, Arc::clone(&metrics));
        let (status, process) = (agent_itself.status(), Process::default());
        *node.now.lock().unwrap_or_else(PoisonError::into_inner) = (process.clone(), life);
        let running = process.task(agent_itself.run(drain.clone(), force.clone()));
        drop(crate::supervise::spawn("deaths", async move {
            crashed.await;
            let _ = tell.send((agent, life, deaths)).await;
        }));
        let handle = crate::supervise::spawn("agent", running);
        node.alive = Some(Life { process, agent: handle, status, metrics, drain, force, draining: false });
    }

    fn kill(&mut self, agent: usize, down: u64) {
        let Some(life) = self.nodes[agent].alive.take() else { return };
        self.ledger.tell(|| format!("a{agent} dies"));
        life.process.kill();
        life.agent.abort();
        let now = Instant::now();
        // The next one finds its way back into leases and claims.
        self.ledger.disturbed(Some(agent), now, now + Duration::from_millis(down + 25_000), "a crash");
        self.calm = self.calm.max(now + Duration::from_millis(down));
        self.at(self.now() + down, Event::Start(agent));
    }

    /// An agent that was asked to end does so in its time.
    async fn look_drained(&mut self, agent: usize, life: u32, down: u64, since: u64) {
        let now = self.now();
        if self.nodes[agent].life != life {
            return;
        }
        let Some(alive) = &mut self.nodes[agent].alive else { return };
        if let Some(drained) = (&mut alive.agent).now_or_never() {
            self.nodes[agent].alive = None;
            self.ledger.tell(|| format!("a{agent} is drained: {drained:?}"));
            self.calm = self.calm.max(Instant::now() + Duration::from_millis(down));
            return self.at(now + down, Event::Start(agent));
        }
        // The drain's time, the grace and its slack, and the longest that a freeze or a call in flight may keep it.
        if now > since + 30_000 + 10_000 + 15_000 + 75_000 + 45_000 {
            self.ledger.violated(format!("a{agent} was asked to end and does not"));
            return self.kill(agent, down);
        }
        self.at(now + LOOK, Event::LookDrained { agent, life, down, since });
    }

    async fn look_at_agents(&mut self) {
        for agent in 0..self.nodes.len() {
            let Some(alive) = &mut self.nodes[agent].alive else { continue };
            // Whoever makes a cell removes it, whatever happens: the sweeper is for what nobody has thought of.
            if alive.metrics.swept_total.get() > 0 {
                alive.metrics.swept_total.reset();
                self.ledger.violated(format!("a{agent} had to sweep a cell that was left, or swept one that was not"));
            }
            if !alive.draining
                && let Some(ended) = (&mut alive.agent).now_or_never()
            {
                self.nodes[agent].alive = None;
                self.ledger.violated(format!("a{agent} ended unasked: {ended:?}"));
            }
        }
    }

    // ---- the end ----

    async fn idle(&self) -> bool {
        let Some(embedded) = self.server.embedded() else { return false };
        let counts = embedded.counts().await.expect("counts");
        let ended = counts.ended == self.jobs.iter().flatten().count() as u64;
        ended && self.nodes.iter().all(|node| self.left(node).is_none())
    }

    /// What an agent still has; nothing when it is idle.
    fn left(&self, node: &Node) -> Option<String> {
        let Some(alive) = &node.alive else { return Some("it is not there".to_owned()) };
        let entries = node.journal.entries().now_or_never().expect("at once").expect("reads");
        if let Some(entry) = entries.first() {
            return Some(format!("an entry is left: {} {:?}", entry.key.attempt, entry.stage));
        }
        let cells: Vec<_> = node.world.world().cells.keys().cloned().collect();
        if !cells.is_empty() {
            return Some(format!("cells are left: {cells:?}"));
        }
        let status = alive.status.borrow();
        let idle = status.held == 0 && status.undelivered == 0 && status.free == node.capacity;
        (!idle).then(|| format!("it is not idle: {:?}", *status))
    }

    async fn give_up(&mut self) {
        for (number, job) in self.jobs.iter().enumerate() {
            let (Some(job), Some(embedded)) = (job, self.server.embedded()) else { continue };
            let job = embedded.get(*job).await.expect("reads").expect("is there");
            if job.ending.is_none() {
                self.ledger.violated(format!("job {number} never ends: attempt {} {:?}", job.attempt, job.phase));
            }
        }
        for (agent, node) in self.nodes.iter().enumerate() {
            if let Some(left) = self.left(node) {
                self.ledger.violated(format!("a{agent}: {left}"));
            }
        }
    }

    /// Ends the agents, which have nothing left to wait for.
    async fn close(&mut self) {
        for node in &self.nodes {
            node.wire.renewed();
        }
        // Longer than the longest pause between renewals.
        tokio::time::sleep(Duration::from_secs(21)).await;
        for (agent, node) in self.nodes.iter().enumerate() {
            if node.wire.renewed() {
                self.ledger.violated(format!("a{agent} has nothing left, and renews a lease"));
            }
        }
        for (agent, node) in self.nodes.iter_mut().enumerate() {
            let Some(alive) = node.alive.take() else { continue };
            alive.drain.cancel();
            match tokio::time::timeout(Duration::from_secs(120), alive.agent).await {
                Ok(Ok(Drained::Clean | Drained::HandedOver(0))) => {}
                other => self.ledger.violated(format!("a{agent} had nothing left to do, and ended with {other:?}")),
            }
            // Tasks that were told to end are dropped when they are next looked at.
            tokio::time::sleep(Duration::from_millis(10)).await;
            if alive.process.tasks() > 0 {
                self.ledger.violated(format!("a{agent} has ended, and {} tasks of it have not", alive.process.tasks()));
            }
        }
    }
}

/// What a job takes at most, all its tries together.
fn longest(job: &JobPlan, max_attempts: u32) -> Duration {
    let spec = job.spec();
    let tries = 1 + spec.retry().failure + spec.retry().infrastructure.unwrap_or(max_attempts);
    let numbers: Vec<u64> = job.command.split(' ').skip(1).filter_map(|word| word.parse().ok()).collect();
    Duration::from_millis(numbers[0] * numbers[1] + numbers[3] + LONGEST_PAUSE) * tries
}

fn starts_at(fault: &Fault) -> Option<u64> {
    match fault {
        Fault::Crash { at, .. }
        | Fault::Freeze { at, .. }
        | Fault::Drain { at, .. }
        | Fault::Outage { at, .. }
        | Fault::EngineAway { at, .. }
        | Fault::EngineStalls { at, .. }
        | Fault::KillCell { at, .. }
        | Fault::BackendRestart { at, .. }
        | Fault::Clock { at, .. }
        | Fault::Cancel { at, .. } => Some(*at),
        Fault::CrashAtRecord { .. }
        | Fault::CrashWhen { .. }
        | Fault::JournalFails { .. }
        | Fault::Call { .. }
        | Fault::Link { .. } => None,
    }
}
