//! The messages of both sides.

use super::cell::{Fact, Mismatch};
use super::egress::{EGRESS_DATA, Egress};
use super::fields::{BadPayload, Reader, Writer};
use super::frame::{Frame, encode};
use super::parts;
use super::results::{Advance, MOST_PATH, MOST_PIECE, Page, Piece, Results};
use crate::crc::crc32c;

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToWarden {
    /// Opens a session, with a higher epoch than any before.
    Attach {
        /// Oldest version the agent speaks.
        min_version: u8,
        /// Newest.
        max_version: u8,
        /// The attempt it is here for.
        attempt: String,
        /// Last output frame it has; 0 for none.
        stored: u64,
        /// Bytes of output that may be unacknowledged.
        window: u32,
    },
    /// A part of the spec: section 0 is the head, 1 the script, 2 the job's standard input.
    SpecChunk {
        /// Which.
        section: u8,
        /// Where it goes; chunks of a section come in order, a repeat is ignored.
        offset: u64,
        /// The part.
        bytes: Vec<u8>,
    },
    /// The spec is whole: length and checksum of each section. The job starts, once.
    Commit {
        /// By section.
        lengths: [u64; 3],
        /// By section, CRC-32C.
        sums: [u32; 3],
    },
    /// Everything up to this frame is stored.
    Ack {
        /// The frame.
        seq: u64,
    },
    /// Ends the job.
    Stop {
        /// 0: TERM, grace, KILL. 1: KILL now.
        level: u8,
        /// 1 cancel, 2 timeout, 3 silence, 4 drain, 5 lease, 6 forced; a higher one replaces a lower one. 7 and 8 are the
        /// warden's own: the tripwire, and too much output, which is only given while there is no other.
        reason: u8,
        /// Between TERM and KILL.
        grace_ms: u32,
    },
    /// Are you there?
    Ping {
        /// Comes back.
        nonce: u64,
    },
    /// The lease lasts this much longer from now.
    Lease {
        /// Milliseconds.
        remaining_ms: u64,
    },
    /// The end is known and stored: go.
    Close,
    /// What the job is given begins, from the first byte of its stream; what an earlier session has brought goes.
    Inputs {
        /// The folder that it goes to.
        root: String,
    },
    /// A part of that stream. Only the next one is taken.
    InputsPart {
        /// Where it is in the stream.
        offset: u64,
        /// The part.
        bytes: Vec<u8>,
    },
    /// What is there to be kept, from this entry on; answered by one page. Only after an end with [`Exit::results`], as the next one.
    List {
        /// Number of the first entry.
        from: u64,
    },
    /// A part of a file; answered by pieces. At most [`super::MOST_READS`] wait at a warden.
    Read {
        /// Comes back.
        number: u32,
        /// Where the part begins.
        offset: u64,
        /// Its length.
        len: u32,
        /// Beneath the root.
        path: Vec<u8>,
    },
    /// Of a stream of the cell's proxy. Only for a cell whose spec asked for one.
    Egress(Egress),
}

/// Kinds of [`ToWarden::Egress`] begin here.
const EGRESS_TO: u8 = 24;
/// Kinds of [`FromWarden::Egress`] begin here.
const EGRESS_FROM: u8 = 88;
/// Kinds in each direction.
const EGRESS_KINDS: u8 = 7;

impl ToWarden {
    /// The commit for these sections.
    pub fn commit(head: &[u8], script: &[u8], stdin: &[u8]) -> Self {
        let sections = [head, script, stdin];
        Self::Commit { lengths: sections.map(|section| section.len() as u64), sums: sections.map(crc32c) }
    }

    /// Appends the message as a frame.
    pub fn encode(&self, epoch: u32, out: &mut Vec<u8>) {
        let w = Writer::default();
        let (kind, w) = match self {
            Self::Attach { min_version, max_version, attempt, stored, window } => {
                (1, w.u8(*min_version).u8(*max_version).text(attempt).u64(*stored).u32(*window))
            }
            Self::SpecChunk { section, offset, bytes } => (2, w.u8(*section).u64(*offset).bytes(bytes)),
            Self::Commit { lengths, sums } => {
                let w = lengths.iter().fold(w, |w, length| w.u64(*length));
                (3, sums.iter().fold(w, |w, sum| w.u32(*sum)))
            }
            Self::Ack { seq } => (4, w.u64(*seq)),
            Self::Stop { level, reason, grace_ms } => (5, w.u8(*level).u8(*reason).u32(*grace_ms)),
            Self::Ping { nonce } => (6, w.u64(*nonce)),
            Self::Lease { remaining_ms } => (7, w.u64(*remaining_ms)),
            Self::Close => (8, w),
            Self::Inputs { root } => (9, w.text(root)),
            Self::InputsPart { offset, bytes } => (10, w.u64(*offset).bytes(bytes)),
            Self::List { from } => (16, w.u64(*from)),
            Self::Read { number, offset, len, path } => (17, w.u32(*number).u64(*offset).u32(*len).bytes(path)),
            Self::Egress(egress) => {
                let (number, w) = egress.write(w);
                (EGRESS_TO + number, w)
            }
        };
        encode(kind, 0, epoch, 0, &[&w.0], out);
    }

    /// Reads a frame.
    pub fn decode(frame: &Frame<'_>) -> Result<Self, BadPayload> {
        let mut r = Reader(frame.payload);
        let message = match frame.kind {
            1 => Self::Attach {
                min_version: r.u8()?,
                max_version: r.u8()?,
                attempt: r.text()?,
                stored: r.u64()?,
                window: r.u32()?,
            },
            2 => Self::SpecChunk { section: r.u8()?, offset: r.u64()?, bytes: r.bytes()?.to_vec() },
            3 => Self::Commit { lengths: [r.u64()?, r.u64()?, r.u64()?], sums: [r.u32()?, r.u32()?, r.u32()?] },
            4 => Self::Ack { seq: r.u64()? },
            5 => Self::Stop { level: r.u8()?, reason: r.u8()?, grace_ms: r.u32()? },
            6 => Self::Ping { nonce: r.u64()? },
            7 => Self::Lease { remaining_ms: r.u64()? },
            8 => Self::Close,
            9 => Self::Inputs { root: r.text()? },
            10 => Self::InputsPart { offset: r.u64()?, bytes: r.bytes()?.to_vec() },
            16 => Self::List { from: r.u64()? },
            17 => {
                let (number, offset, len) = (r.u32()?, r.u64()?, r.u32()?);
                let path = r.bytes()?.to_vec();
                if path.len() > MOST_PATH {
                    return Err(BadPayload("a path is too long"));
                }
                Self::Read { number, offset, len, path }
            }
            kind if (EGRESS_TO..EGRESS_TO + EGRESS_KINDS).contains(&kind) => {
                Self::Egress(Egress::read(kind - EGRESS_TO, &mut r)?)
            }
            _ => return Err(BadPayload("an unknown kind")),
        };
        r.end()?;
        Ok(message)
    }
}

/// Where a warden stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WardenState {
    /// It has no spec.
    Waiting,
    /// The job runs.
    Running,
    /// The job has ended, or was refused.
    Ended,
}

/// How the main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// With an exit code.
    Exited,
    /// By a signal.
    Signaled,
    /// It never started; the code is the kernel's error number.
    StartFailed,
}

/// The end of a job, in the warden's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Number of the last output frame.
    pub last_seq: u64,
    /// How.
    pub kind: ExitKind,
    /// Exit code, signal or error number.
    pub code: i32,
    /// For a start that failed: `interpreter`, `workdir`, `script`, … For an end by the tripwire: the call, the number of its process
    /// and what that calls itself, with blanks between; empty when the kernel ended it and nobody saw the call.
    pub step: String,
    /// Why the warden ended it; 0 when it did not, 7 by the tripwire. Numbers as in [`ToWarden::Stop`].
    pub stop_reason: u8,
    /// Microseconds since 1970.
    pub started_us: u64,
    /// Microseconds since 1970.
    pub ended_us: u64,
    /// From start to end, milliseconds.
    pub wall_ms: u64,
    /// Processor time in user mode, microseconds.
    pub utime_us: u64,
    /// Processor time in the kernel, microseconds.
    pub stime_us: u64,
    /// Largest resident size of one process, bytes.
    pub max_rss_bytes: u64,
    /// Highest memory use of the cell, bytes; 0 where unknown.
    pub peak_memory_bytes: u64,
    /// Processes killed for memory.
    pub oom_kills: u64,
    /// Highest number of processes; 0 where unknown.
    pub peak_pids: u64,
    /// Bytes of standard output.
    pub stdout_bytes: u64,
    /// Bytes of standard error.
    pub stderr_bytes: u64,
    /// Processes ended after the main one.
    pub leftover: u32,
    /// How the command that runs after a stop ended; `None` when none ran.
    pub on_cancel: Option<CleanUp>,
    /// Limits that the job has met, each once.
    pub met: Vec<Met>,
    /// What it gives back; `None` when nothing was asked for, or nothing of it ran.
    pub results: Option<Results>,
}

/// A limit that a job has met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Met {
    /// Which: `cpu`, `memory`, `pids`, `disk`, `inodes`, `tmp`, `tmp_inodes`, `output`; a later version may know more.
    pub name: String,
    /// The limit as the cell has it, in its own unit.
    pub limit: u64,
    /// The highest use that was seen; 0 where unknown.
    pub peak: u64,
    /// How often it was in the way, as far as that is counted.
    pub times: u64,
}

/// How the command that runs after a stop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CleanUp {
    /// How.
    pub kind: ExitKind,
    /// Exit code, signal or error number.
    pub code: i32,
}

/// What the warden says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromWarden {
    /// The answer to an attach; the first frame of its epoch.
    Hello {
        /// The version spoken.
        version: u8,
        /// Which binary.
        build: String,
        /// The attempt; empty before a spec.
        attempt: String,
        /// Where it stands.
        state: WardenState,
        /// Number of the next output frame.
        next_seq: u64,
        /// The isolation in force.
        receipt: Vec<Fact>,
    },
    /// The job was not started.
    Refused {
        /// What is weaker than asked for.
        mismatches: Vec<Mismatch>,
    },
    /// The job runs.
    Started {
        /// In the cell's own numbering.
        pid: u32,
        /// Microseconds since 1970.
        time_us: u64,
    },
    /// A piece of output; its number is the frame's.
    Output {
        /// 1 standard output, 2 standard error; 3 and 4 a gap in the one and the other: `bytes` is how many were dropped, in
        /// digits.
        stream: u8,
        /// When it was read, microseconds since 1970.
        time_us: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The job has ended and all its output was sent.
    Exit(Exit),
    /// The answer to a ping.
    Pong {
        /// The ping's.
        nonce: u64,
        /// 1 while the job waits because the ring is full.
        stalled: u8,
    },
    /// So much of the stream of inputs is in its place; more may come.
    InputsTaken {
        /// Bytes.
        offset: u64,
    },
    /// The warden met something it cannot go on with.
    Fault {
        /// What.
        text: String,
    },
    /// How far the job says it is; the whole of it, each time something has changed.
    Advance(Advance),
    /// The answer to a list.
    Page(Page),
    /// A part of a file.
    Piece(Piece),
    /// Of a stream of the cell's proxy.
    Egress(Egress),
}

/// Kind number of a piece of a file.
pub const KIND_PIECE: u8 = 82;

/// Kind number of an output frame, for those who take it apart themselves.
pub const KIND_OUTPUT: u8 = 67;

/// Takes an output payload apart without copying: stream, time, bytes.
pub fn output_parts(payload: &[u8]) -> Result<(u8, u64, &[u8]), BadPayload> {
    let mut r = Reader(payload);
    Ok((r.u8()?, r.u64()?, r.0))
}

impl FromWarden {
    /// Appends the message as a frame. `seq` is the number of an output frame, else 0.
    pub fn encode(&self, epoch: u32, seq: u64, out: &mut Vec<u8>) {
        let w = Writer::default();
        let (kind, w) = match self {
            Self::Hello { version, build, attempt, state, next_seq, receipt } => (
                64,
                w.u8(*version)
                    .text(build)
                    .text(attempt)
                    .u8(*state as u8)
                    .u64(*next_seq)
                    .list(receipt, |w, (key, value)| w.text(key).text(value)),
            ),
            Self::Refused { mismatches } => {
                (65, w.list(mismatches, |w, one| w.text(&one.key).text(&one.wanted).text(&one.got)))
            }
            Self::Started { pid, time_us } => (66, w.u32(*pid).u64(*time_us)),
            Self::Output { stream, time_us, bytes } => {
                let head = w.u8(*stream).u64(*time_us);
                return encode(KIND_OUTPUT, 0, epoch, seq, &[&head.0, bytes], out);
            }
            Self::Exit(exit) => (68, exit.write(w)),
            Self::Pong { nonce, stalled } => (69, w.u64(*nonce).u8(*stalled)),
            Self::Fault { text } => (70, w.text(text)),
            Self::InputsTaken { offset } => (72, w.u64(*offset)),
            Self::Advance(advance) => (80, advance.write(w)),
            Self::Page(page) => (81, page.write(w)),
            Self::Piece(piece) => {
                let bytes = &piece.bytes[..piece.bytes.len().min(MOST_PIECE)];
                return encode(KIND_PIECE, 0, epoch, seq, &[&piece.head(), bytes], out);
            }
            Self::Egress(egress) => {
                let (number, w) = egress.write(w);
                (EGRESS_FROM + number, w)
            }
        };
        encode(kind, 0, epoch, seq, &[&w.0], out);
    }

    /// Reads a frame.
    pub fn decode(frame: &Frame<'_>) -> Result<Self, BadPayload> {
        let mut r = Reader(frame.payload);
        let message = match frame.kind {
            64 => Self::Hello {
                version: r.u8()?,
                build: r.text()?,
                attempt: r.text()?,
                state: match r.u8()? {
                    0 => WardenState::Waiting,
                    1 => WardenState::Running,
                    2 => WardenState::Ended,
                    _ => return Err(BadPayload("an unknown state")),
                },
                next_seq: r.u64()?,
                receipt: r.list(|r| Ok((r.text()?, r.text()?)))?,
            },
            65 => Self::Refused {
                mismatches: r.list(|r| Ok(Mismatch { key: r.text()?, wanted: r.text()?, got: r.text()? }))?,
            },
            66 => Self::Started { pid: r.u32()?, time_us: r.u64()? },
            KIND_OUTPUT => {
                let (stream, time_us, bytes) = output_parts(frame.payload)?;
                return Ok(Self::Output { stream, time_us, bytes: bytes.to_vec() });
            }
            68 => Self::Exit(Exit::read(&mut r)?),
            69 => Self::Pong { nonce: r.u64()?, stalled: r.u8()? },
            70 => Self::Fault { text: r.text()? },
            72 => Self::InputsTaken { offset: r.u64()? },
            80 => Self::Advance(Advance::read(&mut r)?),
            81 => Self::Page(Page::read(&mut r)?),
            KIND_PIECE => Self::Piece(Piece::read(&mut r)?),
            kind if (EGRESS_FROM..EGRESS_FROM + EGRESS_KINDS).contains(&kind) => {
                Self::Egress(Egress::read(kind - EGRESS_FROM, &mut r)?)
            }
            _ => return Err(BadPayload("an unknown kind")),
        };
        r.end()?;
        Ok(message)
    }
}

/// Appends a piece of a stream as a frame, without a copy of it on the way.
pub fn egress_data(from_warden: bool, stream: u32, bytes: &[u8], epoch: u32, out: &mut Vec<u8>) {
    let kind = EGRESS_DATA + if from_warden { EGRESS_FROM } else { EGRESS_TO };
    encode(kind, 0, epoch, 0, &[&stream.to_le_bytes(), bytes], out);
}

/// In place of how the command after a stop ended: none ran, and something follows.
const NONE_RAN: u8 = 255;
/// Number of the part with [`Exit::results`].
const RESULTS: u8 = 2;

impl Exit {
    fn write(&self, w: Writer) -> Writer {
        let w = w
            .u64(self.last_seq)
            .u8(self.kind as u8)
            .u32(self.code as u32)
            .text(&self.step)
            .u8(self.stop_reason)
            .u64(self.started_us)
            .u64(self.ended_us)
            .u64(self.wall_ms)
            .u64(self.utime_us)
            .u64(self.stime_us)
            .u64(self.max_rss_bytes)
            .u64(self.peak_memory_bytes)
            .u64(self.oom_kills)
            .u64(self.peak_pids)
            .u64(self.stdout_bytes)
            .u64(self.stderr_bytes)
            .u32(self.leftover);
        // Written where there is something to tell only: a reader of before does not know it.
        let parts = self.results.is_some();
        if self.on_cancel.is_none() && self.met.is_empty() && !parts {
            return w;
        }
        let w = match self.on_cancel {
            Some(CleanUp { kind, code }) => w.u8(kind as u8).u32(code as u32),
            None => w.u8(NONE_RAN).u32(0),
        };
        if self.met.is_empty() && !parts {
            return w;
        }
        let w = w.list(&self.met, |w, one| w.text(&one.name).u64(one.limit).u64(one.peak).u64(one.times));
        parts::write(w, RESULTS, self.results.as_ref(), Results::write)
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, BadPayload> {
        let mut exit = Self {
            last_seq: r.u64()?,
            kind: ExitKind::read(r)?,
            code: r.i32()?,
            step: r.text()?,
            stop_reason: r.u8()?,
            started_us: r.u64()?,
            ended_us: r.u64()?,
            wall_ms: r.u64()?,
            utime_us: r.u64()?,
            stime_us: r.u64()?,
            max_rss_bytes: r.u64()?,
            peak_memory_bytes: r.u64()?,
            oom_kills: r.u64()?,
            peak_pids: r.u64()?,
            stdout_bytes: r.u64()?,
            stderr_bytes: r.u64()?,
            leftover: r.u32()?,
            on_cancel: match r.0 {
                [] => None,
                [NONE_RAN, ..] => {
                    r.u8()?;
                    r.u32()?;
                    None
                }
                _ => Some(CleanUp { kind: ExitKind::read(r)?, code: r.i32()? }),
            },
            met: if r.0.is_empty() {
                Vec::new()
            } else {
                r.list(|r| Ok(Met { name: r.text()?, limit: r.u64()?, peak: r.u64()?, times: r.u64()? }))?
            },
            results: None,
        };
        parts::read(r, |tag, r| match tag {
            RESULTS => parts::once(&mut exit.results, Results::read(r)?),
            _ => Err(parts::UNKNOWN),
        })?;
        Ok(exit)
    }
}

impl ExitKind {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPayload> {
        match r.u8()? {
            0 => Ok(Self::Exited),
            1 => Ok(Self::Signaled),
            2 => Ok(Self::StartFailed),
            _ => Err(BadPayload("an unknown way to end")),
        }
    }
}
