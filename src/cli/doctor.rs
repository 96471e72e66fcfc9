//! `jobcell doctor`: what of this host would keep jobs from running well, each with a remedy. Gathering is apart from
//! judging, so the judgement is tested with made-up facts.

use super::{Failure, Output, show};
use crate::config::Config;
use crate::executor::docker::{EngineFacts, probe};
use serde::Serialize;
use std::path::Path;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    /// Jobs run, with less safety or comfort.
    Warn,
    /// Jobs do not run.
    Fail,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

struct Facts {
    engine: Result<EngineFacts, String>,
    host: String,
    presets: Vec<String>,
    data_dir: Result<u64, String>,
    machine: &'static str,
}

/// Below this the next chatty job fills the disk.
const LEAST_FREE: u64 = 1 << 30;

pub(super) async fn run(config: &Config, output: Output) -> Result<u8, Failure> {
    let images: Vec<String> = config.presets.values().map(|preset| preset.image.clone()).collect();
    let limit = config.docker.connect_timeout.as_duration();
    let facts = Facts {
        engine: probe(&config.docker.host, &images, limit).await.map_err(|error| error.short()),
        host: config.docker.host.clone(),
        presets: images,
        data_dir: free_space(&config.data_dir),
        // The warden's checksums use SSE4.2, which every x86-64 processor since 2008 has.
        machine: if std::is_x86_feature_detected!("sse4.2") { std::env::consts::ARCH } else { "x86_64 without SSE4.2" },
    };
    let checks = judge(&facts);
    output.print(&serde_json::json!({ "checks": checks }), || {
        let rows = checks.iter().map(|check| {
            let word = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            vec![word.to_owned(), check.name.to_owned(), check.found.clone(), check.remedy.clone().unwrap_or_default()]
        });
        show::table(&["STATE", "CHECK", "FOUND", "REMEDY"], rows.collect())
    })?;
    Ok(u8::from(checks.iter().any(|check| check.verdict == Verdict::Fail)))
}

/// Free bytes where the data directory is or will be, after a test write where it is.
fn free_space(dir: &Path) -> Result<u64, String> {
    let there = dir.ancestors().find(|part| part.is_dir()).unwrap_or(Path::new("/"));
    if there == dir {
        let test = dir.join(".doctor");
        std::fs::write(&test, b"x").map_err(|error| error.to_string())?;
        let _ = std::fs::remove_file(test);
    }
    rustix::fs::statvfs(there).map(|stat| stat.f_bavail * stat.f_frsize).map_err(|error| error.to_string())
}

fn judge(facts: &Facts) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut add = |name, verdict, found: String, remedy: Option<&str>| {
        checks.push(Check { name, verdict, found, remedy: remedy.map(str::to_owned) });
    };
    match facts.machine {
        "x86_64" => add("processor", Verdict::Ok, "x86_64".into(), None),
        other => add("processor", Verdict::Fail, other.into(), Some("the warden is built for x86-64 with SSE4.2 only")),
    }
    match &facts.data_dir {
        Ok(free) if *free < LEAST_FREE => add(
            "data directory",
            Verdict::Warn,
            format!("{} MiB free", free >> 20),
            Some("free some space, or move data_dir"),
        ),
        Ok(free) => add("data directory", Verdict::Ok, format!("{} GiB free", free >> 30), None),
        Err(error) => add(
            "data directory",
            Verdict::Fail,
            error.clone(),
            Some("correct its owner and mode, or choose another data_dir"),
        ),
    }
    let engine = match &facts.engine {
        Ok(engine) => engine,
        Err(error) => {
            let remedy = "start the engine (`scripts/engine.sh` does), or set docker.host or DOCKER_HOST; the user must be in the group that owns the socket";
            add("engine", Verdict::Fail, format!("{}: {error}", facts.host), Some(remedy));
            return checks;
        }
    };
    add("engine", Verdict::Ok, format!("{} at {}", engine.version, facts.host), None);
    match version(&engine.api_version) >= vec![1, 41] {
        true => add("engine API", Verdict::Ok, engine.api_version.clone(), None),
        false => {
            add("engine API", Verdict::Fail, engine.api_version.clone(), Some("upgrade the engine to 20.10 or later"))
        }
    }
    let runc = version(&engine.runc);
    let fixed = runc >= vec![1, 3, 3] || (runc.starts_with(&[1, 2]) && runc >= vec![1, 2, 8]);
    match (engine.runc.is_empty(), fixed) {
        (true, _) => {
            add("runc", Verdict::Warn, "the engine does not say".into(), Some("check that it is 1.2.8, 1.3.3 or later"))
        }
        (false, true) => add("runc", Verdict::Ok, engine.runc.clone(), None),
        (false, false) => add(
            "runc",
            Verdict::Warn,
            engine.runc.clone(),
            Some("older than 1.2.8 and 1.3.3: make sure that your distribution carries the fixes of November 2025"),
        ),
    }
    let limits = [("memory", engine.memory_limit), ("swap", engine.swap_limit), ("pids", engine.pids_limit)];
    let missing: Vec<&str> = limits.iter().filter(|(_, there)| !there).map(|(name, _)| *name).collect();
    match missing[..] {
        [] => {
            add("limits", Verdict::Ok, format!("memory, swap and pids, cgroup version {}", engine.cgroup_version), None)
        }
        ["swap"] => add(
            "limits",
            Verdict::Warn,
            "swap is not counted".into(),
            Some("boot with swapaccount=1, or run without swap: a job can swap beyond its memory"),
        ),
        _ => add(
            "limits",
            Verdict::Fail,
            format!("not enforced: {}", missing.join(", ")),
            Some("enable the kernel's control groups for these"),
        ),
    }
    let has = |name: &str| engine.security_options.iter().any(|option| option.contains(name));
    match has("seccomp") {
        true => add("seccomp", Verdict::Ok, "available".into(), None),
        false => add("seccomp", Verdict::Fail, "not available".into(), Some("use a kernel and an engine with seccomp")),
    }
    match has("apparmor") || has("selinux") {
        true => add("security module", Verdict::Ok, engine.security_options.join(" "), None),
        false => {
            add("security module", Verdict::Warn, "none".into(), Some("AppArmor or SELinux would be one more wall"))
        }
    }
    match engine.live_restore {
        true => add("live-restore", Verdict::Ok, "on".into(), None),
        false => add(
            "live-restore",
            Verdict::Warn,
            "off".into(),
            Some("set \"live-restore\": true in daemon.json, or an engine restart ends running jobs"),
        ),
    }
    let absent: Vec<&str> =
        facts.presets.iter().filter(|image| !engine.images.contains(image)).map(String::as_str).collect();
    match absent[..] {
        [] => add("preset images", Verdict::Ok, facts.presets.join(", "), None),
        _ => add(
            "preset images",
            Verdict::Warn,
            format!("not there: {}", absent.join(", ")),
            Some("make them with `scripts/images.sh`, or pull them; jobs that name them fail until then"),
        ),
    }
    checks
}

/// The leading numbers of a version such as `1.1.5+ds1`.
fn version(text: &str) -> Vec<u32> {
    let numbers = text.split(['+', '-', '~']).next().unwrap_or_default();
    numbers.split('.').map_while(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        let engine = EngineFacts {
            version: "28.0.1".into(),
            api_version: "1.48".into(),
            runc: "1.3.3".into(),
            security_options: vec!["name=seccomp,profile=builtin".into(), "name=apparmor".into()],
            live_restore: true,
            memory_limit: true,
            swap_limit: true,
            pids_limit: true,
            images: vec!["a".into()],
            ..EngineFacts::default()
        };
        Facts {
            engine: Ok(engine),
            host: "unix:///x".into(),
            presets: vec!["a".into()],
            data_dir: Ok(1 << 40),
            machine: "x86_64",
        }
    }

    fn not_ok(facts: &Facts) -> Vec<(&'static str, Verdict)> {
        let checks = judge(facts);
        assert!(checks.iter().all(|check| (check.verdict == Verdict::Ok) == check.remedy.is_none()), "a remedy each");
        checks.iter().filter(|check| check.verdict != Verdict::Ok).map(|check| (check.name, check.verdict)).collect()
    }

    #[test]
    fn a_good_host_has_nothing_to_mend() {
        assert_eq!(not_ok(&good()), []);
    }

    #[test]
    fn each_lack_is_named() {
        let with = |change: fn(&mut EngineFacts)| {
            let mut facts = good();
            change(facts.engine.as_mut().expect("good"));
            not_ok(&facts)
        };
        assert_eq!(with(|engine| engine.api_version = "1.40".into()), [("engine API", Verdict::Fail)]);
        assert_eq!(with(|engine| engine.runc = "1.1.5+ds1".into()), [("runc", Verdict::Warn)]);
        assert_eq!(with(|engine| engine.swap_limit = false), [("limits", Verdict::Warn)]);
        assert_eq!(with(|engine| engine.pids_limit = false), [("limits", Verdict::Fail)]);
        assert_eq!(with(|engine| engine.security_options.clear()).len(), 2);
        assert_eq!(with(|engine| engine.images.clear()), [("preset images", Verdict::Warn)]);
        assert_eq!(not_ok(&Facts { engine: Err("refused".into()), ..good() }), [("engine", Verdict::Fail)]);
        assert_eq!(not_ok(&Facts { data_dir: Ok(1), ..good() }), [("data directory", Verdict::Warn)]);
    }
}
