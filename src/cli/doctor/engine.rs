//! The engine: what it says of itself, and what is to be seen of it from here.

use super::{Check, size, version};
use crate::config::Config;
use crate::executor::docker::EngineFacts;
use crate::job::UnixMillis;
use std::os::unix::fs::PermissionsExt;

/// Below this an image may not fit any more.
const LEAST_FREE: u64 = 2 << 30;
/// Leases are counted by each side's own clock; times in a job's history come from both.
const MOST_SKEW_S: u64 = 5;
/// Its API, since 20.10.
const API: [u32; 2] = [1, 41];

/// What is seen from here of an engine on this host.
#[derive(Debug, Default, Clone)]
pub(super) struct Local {
    /// Of its socket.
    mode: Option<u32>,
    /// Bytes free where it keeps images and cells.
    free: Option<u64>,
    /// Seconds between its clock and ours.
    skew: Option<u64>,
}

impl Local {
    pub(super) fn gather(config: &Config, engine: Option<&EngineFacts>) -> Self {
        let socket = config.docker.host.strip_prefix("unix://");
        let mode = socket.and_then(|path| std::fs::metadata(path).ok()).map(|meta| meta.permissions().mode() & 0o777);
        let root = engine.filter(|_| socket.is_some()).map(|engine| engine.root_dir.as_str());
        let stat = root.filter(|root| !root.is_empty()).and_then(|root| rustix::fs::statvfs(root).ok());
        let time = engine.and_then(|engine| engine.time.parse::<UnixMillis>().ok());
        let skew = time.map(|time| time.as_u64().abs_diff(UnixMillis::now().as_u64()) / 1000);
        Self { mode, free: stat.map(|stat| stat.f_bavail * stat.f_frsize), skew }
    }
}

pub(super) fn judge(engine: &Result<EngineFacts, String>, config: &Config, local: &Local) -> Vec<Check> {
    let host = &config.docker.host;
    let mut checks = vec![door(host, local)];
    match engine {
        Ok(engine) => {
            checks.push(Check::ok("engine", format!("{} at {host}", engine.version)));
            checks.extend(itself(engine, config, local));
            checks.extend(cells(engine, config));
        }
        Err(error) => checks.push(Check::fail(
            "engine",
            format!("{host}: {error}"),
            "start the engine (`scripts/engine.sh` does), or set docker.host or DOCKER_HOST; the user must be in the group that owns the socket",
        )),
    }
    checks
}

/// Who gets in is root on its host.
fn door(host: &str, local: &Local) -> Check {
    let remote = host.split_once("://").filter(|(kind, _)| *kind != "unix").map(|(_, address)| address);
    let near =
        |address: &str| address.starts_with("127.") || address.starts_with("localhost") || address.starts_with("[::1]");
    match (remote, local.mode) {
        (Some(address), _) if !near(address) => Check::warn(
            "engine-door",
            format!("{host} is not encrypted and asks for no key"),
            "use its unix socket, or a tunnel: whoever reaches it is root on its host",
        ),
        (Some(_), _) => Check::warn(
            "engine-door",
            format!("every user of this host can use {host}"),
            "use its unix socket: whoever reaches it is root",
        ),
        (None, Some(mode)) => Check::warn_if(
            mode & 0o006 != 0,
            "engine-door",
            format!("its socket has mode {mode:03o}"),
            "chmod 660 its socket: whoever reaches it is root",
        ),
        (None, None) => Check::ok("engine-door", "a unix socket"),
    }
}

fn itself(engine: &EngineFacts, config: &Config, local: &Local) -> Vec<Check> {
    vec![
        match version(&engine.api_version) >= API.to_vec() {
            true => Check::ok("engine-api", engine.api_version.clone()),
            false => Check::fail("engine-api", engine.api_version.clone(), "upgrade the engine to 20.10 or later"),
        },
        match local.free {
            None => Check::ok("engine-space", "not to be seen from here"),
            Some(free) => Check::warn_if(
                free < LEAST_FREE,
                "engine-space",
                format!("{} free in {}", size(free), engine.root_dir),
                "remove images that nobody uses (`docker image prune`), or give it a larger disk",
            ),
        },
        match local.skew {
            None => Check::ok("engine-clock", "not told"),
            Some(skew) => Check::warn_if(
                skew > MOST_SKEW_S,
                "engine-clock",
                format!("{skew} s from this host's"),
                "let both hosts take their time from NTP",
            ),
        },
        Check::warn_if(
            engine.debug,
            "engine-log",
            if engine.debug { "tells everything (debug)" } else { "not in debug mode" },
            "set \"debug\": false in daemon.json: its log then has each call's body",
        ),
        match &engine.warnings[..] {
            [] => Check::ok("engine-warnings", "none"),
            warnings => Check::warn("engine-warnings", warnings.join("; "), "see its documentation on each"),
        },
        Check::warn_if(
            ["vfs", "devicemapper", "aufs"].contains(&engine.storage.as_str()),
            "storage",
            if engine.storage.is_empty() { "not told" } else { &engine.storage },
            "use overlay2: this driver copies whole images for each cell, or is no longer looked after",
        ),
        Check::warn_if(
            !engine.live_restore,
            "live-restore",
            if engine.live_restore { "on" } else { "off" },
            "set \"live-restore\": true in daemon.json, or an engine restart ends running jobs",
        ),
        {
            let images: Vec<&str> = config.presets.values().map(|preset| preset.image.as_str()).collect();
            let absent: Vec<&str> =
                images.iter().filter(|image| !engine.images.iter().any(|there| there == *image)).copied().collect();
            match absent[..] {
                [] => Check::ok("preset-images", images.join(", ")),
                _ => Check::warn(
                    "preset-images",
                    format!("not there: {}", absent.join(", ")),
                    "make them with `scripts/images.sh`, or pull them; jobs that name them fail until then",
                ),
            }
        },
    ]
}

fn cells(engine: &EngineFacts, config: &Config) -> Vec<Check> {
    let has = |name: &str| engine.security_options.iter().any(|option| option.contains(name));
    vec![
        oci_runtime(engine, &config.docker.oci_runtime),
        runc(&engine.runc),
        limits(engine),
        Check::warn_if(
            engine.cgroup_driver == "none",
            "control-groups",
            format!("version {}, by {}", engine.cgroup_version, engine.cgroup_driver),
            "an engine without root enforces no limits unless systemd delegates control groups to it",
        ),
        match has("seccomp") {
            true => Check::ok("seccomp", "available"),
            false => Check::fail("seccomp", "not available", "use a kernel and an engine with seccomp"),
        },
        match has("apparmor") || has("selinux") {
            true => Check::ok("security-module", engine.security_options.join(" ")),
            false => Check::warn("security-module", "none", "AppArmor or SELinux would be one more wall"),
        },
        match has("userns") || has("rootless") {
            true => Check::ok("user-namespaces", "root in a container is nobody outside"),
            false => Check::warn(
                "user-namespaces",
                "off",
                "set \"userns-remap\": \"default\" in daemon.json: jobs are never root, and this is one more wall behind that",
            ),
        },
    ]
}

fn oci_runtime(engine: &EngineFacts, wanted: &str) -> Check {
    let known = engine.runtimes.iter().any(|name| name == wanted);
    match (wanted, known || engine.runtimes.is_empty()) {
        ("", _) => Check::ok("oci-runtime", "the engine's own choice"),
        (name, true) => Check::ok("oci-runtime", name),
        (name, false) => Check::fail(
            "oci-runtime",
            format!("the engine does not know {name}"),
            "add it to \"runtimes\" in daemon.json, or correct docker.oci_runtime",
        ),
    }
}

fn runc(text: &str) -> Check {
    let found = version(text);
    // What leads to a version may lack its fixes.
    let fixed =
        !text.contains("-rc") && (found >= vec![1, 3, 3] || (found.starts_with(&[1, 2]) && found >= vec![1, 2, 8]));
    match (text.is_empty(), fixed) {
        (true, _) => Check::warn("runc", "the engine does not say", "check that it is 1.2.8, 1.3.3 or later"),
        (false, true) => Check::ok("runc", text),
        (false, false) => Check::warn(
            "runc",
            text,
            "older than 1.2.8 and 1.3.3: make sure that your distribution carries the fixes of November 2025",
        ),
    }
}

fn limits(engine: &EngineFacts) -> Check {
    let limits = [("memory", engine.memory_limit), ("swap", engine.swap_limit), ("pids", engine.pids_limit)];
    let missing: Vec<&str> = limits.iter().filter(|(_, there)| !there).map(|(name, _)| *name).collect();
    match missing[..] {
        [] => Check::ok("limits", "memory, swap and pids"),
        ["swap"] => Check::warn(
            "limits",
            "swap is not counted",
            "boot with swapaccount=1, or run without swap: a job can swap beyond its memory",
        ),
        _ => Check::fail(
            "limits",
            format!("not enforced: {}", missing.join(", ")),
            "enable the kernel's control groups for these",
        ),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Verdict::{self, Fail, Warn};
    use super::super::tests::{config, not_ok};
    use super::*;

    pub(in crate::cli::doctor) fn good() -> EngineFacts {
        EngineFacts {
            version: "28.0.1".into(),
            api_version: "1.48".into(),
            runc: "1.3.3".into(),
            security_options: vec!["name=seccomp,profile=builtin".into(), "name=apparmor".into(), "name=userns".into()],
            live_restore: true,
            memory_limit: true,
            swap_limit: true,
            pids_limit: true,
            storage: "overlay2".into(),
            cgroup_driver: "systemd".into(),
            cgroup_version: "2".into(),
            runtimes: vec!["runc".into()],
            images: vec!["jobcell/bash:1".into(), "jobcell/python:1".into()],
            ..EngineFacts::default()
        }
    }

    fn with(change: fn(&mut EngineFacts)) -> Vec<(&'static str, Verdict)> {
        let mut engine = good();
        change(&mut engine);
        not_ok(&judge(&Ok(engine), &config(""), &Local::default()))
    }

    #[test]
    fn each_lack_of_an_engine_is_named() {
        assert_eq!(with(|_| {}), []);
        assert_eq!(with(|engine| engine.api_version = "1.40".into()), [("engine-api", Fail)]);
        assert_eq!(with(|engine| engine.runc = "1.1.5+ds1".into()), [("runc", Warn)]);
        assert_eq!(with(|engine| engine.runc = "1.2.8".into()), []);
        assert_eq!(with(|engine| engine.runc = "1.4.0-rc.1".into()), [("runc", Warn)]);
        assert_eq!(with(|engine| engine.runc.clear()), [("runc", Warn)]);
        assert_eq!(with(|engine| engine.swap_limit = false), [("limits", Warn)]);
        assert_eq!(with(|engine| engine.pids_limit = false), [("limits", Fail)]);
        assert_eq!(
            with(|engine| engine.security_options.clear()),
            [("seccomp", Fail), ("security-module", Warn), ("user-namespaces", Warn)]
        );
        assert_eq!(with(|engine| engine.images.clear()), [("preset-images", Warn)]);
        assert_eq!(with(|engine| engine.live_restore = false), [("live-restore", Warn)]);
        assert_eq!(with(|engine| engine.storage = "vfs".into()), [("storage", Warn)]);
        assert_eq!(with(|engine| engine.debug = true), [("engine-log", Warn)]);
        assert_eq!(with(|engine| engine.warnings = vec!["x".into()]), [("engine-warnings", Warn)]);
        assert_eq!(with(|engine| engine.cgroup_driver = "none".into()), [("control-groups", Warn)]);
        assert_eq!(not_ok(&judge(&Err("refused".into()), &config(""), &Local::default())), [("engine", Fail)]);
        let runsc = config("docker: {oci_runtime: runsc}");
        assert_eq!(not_ok(&judge(&Ok(good()), &runsc, &Local::default())), [("oci-runtime", Fail)]);
    }

    #[test]
    fn who_reaches_the_engine_and_where_it_stands_is_seen_from_here() {
        let seen = |host: &str, local: Local| {
            not_ok(&judge(&Ok(good()), &config(&format!("docker: {{host: \"{host}\"}}")), &local))
        };
        let socket = |mode| Local { mode: Some(mode), ..Local::default() };
        assert_eq!(seen("unix:///x", socket(0o660)), []);
        assert_eq!(seen("unix:///x", socket(0o666)), [("engine-door", Warn)]);
        for host in ["tcp://10.0.0.1:2375", "tcp://127.0.0.1:2375", "http://localhost:2375"] {
            assert_eq!(seen(host, Local::default()), [("engine-door", Warn)], "{host}");
        }
        assert_eq!(seen("unix:///x", Local { free: Some(1), ..Local::default() }), [("engine-space", Warn)]);
        assert_eq!(seen("unix:///x", Local { skew: Some(6), ..Local::default() }), [("engine-clock", Warn)]);
        assert_eq!(seen("unix:///x", Local { skew: Some(5), free: Some(1 << 40), ..socket(0o600) }), []);
    }
}
