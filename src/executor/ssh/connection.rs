//! One connection: its places for channels, and how it ends.

use super::exec::{self, Exec};
use super::handler::{Client, Ending, Lost};
use super::handshake::Opened;
use super::route::{Lane, StoreBounds};
use russh::client::{Handle, Msg};
use russh::{Channel, ChannelStream, Disconnect};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// A connection that is logged in.
pub(super) struct Connection {
    /// Which of this process.
    pub(super) number: u64,
    handle: Handle<Client>,
    seats: Mutex<Seats>,
    /// A place of the route is free again, or there is news of its connections.
    news: Arc<Notify>,
    pub(super) lost: watch::Receiver<Lost>,
    /// It is being closed, whatever is on it.
    pub(super) closing: CancellationToken,
    born: Instant,
    /// No other connection carries it, so that its standing still holds up nobody else's.
    direct: bool,
    /// The connection that carries it lives as long.
    _over: Option<Carried>,
}

#[derive(Debug)]
struct Seats {
    /// Session channels that are open or being opened.
    open: usize,
    /// Connections to other hosts that it carries.
    carried: usize,
    /// Session channels at the same time, the one for control included.
    limit: usize,
    /// It takes no more channels.
    draining: bool,
    /// Its one channel holds it up.
    choked: bool,
    /// Since when nobody uses it.
    idle: Instant,
}

/// Why there is no channel on a connection that had a place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoChannel {
    /// The host lets no more than so many be open.
    Full(usize),
    /// The host lets none be open.
    None,
    /// The connection is lost.
    Lost,
}

impl Connection {
    pub(super) fn new(opened: Opened, limit: usize, news: Arc<Notify>, over: Option<Carried>) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            handle: opened.handle,
            seats: Mutex::new(Seats { open: 0, carried: 0, limit, draining: false, choked: false, idle: now }),
            news,
            lost: opened.lost,
            closing: CancellationToken::new(),
            born: now,
            direct: over.is_none(),
            _over: over,
        })
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It can be used.
    pub(super) fn lives(&self) -> bool {
        !self.handle.is_closed() && self.lost.borrow().is_none() && !self.closing.is_cancelled()
    }

    /// Session channels.
    pub(super) fn open(&self) -> usize {
        self.seats().open
    }

    /// Nobody waits for places on it any more.
    fn drain(&self) {
        if !std::mem::replace(&mut self.seats().draining, true) {
            self.news.notify_waiters();
        }
    }

    /// A place for a channel, if there is one.
    pub(super) fn seat(self: &Arc<Self>, lane: Lane) -> Option<Slot> {
        let mut seats = self.seats();
        // One place is for control; a host with a single one has none to keep.
        let most = match lane {
            Lane::Job => (seats.limit - 1).max(1),
            Lane::Control => seats.limit,
        };
        if seats.draining || seats.choked || seats.open >= most || !self.lives() {
            return None;
        }
        seats.open += 1;
        Some(Slot(Arc::clone(self)))
    }

    /// A share in it for a connection to another host, if it can be used.
    pub(super) fn carry(self: &Arc<Self>) -> Option<Carried> {
        let mut seats = self.seats();
        if seats.draining || seats.choked || !self.lives() {
            return None;
        }
        seats.carried += 1;
        Some(Carried(Arc::clone(self)))
    }

    /// Lets the connection stand still, which its host sees too, if that holds up its one channel alone; until what is returned is dropped.
    pub(super) fn choke(self: &Arc<Self>) -> Option<Choke> {
        let mut seats = self.seats();
        if !self.direct || seats.open != 1 || seats.carried > 0 || seats.choked || self.closing.is_cancelled() {
            return None;
        }
        seats.choked = true;
        Some(Choke(Arc::clone(self)))
    }

    /// Runs a command on a channel in this place, unless `wanted` says that nobody wants it any more.
    pub(super) async fn exec(
        self: &Arc<Self>,
        slot: Slot,
        command: &str,
        bounds: StoreBounds,
        wanted: impl Fn() -> bool,
    ) -> Result<Exec, NoChannel> {
        let channel = match self.handle.channel_open_session().await {
            Ok(channel) => channel,
            Err(russh::Error::ChannelOpenFailure(_)) => return Err(self.full(slot)),
            Err(_) => return Err(NoChannel::Lost),
        };
        if !wanted() {
            // Nothing runs on it, so the host lets it go at once.
            let _ = channel.close().await;
            return Err(NoChannel::Lost);
        }
        if channel.exec(true, command).await.is_err() {
            return Err(NoChannel::Lost);
        }
        Ok(exec::start(channel, self, slot, bounds))
    }

    /// The host refused a channel: those that are there are as many as it lets be open.
    fn full(&self, slot: Slot) -> NoChannel {
        drop(slot);
        let mut seats = self.seats();
        match seats.open {
            0 => NoChannel::None,
            others => {
                seats.limit = seats.limit.min(others);
                NoChannel::Full(seats.limit)
            }
        }
    }

    /// A stream to another host, over this one.
    pub(super) async fn forward(&self, host: &str, port: u16) -> Result<ChannelStream<Msg>, russh::Error> {
        let opened = self.handle.channel_open_direct_tcpip(host, u32::from(port), "127.0.0.1", 0);
        opened.await.map(Channel::into_stream)
    }

    /// Stays until it ends: by itself, unused for `idle`, older than `age` and unused, or with `stop`. Returns how it ended.
    pub(super) async fn keep(self: Arc<Self>, idle: Duration, age: Duration, stop: CancellationToken) -> Ending {
        let mut lost = self.lost.clone();
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            // From here on nothing is missed.
            news.as_mut().enable();
            let now = Instant::now();
            if now.duration_since(self.born) >= age {
                self.drain();
            }
            let next = {
                let mut seats = self.seats();
                let old = self.born + age;
                let unused = seats.open == 0 && seats.carried == 0;
                if unused && (seats.draining || now.duration_since(seats.idle) >= idle) {
                    seats.draining = true;
                    None
                } else if unused {
                    Some(old.min(seats.idle + idle))
                } else if seats.draining {
                    // Somebody says when the last channel ends.
                    Some(now + Duration::from_secs(3600))
                } else {
                    Some(old)
                }
            };
            let Some(next) = next else {
                self.end().await;
                return Ending::Cut("it was not used".to_owned());
            };
            tokio::select! {
                ending = said(&mut lost) => {
                    self.closing.cancel();
                    return ending;
                }
                () = news => {}
                () = tokio::time::sleep_until(next.max(now + Duration::from_millis(1))) => {}
                () = stop.cancelled() => {
                    self.end().await;
                    return Ending::Cut("the agent stops".to_owned());
                }
            }
        }
    }

    async fn end(&self) {
        self.closing.cancel();
        // One whose host does not read is left to its task, which ends with the last handle.
        let bye = self.handle.disconnect(Disconnect::ByApplication, "", "en");
        let _ = tokio::time::timeout(Duration::from_secs(1), bye).await;
    }
}

/// How a connection ended, when it has.
async fn said(lost: &mut watch::Receiver<Lost>) -> Ending {
    let ending = lost.wait_for(Option::is_some).await.ok().and_then(|ending| ending.clone());
    ending.unwrap_or_else(|| Ending::Cut("its task ended".to_owned()))
}

/// A place for one channel; free again when dropped.
pub(super) struct Slot(Arc<Connection>);

impl Slot {
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut seats = self.0.seats();
        seats.open -= 1;
        seats.idle = Instant::now();
        drop(seats);
        self.0.news.notify_waiters();
    }
}

/// A share in a connection that carries another one.
pub(super) struct Carried(Arc<Connection>);

impl Carried {
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.0
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        let mut seats = self.0.seats();
        seats.carried -= 1;
        seats.idle = Instant::now();
        drop(seats);
        self.0.news.notify_waiters();
    }
}

/// A connection stands still for its one channel.
pub(super) struct Choke(Arc<Connection>);

impl Drop for Choke {
    fn drop(&mut self) {
        self.0.seats().choked = false;
        self.0.news.notify_waiters();
    }
}
