//! `jobcell config …`: are the settings good, what holds and why, and which there are.

use super::{Failure, Global, Output, load_input, node, show};
use crate::config::{self, HostFacts, Loaded};
use crate::job::Problems;
use clap::Subcommand;
use serde_json::{Value, json};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Say whether the settings are good, or everything that is wrong with them
    Check,
    /// Show the settings that hold, from all layers together
    Show {
        /// With where each value came from
        #[arg(long)]
        origin: bool,
    },
    /// Print a JSON Schema of the settings file, for editors
    Schema,
}

pub(super) fn run(command: &ConfigCommand, global: &Global) -> Result<u8, Failure> {
    match command {
        ConfigCommand::Check => check(global),
        ConfigCommand::Show { origin } => {
            let loaded = load(global)?.map_err(|problems| super::bad_settings(&problems))?;
            if *origin { show_origins(&loaded, global.output) } else { show_values(&loaded, global.output) }
        }
        ConfigCommand::Schema => {
            // A schema is JSON unless it is asked for otherwise.
            let output = if global.output == Output::Table { Output::Json } else { global.output };
            output.print(&config::schema(&HostFacts::read()), String::new)?;
            Ok(0)
        }
    }
}

/// The settings as `up` would have them, or what would keep it from starting.
fn load(global: &Global) -> Result<Result<Loaded, Problems>, Failure> {
    let loaded = config::inspect(&load_input(global, &[])?);
    // The profile's content is not part of the settings, but without it there are no cells.
    Ok(loaded
        .and_then(|loaded| match node::seccomp(&loaded.config) {
            Ok(_) => Ok(loaded),
            Err(failure) => {
                let reason = failure.to_string();
                let reason = reason.strip_prefix("docker.seccomp_profile: ").unwrap_or(&reason);
                Err(Problems::one(
                    "docker.seccomp_profile",
                    reason,
                    "correct it, or leave it empty for the built-in one",
                ))
            }
        })
        .and_then(|loaded| match node::inventory(&loaded.config) {
            Ok(None) if !loaded.config.docker.enabled => Err(Problems::one(
                "docker.enabled",
                "is false, and there is no inventory: such an agent runs no jobs at all",
                "set ssh.inventory, or leave docker.enabled out",
            )),
            Ok(_) => Ok(loaded),
            Err(failure) => {
                let reason = failure.to_string();
                let reason = reason.strip_prefix("ssh.inventory: ").unwrap_or(&reason);
                Err(Problems::one("ssh.inventory", reason, "correct it, or leave it empty for no jobs on other hosts"))
            }
        })
        .and_then(|loaded| match node::policy(&loaded.config) {
            Ok(_) => Ok(loaded),
            Err(failure) => {
                let reason = failure.to_string();
                let reason = reason.strip_prefix("policy.file: ").unwrap_or(&reason);
                Err(Problems::one("policy.file", reason, "correct it, or leave it empty for no policy"))
            }
        }))
}

fn check(global: &Global) -> Result<u8, Failure> {
    match load(global)? {
        Ok(loaded) => {
            let files: Vec<String> = loaded.files.iter().map(|file| file.display().to_string()).collect();
            global.output.print(&json!({ "ok": true, "files": files, "problems": [] }), || match files[..] {
                [] => "the settings are good; no file was read".to_owned(),
                _ => show::printable(&format!("the settings are good; read: {}", files.join(", "))),
            })?;
            Ok(0)
        }
        Err(problems) => {
            if global.output != Output::Table {
                let list: Vec<_> = problems.iter().collect();
                global.output.print(&json!({ "ok": false, "problems": list }), String::new)?;
            }
            Err(super::bad_settings(&problems))
        }
    }
}

fn show_values(loaded: &Loaded, output: Output) -> Result<u8, Failure> {
    // Settings are written in YAML, so people read them in it too.
    let output = if output == Output::Table { Output::Yaml } else { output };
    output.print(&loaded.document, String::new)?;
    Ok(0)
}

fn show_origins(loaded: &Loaded, output: Output) -> Result<u8, Failure> {
    output.print(&json!(loaded.settings), || {
        let row = |one: &config::Setting| {
            let value = match &one.value {
                Value::String(text) if !text.is_empty() => text.clone(),
                other => other.to_string(),
            };
            vec![one.key.clone(), value, one.from.clone()]
        };
        show::table(&["KEY", "VALUE", "FROM"], loaded.settings.iter().map(row).collect())
    })?;
    Ok(0)
}
