//! `jobcell job cancel`: ends jobs by their ids or by what they are, and deletes their output if that is wanted.

use super::stay::Limit;
use crate::cli::client::{Client, escaped};
use crate::cli::{Failure, Global, Output, show};
use crate::job::Millis;
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::{BufRead, IsTerminal, Write};

/// Jobs that are named in a question; of more than these it says how many there are.
const NAMED: usize = 5;
/// Most jobs that a question counts: the longest page of the API.
const COUNTED: usize = 500;

/// Which jobs to cancel, and how.
#[derive(Debug, Args)]
pub(in crate::cli) struct CancelArgs {
    /// Their ids
    #[arg(value_name = "ID", conflicts_with_all = ["label", "state"])]
    ids: Vec<String>,
    /// Those with this label; may be given several times, and all must be there
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Those in one of these states: queued, claimed, preparing, running, finishing
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    state: Vec<String>,
    /// Give them no grace: they are killed at once, also when they were asked to end before
    #[arg(long)]
    force: bool,
    /// Wait for their ends, then delete their output
    #[arg(long)]
    cleanup: bool,
    /// Do not ask; where there is no terminal it is never asked
    #[arg(short, long)]
    yes: bool,
    /// Wait for their ends
    #[arg(short, long)]
    wait: bool,
    /// Give up waiting after this time and exit with 124; the jobs are still asked to end
    #[arg(long, value_name = "TIME")]
    timeout: Option<Millis>,
}

pub(super) async fn run(args: CancelArgs, global: &Global) -> Result<u8, Failure> {
    if args.ids.is_empty() && args.label.is_empty() && args.state.is_empty() {
        return Err(Failure::usage("say which jobs: by their ids, or by --label or --state or both"));
    }
    if args.timeout.is_some() && !args.waits() {
        return Err(Failure::usage("--timeout says how long to wait: give --wait or --cleanup too"));
    }
    let client = Client::new(global)?;
    let terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if terminal && !args.yes {
        let jobs = args.jobs(&client).await?;
        if jobs.is_empty() {
            global.note("no job is to be canceled");
            return Ok(0);
        }
        if !agreed(&args.question(&jobs))? {
            return Err(Failure::new("nothing was canceled"));
        }
    }
    match &args.ids[..] {
        [id] => one(&client, id, &args, global).await,
        _ => many(&client, &args, global).await,
    }
}

impl CancelArgs {
    fn waits(&self) -> bool {
        self.wait || self.cleanup
    }

    /// The jobs as they stand; of many only some.
    async fn jobs(&self, client: &Client) -> Result<Vec<Value>, Failure> {
        let mut jobs = Vec::new();
        for id in &self.ids {
            jobs.push(client.get(id).await?);
        }
        if self.ids.is_empty() {
            let states = match &self.state[..] {
                [] => "queued,claimed,preparing,running,finishing".to_owned(),
                some => some.join(","),
            };
            let mut query = format!("limit={COUNTED}&state={}", escaped(&states));
            query.extend(self.label.iter().map(|label| format!("&label={}", escaped(label))));
            let mut list = client.list(&query).await?;
            if let Some(found) = list["jobs"].as_array_mut() {
                jobs.append(found);
            }
        }
        Ok(jobs)
    }

    /// What is about to be done, for a person to agree to.
    fn question(&self, jobs: &[Value]) -> String {
        let text = |value: &Value| show::printable(value.as_str().unwrap_or("-"));
        let name = |job: &Value| if job["spec"].is_null() { text(&job["name"]) } else { text(&job["spec"]["name"]) };
        let row = |job: &Value| vec![text(&job["id"]), name(job), text(&job["phase"]), text(&job["agent"])];
        let mut rows: Vec<Vec<String>> = jobs.iter().take(NAMED).map(row).collect();
        if jobs.len() > NAMED {
            rows.push(vec!["…".to_owned()]);
        }
        let table = show::table(&["ID", "NAME", "STATE", "AGENT"], rows);
        let count = match jobs.len() {
            1 => "this job".to_owned(),
            COUNTED => format!("these jobs ({COUNTED} or more)"),
            count => format!("these {count} jobs"),
        };
        let force = if self.force { " at once, without a grace" } else { "" };
        let cleanup = if self.cleanup { " and delete all output" } else { "" };
        format!("{table}\nCancel {count}{force}{cleanup}? [y/N] ")
    }

    /// Which, as the API takes it.
    fn body(&self) -> Value {
        if !self.ids.is_empty() {
            return json!({ "ids": self.ids });
        }
        let mut body = Map::new();
        for (key, values) in [("label", &self.label), ("state", &self.state)] {
            if !values.is_empty() {
                body.insert(key.to_owned(), json!(values));
            }
        }
        Value::Object(body)
    }
}

/// Asks on the terminal; anything but a yes is a no.
fn agreed(question: &str) -> Result<bool, Failure> {
    let failed = |error: std::io::Error| Failure::new(format!("the answer cannot be read: {error}"));
    let mut out = std::io::stderr().lock();
    out.write_all(question.as_bytes()).and_then(|()| out.flush()).map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// What to do about a job that takes its time to end.
fn asked(id: &str) -> String {
    format!("job {id} is asked to end and has not yet: `jobcell job get {id}` shows it, --force gives it no grace")
}

async fn one(client: &Client, id: &str, args: &CancelArgs, global: &Global) -> Result<u8, Failure> {
    let mut job = client.cancel(id, args.force).await?;
    if args.waits() {
        job = Limit::begin(args.timeout).keep(|| asked(id), client.ended(id)).await?;
    }
    if args.cleanup {
        client.remove_logs(id).await?;
    }
    global.output.print(&job, || match job["ending"].is_null() {
        true => format!("{id} is asked to end"),
        false => format!("{id} {}", show::ending(&job)),
    })?;
    if args.cleanup {
        global.note("its output is deleted");
    }
    Ok(0)
}

async fn many(client: &Client, args: &CancelArgs, global: &Global) -> Result<u8, Failure> {
    let answer = client.cancel_many(&args.body(), args.force).await?;
    let limit = Limit::begin(args.timeout);
    let ids = |group: &str| {
        let ids = answer[group]["ids"].as_array().into_iter().flatten();
        ids.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut lines = Vec::new();
    for (group, says) in
        [("ended", "is canceled"), ("requested", "is asked to end"), ("already_ended", "had ended before")]
    {
        for id in ids(group) {
            let mut line = format!("{id} {says}");
            if args.waits() && group == "requested" {
                line = format!("{id} {}", show::ending(&limit.keep(|| asked(&id), client.ended(&id)).await?));
            }
            if args.cleanup {
                client.remove_logs(&id).await?;
            }
            lines.push(line);
        }
    }
    if global.output != Output::Table || !lines.is_empty() {
        global.output.print(&answer, || lines.join("\n"))?;
    }
    if args.cleanup && !lines.is_empty() {
        global.note("their output is deleted");
    }
    if lines.is_empty() && args.ids.is_empty() {
        global.note("no job is to be canceled");
    }
    if answer["more"] == true {
        global.note("there are more of them: ask again");
    }
    let unknown = ids("unknown");
    if unknown.is_empty() { Ok(0) } else { Err(Failure::new(format!("no job has the id {}", unknown.join(", ")))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        cancel: CancelArgs,
    }

    fn read(words: &[&str]) -> Result<CancelArgs, String> {
        let line = Line::try_parse_from([&["cancel"], words].concat());
        line.map(|line| line.cancel).map_err(|error| error.to_string())
    }

    #[test]
    fn jobs_are_told_by_id_or_by_what_they_are() {
        assert_eq!(read(&["a", "b"]).expect("is read").body(), json!({"ids": ["a", "b"]}));
        let filter = read(&["--label=a=b", "--label=c=d", "--state=queued,running"]).expect("is read");
        assert_eq!(filter.body(), json!({"label": ["a=b", "c=d"], "state": ["queued", "running"]}));
        assert_eq!(read(&["--state", "queued"]).expect("is read").body(), json!({"state": ["queued"]}));
        for words in [["a", "--label=a=b"], ["a", "--state=queued"]] {
            assert!(read(&words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn the_question_says_what_is_about_to_be_done() {
        let args = read(&["a", "--force", "--cleanup"]).expect("is read");
        let job = json!({"id": "a", "spec": {"name": "x\u{1b}[2J"}, "phase": "running", "agent": "here"});
        let asked = args.question(std::slice::from_ref(&job));
        assert!(asked.ends_with("Cancel this job at once, without a grace and delete all output? [y/N] "), "{asked}");
        assert!(asked.contains("x\\u{1b}[2J") && asked.contains("running") && !asked.contains('\u{1b}'), "{asked}");
        let args = read(&["--state=queued"]).expect("is read");
        let summary = json!({"id": "a", "name": "n", "phase": "queued"});
        let asked = args.question(&vec![summary.clone(); 7]);
        assert!(asked.ends_with("…\nCancel these 7 jobs? [y/N] ") && asked.matches("queued").count() == 5, "{asked}");
        assert!(args.question(&vec![summary; 500]).contains("these jobs (500 or more)"));
    }
}
