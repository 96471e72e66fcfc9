//! What must be true of every run, whatever happened in it.

use super::ledger::{Disturbance, Note};
use super::run::Stage;
use super::scenario::{Fault, Scenario};
use crate::agent::renewals::{grace, usable};
use crate::executor::scripted::{How, LinkFault, Run};
use crate::job::Millis;
use crate::job::{AttemptId, Cause, Job, JobId, Phase};
use crate::protocol::agent::Reported;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// What an answer, a turn of a loop and a rounded millisecond may take.
const MOMENT: Duration = Duration::from_millis(1_500);

struct Seen {
    notes: Vec<(Instant, usize, Note)>,
    disturbances: Vec<Disturbance>,
    runs: BTreeMap<AttemptId, (usize, Run)>,
    calm: Instant,
}

impl Seen {
    /// Something kept this agent from its work between these moments.
    fn disturbed(&self, agent: usize, from: Instant, to: Instant) -> bool {
        let of = |one: &&Disturbance| one.agent.is_none_or(|of| of == agent);
        self.disturbances.iter().filter(of).any(|one| one.from <= to && one.to >= from)
    }

    /// For how long, together.
    fn disturbed_for(&self, agent: usize, from: Instant, to: Instant) -> Duration {
        let of = |one: &&Disturbance| one.agent.is_none_or(|of| of == agent);
        let part = |one: &Disturbance| one.to.min(to).saturating_duration_since(one.from.max(from));
        self.disturbances.iter().filter(of).map(part).sum()
    }

    fn reports(&self, job: JobId) -> impl Iterator<Item = (&Instant, &crate::job::Report)> {
        self.notes.iter().filter_map(move |(at, _, note)| match note {
            Note::Reported { report, reported: Reported::Applied } if report.attempt.job == job => {
                Some((at, &**report))
            }
            _ => None,
        })
    }

    fn canceled(&self, job: JobId) -> Option<Instant> {
        self.notes.iter().find_map(|(at, _, note)| match note {
            Note::Canceled { job: of } if *of == job => Some(*at),
            _ => None,
        })
    }

    /// When the backend last gave this attempt a full term, and to whom.
    fn granted(&self, attempt: AttemptId, before: Instant) -> Option<(Instant, usize)> {
        let of = |(at, agent, note): &(Instant, usize, Note)| match note {
            Note::Granted { attempt: of } | Note::Renewed { attempt: of } if *of == attempt && *at <= before => {
                Some((*at, *agent))
            }
            _ => None,
        };
        self.notes.iter().rev().find_map(of)
    }

    /// The longest that its agent went without a word, until `before`, counted from when it asked.
    fn longest_gap(&self, attempt: AttemptId, before: Instant) -> Duration {
        let words = self.notes.iter().filter_map(|(at, _, note)| match note {
            Note::Heard { attempt: of, sent } if *of == attempt && *at <= before => Some((*at, *sent)),
            _ => None,
        });
        let (mut last, mut longest) = (None, Duration::ZERO);
        for (at, sent) in words.chain([(before, before)]) {
            longest = longest.max(last.map_or(Duration::MAX / 4, |last| at.saturating_duration_since(last)));
            last = last.max(Some(sent));
        }
        longest
    }

    /// When the last grant or renewal was sent for that its agent heard of.
    fn heard(&self, attempt: AttemptId, before: Instant) -> Option<Instant> {
        let of = |(at, _, note): &(Instant, usize, Note)| match note {
            Note::Heard { attempt: of, sent } if *of == attempt && *at <= before => Some(*sent),
            _ => None,
        };
        self.notes.iter().filter_map(of).max()
    }

    fn any(&self, wanted: impl Fn(&Note) -> bool) -> bool {
        self.notes.iter().any(|(_, _, note)| wanted(note))
    }
}

/// Holds a run that is over against the invariants, and says what was in it.
pub(super) async fn check(scenario: &Scenario, stage: &Stage<'_>) -> Vec<&'static str> {
    let ledger = &stage.ledger;
    let mut runs = BTreeMap::new();
    for (agent, node) in stage.nodes.iter().enumerate() {
        let world = node.world.world();
        for (attempt, times) in &world.started {
            if *times != 1 {
                ledger.violated(format!("{attempt} was started {times} times by a{agent}"));
            }
        }
        for (attempt, run) in &world.runs {
            if runs.insert(*attempt, (agent, run.clone())).is_some() {
                ledger.violated(format!("{attempt} was started by two agents"));
            }
        }
    }
    let seen = Seen { notes: ledger.notes(), disturbances: ledger.disturbances(), runs, calm: stage.calm };
    let mut causes = Vec::new();
    for (number, id) in stage.jobs.iter().enumerate() {
        let (Some(id), Some(embedded)) = (id, stage.server.embedded()) else { continue };
        let job = embedded.get(*id).await.expect("reads").expect("is there");
        let mut wrong = Vec::new();
        attempts_apart(&seen, &job, &mut wrong);
        ended_once(&seen, &job, &mut wrong);
        expired_rightly(&seen, scenario, &job, &mut wrong);
        canceled_in_time(&seen, &job, &mut wrong);
        if let Some(ending) = &job.ending {
            causes.push(ending.cause.code());
            if let Err(why) = true_cause(&seen, scenario, &job, &ending.cause) {
                wrong.push(format!("the cause {:?} is not true: {why}", ending.cause));
            }
            if let Err(why) = true_log(&seen, stage, &job) {
                wrong.push(format!("the log of attempt {}: {why}", job.attempt));
            }
        }
        for what in wrong {
            ledger.violated(format!("job {number}: {what}"));
        }
    }
    no_more_than_fit(&seen, scenario, stage);
    causes
}

/// Two attempts at one job never run at the same time.
fn attempts_apart(seen: &Seen, job: &Job, wrong: &mut Vec<String>) {
    let runs: Vec<_> = seen.runs.iter().filter(|(attempt, _)| attempt.job == job.id).collect();
    for (place, (one, (_, first))) in runs.iter().enumerate() {
        let over = first.to.map(|(at, _)| at);
        if over.is_none() && job.phase == Phase::Ended {
            wrong.push(format!("attempt {} still runs", one.attempt));
        }
        for (other, (_, second)) in &runs[place + 1..] {
            if over.is_none_or(|over| over > second.from) {
                wrong.push(format!("attempts {} and {} run at the same time", one.attempt, other.attempt));
            }
        }
    }
}

/// Every job ends once, with the one report that was taken, or without one.
fn ended_once(seen: &Seen, job: &Job, wrong: &mut Vec<String>) {
    let ends = job.history.iter().filter(|event| event.phase == Phase::Ended).count();
    if ends != usize::from(job.ending.is_some()) || (job.phase == Phase::Ended) != job.ending.is_some() {
        wrong.push(format!("it has ended {ends} times"));
    }
    let taken: Vec<_> = seen.reports(job.id).map(|(_, report)| report).collect();
    match (&taken[..], &job.ending) {
        ([], _) => {}
        ([one], Some(ending)) if one.cause == ending.cause && one.attempt.attempt == job.attempt => {}
        (reports, ending) => wrong.push(format!("{} reports were taken, and it ended with {ending:?}", reports.len())),
    }
}

/// An attempt is taken from its agent when it was given back, or when its lease ran out, and that for a reason.
fn expired_rightly(seen: &Seen, scenario: &Scenario, job: &Job, wrong: &mut Vec<String>) {
    let lease = job.spec.lost_after().map_or(scenario.lease_ms, |span| span.as_u64());
    let grants = seen.notes.iter().filter_map(|(at, _, note)| match note {
        Note::Granted { attempt } if attempt.job == job.id => Some((*at, *attempt)),
        _ => None,
    });
    let grants: Vec<_> = grants.collect();
    for (at, attempt) in grants.iter().skip(1) {
        let before = AttemptId::new(job.id, attempt.attempt - 1);
        let mut gone =
            job.history.iter().filter(|event| event.attempt == before.attempt && event.phase == Phase::Queued);
        if gone.next_back().is_some_and(|event| event.reason != "lease_expired") {
            continue;
        }
        let Some((granted, agent)) = seen.granted(before, *at) else {
            wrong.push(format!("attempt {} was never granted", before.attempt));
            continue;
        };
        if *at + Duration::from_millis(2) < granted + Duration::from_millis(lease) {
            wrong.push(format!("attempt {} was handed out while {} had its lease", attempt.attempt, before.attempt));
        }
        // A process that died may not have known of it.
        let died = seen
            .disturbances
            .iter()
            .any(|one| one.what == "a crash" && one.agent == Some(agent) && one.from >= granted && one.from <= *at);
        if !died && seen.disturbed_for(agent, granted, *at) < Duration::from_millis(lease / 2) {
            wrong.push(format!("attempt {} lost its lease, and nothing was in the way of a renewal", before.attempt));
        }
    }
}

/// A cancel that was taken ends the job soon after everything works again.
fn canceled_in_time(seen: &Seen, job: &Job, wrong: &mut Vec<String>) {
    let Some(at) = seen.canceled(job.id) else { return };
    // The next renewal tells of it at the latest; then there is the grace, and the slack behind it.
    let limit = at.max(seen.calm) + Duration::from_secs(60);
    for (attempt, (_, run)) in seen.runs.iter().filter(|(attempt, _)| attempt.job == job.id) {
        if run.to.is_none_or(|(over, _)| over > limit) {
            wrong.push(format!("attempt {} ran on for a minute after a cancel", attempt.attempt));
        }
        if run.from > at.max(seen.calm) + MOMENT && run.from > at {
            wrong.push(format!("attempt {} was started after a cancel", attempt.attempt));
        }
    }
}

fn true_cause(seen: &Seen, scenario: &Scenario, job: &Job, cause: &Cause) -> Result<(), String> {
    let attempt = AttemptId::new(job.id, job.attempt);
    let run = seen.runs.get(&attempt);
    let over = run.and_then(|(_, run)| run.to);
    let reported = seen.reports(job.id).next().map(|(at, _)| *at);
    let at = reported.unwrap_or_else(Instant::now);
    let agent = run.map(|(agent, _)| *agent).or_else(|| seen.granted(attempt, at).map(|(_, agent)| agent));
    let killed = seen.any(|note| matches!(note, Note::CellKilled { attempt: of } if *of == attempt));
    let engine_away = |from: Instant, to: Instant| {
        let of = |one: &&Disturbance| one.what == "the engine" && one.agent == agent;
        seen.disturbances.iter().filter(of).any(|one| one.from <= to && one.to >= from)
    };
    let forced =
        scenario.faults.iter().any(|fault| matches!(fault, Fault::Drain { agent: of, .. } if Some(*of) == agent));
    let lease = Duration::from_millis(job.spec.lost_after().map_or(scenario.lease_ms, |span| span.as_u64()));
    let lease_over = || {
        let refused = seen.any(|note| matches!(note, Note::Refused { attempt: of } if *of == attempt));
        let usable = usable(lease, grace(lease, Millis::new(scenario.agents[agent.unwrap_or_default()].grace_ms)));
        refused || seen.longest_gap(attempt, over.map_or(at, |(over, _)| over)) + MOMENT > usable
    };
    let silent_link = || {
        scenario.faults.iter().any(|fault| {
            let silent = LinkFault::Mute;
            matches!(fault, Fault::Link { agent: of, fault, .. } if Some(*of) == agent
                && (*fault == silent || matches!(fault, LinkFault::Stalls(_))))
        })
    };
    let timed_out = || {
        run.is_some_and(|(_, run)| {
            let limit = job.spec.timeout().as_duration();
            over.is_none_or(|(over, _)| over >= run.from + limit)
        })
    };
    let stopped = || seen.canceled(job.id).is_some() || forced || lease_over() || timed_out();
    let no = |why: &str| Err(format!("{why}; it ran {:?}", run.map(|(_, run)| run)));
    match cause {
        Cause::ExitCode { exit_code } => match over {
            Some((_, How::Exited { code, reason: 0 })) if code == *exit_code => {
                let (_, run) = run.ok_or("it never ran")?;
                if run.frames == run.play.frames { Ok(()) } else { no("it had more to say") }
            }
            _ => no("it did not end so"),
        },
        Cause::Signal { signal: 9 } => no("nobody but us kills"),
        Cause::Canceled => {
            if seen.canceled(job.id).is_some() {
                Ok(())
            } else {
                no("nobody canceled it")
            }
        }
        Cause::Timeout { limit } => {
            if *limit == job.spec.timeout() && timed_out() {
                Ok(())
            } else {
                no("its time was not over")
            }
        }
        Cause::AgentStopped => {
            if forced {
                Ok(())
            } else {
                no("its agent was not stopped")
            }
        }
        Cause::LeaseExpired => {
            let agent = agent.ok_or("it had no agent")?;
            if !lease_over() && !silent_link() {
                return no("its lease was not over");
            }
            let from = run.map_or(at, |(_, run)| run.from).min(seen.heard(attempt, at).unwrap_or(at));
            if silent_link() || seen.disturbed(agent, from, at) {
                Ok(())
            } else {
                no("nothing was in the way of a renewal")
            }
        }
        Cause::CellLost { .. } => {
            let from = run.map_or(at, |(_, run)| run.from);
            if killed || engine_away(from, at) {
                return Ok(());
            }
            // Its agent ended it, for a reason, and died before it could say so.
            let ended = matches!(over, Some((_, How::CellEnded)));
            if ended && stopped() { Ok(()) } else { no("its cell was not lost") }
        }
        Cause::WardenFault { .. } => {
            let of = |fault: &&Fault| matches!(fault, Fault::Link { agent: of, .. } if Some(*of) == agent);
            if silent_link() || scenario.faults.iter().filter(of).count() >= 5 {
                Ok(())
            } else {
                no("its warden did nothing wrong")
            }
        }
        Cause::AgentLost { attempts } => {
            let lost = job.history.iter().filter(|event| event.reason == "lease_expired").count();
            if *attempts >= scenario.max_attempts && lost + 1 >= *attempts as usize {
                Ok(())
            } else {
                no("there were tries left")
            }
        }
        _ => no("nothing here could have done that"),
    }
}

/// What the log holds is what the job said, or says that it is not all of it.
fn true_log(seen: &Seen, stage: &Stage<'_>, job: &Job) -> Result<(), String> {
    let attempt = AttemptId::new(job.id, job.attempt);
    let run = seen.runs.get(&attempt).map(|(_, run)| run);
    let mut found = 0;
    let mut bytes = [0u64; 2];
    if let Ok(mut reader) = stage.server.logs.reader(attempt) {
        loop {
            let frames = reader.read(found + 1, 1 << 20).map_err(|error| error.to_string())?;
            if frames.is_empty() {
                break;
            }
            for frame in frames {
                found += 1;
                let run = run.ok_or("it has output, and never ran")?;
                let stream = if frame.stream == crate::logstore::Stream::Stdout { 1 } else { 2 };
                let same = frame.seq == found
                    && found <= run.frames
                    && frame.bytes[..] == run.play.text(found)[..]
                    && stream == run.play.stream(found);
                if !same {
                    return Err(format!("frame {found} of {} is not what the job said", run.frames));
                }
                bytes[stream as usize - 1] += frame.bytes.len() as u64;
            }
        }
    }
    let report = seen.reports(job.id).next().map(|(_, report)| report);
    let Some(report) = report else { return Ok(()) };
    if report.log.complete {
        let said = run.map_or(0, |run| run.frames);
        if said != found {
            return Err(format!("it is called complete with {found} of {said} frames"));
        }
    } else {
        let unflushed = seen.any(|note| matches!(note, Note::FlushFailed { attempt: of } if *of == attempt));
        let by_its_warden = matches!(report.cause, Cause::ExitCode { .. });
        if by_its_warden && !unflushed {
            return Err(format!("it is called incomplete with {found} frames, for no reason"));
        }
    }
    let totals = &report.log;
    if (totals.frames, totals.stdout.bytes, totals.stderr.bytes) != (found, bytes[0], bytes[1]) {
        return Err(format!("the report says {totals:?}, and it holds {found} frames, {bytes:?} bytes"));
    }
    Ok(())
}

/// No agent runs more than it has room for.
fn no_more_than_fit(seen: &Seen, scenario: &Scenario, stage: &Stage<'_>) {
    for (agent, plan) in scenario.agents.iter().enumerate() {
        // A cell that cannot be removed is let go of, and its warden ends it.
        if seen.disturbances.iter().any(|one| one.what == "the engine" && one.agent == Some(agent)) {
            continue;
        }
        let of: Vec<&Run> = seen.runs.values().filter(|(of, _)| *of == agent).map(|(_, run)| run).collect();
        for run in &of {
            let at_once = |other: &&&Run| other.from <= run.from && other.to.is_none_or(|(over, _)| over > run.from);
            let count = of.iter().filter(at_once).count();
            if count > plan.slots as usize {
                stage.ledger.violated(format!("a{agent} has {} slots and runs {count} jobs", plan.slots));
                break;
            }
        }
    }
}
