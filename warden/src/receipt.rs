//! The receipt: the isolation that is really in force, read from inside and tried.
//!
//! Owns the names of the facts. Must never report what was configured, only what the kernel says; a fact that cannot be
//! read is left out, and so meets no expectation.

use crate::cgroup::{Group, Limits};
use crate::groups::Groups;
use crate::procfs::{self, Mount};
use crate::sys::{self, tries};
use crate::wire::Fact;
use std::ffi::CString;

/// Longer values are cut: a receipt must fit one frame.
const VALUE_MAX: usize = 1024;
/// Places whose mounts are described one by one, besides being in the list of writable ones.
const DESCRIBED: [&str; 4] = ["/tmp", "/workspace", "/dev/shm", crate::wire::SECRETS_DIR];

const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// Answers with the kernel's error number, 0 for success.
type Try = fn() -> i32;

/// Each name with what it tries. The namespace comes last: it changes the child where it succeeds.
const TRIES: [(&str, Try); 13] = [
    ("mount", tries::mount),
    ("io_uring", tries::io_uring),
    ("socket_vsock", tries::socket_vsock),
    ("socket_alg", tries::socket_alg),
    ("raw_socket", tries::raw_socket),
    ("socket_inet", tries::socket_inet),
    ("sysv_shm", tries::sysv_shm),
    ("bpf", tries::bpf),
    ("keyctl", tries::keyctl),
    ("prlimit_pid1", tries::prlimit_pid1),
    ("setpriority_pid1", tries::setpriority_pid1),
    ("ptrace", tries::ptrace),
    ("unshare_user", tries::unshare_user),
];

/// The cell as seen from inside.
pub(crate) struct Receipt {
    facts: Vec<Fact>,
    /// Where limits and peaks are read; none where there is no control group to see.
    pub(crate) group: Option<Group>,
}

impl Receipt {
    /// Reads and tries everything.
    pub(crate) fn gather() -> Self {
        let began = sys::boot_ns();
        let (status, mountinfo) = (read("/proc/self/status"), read("/proc/self/mountinfo"));
        let mounts = procfs::mounts(mountinfo.as_deref().unwrap_or_default());
        let group = Group::find(&mounts, &read("/proc/self/cgroup").unwrap_or_default());
        let mut facts = vec![fact("pid", std::process::id().to_string())];
        facts.extend(ids(status.as_deref().unwrap_or_default()));
        facts.extend(mount_facts(&mounts));
        facts.extend(DESCRIBED.iter().filter_map(|place| described(&mounts, place)).flatten());
        let dev = read("/proc/net/dev");
        facts.extend(dev.as_deref().map(|dev| fact("interfaces", procfs::interfaces(dev).join(","))));
        facts.push(fact("host_reachable", procfs::host_reachable(dev.as_deref())));
        facts.extend(NAMESPACES.iter().filter_map(|kind| {
            let link = std::fs::read_link(format!("/proc/self/ns/{kind}")).ok()?;
            Some(fact(&format!("ns.{kind}"), procfs::namespace(link.to_str()?)?))
        }));
        facts.extend(host_facts());
        if let Some(group) = &group {
            facts.push(fact("cgroup_version", group.version().to_string()));
            facts.extend(limit_facts(group.limits(read)));
        }
        facts.extend(tried());
        facts.push(fact("receipt_us", ((sys::boot_ns() - began) / 1000).to_string()));
        Self { facts, group }
    }

    /// What is in force for all jobs of a host's login, and what is not. Nothing is tried: there are no walls to try. `groups`: where jobs can have
    /// control groups of their own, or why not.
    pub(crate) fn of_a_host(groups: Result<&Groups, &str>) -> Self {
        let began = sys::boot_ns();
        let mut facts = vec![
            fact("executor", "ssh"),
            fact("mode", "resident"),
            // A job can do whatever else this login can do there.
            fact("isolation", "none: shared login"),
            // What its group says of limits and peaks is said of others too.
            match groups {
                Ok(_) => fact("cgroup", "its own where it asks for limits"),
                Err(why) => fact("cgroup", format!("none of its own: {why}")),
            },
        ];
        if let Ok(groups) = groups {
            facts.push(fact("cgroup_version", groups.version().to_string()));
            facts.push(fact("cgroup_limits", groups.controllers().join(",")));
        }
        facts.extend(ids(read("/proc/self/status").as_deref().unwrap_or_default()));
        facts.extend(host_facts());
        facts.push(fact("receipt_us", ((sys::boot_ns() - began) / 1000).to_string()));
        Self { facts, group: None }
    }

    /// What was read once for all, for one job of them, whose keeper this process is.
    pub(crate) fn of_one(all: &[Fact]) -> Self {
        let mut facts = vec![fact("pid", std::process::id().to_string())];
        facts.extend_from_slice(all);
        Self { facts, group: None }
    }

    /// A job on a host has a control group of its own. The facts stay as they are: they may have been told before.
    pub(crate) fn holds(&mut self, group: Group) {
        self.group = Some(group);
    }

    /// Reads the limits again: they can be changed from outside while a cell waits for its job.
    pub(crate) fn refresh(&mut self) {
        let Some(group) = &self.group else { return };
        for (key, value) in limit_facts(group.limits(read)) {
            match self.facts.iter_mut().find(|(name, _)| *name == key) {
                Some(known) => known.1 = value,
                None => self.facts.push((key, value)),
            }
        }
    }

    pub(crate) fn facts(&self) -> &[Fact] {
        &self.facts
    }
}

fn host_facts() -> Vec<Fact> {
    let mut facts = Vec::new();
    facts.extend(read("/proc/version").map(|version| fact("kernel", procfs::kernel_kind(&version))));
    facts.extend(read("/proc/sys/kernel/osrelease").map(|release| fact("kernel_release", release.trim())));
    facts.extend(read("/proc/sys/kernel/hostname").map(|name| fact("hostname", name.trim())));
    // Without a security module there is nothing to read, and that is an answer.
    let lsm = read("/proc/self/attr/current").unwrap_or_default();
    facts.push(fact("lsm", Some(lsm.trim_matches(['\0', '\n'])).filter(|lsm| !lsm.is_empty()).unwrap_or("none")));
    facts
}

pub(crate) fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn fact(key: &str, value: impl Into<String>) -> Fact {
    let mut value = value.into();
    if value.len() > VALUE_MAX {
        value.truncate((0..=VALUE_MAX).rev().find(|at| value.is_char_boundary(*at)).unwrap_or_default());
    }
    (key.to_owned(), value)
}

fn bit(yes: bool) -> &'static str {
    if yes { "1" } else { "0" }
}

fn ids(status: &str) -> Vec<Fact> {
    let line = |key| procfs::status_line(status, key);
    let as_it_is = [
        ("cap_inh", "CapInh"),
        ("cap_prm", "CapPrm"),
        ("cap_eff", "CapEff"),
        ("cap_bnd", "CapBnd"),
        ("cap_amb", "CapAmb"),
        ("no_new_privs", "NoNewPrivs"),
        ("seccomp", "Seccomp"),
        ("cpus_allowed", "Cpus_allowed_list"),
    ];
    let mut facts: Vec<Fact> = as_it_is.iter().filter_map(|(name, key)| Some(fact(name, line(key)?))).collect();
    facts.extend(line("Uid").map(|ids| fact("uid", procfs::one_id(ids))));
    facts.extend(line("Gid").map(|ids| fact("gid", procfs::one_id(ids))));
    let groups = line("Groups").map(|groups| groups.split_whitespace().collect::<Vec<_>>().join(","));
    facts.extend(groups.map(|groups| fact("groups", groups)));
    facts
}

fn mount_facts(mounts: &[Mount<'_>]) -> Vec<Fact> {
    let root = mounts.iter().find(|mount| mount.place == "/").map(|root| fact("root_readonly", bit(root.has("ro"))));
    let mut writable: Vec<&str> = mounts.iter().filter(|mount| mount.writable()).map(|mount| mount.place).collect();
    writable.sort_unstable();
    root.into_iter().chain([fact("writable_mounts", writable.join(","))]).collect()
}

fn described(mounts: &[Mount<'_>], place: &str) -> Option<Vec<Fact>> {
    let mount = mounts.iter().find(|mount| mount.place == place)?;
    let path = CString::new(place).ok()?;
    let mut facts = vec![fact(&format!("mount.{place}"), mount.kind)];
    for option in ["nosuid", "nodev", "noexec"] {
        facts.push(fact(&format!("mount.{place}.{option}"), bit(mount.has(option))));
    }
    // Tried, because a mode that was asked for can be ignored.
    facts.push(fact(&format!("mount.{place}.writable"), bit(sys::may_write(&path))));
    if let Some(space) = sys::space(&path) {
        facts.push(fact(&format!("mount.{place}.size"), space.bytes.to_string()));
        facts.push(fact(&format!("mount.{place}.inodes"), space.files.to_string()));
    }
    Some(facts)
}

fn limit_facts(limits: Limits) -> Vec<Fact> {
    let named = [
        ("memory_limit_bytes", limits.memory_bytes),
        ("memory_swap_limit_bytes", limits.memory_swap_bytes),
        ("pids_limit", limits.pids),
        ("cpu_quota_us", limits.cpu_quota_us),
        ("cpu_period_us", limits.cpu_period_us),
    ];
    named.into_iter().filter_map(|(key, value)| Some(fact(key, value?))).collect()
}

fn tried() -> Vec<Fact> {
    // A kernel that gives us no child gives no job either; until then nothing counts as refused.
    let results = sys::try_in_child(TRIES.map(|(_, one)| one)).unwrap_or([sys::KILLED; TRIES.len()]);
    TRIES.iter().zip(results).map(|((name, _), error)| fact(&format!("try.{name}"), error_name(error))).collect()
}

fn error_name(error: i32) -> String {
    let name = match error {
        sys::KILLED => "killed",
        0 => "ok",
        1 => "EPERM",
        3 => "ESRCH",
        5 => "EIO",
        11 => "EAGAIN",
        12 => "ENOMEM",
        13 => "EACCES",
        14 => "EFAULT",
        16 => "EBUSY",
        19 => "ENODEV",
        22 => "EINVAL",
        24 => "EMFILE",
        28 => "ENOSPC",
        38 => "ENOSYS",
        87 => "EUSERS",
        93 => "EPROTONOSUPPORT",
        94 => "ESOCKTNOSUPPORT",
        95 => "EOPNOTSUPP",
        97 => "EAFNOSUPPORT",
        126 => "ENOKEY",
        other => return format!("errno {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get<'a>(facts: &'a [Fact], key: &str) -> Option<&'a str> {
        facts.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    #[test]
    fn ids_come_from_the_status() {
        let facts =
            ids("Uid:\t7\t7\t0\t7\nGid:\t8\t8\t8\t8\nGroups:\t5 6 \nCapEff:\t00\nNoNewPrivs:\t1\nSeccomp:\t2\n");
        assert_eq!(get(&facts, "uid"), Some("7,7,0,7"));
        assert_eq!((get(&facts, "gid"), get(&facts, "groups")), (Some("8"), Some("5,6")));
        assert_eq!((get(&facts, "cap_eff"), get(&facts, "cap_bnd")), (Some("00"), None));
    }

    #[test]
    fn mounts_tell_what_is_writable() {
        let mounts = procfs::mounts(
            "1 0 0:1 / / ro - overlay overlay rw\n2 1 0:3 / /workspace rw - tmpfs tmpfs rw\n\
             3 1 0:3 / /tmp rw - tmpfs tmpfs rw\n4 1 0:4 / /v ro - ext4 /dev/vda rw\n",
        );
        let facts = mount_facts(&mounts);
        assert_eq!(get(&facts, "root_readonly"), Some("1"));
        assert_eq!(get(&facts, "writable_mounts"), Some("/tmp,/workspace"));
    }

    #[test]
    fn this_very_process_has_a_receipt() {
        let receipt = Receipt::gather();
        let facts = receipt.facts();
        for key in ["pid", "uid", "cap_eff", "seccomp", "root_readonly", "interfaces", "try.mount", "receipt_us"] {
            assert!(get(facts, key).is_some(), "{key}");
        }
        assert_eq!(get(facts, "pid"), Some(std::process::id().to_string().as_str()));
        // All tries came back, and none of them is an error that we have no word for.
        for (name, _) in TRIES {
            let result = get(facts, &format!("try.{name}")).expect("tried");
            assert!(result != "killed" && !result.starts_with("errno"), "{name}: {result}");
        }
    }

    #[test]
    fn on_a_host_no_walls_are_claimed() {
        let receipt = Receipt::of_one(Receipt::of_a_host(Err("it may not make any")).facts());
        let facts = receipt.facts();
        for key in ["pid", "uid", "gid", "cap_eff", "no_new_privs", "seccomp", "kernel", "hostname", "lsm"] {
            assert!(get(facts, key).is_some(), "{key}");
        }
        assert_eq!(get(facts, "isolation"), Some("none: shared login"));
        assert_eq!(get(facts, "cgroup"), Some("none of its own: it may not make any"));
        let claimed =
            facts.iter().any(|(key, _)| key.starts_with("try.") || key.contains("limit") || key.starts_with("mount"));
        assert!(!claimed && receipt.group.is_none());
    }

    #[test]
    fn long_values_are_cut_at_a_character() {
        let (_, value) = fact("x", "é".repeat(VALUE_MAX));
        assert_eq!(value.len(), VALUE_MAX);
        assert_eq!(fact("x", format!("a{}", "é".repeat(VALUE_MAX))).1.len(), VALUE_MAX - 1);
    }
}
