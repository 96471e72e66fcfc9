//! Dead letters: jobs that ended because no try was left. They are listed like all jobs; here they are run again.

use super::App;
use super::audited::Told;
use super::bulk::{Group, MOST_CANCELED, picked, texts, these};
use super::jobs::{self, Answer};
use super::list;
use super::openapi::jobs as schema;
use super::problem::ProblemDocument;
use crate::job::{Fields, JobId, Problems, parse_json, type_name};
use crate::queue::{ListFilter, Replay};
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::{Extension, Json};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// Which are to be replayed.
#[derive(Debug)]
enum Which {
    These(Vec<JobId>),
    Those(ListFilter),
}

/// A dead letter, and the new job that does it again.
#[derive(Debug, Serialize, ToSchema)]
struct Pair {
    #[schema(value_type = schema::JobId)]
    id: JobId,
    #[schema(value_type = schema::JobId)]
    replayed_by: JobId,
}

/// What became of a replay.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Replayed {
    /// They are no dead letters any more.
    replayed: Vec<Pair>,
    /// They were replayed before.
    already_replayed: Vec<Pair>,
    /// They are no dead letters.
    not_dead: Group,
    /// Values of secrets came with them and went with their ends: submit them again.
    secrets_gone: Group,
    /// queue.max_queued jobs wait: nothing was done about these, ask again later.
    queue_full: Group,
    /// There are no such jobs.
    unknown: Group,
    /// More dead letters fit: ask again.
    more: bool,
}

/// Run dead letters again, as new jobs
///
/// `ids`, or `label`, or `all`, which take the newest 10,000. Each new job has the spec of the old one without the idempotency key, and
/// `retry_of` names it; `given_up.replayed_by` of the old one names the new one. What was replayed is not replayed again.
#[utoipa::path(post, path = "/v1/jobs/replay", tag = "jobs", request_body = schema::ReplayAsk,
    responses((status = 200, description = "What became of each", body = Replayed)),
    extensions(("x-problems" = json!(["unavailable"]))))]
pub(super) async fn replay(
    State(app): State<App>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<(Extension<Told>, Json<Replayed>)> {
    let body = jobs::body(&app, body)?;
    let which = parse_json(&body).and_then(|document| which(&document)).map_err(|problems| {
        let detail = "which jobs to replay cannot be read from the body; nothing was done";
        ProblemDocument::new("bad_body", detail).listing(problems.iter().cloned().collect())
    })?;
    let mut answer = Replayed::default();
    let ids = match which {
        Which::These(ids) => ids,
        Which::Those(filter) => {
            let mut ids = picked(&app.backend, filter).await?;
            answer.more = ids.len() > MOST_CANCELED;
            ids.truncate(MOST_CANCELED);
            ids
        }
    };
    for (id, replay) in app.backend.replay(ids).await? {
        match replay {
            Replay::Replayed(job) => answer.replayed.push(Pair { id, replayed_by: job.id }),
            Replay::Already(replayed_by) => answer.already_replayed.push(Pair { id, replayed_by }),
            Replay::NotDead => answer.not_dead.add(id),
            Replay::SecretsGone => answer.secrets_gone.add(id),
            Replay::QueueFull => answer.queue_full.add(id),
            Replay::Unknown => answer.unknown.add(id),
        }
    }
    app.metrics.jobs_submitted_total.inc_by(answer.replayed.len() as u64);
    let told = Told { count: Some(answer.replayed.len() as u64), ..Told::default() };
    Ok((Extension(told), Json(answer)))
}

/// Reads `{"ids": […]}`, `{"label": …}` or `{"all": true}`. Errors: everything that is wrong with it.
fn which(document: &Value) -> Result<Which, Problems> {
    let fix = "write {\"ids\": […]}, {\"label\": \"team=blue\"} or {\"all\": true}";
    let Value::Object(map) = document else {
        return Err(Problems::one("", format!("is {}", type_name(document)), fix));
    };
    let mut problems = Problems::default();
    let mut fields = Fields::new("", map);
    let (ids, label, all) = (fields.take("ids"), fields.take("label"), fields.take("all"));
    fields.finish(&mut problems);
    if let Some(all) = all.filter(|all| **all != Value::Bool(true)) {
        problems.add("all", format!("is {}", type_name(all)), "write true, or leave it out");
    }
    match [ids, label, all].into_iter().flatten().count() {
        0 => problems.add("", "says of no job that it is to be replayed", fix),
        1 => {}
        _ => problems.add("", "says in more than one way which jobs are to be replayed", fix),
    }
    let mut filter = ListFilter { dead_letter: Some(true), ..ListFilter::default() };
    for (path, text) in texts("label", label, &mut problems) {
        filter.labels.extend(list::label(&path, text, &mut problems));
    }
    if label.is_some() && filter.labels.is_empty() && problems.is_empty() {
        problems.add("label", "is an empty list", "give a label, such as team=blue");
    }
    let these = ids.map(|ids| these(ids, &mut problems));
    problems.or_value(these.map_or(Which::Those(filter), Which::These))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_to_replay_is_read_strictly() {
        let read = |document: Value| which(&document).map_err(|problems| problems.to_string());
        let id = "01a1fc8c-4c8b-78fb-94fc-32d760d3b15b";
        assert!(matches!(read(json!({"ids": [id]})), Ok(Which::These(ids)) if ids.len() == 1));
        let Ok(Which::Those(filter)) = read(json!({"label": ["a=b", "c=d"]})) else { panic!("a filter") };
        assert_eq!((filter.dead_letter, filter.labels.len()), (Some(true), 2));
        let Ok(Which::Those(filter)) = read(json!({"all": true})) else { panic!("a filter") };
        assert_eq!(filter, ListFilter { dead_letter: Some(true), ..ListFilter::default() });
        for (document, wanted) in [
            (json!({}), "says of no job"),
            (json!([id]), "is a list"),
            (json!({"ids": [id], "all": true}), "in more than one way"),
            (json!({"all": false}), "all: is a boolean; write true"),
            (json!({"label": []}), "label: is an empty list"),
            (json!({"label": "team"}), "`team` is no label"),
            (json!({"ids": ["x"]}), "ids[0]: `x` is not a job id"),
            (json!({"id": id}), "did you mean `ids`?"),
        ] {
            let said = read(document.clone()).map(|_| ()).expect_err("refused");
            assert!(said.contains(wanted), "{document}: {said}");
        }
    }
}
