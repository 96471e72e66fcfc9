//! `--file` and `--input`: local files and folders become inputs of a job.
//!
//! A folder is packed as a tar twice, once for its digest and once on its way to the server, so nothing of it is ever in a temporary
//! file; what the server has already is not sent. What is small goes in the spec itself.

use super::Failure;
use super::client::Client;
use crate::blobs::BlobStore;
use crate::job::{Digest, input_path_fault};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// A file up to this size goes in the spec, as long as all of them together are small.
const INLINE: u64 = 4096;
const INLINE_ALL: u64 = 128 * 1024;
/// Bytes of a piece on its way, and pieces that wait. Full: reading waits.
const PIECE: usize = 256 * 1024;
const WAITING: usize = 4;
/// Folders in folders that are packed.
const MOST_DEPTH: usize = 32;

/// What a job is given from here.
#[derive(Debug, Args, Default)]
pub(super) struct InputArgs {
    /// Give the job this file: PATH in its workspace, LOCAL here; may be given several times
    // Not by the names of the flags: a command may have a FILE of its own.
    #[arg(long = "file", value_name = "PATH=LOCAL")]
    given_files: Vec<String>,
    /// Give the job what is in this folder or archive (tar, or tar packed by zstd), at the top of its workspace or in the folder PATH; may be given several times
    #[arg(long = "input", value_name = "[PATH=]LOCAL")]
    given_inputs: Vec<String>,
}

/// What is to be given, and from where.
struct Given {
    path: String,
    source: Source,
}

#[derive(Clone)]
enum Source {
    File { local: PathBuf, bytes: u64, executable: bool },
    Archive(PathBuf),
    Folder(PathBuf),
}

/// Where contents go.
pub(super) enum Target<'a> {
    /// A server.
    Server(&'a Client),
    /// A store in this process.
    Here(&'a BlobStore),
}

impl InputArgs {
    /// Whether there is anything to give.
    pub(super) fn is_empty(&self) -> bool {
        self.given_files.is_empty() && self.given_inputs.is_empty()
    }

    /// Has the contents where they are needed, and the spec with its further inputs. Errors: a file that cannot be read, or that no job
    /// can be given; nothing was submitted.
    pub(super) async fn add_to(&self, mut spec: Value, target: &Target<'_>) -> Result<Value, Failure> {
        if self.is_empty() {
            return Ok(spec);
        }
        let mut inline = 0;
        let mut inputs = Vec::new();
        for given in self.read()? {
            inputs.push(given.input(&mut inline, target).await?);
        }
        let Some(map) = spec.as_object_mut() else {
            return Err(Failure::usage("the spec is no map, so --file and --input have no place in it"));
        };
        let all = map.entry("inputs").or_insert_with(|| json!([]));
        let Some(all) = all.as_array_mut() else { return Err(Failure::usage("inputs: is no list in the spec")) };
        all.extend(inputs);
        Ok(spec)
    }

    fn read(&self) -> Result<Vec<Given>, Failure> {
        let mut all = Vec::new();
        for text in &self.given_files {
            let Some((path, local)) = text.split_once('=') else {
                return Err(Failure::usage(format!("--file {text}: write PATH=LOCAL, such as data/in.txt=./in.txt")));
            };
            let local = PathBuf::from(local);
            let meta = look("--file", text, &local)?;
            if !meta.is_file() {
                let fix = if meta.is_dir() { "give a folder by --input" } else { "only files can be given" };
                return Err(Failure::usage(format!("--file {text}: {} is no file; {fix}", local.display())));
            }
            checked("--file", text, path)?;
            all.push(Given {
                path: path.to_owned(),
                source: Source::File { executable: is_program(&meta), bytes: meta.len(), local },
            });
        }
        for text in &self.given_inputs {
            let (path, local) = text.split_once('=').unwrap_or((".", text));
            let local = PathBuf::from(local);
            let meta = look("--input", text, &local)?;
            if path != "." {
                checked("--input", text, path)?;
            }
            let source = match meta.is_dir() {
                true => Source::Folder(local),
                false => {
                    begins_as_archive("--input", text, &local, &meta)?;
                    Source::Archive(local)
                }
            };
            all.push(Given { path: path.to_owned(), source });
        }
        Ok(all)
    }
}

fn checked(flag: &str, text: &str, path: &str) -> Result<(), Failure> {
    match input_path_fault(path) {
        None => Ok(()),
        Some((_, fault)) => Err(Failure::usage(format!("{flag} {text}: the path in the workspace {fault}"))),
    }
}

fn look(flag: &str, text: &str, local: &Path) -> Result<Metadata, Failure> {
    std::fs::metadata(local).map_err(|error| Failure::usage(format!("{flag} {text}: {}: {error}", local.display())))
}

/// Whether a file may be an archive; what else is wrong with one, the server says. Errors: it is none, with how it is given instead.
fn begins_as_archive(flag: &str, text: &str, local: &Path, meta: &Metadata) -> Result<(), Failure> {
    let wrong = |what: String| Failure::usage(format!("{flag} {text}: {} {what}", local.display()));
    if !meta.is_file() {
        return Err(wrong("is neither a folder nor a file".to_owned()));
    }
    let mut head = Vec::new();
    let read = File::open(local).and_then(|file| file.take(512).read_to_end(&mut head));
    read.map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let packing = [(&b"\x1f\x8b"[..], "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"PK\x03\x04", "zip")];
    if let Some((_, name)) = packing.iter().find(|(begin, _)| head.starts_with(begin)) {
        return Err(wrong(format!("is packed by {name}; give a plain tar, or one packed by zstd")));
    }
    if head.starts_with(b"\x28\xb5\x2f\xfd") || is_tar(&head) {
        return Ok(());
    }
    let name = local.file_name().unwrap_or_default().to_string_lossy();
    Err(wrong(format!("is no tar archive; give a file by `--file {name}={}`", local.display())))
}

/// Whether this is a header of a tar, or the end of an empty one: its sum is that of its bytes, with blanks where the sum stands.
fn is_tar(head: &[u8]) -> bool {
    let Some(said) = head.get(148..156).filter(|_| head.len() == 512) else { return false };
    let digits: Vec<u8> = said.iter().copied().filter(|byte| !matches!(byte, b' ' | 0)).collect();
    let said = std::str::from_utf8(&digits).ok().and_then(|digits| u64::from_str_radix(digits, 8).ok());
    let sum: u64 = head.iter().map(|byte| u64::from(*byte)).sum();
    let of_sum: u64 = head[148..156].iter().map(|byte| u64::from(*byte)).sum();
    sum == 0 || said == Some(sum - of_sum + 8 * u64::from(b' '))
}

fn is_program(meta: &Metadata) -> bool {
    meta.permissions().mode() & 0o100 != 0
}

impl Given {
    async fn input(self, inline: &mut u64, target: &Target<'_>) -> Result<Value, Failure> {
        let Self { path, source } = self;
        let mode = if matches!(source, Source::File { executable: true, .. }) { "0755" } else { "0644" };
        if let Source::File { local, bytes, .. } = &source
            && *bytes <= INLINE
            && *inline + bytes <= INLINE_ALL
        {
            let content =
                std::fs::read(local).map_err(|error| Failure::usage(format!("{}: {error}", local.display())))?;
            *inline += content.len() as u64;
            return Ok(match String::from_utf8(content) {
                Ok(text) => json!({ "path": path, "text": text, "mode": mode }),
                Err(bytes) => {
                    json!({ "path": path, "content_base64": STANDARD.encode(bytes.as_bytes()), "mode": mode })
                }
            });
        }
        let first = source.clone();
        let (digest, bytes) = crate::supervise::blocking(move || digest(&first)).await?;
        match target {
            Target::Server(client) => {
                if !client.has_blob(&digest).await? {
                    client.put_blob(&digest, bytes, pieces(source.clone())).await?;
                }
            }
            Target::Here(blobs) => {
                let stored = blobs.put(pieces(source.clone()), Some(digest), Some(bytes)).await;
                stored.map_err(|error| Failure::new(error.to_string()))?;
            }
        }
        Ok(match source {
            Source::File { .. } => json!({ "path": path, "blob": digest, "mode": mode }),
            Source::Archive(_) | Source::Folder(_) => json!({ "path": path, "blob": digest, "kind": "archive" }),
        })
    }
}

/// Takes what is written: a digest, or a way to somebody.
struct Hash {
    hash: Sha256,
    bytes: u64,
}

impl Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn digest(source: &Source) -> Result<(Digest, u64), Failure> {
    let mut hash = Hash { hash: Sha256::new(), bytes: 0 };
    source.write_to(&mut hash).map_err(|error| Failure::usage(error.to_string()))?;
    Ok((Digest::new(hash.hash.finalize().into()), hash.bytes))
}

struct Way {
    held: Vec<u8>,
    to: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Way {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.held.extend_from_slice(bytes);
        if self.held.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.held);
        self.to.blocking_send(Ok(piece.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// The content as it is read.
fn pieces(source: Source) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (to, from) = mpsc::channel(WAITING);
    drop(tokio::task::spawn_blocking(move || {
        let mut way = Way { held: Vec::new(), to };
        let written = source.write_to(&mut way).and_then(|()| way.flush());
        if let Err(error) = written {
            // Nobody there: whoever wanted it has its own error.
            let _ = way.to.blocking_send(Err(error));
        }
    }));
    futures_util::stream::unfold(from, |mut from| async { Some((from.recv().await?, from)) }).boxed()
}

impl Source {
    fn write_to(&self, to: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::File { local, .. } | Self::Archive(local) => {
                let copied = File::open(local).and_then(|mut file| io::copy(&mut file, to));
                copied.map(drop).map_err(|error| about(local, &error))
            }
            Self::Folder(root) => {
                let mut tar = tar::Builder::new(to);
                pack(&mut tar, root, &mut Vec::new())?;
                tar.into_inner().map(drop)
            }
        }
    }
}

fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Packs what is in a folder, in the order of its names: equal folders make equal archives, whoever packs them and when.
fn pack(tar: &mut tar::Builder<&mut dyn Write>, folder: &Path, above: &mut Vec<String>) -> io::Result<()> {
    let wrong = |path: &Path, what: &str| io::Error::other(format!("{}: {what}", path.display()));
    if above.len() > MOST_DEPTH {
        return Err(wrong(folder, "is too many folders deep"));
    }
    let mut entries = std::fs::read_dir(folder)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(|error| about(folder, &error))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let local = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            return Err(wrong(&local, "has a name that is not UTF-8, which no job can be given"));
        };
        above.push(name);
        let path = above.join("/");
        if let Some((_, fault)) = input_path_fault(&path) {
            return Err(wrong(&local, &fault));
        }
        let meta = std::fs::symlink_metadata(&local).map_err(|error| about(&local, &error))?;
        let mut header = tar::Header::new_gnu();
        header.set_mode(if meta.is_dir() || is_program(&meta) { 0o755 } else { 0o644 });
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        if meta.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, format!("{path}/"), io::empty())?;
            pack(tar, &local, above)?;
        } else if meta.is_symlink() {
            let target = std::fs::read_link(&local).map_err(|error| about(&local, &error))?;
            if leaves(&target, above.len() - 1) {
                return Err(wrong(&local, "is a link that leads, or may lead, out of the folder"));
            }
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, &path, &target)?;
        } else if meta.is_file() {
            header.set_size(meta.len());
            let file = File::open(&local).map_err(|error| about(&local, &error))?;
            let mut exact = Exact { file, left: meta.len() };
            tar.append_data(&mut header, &path, &mut exact).map_err(|error| about(&local, &error))?;
        } else {
            return Err(wrong(&local, "is neither a file, nor a folder, nor a link"));
        }
        above.pop();
    }
    Ok(())
}

/// The same that the reader of archives allows: up first, if at all, and never out.
fn leaves(target: &Path, mut above: usize) -> bool {
    use std::path::Component;
    let mut down = false;
    for part in target.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(_) => down = true,
            Component::ParentDir if !down && above > 0 => above -= 1,
            _ => return true,
        }
    }
    false
}

/// As many bytes as the file had when it was looked at: an archive with another number would be broken.
struct Exact {
    file: File,
    left: u64,
}

impl Read for Exact {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(to.len());
        let count = self.file.read(&mut to[..most])?;
        if count == 0 && most > 0 {
            return Err(io::Error::other("became shorter while it was read"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
#[path = "inputs_tests.rs"]
mod tests;
