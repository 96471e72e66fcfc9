//! The machine itself: processor, kernel and its settings, and the disk that everything is kept on.

use super::{Check, size, version};
use std::path::Path;

/// Below this the next chatty job fills the disk.
const LEAST_FREE: u64 = 1 << 30;
/// Each job that is kept has a few files.
const LEAST_INODES: u64 = 10_000;
/// Has pidfd_open and process supervision by it.
const KERNEL: [u32; 2] = [5, 3];

/// What was read.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    machine: String,
    kernel: String,
    /// Weaknesses of the processor that nothing is done against.
    flaws: Vec<String>,
    /// Values of the settings in [`SETTINGS`], where the kernel has them.
    settings: Vec<Option<String>>,
    core_pattern: String,
    open_files: Option<u64>,
    data: Result<Data, String>,
}

/// The place of the data directory.
#[derive(Debug, Clone, Copy)]
struct Data {
    free: u64,
    inodes: u64,
    /// Who may read it, where it is there.
    mode: Option<u32>,
    /// The kernel's number of its file system.
    kind: i64,
}

/// A setting of the kernel: name, file below /proc/sys, least value, and what to do.
const SETTINGS: [(&str, &str, u64, &str); 6] = [
    ("dmesg", "kernel/dmesg_restrict", 1, "set kernel.dmesg_restrict=1: the kernel's log tells addresses"),
    (
        "kernel-pointers",
        "kernel/kptr_restrict",
        1,
        "set kernel.kptr_restrict=1 or 2: addresses of the kernel help attacks",
    ),
    (
        "bpf",
        "kernel/unprivileged_bpf_disabled",
        1,
        "set kernel.unprivileged_bpf_disabled=1: cells cannot use it, other users can",
    ),
    ("perf", "kernel/perf_event_paranoid", 2, "set kernel.perf_event_paranoid=2 or more"),
    ("links", "fs/protected_hardlinks", 1, "set fs.protected_hardlinks=1 and fs.protected_symlinks=1"),
    ("randomised-addresses", "kernel/randomize_va_space", 2, "set kernel.randomize_va_space=2"),
];

impl Facts {
    /// Reads below `root`, which is `/` but in tests.
    pub(super) fn gather(root: &Path, data_dir: &Path) -> Self {
        let read = |path: &str| std::fs::read_to_string(root.join(path)).ok().map(|text| text.trim().to_owned());
        let folder = std::fs::read_dir(root.join("sys/devices/system/cpu/vulnerabilities"));
        let flaw = |entry: std::fs::DirEntry| {
            let bad = std::fs::read_to_string(entry.path()).is_ok_and(|text| text.starts_with("Vulnerable"));
            bad.then(|| entry.file_name().to_string_lossy().into_owned())
        };
        let mut flaws: Vec<String> = folder.into_iter().flatten().flatten().filter_map(flaw).collect();
        flaws.sort_unstable();
        let limits = read("proc/self/limits").unwrap_or_default();
        let files = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
        // The warden's checksums use SSE4.2, which every x86-64 processor since 2008 has.
        let machine =
            if std::is_x86_feature_detected!("sse4.2") { std::env::consts::ARCH } else { "x86_64 without SSE4.2" };
        Self {
            machine: machine.to_owned(),
            kernel: read("proc/sys/kernel/osrelease").unwrap_or_default(),
            flaws,
            settings: SETTINGS.iter().map(|(_, file, ..)| read(&format!("proc/sys/{file}"))).collect(),
            core_pattern: read("proc/sys/kernel/core_pattern").unwrap_or_default(),
            open_files: files,
            data: data(data_dir),
        }
    }
}

/// The data directory or, where it is not there yet, what it will be made in; after a test write where it is.
fn data(dir: &Path) -> Result<Data, String> {
    let there = dir.ancestors().find(|part| part.is_dir()).unwrap_or(Path::new("/"));
    let mut mode = None;
    if there == dir {
        let test = dir.join(".doctor");
        std::fs::write(&test, b"x").map_err(|error| error.to_string())?;
        let _ = std::fs::remove_file(test);
        let meta = std::fs::metadata(dir).map_err(|error| error.to_string())?;
        mode = Some(std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777);
    }
    let stat = rustix::fs::statvfs(there).map_err(|error| error.to_string())?;
    let kind = rustix::fs::statfs(there).map_err(|error| error.to_string())?.f_type;
    Ok(Data { free: stat.f_bavail * stat.f_frsize, inodes: stat.f_favail, mode, kind })
}

pub(super) fn judge(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![
        match facts.machine.as_str() {
            "x86_64" => Check::ok("processor", "x86_64"),
            other => Check::fail("processor", other, "the warden is built for x86-64 with SSE4.2 only"),
        },
        Check::warn_if(
            version(&facts.kernel) < KERNEL.to_vec(),
            "kernel",
            &facts.kernel,
            "use Linux 5.3 or later: older ones lack calls that cells and their supervision rely on",
        ),
        match &facts.flaws[..] {
            [] => Check::ok("processor-flaws", "none is left open"),
            flaws => Check::warn(
                "processor-flaws",
                format!("left open: {}", flaws.join(", ")),
                "install the processor's microcode and boot without mitigations=off: jobs of different people share a processor",
            ),
        },
    ];
    for ((name, file, least, remedy), value) in SETTINGS.iter().zip(&facts.settings) {
        let key = file.replace('/', ".");
        checks.push(match value.as_deref().map(|value| (value, value.parse::<i64>())) {
            // Without it there is nothing to be restricted.
            None => Check::ok(name, format!("this kernel has no {key}")),
            Some((value, number)) => {
                let good = number.is_ok_and(|number| number >= i64::try_from(*least).unwrap_or(i64::MAX));
                Check::warn_if(!good, name, format!("{key} is {value}"), remedy)
            }
        });
    }
    checks.push(Check::warn_if(
        facts.core_pattern.starts_with('|') && !facts.core_pattern.contains("systemd-coredump"),
        "core-dumps",
        if facts.core_pattern.is_empty() { "not to be seen" } else { &facts.core_pattern },
        "cells write none, but a program of this host that reads cores as root is one more door: write them to files, or use systemd-coredump",
    ));
    checks.push(match facts.open_files {
        Some(files) => Check::warn_if(
            files < 4096,
            "open-files",
            format!("{files} for each process of this shell"),
            "raise it to 4096 or more for the agent (LimitNOFILE= in its unit)",
        ),
        None => Check::ok("open-files", "not limited"),
    });
    checks.extend(data_checks(&facts.data));
    checks
}

fn data_checks(data: &Result<Data, String>) -> Vec<Check> {
    let data = match data {
        Ok(data) => data,
        Err(error) => {
            let remedy = "correct its owner and mode, or choose another data_dir";
            return vec![Check::fail("data-directory", error, remedy)];
        }
    };
    let kind = match data.kind {
        0x6969 | 0xff53_4d42 | 0xfe53_4d42 | 0x6573_5546 | 0x0102_1997 => {
            Some("a file system over the network or in a process")
        }
        0x0102_1994 => Some("memory"),
        _ => None,
    };
    vec![
        match data.mode {
            None => Check::ok("data-directory", "is made at the first start"),
            Some(mode) => Check::warn_if(
                mode & 0o077 != 0,
                "data-directory",
                format!("writable, mode {mode:03o}"),
                "chmod 700: keys and the output of jobs are in it",
            ),
        },
        Check::warn_if(
            data.free < LEAST_FREE,
            "data-space",
            format!("{} free", size(data.free)),
            "free some space, or move data_dir",
        ),
        Check::warn_if(
            data.inodes < LEAST_INODES && data.inodes > 0,
            "data-files",
            format!("{} more files", data.inodes),
            "remove files, or move data_dir: the file system has no room for more",
        ),
        match kind {
            None => Check::ok("data-file-system", "local"),
            Some(kind) => Check::warn(
                "data-file-system",
                kind,
                "move data_dir to a local disk: queue and journal have to be locked, synced and still there after a reboot",
            ),
        },
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Verdict::{Fail, Warn};
    use super::super::tests::not_ok;
    use super::*;

    pub(in crate::cli::doctor) fn good() -> Facts {
        Facts {
            machine: "x86_64".into(),
            kernel: "6.1.0-18-amd64".into(),
            flaws: vec![],
            settings: ["1", "2", "2", "3", "1", "2"].map(|value| Some(value.to_owned())).to_vec(),
            core_pattern: "core".into(),
            open_files: Some(1 << 20),
            data: Ok(Data { free: 1 << 40, inodes: 1 << 20, mode: Some(0o700), kind: 0xef53 }),
        }
    }

    #[test]
    fn each_lack_of_a_host_is_named() {
        assert_eq!(not_ok(&judge(&good())), []);
        let with = |change: fn(&mut Facts)| {
            let mut facts = good();
            change(&mut facts);
            not_ok(&judge(&facts))
        };
        assert_eq!(with(|facts| facts.machine = "aarch64".into()), [("processor", Fail)]);
        assert_eq!(with(|facts| facts.kernel = "4.19.0".into()), [("kernel", Warn)]);
        assert_eq!(with(|facts| facts.flaws = vec!["mds".into()]), [("processor-flaws", Warn)]);
        for (at, (name, ..)) in SETTINGS.iter().enumerate() {
            for bad in ["0", "-1", "x"] {
                let mut facts = good();
                facts.settings[at] = Some(bad.to_owned());
                assert_eq!(not_ok(&judge(&facts)), [(*name, Warn)], "{bad}");
            }
            let mut facts = good();
            facts.settings[at] = None;
            assert_eq!(not_ok(&judge(&facts)), []);
        }
        assert_eq!(with(|facts| facts.core_pattern = "|/usr/bin/apport %p".into()), [("core-dumps", Warn)]);
        assert_eq!(with(|facts| facts.open_files = Some(1024)), [("open-files", Warn)]);
        assert_eq!(with(|facts| facts.data = Err("Permission denied".into())), [("data-directory", Fail)]);
        let data = |change: fn(&mut Data)| {
            let mut facts = good();
            change(facts.data.as_mut().expect("good"));
            not_ok(&judge(&facts))
        };
        assert_eq!(data(|data| data.free = 1), [("data-space", Warn)]);
        assert_eq!(data(|data| data.inodes = 10), [("data-files", Warn)]);
        assert_eq!(data(|data| data.mode = Some(0o755)), [("data-directory", Warn)]);
        assert_eq!(data(|data| data.kind = 0x6969), [("data-file-system", Warn)]);
        // Some file systems make files as they are needed, and count none.
        assert_eq!((data(|data| data.inodes = 0), data(|data| data.mode = None)), (vec![], vec![]));
    }

    #[test]
    fn a_host_is_read_from_its_files() {
        let root = tempfile::tempdir().expect("a folder");
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("is made");
            std::fs::write(path, text).expect("writes");
        };
        put("proc/sys/kernel/osrelease", "6.1.0\n");
        put("proc/sys/kernel/dmesg_restrict", "0\n");
        put("proc/sys/kernel/core_pattern", "|/x\n");
        put(
            "proc/self/limits",
            "Limit  Soft  Hard\nMax open files            1024                 4096                 files\n",
        );
        put("sys/devices/system/cpu/vulnerabilities/mds", "Vulnerable: Clear CPU buffers attempted\n");
        put("sys/devices/system/cpu/vulnerabilities/l1tf", "Not affected\n");
        let facts = Facts::gather(root.path(), root.path());
        let told: Vec<&str> =
            judge(&facts).iter().filter(|check| check.remedy.is_some()).map(|check| check.name).collect();
        assert_eq!(facts.flaws, ["mds"]);
        assert!(
            ["dmesg", "core-dumps", "open-files", "processor-flaws"].iter().all(|name| told.contains(name)),
            "{told:?}"
        );
        // What was there to be written is gone.
        assert!(!root.path().join(".doctor").exists() && facts.data.is_ok());
    }
}
