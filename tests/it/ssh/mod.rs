//! SSH against real OpenSSH servers, each with settings, host keys and an address of its own. Without sshd they are skipped loudly, and fail
//! where `JOBCELL_TEST_ENGINE=required` is set, as in CI.

mod down;
mod driver;
mod full;
pub(crate) mod jobs;
mod limits;
mod logins;
mod loss;
mod network;
mod pam;
mod passwords;
mod places;
pub(crate) mod resident;
mod resident_beside;
mod resident_loss;
mod scan;
mod several;
pub(crate) mod sshd;
mod stalls;
mod trust;

use jobcell::executor::ssh::inventory::{Destination, LiveInventory};
use jobcell::executor::ssh::{ConnectError, Event, Exec, Lane, Output, Pool, Route, SshSettings};
use sshd::{Folder, Sshd};
use std::fmt::Write as _;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What a command came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) out: Vec<u8>,
    pub(crate) err: Vec<u8>,
    pub(crate) events: Vec<Event>,
}

impl Ran {
    /// The code, if nothing else was said but the end.
    pub(crate) fn code(&self) -> Option<u32> {
        self.events.iter().find_map(|event| if let Event::Exit(code) = event { Some(*code) } else { None })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

/// Reads a command to its end.
pub(crate) async fn finish(mut output: Output) -> Ran {
    let mut ran = Ran::default();
    while let Some(event) = output.next().await {
        match event {
            Event::Stdout(bytes) => ran.out.extend_from_slice(&bytes),
            Event::Stderr(bytes) => ran.err.extend_from_slice(&bytes),
            other => ran.events.push(other),
        }
    }
    ran
}

/// Runs a command that reads nothing.
pub(crate) async fn run(pool: &Pool, route: &Route, command: &str) -> Result<Ran, ConnectError> {
    let Exec { input, output } = pool.exec(route, command, Lane::Job).await?;
    drop(input);
    Ok(finish(output).await)
}

/// An inventory in a folder, written line by line.
pub(crate) struct Inventory {
    hosts: String,
    credentials: String,
    rest: String,
}

impl Inventory {
    /// With the credential `key` of a key file that the servers know, and the known hosts of the folder.
    pub(crate) fn new(folder: &Folder) -> Self {
        let credentials = format!("  key: {{key_file: {}}}\n", folder.user_key().display());
        let rest = format!("known_hosts: [{}]\n", folder.path("known_hosts").display());
        Self { hosts: String::new(), credentials, rest }
    }

    pub(crate) fn host(mut self, name: &str, sshd: &Sshd, more: &str) -> Self {
        let (address, port, login) = (&sshd.address, sshd.port, sshd::login());
        let more = if more.contains("credential:") { more.to_owned() } else { format!("credential: key, {more}") };
        writeln!(self.hosts, "  {name}: {{address: {address}, port: {port}, login: {login}, {more}}}").expect("fits");
        self
    }

    pub(crate) fn credential(mut self, name: &str, what: &str) -> Self {
        writeln!(self.credentials, "  {name}: {{{what}}}").expect("fits");
        self
    }

    pub(crate) fn write(&self, folder: &Folder) -> LiveInventory {
        let text = format!("hosts:\n{}credentials:\n{}{}", self.hosts, self.credentials, self.rest);
        let path = folder.write("inventory.yaml", &text);
        LiveInventory::load(&path, &folder.path("data")).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
    }

    pub(crate) fn pool(&self, folder: &Folder, settings: SshSettings) -> Rig {
        let stop = CancellationToken::new();
        Rig { pool: Pool::new(settings, self.write(folder), stop.clone()), stop }
    }
}

/// A pool whose connections end with it.
pub(crate) struct Rig {
    pub(crate) pool: Pool,
    pub(crate) stop: CancellationToken,
}

impl Rig {
    pub(crate) fn route(&self, host: &str) -> Route {
        let to = Destination { host, ..Destination::default() };
        self.pool.inventory().current().route(&to).expect("a route")
    }

    pub(crate) async fn run(&self, host: &str, command: &str) -> Result<Ran, ConnectError> {
        run(&self.pool, &self.route(host), command).await
    }

    pub(crate) fn connections(&self) -> usize {
        self.pool.states().iter().map(|state| state.connections).sum()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Settings under which nothing that should happen takes long.
pub(crate) fn settings() -> SshSettings {
    SshSettings { connect_timeout: Duration::from_secs(20), ..SshSettings::default() }
}
