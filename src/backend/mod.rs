//! Where jobs come from and results go, as an agent sees it.
//!
//! [`Embedded`] is the backend in the same process: it owns the queue and the log store, wakes whoever waits for work or
//! for a job's end, and hands cancels to the agent that holds the job. Its methods for an agent (claim, renew, advance,
//! report, release, orders) are the seam that a backend over the network will share.

mod embedded;

pub use embedded::{Change, Embedded, Order, QueueSettings, Waited};
