//! The warden that stays on a host: its own program, as an unprivileged user, over pipes instead of an SSH channel.

mod jobs;
mod links;
mod rig;

use crate::ssh::sshd;
use jobcell::executor::docker::WARDEN;
use jobcell::protocol::wire;

/// A folder with the program that the agent carries.
fn new_rig() -> rig::Rig {
    static USER: std::sync::OnceLock<Option<(u32, u32)>> = std::sync::OnceLock::new();
    let user = USER.get_or_init(|| {
        let id = |kind| sshd::must("id", &[kind, sshd::login()]).trim().parse().expect("a number");
        rustix::process::geteuid().is_root().then(|| (id("-u"), id("-g")))
    });
    rig::Rig::new(WARDEN, *user)
}
