//! Version 1 and version 2 from kept files; tests/fixtures/cgroup says where they come from.

use super::*;
use crate::procfs::mounts;

macro_rules! fixtures {
    ($($version:literal: $($name:literal)*;)*) => {
        /// The file of a version by its name.
        fn fixture(version: &str, name: &str) -> Option<&'static str> {
            match (version, name) {
                $($(($version, $name) => {
                    Some(include_str!(concat!("../../tests/fixtures/cgroup/", $version, "/", $name)))
                })*)*
                _ => None,
            }
        }
    };
}

fixtures! {
    "v1": "mountinfo" "cgroup" "memory.limit_in_bytes" "memory.memsw.limit_in_bytes" "memory.max_usage_in_bytes"
        "memory.memsw.max_usage_in_bytes" "memory.failcnt" "memory.oom_control" "pids.max" "pids.peak" "pids.events"
        "cpu.cfs_quota_us" "cpu.cfs_period_us" "cpu.stat";
    "v2": "mountinfo" "cgroup" "memory.max" "memory.swap.max" "memory.peak" "memory.events" "pids.max" "pids.peak" "pids.events"
        "cpu.max" "cpu.stat";
}

/// The group that the files of a version are of, and what they say.
fn read_all(version: &str) -> (Group, Limits, Peaks) {
    let file = |name| fixture(version, name).expect("is kept");
    let group = Group::find(&mounts(file("mountinfo")), file("cgroup")).expect("found");
    let read = |path: &str| {
        let name = path.strip_prefix("/sys/fs/cgroup/")?;
        fixture(version, name.rsplit('/').next()?).map(str::to_owned)
    };
    (group.clone(), group.limits(read), group.peaks(read))
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

/// A cell of the same limits, met in the same way, is told in the same words by both versions.
#[test]
fn both_versions_tell_the_same_of_the_same_cell() {
    let (one, two) = (read_all("v1"), read_all("v2"));
    assert_eq!((one.0.version(), two.0.version()), (1, 2));
    let limits = Limits {
        memory_bytes: text("67108864"),
        memory_swap_bytes: text("67108864"),
        pids: text("8"),
        cpu_quota_us: text("50000"),
        cpu_period_us: text("100000"),
    };
    assert_eq!((&one.1, &two.1), (&limits, &limits));
    let peaks =
        Peaks { memory_bytes: 67_108_864, pids: 8, oom_kills: 1, pids_refused: 4, throttled: 2, throttled_us: 19_485 };
    assert_eq!((one.2, two.2), (peaks, peaks));
}

#[test]
fn limits_are_met_where_the_kernel_counts_that_they_were() {
    let (_, limits, peaks) = read_all("v1");
    let all = |peaks| met(&limits, peaks);
    let memory = Met { name: "memory".into(), limit: 67_108_864, peak: 67_108_864, times: 1 };
    let pids = Met { name: "pids".into(), limit: 8, peak: 8, times: 4 };
    assert_eq!(all(peaks), [memory, pids.clone()]);
    let waited = Peaks { throttled_us: WAITED_US, oom_kills: 0, ..peaks };
    assert_eq!(all(waited), [Met { name: "cpu".into(), limit: 500, peak: 500, times: 2 }, pids]);
    // To have used all of it is no harm.
    assert_eq!(all(Peaks { oom_kills: 0, pids_refused: 0, ..peaks }), []);
}

#[test]
fn no_limit_is_told_as_such() {
    let v1 = Group::find(&mounts(fixture("v1", "mountinfo").expect("kept")), fixture("v1", "cgroup").expect("kept"));
    let read = |path: &str| match path.rsplit('/').next()? {
        "memory.limit_in_bytes" | "memory.memsw.limit_in_bytes" => text("9223372036854771712\n"),
        "pids.max" => text("max\n"),
        "cpu.cfs_quota_us" => text("-1\n"),
        _ => None,
    };
    let none = Limits {
        memory_bytes: text(NO_LIMIT),
        memory_swap_bytes: text(NO_LIMIT),
        pids: text(NO_LIMIT),
        cpu_quota_us: text(NO_LIMIT),
        cpu_period_us: None,
    };
    assert_eq!(v1.expect("found").limits(read), none);
    let v2 = Group::V2 { folder: "/sys/fs/cgroup".into() };
    let read = |path: &str| match path.rsplit('/').next()? {
        "memory.max" | "memory.swap.max" | "pids.max" => text("max\n"),
        "cpu.max" => text("max 100000\n"),
        _ => None,
    };
    assert_eq!(v2.limits(read), Limits { cpu_period_us: text("100000"), ..none });
}

/// Swap is on top of memory in version 2, and within it in version 1.
#[test]
fn memory_and_swap_are_told_together() {
    let v2 = Group::V2 { folder: "/x".into() };
    let read = |path: &str| match path {
        "/x/memory.max" => text("4096"),
        "/x/memory.swap.max" => text("1024"),
        _ => None,
    };
    assert_eq!(v2.limits(read).memory_swap_bytes, text("5120"));
}

#[test]
fn what_is_not_told_is_absent_and_never_no_limit() {
    let group = Group::V2 { folder: "/nowhere".into() };
    assert_eq!((group.limits(|_| None), group.peaks(|_| None)), (Limits::default(), Peaks::default()));
    assert_eq!(Group::find(&[], "3:memory:/docker/abc\n"), None);
    // Torn, foreign and overlong lines.
    for bad in ["", "max", "max ", "max x", "maximum 3", "max 99999999999999999999", "\u{0}"] {
        assert_eq!(line(bad, "max"), None, "{bad:?}");
    }
    assert_eq!(line("low 0\noom_kill 3\noom_group_kill 9\n", "oom_kill"), Some(3));
}

#[test]
fn groups_are_found_below_their_mounts() {
    let mountinfo = "30 1 0:5 /docker/abc /sys/fs/cgroup/memory ro,nosuid master:9 - cgroup cgroup rw,memory\n\
        31 1 0:6 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro,nosuid - cgroup cpu,cpuacct rw,cpu,cpuacct\n\
        32 1 0:7 / /sys/fs/cgroup/pids ro,nosuid - cgroup cgroup rw,pids\n";
    let own = "9:pids:/docker/abc\n8:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n0::/\n";
    let folders = Group::V1 {
        memory: "/sys/fs/cgroup/memory".into(),
        pids: "/sys/fs/cgroup/pids/docker/abc".into(),
        cpu: "/sys/fs/cgroup/cpu,cpuacct".into(),
    };
    assert_eq!(Group::find(&mounts(mountinfo), own), Some(folders));
}

#[test]
fn a_mount_from_elsewhere_is_taken_as_our_own() {
    // A private cgroup namespace that was entered late shows a root that is above or beside our path.
    let mountinfo = "5 1 0:9 /../.. /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
    let group = Group::find(&mounts(mountinfo), "0::/x\n").expect("found");
    assert_eq!(group, Group::V2 { folder: "/sys/fs/cgroup".into() });
}
