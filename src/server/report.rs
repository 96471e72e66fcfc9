//! The report of one job, for people: what it was, when, how long in each phase, how it ended, what it used, and its
//! last lines.
//!
//! Owns what a report says and how it reads. Reads the log and writes the report on a blocking thread; keeps nothing.

use super::App;
use super::extract::Path;
use super::jobs::{self, Answer, job_id, not_found};
use super::logs::log_problem;
use super::openapi::jobs as schema;
use super::problem::ProblemDocument;
use super::tail::{self, Line};
use crate::job::{
    AttemptId, Ending, Job, JobId, JobSummary, LogTotals, MOST_HOSTS, Millis, Phase, Program, Resources, Source,
    UnixMillis, Usage,
};
use crate::logstore::LogError;
use crate::queue::ListFilter;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use utoipa::{IntoParams, ToSchema};

/// Facts of a receipt that a report shows; the job has all of them.
const FACTS: [&str; 14] = [
    "uid",
    "cap_eff",
    "no_new_privs",
    "seccomp",
    "root_readonly",
    "interfaces",
    "memory_limit_bytes",
    "pids_limit",
    // Of a job on a host.
    "host",
    "login",
    "mode",
    "isolation",
    "limits",
    "limits_not_in_force",
];

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ReportQuery {
    /// `text` (default) or `json`.
    format: Option<String>,
}

/// A phase with the time that the job spent in it.
#[derive(Debug, Serialize, ToSchema)]
struct Stay {
    attempt: u32,
    #[schema(value_type = schema::Phase)]
    phase: Phase,
    #[schema(value_type = schema::Moment)]
    at: UnixMillis,
    /// Null for the phase it is in.
    #[schema(required)]
    for_ms: Option<u64>,
    reason: String,
}

/// What a receipt comes to.
#[derive(Debug, Serialize, ToSchema)]
struct ReceiptSummary {
    /// How many facts there are.
    facts: usize,
    /// The most telling ones.
    shown: BTreeMap<String, String>,
    /// Calls that were tried from inside and refused.
    refused_calls: usize,
    /// Calls that were not; `socket_inet` and `sysv_shm` are tried to tell the seccomp profiles apart.
    allowed_calls: Vec<String>,
}

/// One host of a job for several.
#[derive(Debug, Serialize, ToSchema)]
struct HostPart {
    host: String,
    #[schema(value_type = schema::JobId)]
    id: JobId,
    /// Its verdict, or the phase it is in.
    state: String,
    /// How it ended; null while it has not.
    #[schema(required)]
    message: Option<String>,
}

/// A job for people to read.
#[derive(Debug, Serialize, ToSchema)]
struct Report {
    #[schema(value_type = schema::JobId)]
    id: JobId,
    #[schema(required)]
    name: Option<String>,
    #[schema(value_type = Option<schema::JobId>, required)]
    retry_of: Option<JobId>,
    #[schema(value_type = Option<schema::JobId>, required)]
    parent: Option<JobId>,
    #[schema(required)]
    submitter: Option<String>,
    what: String,
    limits: String,
    labels: BTreeMap<String, String>,
    #[schema(value_type = schema::Phase)]
    phase: Phase,
    #[schema(required)]
    agent: Option<String>,
    attempt: u32,
    #[schema(value_type = schema::Moment)]
    submitted_at: UnixMillis,
    #[schema(value_type = Option<schema::Moment>, required)]
    started_at: Option<UnixMillis>,
    #[schema(value_type = Option<schema::Moment>, required)]
    ended_at: Option<UnixMillis>,
    phases: Vec<Stay>,
    #[schema(value_type = Option<schema::Ending>, required)]
    ending: Option<Ending>,
    #[schema(value_type = Option<schema::Usage>, required)]
    usage: Option<Usage>,
    receipt: ReceiptSummary,
    /// The jobs for its hosts, in their order; empty for a job that is for one.
    hosts: Vec<HostPart>,
    #[schema(value_type = schema::LogTotals)]
    log: LogTotals,
    last_lines: Vec<Line>,
}

/// A report of a job, for people
#[utoipa::path(get, path = "/v1/jobs/{id}/report", tag = "jobs", params(("id" = inline(schema::JobId), Path, description = "The job"), ReportQuery),
    responses((status = 200, description = "The report", content(
        (String = "text/plain; charset=utf-8"), (Report = "application/json")))),
    extensions(("x-problems" = json!(["bad_id", "bad_query", "job_not_found", "unavailable"]))))]
pub(super) async fn read(
    State(app): State<App>,
    Path(id): Path<String>,
    asked: Result<Query<ReportQuery>, QueryRejection>,
) -> Answer<Response> {
    let asked = jobs::query(asked)?;
    let text = match asked.format.as_deref() {
        None | Some("text") => true,
        Some("json") => false,
        Some(_) => return Err(ProblemDocument::new("bad_query", "format: text or json")),
    };
    let id = job_id(&id)?;
    let job = app.backend.get(id).await?.ok_or_else(|| not_found(id))?;
    let hosts = match job.children {
        Some(_) => parts(&app, id).await?,
        None => Vec::new(),
    };
    let logs = app.backend.logs().clone();
    let made = tokio::task::spawn_blocking(move || {
        let lines = match logs.reader(AttemptId::new(job.id, job.attempt)) {
            Ok(mut reader) => tail::last_lines(&mut reader, job.log.frames)?,
            // It never ran.
            Err(LogError::Missing(_)) => Vec::new(),
            Err(error) => return Err(error),
        };
        let report = Report::new(job, hosts, lines);
        Ok(if text { Made::Text(report.text()) } else { Made::Json(Json(report).into_response()) })
    });
    match made.await.expect("making a report does not panic").map_err(|error| log_problem(&error))? {
        Made::Text(text) => Ok(([("content-type", "text/plain; charset=utf-8")], text).into_response()),
        Made::Json(response) => Ok(response),
    }
}

/// The jobs for the hosts of one for several.
async fn parts(app: &App, parent: JobId) -> Answer<Vec<HostPart>> {
    let limit = u32::try_from(MOST_HOSTS).unwrap_or(u32::MAX);
    let parts = app.backend.list(ListFilter { parent: Some(parent), limit, ..ListFilter::default() }).await?;
    let part = |part: JobSummary| HostPart {
        host: part.host.unwrap_or_default(),
        id: part.id,
        state: part.ending.as_ref().map_or(part.phase.name(), |ending| ending.verdict.name()).to_owned(),
        message: part.ending.map(|ending| ending.message),
    };
    // The newest stand first in a list.
    Ok(parts.into_iter().rev().map(part).collect())
}

enum Made {
    Text(String),
    Json(Response),
}

impl Report {
    fn new(job: Job, hosts: Vec<HostPart>, last_lines: Vec<Line>) -> Self {
        let next = job.history.iter().skip(1).map(|event| Some(event.at)).chain([None]);
        let stay = |(event, next): (&crate::job::PhaseEvent, Option<UnixMillis>)| Stay {
            attempt: event.attempt,
            phase: event.phase,
            at: event.at,
            for_ms: next.map(|next| next.since(event.at).as_u64()),
            reason: event.reason.clone(),
        };
        Self {
            id: job.id,
            name: job.spec.name().map(str::to_owned),
            retry_of: job.retry_of,
            parent: job.parent,
            submitter: job.submitter.as_ref().map(|submitter| submitter.name.clone()),
            what: what(&job),
            limits: match job.spec.takes() {
                Some(Resources { cpu, memory, pids, .. }) => {
                    format!("cpu {cpu}, memory {memory}, pids {pids}, timeout {}", job.spec.timeout())
                }
                None => format!("timeout {}", job.spec.timeout()),
            },
            labels: job.spec.labels().clone(),
            phase: job.phase,
            attempt: job.attempt,
            submitted_at: job.submitted_at,
            started_at: job.started_at,
            ended_at: job.ended_at,
            phases: job.history.iter().zip(next).map(stay).collect(),
            usage: job.usage,
            receipt: ReceiptSummary::of(&job.receipt),
            agent: job.agent,
            ending: job.ending,
            hosts,
            log: job.log,
            last_lines,
        }
    }

    /// The report as a page of text. What comes from the job is escaped: it must not steer a terminal.
    fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |key: &str, value: String| {
            let _ = writeln!(out, "{key:<11}{}", tail::printable(&value));
        };
        line("job", self.id.to_string());
        self.name.iter().for_each(|name| line("name", name.clone()));
        self.retry_of.iter().for_each(|old| line("retry of", old.to_string()));
        self.parent.iter().for_each(|parent| line("part of", parent.to_string()));
        self.submitter.iter().for_each(|name| line("submitter", name.clone()));
        line("what", self.what.clone());
        line("limits", self.limits.clone());
        if !self.labels.is_empty() {
            let labels: Vec<_> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            line("labels", labels.join(", "));
        }
        line("submitted", self.submitted_at.to_string());
        self.started_at.iter().for_each(|at| line("started", at.to_string()));
        self.ended_at.iter().for_each(|at| line("ended", at.to_string()));
        self.agent.iter().for_each(|agent| line("agent", format!("{agent}, attempt {}", self.attempt)));
        match &self.ending {
            None => line("phase", format!("{}, not ended yet", self.phase)),
            Some(ending) => {
                line("outcome", format!("{}: {}", ending.verdict.name(), ending.message));
                line("cause", ending.cause.code().to_owned());
                ending.hint.iter().for_each(|hint| line("hint", hint.clone()));
            }
        }
        if let Some(usage) = &self.usage {
            let seconds = |micros: u64| format!("{}.{:03} s", micros / 1_000_000, micros / 1000 % 1000);
            let (user, system) = (seconds(usage.cpu_user_us), seconds(usage.cpu_system_us));
            let peak = usage.peak_memory_bytes >> 20;
            let known = self.receipt.shown.get("mode").is_none_or(|mode| mode != "plain");
            line(
                "use",
                match known {
                    true => format!("{} wall, {user} user, {system} system, {peak} MiB peak", usage.wall),
                    false => format!("{} wall; in plain mode nobody measures processor time and memory", usage.wall),
                },
            );
            if let Some(out) = &usage.egress {
                let (made, came, went, refused) = (out.connections, out.bytes_in, out.bytes_out, out.refused);
                line("egress", format!("{made} connections, {came} bytes in, {went} bytes out, {refused} refused"));
            }
            usage.limits_met.iter().for_each(|met| line("limit", format!("{met}; {}", met.hint())));
        }
        let log = &self.log;
        let complete = match (&self.ending, log.complete) {
            (None, _) => "still open",
            (_, true) => "complete",
            (_, false) => "incomplete",
        };
        match self.hosts.is_empty() {
            true => {
                line(
                    "output",
                    format!("{} bytes stdout, {} bytes stderr, {complete}", log.stdout.bytes, log.stderr.bytes),
                );
            }
            false => line("output", format!("each host's job has its own (`jobcell job logs {}` shows all)", self.id)),
        }
        let receipt = &self.receipt;
        if receipt.facts > 0 {
            let shown: Vec<_> = receipt.shown.iter().map(|(key, value)| format!("{key} {value}")).collect();
            line("isolation", format!("{} facts; {}", receipt.facts, shown.join(", ")));
            // On a host none is tried.
            if receipt.refused_calls + receipt.allowed_calls.len() > 0 {
                line(
                    "",
                    format!("{} calls refused; allowed: {}", receipt.refused_calls, none_or(&receipt.allowed_calls)),
                );
            }
        }
        out.push_str("\nphases\n");
        for stay in &self.phases {
            let span = stay.for_ms.map_or_else(String::new, |span| Millis::new(span).to_string());
            let (at, phase, reason) = (stay.at, stay.phase.name(), tail::printable(&stay.reason));
            let _ = writeln!(out, "  {at}  {:>3}  {phase:<10} {span:>12}  {reason}", stay.attempt);
        }
        if !self.hosts.is_empty() {
            out.push_str("\nhosts\n");
            let width = self.hosts.iter().map(|part| part.host.chars().count()).max().unwrap_or(0);
            for part in &self.hosts {
                let (host, message) = (tail::printable(&part.host), part.message.as_deref().unwrap_or_default());
                let line = format!("  {host:<width$}  {}  {:<11} {}", part.id, part.state, tail::printable(message));
                let _ = writeln!(out, "{}", line.trim_end());
            }
        }
        if !self.last_lines.is_empty() {
            let _ = writeln!(out, "\nlast {} lines of output", self.last_lines.len());
            for line in &self.last_lines {
                let mark = if line.stream == "stderr" { '!' } else { ' ' };
                let _ = writeln!(out, " {mark} {}", tail::printable(&line.text));
            }
        }
        out
    }
}

impl ReceiptSummary {
    fn of(receipt: &[(String, String)]) -> Self {
        let tries = || receipt.iter().filter(|(key, _)| key.starts_with("try."));
        // Another error is a complaint about arguments, from behind the filter.
        let refused = |got: &str| ["EPERM", "ENOSYS", "EACCES", "EAFNOSUPPORT"].contains(&got);
        let allowed: Vec<_> = tries().filter(|(_, got)| !refused(got)).map(|(key, _)| key[4..].to_owned()).collect();
        let shown = receipt.iter().filter(|(key, _)| FACTS.contains(&key.as_str())).cloned().collect();
        Self { facts: receipt.len(), shown, refused_calls: tries().count() - allowed.len(), allowed_calls: allowed }
    }
}

fn none_or(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// What runs, in a line. Scripts are told by their first line.
fn what(job: &Job) -> String {
    let from = match job.spec.source() {
        Source::Image(image) => format!("image {image}"),
        Source::Preset(preset) => format!("preset {preset}"),
        Source::Target(target) => format!("target {target}"),
        Source::FanOut(fan_out) => {
            let count = fan_out.hosts.len();
            let first = fan_out.hosts.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = if count > 5 { ", …" } else { "" };
            format!("{count} hosts ({first}{more})")
        }
    };
    match job.spec.program() {
        Program::Script { text, .. } => {
            let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
            let lines = match text.lines().count() {
                1 => "a line".to_owned(),
                count => format!("{count} lines"),
            };
            format!("{from}: script of {lines}: {}", tail::shortened(first.trim(), 100))
        }
        Program::Command(argv) => format!("{from}: command {}", tail::shortened(&argv.join(" "), 200)),
    }
}
