//! Where this process spends its time and memory, over a few seconds: its threads as the kernel counts them, its runtime as tokio does, its
//! memory as the kernel sees it.
//!
//! No stack is walked: that takes signals and unsafe code, or a tool beside the process (`perf record -p`), which is told to whoever needs more. Must
//! never cost more than reading some files of /proc a few times in a second.

use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Threads that are told, those with the most processor time first.
const MOST_THREADS: usize = 256;
/// Milliseconds of a tick: USER_HZ is 100 on every Linux that there is.
const TICK_MS: u64 = 10;

/// One thread, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Thread {
    name: String,
    state: char,
    user_ms: u64,
    system_ms: u64,
}

/// The process at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    threads: BTreeMap<u32, Thread>,
    /// Lines of /proc/self/status and /proc/self/io: names to numbers.
    facts: BTreeMap<String, u64>,
    workers: Vec<(Duration, u64)>,
    tasks: usize,
    queued: usize,
}

/// A thread over a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ThreadUse {
    /// The kernel's number of it.
    pub id: u32,
    /// What it calls itself.
    pub name: String,
    /// Processor time of its own, in tens of milliseconds.
    pub user_ms: u64,
    /// Processor time of the kernel for it.
    pub system_ms: u64,
    /// How often it was looked at.
    pub looks: u32,
    /// How often of these it ran or wanted to.
    pub running: u32,
    /// How often it waited for a disk or something else that cannot be interrupted.
    pub blocked: u32,
}

/// A worker of the runtime over a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkerUse {
    /// Time in which it polled tasks.
    pub busy_ms: u64,
    /// How often it went to sleep for want of work.
    pub parks: u64,
}

/// The process over a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Profile {
    /// How long it was looked at.
    pub ms: u64,
    /// Processor time of all threads.
    pub cpu_ms: u64,
    /// The threads, those with the most processor time first; 256 at most.
    pub threads: Vec<ThreadUse>,
    /// Workers of the runtime.
    pub workers: Vec<WorkerUse>,
    /// Tasks that have not ended.
    pub alive_tasks: u64,
    /// Tasks that wait for a worker and belong to none.
    pub queued_tasks: u64,
    /// Memory at the end, bytes: `resident`, `peak_resident`, `anonymous`, `swapped`.
    pub memory: BTreeMap<String, u64>,
    /// Bytes read from and written to disks, and switches between threads, meanwhile.
    pub counts: BTreeMap<String, u64>,
}

/// Names of ours, and those of the kernel with what one of them is.
const MEMORY: [(&str, &str); 4] =
    [("resident", "VmRSS"), ("peak_resident", "VmHWM"), ("anonymous", "RssAnon"), ("swapped", "VmSwap")];
const COUNTS: [(&str, &str); 4] = [
    ("disk_read_bytes", "read_bytes"),
    ("disk_written_bytes", "write_bytes"),
    ("voluntary_switches", "voluntary_ctxt_switches"),
    ("forced_switches", "nonvoluntary_ctxt_switches"),
];

/// A line of /proc/…/stat. Names may have spaces and brackets in them, so what follows is counted from the last one.
fn thread(stat: &str) -> Option<Thread> {
    let (head, rest) = stat.rsplit_once(") ")?;
    let name = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Thread {
        name,
        state: fields.first()?.chars().next()?,
        user_ms: ticks(11)? * TICK_MS,
        system_ms: ticks(12)? * TICK_MS,
    })
}

/// `Name: 12 kB` and `name: 12`; kB are told in bytes.
fn facts(text: &str) -> impl Iterator<Item = (String, u64)> + '_ {
    text.lines().filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        let mut words = rest.split_ascii_whitespace();
        let number = words.next()?.parse::<u64>().ok()?;
        let unit = if words.next() == Some("kB") { 1024 } else { 1 };
        Some((name.to_owned(), number.saturating_mul(unit)))
    })
}

impl Snapshot {
    /// The process now. Only within a runtime.
    pub fn take() -> Self {
        let mut taken = Self::threads_at(Path::new("/proc/self/task"));
        for file in ["/proc/self/status", "/proc/self/io"] {
            taken.facts.extend(facts(&std::fs::read_to_string(file).unwrap_or_default()));
        }
        let metrics = tokio::runtime::Handle::current().metrics();
        let worker = |n| (metrics.worker_total_busy_duration(n), metrics.worker_park_count(n));
        taken.workers = (0..metrics.num_workers()).map(worker).collect();
        (taken.tasks, taken.queued) = (metrics.num_alive_tasks(), metrics.global_queue_depth());
        taken
    }

    /// Its threads alone, for looks in between.
    pub fn look() -> Self {
        Self::threads_at(Path::new("/proc/self/task"))
    }

    fn threads_at(path: &Path) -> Self {
        let tasks = std::fs::read_dir(path).into_iter().flatten().flatten();
        let one = |entry: std::fs::DirEntry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            Some((id, thread(&std::fs::read_to_string(entry.path().join("stat")).ok()?)?))
        };
        Self { threads: tasks.filter_map(one).collect(), ..Self::default() }
    }
}

impl Profile {
    /// What happened from the first snapshot to the last; `looks` are those in between.
    pub fn between(first: &Snapshot, looks: &[Snapshot], last: &Snapshot, time: Duration) -> Self {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let used = |(id, end): (&u32, &Thread)| {
            // One that began meanwhile began with nothing; a number may be another thread's by now.
            let begin =
                first.threads.get(id).filter(|begin| begin.user_ms <= end.user_ms && begin.system_ms <= end.system_ms);
            let states: Vec<char> = looks.iter().filter_map(|look| Some(look.threads.get(id)?.state)).collect();
            let in_state =
                |state| u32::try_from(states.iter().filter(|one| **one == state).count()).unwrap_or(u32::MAX);
            ThreadUse {
                id: *id,
                name: end.name.clone(),
                user_ms: end.user_ms - begin.map_or(0, |begin| begin.user_ms),
                system_ms: end.system_ms - begin.map_or(0, |begin| begin.system_ms),
                looks: u32::try_from(states.len()).unwrap_or(u32::MAX),
                running: in_state('R'),
                blocked: in_state('D'),
            }
        };
        let mut threads: Vec<ThreadUse> = last.threads.iter().map(used).collect();
        threads.sort_by_key(|thread| std::cmp::Reverse((thread.user_ms + thread.system_ms, thread.running)));
        let cpu_ms = threads.iter().map(|thread| thread.user_ms + thread.system_ms).sum();
        threads.truncate(MOST_THREADS);
        let workers = first.workers.iter().zip(&last.workers).map(|(begin, end)| WorkerUse {
            busy_ms: ms(end.0.saturating_sub(begin.0)),
            parks: end.1.saturating_sub(begin.1),
        });
        let fact = |of: &Snapshot, name: &str| of.facts.get(name).copied().unwrap_or_default();
        let counted = |name: &str| fact(last, name).saturating_sub(fact(first, name));
        Self {
            ms: ms(time),
            cpu_ms,
            threads,
            workers: workers.collect(),
            alive_tasks: last.tasks as u64,
            queued_tasks: last.queued as u64,
            memory: MEMORY.iter().map(|(name, of)| ((*name).to_owned(), fact(last, of))).collect(),
            counts: COUNTS.iter().map(|(name, of)| ((*name).to_owned(), counted(of))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernels_is_read_whatever_a_thread_calls_itself() {
        let stat = "77 (a) (b c) R 1 1 1 0 -1 4194368 10 0 0 0 12 3 0 0 20 0 9 0 100 1 1";
        let wanted = Thread { name: "a) (b c".to_owned(), state: 'R', user_ms: 120, system_ms: 30 };
        assert_eq!(thread(stat), Some(wanted));
        for bad in ["", "77", "77 (x", "77 (x) ", "77 (x) R 1 2"] {
            assert_eq!(thread(bad), None, "{bad}");
        }
        let told: Vec<_> = facts("VmRSS:\t  12 kB\nread_bytes: 7\nName: x\nodd").collect();
        assert_eq!(told, [("VmRSS".to_owned(), 12 * 1024), ("read_bytes".to_owned(), 7)]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn work_is_seen_where_it_is_done() {
        let first = Snapshot::take();
        let began = std::time::Instant::now();
        let busy = std::thread::Builder::new().name("is-busy".to_owned());
        let (stop, stopped) = std::sync::mpsc::sync_channel::<()>(1);
        let busy = busy.spawn(move || {
            let mut sum = 0u64;
            while matches!(stopped.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty)) {
                sum = std::hint::black_box(sum.wrapping_add(1));
            }
        });
        let mut looks = Vec::new();
        let mine = |of: &Snapshot| {
            of.threads.values().find(|thread| thread.name == "is-busy").map(|thread| thread.user_ms + thread.system_ms)
        };
        while looks.last().and_then(mine).unwrap_or_default() < 100 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            looks.push(Snapshot::look());
            assert!(began.elapsed() < Duration::from_secs(60), "it gets no processor time");
        }
        let last = Snapshot::take();
        let profile = Profile::between(&first, &looks, &last, began.elapsed());
        drop(stop);
        busy.expect("starts").join().expect("ends");
        let found = profile.threads.iter().find(|thread| thread.name == "is-busy").expect("is seen");
        assert!(found.user_ms + found.system_ms >= 100 && found.running > 0 && found.looks > 0, "{found:?}");
        assert!(profile.cpu_ms >= 100 && profile.ms >= 100, "{profile:?}");
        assert_eq!(profile.workers.len(), 2);
        assert!(profile.memory["resident"] > 1 << 20 && profile.memory["peak_resident"] >= profile.memory["resident"]);
    }
}
