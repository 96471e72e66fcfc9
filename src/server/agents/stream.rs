//! An agent's stream: output of all its attempts upwards, orders downwards.
//!
//! Each channel has a task and a bounded queue of its own, so an attempt whose log is slow to write delays no other. The agent
//! keeps to a window for each; one that does not is cut off, and goes on where it was when it comes again. Frames are called
//! durable after a sync, and syncs serve many frames.

use super::calls::Known;
use crate::backend::{IntakeError, Order};
use crate::job::{AttemptId, UnixMillis};
use crate::logstore::LogError;
use crate::protocol::agent::{
    FromAgent, Holding, LONGEST_MESSAGE, MESSAGES, PING_SECONDS, SILENCE_SECONDS, ToAgent, WINDOW,
};
use crate::protocol::record::read_records;
use crate::server::App;
use crate::server::problem::ProblemDocument;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures_util::{SinkExt, StreamExt};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Channels open at the same time on one connection: more than an agent has slots.
const MOST_CHANNELS: usize = 10_000;
/// What channels have to say and the socket has not taken yet. Full: the channels wait.
const SAYINGS: usize = 256;
/// Output is synced when so much of it is not, or after so long.
const SYNC_BYTES: usize = 256 << 10;
const SYNC_AFTER: Duration = Duration::from_millis(50);
/// One message may take so long to send.
const SEND: Duration = Duration::from_secs(30);
const PING: Duration = Duration::from_secs(PING_SECONDS);
const SILENCE: Duration = Duration::from_secs(SILENCE_SECONDS);

/// Streams of one agent at the same time. It needs one; those before it may not know yet that they were cut.
const MOST_STREAMS: usize = 4;

/// The streams that are open, the oldest of each agent first.
#[derive(Debug, Default)]
pub(in crate::server) struct Streams(Mutex<HashMap<String, VecDeque<CancellationToken>>>);

impl Streams {
    /// One more. With more than there may be, the agent's oldest is told to end: the newest is the one that it uses.
    fn begin(&self, agent: &str) -> (CancellationToken, DropGuard) {
        let ended = CancellationToken::new();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have ended cancel theirs as they go.
        all.retain(|_, open| {
            open.retain(|stream| !stream.is_cancelled());
            !open.is_empty()
        });
        let open = all.entry(agent.to_owned()).or_default();
        open.push_back(ended.clone());
        if open.len() > MOST_STREAMS
            && let Some(oldest) = open.pop_front()
        {
            oldest.cancel();
        }
        (ended.clone(), ended.drop_guard())
    }
}

/// Output of all attempts upwards, orders downwards, over WebSocket
#[utoipa::path(get, path = "/v1/agent/stream", tag = "agent protocol",
    params(("Jobcell-Session" = String, Header, description = "From the registration")),
    responses((status = 101, description = "The stream")),
    extensions(("x-problems" = json!(["bad_body", "session_unknown"]))))]
pub(super) async fn open(
    State(app): State<App>,
    Known { agent, session }: Known,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ProblemDocument> {
    let upgrade = upgrade.map_err(|error| ProblemDocument::new("bad_body", error.body_text()))?;
    let upgrade = upgrade.max_message_size(LONGEST_MESSAGE).max_frame_size(LONGEST_MESSAGE);
    Ok(upgrade.on_upgrade(move |socket| async move {
        tracing::debug!(%agent, "an agent's stream is open");
        let (replaced, _open) = app.streams.begin(&agent);
        let reason = tokio::select! {
            reason = serve(&app, &agent, &session, socket) => reason,
            () = replaced.cancelled() => "the agent has opened newer ones".to_owned(),
        };
        tracing::debug!(%agent, %reason, "an agent's stream ended");
    }))
}

/// Output of one channel that is received and not written yet. An agent sends while less than its window is not durable, so its
/// last message may reach past the window. Full: it did not keep to it, and is cut off.
const ON_THE_WAY: usize = WINDOW + LONGEST_MESSAGE;

/// For one channel.
enum Work {
    /// With its part of [`ON_THE_WAY`], which is given back when the message was written.
    Output(Bytes, OwnedSemaphorePermit),
    Flush,
}

/// A channel's queue, bounded by messages and by bytes.
struct Lane {
    work: mpsc::Sender<Work>,
    bytes: Arc<Semaphore>,
}

impl Lane {
    fn new() -> (Self, mpsc::Receiver<Work>) {
        let (work, taken) = mpsc::channel(2 * MESSAGES);
        (Self { work, bytes: Arc::new(Semaphore::new(ON_THE_WAY)) }, taken)
    }

    /// False when it is full. A channel whose task has ended takes everything: nobody wants it.
    fn output(&self, message: Bytes) -> bool {
        let size = u32::try_from(message.len()).unwrap_or(u32::MAX);
        match Arc::clone(&self.bytes).try_acquire_many_owned(size) {
            Ok(part) => self.give(Work::Output(message, part)),
            Err(_) => self.work.is_closed(),
        }
    }

    fn flush(&self) -> bool {
        self.give(Work::Flush)
    }

    fn give(&self, work: Work) -> bool {
        !matches!(self.work.try_send(work), Err(mpsc::error::TrySendError::Full(_)))
    }
}

struct Serving<'a> {
    app: &'a App,
    agent: &'a str,
    channels: HashMap<u32, Lane>,
    tasks: JoinSet<Result<(), String>>,
    say: mpsc::Sender<ToAgent>,
}

/// Serves until something ends it; says what.
async fn serve(app: &App, agent: &str, session: &str, socket: WebSocket) -> String {
    let (say, mut saying) = mpsc::channel(SAYINGS);
    let mut serving = Serving { app, agent, channels: HashMap::new(), tasks: JoinSet::new(), say };
    let mut orders = app.backend.orders();
    let (mut sink, mut stream) = socket.split();
    let (mut heard_at, mut ping_at) = (Instant::now(), Instant::now() + PING);
    loop {
        let said = tokio::select! {
            message = stream.next() => {
                heard_at = Instant::now();
                app.backend.roster().heard(agent, None, UnixMillis::now());
                let heard = match message {
                    None => Err("the agent left".to_owned()),
                    Some(Err(error)) => Err(error.to_string()),
                    Some(Ok(message)) => serving.heard(message),
                };
                match heard {
                    Ok(()) => continue,
                    Err(reason) => return reason,
                }
            }
            Some(said) = saying.recv() => text(&said),
            order = orders.recv() => match order {
                // Only its holder hears of a job.
                Ok(Order::Cancel { job, attempt, holder, force }) if holder.as_deref() == Some(agent) => {
                    text(&ToAgent::Cancel { job, attempt, force })
                }
                Ok(Order::Cancel { .. }) => continue,
                // What was missed, the next renewal says.
                Err(broadcast::error::RecvError::Lagged(_)) => continue,
                Err(broadcast::error::RecvError::Closed) => return "the backend is gone".to_owned(),
            },
            Some(ended) = serving.tasks.join_next() => match ended {
                Ok(Ok(())) => continue,
                Ok(Err(reason)) => return reason,
                Err(error) => return error.to_string(),
            },
            () = tokio::time::sleep_until(ping_at) => {
                ping_at = Instant::now() + PING;
                if !app.backend.roster().knows(agent, session) {
                    return "its key was taken away, or it has registered anew".to_owned();
                }
                Message::Ping(Vec::new().into())
            }
            () = tokio::time::sleep_until(heard_at + SILENCE) => return "the agent is silent".to_owned(),
            () = app.stop.cancelled() => return "the server stops".to_owned(),
        };
        match tokio::time::timeout(SEND, sink.send(said)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "the agent takes nothing".to_owned(),
        }
    }
}

fn text(said: &ToAgent) -> Message {
    Message::Text(serde_json::to_string(said).unwrap_or_default().into())
}

impl Serving<'_> {
    fn heard(&mut self, message: Message) -> Result<(), String> {
        match message {
            Message::Text(said) => {
                let said: FromAgent =
                    serde_json::from_str(&said).map_err(|error| format!("not understood: {error}"))?;
                self.asked(said)
            }
            Message::Binary(bytes) => {
                let (head, _) = bytes.split_at_checked(4).ok_or("output of no channel")?;
                let channel = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
                self.give(channel, |lane| lane.output(bytes.slice(4..)))
            }
            Message::Close(_) => Err("closed".to_owned()),
            Message::Ping(_) | Message::Pong(_) => Ok(()),
        }
    }

    fn asked(&mut self, said: FromAgent) -> Result<(), String> {
        match said {
            FromAgent::Open { channel, holding } => {
                if self.channels.len() >= MOST_CHANNELS {
                    return Err("too many channels".to_owned());
                }
                let (lane, work) = Lane::new();
                if self.channels.insert(channel, lane).is_some() {
                    return Err(format!("channel {channel} is open already"));
                }
                let task = Channel {
                    app: self.app.clone(),
                    agent: self.agent.to_owned(),
                    channel,
                    holding,
                    work,
                    say: self.say.clone(),
                };
                self.tasks.spawn(task.run());
                Ok(())
            }
            FromAgent::Flush { channel } => self.give(channel, Lane::flush),
            FromAgent::Close { channel } => {
                self.channels.remove(&channel);
                Ok(())
            }
            FromAgent::Status { load } => {
                self.app.backend.roster().heard(self.agent, Some(&load), UnixMillis::now());
                Ok(())
            }
        }
    }

    /// Output for a channel that is closed or was refused is on its way before the agent knows; it is dropped.
    fn give(&self, channel: u32, work: impl FnOnce(&Lane) -> bool) -> Result<(), String> {
        if self.channels.get(&channel).is_none_or(work) {
            return Ok(());
        }
        Err(format!("channel {channel} has more on its way than agreed"))
    }
}

struct Channel {
    app: App,
    agent: String,
    channel: u32,
    holding: Holding,
    work: mpsc::Receiver<Work>,
    say: mpsc::Sender<ToAgent>,
}

/// What writing a batch came to.
struct Stored {
    /// What is durable now, if anything was synced.
    durable: Option<u64>,
    /// Bytes that are not.
    unsynced: usize,
}

impl Channel {
    /// Until it is closed. Errors end the connection: the agent comes again, and goes on behind what is durable.
    async fn run(mut self) -> Result<(), String> {
        let Holding { attempt, token } = self.holding;
        match self.app.backend.open_log(&self.agent, attempt, token).await {
            Ok(Some(durable)) => self.say(ToAgent::Opened { channel: self.channel, durable }).await,
            Ok(None) => {
                self.refuse("the attempt is not this agent's (any more)").await;
                return Ok(());
            }
            Err(error) => return self.failed(&error).await,
        }
        let (mut unsynced, mut due) = (0, Instant::now());
        loop {
            let first = tokio::select! {
                work = self.work.recv() => match work {
                    Some(work) => Some(work),
                    None => return Ok(()),
                },
                () = tokio::time::sleep_until(due), if unsynced > 0 => None,
            };
            let mut flush = first.is_none();
            let mut batch = Vec::new();
            let mut next = first;
            while let Some(work) = next {
                match work {
                    Work::Output(message, part) => batch.push((message, part)),
                    Work::Flush => flush = true,
                }
                next = self.work.try_recv().ok();
            }
            let intake = Arc::clone(self.app.backend.intake());
            let stored = tokio::task::spawn_blocking(move || store(&intake, attempt, &batch, unsynced, flush));
            match stored.await.map_err(|error| error.to_string())? {
                Ok(stored) => {
                    if unsynced == 0 && stored.unsynced > 0 {
                        due = Instant::now() + SYNC_AFTER;
                    }
                    unsynced = stored.unsynced;
                    if let Some(durable) = stored.durable {
                        self.say(ToAgent::Durable { channel: self.channel, durable }).await;
                    }
                }
                Err(IntakeError::Closed) => {
                    self.refuse("the attempt is over").await;
                    return Ok(());
                }
                Err(error) => return self.failed(&error).await,
            }
        }
    }

    /// A log that cannot be written here is refused by itself, and the agent's other attempts go on. After a hole, and when the
    /// queue does not answer, the agent comes again.
    async fn failed(&self, error: &IntakeError) -> Result<(), String> {
        match error {
            IntakeError::Log(LogError::Jump { .. }) | IntakeError::Queue(_) => Err(error.to_string()),
            IntakeError::Log(_) | IntakeError::Closed => {
                tracing::error!(%error, attempt = %self.holding.attempt, "output cannot be stored");
                self.refuse("the output cannot be stored").await;
                Ok(())
            }
        }
    }

    async fn say(&self, said: ToAgent) {
        // Closed: the connection ends, and this task with it.
        let _ = self.say.send(said).await;
    }

    async fn refuse(&self, reason: &str) {
        self.say(ToAgent::Refused { channel: self.channel, reason: reason.to_owned() }).await;
    }
}

fn store(
    intake: &crate::backend::Intake,
    attempt: AttemptId,
    batch: &[(Bytes, OwnedSemaphorePermit)],
    mut unsynced: usize,
    flush: bool,
) -> Result<Stored, IntakeError> {
    for (message, _) in batch {
        let damaged = |what| LogError::Damaged { path: "a message".into(), offset: 0, what };
        intake.append(attempt, &read_records(message).map_err(damaged)?)?;
        unsynced += message.len();
    }
    if flush || unsynced >= SYNC_BYTES {
        return Ok(Stored { durable: Some(intake.sync(attempt)?), unsynced: 0 });
    }
    Ok(Stored { durable: None, unsynced })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_takes_a_window_and_a_message_and_not_a_byte_more_until_some_is_written() {
        let (lane, mut taken) = Lane::new();
        let message = |size: usize| Bytes::from(vec![0; size]);
        assert!(lane.output(message(WINDOW - 1)) && lane.output(message(LONGEST_MESSAGE)), "as an agent may send");
        assert!(lane.output(message(1)) && !lane.output(message(1)));
        assert!(lane.flush(), "it brings no bytes");
        drop(taken.try_recv().expect("the first"));
        assert!(lane.output(message(WINDOW - 1)) && !lane.output(message(1)));
        // Refused: what is still on its way is dropped, and cuts nobody off.
        drop(taken);
        assert!(lane.output(message(LONGEST_MESSAGE)));
    }

    #[test]
    fn an_agent_has_some_streams_and_its_newest_are_those_that_stay() {
        let streams = Streams::default();
        let other = streams.begin("other");
        let mut mine: Vec<_> = (0..MOST_STREAMS).map(|_| streams.begin("mine")).collect();
        assert!(mine.iter().all(|(ended, _)| !ended.is_cancelled()));
        mine.push(streams.begin("mine"));
        let ended: Vec<bool> = mine.iter().map(|(ended, _)| ended.is_cancelled()).collect();
        assert_eq!(ended, [true, false, false, false, false]);
        // One that ends makes room.
        mine.remove(2);
        mine.push(streams.begin("mine"));
        assert!(mine[1..].iter().all(|(ended, _)| !ended.is_cancelled()) && !other.0.is_cancelled());
        drop(mine);
        drop(streams.begin("mine"));
        assert_eq!(streams.0.lock().expect("whole").get("mine").map(VecDeque::len), Some(1));
    }

    #[test]
    fn a_channel_of_tiny_messages_is_bounded_too() {
        let (lane, _taken) = Lane::new();
        let sent = (0..).take_while(|_| lane.output(Bytes::from_static(b"x"))).count();
        assert_eq!(sent, 2 * MESSAGES);
    }
}
