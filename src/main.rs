//! The `jobcell` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    jobcell::cli::run()
}
