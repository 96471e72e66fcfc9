//! The kernel's calls that the standard library does not offer. The only file with `unsafe`; each block says why it is
//! sound.

use std::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use crate::wire::Rlimit;

pub const POLLIN: i16 = 1;
pub const POLLOUT: i16 = 4;
pub const SIGKILL: c_int = 9;
pub const SIGTERM: c_int = 15;

const CLOCK_BOOTTIME: c_int = 7;
const EINTR: i32 = 4;
const F_SETFL: c_int = 4;
const F_GETFL: c_int = 3;
const F_SETPIPE_SZ: c_int = 1031;
const O_NONBLOCK: c_int = 0o4000;
const O_CLOEXEC: c_int = 0o2_000_000;
const PR_SET_DUMPABLE: c_int = 4;
const RUSAGE_CHILDREN: c_int = -1;
const SFD_FLAGS: c_int = O_NONBLOCK | O_CLOEXEC;
const LAST_SIGNAL: c_int = 64;
const SIG_BLOCK: c_int = 0;
const SIG_SETMASK: c_int = 2;
const SIG_DFL: usize = 0;
const WNOHANG: c_int = 1;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PollFd {
    pub fd: RawFd,
    pub events: i16,
    pub revents: i16,
}

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanos: i64,
}

#[repr(C)]
#[derive(Default)]
struct Timeval {
    seconds: i64,
    micros: i64,
}

/// The kernel's `struct rusage`: two times and fourteen counters.
#[repr(C)]
#[derive(Default)]
struct Rusage {
    user: Timeval,
    system: Timeval,
    counters: [c_long; 14],
}

/// glibc's `sigset_t`: 1024 bits.
#[repr(C)]
struct Sigset([u64; 16]);

#[repr(C)]
struct RlimitPair {
    soft: u64,
    hard: u64,
}

unsafe extern "C" {
    fn clock_gettime(clock: c_int, to: *mut Timespec) -> c_int;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn getrusage(who: c_int, to: *mut Rusage) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn memfd_create(name: *const c_char, flags: c_uint) -> c_int;
    fn pipe2(fds: *mut c_int, flags: c_int) -> c_int;
    fn ppoll(fds: *mut PollFd, count: c_ulong, timeout: *const Timespec, mask: *const Sigset) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn read(fd: c_int, to: *mut c_void, count: usize) -> isize;
    fn setrlimit(resource: c_int, limit: *const RlimitPair) -> c_int;
    fn setsid() -> c_int;
    fn signal(number: c_int, handler: usize) -> usize;
    fn sigfillset(set: *mut Sigset) -> c_int;
    fn sigprocmask(how: c_int, set: *const Sigset, old: *mut Sigset) -> c_int;
    fn signalfd(fd: c_int, set: *const Sigset, flags: c_int) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn umask(mask: c_uint) -> c_uint;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn write(fd: c_int, from: *const c_void, count: usize) -> isize;
}

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Microseconds since boot, suspend included.
pub fn boot_us() -> u64 {
    let mut now = Timespec { seconds: 0, nanos: 0 };
    // SAFETY: the kernel writes one timespec to a valid place; this clock exists since Linux 2.6.39.
    unsafe { clock_gettime(CLOCK_BOOTTIME, &mut now) };
    now.seconds as u64 * 1_000_000 + now.nanos as u64 / 1000
}

/// Nobody of our user id may look into this process or attach to it.
pub fn set_undumpable() {
    // SAFETY: takes two integers.
    unsafe { prctl(PR_SET_DUMPABLE, 0 as c_ulong) };
}

/// Blocks every signal and gives a descriptor that is readable when one waits. Process 1 takes no orders by signal.
pub fn signals_as_fd() -> io::Result<OwnedFd> {
    let mut all = Sigset([0; 16]);
    // SAFETY: `all` is as large as glibc's sigset_t and lives through all three calls; the descriptor is new and ours.
    unsafe {
        sigfillset(&mut all);
        checked(sigprocmask(SIG_BLOCK, &all, std::ptr::null_mut()))?;
        Ok(OwnedFd::from_raw_fd(checked(signalfd(-1, &all, SFD_FLAGS))?))
    }
}

/// Makes a descriptor non-blocking.
pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: integers only.
    unsafe {
        let flags = checked(fcntl(fd, F_GETFL))?;
        checked(fcntl(fd, F_SETFL, flags | O_NONBLOCK)).map(drop)
    }
}

/// A pipe of `bytes` if the kernel grants it: the end to read is non-blocking, neither survives an exec.
pub fn pipe(bytes: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: the kernel writes two descriptors to a valid place; both are new and ours.
    let (from, to) = unsafe {
        checked(pipe2(fds.as_mut_ptr(), O_CLOEXEC))?;
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    };
    set_nonblocking(from.as_raw_fd())?;
    // SAFETY: integers only. A refusal (the user's pipe quota) leaves the default size, which works too.
    unsafe { fcntl(from.as_raw_fd(), F_SETPIPE_SZ, bytes as c_int) };
    Ok((from, to))
}

/// A file that has no name.
pub fn anonymous_file() -> io::Result<File> {
    const MFD_CLOEXEC: c_uint = 1;
    // SAFETY: the name is a C string constant; the descriptor is new and ours.
    unsafe { Ok(File::from_raw_fd(checked(memfd_create(c"section".as_ptr(), MFD_CLOEXEC))?)) }
}

/// Waits until one of `fds` is ready or `timeout` is over.
pub fn wait_ready(fds: &mut [PollFd], timeout: Option<Duration>) {
    let limit = timeout.map(|t| Timespec { seconds: t.as_secs() as i64, nanos: i64::from(t.subsec_nanos()) });
    let limit = limit.as_ref().map_or(std::ptr::null(), |limit| limit as *const Timespec);
    // SAFETY: the array and the timespec live through the call. An error leaves revents as they were, which is zero.
    unsafe { ppoll(fds.as_mut_ptr(), fds.len() as c_ulong, limit, std::ptr::null()) };
}

/// Reads once; `Ok(None)` when nothing is there.
pub fn read_some(fd: RawFd, to: &mut [u8]) -> io::Result<Option<usize>> {
    // SAFETY: the kernel writes at most `to.len()` bytes into `to`.
    again(unsafe { read(fd, to.as_mut_ptr().cast(), to.len()) })
}

/// Writes once; `Ok(None)` when there is no room.
pub fn write_some(fd: RawFd, from: &[u8]) -> io::Result<Option<usize>> {
    // SAFETY: the kernel reads at most `from.len()` bytes of `from`.
    again(unsafe { write(fd, from.as_ptr().cast(), from.len()) })
}

fn again(result: isize) -> io::Result<Option<usize>> {
    if result >= 0 {
        return Ok(Some(result as usize));
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(EINTR) { Ok(None) } else { Err(error) }
}

/// Sends a signal to every process that we may signal, ourselves left out.
pub fn signal_all(signal: c_int) {
    // SAFETY: integers only; -1 means every process of this pid namespace but the caller.
    unsafe { kill(-1, signal) };
}

/// What waiting for a child gave.
pub enum Reaped {
    /// This one has ended.
    Child { pid: i32, status: i32 },
    /// There are children, and none has ended.
    NoneYet,
    /// There are none.
    NoChildren,
}

/// Takes one ended child, if there is one.
pub fn reap() -> Reaped {
    let mut status = 0;
    // SAFETY: the kernel writes one integer to a valid place.
    match unsafe { waitpid(-1, &mut status, WNOHANG) } {
        0 => Reaped::NoneYet,
        pid if pid > 0 => Reaped::Child { pid, status },
        _ => Reaped::NoChildren,
    }
}

/// What all children together have used: user and system time in microseconds, and the largest resident size in bytes.
pub fn children_usage() -> (u64, u64, u64) {
    let mut usage = Rusage::default();
    // SAFETY: the structure is laid out as the kernel's.
    unsafe { getrusage(RUSAGE_CHILDREN, &mut usage) };
    let us = |time: &Timeval| time.seconds as u64 * 1_000_000 + time.micros as u64;
    (us(&usage.user), us(&usage.system), usage.counters[0] as u64 * 1024)
}

/// Has the child of `command` leave our session, lose our protection and take its limits before it becomes the job.
pub fn prepare_child(command: &mut Command, rlimits: Vec<Rlimit>) {
    let prepare = move || {
        let none = Sigset([0; 16]);
        // SAFETY: only async-signal-safe calls, on integers and on memory that lives through them. The job must not inherit
        // that the warden blocks every signal and ignores SIGPIPE: it would hear no TERM and its pipes would not end.
        unsafe {
            for number in 1..=LAST_SIGNAL {
                signal(number, SIG_DFL);
            }
            checked(sigprocmask(SIG_SETMASK, &none, std::ptr::null_mut()))?;
            setsid();
            umask(0o022);
            // A process that is not dumpable may not write its own oom_score_adj. An exec makes it dumpable anyway.
            prctl(PR_SET_DUMPABLE, 1 as c_ulong);
        }
        // The kernel shall take the job before the warden. Without /proc it is the size that decides.
        if let Ok(mut file) = std::fs::OpenOptions::new().write(true).open("/proc/self/oom_score_adj") {
            let _ = io::Write::write_all(&mut file, b"500");
        }
        for one in &rlimits {
            let pair = RlimitPair { soft: one.soft, hard: one.hard };
            // SAFETY: the pair lives through the call.
            checked(unsafe { setrlimit(one.resource as c_int, &pair) })?;
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec in a child of a process with one thread, so nothing that it touches
    // can be locked.
    unsafe { command.pre_exec(prepare) };
}

/// Makes one system call with integer arguments that can do no harm when it succeeds, and answers with the error number,
/// 0 for success. Used to try what a cell must refuse.
pub fn attempt(number: c_long, arguments: [c_long; 5]) -> i32 {
    let [a, b, c, d, e] = arguments;
    // SAFETY: the callers pass null or invalid pointers only, which the kernel checks; a descriptor that comes back is
    // closed by `attempt_fd`.
    if unsafe { syscall(number, a, b, c, d, e) } < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
}

/// The same for calls that answer with a descriptor, which is closed at once.
pub fn attempt_fd(number: c_long, arguments: [c_long; 5]) -> i32 {
    let [a, b, c, d, e] = arguments;
    // SAFETY: as above; a result that is not negative is a new descriptor of ours.
    unsafe {
        let fd = syscall(number, a, b, c, d, e);
        if fd < 0 {
            return io::Error::last_os_error().raw_os_error().unwrap_or(-1);
        }
        drop(OwnedFd::from_raw_fd(fd as RawFd));
        0
    }
}

/// Where an integer argument of [`attempt`] must be the address of 16 writable bytes.
pub fn scratch() -> (Box<[u64; 2]>, c_long) {
    let mut memory = Box::new([0u64; 2]);
    let address = memory.as_mut_ptr() as c_long;
    (memory, address)
}
