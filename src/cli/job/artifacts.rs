//! `jobcell job artifacts ls|get`: the files that a job has left. Their names come from the job: shown, they cannot steer a terminal; written,
//! they cannot lead out of the folder that was named.

use crate::cli::client::Client;
use crate::cli::{Failure, Global, Output, show};
use crate::job::is_artifact_path;
use cap_std::ambient_authority;
use cap_std::fs::{Dir, OpenOptions};
use clap::Subcommand;
use futures_util::StreamExt;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ArtifactsCommand {
    /// List them
    Ls {
        /// The job's id
        id: String,
    },
    /// Fetch them: all, or the one that is named
    Get {
        /// The job's id
        id: String,
        /// The file's path, as the list has it; without one, all of them
        path: Option<String>,
        /// A folder, which is made; a single file may go to standard output with `-`
        #[arg(long, default_value = ".", value_name = "FOLDER")]
        to: PathBuf,
        /// Write over files that are there
        #[arg(long)]
        force: bool,
    },
}

pub(super) async fn run(command: ArtifactsCommand, global: &Global) -> Result<u8, Failure> {
    let client = Client::new(global)?;
    match command {
        ArtifactsCommand::Ls { id } => {
            let list = json!({ "artifacts": all(&client, &id).await? });
            global.output.print(&list, || table(&list))?;
        }
        ArtifactsCommand::Get { id, path, to, force } => get(&client, &id, path, &to, force, global).await?,
    }
    Ok(0)
}

fn table(list: &Value) -> String {
    let rows = list["artifacts"].as_array().into_iter().flatten().map(|file| {
        let text = |key: &str| file[key].as_str().unwrap_or_default().to_owned();
        let digest: String = text("digest").chars().take(19).collect();
        vec![file["size"].to_string(), digest, text("path")]
    });
    show::table(&["BYTES", "DIGEST", "PATH"], rows.collect())
}

/// All pages of the list.
async fn all(client: &Client, id: &str) -> Result<Vec<Value>, Failure> {
    let (mut all, mut after) = (Vec::new(), None::<String>);
    loop {
        let mut page = client.artifacts(id, after.as_deref()).await?;
        if let Value::Array(files) = page["artifacts"].take() {
            all.extend(files);
        }
        match page["next"].as_str() {
            Some(next) if after.as_deref() != Some(next) => after = Some(next.to_owned()),
            _ => return Ok(all),
        }
    }
}

async fn get(
    client: &Client,
    id: &str,
    path: Option<String>,
    out: &Path,
    force: bool,
    global: &Global,
) -> Result<(), Failure> {
    let mut files = all(client, id).await?;
    if let Some(path) = &path {
        files.retain(|file| file["path"] == **path);
        if files.is_empty() {
            let shown = show::printable(path);
            return Err(Failure::new(format!(
                "the job has kept no file `{shown}`; `jobcell job artifacts ls {id}` lists them"
            )));
        }
    }
    if out == Path::new("-") {
        let [file] = files.as_slice() else {
            return Err(Failure::usage("--to -: name one file; several do not go to one output"));
        };
        return fetch(client, id, file, &mut std::io::stdout().lock()).await;
    }
    let unusable = |error: std::io::Error| Failure::new(format!("{}: {error}", out.display()));
    std::fs::create_dir_all(out).map_err(unusable)?;
    let folder = Dir::open_ambient_dir(out, ambient_authority()).map_err(unusable)?;
    for file in &files {
        let path = file["path"].as_str().filter(|path| is_artifact_path(path));
        let Some(path) = path else {
            let shown = show::printable(&file["path"].to_string());
            return Err(Failure::new(format!(
                "the server names the file {shown}, which is no path; nothing more is fetched"
            )));
        };
        let told = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Failure::usage(format!("{} is there already; --force writes over it", show::printable(path)))
            }
            _ => Failure::new(format!("{}: {error}", show::printable(path))),
        };
        if let Some(parent) = Path::new(path).parent().filter(|parent| !parent.as_os_str().is_empty()) {
            folder.create_dir_all(parent).map_err(told)?;
        }
        if !force && folder.symlink_metadata(path).is_ok() {
            return Err(told(std::io::ErrorKind::AlreadyExists.into()));
        }
        // Under another name until it is whole: half a file looks like a whole one.
        let half = Path::new(path).with_file_name(format!(".jobcell-{}", std::process::id()));
        let _ = folder.remove_file(&half);
        let mut to = folder.open_with(&half, OpenOptions::new().write(true).create_new(true)).map_err(told)?;
        if let Err(failure) = fetch(client, id, file, &mut to).await {
            let _ = folder.remove_file(&half);
            return Err(failure);
        }
        // A link that lies there is replaced, not followed.
        folder.rename(&half, &folder, path).map_err(told)?;
        global.note(&show::printable(path));
    }
    if global.output != Output::Table {
        global.output.print(&json!({ "artifacts": files }), String::new)?;
    }
    Ok(())
}

/// Fetches a file and compares it with its digest.
async fn fetch(client: &Client, id: &str, file: &Value, to: &mut impl Write) -> Result<(), Failure> {
    let path = file["path"].as_str().unwrap_or_default();
    let failed = |reason: String| Failure::new(format!("{}: {reason}", show::printable(path)));
    let mut hash = Sha256::new();
    let mut pieces = std::pin::pin!(client.artifact(id, path).await?);
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| failed(format!("it was cut off: {error}")))?;
        hash.update(&piece);
        to.write_all(&piece).map_err(|error| failed(error.to_string()))?;
    }
    to.flush().map_err(|error| failed(error.to_string()))?;
    let got: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    match file["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:")) {
        Some(wanted) if wanted == got => Ok(()),
        _ => Err(failed("what came is not what the list says: its digest is another one".to_owned())),
    }
}
