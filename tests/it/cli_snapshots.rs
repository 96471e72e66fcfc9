//! What every command prints, held by snapshots: for people, and in JSON. What differs from run to run or from host to
//! host is replaced first. `INSTA_UPDATE=always` writes them anew; the difference is then to be read.

use super::stage::{JOBCELL, PATIENCE, Up, engine, id};
use insta::assert_snapshot;
use regex_lite::Regex;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;

/// Everything that otherwise depends on the host.
const SETTINGS: &str = "agent: {name: here, slots: 4, cpu: 2, memory: 4GiB}\ndocker: {concurrent_starts: 2}\n";
const JOB: &str = "preset: bash\nname: greeting\nscript: echo out; echo err >&2; exit 5\n";

/// Runs commands and notes what they said.
struct Shell<'a> {
    /// A data directory, a settings file and room for specs.
    dir: &'a Path,
    host: &'a str,
    said: String,
}

impl Shell<'_> {
    /// Runs one without the environment of the test.
    async fn run(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = tokio::process::Command::new(JOBCELL);
        command.env_clear().env("DOCKER_HOST", self.host).stdin(Stdio::null()).current_dir(self.dir);
        // Before the rest: what is behind the command of `exec` is the job's.
        command.arg("--data-dir").arg(self.dir.join("data"));
        if !args.contains(&"--config") {
            command.arg("--config").arg(self.dir.join("config.yaml"));
        }
        command.args(args);
        let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("ends in time").expect("runs");
        super::stage::said(&output)
    }

    /// Runs one with a terminal, and gives all that a person would see.
    async fn on_a_terminal(&self, args: &str, env: &[(&str, &str)]) -> String {
        let mut command = tokio::process::Command::new("script");
        command.args(["-qec", &format!("{JOBCELL} {args}"), "/dev/null"]).current_dir(self.dir);
        command.env("DOCKER_HOST", self.host).env("TERM", "xterm").env_remove("NO_COLOR").envs(env.iter().copied());
        command.env("JOBCELL_CONFIG", self.dir.join("config.yaml")).stdin(Stdio::null());
        let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("ends in time").expect("runs");
        super::stage::said(&output).1
    }

    /// Runs one and notes it.
    async fn note(&mut self, args: &[&str]) -> String {
        let (code, out, err) = self.run(args).await;
        let shown = if args.contains(&"json") { pretty(&out) } else { out.clone() };
        let part = |name: &str, text: &str| if text.is_empty() { String::new() } else { format!("--- {name}\n{text}") };
        let text = format!(
            "$ jobcell {}\n{}{}--- exit code {code}\n\n",
            args.join(" "),
            part("stdout", &shown),
            part("stderr", &err)
        );
        self.said.push_str(&self.plain(&text));
        out
    }

    /// Text without what differs from run to run.
    fn plain(&self, text: &str) -> String {
        let mut text = text.replace(&self.dir.display().to_string(), "[dir]").replace(self.host, "[engine]");
        for (pattern, name) in [
            ("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "[id]"),
            (r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "[time]"),
            (r"\b1[7-9]\d{11}\b", "[ms]"),
            (r" +\+\d+ ms", " [+ms]"),
            (r"(?m)^(  \[time\]) +\d+ ms ", "$1  [took] "),
            (r"(?m)^use       .*$", "use       [use]"),
            // The report's page.
            (r"(?m)^(use|isolation) {2,}.*$", "$1  [$1]"),
            (r"(?m)^(  \[time\].*?) {2,}(\d+[smh0-9]*)(  \w+)$", "$1  [for]$3"),
            (r#""for_ms": \d+"#, "\"for_ms\": [for]"),
            (r"(?m)^isolation receipt(.*)\n(  .*\n)+", "isolation receipt$1\n  [receipt]\n"),
            (r#"(warden:?) "?[0-9a-f]{16}"?"#, "$1 [warden]"),
            // The images of the tests are made of packages, which change with time.
            (r"sha256:[0-9a-f]{64}", "[digest]"),
            (r"\d+ GiB free", "[free]"),
            (r"127\.0\.0\.1:\d{5}\b", "[address]"),
            (r"jc[ka]_[0-9a-f]{64}", "[key]"),
            (r"\b20\d\d-\d\d-\d\d\b", "[day]"),
            (r"\d+\.\d s\b", "[run time]"),
            (r"(?m)  (\d+m)?\d+s$", "  [span]"),
            (r#"(waits_ms"?): \d+"#, "$1: [span]"),
            (r"\(waited [^)]*\)", "(waited [spans])"),
            (r"had waited [0-9smh]+", "had waited [span]"),
            (r#""waited": "?[0-9smh]+"?"#, "\"waited\": [span]"),
        ] {
            text = Regex::new(pattern).expect("a pattern").replace_all(&text, name).into_owned();
        }
        // How wide columns are depends on what was replaced in them.
        text = Regex::new(r"(\S) {2,}").expect("a pattern").replace_all(&text, "$1  ").into_owned();
        text.replace(env!("CARGO_PKG_VERSION"), "[version]")
    }

    fn taken(&mut self) -> String {
        std::mem::take(&mut self.said)
    }
}

/// A document without what differs in its values: measurements, the receipt, and defaults that the host gives.
fn pretty(text: &str) -> String {
    let mut document: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    steady(&mut document);
    format!("{document:#}\n")
}

fn steady(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                match key.as_str() {
                    "usage" | "receipt" | "warden" | "free" | "run_seconds" | "installation" if !inner.is_null() => {
                        *inner = json!(format!("[{key}]"))
                    }
                    _ => steady(inner),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(steady),
        _ => {}
    }
}

fn stage(settings: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("config.yaml"), settings).expect("writes");
    dir
}

const NO_ENGINE: &str = "unix:///no/such.sock";

#[tokio::test]
async fn policy_of_a_job() {
    let dir = stage(SETTINGS);
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("writes");
    write("policy.yaml", include_str!("../../config/policy.example.yaml"));
    write("bad.yaml", "version: 1\nallow: {limits: {memory: 1GiB}, network: [none]}\n");
    write("job.yaml", &format!("{JOB}resources: {{memory: 4GiB}}\n"));
    write("large.yaml", "image: debian:12\ncommand: [apt-get, update]\nnetwork: bridge\nresources: {cpu: 64}\n");
    write("release.yaml", "image: debian\ncommand: [bash]\nlabels: {pipeline: release}\nenv: {PATH: /evil}\n");
    write("bench.yaml", "preset: bash\nscript: 'true'\nlabels: {kind: bench-cpu}\n");
    write("broken.yaml", "preset: bash\n");
    let mut shell = Shell { dir: dir.path(), host: NO_ENGINE, said: String::new() };
    shell.note(&["policy", "check"]).await;
    shell.note(&["policy", "check", "policy.yaml"]).await;
    shell.note(&["policy", "check", "bad.yaml"]).await;
    shell.note(&["policy", "explain", "large.yaml"]).await;
    for job in ["job.yaml", "large.yaml", "release.yaml", "bench.yaml", "broken.yaml"] {
        shell.note(&["policy", "explain", job, "--policy", "policy.yaml"]).await;
    }
    shell.note(&["policy", "explain", "bench.yaml", "--policy", "policy.yaml", "-o", "json"]).await;
    shell.note(&["policy", "explain", "job.yaml", "--policy", "policy.yaml", "--backend", "crawl", "-o", "json"]).await;
    assert_snapshot!("policy", shell.taken());
}

#[tokio::test]
async fn help_of_every_command() {
    let dir = stage("");
    let shell = Shell { dir: dir.path(), host: NO_ENGINE, said: String::new() };
    let mut left: Vec<Vec<String>> = vec![vec![]];
    let mut seen = 0;
    while let Some(command) = left.pop() {
        let args: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
        let (code, out, err) = shell.run(&args).await;
        assert_eq!((code, err.as_str()), (0, ""), "{args:?}");
        let commands = out.split_once("\nCommands:\n").map_or("", |(_, rest)| rest).lines();
        let names = commands
            .take_while(|line| !line.is_empty())
            .filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        for name in names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help") {
            left.push(command.iter().cloned().chain([name.to_owned()]).collect());
        }
        assert_snapshot!(format!("help {}", command.join(" ")).trim().replace(' ', "_"), out);
        seen += 1;
    }
    assert!(seen > 15, "only {seen} commands were found");
}

#[tokio::test]
async fn what_needs_no_engine() {
    let dir = stage(SETTINGS);
    let mut shell = Shell { dir: dir.path(), host: NO_ENGINE, said: String::new() };
    for args in [&["version"] as &[&str], &["version", "-o", "json"], &["version", "-o", "yaml"]] {
        shell.note(args).await;
    }
    assert_snapshot!("version", shell.taken());
    shell.note(&["man"]).await;
    assert_snapshot!("man", shell.taken());
    for name in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, out, err) = shell.run(&["completions", name]).await;
        assert_eq!((code, err.as_str()), (0, ""), "{name}");
        for word in ["submit", "idempotency-key", "no-color", "completions"] {
            assert!(out.contains(word), "{name} does not complete {word}");
        }
    }
    for args in [
        &["job", "list"] as &[&str],
        &["job", "submit", "no-such.yaml"],
        &["job", "run", "no-such.yaml"],
        &["frobnicate"],
    ] {
        shell.note(args).await;
    }
    assert_snapshot!("used_wrongly", shell.taken());
    for code in ["queue_full", "policy_refused", "137", "quue_full", "7807"] {
        shell.note(&["explain", code]).await;
    }
    shell.note(&["explain", "not_ended", "-o", "json"]).await;
    assert_snapshot!("explain", shell.taken());
}

#[tokio::test]
async fn colour_is_for_terminals_that_want_it() {
    let dir = stage("");
    let shell = Shell { dir: dir.path(), host: NO_ENGINE, said: String::new() };
    let (_, piped, _) = shell.run(&["doctor"]).await;
    for (args, env, coloured) in [
        ("doctor", ("COLUMNS", "80"), true),
        ("doctor", ("NO_COLOR", ""), true),
        ("doctor", ("NO_COLOR", "1"), false),
        ("doctor", ("TERM", "dumb"), false),
        ("doctor --no-color", ("COLUMNS", "80"), false),
    ] {
        let shown = shell.on_a_terminal(args, &[env]).await;
        assert!(shown.contains("FAIL"), "{shown:?}");
        assert_eq!(shown.contains("\u{1b}[31mFAIL\u{1b}[0m"), coloured, "{args} {env:?}: {shown:?}");
        assert_eq!(shown.contains('\u{1b}'), coloured, "{args} {env:?}: {shown:?}");
    }
    assert!(piped.contains("FAIL") && !piped.contains('\u{1b}'), "{piped:?}");
}

#[tokio::test]
async fn settings() {
    let dir = stage(SETTINGS);
    let mut shell = Shell { dir: dir.path(), host: NO_ENGINE, said: String::new() };
    for args in [&["config", "show"] as &[&str], &["config", "show", "-o", "json"], &["config", "show", "--origin"]] {
        shell.note(args).await;
    }
    let (_, out, _) = shell.run(&["config", "show", "--origin", "-o", "json"]).await;
    let first: Value = serde_json::from_str(&out).expect("JSON");
    shell.said.push_str(&shell.plain(&format!("$ jobcell config show --origin -o json (the first)\n{:#}\n", first[0])));
    assert_snapshot!("config_show", shell.taken());

    std::fs::write(dir.path().join("bad.yaml"), "servr: {}\nqueue: {lease: 0s, max_queued: many}\n").expect("writes");
    for args in [&["config", "check"] as &[&str], &["config", "check", "-o", "json"]] {
        shell.note(args).await;
        shell.note(&[args, &["--config", "bad.yaml"]].concat()).await;
    }
    assert_snapshot!("config_check", shell.taken());

    let (_, out, _) = shell.run(&["config", "schema"]).await;
    let mut schema: Value = serde_json::from_str(&out).expect("JSON");
    for path in ["data_dir", "agent.name", "agent.slots", "agent.cpu", "agent.memory", "docker.concurrent_starts"] {
        let key = path.split('.').fold(&mut schema, |at, name| &mut at["properties"][name]);
        key["default"] = json!("[host]");
    }
    assert_snapshot!("config_schema", format!("{schema:#}"));
}

#[tokio::test]
async fn agents_and_reasons() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, SETTINGS).await;
    let mut shell = Shell { dir: up.dir.path(), host: &host, said: String::new() };
    for args in [
        &["agents", "add", "build-1"] as &[&str],
        &["agents", "add", "build-2", "-o", "json"],
        &["agents", "add", "build-1"],
        &["agents", "add", "a/b"],
        &["agents", "list"],
        &["agents", "list", "-o", "json"],
        &["agents", "remove", "build-2"],
        &["agents", "remove", "build-2"],
    ] {
        shell.note(args).await;
    }
    assert_snapshot!("agents", shell.taken());

    let nowhere =
        "preset: bash\nscript: x\nresources: {memory: 8GiB}\nrequires: {labels: {zone: eu}}\nlabels: {team: blue}\n";
    std::fs::write(up.dir.path().join("nowhere.yaml"), nowhere).expect("writes");
    std::fs::write(up.dir.path().join("job.yaml"), JOB).expect("writes");
    let waits = shell.run(&["job", "submit", "nowhere.yaml"]).await.1;
    shell.note(&["job", "explain", waits.trim()]).await;
    shell.note(&["job", "explain", waits.trim(), "-o", "json"]).await;
    let ended = shell.run(&["job", "submit", "job.yaml", "--wait"]).await.1;
    shell.note(&["job", "explain", ended.trim()]).await;
    shell.note(&["job", "explain", ended.trim(), "-o", "json"]).await;
    assert_snapshot!("job_explain", shell.taken());
    for form in ["table", "json", "yaml"] {
        shell.note(&["queue", "-o", form]).await;
    }
    shell.run(&["job", "cancel", waits.trim(), "--wait"]).await;
    shell.note(&["queue"]).await;
    assert_snapshot!("queue", shell.taken());

    shell.note(&["conformance", &up.url]).await;
    shell.note(&["agent"]).await;
    assert_snapshot!("without_keys", shell.taken());
    up.stop().await;
}

#[tokio::test]
async fn dead_letters() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, SETTINGS).await;
    let mut shell = Shell { dir: up.dir.path(), host: &host, said: String::new() };
    let hopeless =
        "preset: bash\nname: hopeless\nscript: exit 5\nlabels: {team: blue}\nretry: {failure: 1, backoff: 0s}\n";
    std::fs::write(up.dir.path().join("hopeless.yaml"), hopeless).expect("writes");
    std::fs::write(up.dir.path().join("job.yaml"), JOB).expect("writes");
    shell.note(&["dlq", "list"]).await;
    shell.note(&["dlq", "replay", "--all"]).await;
    let dead = shell.note(&["job", "submit", "hopeless.yaml", "--wait"]).await;
    let plain = shell.run(&["job", "submit", "job.yaml", "--wait"]).await.1;
    let (dead, plain) = (dead.trim(), plain.trim());
    shell.note(&["job", "explain", dead]).await;
    for args in [
        &["dlq", "list"] as &[&str],
        &["dlq", "list", "--label", "team=blue", "--limit", "1", "-o", "json"],
        &["dlq", "list", "--label", "team"],
        &["dlq", "show", dead],
        &["dlq", "show", dead, "-o", "json"],
        &["dlq", "show", plain],
        &["job", "list", "--stats", "--days", "1"],
        &["dlq", "replay"],
        &["dlq", "replay", dead, "--all"],
    ] {
        shell.note(args).await;
    }
    let new = shell.note(&["dlq", "replay", dead, plain]).await;
    let new = new.split_whitespace().last().expect("an id");
    up.ended(&json!({ "id": new })).await;
    shell.note(&["dlq", "replay", dead, "-o", "json"]).await;
    shell.note(&["dlq", "show", dead]).await;
    shell.note(&["dlq", "replay", "--label", "team=blue"]).await;
    assert_snapshot!("dlq", shell.taken());
    up.stop().await;
}

#[tokio::test]
async fn jobs() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, SETTINGS).await;
    let mut shell = Shell { dir: up.dir.path(), host: &host, said: String::new() };
    let greeting: Vec<String> = up.log().lines().take_while(|line| !line.starts_with('{')).map(str::to_owned).collect();
    assert_snapshot!("up", shell.plain(&greeting.join("\n")));
    for (name, text) in [
        ("job.yaml", JOB),
        ("bad.yaml", "preset: bsah\nscript: x\ntimeout: soon\n"),
        ("long.yaml", "preset: bash\nname: long\nscript: sleep 600\n"),
        ("broken.yaml", "image: jobcell/none:1\ncommand: [x]\n"),
    ] {
        std::fs::write(up.dir.path().join(name), text).expect("writes");
    }

    shell.note(&["job", "submit", "job.yaml", "--wait"]).await;
    let job = shell.note(&["job", "submit", "job.yaml", "--wait", "-o", "json", "--idempotency-key", "once"]).await;
    shell.note(&["job", "submit", "job.yaml", "--follow"]).await;
    shell.note(&["job", "submit", "job.yaml", "--follow", "--quiet"]).await;
    shell.note(&["job", "submit", "broken.yaml", "--wait", "--quiet"]).await;
    shell.note(&["job", "submit", "bad.yaml"]).await;
    assert_snapshot!("job_submit", shell.taken());

    for args in [
        &["exec", "--", "bash", "-c", "echo out; echo err >&2; exit 5"] as &[&str],
        &["job", "exec", "--quiet", "-e", "A=b", "--name=greeting", "printenv", "A"],
        &["exec", "--label", "team=blue", "-o", "json", "true"],
        &["exec", "--preset", "bsah", "-e", "A=b", "--time-limit", "soon", "true"],
        &["exec", "--time-limit=1s", "sleep", "600"],
        &["exec", "--timeout=2s", "sleep", "600"],
        &["exec"],
    ] {
        shell.note(args).await;
    }
    shell.run(&["job", "cancel", "--state=queued,claimed,preparing,running", "--wait"]).await;
    assert_snapshot!("job_exec", shell.taken());

    let two = "{\"preset\": \"bash\", \"script\": \"true\"}\n{\"preset\": \"bash\", \"script\": \"exit 2\"}\n";
    std::fs::write(up.dir.path().join("two.ndjson"), two).expect("writes");
    // What was not waited for is waited for here: later lists and numbers are to be the same in every run.
    for id in shell.note(&["job", "submit", "two.ndjson"]).await.lines() {
        up.ended(&json!({ "id": id })).await;
    }
    shell.note(&["job", "submit", "job.yaml", "two.ndjson", "--wait"]).await;
    shell.note(&["job", "submit", "job.yaml", "bad.yaml"]).await;
    shell.note(&["job", "submit", "job.yaml", "bad.yaml", "--partial", "--wait"]).await;
    let some = shell.note(&["job", "submit", "job.yaml", "bad.yaml", "--partial", "--dedupe", "-o", "json"]).await;
    up.ended(&serde_json::from_str::<Value>(&some).expect("JSON")["jobs"][0]["job"]).await;
    shell.note(&["job", "submit", "job.yaml", "two.ndjson", "--follow"]).await;
    assert_snapshot!("job_submit_many", shell.taken());

    let job: Value = serde_json::from_str(&job).expect("JSON");
    for args in [&["job", "get", id(&job)] as &[&str], &["job", "get", id(&job), "-o", "json"]] {
        shell.note(args).await;
    }
    shell.note(&["job", "get", "01890000-0000-7000-8000-000000000000"]).await;
    shell.note(&["job", "get", "../../etc"]).await;
    assert_snapshot!("job_get", shell.taken());

    shell.note(&["job", "report", id(&job)]).await;
    shell.note(&["job", "report", id(&job), "-o", "json"]).await;
    assert_snapshot!("job_report", shell.taken());
    let again = shell.note(&["job", "retry", id(&job)]).await;
    up.ended(&json!({"id": again.trim()})).await;
    shell.note(&["job", "retry", id(&job), "--follow"]).await;
    shell.note(&["job", "retry", id(&job), "--wait", "--quiet"]).await;
    shell.note(&["job", "retry", "01890000-0000-7000-8000-000000000000"]).await;
    assert_snapshot!("job_retry", shell.taken());

    for args in [&["job", "logs", id(&job)] as &[&str], &["job", "logs", id(&job), "--follow", "--stream", "stdout"]] {
        shell.note(args).await;
    }
    assert_snapshot!("job_logs", shell.taken());

    let queued = shell.note(&["job", "submit", "long.yaml", "-o", "json"]).await;
    shell.taken();
    let queued: Value = serde_json::from_str(&queued).expect("JSON");
    up.phase(&queued, "running").await;
    shell.note(&["job", "list", "--limit", "3"]).await;
    shell.note(&["job", "list", "--limit", "1", "-o", "json"]).await;
    shell.note(&["job", "list", "--limit", "1", "-o", "yaml"]).await;
    shell.note(&["job", "list", "--phase", "queued"]).await;
    shell.note(&["job", "list", "--phase", "nosuch"]).await;
    shell
        .note(&["job", "list", "--state", "running,ended", "--verdict", "failed", "--since", "1h", "--limit", "1"])
        .await;
    shell.note(&["job", "list", "--state", "ended", "--label", "team=blue"]).await;
    shell.note(&["job", "list", "--label", "team", "--verdict", "bad"]).await;
    shell.note(&["job", "list", "--since", "today"]).await;
    shell.note(&["job", "list", "--stats", "--days", "1"]).await;
    shell.note(&["job", "list", "--stats", "--days", "1", "-o", "json"]).await;
    assert_snapshot!("job_list", shell.taken());

    shell.note(&["job", "cancel", id(&queued)]).await;
    shell.note(&["job", "cancel", id(&queued), "--wait"]).await;
    shell.note(&["job", "cancel", id(&queued), "-o", "json"]).await;
    let unknown = "01890000-0000-7000-8000-000000000000";
    shell.note(&["job", "cancel", id(&queued), unknown]).await;
    shell.note(&["job", "cancel", id(&queued), id(&job), "--cleanup", "-o", "json"]).await;
    shell.note(&["job", "cancel", id(&job), "--cleanup"]).await;
    shell.note(&["job", "logs", id(&job)]).await;
    shell.note(&["job", "cancel", "--label", "team=none"]).await;
    shell.note(&["job", "cancel", "--state", "ended"]).await;
    shell.note(&["job", "cancel"]).await;
    assert_snapshot!("job_cancel", shell.taken());

    let wait = format!("--data-dir {} job submit job.yaml --wait", up.data().display());
    let line = Regex::new(r"[-/|\\] [0-9a-f-]{36} (queued|claimed on here)  0s").expect("a pattern");
    let shown = shell.on_a_terminal(&wait, &[]).await;
    assert!(line.is_match(&shown) && shown.contains("failed: exited with code 5"), "{shown:?}");
    let shown = shell.on_a_terminal(&format!("--quiet {wait}"), &[]).await;
    assert!(Regex::new(r"^[0-9a-f-]{36}\r\n$").expect("a pattern").is_match(&shown), "{shown:?}");

    shell.note(&["job", "run", "job.yaml"]).await;
    shell.note(&["job", "run", "job.yaml", "-o", "json"]).await;
    shell.note(&["job", "run", "bad.yaml"]).await;
    assert_snapshot!("job_run", shell.taken());
    up.stop().await;
}
