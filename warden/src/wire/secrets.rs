//! What a job is given that nobody else may see: a part of the head, since it must not be anywhere else.

use super::fields::{BadPayload, Reader, Writer};

/// Fewer bytes cannot be masked: they would be found everywhere.
pub const SECRET_MIN: usize = 6;
/// Bytes of all secrets of a job together. What is looked for in its output is many times that, and lies in the warden's memory.
pub const SECRETS_BYTES: usize = 64 * 1024;
/// Secrets of a job.
pub const SECRETS_MOST: usize = 1024;
/// Where those lie that are files; a file system of its own, in memory.
pub const SECRETS_DIR: &str = "/run/secrets";

/// One secret. Not to be seen in its debug form, and overwritten when it goes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// The variable that it is, or that says where its file is.
    pub name: String,
    /// The bytes.
    pub value: Vec<u8>,
    /// It is a file in [`SECRETS_DIR`], of this name.
    pub file: bool,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("name", &self.name).field("file", &self.file).finish_non_exhaustive()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.value.fill(0);
        // So that nobody finds that it is never read.
        std::hint::black_box(&mut self.value);
    }
}

impl Secret {
    pub(super) fn write_all(all: &[Self], w: Writer) -> Writer {
        w.list(all, |w, one| w.text(&one.name).bytes(&one.value).u8(u8::from(one.file)))
    }

    pub(super) fn read_all(r: &mut Reader<'_>) -> Result<Vec<Self>, BadPayload> {
        r.list(|r| Ok(Self { name: r.text()?, value: r.bytes()?.to_vec(), file: r.u8()? != 0 }))
    }
}
