//! Mux v1: many wardens over one stream. An envelope around pieces of wire v1, one channel for each job.
//!
//! What carries it is a clean stream (an SSH channel, a socket), so nothing is looked for again: the first thing that is malformed ends the
//! connection with a reason. A piece is any part of a job's stream and need not be a whole frame: whoever passes it on
//! never looks inside. Reading is strict and bounded: nothing here panics on any input, and nothing allocates more than
//! the envelope at hand.
//!
//! ```text
//! 0 length u32, of the payload · 4 kind u8 · 5 reserved u8, zero · 6 channel u16 · 8 payload
//! ```
//! Little endian. Channels are the agent's choice, from 1 on; 0 is what speaks of no channel.

use super::cell::Fact;
use super::fields::{BadPayload, Reader, Writer};
use super::frame::u32_at;

/// The version of this envelope.
pub const MUX_VERSION: u8 = 1;
/// Bytes before a payload.
pub const MUX_HEADER: usize = 8;
/// Largest payload.
pub const MUX_PAYLOAD: usize = 64 * 1024;
/// Longest name of a job: it is the name of a folder.
pub const MUX_NAME: usize = 128;
/// Most bytes of a text, and of a path.
pub const MUX_TEXT: usize = 4096;
/// Most names in one answer.
pub const MUX_NAMES: usize = 256;

/// A code of [`FromHub::Ended`]: the agent had let the job go.
pub const MUX_CLOSED: i32 = 0;
/// A code of [`FromHub::Ended`]: processes or files of the job are there still, which nobody can end or remove.
pub const MUX_THINGS_LEFT: i32 = 7;

/// Whether a code of [`FromHub::Ended`] is that of a keeper that ended by itself, and has left nothing: the agent had let the job go, none was
/// committed in time, the hub was gone, or nobody came for the end. Any other is of a job that was lost; [`MUX_THINGS_LEFT`] says of any that it is not all
/// gone.
pub const fn is_clean_end(code: i32) -> bool {
    matches!(code, MUX_CLOSED | 3 | 4 | 6)
}

/// What the agent says to a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToHub<'a> {
    /// The first word.
    Hello {
        /// Spoken by the agent.
        version: u8,
    },
    /// A new job, of a name that is not there yet.
    Open {
        /// Not in use on this connection.
        channel: u16,
        /// Also that of its folder.
        name: String,
    },
    /// A job that is there. Whoever had it before loses it.
    Attach {
        /// Not in use on this connection.
        channel: u16,
        /// Which.
        name: String,
    },
    /// A piece of wire v1 for the job.
    Data {
        /// Whose.
        channel: u16,
        /// Any part of its stream.
        bytes: &'a [u8],
    },
    /// Nothing more on this channel; the job goes on.
    Leave {
        /// Which.
        channel: u16,
    },
    /// Ends all of a job at once and removes its folder, whoever is attached. Answered by [`FromHub::Gone`] or [`FromHub::Left`].
    Kill {
        /// Which.
        name: String,
    },
    /// Asks for all names; answered by [`FromHub::Names`].
    List,
}

/// What a hub says to an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromHub<'a> {
    /// The answer to a hello.
    Hello {
        /// Spoken by the hub.
        version: u8,
        /// Which binary.
        build: String,
        /// Where the folders of its jobs are.
        dir: String,
        /// The hub's process.
        pid: u32,
        /// The login's.
        home: String,
        /// What is the same for all jobs.
        facts: Vec<Fact>,
    },
    /// The channel leads to the job.
    Opened {
        /// Which.
        channel: u16,
        /// The job's folder.
        dir: String,
        /// The process that looks after it.
        pid: u32,
    },
    /// The channel leads nowhere, or no longer: it is free again.
    Failed {
        /// Which.
        channel: u16,
        /// The kernel's number of an error: ENOENT, no such job; EEXIST, there is one; EBUSY, somebody else has attached; EAGAIN, too many.
        errno: i32,
        /// What could not be done.
        step: String,
    },
    /// A piece of wire v1 of the job.
    Data {
        /// Whose.
        channel: u16,
        /// Any part of its stream.
        bytes: &'a [u8],
    },
    /// What looked after the job has ended, and nothing of it is left, unless the code says so. The channel is free again.
    Ended {
        /// Which.
        channel: u16,
        /// The job's.
        name: String,
        /// The exit code of what looked after it; the negative number of a signal that ended it. See [`is_clean_end`], and
        /// [`MUX_THINGS_LEFT`], which comes before both.
        code: i32,
    },
    /// Nothing of this name is there.
    Gone {
        /// Which.
        name: String,
    },
    /// Something of this name could not be ended or removed.
    Left {
        /// Which.
        name: String,
        /// Why.
        text: String,
    },
    /// Some of the names that are there.
    Names {
        /// There are more to come.
        more: bool,
        /// At most [`MUX_NAMES`].
        names: Vec<String>,
    },
    /// Why the hub hangs up.
    Fault {
        /// A sentence.
        text: String,
    },
}

/// Whether a job can have this name: it is one of a folder, and stands in a variable.
pub fn is_mux_name(name: &str) -> bool {
    let grammar = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !name.is_empty() && name.len() <= MUX_NAME && !name.starts_with(['.', '-']) && name.bytes().all(grammar)
}

fn name(r: &mut Reader<'_>) -> Result<String, BadPayload> {
    let name = text(r)?;
    if is_mux_name(&name) { Ok(name) } else { Err(BadPayload("a job cannot have this name")) }
}

fn text(r: &mut Reader<'_>) -> Result<String, BadPayload> {
    let text = r.text()?;
    if text.len() <= MUX_TEXT { Ok(text) } else { Err(BadPayload("a text is too long")) }
}

/// Cut at a character: a text is for people.
fn cut(text: &str) -> &str {
    let end = (0..=MUX_TEXT.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    &text[..end]
}

impl<'a> ToHub<'a> {
    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let w = Writer::default();
        let (kind, channel, w) = match self {
            Self::Hello { version } => (1, 0, w.u8(*version)),
            Self::Open { channel, name } => (2, *channel, w.text(name)),
            Self::Attach { channel, name } => (3, *channel, w.text(name)),
            Self::Data { channel, bytes } => return envelope(4, *channel, bytes, out),
            Self::Leave { channel } => (5, *channel, w),
            Self::Kill { name } => (6, 0, w.text(name)),
            Self::List => (7, 0, w),
        };
        envelope(kind, channel, &w.0, out);
    }

    /// Reads one.
    pub fn decode(envelope: &Envelope<'a>) -> Result<Self, BadPayload> {
        let mut r = Reader(envelope.payload);
        let channel = envelope.channel_for(matches!(envelope.kind, 2..=5))?;
        let message = match envelope.kind {
            1 => Self::Hello { version: r.u8()? },
            2 => Self::Open { channel, name: name(&mut r)? },
            3 => Self::Attach { channel, name: name(&mut r)? },
            4 => return Ok(Self::Data { channel, bytes: envelope.payload }),
            5 => Self::Leave { channel },
            6 => Self::Kill { name: name(&mut r)? },
            7 => Self::List,
            _ => return Err(BadPayload("an unknown kind")),
        };
        r.end()?;
        Ok(message)
    }
}

/// Kinds of [`FromHub`] begin behind here.
const FROM: u8 = 64;

impl<'a> FromHub<'a> {
    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let w = Writer::default();
        let (kind, channel, w) = match self {
            Self::Hello { version, build, dir, pid, home, facts } => {
                let w = w.u8(*version).text(cut(build)).text(cut(dir)).u32(*pid).text(cut(home));
                (1, 0, w.list(facts, |w, (key, value)| w.text(cut(key)).text(cut(value))))
            }
            Self::Opened { channel, dir, pid } => (2, *channel, w.text(cut(dir)).u32(*pid)),
            Self::Failed { channel, errno, step } => (3, *channel, w.u32(errno.cast_unsigned()).text(cut(step))),
            Self::Data { channel, bytes } => return envelope(FROM + 4, *channel, bytes, out),
            Self::Ended { channel, name, code } => (5, *channel, w.text(name).u32(code.cast_unsigned())),
            Self::Gone { name } => (6, 0, w.text(name)),
            Self::Left { name, text } => (7, 0, w.text(name).text(cut(text))),
            Self::Names { more, names } => (8, 0, w.u8(u8::from(*more)).list(names, |w, name| w.text(name))),
            Self::Fault { text } => (9, 0, w.text(cut(text))),
        };
        envelope(FROM + kind, channel, &w.0, out);
    }

    /// Reads one.
    pub fn decode(envelope: &Envelope<'a>) -> Result<Self, BadPayload> {
        let mut r = Reader(envelope.payload);
        let kind = envelope.kind.checked_sub(FROM).ok_or(BadPayload("an unknown kind"))?;
        let channel = envelope.channel_for(matches!(kind, 2..=5))?;
        let message = match kind {
            1 => Self::Hello {
                version: r.u8()?,
                build: text(&mut r)?,
                dir: text(&mut r)?,
                pid: r.u32()?,
                home: text(&mut r)?,
                facts: r.list(|r| Ok((text(r)?, text(r)?)))?,
            },
            2 => Self::Opened { channel, dir: text(&mut r)?, pid: r.u32()? },
            3 => Self::Failed { channel, errno: r.i32()?, step: text(&mut r)? },
            4 => return Ok(Self::Data { channel, bytes: envelope.payload }),
            5 => Self::Ended { channel, name: name(&mut r)?, code: r.i32()? },
            6 => Self::Gone { name: name(&mut r)? },
            7 => Self::Left { name: name(&mut r)?, text: text(&mut r)? },
            8 => {
                let more = match r.u8()? {
                    0 => false,
                    1 => true,
                    _ => return Err(BadPayload("more is yes or no")),
                };
                let names = r.list(name)?;
                if names.len() > MUX_NAMES {
                    return Err(BadPayload("too many names at once"));
                }
                Self::Names { more, names }
            }
            9 => Self::Fault { text: text(&mut r)? },
            _ => return Err(BadPayload("an unknown kind")),
        };
        r.end()?;
        Ok(message)
    }
}

/// An envelope as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// What it is.
    pub kind: u8,
    /// Whose.
    pub channel: u16,
    /// The rest.
    pub payload: &'a [u8],
}

impl Envelope<'_> {
    /// Its channel, for a kind that has one or has none.
    fn channel_for(&self, has: bool) -> Result<u16, BadPayload> {
        match (has, self.channel) {
            (true, 0) => Err(BadPayload("channel 0 is none")),
            (false, 1..) => Err(BadPayload("this kind has no channel")),
            (_, channel) => Ok(channel),
        }
    }
}

/// Appends an envelope. A payload that is too long is cut, but for pieces of a stream, which become several.
fn envelope(kind: u8, channel: u16, payload: &[u8], out: &mut Vec<u8>) {
    let mut rest = payload;
    loop {
        let (piece, behind) = rest.split_at(rest.len().min(MUX_PAYLOAD));
        out.extend_from_slice(&mux_header(kind, channel, piece.len()));
        out.extend_from_slice(piece);
        rest = behind;
        if rest.is_empty() || !matches!(kind, 4 | 68) {
            return;
        }
    }
}

fn mux_header(kind: u8, channel: u16, length: usize) -> [u8; MUX_HEADER] {
    let ([a, b, c, d], [low, high]) = ((length as u32).to_le_bytes(), channel.to_le_bytes());
    [a, b, c, d, kind, 0, low, high]
}

/// The header of a piece of a job's stream, for who has the piece where it is to be written from. `length` is at most
/// [`MUX_PAYLOAD`].
pub fn from_hub_data(channel: u16, length: usize) -> [u8; MUX_HEADER] {
    mux_header(FROM + 4, channel, length.min(MUX_PAYLOAD))
}

/// Finds envelopes in a stream. After an error nothing more may be asked of it.
#[derive(Debug, Default)]
pub struct MuxDecoder {
    buffer: Vec<u8>,
    start: usize,
}

impl MuxDecoder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
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

    /// Bytes that wait for the rest of their envelope, or for being asked for.
    pub fn waiting(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// The next whole envelope, if there is one. An error: this is no such stream.
    #[allow(clippy::should_implement_trait)] // The envelope borrows from the decoder, which an iterator cannot say.
    pub fn next(&mut self) -> Result<Option<Envelope<'_>>, BadPayload> {
        let bytes = &self.buffer[self.start..];
        let Some(head) = bytes.get(..MUX_HEADER) else { return Ok(None) };
        let length = u32_at(head, 0) as usize;
        if length > MUX_PAYLOAD {
            return Err(BadPayload("an envelope is too long"));
        }
        if head[5] != 0 {
            return Err(BadPayload("an envelope's reserved byte is not zero"));
        }
        let Some(payload) = bytes.get(MUX_HEADER..MUX_HEADER + length) else { return Ok(None) };
        self.start += MUX_HEADER + length;
        Ok(Some(Envelope { kind: head[4], channel: u16::from_le_bytes([head[6], head[7]]), payload }))
    }
}
