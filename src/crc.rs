//! CRC-32C (Castagnoli) as the wire and the log store have it. The warden has the same by its own means.

pub use crc32c::{crc32c, crc32c_append};
