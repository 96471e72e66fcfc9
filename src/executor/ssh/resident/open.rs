//! From a channel to a hub that has said hello: the opener is listened to, the warden's program brought if it is wanted, and the connector
//! greeted.

use super::hub::{Greeting, greet};
use super::shell::{MUX, Said, lines, opener};
use crate::executor::Link;
use crate::executor::ssh::{ConnectError, Event, Exec, Lane, Output, Pool, Route};
use crate::executor::warden::WARDEN;
use crate::job::OwnerId;
use crate::protocol::wire::MuxDecoder;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout_at};

/// For the opener's next word, and for the hub's hello.
const WORD: Duration = Duration::from_secs(15);
/// For what a shell that has ended said before: a server may tell the code of a program first, and its output when it has read it.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// For the program to be brought: a megabyte over whatever there is.
const BRING: Duration = Duration::from_secs(120);
/// What is kept of what a login or a connector says beside.
const MOST_SAID: usize = 4096;
/// The shell's codes for a program that cannot be run, or is not there.
const NO_EXEC: [u32; 2] = [126, 127];

/// Why there is no hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::executor::ssh) enum NoHub {
    /// There is no channel to the host.
    Connect(ConnectError),
    /// This host cannot have a warden, until somebody changes it: why, for people.
    Unfit(String),
    /// It cannot have one now.
    NotNow(String),
    /// The program that is asked for is not there any more, so nobody was started from it.
    Missing,
    /// The connection went, or the host does not answer.
    Lost(String),
}

impl std::fmt::Display for NoHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(error) => error.fmt(f),
            Self::Unfit(reason) | Self::NotNow(reason) | Self::Lost(reason) => f.write_str(reason),
            Self::Missing => f.write_str("the warden's program is not there any more"),
        }
    }
}

/// Opens a channel to the hub of this program. Errors: why there is none.
pub(super) async fn open(
    pool: &Pool,
    route: &Route,
    owner: &OwnerId,
    program: &str,
) -> Result<(Link, MuxDecoder, Greeting), NoHub> {
    let mut exec = pool.exec(route, &opener(owner, program), Lane::Job).await.map_err(NoHub::Connect)?;
    let first = until_connected(&mut exec).await?;
    let end = Arc::new(Ending::default());
    let mut link = over(exec, first, Arc::clone(&end));
    let mut decoder = MuxDecoder::new();
    match tokio::time::timeout(WORD, greet(&mut link, &mut decoder)).await {
        Ok(Ok(greeting)) => Ok((link, decoder, greeting)),
        Ok(Err(reason)) if end.lost.load(Ordering::Relaxed) => Err(NoHub::Lost(reason)),
        Ok(Err(reason)) if end.foreign.load(Ordering::Relaxed) => Err(NoHub::Unfit(reason)),
        Ok(Err(reason)) => Err(NoHub::NotNow(format!("its warden does not answer: {reason}"))),
        Err(_) => Err(NoHub::Lost(format!("its warden said nothing for {} s", WORD.as_secs()))),
    }
}

/// Listens to the opener until it has become the connector; returns what that has said by then.
async fn until_connected(exec: &mut Exec) -> Result<Bytes, NoHub> {
    let mut until = Instant::now() + WORD;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut bring: &[u8] = &[];
    let mut ended = None;
    loop {
        let event = tokio::select! {
            event = timeout_at(until, exec.output.next()) => event,
            written = exec.input.write(bring), if !bring.is_empty() => {
                match written {
                    Ok(count) if count > 0 => bring = &bring[count..],
                    // Why, the channel's events say.
                    _ => bring = &[],
                }
                continue;
            }
        };
        let event = match (event, ended) {
            (Ok(None | Some(Event::Closed)) | Err(_), Some(code)) => return Err(before_the_warden(code)),
            (event, _) => event.map_err(|_| NoHub::Lost("its shell does not answer".to_owned()))?,
        };
        match event {
            Some(Event::Stdout(bytes)) => {
                out.extend_from_slice(&bytes);
                if let Some(at) = out.windows(MUX.len()).position(|window| window == MUX) {
                    return Ok(Bytes::from(out.split_off(at + MUX.len())));
                }
                // Of what a login prints only what may be the beginning of the word is of use.
                out.drain(..out.len().saturating_sub(MUX.len()));
            }
            Some(Event::Stderr(bytes)) => {
                err.extend_from_slice(&bytes);
                let (said, read) = lines(&err);
                for said in said {
                    match said {
                        Said::Want => (bring, until) = (WARDEN, Instant::now() + BRING),
                        Said::Fail(reason) => return Err(NoHub::Unfit(reason)),
                        Said::NotNow(reason) => return Err(NoHub::NotNow(reason)),
                        Said::Missing => return Err(NoHub::Missing),
                    }
                }
                let beyond = err.len().saturating_sub(MOST_SAID);
                err.drain(..read.max(beyond).min(err.len()));
            }
            // What it said last may come behind its code, but not for long.
            Some(Event::Exit(code)) => (ended, until) = (Some(code), until.min(Instant::now() + LAST_WORDS)),
            Some(Event::Signal { name, .. }) => return Err(NoHub::Lost(format!("its shell was ended by {name}"))),
            Some(Event::Refused) => return Err(NoHub::Unfit("its server runs no commands".to_owned())),
            Some(Event::Overrun) => return Err(NoHub::Unfit("its login prints without an end".to_owned())),
            Some(Event::Lost(reason)) => return Err(NoHub::Lost(reason)),
            Some(Event::Closed) | None => return Err(NoHub::NotNow("it closed the channel".to_owned())),
            Some(Event::Eof) => {}
        }
    }
}

/// The opener's shell has ended with this code, and has not said why.
fn before_the_warden(code: u32) -> NoHub {
    let why = "a forced command, no POSIX shell, or too many processes";
    let reason = format!("its shell ended with code {code} before the warden: {why}");
    // Shells that cannot begin a process end with codes of their own.
    if NO_EXEC.contains(&code) { NoHub::Unfit(reason) } else { NoHub::NotNow(reason) }
}

/// How a connector's channel ended, for who has only the stream.
#[derive(Default)]
struct Ending {
    lost: AtomicBool,
    /// Its processor does not know all that the program was built with.
    foreign: AtomicBool,
    said: Mutex<Vec<u8>>,
}

/// The connector's channel as a stream; `first` comes first.
fn over(exec: Exec, first: Bytes, end: Arc<Ending>) -> Link {
    let mut ready = VecDeque::new();
    if !first.is_empty() {
        ready.push_back(first);
    }
    let state = Some((exec.output, ready, end, None::<u32>));
    let output = futures_util::stream::unfold(state, |state| async {
        let (mut output, mut ready, end, mut code) = state?;
        if let Some(first) = ready.pop_front() {
            return Some((Ok(first), Some((output, ready, end, code))));
        }
        match piece(&mut output, &end, &mut code).await {
            Ok(bytes) => Some((Ok(bytes), Some((output, ready, end, code)))),
            Err(reason) => Some((Err(reason), None)),
        }
    });
    Link { output: Box::pin(output), input: Box::pin(exec.input) }
}

/// The next bytes of the connector's. Errors: how it ended.
async fn piece(output: &mut Output, end: &Ending, code: &mut Option<u32>) -> Result<Bytes, String> {
    loop {
        match output.next().await {
            Some(Event::Stdout(bytes)) => return Ok(bytes),
            Some(Event::Stderr(bytes)) => {
                let mut said = end.said.lock().unwrap_or_else(PoisonError::into_inner);
                said.extend_from_slice(&bytes);
                let beyond = said.len().saturating_sub(MOST_SAID);
                said.drain(..beyond);
            }
            Some(Event::Exit(exit)) => *code = Some(exit),
            Some(Event::Signal { name, .. }) => {
                end.foreign.store(name == "ILL", Ordering::Relaxed);
                return Err(format!("its program was ended by {name}"));
            }
            Some(Event::Lost(reason)) => {
                end.lost.store(true, Ordering::Relaxed);
                return Err(reason);
            }
            // What is not kept is given again over the next one.
            Some(Event::Overrun) => return Err("more came than could be taken".to_owned()),
            Some(Event::Closed) | None => {
                let said = end.said.lock().unwrap_or_else(PoisonError::into_inner);
                let said = crate::job::one_line(String::from_utf8_lossy(&said).trim(), 200);
                let said = if said.is_empty() { said } else { format!("; it said: {said}") };
                return Err(match code {
                    // It is there, and can be run: the opener has looked.
                    Some(code) if NO_EXEC.contains(code) => format!("its program cannot be run there now{said}"),
                    Some(code) => format!("it ended with code {code}{said}"),
                    None => format!("its channel was closed{said}"),
                });
            }
            Some(Event::Eof | Event::Refused) => {}
        }
    }
}
