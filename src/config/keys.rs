//! Every key: what it may be, its default and what it is for. The built-in layer, the check, the schema and, held by a
//! test, the example file are all made from this table. `""` stands for a default that the check fills in.

use super::HostFacts;
use crate::job::{ByteSize, Cpus, Millis, Pull, Seccomp};
use serde_json::{Map, Value, json};

/// One key.
pub(super) struct Key {
    /// Its sections and name, with dots.
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    pub(super) default: fn(&HostFacts) -> Value,
    /// For people, in sentences.
    pub(super) about: &'static str,
}

/// What a value may be; ranges include both ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Text,
    /// 1 to 128 printable characters.
    Name,
    /// Address and port.
    Address,
    /// Where an engine is.
    Engine,
    /// In the form of RUST_LOG.
    Filter,
    Choice(&'static [&'static str]),
    Number(u64, u64),
    Duration(Millis, Millis),
    Size(ByteSize, ByteSize),
    Cores(Cpus, Cpus),
    /// `true` or `false`.
    Flag,
    /// Names to language environments.
    Presets,
    /// Names to values.
    Labels,
    /// Labels of jobs to numbers.
    Groups,
    /// Names to servers.
    Backends,
    /// Names to what has a secret.
    Secrets,
    /// Names of doctor's checks to levels.
    Checks,
    /// Names of images.
    Images,
    /// Hosts to credentials.
    Registries,
    /// Origins of web pages.
    Origins,
    /// Names to what they count.
    Counters,
}

/// What each section is about.
pub(super) const SECTIONS: [(&str, &str); 19] = [
    ("server", "The HTTP API."),
    ("server.tls", "TLS of the API. docs/operations.md tells more."),
    ("limits", "How often and how much keys and strangers may ask. The key in admin.key has no limits."),
    ("audit", "The log of who did what, when, from where and what came of it: <data_dir>/audit.jsonl."),
    ("queue", "The embedded queue."),
    (
        "retention",
        "How long jobs that have ended are kept, and their output. Each 0 is no bound. docs/operations.md tells more.",
    ),
    ("agent", "What claims and runs jobs."),
    ("docker", "Cells on a Docker engine."),
    ("docker.uid_range", "Each live cell has a user id of its own from this range."),
    ("images", "Images of cells: how they come, and when they go."),
    ("policy", "What jobs may have on this host."),
    ("egress", "The way out of cells, for jobs that may go out. docs/egress.md tells more."),
    ("ssh", "Jobs on other hosts, over SSH. docs/ssh.md tells more."),
    ("logs", "The output of jobs."),
    ("blobs", "Contents that jobs are given and give back, by their digests."),
    ("artifacts", "The files that jobs leave to be kept."),
    ("telemetry", "What this process tells of itself: log lines and traces."),
    ("telemetry.otlp", "Traces of jobs, for a collector that speaks OTLP over HTTP. docs/operations.md tells more."),
    ("doctor", "What `jobcell doctor` checks."),
];

const SECOND: Millis = Millis::from_secs(1);
const HOUR: Millis = Millis::from_secs(3600);
const DAY: Millis = Millis::from_secs(24 * 3600);
const WEEK: Millis = Millis::from_secs(7 * 24 * 3600);
const YEARS: Millis = Millis::from_secs(10 * 365 * 24 * 3600);
const MIB: ByteSize = ByteSize::from_mib(1);
const TIB: ByteSize = ByteSize::from_mib(1 << 20);

const fn key(path: &'static str, kind: Kind, default: fn(&HostFacts) -> Value, about: &'static str) -> Key {
    Key { path, kind, default, about }
}

/// All keys, in the order in which they are shown.
pub(super) static KEYS: &[Key] = &[
    key(
        "data_dir",
        Kind::Text,
        |host| {
            let usual = if host.root { "/var/lib/jobcell".into() } else { host.user_data.join("jobcell") };
            json!(usual)
        },
        "Queue, logs, keys and the installation's identity. One process at a time holds it. A user who is not root gets $XDG_DATA_HOME/jobcell or ~/.local/share/jobcell.",
    ),
    key(
        "server.listen",
        Kind::Address,
        |_| json!("127.0.0.1:7807"),
        "Address and port of the API. Port 0 takes a free one; <data_dir>/endpoint says which.",
    ),
    key(
        "server.max_body",
        Kind::Size(ByteSize::new(4096), ByteSize::from_mib(64)),
        |_| json!("1MiB"),
        "Largest request body. A larger one is answered with 413.",
    ),
    key("server.wait_max", Kind::Duration(SECOND, HOUR), |_| json!("60s"), "Longest ?wait= of a request."),
    key(
        "server.viewers_max",
        Kind::Number(1, 100_000),
        |_| json!(256),
        "Live log streams at the same time. One more is answered with 503.",
    ),
    key(
        "server.shutdown_grace",
        Kind::Duration(Millis::new(0), HOUR),
        |_| json!("10s"),
        "For requests that are being answered when the server stops.",
    ),
    key(
        "server.connections_max",
        Kind::Number(16, 1_000_000),
        |_| json!(4096),
        "Connections at the same time, and never more than three quarters of the files that the process may open. One more is answered with 503, unless it asks for health or metrics.",
    ),
    key(
        "server.connections_per_address",
        Kind::Number(0, 1_000_000),
        |_| json!(0),
        "Of these, from one address (of IPv6, one /64). 0: three quarters, so that no address has all; where all come through one proxy, as many as connections_max.",
    ),
    key(
        "server.header_timeout",
        Kind::Duration(SECOND, HOUR),
        |_| json!("30s"),
        "For the head of a request to be there; a connection without a request is closed after as long.",
    ),
    key(
        "server.body_timeout",
        Kind::Duration(SECOND, HOUR),
        |_| json!("60s"),
        "For the body of a request to be there. Contents that are uploaded may take longer, as long as they come: 1 KiB in a second.",
    ),
    key(
        "server.write_timeout",
        Kind::Duration(SECOND, HOUR),
        |_| json!("60s"),
        "Who takes nothing of an answer or a stream for so long, or less than 1 KiB in a second while there is more, is cut off.",
    ),
    key(
        "server.cors_origins",
        Kind::Origins,
        |_| json!([]),
        "Origins whose web pages may use the API from a browser, such as [\"https://ci.example.com\"]. Empty: none but this server's own.",
    ),
    key(
        "server.tls.cert",
        Kind::Text,
        |_| json!(""),
        "The file with the server's certificate and those between it and its authority, in PEM. Empty: no TLS. It and the key are read again when they change, and on SIGHUP.",
    ),
    key(
        "server.tls.key",
        Kind::Text,
        |_| json!(""),
        "The file with its private key, in PEM, that strangers cannot read (mode 0600 or 0640).",
    ),
    key(
        "limits.rate",
        Kind::Number(0, 1_000_000),
        |_| json!(200),
        "Requests in a second of a key that has no limit of its own (`jobcell keys limit`). One more is answered with 429 and Retry-After. 0: no bound.",
    ),
    key(
        "limits.burst",
        Kind::Number(1, 1_000_000),
        |_| json!(400),
        "Requests of such a key at once, after a quiet time.",
    ),
    key(
        "limits.jobs",
        Kind::Number(0, 100_000_000),
        |_| json!(0),
        "Jobs of such a key that have not ended. One more is answered with 429. 0: no bound but queue.max_queued.",
    ),
    key(
        "limits.refused_rate",
        Kind::Number(0, 1_000_000),
        |_| json!(20),
        "Requests in a second from one address that have no good key and hear so; more hear 429. Good keys are let in from there all the same. 0: no bound.",
    ),
    key("limits.refused_burst", Kind::Number(1, 1_000_000), |_| json!(200), "Such requests at once."),
    key("audit.enabled", Kind::Flag, |_| json!(true), "False: no audit log is written."),
    key(
        "audit.max_file",
        Kind::Size(ByteSize::new(64 << 10), ByteSize::from_mib(1024)),
        |_| json!("16MiB"),
        "Bytes of one file. A full one becomes audit.jsonl.1, and so on.",
    ),
    key("audit.keep", Kind::Number(0, 1000), |_| json!(8), "Full files that are kept."),
    key(
        "queue.max_queued",
        Kind::Number(1, 100_000_000),
        |_| json!(10_000),
        "Jobs that may wait. One more is answered with 429 and Retry-After.",
    ),
    key(
        "queue.lease",
        Kind::Duration(SECOND, DAY),
        |_| json!("5m"),
        "How long a claimed job is an agent's without a renewal: so long it runs on when the agent cannot reach the server, and after it another agent may get it. A job's lost_after comes first.",
    ),
    key(
        "queue.max_attempts",
        Kind::Number(1, 100),
        |_| json!(3),
        "Tries of a job that does not say how many (retry.infrastructure is one less), as long as its ends are not its own doing: its cell or its agent is lost, the engine fails.",
    ),
    key(
        "queue.stuck_after",
        Kind::Duration(Millis::from_secs(60), DAY),
        |_| json!("10m"),
        "A job whose agent renews its lease, and that is so long on its way to its start or beyond its timeout, is ended and tried again. Longer than the agents' grace.",
    ),
    key("queue.claim_batch", Kind::Number(1, 1024), |_| json!(16), "Most jobs in one claim."),
    key(
        "queue.groups",
        Kind::Groups,
        |_| json!({}),
        "Most jobs that run at the same time with one value of a label, such as {deploy: 1}: jobs labelled deploy=web wait for each other, and not for deploy=api.",
    ),
    key(
        "queue.secrets_key_file",
        Kind::Text,
        |_| json!(""),
        "The file with the keys that seal secrets which came with a job while it waits. Empty: <data_dir>/secrets.key. One that is not there is made.",
    ),
    key(
        "retention.jobs_keep",
        Kind::Duration(Millis::new(0), YEARS),
        |_| json!("90d"),
        "A job is removed so long after its end, with all that is known of it; one for several hosts with those for its hosts. 0: never for its age.",
    ),
    key(
        "retention.jobs_max",
        Kind::Number(0, 100_000_000),
        |_| json!(1_000_000),
        "Jobs that have ended; with more, those that ended first are removed. 0: as many as there are.",
    ),
    key(
        "retention.output_keep",
        Kind::Duration(Millis::new(0), YEARS),
        |_| json!("30d"),
        "The output of a job is removed so long after its end; the job stays. 0: never for its age.",
    ),
    key(
        "retention.output_max",
        Kind::Size(ByteSize::new(0), ByteSize::from_mib(1 << 30)),
        |_| json!("64GiB"),
        "Output of all jobs that have ended; with more, that of those that ended first is removed. 0: as much as there is room for.",
    ),
    key(
        "agent.name",
        Kind::Name,
        |host| json!(host.hostname),
        "Shown with the jobs that it ran. Default: the host's name.",
    ),
    key(
        "agent.listen",
        Kind::Address,
        |_| json!("127.0.0.1:7808"),
        "Where `jobcell agent` answers for health and metrics; `jobcell up` does so at server.listen.",
    ),
    key(
        "agent.labels",
        Kind::Labels,
        |_| json!({}),
        "What jobs can ask for with `requires`: a map of names to values, such as {zone: eu-1, disk: ssd}.",
    ),
    // Twice the cores: starts overlap, and beyond it only latency grows.
    key(
        "agent.slots",
        Kind::Number(1, 10_000),
        |host| json!(host.cores * 2),
        "Jobs at the same time. Default: twice the cores.",
    ),
    key(
        "agent.cpu",
        Kind::Cores(Cpus::from_milli(10), Cpus::from_milli(1_024_000)),
        |host| json!(host.cores * 2),
        "Cores that all running jobs together may ask for. Default: twice the cores.",
    ),
    key(
        "agent.memory",
        Kind::Size(ByteSize::from_mib(16), ByteSize::from_mib(1 << 26)),
        |host| json!(host.memory),
        "Memory that all running cells together may use: of each, what its job asks for, /workspace, /tmp and 24 MiB. Default: all of the host's.",
    ),
    key(
        "agent.drain_mode",
        Kind::Choice(&["wait", "handover"]),
        |_| json!("wait"),
        "What becomes of running jobs when the agent is told to stop. wait: they may end within drain_timeout, then they are ended. handover: they run on, and the next start goes on with them; it has to come before their leases run out.",
    ),
    key(
        "agent.drain_timeout",
        Kind::Duration(Millis::new(0), WEEK),
        |_| json!("30s"),
        "For running jobs to end by themselves when the agent is told to stop.",
    ),
    key(
        "agent.grace",
        Kind::Duration(Millis::new(0), HOUR),
        |_| json!("10s"),
        "Between TERM and KILL when a job is stopped.",
    ),
    key(
        "agent.disk_floor",
        Kind::Size(ByteSize::new(0), ByteSize::from_mib(1 << 30)),
        |_| json!("1GiB"),
        "Bytes that stay free in the data directory: with fewer no jobs are claimed, and with fewer than a quarter of it running jobs wait when they write. 0 looks at nothing.",
    ),
    key(
        "agent.spool_max",
        Kind::Size(ByteSize::from_mib(1), ByteSize::from_mib(1 << 30)),
        |_| json!("8GiB"),
        "Output of all jobs together that a server elsewhere has not got yet. With more, no jobs are claimed and running jobs wait when they write, or drop where they said so (output_overflow).",
    ),
    key(
        "backends",
        Kind::Backends,
        |_| json!({}),
        "Where `jobcell agent` gets its jobs from: servers by a name of your choice, such as {main: {url: \"https://jobs.example:7807\", key_file: /etc/jobcell/agent.key, ca_file: /etc/jobcell/ca.pem, rate: 100}}. Without key_file the key is in JOBCELL_AGENT_KEY, in a file that JOBCELL_AGENT_KEY_FILE names, or the credential jobcell-agent-key; or it is the agent's own: it makes one and gets in once with a join token, in token_file, JOBCELL_JOIN_TOKEN (or _FILE), or the credential jobcell-join-token. ca_file has the authorities that are believed; without it, those of the system. `rate` is the most calls in a second.",
    ),
    key(
        "secrets",
        Kind::Secrets,
        |_| json!({}),
        "Secrets that jobs can ask this agent for, by a name of your choice: env:NAME is a variable of the agent, file:/PATH a file, credential:NAME one of systemd's (LoadCredential=). Such as {deploy-token: \"file:/etc/jobcell/deploy-token\"}. Each is read when a job needs it. A policy says which jobs may have which.",
    ),
    key(
        "docker.host",
        Kind::Engine,
        |_| json!(""),
        "unix:///path or tcp://host:port. Empty: $DOCKER_HOST, else unix:///var/run/docker.sock.",
    ),
    key(
        "docker.connect_timeout",
        Kind::Duration(Millis::new(100), HOUR),
        |_| json!("5s"),
        "For the first answer of the engine.",
    ),
    key("docker.call_timeout", Kind::Duration(SECOND, HOUR), |_| json!("30s"), "Deadline of each call to the engine."),
    key(
        "docker.start_timeout",
        Kind::Duration(SECOND, HOUR),
        |_| json!("60s"),
        "Deadline of a container's start, which takes far longer under load.",
    ),
    key(
        "docker.reconnect_timeout",
        Kind::Duration(SECOND, HOUR),
        |_| json!("30s"),
        "How long the engine may be away while a job runs. After that its cell is ended, as soon as the engine takes it or the job's lease is over, and the job is told as cell_lost.",
    ),
    key(
        "docker.concurrent_starts",
        Kind::Number(1, 1024),
        |host| json!(host.cores * 2),
        "Containers that are started at the same time; more only adds latency. Default: twice the cores.",
    ),
    key("docker.oci_runtime", Kind::Text, |_| json!(""), "OCI runtime. Empty: the engine's default."),
    key("docker.uid_range.start", Kind::Number(1000, 4_000_000_000), |_| json!(200_000), "The first of them."),
    key("docker.uid_range.count", Kind::Number(1, 1_000_000), |_| json!(10_000), "How many; at least agent.slots."),
    key(
        "docker.tmp_size",
        Kind::Size(MIB, TIB),
        |_| json!("64MiB"),
        "/tmp of a cell: not executable, in memory, counted on top of the job's memory.",
    ),
    key("docker.tmp_inodes", Kind::Number(16, 1 << 32), |_| json!(65_536), "Files and folders in /tmp."),
    key(
        "docker.workspace_size",
        Kind::Size(MIB, TIB),
        |_| json!("256MiB"),
        "/workspace of a job that does not say how large it is (resources.disk): in memory, counted on top of the job's memory.",
    ),
    key(
        "docker.workspace_inodes",
        Kind::Number(16, 1 << 32),
        |_| json!(262_144),
        "Files and folders in /workspace of a job that says neither how many (resources.inodes) nor how large it is.",
    ),
    key(
        "docker.nofile",
        Kind::Number(16, 1 << 20),
        |_| json!(4096),
        "Open files of each process of a job that does not say how many (resources.nofile).",
    ),
    key(
        "docker.enabled",
        Kind::Flag,
        |_| json!(true),
        "False: no engine is used and no containers are made; the agent runs jobs on the hosts of its inventory only (ssh.inventory).",
    ),
    key(
        "docker.shared",
        Kind::Flag,
        |_| json!(false),
        "True: agents of other installations use this engine too. Otherwise a second one on this host is refused.",
    ),
    key(
        "docker.pin_cores",
        Kind::Flag,
        |_| json!(true),
        "A job runs on as many cores as it may use the time of (resources.cpu, rounded up), and on no other: its neighbours keep theirs, and what it starts counts the cores that it really has. Not under gVisor. False: it takes its share on all of the host's.",
    ),
    key(
        "docker.seccomp",
        Kind::Choice(&Seccomp::NAMES),
        |_| json!("default"),
        "The seccomp profile of a job that does not ask for one, and the least that one may ask for. seccomp/README.md says what each takes away.",
    ),
    key(
        "docker.seccomp_profile",
        Kind::Text,
        |_| json!(""),
        "A file with a seccomp profile in Docker's JSON form, in place of the profile `default`. Empty: the built-in one, seccomp/default.json. The receipt's tests of calls still apply: a profile that lets through what they try runs no job.",
    ),
    key(
        "images.pull",
        Kind::Choice(&Pull::NAMES),
        |_| json!("if_absent"),
        "When a registry is asked for the image of a job that does not say (pull): if_absent, always (a tag that was moved is followed), or never.",
    ),
    key(
        "images.pull_timeout",
        Kind::Duration(SECOND, DAY),
        |_| json!("5m"),
        "An image that is not there after so long ends the job as pull_timeout.",
    ),
    key(
        "images.auth_file",
        Kind::Text,
        |_| json!(""),
        "A file with logins as `docker login` writes it, such as /root/.docker/config.json: its auths, credHelpers and credsStore are used for registries that images.registries does not name. Empty: none.",
    ),
    key(
        "images.registries",
        Kind::Registries,
        |_| json!({}),
        "Logins by the registry's host, such as {\"registry.example:5000\": {username: ci, password_file: /etc/jobcell/registry.password}}. In place of password_file: password_env (a variable, or NAME_FILE), password_credential (of systemd), or, without a username, helper (NAME for docker-credential-NAME). Read again for each pull.",
    ),
    key(
        "images.free_low",
        Kind::Size(ByteSize::new(0), ByteSize::from_mib(1 << 30)),
        |_| json!("2GiB"),
        "With fewer bytes free where the engine keeps images, those that this agent pulled and nothing uses are removed, the longest unused first, until images.free_high. 0: never. Needs an engine on this host.",
    ),
    key(
        "images.free_high",
        Kind::Size(ByteSize::new(0), ByteSize::from_mib(1 << 30)),
        |_| json!("4GiB"),
        "So many are free again when removing ends; not below images.free_low.",
    ),
    key(
        "images.size_max",
        Kind::Size(ByteSize::new(0), ByteSize::from_mib(1 << 30)),
        |_| json!("0"),
        "Most bytes of images that this agent pulled (of all with images.remove_others), each counted whole; with more, the longest unused are removed. 0: no bound.",
    ),
    key(
        "images.keep",
        Kind::Images,
        |_| json!([]),
        "Names of images that are never removed, such as [registry.example/base:1]; those of presets are kept in any case.",
    ),
    key(
        "images.remove_others",
        Kind::Flag,
        |_| json!(false),
        "True: images that somebody else brought to the engine may be removed too. Only for an engine that has no other user.",
    ),
    key(
        "policy.file",
        Kind::Text,
        |_| json!(""),
        "A file that says which images, programs, networks and limits jobs may have, as docs/policy.md describes; config/policy.example.yaml is one. Read again when it changes, and on SIGHUP. Empty: no bounds but those of the settings, and no network.",
    ),
    key(
        "egress.resolver",
        Kind::Text,
        |_| json!(""),
        "Address and port of the name server that is asked where names lead, such as 10.0.0.53:53. Empty: the system's resolver.",
    ),
    key(
        "egress.connect_timeout",
        Kind::Duration(Millis::new(100), HOUR),
        |_| json!("10s"),
        "For a name to be looked up, and then for somebody to answer.",
    ),
    key(
        "egress.idle_timeout",
        Kind::Duration(SECOND, DAY),
        |_| json!("5m"),
        "A connection on which nothing moves for so long is cut off.",
    ),
    key(
        "egress.concurrent",
        Kind::Number(1, 256),
        |_| json!(64),
        "Connections of one job at a time. More wait until one of these ends.",
    ),
    key(
        "egress.connections",
        Kind::Number(1, 1_000_000_000),
        |_| json!(100_000),
        "Connections of one job in all, those that are refused included. A job can ask for fewer (egress.connections).",
    ),
    key(
        "egress.bytes",
        Kind::Size(ByteSize::new(1024), ByteSize::from_mib(1 << 30)),
        |_| json!("100GiB"),
        "Bytes of one job in both directions together. A job can ask for fewer (egress.bytes).",
    ),
    key(
        "egress.max_rate",
        Kind::Size(ByteSize::new(0), ByteSize::from_mib(1024)),
        |_| json!("0B"),
        "Bytes of one job in a second, in both directions together, so that none fills the host's link; at least 64KiB. 0B: as many as there is room for.",
    ),
    key("egress.lookups", Kind::Number(1, 1_000_000_000), |_| json!(10_000), "Names that one job may have looked up."),
    key(
        "ssh.inventory",
        Kind::Text,
        |_| json!(""),
        "A file that says which hosts there are, what opens them and whose host keys are believed, as docs/ssh.md describes. Read again when it changes, and on SIGHUP. Empty: this agent runs no jobs on other hosts.",
    ),
    key(
        "ssh.connections_per_host",
        Kind::Number(1, 64),
        |_| json!(4),
        "Connections to one host as one login. More are opened as jobs need them, up to this.",
    ),
    key(
        "ssh.channels_per_connection",
        Kind::Number(1, 1000),
        |_| json!(9),
        "Jobs at the same time on one connection, besides one place for word about them. A host that lets fewer be open (MaxSessions, usually 10) is believed.",
    ),
    key(
        "ssh.handshakes_per_host",
        Kind::Number(1, 64),
        |_| json!(8),
        "Connections to one host that are opened at the same time. A host cuts off some from its MaxStartups on, usually 10.",
    ),
    key(
        "ssh.connect_timeout",
        Kind::Duration(SECOND, HOUR),
        |_| json!("15s"),
        "For a connection to be there, from the first packet to the login, and for a place on one.",
    ),
    key(
        "ssh.keepalive",
        Kind::Duration(SECOND, HOUR),
        |_| json!("5s"),
        "A host that says nothing for so long is asked whether it is there. After two unanswered questions its connection is lost.",
    ),
    key(
        "ssh.idle_close",
        Kind::Duration(SECOND, DAY),
        |_| json!("5m"),
        "A connection that nobody uses is closed after so long.",
    ),
    key(
        "ssh.max_age",
        Kind::Duration(SECOND, WEEK),
        |_| json!("1h"),
        "A connection takes no more jobs after so long; it is closed when its last one has ended.",
    ),
    key(
        "logs.sync_every",
        Kind::Size(MIB, ByteSize::from_mib(4096)),
        |_| json!("64MiB"),
        "Bytes of output after which a log is synced to disk, besides its end.",
    ),
    key(
        "logs.output_limit",
        Kind::Size(ByteSize::new(1024), ByteSize::from_mib(1 << 30)),
        |_| json!("1GiB"),
        "Most output of a job that does not say how much (resources.output): one that writes more is ended, or what it writes beyond is dropped where it said so (output_excess).",
    ),
    key(
        "logs.output_share",
        Kind::Size(MIB, ByteSize::from_mib(1 << 20)),
        |_| json!("32MiB"),
        "What of a job's output is taken in a second while others run here too: one that writes faster waits, and loses nothing. Carrying a flood costs processor time outside of its cell, and that would be the others'. A job alone has no such bound.",
    ),
    key(
        "blobs.max_bytes",
        Kind::Size(MIB, ByteSize::from_mib(1 << 30)),
        |_| json!("64GiB"),
        "All contents together. An upload beyond it is answered with 507.",
    ),
    key(
        "blobs.max_blob",
        Kind::Size(MIB, TIB),
        |_| json!("16GiB"),
        "Largest content. A larger one is answered with 413.",
    ),
    key(
        "blobs.grace",
        Kind::Duration(Millis::from_secs(60), WEEK),
        |_| json!("1h"),
        "How long a content stays that no job needs, from when it was uploaded or last asked for: for the job that it was uploaded for.",
    ),
    key(
        "blobs.keep",
        Kind::Duration(Millis::new(0), Millis::from_secs(366 * 24 * 3600)),
        |_| json!("7d"),
        "How long the inputs of a job that has ended are kept, for those who run it again.",
    ),
    key(
        "artifacts.max_size",
        Kind::Size(ByteSize::new(1), TIB),
        |_| json!("1GiB"),
        "Most bytes of one file; a job can ask for less. A larger one is not kept, and the job says so.",
    ),
    key(
        "artifacts.max_total",
        Kind::Size(ByteSize::new(1), TIB),
        |_| json!("4GiB"),
        "Most bytes of all files of one job.",
    ),
    key(
        "artifacts.max_count",
        Kind::Number(1, 100_000),
        |_| json!(1000),
        "Most files of one job; a job can ask for less.",
    ),
    key(
        "artifacts.timeout",
        Kind::Duration(SECOND, DAY),
        |_| json!("10m"),
        "How long fetching the files of a job that has ended may take. What is not there by then is not kept, and the job says so.",
    ),
    key(
        "artifacts.quota",
        Kind::Size(MIB, ByteSize::from_mib(1 << 30)),
        |_| json!("50GiB"),
        "With so much among the contents of all kinds (blobs.max_bytes), no more files are kept until some contents are gone: what is above it is for what jobs are given. Jobs that require their files end as artifacts_failed then.",
    ),
    key(
        "artifacts.keep",
        Kind::Duration(SECOND, Millis::from_secs(10 * 365 * 24 * 3600)),
        |_| json!("7d"),
        "How long the files of a job are kept after its end.",
    ),
    key(
        "presets",
        Kind::Presets,
        |_| {
            json!({
                "bash": { "image": "jobcell/bash:1", "interpreter": ["/bin/bash"] },
                "python": { "image": "jobcell/python:1", "interpreter": ["/usr/bin/python3", "-u"] },
            })
        },
        "Language environments: what `preset: NAME` in a job stands for.",
    ),
    key(
        "telemetry.log_format",
        Kind::Choice(&["auto", "json", "pretty", "journal"]),
        |_| json!("auto"),
        "auto: pretty on a terminal, journal as a service of systemd's, else json. journal: to journald with fields, such as JOB_ID.",
    ),
    key(
        "telemetry.log_filter",
        Kind::Filter,
        |_| json!("info"),
        "As in RUST_LOG, which is read too and wins: info, debug, jobcell::agent=debug,info …",
    ),
    key(
        "telemetry.counters",
        Kind::Counters,
        |_| json!({}),
        "What jobs say in their outputs, added up by the agent: {rows: {output: imported, labels: {team: team}, series: 100, help: \"Rows\"}} is jobcell_custom_rows_total, with the job's label team. What is no number, or one combination of labels more than `series` (100 unless it says), is counted in jobcell_custom_dropped_total.",
    ),
    key(
        "telemetry.otlp.endpoint",
        Kind::Text,
        |_| json!(""),
        "Where a collector takes spans, such as http://127.0.0.1:4318: they are sent to /v1/traces there. Empty: where OTEL_EXPORTER_OTLP_ENDPOINT says, else nowhere. The other OTEL_ variables hold for both.",
    ),
    key(
        "doctor.checks",
        Kind::Checks,
        |_| json!({}),
        "Names of checks to levels. ignore: it does not count. enforce: it fails unless it is well, and the agent takes no jobs before.",
    ),
];

/// The kind of the key at `path`, which must be one of the table's.
pub(super) fn kind(path: &str) -> Kind {
    KEYS.iter().find(|key| key.path == path).unwrap_or_else(|| panic!("{path} is not in the table of keys")).kind
}

/// Puts `value` at `path` into a document, with the maps on the way.
pub(super) fn place<'a>(document: &mut Value, path: impl Iterator<Item = &'a str>, value: Value) {
    let mut at = document;
    for name in path {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        at = &mut at[name];
    }
    *at = value;
}

/// The built-in layer.
pub(super) fn defaults(host: &HostFacts) -> Value {
    let mut document = json!({});
    for key in KEYS {
        place(&mut document, key.path.split('.'), (key.default)(host));
    }
    document
}
