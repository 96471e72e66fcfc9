//! Which queued jobs an agent gets. Pure: both stores gather the same facts and let this decide.
//!
//! Queued jobs that ask for the same are of one *shape*, and what is decided is decided for shapes: a queue of ten thousand
//! jobs has a handful of them, so a claim never walks over jobs that it cannot hand out.

use crate::job::{ByteSize, Capacity, Cpus, JobSpec, Millis, Source, UnixMillis, Wanted};
use serde::Serialize;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A job that has waited so long, and lacks nothing but room, is waited for by one agent: nothing behind it is handed out there
/// before.
const RESERVE_AFTER: Millis = Millis::from_secs(30);

/// Labels of jobs with the most jobs that may run at the same time with one value of it.
pub type Groups = BTreeMap<String, u32>;

/// What an agent can do, now or not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its presets.
    pub presets: Vec<String>,
    /// What it has in all.
    pub capacity: Capacity,
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
        matches!(self, Self::Label { .. } | Self::Preset { .. } | Self::TooLarge { .. })
    }

    /// The sentence for a person.
    pub fn sentence(&self) -> String {
        match self {
            Self::Label { label, wanted, has: Some(has) } => {
                format!("its label {label} is {has}, and {wanted} is required")
            }
            Self::Label { label, wanted, has: None } => format!("it has no label {label}, and {wanted} is required"),
            Self::Preset { preset } => format!("it has no preset {preset}"),
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
    cpu: Cpus,
    memory: ByteSize,
    labels: BTreeMap<String, Wanted>,
    apart: BTreeMap<String, String>,
    groups: BTreeMap<String, String>,
}

impl Shape {
    pub(super) fn of(spec: &JobSpec, groups: &Groups) -> Self {
        let own = |key: &String| spec.labels().get(key).map(|value| (key.clone(), value.clone()));
        let resources = spec.resources();
        Self {
            preset: match spec.source() {
                Source::Preset(name) => Some(name.clone()),
                Source::Image(_) => None,
            },
            cpu: resources.cpu,
            memory: resources.memory,
            labels: spec.requires().labels.clone(),
            apart: spec.requires().apart.iter().filter_map(own).collect(),
            groups: groups.keys().filter_map(own).collect(),
        }
    }

    /// Its name: equal shapes have equal ones.
    pub(super) fn name(&self) -> String {
        json!([self.preset, self.cpu, self.memory, self.labels, self.apart, self.groups]).to_string()
    }

    /// The shape of that name. `None` for a name of another version of this program.
    pub(super) fn named(name: &str) -> Option<Self> {
        let mut parts = serde_json::from_str::<[Value; 6]>(name).ok()?.into_iter();
        let mut next = || parts.next();
        let preset = serde_json::from_value(next()?).ok()?;
        let cpu = serde_json::from_value(next()?).ok()?;
        let memory = serde_json::from_value(next()?).ok()?;
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
        Some(Self { preset, cpu, memory, labels, apart, groups })
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
        let capacity = profile.capacity;
        if self.cpu > capacity.cpu {
            let (asked, capacity) = (self.cpu.to_string(), capacity.cpu.to_string());
            found.push(Obstacle::TooLarge { resource: "cpu", asked, capacity });
        }
        if self.memory > capacity.memory {
            let (asked, capacity) = (self.memory.to_string(), capacity.memory.to_string());
            found.push(Obstacle::TooLarge { resource: "memory", asked, capacity });
        }
        found
    }

    /// How much of it there is room for, in thousandths of what it asks for; more than that counts no more.
    fn covered(&self, free: Capacity) -> u64 {
        let part = |free: u64, asked: u64| (free.saturating_mul(1000) / asked.max(1)).min(1000);
        let (cpu, memory) = (u64::from(self.cpu.as_milli()), self.memory.as_u64());
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
        } else if self.memory > free.memory {
            lacks("memory")
        } else {
            None
        }
    }

    /// Why this agent does not get it now, because of what runs.
    pub(super) fn passing(&self, free: Capacity, agent: &str, running: &Running, groups: &Groups) -> Vec<Obstacle> {
        let mut found: Vec<Obstacle> = self.room(free).into_iter().collect();
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

/// How many jobs run (or are claimed), by agent, label and value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Running(BTreeMap<(String, String, String), u32>);

impl Running {
    pub(super) fn add(&mut self, agent: &str, label: &str, value: &str, jobs: u32) {
        *self.0.entry((agent.to_owned(), label.to_owned(), value.to_owned())).or_default() += jobs;
    }

    fn on(&self, agent: &str, label: &str, value: &str) -> u32 {
        self.0.get(&(agent.to_owned(), label.to_owned(), value.to_owned())).copied().unwrap_or(0)
    }

    fn anywhere(&self, label: &str, value: &str) -> u32 {
        self.0.iter().filter(|((_, of, with), _)| of == label && with == value).map(|(_, jobs)| jobs).sum()
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
    fn order(&self) -> (Reverse<i32>, u64) {
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

/// Chooses. `queues` has the first jobs of each shape that suits the agent, in order, at least `max` of each where there are so many.
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
        free.memory = ByteSize::new(free.memory.as_u64() - shape.memory.as_u64());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::SpecRules;

    fn shape(document: &Value, groups: &Groups) -> Shape {
        let mut spec = json!({"preset": "bash", "script": "x", "resources": {"cpu": 1, "memory": "64MiB"}});
        for (key, value) in document.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        Shape::of(&JobSpec::check(&spec, &SpecRules::default()).expect("valid"), groups)
    }

    fn job(seq: u64, priority: i32, waited: u64) -> Candidate {
        Candidate { seq, priority, submitted_at: UnixMillis::new(1_000_000 - waited * 1000) }
    }

    fn room(slots: u32, cpu: u32, mib: u64) -> Capacity {
        Capacity { slots, cpu: Cpus::from_milli(cpu * 1000), memory: ByteSize::from_mib(mib) }
    }

    fn large() -> Profile {
        Profile { presets: vec!["bash".into()], capacity: room(99, 99, 99_999), ..Profile::default() }
    }

    fn asker(free: Capacity, max: u32) -> Asker<'static> {
        Asker { agent: "a", profile: None, peers: &[], free, max, now: UnixMillis::new(1_000_000) }
    }

    #[test]
    fn a_shape_is_read_back_from_its_name() {
        let groups = Groups::from([("team".to_owned(), 2)]);
        let requires =
            json!({"labels": {"zone": "eu", "disk": ["a", "b"], "rack": {"not": ["r"]}}, "apart": ["team", "none"]});
        let one = shape(&json!({"labels": {"team": "x"}, "requires": requires}), &groups);
        assert_eq!(Shape::named(&one.name()), Some(one.clone()));
        assert!(one.minds_others() && !shape(&json!({}), &groups).minds_others());
        assert_eq!(Shape::named("[]"), None);
    }

    #[test]
    fn every_lasting_obstacle_is_told() {
        let one = shape(
            &json!({"resources": {"cpu": 8, "memory": "4GiB"}, "requires": {"labels": {"zone": "eu", "disk": "ssd"}}}),
            &Groups::new(),
        );
        let labels = [("zone".to_owned(), "us".to_owned())].into();
        let profile = Profile { labels, presets: vec![], capacity: room(4, 4, 1024) };
        let told: Vec<String> = one.lasting(&profile).iter().map(Obstacle::sentence).collect();
        assert_eq!(
            told,
            [
                "it has no label disk, and ssd is required",
                "its label zone is us, and eu is required",
                "it has no preset bash",
                "8 of cpu are asked for, and it has 4 in all",
                "4GiB of memory are asked for, and it has 1GiB in all",
            ]
        );
    }

    #[test]
    fn by_priority_then_age_over_all_shapes_as_far_as_there_is_room() {
        let none = Groups::new();
        let (small, large) = (shape(&json!({}), &none), shape(&json!({"resources": {"cpu": 3}}), &none));
        let queues =
            vec![(small.clone(), vec![job(2, 0, 1), job(5, 0, 1)]), (large.clone(), vec![job(3, 5, 1), job(4, 0, 1)])];
        let choice = choose(queues.clone(), asker(room(8, 5, 9999), 8), &Running::default(), &none);
        assert_eq!((choice.jobs, choice.held_back), (vec![3, 2, 5], true), "the second large one does not fit");
    }

    #[test]
    fn a_job_that_lacks_only_room_for_long_is_waited_for_by_one_agent() {
        let groups = Groups::from([("team".to_owned(), 1)]);
        let small = shape(&json!({}), &groups);
        let three = json!({"cpu": 3, "memory": "64MiB"});
        let behind = |first: &Value, waited| {
            let large = shape(first, &groups);
            vec![(small.clone(), vec![job(2, 0, 1), job(5, 0, 1)]), (large, vec![job(4, 0, waited)])]
        };
        let (large, here) = (json!({"resources": three}), large());
        let ask = Asker { profile: Some(&here), ..asker(room(8, 2, 9999), 8) };
        let running = Running::default();
        let told = |choice: Choice| (choice.jobs, choice.held_back, choice.reserves);
        assert_eq!(told(choose(behind(&large, 31), ask, &running, &groups)), (vec![2], true, Some(4)));
        assert_eq!(told(choose(behind(&large, 29), ask, &running, &groups)), (vec![2, 5], true, None));
        // Somebody of whom nobody knows whether it ever fits does not wait for it.
        let unknown = Asker { profile: None, ..ask };
        assert_eq!(told(choose(behind(&large, 31), unknown, &running, &groups)), (vec![2, 5], true, None));
        // Only where most of it fits already, and of two alike at the first by name.
        let peer = |agent: &str, free, profile| [Peer { agent: agent.to_owned(), profile, free }];
        for (peers, reserves) in [
            (peer("b", room(1, 2, 9999), here.clone()), true),
            (peer("0", room(1, 2, 9999), here.clone()), false),
            (peer("b", room(1, 9, 9999), here.clone()), false),
            (peer("b", room(0, 9, 9999), here.clone()), true),
            (peer("0", room(1, 1, 9999), here.clone()), true),
            (peer("b", room(1, 9, 9999), Profile::default()), true),
        ] {
            let choice = choose(behind(&large, 31), Asker { peers: &peers, ..ask }, &running, &groups);
            assert_eq!(choice.reserves.is_some(), reserves, "{peers:?}");
        }
        // Room would not help it.
        let mut running = Running::default();
        running.add("b", "team", "x", 1);
        let grouped = json!({"resources": three, "labels": {"team": "x"}});
        let choice = choose(behind(&grouped, 31), ask, &running, &groups);
        assert_eq!((choice.held_back, choice.reserves), (true, None));
    }

    #[test]
    fn groups_and_those_that_have_to_be_apart_wait_for_what_runs() {
        let groups = Groups::from([("team".to_owned(), 2)]);
        let grouped = shape(&json!({"labels": {"team": "x"}}), &groups);
        let queues = || vec![(grouped.clone(), vec![job(1, 0, 0), job(2, 0, 0)])];
        let mut running = Running::default();
        running.add("b", "team", "x", 1);
        running.add("b", "team", "y", 5);
        let choice = choose(queues(), asker(room(8, 8, 9999), 8), &running, &groups);
        assert_eq!((choice.jobs, choice.held_back), (vec![1], true));
        running.add("a", "team", "x", 1);
        let choice = choose(queues(), asker(room(8, 8, 9999), 8), &running, &groups);
        assert_eq!((choice.jobs, choice.held_back), (vec![], true));
        let apart = shape(&json!({"labels": {"db": "m"}, "requires": {"apart": ["db"]}}), &Groups::new());
        let mut running = Running::default();
        running.add("b", "db", "m", 1);
        let choice = choose(vec![(apart.clone(), vec![job(1, 0, 0)])], asker(room(8, 8, 9999), 8), &running, &groups);
        assert_eq!(choice.jobs, [1], "on another agent");
        running.add("a", "db", "m", 1);
        let told = apart.passing(room(1, 1, 1024), "a", &running, &groups);
        assert_eq!(told, [Obstacle::Apart { label: "db".into(), value: "m".into() }]);
    }
}
