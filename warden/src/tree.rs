//! Everything that descends from one process, as /proc tells, and signals to it.
//!
//! Who looks after a job on a host is no process 1, and cannot signal everybody. But it adopts whoever loses a parent, so all that a job
//! started descends from it, whatever sessions it has made. Must never signal a process that does not: what was seen is looked at
//! again when the kernel has bound a descriptor to it.
//!
//! /proc may hide what is not dumpable, or another user's. Children are known nevertheless: the kernel lists them to their parent, and what
//! they leave comes to the parent when they have gone, a level at a time. So "nothing was found" is never the last word: waiting is.

use crate::sys::{self, host};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Whoever begins in the middle of a pass is found by the next one. A process that is to be killed makes no more of them.
const PASSES: usize = 8;

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    /// It has ended, and its parent has not asked for it.
    over: bool,
    /// When it began, in the kernel's ticks: with the number, no other process has both.
    began: u64,
}

/// Reads a line of /proc/N/stat. What a process calls itself stands in round brackets, and may hold anything.
fn process(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let mut fields = rest.rsplit_once(") ")?.1.split(' ');
    let (state, parent) = (fields.next()?, fields.next()?);
    Some(Process {
        pid: pid.parse().ok()?,
        parent: parent.parse().ok()?,
        over: matches!(state, "Z" | "X" | "x"),
        // The 22nd field; the third and the fourth are read.
        began: fields.nth(17)?.parse().ok()?,
    })
}

fn look(pid: &str) -> Option<Process> {
    // Longer than any; in one read, or it would be of several moments.
    let mut line = [0; 1024];
    let count = File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut line).ok()?;
    // A name need not be text.
    process(&String::from_utf8_lossy(&line[..count]))
}

fn all() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).filter_map(|name| look(&name)).collect()
}

/// Those of `all` that descend from `root`, but not those in `spared`, nor whoever descends from them.
fn below(all: &[Process], root: i32, spared: &BTreeSet<i32>) -> Vec<Process> {
    let mut children: BTreeMap<i32, Vec<&Process>> = BTreeMap::new();
    for one in all {
        children.entry(one.parent).or_default().push(one);
    }
    let (mut found, mut ask) = (Vec::new(), vec![root]);
    while let Some(pid) = ask.pop() {
        // Taken out, so that a tree that changed while it was read is no circle.
        for one in children.remove(&pid).unwrap_or_default() {
            if !spared.contains(&one.pid) && one.pid != root {
                ask.push(one.pid);
                found.push(*one);
            }
        }
    }
    found
}

/// What a signal found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Processes that have not ended.
    pub(crate) there: usize,
    /// Of these, so many take no signal from us: they run as another user.
    pub(crate) out_of_reach: usize,
}

/// A process that was signalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    /// As in /proc; zero for one that is hidden there.
    pub(crate) began: u64,
    /// It takes no signal from us.
    pub(crate) refused: bool,
}

/// Children of this process as the kernel lists them to it, ended ones too. Nothing where it does not.
fn children() -> Option<Vec<i32>> {
    let text = std::fs::read_to_string("/proc/thread-self/children").ok()?;
    Some(text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

/// Whether the kernel lists its children to a process.
pub(crate) fn lists_children() -> bool {
    Path::new("/proc/thread-self/children").exists()
}

/// Everything that can be seen, and the children that cannot.
fn all_and_ours(us: i32) -> Vec<Process> {
    let mut all = all();
    let shown: BTreeSet<i32> = all.iter().map(|one| one.pid).collect();
    let hidden =
        children().unwrap_or_default().into_iter().filter(|pid| !shown.contains(pid) && host::is_running(*pid));
    all.extend(hidden.map(|pid| Process { pid, parent: us, over: false, began: 0 }));
    all
}

/// Sends a signal to all that descends from this process, but for `spared` and what descends from those.
pub(crate) fn signal(number: i32, spared: &BTreeSet<i32>) -> Found {
    let seen = signal_each(number, spared, |_| {});
    Found { there: seen.len(), out_of_reach: seen.iter().filter(|one| one.refused).count() }
}

/// The same, and says who they were. `before` is told of each while it is still as it was; parents come before their children.
pub(crate) fn signal_each(number: i32, spared: &BTreeSet<i32>, mut before: impl FnMut(&Seen)) -> Vec<Seen> {
    let us = std::process::id().cast_signed();
    let (mut found, mut done) = (Vec::new(), BTreeSet::new());
    for _ in 0..PASSES {
        let there = below(&all_and_ours(us), us, spared);
        let new: Vec<Process> =
            there.into_iter().filter(|one| !one.over && done.insert((one.pid, one.began))).collect();
        if new.is_empty() {
            break;
        }
        let from = found.len();
        found.extend(new.iter().map(|one| Seen { pid: one.pid, parent: one.parent, began: one.began, refused: false }));
        // All of them before the first is signalled: a parent's end makes a child another's.
        found[from..].iter().for_each(&mut before);
        for one in &mut found[from..] {
            let same = || look(&one.pid.to_string()).is_some_and(|now| now.began == one.began);
            let sent = match one.parent == us {
                true => host::signal_child(one.pid, number),
                false => host::signal(one.pid, number, same),
            };
            one.refused = sent.is_err_and(|error| error.raw_os_error() == Some(host::EPERM));
        }
        if number != sys::SIGKILL {
            break;
        }
    }
    found
}

/// The value of this variable with which a process began, where that can be read.
pub(crate) fn variable(pid: i32, name: &str) -> Option<String> {
    let variables = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value =
        variables.split(|byte| *byte == 0).find_map(|one| one.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    String::from_utf8(value.to_vec()).ok()
}

/// Kills what has `mark` among its variables, wherever it is. Says how many there were.
pub(crate) fn kill_marked(mark: &[u8]) -> usize {
    let us = std::process::id().cast_signed();
    let marked = |pid: i32| {
        let variables = std::fs::read(Path::new("/proc").join(pid.to_string()).join("environ")).unwrap_or_default();
        variables.split(|byte| *byte == 0).any(|variable| variable.starts_with(mark))
    };
    let found = all().into_iter().filter(|one| one.pid != us && !one.over && marked(one.pid));
    found.filter(|one| host::signal(one.pid, sys::SIGKILL, || marked(one.pid)).is_ok()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(pid: i32, parent: i32) -> Process {
        Process { pid, parent, over: false, began: 0 }
    }

    #[test]
    fn a_line_is_read_whatever_a_process_calls_itself() {
        let rest = "S 7 9 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 99 1";
        let wanted = Process { pid: 12, parent: 7, over: false, began: 4711 };
        for name in ["sh", "a b", ") S 1 (", "\u{fffd}) "] {
            assert_eq!(process(&format!("12 ({name}) {rest}\n")), Some(wanted), "{name:?}");
        }
        assert_eq!(process(&format!("12 (sh) {}", rest.replace('S', "Z"))), Some(Process { over: true, ..wanted }));
        assert_eq!(process("12 (sh) S 7"), None);
        assert_eq!(process(""), None);
    }

    #[test]
    fn a_tree_is_found_and_what_is_spared_is_not() {
        let all = [one(2, 1), one(3, 2), one(4, 2), one(5, 3), one(6, 5), one(7, 1), one(8, 4), one(9, 8)];
        let found = |root, spared: &[i32]| {
            let mut pids: Vec<i32> =
                below(&all, root, &spared.iter().copied().collect()).iter().map(|one| one.pid).collect();
            pids.sort_unstable();
            pids
        };
        assert_eq!(found(2, &[]), [3, 4, 5, 6, 8, 9]);
        assert_eq!(found(2, &[4]), [3, 5, 6]);
        assert_eq!(found(6, &[]), []);
        // As it may look while it changes: a circle.
        assert_eq!(below(&[one(3, 4), one(4, 3), one(3, 2)], 2, &BTreeSet::new()).len(), 3);
    }

    #[test]
    fn this_process_and_its_children_are_there() {
        assert!(look("self").is_some_and(|one| one.began > 0));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("starts");
        let pid = child.id().cast_signed();
        let us = std::process::id().cast_signed();
        // Other tests have children too; those are nobody's business here.
        assert!(below(&all(), us, &BTreeSet::new()).iter().any(|one| one.pid == pid));
        assert!(!below(&all(), us, &BTreeSet::from([pid])).iter().any(|one| one.pid == pid));
        child.kill().expect("is there");
        child.wait().expect("has ended");
    }
}
