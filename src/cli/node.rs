//! Puts backend, executor and agent together from the settings: the same for `up` and for `job run`.

use super::home::Home;
use super::{Failure, show};
use crate::admission::policy::{Defaults, Filter, Reached, Routes};
use crate::admission::{Gate, LivePolicy, Preset, Presets};
use crate::agent::{Agent, AgentSettings, SweepTimes};
use crate::audit::{Audit, AuditSettings};
use crate::backend::{Backend, Embedded, QueueSettings, RetentionSettings};
use crate::blobs::{BlobError, BlobSettings, BlobStore};
use crate::config::{AuditConfig, BlobsConfig, Config, RetentionConfig};
use crate::egress::{EgressSettings, Outside};
use crate::executor::docker::{
    Bounds, DockerExecutor, DockerSettings, Engine, EngineError, ImageSettings, Images, Ledger, Logins, Profiles,
    Shape, answers_calls_itself,
};
use crate::executor::ssh::inventory::LiveInventory;
use crate::executor::ssh::{Pool, SshExecutor, SshSettings};
use crate::executor::warden::{CollectLimits, Keep};
use crate::executor::{Arriving, Both};
use crate::job::{Artifacts, ByteSize, Capacity, ImageName, OwnerId, Seccomp, SpecRules, UnixMillis};
use crate::journal::Journal;
use crate::logstore::LogStore;
use crate::protocol::agent::Announcement;
use crate::queue::AnyStore;
use crate::secrets::{Keyring, Providers};
use crate::server::Connections;
use crate::telemetry::{Health, Metrics, Traces};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The backend on `store`, its logs below `logs`.
pub(crate) fn backend(config: &Config, store: AnyStore, logs: &Path) -> Result<Arc<Embedded>, Failure> {
    let logs = LogStore::open(logs, config.logs_sync_every.as_u64()).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Failure::unavailable(format!("{error}{cause}"))
    })?;
    let settings = QueueSettings {
        max_queued: config.queue.max_queued,
        lease: config.queue.lease,
        max_attempts: config.queue.max_attempts,
        stuck_after: config.queue.stuck_after,
    };
    // What lies in memory goes with the process, and so may the keys.
    let keys = match &store {
        AnyStore::Memory(_) => Keyring::random(),
        AnyStore::Sqlite(_) => Keyring::load_or_make(&config.queue.secrets_key_file)
            .map_err(|error| Failure::config(format!("queue.secrets_key_file: {error}")))?,
    };
    Ok(Embedded::with_keys(store, logs, settings, keys))
}

/// How long what has ended is kept.
pub(crate) fn retention(config: &Config) -> RetentionSettings {
    let RetentionConfig { jobs_keep, jobs_max, output_keep, output_max } = config.retention;
    RetentionSettings { jobs_keep, jobs_max, output_keep, output_max }
}

/// The log of who did what, if there is to be one.
pub(crate) fn audit(config: &Config, home: &Home, health: &Health, metrics: &Arc<Metrics>) -> Audit {
    let AuditConfig { enabled, max_file, keep } = config.audit;
    if !enabled {
        return Audit::default();
    }
    let settings = AuditSettings { path: home.path("audit.jsonl"), max_file: max_file.as_u64(), keep };
    // Whoever closes it has heard from the task what there was to hear.
    let (audit, _) = Audit::open(settings, health.clone(), Arc::clone(metrics));
    audit
}

/// Bounds of connections. Jobs, logs and the engine need files too.
pub(crate) fn connections(config: &Config, metrics: &Arc<Metrics>) -> Connections {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let wanted = u64::from(config.server.connections_max);
    let most = wanted.min(files.saturating_sub(files / 4)).max(1);
    if most < wanted {
        // A shell's usual limit is no reason for a warning; one is given when the places are taken.
        tracing::debug!(
            most,
            files,
            "the process may open too few files for server.connections_max; raise LimitNOFILE"
        );
    }
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let of_one = match config.server.connections_per_address as usize {
        0 => most - most / 4,
        some => some.min(most),
    };
    Connections {
        most,
        of_one,
        header_timeout: config.server.header_timeout.as_duration(),
        write_timeout: config.server.write_timeout.as_duration(),
        tls: None,
        metrics: Arc::clone(metrics),
    }
}

/// Contents that jobs are given and give back, below `root`.
pub(crate) async fn blobs(config: &Config, root: &Path) -> Result<BlobStore, Failure> {
    let BlobsConfig { max_bytes, max_blob, grace, .. } = config.blobs;
    let opened = BlobStore::open(root, BlobSettings { max_bytes, max_blob, grace }).await;
    opened.map_err(|error| Failure::unavailable(format!("{}: {error}", root.display())))
}

/// The same contents, as the files of jobs get there.
pub(crate) fn artifacts(config: &Config, blobs: &BlobStore) -> BlobStore {
    // One content is a file, or the list of all of a job.
    blobs.within(config.artifacts.quota, config.artifacts.max_size.max(ByteSize::from_mib(64)))
}

/// Between two looks at what of an agent's store nobody needs any more.
const ARTIFACT_SWEEP: std::time::Duration = std::time::Duration::from_secs(600);

/// Lets go of the files of attempts that nobody remembers: they will never be passed on.
pub(crate) async fn release_artifacts(store: &BlobStore, held: &HashSet<String>) -> Result<(), BlobError> {
    let mut after = String::new();
    loop {
        let holders = store.holders(Artifacts::HOLDERS, &after, 500).await?;
        let Some(last) = holders.last() else { return Ok(()) };
        after.clone_from(last);
        for holder in holders.iter().filter(|holder| !held.contains(*holder)) {
            store.release(holder).await?;
        }
    }
}

/// Removes what an agent has passed on, until `stop`.
pub(crate) async fn sweep_artifacts(store: BlobStore, stop: CancellationToken) {
    loop {
        if let Err(error) = store.sweep(UnixMillis::now()).await {
            tracing::warn!(%error, "files that were passed on could not be removed yet");
        }
        tokio::select! {
            () = tokio::time::sleep(ARTIFACT_SWEEP) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn keep(config: &Config, store: BlobStore) -> Keep {
    let artifacts = &config.artifacts;
    let limits = CollectLimits {
        max_size: artifacts.max_size,
        max_total: artifacts.max_total,
        max_count: artifacts.max_count,
        timeout: artifacts.timeout,
    };
    Keep { store, limits }
}

/// What checking a spec needs to know of these settings.
pub(crate) fn rules(config: &Config) -> SpecRules {
    SpecRules { presets: Some(config.presets.keys().cloned().collect()) }
}

/// The seccomp profiles as the engine takes them. Errors: a named file that cannot be read or is no profile.
pub(crate) fn seccomp(config: &Config) -> Result<Profiles, Failure> {
    let profiles = Profiles::built_in(config.docker.seccomp);
    if config.docker.seccomp != Seccomp::Default && answers_calls_itself(&config.docker.oci_runtime) {
        return Err(Failure::config(format!(
            "docker.seccomp: {} cannot be in force under docker.oci_runtime {}, whose cells answer system calls themselves; leave it out",
            config.docker.seccomp.name(),
            config.docker.oci_runtime
        )));
    }
    let Some(path) = &config.docker.seccomp_profile else { return Ok(profiles) };
    let bad = |reason: String| Failure::config(format!("docker.seccomp_profile: {}: {reason}", path.display()));
    let own = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    profiles.with_default(&own).map_err(|reason| bad(format!("{reason}; see seccomp/default.json")))
}

/// The operator's policy. Errors: its file cannot be read, or is none.
pub(crate) fn policy(config: &Config) -> Result<LivePolicy, Failure> {
    LivePolicy::load(config.policy_file.as_deref()).map_err(|problems| {
        let file = config.policy_file.as_deref().unwrap_or(Path::new("")).display();
        Failure::config(format!("policy.file: {file} has problems:\n{problems}"))
    })
}

/// What may run on this host, by that policy; and on others, as far as there is an inventory.
pub(crate) fn gate(config: &Config, policy: LivePolicy, inventory: Option<&LiveInventory>) -> Gate {
    let preset = |(name, preset): (&String, &crate::config::PresetConfig)| {
        (name.clone(), Preset { image: preset.image.clone(), interpreter: preset.interpreter.clone() })
    };
    let presets: Presets = config.presets.iter().map(preset).collect();
    let docker = &config.docker;
    let uids = (docker.uid_start, docker.uid_start.saturating_add(docker.uid_count.saturating_sub(1)));
    let defaults = Defaults {
        disk: docker.workspace_size,
        inodes: docker.workspace_inodes,
        output: config.logs_output,
        nofile: docker.nofile,
    };
    let filter = Filter {
        least: docker.seccomp,
        own: docker.seccomp_profile.is_some(),
        none: answers_calls_itself(&docker.oci_runtime),
    };
    let secrets = config.secrets.keys().cloned().collect();
    Gate {
        policy,
        presets,
        routes: inventory.cloned().map_or_else(Routes::default, routes),
        secrets,
        pull: config.images.pull,
        oci_runtime: docker.oci_runtime.clone(),
        uids,
        defaults,
        filter,
    }
}

/// Connects to the engine.
pub(crate) async fn connect(config: &Config) -> Result<Engine, EngineError> {
    let docker = &config.docker;
    Engine::connect(&docker.host, docker.connect_timeout.as_duration(), docker.call_timeout.as_duration()).await
}

/// Makes cells on `engine`.
pub(crate) fn executor(
    config: &Config,
    engine: Engine,
    seccomp: Profiles,
    ledger: &Path,
    owner: OwnerId,
    stop: CancellationToken,
) -> DockerExecutor {
    let docker = &config.docker;
    let settings = DockerSettings {
        shape: shape(config, seccomp),
        uid_start: docker.uid_start,
        uid_count: docker.uid_count,
        concurrent_starts: docker.concurrent_starts as usize,
        start_timeout: docker.start_timeout.as_duration(),
        pin_cores: docker.pin_cores,
    };
    let images = images(config, engine.clone(), ledger);
    DockerExecutor::new(engine, settings, images, owner, stop)
}

/// Images on `engine`; what is known of them lies below `ledger`.
pub(crate) fn images(config: &Config, engine: Engine, ledger: &Path) -> Images {
    let images = &config.images;
    let presets = config.presets.values().filter_map(|preset| ImageName::parse(&preset.image));
    let settings = ImageSettings {
        pull: images.pull,
        timeout: images.pull_timeout.as_duration(),
        logins: Logins { registries: images.registries.clone(), file: images.auth_file.clone() },
        bounds: Bounds {
            free_low: images.free_low,
            free_high: images.free_high,
            size_max: images.size_max,
            keep: images.keep.iter().cloned().chain(presets).collect(),
            remove_others: images.remove_others,
        },
    };
    Images::new(engine, settings, Ledger::new(ledger))
}

fn shape(config: &Config, seccomp: Profiles) -> Shape {
    let docker = &config.docker;
    Shape {
        oci_runtime: docker.oci_runtime.clone(),
        seccomp,
        tmp_size: docker.tmp_size,
        tmp_inodes: docker.tmp_inodes,
        workspace_size: docker.workspace_size,
        workspace_inodes: docker.workspace_inodes,
        nofile: docker.nofile,
        output: config.logs_output,
        egress_connections: config.egress.concurrent,
    }
}

/// Where jobs go that may go out.
fn outside(config: &Config) -> Outside {
    let egress = &config.egress;
    Outside::new(EgressSettings {
        resolver: egress.resolver,
        connect_timeout: egress.connect_timeout.as_duration(),
        idle_timeout: egress.idle_timeout.as_duration(),
        concurrent: egress.concurrent,
        connections: egress.connections,
        bytes: egress.bytes,
        lookups: egress.lookups,
        max_rate: egress.max_rate,
    })
}

/// The port of a host that nobody has another one for.
const SSH_PORT: u16 = 22;

/// What an agent of this program makes.
pub(crate) type Cells = Both<Arriving<DockerExecutor>>;

/// The hosts that the operator lets jobs go to. Errors: what is wrong with the file that names them.
pub(crate) fn inventory(config: &Config) -> Result<Option<LiveInventory>, Failure> {
    let Some(file) = &config.ssh.inventory else { return Ok(None) };
    LiveInventory::load(file, &config.data_dir).map(Some).map_err(|problems| {
        let text = format!("ssh.inventory: {} has problems:\n{problems}", file.display());
        Failure::config(show::printable(&text).replace("\\n", "\n"))
    })
}

/// What the inventory says of a target, for the policy to judge: as it is when it is asked.
fn routes(inventory: LiveInventory) -> Routes {
    Routes::new(move |target| {
        let inventory = inventory.current();
        let host = inventory.host(&target.host);
        let login = host.and_then(|host| host.login.clone());
        let own = host.and_then(|host| host.credential.clone());
        let jump = host.map(|host| host.jump.clone()).unwrap_or_default();
        let ways = if target.access.jump.is_empty() { &jump } else { &target.access.jump };
        let on_the_way = ways.iter().filter_map(|name| inventory.host(name)?.credential.as_deref());
        let password = target.access.credential.as_deref().or(own.as_deref()).into_iter().chain(on_the_way);
        Reached {
            address: host.map(|host| host.address.clone()),
            port: Some(host.map_or(SSH_PORT, |host| host.port)),
            login,
            password: password.into_iter().any(|name| inventory.is_password(name)),
            credential: own,
            jump,
        }
    })
}

/// Runs jobs on those hosts; what it knows of them lies below `dir`. Errors: that cannot be written.
pub(crate) fn hosts(
    config: &Config,
    inventory: LiveInventory,
    owner: &OwnerId,
    dir: &Path,
    stop: CancellationToken,
) -> Result<SshExecutor, Failure> {
    let pool = Pool::new(SshSettings::of(&config.ssh), inventory.clone(), stop);
    let dir = dir.join("ssh");
    SshExecutor::new(pool, inventory, owner.clone(), &dir, config.logs_output)
        .map_err(|error| Failure::unavailable(format!("{}: {error}", dir.display())))
}

/// The agent.
#[expect(clippy::too_many_arguments, reason = "each is a part of its own, and this is where they come together")]
pub(crate) fn agent(
    config: &Config,
    backends: Vec<Arc<dyn Backend>>,
    logs: LogStore,
    owner: &OwnerId,
    executor: Cells,
    journal: Arc<dyn Journal>,
    metrics: Arc<Metrics>,
    gate: Gate,
    artifacts: BlobStore,
    traces: Traces,
) -> Agent<Cells> {
    let beside = shape(config, Profiles::built_in(config.docker.seccomp)).beside();
    let capacity = Capacity { slots: config.agent.slots, cpu: config.agent.cpu, memory: config.agent.memory, beside };
    let announcement = Announcement {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        installation: owner.to_string(),
        labels: config.agent.labels.clone(),
        executors: executor.kinds(),
        presets: config.presets.keys().cloned().collect(),
        capacity,
    };
    let settings = AgentSettings {
        announcement,
        capacity,
        claim_batch: config.queue.claim_batch,
        grace: config.agent.grace,
        handover: config.agent.handover,
        drain_timeout: config.agent.drain_timeout.as_duration(),
        reconnect: config.docker.reconnect_timeout.as_duration(),
        output_share: config.logs_share,
        gate,
        keep: Some(keep(config, artifacts)),
        secrets: Providers::of(&config.secrets),
        disk: (config.data_dir.clone(), config.agent.disk_floor),
        sweep: SweepTimes::default(),
        outside: outside(config),
        traces,
    };
    metrics.slots.set(i64::from(config.agent.slots));
    Agent::new(backends, Arc::new(executor), journal, logs, settings, metrics)
}
