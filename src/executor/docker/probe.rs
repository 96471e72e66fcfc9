//! What an engine says about itself, for `doctor`.

use super::engine::{Engine, EngineError};
use std::time::Duration;

/// Facts of an engine.
#[derive(Debug, Clone, Default)]
pub struct EngineFacts {
    /// Its version.
    pub version: String,
    /// The API version that it speaks.
    pub api_version: String,
    /// Version of its default OCI runtime, as far as it says.
    pub runc: String,
    /// Control groups: `1` or `2`.
    pub cgroup_version: String,
    /// Storage driver.
    pub storage: String,
    /// `name=seccomp,…`, `name=userns`, …
    pub security_options: Vec<String>,
    /// Containers outlive a restart of the engine.
    pub live_restore: bool,
    /// Limits that the kernel supports.
    pub memory_limit: bool,
    /// Swap is counted.
    pub swap_limit: bool,
    /// Processes are counted.
    pub pids_limit: bool,
    /// OCI runtimes that it knows, by name.
    pub runtimes: Vec<String>,
    /// What manages its control groups.
    pub cgroup_driver: String,
    /// Where it keeps images and containers.
    pub root_dir: String,
    /// Its clock, as it writes it.
    pub time: String,
    /// It tells everything in its log.
    pub debug: bool,
    /// What it warns of by itself.
    pub warnings: Vec<String>,
    /// Of the images asked about, those that are there.
    pub images: Vec<String>,
}

/// Asks an engine. Errors: it does not answer.
pub async fn probe(host: &str, images: &[String], limit: Duration) -> Result<EngineFacts, EngineError> {
    let engine = Engine::connect(host, limit, limit).await?;
    let (version, info) = engine.about().await?;
    let mut there = Vec::new();
    for image in images {
        if engine.has_image(image).await? {
            there.push(image.clone());
        }
    }
    let runc = version.components.unwrap_or_default().into_iter().find(|part| part.name == "runc");
    Ok(EngineFacts {
        version: version.version.unwrap_or_default(),
        api_version: version.api_version.unwrap_or_default(),
        runc: runc.map(|part| part.version).unwrap_or_default(),
        cgroup_version: info.cgroup_version.map(|version| version.to_string()).unwrap_or_default(),
        storage: info.driver.unwrap_or_default(),
        security_options: info.security_options.unwrap_or_default(),
        live_restore: info.live_restore_enabled.unwrap_or_default(),
        memory_limit: info.memory_limit.unwrap_or_default(),
        swap_limit: info.swap_limit.unwrap_or_default(),
        pids_limit: info.pids_limit.unwrap_or_default(),
        runtimes: info.runtimes.unwrap_or_default().into_keys().collect(),
        cgroup_driver: info.cgroup_driver.map(|driver| driver.to_string()).unwrap_or_default(),
        root_dir: info.docker_root_dir.unwrap_or_default(),
        time: info.system_time.unwrap_or_default(),
        debug: info.debug.unwrap_or_default(),
        warnings: info.warnings.unwrap_or_default(),
        images: there,
    })
}
