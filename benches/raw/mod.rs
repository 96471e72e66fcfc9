//! The reference: the shortest loop over the engine's API that runs a hardened container and knows its exit.

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder,
    WaitContainerOptionsBuilder,
};
use futures_util::StreamExt;
use std::time::{Duration, Instant};

/// What hardens a container, with a seccomp profile or the engine's own.
pub(crate) fn hardened(seccomp: Option<&str>) -> HostConfig {
    let mut options = vec!["no-new-privileges".to_owned()];
    options.extend(seccomp.map(|profile| format!("seccomp={profile}")));
    HostConfig {
        cap_drop: Some(vec!["ALL".into()]),
        security_opt: Some(options),
        memory: Some(128 << 20),
        memory_swap: Some(128 << 20),
        nano_cpus: Some(1_000_000_000),
        pids_limit: Some(64),
        readonly_rootfs: Some(true),
        ..plain()
    }
}

/// What is the same for both: neither a network nor the engine's log.
pub(crate) fn plain() -> HostConfig {
    HostConfig {
        network_mode: Some("none".into()),
        log_config: Some(HostConfigLogConfig { typ: Some("none".into()), config: None }),
        ..HostConfig::default()
    }
}

pub(crate) struct Raw(Docker);

pub(crate) struct Times {
    pub(crate) first_byte: Duration,
    pub(crate) exit_known: Duration,
}

impl Raw {
    pub(crate) async fn connect() -> Result<Self, bollard::errors::Error> {
        let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
        Ok(Self(Docker::connect_with_host(&host)?.negotiate_version().await?))
    }

    /// Create, attach, wait, start, read, know; the removal is not counted.
    pub(crate) async fn once(&self) -> Result<Times, bollard::errors::Error> {
        self.once_with("1000:1000", hardened(None)).await
    }

    /// The same as another user, with another configuration.
    pub(crate) async fn once_with(&self, user: &str, host: HostConfig) -> Result<Times, bollard::errors::Error> {
        let name = format!("jobcell-bench-{}", uuid::Uuid::new_v4().simple());
        let body = ContainerCreateBody {
            image: Some("jobcell/bash:1".into()),
            cmd: Some(vec!["echo".into(), "hello".into()]),
            user: Some(user.into()),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        };
        let begun = Instant::now();
        let options = CreateContainerOptionsBuilder::default().name(&name).build();
        self.0.create_container(Some(options), body).await?;
        let options = AttachContainerOptionsBuilder::default().stream(true).stdout(true).stderr(true).build();
        let mut attached = self.0.attach_container(&name, Some(options)).await?;
        let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
        // Polled before the start: "next-exit" is not needed then, and the wait is registered.
        let mut wait = Box::pin(self.0.wait_container(&name, Some(options)));
        self.0.start_container(&name, None).await?;
        let mut first_byte = Duration::ZERO;
        while let Some(part) = attached.output.next().await {
            if matches!(part?, LogOutput::StdOut { .. }) && first_byte.is_zero() {
                first_byte = begun.elapsed();
            }
        }
        let _ = wait.next().await;
        let exit_known = begun.elapsed();
        let options = RemoveContainerOptionsBuilder::default().force(true).build();
        self.0.remove_container(&name, Some(options)).await?;
        Ok(Times { first_byte, exit_known })
    }
}
