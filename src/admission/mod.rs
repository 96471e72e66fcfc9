//! May a job run here, and does it fit now? Policy first, then the ledger; beside them the resolution of presets.

mod gate;
mod ledger;
pub mod policy;
mod resolve;

pub use gate::Gate;
pub use ledger::{Ledger, Permit};
pub use policy::{LivePolicy, Policy};
pub use resolve::{Preset, Presets, resolve};
