//! Where a job runs that runs on another host: which host, and how it is reached.

use super::{Egress, JobSpec, NetworkMode, Pull, Seccomp, Source};
use crate::job::Problems;
use crate::job::fields::{Fields, shown, suggestion, type_name};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::ops::RangeInclusive;

/// What runs a script that names no interpreter on a target: every POSIX host has one there.
pub const TARGET_INTERPRETER: &str = "/bin/sh";

/// Hosts of one job.
pub const MOST_HOSTS: usize = 1000;
/// What the jobs for all hosts may come to together: each has a spec of its own.
const MOST_FANNED_OUT: usize = 64 << 20;
/// Hosts on the way. Each is a login of its own; more is a mistake.
const MOST_JUMPS: usize = 8;
/// The longest name that a host can have.
const MAX_HOST: usize = 253;
const AT_ONCE: RangeInclusive<u64> = 1..=MOST_HOSTS as u64;
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

/// Several hosts. A job for them is a parent: it runs nowhere, and each host has a job of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FanOut {
    /// The hosts, in the order in which their jobs are let go.
    pub hosts: Vec<String>,
    /// So many of the jobs at the same time; all of them without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_once: Option<u32>,
    /// The first job that does not succeed ends the others.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fail_fast: bool,
    /// How each host is reached.
    #[serde(flatten)]
    pub access: Access,
}

impl JobSpec {
    /// The hosts that it is for, if there is a job for each of them.
    pub fn fan_out(&self) -> Option<&FanOut> {
        match &self.source {
            Source::FanOut(fan_out) => Some(fan_out),
            Source::Image(_) | Source::Preset(_) | Source::Target(_) => None,
        }
    }

    /// The host that it runs on, if it is one other than its agent's.
    pub fn host(&self) -> Option<&str> {
        match &self.source {
            Source::Target(target) => Some(&target.host),
            Source::Image(_) | Source::Preset(_) | Source::FanOut(_) => None,
        }
    }

    /// The jobs for its hosts, in their order; none when it is for no list of hosts.
    pub fn parts(&self) -> impl Iterator<Item = Self> + '_ {
        self.fan_out().into_iter().flat_map(|fan_out| {
            fan_out.hosts.iter().map(|host| {
                let target = Target { host: host.clone(), access: fan_out.access.clone() };
                // A key is the parent's.
                Self { source: Source::Target(target), idempotency_key: None, ..self.clone() }
            })
        })
    }
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
    let (one, several) = (fields.take("host"), fields.take("hosts"));
    let at_once = super::check::number(&mut fields, "at_once", "number of jobs", &AT_ONCE, p);
    let fail_fast = match fields.take("fail_fast") {
        None => false,
        Some(Value::Bool(yes)) => *yes,
        Some(other) => {
            p.add("target.fail_fast", format!("is {}", type_name(other)), "write true or false");
            false
        }
    };
    let access = access(&mut fields, p);
    let found = match (one, several) {
        (Some(_), Some(_)) => {
            p.add("target.hosts", "is given together with `host`", "keep one of the two");
            None
        }
        (None, None) => {
            p.add("target.host", "is missing", "say which host: `target: {host: web1}`, or `hosts: [web1, web2]`");
            None
        }
        (None, Some(list)) => hosts("target.hosts", list, 1..=MOST_HOSTS, p).map(|hosts| {
            let at_once = at_once.and_then(|number| u32::try_from(number).ok());
            Source::FanOut(FanOut { hosts, at_once, fail_fast, access })
        }),
        (Some(Value::String(host)), None) if is_host(host) => {
            for key in
                ["at_once", "fail_fast"].into_iter().filter(|key| map.get(*key).is_some_and(|one| !one.is_null()))
            {
                p.add(format!("target.{key}"), "belongs to `hosts`, and this job has one host", "leave it out");
            }
            Some(Source::Target(Target { host: host.clone(), access }))
        }
        (Some(Value::String(host)), None) => {
            p.add("target.host", format!("`{}` is no host", shown(host)), HOST_FIX);
            None
        }
        (Some(other), None) => {
            p.add("target.host", format!("is {}", type_name(other)), "give a string, or a list by `hosts`");
            None
        }
    };
    fields.finish(p);
    found
}

/// Whether the jobs for all hosts together are not too large.
pub(super) fn bounded(spec: JobSpec) -> Result<JobSpec, Problems> {
    let Some(fan_out) = spec.fan_out() else { return Ok(spec) };
    let one = serde_json::to_vec(&spec).map_or(0, |text| text.len()) + spec.secret_bytes();
    let all = one.saturating_mul(fan_out.hosts.len());
    if all <= MOST_FANNED_OUT {
        return Ok(spec);
    }
    let reason = format!("has {} hosts, and their jobs together are {} MiB", fan_out.hosts.len(), all >> 20);
    let fix =
        format!("at most {} MiB are taken: give what is large by `inputs`, or split the hosts", MOST_FANNED_OUT >> 20);
    Err(Problems::one("target.hosts", reason, fix))
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
        Some(one @ Value::String(_)) => hosts("target.jump", &Value::Array(vec![one.clone()]), 0..=MOST_JUMPS, p),
        Some(list) => hosts("target.jump", list, 0..=MOST_JUMPS, p),
        None => None,
    };
    let jump = jump.unwrap_or_default();
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

/// A list of hosts, each once.
fn hosts(path: &str, list: &Value, count: RangeInclusive<usize>, p: &mut Problems) -> Option<Vec<String>> {
    let Value::Array(items) = list else {
        p.add(path, format!("is {}", type_name(list)), "give a list of hosts, the first one first");
        return None;
    };
    if !count.contains(&items.len()) {
        let fix = format!("give {} to {} hosts", count.start(), count.end());
        p.add(path, format!("has {} entries", items.len()), fix);
        return None;
    }
    let (mut hosts, mut seen) = (Vec::with_capacity(items.len()), HashSet::new());
    for (at, item) in items.iter().enumerate() {
        let path = format!("{path}[{at}]");
        match item.as_str() {
            Some(host) if !is_host(host) => p.add(path, format!("`{}` is no host", shown(host)), HOST_FIX),
            Some(host) if !seen.insert(host) => {
                p.add(path, format!("`{host}` is there already"), "name each host once");
            }
            Some(host) => hosts.push(host.to_owned()),
            None => p.add(path, format!("is {}", type_name(item)), "quote it to make it a string"),
        }
    }
    (hosts.len() == items.len()).then_some(hosts)
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
    fn only_limits_that_are_asked_for_bind_a_job_elsewhere() {
        let asks = |resources: &Value| {
            let spec = checked(&json!({"target": {"host": "a"}, "command": ["pwd"], "resources": resources}));
            let spec = spec.expect("valid");
            let document = serde_json::to_value(&spec).expect("serialises");
            assert_eq!(checked(&document), Ok(spec.clone()));
            assert_eq!(document["resources"], *resources);
            spec.limits().into_keys().filter(|path| path.starts_with("resources.")).collect::<Vec<_>>()
        };
        assert!(asks(&json!({})).is_empty());
        let all = json!({"cpu": "0.5", "memory": "64MiB", "pids": 20});
        assert_eq!(asks(&all), ["resources.cpu", "resources.memory", "resources.pids"]);
        assert_eq!(asks(&json!({"memory": "1GiB", "nofile": 64})), ["resources.memory", "resources.nofile"]);
        let cell = checked(&json!({"preset": "bash", "script": "x"})).expect("valid");
        assert!(cell.limits().contains_key("resources.pids"));
    }

    #[test]
    fn a_list_of_hosts_is_a_job_for_each() {
        let target = json!({"hosts": ["web1", "web2"], "at_once": 1, "fail_fast": true, "login": "deploy"});
        let document =
            json!({"target": target, "script": "uname", "idempotency_key": "once", "labels": {"team": "blue"}});
        let spec = checked(&document).expect("valid");
        let written = serde_json::to_value(&spec).expect("serialises");
        assert_eq!((&written["target"], checked(&written)), (&target, Ok(spec.clone())));
        let parts: Vec<JobSpec> = spec.parts().collect();
        assert_eq!(parts.iter().map(JobSpec::host).collect::<Vec<_>>(), [Some("web1"), Some("web2")]);
        for part in &parts {
            assert_eq!((part.idempotency_key(), part.fan_out(), part.labels()), (None, None, spec.labels()));
            let written = serde_json::to_value(part).expect("serialises");
            assert_eq!(written["target"], json!({"host": part.host(), "login": "deploy"}));
            assert_eq!(checked(&written).as_ref(), Ok(part));
        }
        assert_eq!(parts[0].parts().count(), 0);
    }

    #[test]
    fn jobs_for_all_hosts_together_are_bounded() {
        let hosts: Vec<String> = (0..1001).map(|n| format!("web{n}")).collect();
        let all = |hosts: &[String], script: usize| {
            checked(&json!({"target": {"hosts": hosts}, "script": "x".repeat(script)})).map(drop)
        };
        assert_eq!(all(&hosts[..1000], 10), Ok(()));
        assert!(all(&hosts, 10).is_err_and(|told| told.contains("target.hosts: has 1001 entries")));
        assert_eq!(all(&hosts[..100], 500_000), Ok(()));
        assert!(all(&hosts[..1000], 500_000).is_err_and(|told| told.contains("give what is large by `inputs`")));
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
            (json!({"host": "a", "hosts": ["b"]}), "target.hosts: is given together with `host`"),
            (json!({"hosts": []}), "target.hosts: has 0 entries"),
            (json!({"hosts": "a"}), "target.hosts: is a string"),
            (json!({"hosts": ["a", "b", "a"]}), "target.hosts[2]: `a` is there already"),
            (json!({"hosts": ["a"], "at_once": 0}), "target.at_once"),
            (json!({"hosts": ["a"], "fail_fast": 1}), "target.fail_fast: is a number"),
            (json!({"host": "a", "at_once": 1}), "target.at_once: belongs to `hosts`"),
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
        let fine = fine.expect("it asks for nothing");
        let written = serde_json::to_value(&fine).expect("JSON");
        assert!(written.get("network").is_none(), "it has the host's own: {written}");
        for other in ["image", "preset"] {
            let told = checked(&json!({"target": {"host": "a"}, other: "bash", "command": ["x"]})).expect_err("two");
            assert!(told.contains("target: is given together with"), "{told}");
        }
    }
}
