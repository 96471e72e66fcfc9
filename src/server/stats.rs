//! How many jobs there are, and what happened on each day.

use super::App;
use super::jobs::{self, Answer};
use super::openapi::jobs as schema;
use super::problem::ProblemDocument;
use crate::job::UnixMillis;
use crate::queue::{Counts, Day, Ended};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Days when none are asked for, and at most.
const DAYS: u64 = 30;
const MOST_DAYS: u64 = 366;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DaysQuery {
    /// How many, default 30.
    #[param(minimum = 1, maximum = 366)]
    days: Option<u64>,
}

#[derive(Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = Day)]
struct DayJson {
    /// Of UTC, as `2026-11-21`.
    day: String,
    submitted: u64,
    #[schema(value_type = schema::Ended)]
    ended: Ended,
    run_seconds: f64,
}

/// Days, the oldest first; the last one is today.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Days {
    /// Jobs by phase, at this moment.
    #[schema(value_type = schema::Counts)]
    now: Counts,
    /// Jobs that were given up for want of tries, and not replayed since.
    dead_letters: u64,
    days: Vec<DayJson>,
}

/// What happened on each day
#[utoipa::path(get, path = "/v1/stats/daily", tag = "statistics", params(DaysQuery),
    responses((status = 200, description = "Days of UTC", body = Days)),
    extensions(("x-problems" = json!(["bad_query", "unavailable"]))))]
pub(super) async fn daily(
    State(app): State<App>,
    asked: Result<Query<DaysQuery>, QueryRejection>,
) -> Answer<Json<Days>> {
    let days = jobs::query(asked)?.days.unwrap_or(DAYS);
    if !(1..=MOST_DAYS).contains(&days) {
        let detail = format!("days: {days} cannot be shown; choose between 1 and {MOST_DAYS}");
        return Err(ProblemDocument::new("bad_query", detail));
    }
    let today = Day::of(UnixMillis::now());
    let first = (today + 1).saturating_sub(days);
    let kept = app.backend.daily(first).await?;
    let now = app.backend.counts().await?;
    Ok(Json(Days { now, dead_letters: now.dead_letters, days: filled(&kept, first, today) }))
}

/// Every day from the first to the last, also those on which nothing happened.
fn filled(kept: &[Day], first: u64, last: u64) -> Vec<DayJson> {
    let day = |number| {
        let kept = kept.iter().find(|day| day.number == number).copied().unwrap_or_default();
        DayJson {
            day: Day::begins(number).to_string().chars().take_while(|c| *c != 'T').collect(),
            submitted: kept.submitted,
            ended: kept.ended,
            run_seconds: kept.run.as_duration().as_secs_f64(),
        }
    };
    (first..=last).map(day).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Millis;

    #[test]
    fn days_without_jobs_are_shown_too() {
        let day = Day { number: 19_675, submitted: 3, run: Millis::new(1500), ..Day::default() };
        let days = filled(&[day], 19_674, 19_676);
        let shown: Vec<_> = days.iter().map(|day| (day.day.as_str(), day.submitted, day.run_seconds)).collect();
        assert_eq!(shown, [("2023-11-13", 0, 0.0), ("2023-11-14", 3, 1.5), ("2023-11-15", 0, 0.0)]);
    }
}
