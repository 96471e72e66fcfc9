//! Every key with its default. `""` stands for a default that depends on the host, which the check fills in.

use super::HostFacts;
use serde_json::{Value, json};

/// The built-in layer.
pub(super) fn defaults(host: &HostFacts) -> Value {
    let data_dir = if host.root { "/var/lib/jobcell".into() } else { host.user_data.join("jobcell") };
    json!({
        "data_dir": data_dir,
        "server": {
            "listen": "127.0.0.1:7807",
            "max_body": "1MiB",
            "wait_max": "60s",
            "viewers_max": 256,
            "shutdown_grace": "10s",
        },
        "queue": {
            "max_queued": 10_000,
            "lease": "60s",
            "max_attempts": 3,
            "claim_batch": 16,
        },
        "agent": {
            "name": host.hostname,
            "listen": "127.0.0.1:7808",
            "labels": {},
            // Twice the cores: starts overlap, and beyond it only latency grows.
            "slots": host.cores * 2,
            "cpu": host.cores * 2,
            "memory": host.memory,
            "drain_timeout": "30s",
            "grace": "10s",
        },
        "backends": {},
        "docker": {
            "host": "",
            "connect_timeout": "5s",
            "call_timeout": "30s",
            "start_timeout": "60s",
            "reconnect_timeout": "30s",
            "concurrent_starts": host.cores * 2,
            "oci_runtime": "",
            "uid_range": { "start": 200_000, "count": 10_000 },
            "tmp_size": "64MiB",
            "tmp_inodes": 65_536,
            "workspace_size": "256MiB",
            "workspace_inodes": 262_144,
            "nofile": 4096,
            "shared": false,
            "seccomp_profile": "",
        },
        "logs": { "sync_every": "64MiB" },
        "presets": {
            "bash": { "image": "jobcell/bash:1", "interpreter": ["/bin/bash"] },
            "python": { "image": "jobcell/python:1", "interpreter": ["/usr/bin/python3", "-u"] },
        },
        "telemetry": { "log_format": "auto", "log_filter": "info" },
    })
}
