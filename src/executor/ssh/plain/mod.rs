//! Plain mode: one SSH channel for each job, and nothing on the host but its shell.
//!
//! Owns the task that stands in for a warden: the agent talks to it as to one in a cell, and it to the host. Must never make
//! connections; that is the pool's.

mod machine;
#[allow(
    dead_code,
    clippy::cast_possible_truncation,
    reason = "the warden's own file, of which a stand-in does not need all"
)]
#[path = "../../../../warden/src/mask.rs"]
mod mask;
mod output;
mod shell;

pub(super) use shell::{Place, SIGN, Swept, WORK, command, swept};

use super::{Event, Exec};
use crate::executor::Link;
use crate::job::UnixMillis;
use crate::protocol::wire::{Decoder, Fact, ToWarden};
use crate::supervise::spawn;
use bytes::{Bytes, BytesMut};
use machine::{Machine, Now};
use shell::Said;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

/// The opener's first word, after the channel is there.
const OPEN: Duration = Duration::from_secs(15);
/// For what a shell that has ended said before: a server may tell the code of a program first, and its output when it has read it.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// What is kept of what a login says before it.
const MOST_BANNER: usize = 4096;
/// Bytes for the agent at a time. Full: nothing more is said until it has read.
const SAID: usize = 128 * 1024;
/// Such pieces on their way.
const PIECES: usize = 2;
/// What a job wrote before its connection was lost is passed on within this.
const LEAVE: Duration = Duration::from_secs(10);
/// What the agent says, on its way. Full: the agent waits, and reads meanwhile.
const HEARD: usize = 64 * 1024;

/// How a job stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// It waits, or runs.
    Open,
    /// It has ended, and said how. `clean`: its host closed the channel after it, so its guard does what is left to do.
    Over {
        /// So.
        clean: bool,
    },
    /// The connection went, and with it the job's end.
    Gone(String),
}

/// Why a job could not be opened on a host that let us in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotOpened {
    /// The host cannot run jobs in this way.
    Unfit(String),
    /// The connection went.
    Lost(String),
}

/// The opener's shell has ended with this code, and has said none of its words.
fn before_the_job(code: u32, words: &[u8]) -> NotOpened {
    let said = crate::job::shown(String::from_utf8_lossy(words).trim());
    NotOpened::Unfit(format!(
        "its shell ended with code {code} before the job: a forced command, or no POSIX shell{}",
        if said.is_empty() { String::new() } else { format!("; it said: {said}") }
    ))
}

/// A job that waits to be told what it is.
pub(super) struct Opened {
    exec: Exec,
    pid: u32,
    dir: String,
}

impl Opened {
    /// Waits for the opener's first word. Errors: why it does not come.
    pub(super) async fn wait(mut exec: Exec) -> Result<Self, NotOpened> {
        let mut until = Instant::now() + OPEN;
        let (mut heard, mut printed, mut ended) = (Vec::new(), Vec::new(), None);
        loop {
            let event = match (timeout_at(until, exec.output.next()).await, ended) {
                (Ok(None | Some(Event::Closed)) | Err(_), Some(code)) => {
                    let words = if heard.trim_ascii().is_empty() { &printed } else { &heard };
                    return Err(before_the_job(code, words));
                }
                (event, _) => {
                    event.map_err(|_| NotOpened::Lost(format!("its shell said nothing for {} s", OPEN.as_secs())))?
                }
            };
            match event {
                // Whatever a login's own files print, or what is there in place of its shell.
                Some(Event::Stdout(bytes)) => keep(&mut printed, &bytes),
                Some(Event::Eof) => {}
                Some(Event::Stderr(bytes)) => {
                    keep(&mut heard, &bytes);
                    let Some(said) = line(&heard) else { continue };
                    match said {
                        Some(Said::Ready { pid, dir }) => return Ok(Self { exec, pid, dir }),
                        // A full disk, or one that cannot be written now.
                        Some(Said::Fail(step)) if step.starts_with("folder") => {
                            return Err(NotOpened::Lost(unfit(&step, &heard)));
                        }
                        Some(Said::Fail(step)) => return Err(NotOpened::Unfit(unfit(&step, &heard))),
                        Some(Said::Go) | None => {
                            return Err(NotOpened::Unfit("its shell does not do what it is told".to_owned()));
                        }
                    }
                }
                // What it said last may come behind its code, but not for long.
                Some(Event::Exit(code)) => (ended, until) = (Some(code), until.min(Instant::now() + LAST_WORDS)),
                Some(Event::Signal { name, .. }) => {
                    return Err(NotOpened::Lost(format!("its shell was ended by {name} before the job")));
                }
                Some(Event::Refused) => return Err(NotOpened::Unfit("its server runs no commands".to_owned())),
                Some(Event::Overrun) => return Err(NotOpened::Unfit("its login prints without an end".to_owned())),
                Some(Event::Lost(reason)) => return Err(NotOpened::Lost(reason)),
                Some(Event::Closed) | None => {
                    return Err(NotOpened::Unfit("it closed the channel before the job".to_owned()));
                }
            }
        }
    }

    /// The job's folder on its host.
    pub(super) fn dir(&self) -> &str {
        &self.dir
    }

    /// Begins to stand in for the warden of `attempt`.
    pub(super) fn stand_in(self, attempt: String, place: Place, mut facts: Vec<Fact>) -> StandIn {
        facts.push(("pid".to_owned(), self.pid.to_string()));
        let machine = Machine::new(attempt, place, self.pid, self.dir, facts);
        let (links, new_links) = mpsc::channel(1);
        let (tell, standing) = watch::channel(Standing::Open);
        let stop = CancellationToken::new();
        let task = Task {
            machine,
            exec: self.exec,
            ears: None,
            mouth: None,
            tell,
            to_host: BytesMut::new(),
            shut: false,
            heard_all: false,
            began: Instant::now(),
            leave_at: None,
        };
        spawn("ssh job", task.run(new_links, stop.clone()));
        StandIn { links, standing, stop }
    }
}

fn keep(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.extend_from_slice(bytes);
    if buffer.len() > MOST_BANNER + bytes.len() {
        buffer.drain(..buffer.len() - MOST_BANNER);
    }
}

/// The first line of the opener's in what was heard; nothing, if it is none that it would say.
fn line(heard: &[u8]) -> Option<Option<Said>> {
    let at = heard.windows(SIGN.len()).position(|window| window == SIGN)? + SIGN.len();
    let end = at + heard[at..].iter().position(|byte| *byte == b'\n')?;
    Some(shell::said(&heard[at..end]))
}

fn unfit(step: &str, heard: &[u8]) -> String {
    let (step, what) = step.split_once(' ').unwrap_or((step, ""));
    let said = String::from_utf8_lossy(heard);
    let said = crate::job::shown(said.split('\u{1e}').next().unwrap_or_default().trim());
    match step {
        "folder" => format!("the folder {what} cannot be made: {said}"),
        "group" => "its server gives a command no process group of its own".to_owned(),
        "setsid" => "it has no setsid (util-linux or busybox)".to_owned(),
        other => format!("{other} failed: {said}"),
    }
}

/// A job's stand-in for a warden. It goes on until it is dropped.
pub(super) struct StandIn {
    links: mpsc::Sender<(DuplexStream, mpsc::Sender<Result<Bytes, String>>)>,
    standing: watch::Receiver<Standing>,
    stop: CancellationToken,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl StandIn {
    /// How the job stands.
    pub(super) fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// A new link to it; an earlier one ends. Errors: there is nothing to be linked to any more.
    pub(super) async fn link(&self) -> Result<Link, String> {
        if let Standing::Gone(reason) = self.standing() {
            return Err(reason);
        }
        let (ours, theirs) = tokio::io::duplex(HEARD);
        let (tell, told) = mpsc::channel(PIECES);
        self.links.send((ours, tell)).await.map_err(|_| "nobody stands in for its warden any more".to_owned())?;
        let output =
            futures_util::stream::unfold(told, |mut told| async { told.recv().await.map(|piece| (piece, told)) });
        Ok(Link { output: Box::pin(output), input: Box::pin(theirs) })
    }
}

struct Task {
    machine: Machine,
    exec: Exec,
    /// What the agent says over its link.
    ears: Option<(DuplexStream, Decoder)>,
    /// Where it hears.
    mouth: Option<mpsc::Sender<Result<Bytes, String>>>,
    tell: watch::Sender<Standing>,
    to_host: BytesMut,
    /// The host knows that nothing follows.
    shut: bool,
    /// Nothing more comes from the host.
    heard_all: bool,
    began: Instant,
    /// The connection is lost: nobody is waited for any longer.
    leave_at: Option<Instant>,
}

impl Task {
    fn now(&self) -> Now {
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now { ms, us: UnixMillis::now().as_u64().saturating_mul(1000) }
    }

    async fn run(
        mut self,
        mut new_links: mpsc::Receiver<(DuplexStream, mpsc::Sender<Result<Bytes, String>>)>,
        stop: CancellationToken,
    ) {
        let mut said = Vec::new();
        let mut heard = vec![0; HEARD];
        let mut pressure = self.exec.output.pressure();
        loop {
            self.machine.tick(self.now());
            if self.tell_standing() {
                return;
            }
            if said.is_empty() && self.mouth.is_some() {
                said = self.machine.say(SAID);
            }
            let (for_host, hang_up) = self.machine.for_host();
            self.to_host.extend_from_slice(for_host);
            for_host.clear();
            let wake = self.machine.wake_at().map(|at| self.began + Duration::from_millis(at));
            let listens = self.machine.has_room() && !self.heard_all;
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some((input, output)) = new_links.recv() => {
                    said.clear();
                    (self.ears, self.mouth) = (Some((input, Decoder::new())), Some(output));
                }
                read = read(&mut self.ears, &mut heard) => match read {
                    Ok(count) if count > 0 => self.hear(&heard[..count]),
                    _ => (self.ears, self.mouth) = (None, None),
                },
                room = room(self.mouth.as_ref()), if !said.is_empty() => match room {
                    Some(room) => drop(room.send(Ok(Bytes::from(std::mem::take(&mut said))))),
                    None => (self.ears, self.mouth) = (None, None),
                },
                written = tell(&mut self.exec.input, &self.to_host), if !self.to_host.is_empty() || (hang_up && !self.shut) => match written {
                    Some(count) => drop(self.to_host.split_to(count)),
                    None => {
                        // What became of the rest, the channel's events say.
                        self.to_host.clear();
                        self.shut = true;
                    }
                },
                event = self.exec.output.next(), if listens => {
                    self.heard_all = event.is_none() || matches!(event, Some(Event::Closed | Event::Lost(_)));
                    let lost = || Event::Lost("the connection ended".to_owned());
                    self.machine.on(event.unwrap_or_else(lost), self.now());
                }
                Ok(()) = pressure.changed() => {
                    let on = *pressure.borrow_and_update();
                    self.machine.press(on);
                }
                () = sleep_until(wake.unwrap_or(self.began)), if wake.is_some() => {}
                () = sleep_until(self.leave_at.unwrap_or(self.began)), if self.leave_at.is_some() => {}
            }
        }
    }

    /// Tells how the job stands; true when there is nobody to stand in for any more.
    fn tell_standing(&mut self) -> bool {
        if let Some(reason) = self.machine.gone() {
            // What it wrote before is passed on, if somebody takes it.
            let until = *self.leave_at.get_or_insert_with(|| Instant::now() + LEAVE);
            if !self.machine.is_drained() && Instant::now() < until {
                return false;
            }
            self.tell.send_replace(Standing::Gone(reason.to_owned()));
            // The link ends with this task.
            return true;
        }
        if self.machine.is_over() && *self.tell.borrow() == Standing::Open {
            self.tell.send_replace(Standing::Over { clean: self.machine.is_clean() });
        }
        false
    }

    fn hear(&mut self, bytes: &[u8]) {
        let now = self.now();
        let Some((_, decoder)) = &mut self.ears else { return };
        decoder.feed(bytes);
        while let Some(frame) = decoder.next() {
            if let Ok(message) = ToWarden::decode(&frame) {
                self.machine.hear(frame.epoch, message, now);
            }
        }
    }
}

async fn read(ears: &mut Option<(DuplexStream, Decoder)>, into: &mut [u8]) -> std::io::Result<usize> {
    match ears {
        Some((input, _)) => input.read(into).await,
        None => std::future::pending().await,
    }
}

/// Room for a piece; `None` when nobody reads any more.
async fn room(mouth: Option<&mpsc::Sender<Result<Bytes, String>>>) -> Option<mpsc::OwnedPermit<Result<Bytes, String>>> {
    match mouth {
        Some(mouth) => mouth.clone().reserve_owned().await.ok(),
        None => std::future::pending().await,
    }
}

/// Sends some of it, and says how much; without anything to send, says to the host that nothing follows. `None` when nothing can be
/// sent any more.
async fn tell(input: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Option<usize> {
    if bytes.is_empty() {
        let _ = input.shutdown().await;
        return None;
    }
    input.write(bytes).await.ok().filter(|count| *count > 0)
}
