//! Limits and peaks of the cell's control group, version 1 or 2. Pure: where its folders are comes from two texts of
//! /proc, and files are read by a function that is passed in.

use crate::procfs::Mount;
use crate::wire::Met;

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

impl Limits {
    /// There is one of memory.
    pub(crate) fn bounds_memory(&self) -> bool {
        self.memory_bytes.as_deref().is_some_and(|most| most != NO_LIMIT)
    }
}

/// What was used, and which limits were met; 0 where the kernel does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Peaks {
    /// Without swap.
    pub(crate) memory_bytes: u64,
    pub(crate) pids: u64,
    /// Processes that the kernel killed for memory.
    pub(crate) oom_kills: u64,
    /// New processes that the kernel refused.
    pub(crate) pids_refused: u64,
    /// Periods in which the group had to wait for its next share of the processor, and for how long in all.
    pub(crate) throttled: u64,
    pub(crate) throttled_us: u64,
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
        let told = |value: Option<u64>| value.unwrap_or_default();
        match self {
            Self::V1 { memory, pids, cpu } => {
                let stat = read(&format!("{cpu}/cpu.stat")).unwrap_or_default();
                Peaks {
                    memory_bytes: told(number(format!("{memory}/memory.max_usage_in_bytes"))),
                    pids: told(number(format!("{pids}/pids.peak"))),
                    oom_kills: told(read(&format!("{memory}/memory.oom_control")).and_then(|t| line(&t, "oom_kill"))),
                    pids_refused: told(read(&format!("{pids}/pids.events")).and_then(|t| line(&t, "max"))),
                    throttled: told(line(&stat, "nr_throttled")),
                    // Nanoseconds.
                    throttled_us: told(line(&stat, "throttled_time")) / 1000,
                }
            }
            Self::V2 { folder } => {
                let read = |name: &str| read(&format!("{folder}/{name}")).unwrap_or_default();
                let (memory, pids, stat) = (read("memory.events"), read("pids.events"), read("cpu.stat"));
                Peaks {
                    memory_bytes: told(number(format!("{folder}/memory.peak"))),
                    pids: told(number(format!("{folder}/pids.peak"))),
                    oom_kills: told(line(&memory, "oom_kill")),
                    pids_refused: told(line(&pids, "max")),
                    throttled: told(line(&stat, "nr_throttled")),
                    throttled_us: told(line(&stat, "throttled_usec")),
                }
            }
        }
    }
}

/// A processor that somebody waited for no longer than this in all was no limit to speak of.
const WAITED_US: u64 = 1_000_000;

/// The limits that were met. Pure.
pub(crate) fn met(limits: &Limits, peaks: Peaks) -> Vec<Met> {
    let number = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
    let one = |name: &str, limit, peak, times| Met { name: name.to_owned(), limit, peak, times };
    let mut met = Vec::new();
    if peaks.throttled_us >= WAITED_US {
        // Thousandths of a core.
        let share = number(&limits.cpu_quota_us).saturating_mul(1000) / number(&limits.cpu_period_us).max(1);
        met.push(one("cpu", share, share, peaks.throttled));
    }
    if peaks.oom_kills > 0 {
        met.push(one("memory", number(&limits.memory_bytes), peaks.memory_bytes, peaks.oom_kills));
    }
    if peaks.pids_refused > 0 {
        met.push(one("pids", number(&limits.pids), peaks.pids, peaks.pids_refused));
    }
    met
}

/// The number behind `key` in a file of lines `key number`.
fn line(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
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
#[path = "cgroup_tests.rs"]
mod tests;
