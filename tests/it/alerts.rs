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
