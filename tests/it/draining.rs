//! An operator drains agents, and lets them go on: the one of `up`, and one elsewhere; over restarts of both sides.

use super::recovery::Pair;
use super::stage::{Up, cause, engine, id, said, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A job that ends when its cell is told to: by a cancel.
const LONG: &str = "echo begun; read -r x < <(sleep 600)";

async fn healthz(up: &Up) -> (u16, Value) {
    let (status, body) = up.plain("/healthz").await.expect("answers");
    (status, serde_json::from_str(&body).expect("is JSON"))
}

async fn json_of(up: &Up, args: &[&str]) -> (i32, Value) {
    let (code, out, err) = said(&up.command(&[args, &["-o", "json"]].concat()).await);
    (code, serde_json::from_str(&out).unwrap_or_else(|_| panic!("{args:?}: {code} {out}{err}")))
}

#[tokio::test]
async fn ups_own_agent_is_drained_until_it_is_resumed_also_over_its_death() {
    let Some(host) = engine() else { return };
    let mut up = Up::start(&host, "agent: {name: here, slots: 2, cpu: 2, memory: 4GiB}\n").await;
    let runs = up.submit(&json!({"preset": "bash", "script": LONG})).await;
    up.phase(&runs, "running").await;
    let (code, answer) = json_of(&up, &["drain", "--reason", "a new kernel"]).await;
    assert_eq!((code, &answer["name"], &answer["drained"]["held"]), (0, &json!("here"), &json!(1)), "{answer}");
    let since = answer["drained"]["since"].clone();
    // Asking again changes nothing.
    let (code, out, _) = said(&up.command(&["drain", "here"]).await);
    assert_eq!((code, out.as_str()), (0, "here is drained; 1 job goes on there\n"));
    let waits = up.submit(&json!({"preset": "bash", "script": "echo later"})).await;

    for life in 0..2 {
        let list = json_of(&up, &["agents", "list"]).await.1;
        assert_eq!(list["agents"][0]["state"], "drained", "{list}");
        assert_eq!(list["drained"]["here"], json!({"reason": "a new kernel", "since": since, "held": 1}), "{list}");
        let (_, table, _) = said(&up.command(&["agents", "list"]).await);
        assert!(table.contains("drained: a new kernel"), "{table}");
        let explained = up.get(&format!("/v1/jobs/{}/explain", id(&waits))).await;
        assert_eq!(explained["code"], "agents_away", "{explained}");
        assert!(explained["reason"].as_str().expect("text").contains("drained by an operator: a new kernel"));
        // It is well: whoever watches the server is not alarmed.
        let told = json!({"state": "drained", "reason": "drained by an operator: a new kernel"});
        until("its health", || async { (healthz(&up).await.1["components"]["agent"] == told).then_some(()) }).await;
        until("readiness", || async { up.plain("/readyz").await.filter(|(status, _)| *status == 200) }).await;
        assert_eq!(healthz(&up).await.0, 200);
        let (_, metrics) = up.plain("/metrics").await.expect("answers");
        assert!(metrics.lines().any(|line| line == "jobcell_takes_jobs 0"), "{metrics}");
        if life == 0 {
            up.crash().await;
            until("its agent", || async {
                let list = up.get("/v1/agents").await;
                (list["agents"][0]["load"]["held"] == 1 && list["agents"][0]["load"]["drained"] == true).then_some(())
            })
            .await;
        }
    }
    let log = up.log();
    for line in ["an operator drained an agent", "the backend hands no jobs to this agent", "this agent is drained"] {
        assert!(log.contains(line), "{line}: {log}");
    }

    let began = Instant::now();
    let (code, out, err) = said(&up.command(&["drain", "--wait", "--timeout", "2s"]).await);
    assert_eq!((code, out.as_str()), (124, "here is drained; 1 job goes on there\n"), "{err}");
    assert!(began.elapsed() >= Duration::from_millis(1400), "{err}");
    let waiting = up.spawn(&["drain", "--wait", "--reason", "two kernels"]);
    until("the new reason", || async {
        (up.get("/v1/agents").await["drained"]["here"]["reason"] == "two kernels").then_some(())
    })
    .await;
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&runs)), None).await;
    assert_eq!(cause(&up.ended(&runs).await), "canceled");
    let (code, out, err) = said(&waiting.wait_with_output().await.expect("ends"));
    assert_eq!((code, out.as_str()), (0, "here is drained and has no jobs\n"), "{err}");
    assert!(err.contains("waiting for the end of 1 of its jobs"), "{err}");
    assert_eq!(up.get(&format!("/v1/jobs/{}", id(&waits))).await["phase"], "queued");

    for _ in 0..2 {
        let (code, out, err) = said(&up.command(&["resume"]).await);
        assert_eq!((code, out.as_str()), (0, "here gets jobs\n"), "{err}");
    }
    assert_eq!(up.text(&up.ended(&waits).await, "stdout").await, "later\n");
    assert_eq!(up.get("/v1/agents").await["drained"], json!({}));
    until("its health", || async {
        (healthz(&up).await.1["components"]["agent"] == json!({"state": "ok"})).then_some(())
    })
    .await;
    assert!(up.log().contains("the backend hands jobs to this agent again"), "{}", up.log());
    up.stop().await;
}

#[tokio::test]
async fn what_is_asked_wrongly_is_refused_and_an_agent_that_was_never_seen_can_be_drained() {
    let Some(host) = engine() else { return };
    let mut up = Up::start(&host, "agent: {name: here}\n").await;
    let call = async |up: &Up, path: &str, body: Option<Value>| {
        let answer = up.call(Method::POST, &format!("/v1/agents/{path}"), body.as_ref()).await;
        let status = answer.status().as_u16();
        (status, answer.json::<Value>().await.expect("is JSON"))
    };
    for path in ["nobody/drain", "nobody/resume", "%1b%5b2J/drain"] {
        let (status, problem) = call(&up, path, Some(json!({}))).await;
        assert_eq!((status, problem["code"].as_str()), (404, Some("agent_not_found")), "{problem}");
        assert!(!problem["detail"].as_str().expect("text").contains('\u{1b}'), "{problem}");
    }
    for (body, wanted) in [
        (json!({"reason": "x".repeat(401)}), "reason: it has 401 characters; use at most 400"),
        (json!({"reason": "a\nb"}), "reason: it has control characters"),
        (json!({"reasons": "a"}), "unknown field"),
        (json!("a"), "expected struct"),
    ] {
        let (status, problem) = call(&up, "here/drain", Some(body)).await;
        assert_eq!((status, problem["code"].as_str()), (400, Some("bad_body")), "{problem}");
        assert!(problem["detail"].as_str().expect("text").contains(wanted), "{problem}");
    }
    assert_eq!(up.get("/v1/agents").await["drained"], json!({}), "nothing was done");
    // Without a body, and twice.
    for _ in 0..2 {
        let (status, answer) = call(&up, "here/drain", None).await;
        assert_eq!((status, answer["drained"]["reason"].as_str()), (200, Some("")), "{answer}");
    }
    let (status, answer) = call(&up, "here/resume", None).await;
    assert_eq!((status, answer), (200, json!({"name": "here", "drained": null})));

    // One that has a key and has not come yet.
    assert_eq!(said(&up.command(&["agents", "add", "later"]).await).0, 0);
    let (code, _, err) = said(&up.command(&["drain"]).await);
    assert!(code == 2 && err.contains("which agent? there are 2: here, later"), "{code} {err}");
    assert_eq!(said(&up.command(&["drain", "later", "--timeout", "1s"]).await).0, 2, "--timeout needs --wait");
    assert_eq!(said(&up.command(&["drain", "later", "--wait", "--reason", "not yet"]).await).0, 0);
    up.crash().await;
    let (_, table, _) = said(&up.command(&["agents", "list"]).await);
    assert!(table.contains("never seen; drained: not yet"), "{table}");
    // With its key goes what was said of it.
    assert_eq!(said(&up.command(&["agents", "remove", "later"]).await).0, 0);
    assert_eq!(said(&up.command(&["agents", "add", "later"]).await).0, 0);
    assert_eq!(up.get("/v1/agents").await["drained"], json!({}));
    let (code, _, err) = said(&up.command(&["resume", "nobody"]).await);
    assert!(code == 1 && err.contains("no agent is called `nobody`"), "{code} {err}");
    up.stop().await;
}

#[tokio::test]
async fn an_agent_elsewhere_is_told_and_stays_drained_when_it_or_its_server_is_started_again() {
    let Some(host) = engine() else { return };
    let mut pair = Pair::start_with(&host, "agent: {slots: 2, cpu: 2, memory: 4GiB}\n").await;
    let runs = pair.submit(LONG).await;
    let running = async |pair: &Pair| pair.job(&runs).await["phase"] == "running";
    until("it runs", || async { running(&pair).await.then_some(()) }).await;
    pair.cli(&["drain", "one", "--reason", "moving house"]).await;
    let waits = pair.submit("echo later").await;
    let list = async |pair: &Pair| serde_json::from_str::<Value>(&pair.cli(&["agents", "list", "-o", "json"]).await);
    // It says itself that it has heard it, and what it still has.
    let knows = async |pair: &Pair| {
        let list = list(pair).await.expect("is JSON");
        let agent = &list["agents"][0];
        (agent["state"] == "drained" && agent["load"]["drained"] == true && agent["load"]["held"] == 1).then_some(())
    };
    until("it knows", || knows(&pair)).await;
    pair.kill_server().await;
    pair.revive_server().await;
    until("it knows it from the new server", || knows(&pair)).await;
    pair.kill_agent().await;
    pair.revive_agent();
    until("the new one knows it", || knows(&pair)).await;
    assert!(pair.log_of("one").contains("drained by an operator: moving house"), "{}", pair.log_of("one"));
    assert!(running(&pair).await, "{}", pair.log_of("one"));
    assert_eq!(pair.job(&waits).await["phase"], "queued");
    pair.cli(&["job", "cancel", &runs]).await;
    pair.cli(&["drain", "one", "--wait"]).await;
    assert_eq!(pair.job(&waits).await["phase"], "queued");
    pair.cli(&["resume", "one"]).await;
    until("the job that waited", || async { (pair.job(&waits).await["phase"] == "ended").then_some(()) }).await;
    assert_eq!(pair.log(&waits).await, "later\n");
    until("it knows that it is over", || async {
        let list = list(&pair).await.expect("is JSON");
        (list["agents"][0]["state"] == "online" && list["agents"][0]["load"]["drained"].is_null()).then_some(())
    })
    .await;
    pair.stop().await;
}

#[tokio::test]
async fn an_installation_that_is_stopping_takes_no_more_jobs_and_answers_for_those_that_it_has() {
    let Some(host) = engine() else { return };
    let mut up = Up::start(&host, "").await;
    // Who waits for a job that was taken in before gets its code.
    let ends = up.submit(&json!({"preset": "bash", "script": "sleep 0.3; exit 7"})).await;
    let (code, out, err) = said(&up.command(&["job", "wait", id(&ends)]).await);
    assert_eq!((code, out.trim()), (7, id(&ends)), "{err}");
    let runs = up.submit(&json!({"preset": "bash", "script": LONG})).await;
    up.phase(&runs, "running").await;
    let (code, _, err) = said(&up.command(&["job", "wait", id(&runs), "--timeout", "100ms"]).await);
    assert!(code == 124 && err.contains("gave up waiting"), "{code} {err}");
    up.signal("-TERM");
    let quick = json!({"preset": "bash", "script": "true"});
    let refused = until("the word that it stops", || async {
        let answer = up.call(Method::POST, "/v1/jobs", Some(&quick)).await;
        (answer.status().as_u16() == 503).then_some(answer)
    })
    .await;
    assert!(refused.headers().contains_key("retry-after"));
    let problem = refused.json::<Value>().await.expect("JSON");
    assert_eq!(problem["code"], "unavailable");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("is stopping")), "{problem}");
    let bulk = up.call(Method::POST, "/v1/jobs/bulk", Some(&json!([quick]))).await;
    assert_eq!(bulk.status().as_u16(), 503);
    let cancel = up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&runs)), None).await;
    assert_eq!(cancel.status().as_u16(), 202);
    assert_eq!(up.exit_code().await, Some(0), "{}", up.log());
}
