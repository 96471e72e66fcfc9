//! Log lines on standard error: readable on a terminal, JSON elsewhere.

use std::io::IsTerminal;
use std::sync::OnceLock;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Pretty on a terminal, else JSON.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}

impl LogFormat {
    /// The format of that name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "auto" => Some(Self::Auto),
            "json" => Some(Self::Json),
            "pretty" => Some(Self::Pretty),
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
    let json = match format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Json => true,
        LogFormat::Pretty => false,
    };
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // The error is that logging was started before, as it is in tests.
    let _ = if json {
        let lines = lines.json().flatten_event(true).with_current_span(true).with_span_list(false);
        let lines = lines.with_filter_reloading();
        let handle = lines.reload_handle();
        lines.try_init().map(|()| remember(move |filter| handle.reload(filter).map_err(|error| error.to_string())))
    } else {
        let lines = lines.with_ansi(std::io::stderr().is_terminal() && colour).with_filter_reloading();
        let handle = lines.reload_handle();
        lines.try_init().map(|()| remember(move |filter| handle.reload(filter).map_err(|error| error.to_string())))
    };
    Ok(())
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
