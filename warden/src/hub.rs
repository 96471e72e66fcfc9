//! The hub: one process for each host, login, installation and build of this program. It stays there, takes jobs from agents, and
//! begins a keeper for each.
//!
//! ```text
//!  agent ══ SSH ══ connector ── socket ──┐                    ┌── socket ── keeper ── job
//!  agent ══ SSH ══ connector ── socket ──┴── hub: one loop ───┴── socket ── keeper ── job
//! ```
//! Owns who is connected with whom, names, and the processes that keepers are. It passes pieces on and never looks inside. One thread; every
//! descriptor is non-blocking; what waits for somebody is bounded: for an agent by [`conn`], for a keeper by [`MOST_PENDING`],
//! so an agent that is slow holds up the output of its own jobs and nothing else. Must never end a job because a connection has ended.

mod conn;
mod keeper;
mod lost;

use crate::groups::Groups;
use crate::place::Host;
use crate::receipt::Receipt;
use crate::sys::{self, POLLIN, POLLOUT, PollFd, Reaped, Status, host};
use crate::wire::{Fact, FromHub, MUX_CLOSED, MUX_NAMES, MUX_PAYLOAD, MUX_VERSION, ToHub, is_clean_end};
use conn::Conn;
use keeper::Keeper;
use lost::{Alive, Losses, Lost};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

/// Jobs at a time.
const MOST_KEEPERS: usize = 1000;
/// Connections at a time. An agent has one; more are of agents that are half dead, whose servers may not notice for hours.
const MOST_CONNS: usize = 64;
/// What an agent sends and a keeper does not take. Agents wait for a word before they send more, so it is a few hundred kilobytes
/// and a spec.
const MOST_PENDING: usize = 8 << 20;
/// The same of all keepers together.
const MOST_PENDING_OF_ALL: usize = 64 << 20;
/// One read.
const BUFFER_BYTES: usize = MUX_PAYLOAD;
/// Reads of one connection before the loop looks at its other work.
const READS_PER_TURN: usize = 4;
/// poll counts time without suspend.
const LONGEST_SLEEP_NS: u64 = 30_000_000_000;
/// For how long nobody is let in when there is no descriptor for one more.
const DOOR_SHUT_NS: u64 = 1_000_000_000;
/// Descriptors that are neither a connection's nor a keeper's.
const OWN_FILES: u64 = 16;
/// When somebody is at the door while a hub wants to go.
const TRY_AGAIN_NS: u64 = 1_000_000_000;

/// What a hub is told when it begins.
pub(crate) struct Setup {
    /// The installation's folder.
    pub(crate) dir: PathBuf,
    pub(crate) owner: String,
    /// This program.
    pub(crate) helper: String,
    /// The login's mask for new files.
    pub(crate) umask: u32,
    /// The login's limit of open files, where the hub has raised its own.
    pub(crate) files: Option<u64>,
    /// Where it says what it is.
    pub(crate) title: Option<host::Title>,
    /// What is in force for every job.
    pub(crate) facts: Vec<Fact>,
    /// Where jobs that ask for limits have control groups of their own, if there is such a place.
    pub(crate) groups: Option<Arc<Groups>>,
    pub(crate) start_deadline_ms: u64,
    pub(crate) linger_ns: u64,
    pub(crate) idle_ns: u64,
    /// How folders begin that are set aside for jobs to come: they are one hub's, as its socket is.
    pub(crate) spares: String,
    /// Where it is found.
    pub(crate) socket: PathBuf,
    /// Held by whoever looks for a hub, or begins one.
    pub(crate) lock: PathBuf,
}

impl Setup {
    fn place(&self, name: &str) -> Host {
        Host {
            name: name.to_owned(),
            owner: self.owner.clone(),
            dir: self.dir.join(name),
            helper: self.helper.clone(),
            umask: self.umask,
            linger_ns: self.linger_ns,
            groups: self.groups.clone(),
        }
    }

    /// Where the keeper of this number sets its job's folder aside.
    fn spare(&self, keeper: u32) -> PathBuf {
        self.dir.join(format!("{}{keeper}", self.spares))
    }

    /// Reads what is in force, and removes what is left of jobs that are not there any more.
    pub(crate) fn look_around(&mut self) {
        let groups = Groups::find(&self.owner, &self.dir);
        self.facts = Receipt::of_a_host(groups.as_ref().map_err(String::as_str)).facts().to_vec();
        self.groups = groups.ok().map(Arc::new);
        if let Some(groups) = &self.groups {
            groups.remove_lost(|name| self.dir.join(name).symlink_metadata().is_ok());
        }
        crate::place::remove_lost_secrets(&self.owner, &self.dir);
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(self.spares.as_bytes()) {
                crate::place::remove_spare(&entry.path());
            }
        }
    }
}

pub(crate) struct Hub {
    setup: Setup,
    listener: UnixListener,
    signals: OwnedFd,
    conns: BTreeMap<u32, Conn>,
    next_conn: u32,
    /// By a number of our own: that of a process becomes another's while an end is still to be told.
    keepers: BTreeMap<u64, Keeper>,
    next_keeper: u64,
    /// Processes of keepers that have not ended.
    pids: BTreeMap<i32, u64>,
    /// Jobs whose keeper has not ended.
    names: BTreeMap<String, u64>,
    losses: Losses,
    /// Folders of jobs that left them as they were. No more than there were jobs at a time: another one is made only when there is none.
    spares: Vec<PathBuf>,
    /// Who asked for the end of what, and what could not be done.
    answers: Vec<(u32, String, Option<&'static str>)>,
    /// What all keepers have not taken together.
    pending: usize,
    /// Whose turn it is to be read first.
    turn: usize,
    /// Nobody is let in before.
    door_opens: Option<u64>,
    /// How many of them there may be, with the descriptors there are.
    most_conns: usize,
    most_keepers: usize,
    idle_since: u64,
    buffer: Vec<u8>,
    polled: Vec<PollFd>,
}

/// How many connections and keepers there may be with so many descriptors. Each has one; a keeper that begins has another for a moment.
fn room(files: u64) -> (usize, usize) {
    let files = usize::try_from(files.saturating_sub(OWN_FILES)).unwrap_or(usize::MAX);
    let conns = (files / 4).clamp(2, MOST_CONNS);
    (conns, files.saturating_sub(conns).clamp(1, MOST_KEEPERS))
}

/// Whom an entry of the poll set is for.
#[derive(Clone, Copy)]
enum Entry {
    Conn(u32),
    Keeper(u64),
}

impl Hub {
    pub(crate) fn new(setup: Setup, listener: UnixListener, signals: OwnedFd) -> Self {
        let (most_conns, most_keepers) = room(host::files());
        Self {
            setup,
            listener,
            signals,
            conns: BTreeMap::new(),
            next_conn: 1,
            keepers: BTreeMap::new(),
            next_keeper: 1,
            pids: BTreeMap::new(),
            names: BTreeMap::new(),
            losses: Losses::default(),
            spares: Vec::new(),
            answers: Vec::new(),
            pending: 0,
            turn: 0,
            door_opens: None,
            most_conns,
            most_keepers,
            idle_since: sys::boot_ns(),
            buffer: vec![0; BUFFER_BYTES],
            polled: Vec::new(),
        }
    }

    /// Serves until nobody needs it any more, or it is asked to end. Then keepers see that it is gone, and end what they keep.
    pub(crate) fn run(mut self) {
        self.serve_all();
        let spares = std::mem::take(&mut self.spares);
        // Keepers need not wait for that.
        drop(self);
        spares.iter().for_each(|spare| crate::place::remove_spare(spare));
    }

    fn serve_all(&mut self) {
        loop {
            let entries = self.wait();
            let told = if self.polled[0].ready() { host::told(&self.signals) } else { host::Told::default() };
            if told.end {
                self.close_door(true);
                return;
            }
            if self.polled[1].ready() {
                self.accept();
            }
            self.serve(&entries);
            if told.children {
                self.reap();
            }
            // What a keeper left is ended whether anybody reads or not; only the telling waits.
            let now = sys::boot_ns();
            self.losses.turn(&self.setup, Alive { names: &self.names, pids: &self.pids }, now);
            self.settle();
            self.tell_ends();
            self.answer();
            for conn in self.conns.values_mut() {
                conn.flush();
            }
            let over: Vec<u32> = self.conns.iter().filter(|(_, one)| one.is_over(now)).map(|(id, _)| *id).collect();
            over.into_iter().for_each(|id| self.part(id));
            if self.may_go(now) {
                return;
            }
        }
    }

    fn wait(&mut self) -> Vec<Entry> {
        let mut fds = std::mem::take(&mut self.polled);
        fds.clear();
        fds.push(PollFd::new(self.signals.as_raw_fd(), POLLIN));
        let now = sys::boot_ns();
        self.door_opens = self.door_opens.filter(|at| now < *at);
        fds.push(PollFd::new(if self.door_opens.is_some() { -1 } else { self.listener.as_raw_fd() }, POLLIN));
        let mut entries = Vec::with_capacity(self.conns.len() + self.keepers.len());
        let events = |(reads, writes): (bool, bool)| (i16::from(reads) * POLLIN) | (i16::from(writes) * POLLOUT);
        for (id, conn) in &self.conns {
            fds.push(PollFd::new(conn.fd(), events(conn.waits())));
            entries.push(Entry::Conn(*id));
        }
        for (serial, keeper) in &self.keepers {
            let conn = keeper.attached.and_then(|(conn, _)| self.conns.get(&conn));
            let reads = !keeper.silent && conn.is_some_and(Conn::has_room);
            fds.push(PollFd::new(keeper.socket.as_raw_fd(), events((reads, !keeper.pending.is_empty()))));
            entries.push(Entry::Keeper(*serial));
        }
        let idle = self.is_idle().then(|| self.idle_since.saturating_add(self.setup.idle_ns));
        let conns = self.conns.values().filter_map(Conn::wake_at).min();
        // Who had it attached may just have gone.
        let at_once = self.keepers.values().any(|keeper| keeper.end().is_some()).then_some(now);
        let wake_at = [at_once, idle, conns, self.losses.wake_at(), self.door_opens].into_iter().flatten().min();
        sys::poll(&mut fds, wake_at.map(|at| at.saturating_sub(now).min(LONGEST_SLEEP_NS)));
        self.polled = fds;
        entries
    }

    fn accept(&mut self) {
        loop {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => continue,
                // There is no descriptor or no memory for it. It stays at the door, which would wake us for ever.
                Err(_) => {
                    self.door_opens = Some(sys::boot_ns().saturating_add(DOOR_SHUT_NS));
                    return;
                }
            };
            if sys::make_ours(socket.as_raw_fd()).is_err() {
                continue;
            }
            if self.conns.len() >= self.most_conns
                && let Some((oldest, conn)) = self.conns.iter_mut().next()
            {
                // It may be alive: then it comes again.
                let oldest = *oldest;
                conn.hang_up("there are too many connections, and this is the oldest".to_owned(), sys::boot_ns());
                conn.flush();
                self.part(oldest);
            }
            self.conns.insert(self.next_conn, Conn::new(socket));
            self.next_conn = self.next_conn.wrapping_add(1);
        }
    }

    /// Reads and writes where something can be read or written. Agents first; among keepers, another one is first each time.
    fn serve(&mut self, entries: &[Entry]) {
        let ready: Vec<Entry> =
            entries.iter().enumerate().filter(|(at, _)| self.polled[at + 2].ready()).map(|(_, one)| *one).collect();
        let (mut keepers, mut hears) = (Vec::new(), Vec::new());
        for entry in ready {
            match entry {
                Entry::Conn(id) => hears.push(id),
                Entry::Keeper(serial) => keepers.push(serial),
            }
        }
        for id in hears {
            self.hear(id);
        }
        self.turn = self.turn.wrapping_add(1);
        if !keepers.is_empty() {
            let first = self.turn % keepers.len();
            keepers.rotate_left(first);
        }
        for serial in keepers {
            self.carry(serial);
        }
    }

    /// Takes what a keeper says, and gives it what waits for it.
    fn carry(&mut self, serial: u64) {
        let Some(keeper) = self.keepers.get_mut(&serial) else { return };
        if !keeper.pending.is_empty() {
            let before = keeper.pending.len();
            keeper.flush();
            self.pending -= before - keeper.pending.len();
        }
        let Some((id, channel)) = keeper.attached else { return };
        let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.has_room()) else { return };
        match sys::read_some(keeper.socket.as_raw_fd(), &mut self.buffer) {
            // Of one that has ended all is there, and nobody writes any more.
            Ok(None) => keeper.silent = keeper.ended.is_some(),
            Ok(Some(count @ 1..)) => conn.pass(channel, &self.buffer[..count]),
            Ok(Some(_)) | Err(_) => keeper.silent = true,
        }
    }

    /// Reads what an agent says, and does it.
    fn hear(&mut self, id: u32) {
        for _ in 0..READS_PER_TURN {
            let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.has_room()) else { return };
            if !conn.read(&mut self.buffer) {
                conn.broken = true;
                return;
            }
            // Taken out while its orders are obeyed, so that none of them is copied.
            let mut decoder = std::mem::take(&mut conn.decoder);
            let waiting = decoder.waiting();
            let fault = loop {
                match decoder.next() {
                    Ok(None) => break None,
                    Err(bad) => break Some(bad.to_string()),
                    Ok(Some(envelope)) => match ToHub::decode(&envelope) {
                        Err(bad) => break Some(bad.to_string()),
                        Ok(message) => {
                            if let Err(fault) = self.obey(id, &message) {
                                break Some(fault);
                            }
                        }
                    },
                }
            };
            let Some(conn) = self.conns.get_mut(&id) else { return };
            if let Some(fault) = fault {
                conn.hang_up(fault, sys::boot_ns());
                self.detach_all(id);
                return;
            }
            let dry = waiting < BUFFER_BYTES;
            conn.decoder = decoder;
            if dry {
                return;
            }
        }
    }

    /// Error: why it is hung up on.
    fn obey(&mut self, id: u32, message: &ToHub<'_>) -> Result<(), String> {
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        match (message, conn.greeted) {
            (ToHub::Hello { version: MUX_VERSION }, false) => {
                conn.greeted = true;
                conn.say(&FromHub::Hello {
                    version: MUX_VERSION,
                    build: crate::BUILD.to_owned(),
                    dir: self.setup.dir.to_string_lossy().into_owned(),
                    pid: std::process::id(),
                    home: std::env::var("HOME").unwrap_or_default(),
                    facts: self.setup.facts.clone(),
                });
            }
            (ToHub::Hello { version }, false) => {
                return Err(format!("version {MUX_VERSION} is spoken here, not {version}"));
            }
            (ToHub::Hello { .. }, true) => return Err("hello was said before".to_owned()),
            (_, false) => return Err("the first word is hello".to_owned()),
            (ToHub::Open { channel, .. } | ToHub::Attach { channel, .. }, true)
                if conn.channels.contains_key(channel) =>
            {
                return Err(format!("channel {channel} is in use"));
            }
            (ToHub::Open { channel, name }, true) => self.open(id, *channel, name),
            (ToHub::Attach { channel, name }, true) => self.attach(id, *channel, name),
            (ToHub::Data { channel, bytes }, true) => {
                // Without a job at its other end it was sent before the agent knew.
                if let Some(serial) = conn.channels.get(channel).copied() {
                    self.give(serial, bytes);
                }
            }
            (ToHub::Leave { channel }, true) => {
                if let Some(serial) = conn.channels.remove(channel) {
                    self.keepers.get_mut(&serial).into_iter().for_each(|keeper| keeper.attached = None);
                }
            }
            (ToHub::Kill { name }, true) => self.kill(id, name),
            (ToHub::List, true) => {
                let names: Vec<String> =
                    self.names.keys().cloned().chain(self.losses.names().map(str::to_owned)).collect();
                let mut pieces = names.chunks(MUX_NAMES).peekable();
                if pieces.peek().is_none() {
                    conn.say(&FromHub::Names { more: false, names: Vec::new() });
                }
                while let Some(piece) = pieces.next() {
                    conn.say(&FromHub::Names { more: pieces.peek().is_some(), names: piece.to_vec() });
                }
            }
        }
        Ok(())
    }

    fn say(&mut self, id: u32, message: &FromHub<'_>) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.say(message);
        }
    }

    fn open(&mut self, id: u32, channel: u16, name: &str) {
        let failed = |errno, step: &str| FromHub::Failed { channel, errno, step: step.to_owned() };
        let answer = if self.names.contains_key(name) || self.losses.find(name).is_some() {
            failed(host::EEXIST, "there is a job of this name")
        } else if self.keepers.len() >= self.most_keepers {
            failed(host::EAGAIN, "there are too many jobs")
        } else {
            match keeper::start(&self.setup, name, &mut self.spares) {
                Err((step, errno)) => failed(errno, step),
                Ok((mut keeper, place)) => {
                    let (pid, serial) = (keeper.pid, self.next_keeper);
                    self.next_keeper += 1;
                    keeper.attached = Some((id, channel));
                    self.names.insert(name.to_owned(), serial);
                    self.pids.insert(pid, serial);
                    self.keepers.insert(serial, keeper);
                    if let Some(conn) = self.conns.get_mut(&id) {
                        conn.channels.insert(channel, serial);
                    }
                    let dir = place.dir.to_string_lossy().into_owned();
                    FromHub::Opened { channel, dir, pid: pid.unsigned_abs() }
                }
            }
        };
        self.say(id, &answer);
    }

    fn attach(&mut self, id: u32, channel: u16, name: &str) {
        let there = self.names.get(name).copied().and_then(|serial| Some((serial, self.keepers.get_mut(&serial)?)));
        let Some((serial, keeper)) = there else {
            let step = "there is no job of this name".to_owned();
            return self.say(id, &FromHub::Failed { channel, errno: sys::ENOENT, step });
        };
        let (pid, before) = (keeper.pid, keeper.attached.replace((id, channel)));
        if let Some((other, at)) = before
            && let Some(conn) = self.conns.get_mut(&other)
        {
            conn.channels.remove(&at);
            conn.say(&FromHub::Failed {
                channel: at,
                errno: host::EBUSY,
                step: "somebody else has attached".to_owned(),
            });
        }
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.channels.insert(channel, serial);
        }
        let dir = self.setup.dir.join(name).to_string_lossy().into_owned();
        self.say(id, &FromHub::Opened { channel, dir, pid: pid.unsigned_abs() });
    }

    fn give(&mut self, serial: u64, bytes: &[u8]) {
        let Some(keeper) = self.keepers.get_mut(&serial) else { return };
        let before = keeper.pending.len();
        let after = keeper.take(bytes);
        self.pending = self.pending - before + after;
        if after > MOST_PENDING {
            self.cut(serial);
        }
        while self.pending > MOST_PENDING_OF_ALL {
            // Whoever has the most of it, and not whoever came last.
            let most = self.keepers.iter().max_by_key(|(_, keeper)| keeper.pending.len()).map(|(serial, _)| *serial);
            let Some(most) = most else { return };
            self.cut(most);
        }
    }

    /// It was stopped, or does not come to it. Whatever it gets after this makes no sense to it: a new session begins anew.
    fn cut(&mut self, serial: u64) {
        let Some(keeper) = self.keepers.get_mut(&serial) else { return };
        self.pending -= std::mem::take(&mut keeper.pending).len();
        let Some((id, channel)) = keeper.attached.take() else { return };
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.channels.remove(&channel);
        }
        let step = "it does not take what it is sent".to_owned();
        self.say(id, &FromHub::Failed { channel, errno: host::ENOBUFS, step });
    }

    fn kill(&mut self, id: u32, name: &str) {
        if let Some(lost) = self.losses.find(name) {
            return lost.killers.push(id);
        }
        if let Some(keeper) = self.names.get(name).and_then(|serial| self.keepers.get_mut(serial)) {
            keeper.killers.push(id);
            // Its job comes to us with it.
            let _ = host::signal_child(keeper.pid, sys::SIGKILL);
        } else {
            // Also one without a folder: secrets and processes of an earlier hub's may be there all the same.
            self.losses.remove(Lost { name: name.to_owned(), serial: None, killers: vec![id], left: None });
        }
    }

    /// Takes children that have ended.
    fn reap(&mut self) {
        while let Reaped::Child { pid, status } = sys::reap() {
            let code = match status {
                Status::Exited(code) => code,
                Status::Signaled(signal) => -signal,
            };
            let set_aside = code == keeper::EXIT_SET_ASIDE && self.pids.contains_key(&pid);
            let code = if set_aside { MUX_CLOSED } else { code };
            if set_aside {
                self.spares.push(self.setup.spare(pid.unsigned_abs()));
            }
            let known = self.pids.remove(&pid).and_then(|serial| Some((serial, self.keepers.get_mut(&serial)?)));
            let Some((serial, keeper)) = known else {
                self.losses.ended(pid, code);
                continue;
            };
            keeper.ended = Some(code);
            self.pending -= std::mem::take(&mut keeper.pending).len();
            self.names.remove(&keeper.name);
            let (name, killers) = (keeper.name.clone(), std::mem::take(&mut keeper.killers));
            if is_clean_end(code) {
                keeper.cleared = Some(false);
                self.answers.extend(killers.into_iter().map(|id| (id, name.clone(), None)));
            } else {
                self.losses.add(Lost { name, serial: Some(serial), killers, left: None });
            }
        }
    }

    /// Takes what was lost and is gone now.
    fn settle(&mut self) {
        for Lost { name, serial, killers, left } in std::mem::take(&mut self.losses.done) {
            if let Some(keeper) = serial.and_then(|serial| self.keepers.get_mut(&serial)) {
                keeper.cleared = Some(left.is_some());
            }
            self.answers.extend(killers.into_iter().map(|id| (id, name.clone(), left)));
            self.idle_since = sys::boot_ns();
        }
    }

    /// What keepers that have ended said last, and that they have.
    fn tell_ends(&mut self) {
        let ended: Vec<u64> =
            self.keepers.iter().filter(|(_, one)| one.ended.is_some()).map(|(serial, _)| *serial).collect();
        for serial in ended {
            // What it said last is there at once; an agent that does not read is waited for.
            while self.keepers[&serial].attached.is_some_and(|(id, _)| self.conns.get(&id).is_some_and(Conn::has_room))
                && !self.keepers[&serial].silent
            {
                self.carry(serial);
            }
            let Some(code) = self.keepers[&serial].end() else { continue };
            self.idle_since = sys::boot_ns();
            let Some(Keeper { name, attached: Some((id, channel)), .. }) = self.keepers.remove(&serial) else {
                continue;
            };
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.channels.remove(&channel);
                conn.say(&FromHub::Ended { channel, name, code });
            }
        }
    }

    /// Answers those who asked for an end. Behind the word of the end itself, where that could be said.
    fn answer(&mut self) {
        for (id, name, left) in std::mem::take(&mut self.answers) {
            let answer = match left {
                None => FromHub::Gone { name },
                Some(text) => FromHub::Left { name, text: text.to_owned() },
            };
            self.say(id, &answer);
        }
    }

    /// The jobs of a connection go on without it.
    fn detach_all(&mut self, id: u32) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        for serial in std::mem::take(&mut conn.channels).into_values() {
            self.keepers.get_mut(&serial).into_iter().for_each(|keeper| keeper.attached = None);
        }
    }

    fn part(&mut self, id: u32) {
        self.detach_all(id);
        self.conns.remove(&id);
        self.idle_since = sys::boot_ns();
    }

    fn is_idle(&self) -> bool {
        self.conns.is_empty() && self.keepers.is_empty() && self.losses.is_empty()
    }

    /// Whether nobody has needed it for so long that it goes. Whoever looks for a hub holds the lock, so nobody comes to one that has just gone.
    fn may_go(&mut self, now: u64) -> bool {
        if !self.is_idle() || now < self.idle_since.saturating_add(self.setup.idle_ns) {
            return false;
        }
        let locked = self.close_door(false);
        if !locked {
            self.idle_since = now.saturating_sub(self.setup.idle_ns).saturating_add(TRY_AGAIN_NS);
        }
        locked
    }

    /// Removes the socket, unless somebody holds the lock: then it may be a connector's that has just come, or the next hub's. `anyway`: also with somebody
    /// at the door.
    fn close_door(&self, anyway: bool) -> bool {
        File::open(&self.setup.lock).is_ok_and(|file| {
            file.try_lock().is_ok_and(|()| {
                let mut door = [PollFd::new(self.listener.as_raw_fd(), POLLIN)];
                sys::poll(&mut door, Some(0));
                let closes = anyway || !door[0].ready();
                if closes {
                    let _ = std::fs::remove_file(&self.setup.socket);
                }
                // Held until here.
                closes
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_keepers_than_descriptors() {
        assert_eq!(room(4096), (MOST_CONNS, MOST_KEEPERS));
        assert_eq!(room(1024), (MOST_CONNS, 1024 - 16 - MOST_CONNS));
        assert_eq!((room(24), room(0)), ((2, 6), (2, 1)));
        assert_eq!(room(u64::MAX), (MOST_CONNS, MOST_KEEPERS));
    }
}
