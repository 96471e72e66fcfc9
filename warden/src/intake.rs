//! The spec as it arrives: three sections in chunks, each checked by length and checksum at the commit. Script and
//! input go to files without a name as they come, so a large one is never held in memory.

use crate::sys;
use crate::wire::{self, CellSpec};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

/// A head is argument list, variables and expectations; the agent's own limits keep it well below.
const MAX_HEAD: u64 = 1 << 20;
/// Script or input. What does not fit the cell's memory fails before.
const MAX_SECTION: u64 = 64 << 20;

#[derive(Default)]
pub struct Intake {
    head: Vec<u8>,
    files: [Option<File>; 2],
    lengths: [u64; 3],
    sums: [u32; 3],
}

/// A whole spec.
pub struct Spec {
    pub cell: CellSpec,
    pub script: Option<File>,
    pub stdin: Option<File>,
}

impl Intake {
    /// Takes a chunk. A repeat of what is there already is ignored; a hole is an error.
    pub fn chunk(&mut self, section: u8, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let section = usize::from(section);
        let Some(length) = self.lengths.get(section).copied() else {
            return Err(format!("there is no section {section}"));
        };
        if offset < length {
            return Ok(());
        }
        let limit = if section == 0 { MAX_HEAD } else { MAX_SECTION };
        if offset > length || length + bytes.len() as u64 > limit {
            return Err(format!("section {section} has a hole or is too long at {offset}"));
        }
        if section == 0 {
            self.head.extend_from_slice(bytes);
        } else {
            let slot = &mut self.files[section - 1];
            if slot.is_none() {
                *slot = Some(sys::anonymous_file().map_err(|error| format!("no memory file: {error}"))?);
            }
            let file = slot.as_mut().expect("just made");
            file.write_all(bytes).map_err(|error| format!("section {section} cannot be kept: {error}"))?;
        }
        self.lengths[section] += bytes.len() as u64;
        self.sums[section] = wire::crc32c_append(self.sums[section], bytes);
        Ok(())
    }

    /// Checks that everything is here, and reads the head.
    pub fn commit(&mut self, lengths: [u64; 3], sums: [u32; 3]) -> Result<Spec, String> {
        if lengths != self.lengths || sums != self.sums {
            return Err(format!("the commit names {lengths:?} bytes, and {:?} arrived", self.lengths));
        }
        let cell = CellSpec::decode(&self.head).map_err(|error| format!("its head cannot be read: {error}"))?;
        let [script, stdin] = &mut self.files;
        for file in [&mut *script, &mut *stdin].into_iter().flatten() {
            file.seek(SeekFrom::Start(0)).map_err(|error| error.to_string())?;
        }
        Ok(Spec { cell, script: script.take(), stdin: stdin.take() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn chunks_are_put_together_and_repeats_ignored() {
        let mut head = Vec::new();
        CellSpec { attempt: "a".into(), ..CellSpec::default() }.encode(&mut head);
        let mut intake = Intake::default();
        intake.chunk(0, 0, &head).expect("taken");
        intake.chunk(2, 0, b"abc").expect("taken");
        intake.chunk(2, 0, b"abc").expect("a repeat");
        intake.chunk(2, 3, b"def").expect("taken");
        assert!(intake.chunk(2, 9, b"x").is_err());
        assert!(intake.chunk(3, 0, b"x").is_err());
        let lengths = [head.len() as u64, 0, 6];
        assert!(intake.commit(lengths, [0; 3]).is_err());
        let sums = [wire::crc32c(&head), 0, wire::crc32c(b"abcdef")];
        let spec = intake.commit(lengths, sums).ok().expect("whole");
        let mut text = String::new();
        spec.stdin.expect("there is input").read_to_string(&mut text).expect("reads");
        assert_eq!((spec.cell.attempt.as_str(), text.as_str(), spec.script.is_none()), ("a", "abcdef", true));
    }
}
