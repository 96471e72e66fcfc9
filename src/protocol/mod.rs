//! What programs say to each other: agent and warden ([`wire`]), agent and backend ([`agent`]), and output on its way over a
//! WebSocket ([`record`]).
//!
//! Owns shapes and versions; must never send anything. [`wire`] is compiled into the warden as well: it needs the standard library, and
//! `crate::crc`, which each side has in its own way.

pub mod agent;
pub mod record;

#[path = "../../warden/src/wire.rs"]
#[allow(
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "field widths are the wire's"
)]
pub mod wire;
