//! Limits and peaks as the kernel's control groups tell them: version 1 with a folder per controller, or version 2.
//! Reading is by a function that is passed in, so that both versions are tested from kept texts.

/// What is in force, and what was used. Absent means that the kernel does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cgroup {
    pub version: u8,
    pub memory_limit: Option<u64>,
    /// Memory and swap together.
    pub memory_swap_limit: Option<u64>,
    pub memory_peak: Option<u64>,
    pub oom_kills: Option<u64>,
    pub pids_limit: Option<u64>,
    pub pids_peak: Option<u64>,
    pub cpu_quota_us: Option<u64>,
    pub cpu_period_us: Option<u64>,
}

/// Reads the cell's own group, mounted at /sys/fs/cgroup.
pub fn read() -> Cgroup {
    read_with(|path| std::fs::read_to_string(format!("/sys/fs/cgroup/{path}")).ok())
}

fn read_with(file: impl Fn(&str) -> Option<String>) -> Cgroup {
    let number = |path: &str| file(path)?.trim().parse::<u64>().ok();
    let keyed = |path: &str, key: &str| {
        file(path)?.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok())
    };
    if file("cgroup.controllers").is_some() {
        let cpu = file("cpu.max").unwrap_or_default();
        let mut cpu = cpu.split_whitespace().map(|part| part.parse::<u64>().ok());
        let memory_limit = number("memory.max");
        Cgroup {
            version: 2,
            memory_limit,
            // Version 2 counts swap apart.
            memory_swap_limit: memory_limit.zip(number("memory.swap.max")).map(|(memory, swap)| memory + swap),
            memory_peak: number("memory.peak"),
            oom_kills: keyed("memory.events", "oom_kill "),
            pids_limit: number("pids.max"),
            pids_peak: number("pids.peak"),
            cpu_quota_us: cpu.next().flatten(),
            cpu_period_us: cpu.next().flatten(),
        }
    } else {
        Cgroup {
            version: 1,
            memory_limit: number("memory/memory.limit_in_bytes"),
            memory_swap_limit: number("memory/memory.memsw.limit_in_bytes"),
            memory_peak: number("memory/memory.max_usage_in_bytes"),
            oom_kills: keyed("memory/memory.oom_control", "oom_kill "),
            pids_limit: number("pids/pids.max"),
            pids_peak: number("pids/pids.peak"),
            // −1, no limit, does not parse and so is absent.
            cpu_quota_us: number("cpu/cpu.cfs_quota_us"),
            cpu_period_us: number("cpu/cpu.cfs_period_us"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        move |path| list.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned())
    }

    #[test]
    fn version_1_is_read() {
        let group = read_with(files(&[
            ("memory/memory.limit_in_bytes", "134217728\n"),
            ("memory/memory.memsw.limit_in_bytes", "134217728\n"),
            ("memory/memory.max_usage_in_bytes", "4096\n"),
            ("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ("pids/pids.max", "64\n"),
            ("cpu/cpu.cfs_quota_us", "50000\n"),
            ("cpu/cpu.cfs_period_us", "100000\n"),
        ]));
        assert_eq!((group.version, group.memory_limit, group.oom_kills), (1, Some(134_217_728), Some(2)));
        assert_eq!((group.pids_limit, group.cpu_quota_us, group.cpu_period_us), (Some(64), Some(50_000), Some(100_000)));
    }

    #[test]
    fn version_2_is_read_and_max_means_no_limit() {
        let group = read_with(files(&[
            ("cgroup.controllers", "cpu memory pids\n"),
            ("memory.max", "134217728\n"),
            ("memory.swap.max", "0\n"),
            ("memory.peak", "8192\n"),
            ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n"),
            ("pids.max", "max\n"),
            ("pids.peak", "5\n"),
            ("cpu.max", "max 100000\n"),
        ]));
        assert_eq!((group.version, group.memory_swap_limit, group.oom_kills), (2, Some(134_217_728), Some(1)));
        assert_eq!((group.pids_limit, group.cpu_quota_us, group.cpu_period_us), (None, None, Some(100_000)));
    }
}
