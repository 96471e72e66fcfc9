//! Faults on purpose, against real processes and a real engine of the suite's own. After each fault everything is mended, the world
//! comes to rest, and one checker looks: nothing lost, nothing done twice, nothing left behind, no hole in a log that nobody tells of.
//!
//! [`world`] is what is broken: an engine, a server, agents, and the [`proxy`] between them. [`work`] is jobs whose output is known to
//! the byte. [`checker`] judges, [`table`] reports. The rest is faults: [`kills`] of the agent, [`freeze`] of it, the engine's
//! ([`engines`]), full [`disks`], the way to the server ([`links`]), and the way to
//! other [`hosts`].
//!
//! `make test` has a short round of it, `make chaos` a long one (`JOBCELL_CHAOS_ROUNDS`).

mod checker;
mod disks;
mod engines;
mod freeze;
mod hosts;
mod kills;
mod links;
mod proxy;
mod table;
mod work;
mod world;

/// Rounds of what is done at random moments: as often as `JOBCELL_CHAOS_ROUNDS` says.
fn rounds() -> u32 {
    let Ok(text) = std::env::var("JOBCELL_CHAOS_ROUNDS") else { return 10 };
    let rounds = text.parse().ok().filter(|rounds| *rounds > 0);
    rounds.unwrap_or_else(|| panic!("JOBCELL_CHAOS_ROUNDS is {text:?}; write a number from 1"))
}

/// Numbers that look random; the same for the same seed.
struct Dice(u64);

impl Dice {
    /// From `JOBCELL_CHAOS_SEED`, or from the clock; says which, for the next try.
    fn new() -> Self {
        let seed = match std::env::var("JOBCELL_CHAOS_SEED") {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("JOBCELL_CHAOS_SEED is {text:?}; write a number")),
            Err(_) => std::time::UNIX_EPOCH.elapsed().expect("the clock is right").as_millis() as u64,
        };
        eprintln!("JOBCELL_CHAOS_SEED={seed}");
        Self(seed)
    }

    /// A number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}
