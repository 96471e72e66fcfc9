//! The Kubernetes chart, as `make helm` has rendered it: manifests as Kubernetes takes them, settings as the program reads them.

use super::stage::{JOBCELL, root};
use super::supply_chain::{read_by, readers};
use serde_json::Value;
use sha2::Digest;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

fn rendered() -> Vec<PathBuf> {
    let folder = root().join("deploy/helm/rendered");
    let files = std::fs::read_dir(&folder).expect("reads").map(|entry| entry.expect("an entry").path());
    let mut all: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect();
    all.sort();
    assert_eq!(all.len(), 4, "{all:?}");
    all
}

fn manifests(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("reads");
    let parts = text.split("\n---\n").map(|part| part.trim_start_matches("---\n"));
    let read = |part: &str| serde_saphyr::from_str::<Value>(part).unwrap_or_else(|error| panic!("{error}: {part}"));
    parts.filter(|part| part.lines().any(|line| !line.starts_with('#') && !line.is_empty())).map(read).collect()
}

fn kind<'a>(all: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    all.iter().filter(move |one| one["kind"] == kind)
}

#[test]
fn what_is_rendered_was_made_of_the_chart_as_it_stands() {
    let helm = root().join("deploy/helm");
    let mut files = Vec::new();
    let mut folders = vec![helm.join("jobcell"), helm.join("values")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("reads") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort_by_key(|path| path.to_string_lossy().into_owned());
    let mut sums = String::new();
    for file in files {
        let name = file.strip_prefix(&helm).expect("inside").display().to_string();
        let sum = sha2::Sha256::digest(std::fs::read(&file).expect("reads"));
        for byte in sum {
            let _ = write!(sums, "{byte:02x}");
        }
        let _ = writeln!(sums, "  {name}");
    }
    let made_of = std::fs::read_to_string(helm.join("rendered/made-of.sha256")).expect("reads");
    assert_eq!(sums, made_of, "the chart or its values have changed: run `make helm`");
    let chart = std::fs::read_to_string(helm.join("jobcell/Chart.yaml")).expect("reads");
    for field in ["version", "appVersion"] {
        assert!(chart.contains(&format!("\n{field}: {}\n", env!("CARGO_PKG_VERSION"))), "{field} of {chart}");
    }
}

/// Reads strictly by Kubernetes' own schemas: a field that there is not is an error.
const READER: &str = "\
import sys, yaml, kubernetes_validate
count = 0
for one in yaml.safe_load_all(sys.stdin):
    if one and one['kind'] != 'PodMonitor':
        kubernetes_validate.validate(one, sys.argv[1], strict=True)
        count += 1
print(count)
";

#[test]
fn the_manifests_are_ones_that_kubernetes_takes() {
    let Some(python) = readers() else { return };
    for path in rendered() {
        let text = std::fs::read_to_string(&path).expect("reads");
        for version in ["1.29", "1.36"] {
            let (content, said) = read_by(python, &["-c", READER, version], &text);
            assert!(content, "{} for {version}: {said}", path.display());
            assert!(said.trim().parse::<u32>().is_ok_and(|count| count >= 2), "{said}");
        }
        // The reader is one that says no.
        let broken = text.replacen("terminationGracePeriodSeconds", "terminationGraceSeconds", 1);
        assert!(!read_by(python, &["-c", READER, "1.36"], &broken).0, "{}", path.display());
    }
}

#[test]
fn the_settings_in_it_are_ones_that_the_program_takes() {
    for path in rendered() {
        let all = manifests(&path);
        let mut seen = 0;
        for map in kind(&all, "ConfigMap") {
            let dir = tempfile::tempdir().expect("a folder");
            let file = dir.path().join("config.yaml");
            std::fs::write(&file, map["data"]["config.yaml"].as_str().expect("settings")).expect("writes");
            let mut command = Command::new(JOBCELL);
            command.args(["config", "check"]).env("JOBCELL_CONFIG", &file).env("JOBCELL_DATA_DIR", dir.path());
            let agent = map["metadata"]["name"].as_str().is_some_and(|name| name.ends_with("-agent"));
            if agent {
                // As its container has them.
                command.env("JOBCELL_AGENT__NAME", "node-1");
                command.env("JOBCELL_BACKENDS__MAIN__TOKEN_FILE", "/etc/jobcell/join/node-1");
            }
            let (code, out, err) = super::stage::said(&command.output().expect("runs"));
            assert_eq!(code, 0, "{}: {out}{err}", path.display());
            seen += 1;
        }
        assert!(seen >= 1, "{}", path.display());
    }
}

#[test]
fn pods_may_do_no_more_than_they_have_to_and_have_time_to_end() {
    for path in rendered() {
        let all = manifests(&path);
        for set in kind(&all, "DaemonSet").chain(kind(&all, "StatefulSet")) {
            let pod = &set["spec"]["template"]["spec"];
            assert_eq!(pod["automountServiceAccountToken"], false, "{pod}");
            let containers = pod["containers"].as_array().expect("a list");
            for one in containers {
                let may = &one["securityContext"];
                assert!(may["runAsNonRoot"] == true && may["readOnlyRootFilesystem"] == true, "{one}");
                assert_eq!(may["allowPrivilegeEscalation"], false);
                assert_eq!(may["capabilities"], serde_json::json!({"drop": ["ALL"]}));
                assert_eq!(one["livenessProbe"]["httpGet"]["path"], "/livez");
                assert_eq!(one["readinessProbe"]["httpGet"]["path"], "/readyz");
                // What is mounted is there.
                let has = |name: &Value| {
                    pod["volumes"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == *name))
                };
                for mount in one["volumeMounts"].as_array().expect("a list") {
                    assert!(has(&mount["name"]) || mount["name"] == "data", "{mount}");
                }
            }
            // Root once, to make a folder; and an engine of the pod's own, where one is asked for.
            let first: Vec<&Value> = pod["initContainers"].as_array().into_iter().flatten().collect();
            let privileged = first.iter().filter(|one| one["securityContext"]["privileged"] == true).count();
            assert_eq!(
                privileged,
                usize::from(set["kind"] == "DaemonSet" && path.ends_with("dind.yaml")),
                "{}",
                path.display()
            );
        }
        for set in kind(&all, "DaemonSet") {
            let grace = set["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_u64().expect("a number");
            let name = set["metadata"]["name"].clone();
            let map = kind(&all, "ConfigMap").find(|map| map["metadata"]["name"] == name).expect("its settings");
            let settings: Value =
                serde_saphyr::from_str(map["data"]["config.yaml"].as_str().expect("a text")).expect("YAML");
            let drain = settings["agent"]["drain_timeout"].as_str().and_then(|text| text.strip_suffix('s'));
            // agent.grace, and the way to the server.
            assert!(
                drain.and_then(|text| text.parse::<u64>().ok()).is_some_and(|drain| grace >= drain + 30),
                "{settings}"
            );
        }
        let accounts = kind(&all, "ServiceAccount").filter(|one| one["automountServiceAccountToken"] != false).count();
        assert_eq!(accounts, 0);
    }
}
