//! `jobcell keys …`: who may submit and look after jobs at this server.

use super::client::Client;
use super::{Failure, Global, show};
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// List keys with their roles
    List,
    /// Make a key; it is shown once
    Add {
        /// Its name: jobs keep it as their submitter, and a policy can go by it
        name: String,
        /// What it may do
        #[arg(long, value_enum)]
        role: Role,
        /// How long it is good, such as 90d [default: until it is removed]
        #[arg(long, value_name = "TIME")]
        expires_in: Option<String>,
    },
    /// Give a key another secret; it is shown once
    Rotate {
        /// Its name
        name: String,
        /// How long the old secret stays good beside the new one, such as 1h [default: it ends now]
        #[arg(long, value_name = "TIME")]
        overlap: Option<String>,
    },
    /// Say how much a key may do, in place of what was said before
    Limit {
        /// Its name
        name: String,
        /// Requests in a second; 0 for no bound [default: as limits.rate of the server says]
        #[arg(long, value_name = "NUMBER")]
        rate: Option<u32>,
        /// Requests at once [default: as limits.burst says]
        #[arg(long, value_name = "NUMBER")]
        burst: Option<u32>,
        /// Jobs that have not ended; 0 for no bound [default: as limits.jobs says]
        #[arg(long, value_name = "NUMBER")]
        jobs: Option<u64>,
    },
    /// Take a key away
    Remove {
        /// Its name
        name: String,
    },
}

/// What a key may do.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Role {
    /// Look at everything but keys and the audit log
    Read,
    /// Submit jobs; cancel, and run again, those of its own
    Submit,
    /// Everything
    Admin,
}

pub(super) async fn run(command: KeysCommand, global: &Global) -> Result<u8, Failure> {
    let client = Client::new(global)?;
    let secret = |answer: &Value| answer["key"].as_str().unwrap_or_default().to_owned();
    match command {
        KeysCommand::List => {
            let list = client.keys().await?;
            global.output.print(&list, || show::keys(&list))?;
        }
        KeysCommand::Add { name, role, expires_in } => {
            let role = role.to_possible_value().map(|value| value.get_name().to_owned());
            let mut body = json!({"name": name, "role": role});
            if let Some(term) = expires_in {
                body["expires_in"] = json!(term);
            }
            let added = client.add_key(&body).await?;
            global.output.print(&added, || secret(&added))?;
            global.note("shown once; who has it sets JOBCELL_API_KEY to it");
        }
        KeysCommand::Rotate { name, overlap } => {
            let rotated = client.rotate_key(&name, overlap.as_deref()).await?;
            global.output.print(&rotated, || secret(&rotated))?;
            global.note(&match overlap {
                Some(term) => format!("shown once; the old secret is good for {term} more"),
                None => "shown once; the old secret opens nothing any more".to_owned(),
            });
        }
        KeysCommand::Limit { name, rate, burst, jobs } => {
            let all = [("rate", rate.map(u64::from)), ("burst", burst.map(u64::from)), ("jobs", jobs)];
            let said = all.into_iter().filter_map(|(what, limit)| Some((what.to_owned(), json!(limit?))));
            let limits = Value::Object(said.collect());
            let answer = client.limit_key(&name, &limits).await?;
            global.output.print(&answer, || format!("{name}: {}", show::limits(&answer["limits"])))?;
        }
        KeysCommand::Remove { name } => {
            client.remove_key(&name).await?;
            global.note(&format!("{name} is removed"));
        }
    }
    Ok(0)
}
