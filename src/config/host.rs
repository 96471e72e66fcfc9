//! What defaults depend on.

use crate::job::ByteSize;
use std::path::PathBuf;

/// Facts of this host and user.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// Processor cores.
    pub cores: u32,
    /// All memory.
    pub memory: ByteSize,
    /// Runs as root.
    pub root: bool,
    /// The host's name.
    pub hostname: String,
    /// Where a user's programs keep their data.
    pub user_data: PathBuf,
}

impl HostFacts {
    /// Reads them; what cannot be read gets a modest value.
    pub fn read() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let kib = text("/proc/meminfo")
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
            .unwrap_or(1 << 20);
        let uid = text("/proc/self/status")
            .lines()
            .find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse::<u32>().ok());
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        let user_data = std::env::var_os("XDG_DATA_HOME").map_or_else(|| home.join(".local/share"), PathBuf::from);
        Self {
            cores: std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1)),
            memory: ByteSize::new(kib * 1024),
            root: uid == Some(0),
            hostname: text("/proc/sys/kernel/hostname").trim().to_owned(),
            user_data,
        }
    }
}
