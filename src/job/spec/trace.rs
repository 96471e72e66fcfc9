//! `trace`: the place in somebody's trace that a job has.

use super::JobSpec;
use crate::job::fields::Fields;
use crate::job::{Problems, TraceContext};
use serde::Serialize;
use serde_json::{Map, Value};

/// From where a job was asked for, where that is known. No part of what is asked for: two are the same whatever it is, so that a submit that is
/// made again, in a new trace, under the same idempotency key, is the job that is there.
#[derive(Debug, Clone, Default, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Origin(Option<TraceContext>);

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Origin {
    pub(super) fn is_unknown(&self) -> bool {
        self.0.is_none()
    }
}

pub(super) fn check(map: &Map<String, Value>, p: &mut Problems) -> Origin {
    let mut fields = Fields::new("trace", map);
    let parent = fields.text("parent", p).map(str::to_owned);
    let state = fields.text("state", p).map(str::to_owned);
    fields.finish(p);
    let context = parent.as_deref().and_then(|parent| TraceContext::parse(parent, state.as_deref()));
    let fix = "write it as W3C Trace Context has it: 00-<32 hex digits>-<16 hex digits>-01";
    match &context {
        None => p.add("trace.parent", "is no traceparent", fix),
        Some(context) if state.as_deref().is_some_and(|state| state.trim() != context.state) => {
            p.add(
                "trace.state",
                "is no tracestate",
                "write at most 32 members key=value with commas between them, 512 bytes",
            );
        }
        Some(_) => {}
    }
    Origin(context)
}

impl JobSpec {
    /// The place in a trace that whoever asked for it gave it.
    pub fn trace(&self) -> Option<&TraceContext> {
        self.trace.0.as_ref()
    }

    /// The same job at that place in a trace.
    #[must_use]
    pub fn traced(self, context: Option<TraceContext>) -> Self {
        Self { trace: Origin(context), ..self }
    }

    /// The same, unless its document says a place of its own.
    #[must_use]
    pub fn or_traced(self, context: Option<TraceContext>) -> Self {
        if self.trace.is_unknown() { self.traced(context) } else { self }
    }
}

#[cfg(test)]
mod tests {
    use crate::job::{JobSpec, SpecRules, TraceContext};
    use serde_json::json;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn checked(trace: &serde_json::Value) -> Result<JobSpec, String> {
        let document = json!({"preset": "bash", "script": "true", "trace": trace});
        JobSpec::check(&document, &SpecRules::default()).map_err(|problems| problems.to_string())
    }

    #[test]
    fn it_is_kept_as_it_was_given_and_is_no_part_of_what_is_asked_for() {
        let spec = checked(&json!({"parent": PARENT, "state": "a=b"})).expect("is good");
        let again: JobSpec = serde_json::from_value(json!(spec)).expect("reads back");
        assert_eq!(again.trace(), spec.trace());
        assert_eq!(again.trace().map(TraceContext::traceparent).as_deref(), Some(PARENT));
        let bare =
            JobSpec::check(&json!({"preset": "bash", "script": "true"}), &SpecRules::default()).expect("is good");
        assert_eq!(spec, bare, "an equal spec under one key is one job");
        let key = |spec: JobSpec| spec.keyed_by_content().expect("has no key").idempotency_key().map(str::to_owned);
        assert_eq!(key(spec.clone()), key(bare.clone()));
        assert!(spec.clone().keyed_by_content().expect("has no key").trace().is_some());
        assert!(spec.clone().without_idempotency_key().trace().is_none());
        let other = TraceContext::parse(&PARENT.replace("4bf9", "0000"), None);
        assert_eq!(spec.clone().or_traced(other.clone()).trace(), spec.trace(), "its document comes first");
        assert_eq!(bare.or_traced(other.clone()).trace(), other.as_ref());
    }

    #[test]
    fn what_is_no_place_in_a_trace_is_told() {
        for (trace, path) in [
            (json!({"parent": "00-0-0-01"}), "trace.parent"),
            (json!({"state": "a=b"}), "trace.parent"),
            (json!({"parent": PARENT, "state": "nonsense"}), "trace.state"),
            (json!({"parent": PARENT, "stat": "a=b"}), "trace.stat"),
            (json!("x"), "trace"),
        ] {
            let told = checked(&trace).expect_err("is refused");
            assert!(told.contains(path), "{trace}: {told}");
        }
    }
}
