//! The streams of a cell's proxy, as both sides carry them.
//!
//! The warden opens; the agent decides, dials, and says how that went. Both ways, a side may only send what it was given credit for:
//! per stream, which is room at the far end, and, out of the cell, for all of them together, which is what may lie in the transport.

use super::fields::{BadPayload, Reader, Writer};

/// Stands for all streams of a session, in a credit.
pub const ALL_STREAMS: u32 = 0;
/// What the warden may have under way of all streams together when a session begins.
pub const EGRESS_WINDOW: u32 = 256 * 1024;
/// Most bytes in one piece: with its head they fit a frame, and an order behind it does not wait long.
pub const EGRESS_PIECE: usize = 60 * 1024;
/// Most connections of one cell at a time; the warden's memory is counted for as many.
pub const EGRESS_CONNECTIONS: u16 = 256;

/// Number of [`Egress::Data`] among the kinds.
pub(super) const EGRESS_DATA: u8 = 3;

/// Why a stream was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EgressFault {
    /// No rule allows it.
    Refused,
    /// A limit of the job was met.
    Limit,
    /// The name leads nowhere.
    NoName,
    /// Nobody answers there.
    NoAnswer,
    /// Nobody answered in time.
    Late,
}

impl EgressFault {
    const ALL: [Self; 5] = [Self::Refused, Self::Limit, Self::NoName, Self::NoAnswer, Self::Late];
}

/// What either side says of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Egress {
    /// The warden: a process of the job wants to go there.
    Open {
        /// Chosen by the warden; not 0, and not one that is in use.
        stream: u32,
        /// A name or an address, as it was asked for.
        host: String,
        /// The port.
        port: u16,
        /// Bytes that the agent may send at once.
        credit: u32,
    },
    /// The agent: it is there.
    Opened {
        /// Which.
        stream: u32,
        /// Bytes that the warden may send at once.
        credit: u32,
    },
    /// The agent: it is not.
    Failed {
        /// Which.
        stream: u32,
        /// Why.
        fault: EgressFault,
        /// Why, for people.
        text: String,
    },
    /// Bytes.
    Data {
        /// Which.
        stream: u32,
        /// They.
        bytes: Vec<u8>,
    },
    /// Nothing more comes from this side; the other one goes on.
    Eof {
        /// Which.
        stream: u32,
    },
    /// It is over, at once.
    Reset {
        /// Which.
        stream: u32,
    },
    /// So many more bytes may be sent.
    Credit {
        /// Which, or [`ALL_STREAMS`].
        stream: u32,
        /// Bytes.
        bytes: u32,
    },
}

impl Egress {
    /// Which stream it is about.
    pub fn stream(&self) -> u32 {
        match self {
            Self::Open { stream, .. }
            | Self::Opened { stream, .. }
            | Self::Failed { stream, .. }
            | Self::Data { stream, .. }
            | Self::Eof { stream }
            | Self::Reset { stream }
            | Self::Credit { stream, .. } => *stream,
        }
    }

    /// The number behind the first kind of its direction, and the payload.
    pub(super) fn write(&self, w: Writer) -> (u8, Writer) {
        match self {
            Self::Open { stream, host, port, credit } => {
                (0, w.u32(*stream).text(host).u32(u32::from(*port)).u32(*credit))
            }
            Self::Opened { stream, credit } => (1, w.u32(*stream).u32(*credit)),
            Self::Failed { stream, fault, text } => (2, w.u32(*stream).u8(*fault as u8).text(text)),
            // Without a length: the frame has one.
            Self::Data { stream, bytes } => {
                let mut w = w.u32(*stream);
                w.0.extend_from_slice(bytes);
                (EGRESS_DATA, w)
            }
            Self::Eof { stream } => (4, w.u32(*stream)),
            Self::Reset { stream } => (5, w.u32(*stream)),
            Self::Credit { stream, bytes } => (6, w.u32(*stream).u32(*bytes)),
        }
    }

    pub(super) fn read(number: u8, r: &mut Reader<'_>) -> Result<Self, BadPayload> {
        let stream = r.u32()?;
        Ok(match number {
            0 => Self::Open {
                stream,
                host: r.text()?,
                port: u16::try_from(r.u32()?).map_err(|_| BadPayload("a port is too large"))?,
                credit: r.u32()?,
            },
            1 => Self::Opened { stream, credit: r.u32()? },
            2 => {
                let fault = *EgressFault::ALL.get(usize::from(r.u8()?)).ok_or(BadPayload("an unknown fault"))?;
                Self::Failed { stream, fault, text: r.text()? }
            }
            EGRESS_DATA => Self::Data { stream, bytes: std::mem::take(&mut r.0).to_vec() },
            4 => Self::Eof { stream },
            5 => Self::Reset { stream },
            6 => Self::Credit { stream, bytes: r.u32()? },
            _ => return Err(BadPayload("an unknown kind")),
        })
    }
}
