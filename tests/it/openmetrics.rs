//! Metrics as OpenMetrics, as Prometheus's own library reads them, with the traces of jobs beside the buckets.

use super::stage::{Up, engine};
use super::supply_chain::{read_by, readers};
use reqwest::Method;
use serde_json::json;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
/// What Prometheus 2 asks with.
const ACCEPT: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
/// Reads strictly; prints the kind of each family, and each exemplar.
const READER: &str = "\
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
for family in text_string_to_metric_families(sys.stdin.read()):
    print('family', family.name, family.type, family.unit)
    for sample in family.samples:
        if sample.exemplar:
            print('exemplar', sample.name, sample.labels.get('verdict', ''), sample.exemplar.labels['trace_id'], sample.exemplar.value <= float(sample.labels['le']))
";

async fn scrape(up: &Up, accept: &str) -> (String, String) {
    let answer = up.request(Method::GET, "/metrics").header("accept", accept).send().await.expect("answers");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["vary"], "accept");
    let kind = answer.headers()["content-type"].to_str().expect("a text").to_owned();
    (kind, answer.text().await.expect("a text"))
}

#[tokio::test]
async fn the_duration_of_a_job_names_its_trace_to_who_asks_for_openmetrics() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let spec = json!({"preset": "bash", "script": "true"});
    for flags in ["01", "00"] {
        // Of two traces one is kept by nobody.
        let parent = format!(
            "00-{}-00f067aa0ba902b7-{flags}",
            if flags == "01" { TRACE } else { "00000000000000000000000000000bad" }
        );
        let sent = up
            .request(Method::POST, "/v1/jobs")
            .header("traceparent", parent)
            .json(&spec)
            .send()
            .await
            .expect("answers");
        up.ended(&sent.json().await.expect("JSON")).await;
    }
    let (kind, old) = scrape(&up, "*/*").await;
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    assert!(!old.contains("trace_id") && !old.contains("# EOF"), "{old}");
    let (kind, new) = scrape(&up, ACCEPT).await;
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    for name in ["jobcell_job_duration_seconds_bucket{verdict=\"succeeded\"", "jobcell_cell_acquire_seconds_bucket{"] {
        let line = new
            .lines()
            .find(|line| line.starts_with(name) && line.contains(" # "))
            .unwrap_or_else(|| panic!("{name}: {new}"));
        assert!(line.contains(&format!(" # {{trace_id=\"{TRACE}\"}} ")), "{line}");
    }
    // No number is lost between the two; a scrape is counted in the next one.
    let other = |line: &&str| !line.starts_with('#') && !line.starts_with("jobcell_http_requests_total{");
    let numbers = |text: &str| text.lines().filter(other).count();
    assert_eq!(numbers(&old), numbers(&new));

    let Some(python) = readers() else { return };
    let (content, said) = read_by(python, &["-c", READER], &new);
    assert!(content, "{said}\n{new}");
    for wanted in [
        "family jobcell_jobs_ended counter \n".to_owned(),
        "family jobcell_log_bytes counter bytes\n".to_owned(),
        "family jobcell_build info \n".to_owned(),
        "family jobcell_job_duration_seconds histogram seconds\n".to_owned(),
        "family process_cpu_seconds counter seconds\n".to_owned(),
        format!("exemplar jobcell_job_duration_seconds_bucket succeeded {TRACE} True\n"),
        format!("exemplar jobcell_cell_acquire_seconds_bucket  {TRACE} True\n"),
    ] {
        assert!(said.contains(&wanted), "{wanted} in {said}");
    }
    assert!(!said.contains("0bad") && !said.contains("False"), "{said}");
    // The reader is one that says no.
    assert!(!read_by(python, &["-c", READER], new.trim_end_matches("# EOF\n")).0);
    up.stop().await;
}
