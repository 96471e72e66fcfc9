//! From a document to a [`Policy`], or to everything that is wrong with it.

use super::pattern::{Argv, Glob, ImagePattern};
use super::target::{HostPattern, Reachable};
use super::{Allowances, Allowed, Maximum, NO_RULE, Over, Policy, Rule, Runs, Then, When};
use crate::job::egress::EgressRule;
use crate::job::{Fields, LIMITS, Limit, NetworkMode, Problems, Pull, shown, suggestion, type_name};
use serde_json::{Map, Value};

/// The version of the document.
const VERSION: u64 = 1;
/// A job is compared with each of them.
const MOST_RULES: usize = 256;
/// Entries of one list.
const MOST_ENTRIES: usize = 1024;
/// Bytes of a sentence for users.
const MOST_SENTENCE: usize = 500;

impl Policy {
    /// Reads YAML. Errors: every problem, with its path.
    pub fn read(text: &str) -> Result<Self, Problems> {
        let document: Value = serde_saphyr::from_str(text).map_err(|error| {
            let said = error.to_string();
            let line = said.lines().next().unwrap_or_default();
            let reason = format!("is not valid YAML: {}", shown(line.strip_prefix("error: ").unwrap_or(line)));
            Problems::one("", reason, "correct the syntax")
        })?;
        let Value::Object(map) = &document else {
            let fix = "write a map with `version: 1`, `allow` and `rules`";
            return Err(Problems::one("", format!("is {}", type_name(&document)), fix));
        };
        let mut p = Problems::default();
        let mut fields = Fields::new("", map);
        match fields.take("version").map(Value::as_u64) {
            Some(Some(VERSION)) => {}
            Some(_) => p.add("version", "is not one that is known", "write `version: 1`"),
            None => p.add("version", "is missing", "write `version: 1`"),
        }
        let allow = match fields.map("allow", &mut p) {
            Some(map) => allowances("allow", map, &Allowances::default(), &mut p),
            None => Allowances::default(),
        };
        let list = list(&mut fields, "rules", MOST_RULES, &mut p);
        fields.finish(&mut p);
        let mut rules: Vec<Rule> = Vec::new();
        for (at, value) in list.into_iter().flatten().enumerate() {
            let Some(rule) = rule(&format!("rules[{at}]"), value, &allow, &mut p) else { continue };
            if rule.name == NO_RULE || rules.iter().any(|other| other.name == rule.name) {
                let reason = format!("`{}` is the name of another one", shown(&rule.name));
                p.add(
                    format!("rules[{at}].name"),
                    reason,
                    "give each rule a name of its own; `default` is what holds without one",
                );
            }
            rules.push(rule);
        }
        p.or_value(Self { allow, rules })
    }
}

/// A list. One that is too long is told of and not read.
fn list<'a>(fields: &mut Fields<'a>, key: &'static str, most: usize, p: &mut Problems) -> Option<&'a Vec<Value>> {
    let path = fields.path(key);
    match fields.take(key)? {
        Value::Array(items) if items.len() > most => {
            p.add(path, format!("has {} entries; at most {most} are taken", items.len()), "use patterns");
            None
        }
        Value::Array(items) => Some(items),
        other => {
            p.add(path, format!("is {}", type_name(other)), "give a list");
            None
        }
    }
}

/// Texts of a list, each made into something.
fn texts<T>(path: &str, items: &[Value], p: &mut Problems, make: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
    let mut all = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let path = format!("{path}[{at}]");
        match item {
            Value::String(text) => match make(text) {
                Ok(one) => all.push(one),
                Err(reason) => p.add(path, format!("`{}` {reason}", shown(text)), "correct it"),
            },
            other => p.add(path, format!("is {}", type_name(other)), "quote it to make it a string"),
        }
    }
    all
}

fn listed<T>(
    fields: &mut Fields<'_>,
    key: &'static str,
    p: &mut Problems,
    make: impl Fn(&str) -> Result<T, String>,
) -> Option<Vec<T>> {
    let path = fields.path(key);
    list(fields, key, MOST_ENTRIES, p).map(|items| texts(&path, items, p, make))
}

fn glob(text: &str) -> Result<Glob, String> {
    Glob::new(text).map_err(str::to_owned)
}

fn rule(path: &str, value: &Value, base: &Allowances, p: &mut Problems) -> Option<Rule> {
    let Value::Object(map) = value else {
        p.add(path, format!("is {}", type_name(value)), "write a map with `name`, `when`, and `allow` or `refuse`");
        return None;
    };
    let mut fields = Fields::new(path, map);
    let name = fields.text("name", p).unwrap_or_default().to_owned();
    if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
        p.add(
            fields.path("name"),
            "is missing, empty, too long or not printable",
            "write a name of 1 to 64 characters",
        );
    }
    let when_path = fields.path("when");
    let known = p.iter().count();
    let when = fields.map("when", p).map(|map| when(&when_path, map, p)).unwrap_or_default();
    if when == When::default() && p.iter().count() == known {
        let fix = "name `labels`, `backends`, `keys` or `hosts`; what is for every job belongs to `allow` at the top";
        p.add(when_path, "is missing or empty", fix);
    }
    let allow_path = fields.path("allow");
    let allow = fields.map("allow", p).map(|map| allowances(&allow_path, map, base, p));
    let refuse = fields.text("refuse", p).map(str::to_owned);
    if refuse
        .as_ref()
        .is_some_and(|said| said.trim().is_empty() || said.len() > MOST_SENTENCE || said.chars().any(char::is_control))
    {
        let reason = format!("is empty, longer than {MOST_SENTENCE} bytes or not printable");
        p.add(fields.path("refuse"), reason, "write a sentence for the user");
    }
    let then = match (allow, refuse) {
        (Some(allow), None) => Some(Then::Allow(Box::new(allow))),
        (None, Some(sentence)) => Some(Then::Refuse(sentence)),
        (Some(_), Some(_)) => {
            p.add(fields.path("refuse"), "is given together with `allow`", "keep one of the two");
            None
        }
        (None, None) => {
            p.add(
                path,
                "says neither what is allowed nor that it is refused",
                "add `allow: {…}` or `refuse: sentence`",
            );
            None
        }
    };
    fields.finish(p);
    then.map(|then| Rule { name, when, then })
}

fn when(path: &str, map: &Map<String, Value>, p: &mut Problems) -> When {
    let mut fields = Fields::new(path, map);
    let mut when = When::default();
    let labels_path = fields.path("labels");
    for (name, value) in fields.map("labels", p).into_iter().flatten() {
        let path = format!("{labels_path}.{}", shown(name));
        let one = std::slice::from_ref(value);
        let globs = match value {
            Value::Array(items) if items.is_empty() || items.len() > MOST_ENTRIES => {
                p.add(path, "has no entry, or too many", "give a pattern or a list of patterns; `*` is any value");
                continue;
            }
            Value::Array(items) => texts(&path, items, p, glob),
            Value::String(_) => texts(&path, one, p, glob),
            other => {
                p.add(path, format!("is {}", type_name(other)), "quote it to make it a string");
                continue;
            }
        };
        when.labels.insert(name.clone(), globs);
    }
    when.backends = listed(&mut fields, "backends", p, glob).unwrap_or_default();
    when.keys = listed(&mut fields, "keys", p, glob).unwrap_or_default();
    when.hosts = listed(&mut fields, "hosts", p, HostPattern::new).unwrap_or_default();
    fields.finish(p);
    when
}

/// What a map allows, on top of `base`.
fn allowances(path: &str, map: &Map<String, Value>, base: &Allowances, p: &mut Problems) -> Allowances {
    let mut fields = Fields::new(path, map);
    let mut allow = base.clone();
    let image = |text: &str| ImagePattern::new(text).map_err(str::to_owned);
    if let Some(images) = listed(&mut fields, "images", p, image) {
        allow.images = Some(images);
    }
    match fields.take("image_digest") {
        None => {}
        Some(Value::String(text)) if text == "required" => allow.digest_required = true,
        Some(Value::String(text)) if text == "optional" => allow.digest_required = false,
        Some(_) => p.add(fields.path("image_digest"), "is no word that is known", "write required or optional"),
    }
    let pull = |text: &str| {
        Pull::named(text).ok_or_else(|| format!("is no way to get an image; there are {}", Pull::NAMES.join(", ")))
    };
    if let Some(pulls) = listed(&mut fields, "pulls", p, pull) {
        allow.pulls = Some(pulls);
    }
    if let Some(presets) = listed(&mut fields, "presets", p, glob) {
        allow.presets = Some(presets);
    }
    let targets_path = fields.path("targets");
    if let Some(items) = list(&mut fields, "targets", MOST_ENTRIES, p) {
        let read = |(at, item)| reachable(&format!("{targets_path}[{at}]"), item, p);
        allow.targets = Some(items.iter().enumerate().filter_map(read).collect());
    }
    let runtime = |text: &str| if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) };
    if let Some(runtimes) = listed(&mut fields, "oci_runtimes", p, runtime) {
        allow.oci_runtimes = Some(runtimes);
    }
    let network = |text: &str| {
        let known = NetworkMode::ALL.into_iter().find(|mode| mode.name() == text);
        known.ok_or_else(|| "is no network; there are none and bridge".to_owned())
    };
    if let Some(networks) = listed(&mut fields, "networks", p, network) {
        allow.networks = Some(networks);
    }
    if let Some(egress) = listed(&mut fields, "egress", p, EgressRule::read) {
        allow.egress = Some(egress);
    }
    let uids_path = fields.path("uids");
    if let Some(map) = fields.map("uids", p) {
        allow.uids = uids(&uids_path, map, p);
    }
    let programs_path = fields.path("programs");
    if let Some(items) = list(&mut fields, "programs", MOST_ENTRIES, p) {
        let read = |(at, item)| program(&format!("{programs_path}[{at}]"), item, p);
        allow.programs = Some(items.iter().enumerate().filter_map(read).collect());
    }
    if let Some(env) = listed(&mut fields, "env", p, glob) {
        allow.env = Some(env);
    }
    if let Some(secrets) = listed(&mut fields, "secrets", p, glob) {
        allow.secrets = Some(secrets);
    }
    let limits_path = fields.path("limits");
    for (key, value) in fields.map("limits", p).into_iter().flatten() {
        let path = format!("{limits_path}.{}", shown(key));
        match Limit::at(key) {
            Some(limit) => {
                if let Some(maximum) = maximum(&path, limit, value, p) {
                    allow.limits.insert(limit.path, maximum);
                }
            }
            None => {
                let known: Vec<&str> = LIMITS.iter().map(|limit| limit.path).collect();
                p.add(path, "unknown limit", suggestion(key, &known));
            }
        }
    }
    fields.finish(p);
    allow
}

fn uids(path: &str, map: &Map<String, Value>, p: &mut Problems) -> Option<(u32, u32)> {
    let mut fields = Fields::new(path, map);
    let mut number = |key| fields.take(key).and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
    let range = number("first").zip(number("last")).filter(|(first, last)| 0 < *first && first <= last);
    if range.is_none() {
        p.add(path, "is no range of user ids", "write {first: 200000, last: 209999}");
    }
    fields.finish(p);
    range
}

fn program(path: &str, value: &Value, p: &mut Problems) -> Option<Allowed> {
    let Value::Object(map) = value else {
        p.add(path, format!("is {}", type_name(value)), "write `command: [program, \"*\"]` or `script_sha256: …`");
        return None;
    };
    let mut fields = Fields::new(path, map);
    let own = |text: &str| Ok(text.to_owned());
    let command = listed(&mut fields, "command", p, own);
    let sha256 = fields.text("script_sha256", p).map(str::to_owned);
    let interpreter = listed(&mut fields, "interpreter", p, own);
    let mut yes = |name| yes(&mut fields, name, p);
    let (stdin, inputs, workdir) = (yes("stdin"), yes("inputs"), yes("workdir"));
    let at = |key| fields.path(key);
    let what = match (command, sha256) {
        (Some(_), None) if interpreter.is_some() => {
            p.add(at("interpreter"), "belongs to `script_sha256`", "put it first in `command`");
            None
        }
        (Some(command), None) => match Argv::new(command) {
            Ok(argv) => Some(Runs::Command(argv)),
            Err(reason) => {
                p.add(at("command"), reason, "name a program, and patterns for its arguments");
                None
            }
        },
        (None, Some(sha256))
            if sha256.len() == 64 && sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) =>
        {
            Some(Runs::Script { sha256, interpreter })
        }
        (None, Some(_)) => {
            p.add(
                at("script_sha256"),
                "is not 64 lowercase hex characters",
                "write what `sha256sum` prints for the script",
            );
            None
        }
        _ => {
            p.add(path, "has to have one of `command` and `script_sha256`", "write one of the two");
            None
        }
    };
    fields.finish(p);
    what.map(|what| Allowed { what, stdin, inputs, workdir })
}

/// Hosts, and how they may be reached.
fn reachable(path: &str, value: &Value, p: &mut Problems) -> Option<Reachable> {
    let Value::Object(map) = value else {
        p.add(path, format!("is {}", type_name(value)), "write a map such as {hosts: [\"web*\"], logins: [deploy]}");
        return None;
    };
    let mut fields = Fields::new(path, map);
    let hosts = listed(&mut fields, "hosts", p, HostPattern::new);
    if hosts.is_none() && !map.contains_key("hosts") {
        p.add(
            fields.path("hosts"),
            "is missing",
            "name hosts of the inventory, patterns (`*`), or addresses (10.1.0.0/16)",
        );
    }
    let ports_path = fields.path("ports");
    let port = |(at, value): (usize, &Value), p: &mut Problems| {
        let port = value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
        if port.is_none() {
            p.add(format!("{ports_path}[{at}]"), "is no port", "write a whole number from 1 to 65535");
        }
        port
    };
    let ports = list(&mut fields, "ports", MOST_ENTRIES, p)
        .map(|items| items.iter().enumerate().filter_map(|item| port(item, p)).collect());
    let reachable = Reachable {
        hosts,
        ports,
        logins: listed(&mut fields, "logins", p, glob),
        credentials: listed(&mut fields, "credentials", p, glob),
        jumps: listed(&mut fields, "jumps", p, HostPattern::new),
        passwords: yes(&mut fields, "passwords", p),
    };
    fields.finish(p);
    Some(reachable)
}

/// `true` or `false`; false without a word.
fn yes(fields: &mut Fields<'_>, key: &'static str, p: &mut Problems) -> bool {
    match fields.take(key) {
        None => false,
        Some(Value::Bool(yes)) => *yes,
        Some(other) => {
            p.add(fields.path(key), format!("is {}", type_name(other)), "write true, or leave it out");
            false
        }
    }
}

/// `2`, or `{max: 2, over: clamp}`.
fn maximum(path: &str, limit: &Limit, value: &Value, p: &mut Problems) -> Option<Maximum> {
    let (max, over) = match value {
        Value::Object(map) => {
            let mut fields = Fields::new(path, map);
            let over = match fields.text("over", p) {
                None | Some("refuse") => Over::Refuse,
                Some("clamp") => Over::Clamp,
                Some(other) => {
                    let reason = format!("`{}` is nothing that can be done", shown(other));
                    p.add(fields.path("over"), reason, "write clamp or refuse");
                    return None;
                }
            };
            let max = fields.take("max").cloned();
            fields.finish(p);
            let Some(max) = max else {
                p.add(format!("{path}.max"), "is missing", "write {max: …, over: clamp}");
                return None;
            };
            (max, over)
        }
        other => (other.clone(), Over::Refuse),
    };
    let text = match &max {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        other => {
            p.add(path, format!("is {}", type_name(other)), "write a value, or {max: value, over: clamp}");
            return None;
        }
    };
    match limit.read(&text) {
        Ok(most) => Some(Maximum { most, over }),
        Err(error) => {
            p.add(
                path,
                format!("`{}` is no maximum of it: {error}", shown(&text)),
                "write a value that a job can have",
            );
            None
        }
    }
}
