//! Keys with roles: what each may do through a real server, and that a policy can go by them.

use super::policy::up_by;
use super::stage::{JOBCELL, PATIENCE, Up, engine, id, said, until};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use std::process::Stdio;

/// A command of somebody whose key this is, at this server.
async fn cli(up: &Up, key: &str, args: &[&str]) -> (i32, String, String) {
    let mut command = tokio::process::Command::new(JOBCELL);
    command.env("JOBCELL_API_KEY", key).env("JOBCELL_SERVER_URL", &up.url).arg("--data-dir").arg(up.data()).args(args);
    let output = tokio::time::timeout(PATIENCE, command.stdin(Stdio::null()).output()).await;
    said(&output.expect("ends in time").expect("runs"))
}

async fn made(up: &Up, args: &[&str]) -> String {
    let (code, out, err) = cli(up, &up.key, &[&["keys"], args].concat()).await;
    assert_eq!(code, 0, "{err}");
    out.trim().to_owned()
}

/// Status and code of a call with this key.
async fn call(up: &Up, key: &str, method: &Method, path: &str, body: &Value) -> (u16, String) {
    let http = Client::builder().no_proxy().timeout(PATIENCE).build().expect("builds");
    let request = http.request(method.clone(), format!("{}{path}", up.url)).bearer_auth(key);
    let request = if body.is_null() { request } else { request.json(body) };
    let response = request.send().await.expect("is answered");
    let (status, body) = (response.status().as_u16(), response.text().await.unwrap_or_default());
    let code = serde_json::from_str::<Value>(&body).ok().and_then(|body| body["code"].as_str().map(str::to_owned));
    (status, code.unwrap_or_default())
}

#[tokio::test]
async fn each_role_opens_what_it_is_for_and_nothing_else() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let read = made(&up, &["add", "web", "--role", "read"]).await;
    let submit = made(&up, &["add", "ci", "--role", "submit", "--expires-in", "90d"]).await;
    let admin = made(&up, &["add", "boss", "--role", "admin"]).await;
    let quick = json!({"preset": "bash", "script": "echo 1 > f", "artifacts": ["f"]});
    let mine = up.run(&quick).await;
    assert_eq!(mine["submitter"], "admin");
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    let job = format!("/v1/jobs/{}", id(&mine));
    let (cancel, retry, logs) = (format!("{job}/cancel"), format!("{job}/retry"), format!("{job}/logs"));
    let (files, file) = (format!("{job}/artifacts"), format!("{job}/artifacts/f"));
    // What each answers to: the role read, submit, admin.
    let none = Value::Null;
    let ids = json!({"ids": []});
    for (method, path, body, wanted) in [
        (&get, "/v1/jobs", &none, [200, 200, 200]),
        (&get, job.as_str(), &none, [200, 200, 200]),
        (&get, files.as_str(), &none, [200, 200, 200]),
        (&get, file.as_str(), &none, [200, 200, 200]),
        (&post, "/v1/agent/artifacts/given", &json!({}), [401, 401, 401]),
        (&get, "/v1/agents", &none, [200, 200, 200]),
        (&get, "/v1/keys", &none, [403, 403, 200]),
        (&post, "/v1/keys", &json!({"name": "x", "role": "none"}), [403, 403, 400]),
        (&delete, "/v1/keys/none", &none, [403, 403, 404]),
        (&post, "/v1/keys/none/rotate", &json!({}), [403, 403, 404]),
        (&post, "/v1/jobs", &json!({}), [403, 422, 422]),
        (&post, "/v1/jobs/bulk", &json!([{}]), [403, 422, 422]),
        (&post, "/v1/jobs/bulk-cancel", &ids, [403, 403, 200]),
        (&post, "/v1/jobs/replay", &ids, [403, 403, 200]),
        (&post, cancel.as_str(), &none, [403, 403, 200]),
        (&post, retry.as_str(), &none, [403, 403, 201]),
        (&delete, logs.as_str(), &none, [403, 403, 204]),
        (&post, "/v1/agents", &json!({"name": "x/y"}), [403, 403, 400]),
        (&delete, "/v1/agents/none", &none, [403, 403, 404]),
    ] {
        for (key, wanted) in [&read, &submit, &admin].into_iter().zip(wanted) {
            let (status, code) = call(&up, key, method, path, body).await;
            assert_eq!(status, wanted, "{method} {path}: {code}");
            assert!(status != 403 || code == "forbidden", "{method} {path}: {code}");
        }
    }
    // Its own jobs are a submitter's to cancel and to run again; they say whose they are.
    let (code, out, err) = cli(&up, &submit, &["job", "submit", "-o", "json", "-", "--wait"]).await;
    assert_eq!((code, out.as_str()), (2, ""), "an empty spec: {err}");
    let (code, out, err) = cli(&up, &submit, &["exec", "--preset", "bash", "--", "true"]).await;
    assert_eq!(code, 0, "{out}{err}");
    let list = up.get("/v1/jobs?limit=1").await;
    let own = up.get(&format!("/v1/jobs/{}", list["jobs"][0]["id"].as_str().expect("an id"))).await;
    assert_eq!(own["submitter"], "ci");
    let (status, _) = call(&up, &submit, &post, &format!("/v1/jobs/{}/cancel", id(&own)), &none).await;
    assert_eq!(status, 200);
    let (status, _) = call(&up, &submit, &post, &format!("/v1/jobs/{}/retry", id(&own)), &none).await;
    assert_eq!(status, 201);
    let (code, _, err) = cli(&up, &submit, &["job", "cancel", id(&mine), "--yes"]).await;
    assert!(code == 1 && err.contains("its own jobs"), "{code}: {err}");
    // One that gets the name of a removed key has none of that one's jobs, and none of its idempotency keys.
    made(&up, &["remove", "ci"]).await;
    let another = made(&up, &["add", "ci", "--role", "submit"]).await;
    let (status, code) = call(&up, &another, &post, &format!("/v1/jobs/{}/retry", id(&own)), &none).await;
    assert_eq!((status, code.as_str()), (403, "forbidden"));
    let submit = another;
    // What is listed is no secret, and a removed key opens nothing.
    let (_, out, _) = cli(&up, &up.key, &["keys", "list", "-o", "json"]).await;
    assert!(!out.contains("jck_") && out.contains("\"boss\""), "{out}");
    let again = made(&up, &["rotate", "web", "--overlap", "1h"]).await;
    for key in [&read, &again] {
        assert_eq!(call(&up, key, &get, "/v1/jobs", &none).await.0, 200);
    }
    made(&up, &["remove", "web"]).await;
    for key in [&read, &again] {
        assert_eq!(call(&up, key, &get, "/v1/jobs", &none).await, (401, "unauthorized".to_owned()));
    }
    let brief = made(&up, &["add", "brief", "--role", "read", "--expires-in", "50ms"]).await;
    until("the end of a key", || async {
        (call(&up, &brief, &get, "/v1/jobs", &none).await == (401, "unauthorized".to_owned())).then_some(())
    })
    .await;
    // They are kept as hashes, for the owner alone, and outlive the server.
    let file = std::fs::read_to_string(up.data().join("keys.json")).expect("is there");
    assert!(![&submit, &admin].iter().any(|key| file.contains(&key[4..])), "{file}");
    up.stop().await;
}

#[tokio::test]
async fn a_policy_can_give_more_to_those_who_hold_a_key() {
    let Some(host) = engine() else { return };
    let policy = "{version: 1, allow: {limits: {timeout: 1m}}, rules: [{name: ops, when: {keys: ['ops-*']}, allow: {limits: {timeout: 9h}}}]}";
    let up = up_by(&host, policy, "").await;
    let ops = made(&up, &["add", "ops-1", "--role", "submit"]).await;
    let ci = made(&up, &["add", "ci", "--role", "submit"]).await;
    let long = json!({"preset": "bash", "script": "true", "timeout": "5h"});
    let refused = (403, "policy_refused".to_owned());
    assert_eq!(call(&up, &ops, &Method::POST, "/v1/jobs?wait=60s", &long).await.0, 201);
    assert_eq!(call(&up, &ci, &Method::POST, "/v1/jobs", &long).await, refused);
    // A key is not what a job says of itself.
    let mut claims = long.clone();
    claims["labels"] = json!({"key": "ops-1"});
    assert_eq!(call(&up, &ci, &Method::POST, "/v1/jobs", &claims).await, refused);
    let mut claims = long.clone();
    claims["submitter"] = json!("ops-1");
    assert_eq!(call(&up, &ci, &Method::POST, "/v1/jobs", &claims).await.0, 422);
    // The agent judges by the same name when it starts the job.
    let list = up.get("/v1/jobs").await;
    let job = up.get(&format!("/v1/jobs/{}", list["jobs"][0]["id"].as_str().expect("an id"))).await;
    assert_eq!((job["submitter"].as_str(), job["ending"]["verdict"].as_str()), (Some("ops-1"), Some("succeeded")));
    // Nobody else's job is theirs to run again, and one that is run again stays its submitter's.
    assert_eq!(call(&up, &ci, &Method::POST, &format!("/v1/jobs/{}/retry", id(&job)), &Value::Null).await.0, 403);
    let again = up.call(Method::POST, &format!("/v1/jobs/{}/retry", id(&job)), None).await;
    assert_eq!(again.json::<Value>().await.expect("JSON")["submitter"], "ops-1");
    // Two who use one idempotency key have a job each.
    let keyed = json!({"preset": "bash", "script": "true", "timeout": "30s", "idempotency_key": "nightly"});
    for (key, wanted) in [(&ops, 201), (&ci, 201), (&up.key, 201), (&ops, 200), (&ci, 200), (&up.key, 200)] {
        assert_eq!(call(&up, key, &Method::POST, "/v1/jobs", &keyed).await.0, wanted);
        let bulk = call(&up, key, &Method::POST, "/v1/jobs/bulk", &json!([keyed])).await;
        assert_eq!(bulk.0, 200, "it is there");
    }
    let (code, out, _) = cli(&up, &ci, &["policy", "explain", "--help"]).await;
    assert!(code == 0 && out.contains("--key"), "{out}");
    up.stop().await;
}

#[tokio::test]
async fn a_stream_ends_with_the_key_that_opened_it() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let (gone, stays) =
        (made(&up, &["add", "gone", "--role", "read"]).await, made(&up, &["add", "stays", "--role", "read"]).await);
    let job = up.submit(&json!({"preset": "bash", "script": "while :; do echo more; sleep 0.1; done"})).await;
    let quiet = up.submit(&json!({"preset": "bash", "script": "echo more; sleep 600"})).await;
    let http = Client::builder().no_proxy().build().expect("builds");
    let open = async |key: &str, job: &Value| {
        let url = format!("{}/v1/jobs/{}/logs/events", up.url, id(job));
        let mut stream = http.get(url).bearer_auth(key).send().await.expect("is answered");
        assert_eq!(stream.status(), 200);
        more(&mut stream).await.expect("goes on");
        stream
    };
    let (mut ends, mut ends_too) = (open(&gone, &job).await, open(&gone, &quiet).await);
    let mut goes_on = open(&stays, &job).await;
    made(&up, &["remove", "gone"]).await;
    for stream in [&mut ends, &mut ends_too] {
        tokio::time::timeout(PATIENCE, async { while more(stream).await.is_some() {} }).await.expect("ends in time");
    }
    for _ in 0..5 {
        more(&mut goes_on).await.expect("goes on");
    }
    for job in [&job, &quiet] {
        up.call(Method::POST, &format!("/v1/jobs/{}/cancel?force=true", id(job)), None).await;
    }
    up.stop().await;
}

/// The next output of a stream of events; `None` at its end, however it came.
async fn more(stream: &mut reqwest::Response) -> Option<()> {
    loop {
        let chunk = tokio::time::timeout(PATIENCE, stream.chunk()).await.expect("comes in time").ok()??;
        if chunk.windows(12).any(|part| part == b"event: frame") {
            return Some(());
        }
    }
}
