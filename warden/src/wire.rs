//! Wire v1 between agent and warden. Std-only and free of `unsafe`: this one file is compiled into both.
//!
//! Every frame is self-synchronising (marker, length, checksum), because a re-attach can begin in the middle of one. Each
//! carries the session epoch: two clients can be attached to one cell, and the highest epoch wins. What comes from a
//! warden comes from an untrusted place, so reading is strict and bounded: nothing here panics on any input, and nothing
//! allocates more than the frame at hand.
//!
//! ```text
//! 0 marker[4] · 4 version u8 · 5 kind u8 · 6 channel u16 · 8 epoch u32 · 12 len u32 · 16 seq u64 · 24 crc32c u32 · 28 payload
//! ```
//! Little endian; the checksum covers bytes 4..24 and the payload.

/// The version of this wire. A peer states a range; the highest common one is spoken.
pub const VERSION: u8 = 1;
/// First four bytes of every frame; not valid UTF-8, so that no text contains it.
pub const MARKER: [u8; 4] = [0xC3, 0x4A, 0x43, 0x9B];
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 28;
/// Largest payload.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Most bytes of output in one frame: 15 pages, which leaves room for the stream and the time.
pub const MAX_OUTPUT: usize = 60 * 1024;

/// A frame as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: u8,
    /// Which attempt of a warden that serves many; 0 in a container.
    pub channel: u16,
    /// Session epoch.
    pub epoch: u32,
    /// Number of an output frame; 0 otherwise.
    pub seq: u64,
    /// The rest.
    pub payload: &'a [u8],
}

/// Appends a frame to `out`. The payload's parts together are at most [`MAX_PAYLOAD`]; what is over is a bug of the
/// caller and is cut off.
pub fn encode(kind: u8, channel: u16, epoch: u32, seq: u64, payload: &[&[u8]], out: &mut Vec<u8>) {
    let start = out.len();
    let mut room = MAX_PAYLOAD;
    out.extend_from_slice(&MARKER);
    out.extend_from_slice(&[VERSION, kind]);
    out.extend_from_slice(&channel.to_le_bytes());
    out.extend_from_slice(&epoch.to_le_bytes());
    let total = payload.iter().map(|part| part.len()).sum::<usize>().min(MAX_PAYLOAD);
    out.extend_from_slice(&(total as u32).to_le_bytes());
    out.extend_from_slice(&seq.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for part in payload {
        let part = &part[..part.len().min(room)];
        room -= part.len();
        out.extend_from_slice(part);
    }
    seal(&mut out[start..]);
}

/// Computes the checksum of a whole frame that has everything else in place.
pub fn seal(frame: &mut [u8]) {
    let sum = frame_sum(frame);
    frame[24..28].copy_from_slice(&sum.to_le_bytes());
}

/// Stamps another epoch on a whole frame and seals it again.
pub fn restamp(frame: &mut [u8], epoch: u32) {
    frame[8..12].copy_from_slice(&epoch.to_le_bytes());
    seal(frame);
}

fn frame_sum(frame: &[u8]) -> u32 {
    !crc32c_update(crc32c_update(!0, &frame[4..24]), &frame[HEADER_BYTES..])
}

/// CRC-32C (Castagnoli) of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !crc32c_update(!0, bytes)
}

/// The CRC-32C of what `sum` stands for followed by `bytes`; start with 0.
pub fn crc32c_append(sum: u32, bytes: &[u8]) -> u32 {
    !crc32c_update(!sum, bytes)
}

fn crc32c_update(mut state: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let low = state ^ u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        state = TABLES[7][(low & 0xff) as usize]
            ^ TABLES[6][(low >> 8 & 0xff) as usize]
            ^ TABLES[5][(low >> 16 & 0xff) as usize]
            ^ TABLES[4][(low >> 24) as usize]
            ^ TABLES[3][word[4] as usize]
            ^ TABLES[2][word[5] as usize]
            ^ TABLES[1][word[6] as usize]
            ^ TABLES[0][word[7] as usize];
    }
    for byte in rest {
        state = state >> 8 ^ TABLES[0][((state ^ u32::from(*byte)) & 0xff) as usize];
    }
    state
}

static TABLES: [[u32; 256]; 8] = {
    // Slicing by eight: table n advances a byte by n further bytes. The polynomial is Castagnoli's, reflected.
    let mut tables = [[0u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0x82F6_3B78 } else { sum >> 1 };
            bit += 1;
        }
        tables[0][byte] = sum;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
};

/// Finds frames in a byte stream that may begin anywhere and may be torn.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    skipped: u64,
}

enum Found {
    Frame(usize),
    NotHere,
    NeedMore,
}

impl Decoder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes passed over because they were no frame.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Adds what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.copy_within(self.start.., 0);
            self.buffer.truncate(self.buffer.len() - self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    #[allow(clippy::should_implement_trait)] // The frame borrows from the decoder, which an iterator cannot say.
    pub fn next(&mut self) -> Option<Frame<'_>> {
        loop {
            match look(&self.buffer[self.start..]) {
                Found::Frame(len) => {
                    let at = self.start;
                    self.start += len;
                    let frame = &self.buffer[at..at + len];
                    return Some(Frame {
                        kind: frame[5],
                        channel: u16_at(frame, 6),
                        epoch: u32_at(frame, 8),
                        seq: u64_at(frame, 16),
                        payload: &frame[HEADER_BYTES..],
                    });
                }
                Found::NeedMore => return None,
                Found::NotHere => {
                    // On to the next byte that can begin a marker.
                    let rest = &self.buffer[self.start + 1..];
                    let step = 1 + rest.iter().position(|byte| *byte == MARKER[0]).unwrap_or(rest.len());
                    self.start += step;
                    self.skipped += step as u64;
                }
            }
        }
    }
}

fn look(bytes: &[u8]) -> Found {
    let head = bytes.len().min(MARKER.len());
    if bytes[..head] != MARKER[..head] {
        return Found::NotHere;
    }
    if bytes.len() < HEADER_BYTES {
        return Found::NeedMore;
    }
    let len = u32_at(bytes, 12) as usize;
    if len > MAX_PAYLOAD || bytes[4] != VERSION {
        return Found::NotHere;
    }
    let Some(frame) = bytes.get(..HEADER_BYTES + len) else { return Found::NeedMore };
    if frame_sum(frame) == u32_at(frame, 24) { Found::Frame(frame.len()) } else { Found::NotHere }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// A payload that is not what its kind says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadPayload(&'static str);

impl std::fmt::Display for BadPayload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadPayload {}

/// Reads the fields of a payload in order.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], BadPayload> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(BadPayload("a field is cut off"))?;
        self.0 = tail;
        Ok(head)
    }
    fn u8(&mut self) -> Result<u8, BadPayload> {
        Ok(self.take(1)?[0])
    }
    fn u32(&mut self) -> Result<u32, BadPayload> {
        Ok(u32_at(self.take(4)?, 0))
    }
    fn i32(&mut self) -> Result<i32, BadPayload> {
        Ok(self.u32()? as i32)
    }
    fn u64(&mut self) -> Result<u64, BadPayload> {
        Ok(u64_at(self.take(8)?, 0))
    }
    fn bytes(&mut self) -> Result<&'a [u8], BadPayload> {
        let len = self.u32()? as usize;
        self.take(len)
    }
    fn text(&mut self) -> Result<String, BadPayload> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| BadPayload("a text is not UTF-8"))
    }
    fn list<T>(&mut self, item: impl Fn(&mut Self) -> Result<T, BadPayload>) -> Result<Vec<T>, BadPayload> {
        let count = self.u32()? as usize;
        // Every item takes a byte at least, so a count beyond what is left is a lie, and nothing is reserved for it.
        if count > self.0.len() {
            return Err(BadPayload("a list is longer than its payload"));
        }
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }
    fn end(self) -> Result<(), BadPayload> {
        if self.0.is_empty() { Ok(()) } else { Err(BadPayload("there is more than the fields")) }
    }
}

/// Writes the fields of a payload in order.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    fn bytes(self, value: &[u8]) -> Self {
        let mut writer = self.u32(value.len() as u32);
        writer.0.extend_from_slice(value);
        writer
    }
    fn text(self, value: &str) -> Self {
        self.bytes(value.as_bytes())
    }
    fn list<T>(self, items: &[T], item: impl Fn(Self, &T) -> Self) -> Self {
        items.iter().fold(self.u32(items.len() as u32), item)
    }
}

/// A fact and its value, as read or tried from inside a cell.
pub type Fact = (String, String);

/// How an expectation compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// The same text.
    Eq,
    /// A number not above.
    AtMost,
    /// A number not below.
    AtLeast,
    /// One of the texts between commas.
    OneOf,
    /// There at all.
    Present,
    /// Not there.
    Absent,
}

impl Op {
    const ALL: [Self; 6] = [Self::Eq, Self::AtMost, Self::AtLeast, Self::OneOf, Self::Present, Self::Absent];
}

/// One thing that must be in force before the job starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect {
    /// The fact.
    pub key: String,
    /// The comparison.
    pub op: Op,
    /// What to compare with.
    pub value: String,
}

impl Expect {
    /// The fact has exactly this value.
    pub fn eq(key: &str, value: &str) -> Self {
        Self { key: key.to_owned(), op: Op::Eq, value: value.to_owned() }
    }
    /// The fact is a number not above `value`.
    pub fn at_most(key: &str, value: u64) -> Self {
        Self { key: key.to_owned(), op: Op::AtMost, value: value.to_string() }
    }
    /// The fact is one of the texts between commas.
    pub fn one_of(key: &str, values: &str) -> Self {
        Self { key: key.to_owned(), op: Op::OneOf, value: values.to_owned() }
    }

    fn met_by(&self, got: Option<&str>) -> bool {
        let numbers = || Some((got?.parse::<u64>().ok()?, self.value.parse::<u64>().ok()?));
        match self.op {
            Op::Eq => got == Some(&self.value),
            Op::AtMost => numbers().is_some_and(|(got, most)| got <= most),
            Op::AtLeast => numbers().is_some_and(|(got, least)| got >= least),
            Op::OneOf => got.is_some_and(|got| self.value.split(',').any(|value| value == got)),
            Op::Present => got.is_some(),
            Op::Absent => got.is_none(),
        }
    }

    fn wanted(&self) -> String {
        match self.op {
            Op::Eq => self.value.clone(),
            Op::AtMost => format!("at most {}", self.value),
            Op::AtLeast => format!("at least {}", self.value),
            Op::OneOf => format!("one of {}", self.value),
            Op::Present => "anything".to_owned(),
            Op::Absent => "nothing".to_owned(),
        }
    }
}

/// An expectation that is not met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The fact.
    pub key: String,
    /// What was asked for.
    pub wanted: String,
    /// What is.
    pub got: String,
}

/// Every expectation that `facts` do not meet. A fact that could not be read meets none but [`Op::Absent`].
pub fn unmet(expect: &[Expect], facts: &[Fact]) -> Vec<Mismatch> {
    let value = |key: &str| facts.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    expect
        .iter()
        .filter(|one| !one.met_by(value(&one.key)))
        .map(|one| Mismatch {
            key: one.key.clone(),
            wanted: one.wanted(),
            got: value(&one.key).unwrap_or("(not there)").to_owned(),
        })
        .collect()
}

/// A limit that the warden sets in the job's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// The kernel's number for it.
    pub resource: u32,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// What a cell runs, and what must be in force before: section 0 of a spec.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CellSpec {
    /// The attempt's identity.
    pub attempt: String,
    /// Program and arguments; the element `{script}` stands for `script_path`.
    pub argv: Vec<String>,
    /// Variables.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Names taken from the warden's own environment where `env` does not set them; `*` takes all but HOME, HOSTNAME,
    /// TERM.
    pub inherit_env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// Where section 1 goes; empty when there is no script.
    pub script_path: String,
    /// Wall-clock limit from the start, milliseconds.
    pub wall_timeout_ms: u64,
    /// Between TERM and KILL, milliseconds.
    pub grace_ms: u32,
    /// The first term of the lease, milliseconds.
    pub lease_ms: u64,
    /// Limits of the job's processes.
    pub rlimits: Vec<Rlimit>,
    /// Size asked for the job's pipes.
    pub output_pipe_bytes: u32,
    /// What must be in force.
    pub expect: Vec<Expect>,
}

impl CellSpec {
    /// Appends the encoded form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let writer = Writer::default()
            .text(&self.attempt)
            .list(&self.argv, |w, item| w.text(item))
            .list(&self.env, |w, (key, value)| w.bytes(key).bytes(value))
            .list(&self.inherit_env, |w, item| w.text(item))
            .text(&self.cwd)
            .text(&self.script_path)
            .u64(self.wall_timeout_ms)
            .u32(self.grace_ms)
            .u64(self.lease_ms)
            .list(&self.rlimits, |w, one| w.u32(one.resource).u64(one.soft).u64(one.hard))
            .u32(self.output_pipe_bytes)
            .list(&self.expect, |w, one| w.text(&one.key).u8(one.op as u8).text(&one.value));
        out.extend_from_slice(&writer.0);
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadPayload> {
        let mut r = Reader(bytes);
        let spec = Self {
            attempt: r.text()?,
            argv: r.list(|r| r.text())?,
            env: r.list(|r| Ok((r.bytes()?.to_vec(), r.bytes()?.to_vec())))?,
            inherit_env: r.list(|r| r.text())?,
            cwd: r.text()?,
            script_path: r.text()?,
            wall_timeout_ms: r.u64()?,
            grace_ms: r.u32()?,
            lease_ms: r.u64()?,
            rlimits: r.list(|r| Ok(Rlimit { resource: r.u32()?, soft: r.u64()?, hard: r.u64()? }))?,
            output_pipe_bytes: r.u32()?,
            expect: r.list(|r| {
                let key = r.text()?;
                let op = *Op::ALL.get(r.u8()? as usize).ok_or(BadPayload("an unknown comparison"))?;
                Ok(Expect { key, op, value: r.text()? })
            })?,
        };
        r.end()?;
        Ok(spec)
    }
}

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
        /// 1 cancel, 2 timeout, 3 silence, 4 drain, 5 lease, 6 forced; a higher one replaces a lower one.
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
}

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
    /// For a start that failed: `interpreter`, `workdir`, `script`, …
    pub step: String,
    /// Why the warden ended it; 0 when it did not. Numbers as in [`ToWarden::Stop`].
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
        /// 1 standard output, 2 standard error.
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
    /// The warden met something it cannot go on with.
    Fault {
        /// What.
        text: String,
    },
}

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
            _ => return Err(BadPayload("an unknown kind")),
        };
        r.end()?;
        Ok(message)
    }
}

impl Exit {
    fn write(&self, w: Writer) -> Writer {
        w.u64(self.last_seq)
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
            .u32(self.leftover)
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, BadPayload> {
        Ok(Self {
            last_seq: r.u64()?,
            kind: match r.u8()? {
                0 => ExitKind::Exited,
                1 => ExitKind::Signaled,
                2 => ExitKind::StartFailed,
                _ => return Err(BadPayload("an unknown way to end")),
            },
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
        })
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
