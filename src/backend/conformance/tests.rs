//! The suite against the backends that need no network; the one over HTTP is in the command line's tests.

use super::desk::EmbeddedDesk;
use super::*;
use crate::backend::simulated::Simulated;
use crate::backend::{Embedded, Local, QueueSettings};
use crate::job::Millis;
use crate::queue::{AnyStore, MemoryStore, SqliteStore};

/// Runs it; every case has to pass but those that are named.
pub(crate) async fn passes(suite: &Suite, skipped: &[&str]) {
    let outcomes = suite.run(|_| {}).await;
    assert_eq!(outcomes.len(), cases::ALL.len());
    for Outcome { name, verdict, .. } in outcomes {
        match verdict {
            Verdict::Passed => assert!(!skipped.contains(&name), "{name} was to be left out"),
            Verdict::Skipped(why) => assert!(skipped.contains(&name), "{name} was left out: {why}"),
            Verdict::Failed(how) => panic!("{name}: {how}"),
        }
    }
}

fn embedded(store: AnyStore, dir: &std::path::Path) -> (Arc<Embedded>, CancellationToken) {
    let logs = LogStore::open(&dir.join("logs"), 1 << 20).expect("opens");
    let queue = QueueSettings {
        max_queued: 100,
        lease: Millis::from_secs(1),
        max_attempts: 3,
        stuck_after: Millis::from_secs(600),
    };
    let (backend, stop) = (Embedded::new(store, logs, queue), CancellationToken::new());
    crate::supervise::spawn("expiry", Arc::clone(&backend).run_expiry(stop.clone()));
    (backend, stop)
}

#[tokio::test]
async fn the_embedded_backend_conforms_on_both_stores() {
    for durable in [true, false] {
        let dir = tempfile::tempdir().expect("a folder");
        let store = if durable {
            AnyStore::Sqlite(SqliteStore::open(&dir.path().join("queue.db")).expect("opens"))
        } else {
            AnyStore::Memory(MemoryStore::new())
        };
        let (backend, stop) = embedded(store, dir.path());
        let (local, logs) = (Local::new(Arc::clone(&backend), "suite"), backend.logs().clone());
        let suite = Suite::new(Arc::new(local), Arc::new(EmbeddedDesk(backend)), logs, Duration::from_secs(5));
        passes(&suite, &[]).await;
        stop.cancel();
    }
}

#[tokio::test]
async fn a_backend_without_leases_conforms_too() {
    let dir = tempfile::tempdir().expect("a folder");
    let logs = LogStore::open(dir.path(), 1 << 20).expect("opens");
    let backend = Arc::new(Simulated::new());
    let suite = Suite::new(Arc::clone(&backend) as _, backend, logs, Duration::from_secs(5));
    passes(&suite, &["renew", "fence", "output", "expiry"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_breaks_a_rule_is_told_which() {
    let dir = tempfile::tempdir().expect("a folder");
    let logs = LogStore::open(dir.path(), 1 << 20).expect("opens");
    let (backend, other) = (Arc::new(Simulated::new()), Arc::new(Simulated::new()));
    // Its users' side is that of another one, so what is submitted never comes.
    let suite = Suite::new(Arc::clone(&backend) as _, other, logs, Duration::from_secs(5));
    let outcomes = suite.run(|_| {}).await;
    let failed: Vec<&str> =
        outcomes.iter().filter(|one| matches!(one.verdict, Verdict::Failed(_))).map(|one| one.name).collect();
    assert!(failed.contains(&"claim") && failed.contains(&"report") && !failed.contains(&"empty"), "{failed:?}");
    backend.put(&serde_json::json!({"image": "x", "command": ["x"]}));
    let outcomes = suite.run(|_| {}).await;
    assert!(matches!(&outcomes[..], [Outcome { name: "empty", verdict: Verdict::Failed(_), .. }]), "{outcomes:?}");
}
