//! A spec on its way in: section by section, each chunk straight to its file, so that no input is held in memory.
//!
//! Owns what has arrived before the commit. Idempotent: what has arrived already is passed over, so that an agent that
//! attaches again may send everything again. Must never start anything.

use crate::crc::crc32c_append;
use crate::mask::wipe;
use crate::sys;
use crate::unpack::Unpack;
use crate::wire::CellSpec;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;

/// The head holds argv and environment, which an exec takes up to 2 MiB of.
const HEAD_MAX: usize = 3 << 20;
/// Read and execute for the job's user; nobody writes it once it is complete.
const SCRIPT_MODE: u32 = 0o500;

#[derive(Default)]
pub(crate) struct Intake {
    head: Vec<u8>,
    script: Option<File>,
    stdin: Option<File>,
    /// By section.
    lengths: [u64; 3],
    sums: [u32; 3],
    /// The head, once another section shows that it is complete.
    spec: Option<CellSpec>,
    failed: Option<Failed>,
    /// What the job is given, once that has begun.
    pub(crate) inputs: Option<Unpack>,
}

/// Why there is no job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The agent sent something that cannot be run; told as a refusal.
    Spec(String),
    /// The cell cannot take it; told as a start that failed, with the step and the kernel's error.
    Step(&'static str, i32),
}

/// A spec that is complete and checked against its sums.
pub(crate) struct Complete {
    pub(crate) spec: CellSpec,
    /// Positioned at its start; `None` when there is no input.
    pub(crate) stdin: Option<File>,
}

impl Intake {
    /// Takes a chunk. A failure is kept and told at the commit.
    pub(crate) fn chunk(&mut self, section: u8, offset: u64, bytes: &[u8]) {
        if self.failed.is_none()
            && let Err(failed) = self.take(section, offset, bytes)
        {
            self.failed = Some(failed);
        }
    }

    fn take(&mut self, section: u8, offset: u64, bytes: &[u8]) -> Result<(), Failed> {
        let at = usize::from(section);
        let Some(have) = self.lengths.get(at).copied() else {
            return Err(Failed::Spec(format!("section {section} does not exist; there are 0, 1 and 2")));
        };
        // A hole is what a torn session leaves; the agent sends all of it again, or the commit finds it missing.
        let Some(new) = have.checked_sub(offset).and_then(|known| bytes.get(usize::try_from(known).ok()?..)) else {
            return Ok(());
        };
        match section {
            0 if self.head.len() + new.len() > HEAD_MAX => {
                return Err(Failed::Spec(format!("the head is longer than {HEAD_MAX} bytes")));
            }
            0 => self.head.extend_from_slice(new),
            1 => {
                let file = self.script()?;
                file.write_all(new).map_err(|error| Failed::Step("script", code(&error)))?;
            }
            _ => {
                let file = match &mut self.stdin {
                    Some(file) => file,
                    none => none.insert(sys::memory_file().map_err(|error| Failed::Step("stdin", code(&error)))?),
                };
                file.write_all(new).map_err(|error| Failed::Step("stdin", code(&error)))?;
            }
        }
        self.lengths[at] += new.len() as u64;
        self.sums[at] = crc32c_append(self.sums[at], new);
        Ok(())
    }

    fn spec(&mut self) -> Result<&CellSpec, Failed> {
        match &mut self.spec {
            Some(spec) => Ok(spec),
            none => {
                let spec = CellSpec::decode(&self.head).map_err(|bad| Failed::Spec(format!("the head: {bad}")))?;
                Ok(none.insert(spec))
            }
        }
    }

    fn script(&mut self) -> Result<&mut File, Failed> {
        if self.script.is_none() {
            let path = self.spec()?.script_path.clone();
            if path.is_empty() {
                return Err(Failed::Spec("there is a script, and no path for it".to_owned()));
            }
            let create = || {
                // A spec that was given up may have left one. Exclusive, so that no link is followed.
                let _ = std::fs::remove_file(&path);
                File::options().write(true).create_new(true).mode(SCRIPT_MODE).open(&path)
            };
            self.script = Some(create().map_err(|error| Failed::Step("script", code(&error)))?);
        }
        Ok(self.script.as_mut().expect("was just made"))
    }

    /// The agent says that it is complete. Error: why there is no job.
    pub(crate) fn commit(mut self, lengths: [u64; 3], sums: [u32; 3]) -> Result<Complete, Failed> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        for (section, name) in ["head", "script", "stdin"].iter().enumerate() {
            if self.lengths[section] != lengths[section] {
                let (have, told) = (self.lengths[section], lengths[section]);
                return Err(Failed::Spec(format!("{have} bytes of the {name} have arrived instead of {told}")));
            }
            if self.sums[section] != sums[section] {
                return Err(Failed::Spec(format!("the {name} is not what its checksum says")));
            }
        }
        if !self.spec()?.script_path.is_empty() {
            // An empty script is a script.
            self.script()?;
        }
        // Closed now: a file that is open for writing cannot be executed.
        self.script = None;
        let mut stdin = self.stdin.take();
        if let Some(file) = &mut stdin {
            file.rewind().map_err(|error| Failed::Step("stdin", code(&error)))?;
        }
        let given = self.inputs.as_ref().map(Unpack::totals);
        let spec = self.spec()?.clone();
        // It has secrets in it.
        wipe(&mut self.head);
        if given != spec.inputs.map(Some) {
            return Err(Failed::Spec(format!(
                "its inputs are {:?}, and {:?} have arrived",
                spec.inputs,
                given.flatten()
            )));
        }
        Ok(Complete { spec, stdin })
    }
}

fn code(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(sys::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crc::crc32c;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    fn head(script_path: &str) -> Vec<u8> {
        let mut out = Vec::new();
        CellSpec {
            attempt: "a/1/0".into(),
            argv: vec!["x".into()],
            script_path: script_path.into(),
            ..CellSpec::default()
        }
        .encode(&mut out);
        out
    }

    fn commit(intake: Intake, sections: [&[u8]; 3]) -> Result<Complete, Failed> {
        intake.commit(sections.map(|section| section.len() as u64), sections.map(crc32c))
    }

    /// A place for one script, named after the test so that tests run side by side.
    struct Place(std::path::PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("jobcell-warden-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).expect("a folder");
            Self(path)
        }
        fn script(&self) -> String {
            self.0.join("script").to_string_lossy().into_owned()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn sections_go_to_their_files_and_repeats_are_passed_over() {
        let place = Place::new("sections");
        let (head, script, stdin) = (head(&place.script()), b"#!/bin/sh\necho 1\n".as_slice(), vec![9; 100_000]);
        let mut intake = Intake::default();
        // The first agent gets half of it across; the second sends everything again, cut differently.
        intake.chunk(0, 0, &head);
        intake.chunk(1, 0, &script[..5]);
        for (section, bytes, size) in [(0, head.as_slice(), 7), (1, script, 3), (2, stdin.as_slice(), 3000)] {
            for (n, part) in bytes.chunks(size).enumerate() {
                intake.chunk(section, (n * size) as u64, part);
            }
        }
        let complete = commit(intake, [&head, script, &stdin]).unwrap_or_else(|failed| panic!("{failed:?}"));
        assert_eq!(complete.spec.attempt, "a/1/0");
        assert_eq!(std::fs::read(place.script()).expect("the script"), script);
        let mode = std::fs::metadata(place.script()).expect("the script").permissions().mode();
        assert_eq!(mode & 0o777, SCRIPT_MODE);
        let mut read = Vec::new();
        complete.stdin.expect("an input").read_to_end(&mut read).expect("readable");
        assert!(read == stdin);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let head = head("");
        let mut intake = Intake::default();
        intake.chunk(0, 0, &head);
        intake.chunk(2, 10, b"behind a hole");
        let Err(Failed::Spec(text)) = commit(intake, [&head, b"", b"0123456789behind a hole"]) else {
            panic!("a hole was taken");
        };
        assert!(text.contains("stdin"), "{text}");
        let mut intake = Intake::default();
        intake.chunk(0, 0, &head);
        intake.chunk(2, 0, b"one");
        assert!(matches!(commit(intake, [&head, b"", b"two"]), Err(Failed::Spec(text)) if text.contains("checksum")));
    }

    #[test]
    fn bad_heads_and_places_are_told_at_the_commit() {
        let mut intake = Intake::default();
        intake.chunk(0, 0, b"no head");
        assert!(matches!(commit(intake, [b"no head", b"", b""]), Err(Failed::Spec(_))));
        let (mut intake, none) = (Intake::default(), head(""));
        intake.chunk(0, 0, &none);
        intake.chunk(1, 0, b"script");
        assert!(matches!(commit(intake, [&none, b"script", b""]), Err(Failed::Spec(text)) if text.contains("no path")));
        let (mut intake, nowhere) = (Intake::default(), head("/nowhere/at/all/script"));
        intake.chunk(0, 0, &nowhere);
        intake.chunk(1, 0, b"script");
        let end = commit(intake, [&nowhere, b"script", b""]).err();
        assert_eq!(end, Some(Failed::Step("script", sys::ENOENT)));
        let mut intake = Intake::default();
        intake.chunk(9, 0, b"x");
        assert!(matches!(commit(intake, [b"", b"", b""]), Err(Failed::Spec(text)) if text.contains("section 9")));
    }

    #[test]
    fn an_empty_script_is_a_file() {
        let place = Place::new("empty");
        let head = head(&place.script());
        let mut intake = Intake::default();
        intake.chunk(0, 0, &head);
        assert!(commit(intake, [&head, b"", b""]).is_ok());
        assert_eq!(std::fs::read(place.script()).expect("the script"), b"");
    }
}
