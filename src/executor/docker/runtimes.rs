//! What can be asked of a cell under each kind of OCI runtime. Pure.
//!
//! The operator names the runtime. Kinds that are not known here are held to what the ordinary ones are: a cell that cannot
//! show it gets no job.

use crate::protocol::wire::{Expect, Rlimit};

/// Kinds that isolate in different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Namespaces, control groups and a filter of system calls on the host's kernel: runc, crun, youki.
    Native,
    /// gVisor: a kernel of its own, in a process of the host.
    Gvisor,
}

/// What of the expectations on a cell gVisor has no answer to, or another one. A job's calls are answered by its own kernel and never
/// pass our filter; its control groups, and the engine's mount options, are not to be seen inside. In their place its kernel has
/// to be seen, and what it gives and takes by itself.
const NOT_GVISORS: [&str; 5] = ["cap_amb", "no_new_privs", "memory_limit_bytes", "pids_limit", "cpu_quota_us"];

/// Not EINVAL or EFAULT: these mean that the call got further than it may.
const REFUSED: &str = "EPERM,ENOSYS,EACCES,EAFNOSUPPORT";

fn kind(oci_runtime: &str) -> Kind {
    let name = oci_runtime.to_ascii_lowercase();
    if name.contains("runsc") || name.contains("gvisor") { Kind::Gvisor } else { Kind::Native }
}

/// Whether a job's system calls are answered by a kernel in its cell, and so pass no filter of ours.
pub fn answers_calls_itself(oci_runtime: &str) -> bool {
    kind(oci_runtime) == Kind::Gvisor
}

/// The expectations `all`, as they can be met under `oci_runtime`.
pub(super) fn adapt(mut all: Vec<Expect>, oci_runtime: &str) -> Vec<Expect> {
    match kind(oci_runtime) {
        Kind::Native => {
            all.push(Expect::eq("kernel", "linux"));
            // The first network and mount namespaces have no fixed numbers; interfaces and mounts tell.
            all.extend(["cgroup", "ipc", "pid", "uts"].map(|kind| Expect::eq(&format!("ns.{kind}"), "own")));
        }
        Kind::Gvisor => {
            let drop = |key: &str| {
                NOT_GVISORS.contains(&key)
                    || key.starts_with("seccomp")
                    || key.starts_with("try.")
                    || key.ends_with(".nosuid")
                    || key.ends_with(".nodev")
            };
            all.retain(|expect| !drop(&expect.key));
            all.push(Expect::eq("kernel", "gvisor"));
            // No way past its kernel to a device or a program of the host's.
            all.extend(["mount", "bpf", "raw_socket"].map(|tried| Expect::one_of(&format!("try.{tried}"), REFUSED)));
        }
    }
    all
}

/// Limits that gVisor's kernel knows and lets nobody set: pending signals, message queues, priorities. They bound memory and turns of the
/// host's kernel, which its processes have no way to.
const NOT_SET_BY_GVISOR: [u32; 4] = [11, 12, 13, 14];

/// Those of `all` that can be set under `oci_runtime`.
pub(super) fn settable(mut all: Vec<Rlimit>, oci_runtime: &str) -> Vec<Rlimit> {
    if kind(oci_runtime) == Kind::Gvisor {
        all.retain(|limit| !NOT_SET_BY_GVISOR.contains(&limit.resource));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_gvisor_lets_nobody_set_are_left_out_there_only() {
        let all = || [7, 12].map(|resource| Rlimit { resource, soft: 1, hard: 1 }).to_vec();
        assert_eq!((settable(all(), "runc").len(), settable(all(), "").len()), (2, 2));
        assert_eq!(settable(all(), "runsc"), all()[..1]);
    }

    #[test]
    fn kinds_are_known_by_name() {
        for name in ["", "runc", "crun", "io.containerd.runc.v2", "kata"] {
            assert_eq!(kind(name), Kind::Native, "{name}");
        }
        for name in ["runsc", "runsc-kvm", "io.containerd.runsc.v1", "gVisor"] {
            assert_eq!(kind(name), Kind::Gvisor, "{name}");
        }
    }

    #[test]
    fn each_kind_has_to_be_what_it_is() {
        let all = || vec![Expect::eq("uid", "7"), Expect::eq("seccomp", "2"), Expect::eq("try.mount", "EPERM")];
        let keys =
            |name: &str| adapt(all(), name).into_iter().map(|expect| (expect.key, expect.value)).collect::<Vec<_>>();
        let has =
            |keys: &[(String, String)], key: &str, value: &str| keys.contains(&(key.to_owned(), value.to_owned()));
        let native = keys("runc");
        assert!(has(&native, "kernel", "linux") && has(&native, "seccomp", "2") && has(&native, "ns.pid", "own"));
        let gvisor = keys("runsc");
        assert!(has(&gvisor, "kernel", "gvisor") && has(&gvisor, "uid", "7") && !has(&gvisor, "seccomp", "2"));
    }
}
