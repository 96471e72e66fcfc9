//! The audit log of a real server: each change and each refusal is a line, and no line has a secret.

use super::policy::{up_by, write};
use super::stage::{JOBCELL, PATIENCE, Up, engine, id, read, said, until};
use reqwest::{Client, Method};
use serde_json::{Value, json};

/// The lines, the oldest first.
fn lines(up: &Up) -> Vec<Value> {
    let text = std::fs::read_to_string(up.data().join("audit.jsonl")).expect("is there");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn about<'a>(lines: &'a [Value], action: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["action"] == action).collect()
}

async fn call(up: &Up, key: &str, method: Method, path: &str, body: &Value) -> (u16, Value) {
    let http = Client::builder().no_proxy().timeout(PATIENCE).build().expect("builds");
    let request = http.request(method, format!("{}{path}", up.url)).bearer_auth(key);
    let request = if body.is_null() { request } else { request.json(body) };
    let answer = request.send().await.expect("is answered");
    (answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null))
}

#[tokio::test]
async fn every_change_and_every_refusal_is_a_line_with_who_what_and_from_where() {
    let Some(host) = engine() else { return };
    let mut up = up_by(&host, "{version: 1, allow: {limits: {timeout: 1h}}}", "").await;
    let none = Value::Null;
    let (_, made) = call(&up, &up.key, Method::POST, "/v1/keys", &json!({"name": "ci", "role": "submit"})).await;
    let ci = made["key"].as_str().expect("a key").to_owned();
    let (_, agent) = call(&up, &up.key, Method::POST, "/v1/agents", &json!({"name": "far"})).await;
    let far = agent["key"].as_str().expect("a key").to_owned();
    let spec = json!({"preset": "bash", "script": "true", "env": {"A": "s3cr3t-in-env"}});
    let (status, job) = call(&up, &ci, Method::POST, "/v1/jobs?wait=60s", &spec).await;
    assert_eq!(status, 201);
    call(&up, &ci, Method::POST, &format!("/v1/jobs/{}/cancel", id(&job)), &none).await;
    let (_, again) = call(&up, &ci, Method::POST, &format!("/v1/jobs/{}/retry", id(&job)), &none).await;
    up.ended(&again).await;
    call(&up, &ci, Method::POST, "/v1/jobs", &json!({})).await;
    call(&up, &ci, Method::POST, "/v1/jobs", &json!({"preset": "bash", "script": "true", "timeout": "9h"})).await;
    let (_, many) = call(&up, &up.key, Method::POST, "/v1/jobs/bulk", &json!([spec, spec])).await;
    for one in many["jobs"].as_array().expect("a list") {
        up.ended(&one["job"]).await;
    }
    assert_eq!(call(&up, &ci, Method::GET, "/v1/keys", &none).await.0, 403);
    assert_eq!(call(&up, &ci, Method::GET, "/v1/audit", &none).await.0, 403);
    assert_eq!(call(&up, "jck_wrong-and-secret", Method::POST, "/v1/jobs", &spec).await.0, 401);
    assert_eq!(call(&up, "jca_wrong-and-secret", Method::POST, "/v1/agent/claim", &spec).await.0, 401);
    call(&up, &far, Method::POST, "/v1/agent/register", &json!({"protocols": [9999]})).await;
    call(&up, &up.key, Method::POST, "/v1/agents/far/drain", &json!({"reason": "a new kernel"})).await;
    call(&up, &up.key, Method::PUT, "/v1/keys/ci/limits", &json!({"rate": 7})).await;
    call(&up, &up.key, Method::POST, "/v1/keys/ci/rotate", &json!({})).await;
    call(&up, &up.key, Method::DELETE, "/v1/keys/none", &none).await;
    let all = lines(&up);
    let admin = |line: &Value| line["who"] == "admin" && line["role"] == "admin" && line["by"] == "key";
    for (action, who, object, outcome, status) in [
        ("key.add", "admin", json!("ci"), "done", 201),
        ("agent.add", "admin", json!("far"), "done", 201),
        ("job.submit", "ci", job["id"].clone(), "done", 201),
        ("job.cancel", "ci", job["id"].clone(), "done", 200),
        ("job.retry", "ci", again["id"].clone(), "done", 201),
        ("job.submit", "ci", none.clone(), "rejected", 422),
        ("job.submit", "ci", none.clone(), "refused", 403),
        ("job.submit_many", "admin", none.clone(), "done", 201),
        ("read", "ci", none.clone(), "refused", 403),
        ("agent.register", "far", none.clone(), "rejected", 409),
        ("agent.drain", "admin", json!("far"), "done", 200),
        ("key.limit", "admin", json!("ci"), "done", 200),
        ("key.rotate", "admin", json!("ci"), "done", 200),
        ("key.remove", "admin", json!("none"), "rejected", 404),
    ] {
        let fits = |line: &&&Value| {
            line["who"] == who && line["object"] == object && line["outcome"] == outcome && line["status"] == status
        };
        let found = about(&all, action);
        let line = found.iter().find(fits).unwrap_or_else(|| panic!("{action} {outcome} by {who}: {found:#?}"));
        assert!(line["from"] == "127.0.0.1" && line["at"].is_u64() && (who != "admin" || admin(line)), "{line}");
    }
    let strangers: Vec<_> = all.iter().filter(|line| line["by"] == "nobody").collect();
    assert_eq!(
        strangers.iter().map(|line| line["action"].as_str()).collect::<Vec<_>>(),
        [Some("job.submit"), Some("agent.call")]
    );
    assert!(
        strangers.iter().all(|line| line["detail"] == "unauthorized" && line["outcome"] == "refused"),
        "{strangers:?}"
    );
    assert_eq!(about(&all, "job.submit_many")[0]["count"], 2);
    assert_eq!(about(&all, "key.limit")[0]["detail"], "rate 7");
    assert!(about(&all, "job.submit").iter().any(|line| line["detail"] == "policy_refused"));
    let numbers: Vec<u64> = all.iter().map(|line| line["seq"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, (1..=all.len() as u64).collect::<Vec<_>>());
    // Who hangs up before the answer is there as well: the job goes on.
    let http = Client::builder().no_proxy().timeout(PATIENCE).build().expect("builds");
    let waits = http.post(format!("{}/v1/jobs?wait=60s", up.url)).bearer_auth(&up.key);
    let waits = waits.json(&json!({"preset": "bash", "script": "sleep 600", "name": "left"})).send();
    let left = tokio::select! {
        answer = waits => panic!("{answer:?}"),
        job = until("the job", || async { up.get("/v1/jobs?text=left").await["jobs"].get(0).cloned() }) => job,
    };
    drop(http);
    until("its line", || async {
        let of_it = |line: &Value| line["outcome"] == "unanswered" && line["action"] == "job.submit";
        lines(&up).iter().any(|line| of_it(line) && line["object"] == id(&left)).then_some(())
    })
    .await;
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel?force=true", id(&left)), None).await;
    up.ended(&left).await;
    // What this process does by itself is there too, and numbers go on over a crash.
    for (policy, outcome) in [("{version: 1, alow: {}}", "rejected"), ("{version: 1}", "done")] {
        // In one step: nobody reads half of it.
        write(up.dir.path(), policy);
        up.signal("-HUP");
        until(&format!("a policy that is {outcome}"), || async {
            about(&lines(&up), "policy.reload").last().is_some_and(|line| line["outcome"] == outcome).then_some(())
        })
        .await;
    }
    up.crash().await;
    until("the second start", || async { (about(&lines(&up), "server.start").len() == 2).then_some(()) }).await;
    let text = std::fs::read_to_string(up.data().join("audit.jsonl")).expect("is there");
    for secret in [&ci[4..], &far[4..], &up.key[4..], "wrong-and-secret", "s3cr3t-in-env"] {
        assert!(!text.contains(secret), "{secret} is in the log");
    }
    let numbers: Vec<u64> = lines(&up).iter().map(|line| line["seq"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    // It is read by its newest lines, page by page, and on the command line by its newest last.
    let page = up.get("/v1/audit?who=ci&limit=2").await;
    let next = page["next"].as_u64().expect("there are more");
    let rest = up.get(&format!("/v1/audit?who=ci&before={next}")).await;
    let of_ci = lines(&up).iter().filter(|line| line["who"] == "ci").count();
    assert_eq!(2 + rest["entries"].as_array().expect("a list").len(), of_ci);
    let (code, out, err) = said(&up.command(&["audit", "--action", "key", "--outcome", "done", "-o", "json"]).await);
    assert_eq!(code, 0, "{err}");
    let told: Value = serde_json::from_str(&out).expect("JSON");
    let actions: Vec<_> =
        told["entries"].as_array().expect("a list").iter().map(|line| line["action"].clone()).collect();
    assert_eq!(actions, ["key.add", "key.limit", "key.rotate"]);
    let (code, out, _) = said(&up.command(&["audit", "--who", "far"]).await);
    assert!(code == 0 && out.contains("agent.register") && out.contains("127.0.0.1"), "{out}");
    let bad = up.call(Method::GET, "/v1/audit?outcome=dun&limit=0", None).await;
    assert_eq!(bad.status().as_u16(), 400);
    // What the killed process was about to remove, this one does.
    until("no cells", || async { up.containers().is_empty().then_some(()) }).await;
    up.stop().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_written_stops_no_job_and_is_told_and_caught_up_with() {
    let Some(host) = engine() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let log = dir.path().join("data/audit.jsonl");
    std::fs::create_dir(dir.path().join("data")).expect("makes");
    std::os::unix::fs::symlink("/dev/full", &log).expect("links");
    let up = Up::start_in(dir, &host, "").await;
    let job = up.run(&json!({"preset": "bash", "script": "true"})).await;
    assert_eq!(job["ending"]["verdict"], "succeeded");
    let health = until("health to say so", || async {
        let (_, body) = up.plain("/healthz").await?;
        let health: Value = serde_json::from_str(&body).ok()?;
        (health["components"]["audit"]["state"] == "degraded").then_some(health)
    })
    .await;
    assert_eq!(health["ready"], true);
    assert!(
        health["components"]["audit"]["reason"].as_str().is_some_and(|why| why.contains("No space left")),
        "{health}"
    );
    assert!(up.log().contains("the audit log cannot be written"));
    std::fs::remove_file(&log).expect("removes");
    until("the lines that waited", || async { read(&log).filter(|text| text.contains("job.submit")) }).await;
    let all = lines(&up);
    assert_eq!((about(&all, "server.start").len(), about(&all, "job.submit").len()), (1, 1), "{all:?}");
    until("health", || async { up.plain("/healthz").await.filter(|(_, body)| !body.contains("degraded")) }).await;
    up.stop().await;
}

#[tokio::test]
async fn an_installation_may_have_no_audit_log() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "audit: {enabled: false}").await;
    up.run(&json!({"preset": "bash", "script": "true"})).await;
    assert!(!up.data().join("audit.jsonl").exists());
    let run = tokio::process::Command::new(JOBCELL)
        .arg("--data-dir")
        .arg(up.data())
        .arg("audit")
        .output()
        .await
        .expect("runs");
    let (code, _, err) = said(&run);
    assert!(code != 0 && err.contains("audit.enabled"), "{code}: {err}");
    up.stop().await;
}
