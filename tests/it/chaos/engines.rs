//! The engine's daemons: killed, stopped, started again; and the shims below them.

use super::checker::Allowed;
use super::table::Fault;
use super::work::Work;
use super::world::{Start, World};
use super::{Dice, rounds};
use std::process::Command;
use std::time::Duration;

const NONE: Allowed = Allowed { causes: &[], claims: false };
/// The cells go with the daemon; what is being made then fails.
const CELLS: Allowed = Allowed { causes: &["cell_lost", "engine_failed"], claims: false };

/// How often each fault of a daemon: they take seconds each.
fn times() -> u32 {
    rounds().div_ceil(50)
}

/// Some jobs in all phases: one writes, others are on their way.
async fn busy(world: &mut World) {
    let slow = world.submit(Work::slow(4)).await;
    world.wrote(&slow, "line 5 ").await;
    for work in Work::mixture() {
        world.submit(work).await;
    }
}

/// What its engine forgot when it died is ended by the next start, at the latest.
async fn starts_again(world: &mut World) {
    let mut fault = Fault::new("agent kill -9 after these");
    world.kill_agent(0).await;
    world.start_agent(0, &Start::default());
    world.engine.shims_were_looked_for();
    world.submit(Work::short()).await;
    fault.judge(1, &world.judge(NONE).await);
    fault.over();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_leaves_its_containers_alone() {
    let Some(mut world) = World::with(&["one"], &["--live-restore"], None).await else { return };
    let mut dice = Dice::new();
    let mut fault = Fault::new("dockerd kill -9, live-restore");
    for _ in 0..times() {
        busy(&mut world).await;
        tokio::time::sleep(Duration::from_millis(dice.below(400))).await;
        world.engine.daemon("kill9", "dockerd");
        world.engine.daemon("restart", "dockerd");
        // What was being started when it died comes back as stopped; the rest goes on.
        let findings = world.judge(CELLS).await;
        fault.judge(1, &findings);
    }
    fault.over();

    let mut fault = Fault::new("dockerd stopped for longer than a call may take");
    for _ in 0..times() {
        let slow = world.submit(Work::slow(10)).await;
        world.wrote(&slow, "line 5 ").await;
        let before = world.log(0).len();
        world.engine.signal("dockerd", "-STOP");
        // Its image is looked for, and the answer does not come in time.
        world.submit(Work::short()).await;
        world.says_since(0, before, "was not answered within").await;
        world.engine.signal("dockerd", "-CONT");
        let findings = world.judge(NONE).await;
        fault.judge(1, &findings);
    }
    fault.over();

    let mut fault = Fault::new("containerd kill -9");
    for _ in 0..times() {
        busy(&mut world).await;
        world.engine.daemon("kill9", "containerd");
        world.engine.daemon("restart", "containerd");
        let findings = world.judge(CELLS).await;
        fault.judge(1, &findings);
    }
    fault.over();
    starts_again(&mut world).await;
    let mut fault = Fault::new("agent ends after these");
    fault.judge(1, &world.stop().await);
    fault.over();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_takes_its_containers_with_it() {
    let Some(mut world) = World::new(&["one"]).await else { return };
    let mut fault = Fault::new("shim kill -9");
    for _ in 0..times() {
        let slow = world.submit(Work::slow(3)).await;
        world.wrote(&slow, "line 5 ").await;
        let shims = world.engine.shims();
        assert!(!shims.is_empty(), "a job runs, and no shim is seen");
        for pid in shims {
            assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().expect("kill runs").success());
        }
        world.submit(Work::short()).await;
        let findings = world.judge(CELLS).await;
        fault.judge(1, &findings);
    }
    fault.over();
    let mut fault = Fault::new("dockerd kill -9, no live-restore");
    for _ in 0..times() {
        busy(&mut world).await;
        world.engine.daemon("kill9", "dockerd");
        world.engine.daemon("restart", "dockerd");
        let findings = world.judge(CELLS).await;
        fault.judge(1, &findings);
    }
    fault.over();
    starts_again(&mut world).await;
    let mut fault = Fault::new("agent ends after these two");
    fault.judge(1, &world.stop().await);
    fault.over();
}
