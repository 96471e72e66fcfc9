//! Gives a job its secrets, and takes them away. Owns the files that they are, and what is masked in the job's output. Must never say a
//! value.

use crate::intake::Failed;
use crate::mask::{Patterns, wipe};
use crate::place::Place;
use crate::sys;
use crate::wire::{CellSpec, SECRET_MIN, SECRETS_BYTES, SECRETS_MOST};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// For the job's user alone, who has no use for changing it.
const MODE: u32 = 0o400;

/// What was given.
#[derive(Default)]
pub(crate) struct Secrets {
    /// What is not to be seen; without it, nothing is looked for.
    pub(crate) patterns: Option<Arc<Patterns>>,
    files: Vec<PathBuf>,
}

impl Secrets {
    /// Puts the secrets of `spec` where the job finds them: into its variables, and into files that variables tell of. Nothing of them is
    /// left in the spec but those. Errors: what cannot be had here.
    pub(crate) fn give(spec: &mut CellSpec, place: &Place) -> Result<Self, Failed> {
        if !spec.secrets.iter().any(|secret| secret.file) {
            return Self::give_at(spec, Path::new(""));
        }
        // On a host there may be nothing that is in memory only, and they go nowhere else.
        let dir = place.secrets().map_err(|error| Failed::Step("tmpfs", error.raw_os_error().unwrap_or(sys::EIO)))?;
        Self::give_at(spec, &dir)
    }

    fn give_at(spec: &mut CellSpec, dir: &Path) -> Result<Self, Failed> {
        let secrets = std::mem::take(&mut spec.secrets);
        if secrets.is_empty() {
            return Ok(Self::default());
        }
        let all: usize = secrets.iter().map(|secret| secret.value.len()).sum();
        if secrets.len() > SECRETS_MOST || all > SECRETS_BYTES {
            return Err(Failed::Spec(format!("{} secrets of {all} bytes are too many", secrets.len())));
        }
        if let Some(short) = secrets.iter().find(|secret| secret.value.len() < SECRET_MIN) {
            return Err(Failed::Spec(format!("secret {:?} is too short to be masked", short.name)));
        }
        let mut given = Self::default();
        for secret in &secrets {
            // It becomes a part of a path.
            if secret.name.is_empty() || !secret.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                return Err(Failed::Spec(format!("{:?} is no name of a secret", secret.name)));
            }
            let value = if secret.file {
                let path = dir.join(&secret.name);
                let create = || {
                    // A spec that was given up may have left one. Exclusive, so that no link is followed.
                    let _ = std::fs::remove_file(&path);
                    File::options().write(true).create_new(true).mode(MODE).open(&path)?.write_all(&secret.value)
                };
                create()
                    .map_err(|error: io::Error| Failed::Step("secret", error.raw_os_error().unwrap_or(sys::EIO)))?;
                let told = path.as_os_str().as_encoded_bytes().to_vec();
                given.files.push(path);
                told
            } else {
                secret.value.clone()
            };
            spec.env.push((secret.name.clone().into_bytes(), value));
        }
        given.patterns = Some(Arc::new(Patterns::new(secrets.iter().map(|secret| secret.value.as_slice()))));
        Ok(given)
    }

    /// Bytes that nobody reads a secret in.
    pub(crate) fn hide(&self, bytes: Vec<u8>) -> Vec<u8> {
        match &self.patterns {
            Some(patterns) => patterns.hide(bytes),
            None => bytes,
        }
    }

    /// The same for a text.
    pub(crate) fn text(&self, text: String) -> String {
        match &self.patterns {
            Some(patterns) => patterns.text(&text),
            None => text,
        }
    }

    /// The job is over: nobody needs them any more. What is masked is masked on.
    pub(crate) fn take_away(&mut self) {
        for file in self.files.drain(..) {
            // The cell goes soon, and its memory with it.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Overwrites what a spec says of variables, once it is not needed any more.
pub(crate) fn forget(spec: &mut CellSpec) {
    spec.env.iter_mut().for_each(|(_, value)| wipe(value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Secret;
    use std::os::unix::fs::PermissionsExt;

    fn secret(name: &str, value: &[u8], file: bool) -> Secret {
        Secret { name: name.to_owned(), value: value.to_vec(), file }
    }

    fn spec(secrets: Vec<Secret>) -> CellSpec {
        CellSpec { secrets, ..CellSpec::default() }
    }

    #[test]
    fn they_are_variables_and_files_and_the_files_go() {
        let dir = std::env::temp_dir().join(format!("jobcell-warden-secrets-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder");
        let mut spec = spec(vec![secret("TOKEN", b"hunter2", false), secret("KEY", b"line one\nline two\n", true)]);
        let mut given = Secrets::give_at(&mut spec, &dir).unwrap_or_else(|failed| panic!("{failed:?}"));
        let path = dir.join("KEY");
        assert_eq!(spec.env[0], (b"TOKEN".to_vec(), b"hunter2".to_vec()));
        assert_eq!(spec.env[1], (b"KEY".to_vec(), path.to_string_lossy().as_bytes().to_vec()));
        assert_eq!(std::fs::read(&path).expect("is there"), b"line one\nline two\n");
        assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, MODE);
        assert_eq!(given.text("line two of hunter2".to_owned()), "*** of ***");
        given.take_away();
        assert!(!path.exists() && spec.secrets.is_empty());
        assert_eq!(given.text("hunter2".to_owned()), "***");
        forget(&mut spec);
        assert_eq!(spec.env[0].1, [0; 7]);
        std::fs::remove_dir(&dir).expect("is empty");
    }

    #[test]
    fn what_cannot_be_masked_or_has_no_place_is_refused_without_its_value() {
        for (secrets, wanted) in [
            (vec![secret("A", b"12345", false)], "too short"),
            (vec![secret("A", &[7; SECRETS_BYTES], false), secret("B", b"1234567", false)], "too many"),
            (vec![secret("../A", b"1234567", true)], "no name"),
        ] {
            match Secrets::give(&mut spec(secrets), &Place::Cell) {
                Err(Failed::Spec(text)) => assert!(text.contains(wanted) && !text.contains("12345"), "{text}"),
                Err(Failed::Step(step, _)) => panic!("{step}"),
                Ok(_) => panic!("{wanted}: taken"),
            }
        }
        let nowhere = Secrets::give_at(&mut spec(vec![secret("A", b"1234567", true)]), Path::new("/nowhere"));
        assert!(matches!(nowhere, Err(Failed::Step("secret", sys::ENOENT))));
    }

    #[test]
    fn nothing_is_looked_for_without_secrets() {
        assert!(Secrets::give(&mut spec(vec![]), &Place::Cell).is_ok_and(|given| given.patterns.is_none()));
    }
}
