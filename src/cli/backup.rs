//! `jobcell backup`: copies of the data directory, made while it is in use, looked at, and put back.

use super::home::{Home, owner_of};
use super::{Failure, Global, QUIET, settings};
use crate::backup::{self, BackupError, Verified};
use crate::job::{ByteSize, UnixMillis};
use crate::supervise::blocking;
use clap::Subcommand;
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(super) enum BackupCommand {
    /// Copy queue, output and contents of the data directory into a new folder; also while the server runs
    Create {
        /// The folder; it must not be there, or be empty
        dir: PathBuf,
    },
    /// Read a backup whole and say what is wrong with it; exits with 1 when something is
    Verify {
        /// The backup's folder
        dir: PathBuf,
    },
    /// Put a backup into the data directory, which must not be there, or be empty
    Restore {
        /// The backup's folder
        dir: PathBuf,
    },
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        Self::new(error.to_string())
    }
}

pub(super) async fn run(command: BackupCommand, global: &Global) -> Result<u8, Failure> {
    match command {
        BackupCommand::Create { dir } => {
            let data = settings(global, &[], QUIET)?.data_dir;
            if owner_of(&data).is_none() {
                let shown = data.display();
                return Err(Failure::unavailable(format!(
                    "{shown} is no data directory; name another with --data-dir"
                )));
            }
            let to = dir.clone();
            let about = blocking(move || backup::create(&data, &to, UnixMillis::now())).await?;
            let sentence = format!(
                "{}: {} files, {}; {} jobs waited, {} were held, {} had ended",
                dir.display(),
                about.files,
                ByteSize::new(about.bytes),
                about.queued,
                about.held,
                about.ended
            );
            global.output.print(&json!(about), || sentence)?;
            global.note("keys that seal secrets (secrets.key) are not in it: keep a copy of them apart from it");
            Ok(0)
        }
        BackupCommand::Verify { dir } => {
            let from = dir.clone();
            let verified = blocking(move || backup::verify(&from)).await?;
            global.output.print(&json!(verified), || told(&verified))?;
            Ok(u8::from(!verified.problems.is_empty()))
        }
        BackupCommand::Restore { dir } => {
            let data = settings(global, &[], QUIET)?.data_dir;
            if owner_of(&data).is_some() {
                // Says so when a process holds it, too.
                drop(Home::take(&data, "stop it first; a backup is put back into an empty data directory")?);
            }
            let to = data.clone();
            let verified = blocking(move || backup::restore(&dir, &to)).await?;
            let about = &verified.about;
            let document = json!({"data_dir": data, "about": about, "missing_contents": verified.missing_contents});
            global.output.print(&document, || format!("{}: as it was at {}", data.display(), about.taken_at))?;
            global.note(&format!(
                "what happened after that is not in it: {} jobs that waited then wait again, also if they have run since; {} that agents held go \
                 on there, or are tried again when their leases are over; keys and quarantines are those of then: look at `jobcell keys list` and `jobcell agents list`",
                about.queued, about.held
            ));
            Ok(0)
        }
    }
}

fn told(verified: &Verified) -> String {
    let about = &verified.about;
    let mut out = format!(
        "taken at {} by jobcell {}: {} files, {}; {} jobs waited, {} were held, {} had ended",
        about.taken_at,
        about.version,
        about.files,
        ByteSize::new(about.bytes),
        about.queued,
        about.held,
        about.ended
    );
    if verified.missing_contents > 0 {
        out.push_str(&format!("\n{} contents were gone when it was made", verified.missing_contents));
    }
    if verified.problems.is_empty() {
        out.push_str("\nwhole");
    }
    for problem in &verified.problems {
        out.push_str(&format!("\nDAMAGED  {}", super::show::printable(problem)));
    }
    out
}
