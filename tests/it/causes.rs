//! Each death is forced and has its name: limits that bind, with what was met and what to do about it; and cells that are taken away,
//! which never looks like the job's failure.

use super::private::Private;
use super::stage::{Up, cause, docker, engine, id, root, said, until};
use serde_json::{Value, json};
use std::process::Command;

/// What a job is, and what is to be said of its end.
struct Row {
    spec: Value,
    verdict: &'static str,
    cause: &'static str,
    exit_code: u64,
    /// Names of the limits that it met.
    met: &'static [&'static str],
    /// Part of the hint; empty where there is none.
    hint: &'static str,
}

fn row(spec: Value, end: (&'static str, &'static str, u64), met: &'static [&'static str], hint: &'static str) -> Row {
    let (verdict, cause, exit_code) = end;
    Row { spec, verdict, cause, exit_code, met, hint }
}

/// The limit of that name that a job has met.
fn met<'a>(job: &'a Value, name: &str) -> &'a Value {
    let all = job["usage"]["limits_met"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|met| met["name"] == name).unwrap_or_else(|| panic!("{name} was not met: {job}"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn bash(script: &str, resources: &Value) -> Value {
    json!({"preset": "bash", "script": script, "resources": resources})
}

fn python(script: &str, resources: &Value) -> Value {
    json!({"preset": "python", "script": script, "resources": resources})
}

#[tokio::test]
async fn every_end_of_the_jobs_own_doing_names_its_limit_and_what_to_do() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "docker: {tmp_size: 1MiB, tmp_inodes: 64, workspace_size: 8MiB}").await;
    let small = || json!({"memory": "32MiB"});
    let failed = |cause, code| ("failed", cause, code);
    let rows = [
        row(bash("exit 3", &json!({})), failed("exit_code", 3), &[], ""),
        row(bash("kill -SEGV $$", &json!({})), failed("signal", 139), &[], ""),
        row(bash("kill -KILL $$", &json!({})), failed("signal", 137), &[], "something killed it"),
        // The shell becomes the hungry program.
        row(bash("exec tail /dev/zero", &small()), failed("out_of_memory", 137), &["memory"], "resources.memory"),
        row(bash("tail /dev/zero; echo went on", &small()), ("succeeded", "exit_code", 0), &["memory"], ""),
        row(bash("tail /dev/zero", &small()), failed("exit_code", 137), &["memory"], "resources.memory"),
        row(
            python(
                "import os\nfor n in range(40):\n    if os.fork() == 0:\n        os.read(os.pipe()[0], 1)\n",
                &json!({"pids": 8}),
            ),
            failed("exit_code", 1),
            &["pids"],
            "resources.pids",
        ),
        row(
            bash("head -c 8000000 /dev/zero > full", &json!({"disk": "4MiB"})),
            failed("exit_code", 1),
            &["disk"],
            "resources.disk",
        ),
        // It takes away what was in the way, as compilers do.
        row(
            bash("head -c 16000000 /dev/zero > full || { sleep 0.2; rm full; exit 7; }", &json!({})),
            failed("exit_code", 7),
            &["disk"],
            "resources.disk",
        ),
        row(
            bash("for n in {1..100}; do : > file$n || exit 5; done", &json!({"inodes": 64})),
            failed("exit_code", 5),
            &["inodes"],
            "resources.inodes",
        ),
        row(bash("head -c 2000000 /dev/zero > /tmp/full", &json!({})), failed("exit_code", 1), &["tmp"], "/workspace"),
        row(
            bash("for n in {1..100}; do : > /tmp/file$n || exit 5; done", &json!({})),
            failed("exit_code", 5),
            &["tmp_inodes"],
            "/workspace",
        ),
        row(
            bash("head -c 20000000 /dev/zero > /dev/shm/full", &json!({})),
            failed("exit_code", 1),
            &["shm"],
            "/dev/shm",
        ),
        row(
            bash("for n in {1..5000}; do : > /dev/shm/file$n || exit 5; done", &json!({})),
            failed("exit_code", 5),
            &["shm_inodes"],
            "/dev/shm",
        ),
        row(bash("exec truncate -s 1T sparse", &json!({})), failed("signal", 153), &[], "resources.disk"),
        row(
            bash("yes; echo never", &json!({"output": "1MiB"})),
            failed("output_limit", 153),
            &["output"],
            "resources.output",
        ),
        row(
            json!({"preset": "bash", "script": "sleep 600", "timeout": "300ms"}),
            ("timed_out", "timeout", 124),
            &[],
            "timeout",
        ),
        row(
            json!({"preset": "bash", "script": "sleep 600", "silence_timeout": "300ms"}),
            ("timed_out", "silence", 124),
            &[],
            "silence_timeout",
        ),
        row(
            json!({"preset": "bash", "script": "x", "interpreter": "/no/such"}),
            failed("program_not_found", 127),
            &[],
            "another image or interpreter",
        ),
        row(
            json!({"preset": "bash", "command": ["/etc/passwd"]}),
            failed("program_not_executable", 126),
            &[],
            "executable file",
        ),
        row(
            json!({"preset": "bash", "script": "true", "artifacts": [{"path": "report.xml", "required": true}]}),
            failed("artifacts_missing", 73),
            &[],
            "leave out `required`",
        ),
        row(
            json!({"preset": "bash", "command": ["true"], "workdir": "/no/such"}),
            failed("workdir_unusable", 126),
            &[],
            "/workspace",
        ),
    ];
    // All at once: none of them is to be told from the outside by what its neighbours do.
    let submitted = futures_util::future::join_all(rows.iter().map(|row| up.submit(&row.spec))).await;
    for (row, job) in rows.iter().zip(submitted) {
        let job = up.ended(&job).await;
        let ending = &job["ending"];
        let end = (ending["verdict"].as_str().expect("a verdict"), cause(&job), number(&ending["process_exit_code"]));
        assert_eq!(end, (row.verdict, row.cause, row.exit_code), "{job}");
        let all = job["usage"]["limits_met"].as_array().map(Vec::as_slice).unwrap_or_default();
        // Others may be met beside it, on a machine that is in a hurry.
        let names: Vec<_> = all.iter().filter_map(|met| met["name"].as_str()).filter(|name| *name != "cpu").collect();
        assert_eq!(names, row.met, "{job}");
        for met in all {
            assert!(number(&met["limit"]) > 0 && number(&met["times"]) > 0, "{job}");
            assert!(number(&met["peak"]) >= number(&met["limit"]), "{job}");
        }
        match (ending["hint"].as_str(), row.hint) {
            (hint, "") => assert_eq!(hint, None, "{job}"),
            (hint, part) => assert!(hint.is_some_and(|hint| hint.contains(part)), "{part}: {job}"),
        }
        assert_eq!(job["log"]["complete"], true, "{job}");
        let shown = said(&up.command(&["job", "get", id(&job)]).await).1;
        for name in row.met {
            assert!(shown.lines().any(|line| line.starts_with(&format!("limit     {name}: "))), "{shown}");
        }
    }
    up.stop().await;
}

/// Files are memory that the kernel cannot take back, and each costs some of its own: a cell can be full to the brim with nobody left to be
/// killed but the warden, which then could not say what happened.
#[tokio::test]
async fn a_cell_that_is_filled_with_all_that_it_may_hold_tells_its_own_end() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "docker: {tmp_size: 8MiB, workspace_size: 8MiB}").await;
    let fill = "for place in /workspace /tmp /dev/shm; do head -c 100M /dev/zero > $place/full; done; echo full; exec tail /dev/zero";
    let files = "for ((n = 0;; n++)); do : > $((n % 100))/$n || { echo; break; }; done; exec tail /dev/zero";
    for (script, resources) in [
        (fill.to_owned(), json!({"memory": "16MiB"})),
        (format!("mkdir {{0..99}}; {files}"), json!({"memory": "16MiB", "inodes": 4_000_000})),
        (format!("mkdir {{0..99}}; {files}"), json!({"memory": "4MiB", "disk": "1MiB", "inodes": 4_000_000})),
    ] {
        let job = up.run(&bash(&script, &resources)).await;
        let end = (&job["ending"]["verdict"], cause(&job), &job["log"]["complete"]);
        assert_eq!(end, (&json!("failed"), "out_of_memory", &json!(true)), "{job}");
        assert!(number(&met(&job, "memory")["times"]) > 0, "{job}");
    }
    up.stop().await;
}

#[tokio::test]
async fn what_is_told_of_a_limit_is_what_was_asked_for() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let script = "tail /dev/zero; ulimit -n; ulimit -c; ulimit -q; head -c 3000000 /dev/zero > full; df -k /workspace | tail -n 1; df -i /workspace | tail -n 1; rm full";
    let resources = json!({"memory": "48MiB", "disk": "2MiB", "inodes": 100, "nofile": 77});
    let job = up.run(&bash(script, &resources)).await;
    let memory = met(&job, "memory");
    assert_eq!((&memory["limit"], &memory["times"]), (&json!(48 << 20), &json!(1)), "{job}");
    // Of the whole cell: the job, two file systems and the warden.
    let peak = number(&memory["peak"]);
    assert!(peak > 48 << 20 && peak <= (48 + 2 + 64 + 16 + 8) << 20, "{peak}");
    let disk = met(&job, "disk");
    assert_eq!((&disk["limit"], &disk["peak"]), (&json!(2 << 20), &json!(2 << 20)));
    let text = up.text(&job, "stdout").await;
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[..3], [vec!["77"], vec!["0"], vec!["819200"]], "{text}");
    assert_eq!((lines[3][1], lines[3][4], lines[4][1]), ("2048", "100%", "100"), "{text}");
    // One that sets a limit keeps the others.
    assert_eq!((&job["spec"]["resources"]["pids"], &job["spec"]["resources"]["cpu"]), (&json!(128), &json!("1")));
    up.stop().await;
}

#[tokio::test]
async fn output_beyond_the_limit_ends_the_job_or_is_one_exact_gap() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "logs: {output_limit: 100KiB}\nagent: {grace: 1s}").await;
    // The operator's limit; and a job that does not hear TERM writes on into nothing.
    let script = "trap '' TERM; while :; do echo 0123456789; done";
    let after = json!({"command": ["/bin/bash", "-c", "exit $(printf %s $JOBCELL_STOP_REASON | wc -c)"]});
    let job = up.run(&json!({"preset": "bash", "script": script, "on_cancel": after})).await;
    assert_eq!(job["usage"]["on_cancel_exit_code"], "output_limit".len(), "{job}");
    assert_eq!((cause(&job), &job["ending"]["verdict"]), ("output_limit", &json!("failed")), "{job}");
    let (log, gap) = (&job["log"], &job["log"]["gaps"][0]);
    assert_eq!((number(&log["stdout"]["bytes"]), number(&gap["at"])), (100 << 10, 100 << 10));
    assert_eq!((&gap["stream"], &gap["bytes"]), (&json!("stdout"), &log["stdout"]["dropped"]));
    assert_eq!(log["gaps"].as_array().map(Vec::len), Some(1));
    let written = number(&met(&job, "output")["peak"]);
    assert_eq!(written, (100 << 10) + number(&gap["bytes"]));
    assert_eq!(job["ending"]["cause"]["limit"], "100KiB");
    assert_eq!(up.stream(&job, "stdout").await, "0123456789\n".repeat(20_000).as_bytes()[..100 << 10]);

    // The rest is cut, and the job goes on to its own end.
    let script = "head -c 3000000 /dev/zero; echo lost >&2; echo 1 > done; cat done; exit 4";
    let spec = json!({"preset": "bash", "script": script, "output_excess": "cut", "resources": {"output": "1MB"}});
    let job = up.run(&spec).await;
    assert_eq!((cause(&job), &job["ending"]["cause"]["exit_code"]), ("exit_code", &json!(4)), "{job}");
    let log = &job["log"];
    assert_eq!((&log["stdout"]["bytes"], &log["stdout"]["dropped"]), (&json!(1_000_000), &json!(2_000_002)), "{job}");
    assert_eq!((&log["stderr"]["bytes"], &log["stderr"]["dropped"]), (&json!(0), &json!(5)), "{job}");
    assert_eq!((log["gaps"].as_array().map(Vec::len), &log["complete"]), (Some(2), &json!(true)), "{job}");
    assert_eq!(met(&job, "output")["peak"], 3_000_007);

    // To the last byte is not beyond it; and one that has ended when its last bytes are read wrote too much all the same.
    let exact = |bytes: u32| json!({"preset": "bash", "script": format!("head -c {bytes} /dev/zero"), "resources": {"output": "64KiB"}});
    let (within, beyond) = (up.run(&exact(65_536)).await, up.run(&exact(65_537)).await);
    assert_eq!((cause(&within), within["usage"].get("limits_met")), ("exit_code", None), "{within}");
    assert_eq!((cause(&beyond), &beyond["log"]["stdout"]["dropped"]), ("output_limit", &json!(1)), "{beyond}");

    // What was asked to end, and floods, was asked to end.
    let script = "trap 'yes' TERM; echo up; sleep 600 & wait";
    let job = up.submit(&json!({"preset": "bash", "script": script})).await;
    until("output", || async { (!up.stream(&job, "stdout").await.is_empty()).then_some(()) }).await;
    up.call(reqwest::Method::POST, &format!("/v1/jobs/{}/cancel", id(&job)), None).await;
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), number(&job["log"]["stdout"]["bytes"])), ("canceled", 100 << 10), "{job}");
    up.stop().await;
}

/// The resident memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

#[tokio::test]
async fn a_flood_ends_at_its_limit_and_leaves_the_agent_as_it_was() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    up.bash("echo warm").await;
    let before = resident(up.pid());
    let job = up
        .submit(&bash(
            "yes 'hostile flood of lines that nobody wants to read'",
            &json!({"output": "200MiB", "cpu": "2"}),
        ))
        .await;
    let mut most = before;
    let job = until("its end", || {
        most = most.max(resident(up.pid()));
        async { Some(up.get(&format!("/v1/jobs/{}", id(&job))).await).filter(|job| !job["ending"].is_null()) }
    })
    .await;
    assert_eq!((cause(&job), number(&job["log"]["stdout"]["bytes"])), ("output_limit", 200 << 20), "{job}");
    let growth = most.saturating_sub(before) >> 20;
    eprintln!("the agent grew by {growth} MiB in a flood of 200 MiB");
    assert!(growth < 64, "{growth} MiB");
    up.stop().await;
}

#[tokio::test]
async fn a_cell_that_is_taken_away_is_never_the_jobs_failure() {
    let Some(private) = engine().and_then(|_| Private::prepare()) else { return };
    private.start();
    let host = private.host();
    let up = Up::start(&host, "docker: {reconnect_timeout: 60s}").await;
    // Nothing that a job can do to itself looks like it: it fills its memory and its files, and is killed within.
    let spec = json!({"preset": "bash", "script": "echo begun; sleep 600", "retry": {"infrastructure": 0}});
    let kill = |pid: &str| assert!(Command::new("kill").args(["-KILL", pid]).status().expect("kill runs").success());
    for (what, reason) in [
        ("warden", "killed from outside"),
        ("shim", "its container"),
        ("container", "killed from outside"),
        ("removed", "its container"),
        ("engine", "the engine was away"),
    ] {
        let job = up.submit(&spec).await;
        until("output", || async { (up.text(&job, "stdout").await == "begun\n").then_some(()) }).await;
        let container = up.containers().pop().expect("its cell");
        match what {
            "warden" => kill(&docker(&host, &["inspect", "--format", "{{.State.Pid}}", &container])),
            "shim" => private.shims().iter().for_each(|pid| kill(&pid.to_string())),
            "container" => drop(docker(&host, &["kill", &container])),
            "removed" => drop(docker(&host, &["rm", "--force", &container])),
            _ => {
                private.script("kill9");
                private.script("restart");
            }
        }
        let job = up.ended(&job).await;
        assert_eq!((cause(&job), &job["ending"]["verdict"]), ("cell_lost", &json!("cell_error")), "{what}: {job}");
        let said = job["ending"]["cause"]["reason"].as_str().expect("a reason");
        eprintln!("{what}: {said}");
        assert!(said.contains(reason), "{what}: {said}");
        assert!(job["ending"]["hint"].as_str().is_some_and(|hint| hint.contains("doctor")), "{job}");
        // What it wrote is kept, and nobody says that this was all.
        assert_eq!(
            (up.text(&job, "stdout").await.as_str(), &job["log"]["complete"]),
            ("begun\n", &json!(false)),
            "{what}"
        );
        until("nothing left", || async { up.containers().is_empty().then_some(()) }).await;
        until("the engine", || async { up.plain("/readyz").await.filter(|(status, _)| *status == 200) }).await;
    }
    private.shims_were_looked_for();
    up.stop().await;
}

/// Where each cause is forced: file, and what it is called there.
const FORCED: [(&str, &str, &str); 38] = [
    ("exit_code", "tests/it/causes.rs", "\"exit_code\""),
    ("signal", "tests/it/causes.rs", "\"signal\""),
    ("out_of_memory", "tests/it/causes.rs", "\"out_of_memory\""),
    ("output_limit", "tests/it/causes.rs", "\"output_limit\""),
    ("program_not_found", "tests/it/causes.rs", "\"program_not_found\""),
    ("program_not_executable", "tests/it/causes.rs", "\"program_not_executable\""),
    ("workdir_unusable", "tests/it/causes.rs", "\"workdir_unusable\""),
    ("timeout", "tests/it/causes.rs", "\"timeout\""),
    ("silence", "tests/it/causes.rs", "\"silence\""),
    ("canceled", "tests/it/causes.rs", "\"canceled\""),
    ("cell_lost", "tests/it/causes.rs", "\"cell_lost\""),
    ("policy_violation", "tests/it/profiles.rs", "\"policy_violation\""),
    ("policy_refused", "tests/it/policy.rs", "\"policy_refused\""),
    ("cell_weaker", "tests/it/cells.rs", "\"cell_weaker\""),
    ("image_missing", "tests/it/bad_input.rs", "\"image_missing\""),
    ("image_denied", "tests/it/images.rs", "\"image_denied\""),
    ("image_corrupt", "tests/it/images.rs", "\"image_corrupt\""),
    ("registry_unreachable", "tests/it/images.rs", "\"registry_unreachable\""),
    ("registry_limited", "tests/it/images.rs", "\"registry_limited\""),
    ("pull_timeout", "tests/it/images.rs", "\"pull_timeout\""),
    ("host_unreachable", "tests/it/ssh/jobs.rs", "\"host_unreachable\""),
    ("host_refused", "tests/it/ssh/jobs.rs", "\"host_refused\""),
    ("target_unsupported", "tests/it/ssh/jobs.rs", "\"target_unsupported\""),
    ("lease_expired", "tests/it/fleet.rs", "\"lease_expired\""),
    ("agent_lost", "tests/it/chaos/freeze.rs", "\"agent_lost\""),
    ("engine_failed", "tests/it/chaos/disks.rs", "\"engine_failed\""),
    ("log_store_failed", "tests/it/chaos/disks.rs", "\"log_store_failed\""),
    ("too_large", "src/admission/ledger.rs", "Cause::TooLarge"),
    ("secret_missing", "tests/it/secrets.rs", "\"secret_missing\""),
    ("preset_missing", "src/admission/resolve.rs", "Cause::PresetMissing"),
    ("agent_stopped", "src/agent/tests.rs", "Cause::AgentStopped"),
    ("warden_fault", "src/agent/tests.rs", "Cause::WardenFault"),
    ("input_refused", "tests/it/inputs.rs", "\"input_refused\""),
    ("inputs_failed", "src/agent/inputs_tests.rs", "Cause::InputsFailed"),
    ("artifacts_missing", "tests/it/artifacts.rs", "\"artifacts_missing\""),
    ("artifacts_failed", "tests/it/artifacts.rs", "\"artifacts_failed\""),
    ("stuck", "src/queue/retry_tests.rs", "\"stuck\""),
    ("fan_out", "tests/it/fan_out.rs", "\"fan_out\""),
];

#[test]
fn there_is_no_cause_that_no_test_forces() {
    let wanted = super::docs::causes();
    for code in &wanted {
        let (_, file, name) = FORCED.iter().find(|(forced, ..)| forced == code).unwrap_or_else(|| panic!("{code}"));
        let text = std::fs::read_to_string(root().join(file)).expect("reads");
        assert!(text.contains(name), "{name} is not in {file}");
    }
    assert_eq!(wanted.len(), FORCED.len());
}
