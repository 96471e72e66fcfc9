//! An agent that is frozen for longer than its jobs may be without it, and then goes on as if nothing had been.

use super::checker::Allowed;
use super::table::Fault;
use super::work::Work;
use super::world::World;
use crate::stage::until;
use serde_json::Value;

const LOST: Allowed = Allowed { causes: &["agent_lost"], claims: false };
/// Longer than a warden lets a job go on without a word: of the shortest `lost_after`, and with a second of grace.
const LONG: Work = Work::slow(10).lost_after("10s");

/// When attempt 1 of a job had no process any more, in milliseconds since 1970.
async fn gone(world: &World, id: &str) -> u64 {
    let marks = [format!("JOBCELL_JOB_ID={id}"), "JOBCELL_ATTEMPT=1 ".to_owned()];
    let runs = || world.engine.processes().iter().any(|one| marks.iter().all(|mark| one.environment.contains(mark)));
    assert!(runs(), "nothing of {id} is seen to run");
    until("its warden to end the job", || async { (!runs()).then_some(()) }).await;
    u64::try_from(std::time::UNIX_EPOCH.elapsed().expect("the clock is right").as_millis()).expect("is small")
}

fn entered(job: &Value, phase: &str, attempt: u64) -> Option<u64> {
    let events = job["history"].as_array()?;
    events.iter().find(|event| event["phase"] == phase && event["attempt"] == attempt)?["at"].as_u64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_frozen_and_thaws_too_late() {
    let Some(mut world) = World::new(&["one"]).await else { return };
    for (name, other) in
        [("agent stopped, the job comes back to it", false), ("agent stopped, another one has the job", true)]
    {
        let mut fault = Fault::new(name);
        let (job, before) = (world.submit(LONG).await, world.log(0).len());
        world.wrote(&job, "line 5 ").await;
        world.signal_agent(0, "-STOP");
        if other {
            world.add_agent("two", None).await;
        }
        let gone = gone(&world, &job).await;
        // Its own word for what it may not know yet: the lease is over.
        until("the job to be handed out again", || async {
            let job = world.job(&job).await;
            let again = if other { entered(&job, "running", 2) } else { entered(&job, "queued", 1) };
            again.filter(|_| job["past_tries"][0]["cause"]["code"] == "agent_lost")
        })
        .await;
        world.signal_agent(0, "-CONT");
        let ended = world.ended(&job).await;
        let again = entered(&ended, "claimed", 2).expect("a second attempt");
        assert!(gone <= again, "attempt 1 ran until {gone}, and attempt 2 began at {again}");
        assert_eq!(ended["agent"], if other { "two" } else { "one" }, "{ended}");
        // What it still had to say of attempt 1 was not taken: it ended as lost, and stays so.
        world.says_since(0, before, "the lease is not ours any more").await;
        let findings = world.judge(LOST).await;
        fault.judge(1, &findings);
        fault.over();
    }
    let mut fault = Fault::new("agents end after these");
    fault.judge(1, &world.stop().await);
    fault.over();
}
