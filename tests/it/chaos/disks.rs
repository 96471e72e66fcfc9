//! Full disks: the engine's, and the agent's own.

use super::checker::Allowed;
use super::table::Fault;
use super::work::Work;
use super::world::World;
use crate::stage::until;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file that takes all the room there is; gone with the value.
struct Filler(PathBuf);

impl Filler {
    fn fill(dir: &Path) -> Self {
        let path = dir.join("filler");
        let mut file = std::fs::File::create(&path).expect("makes");
        // The last bytes one by one: the next write of anybody else must find nothing.
        for size in [1 << 20, 4096, 1] {
            let piece = vec![0; size];
            let error = loop {
                if let Err(error) = file.write_all(&piece) {
                    break error;
                }
            };
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        }
        Self(path)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_whose_disk_is_full() {
    let Some(mut world) = World::with(&["one"], &[], Some("600m")).await else { return };
    let mut fault = Fault::new("the engine's disk is full");
    let slow = world.submit(Work::slow(4)).await;
    world.wrote(&slow, "line 5 ").await;
    let full = Filler::fill(&world.engine.path().join("data"));
    let job = world.submit(Work::short()).await;
    world.submit(Work::flood()).await;
    until("a try that fails", || async { world.job(&job).await["past_tries"][0]["cause"]["code"].as_str().map(drop) })
        .await;
    drop(full);
    let findings = world.judge(Allowed { causes: &["engine_failed"], claims: false }).await;
    // The one that ran has no part in it.
    assert_eq!(world.job(&slow).await["attempt"], 1);
    fault.judge(1, &findings);
    fault.judge(0, &world.stop().await);
    fault.over();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_disk_is_full() {
    let Some(mut world) = World::new(&[]).await else { return };
    // Below the engine's folder: unmounted with it.
    let data = world.engine.path().join("agent");
    std::fs::create_dir(&data).expect("makes");
    let mount = ["-t", "tmpfs", "-o", "size=24m", "jobcell-chaos"];
    assert!(Command::new("mount").args(mount).arg(&data).status().expect("mount runs").success());
    world.add_agent("one", Some(data.clone())).await;
    let mut fault = Fault::new("the agent's disk is full");
    let slow = world.submit(Work::slow(3)).await;
    world.wrote(&slow, "line 5 ").await;
    let full = Filler::fill(&data);
    world.submit(Work::short()).await;
    world.submit(Work::flood()).await;
    // The output of the one that runs cannot be kept; the others cannot be begun.
    world.says(0, "nothing was started; the job goes back").await;
    world.says(0, "attempt ended").await;
    drop(full);
    let findings = world.judge(Allowed { causes: &["log_store_failed"], claims: false }).await;
    fault.judge(1, &findings);
    fault.judge(0, &world.stop().await);
    fault.over();
}
