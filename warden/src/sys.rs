//! System calls, wrapped by hand so that the warden needs nothing but the standard library.
//!
//! Owns every `unsafe` block of this program; each says why it is sound. Must never decide anything: it calls, and hands
//! back what the kernel said. What only a warden on a host needs is in [`host`].

#[path = "sys/host.rs"]
pub(crate) mod host;

use crate::tripwire::{Caught, Instruction};
use crate::wire::Rlimit;
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

pub(crate) const SIGKILL: i32 = 9;
pub(crate) const SIGTERM: i32 = 15;
pub(crate) const SIGCONT: i32 = 18;
pub(crate) const SIGSYS: i32 = 31;
pub(crate) const POLLIN: i16 = 1;
pub(crate) const POLLOUT: i16 = 4;
pub(crate) const ENOENT: i32 = 2;
pub(crate) const EIO: i32 = 5;
pub(crate) const EINVAL: i32 = 22;
#[cfg(test)]
pub(crate) const EEXIST: i32 = 17;
const EINTR: i32 = 4;
const EACCES: i32 = 13;
pub(crate) const ENOTDIR: i32 = 20;
const ENAMETOOLONG: i32 = 36;
const HIGHEST_SIGNAL: c_int = 64;
const O_NONBLOCK: c_int = 0o4000;
const O_CLOEXEC: c_int = 0o2_000_000;
const SIG_SETMASK: c_int = 2;
const PR_SET_DUMPABLE: c_int = 4;
const SYS_RT_SIGACTION: c_long = 13;
const SYS_CLOSE_RANGE: c_long = 436;
const CLOSE_RANGE_CLOEXEC: c_uint = 4;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Timespec {
    sec: i64,
    nsec: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Timeval {
    sec: i64,
    usec: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Rusage {
    utime: Timeval,
    stime: Timeval,
    maxrss_kib: c_long,
    rest: [c_long; 13],
}

/// glibc's `struct statfs` on x86-64 Linux.
#[repr(C)]
#[derive(Default)]
struct Statfs {
    kind: i64,
    block_bytes: i64,
    blocks: u64,
    blocks_free: u64,
    blocks_available: u64,
    files: u64,
    files_free: u64,
    fsid: [i32; 2],
    name_len: i64,
    fragment_bytes: i64,
    flags: i64,
    spare: [i64; 4],
}

/// glibc's `sigset_t`: 1024 bits.
#[repr(C)]
struct Sigset([u64; 16]);

const NO_SIGNALS: Sigset = Sigset([0; 16]);
const ALL_SIGNALS: Sigset = Sigset([u64::MAX; 16]);
/// SIGCHLD is 17; bit 0 stands for signal 1.
const ONLY_SIGCHLD: Sigset = {
    let mut bits = [0; 16];
    bits[0] = 1 << 16;
    Sigset(bits)
};

/// The kernel's `struct pollfd`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PollFd {
    fd: c_int,
    events: i16,
    revents: i16,
}

impl PollFd {
    /// An entry of the poll set; one that asks for nothing is left out by the kernel, hang-ups included.
    pub(crate) fn new(fd: RawFd, events: i16) -> Self {
        Self { fd: if events == 0 { -1 } else { fd }, events, revents: 0 }
    }

    /// Whether anything is to be done, errors and hang-ups included: the next call on the descriptor tells which.
    pub(crate) fn ready(&self) -> bool {
        self.revents != 0
    }
}

unsafe extern "C" {
    fn access(path: *const c_char, mode: c_int) -> c_int;
    fn chdir(path: *const c_char) -> c_int;
    fn clone(run: extern "C" fn(*mut c_void) -> c_int, stack: *mut c_void, flags: c_int, with: *mut c_void) -> c_int;
    fn clock_gettime(clock: c_int, to: *mut Timespec) -> c_int;
    fn dup2(from: c_int, to: c_int) -> c_int;
    fn execve(path: *const c_char, argv: *const *const c_char, envp: *const *const c_char) -> c_int;
    fn _exit(code: c_int) -> !;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn fork() -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn getrlimit(resource: c_int, to: *mut [u64; 2]) -> c_int;
    fn getrusage(who: c_int, to: *mut Rusage) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn memchr(from: *const c_void, byte: c_int, count: usize) -> *mut c_void;
    fn memfd_create(name: *const c_char, flags: c_uint) -> c_int;
    fn mkdirat(folder: c_int, name: *const c_char, mode: c_uint) -> c_int;
    fn mkfifo(path: *const c_char, mode: c_uint) -> c_int;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn openat(folder: c_int, name: *const c_char, flags: c_int, ...) -> c_int;
    fn pipe2(fds: *mut c_int, flags: c_int) -> c_int;
    fn ppoll(fds: *mut PollFd, count: c_ulong, timeout: *const Timespec, mask: *const Sigset) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn read(fd: c_int, to: *mut c_void, count: usize) -> isize;
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, bytes: c_uint) -> c_int;
    fn setrlimit(resource: c_int, limit: *const [u64; 2]) -> c_int;
    fn setsid() -> c_int;
    fn signalfd(fd: c_int, set: *const Sigset, flags: c_int) -> c_int;
    fn sigprocmask(how: c_int, set: *const Sigset, old: *mut Sigset) -> c_int;
    fn symlinkat(target: *const c_char, folder: c_int, name: *const c_char) -> c_int;
    fn statfs(path: *const c_char, to: *mut Statfs) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn umask(mask: c_uint) -> c_uint;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn write(fd: c_int, from: *const c_void, count: usize) -> isize;
}

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(EIO)
}

fn nanos(clock: c_int) -> u64 {
    let mut now = Timespec::default();
    // SAFETY: `now` is a valid timespec to write to; both clocks that are asked for exist since Linux 2.6.39.
    unsafe { clock_gettime(clock, &mut now) };
    // Neither clock is negative on a machine that runs today.
    now.sec.unsigned_abs() * 1_000_000_000 + now.nsec.unsigned_abs()
}

/// Nanoseconds since boot, time in suspend included: a lease does not stop when the machine sleeps.
pub(crate) fn boot_ns() -> u64 {
    const CLOCK_BOOTTIME: c_int = 7;
    nanos(CLOCK_BOOTTIME)
}

/// Microseconds since 1970.
pub(crate) fn unix_us() -> u64 {
    const CLOCK_REALTIME: c_int = 0;
    nanos(CLOCK_REALTIME) / 1000
}

/// Nobody of our user id may look into this process, trace it, or open its descriptors.
pub(crate) fn set_undumpable() -> io::Result<()> {
    // SAFETY: takes integers only.
    checked(unsafe { prctl(PR_SET_DUMPABLE, 0 as c_ulong) }).map(drop)
}

/// Blocks every signal, for process 1 takes no orders by signal, and gives a descriptor that is readable when a child
/// has changed.
pub(crate) fn block_signals() -> io::Result<OwnedFd> {
    // SAFETY: both sets are constants of the right size; the descriptor is new, and so ours alone.
    unsafe {
        checked(sigprocmask(SIG_SETMASK, &ALL_SIGNALS, std::ptr::null_mut()))?;
        Ok(OwnedFd::from_raw_fd(checked(signalfd(-1, &ONLY_SIGCHLD, O_NONBLOCK | O_CLOEXEC))?))
    }
}

/// Takes what waits in the signal descriptor. Signals merge, so how many there were means nothing.
pub(crate) fn drain_signals(fd: &OwnedFd) {
    let mut records = [0u8; 8 * 128];
    while let Ok(Some(count)) = read_some(fd.as_raw_fd(), &mut records) {
        if count < records.len() {
            return;
        }
    }
}

/// Makes a descriptor non-blocking, and closed on exec.
pub(crate) fn make_ours(fd: RawFd) -> io::Result<()> {
    const F_SETFD: c_int = 2;
    const FD_CLOEXEC: c_int = 1;
    set_nonblocking(fd)?;
    // SAFETY: takes integers only.
    checked(unsafe { fcntl(fd, F_SETFD, FD_CLOEXEC) }).map(drop)
}

fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    const F_GETFL: c_int = 3;
    const F_SETFL: c_int = 4;
    // SAFETY: takes integers only.
    unsafe {
        let flags = checked(fcntl(fd, F_GETFL))?;
        checked(fcntl(fd, F_SETFL, flags | O_NONBLOCK)).map(drop)
    }
}

/// A pipe: first the end to read, which does not block, then the end to write, which does, for it is a child's.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: `fds` is room for two descriptors; both are new, and so ours alone.
    let (from, to) = unsafe {
        checked(pipe2(fds.as_mut_ptr(), O_CLOEXEC))?;
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    };
    set_nonblocking(from.as_raw_fd())?;
    Ok((from, to))
}

/// Makes a pipe as large as the kernel lets us, `wanted` bytes at most. A refusal leaves it as it is, which works too.
pub(crate) fn widen_pipe(fd: RawFd, wanted: u32) {
    const F_SETPIPE_SZ: c_int = 1031;
    /// What a pipe has without asking.
    const USUAL_BYTES: u32 = 64 * 1024;
    // The kernel takes an int.
    let mut bytes = wanted.min(1 << 30);
    while bytes > USUAL_BYTES {
        // SAFETY: takes integers only; `bytes` fits an int.
        if unsafe { fcntl(fd, F_SETPIPE_SZ, bytes) } >= 0 {
            return;
        }
        bytes /= 2;
    }
}

/// A file in memory that has no name. Error: the kernel's.
pub(crate) fn memory_file() -> io::Result<File> {
    const MFD_CLOEXEC: c_uint = 1;
    // SAFETY: the name is a C string constant; the descriptor is new, and so ours alone.
    unsafe { Ok(File::from_raw_fd(checked(memfd_create(c"stdin".as_ptr(), MFD_CLOEXEC))?)) }
}

/// What is under `name` in the folder `dir`, which is only looked at: no pipe is waited for, no device is touched, no link followed.
pub(crate) fn look_at(dir: RawFd, name: &CStr) -> io::Result<File> {
    const O_PATH: c_int = 0o10_000_000;
    open_beneath(dir, name, O_PATH)
}

/// The folder `name` in `dir`.
pub(crate) fn folder_at(dir: RawFd, name: &CStr) -> io::Result<File> {
    open_beneath(dir, name, O_DIRECTORY)
}

/// `name` in `dir`, to be read. It may be anything but a link; a pipe without a writer does not hold us up.
pub(crate) fn file_at(dir: RawFd, name: &CStr) -> io::Result<File> {
    open_beneath(dir, name, O_NONBLOCK)
}

fn open_beneath(dir: RawFd, name: &CStr, flags: c_int) -> io::Result<File> {
    const O_NOCTTY: c_int = 0o400;
    // SAFETY: the name is a C string; the descriptor is new, and so ours alone.
    unsafe { Ok(File::from_raw_fd(checked(openat(dir, name.as_ptr(), flags | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC))?)) }
}

/// Some entries of a folder as the kernel writes them (`struct linux_dirent64`), into `to`; 0 at its end. The offset that an entry
/// names is where the next one is.
pub(crate) fn entries(dir: RawFd, to: &mut [u8]) -> io::Result<usize> {
    const SYS_GETDENTS64: c_long = 217;
    // SAFETY: the kernel writes at most `to.len()` bytes to `to`.
    let count = unsafe { syscall(SYS_GETDENTS64, dir, to.as_mut_ptr(), to.len()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Makes a pipe with a name, which only this user may use.
pub(crate) fn named_pipe(path: &CStr) -> io::Result<()> {
    // SAFETY: the path is a C string.
    checked(unsafe { mkfifo(path.as_ptr(), 0o600) }).map(drop)
}

const O_DIRECTORY: c_int = 0o200_000;
const O_NOFOLLOW: c_int = 0o400_000;

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(EINVAL))
}

/// Opens a folder, which must be no link.
pub(crate) fn folder(path: &str) -> io::Result<OwnedFd> {
    let path = c_string(path.as_bytes())?;
    // SAFETY: the path is a C string; the descriptor is new, and so ours alone.
    unsafe { Ok(OwnedFd::from_raw_fd(checked(open(path.as_ptr(), O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC))?)) }
}

/// Opens the folder `name`, which must be no link, in another one. `name` must be one name.
pub(crate) fn folder_in(parent: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
    let name = c_string(name)?;
    let flags = O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    // SAFETY: the name is a C string; the descriptor is new, and so ours alone.
    unsafe { Ok(OwnedFd::from_raw_fd(checked(openat(parent.as_raw_fd(), name.as_ptr(), flags))?)) }
}

/// Makes a folder that is not there yet. `name` must be one name.
pub(crate) fn make_folder(parent: &OwnedFd, name: &[u8], mode: u32) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: the name is a C string.
    checked(unsafe { mkdirat(parent.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

/// Makes a file that is not there yet, for writing: what is there, a link or a FIFO too, is never opened. `name` must be one name.
pub(crate) fn make_file(parent: &OwnedFd, name: &[u8], mode: u32) -> io::Result<File> {
    const O_WRONLY: c_int = 1;
    const O_CREAT: c_int = 0o100;
    const O_EXCL: c_int = 0o200;
    let name = c_string(name)?;
    let flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    // SAFETY: the name is a C string, and the mode follows as a file that is made wants it; the descriptor is new, and so ours alone.
    unsafe { Ok(File::from_raw_fd(checked(openat(parent.as_raw_fd(), name.as_ptr(), flags, mode as c_uint))?)) }
}

/// Makes a symbolic link that is not there yet. `name` must be one name.
pub(crate) fn make_link(target: &[u8], parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let (target, name) = (c_string(target)?, c_string(name)?);
    // SAFETY: both are C strings.
    checked(unsafe { symlinkat(target.as_ptr(), parent.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// Waits until an entry of `fds` is ready or `timeout_ns` is over; `None` waits for ever.
pub(crate) fn poll(fds: &mut [PollFd], timeout_ns: Option<u64>) {
    const BILLION: u64 = 1_000_000_000;
    let limit = timeout_ns.map(|ns| Timespec { sec: (ns / BILLION).cast_signed(), nsec: (ns % BILLION).cast_signed() });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the entries and the timespec live through the call. A null mask leaves the mask alone. On an error revents
    // stay as they were, zero, and the caller simply comes again.
    unsafe { ppoll(fds.as_mut_ptr(), fds.len() as c_ulong, limit, std::ptr::null()) };
}

/// Reads once. `Ok(None)`: nothing there now. `Ok(Some(0))`: the end.
pub(crate) fn read_some(fd: RawFd, to: &mut [u8]) -> io::Result<Option<usize>> {
    // SAFETY: the kernel writes at most `to.len()` bytes to `to`.
    moved(unsafe { read(fd, to.as_mut_ptr().cast(), to.len()) })
}

/// Writes once. `Ok(None)`: no room now.
pub(crate) fn write_some(fd: RawFd, from: &[u8]) -> io::Result<Option<usize>> {
    // SAFETY: the kernel reads at most `from.len()` bytes of `from`.
    moved(unsafe { write(fd, from.as_ptr().cast(), from.len()) })
}

fn moved(result: isize) -> io::Result<Option<usize>> {
    match usize::try_from(result) {
        Ok(count) => Ok(Some(count)),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(EINTR) => Ok(None),
            error => Err(error),
        },
    }
}

/// The other end of this socket shall see that it was cut off when it is closed, and not take it for the end.
pub(crate) fn reset_on_close(socket: RawFd) {
    const SOL_SOCKET: c_int = 1;
    const SO_LINGER: c_int = 13;
    /// The kernel's `struct linger`: on, and no seconds.
    const AT_ONCE: [c_int; 2] = [1, 0];
    // SAFETY: the value is a constant of the size that is told. A refusal leaves an ordinary end, which is no worse than none.
    unsafe { setsockopt(socket, SOL_SOCKET, SO_LINGER, AT_ONCE.as_ptr().cast(), 8) };
}

/// Where `byte` is first in `bytes`. glibc's own search: sixteen times as fast as a loop, and all output passes it.
pub(crate) fn find_byte(bytes: &[u8], byte: u8) -> Option<usize> {
    // SAFETY: the search stays in the slice, and what it finds is in the slice.
    let found = unsafe { memchr(bytes.as_ptr().cast(), c_int::from(byte), bytes.len()) };
    (!found.is_null()).then(|| found as usize - bytes.as_ptr() as usize)
}

/// The state of a CRC-32C behind these bytes, by the processor's own instruction.
pub(crate) fn crc32c_update(state: u32, bytes: &[u8]) -> u32 {
    // SAFETY: this program is built for processors with SSE4.2 (build.rs), so the instruction is there.
    unsafe { crc32c_by_words(state, bytes) }
}

#[target_feature(enable = "sse4.2")]
fn crc32c_by_words(state: u32, bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u64};
    let (words, rest) = bytes.as_chunks::<8>();
    let wide = words.iter().fold(u64::from(state), |sum, word| _mm_crc32_u64(sum, u64::from_le_bytes(*word)));
    // The instruction leaves the upper half zero.
    rest.iter().fold(wide as u32, |sum, byte| _mm_crc32_u8(sum, *byte))
}

/// Puts a filter on this process and all that it starts from now on, and gives the descriptor by which calls are told that it hands over.
pub(crate) fn tripwire(program: &[Instruction]) -> io::Result<OwnedFd> {
    const SYS_SECCOMP: c_long = 317;
    const SET_MODE_FILTER: c_uint = 1;
    const NEW_LISTENER: c_ulong = 8;
    /// The kernel's `struct sock_fprog`.
    #[repr(C)]
    struct Program {
        count: u16,
        first: *const Instruction,
    }
    let program = Program { count: program.len() as u16, first: program.as_ptr() };
    // SAFETY: the program and its instructions live through the call, and the kernel copies them. The descriptor is new, and so ours alone;
    // the kernel closes it on exec.
    unsafe {
        let fd = syscall(SYS_SECCOMP, SET_MODE_FILTER, NEW_LISTENER, std::ptr::from_ref(&program));
        Ok(OwnedFd::from_raw_fd(checked(fd as c_int)?))
    }
}

/// Takes a call that waits to be told, if there is one whose process is still there.
pub(crate) fn caught(listener: RawFd) -> Option<Caught> {
    const NOTIF_RECV: c_ulong = 0xc050_2100;
    /// The kernel's `struct seccomp_notif`.
    #[repr(C)]
    #[derive(Default)]
    struct Notification {
        id: u64,
        pid: u32,
        flags: u32,
        number: c_int,
        architecture: u32,
        instruction: u64,
        arguments: [u64; 6],
    }
    let mut ready = [PollFd::new(listener, POLLIN)];
    // Without this the next call would wait for one.
    poll(&mut ready, Some(0));
    if !ready[0].ready() {
        return None;
    }
    let mut told = Notification::default();
    // SAFETY: `told` is as the kernel wants it, zeroed, and of the size that the request's number says.
    if unsafe { ioctl(listener, NOTIF_RECV, std::ptr::from_mut(&mut told)) } < 0 {
        return None;
    }
    Some(Caught { pid: told.pid, number: told.number.cast_unsigned(), arguments: told.arguments })
}

/// Sends a signal to every process of the cell but this one. Only process 1 of its own namespace may ask for this:
/// elsewhere it would reach everything that the user runs, so it does nothing there.
pub(crate) fn signal_all(number: i32) {
    if std::process::id() == 1 {
        // SAFETY: takes integers only. No process to signal is not an error to us.
        unsafe { kill(-1, number) };
    }
}

/// What asking for an ended child gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reaped {
    /// This one ended.
    Child { pid: i32, status: Status },
    /// There are children, and none of them has ended.
    NoneYet,
    /// There are no children.
    NoChildren,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Exited(i32),
    Signaled(i32),
}

/// Takes one ended child, if there is one.
pub(crate) fn reap() -> Reaped {
    const WNOHANG: c_int = 1;
    let mut status = 0;
    // SAFETY: `status` is room for an int.
    match unsafe { waitpid(-1, &mut status, WNOHANG) } {
        0 => Reaped::NoneYet,
        pid if pid > 0 => {
            let how =
                if status & 0x7f == 0 { Status::Exited(status >> 8 & 0xff) } else { Status::Signaled(status & 0x7f) };
            Reaped::Child { pid, status: how }
        }
        _ => Reaped::NoChildren,
    }
}

/// What all children that were reaped have used together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) user_us: u64,
    pub(crate) system_us: u64,
    /// The largest of one process.
    pub(crate) max_rss_bytes: u64,
}

pub(crate) fn children_usage() -> Usage {
    const RUSAGE_CHILDREN: c_int = -1;
    let mut usage = Rusage::default();
    // SAFETY: `usage` is laid out as the kernel's.
    unsafe { getrusage(RUSAGE_CHILDREN, &mut usage) };
    let micros = |time: Timeval| time.sec.unsigned_abs() * 1_000_000 + time.usec.unsigned_abs();
    Usage {
        user_us: micros(usage.utime),
        system_us: micros(usage.stime),
        max_rss_bytes: usage.maxrss_kib.unsigned_abs() * 1024,
    }
}

/// A hard limit of this process, which no child can exceed.
pub(crate) fn hard_limit(resource: u32) -> Option<u64> {
    let mut pair = [0; 2];
    // SAFETY: `pair` is laid out as the kernel's struct; an unknown resource is an error.
    (unsafe { getrlimit(resource.cast_signed(), &mut pair) } == 0).then_some(pair[1])
}

/// How large a file system is, and what of it is free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) bytes: u64,
    pub(crate) bytes_free: u64,
    pub(crate) files: u64,
    pub(crate) files_free: u64,
}

/// The file system at `path`.
pub(crate) fn space(path: &CStr) -> Option<Space> {
    let mut stat = Statfs::default();
    // SAFETY: the path is a C string, `stat` is laid out as glibc's.
    let done = unsafe { statfs(path.as_ptr(), &mut stat) } == 0;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.block_bytes.unsigned_abs());
    done.then(|| Space {
        bytes: bytes(stat.blocks),
        bytes_free: bytes(stat.blocks_free),
        files: stat.files,
        files_free: stat.files_free,
    })
}

/// Whether this user may write to `path`.
pub(crate) fn may_write(path: &CStr) -> bool {
    const W_OK: c_int = 2;
    // SAFETY: the path is a C string.
    unsafe { access(path.as_ptr(), W_OK) == 0 }
}

/// Everything that a child needs to become the job. All of it is made before the fork: between fork and exec nothing may
/// be allocated.
pub(crate) struct Launch<'a> {
    /// Tried in this order, as a shell tries the folders of its PATH.
    pub(crate) programs: &'a [CString],
    pub(crate) argv: &'a [CString],
    pub(crate) envp: &'a [CString],
    pub(crate) cwd: &'a CStr,
    pub(crate) rlimits: &'a [Rlimit],
    /// Who writes to them goes into a control group.
    pub(crate) doors: Vec<RawFd>,
    /// Become 0, 1 and 2. None of them is one of these numbers already.
    pub(crate) stdio: [RawFd; 3],
    /// Its mask for new files.
    pub(crate) umask: u32,
    /// Until its exec the child uses our memory, and we stand still: nothing is copied for it. Its exec may have to wait for a disk,
    /// and we with it; and its score for when memory is short cannot be its own before.
    pub(crate) borrows: bool,
}

/// Where a start can fail, by the number that the child reports.
pub(crate) const START_STEPS: [&str; 6] = ["session", "stdio", "limits", "workdir", "interpreter", "cgroup"];

/// Starts the job. The answer is its process id, and a pipe that ends when the program runs, or tells step and error
/// number in five bytes when it does not.
pub(crate) fn start(launch: &Launch<'_>) -> io::Result<(i32, OwnedFd)> {
    let pointers = |texts: &[CString]| -> Vec<*const c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (report, reporter) = pipe()?;
    let birth =
        Birth { launch, argv: pointers(launch.argv), envp: pointers(launch.envp), reporter: reporter.as_raw_fd() };
    if launch.borrows {
        return Ok((birth.borrowing()?, report));
    }
    // SAFETY: this process has one thread, so nothing is locked in the child, which calls async-signal-safe functions
    // only, on memory that is complete before the fork, and never returns.
    unsafe {
        match checked(fork())? {
            0 => {
                birth.run();
                _exit(NO_JOB)
            }
            pid => Ok((pid, report)),
        }
    }
}

/// How a child ends that never became the job.
const NO_JOB: c_int = 127;

/// What a child reads on its way.
struct Birth<'a> {
    launch: &'a Launch<'a>,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    reporter: RawFd,
}

impl Birth<'_> {
    /// Becomes the job, or says why not.
    ///
    /// # Safety
    /// Only in a child, which must end when this comes back.
    unsafe fn run(&self) {
        // SAFETY: as for this one; the lists end with null and point to strings of the launch.
        let (step, error) = unsafe { become_job(self.launch, &self.argv, &self.envp) };
        let mut text = [step, 0, 0, 0, 0];
        text[1..].copy_from_slice(&error.to_le_bytes());
        // SAFETY: the text lives through the call.
        unsafe { write(self.reporter, text.as_ptr().cast(), text.len()) };
    }

    /// In a child that uses our memory until it execs or ends.
    fn borrowing(&self) -> io::Result<i32> {
        const CLONE_VM: c_int = 0x100;
        const CLONE_VFORK: c_int = 0x4000;
        const SIGCHLD: c_int = 17;
        /// A few calls deep, none of which allocates.
        const STACK_WORDS: usize = 2048;
        extern "C" fn run(birth: *mut c_void) -> c_int {
            // SAFETY: the parent gave this pointer, keeps what is behind it, and stands still. This is the child.
            unsafe { (*birth.cast::<Birth<'_>>()).run() };
            NO_JOB
        }
        let mut stack: Vec<u128> = Vec::with_capacity(STACK_WORDS);
        // SAFETY: the child runs on memory that nobody else uses, 16-byte aligned and growing down from its end, until it execs or ends; until
        // then this thread, the only one, stands still. What it changes of ours is errno, its own stack, and nothing else: descriptors, folder,
        // mask and signals are its own copies.
        unsafe {
            let top = stack.as_mut_ptr().add(STACK_WORDS).cast();
            checked(clone(run, top, CLONE_VM | CLONE_VFORK | SIGCHLD, std::ptr::from_ref(self).cast_mut().cast()))
        }
    }
}

/// Runs in the child. Comes back only when something failed, with the number of the step and of the error.
///
/// # Safety
/// Only between fork and exec; the pointer lists end with null and point to strings that live.
unsafe fn become_job(launch: &Launch<'_>, argv: &[*const c_char], envp: &[*const c_char]) -> (u8, i32) {
    const O_WRONLY: c_int = 1;
    // SAFETY: see above; every call takes integers or pointers to memory that outlives it.
    unsafe {
        if setsid() < 0 {
            return (0, errno());
        }
        // Before it has memory of its own to be counted. Zero stands for whoever writes.
        for door in &launch.doors {
            if write(*door, c"0".as_ptr().cast(), 1) < 0 {
                return (5, errno());
            }
        }
        for (fd, place) in launch.stdio.iter().zip(0..) {
            if dup2(*fd, place) < 0 {
                return (1, errno());
            }
        }
        // All our descriptors close by themselves; this is the second lock, and kernels before 5.11 go without.
        syscall(SYS_CLOSE_RANGE, 3 as c_uint, c_uint::MAX, CLOSE_RANGE_CLOEXEC);
        umask(launch.umask);
        // A process that is not dumpable cannot write its own oom_score_adj, and an exec makes it dumpable anyway. The
        // kernel shall take the job before the warden; where it refuses, the size decides.
        // Where memory is borrowed, both would be the parent's too.
        if !launch.borrows {
            prctl(PR_SET_DUMPABLE, 1 as c_ulong);
            let adjust = open(c"/proc/self/oom_score_adj".as_ptr(), O_WRONLY | O_CLOEXEC);
            if adjust >= 0 {
                write(adjust, c"500".as_ptr().cast(), 3);
            }
        }
        for limit in launch.rlimits {
            if setrlimit(limit.resource.cast_signed(), &[limit.soft, limit.hard]) < 0 {
                return (2, errno());
            }
        }
        if chdir(launch.cwd.as_ptr()) < 0 {
            return (3, errno());
        }
        // Ignored signals and the mask survive an exec, so both are reset, last: from here on the job can be signalled.
        // By the kernel's own call, for glibc keeps two signals to itself and will not reset them. Zero is the default.
        let default = [0u64; 4];
        for number in 1..=HIGHEST_SIGNAL {
            syscall(SYS_RT_SIGACTION, number, default.as_ptr(), std::ptr::null_mut::<u64>(), size_of::<u64>());
        }
        sigprocmask(SIG_SETMASK, &NO_SIGNALS, std::ptr::null_mut());
        let (mut last, mut refused) = (ENOENT, false);
        for program in launch.programs {
            execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr());
            last = errno();
            match last {
                EACCES => refused = true,
                ENOENT | ENOTDIR | ENAMETOOLONG => {}
                _ => return (4, last),
            }
        }
        (4, if refused { EACCES } else { last })
    }
}

/// What a try gives that never came back, because a filter killed the child instead of refusing.
pub(crate) const KILLED: i32 = -1;

/// Calls each of `tries` in a child, because some of them would change this process where they succeed, and gives back
/// their results in order. The child borrows our memory and we stand still until it is gone, which saves the copy that a
/// fork makes and a pipe to tell the results.
pub(crate) fn try_in_child<const N: usize>(tries: [fn() -> i32; N]) -> io::Result<[i32; N]> {
    const CLONE_VM: c_int = 0x100;
    const CLONE_VFORK: c_int = 0x4000;
    const SIGCHLD: c_int = 17;
    /// A system call and a few locals deep.
    const STACK_WORDS: usize = 2048;
    struct Work<const N: usize> {
        tries: [fn() -> i32; N],
        results: [i32; N],
    }
    extern "C" fn work<const N: usize>(work: *mut c_void) -> c_int {
        // SAFETY: the parent gave this pointer, keeps what is behind it, and stands still.
        let work = unsafe { &mut *work.cast::<Work<N>>() };
        for (one, result) in work.tries.iter().zip(&mut work.results) {
            *result = one();
        }
        0
    }
    let mut stack = vec![0u128; STACK_WORDS];
    let mut all = Work { tries, results: [KILLED; N] };
    // SAFETY: the child runs on a stack of its own, 16-byte aligned and growing down from its end, until it exits; until
    // then this thread, the only one, stands still, so nothing that both see is used twice. Nobody wants its status.
    unsafe {
        let top = stack.as_mut_ptr().add(STACK_WORDS).cast();
        let flags = CLONE_VM | CLONE_VFORK | SIGCHLD;
        let pid = checked(clone(work::<N>, top, flags, std::ptr::from_mut(&mut all).cast()))?;
        waitpid(pid, std::ptr::null_mut(), 0);
    }
    Ok(all.results)
}

/// What a cell must refuse. Each answers with the kernel's error number, or 0 where it was let through, and does no harm
/// then. All are made so that a refusal can be told from a complaint about arguments: where the call is let through,
/// it succeeds or fails with an error that no refusal gives. Only for [`try_in_child`].
pub(crate) mod tries {
    use super::{c_long, errno, syscall};

    const SHMGET: c_long = 29;
    const SOCKET: c_long = 41;
    const PTRACE: c_long = 101;
    const SETPRIORITY: c_long = 141;
    const MOUNT: c_long = 165;
    const KEYCTL: c_long = 250;
    const UNSHARE: c_long = 272;
    const PRLIMIT64: c_long = 302;
    const BPF: c_long = 321;
    const IO_URING_SETUP: c_long = 425;

    fn attempt(number: c_long, arguments: [c_long; 5]) -> i32 {
        let [a, b, c, d, e] = arguments;
        // SAFETY: the callers below pass integers, and pointers to memory of theirs that is large enough. Descriptors
        // that come back close with the child.
        if unsafe { syscall(number, a, b, c, d, e) } < 0 { errno() } else { 0 }
    }

    fn address<T>(of: &mut T) -> c_long {
        std::ptr::from_mut(of) as c_long
    }

    fn socket(family: c_long, kind: c_long, protocol: c_long) -> i32 {
        attempt(SOCKET, [family, kind, protocol, 0, 0])
    }

    /// A user namespace would give all capabilities towards the kernel.
    pub(crate) fn unshare_user() -> i32 {
        attempt(UNSHARE, [0x1000_0000, 0, 0, 0, 0])
    }

    /// Nobody has this kind of file system, so a permitted call ends with ENODEV.
    pub(crate) fn mount() -> i32 {
        let text = |text: &'static std::ffi::CStr| text.as_ptr() as c_long;
        attempt(MOUNT, [text(c"none"), text(c"/"), text(c"jobcell-no-such-kind"), 0, 0])
    }

    pub(crate) fn io_uring() -> i32 {
        let mut parameters = [0u32; 30];
        attempt(IO_URING_SETUP, [1, address(&mut parameters), 0, 0, 0])
    }

    pub(crate) fn socket_vsock() -> i32 {
        socket(40, 1, 0)
    }

    pub(crate) fn socket_alg() -> i32 {
        socket(38, 5, 0)
    }

    /// TCP over IPv4, which is not always to be refused.
    pub(crate) fn socket_inet() -> i32 {
        socket(2, 1, 0)
    }

    /// A segment of no size, which is EINVAL where the call is let through. Not always to be refused.
    pub(crate) fn sysv_shm() -> i32 {
        attempt(SHMGET, [0, 0, 0, 0, 0])
    }

    /// ICMP by hand.
    pub(crate) fn raw_socket() -> i32 {
        socket(2, 3, 1)
    }

    /// Asks to be traced by our parent, which ends with us.
    pub(crate) fn ptrace() -> i32 {
        attempt(PTRACE, [0, 0, 0, 0, 0])
    }

    /// An array of one.
    pub(crate) fn bpf() -> i32 {
        // Kind 2 is an array; then the size of key and value, and the number of entries.
        let mut array = [0u32; 18];
        array[..4].copy_from_slice(&[2, 4, 4, 1]);
        attempt(BPF, [0, address(&mut array), 72, 0, 0])
    }

    /// Asks for the session's keyring without making one; a permitted call finds it or says ENOKEY.
    pub(crate) fn keyctl() -> i32 {
        attempt(KEYCTL, [0, -3, 0, 0, 0])
    }

    /// Reads a limit of process 1; who may read it by this call may set it by the same call.
    pub(crate) fn prlimit_pid1() -> i32 {
        let mut old = [0u64; 2];
        attempt(PRLIMIT64, [1, 7, 0, address(&mut old), 0])
    }

    /// Gives process 1 the priority that it has.
    pub(crate) fn setpriority_pid1() -> i32 {
        attempt(SETPRIORITY, [0, 1, 0, 0, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_found() {
        assert_eq!(find_byte(b"abcabc", b'c'), Some(2));
        assert_eq!(find_byte(b"abcabc", b'x'), None);
        assert_eq!(find_byte(b"", b'x'), None);
    }

    #[test]
    fn outside_a_cell_no_signal_is_sent_to_all() {
        assert_ne!(std::process::id(), 1);
        // Were this sent, the test's own parent would be gone.
        signal_all(SIGTERM);
    }

    #[test]
    fn an_empty_pipe_is_not_its_end() {
        let (from, to) = pipe().expect("a pipe");
        let mut byte = [0];
        assert_eq!(read_some(from.as_raw_fd(), &mut byte).expect("readable"), None);
        assert_eq!(write_some(to.as_raw_fd(), b"x").expect("writable"), Some(1));
        assert_eq!(read_some(from.as_raw_fd(), &mut byte).expect("readable"), Some(1));
        drop(to);
        assert_eq!(read_some(from.as_raw_fd(), &mut byte).expect("readable"), Some(0));
    }
}
