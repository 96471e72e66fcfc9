//! Why a job stands where it stands: in sentences, with stable codes. Pure.

use super::drains::Drain;
use super::roster::{AgentEntry, AgentState};
use crate::job::{Capacity, Job, JobId, Phase, UnixMillis};
use crate::queue::{HELD_BACK, Obstacle, Place};
use serde::Serialize;

/// The answer to `job explain`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// Which job.
    pub job: JobId,
    /// Where it stands.
    pub phase: Phase,
    /// Why, as a stable code: `no_agents`, `no_agent_suits`, `agents_away`, `no_room`, `held_back` (by a limit on groups, or by `at_once` of its parent), `next`, `delayed`, `put_off`, `fanned_out`, or the
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
    };
    if let Some(ending) = &job.ending {
        let hint = ending.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
        let given_up = job.given_up.as_ref().map(|given_up| format!("; {}", given_up.reason)).unwrap_or_default();
        return plain(ending.cause.code(), format!("it has ended: {}{given_up}{hint}", ending.message));
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
        let agent = job.agent.as_deref().unwrap_or("an agent");
        let cancel = if job.cancel_requested { "; its end was asked for" } else { "" };
        return plain(last, format!("agent {agent} has it (try {}){cancel}", job.attempt));
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
