//! Jobs for several hosts, from the outside: what is taken in, shown, refused and canceled. No agent here reaches any host.

use super::stage::{Up, cause, engine, id, said};
use reqwest::Method;
use serde_json::{Value, json};

#[tokio::test]
async fn a_job_for_several_hosts_is_shown_with_its_parts_and_canceled_with_them() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "queue: {max_queued: 6}").await;
    let target = json!({"hosts": ["web1", "web2", "web3"], "at_once": 2});
    let job = up.submit(&json!({"target": target, "command": ["uptime"], "name": "deploy"})).await;
    assert_eq!((&job["phase"], &job["spec"]["target"]), (&json!("running"), &target));
    let now = up.get(&format!("/v1/jobs/{}", id(&job))).await;
    assert_eq!(now["children"], json!({"all": 3, "queued": 3, "held": 0, "ended": 0, "succeeded": 0}));
    let parts = up.get(&format!("/v1/jobs?parent={}", id(&job))).await;
    let parts: Vec<&Value> = parts["jobs"].as_array().expect("jobs").iter().rev().collect();
    assert_eq!(parts.iter().map(|part| &part["host"]).collect::<Vec<_>>(), ["web1", "web2", "web3"]);
    assert!(parts.iter().all(|part| part["parent"] == job["id"] && part["name"] == "deploy"));

    // Why they wait.
    let told = up.get(&format!("/v1/jobs/{}/explain", id(parts[0]))).await;
    assert_eq!(told["code"], "no_agent_suits");
    assert!(told["reason"].as_str().is_some_and(|text| text.contains("ssh.inventory")), "{told}");
    let told = up.get(&format!("/v1/jobs/{}/explain", id(parts[2]))).await;
    assert_eq!(told["code"], "held_back");

    // The queue has room for three more.
    let four = json!({"target": {"hosts": ["a", "b", "c", "d"]}, "command": ["x"]});
    assert_eq!(up.call(Method::POST, "/v1/jobs", Some(&four)).await.status().as_u16(), 429);
    let seven: Vec<String> = (0..7).map(|n| format!("h{n}")).collect();
    let seven = json!({"target": {"hosts": seven}, "command": ["x"]});
    let refused = up.call(Method::POST, "/v1/jobs", Some(&seven)).await.json::<Value>().await.expect("JSON");
    assert_eq!((&refused["code"], &refused["problems"][0]["path"]), (&json!("bad_spec"), &json!("target.hosts")));

    // It has no output of its own.
    for path in ["logs", "logs/events", "artifacts"] {
        let told = up.call(Method::GET, &format!("/v1/jobs/{}/{path}", id(&job)), None).await;
        assert_eq!(told.status().as_u16(), 409, "{path}");
        let told = told.json::<Value>().await.expect("JSON");
        let detail = told["detail"].as_str().expect("a sentence");
        assert!(told["code"] == "has_parts" && detail.contains(&format!("web3 {}", id(parts[2]))), "{told}");
    }
    let (code, shown, _) = said(&up.command(&["job", "get", id(&job)]).await);
    assert!(code == 0 && shown.contains("HOST") && shown.contains("web2") && shown.contains(id(parts[1])), "{shown}");
    let (code, shown, _) = said(&up.command(&["job", "list", "--parent", id(&job)]).await);
    assert!(code == 0 && shown.lines().count() == 4 && shown.contains("HOST"), "{shown}");
    let (code, shown, err) = said(&up.command(&["job", "logs", id(&job)]).await);
    assert!(code == 0 && shown.is_empty(), "{shown}{err}");
    let (code, page, _) = said(&up.command(&["job", "report", id(&job)]).await);
    assert!(code == 0 && page.contains("3 hosts (web1, web2, web3)"), "{page}");

    let canceled = up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&job)), None).await;
    assert_eq!(canceled.status().as_u16(), 200);
    let ended = up.ended(&job).await;
    assert_eq!((cause(&ended), &ended["ending"]["verdict"]), ("fan_out", &json!("canceled")));
    assert_eq!(ended["ending"]["cause"]["failed"][2]["host"], "web3");
    for part in parts {
        assert_eq!(up.ended(part).await["ending"]["verdict"], "canceled");
    }
    up.stop().await;
}

#[tokio::test]
async fn it_outlives_its_server_and_the_command_line_sends_it() {
    let Some(host) = engine() else { return };
    let mut up = Up::start(&host, "").await;
    let spec = json!({"target": {"hosts": ["a", "b"], "fail_fast": true}, "script": "true", "idempotency_key": "once"});
    let job = up.submit(&spec).await;
    up.kill().await;
    up.revive().await;
    let again = up.call(Method::POST, "/v1/jobs", Some(&spec)).await;
    assert_eq!((again.status().as_u16(), id(&again.json().await.expect("JSON"))), (200, id(&job)));
    // One of its parts is canceled: the other one follows, by fail_fast, and the whole.
    let parts = up.get(&format!("/v1/jobs?parent={}", id(&job))).await;
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&parts["jobs"][0])), None).await;
    assert_eq!(up.ended(&job).await["ending"]["cause"]["succeeded"], 0);
    let waits = up.command(&["job", "exec", "--on", "a,b", "--timeout", "2s", "--", "uptime"]).await;
    let (code, _, err) = said(&waits);
    assert!(code == 124 && err.contains("gave up waiting"), "{code} {err}");
    let list = up.get("/v1/jobs?state=running").await;
    assert_eq!(list["jobs"].as_array().map(Vec::len), Some(1), "{list}");
    up.stop().await;
}

/// What the policy says is said at the door, host by host.
#[tokio::test]
async fn a_policy_on_hosts_and_logins_is_told_at_the_door() {
    let Some(host) = engine() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let policy = dir.path().join("policy.yaml");
    let text = "version: 1\nallow: {targets: [{hosts: ['web*'], logins: [deploy]}], programs: [{command: [uptime]}]}\n";
    std::fs::write(&policy, text).expect("writes");
    let up = Up::start(&host, &format!("policy: {{file: {}}}", policy.display())).await;
    let ask = async |target: Value, command: Value| {
        let spec = json!({"target": target, "command": command});
        let answer = up.call(Method::POST, "/v1/jobs", Some(&spec)).await;
        let (status, body) = (answer.status().as_u16(), answer.json::<Value>().await.expect("JSON"));
        (status, body["problems"][0]["reason"].as_str().unwrap_or_default().to_owned())
    };
    let uptime = json!(["uptime"]);
    assert_eq!(ask(json!({"host": "web1", "login": "deploy"}), uptime.clone()).await.0, 201);
    let (status, why) = ask(json!({"hosts": ["web1", "db1"], "login": "deploy"}), uptime.clone()).await;
    assert!(status == 403 && why.contains("host `db1` is not on the list; allowed: web*"), "{why}");
    let (status, why) = ask(json!({"host": "web1", "login": "root"}), uptime).await;
    assert!(status == 403 && why.contains("login `root` at `web1` is not allowed; allowed: deploy"), "{why}");
    let (status, why) = ask(json!({"host": "web1", "login": "deploy"}), json!(["rm", "-rf", "/"])).await;
    assert!(status == 403 && why.contains("no command of the list"), "{why}");
    let job = dir.path().join("job.yaml");
    std::fs::write(&job, "target: {host: web1, login: root}\ncommand: [uptime]\n").expect("writes");
    let explain = ["policy", "explain", job.to_str().expect("text"), "--policy", policy.to_str().expect("text")];
    let (code, told, err) = said(&up.command(&explain).await);
    assert!(code == 1 && told.contains("REFUSED") && told.contains("target.login"), "{told}{err}");
    up.stop().await;
}
