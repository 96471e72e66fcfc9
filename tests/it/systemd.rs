//! The service as systemd sees it: what it is told, and how little the units leave open.

use super::stage::{Up, engine, root, until};
use serde_json::json;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

/// Where systemd would listen: everything that it is told, in order.
struct Manager {
    told: Arc<Mutex<Vec<String>>>,
    path: PathBuf,
}

impl Manager {
    fn at(dir: &Path) -> Self {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).expect("binds");
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let sink = Arc::clone(&told);
        // It ends with the test process; one that is told nothing any more costs nothing.
        std::thread::spawn(move || {
            let mut buffer = vec![0; 4096];
            while let Ok(count) = socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                sink.lock().expect("not poisoned").extend(text.lines().map(str::to_owned));
            }
        });
        Self { told, path }
    }

    fn has(&self, line: &str) -> bool {
        self.told.lock().expect("not poisoned").iter().any(|told| told.contains(line))
    }

    async fn hears(&self, line: &str) {
        until(line, || async { self.has(line).then_some(()) }).await;
    }
}

#[tokio::test]
async fn a_service_says_that_it_is_ready_what_it_does_that_it_lives_and_that_it_stops() {
    let Some(host) = engine() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let manager = Manager::at(dir.path());
    let socket = manager.path.display().to_string();
    // As for WatchdogSec=2s.
    let env = [("NOTIFY_SOCKET", socket.as_str()), ("WATCHDOG_USEC", "2000000")];
    let mut up = Up::start_with(dir, &host, "", &env).await;
    manager.hears("READY=1").await;
    manager.hears("slots free, backend ok").await;
    manager.hears("WATCHDOG=1").await;
    // A reload is not the end of a service that has nothing to read again.
    up.signal("-HUP");
    let job = up.submit(&json!({"preset": "bash", "script": "sleep 300"})).await;
    up.phase(&job, "running").await;
    manager.hears("STATUS=1 job, ").await;
    assert!(!manager.has("STOPPING=1"));
    up.signal("-TERM");
    manager.hears("STOPPING=1").await;
    manager.hears("STATUS=draining: 1 job left").await;
    up.signal("-TERM");
    assert!(up.exit_code().await.is_some());
}

fn units() -> Vec<PathBuf> {
    let found = std::fs::read_dir(root().join("deploy/systemd")).expect("reads");
    let paths = found.map(|entry| entry.expect("reads").path());
    let mut units: Vec<_> = paths.filter(|path| path.extension().is_some_and(|name| name == "service")).collect();
    units.sort();
    assert_eq!(units.len(), 3);
    units
}

/// Runs systemd-analyze; `None` after saying loudly that there is none.
fn analyze(args: &[&str]) -> Option<(bool, String)> {
    match Command::new("systemd-analyze").args(args).env("SYSTEMD_PAGER", "").output() {
        Ok(output) => {
            let text =
                [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
            Some((output.status.success(), text))
        }
        Err(error) => {
            assert!(
                std::env::var("JOBCELL_TEST_ENGINE").as_deref() != Ok("required"),
                "no systemd-analyze ({error}), and JOBCELL_TEST_ENGINE=required: install systemd"
            );
            eprintln!("SKIPPED: no systemd-analyze ({error})");
            None
        }
    }
}

#[test]
fn the_units_leave_little_open() {
    for unit in units() {
        let path = unit.display().to_string();
        // In tenths: an exposure of at most 2.5.
        let Some((well, said)) = analyze(&["security", "--offline=true", "--threshold=25", &path]) else { return };
        let exposure = said.lines().last().unwrap_or_default();
        eprintln!("{exposure}");
        assert!(well && exposure.contains("exposure level"), "{said}");
    }
}

#[test]
fn the_units_are_what_systemd_reads() {
    // Where a package puts the program; the unit is read as if it were there.
    let dir = tempfile::tempdir().expect("a folder");
    for unit in units() {
        let text = std::fs::read_to_string(&unit).expect("reads");
        assert!(text.contains("Type=notify") && text.contains("ExecReload=/usr/bin/jobcell config check"), "{text}");
        let text = text.replace("/usr/bin/jobcell", super::stage::JOBCELL);
        let path = dir.path().join(unit.file_name().expect("a name"));
        std::fs::write(&path, text).expect("writes");
        let path = path.display().to_string();
        let Some((_, said)) = analyze(&["verify", "--man=no", "--recursive-errors=no", &path]) else { return };
        // Units that it names and this machine has not are no fault of it.
        let own = |line: &&str| line.contains("jobcell") && !line.contains("Failed to");
        let faults: Vec<&str> = said.lines().filter(own).collect();
        assert!(faults.is_empty(), "{faults:?}");
    }
}
