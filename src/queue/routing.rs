//! Which queued jobs an agent gets. Pure: both stores gather the same facts and let this decide.
//!
//! Queued jobs that ask for the same are of one *shape*, and what is decided is decided for shapes: a queue of ten thousand
//! jobs has a handful of them, so a claim never walks over jobs that it cannot hand out. A queue in which every job is of a
//! shape of its own has too many to look at: [`Glance`] bounds it.

use crate::job::{ByteSize, Capacity, Cpus, JobSpec, Millis, Resources, Source, UnixMillis, Wanted};
use serde::Serialize;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A job that has waited so long, and lacks nothing but room, is waited for by one agent: nothing behind it is handed out there
/// before.
const RESERVE_AFTER: Millis = Millis::from_secs(30);

/// Shapes that one claim decides about: far more than a queue has whose jobs are alike, and few enough to answer at once.
pub(super) const MOST_SHAPES: usize = 128;

/// What a job takes of an agent that runs it on another host, beside a slot.
const NOTHING: Resources = Resources::NONE;

/// Labels of jobs with the most jobs that may run at the same time with one value of it.
pub type Groups = BTreeMap<String, u32>;

/// What an agent can do, now or not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its presets.
    pub presets: Vec<String>,
    /// Kinds of cells that it makes. One that does not say makes containers.
    pub executors: Vec<String>,
    /// Kinds of cells that it cannot make at the moment.
    pub away: Vec<String>,
    /// What it has in all.
    pub capacity: Capacity,
}

/// The kind of cell that containers are.
pub const CONTAINERS: &str = "docker";
/// The kind of cell that is on another host.
pub const HOSTS: &str = "ssh";

impl Profile {
    /// Whether it makes cells of this kind.
    fn makes(&self, executor: &str) -> bool {
        let own =
            (self.executors.is_empty() && executor == CONTAINERS) || self.executors.iter().any(|own| own == executor);
        own && !self.away.iter().any(|away| away == executor)
    }
}

/// Why an agent does not get a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Obstacle {
    /// A label of the agent is not what is asked for.
    Label {
        /// The label.
        label: String,
        /// What is asked for.
        wanted: String,
        /// What the agent has.
        has: Option<String>,
    },
    /// The agent does not have the preset.
    Preset {
        /// The preset.
        preset: String,
    },
    /// The agent does not make cells of that kind.
    Executor {
        /// `docker` or `ssh`.
        executor: &'static str,
    },
    /// The agent makes cells of that kind, and cannot at the moment.
    Away {
        /// `docker` or `ssh`.
        executor: &'static str,
        /// Why, as it says.
        reason: String,
    },
    /// The agent is too small.
    TooLarge {
        /// `cpu` or `memory`.
        resource: &'static str,
        /// What is asked for.
        asked: String,
        /// What the agent has in all.
        capacity: String,
    },
    /// The agent is large enough, and has no room at the moment.
    NoRoom {
        /// `slots`, `cpu` or `memory`.
        resource: &'static str,
    },
    /// The agent runs a job that this one has to be apart from.
    Apart {
        /// The label of both.
        label: String,
        /// Its value.
        value: String,
    },
    /// As many jobs of the group as may run do run.
    GroupFull {
        /// The label.
        label: String,
        /// Its value.
        value: String,
        /// How many may.
        most: u32,
    },
}

impl Obstacle {
    /// True when the agent as it is will never run the job.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::Label { .. } | Self::Preset { .. } | Self::Executor { .. } | Self::TooLarge { .. })
    }

    /// The sentence for a person.
    pub fn sentence(&self) -> String {
        match self {
            Self::Label { label, wanted, has: Some(has) } => {
                format!("its label {label} is {has}, and {wanted} is required")
            }
            Self::Label { label, wanted, has: None } => format!("it has no label {label}, and {wanted} is required"),
            Self::Preset { preset } => format!("it has no preset {preset}"),
            Self::Executor { executor: HOSTS } => {
                "it runs no jobs on other hosts: its settings have no ssh.inventory".to_owned()
            }
            Self::Executor { executor: CONTAINERS } => "it runs no jobs in containers".to_owned(),
            Self::Executor { executor } => format!("it makes no cells of kind {executor}"),
            Self::Away { executor: CONTAINERS, reason } => format!("it runs no jobs in containers now: {reason}"),
            Self::Away { executor: _, reason } => format!("it runs no jobs on other hosts now: {reason}"),
            Self::TooLarge { resource, asked, capacity } => {
                format!("{asked} of {resource} are asked for, and it has {capacity} in all")
            }
            Self::NoRoom { resource } => format!("it has not enough {resource} free"),
            Self::Apart { label, value } => {
                format!("it runs a job with {label}={value}, which this one has to be apart from")
            }
            Self::GroupFull { label, value, most } => {
                format!("{most} jobs with {label}={value} run, and no more may at the same time")
            }
        }
    }
}

/// What a queued job asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    preset: Option<String>,
    /// On another host: it takes nothing here but a slot.
    elsewhere: bool,
    cpu: Cpus,
    memory: ByteSize,
    disk: Option<ByteSize>,
    labels: BTreeMap<String, Wanted>,
    apart: BTreeMap<String, String>,
    groups: BTreeMap<String, String>,
}

impl Shape {
    pub(super) fn of(spec: &JobSpec, groups: &Groups) -> Self {
        let own = |key: &String| spec.labels().get(key).map(|value| (key.clone(), value.clone()));
        let (elsewhere, resources) = (spec.takes().is_none(), spec.takes().unwrap_or(NOTHING));
        Self {
            preset: match spec.source() {
                Source::Preset(name) => Some(name.clone()),
                Source::Image(_) | Source::Target(_) | Source::FanOut(_) => None,
            },
            elsewhere,
            cpu: resources.cpu,
            memory: resources.memory,
            disk: resources.disk,
            labels: spec.requires().labels.clone(),
            apart: spec.requires().apart.iter().filter_map(own).collect(),
            groups: groups.keys().filter_map(own).collect(),
        }
    }

    /// The kind of cell that it needs.
    pub(super) fn executor(&self) -> &'static str {
        if self.elsewhere { HOSTS } else { CONTAINERS }
    }

    /// Its name: equal shapes have equal ones.
    pub(super) fn name(&self) -> String {
        // Without a disk, and in a container, as it was before there was anything else: files have names of then.
        let memory = self.disk.map_or_else(|| json!(self.memory), |disk| json!([self.memory, disk]));
        let (place, cpu, memory) = match self.elsewhere {
            true => (json!(true), Value::Null, Value::Null),
            false => (json!(self.preset), json!(self.cpu), memory),
        };
        json!([place, cpu, memory, self.labels, self.apart, self.groups]).to_string()
    }

    /// The shape of that name. `None` for a name of another version of this program.
    pub(super) fn named(name: &str) -> Option<Self> {
        let mut parts = serde_json::from_str::<[Value; 6]>(name).ok()?.into_iter();
        let mut next = || parts.next();
        let (preset, elsewhere) = match next()? {
            Value::Bool(true) => (None, true),
            preset => (serde_json::from_value(preset).ok()?, false),
        };
        let (cpu, memory) = (next()?, next()?);
        let (cpu, (memory, disk)) = match (elsewhere, memory) {
            (true, _) => (NOTHING.cpu, (NOTHING.memory, None)),
            (false, Value::Array(both)) => {
                let [memory, disk] = serde_json::from_value::<[ByteSize; 2]>(Value::Array(both)).ok()?;
                (serde_json::from_value(cpu).ok()?, (memory, Some(disk)))
            }
            (false, memory) => (serde_json::from_value(cpu).ok()?, (serde_json::from_value(memory).ok()?, None)),
        };
        let labels = serde_json::from_value::<BTreeMap<String, Value>>(next()?).ok()?;
        let values = |value: &Value| match value {
            Value::String(one) => Some([one.clone()].into()),
            many => serde_json::from_value(many.clone()).ok(),
        };
        let wanted = |(key, value): (String, Value)| {
            let wanted = match value.get("not") {
                Some(not) => Wanted::NoneOf(values(not)?),
                None => Wanted::OneOf(values(&value)?),
            };
            Some((key, wanted))
        };
        let labels = labels.into_iter().map(wanted).collect::<Option<_>>()?;
        let apart = serde_json::from_value(next()?).ok()?;
        let groups = serde_json::from_value(next()?).ok()?;
        Some(Self { preset, elsewhere, cpu, memory, disk, labels, apart, groups })
    }

    /// True when what others run matters for it.
    pub(super) fn minds_others(&self) -> bool {
        !self.apart.is_empty() || !self.groups.is_empty()
    }

    /// Whether an agent like this can run it at some time.
    pub(super) fn suits(&self, profile: &Profile) -> bool {
        self.lasting(profile).is_empty()
    }

    /// Why an agent like this will never run it.
    pub(super) fn lasting(&self, profile: &Profile) -> Vec<Obstacle> {
        let mut found = Vec::new();
        for (label, wanted) in &self.labels {
            let has = profile.labels.get(label);
            if !wanted.fits(has.map(String::as_str)) {
                found.push(Obstacle::Label { label: label.clone(), wanted: wanted.to_string(), has: has.cloned() });
            }
        }
        found.extend(
            self.preset
                .as_ref()
                .filter(|preset| !profile.presets.contains(preset))
                .map(|preset| Obstacle::Preset { preset: preset.clone() }),
        );
        let executor = self.executor();
        found.extend((!profile.makes(executor)).then_some(Obstacle::Executor { executor }));
        let capacity = profile.capacity;
        if self.cpu > capacity.cpu {
            let (asked, capacity) = (self.cpu.to_string(), capacity.cpu.to_string());
            found.push(Obstacle::TooLarge { resource: "cpu", asked, capacity });
        }
        let memory = self.memory_at(capacity);
        if memory > capacity.memory {
            let asked = capacity.beside.told(self.memory, self.disk);
            let capacity = capacity.memory.to_string();
            found.push(Obstacle::TooLarge { resource: "memory", asked, capacity });
        }
        found
    }

    /// What its cell can use there: the agent's ledger counts the same.
    fn memory_at(&self, agent: Capacity) -> ByteSize {
        if self.elsewhere {
            return ByteSize::new(0);
        }
        agent.beside.with(self.memory, self.disk)
    }

    /// How much of it there is room for, in thousandths of what it asks for; more than that counts no more.
    fn covered(&self, free: Capacity) -> u64 {
        let part = |free: u64, asked: u64| match asked {
            0 => 1000,
            asked => (free.saturating_mul(1000) / asked).min(1000),
        };
        let (cpu, memory) = (u64::from(self.cpu.as_milli()), self.memory_at(free).as_u64());
        part(u64::from(free.cpu.as_milli()), cpu)
            .min(part(free.memory.as_u64(), memory))
            .min(part(u64::from(free.slots), 1))
    }

    fn room(&self, free: Capacity) -> Option<Obstacle> {
        let lacks = |resource| Some(Obstacle::NoRoom { resource });
        if free.slots == 0 {
            lacks("slots")
        } else if self.cpu > free.cpu {
            lacks("cpu")
        } else if self.memory_at(free) > free.memory {
            lacks("memory")
        } else {
            None
        }
    }

    /// Why this agent does not get it now, because of what runs.
    pub(super) fn passing(&self, free: Capacity, agent: &str, running: &Running, groups: &Groups) -> Vec<Obstacle> {
        let mut found: Vec<Obstacle> = self.room(free).into_iter().collect();
        found.extend(self.others(agent, running, groups));
        found
    }

    /// Why this agent does not get it, however much room it has.
    fn others(&self, agent: &str, running: &Running, groups: &Groups) -> Vec<Obstacle> {
        let mut found = Vec::new();
        let beside = self.apart.iter().filter(|(label, value)| running.on(agent, label, value) > 0);
        found.extend(beside.map(|(label, value)| Obstacle::Apart { label: label.clone(), value: value.clone() }));
        for (label, value) in &self.groups {
            let most = groups.get(label).copied().unwrap_or(u32::MAX);
            if running.anywhere(label, value) >= most {
                found.push(Obstacle::GroupFull { label: label.clone(), value: value.clone(), most });
            }
        }
        found
    }
}

/// How many jobs run (or are claimed), by label and value: in all, and on each agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Running(BTreeMap<(String, String), Jobs>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Jobs {
    all: u32,
    on: BTreeMap<String, u32>,
}

impl Running {
    pub(super) fn add(&mut self, agent: &str, label: &str, value: &str, jobs: u32) {
        let there = self.0.entry((label.to_owned(), value.to_owned())).or_default();
        there.all += jobs;
        *there.on.entry(agent.to_owned()).or_default() += jobs;
    }

    fn on(&self, agent: &str, label: &str, value: &str) -> u32 {
        self.with(label, value).and_then(|jobs| jobs.on.get(agent)).copied().unwrap_or(0)
    }

    fn anywhere(&self, label: &str, value: &str) -> u32 {
        self.with(label, value).map_or(0, |jobs| jobs.all)
    }

    fn with(&self, label: &str, value: &str) -> Option<&Jobs> {
        self.0.get(&(label.to_owned(), value.to_owned()))
    }
}

/// A queued job, with what its place in the queue depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) seq: u64,
    pub(super) priority: i32,
    pub(super) submitted_at: UnixMillis,
}

impl Candidate {
    pub(super) fn order(&self) -> (Reverse<i32>, u64) {
        (Reverse(self.priority), self.seq)
    }
}

/// An agent that waits for work beside the one that asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub agent: String,
    /// What it can do.
    pub profile: Profile,
    /// What is free there.
    pub free: Capacity,
}

/// Who asks, and for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker<'a> {
    pub(super) agent: &'a str,
    /// `None`: nobody knows whether it will ever have room for something, so it waits for nothing.
    pub(super) profile: Option<&'a Profile>,
    pub(super) peers: &'a [Peer],
    pub(super) free: Capacity,
    pub(super) max: u32,
    pub(super) now: UnixMillis,
}

impl<'a> From<&'a super::ClaimAsk> for Asker<'a> {
    fn from(ask: &'a super::ClaimAsk) -> Self {
        Self {
            agent: &ask.agent,
            profile: ask.profile.as_ref(),
            peers: &ask.peers,
            free: ask.free,
            max: ask.max,
            now: ask.now,
        }
    }
}

impl Asker<'_> {
    /// Whether a job that lacks room here is waited for here: on the one of all agents that wait where most of it fits already.
    /// Each of them comes to the same answer by itself.
    fn reserves(&self, shape: &Shape) -> bool {
        let here = (shape.covered(self.free), Reverse(self.agent));
        let better =
            |peer: &Peer| (shape.covered(peer.free), Reverse(peer.agent.as_str())) > here && shape.suits(&peer.profile);
        self.profile.is_some_and(|profile| shape.suits(profile)) && !self.peers.iter().any(better)
    }
}

/// What a claim makes of a shape that it comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Its first jobs are to be decided about.
    Take,
    /// It is passed over.
    Pass,
    /// This and what comes after it is left for later.
    Enough,
}

/// Which shapes a claim decides about, when it comes to them in the order of their first jobs: at most [`MOST_SHAPES`]. What an
/// agent cannot run, and what waits for others to end, takes nobody's place, so nothing waits behind it. What is left for lack of
/// places waits behind so many shapes that are all older, or of a higher priority.
#[derive(Debug)]
pub(super) struct Glance<'a> {
    ask: Asker<'a>,
    groups: &'a Groups,
    taken: usize,
    /// Something that suits the agent was passed over or left.
    pub(super) held_back: bool,
}

impl<'a> Glance<'a> {
    pub(super) fn new(ask: Asker<'a>, groups: &'a Groups) -> Self {
        Self { ask, groups, taken: 0, held_back: false }
    }

    /// Looks at the next one. `running` is asked only when it matters.
    pub(super) fn at<E>(&mut self, shape: &Shape, running: impl FnOnce() -> Result<&'a Running, E>) -> Result<Look, E> {
        if self.ask.profile.is_some_and(|profile| !shape.suits(profile)) {
            return Ok(Look::Pass);
        }
        if self.taken == MOST_SHAPES {
            self.held_back = true;
            return Ok(Look::Enough);
        }
        if shape.minds_others() && !shape.others(self.ask.agent, running()?, self.groups).is_empty() {
            self.held_back = true;
            return Ok(Look::Pass);
        }
        self.taken += 1;
        Ok(Look::Take)
    }
}

/// What is handed out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// In the order of the queue.
    pub(super) jobs: Vec<u64>,
    /// Something that suits the agent was left for later: it is to look again when something ends.
    pub(super) held_back: bool,
    /// The job that the agent keeps its room for.
    pub(super) reserves: Option<u64>,
}

/// Chooses. `queues` has the first jobs of each shape that a [`Glance`] took, in order, at least `max` of each where there are so
/// many.
pub(super) fn choose(
    queues: Vec<(Shape, Vec<Candidate>)>,
    ask: Asker<'_>,
    running: &Running,
    groups: &Groups,
) -> Choice {
    let (mut choice, mut running, mut free) = (Choice::default(), running.clone(), ask.free);
    let minds_others = queues.iter().any(|(shape, _)| shape.minds_others());
    // The first job that this agent keeps its room for holds back everything behind it.
    let reserved = queues.iter().filter_map(|(shape, jobs)| {
        let first = jobs.first().filter(|first| ask.now.since(first.submitted_at) >= RESERVE_AFTER)?;
        let in_the_way = shape.passing(free, ask.agent, &running, groups);
        // What waits for others to end is not helped by room.
        (matches!(in_the_way[..], [Obstacle::NoRoom { .. }]) && ask.reserves(shape)).then(|| first.order())
    });
    let limit = reserved.min();
    choice.reserves = limit.map(|(_, seq)| seq);
    let mut heads: Vec<(Shape, std::collections::VecDeque<Candidate>)> =
        queues.into_iter().map(|(shape, jobs)| (shape, jobs.into())).collect();
    while choice.jobs.len() < ask.max as usize {
        heads.retain(|(_, jobs)| !jobs.is_empty());
        let mut next: Option<usize> = None;
        for (index, (shape, jobs)) in heads.iter().enumerate() {
            let order = jobs[0].order();
            if limit.is_some_and(|limit| order >= limit) || !shape.passing(free, ask.agent, &running, groups).is_empty()
            {
                choice.held_back = true;
            } else if next.is_none_or(|best| order < heads[best].1[0].order()) {
                next = Some(index);
            }
        }
        let Some((shape, jobs)) = next.map(|index| &mut heads[index]) else { break };
        choice.jobs.extend(jobs.pop_front().map(|job| job.seq));
        free.slots -= 1;
        free.cpu = Cpus::from_milli(free.cpu.as_milli() - shape.cpu.as_milli());
        free.memory = ByteSize::new(free.memory.as_u64() - shape.memory_at(free).as_u64());
        for (label, value) in shape.groups.iter().chain(&shape.apart) {
            running.add(ask.agent, label, value, 1);
        }
        if minds_others {
            // What a job of another shape is labelled with is not known here; the next claim sees it.
            choice.held_back = true;
            break;
        }
    }
    choice
}
