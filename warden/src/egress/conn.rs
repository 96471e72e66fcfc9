//! One client of the proxy: what it was given, what it is owed, and where it stands.
//!
//! ```text
//!   head ──asked──► asking ──open sent──► asked ──opened──► open ──both sides done──► (gone)
//!     └──bad──► closing ◄──────failed───────┘                 └──reset──► dead, until that is told
//! ```

use super::ask::Kind;
use crate::sys;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};

/// What every stream may be sent, whatever the others have.
pub(super) const WINDOW_LEAST: u32 = 8 * 1024;
/// What one may grow to, from the common share.
const WINDOW_MOST: u32 = 512 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It has not said all that it wants to say.
    Head {
        greeted: bool,
    },
    /// It wants to go somewhere, and the agent is to be asked.
    Asking,
    /// It was asked.
    Asked,
    Open,
    /// It is told why not, and then it is over.
    Closing,
    /// The agent is to be told that it is over.
    Dead,
}

pub(super) struct Conn {
    pub(super) id: u32,
    pub(super) socket: TcpStream,
    pub(super) state: State,
    pub(super) kind: Kind,
    pub(super) host: String,
    pub(super) port: u16,
    /// What it said: its head, and then what of it goes to the server.
    pub(super) up: Vec<u8>,
    /// On its way to the client; at most the window, and the answer to its head.
    down: Vec<u8>,
    down_at: usize,
    /// The most that may be on its way to the client: what the agent may send, what lies here, and what is owed.
    window: u32,
    granted: u32,
    owed: u32,
    pub(super) up_credit: u32,
    /// There may be something to read.
    pub(super) readable: bool,
    /// The client says no more, and the agent knows it.
    pub(super) up_done: bool,
    /// The server says no more.
    pub(super) down_done: bool,
    shut: bool,
    /// It is in the queue of those who have something to tell.
    pub(super) queued: bool,
    /// When it is given up, for one that is slow to say what it wants or to hear why not.
    pub(super) until: u64,
}

impl Conn {
    pub(super) fn new(id: u32, socket: TcpStream, until: u64) -> Self {
        Self {
            id,
            socket,
            state: State::Head { greeted: false },
            kind: Kind::Connect,
            host: String::new(),
            port: 0,
            up: Vec::new(),
            down: Vec::new(),
            down_at: 0,
            window: WINDOW_LEAST,
            granted: 0,
            owed: 0,
            up_credit: 0,
            readable: false,
            up_done: false,
            down_done: false,
            shut: false,
            queued: false,
            until,
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// What the agent may send at once.
    pub(super) fn first_credit(&mut self) -> u32 {
        (self.granted, self.owed) = (self.window, 0);
        self.window
    }

    pub(super) fn has_down(&self) -> bool {
        self.down_at < self.down.len()
    }

    /// Puts an answer of the proxy's own on its way.
    pub(super) fn answer(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.down.extend_from_slice(bytes);
        self.write()
    }

    /// Takes bytes of the server. Error: it was given more than it had credit for, or the client is gone.
    pub(super) fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let count = u32::try_from(bytes.len()).ok().filter(|count| *count <= self.granted);
        self.granted -= count.ok_or(io::ErrorKind::InvalidData)?;
        let mut rest = bytes;
        if !self.has_down() {
            let written = sys::write_some(self.fd(), bytes)?.unwrap_or_default();
            self.owed += written as u32;
            rest = &bytes[written..];
        }
        // Only what is still to be written takes memory, and no more of it than that.
        self.down.drain(..self.down_at);
        self.down_at = 0;
        self.down.reserve_exact(rest.len());
        self.down.extend_from_slice(rest);
        Ok(())
    }

    /// Writes what the client takes.
    pub(super) fn write(&mut self) -> io::Result<()> {
        while self.has_down() {
            let Some(written) = sys::write_some(self.fd(), &self.down[self.down_at..])? else { return Ok(()) };
            self.down_at += written;
            self.owed += written as u32;
        }
        // A window that was large once shall not be memory for ever.
        self.down = Vec::new();
        self.down_at = 0;
        if self.down_done && !self.shut {
            self.shut = true;
            let _ = self.socket.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    /// Whether the agent is to be told of more credit: not for every byte.
    pub(super) fn owes(&self) -> bool {
        self.state == State::Open && !self.down_done && self.owed >= self.window / 2
    }

    /// Grants what is owed. A client that takes all at once gets a larger window out of `common`, one that does not gives some back.
    pub(super) fn grant(&mut self, common: &mut u32) -> u32 {
        // Answers of the proxy's own were counted as well, and nobody sent them.
        let mut more = self
            .owed
            .min(self.window - self.granted - (self.down.len() - self.down_at).min(self.window as usize) as u32);
        self.owed = 0;
        if !self.has_down() {
            let extra = self.window.min(WINDOW_MOST - self.window.min(WINDOW_MOST)).min(*common);
            *common -= extra;
            self.window += extra;
            more += extra;
        } else {
            let less = (more / 2).min(self.window - WINDOW_LEAST);
            *common += less;
            self.window -= less;
            more -= less;
        }
        self.granted += more;
        more
    }

    /// What it had of the common share.
    pub(super) fn share(&self) -> u32 {
        self.window - WINDOW_LEAST
    }

    /// Whether both sides have said all.
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Open && self.up_done && self.down_done && !self.has_down()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    fn pair() -> (Conn, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let (socket, _) = listener.accept().expect("accepts");
        socket.set_nonblocking(true).expect("is set");
        let mut conn = Conn::new(256, socket, 0);
        conn.state = State::Open;
        (conn, client)
    }

    #[test]
    fn a_window_grows_while_the_client_keeps_up_and_never_beyond_the_share() {
        let (mut conn, mut client) = pair();
        let mut common = 100_000;
        let mut credit = conn.first_credit();
        assert_eq!(credit, WINDOW_LEAST);
        let mut got = vec![0; 1 << 20];
        for _ in 0..100 {
            conn.take(&vec![7; credit as usize]).expect("within its credit");
            client.read_exact(&mut got[..credit as usize]).expect("reads");
            while conn.has_down() {
                conn.write().expect("writes");
            }
            assert!(conn.owes());
            credit = conn.grant(&mut common);
            assert_eq!(conn.share() + common, 100_000);
        }
        assert!(conn.window > 64 * 1024, "{}", conn.window);
        assert!(conn.take(&vec![7; conn.granted as usize + 1]).is_err(), "beyond its credit");
    }

    #[test]
    fn a_client_that_takes_nothing_keeps_no_more_than_its_window() {
        let (mut conn, _client) = pair();
        let mut common = 1 << 20;
        let mut credit = conn.first_credit();
        let mut sent = 0u64;
        // The kernel's buffers take some first.
        while credit > 0 && sent < 64 << 20 {
            sent += u64::from(credit);
            conn.take(&vec![7; credit as usize]).expect("within its credit");
            credit = if conn.owes() { conn.grant(&mut common) } else { 0 };
        }
        assert!(conn.has_down() && conn.down.len() <= conn.window as usize, "{} of {}", conn.down.len(), conn.window);
        assert!(sent < 64 << 20);
    }
}
