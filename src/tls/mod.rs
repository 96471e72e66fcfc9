//! TLS of the API, on both sides: what a server shows, whom a client believes, and why one does not believe the other.
//!
//! Owns certificates, keys and the words for what is wrong with them. One provider of cryptography, versions 1.2 and 1.3. Must never let a
//! connection through that was not checked, and never lose the last good certificate for a bad one.

mod certificate;
mod client;
mod server;
mod words;

pub use client::{ClientTls, Trust, Wire};
pub use server::{Looked, ServerTls};
pub use words::reason;

use rustls::crypto::CryptoProvider;
use std::sync::Arc;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
