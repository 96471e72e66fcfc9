//! What a hub knows of a keeper, and how one begins: a copy of the hub, in a session of its own, that looks after one job as process 1 of
//! a cell does.
//!
//! Nothing of the hub's is used in the copy but what it is told here, and it never comes back: its end is that of the process.

use super::Setup;
use crate::place::{Host, Place, WORK};
use crate::receipt::Receipt;
use crate::serve::Warden;
use crate::sys::{self, Reaped, host};
use crate::wire::{MUX_CLOSED, MUX_THINGS_LEFT, is_clean_end};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

/// It was not even begun.
const EXIT_NO_START: i32 = 5;
/// As a clean end, and the job's folder was set aside. For the hub alone.
pub(super) const EXIT_SET_ASIDE: i32 = 64;
const _: () = assert!(!is_clean_end(EXIT_SET_ASIDE));

/// A keeper, or what is left of it.
pub(super) struct Keeper {
    pub(super) name: String,
    /// Its process, until it has ended.
    pub(super) pid: i32,
    pub(super) socket: UnixStream,
    /// What it has not taken yet.
    pub(super) pending: Vec<u8>,
    /// Whose connection it is connected with, and by which channel.
    pub(super) attached: Option<(u32, u16)>,
    /// It will say nothing more.
    pub(super) silent: bool,
    /// How it ended.
    pub(super) ended: Option<i32>,
    /// Nothing of its job can be ended or removed any more; whether something is left nevertheless.
    pub(super) cleared: Option<bool>,
    /// Connections that want to know when it is gone.
    pub(super) killers: Vec<u32>,
}

impl Keeper {
    /// Writes what it takes of what is pending.
    pub(super) fn flush(&mut self) {
        let mut sent = 0;
        while sent < self.pending.len() && !self.silent {
            match sys::write_some(self.socket.as_raw_fd(), &self.pending[sent..]) {
                Ok(Some(count)) => sent += count,
                Ok(None) => break,
                // It has ended, or is about to: what it said is still to be read.
                Err(_) => sent = self.pending.len(),
            }
        }
        self.pending.drain(..sent);
        if self.pending.is_empty() {
            self.pending = Vec::new();
        }
    }

    /// What came for it. Says how much of it has to wait.
    pub(super) fn take(&mut self, bytes: &[u8]) -> usize {
        if self.ended.is_some() {
            return 0;
        }
        if self.pending.is_empty() {
            // Straight through, as nearly always.
            match sys::write_some(self.socket.as_raw_fd(), bytes) {
                Ok(count) => self.pending.extend_from_slice(&bytes[count.unwrap_or_default()..]),
                Err(_) => return 0,
            }
        } else {
            self.pending.extend_from_slice(bytes);
        }
        self.pending.len()
    }

    /// How it ended, once that can be told: its job is gone, and everything that it said has been passed on, or there is nobody to pass it on to.
    pub(super) fn end(&self) -> Option<i32> {
        let (code, left) = (self.ended?, self.cleared?);
        let told = self.silent || self.attached.is_none();
        told.then_some(match (left, code) {
            (true, _) => MUX_THINGS_LEFT,
            // It could not remove them, and the hub could.
            (false, MUX_THINGS_LEFT) => MUX_CLOSED,
            (false, code) => code,
        })
    }
}

/// Makes a job's folder, of one that was set aside if there is any. Error: the kernel's.
fn make(dir: &PathBuf, spares: &mut Vec<PathBuf>) -> io::Result<()> {
    while let Some(spare) = spares.pop() {
        match host::rename_new(&spare, dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(host::EEXIST) => {
                spares.push(spare);
                return Err(error);
            }
            // Somebody has removed it.
            Err(_) => {}
        }
    }
    // The mask is that of a hub: nobody else may look into it.
    std::fs::create_dir(dir)?;
    std::fs::create_dir(dir.join(WORK)).inspect_err(|_| {
        let _ = std::fs::remove_dir(dir);
    })
}

/// Begins one. The answer is the keeper, and where its job is. Error: the step, and the kernel's number.
pub(super) fn start(
    setup: &Setup,
    name: &str,
    spares: &mut Vec<PathBuf>,
) -> Result<(Keeper, Arc<Host>), (&'static str, i32)> {
    let step = |step| move |error: io::Error| (step, error.raw_os_error().unwrap_or(sys::EIO));
    let host = Arc::new(setup.place(name));
    make(&host.dir, spares).map_err(step("folder"))?;
    let begun = || -> io::Result<_> {
        let (ours, theirs) = UnixStream::pair()?;
        // What becomes the copy's standard input and output is shared, and closed by nobody on an exec: a job has its own in their places.
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        match host::copy_of_us()? {
            Some(pid) => Ok((pid, ours)),
            None => be(setup, &host, &theirs),
        }
    };
    let (pid, socket) = begun().map_err(step("fork")).inspect_err(|_| {
        let _ = host.remove();
    })?;
    let keeper = Keeper {
        name: name.to_owned(),
        pid,
        socket,
        pending: Vec::new(),
        attached: None,
        silent: false,
        ended: None,
        cleared: None,
        killers: Vec::new(),
    };
    Ok((keeper, host))
}

/// Runs in the copy.
fn be(setup: &Setup, host: &Arc<Host>, socket: &UnixStream) -> ! {
    let prepare = || -> io::Result<_> {
        host::own_session()?;
        host::adopt()?;
        host::call_us(c"jobcell-keeper");
        if let Some(title) = setup.title {
            title.show(&["jobcell-keeper", &host.name, &setup.dir.to_string_lossy()]);
        }
        for place in [0, 1] {
            host::put(socket.as_raw_fd(), place)?;
        }
        host::close_others();
        if let Some(files) = setup.files {
            host::fewer_files(files);
        }
        host::signals_of_a_child()
    };
    let untouched = host.untouched();
    let code = match prepare() {
        Ok(signals) => {
            let receipt = Receipt::of_one(&setup.facts);
            let place = Place::Host(Arc::clone(host));
            // Not taken apart: all of it goes at once with the process.
            let mut warden = ManuallyDrop::new(Warden::new(receipt, signals, setup.start_deadline_ms, place));
            i32::from(warden.run())
        }
        Err(_) => EXIT_NO_START,
    };
    // What the kernel still calls a child is of the job: given up here, and the hub's to deal with. Where nobody is left, nothing is written
    // any more.
    let alone = loop {
        match sys::reap() {
            Reaped::Child { .. } => {}
            Reaped::NoneYet => break false,
            Reaped::NoChildren => break true,
        }
    };
    let spare = setup.spare(std::process::id());
    if alone && code == MUX_CLOSED && untouched.is_some_and(|before| host.set_aside(&before, &spare)) {
        host::end(EXIT_SET_ASIDE);
    }
    let removed = host.remove().is_ok();
    host::end(if alone && removed { code } else { MUX_THINGS_LEFT })
}
