//! From a document to a [`JobSpec`], or to the list of everything that is wrong with it.

use super::{
    JobSpec, MAX_SCRIPT_BYTES, MAX_STDIN_BYTES, NetworkMode, Program, Resources, Source, SpecRules, WORKDIR, artifacts,
    egress, image, inputs, pull, requires, retry, seccomp, secrets, stop, target, trace,
};
use crate::job::fields::{Fields, shown, suggestion, type_name};
use crate::job::{ByteSize, Millis, Problems};
use serde_json::{Map, Number, Value};
use std::collections::BTreeMap;

/// All variables together: execve takes about 2 MiB; this leaves room and fits the API's body.
const MAX_ENV_BYTES: usize = 128 * 1024;
/// One argument or one variable: the kernel's MAX_ARG_STRLEN is 128 KiB.
const MAX_ARG_BYTES: usize = 128 * 1024 - 1;
const MAX_ARGS: usize = 1024;
const MAX_LABELS: usize = 64;
const MAX_NAME_CHARS: usize = 128;
const PRIORITIES: std::ops::RangeInclusive<i64> = -100..=100;
/// Shorter, it would be lost by a few slow answers of a backend.
const LOST_AFTERS: std::ops::RangeInclusive<Millis> = Millis::from_secs(10)..=Millis::from_secs(7 * 24 * 3600);
const TIMEOUTS: std::ops::RangeInclusive<Millis> = Millis::new(100)..=Millis::from_secs(7 * 24 * 3600);
const DEFAULT_TIMEOUT: Millis = Millis::from_secs(3600);
/// Below this nothing starts; above it is a typing error on any host.
const MEMORIES: std::ops::RangeInclusive<ByteSize> = ByteSize::from_mib(4)..=ByteSize::from_mib(4 * 1024 * 1024);
const PIDS: std::ops::RangeInclusive<u64> = 1..=1_000_000;
/// Room for the script and a few files; what is above is a typing error on any host, since it is memory.
const DISKS: std::ops::RangeInclusive<ByteSize> = ByteSize::from_mib(1)..=ByteSize::from_mib(1024 * 1024);
/// The kernel keeps each in about a KiB of memory.
const INODES: std::ops::RangeInclusive<u64> = 16..=1 << 32;
const OUTPUTS: std::ops::RangeInclusive<ByteSize> = ByteSize::new(1024)..=ByteSize::from_mib(1 << 30);
/// An interpreter needs a few to start; the kernel lets nobody have more.
const NOFILES: std::ops::RangeInclusive<u64> = 16..=1 << 20;

pub(super) fn check(document: &Value, rules: &SpecRules) -> Result<JobSpec, Problems> {
    read(document, rules, false)
}

/// `stored`: it is one that a spec was written as.
pub(super) fn read(document: &Value, rules: &SpecRules, stored: bool) -> Result<JobSpec, Problems> {
    let Value::Object(map) = document else {
        return Err(Problems::one(
            "",
            format!("is {}", type_name(document)),
            "write a map with at least `image`, `preset` or `target`, and `script` or `command`",
        ));
    };
    let mut fields = Fields::new("", map);
    let p = &mut Problems::default();

    let name = fields.text("name", p).map(str::to_owned);
    if let Some(name) = &name {
        name_rules("name", name, p);
    }
    let source = source(&mut fields, rules, p);
    let pull = pull::check(&mut fields, p);
    let program = program(&mut fields, source.as_ref(), p);
    let elsewhere = source.as_ref().is_some_and(Source::is_elsewhere);
    let workdir = fields.text("workdir", p).or((!elsewhere).then_some(WORKDIR)).map(str::to_owned);
    if let Some(workdir) = &workdir {
        path_rules("workdir", workdir, p);
    }
    let env = fields.map("env", p).map(|map| env(map, p)).unwrap_or_default();
    let secrets = fields.map("secrets", p).map(|map| secrets::check(map, stored, p)).unwrap_or_default();
    for name in env.keys().filter(|name| secrets.names(name)) {
        p.add(format!("secrets.{name}"), "is in `env` too", "keep one of the two");
    }
    let stdin = fields.text("stdin", p).map(str::to_owned);
    if let Some(stdin) = stdin.as_ref().filter(|stdin| stdin.len() > MAX_STDIN_BYTES) {
        p.add(
            "stdin",
            format!("is {} bytes; at most {MAX_STDIN_BYTES} fit in a spec", stdin.len()),
            "give it as a file, by `inputs`",
        );
    }
    let inputs = inputs::check(&mut fields, p);
    let timeout = fields.parsed("timeout", "10m", p).unwrap_or(DEFAULT_TIMEOUT);
    if !TIMEOUTS.contains(&timeout) {
        p.add(
            "timeout",
            format!("{timeout} is out of range"),
            format!("choose between {} and {}", TIMEOUTS.start(), TIMEOUTS.end()),
        );
    }
    let silence_timeout = fields.parsed::<Millis>("silence_timeout", "5m", p);
    if let Some(span) = silence_timeout.filter(|span| !TIMEOUTS.contains(span)) {
        p.add(
            "silence_timeout",
            format!("{span} is out of range"),
            format!("choose between {} and {}", TIMEOUTS.start(), TIMEOUTS.end()),
        );
    }
    let on_cancel = fields.map("on_cancel", p).and_then(|map| stop::on_cancel(map, p));
    let output_overflow = stop::overflow(&mut fields, p);
    let output_excess = stop::excess(&mut fields, p);
    let artifacts = artifacts::check(&mut fields, p);
    let lost_after = fields.parsed::<Millis>("lost_after", "5m", p);
    if let Some(span) = lost_after.filter(|span| !LOST_AFTERS.contains(span)) {
        p.add(
            "lost_after",
            format!("{span} is out of range"),
            format!("choose between {} and {}", LOST_AFTERS.start(), LOST_AFTERS.end()),
        );
    }
    let bound = if elsewhere { Resources::NONE } else { Resources::default() };
    let resources = fields.map("resources", p).map_or(bound, |map| resources(map, bound, p));
    let network = network(&mut fields, p);
    let seccomp = seccomp::check(&mut fields, p);
    let egress = fields.map("egress", p).map(|map| egress::check(map, p)).unwrap_or_default();
    egress::fits(&egress, network, seccomp, p);
    target::fits(source.as_ref(), (pull, network), &egress, seccomp, p);
    let labels = fields.map("labels", p).map(|map| labels("labels", map, p)).unwrap_or_default();
    let requires = fields.map("requires", p).map(|map| requires::check(map, p)).unwrap_or_default();
    let retry = fields.map("retry", p).map(|map| retry::check(map, p)).unwrap_or_default();
    let priority = priority(&mut fields, p);
    let idempotency_key = fields.text("idempotency_key", p).map(str::to_owned);
    if let Some(key) = &idempotency_key {
        name_rules("idempotency_key", key, p);
    }
    let trace = fields.map("trace", p).map(|map| trace::check(map, p)).unwrap_or_default();
    fields.finish(p);

    let problems = std::mem::take(p);
    match (source, program) {
        (Some(source), Some(program)) if problems.is_empty() => target::bounded(JobSpec {
            name,
            source,
            pull,
            program,
            workdir,
            env,
            secrets,
            stdin,
            inputs,
            timeout,
            silence_timeout,
            on_cancel,
            output_overflow,
            output_excess,
            artifacts,
            lost_after,
            resources,
            network: (!elsewhere).then_some(network),
            egress,
            seccomp,
            labels,
            requires,
            retry,
            priority,
            idempotency_key,
            trace,
        }),
        _ => Err(problems),
    }
}

/// Names and keys end up in tables and logs: printable, bounded.
pub(super) fn name_rules(path: &str, text: &str, p: &mut Problems) {
    if text.is_empty() || text.chars().count() > MAX_NAME_CHARS {
        p.add(path, format!("must have 1 to {MAX_NAME_CHARS} characters"), "shorten it or leave the key out");
    } else if text.chars().any(unprintable) {
        p.add(path, "has control or text-direction characters", "use printable characters");
    }
}

/// Control characters, and those that reorder text on a screen.
pub(super) fn unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn path_rules(path: &str, text: &str, p: &mut Problems) {
    if !text.starts_with('/') || text.contains('\0') || text.len() > 4095 || text.split('/').any(|part| part == "..") {
        p.add(
            path,
            format!("`{}` is not an absolute path without `..`", shown(text)),
            "write a path such as /workspace",
        );
    }
}

fn source(fields: &mut Fields<'_>, rules: &SpecRules, p: &mut Problems) -> Option<Source> {
    let given: Vec<&'static str> =
        ["image", "preset", "target"].into_iter().filter(|key| fields.take(key).is_some()).collect();
    match given[..] {
        [] => {
            p.add(
                "image",
                "is missing, and so are `preset` and `target`",
                "say where the job runs: `preset: bash`, `image: …` or `target: {host: …}`",
            );
            None
        }
        ["image"] => fields.text("image", p).and_then(|image| image_source(image, p)),
        ["preset"] => fields.text("preset", p).and_then(|preset| preset_source(preset, rules, p)),
        ["target"] => fields.map("target", p).and_then(|map| target::check(map, p)),
        [first, .., last] => {
            let fix = if given.len() == 2 { "keep one of the two" } else { "keep one of the three" };
            p.add(last, format!("is given together with `{first}`"), fix);
            None
        }
        [_] => None,
    }
}

fn image_source(image: &str, p: &mut Problems) -> Option<Source> {
    if let Some(fault) = image::fault(image) {
        p.add("image", format!("`{}` {fault}", shown(image)), "write a reference such as jobcell/bash:1");
        return None;
    }
    Some(Source::Image(image.to_owned()))
}

fn preset_source(preset: &str, rules: &SpecRules, p: &mut Problems) -> Option<Source> {
    let grammar = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    if preset.is_empty() || preset.len() > 64 || !preset.bytes().all(grammar) {
        p.add("preset", format!("`{}` is not a preset's name", shown(preset)), "write a name such as bash");
        return None;
    }
    if let Some(known) = rules.presets.as_ref().filter(|known| !known.iter().any(|name| name == preset)) {
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        p.add("preset", format!("no preset is called `{preset}`"), suggestion(preset, &known));
        return None;
    }
    Some(Source::Preset(preset.to_owned()))
}

fn program(fields: &mut Fields<'_>, source: Option<&Source>, p: &mut Problems) -> Option<Program> {
    let given = (fields.take("script").is_some(), fields.take("command").is_some());
    let script = fields.text("script", p).map(str::to_owned);
    let command = fields.take("command").and_then(|value| argv("command", value, p));
    let interpreter = fields.take("interpreter").map(|value| match value {
        Value::String(one) => argv("interpreter", &Value::Array(vec![Value::String(one.clone())]), p),
        list => argv("interpreter", list, p),
    });
    match given {
        (true, true) => {
            p.add("command", "is given together with `script`", "keep one of the two");
            None
        }
        (false, false) => {
            p.add(
                "script",
                "is missing, and so is `command`",
                "say what runs: `script: …` or `command: [program, argument]`",
            );
            None
        }
        (false, true) => {
            if interpreter.is_some() {
                p.add(
                    "interpreter",
                    "belongs to `script`, and this job has a `command`",
                    "remove it, or put it first in `command`",
                );
            }
            command.map(Program::Command)
        }
        (true, false) => {
            let text = script?;
            script_rules(&text, p);
            if interpreter.is_none() && matches!(source, Some(Source::Image(_))) {
                p.add(
                    "interpreter",
                    "is missing: an image does not say what runs a script",
                    "add `interpreter: /bin/sh`, or use a preset",
                );
            }
            Some(Program::Script { text, interpreter: interpreter.flatten() })
        }
    }
}

fn script_rules(text: &str, p: &mut Problems) {
    if text.trim().is_empty() {
        p.add("script", "is empty", "write at least one command");
    } else if text.len() > MAX_SCRIPT_BYTES {
        p.add(
            "script",
            format!("is {} bytes; at most {MAX_SCRIPT_BYTES} are taken", text.len()),
            "put it in the image and run it with `command`",
        );
    } else if text.contains('\0') {
        p.add("script", "has a NUL byte, which no interpreter reads as you mean it", "remove it");
    } else if text.contains("\r\n") {
        p.add(
            "script",
            "has Windows line endings (CR LF), which a shell takes as part of each command",
            "convert it to LF line endings",
        );
    }
}

pub(super) fn argv(path: &str, value: &Value, p: &mut Problems) -> Option<Vec<String>> {
    let Value::Array(items) = value else {
        p.add(path, format!("is {}", type_name(value)), "give a list: [\"program\", \"argument\"]");
        return None;
    };
    if items.is_empty() || items.len() > MAX_ARGS {
        p.add(path, format!("must have 1 to {MAX_ARGS} elements"), "give a list: [\"program\", \"argument\"]");
        return None;
    }
    let mut list = Vec::with_capacity(items.len());
    for (n, item) in items.iter().enumerate() {
        match item {
            Value::String(text) if text.contains('\0') => p.add(format!("{path}[{n}]"), "has a NUL byte", "remove it"),
            Value::String(text) if text.len() > MAX_ARG_BYTES => {
                p.add(
                    format!("{path}[{n}]"),
                    format!("is longer than {MAX_ARG_BYTES} bytes"),
                    "pass the data by `stdin`",
                );
            }
            Value::String(text) if text.is_empty() && n == 0 => {
                p.add(format!("{path}[0]"), "is empty", "name a program")
            }
            Value::String(text) => list.push(text.clone()),
            other => p.add(format!("{path}[{n}]"), format!("is {}", type_name(other)), "quote it to make it a string"),
        }
    }
    (list.len() == items.len()).then_some(list)
}

/// Why a job's variable cannot have this name, and what to do.
pub(super) fn variable_fault(name: &str) -> Option<(&'static str, &'static str)> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if !first || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') || name.len() > 256 {
        return Some(("is not a variable name", "use letters, digits and _, not starting with a digit"));
    }
    if name.starts_with("JOBCELL_") {
        return Some(("is one of the names that jobcell sets itself", "choose a name without the prefix JOBCELL_"));
    }
    if name.starts_with("LD_") {
        let fix = "set it inside the script, for the one program that needs it";
        return Some(("steers the dynamic loader, also that of the interpreter", fix));
    }
    None
}

const QUOTE: &str = "quote it, so that it is kept as it is written";

/// Whether its text is not in doubt. `1.10` and `0755` are read as other numbers than they look like, and what was written is gone by then.
fn is_whole(number: &Number) -> bool {
    number.is_i64() || number.is_u64()
}

fn unlike(number: &Number) -> String {
    format!("is read as the number {number}, which may not be what was written")
}

fn env(map: &Map<String, Value>, p: &mut Problems) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let mut bytes = 0;
    for (key, value) in map {
        let path = format!("env.{}", shown(key));
        if let Some((reason, fix)) = variable_fault(key) {
            p.add(path, reason, fix);
            continue;
        }
        let text = match value {
            Value::String(text) => text.clone(),
            // People write `PORT: 8080`; the meaning is not in doubt.
            Value::Number(number) if is_whole(number) => number.to_string(),
            Value::Number(number) => {
                p.add(path, unlike(number), QUOTE);
                continue;
            }
            other => {
                p.add(path, format!("is {}", type_name(other)), "quote it to make it a string");
                continue;
            }
        };
        if text.contains('\0') {
            p.add(path, "has a NUL byte", "remove it");
            continue;
        }
        bytes += key.len() + text.len() + 2;
        env.insert(key.clone(), text);
    }
    if bytes > MAX_ENV_BYTES {
        p.add("env", format!("is {bytes} bytes in all; at most {MAX_ENV_BYTES} fit"), "pass the data by `stdin`");
    }
    env
}

fn resources(map: &Map<String, Value>, default: Resources, p: &mut Problems) -> Resources {
    let mut fields = Fields::new("resources", map);
    let cpu = fields.parsed("cpu", "0.5 or 2", p).unwrap_or(default.cpu);
    let memory = size(&mut fields, "memory", "512MiB", &MEMORIES, p).unwrap_or(default.memory);
    let pids = number(&mut fields, "pids", "number of processes", &PIDS, p).and_then(|pids| u32::try_from(pids).ok());
    let resources = Resources {
        cpu,
        memory,
        pids: pids.unwrap_or(default.pids),
        disk: size(&mut fields, "disk", "1GiB", &DISKS, p),
        inodes: number(&mut fields, "inodes", "number of files", &INODES, p),
        output: size(&mut fields, "output", "100MiB", &OUTPUTS, p),
        nofile: number(&mut fields, "nofile", "number of open files", &NOFILES, p),
    };
    fields.finish(p);
    resources
}

pub(super) fn size(
    fields: &mut Fields<'_>,
    key: &'static str,
    example: &str,
    range: &std::ops::RangeInclusive<ByteSize>,
    p: &mut Problems,
) -> Option<ByteSize> {
    let size = fields.parsed::<ByteSize>(key, example, p)?;
    if !range.contains(&size) {
        let fix = format!("choose between {} and {}", range.start(), range.end());
        p.add(fields.path(key), format!("{size} is out of range"), fix);
    }
    Some(size)
}

pub(super) fn number(
    fields: &mut Fields<'_>,
    key: &'static str,
    what: &str,
    range: &std::ops::RangeInclusive<u64>,
    p: &mut Problems,
) -> Option<u64> {
    let value = fields.take(key)?;
    let number = value.as_u64().filter(|number| range.contains(number));
    if number.is_none() {
        let fix = format!("write a whole number from {} to {}", range.start(), range.end());
        p.add(fields.path(key), format!("`{}` is not a {what}", shown(&value.to_string())), fix);
    }
    number
}

fn network(fields: &mut Fields<'_>, p: &mut Problems) -> NetworkMode {
    let Some(text) = fields.text("network", p) else { return NetworkMode::None };
    NetworkMode::ALL.into_iter().find(|mode| mode.name() == text).unwrap_or_else(|| {
        p.add(
            "network",
            format!("`{}` is not available", shown(text)),
            "write `none`, which is the default, or `bridge` where the operator's policy allows it",
        );
        NetworkMode::None
    })
}

/// Labels of a job, and of an agent.
pub(crate) fn labels(at: &str, map: &Map<String, Value>, p: &mut Problems) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    if map.len() > MAX_LABELS {
        p.add(at, format!("has {} entries; at most {MAX_LABELS} are kept", map.len()), "remove some");
        return labels;
    }
    for (key, value) in map {
        let path = format!("{at}.{}", shown(key));
        let grammar = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
        if key.is_empty() || key.len() > 63 || !key.bytes().all(grammar) {
            p.add(path, "is not a label's name", "use up to 63 letters, digits and - _ . /");
            continue;
        }
        match value {
            Value::String(text) if text.len() <= 255 && !text.chars().any(unprintable) => {
                labels.insert(key.clone(), text.clone());
            }
            Value::String(_) => {
                p.add(path, "is longer than 255 bytes or has unprintable characters", "shorten or clean it")
            }
            Value::Number(number) if is_whole(number) => {
                labels.insert(key.clone(), number.to_string());
            }
            Value::Number(number) => p.add(path, unlike(number), QUOTE),
            other => p.add(path, format!("is {}", type_name(other)), "quote it to make it a string"),
        }
    }
    labels
}

fn priority(fields: &mut Fields<'_>, p: &mut Problems) -> i32 {
    let Some(value) = fields.take("priority") else { return 0 };
    match value.as_i64().filter(|number| PRIORITIES.contains(number)).and_then(|number| i32::try_from(number).ok()) {
        Some(priority) => priority,
        None => {
            p.add(
                "priority",
                format!("`{}` is not a priority", shown(&value.to_string())),
                format!("write a whole number from {} to {}", PRIORITIES.start(), PRIORITIES.end()),
            );
            0
        }
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
