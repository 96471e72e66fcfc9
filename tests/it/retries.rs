//! Jobs that are tried again: the tries that there were, and what is given up.

use super::stage::{Up, cause, docker, engine, id, said, until};
use reqwest::Method;
use serde_json::{Value, json};

/// Fails with 75 until its third try.
const THIRD: &str = "echo this is $JOBCELL_ATTEMPT; exit $((JOBCELL_ATTEMPT < 3 ? 75 : 0))";

fn spec(script: &str, retry: &Value) -> Value {
    json!({"preset": "bash", "script": script, "retry": retry, "resources": {"cpu": 0.5, "memory": "64MiB"}})
}

async fn output(up: &Up, job: &Value, query: &str) -> (String, String) {
    let path = format!("/v1/jobs/{}/logs?{query}", id(job));
    let response = up.call(Method::GET, &path, None).await;
    let end = response.headers()["jobcell-log-end"].to_str().expect("text").to_owned();
    (response.text().await.expect("text"), end)
}

#[tokio::test]
async fn a_job_that_fails_is_tried_again_and_the_output_of_each_try_is_kept() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let retry = json!({"failure": 5, "backoff": "200ms", "exit_codes": [75]});
    let job = up.run(&spec(THIRD, &retry)).await;
    assert_eq!(
        (cause(&job), &job["ending"]["process_exit_code"], &job["attempt"]),
        ("exit_code", &json!(0), &json!(3))
    );
    assert_eq!((&job["dead_letter"], &job["next_try"], &job["given_up"]), (&json!(false), &Value::Null, &Value::Null));
    let past: Vec<(&Value, &Value)> = job["past_tries"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| (&one["attempt"], &one["cause"]["exit_code"]))
        .collect();
    assert_eq!(past, [(&json!(1), &json!(75)), (&json!(2), &json!(75))]);
    for attempt in 1..=3 {
        let one = output(&up, &job, &format!("stream=stdout&attempt={attempt}&max_bytes=1000000")).await;
        assert_eq!(one.0, format!("this is {attempt}\n"));
        // What an earlier try's log holds in all is known when there is nothing behind it.
        let (rest, end) = output(&up, &job, &format!("attempt={attempt}&from=1000")).await;
        assert_eq!((rest.as_str(), end.as_str()), ("", "true"));
    }
    // Another code is the job's last word.
    let job = up.run(&spec("exit 3", &retry)).await;
    assert_eq!((&job["ending"]["process_exit_code"], &job["attempt"]), (&json!(3), &json!(1)));
    assert_eq!(job["dead_letter"], false);
    // Who follows sees each try.
    let file = up.dir.path().join("job.json");
    std::fs::write(&file, spec(THIRD, &retry).to_string()).expect("writes");
    let (code, out, err) = said(&up.command(&["job", "submit", file.to_str().expect("a path"), "--follow"]).await);
    assert_eq!((code, out.as_str()), (0, "this is 1\nthis is 2\nthis is 3\n"), "{err}");
    assert!(err.contains("try of attempt 2 ended: exited with code 75; it is tried again"), "{err}");
    up.stop().await;
}

#[tokio::test]
async fn a_cell_that_is_killed_is_replaced_and_a_job_whose_cells_all_are_is_given_up() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "queue: {max_attempts: 2}").await;
    let script = "echo begun $JOBCELL_ATTEMPT; if ((JOBCELL_ATTEMPT == 1)); then sleep 600; fi";
    let job = up.submit(&spec(script, &json!({"backoff": "3s"}))).await;
    until("output", || async { (up.text(&job, "stdout").await == "begun 1\n").then_some(()) }).await;
    docker(&host, &["kill", &up.containers()[0]]);
    let path = format!("/v1/jobs/{}", id(&job));
    let waits =
        until("the wait", || async { Some(up.get(&path).await).filter(|job| !job["next_try"].is_null()) }).await;
    assert_eq!((&waits["phase"], &waits["next_try"]["cause"]), (&json!("queued"), &json!("cell_lost")));
    let told = up.get(&format!("{path}/explain")).await;
    assert!(told["reason"].as_str().expect("a text").ends_with("for try 2 of 2: cell_lost"), "{told}");
    let job = up.ended(&job).await;
    assert_eq!(
        (cause(&job), &job["attempt"], up.text(&job, "stdout").await.as_str()),
        ("exit_code", &json!(2), "begun 2\n")
    );

    let job = up.submit(&spec("echo begun; sleep 600", &json!({"backoff": "100ms"}))).await;
    for attempt in 1..=2 {
        let running = || async {
            let job = up.get(&format!("/v1/jobs/{}", id(&job))).await;
            (job["attempt"] == attempt && job["phase"] == "running")
                .then(|| up.containers())
                .filter(|all| all.len() == 1)
        };
        docker(&host, &["kill", &until("the try", running).await[0]]);
    }
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), &job["dead_letter"]), ("cell_lost", &json!(true)));
    assert_eq!(job["given_up"], json!({"reason": "the last of 2 tries ended with cell_lost", "replayed_by": null}));
    up.stop().await;
}

#[tokio::test]
async fn dead_letters_are_listed_and_replayed_once() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let given_up = async |team: &str| {
        let mut spec = spec("exit 5", &json!({"failure": 1, "backoff": "0s"}));
        spec["labels"] = json!({ "team": team });
        spec["idempotency_key"] = json!(format!("key of {team}"));
        let job = up.run(&spec).await;
        assert_eq!((&job["dead_letter"], &job["attempt"]), (&json!(true), &json!(2)), "{job}");
        job
    };
    let (blue, red) = (given_up("blue").await, given_up("red").await);
    let plain = up.bash("exit 5").await;
    let listed = async |query: &str| {
        let list = up.get(&format!("/v1/jobs?{query}")).await;
        list["jobs"].as_array().expect("a list").iter().map(|job| id(job).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(listed("dead_letter=true").await, [id(&red), id(&blue)]);
    assert_eq!(listed(&format!("dead_letter=true&before={}", id(&red))).await, [id(&blue)]);
    assert_eq!(listed("dead_letter=true&label=team%3Dblue&verdict=failed").await, [id(&blue)]);
    assert_eq!(listed("dead_letter=false").await, [id(&plain)]);
    let (_, metrics) = up.plain("/metrics").await.expect("answers");
    assert!(metrics.lines().any(|line| line == "jobcell_jobs_dead_letters 2"), "{metrics}");
    assert_eq!(up.get("/v1/stats/daily?days=1").await["dead_letters"], 2);

    let replay = async |body: Value| -> Value {
        let response = up.call(Method::POST, "/v1/jobs/replay", Some(&body)).await;
        assert!(response.status().is_success(), "{body}");
        response.json().await.expect("JSON")
    };
    let unknown = "01890000-0000-7000-8000-000000000000";
    let answer = replay(json!({"ids": [id(&blue), id(&plain), unknown]})).await;
    assert_eq!((&answer["not_dead"]["ids"], &answer["unknown"]["ids"]), (&json!([id(&plain)]), &json!([unknown])));
    let new = answer["replayed"][0]["replayed_by"].as_str().expect("an id").to_owned();
    // Asked again, it names the same one.
    let answer = replay(json!({"ids": [id(&blue)]})).await;
    assert_eq!(answer["already_replayed"], json!([{"id": id(&blue), "replayed_by": new}]));
    let old = up.get(&format!("/v1/jobs/{}", id(&blue))).await;
    assert_eq!((&old["dead_letter"], &old["given_up"]["replayed_by"]), (&json!(false), &json!(new)));
    let again = up.ended(&json!({"id": new})).await;
    assert_eq!((&again["retry_of"], &again["dead_letter"]), (&json!(id(&blue)), &json!(true)));
    assert_eq!(again["spec"]["idempotency_key"], Value::Null);
    assert_eq!(listed("dead_letter=true").await, [new.as_str(), id(&red)]);

    let answer = replay(json!({"label": "team=red"})).await;
    assert_eq!(answer["replayed"][0]["id"], id(&red));
    assert_eq!(replay(json!({"label": "team=green"})).await["replayed"], json!([]));
    up.ended(&json!({"id": answer["replayed"][0]["replayed_by"]})).await;
    assert_eq!(replay(json!({"all": true})).await["replayed"].as_array().map(Vec::len), Some(2));
    up.stop().await;
}
