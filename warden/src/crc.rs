//! CRC-32C (Castagnoli) as the wire has it. The agent has the same by a library.

use crate::sys;

/// CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_append(0, bytes)
}

/// The CRC-32C of what `sum` stands for followed by `bytes`; start with 0.
pub fn crc32c_append(sum: u32, bytes: &[u8]) -> u32 {
    !sys::crc32c_update(!sum, bytes)
}
