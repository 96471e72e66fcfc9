//! What an operator allows on a host: pure values and one pure decision, [`Policy::judge`].
//!
//! A policy has one set of allowances for everything, and rules in order: the first one that a job matches puts its own in place of
//! those that it names, item by item and limit by limit, or refuses the job. Later rules are not looked at. [`read`] makes a policy
//! of a document, [`live`] keeps the one of a file up to date. A job is judged before anything is made for it, and what it is given
//! is never more than it asks for.

mod live;
mod pattern;
mod read;
mod target;
#[cfg(test)]
mod tests;

pub use live::{LivePolicy, Looked};
pub use target::{Reached, Routes};

use crate::job::egress::{EgressRule, uncovered};
use crate::job::{
    ByteSize, Clamp, JobSpec, LIMITS, Limit, NetworkMode, PolicyRefusal, Program, Pull, Seccomp, SecretSource, Source,
    WORKDIR,
};
use pattern::{Argv, Glob, ImagePattern, has_digest, may_be_id};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use target::{HostPattern, Reachable};

/// Limits of containers: what has none takes nothing of them.
const OF_CELLS: [&str; 2] = ["resources.disk", "resources.inodes"];

/// What a job that no rule matches is judged by.
const NO_RULE: &str = "default";

/// What an operator allows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    allow: Allowances,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    name: String,
    when: When,
    then: Then,
}

/// What a job has to be for a rule to match; all of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct When {
    /// One of the patterns for each of these labels.
    labels: BTreeMap<String, Vec<Glob>>,
    /// It comes from one of these backends; from any when there are none.
    backends: Vec<Glob>,
    /// It was submitted with a key of one of these names; with any, or with none that has a name, when there are none.
    keys: Vec<Glob>,
    /// It goes to one of these hosts; anywhere, also into a container, when there are none.
    hosts: Vec<HostPattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Then {
    /// These hold for it, which are the policy's own where the rule says nothing.
    Allow(Box<Allowances>),
    /// It is refused, with this sentence.
    Refuse(String),
}

/// What is allowed; `None` is everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Allowances {
    images: Option<Vec<ImagePattern>>,
    digest_required: bool,
    pulls: Option<Vec<Pull>>,
    presets: Option<Vec<Glob>>,
    /// Without a word the inventory's hosts, with what it has for each.
    targets: Option<Vec<Reachable>>,
    oci_runtimes: Option<Vec<String>>,
    /// Without a word only `none`: a way out of the cell is opened by an operator.
    networks: Option<Vec<NetworkMode>>,
    /// Without a word nothing.
    egress: Option<Vec<EgressRule>>,
    uids: Option<(u32, u32)>,
    programs: Option<Vec<Allowed>>,
    env: Option<Vec<Glob>>,
    /// Secrets of the agent, by name.
    secrets: Option<Vec<Glob>>,
    limits: BTreeMap<&'static str, Maximum>,
}

/// A program that is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Allowed {
    what: Runs,
    /// It may be fed by the job: what a shell reads is a program too.
    stdin: bool,
    /// The job may bring files into its folder: what a program reads there (a makefile) can be one too.
    inputs: bool,
    /// It may be begun in another folder than the usual one: a relative program is looked for there.
    workdir: bool,
}

/// What a job gives to a program beside its arguments and variables.
#[derive(Debug, Clone, Copy)]
struct Given<'a> {
    stdin: bool,
    inputs: bool,
    /// Where it is begun; `None` for the usual folder.
    workdir: Option<&'a str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Runs {
    Command(Argv),
    /// A script by its SHA-256, run by this interpreter, or by the preset's own.
    Script {
        sha256: String,
        interpreter: Option<Vec<String>>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Maximum {
    most: u64,
    over: Over,
}

/// What becomes of a job that asks for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// It gets the most there is.
    Clamp,
    Refuse,
}

/// What is known of where the job would run.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// Which backend it comes from.
    pub backend: &'a str,
    /// The name of the key that it was submitted with there; the backend's word.
    pub submitter: Option<&'a str>,
    /// The image that it would run in: its own, or its preset's. Empty for one that goes to another host.
    pub image: &'a str,
    /// What the agent's inventory says of hosts.
    pub routes: &'a Routes,
    /// Secrets that the agent has, by name.
    pub secrets: &'a BTreeSet<String>,
    /// When a registry is asked for the image of a job that does not say.
    pub pull: Pull,
    /// The OCI runtime of cells here; empty for the engine's own.
    pub oci_runtime: &'a str,
    /// First and last user id of cells here.
    pub uids: (u32, u32),
    /// What a job gets that does not say how much.
    pub defaults: Defaults,
    /// The filter of system calls here.
    pub filter: Filter,
}

/// Limits of a job that does not name them, as the agent's settings have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Defaults {
    /// Size of the workspace.
    pub disk: ByteSize,
    /// Files in it.
    pub inodes: u64,
    /// Output.
    pub output: ByteSize,
    /// Open files.
    pub nofile: u64,
}

impl Defaults {
    /// What a job would get of a limit; `None` for one that has no meaning for it.
    fn of(&self, limit: &Limit, spec: &JobSpec) -> Option<u64> {
        limit.of(spec).or(match limit.path {
            "resources.disk" => Some(self.disk.as_u64()),
            "resources.inodes" => Some(spec.resources().inodes_or(self.inodes)),
            "resources.output" => Some(self.output.as_u64()),
            "resources.nofile" => Some(self.nofile),
            _ => None,
        })
    }
}

/// What cells here offer of filters of system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filter {
    /// Every job gets at least this one.
    pub least: Seccomp,
    /// The operator's own is in place of the default one: ours say nothing of what that one forbids.
    pub own: bool,
    /// A kernel in the cell answers calls, and none is in force.
    pub none: bool,
}

/// What a job was judged to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement<'a> {
    /// The rule that it matched; `default` when it matched none.
    pub rule: String,
    /// Each thing that was looked at, in order.
    pub checks: Vec<Check>,
    /// The job as it may run, unless it is refused.
    pub given: Option<Cow<'a, JobSpec>>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Where it is in the job, or what of the host it is.
    pub path: String,
    /// What the job has there.
    pub value: String,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What allows it, or what does not, for people.
    pub why: String,
}

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// As it is.
    Allowed,
    /// With less.
    Clamped {
        /// What it gets.
        given: String,
    },
    /// Not at all.
    Refused {
        /// The stable code.
        code: &'static str,
    },
}

impl Judgement<'_> {
    /// Why it is refused; nothing when it is not.
    pub fn refusals(&self) -> Vec<PolicyRefusal> {
        let one = |check: &Check| match check.outcome {
            Outcome::Refused { code } => {
                Some(PolicyRefusal { path: check.path.clone(), code: code.to_owned(), sentence: check.why.clone() })
            }
            Outcome::Allowed | Outcome::Clamped { .. } => None,
        };
        self.checks.iter().filter_map(one).collect()
    }

    /// What it gets less of than it asks for.
    pub fn clamped(&self) -> Vec<Clamp> {
        let one = |check: &Check| match &check.outcome {
            Outcome::Clamped { given } => {
                Some(Clamp { path: check.path.clone(), asked: check.value.clone(), given: given.clone() })
            }
            Outcome::Allowed | Outcome::Refused { .. } => None,
        };
        self.checks.iter().filter_map(one).collect()
    }
}

impl When {
    fn matches(&self, spec: &JobSpec, facts: &Facts<'_>) -> bool {
        let any = |globs: &[Glob], text: &str| globs.iter().any(|glob| glob.matches(text));
        let label =
            |(name, globs): (&String, &Vec<Glob>)| spec.labels().get(name).is_some_and(|value| any(globs, value));
        self.labels.iter().all(label)
            && (self.backends.is_empty() || any(&self.backends, facts.backend))
            && (self.keys.is_empty() || facts.submitter.is_some_and(|name| any(&self.keys, name)))
            && (self.hosts.is_empty() || self.goes_there(spec, facts))
    }

    fn goes_there(&self, spec: &JobSpec, facts: &Facts<'_>) -> bool {
        let Source::Target(target) = spec.source() else { return false };
        let address = facts.routes.of(target).address;
        self.hosts.iter().any(|one| one.matches(&target.host, address.as_deref()))
    }
}

impl Policy {
    /// Rules that it has.
    pub fn rules(&self) -> usize {
        self.rules.len()
    }

    /// Decides about a job: what may run, or every reason why it may not.
    pub fn judge<'a>(&self, spec: &'a JobSpec, facts: &Facts<'_>) -> Judgement<'a> {
        let rule = self.rules.iter().find(|rule| rule.when.matches(spec, facts));
        let name = rule.map_or(NO_RULE, |rule| &rule.name).to_owned();
        let allow = match rule.map(|rule| &rule.then) {
            None => &self.allow,
            Some(Then::Allow(allow)) => allow,
            Some(Then::Refuse(sentence)) => {
                let outcome = Outcome::Refused { code: "rule" };
                let check = Check { path: String::new(), value: String::new(), outcome, why: sentence.clone() };
                return Judgement { rule: name, checks: vec![check], given: None };
            }
        };
        let mut checks = Checks(Vec::new());
        if spec.source().is_elsewhere() {
            allow.target(spec, facts, &mut checks);
        } else {
            allow.source(spec, facts, &mut checks);
            allow.pull(spec, facts, &mut checks);
            allow.place(spec, facts, &mut checks);
            allow.egress(spec, facts, &mut checks);
            filter(spec, facts, &mut checks);
        }
        allow.program(spec, &mut checks);
        allow.secrets(spec, facts, &mut checks);
        let given = allow.limits(spec, facts, &mut checks);
        let refused = checks.0.iter().any(|check| matches!(check.outcome, Outcome::Refused { .. }));
        Judgement { rule: name, checks: checks.0, given: Some(given).filter(|_| !refused) }
    }
}

struct Checks(Vec<Check>);

impl Checks {
    fn add(&mut self, path: &str, value: impl Into<String>, outcome: Outcome, why: impl Into<String>) {
        self.0.push(Check { path: path.to_owned(), value: value.into(), outcome, why: why.into() });
    }

    /// An item of a list: allowed because of `why`, or refused with a code and a sentence.
    fn item(&mut self, path: &str, value: &str, allowed: Result<String, (&'static str, String)>) {
        match allowed {
            Ok(why) => self.add(path, value, Outcome::Allowed, why),
            Err((code, why)) => self.add(path, value, Outcome::Refused { code }, why),
        }
    }
}

/// What of `list` allows a thing, if it does; everything does when there is no list.
fn listed<T: ToString>(list: Option<&[T]>, of: &str, is: impl Fn(&T) -> bool) -> Option<String> {
    match list {
        None => Some("no list".to_owned()),
        Some(list) => list.iter().find(|item| is(item)).map(|item| format!("{of}: {}", item.to_string())),
    }
}

fn all<T: ToString>(list: Option<&[T]>) -> String {
    let all: Vec<String> = list.into_iter().flatten().map(ToString::to_string).collect();
    if all.is_empty() { "the list is empty".to_owned() } else { format!("allowed: {}", all.join(", ")) }
}

/// Whether the profile that the job asks for can be had here: no cell is made to find out that it cannot.
fn filter(spec: &JobSpec, facts: &Facts<'_>, checks: &mut Checks) {
    let Some(asked) = spec.seccomp() else { return };
    let (name, Filter { least, own, none }) = (asked.name(), facts.filter);
    let allowed = match asked {
        Seccomp::Default => Ok("every job has at least this one".to_owned()),
        _ if none => Err(format!(
            "cells here answer system calls themselves (OCI runtime {}), and no profile is in force",
            facts.oci_runtime
        )),
        _ if own => {
            Err("cells here have the operator's own profile, and no other is offered; leave `seccomp` out".to_owned())
        }
        _ => match Seccomp::in_force(Some(asked), least) {
            Ok(_) => Ok(format!("docker.seccomp: {}", least.name())),
            Err(_) => Err(format!(
                "every job here has profile `{}`, which `{name}` cannot replace; leave `seccomp` out",
                least.name()
            )),
        },
    };
    checks.item("seccomp", name, allowed.map_err(|why| ("seccomp_not_offered", why)));
}

impl Allowances {
    fn source(&self, spec: &JobSpec, facts: &Facts<'_>, checks: &mut Checks) {
        if let Source::Preset(preset) = spec.source() {
            let presets = self.presets.as_deref();
            let allowed = listed(presets, "presets", |glob| glob.matches(preset));
            let why = || ("preset_not_allowed", format!("preset `{preset}` is not on the list; {}", all(presets)));
            checks.item("preset", preset, allowed.ok_or_else(why));
        }
        let (image, images) = (facts.image, self.images.as_deref());
        let allowed = listed(images, "images", |pattern| pattern.matches(image));
        // An engine that has no image of this name looks for one whose id begins like that, whatever its name.
        let id = images.is_some() && may_be_id(image);
        let why = || {
            let why = match id {
                true => format!(
                    "image `{image}` may be the id of any image of the host; write its name, or docker.io/library/{image} for that one"
                ),
                false => format!("image `{image}` is not on the list; {}", all(images)),
            };
            ("image_not_allowed", why)
        };
        checks.item("image", image, allowed.filter(|_| !id).ok_or_else(why));
        if self.digest_required {
            let why = || {
                let why = format!("image `{image}` does not say which content it has; write it with @sha256:…");
                ("digest_required", why)
            };
            let allowed = has_digest(image).then(|| "it has a digest".to_owned());
            checks.item("image", image, allowed.ok_or_else(why));
        }
    }

    /// When a registry may be asked.
    fn pull(&self, spec: &JobSpec, facts: &Facts<'_>, checks: &mut Checks) {
        let Some(pulls) = &self.pulls else { return };
        let pull = spec.pull().unwrap_or(facts.pull).name();
        let names: Vec<&str> = pulls.iter().map(|pull| pull.name()).collect();
        let why = || ("pull_not_allowed", format!("`pull: {pull}` is not on the list; {}", all(Some(&names))));
        checks.item("pull", pull, listed(Some(&names), "pulls", |name| **name == *pull).ok_or_else(why));
    }

    /// What is the host's, and what the cell may reach.
    fn place(&self, spec: &JobSpec, facts: &Facts<'_>, checks: &mut Checks) {
        let runtime = if facts.oci_runtime.is_empty() { "default" } else { facts.oci_runtime };
        let runtimes = self.oci_runtimes.as_deref();
        let why = || {
            let why = format!("cells here are made by OCI runtime `{runtime}`; {}", all(runtimes));
            ("oci_runtime_not_allowed", why)
        };
        checks.item("oci_runtime", runtime, listed(runtimes, "oci_runtimes", |one| one == runtime).ok_or_else(why));
        let (first, last) = facts.uids;
        let value = format!("{first}-{last}");
        checks.item(
            "uids",
            &value,
            match self.uids {
                None => Ok("no range".to_owned()),
                Some((from, to)) if from <= first && last <= to => Ok(format!("uids: {from}-{to}")),
                Some((from, to)) => {
                    let why = format!("cells here have user ids {value}; allowed: {from}-{to}");
                    Err(("uids_not_allowed", why))
                }
            },
        );
        let network = spec.network();
        let names: Vec<&str> =
            self.networks.as_deref().unwrap_or(&[NetworkMode::None]).iter().map(|mode| mode.name()).collect();
        let why = || {
            let why = format!("network `{}` is not on the list; {}", network.name(), all(Some(&names)));
            ("network_not_allowed", why)
        };
        let allowed = listed(Some(&names), "networks", |name| **name == *network.name());
        checks.item("network", network.name(), allowed.ok_or_else(why));
    }

    /// What it asks to reach by its proxy: each of its rules has to lie within those of the operator.
    fn egress(&self, spec: &JobSpec, facts: &Facts<'_>, checks: &mut Checks) {
        let asked = spec.egress();
        let allowed = self.egress.as_deref().unwrap_or_default();
        for (at, rule) in asked.allow.iter().enumerate() {
            let shown = rule.to_string();
            let judged = match uncovered(rule, allowed) {
                None => Ok("egress".to_owned()),
                Some(port) => {
                    let why = format!("`{shown}` is not within the list (port {port}); {}", all(Some(allowed)));
                    Err(("egress_not_allowed", why))
                }
            };
            checks.item(&format!("egress.allow[{at}]"), &shown, judged);
        }
        if !asked.is_none() && Seccomp::in_force(spec.seccomp(), facts.filter.least) == Ok(Seccomp::Offline) {
            let why =
                "every job here has profile `offline`, under which nothing can connect to a proxy; leave `egress` out";
            checks.item("egress", "given", Err(("egress_not_offered", why.to_owned())));
        }
    }

    fn program(&self, spec: &JobSpec, checks: &mut Checks) {
        // The usual folder is nothing that it asks for.
        let usual = (!spec.source().is_elsewhere()).then_some(WORKDIR);
        let workdir = spec.workdir().filter(|folder| Some(*folder) != usual);
        let given = Given { stdin: spec.stdin().is_some(), inputs: !spec.inputs().is_empty(), workdir };
        match spec.program() {
            Program::Command(argv) => self.command("command", argv, given, checks),
            Program::Script { text, .. } if self.programs.is_none() => {
                checks.item("script", &format!("{} bytes", text.len()), Ok("no list".to_owned()));
            }
            Program::Script { text, interpreter } => {
                let sha256 = sha256(text);
                let is_text =
                    |one: &Allowed| matches!(&one.what, Runs::Script { sha256: known, .. } if *known == sha256);
                let is_it =
                    |one: &Allowed| matches!(&one.what, Runs::Script { interpreter: own, .. } if own == interpreter);
                let near = self.programs.iter().flatten().any(is_text);
                let why = match near {
                    true => "the script is on the list, and not with this `interpreter`",
                    false => "no script of the list has its SHA-256",
                };
                let value = format!("sha256:{sha256}");
                self.runs(("script", &value), given, why, |one| is_text(one) && is_it(one), checks);
            }
        }
        if let Some(after) = spec.on_cancel() {
            // It reads nothing, and begins in the job's folder.
            self.command("on_cancel.command", &after.command, Given { stdin: false, ..given }, checks);
        }
        // What a program does depends on its variables: a list of programs without one of variables allows none.
        let nothing = [];
        let env = self.env.as_deref().or(self.programs.is_some().then_some(&nothing));
        // A secret is one too.
        let names: Vec<&str> = spec.env().keys().chain(spec.secrets().keys()).map(String::as_str).collect();
        let bad: Vec<&str> =
            names.iter().copied().filter(|name| listed(env, "env", |glob| glob.matches(name)).is_none()).collect();
        if !names.is_empty() {
            checks.item(
                "env",
                &names.join(", "),
                match bad[..] {
                    [] => Ok(if env.is_some() { "env" } else { "no list" }.to_owned()),
                    _ => Err(("env_not_allowed", format!("not on the list: {}; {}", bad.join(", "), all(env)))),
                },
            );
        }
    }

    /// Those that it asks the agent for. What comes with a job is its owner's.
    fn secrets(&self, spec: &JobSpec, facts: &Facts<'_>, checks: &mut Checks) {
        for (name, ask) in spec.secrets() {
            let SecretSource::Named(from) = &ask.source else { continue };
            let list = self.secrets.as_deref();
            let value = format!("if that is a value, give it as `--secret {name}=@FILE`, or as `{name}: {{value: …}}`");
            let allowed = match listed(list, "secrets", |glob| glob.matches(from)) {
                // Whoever may not have it does not learn whether it is there.
                None => {
                    Err(("secret_not_allowed", format!("secret `{from}` is not on the list; {}; {value}", all(list))))
                }
                Some(_) if !facts.secrets.contains(from) => Err((
                    "secret_unknown",
                    format!("the agent has no secret `{from}`; its settings name them under `secrets`; {value}"),
                )),
                Some(why) => Ok(why),
            };
            checks.item(&format!("secrets.{name}"), from, allowed);
        }
    }

    fn command(&self, path: &str, argv: &[String], given: Given<'_>, checks: &mut Checks) {
        let value = shown(argv);
        if self.programs.is_none() {
            return checks.item(path, &value, Ok("no list".to_owned()));
        }
        let is = |one: &Allowed| matches!(&one.what, Runs::Command(pattern) if pattern.matches(argv));
        self.runs((path, &value), given, "no command of the list is like it", is, checks);
    }

    /// What runs, with all that the job gives it: one entry of `programs` has to allow all of it. `why` is said when none `is` it.
    fn runs(
        &self,
        (path, value): (&str, &str),
        given: Given<'_>,
        why: &str,
        is: impl Fn(&Allowed) -> bool,
        checks: &mut Checks,
    ) {
        let programs = self.programs.as_deref().unwrap_or_default();
        let mut found: Vec<(usize, &Allowed)> = programs.iter().enumerate().filter(|(_, one)| is(one)).collect();
        if found.is_empty() {
            return checks.item(path, value, Err(("program_not_allowed", why.to_owned())));
        }
        found.retain(|(_, one)| one.stdin || !given.stdin);
        if found.is_empty() {
            let why = format!("the list allows `{path}`, and not that the job feeds it; leave `stdin` out");
            return checks.item("stdin", "given", Err(("stdin_not_allowed", why)));
        }
        found.retain(|(_, one)| one.inputs || !given.inputs);
        if found.is_empty() {
            let why =
                format!("the list allows `{path}`, and not with files of the job in its folder; leave `inputs` out");
            return checks.item("inputs", "given", Err(("inputs_not_allowed", why)));
        }
        found.retain(|(_, one)| one.workdir || given.workdir.is_none());
        let Some((at, _)) = found.first() else {
            let why = format!("the list allows `{path}` in its usual folder and in no other one; leave `workdir` out");
            return checks.item("workdir", given.workdir.unwrap_or_default(), Err(("workdir_not_allowed", why)));
        };
        checks.item(path, value, Ok(format!("programs[{at}]")));
    }

    /// The job with what is given of its limits.
    fn limits<'a>(&self, spec: &'a JobSpec, facts: &Facts<'_>, checks: &mut Checks) -> Cow<'a, JobSpec> {
        let mut given = Cow::Borrowed(spec);
        for limit in &LIMITS {
            // What another host has is not this one's to bound.
            if spec.source().is_elsewhere() && OF_CELLS.contains(&limit.path) {
                continue;
            }
            let named = limit.of(spec).is_some();
            let Some(asked) = facts.defaults.of(limit, &given) else { continue };
            let (path, value) = (limit.path, limit.show(asked));
            let Some(Maximum { most, over }) = self.limits.get(path).copied() else {
                if named {
                    checks.add(path, value, Outcome::Allowed, "no maximum");
                }
                continue;
            };
            // One that it did not ask for is no reason to refuse it.
            let over = if named { over } else { Over::Clamp };
            let shown = limit.show(most);
            let refused = |why| (Outcome::Refused { code: "above_maximum" }, why);
            let (outcome, why) = match over {
                _ if asked <= most => (Outcome::Allowed, format!("at most {shown}")),
                Over::Refuse => refused(format!("{path} is {value}, and at most {shown} is allowed")),
                Over::Clamp => match limit.set(&given, most) {
                    Ok(less) => {
                        given = Cow::Owned(less);
                        if !named {
                            checks.add(
                                path,
                                shown,
                                Outcome::Allowed,
                                format!("it names none, and gets the most here, not {value}"),
                            );
                            continue;
                        }
                        (Outcome::Clamped { given: shown.clone() }, format!("at most {shown} is given"))
                    }
                    // As when another limit of the job has to be smaller than this one.
                    Err(problems) => refused(format!("{path} cannot be {shown} in this job: {problems}")),
                },
            };
            checks.add(path, value, outcome, why);
        }
        given
    }
}

fn shown(argv: &[String]) -> String {
    crate::job::shown(&argv.join(" "))
}

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
