//! Traces of jobs, as a collector gets them: read with the official definitions of OTLP.

use super::stage::{JOBCELL, Up, cause, engine, id, said, until};
use super::tls::{Authority, before};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Said;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use reqwest::Method;
use serde_json::{Value, json};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(super) const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
pub(super) const CALLER: &str = "00f067aa0ba902b7";

/// How a collector answers.
#[derive(Clone, Copy)]
pub(super) enum Manner {
    Takes,
    Hangs,
    Says(u16),
}

#[derive(Clone)]
struct Got {
    manner: Manner,
    requests: Arc<Mutex<Vec<(HeaderMap, ExportTraceServiceRequest)>>>,
}

/// A collector: its address, and what it got.
pub(super) struct Collector {
    pub(super) url: String,
    got: Got,
}

async fn take(State(got): State<Got>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let request = ExportTraceServiceRequest::decode(body).expect("is a request as OTLP has it");
    got.requests.lock().expect("lives").push((headers, request));
    match got.manner {
        Manner::Takes => StatusCode::OK,
        Manner::Hangs => std::future::pending().await,
        Manner::Says(status) => StatusCode::from_u16(status).expect("is a status"),
    }
}

impl Collector {
    pub(super) async fn start(manner: Manner) -> Self {
        let got = Got { manner, requests: Arc::default() };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("is bound"));
        let app = Router::new().route("/v1/traces", post(take)).with_state(got.clone());
        drop(jobcell::supervise::spawn("collector", async move { axum::serve(listener, app).await }));
        Self { url, got }
    }

    fn settings(&self) -> String {
        format!("telemetry: {{otlp: {{endpoint: \"{}\"}}}}", self.url)
    }

    pub(super) fn requests(&self) -> Vec<(HeaderMap, ExportTraceServiceRequest)> {
        self.got.requests.lock().expect("lives").clone()
    }

    pub(super) fn spans(&self) -> Vec<Span> {
        let all = self.requests().into_iter().flat_map(|(_, request)| request.resource_spans);
        all.flat_map(|of| of.scope_spans).flat_map(|of| of.spans).collect()
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn says(span: &Span, name: &str) -> Option<String> {
    let value = span.attributes.iter().find(|pair| pair.key == name)?.value.clone()?.value?;
    Some(match value {
        Said::StringValue(text) => text,
        Said::IntValue(number) => number.to_string(),
        Said::BoolValue(flag) => flag.to_string(),
        other => panic!("{name} is {other:?}"),
    })
}

/// Spans of one trace, by how far they are from what nobody here tells of: `name < parent`.
pub(super) fn tree(spans: &[Span], trace: &str) -> Vec<String> {
    let name_of =
        |id: &[u8]| spans.iter().find(|span| span.span_id == id).map_or_else(|| hex(id), |span| span.name.clone());
    let mut all: Vec<&Span> = spans.iter().filter(|span| hex(&span.trace_id) == trace).collect();
    all.sort_by_key(|span| (span.start_time_unix_nano, std::cmp::Reverse(span.end_time_unix_nano)));
    all.iter().map(|span| format!("{} < {}", span.name, name_of(&span.parent_span_id))).collect()
}

pub(super) fn find<'a>(spans: &'a [Span], trace: &str, name: &str) -> &'a Span {
    let found = spans.iter().find(|span| hex(&span.trace_id) == trace && span.name == name);
    found.unwrap_or_else(|| panic!("no {name} in {:?}", tree(spans, trace)))
}

async fn submit_traced(up: &Up, spec: &Value, parent: &str) -> Value {
    let request = up.request(Method::POST, "/v1/jobs").header("traceparent", parent).header("tracestate", "a=1,b=2");
    let response = request.json(spec).send().await.expect("answers");
    assert_eq!(response.status().as_u16(), 201);
    response.json().await.expect("is JSON")
}

#[tokio::test]
async fn a_collector_gets_a_tree_of_each_job_and_what_is_left_when_the_process_stops() {
    let Some(host) = engine() else { return };
    let collector = Collector::start(Manner::Takes).await;
    // Nothing would come within the time of this test if the end did not send it.
    let env = [
        ("OTEL_BSP_SCHEDULE_DELAY", "60000"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t0ken"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
    ];
    let dir = tempfile::tempdir().expect("a folder");
    let up = Up::start_with(dir, &host, &collector.settings(), &env).await;
    until("readiness", || async { up.plain("/readyz").await.filter(|(status, _)| *status == 200) }).await;
    let script = "echo $TRACEPARENT $TRACESTATE; \"$JOBCELL_HELPER\" step begin build; sleep 0.1; \"$JOBCELL_HELPER\" step end build";
    let spec = json!({"name": "night ly", "preset": "bash", "script": script, "labels": {"team": "a"}});
    let traced = up.ended(&submit_traced(&up, &spec, &format!("00-{TRACE}-{CALLER}-01")).await).await;
    let alone = up.run(&json!({"preset": "bash", "script": "echo $TRACEPARENT; exit 3"})).await;
    let unsampled = submit_traced(
        &up,
        &json!({"preset": "bash", "script": "echo $TRACEPARENT"}),
        &format!("00-{}-{CALLER}-00", "1".repeat(32)),
    )
    .await;
    let unsampled = up.ended(&unsampled).await;
    let canceled =
        up.submit(&json!({"preset": "bash", "script": "true", "requires": {"labels": {"zone": "nowhere"}}})).await;
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&canceled)), None).await;
    let (said_traced, said_alone) = (up.text(&traced, "stdout").await, up.text(&alone, "stdout").await);
    let said_unsampled = up.text(&unsampled, "stdout").await;
    assert_eq!(collector.requests().len(), 0, "nothing is sent before its time");
    up.stop().await;

    let spans = collector.spans();
    let wanted = [
        format!("RUN night ly < {CALLER}"),
        "queued < RUN night ly".into(),
        "attempt 1 < RUN night ly".into(),
        "secrets < attempt 1".into(),
        "prepare < attempt 1".into(),
        "cell < attempt 1".into(),
        "start < attempt 1".into(),
        "run < attempt 1".into(),
        "build < run".into(),
        "collect < attempt 1".into(),
        "finalize < attempt 1".into(),
    ];
    let mut found = tree(&spans, TRACE);
    let mut wanted = wanted.to_vec();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
    let (root, attempt, run) =
        (find(&spans, TRACE, "RUN night ly"), find(&spans, TRACE, "attempt 1"), find(&spans, TRACE, "run"));
    assert_eq!((root.kind, attempt.kind, root.trace_state.as_str()), (2, 1, "a=1,b=2"));
    assert_eq!(
        said_traced.trim(),
        format!("00-{TRACE}-{}-01 a=1,b=2", hex(&run.span_id)),
        "the job stands beneath its run"
    );
    let step = find(&spans, TRACE, "build");
    assert!(step.end_time_unix_nano - step.start_time_unix_nano >= 100_000_000, "{step:?}");
    for (name, wanted) in [
        ("cicd.pipeline.name", "night ly"),
        ("cicd.pipeline.run.id", id(&traced)),
        ("cicd.pipeline.result", "success"),
        ("jobcell.label.team", "a"),
        ("jobcell.attempts", "1"),
    ] {
        assert_eq!(says(root, name).as_deref(), Some(wanted), "{name}");
    }
    assert_eq!(says(attempt, "container.image.name").as_deref(), Some("jobcell/bash:1"));
    assert_eq!(says(attempt, "process.exit.code").as_deref(), Some("0"));
    let events: Vec<&str> = root.events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(events, ["queued", "claimed", "preparing", "running", "ended"]);
    assert!(spans.iter().all(|span| span.start_time_unix_nano <= span.end_time_unix_nano));
    // What the result says is what the spans say.
    let timings = traced["timings"].as_array().expect("a result has timings");
    for timing in timings {
        let name = timing["phase"].as_str().expect("a name");
        let span = find(&spans, TRACE, name);
        let moment = |at: &str| timing[at].as_u64().expect("a moment") * 1_000_000;
        assert_eq!(
            (span.start_time_unix_nano, span.end_time_unix_nano),
            (moment("began_at"), moment("ended_at")),
            "{name}"
        );
    }
    assert_eq!(timings.len(), 6, "{timings:?}");

    // A trace of its own has the job's id, and says what went wrong where it did.
    let own = id(&alone).replace('-', "");
    assert!(said_alone.starts_with(&format!("00-{own}-")), "{said_alone}");
    let (root, run) = (find(&spans, &own, "RUN"), find(&spans, &own, "run"));
    assert!(root.parent_span_id.is_empty());
    assert_eq!(says(root, "error.type").as_deref(), Some("exit_code"));
    for span in [root, run, find(&spans, &own, "attempt 1")] {
        assert_eq!(
            span.status.as_ref().map(|status| (status.code, status.message.as_str())),
            Some((2, "exited with code 3"))
        );
    }
    assert!(find(&spans, &own, "collect").status.is_none());

    // Whose caller records nothing is not told of, and says so to what it calls.
    assert!(said_unsampled.trim().ends_with("-00"), "{said_unsampled}");
    assert!(spans.iter().all(|span| says(span, "cicd.pipeline.run.id").as_deref() != Some(id(&unsampled))));
    // One that never ran has no try.
    assert_eq!(tree(&spans, &id(&canceled).replace('-', "")).len(), 2);

    let (headers, request) = collector.requests().remove(0);
    assert_eq!(
        (&headers["content-type"], &headers["authorization"]),
        (&"application/x-protobuf".parse().expect("is one"), &"Bearer t0ken".parse().expect("is one"))
    );
    let resource = request.resource_spans[0].resource.clone().expect("says who tells").attributes;
    let names: Vec<&str> = resource.iter().map(|pair| pair.key.as_str()).collect();
    assert_eq!(names, ["deployment.environment.name", "service.name", "service.version", "service.instance.id"]);
}

#[tokio::test]
async fn jobs_do_not_notice_a_collector_that_hangs_or_fails() {
    let Some(host) = engine() else { return };
    for (manner, reason) in [(Manner::Hangs, "unreachable"), (Manner::Says(500), "refused")] {
        let collector = Collector::start(manner).await;
        // Room for one job's spans, and not for two.
        let env = [
            ("OTEL_BSP_SCHEDULE_DELAY", "1"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "14"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "700"),
        ];
        let dir = tempfile::tempdir().expect("a folder");
        let up = Up::start_with(dir, &host, &collector.settings(), &env).await;
        until("readiness", || async { up.plain("/readyz").await.filter(|(status, _)| *status == 200) }).await;
        for _ in 0..3 {
            let job = up.bash("true").await;
            assert_eq!(cause(&job), "exit_code");
        }
        let counted = format!("jobcell_spans_dropped_total{{reason=\"{reason}\"}}");
        until("spans that are counted as gone", || async {
            up.plain("/metrics").await?.1.contains(&counted).then_some(())
        })
        .await;
        if matches!(manner, Manner::Hangs) {
            let full = "jobcell_spans_dropped_total{reason=\"queue_full\"}";
            until("a queue that is full", || async {
                up.bash("true").await;
                up.plain("/metrics").await?.1.contains(full).then_some(())
            })
            .await;
        }
        assert!(up.plain("/metrics").await.expect("answers").1.contains("jobcell_spans_exported_total 0\n"));
        assert!(!collector.spans().is_empty(), "it was asked");
        let began = Instant::now();
        up.stop().await;
        assert!(began.elapsed() < Duration::from_secs(20), "it does not wait for a collector: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn without_a_collector_a_job_gets_its_callers_place_and_nothing_else() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let script = "echo \"[$TRACEPARENT]\"";
    let mut submit = tokio::process::Command::new(JOBCELL);
    submit.arg("--data-dir").arg(up.data()).args(["exec", "--preset", "bash", "--", "bash", "-c", script]);
    let output = submit.env("TRACEPARENT", &parent).stdin(Stdio::null()).output().await.expect("runs");
    assert_eq!(said(&output).1.trim(), format!("[{parent}]"), "{output:?}");
    let bare = up.bash(script).await;
    assert_eq!(up.text(&bare, "stdout").await.trim(), "[]");
    // A header that is none is as good as absent; a document that says nonsense is refused.
    let odd = submit_traced(&up, &json!({"preset": "bash", "script": script}), "00-0-0-01").await;
    assert_eq!(up.text(&up.ended(&odd).await, "stdout").await.trim(), "[]");
    let bad = json!({"preset": "bash", "script": script, "trace": {"parent": "00-0-0-01"}});
    let refused = up.call(Method::POST, "/v1/jobs", Some(&bad)).await;
    assert_eq!(refused.status().as_u16(), 422);
    assert!(refused.text().await.expect("reads").contains("trace.parent"));
    // One key and one content are one job, whichever trace asks.
    let keyed = json!({"preset": "bash", "script": "true", "idempotency_key": "k"});
    let first = submit_traced(&up, &keyed, &parent).await;
    let again =
        up.request(Method::POST, "/v1/jobs").header("traceparent", format!("00-{}-{CALLER}-01", "2".repeat(32)));
    let again: Value = again.json(&keyed).send().await.expect("answers").json().await.expect("is JSON");
    assert_eq!(id(&first), id(&again));
    assert_eq!(again["spec"]["trace"]["parent"], json!(parent));
    assert!(!up.plain("/metrics").await.expect("answers").1.contains("jobcell_spans_dropped_total{"));
    up.stop().await;
}

#[tokio::test]
async fn an_operators_counters_profile_and_log_lines_are_there() {
    let Some(host) = engine() else { return };
    let settings =
        "telemetry: {log_format: json, counters: {rows: {output: imported, labels: {team: team}, series: 1}}}";
    let up = Up::start(&host, settings).await;
    let script = "\"$JOBCELL_HELPER\" output imported 42; sleep 0.3";
    let job = up.run(&json!({"preset": "bash", "script": script, "labels": {"team": "a"}})).await;
    assert_eq!(job["outputs"]["imported"], "42", "{job}");
    up.run(&json!({"preset": "bash", "script": script, "labels": {"team": "b"}})).await;
    let metrics = up.plain("/metrics").await.expect("answers").1;
    for wanted in [
        "jobcell_custom_rows_total{team=\"a\"} 42\n",
        "jobcell_custom_dropped_total{counter=\"rows\",reason=\"series\"} 1\n",
    ] {
        assert!(metrics.contains(wanted), "{wanted} in {metrics}");
    }

    // One look at a time; a user's key opens none.
    let (first, second) = tokio::join!(up.call(Method::POST, "/v1/profile?time=1s", None), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        up.call(Method::POST, "/v1/profile?time=100ms", None).await
    },);
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 409));
    let profile: Value = first.json().await.expect("is JSON");
    assert!(profile["ms"].as_u64().is_some_and(|ms| (1000..20_000).contains(&ms)), "{profile}");
    assert!(
        profile["memory"]["resident"].as_u64() > Some(1 << 20) && profile["threads"][0]["looks"].as_u64() > Some(2),
        "{profile}"
    );
    let refused: Value = second.json().await.expect("is JSON");
    assert_eq!(refused["code"], "profile_running");
    let bad = up.call(Method::POST, "/v1/profile?time=1h", None).await;
    assert_eq!(bad.status().as_u16(), 400);
    let (_, audit, _) = said(&up.command(&["audit", "--action", "process"]).await);
    assert!(audit.contains("process.profile"), "{audit}");

    let log = up.log();
    let line = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let line = line.into_iter().find(|line| line["event"] == "attempt.ended" && line["job_id"] == id(&job));
    let line = line.unwrap_or_else(|| panic!("no line of its end: {log}"));
    assert_eq!((&line["attempt"], &line["verdict"], &line["level"]), (&json!(1), &json!("succeeded"), &json!("INFO")));
    assert_eq!(line["trace_id"], json!(id(&job).replace('-', "")));
    assert_eq!(line["span_id"].as_str().map(str::len), Some(16));

    let (_, shown, _) = said(&up.command(&["job", "get", id(&job)]).await);
    assert!(shown.contains("as its agent measured it") && shown.contains("  collect\n"), "{shown}");
    let told = up.get(&format!("/v1/jobs/{}/explain", id(&job))).await;
    assert!(
        told["reason"].as_str().is_some_and(|reason| reason.contains("(waited ") && reason.contains("run ")),
        "{told}"
    );
    assert_eq!((&told["tries"][0]["attempt"], &told["tries"][0]["code"]), (&json!(1), &json!("exit_code")));
    up.stop().await;
}

#[tokio::test]
async fn a_collector_is_reached_by_tls_where_its_authority_is_believed() {
    let Some(host) = engine() else { return };
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    for (authority, counted) in
        [(&ours, "jobcell_spans_exported_total"), (&others, "jobcell_spans_dropped_total{reason=\"unreachable\"}")]
    {
        let collector = Collector::start(Manner::Takes).await;
        let to = collector.url.trim_start_matches("http://").parse().expect("an address");
        let port = before(&ours.issue(&["localhost"], 2099), to).await;
        let dir = tempfile::tempdir().expect("a folder");
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, &authority.pem).expect("writes");
        let endpoint = format!("https://localhost:{port}");
        let env = [
            ("OTEL_BSP_SCHEDULE_DELAY", "1"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", ca.to_str().expect("UTF-8")),
        ];
        let up = Up::start_with(dir, &host, "", &env).await;
        until("readiness", || async { up.plain("/readyz").await.filter(|(status, _)| *status == 200) }).await;
        assert_eq!(cause(&up.bash("true").await), "exit_code");
        let is_counted = |metrics: &str| {
            let values = metrics.lines().filter_map(|line| line.strip_prefix(counted)?.trim().parse::<f64>().ok());
            values.sum::<f64>() > 0.0
        };
        until(counted, || async { is_counted(&up.plain("/metrics").await?.1).then_some(()) }).await;
        assert_eq!(collector.spans().is_empty(), std::ptr::eq(authority, &others));
        up.stop().await;
    }
}
