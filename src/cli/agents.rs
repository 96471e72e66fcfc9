//! `jobcell agents …`: who claims from this server, and their keys.

use super::client::Client;
use super::{Failure, Global, Output, show};
use clap::Subcommand;
use serde_json::Value;

#[derive(Debug, Subcommand)]
pub(super) enum AgentsCommand {
    /// List agents with state, load and last contact
    List,
    /// Make a key for a new agent; it is shown once
    Add {
        /// The agent's name
        name: String,
    },
    /// Take an agent's key away
    Remove {
        /// The agent's name
        name: String,
    },
}

pub(super) async fn run(command: AgentsCommand, global: &Global) -> Result<u8, Failure> {
    let client = Client::new(global)?;
    match command {
        AgentsCommand::List => {
            let list = client.agents().await?;
            match global.output {
                Output::Json => show::json(&list),
                Output::Table => println!("{}", show::agents(&list)),
            }
        }
        AgentsCommand::Add { name } => {
            let added: Value = client.add_agent(&name).await?;
            match global.output {
                Output::Json => show::json(&added),
                Output::Table => {
                    println!("{}", added["key"].as_str().unwrap_or_default());
                    eprintln!(
                        "shown once; on the agent's host: JOBCELL_AGENT_KEY=… jobcell agent --backend {}",
                        client.url
                    );
                }
            }
        }
        AgentsCommand::Remove { name } => {
            client.remove_agent(&name).await?;
            if global.output == Output::Table {
                println!("{name} is removed");
            }
        }
    }
    Ok(0)
}
