//! The system calls of a warden that looks after many jobs on a host, where it is not process 1. By the rules of [`super`]: every `unsafe`
//! says why it is sound, and nothing is decided here.

use super::{
    _exit, ALL_SIGNALS, O_CLOEXEC, O_NONBLOCK, ONLY_SIGCHLD, SIG_SETMASK, Sigset, Statfs, c_string, checked, errno,
    fork, getrlimit, kill, prctl, read_some, setrlimit, setsid, signalfd, sigprocmask, statfs, syscall, umask, waitpid,
};
use std::ffi::{CStr, c_int, c_long, c_uint, c_ulong, c_void};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

pub(crate) const EPERM: i32 = 1;
pub(crate) const EAGAIN: i32 = 11;
pub(crate) const EBUSY: i32 = 16;
pub(crate) const EEXIST: i32 = 17;
pub(crate) const ENOBUFS: i32 = 105;
const ESRCH: i32 = 3;
const ENOSYS: i32 = 38;
const CLOSE_RANGE: c_long = 436;
const PIDFD_SEND_SIGNAL: c_long = 424;
const PIDFD_OPEN: c_long = 434;
const RLIMIT_NOFILE: c_int = 7;

unsafe extern "C" {
    fn alarm(seconds: c_uint) -> c_uint;
    fn close(fd: c_int) -> c_int;
    fn dup(fd: c_int) -> c_int;
    fn dup2(from: c_int, to: c_int) -> c_int;
    fn geteuid() -> c_uint;
    fn waitid(kind: c_int, id: c_uint, about: *mut c_void, options: c_int) -> c_int;
}

/// SIGCHLD, and what asks a process to end: 1, 2 and 15.
const FOR_A_HUB: Sigset = {
    let mut bits = [0; 16];
    bits[0] = 1 << 16 | 1 | 1 << 1 | 1 << 14;
    Sigset(bits)
};

/// What has come in a descriptor of signals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// A child has changed.
    pub(crate) children: bool,
    /// This process is asked to end.
    pub(crate) end: bool,
}

/// Blocks every signal, and gives a descriptor for those that a hub listens to.
pub(crate) fn signals_of_a_hub() -> io::Result<OwnedFd> {
    // SAFETY: both sets are constants of the right size; the descriptor is new, and so ours alone.
    unsafe {
        checked(sigprocmask(SIG_SETMASK, &ALL_SIGNALS, std::ptr::null_mut()))?;
        Ok(OwnedFd::from_raw_fd(checked(signalfd(-1, &FOR_A_HUB, O_NONBLOCK | O_CLOEXEC))?))
    }
}

/// The same for a child that inherits the mask.
pub(crate) fn signals_of_a_child() -> io::Result<OwnedFd> {
    // SAFETY: the set is a constant of the right size; the descriptor is new, and so ours alone.
    unsafe { Ok(OwnedFd::from_raw_fd(checked(signalfd(-1, &ONLY_SIGCHLD, O_NONBLOCK | O_CLOEXEC))?)) }
}

/// Takes what waits in such a descriptor.
pub(crate) fn told(signals: &OwnedFd) -> Told {
    /// The kernel's `struct signalfd_siginfo`, which begins with the signal's number.
    const RECORD: usize = 128;
    const SIGCHLD: u32 = 17;
    let (mut records, mut told) = ([0; 8 * RECORD], Told::default());
    while let Ok(Some(count)) = read_some(signals.as_raw_fd(), &mut records) {
        for record in records[..count].chunks_exact(RECORD) {
            let number = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
            told.children |= number == SIGCHLD;
            told.end |= number != SIGCHLD;
        }
        if count < records.len() {
            break;
        }
    }
    told
}

/// Makes a copy of this process, which must have one thread. `None` in the copy, which must never come back to whoever called, but exit.
pub(crate) fn copy_of_us() -> io::Result<Option<i32>> {
    // SAFETY: this program has one thread, so nothing is locked or half done in the copy.
    let pid = checked(unsafe { fork() })?;
    Ok((pid > 0).then_some(pid))
}

/// Ends this process at once: for a copy that has nothing to put in order.
pub(crate) fn end(code: i32) -> ! {
    // SAFETY: takes an integer only, and never comes back.
    unsafe { _exit(code) }
}

/// A session and a process group of its own.
pub(crate) fn own_session() -> io::Result<()> {
    // SAFETY: takes nothing.
    checked(unsafe { setsid() }).map(drop)
}

/// Whoever descends from this process and loses its parent becomes its child. Not inherited.
pub(crate) fn adopt() -> io::Result<()> {
    const PR_SET_CHILD_SUBREAPER: c_int = 36;
    // SAFETY: takes integers only.
    checked(unsafe { prctl(PR_SET_CHILD_SUBREAPER, 1 as c_ulong) }).map(drop)
}

/// What this process is called where only a short name is shown; longer ones are cut.
pub(crate) fn call_us(name: &CStr) {
    const PR_SET_NAME: c_int = 15;
    // SAFETY: the name is a C string, of which the kernel copies sixteen bytes at most.
    unsafe { prctl(PR_SET_NAME, name.as_ptr()) };
}

/// The memory that lists of programs show as a process's arguments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Title {
    address: usize,
    length: usize,
}

impl Title {
    /// That of this process, as /proc tells; its 48th and 49th fields.
    pub(crate) fn find() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(45).map(str::parse::<usize>);
        let (address, end) = (fields.next()?.ok()?, fields.next()?.ok()?);
        let length = end.checked_sub(address)?;
        (address != 0).then_some(Self { address, length })
    }

    /// Shows these instead, as many as there is room for. Nobody may ask for the program's arguments after this.
    pub(crate) fn show(self, arguments: &[&str]) {
        let mut text = arguments.join("\0").into_bytes();
        text.resize(self.length, 0);
        if let Some(last) = text.last_mut() {
            *last = 0;
        }
        // SAFETY: the kernel put the arguments there when this program began, in writable memory of its stack that lives as long as it does.
        // Nothing else of this program refers to them by now: what it needed was copied.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), self.address as *mut u8, self.length) };
    }
}

/// The descriptor `place` becomes a copy of `fd`, and stays open over an exec.
pub(crate) fn put(fd: RawFd, place: RawFd) -> io::Result<()> {
    // SAFETY: takes integers only. What was open there is ours, or nothing.
    checked(unsafe { dup2(fd, place) }).map(drop)
}

/// A copy of an open descriptor.
pub(crate) fn copy_of(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes an integer only; the descriptor is new, and so ours alone.
    unsafe { Ok(OwnedFd::from_raw_fd(checked(dup(fd))?)) }
}

/// Gives a file or folder another name, where nothing has that yet.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    const RENAMEAT2: c_long = 316;
    const AT_FDCWD: c_int = -100;
    const NO_REPLACE: c_uint = 1;
    let (from, to) = (c_string(from.as_os_str().as_encoded_bytes())?, c_string(to.as_os_str().as_encoded_bytes())?);
    // SAFETY: both are C strings that live through the call; the rest are integers.
    let done = unsafe { syscall(RENAMEAT2, AT_FDCWD, from.as_ptr(), AT_FDCWD, to.as_ptr(), NO_REPLACE) };
    checked(done as c_int).map(drop)
}

/// Closes every descriptor from 3 on. For a child that never uses, and never drops, what it has copied of its parent.
pub(crate) fn close_others() {
    /// As many as a hub may have open, for kernels before 5.9.
    const MOST: c_int = MOST_FILES as c_int;
    // SAFETY: takes integers only; the caller uses none of these descriptors any more.
    unsafe {
        if syscall(CLOSE_RANGE, 3 as c_uint, c_uint::MAX, 0 as c_uint) < 0 {
            for fd in 3..MOST {
                close(fd);
            }
        }
    }
}

/// Ends this process by a signal when so many seconds are over; 0 calls it off.
pub(crate) fn deadline(seconds: u32) {
    // SAFETY: takes an integer only.
    unsafe { alarm(seconds) };
}

/// Sets the mask of new files, and gives the one before.
pub(crate) fn set_umask(mask: u32) -> u32 {
    // SAFETY: takes an integer only, and always succeeds.
    unsafe { umask(mask) }
}

/// Whose this process is.
pub(crate) fn user() -> u32 {
    // SAFETY: takes nothing, and always succeeds.
    unsafe { geteuid() }
}

/// Most descriptors that a hub asks for.
const MOST_FILES: u64 = 4096;

/// Lets this process have as many files open as it may, within reason, and gives what it had before.
pub(crate) fn more_files() -> Option<u64> {
    let mut pair = [0; 2];
    // SAFETY: `pair` is laid out as the kernel's struct, for both calls.
    unsafe {
        if getrlimit(RLIMIT_NOFILE, &mut pair) < 0 {
            return None;
        }
        let before = pair[0];
        let more = pair[1].min(MOST_FILES);
        (more > before && setrlimit(RLIMIT_NOFILE, &[more, pair[1]]) == 0).then_some(before)
    }
}

/// How many files this process may have open.
pub(crate) fn files() -> u64 {
    let mut pair = [0; 2];
    // SAFETY: `pair` is laid out as the kernel's struct.
    if unsafe { getrlimit(RLIMIT_NOFILE, &mut pair) } < 0 { 0 } else { pair[0] }
}

/// Sets the soft limit of open files.
pub(crate) fn fewer_files(soft: u64) {
    let mut pair = [0; 2];
    // SAFETY: `pair` is laid out as the kernel's struct, for both calls. A refusal leaves more than there was, which is no harm.
    unsafe {
        if getrlimit(RLIMIT_NOFILE, &mut pair) == 0 {
            setrlimit(RLIMIT_NOFILE, &[soft.min(pair[1]), pair[1]]);
        }
    }
}

/// Sends a signal to a process that `is_it` says is still the one that was meant, asked after the kernel has bound the answer to it.
///
/// Where the kernel knows no such binding, or a filter of calls refuses what the filter's maker did not know (containers of older engines),
/// the number alone has to do: asked for at the last moment. Only its answer says whether a process is really another user's.
pub(crate) fn signal(pid: i32, number: i32, is_it: impl Fn() -> bool) -> io::Result<()> {
    // Never a group, and never everybody.
    if pid <= 1 {
        return Err(io::Error::from_raw_os_error(super::EINVAL));
    }
    // SAFETY: takes integers only; the descriptor is new, and so ours alone.
    let bound = unsafe {
        let fd = syscall(PIDFD_OPEN, pid, 0 as c_uint);
        if fd < 0 { Err(errno()) } else { Ok(OwnedFd::from_raw_fd(fd as c_int)) }
    };
    if let Err(error @ (ESRCH | super::EINVAL)) = bound {
        return Err(io::Error::from_raw_os_error(error));
    }
    if !is_it() {
        return Ok(());
    }
    if let Ok(fd) = &bound {
        let none = std::ptr::null::<c_void>();
        // SAFETY: takes integers, and a null pointer for what a signal can carry.
        match checked(unsafe { syscall(PIDFD_SEND_SIGNAL, fd.as_raw_fd(), number, none, 0 as c_uint) } as c_int) {
            Err(error) if matches!(error.raw_os_error(), Some(ENOSYS | EPERM)) => {}
            other => return other.map(drop),
        }
        if !is_it() {
            return Ok(());
        }
    }
    // SAFETY: takes integers only.
    checked(unsafe { kill(pid, number) }).map(drop)
}

/// The same to a child that was not waited for: nobody else can have its number.
pub(crate) fn signal_child(pid: i32, number: i32) -> io::Result<()> {
    if pid <= 1 {
        return Err(io::Error::from_raw_os_error(super::EINVAL));
    }
    // SAFETY: takes integers only.
    checked(unsafe { kill(pid, number) }).map(drop)
}

/// Whether there is this child, and it has not ended; takes nothing of its end.
pub(crate) fn is_running(child: i32) -> bool {
    const P_PID: c_int = 1;
    waits(P_PID, child.cast_unsigned()) == Some(false)
}

/// Whether there is any child, ended or not.
pub(crate) fn has_children() -> bool {
    const P_ALL: c_int = 0;
    waits(P_ALL, 0).is_some()
}

/// Whether an end of such a child is to be waited for; nothing without such a child.
fn waits(kind: c_int, id: c_uint) -> Option<bool> {
    const WNOHANG: c_int = 1;
    const WEXITED: c_int = 4;
    const WNOWAIT: c_int = 0x0100_0000;
    /// The kernel's `siginfo_t`, which begins with the signal's number: zero where there is nothing to tell.
    const WORDS: usize = 16;
    let mut about = [0_u64; WORDS];
    // SAFETY: `about` is as large as the kernel's struct, and aligned as it is.
    let done = unsafe { waitid(kind, id, about.as_mut_ptr().cast(), WNOHANG | WEXITED | WNOWAIT) };
    (done == 0).then_some(about[0] as u32 != 0)
}

/// Waits until this child has ended.
pub(crate) fn wait_for(child: i32) {
    // SAFETY: takes integers, and a null pointer where the status would go.
    unsafe { waitpid(child, std::ptr::null_mut(), 0) };
}

/// Whether what is written there is in memory only.
pub(crate) fn is_tmpfs(path: &Path) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    let Ok(path) = c_string(path.as_os_str().as_encoded_bytes()) else { return false };
    let mut stat = Statfs::default();
    // SAFETY: the path is a C string, `stat` is laid out as glibc's.
    unsafe { statfs(path.as_ptr(), &mut stat) == 0 && stat.kind == TMPFS_MAGIC }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_signalled_whom_nobody_meant() {
        for pid in [i32::MIN, -1, 0, 1] {
            assert!(signal(pid, 0, || panic!("asked")).is_err());
        }
        let us = std::process::id().cast_signed();
        assert!(signal(us, super::super::SIGKILL, || false).is_ok());
        assert!(signal(us, 0, || true).is_ok());
    }

    /// Runs it in a thread where the kernel refuses this call, as filters of containers do.
    fn refused(number: c_long, run: impl FnOnce() + Send + 'static) {
        const PR_SET_SECCOMP: c_int = 22;
        const PR_SET_NO_NEW_PRIVS: c_int = 38;
        const FILTER: c_ulong = 2;
        /// The kernel's `struct sock_filter` and `struct sock_fprog`.
        #[repr(C)]
        struct Step(u16, u8, u8, u32);
        #[repr(C)]
        struct Program(u16, *const Step);
        let thread = std::thread::spawn(move || {
            let steps = [
                Step(0x20, 0, 0, 0),
                Step(0x15, 0, 1, number as u32),
                Step(0x06, 0, 0, 0x0005_0000 | EPERM as u32),
                Step(0x06, 0, 0, 0x7fff_0000),
            ];
            let program = Program(4, steps.as_ptr());
            let none: c_ulong = 0;
            // SAFETY: the program is laid out as the kernel's, which copies it. Both are of this thread only, which ends.
            unsafe {
                assert_eq!(prctl(PR_SET_NO_NEW_PRIVS, 1 as c_ulong, none, none, none), 0);
                assert_eq!(prctl(PR_SET_SECCOMP, FILTER, std::ptr::from_ref(&program)), 0);
            }
            run();
        });
        thread.join().expect("ran");
    }

    #[test]
    fn a_filter_that_knows_no_descriptors_of_processes_protects_nobody() {
        use std::os::unix::process::ExitStatusExt;
        for call in [PIDFD_OPEN, PIDFD_SEND_SIGNAL] {
            let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("starts");
            let pid = child.id().cast_signed();
            assert!(is_running(pid) && has_children());
            refused(call, move || {
                assert!(signal(pid, super::super::SIGKILL, || false).is_ok());
                signal(pid, super::super::SIGKILL, || true).expect("is ours");
            });
            assert_eq!(child.wait().expect("ended").signal(), Some(super::super::SIGKILL));
            assert!(!is_running(pid));
        }
    }

    #[test]
    fn what_is_in_memory_is_known() {
        assert!(!is_tmpfs(Path::new("/proc")) && !is_tmpfs(Path::new("/nowhere/at/all")));
    }
}
