//! Log lines: readable on a terminal, in the journal's own form under systemd, JSON elsewhere.

use super::lines::{Form, Journal, journal_is_here};
use std::io::IsTerminal;
use std::sync::OnceLock;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Pretty on a terminal, for the journal where systemd says that standard error is it, else JSON.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
    /// Fields of their own in journald.
    Journal,
}

impl LogFormat {
    /// The format of that name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "auto" => Some(Self::Auto),
            "json" => Some(Self::Json),
            "pretty" => Some(Self::Pretty),
            "journal" => Some(Self::Journal),
            _ => None,
        }
    }
}

/// Errors: a filter that cannot be read, in words.
pub fn check_filter(filter: &str) -> Result<(), String> {
    EnvFilter::try_new(filter).map(drop).map_err(|error| error.to_string())
}

/// Starts logging; a second call does nothing. `filter` is in the form of `RUST_LOG`. Errors: a filter that cannot be
/// read, in words. `colour` is what a terminal gets if standard error is one.
pub fn init(format: LogFormat, filter: &str, colour: bool) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("log filter `{filter}`: {error}"))?;
    let form = match format {
        LogFormat::Auto if std::io::stderr().is_terminal() => None,
        LogFormat::Auto if journal_is_here(std::env::var("JOURNAL_STREAM").ok().as_deref()) => Some(Form::Journal),
        LogFormat::Auto | LogFormat::Json => Some(Form::Json),
        LogFormat::Journal => Some(Form::Journal),
        LogFormat::Pretty => None,
    };
    // The error of starting is that logging was started before, as it is in tests.
    let _ = match form {
        Some(form) => {
            let lines = fmt().with_env_filter(filter).fmt_fields(JsonFields::new()).event_format(form);
            let lines = lines.with_writer(writer(form)?).with_filter_reloading();
            let handle = lines.reload_handle();
            lines.try_init().map(|()| remember(move |filter| handle.reload(filter).map_err(|error| error.to_string())))
        }
        None => {
            let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr);
            let lines = lines.with_ansi(std::io::stderr().is_terminal() && colour).with_filter_reloading();
            let handle = lines.reload_handle();
            lines.try_init().map(|()| remember(move |filter| handle.reload(filter).map_err(|error| error.to_string())))
        }
    };
    Ok(())
}

/// Where lines of this form go. Errors: there is no journal.
fn writer(form: Form) -> Result<BoxMakeWriter, String> {
    match form {
        Form::Json => Ok(BoxMakeWriter::new(std::io::stderr)),
        Form::Journal => Journal::open().map(BoxMakeWriter::new).map_err(|error| {
            format!("telemetry.log_format: the journal cannot be reached: {error}; write auto or json")
        }),
    }
}

type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;
/// How the filter of this process is changed, once it logs.
static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

fn remember(set: impl Fn(EnvFilter) -> Result<(), String> + Send + Sync + 'static) {
    let _ = SET_FILTER.set(Box::new(set));
}

/// Puts another filter in force. Errors: it cannot be read, or nothing is logged here.
pub fn set_filter(filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("log filter `{filter}`: {error}"))?;
    let set = SET_FILTER.get().ok_or_else(|| "logging was not started".to_owned())?;
    set(filter)
}
