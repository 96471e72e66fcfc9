//! Control groups of jobs on a host, where its login may make some: each job that asks for limits gets one of its own.
//!
//! ```text
//!  version 1   <the login's own group of each controller>/jobcell-OWNER-FOLDER-JOB
//!  version 2   <a group that the hub has to itself>/jobcell-hub                 the hub, and keepers
//!                                                 /jobcell-OWNER-FOLDER-JOB    a job, and nobody else
//! ```
//! Version 2 lets a group have limits for those below it only when no process is in itself. So there the hub needs one to itself, which is a scope
//! that systemd makes for it; only the kernel's first group may have both. Owns groups with these names. Must never touch another one.

use crate::cgroup::Group;
use crate::crc::crc32c;
use crate::procfs;
use crate::receipt::read;
use crate::sys::{self, host};
use crate::wire::GroupLimits;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// What jobs can be held to.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// Where the hub itself is, in version 2.
const HUB: &str = "jobcell-hub";
/// In which a share of the processor is counted: what the kernel begins with.
const PERIOD_US: u64 = 100_000;
/// The kernel takes no smaller share.
const LEAST_QUOTA_US: u64 = 1_000;
/// For systemd's answer, and for it to have done what it said.
const SCOPE_NS: u64 = 3_000_000_000;
const PAUSE_NS: u64 = 10_000_000;
/// Groups in groups that a job can leave us to remove.
const MOST_DEPTH: u32 = 16;
/// What is told of systemd's own words.
const MOST_TOLD: usize = 200;
/// How often a group is tried to be removed that the kernel still calls busy.
const REMOVALS: u32 = 10;

/// Where groups of jobs are made.
#[derive(Debug)]
pub(crate) struct Groups {
    /// Above them. A controller's folder is empty where there can be none.
    base: Group,
    /// What they can hold a job to.
    controllers: Vec<&'static str>,
    /// How groups begin whose jobs have their folders in this one.
    prefix: String,
}

/// A job's own group.
pub(crate) struct Own {
    pub(crate) group: Group,
    /// A process that writes to each of these is in it.
    pub(crate) doors: Arc<Vec<OwnedFd>>,
}

impl Groups {
    /// Finds where they can be made, and makes what is needed above them. Error: why there can be none.
    pub(crate) fn find(owner: &str, jobs: &Path) -> Result<Self, String> {
        let (base, controllers) = match own().ok_or("no control groups can be seen there")? {
            Group::V1 { memory, pids, cpu } => {
                // One that we are in: a mount may show another part of the hierarchy.
                let is_ours =
                    |folder: &str| may_make(folder) && members(folder).contains(&std::process::id().to_string());
                let usable = |folder: String| if is_ours(&folder) { folder } else { String::new() };
                let [memory, pids, cpu] = [memory, pids, cpu].map(usable);
                let there = [&memory, &pids, &cpu].map(|folder| !folder.is_empty());
                let found = CONTROLLERS.iter().zip(there).filter(|(_, there)| *there).map(|(name, _)| *name).collect();
                (Group::V1 { memory, pids, cpu }, found)
            }
            Group::V2 { folder } => {
                let folder = alone(folder)?;
                let found = enabled(&folder);
                (Group::V2 { folder }, found)
            }
        };
        if controllers.is_empty() {
            return Err("this login may not make control groups".to_owned());
        }
        // Homes can share a login's groups.
        let prefix = format!("jobcell-{owner}-{:08x}-", crc32c(jobs.as_os_str().as_encoded_bytes()));
        Ok(Self { base, controllers, prefix })
    }

    pub(crate) fn version(&self) -> u8 {
        self.base.version()
    }

    /// What a job can be held to.
    pub(crate) fn controllers(&self) -> &[&'static str] {
        &self.controllers
    }

    fn of(&self, name: &str) -> Group {
        let below = |folder: &String| match folder.is_empty() {
            true => String::new(),
            false => format!("{folder}/{}{name}", self.prefix),
        };
        match &self.base {
            Group::V1 { memory, pids, cpu } => Group::V1 { memory: below(memory), pids: below(pids), cpu: below(cpu) },
            Group::V2 { folder } => Group::V2 { folder: below(folder) },
        }
    }

    /// Makes a job's group, with these limits in force as far as there are controllers for them. Error: the step, and the kernel's number.
    pub(crate) fn make(&self, name: &str, limits: &GroupLimits) -> Result<Own, (String, i32)> {
        let failed = |step: &str| {
            let step = format!("cgroup: {step}");
            move |error: io::Error| (step, error.raw_os_error().unwrap_or(sys::EIO))
        };
        let group = self.of(name);
        let make = || {
            let mut doors = Vec::new();
            for folder in folders(&group) {
                std::fs::create_dir(folder).map_err(failed("make"))?;
                let door = File::options().write(true).open(format!("{folder}/cgroup.procs"));
                doors.push(OwnedFd::from(door.map_err(failed("open"))?));
            }
            for (file, value) in settings(&group, &self.controllers, limits) {
                let name = file.rsplit('/').next().unwrap_or_default();
                // Some kernels do not count swap.
                if !Path::new(&file).exists() && name.contains("sw") {
                    continue;
                }
                match write(&file, &value) {
                    // Version 1 takes no larger share than the group above has, which binds the job as well.
                    Err(error) if name == "cpu.cfs_quota_us" && error.raw_os_error() == Some(sys::EINVAL) => {}
                    written => written.map_err(failed(name))?,
                }
            }
            Ok(Arc::new(doors))
        };
        match make() {
            Ok(doors) => Ok(Own { group, doors }),
            Err(error) => {
                self.remove(name);
                Err(error)
            }
        }
    }

    /// Removes a job's group, if it has one and nobody is in it any more.
    pub(crate) fn remove(&self, name: &str) {
        for folder in folders(&self.of(name)) {
            for _ in 0..REMOVALS {
                match remove_tree(Path::new(folder), MOST_DEPTH) {
                    Err(error) if error.raw_os_error() == Some(host::EBUSY) => sys::poll(&mut [], Some(PAUSE_NS)),
                    _ => break,
                }
            }
        }
    }

    /// Removes groups of jobs that are not there any more: of a hub and keepers that were killed together.
    pub(crate) fn remove_lost(&self, is_there: impl Fn(&str) -> bool) {
        for entry in folders(&self.base).into_iter().filter_map(|base| std::fs::read_dir(base).ok()).flatten().flatten()
        {
            let name = entry.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_prefix(&self.prefix)) else { continue };
            if !is_there(name) {
                let _ = remove_tree(&entry.path(), MOST_DEPTH);
            }
        }
    }
}

/// Removes a group and those that a job has made in it. Only where nobody is goes anything.
fn remove_tree(folder: &Path, depth: u32) -> io::Result<()> {
    match std::fs::remove_dir(folder) {
        Err(error) if error.raw_os_error() == Some(host::EBUSY) && depth > 0 => {
            let inside =
                std::fs::read_dir(folder)?.flatten().filter(|one| one.file_type().is_ok_and(|kind| kind.is_dir()));
            for one in inside {
                remove_tree(&one.path(), depth - 1)?;
            }
            std::fs::remove_dir(folder)
        }
        done => done,
    }
}

/// The folders of a group, each once: controllers can share a hierarchy.
fn folders(group: &Group) -> Vec<&str> {
    let all = match group {
        Group::V1 { memory, pids, cpu } => vec![memory, pids, cpu],
        Group::V2 { folder } => vec![folder],
    };
    let mut found: Vec<&str> = Vec::new();
    for folder in all {
        if !folder.is_empty() && !found.contains(&folder.as_str()) {
            found.push(folder);
        }
    }
    found
}

/// The processes in a group.
fn members(folder: &str) -> Vec<String> {
    read(&format!("{folder}/cgroup.procs")).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// What is written where for these limits. Pure.
fn settings(group: &Group, controllers: &[&str], limits: &GroupLimits) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut set = |folder: &str, file: &str, value: String| all.push((format!("{folder}/{file}"), value));
    let quota_us = (u64::from(limits.cpu_milli) * PERIOD_US / 1000).max(LEAST_QUOTA_US);
    for name in limits.asked().filter(|name| controllers.contains(name)) {
        match (group, name) {
            (Group::V1 { memory, .. }, "memory") => {
                set(memory, "memory.limit_in_bytes", limits.memory_bytes.to_string());
                // Both together, so that there is no swap beyond it.
                set(memory, "memory.memsw.limit_in_bytes", limits.memory_bytes.to_string());
            }
            (Group::V2 { folder }, "memory") => {
                set(folder, "memory.max", limits.memory_bytes.to_string());
                set(folder, "memory.swap.max", "0".to_owned());
            }
            (Group::V1 { pids: folder, .. } | Group::V2 { folder }, "pids") => {
                set(folder, "pids.max", limits.pids.to_string());
            }
            (Group::V1 { cpu, .. }, _) => {
                set(cpu, "cpu.cfs_period_us", PERIOD_US.to_string());
                set(cpu, "cpu.cfs_quota_us", quota_us.to_string());
            }
            (Group::V2 { folder }, _) => set(folder, "cpu.max", format!("{quota_us} {PERIOD_US}")),
        }
    }
    all
}

/// The group of this process.
fn own() -> Option<Group> {
    let mountinfo = read("/proc/self/mountinfo")?;
    Group::find(&procfs::mounts(&mountinfo), &read("/proc/self/cgroup")?)
}

fn may_make(folder: &str) -> bool {
    !folder.is_empty() && CString::new(folder).is_ok_and(|folder| sys::may_write(&folder))
}

fn write(file: &str, value: &str) -> io::Result<()> {
    File::options().write(true).open(file)?.write_all(value.as_bytes())
}

/// A group of version 2 that has no process in itself, and the hub in one below it. Error: why there is none.
fn alone(folder: String) -> Result<String, String> {
    let us = [std::process::id().to_string()];
    // The kernel's first group may have both.
    let is_first = |folder: &str| !Path::new(&format!("{folder}/cgroup.type")).exists();
    let is_ours = |folder: &str| {
        let members = members(folder);
        may_make(folder) && (members == us || (is_first(folder) && members.contains(&us[0])))
    };
    let folder = match is_ours(&folder) {
        true => folder,
        false => {
            scope().map_err(|why| format!("its control group is not its own, and {why}"))?;
            match own() {
                Some(Group::V2 { folder }) if is_ours(&folder) => folder,
                _ => return Err("its control group is not its own, and systemd has given it none".to_owned()),
            }
        }
    };
    if !is_first(&folder) {
        let leaf = format!("{folder}/{HUB}");
        let made = match std::fs::create_dir(&leaf) {
            Err(error) if error.raw_os_error() == Some(host::EEXIST) => Ok(()),
            made => made,
        };
        let moved = made.and_then(|()| write(&format!("{leaf}/cgroup.procs"), "0"));
        moved.map_err(|error| format!("it cannot go to {leaf}: {error}"))?;
    }
    Ok(folder)
}

/// Switches on for those below what can be, and gives what is on then.
fn enabled(folder: &str) -> Vec<&'static str> {
    let control = format!("{folder}/cgroup.subtree_control");
    for name in CONTROLLERS {
        // One at a time: what is not there, or is not given to this login, must not keep the others away.
        let _ = write(&control, &format!("+{name}"));
    }
    let on = read(&control).unwrap_or_default();
    CONTROLLERS.into_iter().filter(|name| on.split_ascii_whitespace().any(|one| one == *name)).collect()
}

/// Has systemd move this process to a scope that is left to it. Error: why it does not.
fn scope() -> Result<(), String> {
    // One that is process 1 where we are: any other would take our number for that of a process of its own place.
    let is_systemd = read("/proc/1/comm").is_some_and(|name| name.trim_end() == "systemd");
    if !is_systemd || !Path::new("/run/systemd/system").is_dir() {
        return Err("there is no systemd to give it one".to_owned());
    }
    let pid = std::process::id().to_string();
    let name = format!("jobcell-hub-{pid}-{:x}.scope", sys::boot_ns());
    let mut ask = Command::new("busctl");
    if host::user() == 0 {
        ask.arg("--system");
    } else {
        // The scope would go with the login's last session, and jobs with it.
        let login = std::env::var("LOGNAME").or_else(|_| std::env::var("USER")).unwrap_or_default();
        if login.is_empty() || login.contains('/') || !Path::new("/var/lib/systemd/linger").join(&login).exists() {
            return Err("its login does not linger (loginctl enable-linger)".to_owned());
        }
        ask.arg("--user");
        if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
            ask.env("XDG_RUNTIME_DIR", format!("/run/user/{}", host::user()));
        }
    }
    ask.args(["--timeout=2", "--quiet", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1"]);
    ask.args(["org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))", &name, "fail", "4"]);
    ask.args(["PIDs", "au", "1", &pid, "Delegate", "b", "true", "CollectMode", "s", "inactive-or-failed"]);
    // A unit has a bound of tasks by default; a session, where the hub comes from, has none.
    ask.args(["TasksMax", "t", &u64::MAX.to_string(), "0"]);
    let ask = ask.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = ask.spawn().map_err(|error| format!("busctl cannot be begun: {error}"))?;
    let until = sys::boot_ns().saturating_add(SCOPE_NS);
    let mut asked = None;
    while sys::boot_ns() < until {
        if asked.is_none() {
            asked = child.try_wait().map_err(|error| format!("busctl cannot be waited for: {error}"))?;
        }
        match asked {
            Some(status) if !status.success() => {
                // A sentence, which fits the pipe.
                let mut told = String::new();
                let _ = child.stderr.take().map(|said| said.take(MOST_TOLD as u64).read_to_string(&mut told));
                return Err(format!("systemd does not give it one: {}", told.lines().next().unwrap_or_default()));
            }
            // It has begun to.
            Some(_) if read("/proc/self/cgroup").is_some_and(|own| own.contains(&name)) => return Ok(()),
            _ => {}
        }
        sys::poll(&mut [], Some(PAUSE_NS));
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("systemd has not given it one within {} s", SCOPE_NS / 1_000_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: GroupLimits = GroupLimits { memory_bytes: 64 << 20, pids: 20, cpu_milli: 500 };

    fn v1() -> Group {
        Group::V1 { memory: "/m".into(), pids: "/p".into(), cpu: "/c".into() }
    }

    #[test]
    fn limits_are_written_where_the_kernel_reads_them() {
        let texts = |group: &Group, controllers: &[&str], limits: &GroupLimits| -> Vec<String> {
            settings(group, controllers, limits).into_iter().map(|(file, value)| format!("{file}={value}")).collect()
        };
        let wanted = [
            "/m/memory.limit_in_bytes=67108864",
            "/m/memory.memsw.limit_in_bytes=67108864",
            "/p/pids.max=20",
            "/c/cpu.cfs_period_us=100000",
            "/c/cpu.cfs_quota_us=50000",
        ];
        assert_eq!(texts(&v1(), &CONTROLLERS, &LIMITS), wanted);
        let v2 = Group::V2 { folder: "/g".into() };
        let wanted = ["/g/memory.max=67108864", "/g/memory.swap.max=0", "/g/pids.max=20", "/g/cpu.max=50000 100000"];
        assert_eq!(texts(&v2, &CONTROLLERS, &LIMITS), wanted);
        // What nobody asks for, or nobody can hold it to, is left alone.
        assert_eq!(texts(&v2, &["pids"], &LIMITS), wanted[2..3]);
        assert!(texts(&v2, &CONTROLLERS, &GroupLimits::default()).is_empty());
        let little = GroupLimits { cpu_milli: 1, ..GroupLimits::default() };
        assert_eq!(texts(&v2, &CONTROLLERS, &little), ["/g/cpu.max=1000 100000"]);
    }

    #[test]
    fn a_job_has_a_group_of_each_controller_that_there_is() {
        let base = Group::V1 { memory: String::new(), pids: "/p".into(), cpu: "/c/x".into() };
        let groups = Groups { base, controllers: vec!["pids", "cpu"], prefix: "jobcell-0a1b-".into() };
        assert_eq!(folders(&groups.of("job-1")), ["/p/jobcell-0a1b-job-1", "/c/x/jobcell-0a1b-job-1"]);
        let together = Group::V1 { memory: "/a".into(), pids: String::new(), cpu: "/a".into() };
        assert_eq!(folders(&together), ["/a"]);
        assert_eq!(groups.make("job-1", &LIMITS).map(|_| ()).expect_err("no such folder").0, "cgroup: make");
    }

    /// Where whoever runs the tests may make groups: a group, a process in it, its peaks, and nothing left.
    #[test]
    fn a_real_group_holds_who_goes_in_and_goes_when_it_is_empty() {
        // In version 2 it would take this process elsewhere.
        let found = match own() {
            Some(Group::V1 { .. }) => Groups::find("test", Path::new(&format!("/test/{}", std::process::id()))),
            _ => Err("its groups are not of version 1".to_owned()),
        };
        let groups = match found {
            Ok(groups) => groups,
            Err(why) => return eprintln!("SKIPPED: {why}"),
        };
        let name = "unit".to_owned();
        let own = groups.make(&name, &LIMITS).unwrap_or_else(|failed| panic!("{failed:?}"));
        let limits = own.group.limits(read);
        assert_eq!(limits.pids.as_deref(), groups.controllers.contains(&"pids").then_some("20"));
        let doors: String =
            folders(&own.group).iter().map(|folder| format!("echo $$ > {folder}/cgroup.procs; ")).collect();
        let status = Command::new("sh").args(["-c", &format!("{doors} exec true")]).status().expect("runs");
        assert!(status.success());
        // What a job has made in it goes with it.
        std::fs::create_dir_all(Path::new(folders(&own.group)[0]).join("of/the/job")).expect("made");
        // One that is there stays, and one that is not goes.
        groups.remove_lost(|one| one == name);
        assert!(Path::new(folders(&own.group)[0]).is_dir());
        groups.remove_lost(|one| one != name);
        assert!(folders(&own.group).iter().all(|folder| !Path::new(folder).exists()));
        groups.remove(&name);
    }
}
