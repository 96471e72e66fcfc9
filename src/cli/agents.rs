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
