//! Which jobs a list has. Pure: the stores narrow down as they can, and this says for each job whether it belongs.

use crate::job::{JobId, JobSummary, Phase, UnixMillis, Verdict};

/// Which jobs to list; what is empty or absent excludes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// Only those in one of these phases.
    pub phases: Vec<Phase>,
    /// Only those that ended so.
    pub verdict: Option<Verdict>,
    /// Only dead letters, or only others.
    pub dead_letter: Option<bool>,
    /// Only the children of this one.
    pub parent: Option<JobId>,
    /// Only those with all these labels.
    pub labels: Vec<(String, String)>,
    /// Only those submitted at this moment or later.
    pub submitted_after: Option<UnixMillis>,
    /// Only those submitted before this moment.
    pub submitted_before: Option<UnixMillis>,
    /// Only those that have this text in their name, their id or the value of a label, in large letters or small.
    pub text: Option<String>,
    /// Only those that came before this one: the cursor of the page before.
    pub before: Option<JobId>,
    /// How many at most.
    pub limit: u32,
}

/// A filter made ready to look at many jobs.
pub(super) struct Sieve<'a> {
    filter: &'a ListFilter,
    text: Option<String>,
}

impl<'a> Sieve<'a> {
    pub(super) fn new(filter: &'a ListFilter) -> Self {
        Self { filter, text: filter.text.as_ref().map(|text| text.to_lowercase()) }
    }

    /// Whether the job belongs into the list; its place (`before`) and the limit are the store's to look at.
    pub(super) fn takes(&self, job: &JobSummary) -> bool {
        let filter = self.filter;
        let has = |text: &str| self.text.as_ref().is_none_or(|wanted| text.to_lowercase().contains(wanted));
        (filter.phases.is_empty() || filter.phases.contains(&job.phase))
            && filter.verdict.is_none_or(|verdict| job.ending.as_ref().is_some_and(|ending| ending.verdict == verdict))
            && filter.dead_letter.is_none_or(|dead| job.dead_letter == dead)
            && filter.parent.is_none_or(|parent| job.parent == Some(parent))
            && filter.labels.iter().all(|(key, value)| job.labels.get(key) == Some(value))
            && filter.submitted_after.is_none_or(|from| job.submitted_at >= from)
            && filter.submitted_before.is_none_or(|until| job.submitted_at < until)
            && (self.text.is_none()
                || job.name.as_deref().is_some_and(has)
                || has(&job.id.to_string())
                || job.labels.values().any(|value| has(value)))
    }
}
