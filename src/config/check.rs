//! From the merged document to settings that hold, or to everything that is wrong.

use super::keys::{Kind, kind};
use super::maps::{BackendConfig, CheckLevel, PresetConfig, RegistryLogin, SecretConfig};
use crate::job::{BadUnit, ByteSize, Cpus, ImageName, Millis, Problems, Pull, Seccomp};
use crate::telemetry::{CounterSpec, LogFormat, OtlpSettings, check_filter};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// All settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Everything that outlives the process.
    pub data_dir: PathBuf,
    /// The HTTP API.
    pub server: ServerConfig,
    /// How often and how much keys and strangers may ask.
    pub limits: LimitsConfig,
    /// The audit log.
    pub audit: AuditConfig,
    /// The embedded queue.
    pub queue: QueueConfig,
    /// How long what has ended is kept.
    pub retention: RetentionConfig,
    /// The agent.
    pub agent: AgentConfig,
    /// Where `jobcell agent` gets its jobs from, by name.
    pub backends: BTreeMap<String, BackendConfig>,
    /// Secrets that jobs can ask for, by name.
    pub secrets: BTreeMap<String, SecretConfig>,
    /// Cells on a Docker engine.
    pub docker: DockerConfig,
    /// Images of cells.
    pub images: ImagesConfig,
    /// What says what jobs may have.
    pub policy_file: Option<PathBuf>,
    /// The way out of cells.
    pub egress: EgressConfig,
    /// Jobs on other hosts.
    pub ssh: SshConfig,
    /// Contents that jobs are given.
    pub blobs: BlobsConfig,
    /// Bytes of a log after which it is synced to disk.
    pub logs_sync_every: ByteSize,
    /// Most output of a job that does not say how much.
    pub logs_output: ByteSize,
    /// Files that jobs leave to be kept.
    pub artifacts: ArtifactsConfig,
    /// What of a job's output is taken in a second while others run.
    pub logs_share: ByteSize,
    /// Language environments.
    pub presets: BTreeMap<String, PresetConfig>,
    /// Log lines.
    pub telemetry: TelemetryConfig,
    /// Checks of the host that are not to count, or that must be well.
    pub doctor: BTreeMap<String, CheckLevel>,
}

/// One piece of a connection is this long.
const LEAST_EGRESS_RATE: ByteSize = ByteSize::new(64 << 10);

/// Files that jobs leave to be kept.
#[derive(Debug, Clone)]
pub struct ArtifactsConfig {
    /// Most bytes of one.
    pub max_size: ByteSize,
    /// Most bytes of all of one job.
    pub max_total: ByteSize,
    /// Most of one job.
    pub max_count: u64,
    /// For fetching those of one job.
    pub timeout: Millis,
    /// Those of all jobs together.
    pub quota: ByteSize,
    /// How long they are kept.
    pub keep: Millis,
}

/// The HTTP API.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Largest request body.
    pub max_body: ByteSize,
    /// Longest `?wait=`.
    pub wait_max: Millis,
    /// Live log streams at the same time.
    pub viewers_max: u32,
    /// Connections at the same time.
    pub connections_max: u32,
    /// Of these from one address; 0 for three quarters.
    pub connections_per_address: u32,
    /// For the head of a request.
    pub header_timeout: Millis,
    /// For a body.
    pub body_timeout: Millis,
    /// For a reader that takes too little.
    pub write_timeout: Millis,
    /// Certificate and key, where it speaks TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Origins of web pages that may use it from a browser.
    pub cors_origins: Vec<String>,
    /// For requests that are being answered when the server stops.
    pub shutdown_grace: Millis,
}

/// How often and how much keys and strangers may ask; 0 is no bound.
#[derive(Debug, Clone, Copy)]
pub struct LimitsConfig {
    /// Requests of a key in a second.
    pub rate: u32,
    /// Requests of a key at once.
    pub burst: u32,
    /// Jobs of a key that have not ended.
    pub jobs: u64,
    /// Refusals of an address in a second.
    pub refused_rate: u32,
    /// Refusals of an address at once.
    pub refused_burst: u32,
}

/// The audit log.
#[derive(Debug, Clone, Copy)]
pub struct AuditConfig {
    /// There is one.
    pub enabled: bool,
    /// Bytes of one file.
    pub max_file: ByteSize,
    /// Full files that are kept.
    pub keep: u32,
}

/// The embedded queue.
#[derive(Debug, Clone)]
pub struct QueueConfig {
    /// Jobs that may wait.
    pub max_queued: u64,
    /// Term of a lease.
    pub lease: Millis,
    /// Tries for a job whose agents are lost.
    pub max_attempts: u32,
    /// How long a held job may not get on.
    pub stuck_after: Millis,
    /// Jobs in one claim.
    pub claim_batch: u32,
    /// Most jobs at the same time with one value of a label.
    pub groups: BTreeMap<String, u32>,
    /// Keys that seal secrets which came with a job.
    pub secrets_key_file: PathBuf,
}

/// How long what has ended is kept; `None` is no bound.
#[derive(Debug, Clone, Copy)]
pub struct RetentionConfig {
    /// Jobs after their ends.
    pub jobs_keep: Option<Millis>,
    /// Jobs that have ended.
    pub jobs_max: Option<u64>,
    /// Output after the end of its job.
    pub output_keep: Option<Millis>,
    /// Output of all jobs that have ended.
    pub output_max: Option<ByteSize>,
}

/// Contents that jobs are given.
#[derive(Debug, Clone, Copy)]
pub struct BlobsConfig {
    /// All together.
    pub max_bytes: ByteSize,
    /// One.
    pub max_blob: ByteSize,
    /// What no job needs stays so long.
    pub grace: Millis,
    /// The inputs of a job that has ended stay so long.
    pub keep: Millis,
}

/// The agent.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Its name.
    pub name: String,
    /// Where `jobcell agent` answers for its health.
    pub listen: SocketAddr,
    /// What jobs can ask for with `requires`.
    pub labels: BTreeMap<String, String>,
    /// Jobs at the same time.
    pub slots: u32,
    /// Processor share of all jobs together.
    pub cpu: Cpus,
    /// Memory of all jobs together.
    pub memory: ByteSize,
    /// Running jobs are left for the next process when the agent stops.
    pub handover: bool,
    /// For running jobs when the agent stops.
    pub drain_timeout: Millis,
    /// Between TERM and KILL.
    pub grace: Millis,
    /// Bytes that stay free in the data directory.
    pub disk_floor: ByteSize,
    /// Output that one backend has not got yet.
    pub spool_max: ByteSize,
}

/// Cells on a Docker engine.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "config/jobcell.example.yaml describes each key")]
pub struct DockerConfig {
    pub host: String,
    pub connect_timeout: Millis,
    pub call_timeout: Millis,
    pub start_timeout: Millis,
    pub reconnect_timeout: Millis,
    pub concurrent_starts: u32,
    pub oci_runtime: String,
    pub uid_start: u32,
    pub uid_count: u32,
    pub tmp_size: ByteSize,
    pub tmp_inodes: u64,
    pub workspace_size: ByteSize,
    pub workspace_inodes: u64,
    pub nofile: u64,
    /// An engine is used at all.
    pub enabled: bool,
    /// Other agents may use this engine too.
    pub shared: bool,
    /// Cells are held to cores.
    pub pin_cores: bool,
    /// A file with another profile than the built-in one.
    pub seccomp_profile: Option<PathBuf>,
    /// What a job gets that asks for nothing, and the least that any gets.
    pub seccomp: Seccomp,
}

/// The way out of cells.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "config/jobcell.example.yaml describes each key")]
pub struct EgressConfig {
    pub resolver: Option<SocketAddr>,
    pub connect_timeout: Millis,
    pub idle_timeout: Millis,
    pub concurrent: u16,
    pub connections: u64,
    pub bytes: ByteSize,
    pub lookups: u64,
    pub max_rate: ByteSize,
}

/// Jobs on other hosts, over SSH.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "config/jobcell.example.yaml describes each key")]
pub struct SshConfig {
    pub inventory: Option<PathBuf>,
    pub connections_per_host: u16,
    pub channels_per_connection: u16,
    pub handshakes_per_host: u16,
    pub connect_timeout: Millis,
    pub keepalive: Millis,
    pub idle_close: Millis,
    pub max_age: Millis,
}

/// Images of cells.
#[derive(Debug, Clone)]
pub struct ImagesConfig {
    /// For jobs that do not say.
    pub pull: Pull,
    /// Deadline of a pull.
    pub pull_timeout: Millis,
    /// A file with logins as `docker login` writes it.
    pub auth_file: Option<PathBuf>,
    /// Logins by host.
    pub registries: BTreeMap<String, RegistryLogin>,
    /// With less free, images are removed.
    pub free_low: ByteSize,
    /// Until so much is free.
    pub free_high: ByteSize,
    /// Most bytes of images that were pulled; 0 for no bound.
    pub size_max: ByteSize,
    /// Never removed.
    pub keep: Vec<ImageName>,
    /// Others' images may be removed too.
    pub remove_others: bool,
}

/// What the process tells of itself.
#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    /// How they look.
    pub log_format: LogFormat,
    /// Which there are.
    pub log_filter: String,
    /// Where traces of jobs go, if anywhere.
    pub otlp: Option<OtlpSettings>,
    /// What of jobs' outputs is added up in metrics.
    pub counters: Vec<CounterSpec>,
    /// What of OpenTelemetry's variables is as good as absent, in sentences.
    pub ignored: Vec<String>,
}

/// Reads one key after another and notes what is wrong.
pub(super) struct Reader<'a> {
    merged: &'a Value,
    origin: &'a dyn Fn(&str) -> Option<String>,
    problems: Problems,
    /// False when something else is where a section should be.
    sections: bool,
}

pub(super) fn check(
    merged: &Value,
    defaults: &Value,
    env: &BTreeMap<String, String>,
    origin: &dyn Fn(&str) -> Option<String>,
    problems: Problems,
) -> Result<Config, Problems> {
    let mut r = Reader { merged, origin, problems, sections: true };
    r.unknown("", merged, defaults);
    if !r.sections {
        // Every key of such a section would be told to be bad too.
        return Err(r.problems);
    }
    let config = Config {
        data_dir: PathBuf::from(r.text("data_dir")),
        server: ServerConfig {
            listen: r.listen("server.listen"),
            max_body: r.size("server.max_body"),
            wait_max: r.duration("server.wait_max"),
            viewers_max: r.number("server.viewers_max"),
            connections_max: r.number("server.connections_max"),
            connections_per_address: r.number("server.connections_per_address"),
            header_timeout: r.duration("server.header_timeout"),
            body_timeout: r.duration("server.body_timeout"),
            write_timeout: r.duration("server.write_timeout"),
            tls: r.tls(),
            cors_origins: r.origins("server.cors_origins"),
            shutdown_grace: r.duration("server.shutdown_grace"),
        },
        limits: LimitsConfig {
            rate: r.number("limits.rate"),
            burst: r.number("limits.burst"),
            jobs: r.number("limits.jobs"),
            refused_rate: r.number("limits.refused_rate"),
            refused_burst: r.number("limits.refused_burst"),
        },
        audit: AuditConfig {
            enabled: r.flag("audit.enabled"),
            max_file: r.size("audit.max_file"),
            keep: r.number("audit.keep"),
        },
        queue: QueueConfig {
            max_queued: r.number("queue.max_queued"),
            lease: r.duration("queue.lease"),
            max_attempts: r.number("queue.max_attempts"),
            stuck_after: r.duration("queue.stuck_after"),
            claim_batch: r.number("queue.claim_batch"),
            groups: r.groups("queue.groups"),
            secrets_key_file: match r.text("queue.secrets_key_file") {
                none if none.is_empty() => PathBuf::from(r.text("data_dir")).join("secrets.key"),
                file => PathBuf::from(file),
            },
        },
        retention: RetentionConfig {
            jobs_keep: Some(r.duration("retention.jobs_keep")).filter(|keep| keep.as_u64() > 0),
            jobs_max: Some(r.number("retention.jobs_max")).filter(|most| *most > 0),
            output_keep: Some(r.duration("retention.output_keep")).filter(|keep| keep.as_u64() > 0),
            output_max: Some(r.size("retention.output_max")).filter(|most| most.as_u64() > 0),
        },
        agent: AgentConfig {
            name: r.name("agent.name"),
            listen: r.listen("agent.listen"),
            labels: r.labels("agent.labels"),
            slots: r.number("agent.slots"),
            cpu: r.cores("agent.cpu"),
            memory: r.size("agent.memory"),
            handover: r.handover(),
            drain_timeout: r.duration("agent.drain_timeout"),
            grace: r.duration("agent.grace"),
            disk_floor: r.size("agent.disk_floor"),
            spool_max: r.size("agent.spool_max"),
        },
        backends: r.backends(),
        secrets: r.secrets(),
        docker: r.docker(env),
        images: r.images_section(),
        policy_file: Some(r.text("policy.file")).filter(|file| !file.is_empty()).map(PathBuf::from),
        egress: r.egress(),
        ssh: r.ssh(),
        blobs: BlobsConfig {
            max_bytes: r.size("blobs.max_bytes"),
            max_blob: r.size("blobs.max_blob"),
            grace: r.duration("blobs.grace"),
            keep: r.duration("blobs.keep"),
        },
        logs_sync_every: r.size("logs.sync_every"),
        logs_output: r.size("logs.output_limit"),
        artifacts: ArtifactsConfig {
            max_size: r.size("artifacts.max_size"),
            max_total: r.size("artifacts.max_total"),
            max_count: r.number("artifacts.max_count"),
            timeout: r.duration("artifacts.timeout"),
            quota: r.size("artifacts.quota"),
            keep: r.duration("artifacts.keep"),
        },
        logs_share: r.size("logs.output_share"),
        presets: r.presets(),
        telemetry: r.telemetry(env),
        doctor: r.checks("doctor.checks"),
    };
    if config.docker.seccomp_profile.is_some() && config.docker.seccomp != Seccomp::Default {
        r.bad(
            "docker.seccomp",
            "is not the default, and docker.seccomp_profile replaces only that one",
            "leave one of the two out",
        );
    }
    if config.images.free_high < config.images.free_low {
        r.bad("images.free_high", "is below images.free_low", "raise it, or lower the other");
    }
    // Looking for a content makes it young again only when it has a quarter of the time behind it.
    if config.artifacts.timeout.as_u64() > config.blobs.grace.as_u64() / 2 {
        r.bad(
            "artifacts.timeout",
            "is more than half of blobs.grace, so a file could go before all files of its job are there",
            "lower it, or raise the other",
        );
    }
    if config.docker.uid_count < config.agent.slots {
        r.bad(
            "docker.uid_range.count",
            "is smaller than agent.slots",
            "each running cell needs a user id of its own: raise it",
        );
    }
    r.problems.or_value(config)
}

impl Reader<'_> {
    pub(super) fn bad(&mut self, path: &str, reason: impl Into<String>, fix: impl Into<String>) {
        let from = (self.origin)(path).map(|origin| format!(" (from {origin})")).unwrap_or_default();
        self.problems.add(path, format!("{}{from}", reason.into()), fix);
    }

    pub(super) fn get(&self, path: &str) -> &Value {
        path.split('.').fold(self.merged, |at, key| at.get(key).unwrap_or(&Value::Null))
    }

    /// Every key that the built-in layer does not have, with the nearest one that it has.
    pub(super) fn unknown(&mut self, prefix: &str, merged: &Value, known: &Value) {
        // Presets, backends and labels are named by the operator; what is in one is checked with it.
        let Value::Object(known) = known else { return };
        let Value::Object(merged) = merged else {
            self.sections = false;
            return self.bad(prefix, "is not a map", "write `key: value` lines below it, or leave it out");
        };
        if matches!(
            prefix,
            "presets"
                | "backends"
                | "secrets"
                | "images.registries"
                | "agent.labels"
                | "queue.groups"
                | "telemetry.counters"
                | "doctor.checks"
        ) {
            return;
        }
        let names: Vec<&str> = known.keys().map(String::as_str).collect();
        for (key, value) in merged {
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match known.get(key) {
                Some(deeper) => self.unknown(&path, value, deeper),
                None => self.bad(&path, "unknown key", crate::job::suggestion(key, &names)),
            }
        }
    }

    /// `None` when that was told to be no text.
    fn if_text(&mut self, path: &str) -> Option<String> {
        match self.get(path) {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => {
                self.bad(path, "is not a text", "give a text");
                None
            }
        }
    }

    /// Certificate and key, of which one is of no use without the other.
    fn tls(&mut self) -> Option<(PathBuf, PathBuf)> {
        let (cert, key) = (self.text("server.tls.cert"), self.text("server.tls.key"));
        for (has, lacks, path) in [(&cert, &key, "server.tls.key"), (&key, &cert, "server.tls.cert")] {
            if !has.is_empty() && lacks.is_empty() {
                self.bad(path, "is empty, and the other of certificate and key is not", "name both files, or none");
            }
        }
        (!cert.is_empty() && !key.is_empty()).then(|| (PathBuf::from(cert), PathBuf::from(key)))
    }

    fn text(&mut self, path: &str) -> String {
        self.if_text(path).unwrap_or_default()
    }

    fn name(&mut self, path: &str) -> String {
        let Some(text) = self.if_text(path) else { return String::new() };
        if text.is_empty() || text.len() > 128 || text.chars().any(char::is_control) {
            self.bad(path, "is empty, too long or not printable", "write a name of 1 to 128 characters");
        }
        text
    }

    fn parsed<T: FromStr<Err = BadUnit>>(&mut self, path: &str, example: &str) -> Option<T> {
        let text = self.if_text(path)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.bad(
                    path,
                    format!("`{}` is not valid: {error}", crate::job::shown(&text)),
                    format!("write {example}"),
                );
                None
            }
        }
    }

    fn within<T: FromStr<Err = BadUnit> + Ord + Copy + std::fmt::Display>(
        &mut self,
        path: &str,
        example: &str,
        (least, most): (T, T),
    ) -> T {
        match self.parsed(path, example) {
            Some(value) if value < least || value > most => {
                self.bad(path, format!("{value} is out of range"), format!("choose between {least} and {most}"));
                least
            }
            Some(value) => value,
            None => least,
        }
    }

    fn duration(&mut self, path: &str) -> Millis {
        let Kind::Duration(least, most) = kind(path) else { panic!("{path} is no duration") };
        self.within(path, "30s", (least, most))
    }

    fn size(&mut self, path: &str) -> ByteSize {
        let Kind::Size(least, most) = kind(path) else { panic!("{path} is no size") };
        self.within(path, "64MiB", (least, most))
    }

    fn cores(&mut self, path: &str) -> Cpus {
        let Kind::Cores(least, most) = kind(path) else { panic!("{path} is no number of cores") };
        self.within(path, "4", (least, most))
    }

    fn number<T: TryFrom<u64>>(&mut self, path: &str) -> T {
        let Kind::Number(least, most) = kind(path) else { panic!("{path} is no number") };
        let number = match self.get(path) {
            Value::Number(number) => number.as_u64(),
            // From the environment and from flags, numbers come as text.
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        let good = number.filter(|number| (least..=most).contains(number)).and_then(|number| T::try_from(number).ok());
        if good.is_none() {
            self.bad(path, "is not a whole number in range", format!("choose between {least} and {most}"));
        }
        good.or_else(|| T::try_from(least).ok()).expect("the least value fits")
    }

    fn filter(&mut self) -> String {
        let text = self.text("telemetry.log_filter");
        if let Err(error) = check_filter(&text) {
            let reason = format!("`{}` is no filter: {error}", crate::job::shown(&text));
            self.bad("telemetry.log_filter", reason, "write info, debug or jobcell::agent=debug,info");
        }
        text
    }

    fn telemetry(&mut self, env: &BTreeMap<String, String>) -> TelemetryConfig {
        let (otlp, ignored) =
            OtlpSettings::read(&self.text("telemetry.otlp.endpoint"), env).unwrap_or_else(|unusable| {
                self.bad("telemetry.otlp.endpoint", unusable.reason, unusable.fix);
                (None, Vec::new())
            });
        let (log_format, log_filter, counters) = (self.log_format(), self.filter(), self.counters());
        TelemetryConfig { log_format, log_filter, otlp, counters, ignored }
    }

    fn flag(&mut self, path: &str) -> bool {
        match self.get(path) {
            Value::Bool(flag) => *flag,
            // From the environment.
            Value::String(text) if matches!(text.as_str(), "true" | "false") => text == "true",
            _ => {
                self.bad(path, "is neither true nor false", "write true or false");
                false
            }
        }
    }

    fn listen(&mut self, path: &str) -> SocketAddr {
        let none = SocketAddr::from(([127, 0, 0, 1], 0));
        let Some(text) = self.if_text(path) else { return none };
        text.parse().unwrap_or_else(|_| {
            let reason = format!("`{}` is not an address", crate::job::shown(&text));
            self.bad(path, reason, "write an address such as 127.0.0.1:7807");
            none
        })
    }

    fn handover(&mut self) -> bool {
        let text = self.text("agent.drain_mode");
        if !["wait", "handover", ""].contains(&text.as_str()) {
            let reason = format!("`{}` is no way to stop", crate::job::shown(&text));
            self.bad("agent.drain_mode", reason, "write wait or handover");
        }
        text == "handover"
    }

    fn log_format(&mut self) -> LogFormat {
        let Some(text) = self.if_text("telemetry.log_format") else { return LogFormat::Auto };
        LogFormat::named(&text).unwrap_or_else(|| {
            self.bad(
                "telemetry.log_format",
                format!("`{}` is no format", crate::job::shown(&text)),
                "write auto, json, pretty or journal",
            );
            LogFormat::Auto
        })
    }

    fn egress(&mut self) -> EgressConfig {
        let text = self.text("egress.resolver");
        let resolver = text.parse().ok();
        if resolver.is_none() && !text.is_empty() {
            let reason = format!("`{}` is no address and port", crate::job::shown(&text));
            self.bad("egress.resolver", reason, "write an address such as 10.0.0.53:53, or leave it empty");
        }
        let max_rate = self.size("egress.max_rate");
        if (1..LEAST_EGRESS_RATE.as_u64()).contains(&max_rate.as_u64()) {
            let reason = format!(
                "{max_rate} is less than {LEAST_EGRESS_RATE} in a second: no connection comes to anything with that"
            );
            self.bad("egress.max_rate", reason, "write 64KiB or more, or 0B for no bound");
        }
        EgressConfig {
            resolver,
            connect_timeout: self.duration("egress.connect_timeout"),
            idle_timeout: self.duration("egress.idle_timeout"),
            concurrent: self.number("egress.concurrent"),
            connections: self.number("egress.connections"),
            bytes: self.size("egress.bytes"),
            lookups: self.number("egress.lookups"),
            max_rate,
        }
    }

    fn ssh(&mut self) -> SshConfig {
        SshConfig {
            inventory: Some(self.text("ssh.inventory")).filter(|file| !file.is_empty()).map(PathBuf::from),
            connections_per_host: self.number("ssh.connections_per_host"),
            channels_per_connection: self.number("ssh.channels_per_connection"),
            handshakes_per_host: self.number("ssh.handshakes_per_host"),
            connect_timeout: self.duration("ssh.connect_timeout"),
            keepalive: self.duration("ssh.keepalive"),
            idle_close: self.duration("ssh.idle_close"),
            max_age: self.duration("ssh.max_age"),
        }
    }

    fn seccomp(&mut self) -> Seccomp {
        let text = self.text("docker.seccomp");
        Seccomp::named(&text).unwrap_or_else(|| {
            if !text.is_empty() {
                let reason = format!("`{}` is not a profile", crate::job::shown(&text));
                self.bad("docker.seccomp", reason, "write default, offline, strict or tripwire");
            }
            Seccomp::Default
        })
    }

    fn images_section(&mut self) -> ImagesConfig {
        let text = self.text("images.pull");
        let pull = Pull::named(&text).unwrap_or_else(|| {
            let reason = format!("`{}` is no way to get an image", crate::job::shown(&text));
            self.bad("images.pull", reason, "write if_absent, always or never");
            Pull::Never
        });
        ImagesConfig {
            pull,
            pull_timeout: self.duration("images.pull_timeout"),
            auth_file: Some(self.text("images.auth_file")).filter(|file| !file.is_empty()).map(PathBuf::from),
            registries: self.registries("images.registries"),
            free_low: self.size("images.free_low"),
            free_high: self.size("images.free_high"),
            size_max: self.size("images.size_max"),
            keep: self.images("images.keep"),
            remove_others: self.flag("images.remove_others"),
        }
    }

    fn docker(&mut self, env: &BTreeMap<String, String>) -> DockerConfig {
        let mut host = self.text("docker.host");
        if host.is_empty() {
            let usual = || "unix:///var/run/docker.sock".to_owned();
            host = env.get("DOCKER_HOST").filter(|host| !host.is_empty()).cloned().unwrap_or_else(usual);
        }
        if !["unix://", "tcp://", "http://"].iter().any(|scheme| host.starts_with(scheme)) {
            self.bad(
                "docker.host",
                format!("`{}` is not an engine's address", crate::job::shown(&host)),
                "write unix:///path or tcp://host:port",
            );
        }
        let profile = self.text("docker.seccomp_profile");
        DockerConfig {
            host,
            connect_timeout: self.duration("docker.connect_timeout"),
            call_timeout: self.duration("docker.call_timeout"),
            start_timeout: self.duration("docker.start_timeout"),
            reconnect_timeout: self.duration("docker.reconnect_timeout"),
            concurrent_starts: self.number("docker.concurrent_starts"),
            oci_runtime: self.text("docker.oci_runtime"),
            uid_start: self.number("docker.uid_range.start"),
            uid_count: self.number("docker.uid_range.count"),
            tmp_size: self.size("docker.tmp_size"),
            tmp_inodes: self.number("docker.tmp_inodes"),
            workspace_size: self.size("docker.workspace_size"),
            workspace_inodes: self.number("docker.workspace_inodes"),
            nofile: self.number("docker.nofile"),
            enabled: self.flag("docker.enabled"),
            shared: self.flag("docker.shared"),
            pin_cores: self.flag("docker.pin_cores"),
            seccomp: self.seccomp(),
            seccomp_profile: Some(profile).filter(|path| !path.is_empty()).map(PathBuf::from),
        }
    }
}
