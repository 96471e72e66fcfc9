//! The policy that holds here and now, with what it needs to know of this host.

use super::policy::{Defaults, Facts, Filter, Judgement, LivePolicy, Routes};
use super::{Presets, resolve};
use crate::job::{Cause, JobSpec, Pull};
use std::borrow::Cow;
use std::collections::BTreeSet;

/// Asks the policy about jobs.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    /// What holds.
    pub policy: LivePolicy,
    /// Language environments: it is their images that are judged.
    pub presets: Presets,
    /// What its inventory says of other hosts.
    pub routes: Routes,
    /// Secrets that the agent has, by name.
    pub secrets: BTreeSet<String>,
    /// When a registry is asked for the image of a job that does not say.
    pub pull: Pull,
    /// The OCI runtime of cells; empty for the engine's own.
    pub oci_runtime: String,
    /// First and last user id of cells.
    pub uids: (u32, u32),
    /// What a job gets that does not say how much.
    pub defaults: Defaults,
    /// The filter of system calls.
    pub filter: Filter,
}

impl Gate {
    /// Everything that the policy says of a job from `backend`, submitted there with the key of this name. Errors: a preset that is not there.
    pub fn judge<'a>(&self, backend: &str, submitter: Option<&str>, spec: &'a JobSpec) -> Result<Judgement<'a>, Cause> {
        let (image, _) = resolve(spec, &self.presets)?;
        let facts = Facts {
            backend,
            submitter,
            image: &image,
            routes: &self.routes,
            secrets: &self.secrets,
            pull: self.pull,
            oci_runtime: &self.oci_runtime,
            uids: self.uids,
            defaults: self.defaults,
            filter: self.filter,
        };
        Ok(self.policy.current().judge(spec, &facts))
    }

    /// Whether what the job is given fits into the workspace that it gets, as far as that is known. Errors: the cause to refuse it with.
    fn has_room(&self, spec: &JobSpec) -> Result<(), Cause> {
        // How much room another host has is not known here.
        let Some(resources) = spec.takes() else { return Ok(()) };
        let (bytes, entries) = spec.inputs_need();
        let (disk, inodes) = (resources.disk.unwrap_or(self.defaults.disk), resources.inodes_or(self.defaults.inodes));
        let refused = |reason| Err(Cause::InputRefused { input: "inputs".to_owned(), reason });
        if bytes > disk.as_u64() {
            return refused(format!("they take {bytes} bytes, and the workspace has {disk}"));
        }
        // The workspace itself is one of them.
        if entries > 0 && entries >= inodes {
            return refused(format!("they make {entries} files, and the workspace has room for {inodes}"));
        }
        Ok(())
    }

    /// The job with the limits that it is given. Errors: the cause to refuse it with.
    pub fn admit<'a>(
        &self,
        backend: &str,
        submitter: Option<&str>,
        spec: &'a JobSpec,
    ) -> Result<Cow<'a, JobSpec>, Cause> {
        let judged = self.judge(backend, submitter, spec)?;
        let refusals = judged.refusals();
        let given = judged.given.ok_or(Cause::PolicyRefused { rule: judged.rule, refusals })?;
        self.has_room(&given)?;
        Ok(given)
    }
}
