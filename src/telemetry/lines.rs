//! Log lines for machines: one JSON object a line, or one datagram in the journal's own form.
//!
//! Owns their fields. What a line is about (`job_id`, `attempt`, `trace_id`, `span_id`) stands beside what it says, at the same place in every
//! line, so that nobody has to look in two.

use crate::job::{AttemptId, JobId, SpanId};
use serde_json::{Map, Value};
use std::fmt;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormattedFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// Where journald takes lines.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// A journal that takes nothing for so long gets no line more of this moment.
const SEND: Duration = Duration::from_millis(200);
/// Bytes of a value; datagrams have a bound, and whoever writes more to a log does not mean it.
const MOST_VALUE: usize = 16 * 1024;

/// In which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One object a line.
    Json,
    /// `KEY=value` lines.
    Journal,
}

/// Whether standard error is the journal, and it can be spoken to directly: systemd says which stream it has given us.
pub(super) fn journal_is_here(said: Option<&str>) -> bool {
    let Some((device, inode)) = said.and_then(|said| said.split_once(':')) else { return false };
    let (Ok(device), Ok(inode)) = (device.parse::<u64>(), inode.parse::<u64>()) else { return false };
    let ours = rustix::fs::fstat(std::io::stderr()).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (device, inode));
    ours && Path::new(JOURNAL).exists()
}

/// Everything that a line says.
#[derive(Default)]
struct Said(Map<String, Value>);

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), Value::from(format!("{value:?}")));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl<S, N> FormatEvent<S, N> for Form
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut said = Said::default();
        event.record(&mut said);
        let Said(mut said) = said;
        // The innermost says it best.
        for span in context.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<N>>().map(|fields| fields.fields.as_str());
            if let Some(Ok(Value::Object(fields))) = fields.map(serde_json::from_str) {
                fields.into_iter().for_each(|(name, value)| {
                    said.entry(name).or_insert(value);
                });
            }
        }
        by_one_name(&mut said);
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let meta = event.metadata();
        let line = match self {
            Self::Json => json(&time, *meta.level(), meta.target(), said),
            Self::Journal => journal(*meta.level(), meta.target(), said),
        };
        to.write_str(&line)
    }
}

/// A try is named in one way in all lines, whatever whoever writes one had at hand: by its job and its number.
fn by_one_name(said: &mut Map<String, Value>) {
    let whole = said.get("attempt").and_then(Value::as_str).and_then(|text| text.parse::<AttemptId>().ok());
    if let Some(attempt) = whole {
        said.insert("attempt".into(), attempt.attempt.into());
        said.entry("job_id").or_insert_with(|| attempt.job.to_string().into());
        said.entry("span_id").or_insert_with(|| SpanId::of_attempt(attempt).to_string().into());
    }
    let job = said.get("job").and_then(Value::as_str).filter(|text| text.parse::<JobId>().is_ok());
    if let Some(job) = job.map(Value::from) {
        said.shift_remove("job");
        said.entry("job_id").or_insert(job);
    }
}

fn json(time: &str, level: Level, target: &str, mut said: Map<String, Value>) -> String {
    let mut line = Map::new();
    line.insert("timestamp".into(), time.into());
    line.insert("level".into(), level.as_str().into());
    line.insert("target".into(), target.into());
    line.insert("message".into(), said.shift_remove("message").unwrap_or_else(|| "".into()));
    for (name, value) in said {
        line.entry(name).or_insert(value);
    }
    Value::Object(line).to_string() + "\n"
}

/// As systemd.journal-fields(7) wants names and journald's native protocol wants lines: a value ends with its line, so a line's end in one is
/// written as people write it.
fn journal(level: Level, target: &str, mut said: Map<String, Value>) -> String {
    let mut lines = String::new();
    let mut add = |name: &str, value: &str| {
        let end = value.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= MOST_VALUE).last();
        let value = value[..end.unwrap_or(0)].replace('\\', "\\\\").replace('\n', "\\n");
        lines.push_str(name);
        lines.push('=');
        lines.push_str(&value);
        lines.push('\n');
    };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let priority = match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    };
    let message = said.shift_remove("message").map(|message| text(&message)).unwrap_or_default();
    // `journalctl` without options shows the message alone: it has to say which job, and what went wrong.
    let more = said.iter().filter(|(name, _)| !["trace_id", "span_id"].contains(&name.as_str()));
    let more: String = more.map(|(name, value)| format!(" {name}={}", text(value))).collect();
    add("MESSAGE", &format!("{message}{more}"));
    add("PRIORITY", priority);
    add("SYSLOG_IDENTIFIER", env!("CARGO_PKG_NAME"));
    add("TARGET", target);
    for (name, value) in &said {
        add(&field_name(name), &text(value));
    }
    lines
}

/// Capital letters, digits and `_`, and no `_` at the begin: such fields are journald's own.
fn field_name(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    let name: String = name.chars().map(letter).take(64).collect();
    let own = ["MESSAGE", "PRIORITY", "TARGET", "SYSLOG_IDENTIFIER"].contains(&name.as_str());
    if own || !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        format!("F_{}", name.trim_start_matches('_'))
    } else {
        name
    }
}

/// The way into the journal.
#[derive(Clone)]
pub(super) struct Journal(Arc<UnixDatagram>);

impl Journal {
    /// Opens it. Errors: it is not there.
    pub(super) fn open() -> io::Result<Self> {
        Self::at(Path::new(JOURNAL))
    }

    fn at(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_write_timeout(Some(SEND))?;
        Ok(Self(Arc::new(socket)))
    }
}

impl Write for Journal {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Standard error is the journal's too, by another way: what does not go by this one is not lost for it.
        match self.0.send(line) {
            Ok(_) => Ok(line.len()),
            Err(_) => {
                io::stderr().write_all(line.split(|byte| *byte == b'\n').next().unwrap_or_default()).and_then(|()| {
                    io::stderr().write_all(b"\n")?;
                    Ok(line.len())
                })
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tracing_subscriber::fmt::format::JsonFields;

    /// What is written, line by line or datagram by datagram.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<String>>>);

    impl Write for Kept {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("lives").push(String::from_utf8(line.to_vec()).expect("is text"));
            Ok(line.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Kept {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn written<W: for<'a> MakeWriter<'a> + Send + Sync + 'static>(form: Form, to: W) {
        let lines = tracing_subscriber::fmt().fmt_fields(JsonFields::new()).event_format(form).with_writer(to).finish();
        tracing::subscriber::with_default(lines, || {
            let attempt = tracing::info_span!("attempt", job_id = "j1", attempt = 2, trace_id = "t1", span_id = "s1");
            let _entered = attempt.enter();
            let inner = tracing::info_span!("inner", attempt = 3, secs = 0.5);
            inner.in_scope(|| tracing::warn!(event = "cell.gone", reason = %"two\nlines", _odd = true, "it is gone"));
            tracing::info!(level = "own", "well");
        });
    }

    #[test]
    fn what_a_line_is_about_stands_beside_what_it_says() {
        let kept = Kept::default();
        written(Form::Json, kept.clone());
        let lines: Vec<Value> =
            kept.0.lock().expect("lives").iter().map(|line| serde_json::from_str(line).expect("is JSON")).collect();
        let line = &lines[0];
        for (name, wanted) in [
            ("level", Value::from("WARN")),
            ("message", "it is gone".into()),
            ("event", "cell.gone".into()),
            ("reason", "two\nlines".into()),
            ("job_id", "j1".into()),
            ("attempt", 3.into()),
            ("trace_id", "t1".into()),
            ("span_id", "s1".into()),
            ("secs", 0.5.into()),
        ] {
            assert_eq!(line[name], wanted, "{name} in {line}");
        }
        let names: Vec<&String> = line.as_object().expect("an object").keys().take(4).collect();
        assert_eq!(names, ["timestamp", "level", "target", "message"]);
        assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z') && time.len() == 27), "{line}");
        assert_eq!((&lines[1]["level"], &lines[1]["attempt"]), (&Value::from("INFO"), &Value::from(2)));
    }

    #[test]
    fn a_try_is_named_in_one_way() {
        let id = "0197b5c0-0000-7000-8000-000000000001";
        let mut said = Map::from_iter([("attempt".to_owned(), Value::from(format!("{id}/2/0")))]);
        by_one_name(&mut said);
        assert_eq!((&said["job_id"], &said["attempt"]), (&Value::from(id), &Value::from(2)));
        assert_eq!(said["span_id"].as_str().map(str::len), Some(16));
        let mut said = Map::from_iter([("job".to_owned(), Value::from(id)), ("attempt".to_owned(), 3.into())]);
        by_one_name(&mut said);
        assert_eq!((said.get("job"), &said["job_id"], &said["attempt"]), (None, &Value::from(id), &Value::from(3)));
    }

    #[test]
    fn the_journal_gets_a_datagram_of_fields_for_each_line() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).expect("binds");
        written(Form::Journal, Journal::at(&path).expect("opens"));
        let mut datagram = vec![0; 4096];
        let length = journal.recv(&mut datagram).expect("is there");
        let text = String::from_utf8(datagram[..length].to_vec()).expect("is text");
        let lines: Vec<&str> = text.lines().collect();
        for wanted in [
            "PRIORITY=4",
            "SYSLOG_IDENTIFIER=jobcell",
            "EVENT=cell.gone",
            "REASON=two\\nlines",
            "JOB_ID=j1",
            "ATTEMPT=3",
            "TRACE_ID=t1",
            "F_ODD=true",
        ] {
            assert!(lines.contains(&wanted), "{wanted} in {text}");
        }
        assert!(lines[0].starts_with("MESSAGE=it is gone event=cell.gone reason=two\\nlines"), "{text}");
        assert!(
            lines.iter().all(|line| line.split_once('=').is_some_and(|(name, _)| !name.starts_with('_'))),
            "{text}"
        );
        let long = Map::from_iter([("message".to_owned(), Value::from("ü".repeat(MOST_VALUE)))]);
        assert!(super::journal(Level::INFO, "t", long).len() < MOST_VALUE + 200);
    }

    #[test]
    fn only_the_stream_that_systemd_gave_is_the_journal() {
        assert!(
            !journal_is_here(None)
                && !journal_is_here(Some(""))
                && !journal_is_here(Some("0:0"))
                && !journal_is_here(Some("a:b"))
        );
    }
}
