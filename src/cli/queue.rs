//! `jobcell queue`: how many jobs stand where, which one waits longest and why, and which labels those that wait have.
//!
//! Puts together what several routes of the API say; between two of them the queue may change.

use super::client::Client;
use super::{Failure, Global, show};
use crate::job::{Millis, Phase, UnixMillis};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Jobs that one request brings: the longest page of the API.
const PAGE: u32 = 500;
/// Labels that are told of; a label that names each single job would fill the screen.
const MOST_LABELS: usize = 20;

pub(super) async fn run(global: &Global) -> Result<u8, Failure> {
    let client = Client::new(global)?;
    let counts = client.stats(1).await?["now"].take();
    let mut waiting = Waiting::default();
    let mut before = String::new();
    // As many pages as the queue has: the server bounds it, and each page is older than the one before.
    loop {
        let list = client.list(&format!("state=queued&limit={PAGE}{before}")).await?;
        list["jobs"].as_array().into_iter().flatten().for_each(|job| waiting.add(job));
        match list["next"].as_str() {
            Some(next) => before = format!("&before={next}"),
            None => break,
        }
    }
    let mut oldest = waiting.oldest.take();
    if let Some(oldest) = &mut oldest {
        // It may have been claimed just now; then its place says more than an error would.
        if let Ok(told) = client.explain(oldest["id"].as_str().unwrap_or_default()).await {
            oldest["code"] = told["code"].clone();
            oldest["reason"] = told["reason"].clone();
        }
    }
    let told = document(&counts, oldest, &waiting, UnixMillis::now());
    global.output.print(&told, || people(&told))?;
    Ok(0)
}

/// What is known of those that wait. One entry for each label; the jobs themselves are not kept.
#[derive(Debug, Default)]
struct Waiting {
    oldest: Option<Value>,
    /// How many jobs have the label, and when the oldest of them came.
    labels: BTreeMap<String, (u64, u64)>,
}

impl Waiting {
    /// Adds a job of a list, which has the newest first.
    fn add(&mut self, job: &Value) {
        let at = job["submitted_at"].as_u64().unwrap_or_default();
        for (key, value) in job["labels"].as_object().into_iter().flatten() {
            let label = format!("{key}={}", value.as_str().unwrap_or_default());
            let (jobs, oldest) = self.labels.entry(label).or_insert((0, at));
            *jobs += 1;
            *oldest = at.min(*oldest);
        }
        if self.oldest.as_ref().is_none_or(|oldest| oldest["submitted_at"].as_u64().is_some_and(|before| at <= before))
        {
            self.oldest = Some(json!({"id": job["id"], "name": job["name"], "submitted_at": at}));
        }
    }
}

/// For programs. `labels` begins with the one that most jobs have.
fn document(counts: &Value, oldest: Option<Value>, waiting: &Waiting, now: UnixMillis) -> Value {
    let waits = |at: u64| now.since(UnixMillis::new(at)).as_u64();
    let oldest = oldest.map(|mut oldest| {
        oldest["waits_ms"] = waits(oldest["submitted_at"].as_u64().unwrap_or_default()).into();
        oldest
    });
    let mut labels: Vec<(&String, &(u64, u64))> = waiting.labels.iter().collect();
    labels.sort_by_key(|(label, (jobs, _))| (std::cmp::Reverse(*jobs), *label));
    let more = labels.len().saturating_sub(MOST_LABELS);
    let label = |(label, (jobs, at)): &(&String, &(u64, u64))| json!({"label": label, "queued": jobs, "oldest_at": at, "oldest_waits_ms": waits(*at)});
    let labels: Vec<Value> = labels.iter().take(MOST_LABELS).map(label).collect();
    // In the order in which jobs go through them.
    let phases =
        Phase::ALL.map(|phase| (phase.name().to_owned(), counts[phase.name()].as_u64().unwrap_or_default().into()));
    json!({"jobs": Map::from_iter(phases), "oldest": oldest, "labels": labels, "more_labels": more})
}

fn people(told: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let count = |value: &Value| value.as_u64().unwrap_or_default().to_string();
    // Beyond a second nobody wants to know of milliseconds.
    let span = |value: &Value| Millis::from_secs(value.as_u64().unwrap_or_default() / 1000).to_string();
    let phases = told["jobs"].as_object().into_iter().flatten();
    let phases = phases.map(|(phase, jobs)| vec![phase.clone(), count(jobs)]).collect();
    let mut out = show::table(&["STATE", "JOBS"], phases);
    let oldest = &told["oldest"];
    if oldest.is_null() {
        out.push_str("\n\nno job waits");
        return out;
    }
    let row = vec![text(&oldest["id"]), text(&oldest["name"]), span(&oldest["waits_ms"])];
    out.push_str(&format!("\n\n{}", show::table(&["OLDEST", "NAME", "WAITS"], vec![row])));
    if let Some(reason) = oldest["reason"].as_str() {
        out.push_str(&format!("\n  {}", show::printable(reason)));
    }
    let row = |one: &Value| vec![text(&one["label"]), count(&one["queued"]), span(&one["oldest_waits_ms"])];
    let rows: Vec<Vec<String>> = told["labels"].as_array().into_iter().flatten().map(row).collect();
    if !rows.is_empty() {
        out.push_str(&format!("\n\n{}", show::table(&["LABEL", "QUEUED", "OLDEST WAITS"], rows)));
    }
    if let Some(more) = told["more_labels"].as_u64().filter(|more| *more > 0) {
        out.push_str(&format!("\n… and {more} labels more"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(jobs: &[Value]) -> (Option<Value>, Waiting) {
        let mut waiting = Waiting::default();
        jobs.iter().for_each(|job| waiting.add(job));
        (waiting.oldest.take(), waiting)
    }

    #[test]
    fn the_oldest_is_found_and_labels_are_counted() {
        let (oldest, waiting) = seen(&[
            json!({"id": "c", "name": null, "submitted_at": 9_000, "labels": {"team": "blue", "kind": "x"}}),
            json!({"id": "b", "name": "second", "submitted_at": 7_000, "labels": {"team": "blue"}}),
            // A clock that was set back.
            json!({"id": "a", "name": "first", "submitted_at": 8_000, "labels": {}}),
        ]);
        let told = document(&json!({"queued": 3, "running": 1}), oldest, &waiting, UnixMillis::new(70_500));
        assert_eq!((&told["oldest"]["id"], &told["oldest"]["waits_ms"]), (&json!("b"), &json!(63_500)));
        let labels: Vec<_> = told["labels"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|one| (one["label"].as_str(), one["queued"].as_u64(), one["oldest_at"].as_u64()))
            .collect();
        assert_eq!(labels, [(Some("team=blue"), Some(2), Some(7_000)), (Some("kind=x"), Some(1), Some(9_000))]);
        let shown = people(&told);
        assert!(shown.contains("b       second  1m3s") && shown.contains("team=blue  2       1m3s"), "{shown}");
    }

    #[test]
    fn a_label_for_each_job_does_not_fill_the_screen_or_steer_it() {
        let job = |n: u64| json!({"id": "x", "name": "a\u{1b}[2J", "submitted_at": n, "labels": {"order": format!("{n:03}")}});
        let (oldest, waiting) = seen(&(0..100).map(job).collect::<Vec<_>>());
        let told = document(&json!({"queued": 100}), oldest, &waiting, UnixMillis::new(100));
        let shown = people(&told);
        assert!(shown.ends_with("order=019  1       0s\n… and 80 labels more"), "{shown}");
        assert!(!shown.contains('\u{1b}'), "{shown}");
        assert!(people(&document(&json!({}), None, &Waiting::default(), UnixMillis::new(1))).ends_with("no job waits"));
    }
}
