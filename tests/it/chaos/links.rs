//! The way to the server: refused, slow, answered with nonsense, twice, not at all; cut in the middle of a frame; and a server that is
//! started again.

use super::checker::Allowed;
use super::proxy::Mode;
use super::table::Fault;
use super::work::Work;
use super::world::World;
use super::{Dice, rounds};

/// Whatever the way to the server does for less than `lost_after`, no try is lost by it.
const NONE: Allowed = Allowed { causes: &[], claims: false };

const ERROR: Mode = Mode::Answer(
    "HTTP/1.1 500 Internal Server Error\r\ncontent-type: text/plain\r\ncontent-length: 5\r\nconnection: close\r\n\r\noops\n",
);
const THROTTLED: Mode =
    Mode::Answer("HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");

/// One that writes for a while, one that floods, and some that end; none is lost before two minutes are over.
async fn busy(world: &mut World) {
    let slow = world.submit(Work::slow(3).lost_after("2m")).await;
    world.wrote(&slow, "line 5 ").await;
    for work in Work::mixture() {
        world.submit(work.lost_after("2m")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_answers_badly_or_not_at_all() {
    let Some(mut world) = World::new(&["one"]).await else { return };
    let mut dice = Dice::new();
    for (name, mode, meetings) in [
        ("server refuses connections", Mode::Refuse, 5),
        ("server is slow", Mode::Slow(150), 1),
        ("server answers 500", ERROR, 5),
        ("server answers 429", THROTTLED, 3),
        ("server answers garbage", Mode::Garbage, 5),
        ("server gets everything twice", Mode::Twice, 10),
        ("every other answer is lost", Mode::LoseAnswers, 10),
        ("half-open connections", Mode::HalfOpen, 3),
    ] {
        let mut fault = Fault::new(name);
        for _ in 0..rounds().div_ceil(50) {
            busy(&mut world).await;
            world.proxy.set(mode);
            world.proxy.met(meetings).await;
            // What can be done under these faults is done under them.
            if matches!(mode, Mode::Slow(_) | Mode::Twice | Mode::LoseAnswers) {
                let findings = world.judge(NONE).await;
                fault.judge(0, &findings);
            }
            world.proxy.set(Mode::Pass);
            let findings = world.judge(NONE).await;
            fault.judge(1, &findings);
        }
        fault.over();
    }

    let mut fault = Fault::new("stream cut in the middle of a frame");
    for _ in 0..rounds().div_ceil(50) {
        busy(&mut world).await;
        for _ in 0..3 {
            world.submit(Work::flood().lost_after("2m")).await;
        }
        world.proxy.set(Mode::CutAfter(40_000 + dice.below(60_000)));
        world.proxy.met(6).await;
        world.proxy.set(Mode::Pass);
        let findings = world.judge(NONE).await;
        fault.judge(1, &findings);
    }
    fault.over();

    let mut fault = Fault::new("server kill -9");
    for _ in 0..rounds().div_ceil(10) {
        busy(&mut world).await;
        world.restart_server().await;
        let findings = world.judge(NONE).await;
        fault.judge(1, &findings);
    }
    fault.over();
    let mut fault = Fault::new("agent ends after all these links");
    fault.judge(1, &world.stop().await);
    fault.over();
}
