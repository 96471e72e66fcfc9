//! The receipt: the isolation that is really in force, read from /proc and tried with calls that a cell must refuse.
//! Everything tried is harmless where it is allowed: null pointers, our own process, descriptors closed at once.

use crate::cgroup;
use crate::sys;
use crate::wire::Fact;
use std::collections::BTreeMap;

/// Reads and tries everything.
pub fn gather() -> Vec<Fact> {
    let began = sys::boot_us();
    let mut facts = Vec::new();
    let mut fact = |key: &str, value: String| facts.push((key.to_owned(), value));
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();

    fact("pid", std::process::id().to_string());
    for (key, value) in status_facts(&text("/proc/self/status")) {
        fact(key, value);
    }
    for (key, value) in mount_facts(&text("/proc/self/mountinfo")) {
        fact(&key, value);
    }
    fact("interfaces", interfaces(&text("/proc/net/dev")));
    fact("hostname", text("/proc/sys/kernel/hostname").trim().to_owned());
    let lsm = text("/proc/self/attr/current");
    fact("lsm", if lsm.is_empty() { "none".to_owned() } else { lsm.trim_matches(['\0', '\n']).to_owned() });
    for name in ["pid", "net", "ipc", "uts", "mnt", "cgroup", "user"] {
        if let Ok(target) = std::fs::read_link(format!("/proc/self/ns/{name}")) {
            fact(&format!("namespace.{name}"), target.to_string_lossy().into_owned());
        }
    }
    let group = cgroup::read();
    fact("cgroup_version", group.version.to_string());
    for (key, value) in [
        ("memory_limit_bytes", group.memory_limit),
        ("memory_swap_limit_bytes", group.memory_swap_limit),
        ("pids_limit", group.pids_limit),
        ("cpu_quota_us", group.cpu_quota_us),
        ("cpu_period_us", group.cpu_period_us),
    ] {
        if let Some(value) = value {
            fact(key, value.to_string());
        }
    }
    for (name, error) in tries() {
        fact(&format!("try.{name}"), error_name(error));
    }
    fact("receipt_us", (sys::boot_us() - began).to_string());
    facts
}

fn status_facts(status: &str) -> Vec<(&'static str, String)> {
    let line = |key: &str| {
        status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap_or_default().trim().to_owned()
    };
    // The four ids are real, effective, saved, file system; a cell in which they differ is not what was asked for.
    let ids = |key: &str| {
        let mut all: Vec<&str> = Vec::new();
        let text = line(key);
        for id in text.split_whitespace() {
            if !all.contains(&id) {
                all.push(id);
            }
        }
        all.join(",")
    };
    vec![
        ("uid", ids("Uid")),
        ("gid", ids("Gid")),
        ("groups", line("Groups").split_whitespace().collect::<Vec<_>>().join(",")),
        ("cap_inh", line("CapInh")),
        ("cap_prm", line("CapPrm")),
        ("cap_eff", line("CapEff")),
        ("cap_bnd", line("CapBnd")),
        ("cap_amb", line("CapAmb")),
        ("no_new_privs", line("NoNewPrivs")),
        ("seccomp", line("Seccomp")),
    ]
}

/// Kernel file systems that hold no data of a job's; whatever else is writable is listed.
const NOT_STORAGE: [&str; 6] = ["proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue"];

fn mount_facts(mountinfo: &str) -> Vec<Fact> {
    // The last mount at a place is the one in force.
    let mut mounts = BTreeMap::new();
    for line in mountinfo.lines() {
        let Some((front, back)) = line.split_once(" - ") else { continue };
        let front: Vec<&str> = front.split(' ').collect();
        let back: Vec<&str> = back.split(' ').collect();
        if let ([_, _, _, _, place, options, ..], [kind, _, super_options, ..]) = (&front[..], &back[..]) {
            mounts.insert(*place, (*kind, *options, *super_options));
        }
    }
    let read_only = |options: &str| options.split(',').any(|option| option == "ro");
    let mut facts = vec![(
        "root_readonly".to_owned(),
        mounts.get("/").map_or("unknown", |(_, options, _)| if read_only(options) { "1" } else { "0" }).to_owned(),
    )];
    let mut writable = Vec::new();
    for (place, (kind, options, super_options)) in &mounts {
        if read_only(options) || NOT_STORAGE.contains(kind) {
            continue;
        }
        writable.push(*place);
        if *kind == "tmpfs" && !place.starts_with("/proc/") {
            facts.push((format!("mount.{place}"), (*kind).to_owned()));
            facts.push((format!("mount.{place}.options"), (*options).to_owned()));
            for option in super_options.split(',') {
                if let Some(size) = option.strip_prefix("size=").and_then(bytes_of) {
                    facts.push((format!("mount.{place}.size"), size.to_string()));
                } else if let Some(inodes) = option.strip_prefix("nr_inodes=").and_then(bytes_of) {
                    facts.push((format!("mount.{place}.inodes"), inodes.to_string()));
                }
            }
        }
    }
    facts.push(("writable_mounts".to_owned(), writable.join(",")));
    facts
}

/// The kernel writes sizes of a tmpfs as `65536k`, numbers of files sometimes too.
fn bytes_of(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['k', 'm', 'g']);
    let factor = match &text[digits.len()..] {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        _ => 1 << 30,
    };
    digits.parse::<u64>().ok().map(|number| number * factor)
}

fn interfaces(dev: &str) -> String {
    let mut names: Vec<&str> =
        dev.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
    names.sort_unstable();
    names.join(",")
}

/// System call numbers of x86-64, the only processor that this program is for.
mod number {
    pub const SOCKET: i64 = 41;
    pub const PTRACE: i64 = 101;
    pub const SETPRIORITY: i64 = 141;
    pub const MOUNT: i64 = 165;
    pub const KEYCTL: i64 = 250;
    pub const UNSHARE: i64 = 272;
    pub const PRLIMIT64: i64 = 302;
    pub const BPF: i64 = 321;
    pub const IO_URING_SETUP: i64 = 425;
}

fn tries() -> Vec<(&'static str, i32)> {
    const CLONE_NEWUSER: i64 = 0x1000_0000;
    const AF_INET: i64 = 2;
    const AF_ALG: i64 = 38;
    const AF_VSOCK: i64 = 40;
    const SOCK_STREAM: i64 = 1;
    const SOCK_RAW: i64 = 3;
    const SOCK_SEQPACKET: i64 = 5;
    const PTRACE_PEEKDATA: i64 = 2;
    const KEYCTL_GET_KEYRING_ID: i64 = 0;
    const PRIO_PROCESS: i64 = 0;
    const NOFILE: i64 = 7;
    let (memory, address) = sys::scratch();
    let found = vec![
        // An invalid flag beside the one tried: where the call is let through, the kernel refuses the pair with EINVAL
        // before it does anything, and that shows.
        ("unshare_user", sys::attempt(number::UNSHARE, [CLONE_NEWUSER | 1, 0, 0, 0, 0])),
        ("mount", sys::attempt(number::MOUNT, [0, 0, 0, 0, 0])),
        ("io_uring", sys::attempt_fd(number::IO_URING_SETUP, [1, 0, 0, 0, 0])),
        ("socket_vsock", sys::attempt_fd(number::SOCKET, [AF_VSOCK, SOCK_STREAM, 0, 0, 0])),
        ("socket_alg", sys::attempt_fd(number::SOCKET, [AF_ALG, SOCK_SEQPACKET, 0, 0, 0])),
        ("raw_socket", sys::attempt_fd(number::SOCKET, [AF_INET, SOCK_RAW, 1, 0, 0])),
        ("ptrace", sys::attempt(number::PTRACE, [PTRACE_PEEKDATA, 1, 0, 0, 0])),
        ("bpf", sys::attempt(number::BPF, [0, 0, 0, 0, 0])),
        ("keyctl", sys::attempt(number::KEYCTL, [KEYCTL_GET_KEYRING_ID, -3, 0, 0, 0])),
        // Process 1, which is this process: refused only by a filter that takes nobody but "myself" written as 0.
        ("prlimit_pid1", sys::attempt(number::PRLIMIT64, [1, NOFILE, 0, address, 0])),
        ("setpriority_pid1", sys::attempt(number::SETPRIORITY, [PRIO_PROCESS, 1, 0, 0, 0])),
    ];
    drop(memory);
    found
}

fn error_name(error: i32) -> String {
    let name = match error {
        0 => "ok",
        1 => "EPERM",
        3 => "ESRCH",
        5 => "EIO",
        13 => "EACCES",
        14 => "EFAULT",
        22 => "EINVAL",
        38 => "ENOSYS",
        93 => "EPROTONOSUPPORT",
        94 => "ESOCKTNOSUPPORT",
        97 => "EAFNOSUPPORT",
        126 => "ENOKEY",
        other => return format!("errno {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_and_the_last_one_at_a_place_counts() {
        let facts = mount_facts(
            "1 0 0:1 / / rw,relatime - overlay overlay rw,lowerdir=/x\n\
             2 1 0:1 / / ro,relatime - overlay overlay rw,lowerdir=/x\n\
             3 1 0:2 / /proc rw,nosuid - proc proc rw\n\
             4 1 0:3 / /tmp rw,nosuid,nodev,noexec - tmpfs tmpfs rw,size=65536k,nr_inodes=1k,uid=7\n\
             5 1 8:1 /v /.jobcell ro,relatime - ext4 /dev/vda rw\n\
             6 1 8:1 /h /etc/hosts rw,relatime - ext4 /dev/vda rw\n",
        );
        let get = |key: &str| facts.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        assert_eq!(get("root_readonly"), Some("1"));
        assert_eq!((get("mount./tmp.size"), get("mount./tmp.inodes")), (Some("67108864"), Some("1024")));
        assert_eq!(get("writable_mounts"), Some("/etc/hosts,/tmp"));
    }

    #[test]
    fn status_names_ids_that_differ() {
        let facts = status_facts("Uid:\t7\t7\t0\t7\nGid:\t7\t7\t7\t7\nGroups:\t\nCapEff:\t00\nNoNewPrivs:\t1\nSeccomp:\t2\n");
        assert!(facts.contains(&("uid", "7,0".to_owned())) && facts.contains(&("gid", "7".to_owned())));
        assert!(facts.contains(&("groups", String::new())) && facts.contains(&("seccomp", "2".to_owned())));
    }

    #[test]
    fn interfaces_are_named() {
        assert_eq!(interfaces("Inter-| x\n face |y\n  eth0: 1 2\n    lo: 1\n"), "eth0,lo");
    }
}
