//! Where a job is, and how far a warden's hands reach there.
//!
//! - **A cell**: the warden is process 1, so everybody else is the job's; places are the same in every cell, and go with it.
//! - **A host**: the job has a folder of its own among those of others, and its processes are what descends from its keeper. What is put there
//!   is taken away again by whoever put it.
//!
//! Owns what differs between the two. Must never reach out of a job's own folder, nor to a process that does not descend from its keeper.

use crate::groups::{Groups, Own};
use crate::sys::{self, host};
use crate::tree::{self, Found};
use crate::wire::{CellSpec, GroupLimits, OUTPUT_FILE, PROGRESS_PIPE, SECRETS_DIR};
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The variable by which what belongs to a job is known from outside.
pub(crate) const MARK: &str = "JOBCELL_CELL";
/// In a job's folder: where it begins.
pub(crate) const WORK: &str = "work";
/// In a job's folder: its script, if that is where the agent puts it.
const SCRIPT: &str = "script";
/// In a job's folder: the pipe for its progress.
const PROGRESS: &str = "progress";
const CELL_UMASK: u32 = 0o022;
/// Everybody's folder in memory.
const SHARED_MEMORY: &str = "/dev/shm";

/// A job's place.
#[derive(Clone)]
pub(crate) enum Place {
    Cell,
    Host(Arc<Host>),
}

/// A place on a host.
pub(crate) struct Host {
    pub(crate) name: String,
    /// Whose installation it is.
    pub(crate) owner: String,
    /// The job's folder.
    pub(crate) dir: PathBuf,
    /// This program, for jobs.
    pub(crate) helper: String,
    /// The login's mask for new files.
    pub(crate) umask: u32,
    /// How long somebody may still come for a job that has ended, after its lease.
    pub(crate) linger_ns: u64,
    /// Where it has a control group of its own when it asks for limits.
    pub(crate) groups: Option<Arc<Groups>>,
}

impl Place {
    /// The rest of a host's place, where this is one.
    pub(crate) fn host(&self) -> Option<&Host> {
        match self {
            Self::Cell => None,
            Self::Host(host) => Some(host),
        }
    }

    pub(crate) fn reach(&self) -> Reach {
        match self {
            Self::Cell => Reach::Everybody,
            Self::Host(_) => Reach::Descendants,
        }
    }

    /// Memory of our own is there before the job can take it. On a host it is the host's, and most jobs never need much of it.
    pub(crate) fn reserves(&self) -> bool {
        matches!(self, Self::Cell)
    }

    /// How processes begin there.
    pub(crate) fn ways(&self) -> Ways {
        match self {
            // A warden that stands still is no process 1.
            Self::Cell => Ways { umask: CELL_UMASK, borrows: false },
            Self::Host(host) => Ways { umask: host.umask, borrows: true },
        }
    }

    /// Where the pipe for progress is.
    pub(crate) fn progress(&self) -> String {
        self.host().map_or(PROGRESS_PIPE.to_owned(), |host| text(&host.dir.join(PROGRESS)))
    }

    /// Whether what is in this folder may be replaced by what a job is given.
    pub(crate) fn may_fill(&self, folder: &str) -> bool {
        self.host().is_none_or(|host| Path::new(folder) == host.work())
    }

    /// The folder for secrets that are files; makes it, where it is the job's own.
    pub(crate) fn secrets(&self) -> io::Result<PathBuf> {
        let Some(host) = self.host() else { return Ok(PathBuf::from(SECRETS_DIR)) };
        let base = memory().ok_or_else(|| io::Error::from_raw_os_error(sys::ENOENT))?;
        let folder = base.join(host.secrets_name());
        match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
            // What a spec that was given up has left. Anybody may write to /dev/shm.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_ours(&folder) => {}
            other => other?,
        }
        Ok(folder)
    }

    /// A control group with these limits, where the job asks for any and there can be one. Error: the step, and the kernel's number.
    pub(crate) fn group(&self, limits: &GroupLimits) -> Result<Option<Own>, (String, i32)> {
        let groups = self.host().and_then(|host| Some((host.groups.as_ref()?, &host.name)));
        let Some((groups, name)) = groups.filter(|_| limits.asked().next().is_some()) else { return Ok(None) };
        groups.make(name, limits).map(Some)
    }

    /// Adds to a spec what a job finds by its place.
    pub(crate) fn complete(&self, spec: &mut CellSpec) {
        let Some(host) = self.host() else { return };
        let work = text(&host.work());
        let ours = [
            (MARK, format!("{}.", host.name)),
            ("JOBCELL_OUTPUT", format!("{work}/{OUTPUT_FILE}")),
            ("JOBCELL_PROGRESS", self.progress()),
            ("JOBCELL_HELPER", host.helper.clone()),
            ("JOBCELL_WORKSPACE", work.clone()),
        ];
        for (key, value) in ours {
            spec.env.retain(|(set, _)| set != key.as_bytes());
            spec.env.push((key.into(), value.into_bytes()));
        }
        if spec.cwd.is_empty() {
            spec.cwd = work;
        }
    }
}

impl Host {
    pub(crate) fn work(&self) -> PathBuf {
        self.dir.join(WORK)
    }

    fn secrets_name(&self) -> String {
        format!("{}{}", secrets_of(&self.owner, self.dir.parent().unwrap_or(&self.dir)), self.name)
    }

    /// Ends whatever has the job's mark, wherever it went. Says whether nothing is left.
    pub(crate) fn end_marked(&self) -> bool {
        /// Something that is killed is gone in a moment; what waits for a disk that does not answer is not.
        const TRIES: u32 = 50;
        const PAUSE_NS: u64 = 20_000_000;
        let mark = format!("{MARK}={}.", self.name);
        for _ in 0..TRIES {
            if tree::kill_marked(mark.as_bytes()) == 0 {
                return true;
            }
            sys::poll(&mut [], Some(PAUSE_NS));
        }
        false
    }

    /// Its folder before the job, which must be new.
    pub(crate) fn untouched(&self) -> Option<Untouched> {
        Untouched::of(&self.dir, &self.work())
    }

    /// Removes all that was put there for the job but its folder, which becomes `spare`: another job's, later. Only if that finds nothing of this one
    /// there. Says whether it is so; otherwise all of it is still to be removed.
    ///
    /// To remove a folder can take longer than a short job does: where a file system tells its disk at once of what is free, each waits for the disk.
    pub(crate) fn set_aside(&self, before: &Untouched, spare: &Path) -> bool {
        self.remove_beside();
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten() {
            let Ok(entry) = entry else { return false };
            let name = entry.file_name();
            let gone = name == SCRIPT || name == PROGRESS;
            if (gone && std::fs::remove_file(entry.path()).is_err()) || (!gone && name != WORK) {
                return false;
            }
        }
        let empty = std::fs::read_dir(self.work()).is_ok_and(|mut entries| entries.next().is_none());
        empty && self.untouched().as_ref() == Some(before) && host::rename_new(&self.dir, spare).is_ok()
    }

    /// Removes what was put elsewhere for the job.
    fn remove_beside(&self) {
        if let Some(groups) = &self.groups {
            groups.remove(&self.name);
        }
        for base in bases() {
            let folder = base.join(self.secrets_name());
            if is_ours(&folder) {
                // Its files have gone with the job's end, or all of it goes now.
                let _ = std::fs::remove_dir_all(folder);
            }
        }
    }

    /// Removes all that was put there for the job. What is not there is no error.
    pub(crate) fn remove(&self) -> io::Result<()> {
        self.remove_beside();
        match self.dir.symlink_metadata() {
            // Nobody's job; a link leads who knows where.
            Ok(about) if !about.is_dir() => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
        // Most jobs leave nothing: two calls instead of a walk, and two more with files of ours.
        let quick = std::fs::remove_dir(self.work()).and_then(|()| {
            std::fs::remove_dir(&self.dir).or_else(|_| {
                for file in [SCRIPT, PROGRESS] {
                    let _ = std::fs::remove_file(self.dir.join(file));
                }
                std::fs::remove_dir(&self.dir)
            })
        });
        match quick.or_else(|_| std::fs::remove_dir_all(&self.dir)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                open_up(&self.dir);
                std::fs::remove_dir_all(&self.dir)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

/// How a job finds its folders, and what changes with whatever is done to them but a look: nobody forges when a folder was changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Untouched {
    modes: [u32; 2],
    owners: [u32; 2],
    work_changed: (i64, i64),
}

impl Untouched {
    fn of(dir: &Path, work: &Path) -> Option<Self> {
        let [dir, work] = [dir.symlink_metadata().ok()?, work.symlink_metadata().ok()?];
        let ours = dir.is_dir() && work.is_dir();
        ours.then(|| Self {
            modes: [dir.mode(), work.mode()],
            owners: [dir.uid(), work.uid()],
            work_changed: (work.ctime(), work.ctime_nsec()),
        })
    }
}

/// Removes a folder that was set aside.
pub(crate) fn remove_spare(spare: &Path) {
    let _ = std::fs::remove_dir(spare.join(WORK)).and_then(|()| std::fs::remove_dir(spare));
}

/// How folders with secrets begin whose jobs have theirs in `jobs`. What is in memory is one machine's or container's, and may be that of more than one home.
fn secrets_of(owner: &str, jobs: &Path) -> String {
    format!("jobcell-{owner}-{:08x}-", crate::crc::crc32c(jobs.as_os_str().as_encoded_bytes()))
}

/// Removes folders with secrets whose jobs have no folder in `jobs` any more: of a hub and keepers that were killed together. A job's own folder is there
/// before, and goes after.
pub(crate) fn remove_lost_secrets(owner: &str, jobs: &Path) {
    remove_secrets_in(bases(), owner, jobs);
}

fn remove_secrets_in(bases: impl Iterator<Item = PathBuf>, owner: &str, jobs: &Path) {
    let start = secrets_of(owner, jobs);
    for entry in bases.filter_map(|base| std::fs::read_dir(base).ok()).flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().and_then(|name| name.strip_prefix(&start)) else { continue };
        let gone = jobs.join(name).symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if gone && is_ours(&entry.path()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Makes folders writable that a job left otherwise, so that they can be emptied. Follows no link.
fn open_up(folder: &Path) {
    let _ = std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700));
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

/// A folder of this user's that is no link.
fn is_ours(folder: &Path) -> bool {
    std::fs::symlink_metadata(folder).is_ok_and(|about| about.is_dir() && about.uid() == host::user())
}

/// Where files may be that are in memory only.
fn bases() -> impl Iterator<Item = PathBuf> {
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    own.into_iter().chain([PathBuf::from(SHARED_MEMORY)])
}

/// Where files are in memory only. The login's own folder, if there is one that stays: root's goes with its last session, and jobs do not.
fn memory() -> Option<PathBuf> {
    let stays = |base: &PathBuf| host::user() != 0 || base == Path::new(SHARED_MEMORY);
    bases().filter(stays).find(|base| base.is_dir() && host::is_tmpfs(base))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// How processes of a job begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ways {
    /// Their mask for new files.
    pub(crate) umask: u32,
    /// They use our memory until they have their own.
    pub(crate) borrows: bool,
}

/// Whom a signal reaches that is meant for all of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Everybody but process 1.
    Everybody,
    /// What descends from this process.
    Descendants,
}

impl Reach {
    /// Signals them. Only among descendants is known who was there.
    pub(crate) fn signal(self, number: i32) -> Found {
        match self {
            Self::Everybody => {
                sys::signal_all(number);
                Found::default()
            }
            Self::Descendants => tree::signal(number, &BTreeSet::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> (Place, PathBuf) {
        let dir = std::env::temp_dir().join(format!("jobcell-warden-place-{name}-{}", std::process::id()));
        std::fs::create_dir_all(dir.join(WORK)).expect("a folder");
        let host = Host {
            name: name.to_owned(),
            owner: "0a1b".to_owned(),
            dir: dir.clone(),
            helper: "/x/warden".to_owned(),
            umask: 0o027,
            linger_ns: 0,
            groups: None,
        };
        (Place::Host(Arc::new(host)), dir)
    }

    #[test]
    fn a_cell_is_what_it_was() {
        let mut spec = CellSpec { cwd: String::new(), ..CellSpec::default() };
        Place::Cell.complete(&mut spec);
        assert_eq!(spec, CellSpec::default());
        assert_eq!(Place::Cell.ways(), Ways { umask: 0o022, borrows: false });
        assert_eq!(Place::Cell.progress(), PROGRESS_PIPE);
        assert!(Place::Cell.may_fill("/anywhere") && Place::Cell.reserves());
        assert_eq!(Place::Cell.secrets().expect("known"), Path::new(SECRETS_DIR));
    }

    #[test]
    fn variables_point_into_a_jobs_own_folder_and_cannot_be_set_otherwise() {
        let (place, dir) = place("variables");
        let dir = text(&dir);
        let set = |spec: &CellSpec, key: &str| {
            let found: Vec<_> = spec.env.iter().filter(|(set, _)| set == key.as_bytes()).collect();
            assert_eq!(found.len(), 1, "{key}");
            String::from_utf8_lossy(&found[0].1).into_owned()
        };
        let env = vec![(b"JOBCELL_CELL".to_vec(), b"other.".to_vec()), (b"A".to_vec(), b"1".to_vec())];
        let mut spec = CellSpec { env, ..CellSpec::default() };
        place.complete(&mut spec);
        assert_eq!(set(&spec, "JOBCELL_CELL"), "variables.");
        assert_eq!(set(&spec, "JOBCELL_OUTPUT"), format!("{dir}/work/.jobcell-output"));
        assert_eq!(set(&spec, "JOBCELL_PROGRESS"), format!("{dir}/progress"));
        assert_eq!((set(&spec, "A"), &spec.cwd), ("1".to_owned(), &format!("{dir}/work")));
        assert!(place.may_fill(&format!("{dir}/work")) && !place.may_fill(&dir) && !place.may_fill("/"));
        place.host().expect("is one").remove().expect("is empty");
    }

    #[test]
    fn what_was_put_there_goes_whatever_a_job_made_of_it() {
        let (place, dir) = place("goes");
        let host = place.host().expect("is one");
        let deep = dir.join(WORK).join("a/b");
        std::fs::create_dir_all(&deep).expect("made");
        std::fs::write(deep.join("file"), "x").expect("written");
        std::os::unix::fs::symlink("/", deep.join("link")).expect("made");
        std::fs::set_permissions(&deep, std::fs::Permissions::from_mode(0o500)).expect("set");
        host.remove().expect("goes");
        assert!(!dir.exists() && Path::new("/proc").exists());
        host.remove().expect("is gone, which is what was wanted");
    }

    #[test]
    fn a_folder_that_a_job_left_as_it_was_becomes_anothers_and_no_other_does() {
        type Touch = fn(&Path);
        let (place, dir) = place("spare");
        let (host, spare) = (place.host().expect("is one"), dir.with_extension("spare"));
        let before = host.untouched().expect("is there");
        std::fs::write(dir.join(SCRIPT), "x").expect("written");
        assert!(host.set_aside(&before, &spare) && !dir.exists() && spare.join(WORK).exists());
        assert!(!spare.join(SCRIPT).exists());
        let touches: [(&str, Touch); 6] = [
            ("a file", |dir| std::fs::write(dir.join(WORK).join("file"), "x").expect("written")),
            ("a file that has gone", |dir| {
                let work = dir.join(WORK);
                let changed =
                    || std::fs::metadata(&work).map(|about| (about.ctime(), about.ctime_nsec())).expect("is there");
                let before = changed();
                // A coarse clock may not have moved since the folder was made.
                while changed() == before {
                    std::fs::create_dir(work.join("x")).expect("made");
                    std::fs::remove_dir(work.join("x")).expect("removed");
                }
            }),
            ("a mode", |dir| {
                std::fs::set_permissions(dir.join(WORK), std::fs::Permissions::from_mode(0o755)).expect("set");
            }),
            ("a file beside", |dir| std::fs::write(dir.join("file"), "x").expect("written")),
            ("no folder", |dir| std::fs::remove_dir(dir.join(WORK)).expect("removed")),
            ("another name", |dir| std::fs::create_dir(dir.with_extension("spare")).expect("made")),
        ];
        for (what, touch) in touches {
            remove_spare(&spare);
            let _ = std::fs::remove_dir(&spare);
            std::fs::create_dir_all(host.work()).expect("made");
            let before = host.untouched().expect("is there");
            touch(&dir);
            assert!(!host.set_aside(&before, &spare), "{what}");
            host.remove().expect("goes");
            assert!(!dir.exists(), "{what}");
        }
        std::fs::remove_dir(spare).expect("is empty");
    }

    #[test]
    fn secrets_without_a_job_go_and_others_stay() {
        let (place, dir) = place("lost-secrets");
        let (host, jobs) = (place.host().expect("is one"), dir.join(WORK));
        let host = Host {
            dir: jobs.join("gone"),
            name: "gone".to_owned(),
            owner: host.owner.clone(),
            helper: String::new(),
            groups: None,
            ..*host
        };
        let base = dir.join("memory");
        let there = |name: &str| base.join(name.replace("gone", "there"));
        for folder in [
            base.join(host.secrets_name()),
            there(&host.secrets_name()),
            base.join("jobcell-0a1b-gone"),
            jobs.join("there"),
        ] {
            std::fs::create_dir_all(folder.join("x")).expect("made");
        }
        remove_secrets_in([base.clone(), dir.join("nowhere")].into_iter(), "0a1b", &jobs);
        assert!(!base.join(host.secrets_name()).exists());
        assert!(there(&host.secrets_name()).exists() && base.join("jobcell-0a1b-gone").exists());
        std::fs::remove_dir_all(dir).expect("goes");
    }

    #[test]
    fn what_is_no_folder_is_nobodys_job() {
        let (place, dir) = place("no-folder");
        let host = place.host().expect("is one");
        let odd = |name: &str| Host {
            dir: dir.join(name),
            name: name.to_owned(),
            owner: String::new(),
            helper: String::new(),
            groups: None,
            ..*host
        };
        std::fs::write(dir.join("file"), "x").expect("written");
        std::os::unix::fs::symlink(&dir, dir.join("link")).expect("made");
        for name in ["file", "link", "none"] {
            odd(name).remove().expect("nothing to do");
        }
        assert!(dir.join("file").exists() && dir.join("link").symlink_metadata().is_ok() && dir.join(WORK).exists());
        std::fs::remove_dir_all(dir).expect("goes");
    }

    #[test]
    fn secrets_are_in_memory_in_a_folder_of_their_own() {
        let (place, _) = place("secrets");
        if memory().is_none() {
            assert!(place.secrets().is_err());
            return;
        }
        let folder = place.secrets().expect("made");
        assert_eq!(place.secrets().expect("ours already"), folder);
        assert_eq!(std::fs::metadata(&folder).expect("is there").permissions().mode() & 0o777, 0o700);
        std::fs::write(folder.join("KEY"), "x").expect("written");
        place.host().expect("is one").remove().expect("goes");
        assert!(!folder.exists());
    }
}
