//! One agent's connection to a hub: what it says, and what waits to be said to it.
//!
//! Owns the two bounds of it: what is held for an agent that does not read, and how long one that is hung up on may take for the last word.

use super::BUFFER_BYTES;
use crate::sys;
use crate::wire::{FromHub, MuxDecoder, from_hub_data};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

/// More than this is not held for an agent that does not read: nothing is asked of keepers meanwhile, nor of the agent.
const MOST_OUT: usize = 256 * 1024;
/// For the reason to go out, once it is hung up on.
const LAST_WORD_NS: u64 = 5_000_000_000;

pub(super) struct Conn {
    socket: UnixStream,
    pub(super) decoder: MuxDecoder,
    out: Vec<u8>,
    /// Bytes at the front of `out` that are gone.
    sent: usize,
    blocked: bool,
    /// Channels, and the keepers that they lead to.
    pub(super) channels: BTreeMap<u16, u64>,
    /// It has said hello.
    pub(super) greeted: bool,
    /// Nothing more is heard of it, and until when it is waited for.
    hung_up: Option<u64>,
    /// It cannot be talked to any more.
    pub(super) broken: bool,
}

impl Conn {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            decoder: MuxDecoder::new(),
            out: Vec::new(),
            sent: 0,
            blocked: false,
            channels: BTreeMap::new(),
            greeted: false,
            hung_up: None,
            broken: false,
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Whether more may be put there.
    pub(super) fn has_room(&self) -> bool {
        self.out.len() - self.sent < MOST_OUT && self.hung_up.is_none() && !self.broken
    }

    /// Whether it is waited for: to be read from, and to be written to.
    pub(super) fn waits(&self) -> (bool, bool) {
        (self.has_room(), self.blocked && !self.broken)
    }

    pub(super) fn say(&mut self, message: &FromHub<'_>) {
        if self.hung_up.is_none() && !self.broken {
            message.encode(&mut self.out);
        }
    }

    /// A piece of a job's stream.
    pub(super) fn pass(&mut self, channel: u16, bytes: &[u8]) {
        self.out.extend_from_slice(&from_hub_data(channel, bytes.len()));
        self.out.extend_from_slice(bytes);
    }

    /// Reads once. False at the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> bool {
        match sys::read_some(self.fd(), buffer) {
            Ok(None) => true,
            Ok(Some(count @ 1..)) => {
                self.decoder.feed(&buffer[..count]);
                true
            }
            Ok(Some(_)) | Err(_) => false,
        }
    }

    /// Writes what it takes.
    pub(super) fn flush(&mut self) {
        self.blocked = false;
        while self.sent < self.out.len() && !self.broken {
            match sys::write_some(self.fd(), &self.out[self.sent..]) {
                Ok(Some(count)) => self.sent += count,
                Ok(None) => {
                    self.blocked = true;
                    break;
                }
                Err(_) => self.broken = true,
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.out.shrink_to(BUFFER_BYTES);
            self.sent = 0;
        } else if self.sent >= MOST_OUT {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Says why, and hears nothing more.
    pub(super) fn hang_up(&mut self, text: String, now: u64) {
        self.say(&FromHub::Fault { text });
        self.hung_up.get_or_insert(now.saturating_add(LAST_WORD_NS));
    }

    /// Whether nothing more comes of it.
    pub(super) fn is_over(&self, now: u64) -> bool {
        let said = self.out.len() == self.sent;
        self.broken || self.hung_up.is_some_and(|until| said || now >= until)
    }

    pub(super) fn wake_at(&self) -> Option<u64> {
        self.hung_up
    }
}
