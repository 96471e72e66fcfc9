//! One job's part of a connection to a hub.
//!
//! Owns the job's queue: what arrived and its conversation has not taken. Its bound is above what a warden that keeps to its window can fill.

use super::hub::Shared;
use crate::executor::Link;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::AsyncWrite;
use tokio::sync::{Notify, oneshot, watch};

/// Bytes of one job that nobody has taken: twice what its warden may have on its way of output and of files together.
const MOST_QUEUED: usize = 8 << 20;
/// What a piece costs beside its bytes.
const OVERHEAD: usize = 64;

/// Why there is no link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::executor::ssh) enum Failed {
    /// The hub says so.
    Said {
        /// The kernel's number of an error.
        errno: i32,
        /// What could not be done.
        step: String,
    },
    /// The connection to it has ended.
    Cut(String),
}

/// How a channel ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::executor::ssh) enum End {
    /// What looked after the job has ended, and nothing of it is left.
    Over(i32),
    /// Somebody else has it, or there never was one.
    Failed {
        /// The kernel's number of an error.
        errno: i32,
        /// What the hub says of it.
        step: String,
    },
    /// The connection went; the job may go on.
    Cut(String),
}

impl End {
    fn sentence(&self) -> String {
        match self {
            Self::Over(code) => format!("what looked after it there has ended ({code})"),
            Self::Failed { errno, step } => {
                format!("{step}: {}", io::Error::from_raw_os_error(*errno))
            }
            Self::Cut(reason) => reason.clone(),
        }
    }
}

/// The job's folder, or why there is no link.
type Answer = Result<String, Failed>;

/// What a hub's task puts into, and a job's link takes from.
pub(super) struct Line {
    queue: Mutex<Queue>,
    filled: Notify,
    end: watch::Sender<Option<End>>,
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    answer: Option<oneshot::Sender<Answer>>,
    /// Nobody takes anything any more.
    deaf: bool,
    /// It did not keep to its window.
    overrun: bool,
}

impl Line {
    pub(super) fn new() -> (Arc<Self>, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        let (end, _) = watch::channel(None);
        let queue = Queue { answer: Some(answer), ..Queue::default() };
        (Arc::new(Self { queue: Mutex::new(queue), filled: Notify::new(), end }), answered)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, answer: Answer) {
        if let Some(tell) = self.queue().answer.take() {
            // Who does not want to know any more leaves the channel.
            let _ = tell.send(answer);
        }
    }

    pub(super) fn opened(&self, dir: String) {
        self.answer(Ok(dir));
    }

    pub(super) fn put(&self, bytes: &[u8]) {
        {
            let mut queue = self.queue();
            if queue.deaf || queue.overrun {
                return;
            }
            if queue.bytes + bytes.len() + OVERHEAD > MOST_QUEUED {
                // The link ends here, so nothing is missing in the middle.
                queue.overrun = true;
            } else {
                queue.bytes += bytes.len() + OVERHEAD;
                queue.pieces.push_back(Bytes::copy_from_slice(bytes));
            }
        }
        self.filled.notify_one();
    }

    fn finish(&self, end: End) {
        self.end.send_replace(Some(end));
        self.filled.notify_one();
    }

    pub(super) fn failed(&self, errno: i32, step: String) {
        self.answer(Err(Failed::Said { errno, step: step.clone() }));
        self.finish(End::Failed { errno, step });
    }

    pub(super) fn ended(&self, code: i32) {
        self.answer(Err(Failed::Cut(End::Over(code).sentence())));
        self.finish(End::Over(code));
    }

    pub(super) fn cut(&self, reason: &str) {
        self.answer(Err(Failed::Cut(reason.to_owned())));
        self.finish(End::Cut(reason.to_owned()));
    }

    /// The next piece, or why there is none any more.
    async fn next(&self) -> Result<Bytes, String> {
        loop {
            {
                let mut queue = self.queue();
                if let Some(piece) = queue.pieces.pop_front() {
                    queue.bytes -= piece.len() + OVERHEAD;
                    return Ok(piece);
                }
                if queue.overrun {
                    return Err("it sends more than its window allows".to_owned());
                }
            }
            if let Some(end) = &*self.end.borrow() {
                return Err(end.sentence());
            }
            self.filled.notified().await;
        }
    }
}

/// A channel of a hub, until nobody holds it any more: then it is left, and the job goes on.
pub(in crate::executor::ssh) struct Joint {
    hub: Arc<Shared>,
    channel: u16,
    line: Arc<Line>,
    dir: OnceLock<String>,
}

impl Drop for Joint {
    fn drop(&mut self) {
        self.hub.leave(self.channel, &self.line);
    }
}

impl Joint {
    pub(super) fn new(hub: Arc<Shared>, channel: u16, line: Arc<Line>) -> Self {
        Self { hub, channel, line, dir: OnceLock::new() }
    }

    pub(super) fn set_opened(&self, dir: String) {
        let _ = self.dir.set(dir);
    }

    /// The job's folder.
    pub(in crate::executor::ssh) fn dir(&self) -> &str {
        self.dir.get().map_or("", String::as_str)
    }

    /// How it ended, if it has.
    pub(in crate::executor::ssh) fn end(&self) -> Option<End> {
        self.line.end.borrow().clone()
    }

    /// Waits for its end, for so long.
    pub(in crate::executor::ssh) async fn ended(&self, limit: Duration) -> Option<End> {
        let mut end = self.line.end.subscribe();
        let ended = tokio::time::timeout(limit, end.wait_for(Option::is_some)).await;
        ended.ok()?.ok()?.clone()
    }

    /// The link over it; there is one.
    pub(in crate::executor::ssh) fn link(self: &Arc<Self>) -> Link {
        let ears = Ears(Arc::clone(self));
        let output = futures_util::stream::unfold(Some(ears), |ears| async {
            let ears = ears?;
            match ears.0.line.next().await {
                Ok(piece) => Some((Ok(piece), Some(ears))),
                Err(reason) => Some((Err(reason), None)),
            }
        });
        Link { output: Box::pin(output), input: Box::pin(Mouth(Arc::clone(self))) }
    }
}

/// Takes what arrives.
struct Ears(Arc<Joint>);

impl Drop for Ears {
    fn drop(&mut self) {
        let mut queue = self.0.line.queue();
        queue.deaf = true;
        queue.pieces = VecDeque::new();
        queue.bytes = 0;
    }
}

/// Says what a conversation has to say.
struct Mouth(Arc<Joint>);

impl AsyncWrite for Mouth {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        match self.0.hub.say((self.0.channel, &self.0.line), buf, cx.waker()) {
            Ok(Some(count)) => Poll::Ready(Ok(count)),
            Ok(None) => Poll::Pending,
            Err(reason) => Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, reason))),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
