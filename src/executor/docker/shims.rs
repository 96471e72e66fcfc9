//! Shims that an engine has forgotten: processes of this host that containerd started for a cell of ours, whose cell is over, and
//! whose container the engine does not know. A daemon that dies in the middle of a start leaves them, and nobody ends them.
//!
//! Only reads below /proc, and signals through a handle on the very process that was looked at.

use super::create::OWNER_ARGUMENT;
use super::engine::{Engine, EngineError};
use super::volume::WARDEN_PATH;
use crate::job::OwnerId;
use crate::supervise;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;
use std::time::Duration;

/// Between two looks: what is only starting has a child, or is known to the engine, by then.
const AGAIN: Duration = Duration::from_secs(2);
/// Of a bundle's description; ours have a tenth of it.
const MOST_CONFIG: u64 = 4 << 20;
/// A process that was killed is gone by then, unless the kernel holds it.
const GONE: Duration = Duration::from_secs(2);

/// A shim without anything to look after.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shim {
    pub(super) pid: i32,
    /// The id of the container that it was started for.
    pub(super) container: String,
    /// In clock ticks since the boot: tells it from another process with its number.
    start: u64,
}

impl fmt::Display for Shim {
    /// What no container can be named: it is told apart by the process.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shim {} of {}", self.pid, self.container)
    }
}

/// Those of `owner` that were seen twice and are not known to the engine. Errors: the engine does not answer.
pub(super) async fn left(engine: &Engine, owner: &OwnerId) -> Result<Vec<Shim>, EngineError> {
    let look = || {
        let owner = owner.to_string();
        supervise::blocking(move || idle(&owner))
    };
    let first = look().await;
    if first.is_empty() {
        return Ok(Vec::new());
    }
    tokio::time::sleep(AGAIN).await;
    let mut left = Vec::new();
    for shim in look().await.intersection(&first) {
        if engine.inspect_state(&shim.container).await?.is_none() {
            left.push(shim.clone());
        }
    }
    Ok(left)
}

impl Shim {
    /// Kills it, and waits until it is gone. Errors: it is not the process any more that was seen, has something to look after, or may
    /// not be signalled.
    pub(super) async fn end(&self) -> Result<(), String> {
        let shim = self.clone();
        supervise::blocking(move || shim.kill()).await?;
        let until = tokio::time::Instant::now() + GONE;
        while self.is_there() {
            if tokio::time::Instant::now() > until {
                return Err(format!("process {} was killed and is still there", self.pid));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn kill(&self) -> Result<(), String> {
        let failed = |error: rustix::io::Errno| format!("process {}: {error}", self.pid);
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        // From here on the handle is of one process; whether that is ours is looked at now.
        if !self.is_there() {
            return Ok(());
        }
        if processes().values().any(|process| process.parent == self.pid) {
            return Err(format!("process {} has something to look after by now", self.pid));
        }
        match pidfd_send_signal(&handle, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    fn is_there(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok();
        let process = stat.as_deref().and_then(Process::read);
        process.is_some_and(|process| process.start == self.start && !process.ended)
    }
}

/// Shims of `owner` that have no child now.
fn idle(owner: &str) -> BTreeSet<Shim> {
    let processes = processes();
    let parents: BTreeSet<i32> = processes.values().map(|process| process.parent).collect();
    let alone = processes.iter().filter(|(pid, process)| !process.ended && !parents.contains(pid));
    let shim = |(pid, process): (&i32, &Process)| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let container = container_of(&command)?;
        let mut config = Vec::new();
        // Its working directory, also when that has another name by now.
        let file = std::fs::File::open(format!("/proc/{pid}/cwd/config.json")).ok()?;
        file.take(MOST_CONFIG).read_to_end(&mut config).ok()?;
        is_a_cell_of(owner, &config).then_some(Shim { pid: *pid, container, start: process.start })
    };
    alone.filter_map(shim).collect()
}

#[derive(Debug, PartialEq, Eq)]
struct Process {
    parent: i32,
    start: u64,
    /// It waits for its parent to look.
    ended: bool,
}

impl Process {
    /// From the line of /proc/PID/stat. A name may hold anything, so what follows it is behind the last bracket.
    fn read(stat: &str) -> Option<Self> {
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ended = matches!(*fields.first()?, "Z" | "X");
        Some(Self { parent: fields.get(1)?.parse().ok()?, start: fields.get(19)?.parse().ok()?, ended })
    }
}

fn processes() -> BTreeMap<i32, Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let read = |pid: i32| Some((pid, Process::read(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?));
    pids.filter_map(read).collect()
}

/// The container that a command line, its arguments apart by zero bytes, is a shim for.
fn container_of(command: &[u8]) -> Option<String> {
    let arguments: Vec<&str> =
        command.split(|byte| *byte == 0).map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
    let program = arguments.first()?.rsplit('/').next()?;
    if program != "containerd-shim" && !program.starts_with("containerd-shim-") {
        return None;
    }
    let id = arguments.windows(2).find_map(|pair| (pair[0] == "-id").then_some(pair[1]))?;
    // As the engine names containers: it is asked for it by this name.
    let is_one = id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    is_one.then(|| id.to_owned())
}

/// Whether a bundle is that of a cell of `owner`: nothing of a job is among a container's arguments, so nobody else can say so.
fn is_a_cell_of(owner: &str, config: &[u8]) -> bool {
    let Ok(config) = serde_json::from_slice::<Value>(config) else { return false };
    let arguments: Vec<&str> =
        config["process"]["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    arguments.first() == Some(&WARDEN_PATH) && arguments.windows(2).any(|pair| pair == [OWNER_ARGUMENT, owner])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    #[test]
    fn a_shim_is_known_by_its_name_and_says_for_which_container_it_is() {
        let of = |arguments: &[&str]| container_of(format!("{}\0", arguments.join("\0")).as_bytes());
        let shim = "/usr/bin/containerd-shim-runc-v2";
        assert_eq!(of(&[shim, "-namespace", "moby", "-id", ID, "-address", "/run/x.sock"]).as_deref(), Some(ID));
        assert_eq!(of(&["containerd-shim", "-id", ID]).as_deref(), Some(ID));
        for other in [
            &[shim, "-namespace", "moby"][..],
            &[shim, "-id"],
            &[shim, "-id", "../../x"],
            &[shim, "-id", &ID[1..]],
            &["/usr/bin/containerd", "-id", ID],
            &["/usr/bin/containerd-shimmer", "-id", ID],
            &["sh", shim, "-id", ID],
            &[""],
        ] {
            assert_eq!(of(other), None, "{other:?}");
        }
        assert_eq!(container_of(b""), None);
        assert_eq!(container_of(b"containerd-shim\0-id\0\xff"), None);
    }

    #[test]
    fn a_bundle_is_ours_when_its_warden_was_told_so() {
        let of = |config: Value| is_a_cell_of("0a1b2c3d", config.to_string().as_bytes());
        let config = |args: &[&str]| serde_json::json!({"process": {"args": args, "env": ["X=--owner", "0a1b2c3d"]}});
        assert!(of(config(&[WARDEN_PATH, "--start-deadline-ms", "1", OWNER_ARGUMENT, "0a1b2c3d"])));
        assert!(!of(config(&[WARDEN_PATH, "--start-deadline-ms", "1", OWNER_ARGUMENT, "00000000"])));
        assert!(!of(config(&[WARDEN_PATH, "0a1b2c3d", OWNER_ARGUMENT])));
        assert!(!of(config(&["/bin/sh", OWNER_ARGUMENT, "0a1b2c3d"])));
        assert!(!of(config(&[])) && !of(serde_json::json!([])) && !is_a_cell_of("0a1b2c3d", b"{"));
    }

    #[test]
    fn a_line_of_proc_is_read_whatever_the_process_is_called() {
        let line = "12 (a) S 1 (x) R 7 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 11 0 98765 1 2 3";
        assert_eq!(Process::read(line), Some(Process { parent: 7, start: 98765, ended: false }));
        let ended = line.replace(") R", ") Z");
        assert!(Process::read(&ended).expect("reads").ended);
        for bad in ["", "12 (a", "12 (a) S", "12 (a) S x 1"] {
            assert_eq!(Process::read(bad), None, "{bad}");
        }
        let me = i32::try_from(std::process::id()).expect("a pid");
        assert!(processes().contains_key(&me));
    }

    #[tokio::test]
    async fn only_the_process_that_was_seen_is_killed() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().expect("starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        let start = processes()[&pid].start;
        let shim = |start| Shim { pid, container: ID.to_owned(), start };
        shim(start + 1).end().await.expect("another one is none of ours");
        assert!(child.try_wait().expect("asks").is_none(), "it lives");
        // One that has something to look after.
        let me = i32::try_from(std::process::id()).expect("a pid");
        let own = Shim { pid: me, container: ID.to_owned(), start: processes()[&me].start };
        assert!(own.end().await.expect_err("is refused").contains("something to look after"));
        shim(start).end().await.expect("is killed");
        assert!(!child.wait().expect("has ended").success());
    }
}
