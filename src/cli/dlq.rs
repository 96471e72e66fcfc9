//! `jobcell dlq …`: dead letters, which are jobs that ended because no try was left.

use super::client::{Client, escaped};
use super::{Failure, Global, Output, show};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub(super) enum DlqCommand {
    /// List dead letters, newest first
    List {
        /// Only those with this label; may be given several times, and all must be there
        #[arg(long, value_name = "KEY=VALUE")]
        label: Vec<String>,
        /// Only those submitted before this one
        #[arg(long, value_name = "ID")]
        before: Option<String>,
        /// How many
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Show a dead letter in full, with each of its tries
    Show {
        /// Its id
        id: String,
    },
    /// Run dead letters again, as new jobs
    Replay(ReplayArgs),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct ReplayArgs {
    /// Their ids
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Those with this label; may be given several times, and all must be there
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// All there are
    #[arg(long)]
    all: bool,
}

impl ReplayArgs {
    /// Which, as the API takes it.
    fn body(&self) -> Value {
        match (&self.ids[..], self.all) {
            ([], true) => json!({"all": true}),
            ([], false) => json!({ "label": self.label }),
            (ids, _) => json!({ "ids": ids }),
        }
    }
}

pub(super) async fn run(command: DlqCommand, global: &Global) -> Result<u8, Failure> {
    let client = Client::new(global)?;
    match command {
        DlqCommand::List { label, before, limit } => {
            let mut query = format!("dead_letter=true&limit={limit}");
            query.extend(label.iter().map(|label| format!("&label={}", escaped(label))));
            query.extend(before.iter().map(|id| format!("&before={}", escaped(id))));
            let list = client.list(&query).await?;
            global.output.print(&list, || table(&list))?;
            Ok(0)
        }
        DlqCommand::Show { id } => {
            let job = client.get(&id).await?;
            if job["given_up"].is_null() {
                return Err(Failure::new(format!("job {id} is no dead letter: `jobcell job get {id}` shows it")));
            }
            global.output.print(&job, || show::job(&job))?;
            Ok(0)
        }
        DlqCommand::Replay(args) => {
            let answer = client.replay(&args.body()).await?;
            let lines = lines(&answer);
            if global.output != Output::Table || !lines.is_empty() {
                global.output.print(&answer, || lines.join("\n"))?;
            }
            if lines.is_empty() && args.ids.is_empty() {
                global.note("there is no dead letter to replay");
            }
            if answer["more"] == true {
                global.note("there are more of them: ask again");
            }
            left(&answer)
        }
    }
}

fn table(list: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let row = |job: &Value| {
        let ending = &job["ending"];
        let cause = text(&ending["cause"]["code"]);
        let ended =
            job["ended_at"].as_u64().map_or_else(|| "-".to_owned(), |at| crate::job::UnixMillis::new(at).to_string());
        let tries = job["attempt"].to_string();
        vec![text(&job["id"]), text(&job["name"]), cause, tries, ended, text(&ending["message"])]
    };
    let rows = list["jobs"].as_array().into_iter().flatten().map(row).collect();
    show::table(&["ID", "NAME", "CAUSE", "TRY", "ENDED", "OUTCOME"], rows)
}

/// A line for each that is done, now or before.
fn lines(answer: &Value) -> Vec<String> {
    let pairs = |group: &str| answer[group].as_array().cloned().unwrap_or_default();
    let line = |says: &'static str| {
        move |pair: Value| {
            let text = |key: &str| show::printable(pair[key].as_str().unwrap_or_default());
            format!("{} {says} {}", text("id"), text("replayed_by"))
        }
    };
    let done = pairs("replayed").into_iter().map(line("is replayed as"));
    done.chain(pairs("already_replayed").into_iter().map(line("was replayed before as"))).collect()
}

/// Says which of them were not.
fn left(answer: &Value) -> Result<u8, Failure> {
    let mut said = Vec::new();
    let groups = [
        ("not_dead", "no dead letter"),
        ("secrets_gone", "to be submitted again: values of secrets came with it, and went with its end"),
        ("unknown", "no job at all"),
        ("queue_full", "left, as the queue is full"),
    ];
    for (group, says) in groups {
        for id in answer[group]["ids"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            said.push(format!("{} is {says}", show::printable(id)));
        }
    }
    let full = answer["queue_full"]["count"].as_u64().unwrap_or_default() > 0;
    match &said[..] {
        [] => Ok(0),
        _ if full => Err(Failure { code: super::exit::TEMPORARY, message: said.join("\n") }),
        _ => Err(Failure::new(said.join("\n"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        replay: ReplayArgs,
    }

    #[test]
    fn what_to_replay_is_said_in_one_way() {
        let read = |words: &[&str]| Line::try_parse_from([&["replay"], words].concat()).map(|line| line.replay.body());
        assert_eq!(read(&["a", "b"]).expect("is read"), json!({"ids": ["a", "b"]}));
        assert_eq!(read(&["--label=a=b", "--label=c=d"]).expect("is read"), json!({"label": ["a=b", "c=d"]}));
        assert_eq!(read(&["--all"]).expect("is read"), json!({"all": true}));
        for words in [&[] as &[&str], &["a", "--all"], &["--all", "--label=a=b"], &["a", "--label=a=b"]] {
            assert!(read(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn what_was_not_replayed_decides_the_exit_code() {
        let answer = json!({"replayed": [{"id": "a", "replayed_by": "b\u{1b}"}], "already_replayed": [{"id": "c", "replayed_by": "d"}],
            "not_dead": {"count": 1, "ids": ["e"]}, "unknown": {"count": 0, "ids": []}, "queue_full": {"count": 0, "ids": []}});
        assert_eq!(lines(&answer), ["a is replayed as b\\u{1b}", "c was replayed before as d"]);
        let failure = left(&answer).expect_err("one is left");
        assert_eq!((failure.code, failure.message.as_str()), (1, "e is no dead letter"));
        let full = json!({"queue_full": {"count": 1, "ids": ["f"]}});
        assert_eq!(left(&full).map_err(|failure| failure.code), Err(crate::cli::exit::TEMPORARY));
    }
}
