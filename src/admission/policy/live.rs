//! The policy of a file, as it is now. A file that is bad, or gone, changes nothing but what is said: the last good one holds.

use super::Policy;
use crate::job::Problems;
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
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

/// Tells one state of a file from the next: file system and inode, since an editor may put a new file in the place of the old one; the time of
/// its last change, of owner and mode too, which nobody can set back; and its size.
type Mark = (u64, u64, i64, i64, u64);

/// Whose word a file has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// The operator's: root's or this user's own, and nobody else can write it.
    Operator,
    /// Anybody's, as nothing is run by it.
    Anybody,
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
        Self::of(path, Of::Operator)
    }

    /// The policy of `file`, whoever can write it: to be looked at, and for nothing to run by.
    pub fn draft(file: &Path) -> Result<Self, Problems> {
        Self::of(file, Of::Anybody)
    }

    fn of(path: &Path, of: Of) -> Result<Self, Problems> {
        let (seen, policy) = read(path, of);
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
        let now = std::fs::metadata(&path).ok().as_ref().map(mark);
        if !in_any_case && now == before {
            return Looked::Same;
        }
        let (seen, read) = read(&path, Of::Operator);
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

fn mark(meta: &Metadata) -> Mark {
    (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec(), meta.size())
}

/// What the file was when it was opened, and what is in it.
fn read(path: &Path, of: Of) -> (Option<Mark>, Result<Policy, Problems>) {
    let mut seen = None;
    let policy = text(path, of, &mut seen)
        .map_err(|(reason, fix)| Problems::one("", format!("cannot be read: {reason}"), fix))
        .and_then(|text| Policy::read(&text));
    (seen, policy)
}

/// Errors: why it is not read, and what helps.
fn text(path: &Path, of: Of, seen: &mut Option<Mark>) -> Result<String, (String, &'static str)> {
    let unreadable = |reason: String| (reason, "correct its path, owner and mode, or leave policy.file empty");
    let failed = |error: std::io::Error| unreadable(error.to_string());
    // A pipe would be waited for at the opening already.
    let wait = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(wait).open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let before = mark(&meta);
    *seen = Some(before);
    if !meta.is_file() {
        return Err(unreadable("it is no file".to_owned()));
    }
    if of == Of::Operator {
        trusted(meta.uid(), meta.mode(), rustix::process::geteuid().as_raw())?;
    }
    let mut text = String::new();
    (&file).take(LARGEST + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LARGEST {
        return Err(unreadable(format!("it is larger than {LARGEST} bytes")));
    }
    // The half of a policy may be a policy too. What it became is read at the next look.
    if mark(&file.metadata().map_err(failed)?) != before {
        return Err(("it was written while it was read".to_owned(), "write a file beside it and rename that to it"));
    }
    Ok(text)
}

/// Who can write the policy says what runs on this host.
fn trusted(owner: u32, mode: u32, own: u32) -> Result<(), (String, &'static str)> {
    if owner != 0 && owner != own {
        return Err((format!("user id {owner} owns it, and can let anything run here"), "run chown root on it"));
    }
    if mode & 0o022 != 0 {
        let reason = format!("others than its owner can write it (mode {:04o})", mode & 0o7777);
        return Err((reason, "run chmod go-w on it"));
    }
    Ok(())
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
        for (owner, own, good) in [(0, 0, true), (0, 7, true), (7, 7, true), (7, 0, false), (7, 8, false)] {
            assert_eq!(trusted(owner, 0o644, own).is_ok(), good, "of {owner}, for {own}");
        }
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
