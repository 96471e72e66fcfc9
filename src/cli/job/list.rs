//! `jobcell job list`: jobs by what they are, and in numbers.

use crate::cli::client::{Client, escaped};
use crate::cli::{Failure, Global, show};
use crate::job::{Millis, UnixMillis};
use clap::Args;
use serde_json::Value;

/// What to list.
#[derive(Debug, Args)]
pub(in crate::cli) struct ListArgs {
    /// Only those in one of these states: queued, claimed, preparing, running, finishing, ended
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    state: Vec<String>,
    /// What --state was called before
    #[arg(long, hide = true)]
    phase: Vec<String>,
    /// Only those that ended so: succeeded, failed, timed_out, canceled, cell_error, lost
    #[arg(long)]
    verdict: Option<String>,
    /// Only those with this label; may be given several times, and all must be there
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Only the jobs for the hosts of this one
    #[arg(long, value_name = "ID")]
    parent: Option<String>,
    /// Only those submitted since then: 2h for two hours ago, 2026-11-21T08:30:00Z, or milliseconds since 1970
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    since: Option<UnixMillis>,
    /// Only those submitted before then
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    until: Option<UnixMillis>,
    /// Only those with this text in their name, their id or the value of a label
    #[arg(long)]
    text: Option<String>,
    /// Only those submitted before this one
    #[arg(long, value_name = "ID")]
    before: Option<String>,
    /// How many
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// How many there are in each state, and what happened on each day, in place of the jobs
    #[arg(long, conflicts_with_all = ["state", "phase", "verdict", "parent", "label", "since", "until", "text", "before", "limit"])]
    stats: bool,
    /// How many days --stats shows
    #[arg(long, value_name = "N", default_value_t = 7, requires = "stats")]
    days: u32,
}

/// Reads a moment: so long ago, or as the API reads it.
pub(in crate::cli) fn moment(text: &str) -> Result<UnixMillis, String> {
    moment_at(text, UnixMillis::now())
}

fn moment_at(text: &str, now: UnixMillis) -> Result<UnixMillis, String> {
    if let Ok(ago) = text.parse::<Millis>() {
        return Ok(UnixMillis::new(now.as_u64().saturating_sub(ago.as_u64())));
    }
    text.parse().map_err(|_| {
        "expected how long ago (30m, 2h, 1d), a moment such as 2026-11-21T08:30:00Z, or milliseconds since 1970"
            .to_owned()
    })
}

impl ListArgs {
    /// As the API's query.
    fn query(&self) -> String {
        let mut query = vec![("limit", self.limit.to_string())];
        query.extend(self.state.iter().chain(&self.phase).map(|state| ("state", state.clone())));
        query.extend(self.label.iter().map(|label| ("label", label.clone())));
        let when = |at: Option<UnixMillis>| at.map(|at| at.as_u64().to_string());
        for (key, value) in [
            ("verdict", self.verdict.clone()),
            ("parent", self.parent.clone()),
            ("since", when(self.since)),
            ("until", when(self.until)),
            ("text", self.text.clone()),
            ("before", self.before.clone()),
        ] {
            query.extend(value.map(|value| (key, value)));
        }
        let pairs: Vec<String> = query.iter().map(|(key, value)| format!("{key}={}", escaped(value))).collect();
        pairs.join("&")
    }
}

pub(super) async fn run(args: ListArgs, global: &Global) -> Result<u8, Failure> {
    let client = Client::new(global)?;
    if args.stats {
        let stats = client.stats(args.days).await?;
        global.output.print(&stats, || numbers(&stats))?;
        return Ok(0);
    }
    let list = client.list(&args.query()).await?;
    global.output.print(&list, || show::jobs(&list))?;
    Ok(0)
}

/// Two tables: jobs by state, and each day.
fn numbers(stats: &Value) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or_default().to_string();
    let now = stats["now"].as_object().into_iter().flatten();
    let now = show::table(&["STATE", "JOBS"], now.map(|(state, count)| vec![state.clone(), number(count)]).collect());
    let day = |day: &Value| {
        let mut row = vec![day["day"].as_str().unwrap_or_default().to_owned(), number(&day["submitted"])];
        row.extend(VERDICTS.iter().map(|(verdict, _)| number(&day["ended"][verdict])));
        row.push(format!("{:.1} s", day["run_seconds"].as_f64().unwrap_or_default()));
        row
    };
    let mut head = vec!["DAY", "SUBMITTED"];
    head.extend(VERDICTS.iter().map(|(_, head)| *head));
    head.push("RUN TIME");
    let days = stats["days"].as_array().into_iter().flatten().map(day).collect();
    let dead = match stats["dead_letters"].as_u64().unwrap_or_default() {
        0 => String::new(),
        count => format!("\n\ndead letters: {count}; `jobcell dlq list` shows them"),
    };
    format!("{now}{dead}\n\n{}", show::table(&head, days))
}

const VERDICTS: [(&str, &str); 6] = [
    ("succeeded", "SUCCEEDED"),
    ("failed", "FAILED"),
    ("timed_out", "TIMED OUT"),
    ("canceled", "CANCELED"),
    ("cell_error", "CELL ERROR"),
    ("lost", "LOST"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        list: ListArgs,
    }

    #[test]
    fn what_is_asked_for_becomes_a_query() {
        let words = [
            "list",
            "--state",
            "queued,running",
            "--phase=ended",
            "--label=a=b c",
            "--label",
            "d=e",
            "--verdict=lost",
            "--since=1700000000000",
            "--text=ü&",
            "--limit=7",
        ];
        let line = Line::try_parse_from(words).expect("is read");
        let wanted = "limit=7&state=queued&state=running&state=ended&label=a%3Db%20c&label=d%3De&verdict=lost&since=1700000000000&text=%C3%BC%26";
        assert_eq!(line.list.query(), wanted);
        assert!(Line::try_parse_from(["list", "--stats", "--state=queued"]).is_err());
        assert!(Line::try_parse_from(["list", "--days=3"]).is_err());
    }

    #[test]
    fn a_moment_is_so_long_ago_or_as_the_api_has_it() {
        let now = UnixMillis::new(1_700_000_000_000);
        for (text, wanted) in [
            ("2h", 1_699_992_800_000),
            ("1h30m", 1_699_994_600_000),
            ("1700000000001", 1_700_000_000_001),
            ("2023-11-14T23:13:20+01:00", 1_700_000_000_000),
        ] {
            assert_eq!(moment_at(text, now), Ok(UnixMillis::new(wanted)), "{text}");
        }
        assert!(moment_at("today", now).is_err_and(|text| text.contains("2h, 1d")));
    }
}
