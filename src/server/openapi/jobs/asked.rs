//! Schemas of what a caller sends: a job to be, and what is to become of many.

use super::spec::{
    ArtifactRule, Interpreter, Network, OutputExcess, OutputOverflow, Pull, Requires, Seccomp, TargetMode, TraceContext,
};
use super::words::{JobId, OneOrMany, TextOrNumber};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Runs in the cell after a cancel, a timeout or a silence has ended the job.
#[derive(ToSchema)]
pub(crate) struct NewOnCancel {
    #[schema(min_items = 1, max_items = 1024)]
    command: Vec<String>,
    /// It is killed when it takes longer; 100 ms to 10 minutes, default `10s`.
    timeout: Option<TextOrNumber>,
}

/// When a job is tried again; what is left out has its default.
#[derive(ToSchema)]
pub(crate) struct NewRetry {
    /// More tries after failures of the job's own, default 0.
    #[schema(maximum = 100)]
    failure: Option<u32>,
    /// More tries after ends that are not the job's own doing; default: the server's `queue.max_attempts` less one.
    #[schema(maximum = 100)]
    infrastructure: Option<u32>,
    /// Pause before the second try, doubled with each one; default `1s`.
    backoff: Option<TextOrNumber>,
    /// The longest pause, default `5m`.
    backoff_max: Option<TextOrNumber>,
    /// Only after failures with one of these exit codes, as a waiting command has them (124: timeout, 137: out of memory).
    #[schema(min_items = 1, max_items = 64)]
    exit_codes: Option<Vec<u8>>,
}

/// A secret: the name of one of the agent's, or more about it.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum NewSecret {
    Named(String),
    Asked(NewSecretAsk),
}

/// One of `from` and `value`.
#[derive(ToSchema)]
pub(crate) struct NewSecretAsk {
    /// The name of one of the agent's.
    from: Option<String>,
    /// The value itself, at least 6 bytes. It is sealed while the job waits, and forgotten when it has ended.
    #[schema(write_only)]
    value: Option<String>,
    /// `env`, the default, or `file`: then the variable says where the file is.
    #[schema(rename = "as")]
    r#as: Option<String>,
    /// As a job is shown: a value came with it. Not taken without it.
    inline: Option<bool>,
}

/// Something that a job is to be given: one of `text`, `content_base64` and `blob`.
#[derive(ToSchema)]
pub(crate) struct NewInput {
    /// Where it goes, relative to the workspace; of an archive the folder, and `.` is the workspace.
    path: String,
    text: Option<String>,
    content_base64: Option<String>,
    /// The name of an uploaded content: `sha256:` and 64 digits.
    blob: Option<String>,
    /// `file`, the default, or `archive`: a tar, plain or packed by zstd.
    kind: Option<String>,
    /// `0644`, the default, or `0755`.
    mode: Option<TextOrNumber>,
    /// As a job is shown; the server says what is right.
    bytes: Option<u64>,
    /// As a job is shown; the server says what is right.
    entries: Option<u64>,
}

/// A path, or a rule with its conditions.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum NewArtifactRule {
    Path(String),
    Rule(ArtifactRule),
}

/// Limits; what is left out has its default.
/// What a job asks to reach by the proxy in its cell.
#[derive(ToSchema)]
pub(crate) struct NewEgress {
    /// Such as `pypi.org:443`, `*.example.com:80,443` or `10.1.2.0/24:8000-8100`; without a port, 80 and 443.
    #[schema(min_items = 1, max_items = 256)]
    allow: Vec<String>,
    /// Connections in all, those that are refused included; default and most: the agent's `egress.connections`.
    #[schema(minimum = 1, maximum = 1_000_000_000)]
    connections: Option<u64>,
    /// Bytes in both directions together; default and most: the agent's `egress.bytes`.
    bytes: Option<TextOrNumber>,
}

#[derive(ToSchema)]
pub(crate) struct NewResources {
    /// Default `1`; none with a target, as of the next two.
    cpu: Option<TextOrNumber>,
    /// 4MiB to 4TiB, default `256MiB`.
    memory: Option<TextOrNumber>,
    /// Default 128.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pids: Option<u32>,
    /// Of /workspace, on top of `memory`; 1MiB to 1TiB, default the agent's `docker.workspace_size`.
    disk: Option<TextOrNumber>,
    /// Files and folders in /workspace; default one for each KiB of `disk`, or the agent's `docker.workspace_inodes`.
    #[schema(minimum = 16, maximum = 4_294_967_296_u64)]
    inodes: Option<u64>,
    /// On both streams together, from 1KiB; default the agent's `logs.output_limit`.
    output: Option<TextOrNumber>,
    /// Open files of each process; default the agent's `docker.nofile`.
    #[schema(minimum = 16, maximum = 1_048_576)]
    nofile: Option<u64>,
}

/// Another host that the job runs on, over SSH. docs/ssh.md says all about it.
#[derive(ToSchema)]
#[schema(example = json!({"host": "web1", "login": "deploy"}))]
pub(crate) struct NewTarget {
    /// A name of the agent's inventory; or a host's name or address, where the agent takes those.
    host: Option<String>,
    /// In place of `host`: each has a job of its own, and this one is their parent.
    #[schema(min_items = 1, max_items = 1000)]
    hosts: Option<Vec<String>>,
    /// Of `hosts`: so many at the same time; all of them without it.
    #[schema(minimum = 1, maximum = 1000)]
    at_once: Option<u32>,
    /// Of `hosts`: the first that does not succeed ends the others.
    fail_fast: Option<bool>,
    #[schema(minimum = 1, maximum = 65535)]
    port: Option<u16>,
    login: Option<String>,
    /// A name of the agent's inventory.
    credential: Option<String>,
    /// Hosts on the way, the first one first.
    jump: Option<OneOrMany>,
    /// Default `auto`.
    mode: Option<TargetMode>,
}

/// A job spec: one of `image`, `preset` and `target`, and one of `script` and `command`; a script in an image needs an `interpreter`.
/// docs/job-spec.md says all about it.
#[derive(ToSchema)]
#[schema(example = json!({"preset": "bash", "script": "echo hello"}))]
pub(crate) struct NewJob {
    #[schema(min_length = 1, max_length = 255)]
    name: Option<String>,
    image: Option<String>,
    preset: Option<String>,
    target: Option<NewTarget>,
    /// Default: the agent's `images.pull`.
    pull: Option<Pull>,
    script: Option<String>,
    interpreter: Option<Interpreter>,
    #[schema(min_items = 1)]
    command: Option<Vec<String>>,
    /// An absolute path; default `/workspace`, and on a target a folder of the job's own.
    workdir: Option<String>,
    env: Option<BTreeMap<String, TextOrNumber>>,
    /// By the names of their variables.
    secrets: Option<BTreeMap<String, NewSecret>>,
    stdin: Option<String>,
    /// Files and archives that are in the workspace before the job starts.
    inputs: Option<Vec<NewInput>>,
    /// Default `10m`.
    timeout: Option<TextOrNumber>,
    /// It is ended when it writes nothing for so long; default: never. The time in which nobody can take its output does not count.
    silence_timeout: Option<TextOrNumber>,
    on_cancel: Option<NewOnCancel>,
    output_overflow: Option<OutputOverflow>,
    output_excess: Option<OutputExcess>,
    /// Files that are kept when it is over, however it ended.
    #[schema(nullable = false, max_items = 64)]
    artifacts: Option<Vec<NewArtifactRule>>,
    /// How long an agent that cannot reach the server may hold the job; default: the server's `queue.lease`.
    lost_after: Option<TextOrNumber>,
    resources: Option<NewResources>,
    network: Option<Network>,
    egress: Option<NewEgress>,
    /// Default: the agent's `docker.seccomp`, and nothing weaker than that is ever in force.
    seccomp: Option<Seccomp>,
    labels: Option<BTreeMap<String, TextOrNumber>>,
    requires: Option<Requires>,
    retry: Option<NewRetry>,
    #[schema(minimum = -100, maximum = 100)]
    priority: Option<i32>,
    /// Two submits with one key are one job.
    idempotency_key: Option<String>,
    /// The job becomes a part of this trace; the header `traceparent` does the same.
    trace: Option<TraceContext>,
}

/// Which dead letters are to be replayed: one of these.
#[derive(ToSchema)]
#[schema(example = json!({"label": "team=blue"}))]
pub(crate) struct ReplayAsk {
    #[schema(max_items = 10_000)]
    ids: Option<Vec<JobId>>,
    /// `name=value`; all of several must be there.
    label: Option<OneOrMany>,
    /// All there are; only `true` has a meaning.
    all: Option<bool>,
}

/// Which jobs are to be canceled: `ids`, or a filter of `label` and `state`.
#[derive(ToSchema)]
#[schema(example = json!({"label": "team=blue", "state": "queued"}))]
pub(crate) struct BulkCancel {
    #[schema(max_items = 10_000)]
    ids: Option<Vec<JobId>>,
    /// `name=value`; all of several must be there.
    label: Option<OneOrMany>,
    /// Phases, also with commas between them.
    state: Option<OneOrMany>,
}
