//! Limits and peaks of the cell's control group, version 1 or 2. Pure: where its folders are comes from two texts of
//! /proc, and files are read by a function that is passed in.

use crate::procfs::Mount;

/// What a limit says when there is none.
pub(crate) const NO_LIMIT: &str = "max";
/// Version 1 has no word for "no limit": it says the largest number of whole pages.
const V1_NO_LIMIT: u64 = 1 << 62;

/// The group of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Group {
    /// A folder per controller.
    V1 { memory: String, pids: String, cpu: String },
    /// One folder.
    V2 { folder: String },
}

/// A limit in force. Absent when the kernel does not tell, which is not the same as no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) memory_bytes: Option<String>,
    /// Memory and swap together.
    pub(crate) memory_swap_bytes: Option<String>,
    pub(crate) pids: Option<String>,
    pub(crate) cpu_quota_us: Option<String>,
    pub(crate) cpu_period_us: Option<String>,
}

/// What was used; 0 where the kernel does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Peaks {
    pub(crate) memory_bytes: u64,
    pub(crate) pids: u64,
    pub(crate) oom_kills: u64,
}

impl Group {
    /// Finds the group's folders from the mounts and /proc/self/cgroup. On a host with both versions, the one that has the
    /// memory controller counts.
    pub(crate) fn find(mounts: &[Mount<'_>], own: &str) -> Option<Self> {
        let v1 = |controller| folder(mounts, own, Some(controller)).unwrap_or_default();
        match folder(mounts, own, Some("memory")) {
            Some(memory) => Some(Self::V1 { memory, pids: v1("pids"), cpu: v1("cpu") }),
            None => folder(mounts, own, None).map(|folder| Self::V2 { folder }),
        }
    }

    pub(crate) fn version(&self) -> u8 {
        match self {
            Self::V1 { .. } => 1,
            Self::V2 { .. } => 2,
        }
    }

    pub(crate) fn limits(&self, read: impl Fn(&str) -> Option<String>) -> Limits {
        let word = |path: String| Some(read(&path)?.trim().to_owned()).filter(|word| !word.is_empty());
        match self {
            Self::V1 { memory, pids, cpu } => {
                let bytes = |name| {
                    let number: u64 = word(format!("{memory}/{name}"))?.parse().ok()?;
                    Some(if number < V1_NO_LIMIT { number.to_string() } else { NO_LIMIT.to_owned() })
                };
                let quota = word(format!("{cpu}/cpu.cfs_quota_us"));
                Limits {
                    memory_bytes: bytes("memory.limit_in_bytes"),
                    memory_swap_bytes: bytes("memory.memsw.limit_in_bytes"),
                    pids: word(format!("{pids}/pids.max")),
                    cpu_quota_us: quota.map(|quota| if quota.starts_with('-') { NO_LIMIT.to_owned() } else { quota }),
                    cpu_period_us: word(format!("{cpu}/cpu.cfs_period_us")),
                }
            }
            Self::V2 { folder } => {
                let memory = word(format!("{folder}/memory.max"));
                let swap = word(format!("{folder}/memory.swap.max"));
                let both = memory.as_deref().zip(swap.as_deref()).map(|(memory, swap)| {
                    let numbers = memory.parse::<u64>().ok().zip(swap.parse::<u64>().ok());
                    numbers.map_or(NO_LIMIT.to_owned(), |(memory, swap)| memory.saturating_add(swap).to_string())
                });
                let cpu = word(format!("{folder}/cpu.max"));
                let part = |n| Some(cpu.as_deref()?.split(' ').nth(n)?.to_owned());
                Limits {
                    memory_bytes: memory.clone(),
                    memory_swap_bytes: both,
                    pids: word(format!("{folder}/pids.max")),
                    cpu_quota_us: part(0),
                    cpu_period_us: part(1),
                }
            }
        }
    }

    pub(crate) fn peaks(&self, read: impl Fn(&str) -> Option<String>) -> Peaks {
        let number = |path: String| read(&path)?.trim().parse::<u64>().ok();
        let kills = |path: String| {
            read(&path)?.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok())
        };
        let (memory, pids, oom_kills) = match self {
            Self::V1 { memory, pids, .. } => (
                number(format!("{memory}/memory.max_usage_in_bytes")),
                number(format!("{pids}/pids.peak")),
                kills(format!("{memory}/memory.oom_control")),
            ),
            Self::V2 { folder } => (
                number(format!("{folder}/memory.peak")),
                number(format!("{folder}/pids.peak")),
                kills(format!("{folder}/memory.events")),
            ),
        };
        Peaks {
            memory_bytes: memory.unwrap_or_default(),
            pids: pids.unwrap_or_default(),
            oom_kills: oom_kills.unwrap_or_default(),
        }
    }
}

/// The folder of our group under `controller`'s hierarchy, or under version 2's when none is named. The mount may show the
/// hierarchy from a folder that is our group already (Docker), or from above it.
fn folder(mounts: &[Mount<'_>], own: &str, controller: Option<&str>) -> Option<String> {
    let mount = mounts.iter().find(|mount| match controller {
        Some(name) => mount.kind == "cgroup" && mount.super_options.split(',').any(|option| option == name),
        None => mount.kind == "cgroup2",
    })?;
    // A line is `number:controllers:path`; version 2's has no controllers.
    let path = own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let wanted = match controller {
            Some(name) => controllers.split(',').any(|one| one == name),
            None => controllers.is_empty(),
        };
        wanted.then_some(path)
    })?;
    let below =
        path.strip_prefix(mount.root.trim_end_matches('/')).filter(|below| below.is_empty() || below.starts_with('/'));
    Some(format!("{}{}", mount.place, below.unwrap_or_default()).trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::mounts;

    const V1_MOUNTS: &str = "30 1 0:5 /docker/abc /sys/fs/cgroup/memory ro,nosuid master:9 - cgroup cgroup rw,memory\n\
        31 1 0:6 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro,nosuid - cgroup cpu,cpuacct rw,cpu,cpuacct\n\
        32 1 0:7 / /sys/fs/cgroup/pids ro,nosuid - cgroup cgroup rw,pids\n";
    const V1_OWN: &str = "9:pids:/docker/abc\n8:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n0::/\n";

    fn files(list: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        |path| list.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned())
    }

    fn text(value: &str) -> Option<String> {
        Some(value.to_owned())
    }

    #[test]
    fn version_1_is_found_and_read() {
        let group = Group::find(&mounts(V1_MOUNTS), V1_OWN).expect("found");
        let folders = Group::V1 {
            memory: "/sys/fs/cgroup/memory".into(),
            pids: "/sys/fs/cgroup/pids/docker/abc".into(),
            cpu: "/sys/fs/cgroup/cpu,cpuacct".into(),
        };
        assert_eq!((group.version(), &group), (1, &folders));
        let read = files(&[
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "134217728\n"),
            ("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/memory.max_usage_in_bytes", "4096\n"),
            ("/sys/fs/cgroup/memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ("/sys/fs/cgroup/pids/docker/abc/pids.max", "64\n"),
            ("/sys/fs/cgroup/pids/docker/abc/pids.peak", "7\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ]);
        let limits = Limits {
            memory_bytes: text("134217728"),
            memory_swap_bytes: text("max"),
            pids: text("64"),
            cpu_quota_us: text("max"),
            cpu_period_us: text("100000"),
        };
        assert_eq!(group.limits(&read), limits);
        assert_eq!(group.peaks(&read), Peaks { memory_bytes: 4096, pids: 7, oom_kills: 2 });
    }

    #[test]
    fn version_2_is_found_and_read() {
        let mountinfo = "5 1 0:9 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n";
        let group = Group::find(&mounts(mountinfo), "0::/\n").expect("found");
        assert_eq!(group, Group::V2 { folder: "/sys/fs/cgroup".into() });
        let read = files(&[
            ("/sys/fs/cgroup/memory.max", "134217728\n"),
            ("/sys/fs/cgroup/memory.swap.max", "1024\n"),
            ("/sys/fs/cgroup/memory.peak", "8192\n"),
            ("/sys/fs/cgroup/memory.events", "low 0\noom 1\noom_kill 3\noom_group_kill 9\n"),
            ("/sys/fs/cgroup/pids.max", "max\n"),
            ("/sys/fs/cgroup/cpu.max", "50000 100000\n"),
        ]);
        let limits = Limits {
            memory_bytes: text("134217728"),
            memory_swap_bytes: text("134218752"),
            pids: text("max"),
            cpu_quota_us: text("50000"),
            cpu_period_us: text("100000"),
        };
        assert_eq!((group.version(), group.limits(&read)), (2, limits));
        assert_eq!(group.peaks(&read), Peaks { memory_bytes: 8192, pids: 0, oom_kills: 3 });
    }

    #[test]
    fn what_is_not_told_is_absent_and_never_no_limit() {
        let group = Group::V2 { folder: "/nowhere".into() };
        assert_eq!((group.limits(|_| None), group.peaks(|_| None)), (Limits::default(), Peaks::default()));
        assert_eq!(Group::find(&[], V1_OWN), None);
    }

    #[test]
    fn a_mount_from_elsewhere_is_taken_as_our_own() {
        // A private cgroup namespace that was entered late shows a root that is above or beside our path.
        let mountinfo = "5 1 0:9 /../.. /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let group = Group::find(&mounts(mountinfo), "0::/x\n").expect("found");
        assert_eq!(group, Group::V2 { folder: "/sys/fs/cgroup".into() });
    }
}
