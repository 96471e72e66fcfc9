//! What comes of contents that are good, bad, away, or that break off.

use super::*;
use crate::archive::crafted;
use crate::job::SpecRules;
use crate::protocol::wire::{InputReader, InputTotals, Place};
use serde_json::json;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a warden would make.
#[derive(Default)]
struct Made {
    files: BTreeMap<String, Vec<u8>>,
    open: String,
}

impl Place for Made {
    type Error = Infallible;
    fn folder(&mut self, path: &[u8]) -> Result<(), Infallible> {
        self.files.insert(format!("{}/", String::from_utf8_lossy(path)), Vec::new());
        Ok(())
    }
    fn file(&mut self, path: &[u8], _: bool) -> Result<(), Infallible> {
        self.open = String::from_utf8_lossy(path).into_owned();
        self.files.insert(self.open.clone(), Vec::new());
        Ok(())
    }
    fn data(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.files.get_mut(&self.open).expect("is open").extend_from_slice(bytes);
        Ok(())
    }
    fn close(&mut self) -> Result<(), Infallible> {
        self.open.clear();
        Ok(())
    }
    fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Infallible> {
        self.files.insert(format!("{}@", String::from_utf8_lossy(path)), target.to_vec());
        Ok(())
    }
}

/// Contents, each broken off after so many bytes every time, and how often they were asked for.
#[derive(Clone, Default)]
struct Store {
    contents: Arc<Mutex<BTreeMap<Digest, Vec<u8>>>>,
    breaks_after: Option<usize>,
    away: bool,
    asked: Arc<AtomicUsize>,
}

impl Store {
    fn put(&self, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        self.put_as(digest, content);
        digest
    }

    fn put_as(&self, digest: Digest, content: &[u8]) {
        self.contents.lock().expect("is ours").insert(digest, content.to_vec());
    }

    fn source(&self) -> Source {
        let store = self.clone();
        Arc::new(move |digest, from| {
            let store = store.clone();
            Box::pin(async move {
                store.asked.fetch_add(1, Ordering::Relaxed);
                let failed = |retry, message: &str| BackendError { retry, message: message.to_owned() };
                if store.away {
                    return Err(failed(Retry::Transient, "it is away"));
                }
                let found = store.contents.lock().expect("is ours").get(&digest).cloned();
                let content = found.ok_or_else(|| failed(Retry::Never, "it is not there"))?;
                let rest = &content[usize::try_from(from).expect("small")..];
                let mut pieces: Vec<Result<Bytes, BackendError>> =
                    rest.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
                if let Some(most) = store.breaks_after.map(|bytes| bytes / 1000).filter(|most| *most < pieces.len()) {
                    pieces.truncate(most);
                    pieces.push(Err(failed(Retry::Transient, "it broke off")));
                }
                Ok((content.len() as u64, futures_util::stream::iter(pieces).boxed()))
            })
        })
    }

    /// Reads the stream that these inputs make, as a warden does.
    async fn given(&self, inputs: &serde_json::Value, bounds: Bounds) -> Result<Made, Cause> {
        let spec = JobSpec::check(&json!({"preset": "bash", "script": "x", "inputs": inputs}), &SpecRules::default());
        let inputs: Arc<[Input]> = spec.expect("is valid").inputs().into();
        let mut stream = stream(&inputs, bounds, &self.source());
        let (mut reader, mut made) = (InputReader::default(), Made::default());
        loop {
            match stream.recv().await.expect("comes to an end") {
                InputPiece::Bytes(bytes) => reader.feed(&bytes, &mut made).expect("is a stream of entries"),
                InputPiece::End(totals) => {
                    assert_eq!(reader.totals(), Some(totals));
                    assert_ne!(totals, InputTotals::default());
                    return Ok(made);
                }
                InputPiece::Failed(cause) => return Err(cause),
            }
        }
    }
}

#[tokio::test]
async fn all_kinds_of_inputs_make_one_stream() {
    let store = Store::default();
    let big: Vec<u8> = (0..400_000u32).map(|at| (at / 3) as u8).collect();
    let archive = store.put(&crafted::zstd(&crafted::tar(|tar| tar.file("a/f", &[5; 3000]).link("l", "a"))));
    let inputs = json!([
        {"path": "x/text", "text": "t"},
        {"path": "x/big", "blob": store.put(&big)},
        {"path": "lib", "blob": archive, "kind": "archive"},
        {"path": "empty", "blob": store.put(b"")},
    ]);
    let made = store.given(&inputs, Bounds::MOST).await.expect("can be given");
    let names: Vec<&str> = made.files.keys().map(String::as_str).collect();
    assert_eq!(names, ["empty", "lib/", "lib/a/", "lib/a/f", "lib/l@", "x/", "x/big", "x/text"]);
    assert!(made.files["x/big"] == big && made.files["lib/a/f"] == [5; 3000]);
}

#[tokio::test]
async fn a_content_that_breaks_off_goes_on_where_it_was() {
    let store = Store { breaks_after: Some(20_000), ..Store::default() };
    let big: Vec<u8> = (0..50_000u32).map(|at| (at / 3) as u8).collect();
    let archive = store.put(&crafted::tar(|tar| tar.file("f", &big)));
    let inputs = json!([{"path": "big", "blob": store.put(&big)}, {"path": "in", "blob": archive, "kind": "archive"}]);
    let made = store.given(&inputs, Bounds::MOST).await.expect("can be given");
    assert!(made.files["big"] == big && made.files["in/f"] == big);
    assert!(store.asked.load(Ordering::Relaxed) >= 6);
}

/// Without the thread that reads: while one runs, the clock of a test does not.
#[tokio::test(start_paused = true)]
async fn a_backend_that_is_away_is_asked_for_a_minute() {
    let store = Store { away: true, ..Store::default() };
    let began = Instant::now();
    let (to, mut fetched) = mpsc::channel(FETCHED);
    fetch(Digest::of(b"x"), &store.source(), &to).await;
    assert!(matches!(fetched.recv().await, Some(Fetched::Failed(error)) if error.retry == Retry::Transient));
    assert!(began.elapsed() > GIVE_UP / 2 && began.elapsed() <= GIVE_UP, "{:?}", began.elapsed());
    assert!(store.asked.load(Ordering::Relaxed) > 5);
}

#[tokio::test]
async fn what_is_gone_or_is_another_content_is_told_apart() {
    let blob = Digest::of(b"x");
    let store = Store::default();
    let cause = store.given(&json!([{"path": "a", "text": ""}, {"path": "x", "blob": blob}]), Bounds::MOST).await.err();
    assert!(matches!(&cause, Some(Cause::InputRefused { input, .. }) if input == "inputs[1]"), "{cause:?}");
    // It is another content now.
    store.put_as(blob, b"y");
    let cause = store.given(&json!([{"path": "x", "blob": blob}]), Bounds::MOST).await.err();
    assert!(matches!(&cause, Some(Cause::InputsFailed { reason }) if reason.contains("came as")), "{cause:?}");
}

#[tokio::test]
async fn every_crafted_archive_is_looked_at_again_on_its_way() {
    let store = Store::default();
    for case in crafted::all() {
        let inputs = json!([{"path": ".", "blob": store.put(&case.archive), "kind": "archive"}]);
        match (store.given(&inputs, crafted::BOUNDS).await, case.outcome) {
            (Ok(made), Ok(paths)) => {
                let names: Vec<&str> = made.files.keys().map(|path| path.trim_end_matches(['/', '@'])).collect();
                assert_eq!(names, paths, "{}", case.name);
            }
            (Err(Cause::InputRefused { input, reason }), Err(code)) => {
                assert!(input == "inputs[0]" && reason.ends_with(&format!("({code})")), "{}: {reason}", case.name);
            }
            (got, wanted) => panic!("{}: {:?} instead of {wanted:?}", case.name, got.map(|made| made.files)),
        }
    }
}

#[tokio::test]
async fn more_than_the_workspace_has_room_for_is_refused_by_size_and_by_number() {
    let store = Store::default();
    let inputs = json!([{"path": "a", "text": "x"}, {"path": "b", "blob": store.put(&[1; 5000])}]);
    for (bounds, fits) in [
        (Bounds { entries: 2, bytes: 3 * 4096 }, true),
        (Bounds { entries: 2, bytes: 3 * 4096 - 1 }, false),
        (Bounds { entries: 1, bytes: 1 << 20 }, false),
    ] {
        assert_eq!(store.given(&inputs, bounds).await.is_ok(), fits, "{bounds:?}");
    }
}

#[tokio::test]
async fn nobody_goes_on_reading_for_a_stream_that_was_dropped() {
    let store = Store::default();
    let spec =
        json!({"preset": "bash", "script": "x", "inputs": [{"path": "x", "blob": store.put(&vec![1; 4 << 20])}]});
    let inputs: Arc<[Input]> = JobSpec::check(&spec, &SpecRules::default()).expect("valid").inputs().into();
    let source = store.source();
    let mut stream = stream(&inputs, Bounds::MOST, &source);
    assert!(matches!(stream.recv().await, Some(InputPiece::Bytes(_))));
    drop(stream);
    // The thread and the task that read had a copy each.
    while Arc::strong_count(&source) > 1 {
        tokio::task::yield_now().await;
    }
}
