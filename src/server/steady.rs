//! A connection whose other side has to take what it is sent.
//!
//! Owns the deadline of writes, below HTTP, TLS and WebSockets alike, and the connection's place: it is given back when the connection is
//! closed, whatever it has become meanwhile.

use super::pace::Pace;
use super::places::Place;
use std::future::Future;
use std::io::{Error, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// A stream that fails when its reader takes too little for too long.
#[derive(Debug)]
pub(super) struct Steady<S> {
    inner: S,
    pace: Pace,
    /// Since when nothing could be written.
    since: Option<Instant>,
    over: Pin<Box<Sleep>>,
    _place: Option<Place>,
}

impl<S> Steady<S> {
    pub(super) fn new(inner: S, limit: Duration, place: Option<Place>) -> Self {
        let over = Box::pin(tokio::time::sleep(limit));
        Self { inner, pace: Pace::new(limit), since: None, over, _place: place }
    }

    /// What came of a try to write.
    fn tried(&mut self, cx: &mut Context<'_>, tried: Poll<std::io::Result<usize>>) -> Poll<std::io::Result<usize>> {
        match tried {
            Poll::Ready(Ok(bytes)) => {
                let waited = self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
                Poll::Ready(if self.pace.goes_on(waited, bytes) { Ok(bytes) } else { Err(too_slow()) })
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.wait(cx),
        }
    }

    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        if self.since.is_none() {
            self.begin();
        }
        while self.over.as_mut().poll(cx).is_ready() {
            let waited = self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
            if !self.pace.goes_on(waited, 0) {
                return Poll::Ready(Err(too_slow()));
            }
            self.begin();
        }
        Poll::Pending
    }

    fn begin(&mut self) {
        let now = Instant::now();
        self.since = Some(now);
        self.over.as_mut().reset(now + self.pace.left());
    }
}

fn too_slow() -> Error {
    Error::new(ErrorKind::TimedOut, "its reader takes too little (server.write_timeout)")
}

impl<S: AsyncRead + Unpin> AsyncRead for Steady<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Steady<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let tried = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.tried(cx, tried)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let tried = Pin::new(&mut self.inner).poll_write_vectored(cx, pieces);
        self.tried(cx, tried)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    // Of a socket both are done at once: what waits, waits in `poll_write`.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_or_a_drop_now_and_then_is_cut_off() {
        for drop_every in [None, Some(Duration::from_secs(1))] {
            let (near, mut far) = tokio::io::duplex(4096);
            let mut steady = Steady::new(near, LIMIT, None);
            let begun = Instant::now();
            let reader = async {
                while let Some(every) = drop_every {
                    tokio::time::sleep(every).await;
                    let mut piece = [0; 100];
                    let _ = far.read_exact(&mut piece).await;
                }
                std::future::pending::<()>().await;
            };
            let written = tokio::select! {
                written = steady.write_all(&[7; 1 << 20]) => written,
                () = reader => unreachable!("it reads for ever"),
            };
            assert_eq!(written.expect_err("is cut off").kind(), ErrorKind::TimedOut);
            assert!(begun.elapsed() <= 2 * LIMIT, "{:?}", begun.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_and_a_quiet_stream_are_served() {
        let (near, mut far) = tokio::io::duplex(4096);
        let mut steady = Steady::new(near, LIMIT, None);
        // 2 KiB in a second, for ten minutes; then nothing for an hour, and some more.
        let reader = async {
            let (mut piece, mut all) = ([0; 2048], 0);
            while all < 600 * 2048 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                far.read_exact(&mut piece).await.expect("comes");
                all += piece.len();
            }
            far
        };
        let bytes = vec![7; 600 * 2048];
        let (written, mut far) = tokio::join!(steady.write_all(&bytes), reader);
        written.expect("is taken");
        tokio::time::sleep(Duration::from_secs(3600)).await;
        steady.write_all(b"more").await.expect("is taken");
        let mut more = [0; 4];
        far.read_exact(&mut more).await.expect("comes");
        assert_eq!(&more, b"more");
    }
}
