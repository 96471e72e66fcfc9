//! What is beside each other at one warden's: a job whose output nobody takes, and another one; a warden of another build.

use super::super::stage::until;
use super::driver::{Driven, WINDOW, run_one, spec};
use super::resident::wardens;
use super::sshd::{self, Folder, present};
use super::{Inventory, Rig, settings};
use jobcell::executor::docker::WARDEN;
use jobcell::executor::ssh::{Event, Exec, Lane, SshExecutor};
use jobcell::job::{ByteSize, OwnerId};
use jobcell::protocol::wire::{FromHub, MUX_VERSION, MuxDecoder, ToHub};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// An executor for the host `web`, and its installation's folder there. What stays there goes with it.
pub(super) struct Stage {
    pub(super) executor: SshExecutor,
    rig: Rig,
    owner: OwnerId,
    pub(super) base: PathBuf,
}

impl Stage {
    fn new(folder: &Folder, sshd: &sshd::Sshd) -> Self {
        Self::with_records(folder, sshd, &folder.path("records-of-stage"))
    }

    /// One whose records are there.
    pub(super) fn with_records(folder: &Folder, sshd: &sshd::Sshd, records: &Path) -> Self {
        let rig = Inventory::new(folder).host("web", sshd, "").pool(folder, settings());
        let owner = OwnerId::random();
        let (pool, live) = (rig.pool.clone(), rig.pool.inventory().clone());
        let executor = SshExecutor::new(pool, live, owner.clone(), records, ByteSize::from_mib(64));
        let base = super::resident::home().join(".jobcell").join(owner.to_string());
        Self { executor: executor.expect("is made"), rig, owner, base }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for pid in wardens(&self.base, "jobcell-hub") {
            sshd::must("kill", &["-KILL", &pid.to_string()]);
        }
        let _ = std::fs::remove_dir_all(&self.base);
    }
}

pub(super) fn job(command: &Value) -> std::sync::Arc<jobcell::job::JobSpec> {
    spec(&json!({"target": {"host": "web"}, "command": command, "resources": {"output": "1GiB"}}))
}

#[tokio::test]
async fn a_job_whose_output_nobody_takes_holds_up_no_other_one() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let stage = Stage::new(&folder, &sshd);
    let quick = job(&json!(["true"]));
    // What this machine takes for it at the moment; the first one brings the warden.
    let mut usual = Vec::new();
    for _ in 0..10 {
        let began = Instant::now();
        run_one(&stage.executor, &quick).await.expect("runs");
        usual.push(began.elapsed());
    }
    usual.sort();
    // Nothing is stored, so nothing is acknowledged.
    let stalled = Driven::begin(&stage.executor, &job(&json!(["yes", "a line that nobody takes"]))).await;
    let stalled = stalled.expect("begins");
    let mut waits = Vec::new();
    for _ in 0..21 {
        let began = Instant::now();
        run_one(&stage.executor, &quick).await.expect("runs");
        waits.push(began.elapsed());
    }
    waits.sort();
    eprintln!("beside a job that nobody reads: {:?} (slowest {:?})", waits[10], waits[20]);
    assert!(waits[10] < Duration::from_millis(50).max(4 * usual[5]), "{waits:?}, without it {usual:?}");
    assert_eq!((sshd.log().matches("Starting session: command").count(), stage.rig.connections()), (1, 1));
    // What it has on its way is its window, and the job waits.
    let mut bytes = 0;
    let mut link = stalled;
    while let Ok(Some(piece)) =
        tokio::time::timeout(Duration::from_millis(500), futures_util::StreamExt::next(&mut link.link.output)).await
    {
        bytes += piece.expect("the link stands").len();
    }
    assert!(bytes > 100_000 && bytes < 2 * WINDOW as usize, "{bytes}");
    drop(link);
}

#[tokio::test]
async fn a_warden_of_another_build_goes_on_beside_a_new_one() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let stage = Stage::new(&folder, &sshd);
    // The same program with a byte behind it is another build.
    let old = [WARDEN, b"\n"].concat();
    let digest: String = {
        use sha2::{Digest as _, Sha256};
        Sha256::digest(&old).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let name = format!("warden-0.0.1-{digest}");
    let (base, owner) = (stage.base.display().to_string(), stage.owner.to_string());
    let bring = format!(
        "umask 077; mkdir -p {base} && dd bs={} count=1 iflag=fullblock 2>/dev/null >{base}/{name} && chmod 700 {base}/{name} && \
         cd {base} && exec {base}/{name} connect --dir {base} --owner {owner}",
        old.len()
    );
    let Exec { mut input, mut output } =
        stage.rig.pool.exec(&stage.rig.route("web"), &bring, Lane::Job).await.expect("runs");
    input.write_all(&old).await.expect("is taken");
    let mut said = Vec::new();
    ToHub::Hello { version: MUX_VERSION }.encode(&mut said);
    ToHub::Open { channel: 1, name: "of-before".into() }.encode(&mut said);
    input.write_all(&said).await.expect("writes");
    let mut decoder = MuxDecoder::new();
    let mut opened = false;
    while !opened {
        match output.next().await {
            Some(Event::Stdout(bytes)) => decoder.feed(&bytes),
            Some(Event::Stderr(bytes)) => panic!("{}", String::from_utf8_lossy(&bytes)),
            other => panic!("{other:?}"),
        }
        while let Some(envelope) = decoder.next().expect("keeps to the envelope") {
            opened |= matches!(FromHub::decode(&envelope), Ok(FromHub::Opened { channel: 1, .. }));
        }
    }
    // A keeper begins as a copy of its hub, name and all.
    let hubs = || async { Some(wardens(&stage.base, "jobcell-hub")).filter(|hubs| hubs.len() == 1) };
    let before = until("the keeper to have its own name", hubs).await;
    run_one(&stage.executor, &job(&json!(["true"]))).await.expect("runs");
    let both = wardens(&stage.base, "jobcell-hub");
    assert!(before.len() == 1 && both.len() == 2 && both.contains(&before[0]), "{before:?} {both:?}");
    assert!(stage.base.join(&name).exists() && stage.base.join("of-before").exists(), "it is not touched");
    // When it has gone, the next connection removes its program.
    sshd::must("kill", &["-TERM", &before[0].to_string()]);
    drop((input, output));
    until("it to go", || async { (wardens(&stage.base, "jobcell-hub") != both).then_some(()) }).await;
    let again = SshExecutor::new(
        stage.rig.pool.clone(),
        stage.rig.pool.inventory().clone(),
        stage.owner.clone(),
        &folder.path("records"),
        ByteSize::from_mib(64),
    );
    run_one(&again.expect("is made"), &job(&json!(["true"]))).await.expect("runs");
    assert!(!stage.base.join(&name).exists());
    assert_eq!(wardens(&stage.base, "jobcell-hub").len(), 1);
}
