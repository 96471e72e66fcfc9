//! The command line as a user has it.

use super::stage::{JOBCELL, PATIENCE, Up, engine, said, until};
use serde_json::Value;
use std::process::Stdio;

async fn alone(args: &[&str], stdin: &str, env: &[(&str, &str)]) -> (i32, String, String) {
    use tokio::io::AsyncWriteExt;
    let mut command = tokio::process::Command::new(JOBCELL);
    command.args(args).envs(env.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    child.stdin.take().expect("a pipe").write_all(stdin.as_bytes()).await.expect("writes");
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("ends in time").expect("runs");
    said(&output)
}

#[tokio::test]
async fn job_run_needs_no_server_and_exits_with_the_jobs_code() {
    let Some(host) = engine() else { return };
    let env = [("DOCKER_HOST", host.as_str())];
    for (spec, code, out) in [
        ("preset: bash\nscript: echo hello; exit 7", 7, "hello\n"),
        ("preset: bash\nscript: sleep 60\ntimeout: 1s", 124, ""),
        ("image: jobcell/none:1\ncommand: [x]", 125, ""),
        ("preset: bash\ncommand: [no-such]", 127, ""),
        ("preset: bash\nscript: kill -TERM $$", 143, ""),
        ("preset: python\nscript: print('from python')", 0, "from python\n"),
    ] {
        let (found, stdout, stderr) = alone(&["job", "run", "-"], spec, &env).await;
        assert_eq!((found, stdout.as_str()), (code, out), "{spec}: {stderr}");
    }
    let (code, out, err) =
        alone(&["job", "run", "-", "-o", "json"], "preset: bash\nscript: echo said; exit 3", &env).await;
    let job: Value = serde_json::from_str(&out).expect("JSON alone on standard output");
    assert_eq!((code, job["ending"]["cause"]["code"].as_str()), (3, Some("exit_code")));
    assert!(err.contains("said"), "{err}");
}

#[tokio::test]
async fn without_an_engine_job_run_says_so() {
    let env = [("DOCKER_HOST", "unix:///no/such.sock")];
    let (code, out, err) = alone(&["job", "run", "-"], "preset: bash\nscript: echo x", &env).await;
    assert_eq!((code, out.as_str()), (69, ""));
    assert!(err.contains("/no/such.sock") && err.contains("doctor"), "{err}");
    let (code, _, err) = alone(&["job", "run", "-"], "preset: bsah\nscript: echo x", &env).await;
    assert_eq!(code, 2);
    assert!(err.contains("preset: no preset is called `bsah`; did you mean `bash`?"), "{err}");
    let (code, out, _) = alone(&["doctor"], "", &env).await;
    assert!(code == 1 && out.contains("FAIL"), "{out}");
}

#[tokio::test]
async fn usage_settings_and_version() {
    let (code, out, _) = alone(&["version"], "", &[]).await;
    assert!(code == 0 && out.starts_with("jobcell "), "{out}");
    assert_eq!(alone(&["frobnicate"], "", &[]).await.0, 2);
    let (code, _, err) = alone(&["doctor"], "", &[("JOBCELL_QUEUE__LEASE", "never")]).await;
    assert_eq!(code, 78);
    assert!(err.contains("queue.lease") && err.contains("JOBCELL_QUEUE__LEASE"), "{err}");
}

#[tokio::test]
async fn the_nouns_work_against_a_running_one() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let file = up.dir.path().join("job.yaml");
    std::fs::write(&file, "preset: bash\nname: cli\nscript: echo out; echo err >&2; exit 5\n").expect("writes");
    let file = file.to_str().expect("text");
    let (code, out, err) = said(&up.command(&["job", "submit", file, "--follow"]).await);
    assert_eq!((code, out.as_str()), (5, "out\n"), "{err}");
    assert!(err.contains("err\n") && err.contains("failed: exited with code 5"), "{err}");
    let (code, out, _) = said(&up.command(&["job", "submit", file, "--wait", "-o", "json"]).await);
    let job: Value = serde_json::from_str(&out).expect("JSON");
    let id = job["id"].as_str().expect("an id");
    assert_eq!((code, job["ending"]["cause"]["code"].as_str()), (5, Some("exit_code")));
    let (code, out, _) = said(&up.command(&["job", "get", id]).await);
    assert!(code == 0 && out.contains("isolation receipt") && out.contains("no_new_privs"), "{out}");
    let (_, out, _) = said(&up.command(&["job", "logs", id]).await);
    assert_eq!(out, "out\nerr\n");
    let (_, out, _) = said(&up.command(&["job", "logs", id, "-f", "--stream", "stderr"]).await);
    assert_eq!(out, "");
    let (_, out, _) = said(&up.command(&["job", "list"]).await);
    assert!(out.lines().count() == 3 && out.contains(id) && out.contains("failed"), "{out}");
    let (code, out, _) = said(&up.command(&["job", "submit", file]).await);
    assert!(code == 0 && out.trim().len() == 36, "{out}");
    assert_eq!(said(&up.command(&["job", "cancel", out.trim(), "--wait"]).await).0, 0);
    let (code, _, err) = said(&up.command(&["job", "get", "../../etc"]).await);
    assert!(code == 2 && err.contains("is not a job id"), "{err}");
    let unknown = "01890000-0000-7000-8000-000000000000";
    let (code, _, err) = said(&up.command(&["job", "logs", unknown, "--follow"]).await);
    assert!(code == 1 && err.contains("no job has the id"), "{err}");
    let data = up.data();
    for args in [&["queue"] as &[&str], &["job", "logs", unknown, "-f"], &["exec", "true"]] {
        let args = [&["--data-dir", data.to_str().expect("text")], args].concat();
        let (code, _, err) = alone(&args, "", &[("JOBCELL_API_KEY", "another")]).await;
        assert!(code == 1 && err.contains("the key is not this installation's"), "{err}");
        let (code, _, err) = alone(&args, "", &[("JOBCELL_API_KEY", "a\nb")]).await;
        assert!(code == 2 && err.contains("characters that no key has"), "{err}");
        let (code, _, err) = alone(&args, "", &[("JOBCELL_SERVER_URL", "localhost:7807")]).await;
        assert!(code == 2 && err.contains("write http://host:7807"), "{err}");
        let (code, _, err) = alone(&args, "", &[("JOBCELL_SERVER_URL", "http://127.0.0.1:1")]).await;
        assert!(code == 69 && err.contains("Connection refused"), "{err}");
    }
    let (code, _, err) = alone(&["job", "run", "-"], "preset: bash\nscript: |\necho\n x: [", &[]).await;
    assert!(code == 2 && err.contains("is not valid YAML: line 3 column 1: ") && !err.contains("\\'"), "{err}");
    let (code, _, err) = said(&up.command(&["up", "--listen", "127.0.0.1:0"]).await);
    assert!(code == 69 && err.contains("held by another"), "{err}");
    let (code, out, _) = said(&up.command(&["doctor"]).await);
    assert!(code == 0 && out.contains("engine-api"), "{out}");
    up.stop().await;
}

#[tokio::test]
async fn a_stop_drains_and_a_second_one_ends_jobs() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let job = up.submit(&serde_json::json!({"preset": "bash", "script": "sleep 3; echo done"})).await;
    up.phase(&job, "running").await;
    // The drain lets it end.
    up.stop().await;

    let mut up = Up::start(&host, "agent: {grace: 1s, drain_timeout: 10m}").await;
    let job = up.submit(&serde_json::json!({"preset": "bash", "script": "sleep 600"})).await;
    up.phase(&job, "running").await;
    up.signal("-TERM");
    until("the drain", || async { up.log().contains("running jobs may end").then_some(()) }).await;
    up.signal("-TERM");
    assert_eq!(up.exit_code().await, Some(75), "{}", up.log());
    assert_eq!(up.containers(), Vec::<String>::new());
    assert!(!up.data().join("endpoint").exists());
}
