//! The spans of a job: the job itself with its waits, told by whoever holds the queue, and each try with its parts, told by its agent. Pure.
//!
//! Names and attributes are those of OpenTelemetry's conventions for CI/CD and containers, where they have one; ours begin with `jobcell.`.

use super::span::{Attributes, Kind, Span, SpanEvent, Value};
use crate::job::{
    AttemptId, Cause, Ending, Job, JobId, JobSpec, Phase, Report, SpanId, Timing, UnixMillis, Verdict, trace_of,
};
use std::borrow::Cow;

/// The part of a try in which its job runs.
pub(super) const RUN: &str = "run";
/// Entries of a job's history that its span has as events: the last ones.
const MOST_EVENTS: usize = 64;
/// Steps of a try that have a span.
const MOST_STEPS: usize = 100;
/// Bytes of words in a status.
const MOST_WORDS: usize = 500;

/// One try that is over for its agent.
#[derive(Debug)]
pub struct AttemptEnd<'a> {
    /// Which.
    pub attempt: AttemptId,
    /// What was asked for.
    pub spec: &'a JobSpec,
    /// How it ended; `Err`: it went back to its backend, for this reason.
    pub outcome: Result<&'a Report, &'a str>,
    /// Its parts.
    pub timings: &'a [Timing],
    /// When its agent took it up.
    pub began: UnixMillis,
    /// When it was reported, and its cell gone.
    pub ended: UnixMillis,
    /// Which agent.
    pub worker: &'a str,
    /// Whose job it is.
    pub backend: &'a str,
    /// Its backend tells of the job itself.
    pub backend_tells: bool,
}

fn result(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Succeeded => "success",
        Verdict::Failed => "failure",
        Verdict::TimedOut => "timeout",
        Verdict::Canceled => "cancellation",
        Verdict::CellError | Verdict::Lost => "error",
    }
}

/// The words of a status, where one is an error.
fn error(ending: &Ending) -> Option<String> {
    let well = matches!(ending.verdict, Verdict::Succeeded | Verdict::Canceled);
    (!well).then(|| crate::job::one_line(&ending.message, MOST_WORDS))
}

fn set(to: &mut Attributes, name: &'static str, value: impl Into<Value>) {
    to.push((Cow::Borrowed(name), value.into()));
}

fn how_it_ended(to: &mut Attributes, ending: &Ending) {
    set(to, "jobcell.verdict", ending.verdict.name());
    set(to, "jobcell.cause", ending.cause.code());
    if let Cause::ExitCode { exit_code } = ending.cause {
        to.push((Cow::Borrowed("process.exit.code"), Value::Int(exit_code.into())));
    }
    if ending.verdict != Verdict::Succeeded {
        set(to, "error.type", ending.cause.code());
    }
}

fn what_it_is(job: JobId, spec: &JobSpec) -> Attributes {
    let mut attributes = Attributes::new();
    set(&mut attributes, "cicd.pipeline.run.id", job.to_string());
    if let Some(name) = spec.name() {
        set(&mut attributes, "cicd.pipeline.name", name);
    }
    if let Some(host) = spec.host() {
        set(&mut attributes, "server.address", host);
    }
    attributes
}

/// The spans of a try: itself, its parts, and the steps that the job told of, which are parts of its run.
pub fn attempt_spans(end: &AttemptEnd<'_>) -> Vec<Span> {
    let (attempt, context) = (end.attempt, end.spec.trace());
    let trace = trace_of(attempt.job, context);
    let own = SpanId::of_attempt(attempt);
    let state = context.map(|context| context.state.clone()).unwrap_or_default();
    let parent =
        if end.backend_tells { Some(SpanId::of_job(attempt.job)) } else { context.map(|context| context.parent) };
    let span = |id, parent, name: &str, began: UnixMillis, ended: UnixMillis| Span {
        trace,
        id,
        parent,
        state: state.clone(),
        name: name.to_owned(),
        kind: Kind::Internal,
        began,
        ended: ended.max(began),
        attributes: Attributes::new(),
        events: Vec::new(),
        error: None,
    };
    let mut attributes = what_it_is(attempt.job, end.spec);
    set(&mut attributes, "cicd.pipeline.task.name", "attempt");
    set(&mut attributes, "cicd.pipeline.task.run.id", attempt.to_string());
    set(&mut attributes, "jobcell.attempt", u64::from(attempt.attempt));
    set(&mut attributes, "jobcell.backend", end.backend);
    set(&mut attributes, "cicd.worker.id", end.worker);
    let first = end.timings.iter().map(|timing| timing.began_at).min();
    let began = first.map_or(end.began, |first| first.min(end.began));
    let mut whole = span(own, parent, &format!("attempt {}", attempt.attempt), began, end.ended);
    let mut steps = Vec::new();
    match end.outcome {
        Ok(report) => {
            let ending = Ending::of(report.cause.clone(), report.usage.as_ref());
            set(&mut attributes, "cicd.pipeline.task.run.result", result(ending.verdict));
            how_it_ended(&mut attributes, &ending);
            whole.error = error(&ending);
            if let Some(image) = &report.image {
                set(&mut attributes, "container.image.name", image.reference.as_str());
                set(&mut attributes, "container.image.id", image.id.as_str());
                let digests = image.digest.iter().cloned().collect();
                attributes.push((Cow::Borrowed("container.image.repo_digests"), Value::Texts(digests)));
                attributes.push((Cow::Borrowed("jobcell.image.pulled"), Value::Flag(image.pulled)));
            }
            if let Some(usage) = &report.usage {
                set(&mut attributes, "jobcell.cpu_us", usage.cpu_user_us.saturating_add(usage.cpu_system_us));
                set(&mut attributes, "jobcell.peak_memory_bytes", usage.peak_memory_bytes);
            }
            set(&mut attributes, "jobcell.log_bytes", report.log.stdout.bytes.saturating_add(report.log.stderr.bytes));
            steps.extend(report.results.steps.iter().take(MOST_STEPS));
        }
        Err(reason) => {
            set(&mut attributes, "cicd.pipeline.task.run.result", "skip");
            set(&mut attributes, "jobcell.given_back", reason);
        }
    }
    whole.attributes = attributes;
    let mut spans = vec![whole];
    let mut last = None;
    for (n, timing) in end.timings.iter().enumerate() {
        // What was done twice has an id of its own each time.
        let again = end.timings[..n].iter().filter(|before| before.phase == timing.phase).count();
        let what = if again == 0 { timing.phase.clone() } else { format!("{} {again}", timing.phase) };
        let id = SpanId::of_phase(attempt, &what);
        let mut part = span(id, Some(own), &timing.phase, timing.began_at, timing.ended_at);
        set(&mut part.attributes, "cicd.pipeline.task.name", timing.phase.as_str());
        if timing.phase == RUN {
            for (n, step) in steps.iter().enumerate() {
                let over = step.ended_at.unwrap_or(timing.ended_at);
                let mut of =
                    span(SpanId::of_phase(attempt, &format!("step {n}")), Some(id), &step.name, step.began_at, over);
                set(&mut of.attributes, "cicd.pipeline.task.name", step.name.as_str());
                set(&mut of.attributes, "cicd.pipeline.task.run.id", format!("{attempt}/{n}"));
                of.attributes.push((Cow::Borrowed("jobcell.step.ended"), Value::Flag(step.ended_at.is_some())));
                spans.push(of);
            }
        }
        last = Some(spans.len());
        spans.push(part);
    }
    // Where it went wrong: where it was at the end. A job that failed by itself did so while it ran.
    if let Some(words) = spans[0].error.clone() {
        let ran = spans.iter().position(|span| span.name == RUN && span.parent == Some(own));
        let of_the_job = matches!(end.outcome, Ok(report) if !report.cause.is_the_hosts());
        if let Some(at) = ran.filter(|_| of_the_job).or(last) {
            spans[at].error = Some(words);
        }
    }
    if let Ok(report) = end.outcome {
        // Its end is safe, told, and its cell removed.
        let parts = report.timings.iter().map(|timing| timing.ended_at).max();
        let from = parts.map_or(report.ended_at, |parts| parts.max(report.ended_at));
        spans.push(span(SpanId::of_phase(attempt, "finalize"), Some(own), "finalize", from, end.ended));
    }
    spans
}

/// The spans of a job that has ended: itself, and each time that it waited for an agent. Its tries are told by their agents.
pub fn job_spans(job: &Job) -> Vec<Span> {
    let Some(ending) = &job.ending else { return Vec::new() };
    let context = job.spec.trace();
    let (trace, own) = (trace_of(job.id, context), SpanId::of_job(job.id));
    let state = context.map(|context| context.state.clone()).unwrap_or_default();
    let mut attributes = what_it_is(job.id, &job.spec);
    set(&mut attributes, "cicd.pipeline.action.name", "RUN");
    set(&mut attributes, "cicd.pipeline.result", result(ending.verdict));
    how_it_ended(&mut attributes, ending);
    set(&mut attributes, "jobcell.attempts", u64::from(job.attempt));
    if let Some(agent) = &job.agent {
        set(&mut attributes, "cicd.worker.name", agent.as_str());
    }
    if let Some(submitter) = &job.submitter {
        set(&mut attributes, "jobcell.submitter", submitter.name.as_str());
    }
    if let Some(retry_of) = job.retry_of {
        set(&mut attributes, "jobcell.retry_of", retry_of.to_string());
    }
    if let Some(parent) = job.parent {
        set(&mut attributes, "jobcell.parent", parent.to_string());
    }
    for (name, value) in job.spec.labels() {
        attributes.push((Cow::Owned(format!("jobcell.label.{name}")), Value::Text(value.clone())));
    }
    let event = |event: &crate::job::PhaseEvent| {
        let mut attributes = Attributes::new();
        set(&mut attributes, "jobcell.reason", event.reason.as_str());
        set(&mut attributes, "jobcell.attempt", u64::from(event.attempt));
        SpanEvent { name: event.phase.name().to_owned(), at: event.at, attributes }
    };
    let ended = job.ended_at.unwrap_or(job.submitted_at);
    let mut spans = vec![Span {
        trace,
        id: own,
        parent: context.map(|context| context.parent),
        state: state.clone(),
        name: job.spec.name().map_or_else(|| "RUN".to_owned(), |name| format!("RUN {name}")),
        kind: Kind::Server,
        began: job.submitted_at,
        ended: ended.max(job.submitted_at),
        attributes,
        events: job.history.iter().skip(job.history.len().saturating_sub(MOST_EVENTS)).map(event).collect(),
        error: error(ending),
    }];
    // From being queued, for whatever reason, until whatever else happens to it.
    let waits = job.history.iter().enumerate().filter(|(_, event)| event.phase == Phase::Queued);
    let mut until = 0;
    for (at, queued) in waits {
        if at < until {
            continue;
        }
        let next = job.history.iter().enumerate().skip(at + 1).find(|(_, event)| event.phase != Phase::Queued);
        let (next_at, over) = next.map_or((usize::MAX, ended), |(place, event)| (place, event.at));
        until = next_at;
        let mut attributes = Attributes::new();
        set(&mut attributes, "cicd.pipeline.task.name", "queued");
        set(&mut attributes, "jobcell.reason", queued.reason.as_str());
        set(&mut attributes, "jobcell.attempt", u64::from(queued.attempt) + 1);
        spans.push(Span {
            trace,
            id: SpanId::of_part(job.id, &format!("queued {}", queued.attempt + 1)),
            parent: Some(own),
            state: state.clone(),
            name: "queued".to_owned(),
            kind: Kind::Internal,
            began: queued.at,
            ended: over.max(queued.at),
            attributes,
            events: Vec::new(),
            error: None,
        });
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{JobStep, LogTotals, Results, SpecRules, TraceContext};
    use serde_json::json;
    use std::collections::HashSet;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn at(ms: u64) -> UnixMillis {
        UnixMillis::new(ms)
    }

    fn spec() -> JobSpec {
        let document = json!({"name": "build", "preset": "bash", "script": "true", "labels": {"team": "a"}});
        JobSpec::check(&document, &SpecRules::default()).expect("is good")
    }

    fn attempt() -> AttemptId {
        AttemptId::new("0197b5c0-0000-7000-8000-000000000001".parse().expect("an id"), 2)
    }

    fn timings() -> Vec<Timing> {
        let part = |phase, from, to| Timing::new(phase, at(from), at(to));
        vec![
            part("prepare", 100, 200),
            part("cell", 200, 250),
            part("prepare", 250, 260),
            part("cell", 260, 300),
            part("start", 300, 310),
            part("run", 310, 900),
            part("collect", 900, 950),
        ]
    }

    fn report(cause: Cause) -> Report {
        let step = |name: &str, from, to: Option<u64>| JobStep {
            name: name.to_owned(),
            began_at: at(from),
            ended_at: to.map(at),
        };
        let steps = vec![step("fetch", 320, Some(400)), step("compile", 400, None)];
        Report {
            attempt: attempt(),
            cause,
            started_at: Some(at(310)),
            ended_at: at(950),
            usage: None,
            receipt: Vec::new(),
            given: std::collections::BTreeMap::new(),
            image: None,
            log: LogTotals::default(),
            results: Results { steps, ..Results::default() },
            timings: timings(),
        }
    }

    fn spans(spec: &JobSpec, outcome: Result<&Report, &str>, backend_tells: bool) -> Vec<Span> {
        let timings = timings();
        attempt_spans(&AttemptEnd {
            attempt: attempt(),
            spec,
            outcome,
            timings: &timings,
            began: at(90),
            ended: at(1000),
            worker: "w1",
            backend: "main",
            backend_tells,
        })
    }

    fn says(span: &Span, name: &str) -> Option<String> {
        let found = span.attributes.iter().find(|(there, _)| there == name)?;
        Some(match &found.1 {
            Value::Text(text) => text.clone(),
            Value::Int(number) => number.to_string(),
            Value::Flag(flag) => flag.to_string(),
            Value::Texts(texts) => texts.join(","),
        })
    }

    #[test]
    fn a_try_is_a_tree_of_its_parts_with_the_steps_in_its_run() {
        let report = report(Cause::ExitCode { exit_code: 3 });
        let all = spans(&spec(), Ok(&report), true);
        let names: Vec<&str> = all.iter().map(|span| span.name.as_str()).collect();
        let wanted = [
            "attempt 2",
            "prepare",
            "cell",
            "prepare",
            "cell",
            "start",
            "fetch",
            "compile",
            "run",
            "collect",
            "finalize",
        ];
        assert_eq!(names, wanted);
        assert_eq!(all.iter().map(|span| span.id).collect::<HashSet<_>>().len(), all.len(), "no two have one id");
        let run = all.iter().find(|span| span.name == "run").expect("is there");
        assert_eq!(run.id, SpanId::of_phase(attempt(), RUN));
        for span in &all[1..] {
            let parent = if ["fetch", "compile"].contains(&span.name.as_str()) { run.id } else { all[0].id };
            assert_eq!(span.parent, Some(parent), "{}", span.name);
            assert!(span.began >= all[0].began && span.ended <= all[0].ended, "{}", span.name);
            assert_eq!(span.trace.to_string(), attempt().job.simple(), "a job's trace has the job's id");
        }
        assert_eq!(
            (all[0].began, all[0].ended, all[0].parent),
            (at(90), at(1000), Some(SpanId::of_job(attempt().job)))
        );
        assert_eq!(says(&all[0], "cicd.pipeline.task.run.result").as_deref(), Some("failure"));
        assert_eq!(says(&all[0], "process.exit.code").as_deref(), Some("3"));
        assert_eq!(says(&all[0], "error.type").as_deref(), Some("exit_code"));
        let wrong: Vec<&str> = all.iter().filter(|span| span.error.is_some()).map(|span| span.name.as_str()).collect();
        assert_eq!(wrong, ["attempt 2", "run"], "where it went wrong is told, and nowhere else");
    }

    #[test]
    fn what_is_the_hosts_doing_is_an_error_where_it_was_at_the_end() {
        let lost = report(Cause::CellLost { reason: "gone".to_owned() });
        let all = spans(&spec(), Ok(&lost), true);
        let wrong: Vec<&str> = all.iter().filter(|span| span.error.is_some()).map(|span| span.name.as_str()).collect();
        assert_eq!(wrong, ["attempt 2", "collect"]);
        assert_eq!(says(&all[0], "cicd.pipeline.task.run.result").as_deref(), Some("error"));
        let well = report(Cause::ExitCode { exit_code: 0 });
        assert!(spans(&spec(), Ok(&well), true).iter().all(|span| span.error.is_none()));
        let back = spans(&spec(), Err("no_cell"), true);
        assert_eq!(says(&back[0], "jobcell.given_back").as_deref(), Some("no_cell"));
        assert!(back.iter().all(|span| span.name != "finalize" && span.error.is_none()));
    }

    #[test]
    fn it_hangs_where_its_submitter_stands_when_nobody_tells_of_the_job() {
        let context = TraceContext::parse(PARENT, Some("a=b"));
        let report = report(Cause::Canceled);
        let traced = spec().traced(context.clone());
        let all = spans(&traced, Ok(&report), false);
        assert_eq!(all[0].parent, context.as_ref().map(|context| context.parent));
        assert!(all.iter().all(|span| Some(span.trace) == context.as_ref().map(|of| of.trace) && span.state == "a=b"));
        assert_eq!(spans(&spec(), Ok(&report), false)[0].parent, None);
        assert!(all.iter().all(|span| span.error.is_none()), "that somebody wanted it to end is no error");
    }
}
