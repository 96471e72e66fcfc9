//! What a job gives back beside its output: part 2 of a spec and of an exit, and the pages and pieces in which files are fetched.

use super::fields::{BadPayload, Reader, Writer};

/// In the workspace: what a job writes its outputs to. Names that begin so are jobcell's own and never collected.
pub const OWN_PREFIX: &str = ".jobcell-";
/// Key and value lines, read when the job is over.
pub const OUTPUT_FILE: &str = ".jobcell-output";
/// A pipe for lines about how far the job is. Not in the workspace, where who reads every file would wait at it for ever.
pub const PROGRESS_PIPE: &str = "/dev/shm/.jobcell-progress";
/// Most of the outputs' file that is read: it travels in one frame with the end.
pub const MOST_OUTPUTS: usize = 32 * 1024;
/// Most step markers of a job.
pub const MOST_STEPS: usize = 128;
/// Most bytes of a step's name.
pub const MOST_STEP_NAME: usize = 64;
/// Most bytes of a message about progress.
pub const MOST_PROGRESS_TEXT: usize = 200;
/// Most rules: each has a bit.
pub const MOST_RULES: usize = 64;
/// Most bytes of a path that is collected.
pub const MOST_PATH: usize = 4095;
/// Most bytes of one piece of a file.
pub const MOST_PIECE: usize = 60 * 1024;
/// Most requests for parts of files that wait at a warden.
pub const MOST_READS: usize = 64;

/// What is to be kept of a job's results.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collect {
    /// The folder beneath which everything lies.
    pub root: String,
    /// Patterns of the files to be kept; see [`super::matches`].
    pub rules: Vec<String>,
}

impl Collect {
    pub(super) fn write(&self, w: Writer) -> Writer {
        w.text(&self.root).list(&self.rules, |w, rule| w.text(rule))
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, BadPayload> {
        let collect = Self { root: r.text()?, rules: r.list(|r| r.text())? };
        if collect.rules.len() > MOST_RULES { Err(BadPayload("there are too many rules")) } else { Ok(collect) }
    }
}

/// A part of a job that it names itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StepMark {
    /// Its name.
    pub name: String,
    /// Microseconds since 1970.
    pub began_us: u64,
    /// The same; 0 while it goes on.
    pub ended_us: u64,
}

/// How far a job says it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Advance {
    /// 0 to 100; more when it has not said.
    pub percent: u8,
    /// In its words.
    pub text: String,
    /// When it said so, microseconds since 1970; 0 when it has not.
    pub time_us: u64,
    /// Its steps, in the order of their begins.
    pub steps: Vec<StepMark>,
    /// Lines that were not understood, or for which there was no room.
    pub ignored: u64,
}

impl Advance {
    pub(super) fn write(&self, w: Writer) -> Writer {
        let w = w.u8(self.percent).text(&self.text).u64(self.time_us);
        w.list(&self.steps, |w, step| w.text(&step.name).u64(step.began_us).u64(step.ended_us)).u64(self.ignored)
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, BadPayload> {
        let advance = Self {
            percent: r.u8()?,
            text: r.text()?,
            time_us: r.u64()?,
            steps: r.list(|r| Ok(StepMark { name: r.text()?, began_us: r.u64()?, ended_us: r.u64()? }))?,
            ignored: r.u64()?,
        };
        let long = advance.steps.len() > MOST_STEPS
            || advance.text.len() > MOST_PROGRESS_TEXT
            || advance.steps.iter().any(|step| step.name.len() > MOST_STEP_NAME);
        if long { Err(BadPayload("there is more progress than there can be")) } else { Ok(advance) }
    }
}

/// What comes with the end of a job whose spec had a [`Collect`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Results {
    /// The outputs' file, or its first bytes.
    pub outputs: Vec<u8>,
    /// How long that file is; with more than [`MOST_OUTPUTS`] it is not whole.
    pub outputs_bytes: u64,
    /// Why it could not be read, as the kernel's error number; 0 when it was, or when there is none.
    pub outputs_error: i32,
    /// The last word.
    pub advance: Advance,
}

impl Results {
    pub(super) fn write(&self, w: Writer) -> Writer {
        self.advance.write(w.bytes(&self.outputs).u64(self.outputs_bytes).u32(self.outputs_error as u32))
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, BadPayload> {
        let results = Self {
            outputs: r.bytes()?.to_vec(),
            outputs_bytes: r.u64()?,
            outputs_error: r.i32()?,
            advance: Advance::read(r)?,
        };
        if results.outputs.len() > MOST_OUTPUTS { Err(BadPayload("there are too many outputs")) } else { Ok(results) }
    }
}

/// What was found under a name that a rule means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File,
    /// A symbolic link, which is never followed.
    Link,
    /// A pipe, a socket, a device.
    Other,
    /// It could not be looked at; `size` is the kernel's error number.
    Unreadable,
    /// A folder that lies too deep to be looked into, or under too long a path.
    TooDeep,
    /// Its path has a secret in it, which is masked: so it is not to be asked for.
    Secret,
}

impl EntryKind {
    const ALL: [Self; 6] = [Self::File, Self::Link, Self::Other, Self::Unreadable, Self::TooDeep, Self::Secret];
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Bytes.
    pub size: u64,
    /// Last change of its content, nanoseconds since 1970.
    pub mtime_ns: u64,
    /// Its number in its file system.
    pub inode: u64,
}

impl Stamp {
    fn write(self, w: Writer) -> Writer {
        w.u64(self.size).u64(self.mtime_ns).u64(self.inode)
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, BadPayload> {
        Ok(Self { size: r.u64()?, mtime_ns: r.u64()?, inode: r.u64()? })
    }
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Which rules mean it, a bit each.
    pub rules: u64,
    /// Permission bits.
    pub mode: u16,
    /// Its state when it was listed.
    pub stamp: Stamp,
    /// Beneath the root; bytes, as names are.
    pub path: Vec<u8>,
}

impl Entry {
    /// Bytes in a page.
    pub fn encoded_len(&self) -> usize {
        1 + 8 + 2 + 24 + 4 + self.path.len()
    }
}

/// A part of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// Number of its first entry, from 0.
    pub from: u64,
    /// In the order of the file system, which stays the same as nothing changes.
    pub entries: Vec<Entry>,
    /// There are no more.
    pub end: bool,
}

impl Page {
    pub(super) fn write(&self, w: Writer) -> Writer {
        let one = |w: Writer, entry: &Entry| {
            let w = w.u8(entry.kind as u8).u64(entry.rules).u8(entry.mode as u8).u8((entry.mode >> 8) as u8);
            entry.stamp.write(w).bytes(&entry.path)
        };
        w.u64(self.from).u8(u8::from(self.end)).list(&self.entries, one)
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, BadPayload> {
        let from = r.u64()?;
        let end = r.u8()? != 0;
        let entries = r.list(|r| {
            let kind = *EntryKind::ALL.get(r.u8()? as usize).ok_or(BadPayload("an unknown kind of entry"))?;
            let rules = r.u64()?;
            let mode = u16::from(r.u8()?) | u16::from(r.u8()?) << 8;
            Ok(Entry { kind, rules, mode, stamp: Stamp::read(r)?, path: r.bytes()?.to_vec() })
        })?;
        Ok(Self { from, entries, end })
    }
}

/// A part of a file, in answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Piece {
    /// The request's.
    pub number: u32,
    /// Where it is in the file.
    pub offset: u64,
    /// The kernel's error number; 0 for none. The last piece of its request then.
    pub error: i32,
    /// The last one of its request: all that was asked for came, or the file has no more.
    pub last: bool,
    /// The file's state after this was read.
    pub stamp: Stamp,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Piece {
    /// All but the bytes, which stand behind it and reach to the payload's end.
    pub fn head(&self) -> Vec<u8> {
        let w = Writer::default().u32(self.number).u64(self.offset).u32(self.error as u32).u8(u8::from(self.last));
        self.stamp.write(w).0
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, BadPayload> {
        let (number, offset, error) = (r.u32()?, r.u64()?, r.i32()?);
        let (last, stamp) = (r.u8()? != 0, Stamp::read(r)?);
        let bytes = r.take(r.0.len())?.to_vec();
        if bytes.len() > MOST_PIECE {
            return Err(BadPayload("a piece is too long"));
        }
        Ok(Self { number, offset, error, last, stamp, bytes })
    }
}
