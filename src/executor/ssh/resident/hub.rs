//! The agent's side of a hub: many jobs over one stream, each with a link of its own.
//!
//! One task reads and writes the stream and awaits nothing else: what arrives for a job goes into the job's own queue, which is bounded by the
//! window that its warden keeps to. A job whose output nobody takes holds up no other one's. Must never know what a job says.

mod kill;

use super::link::{Failed, Joint, Line};
use crate::executor::{Link, LinkInput, LinkOutput};
use crate::protocol::wire::{Fact, FromHub, MUX_VERSION, MuxDecoder, ToHub};
use crate::supervise;
use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep_until};

/// Bytes for the hub that are not on their way yet. Full: whoever has more waits.
const MOST_OUT: usize = 256 * 1024;
/// A job's share of them at a time, so that many get their turn.
const PIECE: usize = 32 * 1024;
/// For an answer. A hub gives one at once; one that does not is stuck, and so is all that is said to it.
const ANSWER: Duration = Duration::from_secs(15);
/// Jobs at a time on one connection: as many as there are numbers for them.
const MOST_LINES: usize = 60_000;

/// What a hub says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Greeting {
    /// Which program it is.
    pub(super) build: String,
    /// Its process.
    pub(super) pid: u32,
    /// What is in force for every job there.
    pub(super) facts: Vec<Fact>,
}

/// When an unused connection to a hub ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ages {
    /// Unused for so long.
    pub(super) idle: Duration,
    /// So old, and unused.
    pub(super) most: Duration,
}

/// A connection to a hub. Clones are the same one.
#[derive(Clone)]
pub(in crate::executor::ssh) struct Hub(Arc<Shared>);

/// What a hub's task and the links of its jobs share.
pub(super) struct Shared {
    state: Mutex<State>,
    /// There is something to write, or something has changed about when to end.
    news: Notify,
    ended: watch::Sender<Option<String>>,
    /// Changes with each list of names that it sends.
    named: watch::Sender<()>,
    born: Instant,
    ages: Ages,
    facts: Vec<Fact>,
}

#[derive(Default)]
struct State {
    /// Not on its way yet.
    out: Vec<u8>,
    /// Who waits for room in it, by channel.
    waiting: HashMap<u16, Waker>,
    lines: HashMap<u16, Arc<Line>>,
    /// The number that was given last. They go round, so that none is used again while something of its last use is on its way.
    last: u16,
    kills: HashMap<String, Vec<oneshot::Sender<Result<(), String>>>>,
    ended: Option<String>,
    /// Since when nobody uses it.
    idle: Option<Instant>,
}

impl State {
    fn is_unused(&self) -> bool {
        self.lines.is_empty() && self.kills.is_empty()
    }

    /// Whether this number is still this line's: those that have ended are given again.
    fn is_of(&self, channel: u16, line: &Arc<Line>) -> bool {
        self.lines.get(&channel).is_some_and(|one| Arc::ptr_eq(one, line))
    }

    fn look_whether_unused(&mut self) -> bool {
        let unused = self.is_unused();
        self.idle = unused.then(|| self.idle.unwrap_or_else(Instant::now));
        unused
    }
}

/// Says hello over a new link to a hub. Errors: what was heard instead.
pub(super) async fn greet(link: &mut Link, decoder: &mut MuxDecoder) -> Result<Greeting, String> {
    let mut hello = Vec::new();
    ToHub::Hello { version: MUX_VERSION }.encode(&mut hello);
    let said = async {
        link.input.write_all(&hello).await?;
        link.input.flush().await
    };
    said.await.map_err(|error| error.to_string())?;
    loop {
        if let Some(envelope) = decoder.next().map_err(|error| error.to_string())? {
            return match FromHub::decode(&envelope).map_err(|error| error.to_string())? {
                FromHub::Hello { version: MUX_VERSION, build, pid, facts, .. } => Ok(Greeting { build, pid, facts }),
                FromHub::Hello { version, .. } => Err(format!("it speaks version {version} of the envelope")),
                FromHub::Fault { text } => Err(crate::job::shown(&text)),
                _ => Err("its first word is no hello".to_owned()),
            };
        }
        match link.output.next().await {
            Some(Ok(bytes)) => decoder.feed(&bytes),
            Some(Err(reason)) => return Err(reason),
            None => return Err("it ended before it said anything".to_owned()),
        }
    }
}

impl Hub {
    /// Begins to talk over a link on which a hub has said hello.
    pub(super) fn begin(link: Link, decoder: MuxDecoder, facts: Vec<Fact>, ages: Ages) -> Self {
        let (ended, named) = (watch::Sender::new(None), watch::Sender::new(()));
        let state = State { idle: Some(Instant::now()), ..State::default() };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            news: Notify::new(),
            ended,
            named,
            born: Instant::now(),
            ages,
            facts,
        });
        let own = Arc::clone(&shared);
        drop(supervise::spawn("ssh hub", async move {
            let reason = own.talk(link, decoder).await;
            own.end(&reason);
        }));
        Self(shared)
    }

    /// What is in force for every job there.
    pub(in crate::executor::ssh) fn facts(&self) -> &[Fact] {
        &self.0.facts
    }

    /// It takes new jobs.
    pub(super) fn is_fresh(&self) -> bool {
        self.0.state().ended.is_none() && self.0.born.elapsed() < self.0.ages.most
    }

    /// A new job of this name. Errors: there is none then.
    pub(in crate::executor::ssh) async fn open(&self, name: &str) -> Result<Arc<Joint>, Failed> {
        self.join(name, |channel, name| ToHub::Open { channel, name }).await
    }

    /// A job that is there. Errors: why it cannot be talked to.
    pub(in crate::executor::ssh) async fn attach(&self, name: &str) -> Result<Arc<Joint>, Failed> {
        self.join(name, |channel, name| ToHub::Attach { channel, name }).await
    }

    async fn join(&self, name: &str, ask: impl FnOnce(u16, String) -> ToHub<'static>) -> Result<Arc<Joint>, Failed> {
        let (line, answer) = Line::new();
        let channel = {
            let mut state = self.0.state();
            if let Some(reason) = &state.ended {
                return Err(Failed::Cut(reason.clone()));
            }
            if state.lines.len() >= MOST_LINES {
                return Err(Failed::Said { errno: EAGAIN, step: "too many jobs at once".to_owned() });
            }
            while state.last == u16::MAX || state.lines.contains_key(&(state.last + 1)) {
                state.last = if state.last == u16::MAX { 0 } else { state.last + 1 };
            }
            state.last += 1;
            let channel = state.last;
            state.lines.insert(channel, Arc::clone(&line));
            state.idle = None;
            ask(channel, name.to_owned()).encode(&mut state.out);
            channel
        };
        self.0.news.notify_one();
        // From here on the channel is left when nobody wants it any more.
        let joint = Arc::new(Joint::new(Arc::clone(&self.0), channel, line));
        match self.answered(answer).await.map_err(Failed::Cut)? {
            Ok(opened) => {
                joint.set_opened(opened);
                Ok(joint)
            }
            Err(failed) => Err(failed),
        }
    }

    /// Waits for an answer. Errors: there is none, and nothing more is said over this connection.
    async fn answered<T>(&self, answer: oneshot::Receiver<T>) -> Result<T, String> {
        match tokio::time::timeout(ANSWER, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err("the task that talks to it ended".to_owned()),
            Err(_) => Err(self.stuck()),
        }
    }

    /// Ends a connection over which nothing is answered; says so.
    fn stuck(&self) -> String {
        let reason = format!("the warden there did not answer for {} s", ANSWER.as_secs());
        self.0.end(&reason);
        self.0.news.notify_one();
        reason
    }

    /// Waits until nothing can be said over it any more.
    #[cfg(test)]
    pub(super) async fn ended(&self) -> String {
        let mut ended = self.0.ended.subscribe();
        let reason = ended.wait_for(Option::is_some).await.expect("its sender is there");
        reason.clone().unwrap_or_default()
    }
}

/// Too many at once.
const EAGAIN: i32 = 11;

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts bytes of a job on their way, as many as there is room for; with none, `waker` hears when there is. Errors: there is no way.
    pub(super) fn say(
        &self,
        (channel, line): (u16, &Arc<Line>),
        bytes: &[u8],
        waker: &Waker,
    ) -> Result<Option<usize>, String> {
        let mut state = self.state();
        if let Some(reason) = &state.ended {
            return Err(reason.clone());
        }
        if !state.is_of(channel, line) {
            return Err("its channel has ended".to_owned());
        }
        if state.out.len() >= MOST_OUT {
            state.waiting.insert(channel, waker.clone());
            return Ok(None);
        }
        let piece = &bytes[..bytes.len().min(PIECE)];
        ToHub::Data { channel, bytes: piece }.encode(&mut state.out);
        drop(state);
        self.news.notify_one();
        Ok(Some(piece.len()))
    }

    /// Nobody wants this channel any more.
    pub(super) fn leave(&self, channel: u16, line: &Arc<Line>) {
        let mut state = self.state();
        if !state.is_of(channel, line) {
            return;
        }
        state.waiting.remove(&channel);
        state.lines.remove(&channel);
        if state.ended.is_none() {
            ToHub::Leave { channel }.encode(&mut state.out);
        }
        state.look_whether_unused();
        drop(state);
        self.news.notify_one();
    }

    /// Carries what is said either way, until the stream ends or nobody uses it any more; says why.
    async fn talk(&self, mut link: Link, mut decoder: MuxDecoder) -> String {
        let (mut writing, mut at) = (Vec::new(), 0);
        if let Err(reason) = self.hear(&mut decoder) {
            return reason;
        }
        loop {
            let unused_until = {
                let mut state = self.state();
                if let Some(reason) = &state.ended {
                    return reason.clone();
                }
                if at == writing.len() {
                    writing.clear();
                    at = 0;
                    std::mem::swap(&mut writing, &mut state.out);
                    state.waiting.drain().for_each(|(_, waker)| waker.wake());
                }
                let old = self.born + self.ages.most;
                state.idle.filter(|_| state.out.is_empty()).map(|since| (since + self.ages.idle).min(old.max(since)))
            };
            if unused_until.is_some_and(|until| until <= Instant::now()) && writing.is_empty() {
                // Unless somebody came in between.
                let mut state = self.state();
                if state.is_unused() && state.out.is_empty() {
                    let reason = "nobody used it".to_owned();
                    state.ended = Some(reason.clone());
                    return reason;
                }
                continue;
            }
            tokio::select! {
                () = self.news.notified() => {}
                written = write(&mut link.input, &writing[at..]), if at < writing.len() => match written {
                    Ok(count) => at += count,
                    Err(error) => return format!("nothing can be said to it any more: {error}"),
                },
                heard = next(&mut link.output) => match heard {
                    Ok(bytes) => {
                        decoder.feed(&bytes);
                        if let Err(reason) = self.hear(&mut decoder) {
                            return reason;
                        }
                    }
                    Err(reason) => return reason,
                },
                () = sleep_until(unused_until.unwrap_or(self.born)), if unused_until.is_some() && writing.is_empty() => {}
            }
        }
    }

    /// Takes all that has arrived. Errors: it is not what a hub says, or its last word.
    fn hear(&self, decoder: &mut MuxDecoder) -> Result<(), String> {
        let nonsense = |error: crate::protocol::wire::BadPayload| format!("it does not keep to the envelope: {error}");
        while let Some(envelope) = decoder.next().map_err(nonsense)? {
            match FromHub::decode(&envelope).map_err(nonsense)? {
                FromHub::Data { channel, bytes } => {
                    // What is still on its way to who has left goes nowhere.
                    let line = self.state().lines.get(&channel).cloned();
                    if let Some(line) = line {
                        line.put(bytes);
                    }
                }
                FromHub::Opened { channel, dir, .. } => {
                    let line = self.state().lines.get(&channel).cloned();
                    if let Some(line) = line {
                        line.opened(dir);
                    }
                }
                FromHub::Failed { channel, errno, step } => {
                    self.take(channel, |line| line.failed(errno, crate::job::shown(&step)));
                }
                FromHub::Ended { channel, code, .. } => self.take(channel, |line| line.ended(code)),
                FromHub::Gone { name } => self.killed(&name, &Ok(())),
                FromHub::Left { name, text } => self.killed(&name, &Err(crate::job::shown(&text))),
                FromHub::Fault { text } => return Err(format!("it hung up: {}", crate::job::shown(&text))),
                FromHub::Names { .. } => self.named.send_replace(()),
                // Nobody asks for it.
                FromHub::Hello { .. } => {}
            }
        }
        Ok(())
    }

    fn take(&self, channel: u16, tell: impl FnOnce(&Line)) {
        let line = {
            let mut state = self.state();
            if let Some(waker) = state.waiting.remove(&channel) {
                waker.wake();
            }
            let line = state.lines.remove(&channel);
            state.look_whether_unused();
            line
        };
        if let Some(line) = line {
            tell(&line);
        }
    }

    fn killed(&self, name: &str, result: &Result<(), String>) {
        let asked = {
            let mut state = self.state();
            let asked = state.kills.remove(name).unwrap_or_default();
            state.look_whether_unused();
            asked
        };
        asked.into_iter().for_each(|tell| drop(tell.send(result.clone())));
    }

    /// It is over with all of its links.
    fn end(&self, reason: &str) {
        let (lines, kills, waiting) = {
            let mut state = self.state();
            state.ended = Some(reason.to_owned());
            state.out = Vec::new();
            (std::mem::take(&mut state.lines), std::mem::take(&mut state.kills), std::mem::take(&mut state.waiting))
        };
        waiting.into_values().for_each(Waker::wake);
        lines.into_values().for_each(|line| line.cut(reason));
        kills.into_values().flatten().for_each(|tell| drop(tell.send(Err(reason.to_owned()))));
        self.ended.send_replace(Some(reason.to_owned()));
    }
}

async fn write(input: &mut LinkInput, bytes: &[u8]) -> std::io::Result<usize> {
    match input.write(bytes).await? {
        0 => Err(std::io::ErrorKind::WriteZero.into()),
        count => Ok(count),
    }
}

async fn next(output: &mut LinkOutput) -> Result<bytes::Bytes, String> {
    output.next().await.unwrap_or_else(|| Err("the stream to it ended".to_owned()))
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
