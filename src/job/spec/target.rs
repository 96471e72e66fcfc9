//! Where a job runs that runs on another host: which host, and how it is reached.

use super::{Egress, NetworkMode, Pull, Seccomp, Source};
use crate::job::Problems;
use crate::job::fields::{Fields, shown, suggestion, type_name};
use serde::Serialize;
use serde_json::{Map, Value};

/// What runs a script that names no interpreter on a target: every POSIX host has one there.
pub const TARGET_INTERPRETER: &str = "/bin/sh";

/// Hosts on the way. Each is a login of its own; more is a mistake.
const MOST_JUMPS: usize = 8;
/// The longest name that a host can have.
const MAX_HOST: usize = 253;
const MAX_LOGIN: usize = 64;
const MAX_CREDENTIAL: usize = 64;

/// How a job is looked after on a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetMode {
    /// The best that the host can have.
    #[default]
    Auto,
    /// A channel for each job, with nothing of ours that stays on the host.
    Plain,
}

impl TargetMode {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Auto, Self::Plain];
    /// Their names.
    pub const NAMES: [&str; 2] = ["auto", "plain"];

    /// The stable lowercase name.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The mode of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How a host is reached. What is absent is the inventory's to say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Access {
    /// The port of its SSH server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// As whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
    /// With what, by its name in the agent's inventory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// Hosts on the way there, the first one first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub jump: Vec<String>,
    /// How the job is looked after there.
    #[serde(skip_serializing_if = "TargetMode::is_default")]
    pub mode: TargetMode,
}

/// The host that a job runs on, over SSH.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Its name in the agent's inventory; or its own name or address, where the agent takes those.
    pub host: String,
    /// How it is reached.
    #[serde(flatten)]
    pub access: Access,
}

impl std::fmt::Display for Target {
    /// `deploy@web1:2222`, as far as it is said.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(login) = &self.access.login {
            write!(f, "{login}@")?;
        }
        match self.access.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

/// Whether this can be a host's name or address. It never looks like an option, and has nothing that a shell reads.
fn is_host(text: &str) -> bool {
    let grammar = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let name = !text.is_empty()
        && text.len() <= MAX_HOST
        && text.bytes().all(grammar)
        && !text.starts_with(['-', '.'])
        && !text.ends_with('-');
    name || text.parse::<std::net::Ipv6Addr>().is_ok()
}

fn is_login(text: &str) -> bool {
    let grammar = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'@' | b'+' | b'$' | b'\\');
    !text.is_empty() && text.len() <= MAX_LOGIN && text.bytes().all(grammar) && !text.starts_with('-')
}

fn is_credential(text: &str) -> bool {
    let grammar = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !text.is_empty() && text.len() <= MAX_CREDENTIAL && text.bytes().all(grammar) && !text.starts_with('-')
}

const HOST_FIX: &str =
    "write a name of the agent's inventory, a host's name or an address; the port has a field of its own";

/// Reads `target`.
pub(super) fn check(map: &Map<String, Value>, p: &mut Problems) -> Option<Source> {
    let mut fields = Fields::new("target", map);
    let host = fields.text("host", p);
    let access = access(&mut fields, p);
    let found = match host {
        Some(host) if is_host(host) => Some(Source::Target(Target { host: host.to_owned(), access })),
        Some(host) => {
            p.add("target.host", format!("`{}` is no host", shown(host)), HOST_FIX);
            None
        }
        None => {
            if !map.contains_key("host") {
                p.add("target.host", "is missing", "say which host: `target: {host: web1}`");
            }
            None
        }
    };
    fields.finish(p);
    found
}

fn access(fields: &mut Fields<'_>, p: &mut Problems) -> Access {
    let port = fields.take("port").and_then(|value| {
        let port = value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
        if port.is_none() {
            let reason = format!("`{}` is no port", shown(&value.to_string()));
            p.add("target.port", reason, "write a whole number from 1 to 65535");
        }
        port
    });
    let login = fields.text("login", p).map(str::to_owned);
    if let Some(login) = login.as_ref().filter(|login| !is_login(login)) {
        p.add(
            "target.login",
            format!("`{}` is no login", shown(login)),
            "write the name of an account, such as deploy",
        );
    }
    let credential = fields.text("credential", p).map(str::to_owned);
    if let Some(name) = credential.as_ref().filter(|name| !is_credential(name)) {
        let fix = "name one of the agent's inventory (`credentials`); a key itself never comes with a job";
        p.add("target.credential", format!("`{}` is no credential's name", shown(name)), fix);
    }
    let jump = match fields.take("jump") {
        None => Vec::new(),
        Some(Value::String(one)) => jumps(&[Value::String(one.clone())], p),
        Some(Value::Array(items)) if items.len() <= MOST_JUMPS => jumps(items, p),
        Some(Value::Array(items)) => {
            p.add("target.jump", format!("has {} entries", items.len()), format!("give at most {MOST_JUMPS} hosts"));
            Vec::new()
        }
        Some(other) => {
            p.add("target.jump", format!("is {}", type_name(other)), "give a list of hosts, the first one first");
            Vec::new()
        }
    };
    let mode = fields.text("mode", p).and_then(|text| {
        let mode = TargetMode::named(text);
        if mode.is_none() {
            let reason = format!("`{}` is no mode", shown(text));
            p.add("target.mode", reason, suggestion(text, &TargetMode::NAMES));
        }
        mode
    });
    Access { port, login, credential, jump, mode: mode.unwrap_or_default() }
}

fn jumps(items: &[Value], p: &mut Problems) -> Vec<String> {
    let mut hosts: Vec<String> = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let path = format!("target.jump[{at}]");
        match item.as_str() {
            Some(host) if !is_host(host) => p.add(path, format!("`{}` is no host", shown(host)), HOST_FIX),
            Some(host) if hosts.iter().any(|other| other == host) => {
                p.add(path, format!("`{host}` is on the way already"), "name each host once");
            }
            Some(host) => hosts.push(host.to_owned()),
            None => p.add(path, format!("is {}", type_name(item)), "quote it to make it a string"),
        }
    }
    hosts
}

/// Whether the rest of the job is something that another host can have: what makes a container does not go there.
pub(super) fn fits(
    source: Option<&Source>,
    (pull, network): (Option<Pull>, NetworkMode),
    egress: &Egress,
    seccomp: Option<Seccomp>,
    p: &mut Problems,
) {
    if !source.is_some_and(Source::is_elsewhere) {
        return;
    }
    let mut not_there = |path: &str, why: &str| {
        p.add(path, format!("is given together with `target`, {why}"), "leave one of the two out");
    };
    if pull.is_some() {
        not_there("pull", "and a host has no image");
    }
    if network != NetworkMode::None {
        not_there("network", "where a job has the host's own network");
    }
    if !egress.is_none() {
        not_there("egress", "where no proxy stands between the job and the network");
    }
    if seccomp.is_some() {
        not_there("seccomp", "where no filter of system calls is put on a job");
    }
}

#[cfg(test)]
mod tests {
    use crate::job::{JobSpec, Source, SpecRules};
    use serde_json::{Value, json};

    fn checked(document: &Value) -> Result<JobSpec, String> {
        JobSpec::check(document, &SpecRules::default()).map_err(|problems| problems.to_string())
    }

    fn on(target: &Value) -> Result<JobSpec, String> {
        checked(&json!({"target": target, "script": "uname"}))
    }

    #[test]
    fn what_was_checked_checks_again_to_the_same() {
        for target in [
            json!({"host": "web1"}),
            json!({"host": "fe80::1", "port": 2222, "login": "deploy", "credential": "ci", "jump": ["b1", "10.0.0.1"], "mode": "plain"}),
        ] {
            let spec = on(&target).expect("valid");
            let document = serde_json::to_value(&spec).expect("serialises");
            assert_eq!(document["target"], target);
            assert_eq!(document.get("workdir"), None, "its own folder, which has no name before there is one");
            assert_eq!(checked(&document), Ok(spec.clone()));
            assert_eq!(serde_json::from_value::<JobSpec>(document).expect("reads back"), spec);
            assert!(spec.takes().is_none());
        }
        let spec = checked(&json!({"target": {"host": "a"}, "command": ["pwd"], "workdir": "/srv"})).expect("valid");
        assert_eq!(spec.workdir(), Some("/srv"));
        let Source::Target(target) =
            on(&json!({"host": "::1", "port": 22, "login": "x"})).expect("valid").source().clone()
        else {
            panic!("a target became something else")
        };
        assert_eq!(target.to_string(), "x@[::1]:22");
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        for (target, wanted) in [
            (json!({}), "target.host: is missing"),
            (json!({"host": 1}), "target.host: is a number"),
            (json!({"host": "-oProxyCommand=x"}), "target.host"),
            (json!({"host": "web1:22"}), "the port has a field of its own"),
            (json!({"host": "a b"}), "target.host"),
            (json!({"host": "$(id)"}), "target.host"),
            (json!({"host": "a", "port": 0}), "target.port"),
            (json!({"host": "a", "port": 70000}), "target.port"),
            (json!({"host": "a", "login": "-l"}), "target.login"),
            (json!({"host": "a", "login": "a;b"}), "target.login"),
            (json!({"host": "a", "credential": "-----BEGIN"}), "a key itself never comes with a job"),
            (json!({"host": "a", "jump": ["b", "b"]}), "target.jump[1]"),
            (json!({"host": "a", "jump": vec!["b"; 9]}), "target.jump: has 9 entries"),
            (json!({"host": "a", "mode": "residant"}), "target.mode"),
            (json!({"host": "a", "user": "b"}), "target.user"),
        ] {
            let told = on(&target).expect_err("is wrong");
            assert!(told.contains(wanted), "{target}: {told}");
        }
    }

    #[test]
    fn what_belongs_to_containers_is_refused_with_a_sentence() {
        for (key, value) in [
            ("pull", json!("always")),
            ("network", json!("bridge")),
            ("egress", json!({"allow": ["x"]})),
            ("seccomp", json!("strict")),
        ] {
            let mut document = json!({"target": {"host": "a"}, "command": ["x"]});
            document[key] = value;
            let told = checked(&document).expect_err("does not go together");
            assert!(told.starts_with(&format!("{key}: is given together with `target`")), "{told}");
        }
        let fine = checked(&json!({"target": {"host": "a"}, "command": ["x"], "network": "none"}));
        assert!(fine.is_ok(), "it asks for nothing: {fine:?}");
        for other in ["image", "preset"] {
            let told = checked(&json!({"target": {"host": "a"}, other: "bash", "command": ["x"]})).expect_err("two");
            assert!(told.contains("target: is given together with"), "{told}");
        }
    }
}
