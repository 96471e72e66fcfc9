//! The one WebSocket of an agent: output upwards, orders downwards. Made again for as long as the agent lives.

use super::Shared;
use super::uplink::Next;
use crate::backend::Order;
use crate::job::AttemptId;
use crate::logstore::{Frame, LogReader, LogStore};
use crate::net::pauses;
use crate::protocol::agent::{FromAgent, LONGEST_MESSAGE, PING_SECONDS, SESSION_HEADER, SILENCE_SECONDS, ToAgent};
use crate::protocol::record::{RECORD_HEADER, Record};
use crate::tls::Wire;
use futures_util::future::BoxFuture;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use tokio_util::sync::CancellationToken;

type Socket = WebSocketStream<Box<dyn Wire>>;

/// For the connection and the upgrade.
const CONNECT: Duration = Duration::from_secs(10);
/// One message may take so long; a peer that reads nothing for longer is given up.
const SEND: Duration = Duration::from_secs(30);
/// First and longest pause between two connections.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
const PING: Duration = Duration::from_secs(PING_SECONDS);
const SILENCE: Duration = Duration::from_secs(SILENCE_SECONDS);

/// Keeps a connection until `stop`.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut pause = pauses(PAUSES.0, PAUSES.1);
    let mut well = true;
    loop {
        let before = *shared.progress.borrow();
        let ended = tokio::select! {
            ended = session(&shared) => ended,
            () = stop.cancelled() => return,
        };
        let Err(reason) = ended;
        shared.uplink().cut();
        shared.cut.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
        shared.progress.send_modify(|count| *count = count.wrapping_add(1));
        // A connection that brought something was a good one, however short.
        if *shared.progress.borrow() != before.wrapping_add(1) {
            pause = pauses(PAUSES.0, PAUSES.1);
            well = true;
        }
        if well {
            tracing::warn!(backend = %shared.settings.name, %reason, "the log stream is cut; it is made again");
            well = false;
        }
        tokio::select! {
            () = tokio::time::sleep(pause.next().unwrap_or(PAUSES.1)) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// One connection, until it breaks.
async fn session(shared: &Arc<Shared>) -> Result<std::convert::Infallible, String> {
    let session = shared.registered().await;
    let url = format!("{}/v1/agent/stream", shared.settings.url.replacen("http", "ws", 1));
    let mut request = url.into_client_request().map_err(|error| error.to_string())?;
    let key = format!("Bearer {}", shared.settings.key);
    let header = |text: &str| text.parse().map_err(|_| "key or session has characters that no header can have");
    request.headers_mut().insert("authorization", header(&key)?);
    request.headers_mut().insert(SESSION_HEADER, header(&session)?);
    let config =
        WebSocketConfig::default().max_message_size(Some(LONGEST_MESSAGE)).max_frame_size(Some(LONGEST_MESSAGE));
    let uri = request.uri();
    let (secure, host) = (uri.scheme_str() == Some("wss"), uri.host().unwrap_or_default().to_owned());
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let connecting = async {
        let wire = shared.tls.connect(secure, &host, port).await?;
        Ok::<_, String>(client_async_with_config(request, wire, Some(config)).await)
    };
    let socket = match tokio::time::timeout(CONNECT, connecting).await {
        Err(_) => return Err("no answer".to_owned()),
        Ok(Err(reason)) => return Err(reason),
        Ok(Ok(Ok((socket, _)))) => socket,
        Ok(Ok(Err(Error::Http(response)))) => {
            if response.status().as_u16() == 409 {
                shared.forget(&session).await;
            }
            return Err(format!("refused: {}", response.status()));
        }
        Ok(Ok(Err(error))) => return Err(error.to_string()),
    };
    tracing::debug!(backend = %shared.settings.name, "the log stream is open");
    *shared.cut.lock().unwrap_or_else(PoisonError::into_inner) = None;
    let (sink, stream) = socket.split();
    Link { shared, stream, writing: None, sink: Some(sink), reader: None, ping: false, status: true }.run().await
}

type Sink = SplitSink<Socket, Message>;

/// What a write gives back.
struct Written {
    sink: Sink,
    reader: Option<(AttemptId, LogReader)>,
    /// Channel, first frame, last frame, bytes.
    output: Option<(u32, u64, u64, usize)>,
    /// A channel whose log cannot be read here.
    unreadable: Option<u32>,
}

struct Link<'a> {
    shared: &'a Arc<Shared>,
    stream: SplitStream<Socket>,
    /// Reading of the log and sending are one future, polled beside the reading of the socket: neither waits for the other.
    writing: Option<BoxFuture<'static, Result<Written, String>>>,
    sink: Option<Sink>,
    /// The cursor of the last output; most often the next output goes on there.
    reader: Option<(AttemptId, LogReader)>,
    ping: bool,
    status: bool,
}

impl Link<'_> {
    async fn run(&mut self) -> Result<std::convert::Infallible, String> {
        let mut appended = self.shared.logs.appended();
        let mut load = self.shared.load.subscribe();
        let mut ping_at = Instant::now() + PING;
        let (mut heard_at, mut began) = (Instant::now(), Instant::now());
        loop {
            if self.writing.is_none() {
                self.begin();
                began = Instant::now();
            }
            let writes = self.writing.is_some();
            let limit = if writes { (heard_at + SILENCE).min(began + SEND) } else { heard_at + SILENCE };
            tokio::select! {
                message = self.stream.next() => {
                    heard_at = Instant::now();
                    self.heard(message.ok_or("closed")?.map_err(|error| error.to_string())?)?;
                }
                written = written(&mut self.writing) => self.written(written?),
                changed = appended.changed(), if !writes => changed.map_err(|_| "the log store is gone")?,
                () = self.shared.poke.notified(), if !writes => {}
                changed = load.changed() => {
                    changed.map_err(|_| "the agent is gone")?;
                    self.status = true;
                }
                () = tokio::time::sleep_until(ping_at) => {
                    self.ping = true;
                    ping_at = Instant::now() + PING;
                }
                () = tokio::time::sleep_until(limit) => return Err("the backend is silent".to_owned()),
            }
        }
    }

    /// Starts the next write, if there is something to say.
    fn begin(&mut self) {
        let Some(sink) = self.sink.take() else { return };
        if std::mem::take(&mut self.ping) {
            return self.writing = Some(Box::pin(say(sink, Message::Ping(Vec::new().into()))));
        }
        if std::mem::take(&mut self.status) {
            let load = self.shared.load.borrow().clone();
            return self.writing = Some(Box::pin(say(sink, text(&FromAgent::Status { load }))));
        }
        let logs = self.shared.logs.clone();
        let written = |attempt| logs.subscribe(attempt).map_or(0, |tail| tail.borrow().last_seq);
        let next = self.shared.uplink().next(written);
        match next {
            None => self.sink = Some(sink),
            Some(Next::Say(said)) => self.writing = Some(Box::pin(say(sink, text(&said)))),
            Some(Next::Output { channel, attempt, from, bytes }) => {
                let reader = self.reader.take().filter(|(of, _)| *of == attempt);
                self.writing = Some(Box::pin(output(sink, logs, reader, channel, attempt, from, bytes)));
            }
        }
    }

    fn written(&mut self, written: Written) {
        self.sink = Some(written.sink);
        if written.reader.is_some() {
            self.reader = written.reader;
        }
        if let Some((channel, from, last, bytes)) = written.output {
            self.shared.uplink().sent(channel, from, last, bytes);
        }
        if let Some(channel) = written.unreadable {
            self.shared.uplink().unreadable(channel);
            self.shared.progress.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    fn heard(&mut self, message: Message) -> Result<(), String> {
        match message {
            Message::Text(said) => {
                let said: ToAgent = serde_json::from_str(&said).map_err(|error| format!("not understood: {error}"))?;
                match &said {
                    ToAgent::Cancel { job, attempt, force } => {
                        let order = Order::Cancel { job: *job, attempt: *attempt, holder: None, force: *force };
                        drop(self.shared.orders.send(order));
                    }
                    ToAgent::Refused { reason, .. } => {
                        tracing::warn!(backend = %self.shared.settings.name, %reason, "output is not wanted any more");
                    }
                    ToAgent::Opened { .. } | ToAgent::Durable { .. } | ToAgent::Other => {}
                }
                self.shared.uplink().heard(&said);
                self.shared.progress.send_modify(|count| *count = count.wrapping_add(1));
                Ok(())
            }
            Message::Close(_) => Err("closed".to_owned()),
            Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(()),
        }
    }
}

async fn written(writing: &mut Option<BoxFuture<'static, Result<Written, String>>>) -> Result<Written, String> {
    match writing {
        Some(future) => {
            let written = future.await;
            *writing = None;
            written
        }
        None => std::future::pending().await,
    }
}

fn text(said: &FromAgent) -> Message {
    Message::Text(serde_json::to_string(said).unwrap_or_default().into())
}

async fn say(mut sink: Sink, message: Message) -> Result<Written, String> {
    sink.send(message).await.map_err(|error| error.to_string())?;
    Ok(Written { sink, reader: None, output: None, unreadable: None })
}

/// Reads output from the local log and sends it in one message.
async fn output(
    mut sink: Sink,
    logs: LogStore,
    reader: Option<(AttemptId, LogReader)>,
    channel: u32,
    attempt: AttemptId,
    from: u64,
    bytes: usize,
) -> Result<Written, String> {
    let read = tokio::task::spawn_blocking(move || -> Result<(LogReader, Vec<Frame>), crate::logstore::LogError> {
        let mut reader = match reader {
            Some((_, reader)) => reader,
            None => logs.reader(attempt)?,
        };
        let mut frames = reader.read(from, bytes)?;
        // Headers count too: a message of tiny frames must not be larger than one is allowed to be.
        let mut size = 0;
        let fits = frames.iter().take_while(|frame| {
            size += RECORD_HEADER + carried(frame);
            size <= bytes
        });
        let fits = fits.count().max(1);
        frames.truncate(fits);
        Ok((reader, frames))
    });
    let unreadable = Some(channel);
    let (reader, frames) = match read.await.expect("reading does not panic") {
        Ok(read) => read,
        Err(error) => {
            tracing::error!(%error, %attempt, "a log cannot be read; its output is not passed on");
            return Ok(Written { sink, reader: None, output: None, unreadable });
        }
    };
    let reader = Some((attempt, reader));
    let Some(last) = frames.last().map(|frame| frame.seq) else {
        // It is said to have frames that are not there.
        tracing::error!(%attempt, from, "a log ends too early; its output is not passed on");
        return Ok(Written { sink, reader, output: None, unreadable });
    };
    let size = frames.iter().map(|frame| RECORD_HEADER + carried(frame)).sum::<usize>();
    let mut message = Vec::with_capacity(4 + size);
    message.extend_from_slice(&channel.to_le_bytes());
    for frame in &frames {
        let (stream, bytes) = frame.as_ref().carry();
        Record { seq: frame.seq, time_us: frame.time_us, stream, bytes: &bytes }.write(&mut message);
    }
    sink.send(Message::Binary(message.into())).await.map_err(|error| error.to_string())?;
    Ok(Written { sink, reader, output: Some((channel, from, last, size)), unreadable: None })
}

/// Bytes that stand for a frame on the way.
fn carried(frame: &Frame) -> usize {
    frame.as_ref().carry().1.len()
}
