//! One connection: judged, dialled, and carried in both directions until both have said all, or nothing moves any more.

use super::Outside;
use super::door::Out;
use super::hello::{self, Hello};
use super::judge::{self, No};
use super::tally::Tally;
use crate::job::egress::{EgressRule, Host};
use crate::job::shown;
use crate::protocol::wire::{EGRESS_PIECE, EGRESS_WINDOW, Egress, EgressFault};
use bytes::{BufMut, BytesMut};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

/// What a warden may send for one connection before it is written, whatever the others have; so much is held of each at most.
pub(super) const UP_LEAST: u32 = 64 * 1024;
/// What that may grow to: the whole of what may be under way.
const UP_MOST: u32 = EGRESS_WINDOW;
/// By how much those of one job may grow, all together.
pub(super) const UP_COMMON: usize = 1 << 20;

/// What a cell has sent for one connection, on its way to the server: at most its window, which is checked where it comes in. The window grows
/// while the server takes all at once, out of what the connections of a job have together, and goes back when it does not.
#[derive(Debug)]
pub(super) struct Up {
    state: Mutex<UpState>,
    common: Arc<Semaphore>,
    more: Notify,
    /// All of it was written, and that it was all.
    done: watch::Sender<bool>,
}

#[derive(Debug)]
struct UpState {
    bytes: BytesMut,
    window: u32,
    granted: u32,
    eof: bool,
}

impl Drop for Up {
    fn drop(&mut self) {
        let share = self.state().window - UP_LEAST;
        self.common.add_permits(share as usize);
    }
}

impl Up {
    pub(super) fn new(common: &Arc<Semaphore>) -> Self {
        let state = UpState { bytes: BytesMut::new(), window: UP_LEAST, granted: UP_LEAST, eof: false };
        let (state, common) = (Mutex::new(state), Arc::clone(common));
        Self { state, common, more: Notify::new(), done: watch::Sender::new(false) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, UpState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what came. False: it was given no credit for so much.
    pub(super) fn take(&self, bytes: &[u8]) -> bool {
        let mut state = self.state();
        let Some(left) = u32::try_from(bytes.len()).ok().and_then(|count| state.granted.checked_sub(count)) else {
            return false;
        };
        if state.eof {
            return false;
        }
        state.granted = left;
        state.bytes.extend_from_slice(bytes);
        drop(state);
        self.more.notify_one();
        true
    }

    pub(super) fn end(&self) {
        self.state().eof = true;
        self.more.notify_one();
    }

    /// Whether it has said all, and not all of it was written yet.
    pub(super) fn is_ending(&self) -> bool {
        self.state().eof && !*self.done.borrow()
    }

    pub(super) async fn written(&self) {
        let _ = self.done.subscribe().wait_for(|done| *done).await;
    }

    /// What is there; `None` at the end.
    async fn next(&self) -> Option<BytesMut> {
        loop {
            {
                let mut state = self.state();
                if !state.bytes.is_empty() {
                    return Some(state.bytes.split());
                }
                if state.eof {
                    return None;
                }
            }
            self.more.notified().await;
        }
    }

    /// So much was written: how much more may come.
    fn grant(&self, written: u32) -> u32 {
        let mut state = self.state();
        let waits = u32::try_from(state.bytes.len()).unwrap_or(u32::MAX);
        let mut more = written;
        if waits == 0 {
            let extra = state.window.min(UP_MOST - state.window);
            if self.common.try_acquire_many(extra).map(SemaphorePermit::forget).is_ok() {
                state.window += extra;
                more += extra;
            }
        } else if waits >= state.window / 2 {
            let less = (more / 2).min(state.window - UP_LEAST);
            self.common.add_permits(less as usize);
            state.window -= less;
            more -= less;
        }
        state.granted += more;
        more
    }
}

/// What a connection is made with.
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) rules: Arc<[EgressRule]>,
    pub(super) outside: Outside,
    pub(super) tally: Arc<Tally>,
    /// Of its job.
    pub(super) lookups: Arc<Semaphore>,
    pub(super) up: Arc<Up>,
    /// Bytes that the warden takes.
    pub(super) credit: Arc<Semaphore>,
    /// Full: it waits, as all others of its job do.
    pub(super) out: mpsc::Sender<Out>,
}

impl Stream {
    /// Makes the connection, and carries it to its end.
    pub(super) async fn run(self) {
        let word = match self.open().await {
            Ok(connection) => {
                self.tally.connected();
                let opened = Egress::Opened { stream: self.id, credit: UP_LEAST };
                if self.out.send(Out::Word(opened)).await.is_err() {
                    return;
                }
                match self.carry(connection).await {
                    Ok(()) => return,
                    Err(no) => {
                        if let Some(no) = no {
                            self.tally.refuse(&self.host, self.port, &no);
                        }
                        Egress::Reset { stream: self.id }
                    }
                }
            }
            Err(no) => {
                self.tally.refuse(&self.host, self.port, &no);
                Egress::Failed { stream: self.id, fault: no.fault, text: no.reason }
            }
        };
        let _ = self.out.send(Out::Word(word)).await;
    }

    async fn open(&self) -> Result<TcpStream, No> {
        self.tally.ask()?;
        let host = judge::host(&self.host)?;
        judge::asked(&self.rules, &host, self.port)?;
        let limit = self.outside.settings.connect_timeout;
        let late = |what: &str| No::new(EgressFault::Late, "late", format!("{what} within {} s", limit.as_secs_f32()));
        let addresses: Vec<IpAddr> = match host {
            Host::Address(address) => vec![address],
            Host::Name(name) => {
                self.tally.look_up()?;
                let until = Instant::now() + limit;
                timeout_at(until, self.outside.lookup(&name, &self.lookups))
                    .await
                    .map_err(|_| late("the name was not found"))??
            }
        };
        judge::found(&self.rules, &addresses, self.port, judge::is_own)?;
        // From here on there are only addresses: nobody asks again where the name leads.
        let until = Instant::now() + limit;
        let mut said = None;
        for (at, address) in addresses.iter().enumerate() {
            // Each of those that are left gets its share of the time.
            let share =
                until.saturating_duration_since(Instant::now()) / u32::try_from(addresses.len() - at).unwrap_or(1);
            match timeout_at(Instant::now() + share, TcpStream::connect(SocketAddr::new(*address, self.port))).await {
                Ok(Ok(connection)) => {
                    let _ = connection.set_nodelay(true);
                    return Ok(connection);
                }
                Ok(Err(error)) => said = Some(error),
                Err(_) => {}
            }
        }
        Err(match said {
            Some(error) => No::new(EgressFault::NoAnswer, "unreachable", format!("nobody answers there: {error}")),
            None => late("nobody answered"),
        })
    }

    /// Errors: it was cut off; with what is to be told of it.
    async fn carry(&self, connection: TcpStream) -> Result<(), Option<No>> {
        let (from, to) = connection.into_split();
        let idle = self.outside.settings.idle_timeout;
        let began = Instant::now();
        let moved = AtomicU64::new(0);
        let touch = || moved.store(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
        let both = async { tokio::try_join!(self.down(from, &touch), self.up(to, &touch)) };
        let idles = async {
            loop {
                let until = began + std::time::Duration::from_millis(moved.load(Relaxed)) + idle;
                if until <= Instant::now() {
                    return;
                }
                sleep_until(until).await;
            }
        };
        tokio::select! {
            biased;
            carried = both => carried.map(drop),
            () = idles => {
                let reason = format!("nothing moved for {} s", idle.as_secs_f32());
                Err(Some(No::new(EgressFault::Late, "idle", reason)))
            }
        }
    }

    /// From the server to the cell, as much as the cell takes.
    async fn down(&self, mut from: OwnedReadHalf, touch: &(impl Fn() + Sync)) -> Result<(), Option<No>> {
        loop {
            // Before there is a buffer for it: most connections wait most of the time.
            from.readable().await.map_err(|_| None)?;
            let Ok(first) = self.credit.acquire().await else { return Err(None) };
            first.forget();
            let more = self.credit.available_permits().min(EGRESS_PIECE - 1);
            let more = u32::try_from(more).ok().and_then(|more| self.credit.try_acquire_many(more).ok());
            let most = 1 + more.map_or(0, |permit| {
                let count = permit.num_permits();
                permit.forget();
                count
            });
            let mut bytes = BytesMut::with_capacity(most);
            let mut into = (&mut bytes).limit(most);
            let count = from.read_buf(&mut into).await.map_err(|_| None)?;
            self.credit.add_permits(most - count);
            touch();
            if count == 0 {
                let eof = Out::Word(Egress::Eof { stream: self.id });
                return self.out.send(eof).await.map_err(|_| None);
            }
            self.tally.came_in(count)?;
            self.out.send(Out::Data(self.id, bytes.freeze())).await.map_err(|_| None)?;
        }
    }

    /// Whether the first words of a client may go out; false while they go on. Errors: inside TLS it wants another host, and its job
    /// may not go there.
    fn may_begin(&self, bytes: &[u8]) -> Result<bool, No> {
        // Who may reach an address may say there what he likes.
        if !matches!(judge::host(&self.host), Ok(Host::Name(_))) {
            return Ok(true);
        }
        let asked = match hello::read(bytes) {
            Hello::More => return Ok(false),
            Hello::Other | Hello::Names(None) => return Ok(true),
            Hello::Names(Some(name)) => name,
            Hello::Bad => {
                let reason = "it begins as TLS does, and goes on as no client does";
                return Err(No::new(EgressFault::Refused, "bad_tls", reason));
            }
        };
        // By the same rules as the connection itself: it is a place that is asked for.
        let host = judge::host(&asked).and_then(|host| judge::asked(&self.rules, &host, self.port));
        host.map(|()| true).map_err(|_| {
            let reason = format!("inside TLS it asks for `{}`, which the job may not reach", shown(&asked));
            No::new(EgressFault::Refused, "other_name", reason)
        })
    }

    /// From the cell to the server.
    async fn up(&self, mut to: OwnedWriteHalf, touch: &(impl Fn() + Sync)) -> Result<(), Option<No>> {
        let mut first = Some(BytesMut::new());
        while let Some(mut bytes) = self.up.next().await {
            if let Some(mut before) = first.take() {
                before.extend_from_slice(&bytes);
                if !self.may_begin(&before)? {
                    first = Some(before);
                    continue;
                }
                bytes = before;
            }
            self.tally.goes_out(bytes.len())?;
            to.write_all(&bytes).await.map_err(|_| None)?;
            touch();
            let more = self.up.grant(u32::try_from(bytes.len()).unwrap_or_default());
            let credit = Egress::Credit { stream: self.id, bytes: more };
            self.out.send(Out::Word(credit)).await.map_err(|_| None)?;
        }
        let ended: io::Result<()> = to.shutdown().await;
        self.up.done.send_replace(true);
        touch();
        ended.map_err(|_| None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_grows_while_the_server_keeps_up_and_goes_back_when_it_does_not() {
        let common = Arc::new(Semaphore::new(UP_COMMON));
        let up = Up::new(&common);
        let (window, granted) = (|up: &Up| up.state().window, |up: &Up| up.state().granted);
        let write = |up: &Up| {
            let written = up.state().bytes.split();
            up.grant(u32::try_from(written.len()).expect("small"))
        };
        for _ in 0..5 {
            let all = vec![1; granted(&up) as usize];
            assert!(up.take(&all) && !up.take(&[1]), "as much as it was given, and no more");
            write(&up);
            assert_eq!(window(&up), granted(&up), "all of it may come again");
            assert_eq!(common.available_permits(), UP_COMMON - (window(&up) - UP_LEAST) as usize);
        }
        assert_eq!(window(&up), UP_MOST);
        // It fills while what was taken out of it is being written.
        for _ in 0..20 {
            let all = vec![1; granted(&up) as usize];
            assert!(up.take(&all));
            let part = window(&up) / 4;
            drop(up.state().bytes.split_to(part as usize));
            up.grant(part);
        }
        assert!(window(&up) < UP_LEAST * 3 / 2, "{}", window(&up));
        drop(up);
        assert_eq!(common.available_permits(), UP_COMMON);
    }

    #[test]
    fn all_windows_of_a_job_have_one_bound() {
        let common = Arc::new(Semaphore::new(UP_COMMON));
        let all: Vec<Up> = (0..40).map(|_| Up::new(&common)).collect();
        for up in all.iter().chain(&all).chain(&all) {
            let window = up.state().window;
            assert!(up.take(&vec![1; window as usize]));
            up.state().bytes.clear();
            up.grant(window);
        }
        let sum: usize = all.iter().map(|up| up.state().window as usize).sum();
        assert!(sum <= 40 * UP_LEAST as usize + UP_COMMON && common.available_permits() < UP_LEAST as usize);
    }
}
