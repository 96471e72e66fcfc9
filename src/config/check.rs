//! From the merged document to settings that hold, or to everything that is wrong.

use crate::job::{BadUnit, ByteSize, Cpus, Millis, Problems};
use crate::telemetry::LogFormat;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;

/// All settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Everything that outlives the process.
    pub data_dir: PathBuf,
    /// The HTTP API.
    pub server: ServerConfig,
    /// The embedded queue.
    pub queue: QueueConfig,
    /// The agent.
    pub agent: AgentConfig,
    /// Where `jobcell agent` gets its jobs from, by name.
    pub backends: BTreeMap<String, BackendConfig>,
    /// Cells on a Docker engine.
    pub docker: DockerConfig,
    /// Bytes of a log after which it is synced to disk.
    pub logs_sync_every: ByteSize,
    /// Language environments.
    pub presets: BTreeMap<String, PresetConfig>,
    /// Log lines.
    pub telemetry: TelemetryConfig,
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
    /// For requests that are being answered when the server stops.
    pub shutdown_grace: Millis,
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
    /// Jobs in one claim.
    pub claim_batch: u32,
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
    /// For running jobs when the agent stops.
    pub drain_timeout: Millis,
    /// Between TERM and KILL.
    pub grace: Millis,
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
    /// Other agents may use this engine too.
    pub shared: bool,
    /// A file with another profile than the built-in one.
    pub seccomp_profile: Option<PathBuf>,
}

/// A jobcell server that an agent claims from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendConfig {
    /// Its address.
    pub url: String,
    /// The file with the agent's key; without one, the key is in JOBCELL_AGENT_KEY.
    pub key_file: Option<PathBuf>,
    /// Most calls in a second.
    pub rate: NonZeroU32,
}

/// A language environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresetConfig {
    /// The image.
    pub image: String,
    /// What runs a script that names no interpreter.
    pub interpreter: Vec<String>,
}

/// Log lines.
#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    /// How they look.
    pub log_format: LogFormat,
    /// Which there are.
    pub log_filter: String,
}

/// Calls to a backend in a second, unless its settings say another number: a job needs about five.
const RATE: u32 = 100;

/// Reads one key after another and notes what is wrong.
struct Reader<'a> {
    merged: &'a Value,
    origin: &'a dyn Fn(&str) -> Option<String>,
    problems: Problems,
}

pub(super) fn check(
    merged: &Value,
    defaults: &Value,
    env: &BTreeMap<String, String>,
    origin: &dyn Fn(&str) -> Option<String>,
    problems: Problems,
) -> Result<Config, Problems> {
    let mut r = Reader { merged, origin, problems };
    r.unknown("", merged, defaults);
    let hours = |hours: u64| Millis::from_secs(hours * 3600);
    let second = Millis::from_secs(1);
    let config = Config {
        data_dir: PathBuf::from(r.text("data_dir")),
        server: ServerConfig {
            listen: r.listen("server.listen", "127.0.0.1:7807"),
            max_body: r.within("server.max_body", "1MiB", ByteSize::new(4096), ByteSize::from_mib(64)),
            wait_max: r.within("server.wait_max", "60s", second, hours(1)),
            viewers_max: r.number("server.viewers_max", 1, 100_000),
            shutdown_grace: r.within("server.shutdown_grace", "10s", Millis::new(0), hours(1)),
        },
        queue: QueueConfig {
            max_queued: r.number("queue.max_queued", 1, 100_000_000),
            lease: r.within("queue.lease", "60s", second, hours(24)),
            max_attempts: r.number("queue.max_attempts", 1, 100),
            claim_batch: r.number("queue.claim_batch", 1, 1024),
        },
        agent: AgentConfig {
            name: r.name("agent.name"),
            listen: r.listen("agent.listen", "127.0.0.1:7808"),
            labels: r.labels("agent.labels"),
            slots: r.number("agent.slots", 1, 10_000),
            cpu: r.within("agent.cpu", "4", Cpus::from_milli(10), Cpus::from_milli(1_024_000)),
            memory: r.within("agent.memory", "8GiB", ByteSize::from_mib(16), ByteSize::from_mib(1 << 26)),
            drain_timeout: r.within("agent.drain_timeout", "30s", Millis::new(0), hours(24 * 7)),
            grace: r.within("agent.grace", "10s", Millis::new(0), hours(1)),
        },
        backends: r.backends(),
        docker: r.docker(env),
        logs_sync_every: r.within("logs.sync_every", "64MiB", ByteSize::from_mib(1), ByteSize::from_mib(4096)),
        presets: r.presets(),
        telemetry: TelemetryConfig { log_format: r.log_format(), log_filter: r.text("telemetry.log_filter") },
    };
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
    fn bad(&mut self, path: &str, reason: impl Into<String>, fix: impl Into<String>) {
        let from = (self.origin)(path).map(|origin| format!(" (from {origin})")).unwrap_or_default();
        self.problems.add(path, format!("{}{from}", reason.into()), fix);
    }

    fn get(&self, path: &str) -> &Value {
        path.split('.').fold(self.merged, |at, key| at.get(key).unwrap_or(&Value::Null))
    }

    /// Every key that the built-in layer does not have, with the nearest one that it has.
    fn unknown(&mut self, prefix: &str, merged: &Value, known: &Value) {
        // Presets, backends and labels are named by the operator; what is in one is checked with it.
        let (Value::Object(merged), Value::Object(known)) = (merged, known) else { return };
        if matches!(prefix, "presets" | "backends" | "agent.labels") {
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

    fn text(&mut self, path: &str) -> String {
        match self.get(path) {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => {
                self.bad(path, "is not a text", "give a text");
                String::new()
            }
        }
    }

    fn name(&mut self, path: &str) -> String {
        let text = self.text(path);
        if text.is_empty() || text.len() > 128 || text.chars().any(char::is_control) {
            self.bad(path, "is empty, too long or not printable", "write a name of 1 to 128 characters");
        }
        text
    }

    fn parsed<T: FromStr<Err = BadUnit>>(&mut self, path: &str, example: &str) -> Option<T> {
        let text = self.text(path);
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
        least: T,
        most: T,
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

    fn number<T: TryFrom<u64>>(&mut self, path: &str, least: u64, most: u64) -> T {
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

    fn flag(&mut self, path: &str) -> bool {
        match self.get(path) {
            Value::Bool(flag) => *flag,
            Value::String(text) if matches!(text.as_str(), "true" | "false") => text == "true",
            _ => {
                self.bad(path, "is neither true nor false", "write true or false");
                false
            }
        }
    }

    fn listen(&mut self, path: &str, example: &str) -> SocketAddr {
        let text = self.text(path);
        text.parse().unwrap_or_else(|_| {
            let reason = format!("`{}` is not an address", crate::job::shown(&text));
            self.bad(path, reason, format!("write an address such as {example}"));
            SocketAddr::from(([127, 0, 0, 1], 0))
        })
    }

    fn log_format(&mut self) -> LogFormat {
        let text = self.text("telemetry.log_format");
        LogFormat::named(&text).unwrap_or_else(|| {
            self.bad(
                "telemetry.log_format",
                format!("`{}` is no format", crate::job::shown(&text)),
                "write auto, json or pretty",
            );
            LogFormat::Auto
        })
    }

    fn docker(&mut self, env: &BTreeMap<String, String>) -> DockerConfig {
        let (second, hour) = (Millis::from_secs(1), Millis::from_secs(3600));
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
        let uid_start: u32 = self.number("docker.uid_range.start", 1000, 4_000_000_000);
        let uid_count: u32 = self.number("docker.uid_range.count", 1, 1_000_000);
        DockerConfig {
            host,
            connect_timeout: self.within("docker.connect_timeout", "5s", Millis::new(100), hour),
            call_timeout: self.within("docker.call_timeout", "30s", second, hour),
            start_timeout: self.within("docker.start_timeout", "60s", second, hour),
            reconnect_timeout: self.within("docker.reconnect_timeout", "30s", second, hour),
            concurrent_starts: self.number("docker.concurrent_starts", 1, 1024),
            oci_runtime: self.text("docker.oci_runtime"),
            uid_start,
            uid_count,
            tmp_size: self.within("docker.tmp_size", "64MiB", ByteSize::from_mib(1), ByteSize::from_mib(1 << 20)),
            tmp_inodes: self.number("docker.tmp_inodes", 16, 1 << 32),
            workspace_size: self.within(
                "docker.workspace_size",
                "256MiB",
                ByteSize::from_mib(1),
                ByteSize::from_mib(1 << 20),
            ),
            workspace_inodes: self.number("docker.workspace_inodes", 16, 1 << 32),
            nofile: self.number("docker.nofile", 16, 1 << 20),
            shared: self.flag("docker.shared"),
            seccomp_profile: Some(profile).filter(|path| !path.is_empty()).map(PathBuf::from),
        }
    }

    fn labels(&mut self, path: &str) -> BTreeMap<String, String> {
        let Value::Object(labels) = self.get(path).clone() else {
            self.bad(path, "is not a map", "write a map of names to values");
            return BTreeMap::new();
        };
        let mut problems = Problems::default();
        let labels = crate::job::check_labels(path, &labels, &mut problems);
        for problem in problems.iter() {
            self.bad(&problem.path, problem.reason.clone(), problem.fix.clone());
        }
        labels
    }

    fn backends(&mut self) -> BTreeMap<String, BackendConfig> {
        let Value::Object(backends) = self.get("backends").clone() else {
            self.bad("backends", "is not a map", "write a map of names to backends");
            return BTreeMap::new();
        };
        let known = serde_json::json!({"url": null, "key_file": null, "rate": null});
        let mut all = BTreeMap::new();
        for (name, backend) in &backends {
            let path = format!("backends.{name}");
            self.unknown(&path, backend, &known);
            let text = |key: &str| backend.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let url = text("url").trim_end_matches('/').to_owned();
            let host = url.strip_prefix("http://").map(|rest| rest.split('/').next().unwrap_or_default());
            if url.starts_with("https://") {
                self.bad(
                    &format!("{path}.url"),
                    "asks for TLS, which agents do not speak yet",
                    "write http:// and use a tunnel",
                );
            } else if host.is_none_or(|host| host.is_empty() || host.contains('@')) {
                let reason = format!("`{}` is not a server's address", crate::job::shown(&url));
                self.bad(&format!("{path}.url"), reason, "write http://host:port");
            }
            let rate =
                if backend.get("rate").is_some() { self.number(&format!("{path}.rate"), 1, 100_000) } else { RATE };
            let key_file = Some(text("key_file")).filter(|file| !file.is_empty()).map(PathBuf::from);
            all.insert(
                name.clone(),
                BackendConfig { url, key_file, rate: NonZeroU32::new(rate).unwrap_or(NonZeroU32::MIN) },
            );
        }
        all
    }

    fn presets(&mut self) -> BTreeMap<String, PresetConfig> {
        let Value::Object(presets) = self.get("presets") else {
            self.bad("presets", "is not a map", "write a map of names to presets");
            return BTreeMap::new();
        };
        let presets: Map<String, Value> = presets.clone();
        let mut all = BTreeMap::new();
        for (name, preset) in &presets {
            let path = format!("presets.{name}");
            let known =
                Value::Object(Map::from_iter([("image".into(), Value::Null), ("interpreter".into(), Value::Null)]));
            self.unknown(&path, preset, &known);
            let image = preset.get("image").and_then(Value::as_str).map(str::to_owned);
            let list = preset.get("interpreter").and_then(Value::as_array);
            let interpreter: Option<Vec<String>> =
                list.and_then(|list| list.iter().map(|part| part.as_str().map(str::to_owned)).collect());
            match (image, interpreter.filter(|parts| !parts.is_empty())) {
                (Some(image), Some(interpreter)) => {
                    all.insert(name.clone(), PresetConfig { image, interpreter });
                }
                _ => {
                    self.bad(&path, "lacks an image or an interpreter", "give `image: …` and `interpreter: [program]`")
                }
            }
        }
        all
    }
}
