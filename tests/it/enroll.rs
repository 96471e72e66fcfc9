//! Join tokens: an agent's way in, once, whatever dies in the middle.

use super::stage::{JOBCELL, PATIENCE, Up, engine, read, said, until};
use reqwest::Client;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use tokio::process::{Child, Command};

fn agent(up: &Up, dir: &Path, name: &str, token: Option<&str>) -> Child {
    std::fs::create_dir_all(dir).expect("is made");
    let log = std::fs::File::create(dir.join("log")).expect("opens");
    let mut agent = Command::new(JOBCELL);
    agent.args(["agent", "--listen", "127.0.0.1:0", "--backend", &up.url, "--data-dir"]).arg(dir);
    agent.env("JOBCELL_AGENT__NAME", name).env("DOCKER_HOST", &up.host).env("JOBCELL_DOCKER__SHARED", "true");
    agent.env("RUST_LOG", "info").env_remove("JOBCELL_AGENT_KEY").env_remove("JOBCELL_JOIN_TOKEN");
    if let Some(token) = token {
        agent.env("JOBCELL_JOIN_TOKEN", token);
    }
    agent.stdin(Stdio::null()).stdout(log.try_clone().expect("clones")).stderr(log).kill_on_drop(true);
    agent.spawn().expect("starts")
}

/// Waits for the end of one that is not let in; what it says.
async fn refused(mut agent: Child, dir: &Path) -> String {
    let ended = tokio::time::timeout(PATIENCE, agent.wait()).await.expect("ends in time").expect("is waited for");
    assert_eq!(ended.code(), Some(78));
    std::fs::read_to_string(dir.join("log")).expect("is there")
}

async fn stop(mut agent: Child) {
    let pid = agent.id().expect("runs").to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().expect("runs").success());
    let ended = tokio::time::timeout(PATIENCE, agent.wait()).await.expect("ends in time").expect("is waited for");
    assert_eq!(ended.code(), Some(0));
}

async fn token(up: &Up, args: &[&str]) -> String {
    let args: Vec<&str> = ["--quiet", "agents", "token", "create"].iter().chain(args).copied().collect();
    let (code, out, err) = said(&up.command(&args).await);
    assert!(code == 0 && out.starts_with("jct_"), "{code} {out} {err}");
    out.trim().to_owned()
}

async fn online(up: &Up, name: &str) {
    until(&format!("{name} online"), || async {
        let list = up.get("/v1/agents").await;
        let agents = list["agents"].as_array().cloned().unwrap_or_default();
        agents.iter().any(|agent| agent["name"] == name && agent["state"] == "online").then_some(())
    })
    .await;
}

fn sha256(key: &str) -> String {
    Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn an_agent_gets_in_once_with_a_token_and_then_with_its_own_key() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let dir = |name: &str| up.dir.path().join(name);
    let first = token(&up, &[]).await;
    let running = agent(&up, &dir("one"), "one", Some(&first));
    online(&up, "one").await;
    let key_file = dir("one").join("agent-main.key");
    let key = read(&key_file).expect("is there");
    assert!(key.starts_with("jca_") && key.len() == 68);
    assert_eq!(std::fs::metadata(&key_file).expect("is there").permissions().mode() & 0o777, 0o600);
    let kept =
        ["agents.json", "join-tokens.json", "audit.jsonl"].map(|name| read(&up.data().join(name)).expect("is there"));
    assert!(kept.iter().all(|text| !text.contains(&key[4..]) && !text.contains(&first[4..])));
    assert!(kept[2].contains("agent.enroll") && kept[2].contains("token.add"), "{}", kept[2]);
    stop(running).await;

    // It has what it needs now; another one with the same token hears what became of it.
    let running = agent(&up, &dir("one"), "one", None);
    online(&up, "one").await;
    let log = refused(agent(&up, &dir("two"), "two", Some(&first)), &dir("two")).await;
    assert!(log.contains("the join token was used at") && log.contains("by the agent `one`"), "{log}");
    // A token of nobody takes no name that is given, and is as good as before for another.
    let second = token(&up, &["--expires-in", "2h"]).await;
    let log = refused(agent(&up, &dir("three"), "one", Some(&second)), &dir("three")).await;
    assert!(log.contains("has a key already"), "{log}");
    let three = agent(&up, &dir("three"), "three", Some(&second));
    online(&up, "three").await;
    let (code, out, _) = said(&up.command(&["agents", "token", "ls"]).await);
    assert!(code == 0 && out.contains("USED BY") && out.contains("three") && !out.contains("jct_"), "{out}");
    stop(three).await;

    // By the operator's word another host comes in the place of the first, whose key opens nothing any more.
    let again = token(&up, &["one"]).await;
    stop(running).await;
    let anew = agent(&up, &dir("four"), "whatever", Some(&again));
    until("the new key", || async { read(&dir("four").join("agent-main.key")) }).await;
    let asked =
        Client::new().get(format!("{}/v1/agent/stream", up.url)).bearer_auth(&key).send().await.expect("answers");
    assert_eq!(asked.status().as_u16(), 401);
    online(&up, "one").await;
    stop(anew).await;
    up.stop().await;
}

#[tokio::test]
async fn whoever_dies_between_the_exchange_and_the_answer_gets_in_all_the_same() {
    let Some(host) = engine() else { return };
    let mut up = Up::start(&host, "").await;
    let dir = up.dir.path().join("late");
    std::fs::create_dir_all(&dir).expect("is made");
    let join = token(&up, &["late"]).await;
    // As a process leaves it that was killed when the server had answered.
    let key = format!("jca_{}", "7".repeat(64));
    std::fs::write(dir.join("agent-main.key.new"), &key).expect("writes");
    let body = json!({"token": join, "name": "x", "key_sha256": sha256(&key)});
    let enroll = async |url: &str, body: &Value| {
        let sent = Client::new().post(format!("{url}/v1/agent/enroll")).json(body).send().await.expect("answers");
        (sent.status().as_u16(), sent.json::<Value>().await.expect("is JSON"))
    };
    assert_eq!(enroll(&up.url, &body).await, (200, json!({"agent": "late"})));
    // The server, too, forgets nothing of it.
    up.crash().await;
    let running = agent(&up, &dir, "x", Some(&join));
    online(&up, "late").await;
    assert_eq!(read(&dir.join("agent-main.key")).as_deref(), Some(key.as_str()));
    stop(running).await;
    // Whose key is taken away does not come back with the token of then.
    assert_eq!(said(&up.command(&["agents", "remove", "late"]).await).0, 0);
    let (status, problem) = enroll(&up.url, &body).await;
    assert!(
        status == 401 && problem["detail"].as_str().is_some_and(|said| said.contains("not this installation's")),
        "{problem}"
    );
    // Too late.
    let brief = token(&up, &["--expires-in", "1ms"]).await;
    let (status, problem) = enroll(&up.url, &json!({"token": brief, "name": "y", "key_sha256": sha256("y")})).await;
    assert!(
        status == 401 && problem["detail"].as_str().is_some_and(|said| said.contains("is over since")),
        "{problem}"
    );
    let (status, _) = enroll(&up.url, &json!({"token": brief, "name": "y", "key_sha256": "secret"})).await;
    assert_eq!(status, 400);
    // Only who looks after the installation makes them.
    let made = up.call(reqwest::Method::POST, "/v1/keys", Some(&json!({"name": "ci", "role": "submit"}))).await;
    let ci = made.json::<Value>().await.expect("JSON")["key"].as_str().expect("a key").to_owned();
    for method in [reqwest::Method::GET, reqwest::Method::POST] {
        let asked = Client::new().request(method, format!("{}/v1/agent-tokens", up.url)).bearer_auth(&ci).send().await;
        assert_eq!(asked.expect("answers").status().as_u16(), 403);
    }
    up.stop().await;
}
