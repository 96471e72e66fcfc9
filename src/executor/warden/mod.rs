//! The agent's side of the conversation with a warden.
//!
//! [`session`] decides (pure), [`converse`] carries out, [`verdict`] turns the warden's exit frame into a cause; [`collect`] decides which of
//! the files that a job leaves are fetched (pure), [`keep`] stores them. What
//! comes from a warden comes from an untrusted place: it is bounded, parsed strictly, and never believed about the
//! agent's own state.

mod binary;
mod collect;
mod converse;
mod epochs;
mod feed;
mod keep;
mod pace;
mod session;
mod verdict;

pub use binary::{WARDEN, warden_build, warden_digest};
pub use collect::CollectLimits;
pub use converse::{Conversation, Finished, Orders, Progress, Stop, converse};
pub use keep::Keep;
pub use session::StopReason;
