//! Values that nobody is to see, searched wherever something of this system can be read: while a job has them, after its agent was killed
//! and another one goes on with it, and when all is over. 0 hits in every place.

use super::stage::{JOBCELL, PATIENCE, Up, docker, engine, id, until, write_secret};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

/// The one test's agent is, to the other, a process in whose variables nothing may be.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Where the values come from, and what they are. Nothing else in the world looks like them.
const FROM_VARIABLE: &str = "canary-of-a-variable-7f3a91";
const FROM_FILE: &str = "canary-of-a-file-line-one-5b20c4\ncanary-of-a-file-line-two-e88d13\n";
const INLINE: &str = "canary-that-came-along-\"quoted\"-0c47aa";
const INLINE_FILE: &str = "canary-that-came-as-a-file-914be2";

/// Texts by which a value is known again, in whatever it is found.
fn canaries(keys: &[String]) -> Vec<Vec<u8>> {
    let values = [FROM_VARIABLE, INLINE, INLINE_FILE].into_iter().chain(FROM_FILE.lines());
    let mut all: Vec<Vec<u8>> = values.map(|value| value.as_bytes().to_vec()).collect();
    // As they are in base64, in the middle of it.
    all.extend(
        ["Y2FuYXJ5LW9mLW", "Y2FuYXJ5LXRoYX", "NhbmFyeS1vZi1", "jYW5hcnktb2Yt"].map(|text| text.as_bytes().to_vec()),
    );
    all.push(b"canary-that-came-along-\\\"quoted".to_vec());
    all.push(b"canary-that-came-along-%22quoted".to_vec());
    all.extend(keys.iter().map(|key| key.as_bytes().to_vec()));
    all
}

/// Places with what can be read there.
#[derive(Default)]
struct Sinks(BTreeMap<String, Vec<u8>>);

impl Sinks {
    fn add(&mut self, place: &str, bytes: impl AsRef<[u8]>) {
        self.0.entry(place.to_owned()).or_default().extend_from_slice(bytes.as_ref());
    }

    /// Every file below a folder but those of these names.
    fn folder(&mut self, place: &str, dir: &Path, without: &[&str]) {
        self.add(place, []);
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            self.add(place, &name);
            if without.contains(&name.as_str()) {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => self.folder(place, &path, without),
                Ok(kind) if kind.is_file() => self.add(place, std::fs::read(&path).unwrap_or_default()),
                _ => {}
            }
        }
    }

    /// Nothing of `canaries` is anywhere; says how many places that are. `moment` is for who reads a failure.
    fn search(&self, moment: &str, canaries: &[Vec<u8>]) -> usize {
        for (place, bytes) in &self.0 {
            for canary in canaries {
                let found = bytes.windows(canary.len()).position(|part| part == canary);
                assert!(
                    found.is_none(),
                    "{moment}: {} is in {place}: …{}…",
                    String::from_utf8_lossy(canary),
                    found.map_or_else(String::new, |at| {
                        let around = at.saturating_sub(100)..(at + 100).min(bytes.len());
                        String::from_utf8_lossy(&bytes[around]).into_owned()
                    })
                );
            }
        }
        self.0.len()
    }
}

/// Arguments and variables of all processes, those of the job left out, and of the agent and of this test their variables.
fn processes(sinks: &mut Sinks, agents: &[u32]) {
    for entry in std::fs::read_dir("/proc").expect("is there").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse::<u32>() else { continue };
        let read = |what: &str| std::fs::read(entry.path().join(what)).unwrap_or_default();
        sinks.add("arguments of every process", read("cmdline"));
        let variables = read("environ");
        let jobs_own = variables.windows(15).any(|part| part == b"JOBCELL_JOB_ID=");
        if !jobs_own && !agents.contains(&pid) {
            sinks.add("variables of other processes", &variables);
        }
    }
}

/// What the engine knows and keeps of a cell.
fn cell(sinks: &mut Sinks, host: &str, cell: &str) {
    sinks.add("docker inspect", docker(host, &["inspect", "--size", cell]));
    let labels = "{{.Labels}} {{.Command}} {{.Mounts}}";
    sinks.add("docker ps", docker(host, &["ps", "--all", "--no-trunc", "--format", labels]));
    sinks.add("docker top", docker(host, &["top", cell, "-eo", "pid,args"]));
    sinks.add("docker diff", docker(host, &["diff", cell]));
    sinks.add("image history", docker(host, &["history", "--no-trunc", "jobcell/bash:1"]));
    sinks.add("image", docker(host, &["image", "inspect", "jobcell/bash:1"]));
    sinks.add("volumes", docker(host, &["volume", "ls", "--format", "{{json .}}"]));
    sinks.add("engine events", docker(host, &["events", "--since", "10m", "--until", "0s"]));
    let logs = std::process::Command::new("docker").args(["--host", host, "logs", cell]).output().expect("docker runs");
    sinks.add("container logs", [logs.stdout, logs.stderr].concat());
    let export = std::process::Command::new("docker").args(["--host", host, "export", cell]).output();
    // Its own file systems in memory are not part of it.
    sinks.add("the cell's file system, exported", export.expect("docker runs").stdout);
    let id = docker(host, &["inspect", "--format", "{{.Id}}", cell]);
    let root = docker(host, &["info", "--format", "{{.DockerRootDir}}"]);
    sinks.folder("the engine's files of the cell", &Path::new(&root).join("containers").join(&id), &[]);
    for state in ["/run/docker/containerd", "/run/containerd", "/var/run/docker/containerd"] {
        bundles(sinks, Path::new(state), &id, 0);
    }
}

/// Files of the runtime about this container.
fn bundles(sinks: &mut Sinks, dir: &Path, id: &str, depth: u32) {
    sinks.add("the runtime's bundle", []);
    if depth > 6 {
        return;
    }
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy() == id {
            for file in ["config.json", "options.json", "runtime", "state.json"] {
                sinks.add("the runtime's bundle", std::fs::read(entry.path().join(file)).unwrap_or_default());
            }
        } else {
            bundles(sinks, &entry.path(), id, depth + 1);
        }
    }
}

/// Everything that the API says.
async fn api(sinks: &mut Sinks, up: &Up, job: &Value) {
    let id = id(job);
    for path in [
        "".to_owned(),
        "/explain".to_owned(),
        "/report".to_owned(),
        "/report?format=json".to_owned(),
        "/logs?stream=both".to_owned(),
        "/logs?stream=stderr".to_owned(),
        "/artifacts".to_owned(),
    ] {
        let answer = up.call(Method::GET, &format!("/v1/jobs/{id}{path}"), None).await;
        let headers = format!("{:?}", answer.headers());
        sinks.add(&format!("GET /v1/jobs/ID{path}"), headers + &answer.text().await.unwrap_or_default());
    }
    for path in
        ["/v1/jobs", "/v1/agents", "/v1/stats/daily", "/metrics", "/healthz?verbose", "/readyz", "/openapi.json"]
    {
        let answer = up.call(Method::GET, path, None).await;
        sinks.add(&format!("GET {path}"), answer.text().await.unwrap_or_default());
    }
    // What is refused is told without what was sent: a value in the wrong place, a second job under a key, and one that is given again.
    let spec = |secrets: Value| json!({"preset": "bash", "script": "true", "secrets": secrets});
    for bad in [
        spec(json!({"A": INLINE})),
        spec(json!({"A": {"from": FROM_VARIABLE.repeat(9)}})),
        spec(json!({"A": {"value": [INLINE]}})),
        spec(json!({"A": {"value": INLINE, "from": "x"}})),
        spec(json!({"LD_A": {"value": INLINE}})),
        spec(json!({"A": {"value": INLINE.repeat(4000)}})),
        spec(json!({"A": {"value": INLINE}, "B": {"value": format!("{INLINE}\u{0}")}})),
        json!({"preset": "nobodys", "script": "true", "secrets": {"A": {"value": INLINE}}}),
    ] {
        let answer = up.call(Method::POST, "/v1/jobs", Some(&bad)).await;
        assert!(answer.status().is_client_error(), "{bad}");
        sinks.add("problem documents", answer.text().await.unwrap_or_default());
        let yaml = up.request(Method::POST, "/v1/jobs").header("content-type", "application/yaml");
        let answer = yaml.body(bad.to_string()).send().await.expect("answers");
        sinks.add("problem documents", answer.text().await.unwrap_or_default());
        let answer = up.call(Method::POST, "/v1/jobs/bulk", Some(&json!([bad]))).await;
        sinks.add("problem documents", answer.text().await.unwrap_or_default());
    }
}

/// What the command line says.
async fn commands(sinks: &mut Sinks, up: &Up, job: &Value) {
    let config = up.dir.path().join("config.yaml");
    let config = config.to_str().expect("text");
    let commands: [&[&str]; 9] = [
        &["job", "get", id(job)],
        &["-o", "json", "job", "get", id(job)],
        &["job", "explain", id(job)],
        &["job", "report", id(job)],
        &["job", "artifacts", "ls", id(job)],
        &["job", "list"],
        &["dlq", "list"],
        &["--config", config, "config", "show"],
        &["--config", config, "config", "schema"],
    ];
    for args in commands {
        let output = up.command(args).await;
        sinks.add("the command line", [output.stdout, output.stderr].concat());
    }
}

/// A log without the line that tells the operator the first key, once.
fn log(text: &[u8]) -> Vec<u8> {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !has(line, b"(shown once"));
    lines.collect::<Vec<_>>().join(&b'\n')
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|some| some == part)
}

/// What is written on this host.
fn files(sinks: &mut Sinks, up: &Up) {
    let data = up.data();
    // The one file that a key is for is where it has to be.
    sinks.folder("the data directory", &data, &["admin.key"]);
    for (place, file) in [
        ("the queue's database", "queue.db"),
        ("its write-ahead log", "queue.db-wal"),
        ("the journal", "journal.db"),
        ("the journal's write-ahead log", "journal.db-wal"),
    ] {
        sinks.add(place, std::fs::read(data.join(file)).unwrap_or_default());
    }
    sinks.folder("the logs of jobs", &data.join("logs"), &[]);
    sinks.add("the log of the agent, with everything in it", log(up.log().as_bytes()));
    sinks.folder("temporary files", &up.dir.path().join("tmp"), &[]);
}

/// Writes its secrets in every way, again and again, until it is told to end.
const SCRIPT: &str = r#"
    say() {
        echo "$VARIABLE $INLINE"; cat "$FILE" "$INLINE_FILE"
        base64 -w 0 <<< "x$VARIABLE"; base64 "$FILE"; base64 -w 0 <<< "$INLINE"; env | base64 -w 0
        echo "${INLINE//\"/%22} ${INLINE//\"/\\\"}" >&2
        echo "value=$VARIABLE $INLINE" > "$JOBCELL_OUTPUT"; base64 -w 0 <<< "b=$VARIABLE" >> "$JOBCELL_OUTPUT"
        echo "progress 1 $VARIABLE $INLINE" > "$JOBCELL_PROGRESS"; echo "step begin $INLINE" > "$JOBCELL_PROGRESS"
        : > "file of $VARIABLE"; : > innocent
        for ((i = 0; i < ${#VARIABLE}; i++)); do printf %s "${VARIABLE:i:1}"; done; echo
    }
    trap 'say; exit 0' TERM
    while :; do say; read -t 0.2 <> <(:); done
"#;

async fn look(up: &Up, job: &Value, moment: &str, cell_name: Option<&str>) -> usize {
    let mut sinks = Sinks::default();
    processes(&mut sinks, &[up.pid(), std::process::id()]);
    if let Some(name) = cell_name {
        cell(&mut sinks, &up.host, name);
    }
    api(&mut sinks, up, job).await;
    commands(&mut sinks, up, job).await;
    files(&mut sinks, up);
    sinks.search(moment, &canaries(std::slice::from_ref(&up.key)))
}

#[tokio::test]
async fn no_value_is_found_anywhere_while_a_job_has_it_after_its_agent_was_killed_and_when_all_is_over() {
    let Some(host) = engine() else { return };
    let _alone = ONE_AT_A_TIME.lock().await;
    let dir = tempfile::tempdir().expect("a folder");
    let (file, tmp) = (dir.path().join("operators-file"), dir.path().join("tmp"));
    std::fs::write(&file, FROM_FILE).expect("writes");
    std::fs::create_dir(&tmp).expect("a folder");
    let settings =
        format!("secrets: {{variable: 'env:CANARY', file: 'file:{}'}}\nagent: {{slots: 1}}\n", file.display());
    let env = [("CANARY", FROM_VARIABLE), ("RUST_LOG", "trace"), ("TMPDIR", tmp.to_str().expect("text"))];
    let mut up = Up::start_with(dir, &host, &settings, &env).await;
    until("readiness", || async { up.plain("/readyz").await.filter(|(status, _)| *status == 200) }).await;
    let secrets = json!({
        "VARIABLE": "variable", "FILE": {"from": "file", "as": "file"},
        "INLINE": {"value": INLINE}, "INLINE_FILE": {"value": INLINE_FILE, "as": "file"},
    });
    let job = up
        .submit(&json!({"preset": "bash", "script": SCRIPT, "secrets": secrets, "timeout": "5m", "artifacts": ["**"]}))
        .await;
    // One that waits behind it, with its values sealed.
    let waits = up.submit(&json!({"preset": "bash", "script": "true", "secrets": {"A": {"value": INLINE}}})).await;
    let wrote = async |up: &Up, more: usize| {
        let before = up.text(&job, "stdout").await.len();
        until("output", || async { (up.text(&job, "stdout").await.len() > before + more).then_some(()) }).await;
    };
    wrote(&up, 2000).await;
    let cell = up.containers()[0].clone();
    let places = look(&up, &job, "while it runs", Some(&cell)).await;
    assert!(places >= 25, "{places} places were looked at");
    // Whoever goes on with it needs no secret, and does not have the ones that came with the job.
    up.crash().await;
    wrote(&up, 2000).await;
    look(&up, &job, "after a kill", Some(&cell)).await;
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&job)), None).await;
    let ended = up.ended(&job).await;
    assert_eq!(ended["log"]["complete"], true, "{ended}");
    up.ended(&waits).await;
    look(&up, &ended, "at the end", None).await;
    let files = &ended["artifacts"];
    assert_eq!((&files["count"], &files["problems"][0]["code"]), (&json!(1), &json!("bad_name")), "{ended}");
    assert_eq!((&ended["outputs"]["value"], &ended["progress"]["message"]), (&json!("*** ***"), &json!("*** ***")));
    let out = up.text(&ended, "stdout").await;
    assert!(out.contains("*** ***\n***"), "{out}");
    up.stop().await;
}

/// A server, or an agent of one, as a process with everything in its log.
fn process(dir: &Path, name: &str, verb: &[&str], config: &str, env: &[(&str, &str)]) -> tokio::process::Child {
    let file = dir.join(format!("{name}.yaml"));
    std::fs::write(&file, config).expect("writes");
    let log = std::fs::File::options().create(true).append(true).open(dir.join(format!("{name}.log"))).expect("opens");
    tokio::process::Command::new(JOBCELL)
        .args(verb)
        .arg("--data-dir")
        .arg(dir.join(name))
        .arg("--config")
        .arg(&file)
        .env("JOBCELL_DOCKER__SHARED", "true")
        .env("RUST_LOG", "trace")
        .env("TMPDIR", dir.join("tmp"))
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("clones"))
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("starts")
}

#[tokio::test]
async fn between_a_server_and_its_agent_values_and_keys_are_in_no_file_and_no_log() {
    let Some(host) = engine() else { return };
    let _alone = ONE_AT_A_TIME.lock().await;
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("tmp")).expect("a folder");
    std::fs::write(at("operators-file"), FROM_FILE).expect("writes");
    let server = process(dir.path(), "server", &["server"], "server: {listen: '127.0.0.1:0'}\n", &[]);
    let url = until("the endpoint", || async { super::stage::read(&at("server").join("endpoint")) }).await;
    let cli = async |args: &[&str]| {
        let run = tokio::process::Command::new(JOBCELL).arg("--data-dir").arg(at("server")).args(args).output();
        tokio::time::timeout(PATIENCE, run).await.expect("ends in time").expect("runs")
    };
    let added = cli(&["agents", "add", "one"]).await;
    assert!(added.status.success(), "{added:?}");
    let key = String::from_utf8(added.stdout).expect("text").trim().to_owned();
    write_secret(&at("one.key"), &key);
    let config = format!(
        "backends: {{main: {{url: '{url}', key_file: {}}}}}\nagent: {{listen: '127.0.0.1:0'}}\nsecrets: {{file: 'file:{}'}}\n",
        at("one.key").display(),
        at("operators-file").display()
    );
    let agent = process(dir.path(), "one", &["agent"], &config, &[("DOCKER_HOST", &host)]);
    let spec = at("job.json");
    let script = "echo \"<$INLINE>\"; cat \"$FILE\"; echo \"a=$INLINE\" > $JOBCELL_OUTPUT; : > \"$INLINE\"; : > f
        echo \"progress 9 $INLINE\" > $JOBCELL_PROGRESS; echo \"step begin $INLINE\" > $JOBCELL_PROGRESS; echo done";
    let secrets = json!({"INLINE": {"value": INLINE}, "FILE": {"from": "file", "as": "file"}});
    std::fs::write(
        &spec,
        json!({"preset": "bash", "script": script, "secrets": secrets, "artifacts": ["*"]}).to_string(),
    )
    .expect("writes");
    let output = cli(&["-o", "json", "job", "submit", spec.to_str().expect("text"), "--wait"]).await;
    assert!(output.status.success(), "{output:?}\n{}", std::fs::read_to_string(at("one.log")).unwrap_or_default());
    std::fs::remove_file(&spec).expect("was there");
    let job: Value = serde_json::from_slice(&output.stdout).expect("is JSON");
    assert_eq!((&job["outputs"]["a"], &job["artifacts"]["count"]), (&json!("***"), &json!(1)), "{job}");
    let shown = cli(&["job", "logs", id(&job)]).await;
    assert_eq!(String::from_utf8_lossy(&shown.stdout), "<***>\n***\ndone\n");
    let mut sinks = Sinks::default();
    let pids: Vec<u32> = [&server, &agent].into_iter().filter_map(tokio::process::Child::id).collect();
    processes(&mut sinks, &pids[..0]);
    sinks.add("what submit says", output.stdout);
    for name in ["server", "one"] {
        sinks.folder(&format!("data of {name}"), &at(name), &["admin.key"]);
        sinks.add(&format!("log of {name}"), log(&std::fs::read(at(&format!("{name}.log"))).expect("is there")));
    }
    sinks.folder("temporary files", &at("tmp"), &[]);
    let admin = super::stage::read(&at("server").join("admin.key")).expect("is there");
    sinks.search("between server and agent", &canaries(&[key, admin]));
}
