//! Carries out what [`collect`](super::collect) decides: gives a job's files to the store of contents as they come, and in the end a list of
//! them. Bounded: what is not stored yet is counted, and nothing more is asked for while there is much of it.

use super::collect::{CollectLimits, Collector, Do, Wanted};
use crate::blobs::{BlobError, BlobStore, Stored};
use crate::job::{ARTIFACT_LIST_MOST, Artifact, ArtifactProblem, ArtifactRule, Artifacts, AttemptId};
use crate::protocol::wire::{Page, Piece, ToWarden};
use crate::supervise;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, FuturesUnordered};
use futures_util::{Stream, StreamExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_util::task::AbortOnDropHandle;

/// Bytes that have come and are not with the store yet; with more, no more are asked for.
const MOST_HELD: usize = 1 << 20;
/// Files that are being stored; with more, no more are asked for.
const MOST_STORING: usize = 16;
/// Parts of one file that wait for the store. What is asked for, and what is held before no more is, are fewer as a warden sends them; one that sends
/// more and smaller ones does not keep to what it was asked.
const MOST_PARTS: usize = 128;
/// For what has come, when nothing more will.
const WRAP_UP: Duration = Duration::from_secs(20);

/// Where an agent keeps the files of its jobs, and how much.
#[derive(Debug, Clone)]
pub struct Keep {
    /// The store.
    pub store: BlobStore,
    /// The bounds.
    pub limits: CollectLimits,
}

/// What became of a job's files.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) artifacts: Artifacts,
    /// The required rules that the job has not kept to.
    pub(super) missing: Vec<String>,
    /// Why another required rule is not kept to, which is not the job's doing.
    pub(super) failed: Option<String>,
}

/// A file on its way to the store: parts, or the word that it is not wanted any more.
type Pieces = mpsc::Sender<Result<Part, &'static str>>;
type Storing = BoxFuture<'static, (Wanted, Result<Stored, BlobError>)>;

pub(super) struct Keeper {
    collector: Collector,
    store: BlobStore,
    attempt: AttemptId,
    /// The file that is received. Its queue has room for one more than [`MOST_PARTS`]: for the word that it is not wanted.
    open: Option<Pieces>,
    /// What the warden has done that it must not.
    fault: Option<&'static str>,
    held: Arc<AtomicUsize>,
    /// Told when something was taken from a queue.
    taken: Arc<Notify>,
    storing: FuturesUnordered<Storing>,
    files: Vec<Artifact>,
    failed: Option<String>,
}

/// Why a file that was begun is not kept; told to the store, and by then told of.
const DROPPED: &str = "it is not kept";

impl Keeper {
    pub(super) fn new(keep: &Keep, rules: &[ArtifactRule], attempt: AttemptId) -> Self {
        Self {
            collector: Collector::new(rules.to_vec(), keep.limits),
            store: keep.store.clone(),
            attempt,
            open: None,
            fault: None,
            held: Arc::default(),
            taken: Arc::default(),
            storing: FuturesUnordered::new(),
            files: Vec::new(),
            failed: None,
        }
    }

    /// Begins, or goes on over a new link.
    pub(super) fn begin(&mut self) -> Vec<ToWarden> {
        let todo = self.collector.begin();
        self.carry_out(todo)
    }

    pub(super) fn page(&mut self, page: Page) -> Result<Vec<ToWarden>, String> {
        let todo = self.collector.page(page)?;
        Ok(self.carry_out(todo))
    }

    pub(super) fn piece(&mut self, piece: Piece) -> Result<Vec<ToWarden>, String> {
        let todo = self.collector.piece(piece)?;
        let mut sends = self.carry_out(todo);
        if let Some(fault) = self.fault.take() {
            return Err(fault.to_owned());
        }
        sends.extend(self.ask());
        Ok(sends)
    }

    /// Waits until something has become of a file, or there is room again; then more may be asked for. Safe to be dropped.
    pub(super) async fn changed(&mut self) {
        let taken = Arc::clone(&self.taken);
        if self.storing.is_empty() {
            return taken.notified().await;
        }
        tokio::select! {
            () = taken.notified() => {}
            Some((wanted, stored)) = self.storing.next() => self.stored(&wanted, stored),
        }
    }

    /// Asks for what there is room for.
    pub(super) fn ask(&mut self) -> Vec<ToWarden> {
        let room = self.held.load(Ordering::Relaxed) < MOST_HELD && self.storing.len() < MOST_STORING;
        let todo = self.collector.ask(room);
        self.carry_out(todo)
    }

    /// Whether every file is stored, or will not be.
    pub(super) fn is_done(&self) -> bool {
        self.collector.is_done() && self.storing.is_empty()
    }

    fn carry_out(&mut self, todo: Vec<Do>) -> Vec<ToWarden> {
        let mut sends = Vec::new();
        for one in todo {
            match one {
                Do::Send(message) => sends.push(message),
                Do::Begin(wanted) => self.store(wanted),
                Do::Bytes(bytes) => self.hand_on(Ok(bytes.into())),
                Do::Keep => self.open = None,
                Do::Drop => {
                    self.hand_on(Err(DROPPED));
                    self.open = None;
                }
                Do::Done => {}
            }
        }
        sends
    }

    fn hand_on(&mut self, piece: Result<Bytes, &'static str>) {
        if piece.is_ok() && self.open.as_ref().is_some_and(|open| open.capacity() < 2 && !open.is_closed()) {
            self.fault = Some("it sends a file in more parts than were asked for");
            return;
        }
        let part = piece.map(|bytes| Part::new(bytes, &self.held, &self.taken));
        // Nobody takes it when the store has failed: that is told when it ends.
        if let Some(open) = &self.open {
            let _ = open.try_send(part);
        }
    }

    fn store(&mut self, wanted: Wanted) {
        let (sender, receiver) = mpsc::channel(MOST_PARTS + 1);
        self.open = Some(sender);
        let pieces = pieces(receiver);
        let (store, length) = (self.store.clone(), (!wanted.may_change()).then(|| wanted.size()));
        // Beside the conversation: what is hashed there would hold up what comes next.
        let storing = supervise::of_this_process(async move { store.put(pieces, None, length).await });
        let storing = AbortOnDropHandle::new(supervise::spawn("artifact", storing));
        self.storing.push(Box::pin(async move {
            let stored = storing.await.unwrap_or_else(|error| Err(BlobError::Failed(error.to_string())));
            (wanted, stored)
        }));
    }

    fn stored(&mut self, wanted: &Wanted, stored: Result<Stored, BlobError>) {
        match stored {
            Ok(stored) => self.files.push(Artifact {
                path: wanted.path.clone(),
                size: stored.bytes,
                mode: wanted.mode,
                modified_at: wanted.modified_at,
                digest: stored.digest,
            }),
            Err(BlobError::BrokenOff(why)) if why == DROPPED => {}
            Err(error) => {
                self.collector.not_stored(wanted, &error.to_string());
                self.failed = Some(error.to_string());
            }
        }
    }

    /// Nothing more will come: stores the list of what did, and says what became of it all. `ended`: why not everything was fetched, if so.
    pub(super) async fn wrap_up(mut self, ended: Option<&str>) -> Kept {
        // What is half there is not kept.
        self.hand_on(Err(DROPPED));
        self.open = None;
        let rest = async {
            while let Some((wanted, stored)) = self.storing.next().await {
                self.stored(&wanted, stored);
            }
        };
        let late = || format!("the store did not take it within {} s", WRAP_UP.as_secs());
        if tokio::time::timeout(WRAP_UP, rest).await.is_err() {
            self.none_for_sure("not_stored", late());
        }
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        if !self.collector.is_done() {
            let why = ended.unwrap_or("it was ended before all of it was fetched");
            self.none_for_sure("not_fetched", format!("not everything was fetched: {why}"));
        }
        let mut artifacts = Artifacts::default();
        let sealed = seal(&self.store, self.attempt, &self.files, &mut artifacts);
        let sealed = tokio::time::timeout(WRAP_UP, sealed).await;
        if let Err(reason) = sealed.map_err(|_| late()).and_then(|sealed| sealed.map_err(|error| error.to_string())) {
            artifacts = Artifacts::default();
            self.none_for_sure("not_stored", format!("the list of files could not be stored: {reason}"));
        }
        let told = std::mem::take(&mut self.collector.told);
        (artifacts.problems, artifacts.more_problems) = (told.problems, told.more_problems);
        artifacts.complete = self.collector.is_complete();
        Kept {
            artifacts,
            missing: self.collector.missing(),
            failed: self.failed.take().filter(|_| self.collector.failed()),
        }
    }

    /// Something went wrong that is not the job's doing, and of no rule is it known that it is kept to.
    fn none_for_sure(&mut self, code: &str, sentence: String) {
        self.collector.none_for_sure();
        self.collector.told.tell(ArtifactProblem::new(b"", code, &sentence));
        self.failed.get_or_insert(sentence);
    }
}

/// From here on the contents are the attempt's, and stay.
async fn seal(
    store: &BlobStore,
    attempt: AttemptId,
    files: &[Artifact],
    artifacts: &mut Artifacts,
) -> Result<(), BlobError> {
    if files.is_empty() {
        return Ok(());
    }
    let list = serde_json::to_vec(files).map_err(|error| BlobError::Failed(error.to_string()))?;
    if list.len() as u64 > ARTIFACT_LIST_MOST {
        let (bytes, most) = (list.len(), ARTIFACT_LIST_MOST);
        return Err(BlobError::Failed(format!("it has {bytes} bytes, and {most} at most can be read")));
    }
    let list = store.put_bytes(list).await?.digest;
    let mut digests: Vec<_> = files.iter().map(|file| file.digest).chain([list]).collect();
    digests.sort_unstable();
    digests.dedup();
    store.refer(&Artifacts::holder(attempt), &digests).await?;
    artifacts.count = files.len() as u64;
    artifacts.bytes = files.iter().map(|file| file.size).sum();
    artifacts.files = Artifacts::first(files);
    artifacts.list = Some(list);
    Ok(())
}

/// Bytes that have come and are not with the store. They are counted as long as they are here, whoever drops them.
struct Part {
    bytes: Bytes,
    counted: usize,
    held: Arc<AtomicUsize>,
    taken: Arc<Notify>,
}

impl Part {
    fn new(bytes: Bytes, held: &Arc<AtomicUsize>, taken: &Arc<Notify>) -> Self {
        let counted = bytes.len();
        held.fetch_add(counted, Ordering::Relaxed);
        Self { bytes, counted, held: Arc::clone(held), taken: Arc::clone(taken) }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.held.fetch_sub(self.counted, Ordering::Relaxed);
        self.taken.notify_one();
    }
}

/// The parts of a file as the store takes them.
fn pieces(
    receiver: mpsc::Receiver<Result<Part, &'static str>>,
) -> impl Stream<Item = Result<Bytes, &'static str>> + Send {
    stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((piece.map(|mut part| std::mem::take(&mut part.bytes)), receiver))
    })
}

#[cfg(test)]
#[path = "keep_tests.rs"]
mod tests;
