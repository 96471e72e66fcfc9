//! Pure values of the product: ids, units, the checked job spec, phases, endings, reports.
//!
//! Owns the words that everything else speaks. Must never do I/O, read a clock, or know another room:
//! this is rank 0, and every value here can be built, compared and printed in a test without a runtime.

mod digest;
pub mod egress;
mod ending;
mod fields;
mod id;
mod image;
mod limits;
mod moment;
mod outputs;
mod phase;
mod record;
mod results;
mod retry;
mod secret;
mod spec;
mod timing;
mod trace;
mod units;

pub use digest::{BadDigest, Digest};
pub use ending::{Cause, Ending, HostFailure, MismatchLine, PolicyRefusal, Verdict};
pub(crate) use fields::{Fields, one_line, shown, suggestion, type_name};
pub use fields::{Problem, Problems};
pub use id::{AttemptId, BadId, JobId, LeaseToken, OwnerId};
pub use image::{DEFAULT_REGISTRY, ImageName, UsedImage};
pub use limits::LimitMet;
pub use outputs::read_outputs;
pub use phase::{IllegalStep, PULL_NOTE, Phase, PhaseEvent};
pub use record::{Children, Gap, GivenUp, Job, JobSummary, LogTotals, Report, StreamTotals, Submitter, Usage};
pub use results::{
    ARTIFACT_LIST_MOST, Artifact, ArtifactProblem, Artifacts, JobStep, Progress, Results, is_artifact_path,
};
pub use retry::{Class, Later, NextTry, PastTry, PutOff, Then, Tried, then};
pub use secret::{SECRET_FILES_MOST, SECRET_MIN, SECRETS_BYTES, SECRETS_MOST, Secret};
pub use spec::{
    Access, ArtifactRule, Beside, Capacity, Clamp, Egress, FanOut, Input, InputContent, JobSpec, LIMITS, Limit,
    MAX_INLINE_BYTES, MAX_INPUT_ENTRIES, MAX_SCRIPT_BYTES, MAX_STDIN_BYTES, MOST_HOSTS, NetworkMode, NoCommonProfile,
    OnCancel, OutputExcess, OutputOverflow, Program, Pull, Requires, Resources, Retry, Seccomp, SecretAsk,
    SecretSource, Source, SpecRules, TARGET_INTERPRETER, Target, TargetMode, UNBOUNDED, WORKDIR, Wanted, in_pages,
    input_path_fault, parse_json,
};
pub(crate) use spec::{check_labels, is_secret_name};
pub use timing::{MOST_TIMINGS, Timing};
pub use trace::{SpanId, TraceContext, TraceId, trace_of};
pub use units::{BadUnit, ByteSize, Cpus, Millis, UnixMillis};
