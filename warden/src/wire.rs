//! Wire v1 between agent and warden. Std-only and free of `unsafe`: this file, with what lies in `wire/`, is compiled into
//! both.
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

// By path, because agent and warden load this file from different folders.
#[path = "wire/cell.rs"]
mod cell;
#[path = "wire/egress.rs"]
mod egress;
#[path = "wire/fields.rs"]
mod fields;
#[path = "wire/frame.rs"]
mod frame;
#[path = "wire/glob.rs"]
mod glob;
#[path = "wire/inputs.rs"]
mod inputs;
#[path = "wire/message.rs"]
mod message;
#[path = "wire/mux.rs"]
mod mux;
#[path = "wire/parts.rs"]
mod parts;
#[path = "wire/results.rs"]
mod results;
#[path = "wire/secrets.rs"]
mod secrets;

pub use cell::{CellSpec, Expect, Fact, GroupLimits, Mismatch, Op, Rlimit, unmet};
pub use egress::{ALL_STREAMS, EGRESS_CONNECTIONS, EGRESS_PIECE, EGRESS_WINDOW, Egress, EgressFault};
pub use fields::BadPayload;
pub use frame::{Decoder, Frame, HEADER_BYTES, MARKER, MAX_OUTPUT, MAX_PAYLOAD, VERSION, encode, restamp, seal};
pub use glob::matches;
pub use inputs::{INPUTS_CREDIT, InputReader, InputTotals, InputWriter, Place, Stuck};
pub use message::{
    CleanUp, Exit, ExitKind, FromWarden, KIND_OUTPUT, KIND_PIECE, Met, ToWarden, WardenState, egress_data, output_parts,
};
pub use mux::{
    Envelope, FromHub, MUX_CLOSED, MUX_HEADER, MUX_NAME, MUX_NAMES, MUX_PAYLOAD, MUX_TEXT, MUX_THINGS_LEFT,
    MUX_VERSION, MuxDecoder, ToHub, from_hub_data, is_clean_end, is_mux_name,
};
pub use results::{
    Advance, Collect, Entry, EntryKind, MOST_OUTPUTS, MOST_PATH, MOST_PIECE, MOST_PROGRESS_TEXT, MOST_READS,
    MOST_RULES, MOST_STEP_NAME, MOST_STEPS, OUTPUT_FILE, OWN_PREFIX, PROGRESS_PIPE, Page, Piece, Results, Stamp,
    StepMark,
};
pub use secrets::{SECRET_MIN, SECRETS_BYTES, SECRETS_DIR, SECRETS_MOST, Secret};

#[cfg(test)]
#[path = "wire/mux_tests.rs"]
mod mux_tests;
#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
