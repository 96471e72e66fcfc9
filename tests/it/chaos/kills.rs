//! kill -9 of the agent: at each named point, and at moments that nobody has chosen.

use super::checker::Allowed;
use super::table::Fault;
use super::work::Work;
use super::world::{Start, World};
use super::{Dice, rounds};
use std::time::Duration;

/// A kill of the agent ends no try: what had begun goes on, what had not goes back. What it was just about to hear of is nobody's
/// until its lease is over.
const KILLED: Allowed = Allowed { causes: &[], claims: true };
/// Rounds between two looks.
const BATCH: u32 = 5;

/// What dies by `JOBCELL_CRASH_AT` says so by this.
const SIGABRT: i32 = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_dies_at_a_named_point() {
    if !cfg!(debug_assertions) {
        return eprintln!("SKIPPED: a build without debug assertions has no points to die at");
    }
    let Some(mut world) = World::new(&["one"]).await else { return };
    for point in jobcell::crash::POINTS {
        let mut fault = Fault::new(&format!("agent dies {point}"));
        for nth in 1..=rounds().div_ceil(10).min(4) {
            // The one that is there has nothing to do.
            world.kill_agent(0).await;
            world.start_agent(0, &Start { crash_at: Some(format!("{point}:{nth}")) });
            for work in Work::mixture() {
                world.submit(work).await;
            }
            assert_eq!(world.death_of_agent(0).await, Some(SIGABRT), "{point}\n{}", world.log(0));
            world.start_agent(0, &Start::default());
            let findings = world.judge(KILLED).await;
            fault.judge(1, &findings);
        }
        fault.over();
    }
    let mut fault = Fault::new("agent ends after all of these");
    fault.judge(1, &world.stop().await);
    fault.over();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_at_any_moment() {
    let Some(mut world) = World::new(&["one"]).await else { return };
    let (mut dice, mut fault) = (Dice::new(), Fault::new("agent kill -9 at any moment"));
    let mut left = rounds();
    while left > 0 {
        let batch = left.min(BATCH);
        for _ in 0..batch {
            let mixture = Work::mixture();
            for _ in 0..=dice.below(2) {
                let which = usize::try_from(dice.below(mixture.len() as u64)).expect("is small");
                world.submit(mixture[which].clone()).await;
            }
            // The moment is the fault: any.
            tokio::time::sleep(Duration::from_millis(dice.below(1500))).await;
            world.kill_agent(0).await;
            world.start_agent(0, &Start::default());
        }
        let findings = world.judge(KILLED).await;
        fault.judge(batch, &findings);
        left -= batch;
    }
    fault.judge(0, &world.stop().await);
    fault.over();
}
