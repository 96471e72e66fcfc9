//! A tar, header by header. The fields are read by the `tar` crate; the walk is our own, since that crate's holds as much of a long
//! name in memory as the archive says.

use super::packed::Source;
use super::{Refusal, Sink, Tree, Unread};
use std::io::Read;
use tar::{EntryType, Header};

const BLOCK: usize = 512;
const PIECE: usize = 64 * 1024;
/// Names that are written beside headers, with their padding.
const MOST_LONG: u64 = 16 * 1024;
/// Headers for each entry that there may be: its own, and what is written beside it.
const HEADERS_EACH: u64 = 4;

/// What was written beside the next header.
#[derive(Default)]
struct Beside {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
}

pub(super) fn read<R: Read>(
    source: &mut Source<R>,
    prefix: &str,
    tree: &mut Tree,
    sink: &mut impl Sink,
) -> Result<(), Unread> {
    let mut headers = tree.bounds().entries.saturating_mul(HEADERS_EACH);
    let mut beside = Beside::default();
    let mut block = [0; BLOCK];
    loop {
        match fill(source, &mut block)? {
            BLOCK => {}
            0 => return Err(Refusal::whole("cut_off", "the archive is cut off: its end is missing").into()),
            _ => return Err(Refusal::whole("cut_off", "the archive ends in the middle of a header").into()),
        }
        if block == [0; BLOCK] {
            return end(source);
        }
        headers =
            headers.checked_sub(1).ok_or_else(|| Refusal::whole("too_many", "the archive has too many headers"))?;
        let header = Header::from_byte_slice(&block);
        let size = checked(header)?;
        match header.entry_type() {
            EntryType::GNULongName => beside.path = Some(name(long(source, size)?)),
            EntryType::GNULongLink => beside.target = Some(name(long(source, size)?)),
            EntryType::XHeader => extensions(&long(source, size)?, &mut beside)?,
            // What holds for all entries: comments, as git writes them. Anything that changes entries is refused.
            EntryType::XGlobalHeader => {
                let mut global = Beside::default();
                extensions(&long(source, size)?, &mut global)?;
                if global.path.is_some() || global.target.is_some() || global.size.is_some() {
                    return Err(
                        Refusal::whole("bad_header", "a header for all entries gives them one name or size").into()
                    );
                }
            }
            kind => entry(source, header, kind, size, std::mem::take(&mut beside), (prefix, tree, sink))?,
        }
    }
}

/// The size that a header names, when its checksum is right.
fn checked(header: &Header) -> Result<u64, Refusal> {
    let bad = |what: &str| Refusal::whole("bad_header", format!("the archive is damaged, or is no tar: {what}"));
    let bytes = header.as_bytes();
    let sum = bytes
        .iter()
        .enumerate()
        .map(|(at, byte)| u32::from(if (148..156).contains(&at) { b' ' } else { *byte }))
        .sum::<u32>();
    if header.cksum().ok() != Some(sum) {
        return Err(bad("a header does not match its checksum"));
    }
    header.entry_size().map_err(|_| bad("a header names no size"))
}

fn entry<R: Read>(
    source: &mut Source<R>,
    header: &Header,
    kind: EntryType,
    size: u64,
    beside: Beside,
    (prefix, tree, sink): (&str, &mut Tree, &mut impl Sink),
) -> Result<(), Unread> {
    let path = beside.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let path = match String::from_utf8(path) {
        Ok(path) => path,
        Err(error) => {
            let shown = String::from_utf8_lossy(error.as_bytes()).into_owned();
            return Err(Refusal::of(&shown, "not_utf8", "is a name that is not UTF-8").into());
        }
    };
    let refuse = |code, reason: &str| Err(Refusal::of(&path, code, reason).into());
    let size = beside.size.unwrap_or(size);
    let Ok(mode) = header.mode() else { return refuse("bad_header", "has a mode that is no number") };
    // An absolute path keeps its slash, and so its refusal; the rest of a path is as it was written.
    let plain = path.strip_prefix("./").unwrap_or(&path);
    let (plain, slash) = plain.strip_suffix('/').map_or((plain, false), |plain| (plain, true));
    let is_folder = kind == EntryType::Directory || (slash && matches!(kind, EntryType::Regular));
    match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::Directory | EntryType::Symlink => {}
        EntryType::Link => return refuse("hardlink", "is a hard link: pack with --hard-dereference"),
        EntryType::Char | EntryType::Block => return refuse("device", "is a device"),
        EntryType::Fifo => return refuse("fifo", "is a FIFO"),
        EntryType::GNUSparse => return refuse("sparse", "is stored with holes: pack without --sparse"),
        _ => return refuse("unknown_type", "is of a type that is not known"),
    }
    if mode & 0o7000 != 0 && kind != EntryType::Symlink {
        return refuse("setuid", "has a setuid, setgid or sticky bit");
    }
    if size > 0 && (is_folder || kind == EntryType::Symlink) {
        return refuse("bad_header", "has a content, and is no file");
    }
    // The workspace, or the archive's folder, itself.
    if is_folder && matches!(plain, "" | ".") && !path.starts_with('/') {
        return Ok(());
    }
    if slash && !is_folder {
        return refuse("odd_path", "ends in a slash, and is no folder");
    }
    // The name itself comes first: what is wrong with it does not depend on where it goes.
    if let Some((code, reason)) =
        crate::job::input_path_fault(plain).filter(|(code, _)| prefix.is_empty() || *code != "own_name")
    {
        return refuse(code, &reason);
    }
    let place = format!("{prefix}{plain}");
    if is_folder {
        return tree.folder(&place, sink);
    }
    if kind == EntryType::Symlink {
        let target = beside.target.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        let Ok(target) = String::from_utf8(target) else {
            return refuse("not_utf8", "is a link to a name that is not UTF-8");
        };
        return tree.link(&place, &target, sink);
    }
    tree.file(&place, mode & 0o100 != 0, size, sink)?;
    let mut buffer = vec![0; PIECE.min(usize::try_from(size).unwrap_or(PIECE)).max(1)];
    let mut left = size;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIECE).min(buffer.len());
        let count = source.read(&mut buffer[..most])?;
        if count == 0 {
            return refuse("cut_off", "is cut off: the archive ends before it");
        }
        sink.data(&buffer[..count])?;
        left -= count as u64;
    }
    padding(source, size)
}

/// Reads until `to` is full or the source is at its end.
fn fill<R: Read>(source: &mut Source<R>, to: &mut [u8]) -> Result<usize, Unread> {
    let mut have = 0;
    while have < to.len() {
        match source.read(&mut to[have..])? {
            0 => break,
            count => have += count,
        }
    }
    Ok(have)
}

fn padding<R: Read>(source: &mut Source<R>, size: u64) -> Result<(), Unread> {
    let mut rest = [0; BLOCK];
    let rest = &mut rest[..(size.wrapping_neg() % BLOCK as u64) as usize];
    if fill(source, rest)? < rest.len() {
        return Err(Refusal::whole("cut_off", "the archive ends in the middle of an entry").into());
    }
    Ok(())
}

/// The content of a header that holds a name or the like.
fn long<R: Read>(source: &mut Source<R>, size: u64) -> Result<Vec<u8>, Unread> {
    if size > MOST_LONG {
        return Err(Refusal::whole(
            "long_path",
            format!("a name, or what is written beside one, has more than {MOST_LONG} bytes"),
        )
        .into());
    }
    let mut bytes = vec![0; size as usize];
    if fill(source, &mut bytes)? < bytes.len() {
        return Err(Refusal::whole("cut_off", "the archive ends in the middle of a name").into());
    }
    padding(source, size)?;
    Ok(bytes)
}

/// GNU tar ends a long name with a zero byte.
fn name(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

/// Lines of `LENGTH KEY=VALUE`, where the length counts the whole line.
fn extensions(mut bytes: &[u8], beside: &mut Beside) -> Result<(), Refusal> {
    let bad = || Refusal::whole("bad_header", "the archive is damaged: what is written beside a header cannot be read");
    while !bytes.is_empty() {
        let digits = bytes.iter().take(8).position(|byte| *byte == b' ').ok_or_else(bad)?;
        let length: usize =
            std::str::from_utf8(&bytes[..digits]).ok().and_then(|text| text.parse().ok()).ok_or_else(bad)?;
        let (line, rest) = bytes.split_at_checked(length).ok_or_else(bad)?;
        let line = line.get(digits + 1..).and_then(|line| line.strip_suffix(b"\n")).ok_or_else(bad)?;
        let equals = line.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
        let (key, value) = (&line[..equals], &line[equals + 1..]);
        match key {
            b"path" => beside.path = Some(value.to_vec()),
            b"linkpath" => beside.target = Some(value.to_vec()),
            b"size" => {
                let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                beside.size = Some(size.ok_or_else(bad)?);
            }
            sparse if sparse.starts_with(b"GNU.sparse.") => {
                return Err(Refusal::whole("sparse", "a file is stored with holes: pack without --sparse"));
            }
            _ => {}
        }
        bytes = rest;
    }
    Ok(())
}

/// Behind the end there is padding, and nothing else.
fn end<R: Read>(source: &mut Source<R>) -> Result<(), Unread> {
    let mut buffer = vec![0; PIECE];
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(()),
            count if buffer[..count].iter().all(|byte| *byte == 0) => {}
            _ => return Err(Refusal::whole("behind_end", "something follows the end of the archive").into()),
        }
    }
}
