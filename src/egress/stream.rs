//! One connection: judged, dialled, and carried in both directions until both have said all, or nothing moves any more.

use super::Outside;
use super::door::Out;
use super::hello::{self, Hello};
use super::judge::{self, No};
use super::tally::Tally;
use crate::job::egress::{EgressRule, Host};
use crate::job::shown;
use crate::protocol::wire::{EGRESS_PIECE, Egress, EgressFault};
use bytes::{BufMut, BytesMut};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

/// What a warden may send for one connection before it is written; so much is held of each at most.
pub(super) const UP_WINDOW: u32 = 128 * 1024;

/// What a cell has sent for one connection, on its way to the server: at most [`UP_WINDOW`], which is checked where it comes in.
#[derive(Debug)]
pub(super) struct Up {
    state: Mutex<UpState>,
    more: Notify,
    /// All of it was written, and that it was all.
    done: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct UpState {
    bytes: BytesMut,
    granted: u32,
    eof: bool,
}

impl Up {
    pub(super) fn new() -> Self {
        let state = Mutex::new(UpState { granted: UP_WINDOW, ..UpState::default() });
        Self { state, more: Notify::new(), done: watch::Sender::new(false) }
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

    fn grant(&self, bytes: u32) {
        self.state().granted += bytes;
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
                let opened = Egress::Opened { stream: self.id, credit: UP_WINDOW };
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
            self.tally.pace(count).await;
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
            self.tally.pace(bytes.len()).await;
            to.write_all(&bytes).await.map_err(|_| None)?;
            touch();
            let count = u32::try_from(bytes.len()).unwrap_or(UP_WINDOW);
            self.up.grant(count);
            let credit = Egress::Credit { stream: self.id, bytes: count };
            self.out.send(Out::Word(credit)).await.map_err(|_| None)?;
        }
        let ended: io::Result<()> = to.shutdown().await;
        self.up.done.send_replace(true);
        touch();
        ended.map_err(|_| None)
    }
}
