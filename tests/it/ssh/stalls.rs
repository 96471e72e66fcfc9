//! Output that nobody takes: it must neither fill the memory nor hold up another channel of its connection.

use super::super::stage::until;
use super::sshd::{Folder, present};
use super::{Inventory, Rig, finish, settings};
use jobcell::executor::ssh::{Event, Exec, Lane, SshSettings, StoreBounds};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

const BOUNDS: StoreBounds = StoreBounds { high: 1 << 20, low: 1 << 18, most: 4 << 20 };

fn rig(folder: &Folder, sshd: &super::sshd::Sshd) -> Rig {
    Inventory::new(folder).host("web", sshd, "").pool(folder, SshSettings { store: BOUNDS, ..settings() })
}

/// Starts a command that says its process's id first. Also returns how much came behind that.
async fn with_pid(rig: &Rig, command: &str) -> (Exec, String, usize) {
    let mut exec = rig.pool.exec(&rig.route("web"), &format!("echo $$; {command}"), Lane::Job).await.expect("runs");
    let Some(Event::Stdout(first)) = exec.output.next().await else { panic!("no pid") };
    let first = String::from_utf8_lossy(&first).into_owned();
    let (pid, rest) = first.split_once('\n').expect("a line");
    (exec, pid.to_owned(), rest.len())
}

async fn control(rig: &Rig, command: &str) {
    let Exec { input, output } = rig.pool.exec(&rig.route("web"), command, Lane::Control).await.expect("a place");
    drop(input);
    assert_eq!(finish(output).await.code(), Some(0), "{command}");
}

#[tokio::test]
async fn a_stalled_consumer_holds_up_nobody_else() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let rig = rig(&folder, &sshd);
    // There before, on the same connection, and there to stay.
    let mut beside = rig.pool.exec(&rig.route("web"), "exec cat", Lane::Job).await.expect("runs");
    let (loud, pid, _) = with_pid(&rig, "exec yes 'a line that nobody reads'").await;
    assert_eq!(loud.output.connection(), beside.output.connection());
    let mut pressure = loud.output.pressure();
    pressure.wait_for(|on| *on).await.expect("says that it fills");
    until("the store to be full", || async { (loud.output.kept() + 40_000 > BOUNDS.most).then_some(()) }).await;
    // The same where nothing stands still, on another server's connection: what this machine takes for it at the moment.
    let free = Folder::new();
    let calm = free.sshd("");
    let apart = self::rig(&free, &calm);
    let mut usual = Vec::new();
    for _ in 0..9 {
        let began = Instant::now();
        assert_eq!(apart.run("web", "true").await.expect("runs").code(), Some(0));
        usual.push(began.elapsed());
    }
    usual.sort();
    let mut waits = Vec::new();
    for _ in 0..9 {
        let began = Instant::now();
        beside.input.write_all(b"x\n").await.expect("writes");
        assert_eq!(beside.output.next().await, Some(Event::Stdout("x\n".into())));
        let echoed = began.elapsed();
        let Exec { input, output } = rig.pool.exec(&rig.route("web"), "true", Lane::Job).await.expect("runs");
        drop(input);
        assert_eq!(output.connection(), loud.output.connection(), "the same connection");
        assert_eq!(finish(output).await.code(), Some(0));
        waits.push((began.elapsed(), echoed));
        assert!(loud.output.kept() <= BOUNDS.most, "{}", loud.output.kept());
    }
    waits.sort();
    eprintln!("beside a stalled consumer: {:?} to run `true` (an echo within {:?})", waits[4].0, waits[4].1);
    assert!(waits[4].0 < Duration::from_millis(50).max(4 * usual[4]), "{waits:?}, without a stalled one {usual:?}");
    control(&rig, &format!("kill {pid}")).await;
    let ran = finish(loud.output).await;
    assert!(ran.out.len() <= BOUNDS.most, "{}", ran.out.len());
    let ends = [Event::Overrun, Event::Signal { name: "TERM".to_owned(), core_dumped: false }];
    // The end of its output may be told before its own.
    let events: Vec<_> = ran.events.iter().filter(|event| **event != Event::Eof).cloned().collect();
    assert_eq!(events[..2], ends, "{:?}", ran.events);
}

#[tokio::test]
async fn a_job_that_is_stopped_while_its_output_waits_loses_none_of_it() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let rig = rig(&folder, &sshd);
    let _beside = rig.pool.exec(&rig.route("web"), "exec cat", Lane::Job).await.expect("runs");
    // Slower than the word that stops it takes, as most jobs are.
    let script = "i=0; while [ $i -lt 60 ]; do head -c 200000 /dev/zero; i=$((i+1)); sleep 0.01; done";
    let (mut exec, pid, mut bytes) = with_pid(&rig, script).await;
    let mut pressure = exec.output.pressure();
    let mut stops = 0;
    loop {
        if *pressure.borrow_and_update() {
            control(&rig, &format!("kill -STOP {pid}")).await;
            stops += 1;
            while *pressure.borrow() {
                match exec.output.next().await {
                    Some(Event::Stdout(piece)) => bytes += piece.len(),
                    other => panic!("{other:?}"),
                }
            }
            control(&rig, &format!("kill -CONT {pid}")).await;
        }
        // Nobody reads until it says so, or ends.
        let ended = tokio::time::timeout(Duration::from_millis(500), pressure.wait_for(|on| *on)).await.is_err();
        if ended {
            break;
        }
    }
    let ran = finish(exec.output).await;
    assert_eq!((bytes + ran.out.len(), ran.code()), (12_000_000, Some(0)));
    assert!(stops > 1 && !ran.events.contains(&Event::Overrun), "{stops}: {:?}", ran.events);
}

#[tokio::test]
async fn alone_on_its_connection_a_job_waits_for_its_consumer() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let rig = rig(&folder, &sshd);
    let mut exec = rig.pool.exec(&rig.route("web"), "head -c 100000000 /dev/zero", Lane::Job).await.expect("runs");
    until("the store to be full", || async { (exec.output.kept() + 40_000 > BOUNDS.most).then_some(()) }).await;
    // Its connection stands still, so others have another one.
    let Exec { input, output } = rig.pool.exec(&rig.route("web"), "true", Lane::Job).await.expect("runs");
    drop(input);
    assert_ne!(output.connection(), exec.output.connection());
    assert_eq!(finish(output).await.code(), Some(0));
    let mut bytes = 0;
    while let Some(event) = exec.output.next().await {
        match event {
            Event::Stdout(piece) => bytes += piece.len(),
            Event::Overrun | Event::Lost(_) => panic!("{event:?}"),
            _ => {}
        }
    }
    assert_eq!(bytes, 100_000_000);

    // One who goes away lets it run on.
    let exec = rig.pool.exec(&rig.route("web"), "head -c 100000000 /dev/zero", Lane::Job).await.expect("runs");
    until("the store to be full", || async { (exec.output.kept() + 40_000 > BOUNDS.most).then_some(()) }).await;
    drop(exec);
    until("every place to be free", || async { (rig.pool.states()[0].channels == 0).then_some(()) }).await;
    // And one whose agent stops does not wait for anybody.
    let exec = rig.pool.exec(&rig.route("web"), "head -c 100000000 /dev/zero", Lane::Job).await.expect("runs");
    until("the store to be full", || async { (exec.output.kept() + 40_000 > BOUNDS.most).then_some(()) }).await;
    rig.stop.cancel();
    let ran = finish(exec.output).await;
    assert!(matches!(ran.events.last(), Some(Event::Lost(_) | Event::Closed)), "{:?}", ran.events);
}
