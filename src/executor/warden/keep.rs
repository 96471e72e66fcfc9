//! Carries out what [`collect`](super::collect) decides: gives a job's files to the store of contents as they come, and in the end a list of
//! them. Bounded: what is not stored yet is counted, and nothing more is asked for while there is much of it.

use super::collect::{CollectLimits, Collector, Do, Wanted};
use crate::blobs::{BlobError, BlobStore, Stored};
use crate::job::{Artifact, ArtifactProblem, ArtifactRule, Artifacts, AttemptId, FILES_SHOWN};
use crate::protocol::wire::{Page, Piece, ToWarden};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, FuturesUnordered};
use futures_util::{Stream, StreamExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// Bytes that have come and are not with the store yet; with more, no more are asked for.
const MOST_HELD: usize = 1 << 20;
/// Files that are being stored; with more, no more are asked for.
const MOST_STORING: usize = 16;
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
    /// The required rules that are not kept to.
    pub(super) missing: Vec<String>,
    /// What stood in the way that was not the job's doing.
    pub(super) failed: Option<String>,
}

/// A file on its way to the store: pieces, or the word that it is not wanted any more.
type Pieces = mpsc::UnboundedSender<Result<Bytes, &'static str>>;
type Storing = BoxFuture<'static, (Wanted, Result<Stored, BlobError>)>;

pub(super) struct Keeper {
    collector: Collector,
    store: BlobStore,
    attempt: AttemptId,
    /// The file that is received. Its queue has no bound of its own: what is in it was asked for, and that is bounded.
    open: Option<Pieces>,
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
        let count = piece.as_ref().map_or(0, Bytes::len);
        self.held.fetch_add(count, Ordering::Relaxed);
        // Nobody takes it when the store has failed: that is told when it ends.
        if self.open.as_ref().is_none_or(|open| open.send(piece).is_err()) {
            self.held.fetch_sub(count, Ordering::Relaxed);
        }
    }

    fn store(&mut self, wanted: Wanted) {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.open = Some(sender);
        let pieces = pieces(receiver, Arc::clone(&self.held), Arc::clone(&self.taken));
        let (store, length) = (self.store.clone(), (!wanted.may_change()).then(|| wanted.size()));
        self.storing.push(Box::pin(async move {
            let stored = store.put(pieces, None, length).await;
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
        if tokio::time::timeout(WRAP_UP, rest).await.is_err() {
            self.failed = Some(format!("the store did not take it within {} s", WRAP_UP.as_secs()));
        }
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        let mut kept = Kept {
            missing: self.collector.missing(),
            artifacts: std::mem::take(&mut self.collector.told),
            failed: self.failed.take(),
        };
        kept.artifacts.complete = self.collector.is_complete();
        if !self.collector.is_done() {
            let why = ended.unwrap_or("it was ended before all of it was fetched");
            kept.artifacts.tell(ArtifactProblem::new(b"", "not_fetched", format!("not everything was fetched: {why}")));
            kept.failed.get_or_insert_with(|| why.to_owned());
        }
        if let Err(error) = seal(&self.store, self.attempt, &self.files, &mut kept.artifacts).await {
            let sentence = format!("the list of files could not be stored: {error}");
            kept.artifacts.tell(ArtifactProblem::new(b"", "not_stored", &sentence));
            kept.artifacts.complete = false;
            kept.failed = Some(sentence);
        }
        kept
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
    let list = store.put_bytes(list).await?.digest;
    let mut digests: Vec<_> = files.iter().map(|file| file.digest).chain([list]).collect();
    digests.sort_unstable();
    digests.dedup();
    store.refer(&Artifacts::holder(attempt), &digests).await?;
    artifacts.count = files.len() as u64;
    artifacts.bytes = files.iter().map(|file| file.size).sum();
    artifacts.files = files.iter().take(FILES_SHOWN).cloned().collect();
    artifacts.list = Some(list);
    Ok(())
}

/// The pieces of a file as the store takes them, which counts what it takes.
fn pieces(
    receiver: mpsc::UnboundedReceiver<Result<Bytes, &'static str>>,
    held: Arc<AtomicUsize>,
    taken: Arc<Notify>,
) -> impl Stream<Item = Result<Bytes, &'static str>> + Send {
    stream::unfold((receiver, held, taken), |(mut receiver, held, taken)| async move {
        let piece = receiver.recv().await?;
        held.fetch_sub(piece.as_ref().map_or(0, Bytes::len), Ordering::Relaxed);
        taken.notify_one();
        Some((piece, (receiver, held, taken)))
    })
}
