//! One command on one channel: what goes in, what comes out, and the task that drains it.
//!
//! The drain awaits nothing downstream: a channel that nobody drains stops its whole connection. It also owns the channel's place, until
//! the host has closed the channel: a host counts it for as long as the command lives.

use super::connection::{Connection, Slot};
use super::handshake::ended;
use super::route::StoreBounds;
use super::store::{Event, Kept, Store};
use crate::supervise;
use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;
use tokio::sync::{Notify, watch};

/// Standard error, as RFC 4254 numbers it.
const STDERR: u32 = 1;

/// A command on a host. Dropped before its end, the command's input ends and its output is thrown away: that does not end the command.
pub struct Exec {
    /// What the command reads.
    pub input: Input,
    /// What it writes, and how it ends.
    pub output: Output,
}

/// What a command reads. Shut down or dropped, it ends.
pub struct Input {
    writer: Pin<Box<dyn AsyncWrite + Send>>,
    dropped: Arc<Notify>,
    shut: bool,
}

impl AsyncWrite for Input {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // The library takes an empty write for an error.
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.writer.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shut {
            return Poll::Ready(Ok(()));
        }
        let done = self.writer.as_mut().poll_shutdown(cx);
        self.shut |= done.is_ready();
        done
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        if !self.shut {
            self.dropped.notify_one();
        }
    }
}

/// What a command writes, and how it ends. Dropped after the command's end, it closes the channel, whatever still holds it open there.
pub struct Output {
    store: Arc<Store>,
    connection: u64,
}

impl Output {
    /// The next event; none after the last. May be dropped while it waits, and nothing is lost.
    pub async fn next(&mut self) -> Option<Event> {
        self.store.next().await
    }

    /// True while so much is kept that the job should be stopped (SIGSTOP, over another channel) until it is false again.
    pub fn pressure(&self) -> watch::Receiver<bool> {
        self.store.pressure()
    }

    /// Bytes that are kept.
    pub fn kept(&self) -> usize {
        self.store.bytes()
    }

    /// Which connection of the process it is on, for people and tests.
    pub fn connection(&self) -> u64 {
        self.connection
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.store.leave();
    }
}

/// Makes a channel on which a command was asked for into an [`Exec`], and starts to drain it.
pub(super) fn start(channel: Channel<Msg>, connection: &Arc<Connection>, slot: Slot, bounds: StoreBounds) -> Exec {
    let (read, write) = channel.split();
    let store = Arc::new(Store::new(bounds));
    let dropped = Arc::new(Notify::new());
    let input = Input { writer: Box::pin(write.make_writer()), dropped: Arc::clone(&dropped), shut: false };
    let output = Output { store: Arc::clone(&store), connection: connection.number };
    let drain = Drain { write: Arc::new(write), store, slot, exited: false };
    // It ends with the channel, or with the connection at the latest.
    drop(supervise::spawn("ssh channel", drain.run(read, dropped)));
    Exec { input, output }
}

struct Drain {
    write: Arc<ChannelWriteHalf<Msg>>,
    store: Arc<Store>,
    slot: Slot,
    exited: bool,
}

impl Drain {
    async fn run(mut self, mut read: ChannelReadHalf, input_dropped: Arc<Notify>) {
        let mut told = false;
        let closed = loop {
            if self.exited && self.store.is_left() {
                break false;
            }
            let message = tokio::select! {
                message = read.wait() => message,
                () = input_dropped.notified(), if !told => {
                    told = true;
                    self.end_input();
                    continue;
                }
                () = self.store.left.notified() => continue,
            };
            let event = match message {
                Some(ChannelMsg::Data { data }) => Event::Stdout(data),
                Some(ChannelMsg::ExtendedData { data, ext: STDERR }) => Event::Stderr(data),
                Some(ChannelMsg::ExitStatus { exit_status }) => {
                    self.exited = true;
                    Event::Exit(exit_status)
                }
                Some(ChannelMsg::ExitSignal { signal_name, core_dumped, .. }) => {
                    self.exited = true;
                    Event::Signal { name: signal(&signal_name), core_dumped }
                }
                Some(ChannelMsg::Eof) => Event::Eof,
                Some(ChannelMsg::Failure) => {
                    self.store.push(Event::Refused);
                    break false;
                }
                Some(ChannelMsg::Close) => break true,
                Some(_) => continue,
                None => {
                    let ending = ended(self.slot.connection().lost.clone()).await;
                    self.store.push(Event::Lost(ending.sentence()));
                    return;
                }
            };
            self.keep(event).await;
        };
        // What is behind this in the queue of the connection must not wait for it.
        drop(read);
        if !closed {
            // The command has ended, so the host has only the channel to let go; what still writes to it there gets an error. In the
            // connection's order, that comes before the next channel.
            let _ = self.write.close().await;
        }
        self.store.push(Event::Closed);
    }

    /// Keeps an event; without room, and alone on its connection, it lets the connection wait, and so the host. With others on it, output
    /// is not kept from here on.
    async fn keep(&self, event: Event) {
        let mut event = event;
        let mut alone = None;
        loop {
            match self.store.push(event) {
                Kept::Yes | Kept::Gone => return,
                Kept::Full(back) => event = back,
            }
            if alone.is_none() {
                alone = self.slot.connection().choke();
            }
            if alone.is_none() {
                return self.store.overrun();
            }
            tokio::select! {
                () = self.store.taken.notified() => {}
                () = self.slot.connection().closing.cancelled() => return self.store.overrun(),
            }
        }
    }

    /// Ends the command's input, apart from the drain: the connection may be busy handing output to it.
    fn end_input(&self) {
        let write = Arc::clone(&self.write);
        drop(supervise::spawn("ssh end of input", async move {
            let _ = write.eof().await;
        }));
    }
}

fn signal(signal: &Sig) -> String {
    match signal {
        Sig::Custom(name) => crate::job::one_line(name, 32),
        known => format!("{known:?}"),
    }
}
