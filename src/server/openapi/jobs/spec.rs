//! Schemas of a job as it was taken in, every default in its place.

use super::words::{Cpus, Size, Span, TextOrNumber};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// When a registry is asked for an image.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pull {
    IfAbsent,
    Always,
    Never,
}

/// Runs in the cell after a cancel, a timeout or a silence has ended the job; its output goes into the same log.
#[derive(ToSchema)]
pub(crate) struct OnCancel {
    command: Vec<String>,
    /// It is killed when it takes longer.
    timeout: Span,
}

/// What becomes of output while nobody can take it: the job waits when it writes (the default), or it is dropped and the log says where
/// and how much.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OutputOverflow {
    Wait,
    Drop,
}

/// What becomes of a job that writes more than its limit: it is ended (the default), or what is beyond is dropped and the log says how
/// much.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OutputExcess {
    End,
    Cut,
}

/// Limits that bind a job. One with a target has the first three only if it asks for them.
#[derive(ToSchema)]
pub(crate) struct Resources {
    #[schema(nullable = false)]
    cpu: Option<Cpus>,
    #[schema(nullable = false)]
    memory: Option<Size>,
    #[schema(nullable = false)]
    pids: Option<u32>,
    /// Of /workspace; without it the agent's own.
    #[schema(nullable = false)]
    disk: Option<Size>,
    /// Files and folders in /workspace.
    #[schema(nullable = false)]
    inodes: Option<u64>,
    /// On both streams together.
    #[schema(nullable = false)]
    output: Option<Size>,
    /// Open files of each process.
    #[schema(nullable = false)]
    nofile: Option<u64>,
}

/// What the cell may reach.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Network {
    /// Loopback only.
    None,
    /// A bridge of its own; only where the operator's policy allows it.
    Bridge,
}

/// Which system calls a job may make.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Seccomp {
    Default,
    Offline,
    Strict,
    Tripwire,
}

/// What the agent has to be. All of it has to hold.
#[derive(ToSchema)]
pub(crate) struct Requires {
    /// On the agent's labels, at most 16.
    #[schema(nullable = false)]
    labels: Option<BTreeMap<String, Wanted>>,
    /// Labels of jobs: not on an agent that runs a job with the same value of one of them.
    #[schema(nullable = false, max_items = 16)]
    apart: Option<Vec<String>>,
}

/// This value, one of these, or none of these.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum Wanted {
    Value(TextOrNumber),
    OneOf(Vec<TextOrNumber>),
    NoneOf(Not),
}

/// None of these; an agent without the label will do.
#[derive(ToSchema)]
pub(crate) struct Not {
    not: Vec<TextOrNumber>,
}

/// When a job is tried again. An end of the job's own doing is a failure (exit code, signal, out of memory, timeout, program or
/// workdir that cannot be used); one that is not (cell, engine, log or agent lost) is of the infrastructure.
#[derive(ToSchema)]
pub(crate) struct Retry {
    /// More tries after failures.
    #[schema(maximum = 100)]
    failure: u32,
    /// More tries after ends of the infrastructure; without it, `queue.max_attempts` of the server less one.
    #[schema(nullable = false, maximum = 100)]
    infrastructure: Option<u32>,
    /// Pause before the second try, doubled with each one.
    backoff: Span,
    backoff_max: Span,
    /// Only after failures with one of these exit codes, as a waiting command has them.
    #[schema(nullable = false, max_items = 64)]
    exit_codes: Option<Vec<u8>>,
}

/// Where the job has a secret from.
#[derive(ToSchema)]
pub(crate) struct SecretAsk {
    /// The name of one of the agent's.
    #[schema(nullable = false)]
    from: Option<String>,
    /// Its value came with the job; it is never shown.
    #[schema(nullable = false)]
    inline: Option<bool>,
    /// `file` when the variable says where the file is.
    #[schema(nullable = false, rename = "as")]
    r#as: Option<String>,
}

/// Something that a job is given: one of `text`, `content_base64` and `blob`.
#[derive(ToSchema)]
pub(crate) struct Input {
    /// Where it goes, relative to the workspace; of an archive the folder.
    path: String,
    #[schema(nullable = false)]
    text: Option<String>,
    #[schema(nullable = false)]
    content_base64: Option<String>,
    /// The name of an uploaded content.
    #[schema(nullable = false)]
    blob: Option<String>,
    /// `file`, the default, or `archive`.
    #[schema(nullable = false)]
    kind: Option<String>,
    /// `0644`, the default, or `0755`.
    #[schema(nullable = false)]
    mode: Option<String>,
    /// What a content is large, and what an archive takes of the workspace; the server says it.
    #[schema(nullable = false)]
    bytes: Option<u64>,
    /// How many files and folders an archive makes; the server says it.
    #[schema(nullable = false)]
    entries: Option<u64>,
}

/// A checked spec with every default filled in. It is a valid `NewJob` too, but for values of secrets, which are never shown.
#[derive(ToSchema)]
pub(crate) struct JobSpec {
    #[schema(required)]
    name: Option<String>,
    #[schema(nullable = false)]
    image: Option<String>,
    #[schema(nullable = false)]
    preset: Option<String>,
    #[schema(nullable = false)]
    target: Option<Target>,
    #[schema(nullable = false)]
    pull: Option<Pull>,
    #[schema(nullable = false)]
    script: Option<String>,
    #[schema(nullable = false)]
    interpreter: Option<Vec<String>>,
    #[schema(nullable = false)]
    command: Option<Vec<String>>,
    /// Absent for a job on a target that begins in a folder of its own.
    #[schema(nullable = false)]
    workdir: Option<String>,
    env: BTreeMap<String, String>,
    #[schema(nullable = false)]
    secrets: Option<BTreeMap<String, SecretAsk>>,
    #[schema(nullable = false)]
    stdin: Option<String>,
    #[schema(nullable = false)]
    inputs: Option<Vec<Input>>,
    timeout: Span,
    #[schema(nullable = false)]
    silence_timeout: Option<Span>,
    #[schema(nullable = false)]
    on_cancel: Option<OnCancel>,
    #[schema(nullable = false)]
    output_overflow: Option<OutputOverflow>,
    #[schema(nullable = false)]
    output_excess: Option<OutputExcess>,
    #[schema(nullable = false)]
    artifacts: Option<Vec<ArtifactRule>>,
    #[schema(nullable = false)]
    lost_after: Option<Span>,
    resources: Resources,
    /// Absent for a job on a host, which has the host's own.
    #[schema(nullable = false)]
    network: Option<Network>,
    #[schema(nullable = false)]
    egress: Option<Egress>,
    #[schema(nullable = false)]
    seccomp: Option<Seccomp>,
    labels: BTreeMap<String, String>,
    #[schema(nullable = false)]
    requires: Option<Requires>,
    #[schema(nullable = false)]
    retry: Option<Retry>,
    #[schema(minimum = -100, maximum = 100)]
    priority: i32,
    #[schema(nullable = false)]
    idempotency_key: Option<String>,
    /// Where whoever asked for it stands in a trace.
    #[schema(nullable = false)]
    trace: Option<TraceContext>,
}

/// A place in a trace: W3C Trace Context.
#[derive(ToSchema)]
pub(crate) struct TraceContext {
    /// As the header `traceparent`.
    parent: String,
    /// As the header `tracestate`.
    #[schema(nullable = false)]
    state: Option<String>,
}

/// Files that are kept.
#[derive(ToSchema)]
pub(crate) struct ArtifactRule {
    /// In the workspace; `*` and `?` in a name, `**` for folders; a folder stands for what is beneath it.
    #[schema(max_length = 512)]
    path: String,
    /// The job has failed without them.
    #[schema(nullable = false)]
    required: Option<bool>,
    /// A file that changes while it is read is kept as it was read.
    #[schema(nullable = false)]
    may_change: Option<bool>,
    #[schema(nullable = false)]
    max_size: Option<Size>,
    #[schema(nullable = false, minimum = 1, maximum = 1_000_000)]
    max_count: Option<u64>,
}

/// A program with its arguments, or the program alone.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum Interpreter {
    Program(String),
    Argv(Vec<String>),
}

/// What a job may reach by the proxy in its cell.
#[derive(ToSchema)]
pub(crate) struct Egress {
    /// Each place, in its one form.
    allow: Vec<String>,
    #[schema(nullable = false)]
    connections: Option<u64>,
    #[schema(nullable = false)]
    bytes: Option<Size>,
}

/// How a job is looked after on a target.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TargetMode {
    Auto,
    Plain,
}

/// Another host that the job runs on. What is absent is the agent's inventory's to say.
#[derive(ToSchema)]
pub(crate) struct Target {
    /// Absent where there are several.
    #[schema(nullable = false)]
    host: Option<String>,
    #[schema(nullable = false)]
    hosts: Option<Vec<String>>,
    #[schema(nullable = false)]
    at_once: Option<u32>,
    #[schema(nullable = false)]
    fail_fast: Option<bool>,
    #[schema(nullable = false)]
    port: Option<u16>,
    #[schema(nullable = false)]
    login: Option<String>,
    #[schema(nullable = false)]
    credential: Option<String>,
    #[schema(nullable = false)]
    jump: Option<Vec<String>>,
    /// Absent: `auto`.
    #[schema(nullable = false)]
    mode: Option<TargetMode>,
}
