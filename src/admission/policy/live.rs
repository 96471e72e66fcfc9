//! The policy of a file, as it is now. A file that is bad, or gone, changes nothing but what is said: the last good one holds.

use super::Policy;
use crate::config::operator_file::{self, Mark, Whose};
use crate::job::Problems;
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
        Self::of(path, Whose::Operator)
    }

    /// The policy of `file`, whoever can write it: to be looked at, and for nothing to run by.
    pub fn draft(file: &Path) -> Result<Self, Problems> {
        Self::of(file, Whose::Anybody)
    }

    fn of(path: &Path, whose: Whose) -> Result<Self, Problems> {
        let (seen, policy) = read(path, whose);
        let policy = Arc::new(policy?);
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
        let now = Mark::at(&path);
        if !in_any_case && now == before {
            return Looked::Same;
        }
        let (seen, read) = read(&path, Whose::Operator);
        let mut state = self.state();
        // One that cannot be opened is told once too.
        state.seen = seen.or(now);
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

/// What the file was when it was opened, and what is in it.
fn read(path: &Path, whose: Whose) -> (Option<Mark>, Result<Policy, Problems>) {
    let (seen, text) = operator_file::read(path, LARGEST, whose, "leave policy.file empty");
    let policy = text
        .map_err(|(reason, fix)| Problems::one("", format!("cannot be read: {reason}"), fix))
        .and_then(|text| Policy::read(&text));
    (seen, policy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

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

    #[test]
    fn a_file_that_others_can_write_is_no_operators_word() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("policy.yaml");
        let mode = |mode| std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("sets the mode");
        std::fs::write(&path, "version: 1\n").expect("writes");
        mode(0o644);
        let live = LivePolicy::load(Some(&path)).expect("loads");
        for bad in [0o664, 0o646, 0o666] {
            mode(bad);
            let Looked::Refused(reason) = live.look(false) else { panic!("{bad:o} is no mode for it") };
            assert!(reason.contains(&format!("(mode {bad:04o})")) && reason.contains("chmod go-w"), "{reason}");
            assert!(LivePolicy::load(Some(&path)).is_err(), "{bad:o}");
            assert!(LivePolicy::draft(&path).is_ok(), "a draft may be anybody's");
        }
        mode(0o600);
        assert_eq!((live.look(false), live.refused()), (Looked::Loaded, None), "a change of the mode is seen");
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg("-m").arg("600").arg(&path).status().expect("runs");
        assert!(made.success());
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || tell.send(LivePolicy::load(Some(&path)).map(|_| ())));
        let told = told.recv_timeout(std::time::Duration::from_secs(10)).expect("nobody writes, and it does not wait");
        assert!(told.expect_err("is no file").to_string().contains("it is no file"));
    }
}
