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

/// An installation whose one slot is taken by the first job, so that what follows waits.
async fn busy(host: &str, settings: &str) -> (Up, Value) {
    let up = Up::start(host, &format!("agent: {{slots: 1}}\n{settings}")).await;
    let first = up.submit(&json!({"preset": "bash", "script": "sleep 600", "name": "holds the slot"})).await;
    up.phase(&first, "running").await;
    (up, first)
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

#[tokio::test]
async fn many_jobs_are_taken_in_together_or_not_at_all() {
    let Some(host) = engine() else { return };
    let (up, first) = busy(&host, "queue: {max_queued: 4}").await;
    let job = |n: u32| json!({"preset": "bash", "script": "true", "labels": {"n": n}});
    let keyed = |n: u32| json!({"preset": "bash", "script": "true", "labels": {"n": n}, "idempotency_key": "k"});
    let bulk = async |path: &str, body: Value| {
        let response = up.call(Method::POST, path, Some(&body)).await;
        let (status, retry) = (response.status().as_u16(), response.headers().contains_key("retry-after"));
        (status, retry, response.json::<Value>().await.expect("JSON"))
    };

    let (status, _, bad) = bulk("/v1/jobs/bulk", json!([job(0), {"preset": "bash"}, 7, job(1)])).await;
    let paths: Vec<_> = bad["problems"].as_array().expect("problems").iter().map(|one| one["path"].clone()).collect();
    assert_eq!((status, bad["code"].as_str(), paths.len()), (422, Some("bad_spec"), 2), "{bad}");
    assert!(paths.iter().zip(["[1]", "[2]"]).all(|(path, at)| path.as_str().is_some_and(|path| path.starts_with(at))));
    let (status, retry, full) = bulk("/v1/jobs/bulk", json!([job(0), job(1), job(2), job(3), job(4)])).await;
    assert_eq!((status, retry, full["code"].as_str()), (429, true, Some("queue_full")));
    let (status, _, used) = bulk("/v1/jobs/bulk", json!([keyed(0), keyed(1)])).await;
    assert_eq!((status, used["problems"][0]["path"].as_str()), (409, Some("[1].idempotency_key")), "{used}");
    for (body, wanted) in
        [(json!([]), "no job"), (json!({"preset": "bash"}), "is a map"), (json!(vec![1; 1001]), "1000")]
    {
        let (status, _, bad) = bulk("/v1/jobs/bulk", body).await;
        assert_eq!(status, 400);
        assert!(bad["code"] == "bad_body" && bad["detail"].as_str().is_some_and(|text| text.contains(wanted)), "{bad}");
    }
    assert_eq!(found(&up, "").await, [id(&first)], "nothing was created");

    let lines = format!("{}\n\n{}\n{}\n", keyed(1), job(2), keyed(1));
    let lines = up.request(Method::POST, "/v1/jobs/bulk").header("content-type", "application/x-ndjson").body(lines);
    let taken: Value = lines.send().await.expect("answers").json().await.expect("JSON");
    assert_eq!(
        (&taken["created"], &taken["existing"], &taken["refused"]),
        (&2.into(), &1.into(), &0.into()),
        "{taken}"
    );
    let jobs = taken["jobs"].as_array().expect("jobs");
    assert_eq!(jobs[0]["job"]["id"], jobs[2]["job"]["id"]);
    assert_eq!(jobs[1]["job"]["labels"]["n"], "2");
    // One of four places is free after this, and the rest is told apart.
    let mixed = json!([job(3), {"preset": "bash"}, keyed(9), job(4), job(5)]);
    let (status, _, partial) = bulk("/v1/jobs/bulk?partial=true", mixed).await;
    let jobs = partial["jobs"].as_array().expect("jobs");
    let codes: Vec<_> = jobs.iter().map(|one| one["problem"]["code"].as_str().unwrap_or("none")).collect();
    assert_eq!((status, codes), (201, vec!["none", "bad_spec", "key_conflict", "none", "queue_full"]));
    assert_eq!(found(&up, "?state=queued").await.len(), 4);

    let (_, metrics) = up.plain("/metrics").await.expect("answers");
    assert!(metrics.contains("jobcell_jobs_submitted_total 5\n"), "{metrics}");
    let (status, _, bad) = bulk("/v1/jobs/bulk-cancel", json!({"ids": ["x"], "label": "n=1"})).await;
    assert_eq!((status, bad["problems"].as_array().map(Vec::len)), (400, Some(2)), "{bad}");
    let unknown = "01a1fc8c-4c8b-78fb-94fc-32d760d3b15b";
    let (_, _, answer) = bulk("/v1/jobs/bulk-cancel", json!({"label": ["n=1"], "state": "queued"})).await;
    assert_eq!((&answer["ended"]["count"], &answer["more"]), (&1.into(), &false.into()), "{answer}");
    let one = answer["ended"]["ids"][0].as_str().expect("an id").to_owned();
    assert_eq!(one, taken["jobs"][0]["job"]["id"]);
    let (_, _, answer) = bulk("/v1/jobs/bulk-cancel", json!({"ids": [one, unknown, id(&first)]})).await;
    let count = |group: &str| answer[group]["count"].as_u64();
    assert_eq!((count("already_ended"), count("unknown"), count("requested")), (Some(1), Some(1), Some(1)), "{answer}");
    let ended = up.ended(&first).await;
    assert_eq!(ended["ending"]["verdict"], "canceled", "its agent was told");
    let (_, _, answer) =
        bulk("/v1/jobs/bulk-cancel", json!({"state": "queued,claimed,preparing,running,finishing"})).await;
    for group in ["ended", "requested"] {
        for job in answer[group]["ids"].as_array().expect("ids") {
            up.ended(&json!({"id": job})).await;
        }
    }
    up.stop().await;
}

#[tokio::test]
async fn a_job_that_has_ended_can_be_run_again() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let spec =
        json!({"preset": "bash", "script": "echo again; exit 3", "idempotency_key": "once", "labels": {"a": "b"}});
    let old = up.run(&spec).await;
    let again = up.call(Method::POST, &format!("/v1/jobs/{}/retry", id(&old)), None).await;
    assert_eq!(again.status().as_u16(), 201);
    let location = again.headers()["location"].to_str().expect("text").to_owned();
    let again: Value = again.json().await.expect("JSON");
    assert_eq!((location, again["retry_of"].as_str()), (format!("/v1/jobs/{}", id(&again)), Some(id(&old))));
    assert!(old["retry_of"].is_null() && again["spec"]["idempotency_key"].is_null());
    let again = up.ended(&again).await;
    assert_eq!((again["ending"]["process_exit_code"].as_u64(), again["retry_of"].as_str()), (Some(3), Some(id(&old))));
    assert_eq!(again["spec"]["labels"], old["spec"]["labels"]);

    let long = up.submit(&json!({"preset": "bash", "script": "sleep 600"})).await;
    let path = format!("/v1/jobs/{}", id(&long));
    let early = up.call(Method::POST, &format!("{path}/retry"), None).await;
    assert_eq!(early.status().as_u16(), 409);
    assert_eq!(early.json::<Value>().await.expect("JSON")["code"], "not_ended");
    up.call(Method::POST, &format!("{path}/cancel"), None).await;
    up.ended(&long).await;

    let plain = json!({"preset": "bash", "script": "true", "priority": 0});
    let same = json!({"script": "true", "preset": "bash"});
    let one: Value = up.call(Method::POST, "/v1/jobs?dedupe=content", Some(&plain)).await.json().await.expect("JSON");
    let two = up.request(Method::POST, "/v1/jobs").header("jobcell-dedupe", "content").json(&same);
    let two = two.send().await.expect("answers");
    assert_eq!(two.status().as_u16(), 200);
    assert_eq!(two.json::<Value>().await.expect("JSON")["id"], one["id"]);
    for (path, body, status) in
        [("/v1/jobs?dedupe=content", &spec, 422), ("/v1/jobs?dedupe=name", &plain, 400), ("/v1/jobs", &plain, 201)]
    {
        assert_eq!(up.call(Method::POST, path, Some(body)).await.status().as_u16(), status, "{path}");
    }
    for job in found(&up, "?state=queued,claimed,preparing,running,finishing").await {
        up.ended(&json!({"id": job})).await;
    }
    up.stop().await;
}

#[tokio::test]
async fn a_tag_says_whether_a_job_has_changed() {
    let Some(host) = engine() else { return };
    let (up, first) = busy(&host, "").await;
    let waits = up.submit(&json!({"preset": "bash", "script": "true"})).await;
    let path = format!("/v1/jobs/{}", id(&waits));
    let tag = async |path: &str| {
        let answer = up.call(Method::GET, path, None).await;
        answer.headers()["etag"].to_str().expect("text").to_owned()
    };
    let send = async |method: Method, path: &str, header: &str, tag: &str| {
        let answer = up.request(method, path).header(header, tag).send().await.expect("answers");
        (answer.status().as_u16(), answer.text().await.expect("reads"))
    };
    let seen = tag(&path).await;
    assert_eq!(send(Method::GET, &path, "if-none-match", &seen).await, (304, String::new()));
    assert_eq!(send(Method::GET, &path, "if-none-match", "\"0-0\"").await.0, 200);
    let cancel = format!("{path}/cancel");
    let (status, text) = send(Method::POST, &cancel, "if-match", "\"99-0\"").await;
    assert!(status == 412 && text.contains("precondition_failed"), "{text}");
    assert_eq!(up.get(&path).await["phase"], "queued", "nothing was done");
    assert_eq!(send(Method::POST, &cancel, "if-match", &seen).await.0, 200);
    assert_eq!(send(Method::GET, &path, "if-none-match", &seen).await.0, 200, "it has changed");
    assert_eq!(send(Method::POST, &cancel, "if-match", &seen).await.0, 412);
    // It never ran: there is no output, and none of it is missing.
    let over = up.get(&path).await;
    assert_eq!(
        (&over["ending"]["message"], &over["log"]["complete"]),
        (&json!("canceled before it started"), &json!(true))
    );

    // A cancel that was asked for is a change; asking again is none.
    let path = format!("/v1/jobs/{}", id(&first));
    let cancel = format!("{path}/cancel");
    let running = tag(&path).await;
    assert_eq!(send(Method::POST, &cancel, "if-match", &format!("\"1-0\", {running}")).await.0, 202);
    let ended = up.ended(&first).await;
    assert!(ended["revision"].as_u64() > Some(4), "{}", ended["revision"]);
    assert_eq!(send(Method::POST, &cancel, "if-match", "*").await.0, 200);
    up.stop().await;
}

#[tokio::test]
async fn a_report_and_the_days_tell_what_happened() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let script = "seq 1 60; printf 'bad\\033[2J\\n' >&2; sleep 0.2; printf 'no end'; exit 7";
    let job =
        up.run(&json!({"preset": "bash", "script": script, "name": "a report", "labels": {"team": "blue"}})).await;
    let path = format!("/v1/jobs/{}/report", id(&job));
    let page = up.call(Method::GET, &path, None).await;
    assert_eq!(page.headers()["content-type"], "text/plain; charset=utf-8");
    let page = page.text().await.expect("reads");
    for part in [
        id(&job),
        "a report",
        "team=blue",
        "preset bash: script of a line: seq 1 60",
        "failed: exited with code 7",
        "cap_eff 0000000000000000",
        "allowed: socket_inet, sysv_shm",
        "last 50 lines of output",
        "\n   60\n",
        "! bad\\u{1b}[2J\n",
        "\n   no end\n",
    ] {
        assert!(page.contains(part), "{part:?} is not in {page}");
    }
    assert!(!page.contains('\u{1b}') && !page.contains("\n   12\n"), "{page}");
    let report = up.get(&format!("{path}?format=json")).await;
    assert_eq!(report["last_lines"].as_array().map(Vec::len), Some(50));
    assert_eq!(report["ending"], job["ending"]);
    let phases = report["phases"].as_array().expect("phases");
    assert_eq!(phases.len(), 5);
    assert!(phases[3]["phase"] == "running" && phases[3]["for_ms"].as_u64() >= Some(200), "{report}");
    assert!(phases[4]["for_ms"].is_null());

    let long = up.submit(&json!({"preset": "bash", "script": "echo so far; sleep 600"})).await;
    up.phase(&long, "running").await;
    let path = format!("/v1/jobs/{}/report", id(&long));
    super::stage::until("a line in the report of a job that runs", || async {
        let page = up.call(Method::GET, &path, None).await.text().await.expect("reads");
        (page.contains("running, not ended yet") && page.contains("so far")).then_some(())
    })
    .await;
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&long)), None).await;
    up.ended(&long).await;
    let empty = up.call(Method::GET, &format!("{path}?format=pdf"), None).await;
    assert_eq!(empty.status().as_u16(), 400);

    let days = up.get("/v1/stats/daily?days=2").await;
    assert_eq!((&days["now"]["ended"], &days["now"]["queued"]), (&2.into(), &0.into()));
    let days = days["days"].as_array().expect("days");
    // Around midnight the two jobs may lie on two days.
    let sum = |of: &dyn Fn(&Value) -> Option<u64>| days.iter().filter_map(of).sum::<u64>();
    assert_eq!((days.len(), sum(&|day| day["submitted"].as_u64())), (2, 2));
    assert_eq!(sum(&|day| day["ended"]["failed"].as_u64()), 1);
    assert_eq!(sum(&|day| day["ended"]["canceled"].as_u64()), 1);
    assert!(days.iter().filter_map(|day| day["run_seconds"].as_f64()).sum::<f64>() > 0.2, "{days:?}");
    assert_eq!(up.call(Method::GET, "/v1/stats/daily?days=0", None).await.status().as_u16(), 400);
    up.stop().await;
}
