//! What an installation leaves behind is removed: by its agent while that runs, by hand while none does. Nobody else's ever is.
//!
//! On engines of the tests' own: a sweep by hand also takes the wardens of other builds.

use super::private::Private;
use super::stage::{JOBCELL, Up, cause, docker, engine, id, said, until};
use jobcell::agent::{Agent, AgentSettings, Drained, SweepTimes};
use jobcell::backend::{Backend, Embedded, Local, QueueSettings};
use jobcell::executor::docker::{
    DockerExecutor, DockerSettings, Engine, ImageSettings, Images, Ledger, Profiles, Shape,
};
use jobcell::job::{ByteSize, Capacity, Cpus, JobSpec, Millis, OwnerId, Phase, Seccomp, SpecRules};
use jobcell::journal::MemoryJournal;
use jobcell::logstore::LogStore;
use jobcell::protocol::agent::Announcement;
use jobcell::queue::{AnyStore, MemoryStore, Submitted};
use jobcell::telemetry::Metrics;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const OTHER: &str = "jobcell.owner=00000000";

/// A container that runs until it is killed.
fn run(host: &str, label: &str, more: &[&str]) -> String {
    let args = [&["run", "--detach", "--network", "none", "--label", label], more, &["jobcell/bash:1", "sleep", "600"]];
    docker(host, &args.concat())
}

fn names(host: &str, what: &[&str]) -> Vec<String> {
    let mut names: Vec<String> = docker(host, what).lines().map(str::to_owned).collect();
    names.sort();
    names
}

/// `jobcell agent sweep` on a data directory: exit code, what it found (kind, name, result), and what it said.
fn sweep(host: &str, data: &Path, args: &[&str]) -> (i32, Vec<[String; 3]>, String) {
    let mut command = Command::new(JOBCELL);
    command.arg("--data-dir").arg(data).args(["agent", "sweep", "-o", "json"]).args(args);
    let (code, out, err) = said(&command.env("DOCKER_HOST", host).stdin(Stdio::null()).output().expect("runs"));
    let document: Value = serde_json::from_str(&out).unwrap_or_default();
    let text = |one: &Value, key: &str| one[key].as_str().expect("text").to_owned();
    let found = document["found"].as_array().into_iter().flatten();
    let mut found: Vec<_> = found.map(|one| [text(one, "kind"), text(one, "name"), text(one, "result")]).collect();
    found.sort();
    (code, found, err)
}

fn entries(found: &[(&str, &str, &str)]) -> Vec<[String; 3]> {
    let mut all: Vec<_> = found.iter().map(|(kind, name, result)| [*kind, *name, *result].map(str::to_owned)).collect();
    all.sort();
    all
}

#[tokio::test]
async fn a_sweep_by_hand_takes_what_is_ours_and_not_held_and_nothing_else() {
    let Some(private) = engine().and_then(|_| Private::prepare()) else { return };
    private.start();
    let host = private.host();
    let mut up = Up::start(&host, "").await;
    let job = up.submit(&json!({"preset": "bash", "script": "echo begun; read -r x < <(sleep 600)"})).await;
    until("output", || async { (up.text(&job, "stdout").await == "begun\n").then_some(()) }).await;
    let cell = up.containers()[0].clone();
    // Its agent lives.
    let (code, found, err) = sweep(&host, &up.data(), &[]);
    assert_eq!((code, found.len()), (69, 0), "{err}");
    assert!(err.contains("its agent sweeps by itself"), "{err}");
    up.kill().await;

    let owner = std::fs::read_to_string(up.data().join("owner")).expect("is there").trim().to_owned();
    let ours = format!("jobcell.owner={owner}");
    docker(&host, &["volume", "create", "--label", &ours, "ours"]);
    docker(&host, &["volume", "create", "--label", &ours, "ours-in-use"]);
    docker(&host, &["volume", "create", "--label", OTHER, "others"]);
    docker(&host, &["volume", "create", "strangers"]);
    let (old, used) = ("jobcell-warden-0000000000000000", "jobcell-warden-1111111111111111");
    docker(&host, &["volume", "create", "--label", "jobcell.warden=0000000000000000", old]);
    docker(&host, &["volume", "create", used]);
    docker(&host, &["network", "create", "--label", &ours, "net-ours"]);
    docker(&host, &["network", "create", "--label", OTHER, "net-others"]);
    run(&host, &ours, &["--name", "stray", "--volume", "ours:/x"]);
    docker(&host, &["create", "--label", &ours, "--name", "never-started", "jobcell/bash:1", "true"]);
    let volumes = ["--volume", &format!("{used}:/x"), "--volume", "ours-in-use:/y"];
    run(&host, OTHER, &[&["--name", "others-cell"], &volumes[..]].concat());
    run(&host, "a=b", &["--name", "strangers-box"]);
    let containers = || names(&host, &["ps", "--all", "--format", "{{.Names}}"]);
    let volumes = || names(&host, &["volume", "ls", "--format", "{{.Name}}"]);
    let before = (containers(), volumes());

    let told = |result: &str| {
        entries(&[
            ("container", &cell, "kept"),
            ("container", "stray", result),
            ("container", "never-started", result),
            ("network", "net-ours", result),
            ("volume", "ours", result),
            ("volume", "ours-in-use", "kept"),
            ("volume", old, result),
        ])
    };
    let (code, found, err) = sweep(&host, &up.data(), &["--dry-run"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(found, told("would_be_removed"));
    assert_eq!((containers(), volumes()), before, "nothing is done");
    let (code, found, err) = sweep(&host, &up.data(), &[]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(found, told("removed"));

    let mut left = vec![cell.clone(), "others-cell".to_owned(), "strangers-box".to_owned()];
    left.sort();
    assert_eq!(containers(), left);
    let kept = volumes();
    for name in ["others", "strangers", "ours-in-use", used] {
        assert!(kept.contains(&name.to_owned()), "{name} is gone: {kept:?}");
    }
    assert_eq!(kept.len(), 5, "with our own warden's: {kept:?}");
    let networks = names(&host, &["network", "ls", "--format", "{{.Name}}"]);
    assert!(networks.contains(&"net-others".to_owned()) && !networks.contains(&"net-ours".to_owned()), "{networks:?}");
    assert!(!up.data().join("sweep.tmp").exists());

    // The journal is as it was: the next start goes on with the job.
    up.revive().await;
    up.call(reqwest::Method::POST, &format!("/v1/jobs/{}/cancel", id(&job)), None).await;
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), &job["attempt"]), ("canceled", &json!(1)), "{job}\n{}", up.log());
    up.stop().await;
}

#[tokio::test]
async fn an_owner_whose_data_directory_is_gone_is_swept_by_its_id_and_only_with_force_while_something_runs() {
    let Some(private) = engine().and_then(|_| Private::prepare()) else { return };
    private.start();
    let host = private.host();
    let dir = tempfile::tempdir().expect("a folder");
    let gone = ["--owner", "0000beef"];
    // Nothing is here, and nothing is made.
    let (code, _, err) = sweep(&host, &dir.path().join("none"), &[]);
    assert!(code == 69 && err.contains("no installation is there") && err.contains("--owner"), "{code} {err}");
    assert!(!dir.path().join("none").exists());
    for bad in [&["--owner", "xyz"][..], &["--owner", ""], &["--force"]] {
        assert_eq!(sweep(&host, dir.path(), bad).0, 2, "{bad:?}");
    }
    std::fs::write(dir.path().join("owner"), "0000beef\n").expect("writes");
    let (code, _, err) = sweep(&host, dir.path(), &gone);
    assert!(code == 2 && err.contains("leave --owner out"), "{code} {err}");
    std::fs::remove_file(dir.path().join("owner")).expect("is there");

    let stray = "jobcell.owner=0000beef";
    run(&host, stray, &["--name", "cell"]);
    run(&host, OTHER, &["--name", "others-cell"]);
    docker(&host, &["volume", "create", "--label", stray, "left"]);
    docker(&host, &["volume", "create", "jobcell-warden-0000000000000000"]);
    let (code, found, err) = sweep(&host, dir.path(), &gone);
    assert_eq!((code, found.len()), (1, 0), "{err}");
    assert!(err.contains("1 containers of owner 0000beef run") && err.contains("--force"), "{err}");
    let told = |result: &str| entries(&[("container", "cell", result), ("volume", "left", result)]);
    assert_eq!(sweep(&host, dir.path(), &[&gone[..], &["--dry-run"]].concat()).1, told("would_be_removed"));
    let (code, found, err) = sweep(&host, dir.path(), &[&gone[..], &["--force"]].concat());
    assert_eq!((code, found), (0, told("removed")), "{err}");
    let (code, found, _) = sweep(&host, dir.path(), &gone);
    assert_eq!((code, found.len()), (0, 0));
    assert_eq!(names(&host, &["ps", "--format", "{{.Names}}"]), ["others-cell"]);
    assert_eq!(names(&host, &["volume", "ls", "--format", "{{.Name}}"]), ["jobcell-warden-0000000000000000"]);

    // What the engine refuses is told of, and the rest is done.
    docker(&host, &["network", "create", "--label", stray, "busy"]);
    docker(&host, &["run", "--detach", "--network", "busy", "--name", "guest", "jobcell/bash:1", "sleep", "600"]);
    docker(&host, &["volume", "create", "--label", stray, "left"]);
    let (code, found, _) = sweep(&host, dir.path(), &gone);
    assert_eq!((code, found), (1, entries(&[("network", "busy", "failed"), ("volume", "left", "removed")])));
    docker(&host, &["rm", "--force", "guest"]);
    assert_eq!(sweep(&host, dir.path(), &gone), (0, entries(&[("network", "busy", "removed")]), String::new()));
}

/// A real shim of containerd that nobody knows any more: both daemons are killed, what it looks after ends, and the engine's record of
/// the container is lost. Beside it: one of somebody else, and one whose cell runs.
#[tokio::test]
async fn a_shim_that_the_engine_has_forgotten_is_ended_and_no_other() {
    let Some(private) = engine().and_then(|_| Private::prepare()) else { return };
    private.start_with(&["--live-restore"], None);
    let host = private.host();
    let mut up = Up::start(&host, "agent: {slots: 3, cpu: 3, memory: 4GiB}\n").await;
    let spec =
        json!({"preset": "bash", "script": "echo begun; read -r x < <(sleep 600)", "retry": {"infrastructure": 0}});
    let (forgotten, later, runs) = (up.submit(&spec).await, up.submit(&spec).await, up.submit(&spec).await);
    for job in [&forgotten, &later, &runs] {
        until("output", || async { (up.text(job, "stdout").await == "begun\n").then_some(()) }).await;
    }
    up.kill().await;
    let container = |job: &Value| {
        let label = format!("label=jobcell.job={}", id(job));
        docker(&host, &["ps", "--no-trunc", "--quiet", "--filter", &label])
    };
    let (lost, lost_later, kept) = (container(&forgotten), container(&later), container(&runs));
    let others = run(&host, OTHER, &[]);
    let shim = |id: &str| {
        let processes = private.processes();
        let shim =
            processes.iter().find(|one| one.command.contains(&format!("-id {id} ")) && one.command.contains("shim"));
        shim.map(|one| one.pid)
    };
    let (lost_shim, kept_shim, others_shim) = (shim(&lost), shim(&kept), shim(&others));
    assert!(lost_shim.is_some() && kept_shim.is_some() && others_shim.is_some());

    let forget = async |containers: &[&String]| {
        for daemon in ["dockerd", "containerd"] {
            private.daemon("kill9", daemon);
        }
        for container in containers {
            let children = format!("/proc/{0}/task/{0}/children", shim(container).expect("is there"));
            let alone = || std::fs::read_to_string(&children).expect("it runs").trim().is_empty();
            for child in std::fs::read_to_string(&children).expect("it runs").split_whitespace() {
                assert!(Command::new("kill").args(["-KILL", child]).status().expect("kill runs").success());
            }
            until("a shim with nothing to look after", || async { alone().then_some(()) }).await;
            std::fs::remove_dir_all(private.path().join("data/containers").join(container)).expect("is there");
        }
        for daemon in ["containerd", "dockerd"] {
            private.daemon("restart", daemon);
        }
    };
    forget(&[&lost, &others]).await;
    assert_eq!((shim(&lost), shim(&others)), (lost_shim, others_shim), "both outlive their daemons");

    let cells = || docker(&host, &["ps", "--format", "{{.Names}}"]);
    let names = cells();
    let kept_cells: Vec<_> = names.lines().map(|name| ("container", name, "kept")).collect();
    let told = |result| entries(&[&kept_cells[..], &[("shim", &lost, result)]].concat());
    assert_eq!(sweep(&host, &up.data(), &["--dry-run"]), (0, told("would_be_removed"), String::new()));
    assert_eq!(shim(&lost), lost_shim);
    assert_eq!(sweep(&host, &up.data(), &[]), (0, told("removed"), String::new()));
    // Its containerd notices, and clears up with a process that has the same arguments for a moment.
    until("its end", || async { shim(&lost).is_none().then_some(()) }).await;
    assert_eq!((shim(&others), shim(&kept)), (others_shim, kept_shim));
    assert_eq!(sweep(&host, &up.data(), &[]).1, entries(&kept_cells));

    // An agent that starts does the same. The job that ran all the time is gone on with; the others are lost, as they are.
    let later_shim = shim(&lost_later);
    forget(&[&lost_later]).await;
    assert_eq!(shim(&lost_later), later_shim, "it outlives its daemons");
    up.revive().await;
    until("its end", || async { shim(&lost_later).is_none().then_some(()) }).await;
    assert_eq!((shim(&others), shim(&kept)), (others_shim, kept_shim));
    for job in [&forgotten, &later] {
        assert_eq!(cause(&up.ended(job).await), "cell_lost");
    }
    up.call(reqwest::Method::POST, &format!("/v1/jobs/{}/cancel", id(&runs)), None).await;
    assert_eq!(cause(&up.ended(&runs).await), "canceled", "{}", up.log());
    up.stop().await;
}

/// The agent's own sweeper, which looks every ten minutes outside: here it looks all the time.
#[tokio::test]
async fn a_running_agent_removes_strays_and_leaves_what_it_runs_and_what_others_have() {
    let Some(private) = engine().and_then(|_| Private::prepare()) else { return };
    private.start();
    let host = private.host();
    let dir = tempfile::tempdir().expect("a folder");
    let logs = LogStore::open(dir.path(), 1 << 20).expect("opens");
    let queue = QueueSettings {
        max_queued: 10,
        lease: Millis::from_secs(60),
        max_attempts: 1,
        stuck_after: Millis::from_secs(600),
    };
    let backend = Embedded::new(AnyStore::Memory(MemoryStore::new()), logs.clone(), queue);
    let owner = OwnerId::random();
    let limit = Duration::from_secs(30);
    let engine = Engine::connect(&host, limit, limit).await.expect("answers");
    let shape = Shape {
        oci_runtime: String::new(),
        seccomp: Profiles::built_in(Seccomp::Default),
        tmp_size: ByteSize::from_mib(16),
        tmp_inodes: 1000,
        output: ByteSize::from_mib(16),
        workspace_size: ByteSize::from_mib(16),
        workspace_inodes: 1000,
        nofile: 1024,
        egress_connections: 64,
    };
    let settings = DockerSettings {
        shape,
        uid_start: 300_000,
        uid_count: 4,
        concurrent_starts: 2,
        start_timeout: limit,
        pin_cores: true,
    };
    let stop = CancellationToken::new();
    let images = Images::new(engine.clone(), ImageSettings::default(), Ledger::new(dir.path()));
    let executor = Arc::new(DockerExecutor::new(engine, settings, images, owner.clone(), stop.clone()));
    let capacity =
        Capacity { slots: 2, cpu: Cpus::from_milli(2000), memory: ByteSize::from_mib(1024), ..Capacity::default() };
    let settings = AgentSettings {
        announcement: Announcement { capacity, ..Announcement::default() },
        capacity,
        claim_batch: 2,
        grace: Millis::from_secs(2),
        handover: false,
        drain_timeout: limit,
        reconnect: limit,
        keep: None,
        output_share: ByteSize::from_mib(32),
        gate: jobcell::admission::Gate::default(),
        secrets: jobcell::secrets::Providers::default(),
        disk: (dir.path().to_owned(), ByteSize::new(0)),
        sweep: SweepTimes { first: Duration::from_millis(50), every: Duration::from_millis(150) },
        outside: jobcell::egress::Outside::default(),
        traces: jobcell::telemetry::Traces::default(),
    };
    let (local, metrics) =
        (Arc::new(Local::new(Arc::clone(&backend), "a")) as Arc<dyn Backend>, Arc::new(Metrics::new()));
    let (journal, drain) = (Arc::new(MemoryJournal::default()), CancellationToken::new());
    let agent = Agent::new(vec![local], executor, journal, logs, settings, Arc::clone(&metrics));
    let agent = jobcell::supervise::spawn("agent", agent.run(drain.clone(), CancellationToken::new()));

    let submit = async |command: &str| {
        let document = json!({"image": "jobcell/bash:1", "command": ["bash", "-c", command]});
        match backend
            .submit(JobSpec::check(&document, &SpecRules::default()).expect("valid"), None)
            .await
            .expect("submits")
        {
            Submitted::Created(job) => job.id,
            other => panic!("{other:?}"),
        }
    };
    let get = async |id| backend.get(id).await.expect("reads").expect("is there");
    let long = submit("sleep 600").await;
    until("it runs", || async { (get(long).await.phase == Phase::Running).then_some(()) }).await;
    let ours = format!("jobcell.owner={owner}");
    run(&host, &ours, &["--name", "stray", "--label", "jobcell.uid=300003"]);
    docker(&host, &["create", "--label", &ours, "--name", "never-started", "jobcell/bash:1", "true"]);
    run(&host, OTHER, &["--name", "others-cell"]);
    // Cells come and go under the sweeper's eyes.
    for _ in 0..8 {
        let id = submit("echo x").await;
        let job = until("its end", || async { Some(get(id).await).filter(|job| job.phase == Phase::Ended) }).await;
        assert_eq!(job.ending.expect("has ended").cause.code(), "exit_code");
    }
    until("the strays' end", || async { (metrics.swept_total.get() == 2).then_some(()) }).await;
    let cell = jobcell::job::AttemptId::new(long, 1).cell_name(&owner);
    let mut left = vec![cell, "others-cell".to_owned()];
    left.sort();
    let seen = || names(&host, &["ps", "--all", "--format", "{{.Names}}"]);
    until("only what is wanted", || async { (seen() == left).then_some(()) }).await;
    backend.cancel(long).await.expect("cancels");
    until("its end", || async { (get(long).await.phase == Phase::Ended).then_some(()) }).await;
    drain.cancel();
    assert_eq!(agent.await.expect("ends"), Drained::Clean);
    assert_eq!(seen(), ["others-cell"]);
    assert_eq!(metrics.swept_total.get(), 2, "nothing else was swept");
    stop.cancel();
}
