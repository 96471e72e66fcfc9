//! The limits that a job has met: facts beside the cause of its end, for a limit can be met by a job that succeeds. A job that fails may
//! have failed for one of them, so the hint of its end is theirs.

use super::{ByteSize, Cpus};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A limit that was in a job's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitMet {
    /// Which: `memory`, `pids`, `disk` and `inodes` (of /workspace), `tmp` and `tmp_inodes` (of /tmp), `shm`, `output`, `cpu`.
    pub name: String,
    /// The limit: bytes, processes, files, thousandths of a core.
    pub limit: u64,
    /// The highest use that was seen, in the same unit; of memory that of the whole cell. 0 where unknown.
    pub peak: u64,
    /// How often: processes that were killed for memory, new processes that were refused, times that a file system was full, tenths of a
    /// second in which a processor was waited for.
    pub times: u64,
}

impl LimitMet {
    /// What a user can do about it.
    pub fn hint(&self) -> String {
        match self.name.as_str() {
            "memory" => "raise resources.memory, or make its processes smaller or fewer".into(),
            "pids" => "raise resources.pids, or have it start fewer processes and threads at a time".into(),
            "disk" => "raise resources.disk, or have it remove what it needs no more".into(),
            "inodes" => "raise resources.inodes, or have it make fewer files".into(),
            "tmp" | "tmp_inodes" => "write to /workspace (resources.disk), or have the operator raise docker.tmp_size \
                                     and docker.tmp_inodes"
                .into(),
            "shm" | "shm_inodes" => "/dev/shm has 16 MiB: have the program use files in /workspace".into(),
            "output" => "raise resources.output, or have it write less".into(),
            "cpu" => "raise resources.cpu, or have it use fewer threads".into(),
            other => format!("have it use less of {}", super::shown(other)),
        }
    }

    /// Whether a program that met it is likely to have failed for it: one that waits for a processor is only slow.
    fn fails(&self) -> bool {
        self.name != "cpu"
    }

    fn amount(&self, number: u64) -> String {
        match self.name.as_str() {
            "memory" | "disk" | "tmp" | "shm" | "output" => ByteSize::new(number).to_string(),
            "cpu" => Cpus::from_milli(u32::try_from(number).unwrap_or(u32::MAX)).to_string(),
            _ => number.to_string(),
        }
    }
}

/// One sentence, for people.
impl fmt::Display for LimitMet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (limit, times) = (self.amount(self.limit), self.times);
        match self.name.as_str() {
            "memory" => {
                let peak = self.peak >> 20;
                write!(
                    f,
                    "memory: {times} of its processes were killed at its limit of {limit} (its cell used {peak} MiB)"
                )
            }
            "pids" => write!(f, "pids: {times} times a new process or thread was refused at the limit of {limit}"),
            "disk" => write!(f, "disk: the {limit} of /workspace were full"),
            "inodes" => write!(f, "inodes: there were {limit} files in /workspace, and no more may be"),
            "tmp" => write!(f, "tmp: the {limit} of /tmp were full"),
            "tmp_inodes" => write!(f, "tmp_inodes: there were {limit} files in /tmp, and no more may be"),
            "shm" => write!(f, "shm: the {limit} of /dev/shm were full"),
            "output" => write!(f, "output: it wrote {}, and may write {limit}", self.amount(self.peak)),
            "cpu" => write!(f, "cpu: it had used up its share of {limit} cores in {times} tenths of a second"),
            name => write!(f, "{}: the limit of {limit} was met {times} times", super::shown(name)),
        }
    }
}

/// What to do for a job that failed and met these: about the first that is likely to be why.
pub(super) fn hint(met: &[LimitMet]) -> Option<String> {
    let first = met.iter().find(|one| one.fails())?;
    Some(format!("{first}: {}", first.hint()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(name: &str, limit: u64, peak: u64, times: u64) -> LimitMet {
        LimitMet { name: name.into(), limit, peak, times }
    }

    #[test]
    fn each_limit_says_how_much_and_what_to_do() {
        let mib = 1 << 20;
        for (one, wanted) in [
            (
                met("memory", 32 * mib, 40 * mib, 2),
                "2 of its processes were killed at its limit of 32MiB (its cell used 40 MiB)",
            ),
            (met("pids", 8, 8, 5), "5 times a new process or thread was refused at the limit of 8"),
            (met("disk", 4 * mib, 4 * mib, 1), "the 4MiB of /workspace were full"),
            (met("inodes", 64, 64, 1), "64 files in /workspace"),
            (met("tmp", mib, mib, 1), "the 1MiB of /tmp were full"),
            (met("tmp_inodes", 64, 64, 1), "64 files in /tmp"),
            (met("shm", 16 * mib, 16 * mib, 1), "the 16MiB of /dev/shm were full"),
            (met("output", 1024, 2048, 1), "it wrote 2KiB, and may write 1KiB"),
            (met("cpu", 500, 500, 12), "share of 0.5 cores in 12 tenths"),
            (met("later\u{1b}", 1, 2, 3), "later\\u{1b}: the limit of 1 was met 3 times"),
        ] {
            assert!(one.to_string().contains(wanted), "{one}");
            assert!(!one.hint().is_empty());
        }
    }

    #[test]
    fn a_slow_job_did_not_fail_for_its_share_of_a_processor() {
        let (cpu, pids) = (met("cpu", 500, 500, 12), met("pids", 8, 8, 5));
        assert_eq!(hint(std::slice::from_ref(&cpu)), None);
        assert!(hint(&[cpu, pids]).is_some_and(|hint| hint.contains("resources.pids")));
    }
}
