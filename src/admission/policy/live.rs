//! The policy of a file, as it is now. A file that is bad, or gone, changes nothing but what is said: the last good one holds.

use super::Policy;
use crate::job::Problems;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A larger file is no policy.
const LARGEST: u64 = 1 << 20;

/// Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct LivePolicy(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    file: Option<PathBuf>,
    policy: Arc<Policy>,
    /// What the file was when it was read, whatever came of that.
    seen: Option<Mark>,
    refused: Option<String>,
}

/// Tells one content of a file from the next.
type Mark = (u64, i64, i64, u64);

/// What a look at the file came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked {
    /// It is as it was.
    Same,
    /// It holds from now on.
    Loaded,
    /// It does not; the last good one does.
    Refused(String),
}

impl LivePolicy {
    /// The policy of `file`; without one, the built-in policy, which bounds nothing and opens no network. Errors: what is wrong with it.
    pub fn load(file: Option<&Path>) -> Result<Self, Problems> {
        let Some(path) = file else { return Ok(Self::default()) };
        let seen = mark(path).ok();
        let policy = Arc::new(read(path)?);
        Ok(Self(Arc::new(Mutex::new(State { file: Some(path.to_owned()), policy, seen, refused: None }))))
    }

    /// A policy that stays.
    pub fn fixed(policy: Policy) -> Self {
        Self(Arc::new(Mutex::new(State { policy: Arc::new(policy), ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What holds now.
    pub fn current(&self) -> Arc<Policy> {
        Arc::clone(&self.state().policy)
    }

    /// The file; none for the built-in policy.
    pub fn file(&self) -> Option<PathBuf> {
        self.state().file.clone()
    }

    /// Why the file as it is does not hold, if so.
    pub fn refused(&self) -> Option<String> {
        self.state().refused.clone()
    }

    /// Reads the file again if it is another one than before, or in any case. Blocks for as long as the file system does.
    pub fn look(&self, in_any_case: bool) -> Looked {
        let (path, before) = {
            let state = self.state();
            let Some(path) = state.file.clone() else { return Looked::Same };
            (path, state.seen)
        };
        // None when it is gone, and that is told once too.
        let seen = mark(&path).ok();
        if !in_any_case && seen == before {
            return Looked::Same;
        }
        let read = read(&path);
        let mut state = self.state();
        state.seen = seen;
        match read {
            Ok(policy) => {
                state.policy = Arc::new(policy);
                state.refused = None;
                Looked::Loaded
            }
            Err(problems) => {
                let reason = format!("{}: {problems}", path.display());
                state.refused = Some(reason.clone());
                Looked::Refused(reason)
            }
        }
    }
}

/// By the inode too: an editor that puts a new file in the place of the old one may keep size and time.
fn mark(path: &Path) -> std::io::Result<Mark> {
    std::fs::metadata(path).map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
}

fn read(path: &Path) -> Result<Policy, Problems> {
    let unreadable = |reason: String| {
        Problems::one(
            "",
            format!("cannot be read: {reason}"),
            "correct its path, owner and mode, or leave policy.file empty",
        )
    };
    let mut text = String::new();
    // Not of a pipe, which would never end.
    let open = std::fs::File::open(path).map_err(|error| unreadable(error.to_string()))?;
    if !open.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(unreadable("it is no file".to_owned()));
    }
    open.take(LARGEST + 1).read_to_string(&mut text).map_err(|error| unreadable(error.to_string()))?;
    if text.len() as u64 > LARGEST {
        return Err(unreadable(format!("it is larger than {LARGEST} bytes")));
    }
    Policy::read(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_holds_and_a_bad_one_or_none_leaves_the_last_good_one_in_force() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("policy.yaml");
        let write = |text: &str| std::fs::write(&path, text).expect("writes");
        assert!(LivePolicy::load(Some(&path)).expect_err("is not there").to_string().contains("cannot be read"));
        write("version: 1\n");
        let live = LivePolicy::load(Some(&path)).expect("loads");
        let other = live.clone();
        assert_eq!((live.look(false), live.current().rules()), (Looked::Same, 0));

        write("version: 1\nrules: [{name: a, when: {labels: {x: z}}, refuse: Not here.}]\n");
        assert_eq!((live.look(false), live.look(false), other.current().rules()), (Looked::Loaded, Looked::Same, 1));

        write("version: 1\nrulez: []\n");
        let Looked::Refused(reason) = live.look(false) else { panic!("is bad") };
        assert!(reason.contains("rulez: unknown key; did you mean `rules`?"), "{reason}");
        assert_eq!((live.look(false), other.refused(), live.current().rules()), (Looked::Same, Some(reason), 1));

        std::fs::remove_file(&path).expect("removes");
        assert!(matches!(live.look(false), Looked::Refused(reason) if reason.contains("cannot be read")));
        assert_eq!((live.look(false), live.current().rules()), (Looked::Same, 1), "told once");
        assert!(matches!(live.look(true), Looked::Refused(_)), "who asks is told again");

        write("version: 1\n");
        assert_eq!((live.look(false), live.refused(), other.current().rules()), (Looked::Loaded, None, 0));
        assert_eq!(LivePolicy::default().look(true), Looked::Same, "there is no file");
    }
}
