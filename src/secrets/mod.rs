//! Secrets on their way: where an agent has them from ([`Providers`]), and how those that came with a job lie in a backend's database
//! ([`Keyring`]).
//!
//! A job says the name of a secret, and the operator's settings say what that is: no word of a job's ever names a variable or a file of
//! this process. Must never log, show or keep a value.

mod provider;
mod sealing;

pub use provider::{Provider, Providers, Source};
pub use sealing::{BadKeys, Keyring};
