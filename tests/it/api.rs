//! The API: doors, pages, waits, health, metrics.

use super::stage::{Up, cause, engine, id};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[tokio::test]
async fn without_the_key_nothing_but_health_and_metrics_opens() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    for path in ["/v1/jobs", "/v1/jobs/x", "/v1/jobs/x/logs"] {
        let (status, body) = up.plain(path).await.expect("answers");
        assert_eq!(status, 401, "{path}");
        assert!(body.contains("\"code\":\"unauthorized\"") && !body.contains(&up.key), "{body}");
    }
    for path in ["/livez", "/live", "/readyz", "/ready", "/healthz", "/health", "/metrics"] {
        assert_eq!(up.plain(path).await.expect("answers").0, 200, "{path}");
    }
    assert!(
        !up.log().contains(&up.key) && up.log().contains("admin.key"),
        "it is said where the key is, and not to a log what it is"
    );
    up.stop().await;
}

#[tokio::test]
async fn a_queue_that_cannot_be_read_is_not_ready_and_says_why() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let db = rusqlite::Connection::open(up.data().join("queue.db")).expect("opens");
    db.execute_batch("ALTER TABLE counts RENAME TO gone").expect("renames");
    assert_eq!(up.plain("/readyz").await.expect("answers").0, 503);
    let (status, body) = up.plain("/healthz").await.expect("answers");
    let health: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, health["components"]["queue"]["state"].as_str()), (503, Some("down")), "{body}");
    assert!(health["components"]["queue"]["reason"].as_str().is_some_and(|reason| reason.contains("counts")), "{body}");
    assert_eq!(health["components"]["engine"]["state"], "ok");
    db.execute_batch("ALTER TABLE gone RENAME TO counts").expect("renames");
    assert_eq!(up.plain("/readyz").await.expect("answers").0, 200);
    up.stop().await;
}

#[tokio::test]
async fn errors_are_problem_documents_with_stable_codes() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    for (method, path, status, code) in [
        (Method::GET, "/v1/jobs/not-an-id", 400, "bad_id"),
        (Method::GET, "/v1/jobs/01a1fc8c-4c8b-78fb-94fc-32d760d3b15b", 404, "job_not_found"),
        (Method::POST, "/v1/jobs/01a1fc8c-4c8b-78fb-94fc-32d760d3b15b/cancel", 404, "job_not_found"),
        (Method::GET, "/v1/jobs?limit=0", 400, "bad_query"),
        (Method::GET, "/v1/jobs?phase=asleep", 400, "bad_query"),
        (Method::GET, "/v1/jobs?unknown=1", 400, "bad_query"),
        (Method::GET, "/v1/nothing", 404, "no_route"),
        (Method::DELETE, "/v1/jobs", 405, "no_method"),
    ] {
        let response = up.call(method, path, None).await;
        assert_eq!(
            (response.status().as_u16(), response.headers()["content-type"].to_str().ok()),
            (status, Some("application/problem+json")),
            "{path}"
        );
        let document: Value = response.json().await.expect("JSON");
        assert_eq!(
            (document["code"].as_str(), document["type"].as_str()),
            (Some(code), Some(&*format!("urn:jobcell:error:{code}"))),
            "{path}"
        );
    }
    let twice =
        up.request(Method::POST, "/v1/jobs").body("{\"preset\": \"bash\", \"preset\": \"python\", \"script\": \"x\"}");
    let document: Value = twice.send().await.expect("answers").json().await.expect("JSON");
    assert!(document.to_string().contains("given twice"), "{document}");
    up.stop().await;
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "queue: {max_queued: 1}\nagent: {slots: 1}").await;
    let first = up.submit(&json!({"preset": "bash", "script": "sleep 600"})).await;
    up.phase(&first, "claimed").await;
    let second = up.submit(&json!({"preset": "bash", "script": "true"})).await;
    let third = up.call(Method::POST, "/v1/jobs", Some(&json!({"preset": "bash", "script": "true"}))).await;
    assert_eq!((third.status().as_u16(), third.headers()["retry-after"].to_str().ok()), (429, Some("5")));
    for job in [&second, &first] {
        up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(job)), None).await;
        up.ended(job).await;
    }
    up.stop().await;
}

#[tokio::test]
async fn a_submit_can_wait_and_pages_can_be_turned() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let yaml = up.request(Method::POST, "/v1/jobs?wait=30s").header("content-type", "application/yaml");
    let job: Value = yaml
        .body("preset: bash\nscript: exit 4\nname: yaml")
        .send()
        .await
        .expect("answers")
        .json()
        .await
        .expect("JSON");
    assert_eq!((cause(&job), job["ending"]["process_exit_code"].as_u64()), ("exit_code", Some(4)));
    let phases: Vec<_> =
        job["history"].as_array().expect("a history").iter().map(|event| event["phase"].clone()).collect();
    assert_eq!(phases, ["queued", "claimed", "preparing", "running", "ended"]);
    let asked = Instant::now();
    let long =
        up.call(Method::POST, "/v1/jobs?wait=300ms", Some(&json!({"preset": "bash", "script": "sleep 600"}))).await;
    let long: Value = long.json().await.expect("JSON");
    assert!(long["ending"].is_null() && asked.elapsed() < Duration::from_secs(20));
    let first = up.get("/v1/jobs?limit=1").await;
    assert_eq!((first["jobs"][0]["id"].as_str(), first["next"].as_str()), (Some(id(&long)), Some(id(&long))));
    let second = up.get(&format!("/v1/jobs?limit=1&before={}", id(&long))).await;
    assert_eq!((second["jobs"][0]["id"].as_str(), second["next"].is_null()), (Some(id(&job)), true));
    assert_eq!(up.get("/v1/jobs?phase=ended").await["jobs"].as_array().map(Vec::len), Some(1));
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&long)), None).await;
    up.ended(&long).await;
    let (_, metrics) = up.plain("/metrics").await.expect("answers");
    for line in [
        "jobcell_jobs_submitted_total 2",
        "jobcell_jobs_ended_total{verdict=\"failed\"} 1",
        "jobcell_jobs_ended_total{verdict=\"canceled\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in {metrics}");
    }
    up.stop().await;
}
