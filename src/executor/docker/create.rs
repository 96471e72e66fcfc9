//! What a cell is made of: the container's definition, and what the warden must find in force inside it. Pure.
//!
//! Both come from one place, so that nothing is asked of the engine without being checked from inside. Nothing of the
//! job but its image and its limits is ever part of the container's definition: the spec, its variables and its input
//! travel to the warden by the protocol.

use super::{network, profiles::Profiles, runtimes, volume};
use crate::executor::CellOrder;
use crate::executor::spec::{self, Places};
use crate::job::{Beside, ByteSize, Millis, NetworkMode, OwnerId, Seccomp, UsedImage};
use crate::job::{SECRET_FILES_MOST, SECRET_MIN, SECRETS_BYTES, SECRETS_MOST, WORKDIR};
use crate::protocol::wire::{self, CellSpec, Expect, OUTPUT_FILE, PROGRESS_PIPE, Rlimit, SECRETS_DIR};
use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount, MountType,
    MountVolumeOptions,
};
use std::collections::HashMap;

/// Behind it, in the warden's arguments, is whose cell it is.
pub(super) const OWNER_ARGUMENT: &str = "--owner";

/// The cores that a cell is held to, for a later process.
pub(super) const CORES_LABEL: &str = "jobcell.cores";
/// What a cell was made of.
const IMAGE_LABEL: &str = "jobcell.image";
const IMAGE_ID_LABEL: &str = "jobcell.image.id";
const IMAGE_DIGEST_LABEL: &str = "jobcell.image.digest";
const IMAGE_PULLED_LABEL: &str = "jobcell.image.pulled";

/// What the warden needs beside the job: its ring, and its own pages.
const WARDEN_RESERVE: ByteSize = ByteSize::from_mib(8);
/// /dev/shm: for what programs share, not for files.
const SHM: ByteSize = ByteSize::from_mib(16);
const SHM_INODES: u64 = 4096;
/// Where secrets are that are files: as much as they can be, in whole pages. Within the reserve.
const SECRETS_ROOM: ByteSize = ByteSize::new((SECRETS_BYTES + SECRET_FILES_MOST * PAGE as usize) as u64);
const SECRETS_INODES: u64 = SECRET_FILES_MOST as u64 + 1;
// What is promised to users is what wardens hold to.
const _: () = assert!(
    SECRET_MIN == wire::SECRET_MIN && SECRETS_BYTES == wire::SECRETS_BYTES && SECRETS_MOST == wire::SECRETS_MOST
);
/// The warden itself, and what the engine starts beside it for a moment.
const WARDEN_PIDS: u32 = 4;
const PAGE: u64 = 4096;
/// Where a job works, and leaves what is to be kept.
const WORKSPACE: &str = "/workspace";
/// A job's share of the processors is counted anew so often, microseconds; the kernel's usual time.
const CPU_PERIOD_US: i64 = 100_000;
/// Where the script lies in the cell.
const SCRIPT_PATH: &str = "/workspace/.jobcell-script";
/// A warden that never gets a commit ends by itself after this.
const START_DEADLINE: Millis = Millis::from_secs(120);
/// The job's pipes; the largest size that an unprivileged process may ask for by default.
const OUTPUT_PIPE_BYTES: u32 = 1 << 20;

/// What the operator's configuration says about a container.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The OCI runtime; empty for the engine's default.
    pub oci_runtime: String,
    /// The seccomp profiles.
    pub seccomp: Profiles,
    /// Size of /tmp.
    pub tmp_size: ByteSize,
    /// Files in /tmp.
    pub tmp_inodes: u64,
    /// Size of /workspace, for a job that does not say.
    pub workspace_size: ByteSize,
    /// Files in /workspace, for a job that says neither this nor the size.
    pub workspace_inodes: u64,
    /// Open files of each process of a job that does not say.
    pub nofile: u64,
    /// Output of a job that does not say.
    pub output: ByteSize,
    /// Connections at a time of a job that may go out.
    pub egress_connections: u16,
}

impl Shape {
    /// What each cell takes beside its job's memory. A full tmpfs counts as memory of the cell: without its share it would be the
    /// warden that the kernel kills.
    pub fn beside(&self) -> Beside {
        let fixed = self.tmp_size.as_u64() + SHM.as_u64() + WARDEN_RESERVE.as_u64();
        Beside { fixed: ByteSize::new(fixed), disk: self.workspace_size }
    }
}

/// A cell to be made.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) container: ContainerCreateBody,
    pub(super) cell_spec: CellSpec,
}

/// Plans the cell of `order` under `profile` for user `uid`, held to `cores`.
pub(super) fn plan(
    order: &CellOrder,
    image: Option<&UsedImage>,
    shape: &Shape,
    profile: Seccomp,
    uid: u32,
    cores: Option<&str>,
    owner: &OwnerId,
) -> Plan {
    let limits = limits(order, shape);
    let mut container = container(order, shape, uid, owner, limits);
    if let Some(cores) = cores {
        container.labels.get_or_insert_default().insert(CORES_LABEL.to_owned(), cores.to_owned());
        container.host_config.get_or_insert_default().cpuset_cpus = Some(cores.to_owned());
    }
    if let Some(image) = image {
        of_image(&mut container, image);
    }
    if let Some(host) = &mut container.host_config {
        let filter = format!("seccomp={}", shape.seccomp.text(profile));
        host.security_opt = Some(vec!["no-new-privileges".to_owned(), filter]);
    }
    let mut cell_spec = cell_spec(order, shape, uid, limits);
    cell_spec.tripwire = profile == Seccomp::Tripwire;
    cell_spec.expect.extend(refused_calls());
    cell_spec.expect = runtimes::adapt(cell_spec.expect, &shape.oci_runtime);
    // It was asked for by name, so a kernel that answers calls by itself has to show it too.
    cell_spec.expect.extend(own_calls(profile));
    Plan { container, cell_spec }
}

/// Made of the image that was looked at, whatever its name stands for by now; with what a later process has to know of it.
fn of_image(container: &mut ContainerCreateBody, image: &UsedImage) {
    container.image = Some(image.id.clone());
    let labels = container.labels.get_or_insert_default();
    labels.insert(IMAGE_LABEL.to_owned(), image.reference.clone());
    labels.insert(IMAGE_ID_LABEL.to_owned(), image.id.clone());
    labels.insert(IMAGE_PULLED_LABEL.to_owned(), image.pulled.to_string());
    if let Some(digest) = &image.digest {
        labels.insert(IMAGE_DIGEST_LABEL.to_owned(), digest.clone());
    }
}

/// What the labels say that a cell was made of.
pub(super) fn image_of(labels: &HashMap<String, String>) -> Option<UsedImage> {
    Some(UsedImage {
        reference: labels.get(IMAGE_LABEL)?.clone(),
        id: labels.get(IMAGE_ID_LABEL)?.clone(),
        digest: labels.get(IMAGE_DIGEST_LABEL).cloned(),
        pulled: labels.get(IMAGE_PULLED_LABEL).is_some_and(|pulled| pulled == "true"),
    })
}

/// What binds this cell.
#[derive(Debug, Clone, Copy)]
struct Limits {
    memory: u64,
    pids: u32,
    cpu_milli: u32,
    disk: ByteSize,
    inodes: u64,
    output: u64,
    nofile: u64,
}

fn limits(order: &CellOrder, shape: &Shape) -> Limits {
    let asked = order.spec.resources();
    Limits {
        memory: shape.beside().with(asked.memory, asked.disk).as_u64(),
        pids: asked.pids + WARDEN_PIDS,
        cpu_milli: asked.cpu.as_milli(),
        // The kernel makes whole pages of it.
        disk: ByteSize::new(asked.disk.unwrap_or(shape.workspace_size).as_u64().next_multiple_of(PAGE)),
        inodes: asked.inodes_or(shape.workspace_inodes),
        output: asked.output.unwrap_or(shape.output).as_u64(),
        nofile: asked.nofile.unwrap_or(shape.nofile),
    }
}

fn container(order: &CellOrder, shape: &Shape, uid: u32, owner: &OwnerId, limits: Limits) -> ContainerCreateBody {
    let tmpfs = |size: ByteSize, inodes: u64, exec: &str| {
        format!("rw,nosuid,nodev,{exec},size={},nr_inodes={inodes},mode=0700,uid={uid},gid={uid}", size.as_u64())
    };
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let host = HostConfig {
        // Only what a job builds in its workspace may be executed; /tmp takes data.
        tmpfs: Some(
            [
                ("/tmp".to_owned(), tmpfs(shape.tmp_size, shape.tmp_inodes, "noexec")),
                ("/workspace".to_owned(), tmpfs(limits.disk, limits.inodes, "exec")),
                ("/dev/shm".to_owned(), tmpfs(SHM, SHM_INODES, "noexec")),
            ]
            .into_iter()
            .chain(secrets_room(order).map(|place| (place.to_owned(), tmpfs(SECRETS_ROOM, SECRETS_INODES, "noexec"))))
            .collect(),
        ),
        readonly_rootfs: Some(true),
        cap_drop: Some(vec!["ALL".to_owned()]),
        privileged: Some(false),
        network_mode: Some(network_mode(order, owner)),
        // A namespace of its own, as `private` gives, without the engine's /dev/shm: that has no limit on files, and each is memory of the
        // kernel's that nobody can take back.
        ipc_mode: Some("none".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        memory: Some(signed(limits.memory)),
        memory_swap: Some(signed(limits.memory)),
        // Not as a number of cores: an engine refuses more than its host has, and a job that asks for more gets all there are.
        cpu_period: Some(CPU_PERIOD_US),
        cpu_quota: Some(i64::from(limits.cpu_milli) * CPU_PERIOD_US / 1000),
        pids_limit: Some(i64::from(limits.pids)),
        // The engine's own log path is slow and loses output; ours is the warden's.
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        runtime: Some(shape.oci_runtime.clone()).filter(|name| !name.is_empty()),
        ..HostConfig::default()
    };
    let mut labels = labels(order, owner);
    labels.insert("jobcell.uid".to_owned(), uid.to_string());
    ContainerCreateBody {
        image: Some(order.image.clone()),
        user: Some(format!("{uid}:{uid}")),
        hostname: Some("cell".to_owned()),
        working_dir: Some("/".to_owned()),
        entrypoint: Some(vec![volume::WARDEN_PATH.to_owned()]),
        // The warden has no use for the owner: it is for those who find the bundle of this container without the engine knowing it.
        cmd: Some(vec![
            "--start-deadline-ms".to_owned(),
            START_DEADLINE.as_u64().to_string(),
            OWNER_ARGUMENT.to_owned(),
            owner.to_string(),
        ]),
        env: Some(Vec::new()),
        // Stdin stays open over a change of clients: a new attach goes on where the old one was.
        open_stdin: Some(true),
        stdin_once: Some(false),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(false),
        labels: Some(labels),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

/// The file system for secrets, of a job that has some that are files.
fn secrets_room(order: &CellOrder) -> Option<&'static str> {
    order.spec.secrets().values().any(|ask| ask.file).then_some(SECRETS_DIR)
}

/// What says whose something is, and for which attempt.
pub(super) fn labels(order: &CellOrder, owner: &OwnerId) -> HashMap<String, String> {
    let attempt = order.attempt;
    HashMap::from([
        ("jobcell.owner".to_owned(), owner.to_string()),
        ("jobcell.job".to_owned(), attempt.job.to_string()),
        ("jobcell.attempt".to_owned(), attempt.attempt.to_string()),
        ("jobcell.part".to_owned(), attempt.part.to_string()),
    ])
}

/// The network of a cell that is to have one.
pub(super) fn network_of(order: &CellOrder, owner: &OwnerId) -> Option<String> {
    match order.spec.network() {
        NetworkMode::None => None,
        NetworkMode::Bridge => Some(network::name(&order.attempt.cell_name(owner))),
    }
}

fn network_mode(order: &CellOrder, owner: &OwnerId) -> String {
    network_of(order, owner).unwrap_or_else(|| "none".to_owned())
}

/// Adds the warden's volume, read-only.
pub(super) fn with_volume(mut body: ContainerCreateBody, volume: &str) -> ContainerCreateBody {
    if let Some(host) = &mut body.host_config {
        host.mounts = Some(vec![volume_mount(volume, true)]);
    }
    body
}

/// The mount that carries the warden.
pub(super) fn volume_mount(volume: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::VOLUME),
        source: Some(volume.to_owned()),
        target: Some(volume::WARDEN_DIR.to_owned()),
        read_only: Some(read_only),
        volume_options: Some(MountVolumeOptions {
            // Nothing of the image is copied into it.
            no_copy: Some(true),
            // For the container with which it comes to be. No owner: every installation with the same warden shares it.
            labels: Some(volume::labels()),
            ..MountVolumeOptions::default()
        }),
        ..Mount::default()
    }
}

fn cell_spec(order: &CellOrder, shape: &Shape, uid: u32, limits: Limits) -> CellSpec {
    let spec = &order.spec;
    let output = format!("{WORKSPACE}/{OUTPUT_FILE}");
    let mut given: Vec<(&str, String)> = [
        ("HOME", WORKSPACE),
        ("LANG", "C.UTF-8"),
        ("TZ", "UTC"),
        ("JOBCELL_OUTPUT", &output),
        ("JOBCELL_PROGRESS", PROGRESS_PIPE),
        ("JOBCELL_HELPER", volume::WARDEN_PATH),
    ]
    .map(|(key, value)| (key, value.to_owned()))
    .into();
    // The warden adds what tells programs of its proxy, and knows nothing of rules. What a job says of it in either case of letters stays.
    let said = |name: &str| name.eq_ignore_ascii_case("NO_PROXY");
    let own = spec.env().keys().any(|name| said(name)) || order.secrets.iter().any(|secret| said(&secret.name));
    if let Some(past) = crate::job::egress::past_proxy(&spec.egress().allow).filter(|_| !own) {
        given.extend([("NO_PROXY", past.clone()), ("no_proxy", past)]);
    }
    let at = Places { workspace: WORKSPACE, workdir: WORKDIR, script: SCRIPT_PATH };
    CellSpec {
        // What the image says about itself (PATH, JAVA_HOME, …); never the names that a cell sets.
        inherit_env: vec!["*".to_owned()],
        rlimits: runtimes::settable(rlimits(shape, limits), &shape.oci_runtime),
        output_pipe_bytes: OUTPUT_PIPE_BYTES,
        expect: expectations(order, shape, uid, limits),
        egress_connections: if spec.egress().is_none() { 0 } else { shape.egress_connections },
        ..spec::cell_spec(order, &at, &given, limits.output)
    }
}

/// Set by the warden in the job's process, so that they do not bind the warden. What a user can expect to choose is a field of the
/// job; the others are the same for all, since the kernel counts what they bound for the cell's user id and not for its cgroup.
fn rlimits(shape: &Shape, limits: Limits) -> Vec<Rlimit> {
    const FSIZE: u32 = 1;
    const CORE: u32 = 4;
    const NPROC: u32 = 6;
    const NOFILE: u32 = 7;
    const MEMLOCK: u32 = 8;
    const SIGPENDING: u32 = 11;
    const MSGQUEUE: u32 = 12;
    const NICE: u32 = 13;
    const RTPRIO: u32 = 14;
    /// What the kernel gives by default, whatever the engine was started with.
    const MEMLOCK_BYTES: u64 = 8 << 20;
    const MSGQUEUE_BYTES: u64 = 819_200;
    /// Memory of the kernel's that no cgroup counts everywhere; a program that queues more has gone wrong.
    const SIGNALS: u64 = 4096;
    // A page more, so that a file that fills its file system is told so, and only a hole can be too large.
    let largest_file = limits.disk.max(shape.tmp_size).max(SHM).as_u64() + PAGE;
    let one = |resource, value| Rlimit { resource, soft: value, hard: value };
    vec![
        one(FSIZE, largest_file),
        one(CORE, 0),
        // A second lock behind the cgroup's, for kernels without the pids controller. A little wider, so that the cgroup is the one
        // that refuses, and counts it.
        one(NPROC, u64::from(limits.pids) + 16),
        one(NOFILE, limits.nofile),
        one(MEMLOCK, MEMLOCK_BYTES),
        one(SIGPENDING, SIGNALS),
        one(MSGQUEUE, MSGQUEUE_BYTES),
        one(NICE, 0),
        one(RTPRIO, 0),
    ]
}

/// Names of all interfaces, in order: a second way out would be one too many.
const fn interfaces(network: NetworkMode) -> &'static str {
    match network {
        NetworkMode::None => "lo",
        NetworkMode::Bridge => "eth0,lo",
    }
}

/// The isolation that the warden must find before it starts anything.
fn expectations(order: &CellOrder, shape: &Shape, uid: u32, limits: Limits) -> Vec<Expect> {
    let none = "0000000000000000";
    let mut all = vec![
        Expect::eq("pid", "1"),
        Expect::eq("uid", &uid.to_string()),
        Expect::eq("gid", &uid.to_string()),
        Expect::one_of("groups", &format!(",{uid}")),
        Expect::eq("cap_inh", none),
        Expect::eq("cap_prm", none),
        Expect::eq("cap_eff", none),
        Expect::eq("cap_bnd", none),
        Expect::eq("cap_amb", none),
        Expect::eq("no_new_privs", "1"),
        Expect::eq("seccomp", "2"),
        Expect::eq("root_readonly", "1"),
        Expect::eq("interfaces", interfaces(order.spec.network())),
        Expect::eq("mount./tmp", "tmpfs"),
        Expect::eq("mount./workspace", "tmpfs"),
        Expect::at_most("mount./tmp.size", shape.tmp_size.as_u64()),
        Expect::at_most("mount./workspace.size", limits.disk.as_u64()),
        Expect::at_most("mount./tmp.inodes", shape.tmp_inodes),
        Expect::at_most("mount./workspace.inodes", limits.inodes),
        Expect::eq("mount./dev/shm", "tmpfs"),
        Expect::at_most("mount./dev/shm.size", SHM.as_u64()),
        Expect::at_most("mount./dev/shm.inodes", SHM_INODES),
        Expect::eq("mount./dev/shm.noexec", "1"),
        Expect::at_most("memory_limit_bytes", limits.memory),
        Expect::at_most("pids_limit", u64::from(limits.pids)),
        Expect::at_most("cpu_quota_us", u64::from(limits.cpu_milli) * CPU_PERIOD_US.unsigned_abs() / 1000),
        Expect::eq("mount./tmp.noexec", "1"),
    ];
    let secrets = secrets_room(order);
    if let Some(place) = secrets {
        all.push(Expect::eq(&format!("mount.{place}"), "tmpfs"));
        all.push(Expect::eq(&format!("mount.{place}.noexec"), "1"));
        all.push(Expect::at_most(&format!("mount.{place}.size"), SECRETS_ROOM.as_u64()));
        all.push(Expect::at_most(&format!("mount.{place}.inodes"), SECRETS_INODES));
    }
    for place in ["/tmp", "/workspace", "/dev/shm"].into_iter().chain(secrets) {
        all.push(Expect::eq(&format!("mount.{place}.nosuid"), "1"));
        all.push(Expect::eq(&format!("mount.{place}.nodev"), "1"));
    }
    all
}

/// That the filter is one of ours, told by what was tried.
fn refused_calls() -> Vec<Expect> {
    // Not EINVAL or EFAULT: these mean that the call got past the filter.
    let refused = "EPERM,ENOSYS,EACCES,EAFNOSUPPORT";
    let tries =
        ["unshare_user", "mount", "io_uring", "socket_vsock", "socket_alg", "ptrace", "raw_socket", "bpf", "keyctl"];
    let mut all: Vec<Expect> = tries.map(|tried| Expect::one_of(&format!("try.{tried}"), refused)).into();
    // Only our own profiles refuse these two: they tell them from the engine's.
    all.push(Expect::eq("try.prlimit_pid1", "EPERM"));
    all.push(Expect::eq("try.setpriority_pid1", "EPERM"));
    all
}

/// What tells our profiles from each other.
fn own_calls(profile: Seccomp) -> Option<Expect> {
    match profile {
        Seccomp::Default => None,
        Seccomp::Offline => Some(Expect::eq("try.socket_inet", "EAFNOSUPPORT")),
        Seccomp::Strict => Some(Expect::eq("try.sysv_shm", "EPERM")),
        // The answer where nobody listens yet; the warden does before it starts the job.
        Seccomp::Tripwire => Some(Expect::eq("try.unshare_user", "ENOSYS")),
    }
}
