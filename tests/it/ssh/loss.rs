//! Hosts that go away: killed, frozen, silent, not there; and one that changes its keys in the middle.

use super::super::stage::until;
use super::sshd::{Folder, present};
use super::{Inventory, finish, settings};
use jobcell::executor::ssh::{ConnectError, Event, Exec, Lane, SshSettings};
use jobcell::supervise;
use rustix::process::Signal;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_host_that_is_killed_leaves_the_outcome_open() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let mut sshd = folder.sshd("");
    let rig = Inventory::new(&folder).host("web", &sshd, "").pool(&folder, settings());
    let mut exec = rig.pool.exec(&rig.route("web"), "echo up; exec cat", Lane::Job).await.expect("runs");
    assert_eq!(exec.output.next().await, Some(Event::Stdout("up\n".into())));
    sshd.kill();
    let Exec { input, output } = exec;
    let ran = finish(output).await;
    assert!(matches!(&ran.events[..], [Event::Lost(_)]), "neither a code nor a signal: {:?}", ran.events);
    drop(input);
    let route = rig.route("web");
    let quick = || rig.pool.exec_within(&route, "true", Lane::Job, Duration::from_secs(5));
    let error = quick().await.err().expect("nobody listens");
    assert!(matches!(error, ConnectError::Unreachable(_)) && error.to_string().contains("refused"), "{error}");
    // Five in a row, and it is left alone.
    let refused =
        until("the breaker to refuse", || async { quick().await.err().filter(|error| error.class() == "refused") })
            .await;
    assert!(refused.to_string().contains("is left alone for") && refused.to_string().contains("refused"), "{refused}");
    assert_eq!(rig.pool.states().first().map(|state| (state.breaker, state.connections)), Some(("refuse", 0)));
    sshd.restart();
    let ran = until("a probe to come through", || async { rig.run("web", "echo back").await.ok() }).await;
    assert_eq!((ran.text().as_str(), rig.pool.states()[0].breaker), ("back\n", "admit"));
}

#[tokio::test]
async fn a_frozen_host_is_noticed_by_its_silence() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let quick =
        SshSettings { keepalive: Duration::from_secs(1), connect_timeout: Duration::from_secs(2), ..settings() };
    let rig = Inventory::new(&folder).host("web", &sshd, "").pool(&folder, quick);
    let mut exec = rig.pool.exec(&rig.route("web"), "echo up; exec cat", Lane::Job).await.expect("runs");
    assert_eq!(exec.output.next().await, Some(Event::Stdout("up\n".into())));
    // A job that has nothing to say is well.
    assert!(tokio::time::timeout(Duration::from_secs(4), exec.output.next()).await.is_err(), "silence is no end");
    sshd.signal(Signal::STOP);
    let began = Instant::now();
    let lost = exec.output.next().await;
    assert!(matches!(&lost, Some(Event::Lost(said)) if said.contains("does not answer any more")), "{lost:?}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    // Its kernel still takes connections, and nobody speaks on them.
    let began = Instant::now();
    let error = rig.run("web", "true").await.expect_err("does not speak");
    assert!(matches!(error, ConnectError::Unreachable(_)), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    sshd.signal(Signal::CONT);
    until("the host to be well again", || async { rig.run("web", "true").await.ok() }).await;
}

#[tokio::test]
async fn what_is_no_ssh_server_is_told() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    // Talks, and says nothing that is SSH.
    let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let port = other.local_addr().expect("an address").port();
    let _other = supervise::spawn("a test's task", async move {
        while let Ok((mut stream, _)) = other.accept().await {
            use tokio::io::AsyncWriteExt;
            let _ = stream.write_all("HTTP/1.1 400 Bad Request\r\n".repeat(2000).as_bytes()).await;
        }
    });
    let rig = Inventory::new(&folder).host("web", &sshd, "").pool(&folder, settings());
    let mut route = rig.route("web");
    (route.host, route.port) = ("127.0.0.1".to_owned(), port);
    let error = rig.pool.check(&route).await.expect_err("is none");
    assert!(error.is_permanent() && error.to_string().contains("is no SSH server"), "{error:?}");

    let old = folder.sshd("Ciphers aes256-cbc");
    let rig = Inventory::new(&folder).host("web", &old, "").pool(&folder, settings());
    let error = rig.run("web", "true").await.expect_err("is not safe");
    assert!(
        error.is_permanent() && error.to_string().contains("offers no cipher that is safe (it offers aes256-cbc)"),
        "{error}"
    );
}

#[tokio::test]
async fn keys_are_changed_under_load_and_nothing_is_lost() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("RekeyLimit 1M\nLogLevel DEBUG1");
    let rig = Inventory::new(&folder).host("web", &sshd, "").pool(&folder, settings());
    let out = |n: u32| format!("seq 1 {n}");
    let all = (1..=6u32).map(|n| {
        let (rig, command) = (&rig, out(n * 300_000));
        async move { rig.run("web", &command).await.expect("runs") }
    });
    for (n, ran) in (1..=6u32).zip(futures_util::future::join_all(all).await) {
        let wanted: String = (1..=n * 300_000).map(|n| format!("{n}\n")).collect();
        assert!(ran.text() == wanted, "{} of {} bytes", ran.out.len(), wanted.len());
        assert_eq!(ran.code(), Some(0));
    }
    let changes = sshd.log().matches("SSH2_MSG_KEXINIT received").count();
    assert!(changes > 10, "{changes}");
    assert_eq!(sshd.log().matches("Accepted publickey").count(), rig.connections());
}

#[tokio::test]
async fn with_the_agent_everything_stops() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let rig = Inventory::new(&folder).host("web", &sshd, "").pool(&folder, settings());
    let exec = rig.pool.exec(&rig.route("web"), "exec cat", Lane::Job).await.expect("runs");
    rig.stop.cancel();
    let ran = finish(exec.output).await;
    assert!(matches!(&ran.events[..], [Event::Lost(_)]), "{:?}", ran.events);
    assert_eq!(rig.run("web", "true").await.expect_err("stops"), ConnectError::Stopped);
}
