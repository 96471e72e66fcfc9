//! `jobcell man` and `jobcell completions`: both are made from the commands themselves, so they know every flag.

use super::exit::EXIT_CODES;
use super::{Cli, Failure, show};
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use std::path::Path;

/// Prints what makes `shell` complete this program's commands and flags.
pub(super) fn completions(shell: Shell) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "jobcell", &mut script);
    show::raw(&script);
    0
}

/// Prints the main page, or writes all pages into `dir`, which is made if it is not there.
pub(super) fn pages(dir: Option<&Path>) -> Result<u8, Failure> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let Some(dir) = dir else {
        show::raw(&page(&command));
        return Ok(0);
    };
    let failed = |path: &Path, error: &std::io::Error| Failure::new(format!("{}: {error}", path.display()));
    std::fs::create_dir_all(dir).map_err(|error| failed(dir, &error))?;
    let mut left = vec![command];
    while let Some(command) = left.pop() {
        let file = dir.join(Man::new(command.clone()).get_filename());
        std::fs::write(&file, page(&command)).map_err(|error| failed(&file, &error))?;
        left.extend(command.get_subcommands().filter(|one| !one.is_hide_set()).cloned());
    }
    Ok(0)
}

/// The page of one command; the exit codes are on the main one.
fn page(command: &clap::Command) -> Vec<u8> {
    let mut text = Vec::new();
    // Writing to memory does not fail.
    let _ = Man::new(command.clone()).manual("jobcell").render(&mut text);
    if command.get_name() == "jobcell" {
        let mut roff = Roff::new();
        roff.control("SH", ["EXIT STATUS"]);
        for (code, meaning) in EXIT_CODES {
            roff.control("TP", []).text([bold(code)]).text([roman(meaning)]);
        }
        let _ = roff.to_writer(&mut text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(command: &clap::Command) -> String {
        String::from_utf8(page(command)).expect("UTF-8")
    }

    #[test]
    fn the_main_page_has_every_command_and_every_exit_code() {
        let page = text(&Cli::command());
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            assert!(page.contains(&format!("jobcell\\-{}(1)", name.replace('-', "\\-"))), "{name}: {page}");
        }
        let (_, codes) = page.split_once("EXIT STATUS").expect("the section");
        assert_eq!(codes.matches(".TP").count(), EXIT_CODES.len());
        assert!(codes.contains("\\fB124\\fR\nthe job ran out of its time"), "{codes}");
    }

    #[test]
    fn there_is_a_page_for_each_command() {
        let dir = tempfile::tempdir().expect("a folder");
        let pages = dir.path().join("man1");
        super::pages(Some(&pages)).expect("writes");
        for name in ["jobcell.1", "jobcell-job.1", "jobcell-job-submit.1", "jobcell-config-show.1"] {
            let page = std::fs::read_to_string(pages.join(name)).expect("is there");
            assert_eq!(page.contains("EXIT STATUS"), name == "jobcell.1", "{name}");
        }
    }
}
