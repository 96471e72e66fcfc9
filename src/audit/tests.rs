use super::*;
use crate::telemetry::State;
use serde_json::Value;
use std::os::unix::fs::{PermissionsExt, symlink};

struct Opened {
    audit: Audit,
    task: JoinHandle<()>,
    health: Health,
    metrics: Arc<Metrics>,
}

fn open(path: &std::path::Path, max_file: u64, keep: u32) -> Opened {
    let (health, metrics) = (Health::new(&[]), Arc::new(Metrics::new()));
    let settings = AuditSettings { path: path.to_owned(), max_file, keep };
    let (audit, task) = Audit::open(settings, health.clone(), Arc::clone(&metrics));
    Opened { audit, task, health, metrics }
}

fn event(n: u64, action: &'static str) -> Event {
    let who = Who::Key { name: format!("key-{}", n % 2), role: "submit" };
    let (at, from) = (UnixMillis::new(n), Some([127, 0, 0, 1].into()));
    Event { at, who, from, object: Some(format!("job-{n}")), ..Event::own(action, Outcome::Done, None) }
}

fn seqs(page: &Page) -> Vec<u64> {
    page.entries.iter().map(|entry| entry["seq"].as_u64().expect("a number")).collect()
}

fn all(limit: usize) -> Filter {
    Filter { limit, ..Filter::default() }
}

/// Waits until health says so of the log.
async fn health_says(health: &Health, good: bool) {
    let says =
        || matches!(health.report().components.get(&crate::telemetry::Component::Audit), Some(State::Ok)) == good;
    let waiting = async {
        while !says() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("health says so in time");
}

#[tokio::test]
async fn a_line_is_there_before_its_record_comes_back_private_and_whole() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("audit.jsonl");
    let Opened { audit, task, .. } = open(&path, 1 << 20, 2);
    let object = Some("a\"b\n\u{1b}[2J\u{202e}".to_owned());
    audit.record(Event { object: object.clone(), status: Some(201), ..event(7, "job.submit") }).await;
    let text = std::fs::read_to_string(&path).expect("is there at once");
    assert_eq!(text.lines().count(), 1, "a line's end in a name makes no line: {text}");
    let line: Value = serde_json::from_str(&text).expect("is JSON");
    let wanted = serde_json::json!({"seq": 1, "at": 7, "time": "1970-01-01T00:00:00.007Z", "by": "key", "who": "key-1",
        "role": "submit", "from": "127.0.0.1", "action": "job.submit", "object": object, "outcome": "done", "status": 201});
    assert_eq!(line, wanted);
    assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
    audit.close().await;
    task.await.expect("ends");
    // Half a line that a crash has left stays by itself, and numbers go on.
    std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"{\"se"))
        .expect("appends");
    let Opened { audit, .. } = open(&path, 1 << 20, 2);
    audit.record(event(8, "job.cancel")).await;
    let page = audit.read(all(10)).await.expect("reads");
    assert_eq!((seqs(&page), page.unreadable, page.more), (vec![2, 1], 1, false));
}

#[tokio::test]
async fn files_take_turns_and_are_read_as_one_log() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("audit.jsonl");
    let Opened { audit, .. } = open(&path, 1000, 2);
    for n in 1..=40 {
        audit.record(event(n, if n % 4 == 0 { "key.add" } else { "job.submit" })).await;
    }
    let mut names: Vec<_> =
        std::fs::read_dir(dir.path()).expect("lists").map(|one| one.expect("one").file_name()).collect();
    names.sort();
    assert_eq!(names, ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]);
    for name in &names {
        assert!(std::fs::metadata(dir.path().join(name)).expect("is there").len() <= 1000);
    }
    let page = audit.read(all(1000)).await.expect("reads");
    let kept = seqs(&page);
    assert!(kept.len() > 8 && kept[0] == 40 && kept.windows(2).all(|pair| pair[0] == pair[1] + 1), "{kept:?}");
    let page = audit.read(all(5)).await.expect("reads");
    assert_eq!((seqs(&page), page.more), (vec![40, 39, 38, 37, 36], true));
    let page = audit.read(Filter { before: Some(36), ..all(3) }).await.expect("reads");
    assert_eq!(seqs(&page), [35, 34, 33]);
    for (filter, wanted) in [
        (Filter { action: Some("key".into()), ..all(2) }, vec![40, 36]),
        (Filter { action: Some("key.add".into()), ..all(1) }, vec![40]),
        (Filter { action: Some("ke".into()), ..all(2) }, vec![]),
        (Filter { who: Some("key-1".into()), ..all(2) }, vec![39, 37]),
        (Filter { object: Some("job-38".into()), ..all(2) }, vec![38]),
        (Filter { outcome: Some("refused".into()), ..all(2) }, vec![]),
        (Filter { since: Some(UnixMillis::new(38)), until: Some(UnixMillis::new(40)), ..all(9) }, vec![39, 38]),
    ] {
        let page = audit.read(filter.clone()).await.expect("reads");
        assert_eq!(seqs(&page), wanted, "{filter:?}");
    }
}

#[tokio::test]
async fn a_full_disk_holds_up_nobody_and_is_told_and_what_it_cost_is_counted() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("audit.jsonl");
    symlink("/dev/full", &path).expect("links");
    let Opened { audit, health, metrics, .. } = open(&path, 1 << 20, 2);
    let begun = std::time::Instant::now();
    for n in 1..=4500 {
        audit.record(event(n, "job.submit")).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    health_says(&health, false).await;
    assert!(health.report().ready, "jobs go on");
    assert!(metrics.render().contains("jobcell_audit_lost_total 404"), "{}", metrics.render());
    std::fs::remove_file(&path).expect("removes");
    audit.record(event(9999, "job.submit")).await;
    health_says(&health, true).await;
    let page = audit.read(all(5000)).await.expect("reads");
    // 4096 were kept, 404 and the one that found no place either are gone, and that is a line.
    let newest = &page.entries[0];
    assert_eq!((newest["action"].as_str(), newest["count"].as_u64()), (Some("audit.lost"), Some(405)), "{newest}");
    assert_eq!(page.entries.len(), 4097);
    assert_eq!(seqs(&page)[1], 4096);
}

#[tokio::test]
async fn refusals_are_folded_and_what_was_folded_is_written_at_the_end() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("audit.jsonl");
    let Opened { audit, task, .. } = open(&path, 1 << 20, 2);
    for _ in 0..10_000 {
        audit.refused(Event {
            outcome: Outcome::Refused,
            detail: Some("unauthorized".into()),
            ..Event::own("auth", Outcome::Refused, None)
        });
    }
    audit.close().await;
    task.await.expect("ends");
    let Opened { audit, .. } = open(&path, 1 << 20, 2);
    let page = audit.read(all(100)).await.expect("reads");
    assert_eq!(page.entries.len(), 6);
    assert_eq!(page.entries[0]["count"], 9995);
}

#[tokio::test]
async fn without_a_log_nothing_waits() {
    let audit = Audit::default();
    audit.record(event(1, "job.submit")).await;
    assert!(audit.read(all(1)).await.expect_err("there is none").contains("audit.enabled"));
}

#[tokio::test]
async fn a_file_that_somebody_moves_or_removes_is_begun_anew_and_no_line_goes_with_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let (path, moved) = (dir.path().join("audit.jsonl"), dir.path().join("moved"));
    let Opened { audit, .. } = open(&path, 1 << 20, 2);
    let lines = |path: &std::path::Path| std::fs::read_to_string(path).expect("is there").lines().count();
    audit.record(event(1, "job.submit")).await;
    std::fs::rename(&path, &moved).expect("renames");
    audit.record(event(2, "job.submit")).await;
    assert_eq!((lines(&moved), lines(&path)), (1, 1));
    std::fs::remove_file(&path).expect("removes");
    audit.record(event(3, "job.submit")).await;
    let text = std::fs::read_to_string(&path).expect("is there again");
    assert!(text.lines().count() == 1 && text.contains("\"seq\":3"), "{text}");
    audit.close().await;
}
