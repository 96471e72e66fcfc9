//! From a job's spec to the stream of entries that its warden takes: contents are had from the backend as they are needed, hashed, and
//! archives are unpacked on the way. Nothing is written anywhere, and a few pieces are all that is held.
//!
//! One thread for each stream reads; it ends when nobody wants the stream any more.

use crate::admission::policy::Defaults;
use crate::archive::{self, Bounds, Sink, Tree, Unread};
use crate::backend::{Backend, BackendError, BlobPieces};
use crate::executor::{InputPiece, Inputs, PIECES};
use crate::job::{Cause, Digest, Input, InputContent, JobSpec, MAX_INPUT_ENTRIES, WORKDIR};
use crate::net::{Retry, pauses};
use crate::protocol::wire::InputWriter;
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

/// Bytes of a piece for the warden's link.
const PIECE: usize = 128 * 1024;
/// Pieces of a content on their way from the backend. Full: the backend waits.
const FETCHED: usize = 4;
/// A backend that brings nothing for so long is asked again.
const STALL: Duration = Duration::from_secs(20);
/// With nothing for so long, over all tries, the inputs cannot be had.
const GIVE_UP: Duration = Duration::from_secs(60);
/// First and longest pause between tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What a job is given, if anything.
pub(super) fn of(spec: &JobSpec, backend: &Arc<dyn Backend>, defaults: &Defaults) -> Option<Inputs> {
    if spec.inputs().is_empty() {
        return None;
    }
    let resources = spec.resources();
    let bounds = Bounds {
        // The workspace itself is one of them.
        entries: resources.inodes_or(defaults.inodes).saturating_sub(1).min(MAX_INPUT_ENTRIES),
        bytes: resources.disk.unwrap_or(defaults.disk).as_u64(),
    };
    let backend = Arc::clone(backend);
    let source: Source = Arc::new(move |digest, from| {
        let backend = Arc::clone(&backend);
        Box::pin(async move { backend.read_blob(digest, from).await })
    });
    let inputs: Arc<[Input]> = spec.inputs().into();
    Some(Inputs::new(WORKDIR, move || stream(&inputs, bounds, &source)))
}

/// Where contents come from: each from an offset on.
type Source = Arc<dyn Fn(Digest, u64) -> BoxFuture<'static, Result<BlobPieces, BackendError>> + Send + Sync>;

fn stream(inputs: &Arc<[Input]>, bounds: Bounds, source: &Source) -> mpsc::Receiver<InputPiece> {
    let (pieces, receiver) = mpsc::channel(PIECES);
    let (inputs, source, runtime) = (Arc::clone(inputs), Arc::clone(source), Handle::current());
    // Nobody waits for it: it ends with the stream that it makes.
    drop(tokio::task::spawn_blocking(move || {
        let mut sink = Pieces { writer: InputWriter::default(), out: Vec::new(), pieces };
        let poured = pour(&inputs, bounds, &mut sink, |digest| Content::open(digest, &source, &runtime));
        sink.end(poured);
    }));
    receiver
}

/// Why a stream is not carried on.
enum Stopped {
    /// The job cannot be given it.
    Cause(Cause),
    /// Nobody wants it any more.
    Unwanted,
}

fn pour(
    inputs: &[Input],
    bounds: Bounds,
    sink: &mut Pieces,
    mut open: impl FnMut(Digest) -> Content,
) -> Result<(), Stopped> {
    let mut tree = Tree::new(bounds);
    for (n, input) in inputs.iter().enumerate() {
        let given = give(input, &mut tree, sink, &mut open);
        given.map_err(|unread| match unread {
            Ungiven::Archive(Unread::Refused(refusal)) => refused(n, &refusal.to_string()),
            // The sink fails when nobody takes its pieces.
            Ungiven::Archive(Unread::Failed(_)) => Stopped::Unwanted,
            Ungiven::Gone(reason) => refused(n, &reason),
            Ungiven::Away(reason) => Stopped::Cause(Cause::InputsFailed { reason: format!("inputs[{n}]: {reason}") }),
        })?;
    }
    Ok(())
}

fn refused(n: usize, reason: &str) -> Stopped {
    Stopped::Cause(Cause::InputRefused { input: format!("inputs[{n}]"), reason: reason.to_owned() })
}

/// Why one input is not given.
enum Ungiven {
    Archive(Unread),
    /// The backend does not have it.
    Gone(String),
    /// It cannot be had now.
    Away(String),
}

impl From<Unread> for Ungiven {
    fn from(unread: Unread) -> Self {
        Self::Archive(unread)
    }
}

fn give(
    input: &Input,
    tree: &mut Tree,
    sink: &mut Pieces,
    open: &mut impl FnMut(Digest) -> Content,
) -> Result<(), Ungiven> {
    match &input.content {
        InputContent::Inline { bytes, executable } => {
            tree.file(&input.path, *executable, bytes.len() as u64, sink)?;
            Ok(sink.data(bytes).map_err(Unread::from)?)
        }
        InputContent::File { blob, executable, .. } => {
            let mut content = open(*blob);
            let size = content.size()?;
            tree.file(&input.path, *executable, size, sink)?;
            while let Some(piece) = content.piece()? {
                sink.data(&piece).map_err(Unread::from)?;
            }
            content.whole()
        }
        InputContent::Archive { blob, .. } => {
            let mut content = open(*blob);
            content.size()?;
            match archive::unpack(&mut content, &input.path, tree, sink) {
                Ok(()) => content.whole(),
                // What is said of half an archive says nothing of it.
                Err(unread) => Err(content.failed.take().unwrap_or(Ungiven::Archive(unread))),
            }
        }
    }
}

/// Makes pieces of entries, and hands them on.
struct Pieces {
    writer: InputWriter,
    out: Vec<u8>,
    pieces: mpsc::Sender<InputPiece>,
}

impl Pieces {
    fn flush(&mut self) -> io::Result<()> {
        let piece = InputPiece::Bytes(std::mem::take(&mut self.out).into());
        self.pieces.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush_if_full(&mut self) -> io::Result<()> {
        if self.out.len() >= PIECE { self.flush() } else { Ok(()) }
    }

    fn end(mut self, poured: Result<(), Stopped>) {
        let last = match poured {
            Ok(()) => {
                let totals = std::mem::take(&mut self.writer).end(&mut self.out);
                if self.flush().is_err() {
                    return;
                }
                InputPiece::End(totals)
            }
            Err(Stopped::Cause(cause)) => InputPiece::Failed(cause),
            Err(Stopped::Unwanted) => return,
        };
        // Nobody there: nobody wants to know.
        let _ = self.pieces.blocking_send(last);
    }
}

impl Sink for Pieces {
    fn folder(&mut self, path: &str) -> io::Result<()> {
        self.writer.folder(path, &mut self.out);
        self.flush_if_full()
    }

    fn file(&mut self, path: &str, executable: bool, bytes: u64) -> io::Result<()> {
        self.writer.file(path, executable, bytes, &mut self.out);
        self.flush_if_full()
    }

    fn data(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.writer.data(bytes);
        while !bytes.is_empty() {
            let room = PIECE.saturating_sub(self.out.len()).min(bytes.len());
            let (here, rest) = bytes.split_at(room);
            self.out.extend_from_slice(here);
            bytes = rest;
            self.flush_if_full()?;
        }
        Ok(())
    }

    fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.writer.link(path, target, &mut self.out);
        self.flush_if_full()
    }
}

/// What comes of a content, first its size.
enum Fetched {
    Size(u64),
    Bytes(Bytes),
    Failed(BackendError),
}

/// A content of the backend, as it comes.
struct Content {
    digest: Digest,
    hash: Sha256,
    size: u64,
    came: u64,
    rest: Bytes,
    fetched: mpsc::Receiver<Fetched>,
    failed: Option<Ungiven>,
}

impl Content {
    fn open(digest: Digest, source: &Source, runtime: &Handle) -> Self {
        let (to, fetched) = mpsc::channel(FETCHED);
        let source = Arc::clone(source);
        drop(runtime.spawn(async move { fetch(digest, &source, &to).await }));
        Self { digest, hash: Sha256::new(), size: 0, came: 0, rest: Bytes::new(), fetched, failed: None }
    }

    fn size(&mut self) -> Result<u64, Ungiven> {
        match self.fetched.blocking_recv() {
            Some(Fetched::Size(size)) => {
                self.size = size;
                Ok(size)
            }
            Some(Fetched::Failed(error)) => Err(ungiven(error)),
            Some(Fetched::Bytes(_)) | None => Err(Ungiven::Away("the backend did not answer".to_owned())),
        }
    }

    /// The next bytes; `None` at the end.
    fn piece(&mut self) -> Result<Option<Bytes>, Ungiven> {
        if self.came == self.size {
            return Ok(None);
        }
        match self.fetched.blocking_recv() {
            Some(Fetched::Bytes(bytes)) if self.came + bytes.len() as u64 <= self.size => {
                self.hash.update(&bytes);
                self.came += bytes.len() as u64;
                Ok(Some(bytes))
            }
            Some(Fetched::Failed(error)) => Err(ungiven(error)),
            Some(Fetched::Bytes(_) | Fetched::Size(_)) => {
                Err(Ungiven::Away(format!("{} came longer than it is", self.digest)))
            }
            None => Err(Ungiven::Away(format!("{} came to no end", self.digest))),
        }
    }

    /// It was read to its end, and is what its name says.
    fn whole(&mut self) -> Result<(), Ungiven> {
        while self.piece()?.is_some() {}
        let got = Digest::new(std::mem::take(&mut self.hash).finalize().into());
        if got == self.digest { Ok(()) } else { Err(Ungiven::Away(format!("{} came as {got}", self.digest))) }
    }
}

fn ungiven(error: BackendError) -> Ungiven {
    match error.retry {
        Retry::Never => Ungiven::Gone(error.message),
        Retry::Transient | Retry::Throttled(_) => Ungiven::Away(error.message),
    }
}

impl Read for Content {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            match self.piece() {
                Ok(Some(bytes)) => self.rest = bytes,
                Ok(None) => return Ok(0),
                Err(failed) => {
                    self.failed = Some(failed);
                    return Err(io::Error::other("the content does not come"));
                }
            }
        }
        let count = self.rest.len().min(to.len());
        self.rest.copy_to_slice(&mut to[..count]);
        Ok(count)
    }
}

/// Brings a content, however often it breaks off, as long as it gets on.
async fn fetch(digest: Digest, source: &Source, to: &mpsc::Sender<Fetched>) {
    let (mut size, mut from) = (None, 0);
    let mut pause = pauses(PAUSES.0, PAUSES.1);
    let mut until = Instant::now() + GIVE_UP;
    loop {
        let before = from;
        let error = match fetch_from(digest, source, &mut size, &mut from, &mut until, to).await {
            Ok(()) => return,
            Err(Fetch::Unwanted) => return,
            Err(Fetch::Broken(error)) => error,
        };
        if from > before {
            pause = pauses(PAUSES.0, PAUSES.1);
        }
        let wait = match error.retry {
            Retry::Throttled(wait) => wait,
            Retry::Never | Retry::Transient => pause.next().unwrap_or(PAUSES.1),
        };
        if error.retry == Retry::Never || Instant::now() + wait >= until {
            let _ = to.send(Fetched::Failed(error)).await;
            return;
        }
        tracing::debug!(%digest, from, %error, "a content broke off; it goes on from there");
        sleep(wait).await;
    }
}

enum Fetch {
    Broken(BackendError),
    Unwanted,
}

async fn fetch_from(
    digest: Digest,
    source: &Source,
    size: &mut Option<u64>,
    from: &mut u64,
    until: &mut Instant,
    to: &mpsc::Sender<Fetched>,
) -> Result<(), Fetch> {
    let broken = |message: String| Fetch::Broken(BackendError { retry: Retry::Transient, message });
    let stalled = || broken(format!("nothing of {digest} came for {} s", STALL.as_secs()));
    let (whole, mut pieces) =
        timeout(STALL, source(digest, *from)).await.map_err(|_| stalled())?.map_err(Fetch::Broken)?;
    match size {
        None => {
            *size = Some(whole);
            to.send(Fetched::Size(whole)).await.map_err(|_| Fetch::Unwanted)?;
        }
        Some(known) if *known != whole => {
            return Err(broken(format!("{digest} has {whole} bytes now, and had {known}")));
        }
        Some(_) => {}
    }
    while *from < whole {
        let piece = timeout(STALL, pieces.next()).await.map_err(|_| stalled())?;
        let piece =
            piece.ok_or_else(|| broken(format!("{digest} broke off after {from} bytes")))?.map_err(Fetch::Broken)?;
        *from += piece.len() as u64;
        to.send(Fetched::Bytes(piece)).await.map_err(|_| Fetch::Unwanted)?;
        // From when it was taken: a warden that is slow is no fault of the backend.
        *until = Instant::now() + GIVE_UP;
    }
    Ok(())
}

#[cfg(test)]
#[path = "inputs_tests.rs"]
mod tests;
