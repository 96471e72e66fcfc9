//! The alert rules, as Prometheus's own tool reads and tests them.

use super::stage::root;
use std::process::Command;

#[test]
fn the_alerts_are_what_prometheus_reads_and_fire_when_they_should() {
    let folder = root().join("deploy/prometheus");
    let tool = std::env::var("JOBCELL_PROMTOOL").unwrap_or_else(|_| "promtool".to_owned());
    for args in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts.test.yaml"]] {
        match Command::new(&tool).args(args).current_dir(&folder).output() {
            Ok(output) => {
                let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                assert!(output.status.success() && said.concat().contains("SUCCESS"), "{args:?}: {said:?}");
            }
            Err(error) => {
                assert!(
                    std::env::var("JOBCELL_TEST_ENGINE").as_deref() != Ok("required"),
                    "no promtool ({error}), and JOBCELL_TEST_ENGINE=required: `make test` gets it, or set JOBCELL_PROMTOOL"
                );
                return eprintln!("SKIPPED: no promtool ({error})");
            }
        }
    }
}

#[test]
fn every_alert_is_tested() {
    let read = |name: &str| std::fs::read_to_string(root().join("deploy/prometheus").join(name)).expect("reads");
    let (rules, tests) = (read("alerts.yaml"), read("alerts.test.yaml"));
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 12, "{alerts:?}");
    for alert in alerts {
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert} has no test");
    }
}

/// Every word of `text` that begins as our metrics do.
fn named(text: &str) -> std::collections::BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("jobcell_") || word.starts_with("process_")).collect()
}

#[test]
fn alerts_and_the_dashboard_name_metrics_that_there_are() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect("reads");
    let source = read("src/telemetry/metrics.rs");
    for file in ["deploy/prometheus/alerts.yaml", "deploy/prometheus/alerts.test.yaml", "deploy/grafana/jobcell.json"] {
        let text = read(file);
        let names = named(&text);
        assert!(names.len() > 10, "{file}: {names:?}");
        for name in names {
            let of = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(source.contains(&format!("\"{of}\"")), "{file} has {name}, which is no metric");
        }
    }
}
