//! Connections to a hub: cut, taken over, wrong, slow, many. Whatever becomes of one, jobs go on, and other connections do too.

use super::new_rig;
use super::rig::{Agent, OWNER, Rig, Said, end, of_job, program, shell, signal, until, with_argument};
use super::wire::{FromWarden, MUX_PAYLOAD, ToHub, ToWarden};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Lines that `seq` writes.
fn lines(most: u32) -> Vec<u8> {
    (1..=most).flat_map(|n| format!("{n}\n").into_bytes()).collect()
}

#[test]
fn a_connection_that_is_cut_loses_nothing_of_a_jobs_output() {
    const MOST: u32 = 400_000;
    let rig = new_rig();
    let mut agent = rig.agent();
    agent.begin(1, "cut", &shell(&format!("seq {MOST}")));
    let (mut whole, mut stored, mut epoch, mut channel) = (Vec::new(), 0, 1, 1);
    let exit = loop {
        let (mut cut, mut exit) = (false, None);
        while !cut && exit.is_none() {
            match agent.next() {
                Said::Frame(_, _, seq, FromWarden::Output { bytes, .. }) => {
                    assert_eq!(seq, stored + 1, "in session {epoch}");
                    stored = seq;
                    whole.extend(bytes);
                    agent.tell(channel, epoch, &[ToWarden::Ack { seq }]);
                    cut = epoch < 6 && stored % 5 == 0;
                }
                Said::Frame(_, _, _, FromWarden::Exit(end)) => exit = Some(end),
                Said::Failed { errno, step, .. } => panic!("{errno}: {step}"),
                Said::Closed => panic!("closed"),
                _ => {}
            }
        }
        if let Some(exit) = exit {
            break exit;
        }
        let old = std::mem::replace(&mut agent, rig.agent());
        if epoch % 2 == 0 {
            // As a link that is gone.
            old.cut();
        }
        (epoch, channel) = (epoch + 1, channel + 1);
        agent.say(&ToHub::Attach { channel, name: "cut".to_owned() });
        agent.session(channel, epoch, "cut", stored);
    };
    assert_eq!((exit.code, exit.last_seq), (0, stored));
    assert!(whole == lines(MOST), "{} bytes", whole.len());
    agent.tell(channel, epoch, &[ToWarden::Close]);
    assert_eq!((agent.ended(channel), rig.folders()), (0, vec![]));
}

#[test]
fn the_newest_connection_has_a_job_and_the_one_before_is_told() {
    let rig = new_rig();
    let (mut old, mut new) = (rig.agent(), rig.agent());
    assert_eq!(old.hub, new.hub);
    old.begin(1, "taken", &shell("read line; echo $line; sleep 300"));
    old.started(1);
    new.say(&ToHub::Attach { channel: 7, name: "taken".to_owned() });
    new.opened(7);
    assert_eq!(old.failed(1), 16);
    // What the old one says is nobody's any more, and its channel is free.
    old.tell(1, 1, &[ToWarden::Stop { level: 1, reason: 6, grace_ms: 0 }]);
    assert_eq!(old.run(1, "else", &program(&["true"])).0.code, 0);
    assert!(!of_job("taken").is_empty());
    assert_eq!(new.names(), ["taken"]);
    new.session(7, 2, "taken", 0);
    new.tell(7, 2, &[ToWarden::Stop { level: 1, reason: 6, grace_ms: 0 }]);
    assert_eq!(new.exit(7).code, 9);
    // One that leaves can come again.
    new.say(&ToHub::Leave { channel: 7 });
    new.say(&ToHub::Attach { channel: 8, name: "taken".to_owned() });
    new.opened(8);
    new.session(8, 3, "taken", 0);
    new.exit(8);
    new.tell(8, 3, &[ToWarden::Close]);
    assert_eq!(new.ended(8), 0);
    new.say(&ToHub::Attach { channel: 9, name: "taken".to_owned() });
    assert_eq!(new.failed(9), 2);
}

#[test]
fn connectors_that_come_at_the_same_time_find_the_same_hub() {
    let rig = new_rig();
    for round in 0..5 {
        let mut agents: Vec<_> = (0..8).map(|_| rig.connect()).collect();
        for agent in &mut agents {
            agent.say(&ToHub::Hello { version: 1 });
        }
        let hub = |said: &Said| match said {
            Said::Hello { pid, .. } => Some(*pid),
            _ => None,
        };
        let mut hubs: Vec<u32> = agents.iter_mut().map(|agent| agent.find(hub)).collect();
        hubs.sort_unstable();
        hubs.dedup();
        assert_eq!(hubs.len(), 1, "round {round}");
        end(hubs[0]);
        until("it is gone", || !std::path::Path::new(&format!("/proc/{}", hubs[0])).exists());
    }
}

#[test]
fn what_is_malformed_is_hung_up_on_with_a_reason_and_hurts_nobody() {
    let rig = new_rig();
    let mut good = rig.agent();
    good.begin(1, "good", &shell("sleep 300"));
    good.started(1);
    let too_long = (MUX_PAYLOAD as u32 + 1).to_le_bytes();
    let hello: &[u8] = &[1, 0, 0, 0, 1, 0, 0, 0, 1];
    let bad: Vec<(Vec<u8>, &str)> = vec![
        (vec![1, 0, 0, 0, 1, 0, 0, 0, 99], "version 1 is spoken here"),
        (vec![0, 0, 0, 0, 7, 0, 0, 0], "hello"),
        ([hello, hello].concat(), "before"),
        ([hello, &too_long, &[4, 0, 1, 0]].concat(), "too long"),
        ([hello, &[0, 0, 0, 0, 7, 9, 0, 0]].concat(), "reserved"),
        ([hello, &[0, 0, 0, 0, 200, 0, 0, 0]].concat(), "unknown kind"),
        ([hello, &[5, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 0, b'/']].concat(), "name"),
        ([hello, b"SSH-2.0-OpenSSH_9.6\r\n"].concat(), "too long"),
    ];
    for (bytes, wanted) in bad {
        let mut agent = rig.connect();
        agent.write(&bytes);
        let text = agent.find(|said| match said {
            Said::Fault(text) => Some(text.clone()),
            _ => None,
        });
        assert!(text.contains(wanted), "{text}");
        agent.find(|said| (*said == Said::Closed).then_some(()));
    }
    // One that has a job may be malformed, too: the job is not.
    good.write(&[0xff; 64]);
    good.find(|said| matches!(said, Said::Fault(_)).then_some(()));
    let mut next = rig.agent();
    assert_eq!(next.names(), ["good"]);
    assert!(!of_job("good").is_empty());
    next.kill("good");
    // Nobody answers what no hub knows.
    next.say(&ToHub::Data { channel: 77, bytes: b"of nobody" });
    next.say(&ToHub::Leave { channel: 77 });
    assert_eq!(next.run(77, "fine", &program(&["true"])).0.code, 0);
}

#[test]
fn one_who_does_not_read_holds_up_its_own_jobs_only() {
    let rig = new_rig();
    let mut slow = rig.agent();
    let mut busy = rig.agent();
    // Its window is never opened again, and its keeper's output waits.
    slow.begin(1, "flood", &shell("yes"));
    slow.started(1);
    assert!(slow.hears_within(Duration::from_secs(10)));
    for n in 0..20 {
        let began = Instant::now();
        assert_eq!(busy.run(1, &format!("busy-{n}"), &program(&["true"])).0.code, 0);
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    // On the same connection, too: an order passes all that lies there.
    assert_eq!(slow.run(2, "beside", &program(&["true"])).0.code, 0);
    let hub = std::fs::read_to_string(format!("/proc/{}/status", slow.hub)).expect("is there");
    let resident = hub.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("told");
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(kib < 8 * 1024, "{kib} KiB");
    slow.kill("flood");
}

#[test]
fn the_oldest_connection_makes_way_for_a_new_one() {
    let rig = new_rig();
    let mut first = rig.agent();
    first.begin(1, "stays", &shell("sleep 300"));
    first.started(1);
    let mut others: Vec<_> = (0..63).map(|_| rig.agent()).collect();
    assert_eq!(first.names(), ["stays"]);
    let mut last = rig.agent();
    first.find(|said| matches!(said, Said::Fault(text) if text.contains("too many connections")).then_some(()));
    first.find(|said| (*said == Said::Closed).then_some(()));
    assert_eq!(others[0].names(), ["stays"]);
    last.kill("stays");
}

#[test]
fn a_keeper_that_takes_nothing_is_given_no_more_than_there_is_room_for() {
    let rig = new_rig();
    let mut agent = rig.agent();
    agent.begin(1, "stopped", &shell("sleep 300"));
    let keeper = agent.find(|said| match said {
        Said::Opened { channel: 1, pid, .. } => Some(*pid),
        _ => None,
    });
    agent.started(1);
    // A job can do this to its own keeper, whose user it is.
    signal("-STOP", keeper);
    let piece = vec![0; 1 << 20];
    for _ in 0..10 {
        agent.say(&ToHub::Data { channel: 1, bytes: &piece });
    }
    assert_eq!(agent.failed(1), 105);
    assert_eq!(agent.run(1, "beside", &program(&["true"])).0.code, 0);
    agent.kill("stopped");
    assert_eq!((of_job("stopped"), rig.folders()), (vec![], vec![]));
}

#[test]
fn a_hub_that_is_asked_to_end_ends_with_all_its_jobs() {
    let rig = new_rig();
    let mut agent = rig.agent();
    agent.begin(1, "asked", &shell("trap '' TERM; sleep 300 & wait"));
    agent.started(1);
    until("it runs", || !of_job("asked").is_empty());
    signal("-TERM", agent.hub);
    agent.find(|said| (*said == Said::Closed).then_some(()));
    until("nothing is left", || of_job("asked").is_empty() && rig.folders().is_empty());
    assert_eq!(rig.socket(), None);
}

#[test]
fn a_hub_has_a_most_of_jobs_and_says_so() {
    let rig = new_rig();
    let mut agent = rig.agent();
    let (mut opened, mut refused) = (0_u32, 0_u32);
    // All channels that there are; those that wait for their job take little.
    let channels: Vec<u16> = (1..=u16::MAX).collect();
    for piece in channels.chunks(1000) {
        let mut bytes = Vec::new();
        for channel in piece {
            ToHub::Open { channel: *channel, name: format!("n{channel}") }.encode(&mut bytes);
        }
        agent.write(&bytes);
        for _ in piece {
            match agent.next() {
                Said::Opened { .. } => opened += 1,
                Said::Failed { errno: 11, .. } => refused += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!((opened, refused), (1000, 64_535));
    assert_eq!(agent.names().len(), 1000);
    end(agent.hub);
    until("nothing is left", || rig.folders().is_empty());
}

#[test]
fn a_login_with_few_files_has_as_many_jobs_as_fit_and_all_of_them_end() {
    const FILES: u32 = 48;
    let rig = new_rig().with_files(FILES);
    let mut agent = rig.agent();
    let waits = shell("while [ ! -e ../../go ]; do sleep 0.05; done; echo went");
    let channels = 1..=60;
    channels.clone().for_each(|channel| agent.begin(channel, &format!("n{channel}"), &waits));
    let is_there = |channel: &u16| {
        let channel = *channel;
        agent.find(|said| match said {
            Said::Opened { channel: at, .. } if *at == channel => Some(true),
            Said::Failed { channel: at, errno: 11, .. } if *at == channel => Some(false),
            Said::Failed { channel: at, errno, step } if *at == channel => panic!("{errno}: {step}"),
            _ => None,
        })
    };
    let there: Vec<u16> = channels.filter(is_there).collect();
    assert!((8..FILES as usize).contains(&there.len()), "{there:?}");
    // Others find it all the same, one after another, and more of them than it has descriptors.
    for _ in 0..FILES {
        let mut other = rig.agent();
        assert_eq!((other.hub, other.names().len()), (agent.hub, there.len()));
    }
    std::fs::write(rig.dir().join("go"), "").expect("written");
    for channel in there {
        let (exit, said) = agent.finish(channel);
        assert_eq!((exit.code, said.as_str()), (0, "went\n"));
    }
    assert_eq!(agent.run(1000, "after", &program(&["true"])).0.code, 0);
    assert_eq!(rig.folders(), Vec::<String>::new());
}

#[test]
fn nobody_gets_in_where_others_could_look() {
    let rig = new_rig();
    let run = |dir: &str| {
        let output = rig.command(&["connect", "--dir", dir, "--owner", "x"]).stdin(Stdio::null()).output();
        let output = output.expect("runs");
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(run("/tmp").contains("closed to others"));
    assert!(run("relative").contains("--dir"));
    assert!(run("/nowhere/at/all").contains("No such file"));
    let version = rig.command(&["--version"]).output().expect("runs");
    assert!(version.status.success() && version.stdout.starts_with(b"jobcell warden "));
    // Only process 1 is a cell's.
    let cell = rig.command(&["--owner", "x"]).stdin(Stdio::null()).output().expect("runs");
    assert_eq!(cell.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&cell.stderr).contains("only as process 1"));
}

#[test]
fn a_hub_has_nothing_of_the_connection_that_began_it() {
    let rig = new_rig();
    let agent = rig.agent();
    let hub = agent.hub;
    let stat = std::fs::read_to_string(format!("/proc/{hub}/stat")).expect("is there");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a line").1.split(' ').collect();
    let connector = agent.pid();
    assert_ne!(fields[1], connector.to_string(), "its parent");
    assert_ne!(fields[3], connector.to_string(), "its session");
    // Whoever runs the tests may see it; its own user may not.
    if let Ok(fds) = std::fs::read_dir(format!("/proc/{hub}/fd")) {
        let links: Vec<String> = fds
            .flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .map(|link| link.to_string_lossy().into_owned())
            .collect();
        assert!(!links.iter().any(|link| link.starts_with("pipe:")), "{links:?}");
    }
    let shown = std::fs::read(format!("/proc/{hub}/cmdline")).expect("readable");
    assert!(shown.starts_with(b"jobcell-hub\0hub\0--dir\0"));
    let mut agent = agent;
    agent.begin(1, "shown", &shell("sleep 300"));
    let keeper = agent.find(|said| match said {
        Said::Opened { pid, .. } => Some(*pid),
        _ => None,
    });
    agent.started(1);
    let shown = std::fs::read(format!("/proc/{keeper}/cmdline")).expect("readable");
    assert!(shown.starts_with(b"jobcell-keeper\0shown\0/"), "{}", String::from_utf8_lossy(&shown));
    agent.kill("shown");
    agent.cut();
    let mut again = rig.agent();
    assert_eq!(again.hub, hub);
    assert_eq!(again.run(1, "x", &program(&["true"])).0.code, 0);
}

/// A job that floods an agent that does not read any more, as far as it goes. The agent's connector stands still after it.
fn stalled(rig: &Rig, name: &str) -> (Agent, u32) {
    let mut agent = rig.agent();
    agent.begin(1, name, &shell("sleep 300 & while [ ! -e go ]; do sleep 0.01; done; yes"));
    let keeper = agent.find(|said| match said {
        Said::Opened { channel: 1, pid, .. } => Some(*pid),
        _ => None,
    });
    agent.started(1);
    signal("-STOP", agent.pid());
    std::fs::write(rig.job(name).join("work/go"), "").expect("written");
    // Until the pipe of the job is full, too.
    let written = || {
        let yes = with_argument("yes").into_iter().find(|pid| of_job(name).contains(pid));
        yes.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/io")).ok())
    };
    let (mut last, mut same) = (None, 0);
    until("it stands still", || {
        let now = written();
        same = if now.is_some() && now == last { same + 1 } else { 0 };
        last = now;
        same >= 20
    });
    (agent, keeper)
}

#[test]
fn what_a_dead_keeper_left_is_ended_whether_its_agent_reads_or_not() {
    let rig = new_rig();
    let (first, keeper) = stalled(&rig, "unread-1");
    let (second, _) = stalled(&rig, "unread-2");
    let mut other = rig.agent();
    end(keeper);
    until("nothing is left", || of_job("unread-1").is_empty() && !rig.job("unread-1").exists());
    // Nor does an order of somebody else's wait for it.
    other.kill("unread-2");
    assert_eq!((of_job("unread-2"), rig.folders()), (vec![], vec![]));
    assert_eq!(other.names(), [""; 0]);
    assert_eq!(other.run(1, "unread-1", &program(&["true"])).0.code, 0);
    // The word of it does.
    for mut agent in [first, second] {
        signal("-CONT", agent.pid());
        assert_eq!(agent.ended(1), -9);
    }
}

#[test]
fn an_end_that_nobody_will_read_keeps_no_hub() {
    let rig = new_rig().with(&["--idle-ms", "300"]);
    let (agent, keeper) = stalled(&rig, "untold");
    let hub = agent.hub;
    end(keeper);
    until("nothing is left", || of_job("untold").is_empty() && rig.folders().is_empty());
    agent.cut();
    until("the hub goes", || !std::path::Path::new(&format!("/proc/{hub}")).exists());
}

#[test]
fn a_hub_that_cannot_be_reached_is_not_replaced() {
    let rig = new_rig();
    let mut agent = rig.agent();
    let socket = rig.socket().expect("is there");
    let close = |mode| std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(mode)).expect("set");
    if rig.is_root() {
        // Nothing is closed to root.
        return;
    }
    close(0);
    let dir = rig.dir().to_str().expect("text");
    let output = rig.command(&["connect", "--dir", dir, "--owner", OWNER]).stdin(Stdio::null()).output().expect("runs");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cannot be reached") && said.contains("ermission"), "{said}");
    close(0o600);
    assert_eq!(rig.agent().hub, agent.hub);
    assert_eq!(agent.run(1, "x", &program(&["true"])).0.code, 0);
}
