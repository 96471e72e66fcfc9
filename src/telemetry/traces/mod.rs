//! Traces of jobs by OTLP: which spans there are, whether they are told, and their way to a collector.
//!
//! Owns the queue of spans, which is bounded, and the task that empties it. Whoever tells of spans never waits and never hears of an error: what
//! cannot be taken is counted and gone. Spans are made when what they tell of is over, of moments that were recorded for the job's result
//! anyway, so there is nothing to do while a job runs, and nothing at all where no collector is named.

mod export;
mod settings;
mod span;
mod tree;
mod wire;

pub use export::Exporter;
pub use settings::{OtlpSettings, Sampler, Unusable};
pub use span::{Kind, Span, SpanEvent, Value};
pub use tree::{AttemptEnd, attempt_spans, job_spans};
pub use wire::{encode, rejected};

use super::Metrics;
use crate::job::{AttemptId, JobId, JobSpec, SpanId, TraceContext, TraceId, trace_of};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Where spans are told. Clones are the same one; the default takes none.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    queue: mpsc::Sender<Span>,
    sampler: Sampler,
    metrics: Arc<Metrics>,
}

impl Traces {
    /// To the collector of these settings, by an HTTP client that knows whom to believe, and what has to run for spans to get there.
    pub fn new(settings: &OtlpSettings, http: reqwest::ClientBuilder, metrics: &Arc<Metrics>) -> (Self, Exporter) {
        let (queue, spans) = mpsc::channel(settings.queue);
        let inner = Inner { queue, sampler: settings.sampler, metrics: Arc::clone(metrics) };
        (Self(Some(Arc::new(inner))), Exporter::new(settings.clone(), http, spans, Arc::clone(metrics)))
    }

    /// Whether there is anybody to tell.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether spans of this job are told. Every process with the same settings comes to the same answer.
    pub fn wants(&self, job: JobId, context: Option<&TraceContext>) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.sampler.takes(trace_of(job, context), context))
    }

    /// The trace of a job, where somebody keeps it: this process's collector, or else whoever submitted the job as part of a trace.
    pub fn kept(&self, job: JobId, context: Option<&TraceContext>) -> Option<TraceId> {
        let kept = if self.is_on() { self.wants(job, context) } else { context.is_some_and(TraceContext::is_sampled) };
        kept.then(|| trace_of(job, context))
    }

    /// Tells of spans: all of them, or none where there is no room for all.
    pub fn tell(&self, spans: Vec<Span>) {
        let Some(inner) = self.0.as_ref().filter(|_| !spans.is_empty()) else { return };
        match inner.queue.try_reserve_many(spans.len()) {
            Ok(places) => places.zip(spans).for_each(|(place, span)| place.send(span)),
            Err(_) => inner.metrics.spans_dropped("queue_full", spans.len()),
        }
    }

    /// Spans of which nobody knows what they would have told.
    pub fn missed(&self, spans: usize) {
        if let Some(inner) = &self.0 {
            inner.metrics.spans_dropped("missed", spans);
        }
    }

    /// The place in a trace that a job itself gets, for what it may want to tell: beneath the span of its run where this process tells of it,
    /// else of the job where its backend does, else where its submitter stands.
    pub fn handed(&self, attempt: AttemptId, spec: &JobSpec, backend_tells: bool) -> Option<TraceContext> {
        let context = spec.trace();
        let parent = match (self.is_on(), backend_tells) {
            (true, _) => SpanId::of_phase(attempt, tree::RUN),
            (false, true) => SpanId::of_job(attempt.job),
            (false, false) => return context.cloned(),
        };
        let sampled =
            if self.is_on() { self.wants(attempt.job, context) } else { context.is_none_or(TraceContext::is_sampled) };
        let state = context.map(|context| context.state.clone()).unwrap_or_default();
        Some(TraceContext { trace: trace_of(attempt.job, context), parent, flags: u8::from(sampled), state })
    }
}
