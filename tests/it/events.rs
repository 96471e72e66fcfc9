//! Output as server-sent events, as lines, and of a time range.

use super::stage::{Up, engine, id, until};
use reqwest::Method;
use serde_json::{Value, json};

/// One event: its id, its name, its data.
type Event = (Option<u64>, String, Value);

/// Reads a stream of events to its end.
async fn events(up: &Up, job: &Value, query: &str, last: Option<u64>) -> Vec<Event> {
    let mut request = up.request(Method::GET, &format!("/v1/jobs/{}/logs/events{query}", id(job)));
    if let Some(last) = last {
        request = request.header("last-event-id", last.to_string());
    }
    let response = request.send().await.expect("answers");
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.expect("reads");
    text.split("\n\n").filter(|part| !part.is_empty() && !part.starts_with(':')).map(event).collect()
}

fn event(text: &str) -> Event {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let data = serde_json::from_str(field("data").expect("data")).expect("JSON");
    (field("id").map(|id| id.parse().expect("a number")), field("event").expect("a name").to_owned(), data)
}

/// What the frames say, one after the other.
fn said<'a>(frames: impl IntoIterator<Item = &'a Value>) -> String {
    frames.into_iter().map(|frame| frame["text"].as_str().expect("text")).collect()
}

#[tokio::test]
async fn events_carry_all_output_and_resume_where_they_were_cut() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "server: {viewers_max: 1}").await;
    let script = "for i in $(seq 20); do echo $i; sleep 0.05; done; echo bad >&2";
    let job = up.submit(&json!({"preset": "bash", "script": script})).await;
    let all = events(&up, &job, "", None).await;
    let (end, frames) = all.split_last().expect("events");
    let numbers: Vec<u64> = frames.iter().map(|(id, ..)| id.expect("a frame has a number")).collect();
    let last = numbers.len() as u64;
    assert_eq!(numbers, (1..=last).collect::<Vec<_>>());
    assert!(frames.iter().all(|(id, name, data)| name == "frame" && data["seq"].as_u64() == *id));
    let text = |stream: &str| said(frames.iter().map(|(.., data)| data).filter(|data| data["stream"] == stream));
    let wanted: String = (1..=20).map(|i| format!("{i}\n")).collect();
    assert_eq!((text("stdout"), text("stderr")), (wanted, "bad\n".to_owned()));
    assert_eq!((end.0, end.1.as_str(), &end.2), (None, "end", &json!({"last_seq": last, "attempt": 1})));
    // The place of a viewer that is gone is free again, so each of these is let in.
    up.ended(&job).await;
    for (query, last_id, rest) in [("?from=3", None, 3), ("?from=1&attempt=1", Some(4), 5), ("", Some(last), last + 1)]
    {
        let again = until("a free place", || async {
            let free = up.plain("/metrics").await?.1.contains("jobcell_viewers 0\n");
            if free { Some(events(&up, &job, query, last_id).await) } else { None }
        })
        .await;
        let first = again.first().and_then(|(id, ..)| *id);
        assert_eq!(first, (rest <= last).then_some(rest), "{query}");
        assert_eq!(again.last().map(|(_, name, _)| name.as_str()), Some("end"));
    }
    let bad = up.request(Method::GET, &format!("/v1/jobs/{}/logs/events", id(&job))).header("last-event-id", "x");
    assert_eq!(bad.send().await.expect("answers").status().as_u16(), 400);
    up.stop().await;
}

#[tokio::test]
async fn viewers_of_either_kind_share_their_places() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "server: {viewers_max: 1}").await;
    let job = up.submit(&json!({"preset": "bash", "script": "echo hello; sleep 600"})).await;
    let path = format!("/v1/jobs/{}/logs/events", id(&job));
    let mut first = up.call(Method::GET, &path, None).await;
    let mut seen = String::new();
    // A viewer may come before the job starts.
    while !seen.contains("hello") {
        seen += std::str::from_utf8(&first.chunk().await.expect("reads").expect("is open")).expect("UTF-8");
    }
    let second = up.call(Method::GET, &path, None).await;
    assert_eq!((second.status().as_u16(), second.headers().contains_key("retry-after")), (503, true));
    let page = up.request(Method::GET, &path).header("origin", "http://evil.example").send().await.expect("answers");
    assert_eq!(page.status().as_u16(), 403);
    drop(first);
    until("the place", || async {
        up.plain("/metrics").await.filter(|(_, text)| text.contains("jobcell_viewers 0\n"))
    })
    .await;
    let again = up.call(Method::GET, &path, None).await;
    assert_eq!(again.status().as_u16(), 200);
    // A viewer does not keep the server from stopping.
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&job)), None).await;
    assert!(again.text().await.expect("reads").contains("event: end"));
    up.ended(&job).await;
    up.stop().await;
}

#[tokio::test]
async fn output_can_be_had_as_lines_and_of_a_time_range() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let job =
        up.bash("echo one; sleep 0.3; echo two; echo bad >&2; sleep 0.3; echo three; sleep 0.2; printf '\\xff'").await;
    let path = format!("/v1/jobs/{}/logs", id(&job));
    let frames = up.get(&format!("{path}?format=json")).await["frames"].as_array().expect("frames").clone();
    let lines = async |query: &str, accept: &str| {
        let answer = up.request(Method::GET, &format!("{path}{query}")).header("accept", accept).send().await;
        let answer = answer.expect("answers");
        assert_eq!(answer.headers()["content-type"], "application/x-ndjson", "{query}");
        assert_eq!(answer.headers()["jobcell-log-end"], "true", "{query}");
        let text = answer.text().await.expect("reads");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect::<Vec<Value>>()
    };
    assert_eq!(lines("?format=ndjson", "*/*").await, frames);
    assert_eq!(lines("", "application/x-ndjson").await, frames);
    assert!(frames.iter().any(|frame| frame["hex"] == "ff"), "{frames:?}");
    let at = |text: &str| {
        let frame = frames.iter().find(|frame| frame["text"].as_str().is_some_and(|one| one.starts_with(text)));
        frame.and_then(|frame| frame["time_us"].as_u64()).expect("a frame")
    };
    // Between the first line and the second, and between the second and the third.
    let (after_one, after_two) = (at("one") / 1000 + 150, at("two") / 1000 + 150);
    let range = format!("since={after_one}&until={after_two}");
    assert_eq!(
        up.call(Method::GET, &format!("{path}?{range}&stream=stdout"), None).await.text().await.ok(),
        Some("two\n".into())
    );
    assert_eq!(said(&lines(&format!("?{range}&stream=stderr&format=ndjson"), "*/*").await), "bad\n");
    let whole = up.get(&format!("{path}?until={after_one}&format=json")).await;
    assert_eq!((said(whole["frames"].as_array().expect("frames")), &whole["end"]), ("one\n".into(), &true.into()));
    let paged = up.get(&format!("{path}?since={after_one}&format=json&max_bytes=1")).await;
    assert_eq!((paged["frames"].as_array().map(Vec::len), &paged["end"]), (Some(1), &false.into()), "{paged}");
    let none = up.get(&format!("{path}?since=2100-01-01T00:00:00Z&format=json")).await;
    assert_eq!((none["frames"].as_array().map(Vec::len), &none["end"]), (Some(0), &true.into()));
    for bad in ["?since=now", "?since=2&until=1", "?format=xml", "?stream=in"] {
        assert_eq!(up.call(Method::GET, &format!("{path}{bad}"), None).await.status().as_u16(), 400, "{bad}");
    }
    up.stop().await;
}
