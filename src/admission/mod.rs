//! May a job run here, and does it fit now? Policy comes with a later change; what is here is the ledger and the
//! resolution of presets.

mod ledger;
mod resolve;

pub use ledger::{Ledger, Permit};
pub use resolve::{Preset, Presets, resolve};
