//! What is asked of an engine is what the table says: no call more, and each of them for a reason. The page and the configuration of a
//! proxy say the same.

use super::engine_proxy::Recorder;
use super::policy::up_by;
use super::private::Private;
use super::stage::{JOBCELL, Up, cause, docker, engine, id, read, root, said, until};
use jobcell::executor::docker::{ENGINE_CALLS, EngineCall};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// With bridges, and with images of strangers that may go.
const POLICY: &str = "{version: 1, allow: {networks: [none, bridge]}}";
const SETTINGS: &str = "images: {remove_others: true}\n";

/// Runs a command on a data directory whose process does not run.
fn run(host: &str, data: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(JOBCELL);
    command.arg("--data-dir").arg(data).arg("--config").arg(data.with_file_name("config.yaml")).args(args);
    said(&command.env("DOCKER_HOST", host).stdin(Stdio::null()).output().expect("runs"))
}

/// Containers of an agent, asked of the engine itself: the client makes calls of its own.
fn cells(host: &str, up: &Up) -> Vec<String> {
    let owner = read(&up.data().join("owner")).expect("there");
    let label = format!("label=jobcell.owner={owner}");
    docker(host, &["ps", "--all", "--filter", &label, "--format", "{{.Names}}"]).lines().map(str::to_owned).collect()
}

async fn begun(up: &Up, spec: &Value) -> Value {
    let job = up.submit(spec).await;
    until("output", || async { (up.text(&job, "stdout").await == "begun\n").then_some(()) }).await;
    job
}

// The proxy goes on while commands are waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_is_done_with_an_engine_needs_these_calls_and_no_other() {
    let Some(private) = engine().and_then(|_| Private::prepare()) else { return };
    private.start_with(&["--iptables=true"], None);
    let host = private.host();
    let dir = tempfile::tempdir().expect("a folder");
    let recorder = Recorder::start(&private.path().join("docker.sock"), dir.path());
    let through = recorder.host();

    // Jobs, on a fresh engine: the warden's volume is made and filled; a bridge; an image that no registry has.
    let mut up = up_by(&through, POLICY, SETTINGS).await;
    let job = up.bash("echo out; exit 3").await;
    assert_eq!((cause(&job), up.text(&job, "stdout").await.as_str()), ("exit_code", "out\n"), "{}", up.log());
    let labelled = docker(&host, &["volume", "ls", "--quiet", "--filter", "label=jobcell.warden"]);
    assert!(labelled.starts_with("jobcell-warden-"), "{labelled}");
    let bridged = up.run(&json!({"preset": "bash", "network": "bridge", "script": "true"})).await;
    assert_eq!(cause(&bridged), "exit_code", "{bridged}");
    let absent = json!({"image": "127.0.0.1:9/none:1", "command": ["true"], "retry": {"infrastructure": 0}});
    assert_eq!(cause(&up.run(&absent).await), "registry_unreachable");

    // An agent that dies and comes again takes its cell over.
    let job = begun(&up, &json!({"preset": "bash", "script": "echo begun; read -r line < <(sleep 600)"})).await;
    up.crash().await;
    until("the cell to be taken over", || async {
        let (_, metrics) = up.plain("/metrics").await?;
        metrics.lines().any(|line| line == "jobcell_jobs_running 1").then_some(())
    })
    .await;
    // One that does not hear is killed.
    docker(&host, &["pause", &cells(&host, &up)[0]]);
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel?force=true", id(&job)), None).await;
    assert_eq!(cause(&up.ended(&job).await), "canceled");
    // One that is gone is looked at.
    let job = begun(
        &up,
        &json!({"preset": "bash", "script": "echo begun; read -r line < <(sleep 600)", "retry": {"infrastructure": 0}}),
    )
    .await;
    docker(&host, &["kill", &cells(&host, &up)[0]]);
    assert_eq!(cause(&up.ended(&job).await), "cell_lost");

    // Commands that need no process.
    let data = up.data();
    up.signal("-TERM");
    assert_eq!(up.exit_code().await, Some(0), "{}", up.log());
    let (_, found, err) = run(&through, &data, &["doctor", "-o", "json"]);
    assert!(found.contains("live-restore"), "{found}{err}");
    let mut import = Command::new("docker")
        .args(["--host", &host, "import", "-", "stranger:1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    // The end of an archive without anything in it.
    import.stdin.take().expect("a pipe").write_all(&[0; 1024]).expect("writes");
    assert!(import.wait().expect("ends").success());
    let (code, listed, err) = run(&through, &data, &["image", "ls"]);
    assert!(code == 0 && listed.contains("stranger:1"), "{listed}{err}");
    let (code, gone, err) = run(&through, &data, &["image", "gc", "--all"]);
    assert!(code == 0 && gone.contains("stranger:1"), "{gone}{err}");
    let old = "jobcell-warden-0000000000000000";
    docker(&host, &["volume", "create", "--label", "jobcell.warden=0000000000000000", old]);
    let (code, swept, err) = run(&through, &data, &["agent", "sweep"]);
    assert!(code == 0 && swept.contains(old), "{swept}{err}");

    let asked = recorder.asked();
    assert_eq!(asked.refused, Vec::<String>::new());
    let all: BTreeSet<EngineCall> = ENGINE_CALLS.into_iter().collect();
    let unused: Vec<_> = all.difference(&asked.used).collect();
    assert!(unused.is_empty(), "nothing needs {unused:?}");
}

#[test]
fn the_page_has_the_table() {
    let page = std::fs::read_to_string(root().join("docs/engine.md")).expect("reads");
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect();
        let [number, method, path, why] = cells[..] else { return None };
        number.parse::<usize>().ok()?;
        Some((method.to_owned(), path.trim_matches('`').to_owned(), why.to_owned()))
    });
    let told: Vec<_> = rows.collect();
    let wanted: Vec<_> =
        ENGINE_CALLS.iter().map(|call| (call.method.to_owned(), call.path.to_owned(), call.why.to_owned())).collect();
    assert_eq!(told, wanted);
}

/// What HAProxy is to match for a path of the table.
fn pattern(path: &str) -> String {
    const CELL: &str = "jobcell-[0-9a-f]{8}-[a-z0-9-]+";
    const PART: &str = "[A-Za-z0-9_:@-][A-Za-z0-9_.:@-]*";
    let container = format!("({CELL}|[0-9a-f]{{64}})");
    let image = format!("{PART}(/{PART})*");
    let path = path.replace("{cell}", CELL).replace("{network}", CELL).replace("{container}", &container);
    let path = path.replace("{image}", &image).replace("{volume}", "jobcell-warden-[0-9a-f]{16}");
    format!("^(/v1[.][0-9]+)?{path}$")
}

#[test]
fn the_proxys_rules_are_the_table_and_nothing_comes_after_them() {
    let file = std::fs::read_to_string(root().join("deploy/socket-proxy/haproxy.cfg")).expect("reads");
    let rules: Vec<&str> = file.lines().map(str::trim).filter(|line| line.starts_with("http-request ")).collect();
    let of = |call: &EngineCall| {
        format!("http-request allow if {{ method {} }} {{ path -m reg '{}' }}", call.method, pattern(call.path))
    };
    let wanted: Vec<String> = ENGINE_CALLS.iter().map(of).collect();
    // A name that is none of ours is refused first, everything else last.
    assert!(
        rules[0].starts_with("http-request deny if { path_end /containers/create } !{ query -m reg '^name=jobcell-"),
        "{rules:?}"
    );
    assert_eq!(rules[1..rules.len() - 1], wanted);
    assert_eq!(rules.last(), Some(&"http-request deny"));
}
