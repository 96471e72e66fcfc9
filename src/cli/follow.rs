//! A job's output as it comes, from the API or from a log of this process, to this process's own streams.

use super::client::Client;
use super::terminal::{self, Cleaner};
use super::{Failure, Output};
use crate::job::AttemptId;
use crate::logstore::{FrameRef, LogStore, Stream};
use crate::protocol::record::read_records;
use futures_util::StreamExt;
use std::io::Write;
use std::time::Duration;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

/// Tries in a row that bring nothing before the stream is given up.
const TRIES: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longer than the server's pings are apart.
const SILENCE: Duration = Duration::from_secs(60);

/// Where output goes: to the stream that it came from, or all to standard error because standard output carries a document.
#[derive(Debug)]
pub(super) struct Sink {
    all_to_stderr: bool,
    /// For streams that are terminals.
    stdout: Option<Cleaner>,
    stderr: Option<Cleaner>,
    /// What stands before each line, where several outputs are shown side by side.
    label: Option<Label>,
}

/// A text before each line. A line is shown when it has ended.
#[derive(Debug)]
struct Label {
    text: String,
    /// Of standard output and standard error: what has not ended.
    begun: [Vec<u8>; 2],
}

/// A line that is longer is shown in parts.
const LONGEST_LINE: usize = 64 * 1024;

impl Label {
    /// The lines that have ended by `bytes`, each behind the text.
    fn lines(&mut self, which: usize, bytes: &[u8]) -> Vec<u8> {
        let begun = &mut self.begun[which];
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            begun.extend_from_slice(part);
            if part.ends_with(b"\n") || begun.len() >= LONGEST_LINE {
                lines.extend_from_slice(self.text.as_bytes());
                lines.append(begun);
                if !lines.ends_with(b"\n") {
                    lines.push(b'\n');
                }
            }
        }
        lines
    }

    /// What has begun and will not end.
    fn rest(&mut self, which: usize) -> Vec<u8> {
        if self.begun[which].is_empty() { Vec::new() } else { self.lines(which, b"\n") }
    }
}

impl Sink {
    /// Each to the stream that it came from.
    pub(super) fn as_it_came() -> Self {
        Self {
            all_to_stderr: false,
            stdout: terminal::cleaner(&std::io::stdout()),
            stderr: terminal::cleaner(&std::io::stderr()),
            label: None,
        }
    }

    /// Where a job's output goes when the job itself is printed as `output`.
    pub(super) fn beside(output: Output) -> Self {
        let mut sink = Self::as_it_came();
        sink.all_to_stderr = output != Output::Table;
        sink
    }

    /// Each line behind this text, and lines of several such sinks never in one another.
    pub(super) fn behind(mut self, text: String) -> Self {
        self.label = Some(Label { text, begun: Default::default() });
        self
    }

    /// Writes bytes of one stream.
    pub(super) fn write(&mut self, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
        let stdout = stream == Stream::Stdout && !self.all_to_stderr;
        let cleaner = if stdout { &mut self.stdout } else { &mut self.stderr };
        let clean = cleaner.as_mut().map(|cleaner| cleaner.clean(bytes));
        let bytes = clean.as_ref().map_or(bytes, |text| text.as_bytes());
        let lines = self.label.as_mut().map(|label| label.lines(usize::from(!stdout), bytes));
        let bytes = lines.as_deref().unwrap_or(bytes);
        if stdout { put(std::io::stdout().lock(), bytes) } else { put(std::io::stderr().lock(), bytes) }
    }

    fn frame(&mut self, frame: &FrameRef<'_>) -> std::io::Result<()> {
        let FrameRef { stream, bytes, gap, .. } = *frame;
        if gap == 0 {
            return self.write(stream, bytes);
        }
        let note = format!(
            "\njobcell: {gap} bytes of {} are missing here: they were beyond its limit, or nobody could take them\n",
            stream.name()
        );
        put(std::io::stderr().lock(), note.as_bytes())
    }
}

impl Drop for Sink {
    /// What was held back is shown, and no style of the job's outlives its output.
    fn drop(&mut self) {
        let end = |cleaner: &mut Option<Cleaner>| cleaner.as_mut().map(Cleaner::end).unwrap_or_default().into_bytes();
        let (mut out, mut err) = (end(&mut self.stdout), end(&mut self.stderr));
        if let Some(label) = &mut self.label {
            for (which, held) in [&mut out, &mut err].into_iter().enumerate() {
                let mut lines = label.lines(which, held);
                lines.extend(label.rest(which));
                *held = lines;
            }
        }
        let _ = put(std::io::stdout().lock(), &out);
        let _ = put(std::io::stderr().lock(), &err);
    }
}

fn put(mut stream: impl Write, bytes: &[u8]) -> std::io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    stream.write_all(bytes)?;
    stream.flush()
}

fn gone(error: &std::io::Error) -> Failure {
    Failure::new(format!("output cannot be written: {error}"))
}

/// Follows until the end, over broken connections too: each new one begins behind the last record that came.
pub(super) async fn remote(
    client: &Client,
    id: &str,
    from: u64,
    only: Option<Stream>,
    sink: &mut Sink,
) -> Result<(), Failure> {
    let (mut next, mut tries, mut pause) = (from.max(1), 0, FIRST_PAUSE);
    loop {
        let before = next;
        match session(client, id, &mut next, only, sink).await {
            Ok(()) => return Ok(()),
            Err(Broken::ForGood(failure)) => return Err(failure),
            Err(Broken::Link(reason)) => {
                if next > before {
                    (tries, pause) = (0, FIRST_PAUSE);
                }
                tries += 1;
                if tries > TRIES {
                    return Err(Failure::unavailable(format!(
                        "the live stream broke and could not be opened again: {reason}"
                    )));
                }
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
        }
    }
}

enum Broken {
    /// Worth another try.
    Link(String),
    ForGood(Failure),
}

async fn session(
    client: &Client,
    id: &str,
    next: &mut u64,
    only: Option<Stream>,
    sink: &mut Sink,
) -> Result<(), Broken> {
    let link = |error: Error| Broken::Link(error.to_string());
    let url = client.url.replacen("http", "ws", 1);
    let mut request = format!("{url}/v1/jobs/{id}/logs/live?from={next}").into_client_request().map_err(link)?;
    let key = format!("Bearer {}", client.key);
    let key =
        key.parse().map_err(|_| Broken::ForGood(Failure::usage("the key has characters that no header can have")))?;
    request.headers_mut().insert("authorization", key);
    let uri = request.uri();
    let (secure, host) = (uri.scheme_str() == Some("wss"), uri.host().unwrap_or_default().to_owned());
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let connect = async {
        let wire = client.tls.connect(secure, &host, port).await.map_err(Broken::Link)?;
        Ok(tokio_tungstenite::client_async(request, wire).await)
    };
    let connected = match tokio::time::timeout(Duration::from_secs(10), connect).await {
        Err(_) => return Err(Broken::Link("no answer".to_owned())),
        Ok(connected) => connected?,
    };
    let (mut socket, _) = match connected {
        Ok(opened) => opened,
        Err(Error::Http(response)) if response.status().is_client_error() => {
            // What the API says of it does not come with an upgrade that was refused: it is asked for what is there.
            let status = response.status();
            let why = client.logs(id, "both", *next).await.err();
            return Err(Broken::ForGood(
                why.unwrap_or_else(|| Failure::new(format!("the API refuses the live stream: {status}"))),
            ));
        }
        Err(error) => return Err(link(error)),
    };
    loop {
        let message = match tokio::time::timeout(SILENCE, socket.next()).await {
            Err(_) => return Err(Broken::Link("silence".to_owned())),
            Ok(None) => return Err(Broken::Link("closed".to_owned())),
            Ok(Some(message)) => message.map_err(link)?,
        };
        match message {
            Message::Binary(records) => {
                for record in read_records(&records).map_err(|reason| Broken::Link(reason.to_owned()))? {
                    let frame = FrameRef::carried(record.seq, record.time_us, record.stream, record.bytes);
                    let frame = frame.map_err(|reason| Broken::Link(reason.to_owned()))?;
                    if record.seq >= *next {
                        if only.is_none_or(|only| only == frame.stream) {
                            sink.frame(&frame).map_err(|error| Broken::ForGood(gone(&error)))?;
                        }
                        *next = record.seq + 1;
                    }
                }
            }
            // The only text there is.
            Message::Text(_) => return Ok(()),
            Message::Close(_) => return Err(Broken::Link("closed".to_owned())),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }
}

/// Prints everything of a log that this process writes, until its writer ends it.
pub(super) async fn local(logs: &LogStore, attempt: AttemptId, sink: &mut Sink) -> Result<(), Failure> {
    let (mut next, mut tail) = (1, logs.subscribe(attempt));
    loop {
        let ended = tail.as_ref().is_none_or(|tail| tail.borrow().ended);
        let Ok(mut reader) = logs.reader(attempt) else { return Ok(()) };
        loop {
            let frames = reader.read(next, 1 << 20).map_err(|error| Failure::new(error.to_string()))?;
            let Some(last) = frames.last() else { break };
            next = last.seq + 1;
            for frame in &frames {
                sink.frame(&frame.as_ref()).map_err(|error| gone(&error))?;
            }
        }
        let Some(tail) = tail.as_mut().filter(|_| !ended) else { return Ok(()) };
        let _ = tail.wait_for(|tail| tail.last_seq >= next || tail.ended).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_several_outputs_stay_whole_and_say_whose_they_are() {
        let mut label = Label { text: "web1 | ".to_owned(), begun: Default::default() };
        assert_eq!(label.lines(0, b"a\nb"), b"web1 | a\n");
        assert_eq!(label.lines(1, b"err\n\n"), b"web1 | err\nweb1 | \n");
        assert_eq!(label.lines(0, b"c\n"), b"web1 | bc\n");
        assert_eq!((label.lines(0, b"end"), label.rest(0)), (Vec::new(), b"web1 | end\n".to_vec()));
        assert!(label.rest(0).is_empty());
        let long = label.lines(0, &vec![b'x'; LONGEST_LINE]);
        assert_eq!((long.len(), label.begun[0].len()), (7 + LONGEST_LINE + 1, 0), "nothing grows without end");
    }
}
