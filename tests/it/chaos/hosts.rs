//! Jobs on another host, over SSH: the agent is killed, the connection cut, or the warden there killed, at moments that nobody has chosen.

use super::checker::Allowed;
use super::table::Fault;
use super::work::Work;
use super::world::{Start, World};
use super::{Dice, rounds};
use crate::ssh::sshd::must;
use std::time::Duration;

/// Rounds between two looks.
const BATCH: u32 = 5;
/// As where jobs run in cells: what nobody heard of is nobody's until its lease is over.
const KILLED: Allowed = Allowed { causes: &[], claims: true };
/// A warden that stays makes a cut connection nothing.
const CUT: Allowed = Allowed { causes: &[], claims: false };
/// With its warden, or in plain mode with its connection, a try is lost, and never more than that.
const LOST: Allowed = Allowed { causes: &["cell_lost", "host_unreachable"], claims: false };
const KILLED_IN_PLAIN_MODE: Allowed = Allowed { causes: &["cell_lost", "host_unreachable"], claims: true };

#[derive(Clone, Copy)]
enum What {
    Agent,
    Connection,
    Warden,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_goes_away_on_the_way_to_a_host() {
    let Some(mut world) = World::on_host(&["one"]).await else { return };
    let mut dice = Dice::new();
    for (name, mode, what, allowed) in [
        ("agent kill -9, jobs on a host", "auto", What::Agent, KILLED),
        ("connection to a host cut", "auto", What::Connection, CUT),
        ("warden on a host kill -9", "auto", What::Warden, LOST),
        ("agent kill -9, plain mode", "plain", What::Agent, KILLED_IN_PLAIN_MODE),
        ("connection to a host cut, plain mode", "plain", What::Connection, LOST),
    ] {
        let mut fault = Fault::new(name);
        let mut left = rounds().div_ceil(2);
        while left > 0 {
            let batch = left.min(BATCH);
            for _ in 0..batch {
                let mixture = Work::mixture();
                for _ in 0..=dice.below(2) {
                    let which = usize::try_from(dice.below(mixture.len() as u64)).expect("is small");
                    world.submit(mixture[which].clone().on_host(mode)).await;
                }
                // The moment is the fault: any.
                tokio::time::sleep(Duration::from_millis(dice.below(1500))).await;
                happens(&mut world, what).await;
            }
            let findings = world.judge(allowed).await;
            fault.judge(batch, &findings);
            left -= batch;
        }
        fault.over();
    }
    let mut fault = Fault::new("agent ends after all of these");
    fault.judge(0, &world.stop().await);
    fault.over();
}

async fn happens(world: &mut World, what: What) {
    match what {
        What::Agent => {
            world.kill_agent(0).await;
            world.start_agent(0, &Start::default());
        }
        What::Connection => world.host.as_ref().expect("there is one").sshd.cut(),
        What::Warden => {
            for pid in world.hubs() {
                must("kill", &["-KILL", &pid.to_string()]);
            }
        }
    }
}
