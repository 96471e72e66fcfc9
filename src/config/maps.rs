//! The maps whose names the operator chooses: presets, backends, labels.

use super::check::Reader;
use crate::job::{ImageName, Problems};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

/// Calls to a backend in a second, unless its settings say another number: a job needs about five.
const RATE: u64 = 100;
/// Jobs of a group at the same time.
const GROUP: std::ops::RangeInclusive<u64> = 1..=1_000_000;
const RATES: std::ops::RangeInclusive<u64> = 1..=100_000;

/// A language environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresetConfig {
    /// The image.
    pub image: String,
    /// What runs a script that names no interpreter.
    pub interpreter: Vec<String>,
}

/// A jobcell server that an agent claims from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendConfig {
    /// Its address.
    pub url: String,
    /// The file with the agent's key; without one, the key is in JOBCELL_AGENT_KEY, or is the agent's own (docs/operations.md).
    pub key_file: Option<PathBuf>,
    /// The file with a join token, for an agent that has no key yet.
    pub token_file: Option<PathBuf>,
    /// The file with the authorities that are believed; without one, the system's.
    pub ca_file: Option<PathBuf>,
    /// Most calls in a second.
    pub rate: NonZeroU32,
}

/// What has a secret that jobs can ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretConfig {
    /// A variable of the agent.
    Env(String),
    /// A file.
    File(PathBuf),
    /// A credential of systemd's.
    Credential(String),
}

impl SecretConfig {
    /// Reads `env:NAME`, `file:/PATH` or `credential:NAME`.
    fn read(text: &str) -> Option<Self> {
        let (kind, what) = text.split_once(':').filter(|(_, what)| !what.is_empty() && !what.contains('\0'))?;
        match kind {
            "env" if !what.contains('=') => Some(Self::Env(what.to_owned())),
            "file" if what.starts_with('/') => Some(Self::File(PathBuf::from(what))),
            "credential" if !what.contains('/') && what != "." && what != ".." => {
                Some(Self::Credential(what.to_owned()))
            }
            _ => None,
        }
    }
}

/// Where a registry's password is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordSource {
    /// In a file.
    File(PathBuf),
    /// In this variable, or in the file that NAME_FILE names.
    Variable(String),
    /// In a credential that systemd gives.
    Credential(String),
}

/// A login at a registry; the password itself is read when it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryLogin {
    /// A user with a password.
    Password {
        /// The user.
        username: String,
        /// Where the password is.
        password: PasswordSource,
    },
    /// `docker-credential-NAME` knows it.
    Helper(String),
}

/// The checks of `jobcell doctor`, whose levels can be set.
pub const CHECKS: [&str; CHECK_COUNT] = [
    "processor",
    "kernel",
    "processor-flaws",
    "dmesg",
    "kernel-pointers",
    "bpf",
    "perf",
    "links",
    "randomised-addresses",
    "core-dumps",
    "open-files",
    "data-directory",
    "data-space",
    "data-files",
    "data-file-system",
    "cores",
    "memory",
    "processes",
    "user-ids",
    "keys",
    "api-door",
    "agent-door",
    "policy",
    "inventory",
    "engine",
    "engine-door",
    "engine-api",
    "engine-space",
    "engine-clock",
    "engine-log",
    "engine-warnings",
    "storage",
    "oci-runtime",
    "runc",
    "limits",
    "control-groups",
    "seccomp",
    "security-module",
    "user-namespaces",
    "live-restore",
    "preset-images",
];
const CHECK_COUNT: usize = 41;

/// What a check of `jobcell doctor` means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckLevel {
    /// It is told, and changes nothing.
    Ignore,
    /// It fails unless it is well, and the agent takes no jobs until it is.
    Enforce,
}

impl Reader<'_> {
    pub(super) fn checks(&mut self, path: &str) -> BTreeMap<String, CheckLevel> {
        let Value::Object(checks) = self.get(path).clone() else { return BTreeMap::new() };
        let mut all = BTreeMap::new();
        for (name, level) in &checks {
            let at = format!("{path}.{name}");
            if !CHECKS.contains(&name.as_str()) {
                self.bad(&at, "is no check", crate::job::suggestion(name, &CHECKS));
                continue;
            }
            match level.as_str() {
                Some("ignore") => drop(all.insert(name.clone(), CheckLevel::Ignore)),
                Some("enforce") => drop(all.insert(name.clone(), CheckLevel::Enforce)),
                _ => self.bad(&at, "is no level", "choose ignore or enforce, or leave it out"),
            }
        }
        all
    }

    pub(super) fn labels(&mut self, path: &str) -> BTreeMap<String, String> {
        let Value::Object(labels) = self.get(path).clone() else { return BTreeMap::new() };
        let mut problems = Problems::default();
        let labels = crate::job::check_labels(path, &labels, &mut problems);
        for problem in problems.iter() {
            self.bad(&problem.path, problem.reason.clone(), problem.fix.clone());
        }
        labels
    }

    pub(super) fn groups(&mut self, path: &str) -> BTreeMap<String, u32> {
        let Value::Object(groups) = self.get(path).clone() else { return BTreeMap::new() };
        let mut all = BTreeMap::new();
        for (label, most) in &groups {
            let number = match most {
                // From the environment.
                Value::String(text) => text.trim().parse().ok(),
                other => other.as_u64(),
            };
            match number.filter(|number| GROUP.contains(number)).and_then(|number| u32::try_from(number).ok()) {
                Some(most) => drop(all.insert(label.clone(), most)),
                None => {
                    let fix = format!("choose between {} and {}", GROUP.start(), GROUP.end());
                    self.bad(&format!("{path}.{label}"), "is not a whole number in range", fix);
                }
            }
        }
        all
    }

    pub(super) fn backends(&mut self) -> BTreeMap<String, BackendConfig> {
        let Value::Object(backends) = self.get("backends").clone() else { return BTreeMap::new() };
        let known = json!({"url": null, "key_file": null, "token_file": null, "ca_file": null, "rate": null});
        let mut all = BTreeMap::new();
        for (name, backend) in &backends {
            let path = format!("backends.{name}");
            if !backend.is_object() {
                self.bad(&path, "is not a map", "give `url: http://host:port`");
                continue;
            }
            self.unknown(&path, backend, &known);
            let text = |key: &str| backend.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let url = text("url").trim_end_matches('/').to_owned();
            let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
            let host = rest.map(|rest| rest.split('/').next().unwrap_or_default());
            if host.is_none_or(|host| host.is_empty() || host.contains('@')) {
                let reason = format!("`{}` is not a server's address", crate::job::shown(&url));
                self.bad(&format!("{path}.url"), reason, "write http://host:port, or https://host:port");
            }
            let rate = match backend.get("rate") {
                None => Some(RATE),
                Some(Value::String(text)) => text.trim().parse().ok(),
                Some(other) => other.as_u64(),
            };
            let rate = rate.filter(|rate| RATES.contains(rate)).and_then(|rate| u32::try_from(rate).ok());
            if rate.is_none() {
                let fix = format!("choose between {} and {}", RATES.start(), RATES.end());
                self.bad(&format!("{path}.rate"), "is not a whole number in range", fix);
            }
            let rate = rate.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
            let file = |key| Some(text(key)).filter(|file| !file.is_empty()).map(PathBuf::from);
            let (key_file, token_file, ca_file) = (file("key_file"), file("token_file"), file("ca_file"));
            if ca_file.is_some() && url.starts_with("http://") {
                self.bad(
                    &format!("{path}.ca_file"),
                    "is for TLS, which is not spoken at http://",
                    "write https://, or leave it out",
                );
            }
            all.insert(name.clone(), BackendConfig { url, key_file, token_file, ca_file, rate });
        }
        all
    }

    pub(super) fn secrets(&mut self) -> BTreeMap<String, SecretConfig> {
        let Value::Object(secrets) = self.get("secrets").clone() else { return BTreeMap::new() };
        let mut all = BTreeMap::new();
        for (name, source) in &secrets {
            let path = format!("secrets.{name}");
            if !crate::job::is_secret_name(name) {
                let fix = "use up to 64 letters, digits and - _ .";
                self.bad(&format!("secrets.{}", crate::job::shown(name)), "is no name that a job can ask for", fix);
                continue;
            }
            match source.as_str().and_then(SecretConfig::read) {
                Some(secret) => drop(all.insert(name.clone(), secret)),
                // It may be a secret in the wrong place, so it is not shown.
                None => self.bad(&path, "does not say where it is", "write env:NAME, file:/PATH or credential:NAME"),
            }
        }
        all
    }

    /// Names of images. From the environment, with commas between them.
    /// Items of a list; from the environment and from flags they come as one text.
    fn texts(&self, path: &str) -> Option<Vec<String>> {
        match self.get(path) {
            Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
            Value::String(text) => {
                Some(text.split(',').map(str::trim).filter(|one| !one.is_empty()).map(str::to_owned).collect())
            }
            _ => None,
        }
    }

    pub(super) fn origins(&mut self, path: &str) -> Vec<String> {
        let Some(texts) = self.texts(path) else {
            self.bad(path, "is not a list of origins", "write [https://host, http://host:port]");
            return Vec::new();
        };
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._:[]".contains(&byte);
        for (at, text) in texts.iter().enumerate() {
            let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
            // A browser sends no port that its scheme means anyway, and no letters that are large.
            let usual = (text.starts_with("https") && text.ends_with(":443"))
                || (text.starts_with("http:") && text.ends_with(":80"));
            if host.is_none_or(|host| host.is_empty() || !host.bytes().all(plain)) || usual {
                let reason = format!("`{}` is no origin as browsers send it", crate::job::shown(text));
                let fix = "write https://host or https://host:port in small letters, without a path, a star or the usual port";
                self.bad(&format!("{path}[{at}]"), reason, fix);
            }
        }
        texts
    }

    pub(super) fn images(&mut self, path: &str) -> Vec<ImageName> {
        let Some(texts) = self.texts(path) else {
            self.bad(path, "is not a list of names", "write [name:tag, name@sha256:…]");
            return Vec::new();
        };
        let mut all = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            match ImageName::parse(text) {
                Some(name) => all.push(name),
                None => {
                    let reason = format!("`{}` is not an image's name", crate::job::shown(text));
                    self.bad(&format!("{path}[{at}]"), reason, "write name:tag or name@sha256:…");
                }
            }
        }
        all
    }

    pub(super) fn registries(&mut self, path: &str) -> BTreeMap<String, RegistryLogin> {
        let Value::Object(registries) = self.get(path).clone() else { return BTreeMap::new() };
        let known = json!({"username": null, "password_file": null, "password_env": null, "password_credential": null, "helper": null});
        let mut all = BTreeMap::new();
        for (host, login) in &registries {
            let at = format!("{path}.{host}");
            // What an image's name has before its first slash.
            let of = ImageName::parse(&format!("{host}/x")).filter(|name| name.registry() == host);
            if of.is_none() {
                let reason = format!("`{}` is not a registry's host", crate::job::shown(host));
                self.bad(&at, reason, "write host or host:port as images name it, without https:// and without a path");
                continue;
            }
            if !login.is_object() {
                self.bad(&at, "is not a map", "give `username` and `password_file`, or `helper`");
                continue;
            }
            self.unknown(&at, login, &known);
            let text = |key: &str| login.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
            let mut passwords = Vec::new();
            passwords.extend(text("password_file").map(|file| PasswordSource::File(file.into())));
            passwords.extend(text("password_env").map(|name| PasswordSource::Variable(name.to_owned())));
            passwords.extend(text("password_credential").map(|name| PasswordSource::Credential(name.to_owned())));
            let plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            let login = match (text("username"), text("helper"), passwords.len()) {
                (None, Some(helper), 0) if plain(helper) => Some(RegistryLogin::Helper(helper.to_owned())),
                (Some(username), None, 1) => passwords
                    .pop()
                    .filter(|source| !matches!(source, PasswordSource::Credential(name) if !plain(name)))
                    .map(|password| RegistryLogin::Password { username: username.to_owned(), password }),
                _ => None,
            };
            match login {
                Some(login) => drop(all.insert(host.clone(), login)),
                None => self.bad(
                    &at,
                    "is no login",
                    "give `username` and one of password_file, password_env and password_credential, or `helper: NAME` alone",
                ),
            }
        }
        all
    }

    pub(super) fn presets(&mut self) -> BTreeMap<String, PresetConfig> {
        let Value::Object(presets) = self.get("presets") else { return BTreeMap::new() };
        let presets: Map<String, Value> = presets.clone();
        let mut all = BTreeMap::new();
        for (name, preset) in &presets {
            let path = format!("presets.{name}");
            let known =
                Value::Object(Map::from_iter([("image".into(), Value::Null), ("interpreter".into(), Value::Null)]));
            if !preset.is_object() {
                self.bad(&path, "is not a map", "give `image: …` and `interpreter: [program]`");
                continue;
            }
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
