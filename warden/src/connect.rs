//! The connector: what an SSH channel runs. It finds the hub of this build, begins one if there is none, and passes bytes both ways until
//! either side ends. Jobs know nothing of it.
//!
//! Owns how a hub comes to be: whoever looks for one holds a lock, and has the socket open before the hub runs, so two that come at the same
//! time find the same one, and nobody waits for a hub to be ready. Must never hold anything of an agent's when it is gone.

use crate::hub::{Hub, Setup};
use crate::sys::{self, POLLIN, POLLOUT, PollFd, host};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// For finding a hub and beginning one; both take a few milliseconds.
const SECONDS: u32 = 20;
/// Held for each direction.
const BUFFER_BYTES: usize = 64 * 1024;
/// Of a program's file.
const LONGEST_NAME: usize = 85;
/// How a hub is called where programs are listed.
const HUB_NAME: &str = "jobcell-hub";
const START_DEADLINE_MS: u64 = 120_000;
const LINGER_MS: u64 = 5 * 60_000;
const IDLE_MS: u64 = 5 * 60_000;
const USAGE: &str =
    "use connect --dir DIR --owner ID [--umask MASK] [--start-deadline-ms N] [--linger-ms N] [--idle-ms N]";

/// What both a connector and its hub are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    dir: PathBuf,
    owner: String,
    start_deadline_ms: u64,
    linger_ms: u64,
    idle_ms: u64,
    /// The mask of new files that jobs have, where it is not the connector's own.
    umask: Option<u32>,
}

/// Reads them. Error: a sentence.
pub(crate) fn options(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let (mut dir, mut owner, mut umask) = (None, None, None);
    let mut times = [START_DEADLINE_MS, LINGER_MS, IDLE_MS];
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} has no value; {USAGE}"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name}: {value:?} is not a number; {USAGE}"));
        match name.as_str() {
            "--dir" => dir = Some(PathBuf::from(&value)).filter(|dir| dir.is_absolute()),
            // It becomes a part of names.
            "--owner" => owner = Some(value).filter(|owner| crate::wire::is_mux_name(owner)),
            "--start-deadline-ms" => times[0] = number()?,
            "--linger-ms" => times[1] = number()?,
            "--idle-ms" => times[2] = number()?,
            // As a shell says it.
            "--umask" => {
                let mask = u32::from_str_radix(&value, 8).ok().filter(|mask| *mask <= 0o777);
                umask = Some(mask.ok_or_else(|| format!("--umask: {value:?} is not a mask; {USAGE}"))?);
            }
            _ => return Err(format!("unknown argument {name:?}; {USAGE}")),
        }
    }
    let dir = dir.ok_or_else(|| format!("--dir names no folder from / on; {USAGE}"))?;
    let owner = owner.ok_or_else(|| format!("--owner names no installation; {USAGE}"))?;
    let [start_deadline_ms, linger_ms, idle_ms] = times;
    Ok(Options { dir, owner, start_deadline_ms, linger_ms, idle_ms, umask })
}

impl Options {
    /// The other way round, for the hub.
    fn args(&self, umask: u32) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["hub".into(), "--dir".into(), self.dir.clone().into()];
        let texts = [
            ("--owner", self.owner.clone()),
            ("--start-deadline-ms", self.start_deadline_ms.to_string()),
            ("--linger-ms", self.linger_ms.to_string()),
            ("--idle-ms", self.idle_ms.to_string()),
            ("--umask", format!("{umask:04o}")),
        ];
        args.extend(texts.into_iter().flat_map(|(name, value)| [name.into(), value.into()]));
        args
    }
}

/// What belongs to this build on this machine: a home can be that of many, and a socket is one machine's. A build is called as its file is: who
/// makes the file names it by its contents.
fn build() -> String {
    let name = std::env::current_exe().ok().and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    // What was removed while it runs has this behind its name.
    let name = name.map(|name| name.trim_end_matches(" (deleted)").to_owned());
    let name = name.filter(|name| name.len() <= LONGEST_NAME && crate::wire::is_mux_name(name));
    let host = crate::crc::crc32c(&machine());
    // With a dot before it, and its end as it is: nobody takes it for a program, and lists of open sockets name the program.
    format!(".{host:08x}@{}", name.unwrap_or_else(|| format!("warden-{}", crate::BUILD)))
}

/// Where processes that we see are seen too: this boot of this kernel, and in it the namespace of process numbers. A container is such a place of its
/// own, whatever it is called; a machine stays one when it is called otherwise.
fn machine() -> Vec<u8> {
    let read = |path| std::fs::read(path).ok().filter(|bytes| !bytes.is_empty());
    let boot = read("/proc/sys/kernel/random/boot_id").or_else(|| read("/proc/sys/kernel/hostname"));
    let space = std::fs::metadata("/proc/self/ns/pid").map_or(0, |about| about.ino());
    [boot.unwrap_or_default(), space.to_le_bytes().to_vec()].concat()
}

/// In the hub's folder, and by no longer path: the kernel takes a hundred bytes.
fn socket_name() -> String {
    format!("{}.sock", build())
}

fn lock_name() -> String {
    format!("{}.lock", build())
}

/// Connects standard input and output with the hub. Error: a sentence.
pub(crate) fn connect(options: &Options) -> Result<(), String> {
    let said = |what: &str| {
        let what = format!("{what} {}", options.dir.display());
        move |error: io::Error| format!("{what}: {error}")
    };
    let about = std::fs::symlink_metadata(&options.dir).map_err(said("the folder"))?;
    if !about.is_dir() || about.uid() != host::user() || about.mode() & 0o077 != 0 {
        let dir = options.dir.display();
        return Err(format!("{dir} is not a folder of this user's that is closed to others; make it with mode 0700"));
    }
    sys::set_undumpable().map_err(said("cannot be closed to others, for"))?;
    // Whoever holds the lock for longer than this is stuck, and so would we be.
    host::deadline(SECONDS);
    std::env::set_current_dir(&options.dir).map_err(said("cannot go to"))?;
    let own = host::set_umask(0o077);
    let mask = options.umask.unwrap_or(own);
    let socket = hub(options, mask).map_err(said("no hub can be begun in"))?;
    host::deadline(0);
    relay(&socket).map_err(|error| format!("the connection has failed: {error}"))
}

/// The socket of a hub that runs, which is begun if there is none.
fn hub(options: &Options, umask: u32) -> io::Result<UnixStream> {
    let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(lock_name())?;
    lock.lock()?;
    let name = socket_name();
    match UnixStream::connect(&name) {
        Ok(socket) => return Ok(socket),
        // Nobody listens there, or nothing is there: it is of a hub that is gone.
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {}
        // One that may well be there must not be given a second one at its side.
        Err(error) => return Err(io::Error::new(error.kind(), format!("the hub there cannot be reached: {error}"))),
    }
    match std::fs::remove_file(&name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&name)?;
    let socket = UnixStream::connect(&name)?;
    begin(options, umask, listener)?;
    Ok(socket)
}

/// Begins a hub that has nothing to do with this process, nor with whoever waits for it.
fn begin(options: &Options, umask: u32, listener: UnixListener) -> io::Result<()> {
    match host::copy_of_us()? {
        Some(pid) => {
            host::wait_for(pid);
            Ok(())
        }
        None => {
            let begun = host::own_session().and_then(|()| match host::copy_of_us()? {
                Some(_) => Ok(()),
                None => Err(become_hub(options, umask, listener)),
            });
            std::process::exit(i32::from(begun.is_err()))
        }
    }
}

/// Comes back only when that failed. Then the agent sees its connection end, and finds the reason by asking again.
fn become_hub(options: &Options, umask: u32, listener: UnixListener) -> io::Error {
    host::deadline(0);
    let ours = |name: &std::ffi::OsStr| {
        let name = name.as_encoded_bytes();
        name.starts_with(b"SSH_") || name == b"_"
    };
    // Under a number that an exec does not close, and no others: whoever waits for the end of a channel waits for all who have it open.
    if let Err(error) = host::put(listener.as_raw_fd(), 0).and_then(|()| {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        host::put(null.as_raw_fd(), 1)?;
        host::put(null.as_raw_fd(), 2)
    }) {
        return error;
    }
    std::mem::forget(listener);
    host::close_others();
    Command::new("/proc/self/exe")
        .arg0(HUB_NAME)
        .args(options.args(umask))
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| !ours(name)))
        .stdin(Stdio::inherit())
        .exec()
}

/// Runs a hub whose socket is its standard input. Error: a sentence.
pub(crate) fn run_hub(options: Options) -> Result<(), String> {
    let said = |error: io::Error| format!("the hub cannot begin: {error}");
    let helper = std::env::current_exe().map_err(said)?.to_string_lossy().into_owned();
    let begin = || -> io::Result<Hub> {
        sys::set_undumpable()?;
        let signals = host::signals_of_a_hub()?;
        host::adopt()?;
        host::call_us(c"jobcell-hub");
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let listener = UnixListener::from(host::copy_of(0)?);
        host::put(null.as_raw_fd(), 0)?;
        sys::make_ours(listener.as_raw_fd())?;
        // Of no file system that somebody may want to unmount.
        std::env::set_current_dir("/")?;
        host::set_umask(0o077);
        let mut setup = Setup {
            spares: format!("{}.spare-", build()),
            socket: options.dir.join(socket_name()),
            lock: options.dir.join(lock_name()),
            dir: options.dir,
            owner: options.owner,
            helper,
            umask: options.umask.unwrap_or(0o022),
            files: host::more_files(),
            title: host::Title::find(),
            facts: Vec::new(),
            groups: None,
            start_deadline_ms: options.start_deadline_ms,
            linger_ns: options.linger_ms.saturating_mul(1_000_000),
            idle_ns: options.idle_ms.saturating_mul(1_000_000),
        };
        setup.look_around();
        Ok(Hub::new(setup, listener, signals))
    };
    begin().map_err(said)?.run();
    Ok(())
}

/// One direction.
struct Flow {
    from: RawFd,
    to: RawFd,
    bytes: Vec<u8>,
    /// What is in it.
    held: std::ops::Range<usize>,
    over: bool,
}

impl Flow {
    fn new(from: RawFd, to: RawFd) -> Self {
        Self { from, to, bytes: vec![0; BUFFER_BYTES], held: 0..0, over: false }
    }

    fn entries(&self) -> [PollFd; 2] {
        let (empty, events) = (self.held.is_empty(), |wanted: bool, event: i16| if wanted { event } else { 0 });
        [PollFd::new(self.from, events(empty && !self.over, POLLIN)), PollFd::new(self.to, events(!empty, POLLOUT))]
    }

    /// Reads and writes what goes. Says whether it is all over.
    fn turn(&mut self, readable: bool) -> io::Result<bool> {
        if self.held.is_empty() && readable && !self.over {
            match sys::read_some(self.from, &mut self.bytes)? {
                Some(0) => self.over = true,
                count => self.held = 0..count.unwrap_or_default(),
            }
        }
        if !self.held.is_empty() {
            self.held.start += sys::write_some(self.to, &self.bytes[self.held.clone()])?.unwrap_or_default();
        }
        Ok(self.over && self.held.is_empty())
    }
}

/// Passes bytes both ways until one side has ended. What the hub said before its end is passed on; what an agent said before its own has
/// reached the hub or makes no difference.
fn relay(socket: &UnixStream) -> io::Result<()> {
    for fd in [0, 1, socket.as_raw_fd()] {
        sys::make_ours(fd)?;
    }
    let mut flows = [Flow::new(0, socket.as_raw_fd()), Flow::new(socket.as_raw_fd(), 1)];
    loop {
        let mut fds: Vec<PollFd> = flows.iter().flat_map(Flow::entries).collect();
        sys::poll(&mut fds, None);
        for (at, flow) in flows.iter_mut().enumerate() {
            if flow.turn(fds[2 * at].ready())? {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Options, String> {
        options(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn a_hub_is_told_what_its_connector_was() {
        let told = read(&["--dir", "/x", "--owner", "0a", "--umask", "0027", "--idle-ms", "7"]).expect("known");
        assert_eq!((told.umask, told.idle_ms, told.linger_ms), (Some(0o027), 7, LINGER_MS));
        let args: Vec<String> = told.args(0o027).into_iter().map(|arg| arg.into_string().expect("text")).collect();
        assert_eq!((args[0].as_str(), options(args[1..].iter().cloned())), ("hub", Ok(told)));
        let bad = [
            &[][..],
            &["--dir", "/x"],
            &["--dir", "x", "--owner", "0a"],
            &["--dir", "/x", "--owner", "a/b"],
            &["--dir", "/x", "--owner", "0a", "--umask", "9"],
            &["--dir", "/x", "--owner", "0a", "--umask", "1777"],
            &["--dir", "/x", "--owner"],
            &["--dir", "/x", "--owner", "0a", "--what", "1"],
        ];
        for args in bad {
            assert!(read(args).is_err_and(|why| why.contains("use connect")), "{args:?}");
        }
    }
}
