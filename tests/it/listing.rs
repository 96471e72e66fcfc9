//! Lists and what is done to many jobs at once.

use super::stage::{Up, engine, id};
use reqwest::Method;
use serde_json::{Value, json};

/// Ids of the jobs that a query finds.
async fn found(up: &Up, query: &str) -> Vec<String> {
    let list = up.get(&format!("/v1/jobs{query}")).await;
    let jobs = list["jobs"].as_array().unwrap_or_else(|| panic!("{query}: {list}"));
    jobs.iter().map(|job| id(job).to_owned()).collect()
}

#[tokio::test]
async fn lists_are_narrowed_by_state_verdict_label_time_and_text() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "agent: {slots: 1}").await;
    let failed = up
        .run(&json!({"preset": "bash", "script": "exit 1", "name": "Nightly Build", "labels": {"team": "blue", "n": "1"}}))
        .await;
    let good = up.run(&json!({"preset": "bash", "script": "true", "labels": {"team": "blue", "n": "2"}})).await;
    let runs = up.submit(&json!({"preset": "bash", "script": "sleep 600", "labels": {"team": "rot-grün"}})).await;
    up.phase(&runs, "running").await;
    let waits = up.submit(&json!({"preset": "bash", "script": "true"})).await;
    let [failed, good, running, waiting] = [&failed, &good, &runs, &waits].map(|job| id(job).to_owned());
    let submitted = |job: &Value| job["submitted_at"].as_u64().expect("a moment");
    let (since, until) = (submitted(&runs), submitted(&waits));
    let all = [&waiting, &running, &good, &failed].map(String::clone);
    for (query, wanted) in [
        (String::new(), &all[..]),
        ("?state=queued,running".into(), &all[..2]),
        ("?phase=ended".into(), &all[2..]),
        ("?state=queued&state=ended&verdict=failed".into(), &all[3..]),
        ("?label=team=blue".into(), &all[2..]),
        ("?label=team=blue&label=n=1".into(), &all[3..]),
        ("?label=team=blue&label=n=3".into(), &[]),
        (format!("?since={since}"), &all[..2]),
        (format!("?since={since}&until={until}"), &all[1..2]),
        ("?until=2020-01-01T00:00:00Z".into(), &[]),
        ("?since=2020-01-01T00:00:00%2B02:00&limit=3".into(), &all[..3]),
        ("?text=nightly".into(), &all[3..]),
        ("?text=GR%C3%9CN".into(), &all[1..2]),
        (format!("?text={}", &good[24..]), &all[2..3]),
        (format!("?label=team=blue&before={good}"), &all[3..]),
    ] {
        assert_eq!(found(&up, &query).await, wanted, "{query}");
    }
    let lines = up.request(Method::GET, "/v1/jobs?limit=3").header("accept", "application/x-ndjson");
    let lines = lines.send().await.expect("answers");
    assert_eq!(lines.headers()["content-type"], "application/x-ndjson");
    assert_eq!(lines.headers()["jobcell-next-before"], good.as_str());
    let lines = lines.text().await.expect("reads");
    let jobs: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(jobs.iter().map(id).collect::<Vec<_>>(), all[..3]);
    assert!(jobs[0]["spec"].is_null() && jobs[0]["history"].is_null() && jobs[2]["ending"]["verdict"] == "succeeded");

    let bad = up.call(Method::GET, "/v1/jobs?verdict=bad&since=now&label=x", None).await;
    assert_eq!(bad.status().as_u16(), 400);
    let bad: Value = bad.json().await.expect("JSON");
    let paths: Vec<_> = bad["problems"].as_array().expect("problems").iter().map(|one| one["path"].clone()).collect();
    assert_eq!(
        (bad["code"].as_str(), paths),
        (Some("bad_query"), vec!["verdict".into(), "since".into(), "label".into()])
    );
    for job in [&waits, &runs] {
        up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(job)), None).await;
        up.ended(job).await;
    }
    up.stop().await;
}
