//! `jobcell doctor`: what of this host, its engine and the settings would keep jobs from running well or apart from each other, each with
//! a remedy. Gathering is apart from judging, so the judgement is tested with made-up facts.
//!
//! Only looks: the one thing that it writes is a file in the data directory that it removes again.

mod engine;
mod host;
mod settings;

use super::{Failure, Output, show};
use crate::config::{CheckLevel, Config};
use crate::executor::docker::probe;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    /// Jobs run, with less safety or comfort.
    Warn,
    /// Jobs do not run, or are not to run.
    Fail,
    /// The settings say that it does not matter.
    Ignored,
}

/// One check; its name is a key of `doctor.checks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), remedy: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, remedy: &str) -> Self {
        Self { name, verdict: Verdict::Warn, found: found.into(), remedy: Some(remedy.to_owned()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, remedy: &str) -> Self {
        Self { name, verdict: Verdict::Fail, found: found.into(), remedy: Some(remedy.to_owned()) }
    }

    fn warn_if(wrong: bool, name: &'static str, found: impl Into<String>, remedy: &str) -> Self {
        if wrong { Self::warn(name, found, remedy) } else { Self::ok(name, found) }
    }
}

/// All checks, judged as the settings want it.
async fn checks(config: &Config) -> Vec<Check> {
    let mut checks = host::judge(&host::Facts::gather(Path::new("/"), &config.data_dir));
    checks.extend(settings::judge(config, &settings::Facts::gather(Path::new("/"), config)));
    if config.docker.enabled {
        let images: Vec<String> = config.presets.values().map(|preset| preset.image.clone()).collect();
        let limit = config.docker.connect_timeout.as_duration();
        let engine = probe(&config.docker.host, &images, limit).await.map_err(|error| error.short());
        checks.extend(engine::judge(&engine, config, &engine::Local::gather(config, engine.as_ref().ok())));
    } else {
        checks.push(Check::ok("engine", "none is needed (docker.enabled: false)"));
    }
    levels(&mut checks, config);
    checks
}

/// What the settings ignore is told and changes nothing; what they enforce fails unless it is well.
fn levels(checks: &mut [Check], config: &Config) {
    for check in checks {
        check.verdict = match (config.doctor.get(check.name), check.verdict) {
            (Some(CheckLevel::Ignore), Verdict::Warn | Verdict::Fail) => Verdict::Ignored,
            (Some(CheckLevel::Enforce), Verdict::Warn) => Verdict::Fail,
            (_, verdict) => verdict,
        };
    }
}

/// A sentence on the checks that the settings enforce and that are not well; `None` when all are, or none is enforced.
pub(super) async fn enforced(config: &Config) -> Option<String> {
    if !config.doctor.values().any(|level| *level == CheckLevel::Enforce) {
        return None;
    }
    let told = not_well(&checks(config).await, &config.doctor, config.docker.enabled);
    (!told.is_empty()).then(|| format!("doctor.checks enforces {}", told.join("; ")))
}

/// What is wrong with the checks that are enforced. One that could not be made is wrong, unless there is no engine to be checked.
fn not_well(checks: &[Check], levels: &BTreeMap<String, CheckLevel>, engine: bool) -> Vec<String> {
    let enforced = levels.iter().filter(|(_, level)| **level == CheckLevel::Enforce);
    let wrong = |(name, _): (&String, &CheckLevel)| match checks.iter().find(|check| check.name == *name) {
        None => engine.then(|| format!("{name}: it could not be checked")),
        Some(check) if check.verdict == Verdict::Fail => {
            Some(format!("{name}: {} ({})", check.found, check.remedy.as_deref().unwrap_or_default()))
        }
        Some(_) => None,
    };
    enforced.filter_map(wrong).collect()
}

pub(super) async fn run(config: &Config, output: Output) -> Result<u8, Failure> {
    let checks = checks(config).await;
    output.print(&serde_json::json!({ "checks": checks }), || {
        let rows = checks.iter().map(|check| {
            let word = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
                Verdict::Ignored => "ignored",
            };
            vec![word.to_owned(), check.name.to_owned(), check.found.clone(), check.remedy.clone().unwrap_or_default()]
        });
        show::table(&["STATE", "CHECK", "FOUND", "REMEDY"], rows.collect())
    })?;
    Ok(u8::from(checks.iter().any(|check| check.verdict == Verdict::Fail)))
}

/// The leading numbers of a version such as `1.1.5+ds1`.
fn version(text: &str) -> Vec<u32> {
    let numbers = text.split(['+', '-', '~']).next().unwrap_or_default();
    numbers.split('.').map_while(|part| part.parse().ok()).collect()
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    if bytes >= 10 << 30 { format!("{} GiB", bytes >> 30) } else { format!("{} MiB", bytes >> 20) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CHECKS, HostFacts, LoadInput, load};
    use std::collections::BTreeSet;

    /// Settings as they are without any file.
    pub(super) fn config(more: &str) -> Config {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, more).expect("writes");
        let host = HostFacts {
            cores: 4,
            memory: crate::job::ByteSize::from_mib(8192),
            root: true,
            hostname: "h".into(),
            user_data: "/x".into(),
        };
        let input = LoadInput { file: Some(file), host, env: BTreeMap::new(), flags: Vec::new() };
        load(&input).expect("is valid")
    }

    pub(super) fn not_ok(checks: &[Check]) -> Vec<(&'static str, Verdict)> {
        assert!(checks.iter().all(|check| (check.verdict == Verdict::Ok) == check.remedy.is_none()), "a remedy each");
        checks.iter().filter(|check| check.verdict != Verdict::Ok).map(|check| (check.name, check.verdict)).collect()
    }

    #[tokio::test]
    async fn the_settings_know_every_check_and_no_other() {
        let config = config("");
        let mut made = host::judge(&host::tests::good());
        made.extend(settings::judge(&config, &settings::Facts::default()));
        made.extend(engine::judge(&Ok(engine::tests::good()), &config, &engine::Local::default()));
        let names: Vec<&str> = made.iter().map(|check| check.name).collect();
        assert!(names.len() >= 25, "{}", names.len());
        let all: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(all.len(), names.len(), "no name twice: {names:?}");
        assert_eq!(all, CHECKS.iter().copied().collect());
    }

    #[test]
    fn what_is_ignored_never_fails_and_what_is_enforced_never_only_warns() {
        let config = config("doctor: {checks: {runc: enforce, live-restore: enforce, kernel: ignore, engine: ignore}}");
        let mut checks = vec![
            Check::warn("runc", "1.1", "x"),
            Check::ok("live-restore", "on"),
            Check::warn("kernel", "4", "x"),
            Check::fail("engine", "no", "x"),
            Check::warn("links", "0", "x"),
        ];
        levels(&mut checks, &config);
        let verdicts: Vec<Verdict> = checks.iter().map(|check| check.verdict).collect();
        use Verdict::{Fail, Ignored, Ok, Warn};
        assert_eq!(verdicts, [Fail, Ok, Ignored, Ignored, Warn]);
        assert_eq!(not_well(&checks, &config.doctor, true), ["runc: 1.1 (x)"]);
        assert_eq!(not_well(&checks[1..], &config.doctor, true), ["runc: it could not be checked"]);
        assert!(not_well(&checks[1..], &config.doctor, false).is_empty(), "there is no engine");
    }
}
