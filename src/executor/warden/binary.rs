//! The warden's program, built with the agent, as it goes into cells and to hosts.

use sha2::{Digest, Sha256};
use std::sync::LazyLock;

/// The program.
pub static WARDEN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/warden"));

/// The program's SHA-256, in hex.
pub fn warden_digest() -> &'static str {
    static DIGEST: LazyLock<String> =
        LazyLock::new(|| Sha256::digest(WARDEN).iter().map(|byte| format!("{byte:02x}")).collect());
    &DIGEST
}

/// The first 16 characters of it.
pub fn warden_build() -> &'static str {
    &warden_digest()[..16]
}
