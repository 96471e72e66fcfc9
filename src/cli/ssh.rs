//! `jobcell ssh …`: the keys of hosts, for an operator to accept, and whether this host's settings get in there.

use super::{Failure, Global, QUIET, home, node, settings, show};
use crate::config::Config;
use crate::executor::ssh::inventory::{Destination, LiveInventory, address};
use crate::executor::ssh::{Mode, Pool, Scanned, SshSettings, scan};
use crate::job::{Millis, OwnerId, shown};
use clap::Subcommand;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Hosts that are asked at the same time.
const AT_ONCE: usize = 16;

#[derive(Debug, Subcommand)]
pub(super) enum SshCommand {
    /// Show the keys of hosts as lines for known_hosts, with their fingerprints; accepts none
    Scan {
        /// Names of the inventory, or host, host:port or [address]:port
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<String>,
        /// How long to wait for each
        #[arg(long, value_name = "TIME", default_value = "15s")]
        timeout: Millis,
    },
    /// Log in at hosts as a job would, and say how far that came and how jobs would run there; exit code 1 if they could not on one of them
    Check {
        /// Names of the inventory [default: all of them]
        #[arg(value_name = "HOST")]
        hosts: Vec<String>,
        /// As this login, in place of the inventory's
        #[arg(long, value_name = "NAME")]
        login: Option<String>,
        /// With this credential, in place of the inventory's
        #[arg(long, value_name = "NAME")]
        credential: Option<String>,
    },
}

pub(super) async fn run(command: SshCommand, global: &Global) -> Result<u8, Failure> {
    let config = settings(global, &[], QUIET)?;
    match command {
        SshCommand::Scan { hosts, timeout } => scan_all(&hosts, timeout, node::inventory(&config)?, global).await,
        SshCommand::Check { hosts, login, credential } => {
            let none = || Failure::config("ssh.inventory is not set: the settings have no hosts");
            let inventory = node::inventory(&config)?.ok_or_else(none)?;
            check_all(hosts, login.as_deref(), credential.as_deref(), &config, inventory, global).await
        }
    }
}

async fn scan_all(
    hosts: &[String],
    timeout: Millis,
    inventory: Option<LiveInventory>,
    global: &Global,
) -> Result<u8, Failure> {
    let inventory = inventory.map(|live| live.current());
    let mut all = Vec::new();
    for host in hosts {
        let known = inventory.as_ref().and_then(|inventory| inventory.host(host));
        let place = match known {
            // Whoever answers at that address from here may be somebody else.
            Some(known) if !known.jump.is_empty() => {
                let way = known.jump.join(", ");
                let port = if known.port == 22 { String::new() } else { format!("-p {} ", known.port) };
                return Err(Failure::usage(format!(
                    "{host} is reached over {way}, and its keys cannot be looked at from here: run `ssh-keyscan {port}{}` on the last of them",
                    known.address
                )));
            }
            Some(known) => (known.address.clone(), known.port, known.known_as.clone()),
            None => {
                let read = address(host).map_err(|reason| Failure::usage(format!("`{}` {reason}", shown(host))))?;
                (read.0, read.1.unwrap_or(22), None)
            }
        };
        all.push((host, place));
    }
    let timeout = Duration::from_millis(timeout.as_u64());
    let scans = all.into_iter().map(|(asked, (host, port, known_as))| async move {
        (asked, scan(&host, port, timeout).await.map(|scanned| scanned.known_as(known_as.as_deref())))
    });
    let found: Vec<(&String, Result<Scanned, String>)> =
        futures_util::stream::iter(scans).buffered(AT_ONCE).collect().await;
    let failed = found.iter().any(|(_, scanned)| scanned.is_err());
    for (host, scanned) in &found {
        if let Err(why) = scanned {
            eprintln!("jobcell: {}", show::printable(&format!("{host} shows no key: {why}")));
        }
    }
    let good: Vec<&Scanned> = found.iter().filter_map(|(_, scanned)| scanned.as_ref().ok()).collect();
    let document: Vec<Value> = good
        .iter()
        .map(|host| {
            let key = |key: &crate::executor::ssh::ScannedKey| {
                json!({"type": key.kind, "fingerprint": key.fingerprint, "known_hosts": key.line})
            };
            json!({"host": host.name, "keys": host.keys.iter().map(key).collect::<Vec<_>>()})
        })
        .collect();
    if !good.is_empty() {
        global.output.print(&Value::Array(document), || {
            let lines = good.iter().flat_map(|host| &host.keys).map(|key| {
                // A fingerprint in a line of its own leaves the whole a file of known hosts.
                format!("# {} {}\n{}", key.kind, key.fingerprint, key.line)
            });
            lines.collect::<Vec<_>>().join("\n")
        })?;
        global.note(
            "Nobody has vouched for these keys: compare the fingerprints with what the hosts' operator says \
             (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` there), then put the lines into a file of known_hosts.",
        );
    }
    Ok(u8::from(failed))
}

async fn check_all(
    hosts: Vec<String>,
    login: Option<&str>,
    credential: Option<&str>,
    config: &Config,
    inventory: LiveInventory,
    global: &Global,
) -> Result<u8, Failure> {
    let current = inventory.current();
    let hosts = if hosts.is_empty() { current.hosts().map(str::to_owned).collect() } else { hosts };
    let stop = CancellationToken::new();
    let pool = Pool::new(SshSettings::of(&config.ssh), inventory, stop.clone());
    // That of the agent whose jobs these would be, also while it runs: the warden is the same one.
    let owner: Option<OwnerId> = home::owner_of(&config.data_dir).and_then(|owner| owner.parse().ok());
    let checks = hosts.iter().map(|host| {
        let (pool, current, owner) = (&pool, &current, owner.as_ref());
        async move {
            let to = Destination { host, login, credential, ..Destination::default() };
            match current.route(&to) {
                Err(error) => ("no_route", None, error.to_string()),
                Ok(route) => match pool.try_out(&route, owner).await {
                    Ok(mode) => {
                        let (mode, told) = told(&mode);
                        let is_in = format!("{} is in, with credential `{}`", route.login, route.credential);
                        ("ok", Some(mode), format!("{is_in}; {told}"))
                    }
                    Err(error) => (error.class(), None, error.to_string()),
                },
            }
        }
    });
    let results: Vec<(&str, Option<&str>, String)> =
        futures_util::stream::iter(checks).buffered(AT_ONCE).collect().await;
    stop.cancel();
    let good = results.iter().all(|(result, ..)| *result == "ok");
    let document: Vec<Value> = hosts
        .iter()
        .zip(&results)
        .map(|(host, (result, mode, why))| json!({"host": host, "result": result, "mode": mode, "why": why}))
        .collect();
    global.output.print(&Value::Array(document), || {
        let row = |(host, (result, _, why)): (&String, &(&str, Option<&str>, String))| {
            vec![host.clone(), (*result).to_owned(), why.clone()]
        };
        show::table(&["HOST", "RESULT", "WHY"], hosts.iter().zip(&results).map(row).collect())
    })?;
    Ok(u8::from(!good))
}

/// How jobs would run, as a word for programs and in a sentence.
fn told(mode: &Mode) -> (&'static str, String) {
    match mode {
        Mode::Resident => ("resident", "jobs get a warden that stays".to_owned()),
        Mode::Plain(why) => ("plain", format!("jobs run in plain mode: {why}")),
        Mode::PlainForNow(why) => ("plain_for_now", format!("jobs run in plain mode until this has passed: {why}")),
        Mode::Untried => (
            "untried",
            "jobs can run there; whether a warden can stay is known when an agent has run with this data directory"
                .to_owned(),
        ),
    }
}
