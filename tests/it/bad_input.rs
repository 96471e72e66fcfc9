//! What cannot work says so, before anything is created or with the right cause; ours is never the job's fault.

use super::stage::{Up, cause, engine, id, said};
use serde_json::{Value, json};

async fn problem(up: &Up, spec: &Value) -> (u16, Value) {
    let response = up.call(reqwest::Method::POST, "/v1/jobs", Some(spec)).await;
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    (response.status().as_u16(), response.json().await.expect("is JSON"))
}

#[tokio::test]
async fn a_bad_spec_lists_every_problem_and_creates_nothing() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let spec =
        json!({"preset": "bsah", "scirpt": "x", "timeout": "soon", "resources": {"disk": "1KiB"}, "network": "host"});
    let (status, document) = problem(&up, &spec).await;
    assert_eq!((status, document["code"].as_str()), (422, Some("bad_spec")));
    let paths: Vec<_> =
        document["problems"].as_array().expect("a list").iter().map(|one| one["path"].clone()).collect();
    assert_eq!(paths, ["preset", "script", "timeout", "resources.disk", "network", "scirpt"]);
    assert!(document.to_string().contains("did you mean `bash`?"));
    assert_eq!(up.get("/v1/jobs").await["jobs"], json!([]));
    assert_eq!(up.containers(), Vec::<String>::new());
    up.stop().await;
}

#[tokio::test]
async fn a_ten_mebibyte_script_is_refused_by_the_api_and_by_the_command() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let script = format!("# {}\n", "x".repeat(10 << 20));
    let (status, document) = problem(&up, &json!({"preset": "bash", "script": script})).await;
    assert_eq!((status, document["code"].as_str()), (413, Some("body_too_large")));
    // Also without a key, and again and again: the client always gets the answer, never a cut connection.
    for _ in 0..20 {
        let request = up.request(reqwest::Method::POST, "/v1/jobs").body(script.clone());
        assert_eq!(request.send().await.expect("answers").status(), 413);
        let stranger = reqwest::Client::builder().no_proxy().build().expect("builds");
        let request = stranger.post(format!("{}/v1/jobs", up.url)).body(script.clone());
        assert_eq!(request.send().await.expect("answers").status(), 401);
    }
    let file = up.dir.path().join("large.yaml");
    std::fs::write(&file, format!("preset: bash\nscript: \"{}\"\n", "x".repeat(10 << 20))).expect("writes");
    let (code, out, err) = said(&up.command(&["job", "run", file.to_str().expect("text")]).await);
    assert_eq!((code, out.as_str()), (2, ""), "{err}");
    assert!(err.contains("script: is 10485760 bytes"), "{err}");
    up.stop().await;
}

#[tokio::test]
async fn an_unknown_image_is_a_cell_error_with_a_remedy() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let job = up.run(&json!({"image": "jobcell/no-such-image:9", "pull": "never", "command": ["true"]})).await;
    assert_eq!((cause(&job), job["ending"]["verdict"].as_str()), ("image_missing", Some("cell_error")));
    assert_eq!(job["ending"]["process_exit_code"], 125);
    assert!(job["ending"]["hint"].as_str().is_some_and(|hint| hint.contains("no-such-image")));
    assert_eq!(up.stream(&job, "both").await, b"");
    up.stop().await;
}

#[tokio::test]
async fn what_cannot_be_started_is_127_or_126_and_the_jobs_failure() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    for (spec, code, exit) in [
        (json!({"preset": "bash", "script": "x", "interpreter": "/usr/bin/no-such"}), "program_not_found", 127),
        (json!({"preset": "bash", "command": ["no-such-command"]}), "program_not_found", 127),
        (json!({"preset": "bash", "command": ["/etc/passwd"]}), "program_not_executable", 126),
        (json!({"preset": "bash", "command": ["/etc"]}), "program_not_executable", 126),
        (json!({"preset": "bash", "command": ["true"], "workdir": "/no/such"}), "workdir_unusable", 126),
        (json!({"preset": "bash", "command": ["true"], "workdir": "/root"}), "workdir_unusable", 126),
        // The shell itself could not start something: that is the script's own exit code.
        (json!({"preset": "bash", "script": "no-such-command"}), "exit_code", 127),
    ] {
        let job = up.run(&spec).await;
        assert_eq!(cause(&job), code, "{spec}");
        assert_eq!(job["ending"]["verdict"], "failed", "{spec}");
        assert_eq!(job["ending"]["process_exit_code"], exit, "{spec}");
    }
    up.stop().await;
}

#[tokio::test]
async fn two_submits_with_one_key_are_one_job() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let spec = json!({"preset": "bash", "script": "echo once", "idempotency_key": "k"});
    let (first, second) = tokio::join!(up.submit(&spec), up.submit(&spec));
    assert_eq!(id(&first), id(&second));
    let by_header = up.request(reqwest::Method::POST, "/v1/jobs").header("Idempotency-Key", "k");
    let same = by_header.json(&json!({"preset": "bash", "script": "echo once"})).send().await.expect("answers");
    assert_eq!(same.status(), 200);
    let (status, document) =
        problem(&up, &json!({"preset": "bash", "script": "echo twice", "idempotency_key": "k"})).await;
    assert_eq!((status, document["code"].as_str()), (409, Some("key_conflict")));
    let job = up.ended(&first).await;
    assert_eq!(up.text(&job, "stdout").await, "once\n");
    assert_eq!(up.get("/v1/jobs").await["jobs"].as_array().map(Vec::len), Some(1));
    up.stop().await;
}
