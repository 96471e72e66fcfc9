//! Schemas of the words that all others are made of: ids, times, lengths, sizes, phases.

use utoipa::ToSchema;

/// A job's id: a UUID of version 7, so that ids sort by the time of submission.
#[derive(ToSchema)]
#[schema(value_type = String, format = "uuid", example = "01a1fc8c-4c8b-78fb-94fc-32d760d3b15b")]
pub(crate) struct JobId(String);

/// Milliseconds since 1970, UTC.
#[derive(ToSchema)]
#[schema(example = 1_795_249_800_000_u64)]
pub(crate) struct Moment(u64);

/// A length of time: numbers with `ms`, `s`, `m`, `h` or `d`.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^([0-9]+(ms|s|m|h|d))+$", example = "1m30s")]
pub(crate) struct Span(String);

/// A number of bytes, with `KiB`, `MiB`, `GiB` or another unit.
#[derive(ToSchema)]
#[schema(value_type = String, example = "512MiB")]
pub(crate) struct Size(String);

/// Processor share, in cores.
#[derive(ToSchema)]
#[schema(value_type = String, example = "0.5")]
pub(crate) struct Cpus(String);

/// Where a job stands.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    Queued,
    Claimed,
    Preparing,
    Running,
    Finishing,
    Ended,
}

/// The one-word result. `cell_error` and `lost` are no fault of the job.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Succeeded,
    Failed,
    TimedOut,
    Canceled,
    CellError,
    Lost,
}

/// One thing that is wrong, of several.
#[derive(ToSchema)]
pub(crate) struct ProblemLine {
    /// Where: `resources.memory`, `command[2]`; empty for the whole.
    path: String,
    reason: String,
    fix: String,
}

/// A text or a number, whose own text is taken.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum TextOrNumber {
    Text(String),
    Number(f64),
}

/// A string or a list of them.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}
