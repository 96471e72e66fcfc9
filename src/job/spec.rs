//! The job spec, version 1: what a user asks for.
//!
//! A [`JobSpec`] can only be made by [`JobSpec::check`], so whoever holds one need not check again. Checking is pure,
//! finds all problems at once, and happens before anything is created.

mod artifacts;
mod check;
mod egress;
mod image;
mod inputs;
mod json;
mod limits;
mod pull;
mod requires;
mod retry;
mod seccomp;
mod secrets;
mod stop;
mod target;
mod trace;

pub use artifacts::ArtifactRule;
pub(crate) use check::labels as check_labels;
pub use egress::Egress;
pub(super) use image::fault as image_fault;
pub use inputs::{Input, InputContent, MAX_INLINE_BYTES, MAX_INPUT_ENTRIES, in_pages, input_path_fault};
pub use json::parse_json;
pub use limits::{Clamp, LIMITS, Limit, UNBOUNDED};
pub use pull::Pull;
pub use requires::{Requires, Wanted};
pub use retry::Retry;
pub use seccomp::{NoCommonProfile, Seccomp};
pub(crate) use secrets::is_secret_name;
pub use secrets::{SecretAsk, SecretSource};
pub use stop::{OnCancel, OutputExcess, OutputOverflow};
pub use target::{Access, FanOut, MOST_HOSTS, TARGET_INTERPRETER, Target, TargetMode};

use super::{ByteSize, Cpus, Millis, Problems};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// A script larger than this is refused: it belongs in the image or in an input file. Half of the API's 1 MiB body.
pub const MAX_SCRIPT_BYTES: usize = 512 * 1024;
/// Inline stdin larger than this is refused. Half of the API's 1 MiB body.
pub const MAX_STDIN_BYTES: usize = 512 * 1024;

/// The folder that a job in a container begins in when it names none: its workspace.
pub const WORKDIR: &str = "/workspace";

/// Where a job runs: what the root file system of its container is, or which host it goes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// An image reference, as Docker reads it.
    Image(String),
    /// A name that the operator maps to an image and an interpreter.
    Preset(String),
    /// Another host, over SSH.
    Target(Target),
    /// Several hosts, each with a job of its own: no agent ever has this one.
    #[serde(rename = "target")]
    FanOut(FanOut),
}

impl Source {
    /// It runs on another host than the agent's.
    pub fn is_elsewhere(&self) -> bool {
        match self {
            Self::Image(_) | Self::Preset(_) => false,
            Self::Target(_) | Self::FanOut(_) => true,
        }
    }
}

/// What the job runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// A script's text, run by `interpreter` (the preset's own when none is named).
    Script {
        /// The text.
        text: String,
        /// Program and arguments; the script's path is appended.
        interpreter: Option<Vec<String>>,
    },
    /// A program with its arguments; no shell is involved.
    Command(Vec<String>),
}

/// What the cell may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// Loopback only.
    None,
    /// A bridge of its own, with a way to the host and to what the host can reach. Only where the operator's policy allows it.
    Bridge,
}

impl NetworkMode {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::None, Self::Bridge];

    /// The name in a spec.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Bridge => "bridge",
        }
    }
}

/// Limits that bind the job; every field has its own default, so setting one keeps the others. On another host they are zero unless the job
/// asks: there are no cells, so whoever does not ask is not bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Processor share.
    #[serde(skip_serializing_if = "Cpus::is_none")]
    pub cpu: Cpus,
    /// Memory of the job itself; the cell's tmpfs and warden come on top. No swap beyond it.
    #[serde(skip_serializing_if = "ByteSize::is_none")]
    pub memory: ByteSize,
    /// Processes and threads of the job.
    #[serde(skip_serializing_if = "is_none")]
    pub pids: u32,
    /// Size of its workspace, which is memory of the cell on top of the job's. Without it, the agent's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<ByteSize>,
    /// Files and folders in its workspace. Without it, one for each KiB of `disk`, or the agent's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
    /// Output on both streams together. Without it, the agent's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<ByteSize>,
    /// Open files of each process. Without it, the agent's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nofile: Option<u64>,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu: Cpus::from_milli(1000),
            memory: ByteSize::from_mib(256),
            pids: 128,
            disk: None,
            inodes: None,
            output: None,
            nofile: None,
        }
    }
}

fn is_none(pids: &u32) -> bool {
    *pids == 0
}

/// Files for each KiB of a workspace whose size is the job's.
const BYTES_PER_INODE: u64 = 1024;
/// A small one has room for these all the same.
const LEAST_INODES: u64 = 1024;

impl Resources {
    /// Of a job on another host that asks for nothing.
    pub(crate) const NONE: Self = Self {
        cpu: Cpus::from_milli(0),
        memory: ByteSize::new(0),
        pids: 0,
        disk: None,
        inodes: None,
        output: None,
        nofile: None,
    };

    /// Files and folders in its workspace, where the agent's own number is `default`.
    pub fn inodes_or(&self, default: u64) -> u64 {
        let derived = self.disk.map(|disk| (disk.as_u64() / BYTES_PER_INODE).max(LEAST_INODES));
        self.inodes.or(derived).unwrap_or(default)
    }
}

/// Memory that a cell takes beside its job's: whoever says how much memory jobs may have has to count it, since a job can use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Beside {
    /// Of every cell: /tmp, shared memory, the warden.
    pub fixed: ByteSize,
    /// The workspace of a job that does not say how large it is.
    pub disk: ByteSize,
}

impl Beside {
    /// All that a cell can use, for a job that asks for this.
    pub fn with(self, memory: ByteSize, disk: Option<ByteSize>) -> ByteSize {
        let disk = disk.unwrap_or(self.disk).as_u64();
        ByteSize::new(memory.as_u64().saturating_add(disk).saturating_add(self.fixed.as_u64()))
    }

    /// The same in words, for one that does not fit.
    pub fn told(self, memory: ByteSize, disk: Option<ByteSize>) -> String {
        match self.with(memory, disk) {
            all if all == memory => memory.to_string(),
            all => format!("{all} ({memory} of its own, the rest for its files and its warden)"),
        }
    }

    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// What an agent has to give, in all or at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Jobs at the same time.
    pub slots: u32,
    /// Processor share of all jobs together.
    pub cpu: Cpus,
    /// Memory of all cells together.
    pub memory: ByteSize,
    /// What of it each cell takes beside its job's.
    #[serde(default, skip_serializing_if = "Beside::is_nothing")]
    pub beside: Beside,
}

impl Default for Capacity {
    /// Nothing.
    fn default() -> Self {
        Self { slots: 0, cpu: Cpus::from_milli(0), memory: ByteSize::new(0), beside: Beside::default() }
    }
}

/// A checked job spec. Serialises to the canonical document, which checks again to an equal value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobSpec {
    name: Option<String>,
    #[serde(flatten)]
    source: Source,
    #[serde(skip_serializing_if = "Option::is_none")]
    pull: Option<Pull>,
    #[serde(flatten, serialize_with = "program_fields")]
    program: Program,
    #[serde(skip_serializing_if = "Option::is_none")]
    workdir: Option<String>,
    env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "secrets::Secrets::is_empty")]
    secrets: secrets::Secrets,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdin: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<Input>,
    timeout: Millis,
    #[serde(skip_serializing_if = "Option::is_none")]
    silence_timeout: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_cancel: Option<OnCancel>,
    #[serde(skip_serializing_if = "OutputOverflow::is_default")]
    output_overflow: OutputOverflow,
    #[serde(skip_serializing_if = "OutputExcess::is_default")]
    output_excess: OutputExcess,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    artifacts: Vec<ArtifactRule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_after: Option<Millis>,
    resources: Resources,
    /// None of a job on a host, which has the host's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<NetworkMode>,
    #[serde(skip_serializing_if = "Egress::is_none")]
    egress: Egress,
    #[serde(skip_serializing_if = "Option::is_none")]
    seccomp: Option<Seccomp>,
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Requires::is_empty")]
    requires: Requires,
    #[serde(skip_serializing_if = "Retry::is_default")]
    retry: Retry,
    priority: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<String>,
    #[serde(skip_serializing_if = "trace::Origin::is_unknown")]
    trace: trace::Origin,
}

/// Writes a program as the fields a user would write.
fn program_fields<S: serde::Serializer>(program: &Program, to: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap;
    let mut map = to.serialize_map(None)?;
    match program {
        Program::Script { text, interpreter } => {
            map.serialize_entry("script", text)?;
            if let Some(interpreter) = interpreter {
                map.serialize_entry("interpreter", interpreter)?;
            }
        }
        Program::Command(argv) => map.serialize_entry("command", argv)?,
    }
    map.end()
}

/// What checking needs to know of the installation.
#[derive(Debug, Clone, Default)]
pub struct SpecRules {
    /// Names of the presets that exist; `None` accepts any well-formed name (the checker is not the installation that
    /// will run the job).
    pub presets: Option<Vec<String>>,
}

/// Parts of a YAML document that its anchors may repeat: a spec is at most two half-megabyte texts and some fields. The reader's own bound of a
/// million lets a kilobyte cost seconds.
const MOST_REPEATED: usize = 20_000;

impl JobSpec {
    /// Checks a document. Errors: every problem found, in the order of the document's fields.
    pub fn check(document: &Value, rules: &SpecRules) -> Result<Self, Problems> {
        check::check(document, rules)
    }

    /// Checks a document that a spec was written as: one that says of a secret that its value came with the job, without the value.
    /// Errors: as of [`check`](Self::check).
    pub fn check_stored(document: &Value) -> Result<Self, Problems> {
        check::read(document, &SpecRules::default(), true)
    }

    /// Reads YAML (of which JSON is a part) and checks it.
    pub fn from_yaml(text: &str, rules: &SpecRules) -> Result<Self, Problems> {
        let options = serde_saphyr::options! {
            alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MOST_REPEATED },
            budget: serde_saphyr::budget! { max_recorded_anchor_events: MOST_REPEATED },
        };
        let document: Value = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            Problems::one("", format!("is not valid YAML: {}", first_line(&error.to_string())), "correct the syntax")
        })?;
        Self::check(&document, rules)
    }

    /// A name for people; not unique.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
    /// Where it runs.
    pub fn source(&self) -> &Source {
        &self.source
    }
    /// When a registry is asked for its image; without it, the operator's choice.
    pub fn pull(&self) -> Option<Pull> {
        self.pull
    }
    /// What runs.
    pub fn program(&self) -> &Program {
        &self.program
    }
    /// The folder that it begins in: an absolute path in its container, or on its target. `None`: on its target, in a private
    /// folder that is made for it there.
    pub fn workdir(&self) -> Option<&str> {
        self.workdir.as_deref()
    }
    /// What it takes of its agent's host beside a slot; nothing when it runs on another one.
    pub fn takes(&self) -> Option<Resources> {
        (!self.source.is_elsewhere()).then_some(self.resources)
    }
    /// Variables set for the job, on top of the image's.
    pub fn env(&self) -> &BTreeMap<String, String> {
        &self.env
    }
    /// What the job reads on its standard input; without it, end of file at once.
    pub fn stdin(&self) -> Option<&str> {
        self.stdin.as_deref()
    }
    /// What is in its workspace before it starts.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }
    /// What its inputs take of the workspace, bytes and entries, as far as that is known.
    pub fn inputs_need(&self) -> (u64, u64) {
        let sum = |of: fn(&Input) -> u64| self.inputs.iter().fold(0u64, |sum, input| sum.saturating_add(of(input)));
        (sum(Input::room), sum(Input::entries))
    }
    /// The same spec with what is known of the contents of its inputs.
    #[must_use]
    pub fn with_inputs(self, inputs: Vec<Input>) -> Self {
        Self { inputs, ..self }
    }
    /// Wall-clock limit from the job's start.
    pub fn timeout(&self) -> Millis {
        self.timeout
    }
    /// It is ended when it writes nothing for so long; without it, never.
    pub fn silence_timeout(&self) -> Option<Millis> {
        self.silence_timeout
    }
    /// What runs after a cancel, a timeout or a silence.
    pub fn on_cancel(&self) -> Option<&OnCancel> {
        self.on_cancel.as_ref()
    }
    /// What becomes of output that nobody can take.
    pub fn output_overflow(&self) -> OutputOverflow {
        self.output_overflow
    }
    /// What becomes of a job that writes more than it may.
    pub fn output_excess(&self) -> OutputExcess {
        self.output_excess
    }
    /// Files that are kept when it is over.
    pub fn artifacts(&self) -> &[ArtifactRule] {
        &self.artifacts
    }
    /// How long an agent that cannot reach its backend may hold the job: so long the job runs on without a word, and after it
    /// another agent may get it. Without it, the backend's own setting.
    pub fn lost_after(&self) -> Option<Millis> {
        self.lost_after
    }
    /// Limits.
    pub fn resources(&self) -> Resources {
        self.resources
    }
    /// What the cell may reach; a job on a host asks for nothing, and has the host's own network.
    pub fn network(&self) -> NetworkMode {
        self.network.unwrap_or(NetworkMode::None)
    }
    /// What it may reach by its proxy.
    pub fn egress(&self) -> &Egress {
        &self.egress
    }
    /// Which system calls it may make; without it, the operator's choice.
    pub fn seccomp(&self) -> Option<Seccomp> {
        self.seccomp
    }
    /// Labels for people and filters.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }
    /// What the agent has to be.
    pub fn requires(&self) -> &Requires {
        &self.requires
    }
    /// When it is tried again.
    pub fn retry(&self) -> &Retry {
        &self.retry
    }
    /// −100 to 100; higher is claimed earlier.
    pub fn priority(&self) -> i32 {
        self.priority
    }
    /// Two submissions with one key are one job.
    pub fn idempotency_key(&self) -> Option<&str> {
        self.idempotency_key.as_deref()
    }
    /// The same spec under an idempotency key given beside the document (the HTTP header). A key in the document wins.
    /// Errors: a key that is not one.
    pub fn or_idempotency_key(mut self, key: Option<&str>) -> Result<Self, Problems> {
        if let Some(key) = key.filter(|_| self.idempotency_key.is_none()) {
            let mut problems = Problems::default();
            check::name_rules("idempotency_key", key, &mut problems);
            self = problems.or_value(self)?;
            self.idempotency_key = Some(key.to_owned());
        }
        Ok(self)
    }
    /// The same spec for another job: a key is for one only, and so is the place in somebody's trace.
    #[must_use]
    pub fn without_idempotency_key(self) -> Self {
        Self { idempotency_key: None, trace: trace::Origin::default(), ..self }
    }

    /// The same spec with one try only.
    #[must_use]
    pub fn once(self) -> Self {
        Self { retry: Retry::never(), ..self }
    }

    /// The same spec under a key made of what it asks for (the SHA-256 of its canonical document): two that ask for the
    /// same are one job. Errors: it has a key of its own.
    pub fn keyed_by_content(mut self) -> Result<Self, Problems> {
        if self.idempotency_key.is_some() {
            let fix = "leave out one of the two";
            return Err(Problems::one("idempotency_key", "is given although the content is to be the key", fix));
        }
        let origin = std::mem::take(&mut self.trace);
        let canonical = serde_json::to_vec(&self).expect("a spec has only string keys");
        let digest: String = Sha256::digest(canonical).iter().map(|byte| format!("{byte:02x}")).collect();
        self.idempotency_key = Some(format!("sha256:{digest}"));
        self.trace = origin;
        Ok(self)
    }
}

impl<'de> Deserialize<'de> for JobSpec {
    /// Reads the canonical document back, checking again: a stored spec that an older version wrote is not trusted.
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let document = Value::deserialize(from)?;
        Self::check_stored(&document).map_err(serde::de::Error::custom)
    }
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    super::fields::shown(line.strip_prefix("error: ").unwrap_or(line))
}
