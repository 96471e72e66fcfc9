//! The command line as a page for people, made from the commands themselves.

use super::Cli;
use super::exit::EXIT_CODES;
use clap::{Arg, ArgAction, Command, CommandFactory};
use std::fmt::Write;

/// docs/reference/cli.md.
pub fn reference() -> String {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut out = String::from(
        "# Commands\n\nEvery command with its arguments, from the code; [operations](../operations.md#command-line) tells how they are used. `jobcell man` has the same as manual pages.\n",
    );
    let mut global = String::new();
    for arg in command.get_arguments().filter(|arg| arg.is_global_set() && !arg.is_hide_set()) {
        line(&mut global, arg);
    }
    let _ = write!(out, "\n## Of all commands\n\n{global}");
    for one in shown(&command) {
        describe(&mut out, one, "jobcell");
    }
    out.push_str("\n## Exit codes\n\n| code | meaning |\n|---|---|\n");
    for (code, meaning) in EXIT_CODES {
        let _ = writeln!(out, "| {code} | {meaning} |");
    }
    out
}

/// Reads a command line, the program's name first, as the program does, and runs nothing: the documents are held to it. Errors: what the
/// program would say to it.
pub fn reads(words: &[String]) -> Result<(), clap::Error> {
    Cli::command().try_get_matches_from(words).map(drop)
}

fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|one| !one.is_hide_set())
}

fn describe(out: &mut String, command: &Command, above: &str) {
    let name = format!("{above} {}", command.get_name());
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let _ = write!(out, "\n## {name}\n\n{}\n", plain(&about));
    let mut lines = String::new();
    for arg in command.get_arguments().filter(|arg| !arg.is_global_set() && !arg.is_hide_set()) {
        line(&mut lines, arg);
    }
    if !lines.is_empty() {
        let _ = write!(out, "\n{lines}");
    }
    for one in shown(command) {
        describe(out, one, &name);
    }
}

/// One argument: how it is written, what it is for, and its default.
fn line(out: &mut String, arg: &Arg) {
    if matches!(arg.get_id().as_str(), "help" | "version") {
        return;
    }
    let value =
        || arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let many = if matches!(arg.get_action(), ArgAction::Append) { "…" } else { "" };
    let written = match (arg.get_short(), arg.get_long()) {
        (None, None) => format!("{}{many}", value()),
        (short, long) => {
            let short = short.map(|short| format!("-{short}"));
            let long = long.map(|long| format!("--{long}"));
            let both: Vec<String> = short.into_iter().chain(long).collect();
            let value = if takes { format!(" {}{many}", value()) } else { String::new() };
            format!("{}{value}", both.join(", "))
        }
    };
    let about = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut notes = String::new();
    let possible: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|it| !it.is_hide_set())
        .map(|it| format!("`{}`", it.get_name()))
        .collect();
    if takes && !possible.is_empty() {
        let _ = write!(notes, "; one of {}", possible.join(", "));
    }
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|it| format!("`{}`", it.to_string_lossy())).collect();
    if takes && !defaults.is_empty() {
        let _ = write!(notes, "; default {}", defaults.join(", "));
    }
    let _ = writeln!(out, "- `{written}`: {}{notes}", plain(&about));
}

/// On one line, and nothing of it is markup.
fn plain(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.replace('<', "&lt;").replace('[', "\\[").replace('*', "\\*")
}
