//! `jobcell policy …`: what the operator's policy says of a job, and whether a policy is one. Nothing is asked of an agent: the
//! settings and the file of this host are read as an agent that starts now would read them.

use super::{Failure, Global, QUIET, node, settings, show};
use crate::admission::LivePolicy;
use crate::admission::policy::{Check, Outcome};
use crate::backend::Local;
use crate::job::{Cause, JobSpec, SpecRules};
use clap::Subcommand;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Say whether a job would be let in on this host, with which limits, and why; exit code 1 if it would be refused
    Explain {
        /// The spec, YAML or JSON; - reads standard input
        file: PathBuf,
        /// As if it came from this backend of the settings [default: the only one]
        #[arg(long, value_name = "NAME")]
        backend: Option<String>,
        /// As if it was submitted with the key of this name
        #[arg(long, value_name = "NAME")]
        key: Option<String>,
        /// By this policy, in place of the settings' policy.file
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
    },
    /// Say whether a policy is good, or everything that is wrong with it
    Check {
        /// The policy [default: the settings' policy.file]
        file: Option<PathBuf>,
    },
}

pub(super) fn run(command: PolicyCommand, global: &Global) -> Result<u8, Failure> {
    let config = settings(global, &[], QUIET)?;
    let load = |file: Option<&Path>| match file {
        None => node::policy(&config),
        Some(file) => LivePolicy::draft(file).map_err(|problems| {
            Failure::config(
                show::printable(&format!("{} has problems:\n{problems}", file.display())).replace("\\n", "\n"),
            )
        }),
    };
    match command {
        PolicyCommand::Check { file } => {
            let policy = load(file.as_deref())?;
            let rules = policy.current().rules();
            let shown = policy.file().map(|file| file.display().to_string());
            global.output.print(&json!({ "ok": true, "file": shown, "rules": rules }), || match &shown {
                Some(file) => show::printable(&format!("the policy is good: {file}, {rules} rules")),
                None => "no policy.file is set; the built-in policy holds: no bounds, and no network".to_owned(),
            })?;
            Ok(0)
        }
        PolicyCommand::Explain { file, backend, key, policy } => {
            let names: Vec<&str> = config.backends.keys().map(String::as_str).collect();
            // A policy that is given may be another host's, with other backends.
            let backend = backend_of(backend.as_deref(), &names, policy.is_some()).map_err(Failure::usage)?;
            let policy = load(policy.as_deref())?;
            let shown = policy.file().map(|file| file.display().to_string());
            let text = super::job::read_file(&file)?;
            let spec = JobSpec::from_yaml(&text, &SpecRules::default()).map_err(|problems| {
                let text = format!("the job spec has problems:\n{problems}");
                Failure::usage(show::printable(&text).replace("\\n", "\n"))
            })?;
            let gate = node::gate(&config, policy, node::inventory(&config)?.as_ref());
            let parts: Vec<JobSpec> =
                if spec.fan_out().is_some() { spec.parts().collect() } else { vec![spec.clone()] };
            let several = spec.fan_out().is_some();
            let (mut rules, mut checks, mut allowed, mut less) = (Vec::new(), Vec::new(), true, 0);
            for (at, part) in parts.iter().enumerate() {
                let judged = gate
                    .judge(backend, key.as_deref(), part)
                    .map_err(|cause: Cause| Failure::new(cause.to_string()))?;
                allowed &= judged.given.is_some();
                less = less.max(judged.clamped().len());
                if !rules.contains(&judged.rule) {
                    rules.push(judged.rule);
                }
                checks.extend(judged.checks.into_iter().filter_map(|check| of_part(check, several.then_some(at))));
            }
            let rule = rules.join(", ");
            let document = json!({"allowed": allowed, "policy": shown, "rule": rule, "checks": checks});
            global.output.print(&document, || {
                let policy = shown.as_deref().unwrap_or("built-in");
                let word = match (allowed, less) {
                    (false, _) => "refused".to_owned(),
                    (true, 0) => "allowed".to_owned(),
                    (true, less) => format!("allowed, with {less} smaller than asked for"),
                };
                let head = show::printable(&format!("{word}; policy {policy}, rule {rule}"));
                let rows = checks.iter().map(row).collect();
                format!("{head}\n\n{}", show::table(&["RESULT", "WHAT", "VALUE", "WHY"], rows))
            })?;
            Ok(u8::from(!allowed))
        }
    }
}

/// The backend that a job is judged for. Errors: it is not one of this host's, or there are several to choose from.
fn backend_of<'a>(asked: Option<&'a str>, names: &[&'a str], any: bool) -> Result<&'a str, String> {
    match (asked, names) {
        (Some(name), _) if any || name == Local::NAME || names.contains(&name) => Ok(name),
        (Some(name), _) => {
            let all: Vec<&str> = names.iter().copied().chain([Local::NAME]).collect();
            Err(format!(
                "--backend {}: no backend of the settings; write one of: {}",
                crate::job::shown(name),
                all.join(", ")
            ))
        }
        (None, []) => Ok(Local::NAME),
        (None, [only]) => Ok(only),
        (None, several) => {
            Err(format!("the settings have several backends; add --backend with one of: {}", several.join(", ")))
        }
    }
}

/// A check of the job for one of several hosts, by its place: where it is there. What all of them have in common is said once.
fn of_part(check: Check, place: Option<usize>) -> Option<Check> {
    let Some(place) = place else { return Some(check) };
    let there = check.path.strip_prefix("target").map(|rest| format!("target.hosts[{place}]{rest}"));
    let refused = matches!(check.outcome, Outcome::Refused { .. });
    match there {
        Some(path) => Some(Check { path, ..check }),
        None => Some(check).filter(|_| place == 0 || refused),
    }
}

fn row(check: &Check) -> Vec<String> {
    let (result, value) = match &check.outcome {
        Outcome::Allowed => ("ok", check.value.clone()),
        Outcome::Clamped { given } => ("less", format!("{} -> {given}", check.value)),
        Outcome::Refused { .. } => ("REFUSED", check.value.clone()),
    };
    let what = if check.path.is_empty() { "job" } else { &check.path };
    vec![result.to_owned(), what.to_owned(), value, check.why.clone()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backend_is_one_of_the_hosts() {
        assert_eq!(backend_of(None, &[], false), Ok("embedded"));
        assert_eq!(backend_of(None, &["crawl"], false), Ok("crawl"));
        assert_eq!(backend_of(Some("embedded"), &["crawl"], false), Ok("embedded"));
        assert_eq!(backend_of(Some("b"), &["a", "b"], false), Ok("b"));
        let told = backend_of(None, &["a", "b"], false).expect_err("which one?");
        assert!(told.contains("one of: a, b"), "{told}");
        let told = backend_of(Some("craw"), &["crawl"], false).expect_err("unknown");
        assert!(told.contains("craw: no backend of the settings; write one of: crawl, embedded"), "{told}");
        assert_eq!(backend_of(Some("other"), &["crawl"], true), Ok("other"), "a policy of another host");
    }
}
