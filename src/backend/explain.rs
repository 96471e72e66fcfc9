//! Why a job stands where it stands: in sentences, with stable codes. Pure.

use super::drains::Drain;
use super::roster::{AgentEntry, AgentState};
use crate::job::{Capacity, Job, JobId, Millis, PULL_NOTE, Phase, PhaseEvent, Timing, UnixMillis};
use crate::queue::{HELD_BACK, Obstacle, Place};
use serde::Serialize;

/// The answer to `job explain`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// Which job.
    pub job: JobId,
    /// Where it stands.
    pub phase: Phase,
    /// Why, as a stable code: `no_agents`, `no_agent_suits`, `agents_away`, `no_room`, `held_back` (by a limit on groups, or by `at_once` of its parent), `next`, `delayed`, `put_off`, `fanned_out`, `image_pull`, or the
    /// code of the last entry of its history.
    pub code: String,
    /// Why, as a sentence.
    pub reason: String,
    /// For a job that waits: jobs that ask for the same and are handed out before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u64>,
    /// For a job that waits: each agent, with what is in the way there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<AgentView>,
    /// Each time that an agent had it, the oldest first, with what came of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tries: Vec<TryView>,
}

/// One time that an agent had a job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TryView {
    /// The number of its attempt.
    pub attempt: u32,
    /// Who had it, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// How long it had waited before.
    pub waited: Millis,
    /// What came of it, as a stable code: of a cause, or why it went back to the queue; of one that goes on, its phase.
    pub code: String,
    /// The same as a sentence.
    pub reason: String,
}

/// One agent, as a job that waits sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AgentView {
    /// The agent.
    pub name: String,
    /// How it is.
    pub state: AgentState,
    /// It could run the job, at some time.
    pub suits: bool,
    /// What is in the way.
    pub obstacles: Vec<Obstacle>,
    /// The same in sentences.
    pub reasons: Vec<String>,
}

/// Explains; `place` for a queued job.
pub(super) fn explain(job: &Job, place: Option<&Place>, agents: &[AgentEntry], now: UnixMillis) -> Explanation {
    let plain = |code: &str, reason: String| Explanation {
        job: job.id,
        phase: job.phase,
        code: code.to_owned(),
        reason,
        ahead: None,
        agents: Vec::new(),
        tries: tries(job),
    };
    if let Some(ending) = &job.ending {
        let hint = ending.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
        let given_up = job.given_up.as_ref().map(|given_up| format!("; {}", given_up.reason)).unwrap_or_default();
        let spent = spent(job);
        return plain(ending.cause.code(), format!("it has ended: {}{given_up}{spent}{hint}", ending.message));
    }
    if let Some(children) = &job.children {
        let crate::job::Children { all, queued, held, ended, succeeded } = children;
        let cancel = if job.cancel_requested { "; its end was asked for" } else { "" };
        let told = format!(
            "of its {all} jobs {queued} wait, agents have {held}, {ended} have ended, {succeeded} of them well"
        );
        return plain("fanned_out", format!("{told}{cancel}"));
    }
    let waits_for_others = job.parent.filter(|_| job.history.last().is_some_and(|last| last.reason == HELD_BACK));
    if let Some(parent) = waits_for_others.filter(|_| job.phase == Phase::Queued) {
        return plain(
            HELD_BACK,
            format!("it waits until others of job {parent} have ended: target.at_once of that one says how many run"),
        );
    }
    let Some(place) = place else {
        let last = job.history.last().map_or("claimed", |event| event.reason.as_str());
        let (code, words) = match last.strip_prefix(PULL_NOTE) {
            Some(words) => (PULL, format!("; its image: {words}")),
            None => (last, String::new()),
        };
        let agent = job.agent.as_deref().unwrap_or("an agent");
        let cancel = if job.cancel_requested { "; its end was asked for" } else { "" };
        let again = job.past_tries.last().map(|past| format!("; again, after try {}: {}", past.attempt, past.message));
        let (attempt, again, since) = (job.attempt, again.unwrap_or_default(), taken(job));
        return plain(code, format!("agent {agent} has it (try {attempt}){since}{words}{again}{cancel}"));
    };
    let again = job.next_try.as_ref().map(|next| format!("for try {} of {}: {}", next.number, next.of, next.cause));
    if let (Some(next), Some(again)) = (&job.next_try, &again)
        && next.not_before > now
    {
        return plain("delayed", format!("it waits until {} {again}", next.not_before));
    }
    if let Some(put_off) = &job.put_off
        && put_off.not_before > now
    {
        let times = if put_off.times > 1 { format!(" ({} times by now)", put_off.times) } else { String::new() };
        return plain("put_off", format!("it was given back until {}{times}: {}", put_off.not_before, put_off.reason));
    }
    let views: Vec<AgentView> = agents.iter().map(|agent| view(agent, place)).collect();
    let (code, reason) = waiting(&views, place.ahead);
    let again = match (again, job.history.last()) {
        (Some(again), _) => format!(" ({again})"),
        (None, Some(event)) if job.attempt > 0 => format!(" (again, after try {}: {})", event.attempt, event.reason),
        (None, _) => String::new(),
    };
    Explanation { ahead: Some(place.ahead), agents: views, ..plain(code, format!("it waits{again}: {reason}")) }
}

/// The code of a job whose image comes from a registry; how far that is, the sentence says.
const PULL: &str = "image_pull";

/// When its agent took it, and how long it had waited for one that suits it and asks for work.
fn taken(job: &Job) -> String {
    let Some(claimed) = claims(job).last() else { return String::new() };
    let (event, waited) = claimed;
    format!(", which took it at {} when it had waited {waited}", event.at)
}

/// Each time that it was handed out, with how long it had waited.
fn claims(job: &Job) -> impl Iterator<Item = (&PhaseEvent, Millis)> {
    let queued = |before: usize| job.history[..before].iter().rev().find(|event| event.phase == Phase::Queued);
    job.history
        .iter()
        .enumerate()
        .filter(|(_, event)| event.phase == Phase::Claimed)
        .map(move |(place, event)| (event, queued(place).map_or(Millis::new(0), |queued| event.at.since(queued.at))))
}

fn tries(job: &Job) -> Vec<TryView> {
    let one = |(claimed, waited): (&PhaseEvent, Millis)| {
        let attempt = claimed.attempt;
        let view = |agent: Option<&str>, code: &str, reason: String| TryView {
            attempt,
            agent: agent.map(str::to_owned),
            waited,
            code: code.to_owned(),
            reason,
        };
        if let Some(past) = job.past_tries.iter().find(|past| past.attempt == attempt) {
            return view(Some(&past.agent), past.cause.code(), format!("{}; it was tried again", past.message));
        }
        // It ended nothing, and cost no try.
        let back = job.history.iter().find(|event| event.attempt == attempt && event.phase == Phase::Queued);
        if let Some(back) = back {
            return view(None, &back.reason, "it went back to the queue before it ran".to_owned());
        }
        let agent = job.agent.as_deref();
        match &job.ending {
            Some(ending) => view(agent, ending.cause.code(), ending.message.clone()),
            None => view(agent, job.phase.name(), format!("it is {} there", job.phase)),
        }
    };
    claims(job).map(one).collect()
}

/// Where the time of its last try went.
fn spent(job: &Job) -> String {
    let took = |timing: &Timing| timing.ended_at.since(timing.began_at);
    let waited = claims(job).last().map(|(_, waited)| format!("waited {waited}"));
    // What took no time is not worth a word.
    let parts = job.timings.iter().filter(|timing| took(timing) > Millis::new(0));
    let parts = parts.map(|timing| format!("{} {}", crate::job::shown(&timing.phase), took(timing)));
    let told: Vec<String> = waited.into_iter().chain(parts).collect();
    if job.timings.is_empty() { String::new() } else { format!(" ({})", told.join(", ")) }
}

fn view(agent: &AgentEntry, place: &Place) -> AgentView {
    // What it said last of what it holds; cores and memory are only known to the agent itself.
    let free = Capacity { slots: agent.capacity.slots.saturating_sub(agent.load.held), ..agent.capacity };
    let mut obstacles = place.obstacles(&agent.name, &agent.profile(), Some(free));
    if !obstacles.iter().any(Obstacle::is_lasting) {
        obstacles.splice(0..0, place.away(&agent.load.away));
    }
    let mut reasons: Vec<String> = obstacles.iter().map(Obstacle::sentence).collect();
    match agent.state {
        AgentState::Online => {}
        AgentState::Offline => reasons.push(format!("it was last heard at {}", agent.last_contact)),
        AgentState::Draining => reasons.push("it is draining".to_owned()),
        // Said below, whatever else is the matter.
        AgentState::Drained => {}
        AgentState::Unavailable => {
            reasons.push(agent.load.unavailable.clone().unwrap_or_else(|| "it takes no jobs".to_owned()));
        }
    }
    reasons.extend(agent.drained.as_ref().map(Drain::sentence));
    let suits = !obstacles.iter().any(Obstacle::is_lasting);
    AgentView { name: agent.name.clone(), state: agent.state, suits, obstacles, reasons }
}

fn waiting(agents: &[AgentView], ahead: u64) -> (&'static str, String) {
    let suited: Vec<&AgentView> = agents.iter().filter(|agent| agent.suits).collect();
    let online: Vec<&&AgentView> = suited.iter().filter(|agent| agent.state == AgentState::Online).collect();
    let names = |agents: &[&AgentView]| agents.iter().map(|agent| agent.name.clone()).collect::<Vec<_>>().join(", ");
    if agents.is_empty() {
        return ("no_agents", "no agent has registered here yet".to_owned());
    }
    if suited.is_empty() {
        let first =
            agents.iter().filter_map(|agent| Some(format!("{}: {}", agent.name, agent.reasons.first()?))).take(5);
        let told = first.collect::<Vec<_>>().join("; ");
        let all = match agents.len() {
            1 => "the only agent can never run it".to_owned(),
            count => format!("none of {count} agents can ever run it"),
        };
        return ("no_agent_suits", format!("{all}. {told}"));
    }
    let is_away = |agent: &&&AgentView| agent.obstacles.iter().any(|one| matches!(one, Obstacle::Away { .. }));
    if online.iter().all(is_away) {
        let told: Vec<String> =
            suited.iter().map(|agent| format!("{}: {}", agent.name, agent.reasons.join(", "))).collect();
        return ("agents_away", format!("those that could run it take no jobs: {}", told.join("; ")));
    }
    let free: Vec<&AgentView> = online.iter().filter(|agent| agent.obstacles.is_empty()).map(|agent| **agent).collect();
    if free.is_empty() {
        let group =
            online.iter().flat_map(|agent| &agent.obstacles).find(|one| matches!(one, Obstacle::GroupFull { .. }));
        return match group {
            Some(group) => ("held_back", group.sentence()),
            None => {
                let told: Vec<String> =
                    online.iter().map(|agent| format!("{}: {}", agent.name, agent.reasons.join(", "))).collect();
                ("no_room", told.join("; "))
            }
        };
    }
    let behind = if ahead > 0 { format!("; {ahead} jobs that ask for the same are before it") } else { String::new() };
    (
        "next",
        format!(
            "{} can run it, as soon as it comes to its turn or has the cores and memory free{behind}",
            names(&free)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{AttemptId, Cause, JobSpec, LogTotals, Report, SpecRules};
    use crate::queue::{ClaimAsk, Family, MemoryStore, NewJob, Store, Submitted};
    use serde_json::json;

    fn at(ms: u64) -> UnixMillis {
        UnixMillis::new(ms)
    }

    async fn claimed(store: &MemoryStore, agent: &str, now: u64) -> crate::queue::Claim {
        let lease = Millis::from_secs(60);
        let free = Capacity {
            slots: 1,
            cpu: crate::job::Cpus::from_milli(9000),
            memory: crate::job::ByteSize::from_mib(9000),
            ..Capacity::default()
        };
        let ask =
            ClaimAsk { agent: agent.to_owned(), profile: None, peers: Vec::new(), free, max: 1, lease, now: at(now) };
        store.claim(ask).await.expect("claims").claims.pop().expect("there is one")
    }

    async fn told(store: &MemoryStore, job: JobId) -> Explanation {
        explain(&store.get(job).await.expect("reads").expect("is there"), None, &[], at(0))
    }

    #[tokio::test]
    async fn every_time_that_an_agent_had_it_is_told_with_what_came_of_it() {
        let store = MemoryStore::new();
        let document = json!({"preset": "bash", "script": "true"});
        let spec = JobSpec::check(&document, &SpecRules::default()).expect("is good");
        let id = JobId::new(at(1000));
        let new =
            NewJob { id, spec, at: at(1000), retry_of: None, submitter: None, quota: None, family: Family::Alone };
        assert!(matches!(store.submit(new, 10).await, Ok(Submitted::Created(_))));

        let first = claimed(&store, "a", 1500).await;
        let note = format!("{PULL_NOTE}3 of 9 MiB");
        store.advance("a", (first.attempt, first.token), Phase::Preparing, at(1600), &note).await.expect("is taken");
        let told_now = told(&store, id).await;
        assert_eq!(told_now.code, "image_pull", "a code has no numbers in it");
        let words = "agent a has it (try 1), which took it at 1500 when it had waited 500ms; its image: 3 of 9 MiB";
        assert_eq!(told_now.reason.replace(&at(1500).to_string(), "1500"), words);
        store.release("a", (first.attempt, first.token), at(2000), "no_cell_yet", None).await.expect("goes back");

        let second = claimed(&store, "b", 3000).await;
        let report = Report {
            attempt: AttemptId::new(id, second.attempt.attempt),
            cause: Cause::ExitCode { exit_code: 0 },
            started_at: Some(at(3200)),
            ended_at: at(4200),
            usage: None,
            receipt: Vec::new(),
            given: std::collections::BTreeMap::new(),
            image: None,
            log: LogTotals { complete: true, ..LogTotals::default() },
            results: crate::job::Results::default(),
            timings: vec![Timing::new("secrets", at(3000), at(3000)), Timing::new("run", at(3200), at(4200))],
        };
        store.complete("b", &report, second.token, at(4300), 3).await.expect("ends");
        let ended = told(&store, id).await;
        assert_eq!(
            (ended.code.as_str(), ended.reason.as_str()),
            ("exit_code", "it has ended: exited with code 0 (waited 1s, run 1s)")
        );
        let tries: Vec<_> =
            ended.tries.iter().map(|one| (one.attempt, one.agent.as_deref(), one.code.as_str(), one.waited)).collect();
        let wanted = [(1, None, "no_cell_yet", Millis::new(500)), (2, Some("b"), "exit_code", Millis::new(1000))];
        assert_eq!(tries, wanted);
    }
}
