//! `jobcell agents …`: who claims from this server, and their keys.

use super::client::Client;
use super::{Failure, Global, show};
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
    /// Make, list and take away tokens with which new agents get in, each once
    #[command(subcommand)]
    Token(TokenCommand),
}

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token; it is shown once
    Create {
        /// The name that its agent gets, in the place of one that has it [default: the agent says one that is new]
        name: Option<String>,
        /// How long it is good, at most 30d
        #[arg(long, value_name = "TIME", default_value = "1h")]
        expires_in: String,
    },
    /// List tokens and who used them
    #[command(alias = "list")]
    Ls,
    /// Take a token away; the agent that has used it stays
    #[command(alias = "remove")]
    Rm {
        /// Its id
        id: String,
    },
}

pub(super) async fn run(command: AgentsCommand, global: &Global) -> Result<u8, Failure> {
    let client = Client::new(global)?;
    match command {
        AgentsCommand::List => {
            let list = client.agents().await?;
            global.output.print(&list, || show::agents(&list))?;
        }
        AgentsCommand::Add { name } => {
            let added: Value = client.add_agent(&name).await?;
            global.output.print(&added, || added["key"].as_str().unwrap_or_default().to_owned())?;
            let url = from_elsewhere(&client.url);
            global.note(&format!("shown once; on the agent's host: JOBCELL_AGENT_KEY=… jobcell agent --backend {url}"));
        }
        AgentsCommand::Remove { name } => {
            client.remove_agent(&name).await?;
            global.note(&format!("{name} is removed"));
        }
        AgentsCommand::Token(TokenCommand::Create { name, expires_in }) => {
            let mut wanted = serde_json::json!({ "expires_in": expires_in });
            if let Some(name) = &name {
                wanted["name"] = serde_json::json!(name);
            }
            let made = client.create_token(&wanted).await?;
            global.output.print(&made, || made["token"].as_str().unwrap_or_default().to_owned())?;
            let url = from_elsewhere(&client.url);
            let until = format!("shown once, good for one agent and {expires_in}");
            global.note(&format!("{until}; on its host: JOBCELL_JOIN_TOKEN=… jobcell agent --backend {url}"));
        }
        AgentsCommand::Token(TokenCommand::Ls) => {
            let list = client.tokens().await?;
            global.output.print(&list, || show::tokens(&list))?;
        }
        AgentsCommand::Token(TokenCommand::Rm { id }) => {
            client.remove_token(&id).await?;
            global.note(&format!("the token {id} is removed"));
        }
    }
    Ok(0)
}

/// The server's address as another host can use it: one that means every address of this host is none.
fn from_elsewhere(url: &str) -> String {
    [("http", "http://0.0.0.0:"), ("http", "http://[::]:"), ("https", "https://0.0.0.0:"), ("https", "https://[::]:")]
        .iter()
        .find_map(|(scheme, all)| Some((scheme, url.strip_prefix(all)?)))
        .map_or_else(|| url.to_owned(), |(scheme, port)| format!("{scheme}://<this host>:{port}"))
}

#[cfg(test)]
mod tests {
    use super::from_elsewhere;

    #[test]
    fn an_address_that_means_all_of_them_is_not_told_to_other_hosts() {
        for (url, wanted) in [
            ("http://0.0.0.0:7807", "http://<this host>:7807"),
            ("https://[::]:7807", "https://<this host>:7807"),
            ("http://[::]:7807", "http://<this host>:7807"),
            ("http://10.0.0.1:7807", "http://10.0.0.1:7807"),
        ] {
            assert_eq!(from_elsewhere(url), wanted);
        }
    }
}
