//! What a job comes to in every cell with a warden, whatever kind of cell it is. Pure.

use super::CellOrder;
use crate::job::{Millis, OutputExcess, OutputOverflow, Program};
use crate::protocol::wire::{CellSpec, Collect};

/// Where things are for a job.
pub(super) struct Places<'a> {
    /// Where it works, and leaves what is to be kept.
    pub(super) workspace: &'a str,
    /// Where it begins, unless it says.
    pub(super) workdir: &'a str,
    /// Where its script goes.
    pub(super) script: &'a str,
}

/// The spec of `order` in a cell with these places; `given` are variables that a job may set itself. What binds the cell is its kind's to add.
pub(super) fn cell_spec(order: &CellOrder, at: &Places<'_>, given: &[(&str, String)], output_limit: u64) -> CellSpec {
    let spec = &order.spec;
    let mut env: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut set = |key: &str, value: &str| {
        if !spec.env().contains_key(key) {
            env.push((key.into(), value.into()));
        }
    };
    given.iter().for_each(|(key, value)| set(key, value));
    set("JOBCELL_JOB_ID", &order.attempt.job.to_string());
    set("JOBCELL_ATTEMPT", &order.attempt.attempt.to_string());
    set("JOBCELL_WORKSPACE", at.workspace);
    if let Some(trace) = spec.trace() {
        set("TRACEPARENT", &trace.traceparent());
        if !trace.state.is_empty() && !spec.env().contains_key("TRACEPARENT") {
            set("TRACESTATE", &trace.state);
        }
    }
    env.extend(spec.env().iter().map(|(key, value)| (key.clone().into_bytes(), value.clone().into_bytes())));
    CellSpec {
        attempt: order.attempt.to_string(),
        argv: order.argv.clone(),
        env,
        cwd: spec.workdir().unwrap_or(at.workdir).to_owned(),
        script_path: match spec.program() {
            Program::Script { .. } => at.script.to_owned(),
            Program::Command(_) => String::new(),
        },
        wall_timeout_ms: spec.timeout().as_u64(),
        grace_ms: u32::try_from(order.grace.as_u64()).unwrap_or(u32::MAX),
        lease_ms: order.lease.as_u64(),
        silence_ms: spec.silence_timeout().map_or(0, Millis::as_u64),
        on_cancel: spec.on_cancel().map(|after| after.command.clone()).unwrap_or_default(),
        on_cancel_ms: spec.on_cancel().map_or(0, |after| u32::try_from(after.timeout.as_u64()).unwrap_or(u32::MAX)),
        drop_output: spec.output_overflow() == OutputOverflow::Drop,
        output_limit,
        cut_output: spec.output_excess() == OutputExcess::Cut,
        collect: Some(Collect {
            root: at.workspace.to_owned(),
            rules: spec.artifacts().iter().map(|rule| rule.path.clone()).collect(),
        }),
        secrets: order.secrets.clone(),
        // Inputs are known when they are in their places.
        ..CellSpec::default()
    }
}
