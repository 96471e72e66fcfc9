//! What must be true of every run, whatever happened in it.

use super::ledger::{Disturbance, Note};
use super::reasons::{Reasons, true_cause};
use super::run::Stage;
use super::scenario::{Fault, Scenario};
use super::tries::{held_no_longer_than_it_gets_on, tried_by_the_rules};
use crate::executor::scripted::{How, Run};
use crate::job::{AttemptId, Cause, Job, JobId, Phase, Report, UnixMillis};
use crate::protocol::agent::Reported;
use crate::queue::ListFilter;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// What an answer, a turn of a loop and a rounded millisecond may take.
pub(super) const MOMENT: Duration = Duration::from_millis(1_500);

pub(super) struct Seen {
    pub(super) notes: Vec<(Instant, usize, Note)>,
    pub(super) disturbances: Vec<Disturbance>,
    pub(super) runs: BTreeMap<AttemptId, (usize, Run)>,
    calm: Instant,
    began: (Instant, UnixMillis),
    /// Moments that the backend names are not what they seem.
    pub(super) clock_was_set: bool,
}

impl Seen {
    /// A moment that the backend names.
    pub(super) fn moment(&self, at: UnixMillis) -> Instant {
        self.began.0 + at.since(self.began.1).as_duration()
    }

    /// Something kept this agent from its work between these moments.
    pub(super) fn disturbed(&self, agent: usize, from: Instant, to: Instant) -> bool {
        let of = |one: &&Disturbance| one.agent.is_none_or(|of| of == agent);
        self.disturbances.iter().filter(of).any(|one| one.from <= to && one.to >= from)
    }

    /// For how long, together.
    pub(super) fn disturbed_for(&self, agent: usize, from: Instant, to: Instant) -> Duration {
        let of = |one: &&Disturbance| one.agent.is_none_or(|of| of == agent);
        let part = |one: &Disturbance| one.to.min(to).saturating_duration_since(one.from.max(from));
        self.disturbances.iter().filter(of).map(part).sum()
    }

    /// Reports of it that were taken.
    pub(super) fn reports(&self, attempt: AttemptId) -> impl Iterator<Item = (&Instant, &Report)> {
        self.notes.iter().filter_map(move |(at, _, note)| match note {
            Note::Reported { report, reported: Reported::Applied } if report.attempt == attempt => {
                Some((at, &**report))
            }
            _ => None,
        })
    }

    pub(super) fn canceled(&self, job: JobId) -> Option<Instant> {
        self.notes.iter().find_map(|(at, _, note)| match note {
            Note::Canceled { job: of } if *of == job => Some(*at),
            _ => None,
        })
    }

    /// When the backend last gave this attempt a full term, and to whom.
    pub(super) fn granted(&self, attempt: AttemptId, before: Instant) -> Option<(Instant, usize)> {
        let of = |(at, agent, note): &(Instant, usize, Note)| match note {
            Note::Granted { attempt: of } | Note::Renewed { attempt: of } if *of == attempt && *at <= before => {
                Some((*at, *agent))
            }
            _ => None,
        };
        self.notes.iter().rev().find_map(of)
    }

    /// The longest that its agent went without a word, until `before`, counted from when it asked.
    pub(super) fn longest_gap(&self, attempt: AttemptId, before: Instant) -> Duration {
        let mut words = self.notes.iter().filter_map(|(at, _, note)| match note {
            Note::Heard { attempt: of, sent } if *of == attempt && *at <= before => Some((*at, *sent)),
            _ => None,
        });
        let Some((_, mut last)) = words.next() else { return Duration::MAX / 4 };
        let mut longest = Duration::ZERO;
        for (at, sent) in words.chain([(before, before)]) {
            longest = longest.max(at.saturating_duration_since(last));
            last = last.max(sent);
        }
        longest
    }

    /// When the last grant or renewal was sent for that its agent heard of.
    pub(super) fn heard(&self, attempt: AttemptId, before: Instant) -> Option<Instant> {
        let of = |(at, _, note): &(Instant, usize, Note)| match note {
            Note::Heard { attempt: of, sent } if *of == attempt && *at <= before => Some(*sent),
            _ => None,
        };
        self.notes.iter().filter_map(of).max()
    }

    pub(super) fn any(&self, wanted: impl Fn(&Note) -> bool) -> bool {
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
    let clock_was_set = scenario.faults.iter().any(|fault| matches!(fault, Fault::Clock { .. }));
    let (began, calm) = (stage.began(), stage.calm);
    let (notes, disturbances) = (ledger.notes(), ledger.disturbances());
    let seen = Seen { notes, disturbances, runs, calm, began, clock_was_set };
    let (mut causes, mut dead) = (Vec::new(), BTreeSet::new());
    for (number, id) in stage.jobs.iter().enumerate() {
        let (Some(id), Some(embedded)) = (id, stage.server.embedded()) else { continue };
        let job = embedded.get(*id).await.expect("reads").expect("is there");
        let mut wrong = Vec::new();
        attempts_apart(&seen, &job, &mut wrong);
        ended_once(&seen, &job, &mut wrong);
        expired_rightly(&seen, scenario, &job, &mut wrong);
        canceled_in_time(&seen, &job, &mut wrong);
        cells_kept(&seen, scenario, &job, &mut wrong);
        if tried_by_the_rules(scenario, &job, clock_was_set, &mut wrong) {
            dead.insert(job.id);
        }
        held_no_longer_than_it_gets_on(scenario, &job, &mut wrong);
        for (attempt, cause) in ends(&job) {
            causes.push(cause.code());
            if let Err(why) = true_cause(&seen, scenario, &job, attempt, cause) {
                wrong.push(format!("attempt {}: the cause {cause:?} is not true: {why}", attempt.attempt));
            }
            if let Err(why) = true_log(&seen, stage, attempt) {
                wrong.push(format!("the log of attempt {}: {why}", attempt.attempt));
            }
        }
        for what in wrong {
            ledger.violated(format!("job {number}: {what}"));
        }
    }
    if let Some(embedded) = stage.server.embedded() {
        let filter = ListFilter { dead_letter: Some(true), limit: 100, ..ListFilter::default() };
        let listed = embedded.list(filter).await.expect("lists").into_iter().map(|job| job.id);
        if listed.collect::<BTreeSet<_>>() != dead {
            ledger.violated(format!("{dead:?} are dead letters, and others are listed"));
        }
    }
    no_more_than_fit(&seen, scenario, stage);
    causes
}

/// How its tries ended: those that others followed on, and the last one.
fn ends(job: &Job) -> Vec<(AttemptId, &Cause)> {
    let past = job.past_tries.iter().map(|past| (AttemptId::new(job.id, past.attempt), &past.cause));
    let last = job.ending.iter().map(|ending| (AttemptId::new(job.id, job.attempt), &ending.cause));
    past.chain(last).collect()
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

/// Every job ends once, and each of its attempts at most once: with the one report that was taken, or without one.
fn ended_once(seen: &Seen, job: &Job, wrong: &mut Vec<String>) {
    let ended = job.history.iter().filter(|event| event.phase == Phase::Ended).count();
    if ended != usize::from(job.ending.is_some()) || (job.phase == Phase::Ended) != job.ending.is_some() {
        wrong.push(format!("it has ended {ended} times"));
    }
    for number in 1..=job.attempt {
        let taken: Vec<_> = seen.reports(AttemptId::new(job.id, number)).map(|(_, report)| report).collect();
        let past = job.past_tries.iter().find(|past| past.attempt == number);
        let last = job.ending.as_ref().filter(|_| number == job.attempt && past.is_none());
        let cause = past.map(|past| &past.cause).or(last.map(|ending| &ending.cause));
        let told = |report: &Report| match (&report.cause, cause) {
            // Told to end it, its agent takes it for canceled.
            (Cause::Canceled, Some(Cause::Stuck { .. })) => true,
            (reported, cause) => cause == Some(reported),
        };
        let unreported =
            |cause: &Cause| matches!(cause, Cause::AgentLost { .. } | Cause::Stuck { .. } | Cause::Canceled);
        match &taken[..] {
            [] if cause.is_none_or(unreported) => {}
            [one] if told(one) && past.is_none_or(|past| past.log == one.log) => {}
            _ => wrong
                .push(format!("attempt {number} ended with {cause:?}, and the reports that were taken are {taken:?}")),
        }
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
        match job.past_tries.iter().find(|past| past.attempt == before.attempt).map(|past| &past.cause) {
            Some(Cause::AgentLost { .. }) => {}
            Some(_) => continue,
            None => {
                if seen.runs.contains_key(&before) {
                    wrong.push(format!("attempt {} was started, and given back", before.attempt));
                }
                continue;
            }
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
    if let Some((_, _, again)) = seen
        .notes
        .iter()
        .find(|(granted, _, note)| *granted > at && matches!(note, Note::Granted { attempt } if attempt.job == job.id))
    {
        wrong.push(format!("it was handed out after a cancel: {again:?}"));
    }
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

/// A cell whose job runs is not taken away for nothing.
fn cells_kept(seen: &Seen, scenario: &Scenario, job: &Job, wrong: &mut Vec<String>) {
    for (attempt, (_, run)) in seen.runs.iter().filter(|(attempt, _)| attempt.job == job.id) {
        let ended = matches!(run.to, Some((_, How::CellEnded)));
        let why = Reasons::new(seen, scenario, job, *attempt);
        if ended && !(why.killed() || why.engine_away() || why.bad_links() || why.stopped()) {
            wrong.push(format!("attempt {} ran, and its cell was ended for nothing", attempt.attempt));
        }
    }
}

/// What the log holds is what the job said, or says that it is not all of it.
fn true_log(seen: &Seen, stage: &Stage<'_>, attempt: AttemptId) -> Result<(), String> {
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
    let report = seen.reports(attempt).next().map(|(_, report)| report);
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
