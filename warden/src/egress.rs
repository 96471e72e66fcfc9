//! The proxy in the cell: HTTP CONNECT, plain HTTP and SOCKS5 on one port of the loopback, carried to the agent stream by stream.
//!
//! Owns the listener and its clients. Decides nothing about where they may go, and must never wait for one: what a client does not take
//! fills its own window and nobody else's; what the transport does not take is not read from a client at all, so it is not held here.
//!
//! Memory, in the warden's reserve: [`COMMON_BYTES`] and a small window for each client, and [`HEADS_BYTES`] of what they say at first.
//! All places taken: further clients wait in the kernel's queue.

mod ask;
mod conn;

use crate::mask::Patterns;
use crate::plan::Variable;
use crate::sys::{self, POLLIN, POLLOUT, PollFd};
use crate::wire::{
    ALL_STREAMS, EGRESS_CONNECTIONS, EGRESS_PIECE, EGRESS_WINDOW, Egress as Message, EgressFault, FromWarden,
    egress_data,
};
use ask::{Asked, HEAD_MAX, Kind};
use conn::{Conn, State};
use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// What windows may grow by, all together.
const COMMON_BYTES: u32 = 1 << 20;
/// What clients may have said before they are answered, all together.
const HEADS_BYTES: usize = 512 * 1024;
/// For a client to say what it wants, and to hear why not.
const PATIENCE_NS: u64 = 30_000_000_000;
const FAREWELL_NS: u64 = 2_000_000_000;
/// Before the next try to take a client, after one that failed: descriptors or memory are short.
const ACCEPT_PAUSE_NS: u64 = 100_000_000;
/// One number tells the place, the rest of it who has it.
const PLACES: u32 = 1 << 8;
/// Clients taken before the loop looks at its other work.
const ACCEPTS_PER_TURN: usize = 32;

const _: () = assert!(EGRESS_CONNECTIONS as u32 <= PLACES);
const _: () =
    assert!(EGRESS_CONNECTIONS as usize * conn::WINDOW_LEAST as usize + COMMON_BYTES as usize + HEADS_BYTES <= 7 << 19);

pub(crate) struct Egress {
    listener: TcpListener,
    port: u16,
    conns: Vec<Option<Box<Conn>>>,
    /// Who has something to tell the agent; each once.
    tells: VecDeque<usize>,
    /// Who may have something to read; each once.
    reads: VecDeque<usize>,
    /// Clients so far.
    count: u32,
    common: u32,
    heads: usize,
    /// What all together may still send.
    credit: u32,
    accept_at: u64,
    scratch: Vec<u8>,
    /// Places in the order in which they were put into the last poll.
    polled: Vec<usize>,
    patterns: Option<Arc<Patterns>>,
}

impl Egress {
    /// Begins to listen, for so many clients at a time.
    pub(crate) fn start(connections: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let places = usize::from(connections.clamp(1, EGRESS_CONNECTIONS));
        Ok(Self {
            listener,
            port,
            conns: (0..places).map(|_| None).collect(),
            tells: VecDeque::with_capacity(places),
            reads: VecDeque::with_capacity(places),
            count: 0,
            common: COMMON_BYTES,
            heads: 0,
            credit: EGRESS_WINDOW,
            accept_at: 0,
            // Written, not only reserved: the memory is there before the job can take it.
            scratch: vec![1; EGRESS_PIECE],
            polled: Vec::with_capacity(places),
            patterns: None,
        })
    }

    /// What is not to be told of where a job wants to go.
    pub(crate) fn hide(&mut self, patterns: Option<Arc<Patterns>>) {
        self.patterns = patterns;
    }

    /// Variables that tell programs of the proxy, as far as the job does not speak of it in either case of letters.
    pub(crate) fn variables(&self, env: &[Variable]) -> Vec<Variable> {
        // ALL_PROXY speaks HTTP as well: some programs stop at a socks address for which they lack a module.
        let proxy = format!("http://127.0.0.1:{}", self.port);
        let all = [
            ("HTTP_PROXY", proxy.as_str()),
            ("HTTPS_PROXY", &proxy),
            ("ALL_PROXY", &proxy),
            ("NO_PROXY", "localhost,127.0.0.1,::1"),
        ];
        let set = |name: &str| env.iter().any(|(known, _)| known.eq_ignore_ascii_case(name.as_bytes()));
        let both = |(name, value): (&str, &str)| {
            [name.to_owned(), name.to_ascii_lowercase()].map(|name| (name.into_bytes(), value.as_bytes().to_vec()))
        };
        all.into_iter().filter(|(name, _)| !set(name)).flat_map(both).collect()
    }

    /// A session begins. What was carried over the last one is over; who only waited for an answer asks again.
    pub(crate) fn begin(&mut self) {
        self.credit = EGRESS_WINDOW;
        for place in 0..self.conns.len() {
            let Some(conn) = &mut self.conns[place] else { continue };
            match conn.state {
                State::Head { .. } | State::Asking | State::Closing => {}
                State::Asked => {
                    conn.state = State::Asking;
                    self.tell(place);
                }
                State::Open => {
                    sys::reset_on_close(conn.fd());
                    self.remove(place);
                }
                State::Dead => self.remove(place),
            }
        }
    }

    /// Whether all that clients have said is on its way. Asked when there are no processes left, so nobody says more.
    pub(crate) fn is_quiet(&self) -> bool {
        self.conns.iter().flatten().all(|conn| conn.state != State::Open || conn.up_done)
    }

    /// Adds what is waited for.
    pub(crate) fn poll_entries(&mut self, now: u64, fds: &mut Vec<PollFd>) {
        let free = self.conns.iter().any(Option::is_none) && now >= self.accept_at;
        fds.push(PollFd::new(self.listener.as_raw_fd(), if free { POLLIN } else { 0 }));
        self.polled.clear();
        for (place, conn) in self.conns.iter().enumerate() {
            let Some(conn) = conn else { continue };
            let reads = match conn.state {
                State::Head { .. } => self.heads < HEADS_BYTES,
                State::Open => !conn.up_done && !conn.readable && conn.up_credit > 0 && self.credit > 0,
                State::Closing => true,
                State::Asking | State::Asked | State::Dead => false,
            };
            let events = if reads { POLLIN } else { 0 } | if conn.has_down() { POLLOUT } else { 0 };
            if events != 0 {
                fds.push(PollFd::new(conn.fd(), events));
                self.polled.push(place);
            }
        }
    }

    /// When something is to be done without anybody asking.
    pub(crate) fn wake_at(&self) -> Option<u64> {
        let waits = |conn: &Conn| matches!(conn.state, State::Head { .. } | State::Closing);
        let clients = self.conns.iter().flatten().filter(|conn| waits(conn)).map(|conn| conn.until);
        clients.chain((self.accept_at > 0).then_some(self.accept_at)).min()
    }

    /// Does what can be done, after a poll with [`poll_entries`](Self::poll_entries) behind others.
    pub(crate) fn turn(&mut self, ready: &[PollFd], now: u64) {
        let polled = std::mem::take(&mut self.polled);
        for (place, entry) in polled.iter().zip(ready.get(1..).unwrap_or_default()) {
            if entry.ready() {
                self.client(*place, now);
            }
        }
        self.polled = polled;
        if self.accept_at <= now {
            self.accept_at = 0;
        }
        if ready.first().is_some_and(PollFd::ready) {
            self.accept(now);
        }
        for place in 0..self.conns.len() {
            let late = |conn: &Conn| now >= conn.until && matches!(conn.state, State::Head { .. } | State::Closing);
            if self.conns[place].as_deref().is_some_and(late) {
                self.remove(place);
            }
        }
    }

    fn accept(&mut self, now: u64) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(place) = self.conns.iter().position(Option::is_none) else { return };
            match self.listener.accept() {
                Ok((socket, _)) => {
                    if socket.set_nonblocking(true).is_err() {
                        continue;
                    }
                    let _ = socket.set_nodelay(true);
                    self.count = self.count.wrapping_add(1) % (u32::MAX / PLACES);
                    let id = (self.count + 1) * PLACES + place as u32;
                    self.conns[place] = Some(Box::new(Conn::new(id, socket, now.saturating_add(PATIENCE_NS))));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.accept_at = now.saturating_add(ACCEPT_PAUSE_NS);
                    return;
                }
            }
        }
    }

    fn client(&mut self, place: usize, now: u64) {
        let Some(conn) = &mut self.conns[place] else { return };
        let state = conn.state;
        let done = match state {
            State::Head { .. } => return self.listen(place, now),
            State::Closing => {
                // What it still says is not wanted, and closing before it has said it would take the answer away from it.
                let left = matches!(sys::read_some(conn.fd(), &mut self.scratch), Ok(Some(0)) | Err(_));
                conn.write().is_err() || left
            }
            State::Open => {
                if !conn.readable && !conn.up_done {
                    conn.readable = true;
                    self.reads.push_back(place);
                }
                let failed = conn.write().is_err();
                if failed {
                    return self.reset(place);
                }
                self.after_write(place);
                return;
            }
            State::Asking | State::Asked | State::Dead => return,
        };
        if done {
            self.remove(place);
        }
    }

    /// Credit is told, and who is done goes.
    fn after_write(&mut self, place: usize) {
        let Some(conn) = &self.conns[place] else { return };
        if conn.is_done() {
            self.remove(place);
        } else if conn.owes() {
            self.tell(place);
        }
    }

    /// Reads of what a client wants.
    fn listen(&mut self, place: usize, now: u64) {
        let Some(conn) = &mut self.conns[place] else { return };
        let State::Head { greeted } = conn.state else { return };
        let most = HEAD_MAX.saturating_sub(conn.up.len()).max(1);
        match sys::read_some(conn.fd(), &mut self.scratch[..most]) {
            Ok(None) => return,
            Ok(Some(0)) | Err(_) => return self.remove(place),
            Ok(Some(count)) => {
                conn.up.extend_from_slice(&self.scratch[..count]);
                self.heads += count;
            }
        }
        let (before, mut secret) = (conn.up.len(), None);
        let failed = match ask::read(&conn.up, greeted) {
            Asked::More => false,
            Asked::Answer(bytes, taken) => {
                conn.up.drain(..taken);
                conn.state = State::Head { greeted: true };
                conn.answer(bytes).is_err()
            }
            Asked::Go(target) => {
                (conn.kind, conn.host, conn.port, conn.up) = (target.kind, target.host, target.port, target.first);
                let hidden = self.patterns.as_ref().is_some_and(|patterns| patterns.text(&conn.host) != conn.host);
                conn.state = if hidden { State::Asked } else { State::Asking };
                if hidden {
                    secret = Some(conn.id);
                } else {
                    self.tell(place);
                }
                false
            }
            Asked::Bad(answer) => {
                conn.up = Vec::new();
                (conn.state, conn.until) = (State::Closing, now.saturating_add(FAREWELL_NS));
                conn.down_done = true;
                conn.answer(&answer).is_err()
            }
        };
        let after = self.conns[place].as_ref().map_or(0, |conn| conn.up.len());
        // A request that was written anew may be a little longer.
        self.heads = (self.heads + after).saturating_sub(before);
        if failed {
            self.remove(place);
        }
        if let Some(stream) = secret {
            // Where a job wants to go is told in its result and in logs, and asked of name servers.
            let text = "the host's name has one of the job's secrets in it".to_owned();
            self.obey(Message::Failed { stream, fault: EgressFault::Refused, text });
        }
    }

    /// Takes a word of the agent's.
    pub(crate) fn obey(&mut self, message: Message) {
        let stream = message.stream();
        if let (ALL_STREAMS, Message::Credit { bytes, .. }) = (stream, &message) {
            self.credit = self.credit.saturating_add(*bytes).min(EGRESS_WINDOW);
            return;
        }
        let place = (stream % PLACES) as usize;
        let Some(conn) = self.conns.get_mut(place).and_then(Option::as_mut).filter(|conn| conn.id == stream) else {
            return;
        };
        let worked = match (message, conn.state) {
            (Message::Opened { credit, .. }, State::Asked) => {
                conn.state = State::Open;
                conn.up_credit = credit;
                let answer = match conn.kind {
                    Kind::Connect => &b"HTTP/1.1 200 Connection established\r\n\r\n"[..],
                    Kind::Socks => &ask::socks_answer(0),
                    Kind::Plain => b"",
                };
                let answered = conn.answer(answer);
                // What it has said already waits, and more may have come.
                conn.readable = true;
                self.reads.push_back(place);
                answered
            }
            (Message::Failed { fault, text, .. }, State::Asked) => {
                (conn.state, conn.until) = (State::Closing, sys::boot_ns().saturating_add(FAREWELL_NS));
                conn.down_done = true;
                let answer = refusal(conn.kind, fault, &text);
                let answered = conn.answer(&answer);
                self.heads -= conn.up.len().min(self.heads);
                conn.up = Vec::new();
                if answered.is_err() {
                    self.remove(place);
                }
                return;
            }
            (Message::Data { bytes, .. }, State::Open) => conn.take(&bytes),
            (Message::Eof { .. }, State::Open) => {
                conn.down_done = true;
                conn.write()
            }
            (Message::Reset { .. }, State::Open) => {
                sys::reset_on_close(conn.fd());
                return self.remove(place);
            }
            (Message::Credit { bytes, .. }, State::Open) => {
                conn.up_credit = conn.up_credit.saturating_add(bytes);
                if !conn.readable && !conn.up_done {
                    conn.readable = true;
                    self.reads.push_back(place);
                }
                Ok(())
            }
            // Too late, or of a stream that is over.
            _ => Ok(()),
        };
        match worked {
            Ok(()) => self.after_write(place),
            Err(_) => self.reset(place),
        }
    }

    /// Whether there is something to send.
    pub(crate) fn has_frame(&self) -> bool {
        !self.tells.is_empty() || (self.credit > 0 && !self.reads.is_empty())
    }

    /// Puts the next frame at the end of `out`, if there is one: words first, then what a client says, one piece of each in turn.
    pub(crate) fn frame(&mut self, epoch: u32, out: &mut Vec<u8>) {
        let before = out.len();
        while out.len() == before && self.has_frame() {
            if let Some(place) = self.tells.pop_front() {
                if let Some(message) = self.next_word(place) {
                    FromWarden::Egress(message).encode(epoch, 0, out);
                }
            } else if let Some(place) = self.reads.pop_front() {
                self.piece(place, epoch, out);
            }
        }
    }

    fn tell(&mut self, place: usize) {
        if let Some(conn) = &mut self.conns[place]
            && !conn.queued
        {
            conn.queued = true;
            self.tells.push_back(place);
        }
    }

    fn next_word(&mut self, place: usize) -> Option<Message> {
        let conn = self.conns[place].as_mut()?;
        conn.queued = false;
        match conn.state {
            State::Asking => {
                conn.state = State::Asked;
                let (stream, host, port) = (conn.id, conn.host.clone(), conn.port);
                Some(Message::Open { stream, host, port, credit: conn.first_credit() })
            }
            State::Dead => {
                let stream = conn.id;
                self.remove(place);
                Some(Message::Reset { stream })
            }
            State::Open if conn.owes() => {
                let bytes = conn.grant(&mut self.common);
                Some(Message::Credit { stream: conn.id, bytes })
            }
            _ => None,
        }
    }

    /// One piece of what a client says, or that it says no more.
    fn piece(&mut self, place: usize, epoch: u32, out: &mut Vec<u8>) {
        let Some(conn) = self.conns[place].as_mut().filter(|conn| conn.state == State::Open) else { return };
        conn.readable = false;
        let most = conn.up_credit.min(self.credit) as usize;
        if most == 0 || conn.up_done {
            return;
        }
        let most = most.min(self.scratch.len());
        let count = if conn.up.is_empty() {
            match sys::read_some(conn.fd(), &mut self.scratch[..most]) {
                Ok(None) => return,
                Ok(Some(count)) => count,
                Err(_) => return self.reset(place),
            }
        } else {
            let count = conn.up.len().min(most);
            self.scratch[..count].copy_from_slice(&conn.up[..count]);
            conn.up.drain(..count);
            self.heads -= count.min(self.heads);
            count
        };
        if count == 0 {
            conn.up_done = true;
            FromWarden::Egress(Message::Eof { stream: conn.id }).encode(epoch, 0, out);
            return self.after_write(place);
        }
        egress_data(true, conn.id, &self.scratch[..count], epoch, out);
        conn.up_credit -= count as u32;
        self.credit -= count as u32;
        // There may be more; if not, the next read says so.
        conn.readable = true;
        self.reads.push_back(place);
    }

    /// It is over on this side; the agent is told.
    fn reset(&mut self, place: usize) {
        if let Some(conn) = &mut self.conns[place] {
            sys::reset_on_close(conn.fd());
            conn.state = State::Dead;
            self.tell(place);
        }
    }

    fn remove(&mut self, place: usize) {
        if let Some(conn) = self.conns[place].take() {
            self.common += conn.share();
            self.heads -= conn.up.len().min(self.heads);
            self.tells.retain(|one| *one != place);
            self.reads.retain(|one| *one != place);
        }
    }
}

fn refusal(kind: Kind, fault: EgressFault, text: &str) -> Vec<u8> {
    let (status, code) = match fault {
        EgressFault::Refused => ("403 Forbidden", 2),
        EgressFault::Limit => ("429 Too Many Requests", 1),
        EgressFault::NoName => ("502 Bad Gateway", 4),
        EgressFault::NoAnswer => ("502 Bad Gateway", 5),
        EgressFault::Late => ("504 Gateway Timeout", 4),
    };
    match kind {
        Kind::Socks => ask::socks_answer(code),
        Kind::Connect | Kind::Plain => ask::http_answer(status, text),
    }
}

#[cfg(test)]
#[path = "egress_tests.rs"]
mod tests;
