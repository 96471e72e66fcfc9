//! What agent and warden say to each other. The agent's words to its backend come here too when they leave the process.
//!
//! [`wire`] is one std-only file that is compiled into the warden as well.

#[path = "../../warden/src/wire.rs"]
#[allow(
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "field widths are the wire's"
)]
pub mod wire;
