//! Connections and their channels: how many there are, who shares them, what a host's own bounds do to them.

use super::super::stage::until;
use super::sshd::{Folder, login, present};
use super::{Inventory, Rig, finish, run, settings};
use jobcell::executor::ssh::{ConnectError, Event, Exec, Lane, Route, SshSettings};
use jobcell::supervise;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// Starts `cat`, which runs until its input ends.
async fn cat(rig: &Rig, lane: Lane) -> Result<Exec, ConnectError> {
    let mut exec = rig.pool.exec(&rig.route("web"), "echo up; cat", lane).await?;
    assert_eq!(exec.output.next().await, Some(Event::Stdout("up\n".into())));
    Ok(exec)
}

#[tokio::test]
async fn jobs_share_a_connection_until_it_is_full_and_control_finds_a_place() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let few = SshSettings { connections_per_host: 2, connect_timeout: Duration::from_secs(5), ..settings() };
    let rig = Inventory::new(&folder).host("web", &sshd, "").pool(&folder, few);
    let mut jobs = Vec::new();
    for _ in 0..18 {
        jobs.push(cat(&rig, Lane::Job).await.expect("a place"));
    }
    let connections = |jobs: &[Exec]| jobs.iter().map(|job| job.output.connection()).collect::<BTreeSet<_>>();
    assert_eq!((connections(&jobs).len(), rig.connections()), (2, 2));
    let full = rig.pool.exec_within(&rig.route("web"), "true", Lane::Job, Duration::from_millis(300)).await;
    assert!(matches!(full, Err(ConnectError::Busy(_))), "{:?}", full.err());
    let control = cat(&rig, Lane::Control).await.expect("a place is kept");
    assert!(connections(&jobs).contains(&control.output.connection()), "without a connection of its own");

    let Exec { input, output } = control;
    drop(input);
    assert_eq!(finish(output).await.code(), Some(0));

    // Whoever waits gets the place that becomes free.
    let route = rig.route("web");
    let pool = rig.pool.clone();
    let waiting = supervise::spawn("a test's task", async move { run(&pool, &route, "echo in").await });
    let Exec { input, output } = jobs.remove(4);
    drop(input);
    assert_eq!(finish(output).await.code(), Some(0));
    assert_eq!(waiting.await.expect("no panic").expect("runs").text(), "in\n");
}

#[tokio::test]
async fn what_the_host_lets_be_open_is_learnt() {
    if !present() {
        return;
    }
    for most in [1, 3] {
        let folder = Folder::new();
        let sshd = folder.sshd(&format!("MaxSessions {most}"));
        let rig = Inventory::new(&folder).host("web", &sshd, "").pool(&folder, settings());
        let all = (0..4).map(|_| cat(&rig, Lane::Job));
        let jobs: Vec<Exec> = futures_util::future::try_join_all(all).await.expect("everybody gets a place");
        assert!(rig.connections() >= 4 / most, "{}", rig.connections());
        // On a host with one session a connection, control has one of its own.
        let control = cat(&rig, Lane::Control).await.expect("a place");
        assert_eq!(rig.pool.states()[0].breaker, "admit");
        drop((jobs, control));
        until("every place to be free", || async { (rig.pool.states()[0].channels == 0).then_some(()) }).await;
        assert_eq!(rig.run("web", "echo in").await.expect("runs").text(), "in\n");
    }
}

#[tokio::test]
async fn a_host_that_lets_no_session_be_open_is_told() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("MaxSessions 0");
    let rig = Inventory::new(&folder).host("web", &sshd, "").pool(&folder, settings());
    let error = rig.run("web", "true").await.expect_err("has no place");
    assert!(error.is_permanent() && error.to_string().contains("MaxSessions"), "{error}");
}

#[tokio::test]
async fn a_place_is_held_until_the_host_has_closed_the_channel() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("MaxSessions 2");
    let one = SshSettings {
        connections_per_host: 1,
        channels_per_connection: 1,
        connect_timeout: Duration::from_secs(5),
        ..settings()
    };
    let rig = Inventory::new(&folder).host("web", &sshd, "").pool(&folder, one);
    let route = rig.route("web");
    // It does not end with its input.
    let mut exec = rig.pool.exec(&route, "echo $$; exec sleep 600", Lane::Job).await.expect("runs");
    let Some(Event::Stdout(pid)) = exec.output.next().await else { panic!("no pid") };
    let pid = String::from_utf8_lossy(&pid).trim().to_owned();
    drop(exec);
    let again = rig.pool.exec_within(&route, "true", Lane::Job, Duration::from_millis(500)).await;
    assert!(matches!(again, Err(ConnectError::Busy(_))), "{:?}", again.err());
    let Exec { input, output } = rig.pool.exec(&route, &format!("kill {pid}"), Lane::Control).await.expect("a place");
    drop(input);
    assert_eq!(finish(output).await.code(), Some(0));
    assert_eq!(rig.run("web", "echo in").await.expect("the place is free").text(), "in\n");
    assert_eq!(rig.connections(), 1);

    // A child that holds the output open holds the channel; whoever has seen the end need not wait for it.
    let holds = "sleep 600 & echo $!; exit 3";
    let Exec { input, mut output } = rig.pool.exec(&route, holds, Lane::Job).await.expect("runs");
    drop(input);
    // Which of the two is told first is the server's affair.
    let (mut pid, mut code) = (None, None);
    while pid.is_none() || code.is_none() {
        match output.next().await.expect("its channel is held open") {
            Event::Stdout(bytes) => pid = Some(String::from_utf8_lossy(&bytes).trim().to_owned()),
            Event::Exit(told) => code = Some(told),
            _ => {}
        }
    }
    assert_eq!(code, Some(3));
    drop(output);
    let ends = format!("kill {} && echo in", pid.expect("was told"));
    assert_eq!(rig.run("web", &ends).await.expect("the place is free").text(), "in\n");
}

#[tokio::test]
async fn sixty_four_connections_at_once_are_throttled_and_none_is_lost() {
    if !present() {
        return;
    }
    let mut refused = Vec::new();
    for handshakes in [8, 64] {
        let folder = Folder::new();
        let sshd = folder.sshd("MaxStartups 10:30:100\nMaxSessions 2");
        let many = SshSettings {
            connections_per_host: 64,
            channels_per_connection: 1,
            handshakes_per_host: handshakes,
            connect_timeout: Duration::from_secs(60),
            ..settings()
        };
        let rig = Inventory::new(&folder).host("web", &sshd, "").pool(&folder, many);
        let all = (0..64).map(|_| cat(&rig, Lane::Job));
        let jobs = futures_util::future::try_join_all(all).await.expect("everybody gets in");
        assert_eq!((jobs.len(), rig.connections(), rig.pool.states()[0].breaker), (64, 64, "admit"));
        let log = sshd.log();
        let dropped = log.matches("drop connection").count() + log.matches("beginning MaxStartups throttling").count();
        refused.push(dropped);
    }
    // A server that is slow to notice who is in counts some of them twice; without our bound it turns away dozens.
    assert!(refused[1] > 0 && refused[0] <= refused[1] / 2, "8 at once, 64 at once: {refused:?}");
}

#[tokio::test]
async fn one_connection_is_opened_for_all_who_wait() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let rig = Inventory::new(&folder).host("web", &sshd, "").pool(&folder, settings());
    // The first one goes away before it is there.
    let gone = rig.pool.exec_within(&rig.route("web"), "touch never", Lane::Job, Duration::from_millis(1)).await;
    assert!(gone.is_err());
    let all = (0..8).map(|_| rig.run("web", "echo in"));
    for ran in futures_util::future::join_all(all).await {
        assert_eq!(ran.expect("runs").text(), "in\n");
    }
    assert_eq!(sshd.log().matches("Accepted publickey").count(), 1);
}

#[tokio::test]
async fn unused_and_old_connections_are_closed_and_jobs_on_them_go_on() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let idle = SshSettings { idle_close: Duration::from_millis(300), ..settings() };
    let rig = Inventory::new(&folder).host("web", &sshd, "").pool(&folder, idle);
    assert_eq!(rig.run("web", "echo in").await.expect("runs").text(), "in\n");
    until("the connection to be closed, and its route forgotten", || async {
        rig.pool.states().is_empty().then_some(())
    })
    .await;
    assert_eq!(rig.run("web", "sleep 1; echo in").await.expect("is in use").text(), "in\n");

    let old = SshSettings { max_age: Duration::from_millis(300), ..settings() };
    let rig = Inventory::new(&folder).host("web", &sshd, "").pool(&folder, old);
    let job = cat(&rig, Lane::Job).await.expect("runs");
    let first = job.output.connection();
    until("a connection of another age", || async {
        let next = cat(&rig, Lane::Job).await.expect("runs");
        (next.output.connection() != first).then_some(())
    })
    .await;
    let Exec { mut input, output } = job;
    input.write_all(b"still here").await.expect("writes");
    input.shutdown().await.expect("ends");
    assert_eq!(finish(output).await.text(), "still here");
}

#[tokio::test]
async fn a_host_behind_another_is_reached_over_a_shared_connection() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let (bastion, inner, last) = (folder.sshd(""), folder.sshd("MaxSessions 3"), folder.sshd(""));
    let inventory = Inventory::new(&folder)
        .host("bastion", &bastion, "")
        .host("inner", &inner, "jump: [bastion]")
        .host("last", &last, "jump: [bastion, inner]");
    let rig = inventory.pool(&folder, settings());
    for host in ["inner", "last", "inner"] {
        let ran = rig.run(host, "echo $SSH_CONNECTION").await.expect("runs");
        let to = if host == "inner" { &inner } else { &last };
        assert!(ran.text().contains(&format!("{} {}", to.address, to.port)), "{}", ran.text());
    }
    assert_eq!(bastion.log().matches("Accepted publickey").count(), 1);
    // 20 MB through both, and whole.
    let ran = rig.run("last", "head -c 20000000 /dev/zero").await.expect("runs");
    assert_eq!((ran.out.len(), ran.code()), (20_000_000, Some(0)));

    drop(bastion);
    let rig = inventory.pool(&folder, SshSettings { connect_timeout: Duration::from_secs(2), ..settings() });
    let error = rig.run("inner", "true").await.expect_err("has no way");
    assert!(error.to_string().starts_with("jump host bastion") && !error.is_permanent(), "{error}");
}

#[tokio::test]
async fn fifty_hosts_cold_and_warm() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    folder.keygen("hk", &["-t", "ed25519"]);
    let hosts = 50;
    let free = std::net::TcpListener::bind("127.0.7.1:0").expect("a free port");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    // One sshd listens at 16 addresses at most.
    let mut servers = Vec::new();
    for first in (1..=hosts).step_by(10) {
        let mut more = "MaxStartups 500\n".to_owned();
        for n in first..first + 10 {
            writeln!(more, "ListenAddress 127.0.7.{n}:{port}").expect("fits");
        }
        servers.push(folder.sshd_with("hk", &more));
    }
    folder.write("known_hosts", &format!("[127.0.7.*]:{port} {}\n", folder.public("hk")));
    let mut text = "hosts:\n".to_owned();
    for n in 1..=hosts {
        writeln!(text, "  h{n}: {{address: 127.0.7.{n}, port: {port}, login: {}, credential: key}}", login())
            .expect("fits");
    }
    writeln!(
        text,
        "credentials: {{key: {{key_file: {}}}}}\nknown_hosts: [{}]",
        folder.shown("user"),
        folder.shown("known_hosts")
    )
    .expect("fits");
    let inventory = folder.write("many.yaml", &text);
    let live = jobcell::executor::ssh::inventory::LiveInventory::load(&inventory, &folder.path("data")).expect("loads");
    let stop = tokio_util::sync::CancellationToken::new();
    let rig = Rig { pool: jobcell::executor::ssh::Pool::new(settings(), live, stop.clone()), stop };
    let routes: Vec<Route> = (1..=hosts).map(|n| rig.route(&format!("h{n}"))).collect();
    for what in ["cold", "warm"] {
        let began = Instant::now();
        let all = routes.iter().map(|route| run(&rig.pool, route, "true"));
        for ran in futures_util::future::join_all(all).await {
            assert_eq!(ran.expect("runs").code(), Some(0));
        }
        eprintln!("50 hosts, {what}: {:?}", began.elapsed());
    }
    assert_eq!(rig.connections(), hosts);
}

#[tokio::test]
async fn bytes_go_both_ways_as_they_are() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let rig = Inventory::new(&folder).host("web", &sshd, "").pool(&folder, settings());
    let bytes: Vec<u8> =
        (0..5_000_000u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).expect("a byte")).collect();
    let Exec { mut input, output } =
        rig.pool.exec(&rig.route("web"), "tee /dev/stderr", Lane::Job).await.expect("runs");
    let sent = bytes.clone();
    let writing = supervise::spawn("a test's task", async move {
        input.write_all(&sent).await.expect("writes");
        input.shutdown().await.expect("ends");
    });
    let ran = finish(output).await;
    writing.await.expect("no panic");
    assert!(ran.out == bytes && ran.err == bytes, "{} and {} bytes", ran.out.len(), ran.err.len());
    assert_eq!(ran.events.last(), Some(&Event::Closed));
    let ran = rig.run("web", "kill -USR1 $$").await.expect("runs");
    assert!(ran.events.contains(&Event::Signal { name: "USR1".to_owned(), core_dumped: false }), "{:?}", ran.events);
    assert_eq!(ran.code(), None, "a signal is no code");
    let error = rig.run("web", &"x".repeat(100_001)).await.expect_err("is too long");
    assert!(error.is_permanent() && error.to_string().contains("at most 100000"), "{error}");
}
