//! Jobs of a hub: what they find, how they end, and that nothing of them is left.

use super::new_rig;
use super::rig::{OWNER, Said, attach, beginning, end, of_job, program, shell, until, with_argument};
use super::wire::{CellSpec, Collect, ExitKind, FromWarden, InputWriter, MUX_THINGS_LEFT, Secret, ToHub, ToWarden};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

#[test]
fn a_job_runs_in_its_own_folder_and_leaves_nothing() {
    let rig = new_rig();
    let mut agent = rig.agent();
    let line = "pwd; echo $JOBCELL_WORKSPACE $JOBCELL_CELL; echo ${SSH_CONNECTION-none}; test -n \"$HOME$PATH\" && echo login; exit 7";
    let (exit, output) = agent.run(1, "first", &shell(line));
    assert_eq!((exit.kind, exit.code), (ExitKind::Exited, 7));
    let work = rig.job("first").join("work").to_string_lossy().into_owned();
    assert_eq!(output, format!("{work}\n{work} first.\nnone\nlogin\n"));
    assert!(exit.max_rss_bytes > 0 && exit.peak_memory_bytes == 0, "what was measured is told, and nothing else");
    assert_eq!((rig.folders(), agent.names()), (vec![], vec![]));
    // The same name again is another job.
    assert_eq!(agent.run(1, "first", &program(&["true"])).0.code, 0);
}

#[test]
fn a_folder_that_was_left_as_it_was_is_the_next_jobs_and_no_other_is() {
    use std::os::unix::fs::MetadataExt;
    let rig = new_rig();
    let mut agent = rig.agent();
    let inode = |name: &str| std::fs::metadata(rig.job(name)).map(|about| about.ino()).ok();
    assert_eq!(agent.run(1, "first", &program(&["true"])).0.code, 0);
    let [spare] = &rig.spares()[..] else { panic!("one is set aside: {:?}", rig.spares()) };
    let folder = inode(spare).expect("is there");
    // Two at once: one finds it, the other one's is made.
    agent.begin(3, "second", &shell("sleep 300"));
    agent.started(3);
    assert_eq!((inode("second"), rig.spares().len()), (Some(folder), 0));
    assert_eq!(agent.run(2, "third", &program(&["true"])).0.code, 0);
    agent.kill("second");
    assert_eq!(agent.ended(3), -9);
    // What was killed leaves none, nor does what has changed anything.
    assert_eq!((rig.folders(), rig.spares().len()), (vec![], 1));
    for touched in
        ["touch file", "touch file; rm file", "chmod 755 .", "touch ../file", "mkdir -p ../work/x; chmod 500 x"]
    {
        assert_eq!(agent.run(1, "touched", &shell(touched)).0.code, 0, "{touched}");
        assert_eq!((rig.folders(), rig.spares()), (vec![], vec![]), "{touched}");
        let (exit, found) = agent.run(1, "next", &shell("ls -A . ..; stat -c %a . .."));
        assert_eq!((exit.code, found.as_str()), (0, ".:\n\n..:\nwork\n700\n700\n"), "{touched}");
        assert_eq!(rig.spares().len(), 1, "to look is no change");
    }
    // They go with the hub, or when the next one begins.
    end(agent.hub);
    agent.find(|said| (*said == Said::Closed).then_some(()));
    assert_eq!(rig.spares().len(), 1);
    let next = rig.agent();
    assert_eq!(rig.spares(), [""; 0]);
    drop(next);
    let mut next = rig.agent();
    assert_eq!(next.run(1, "last", &program(&["true"])).0.code, 0);
    assert_eq!(rig.spares().len(), 1);
    super::rig::signal("-TERM", next.hub);
    until("all of it is gone", || rig.spares().is_empty() && rig.folders().is_empty());
}

#[test]
fn what_is_in_force_is_said_as_it_is() {
    let rig = new_rig();
    let mut agent = rig.agent();
    agent.begin(1, "facts", &program(&["true"]));
    let facts = agent.find(|said| match said {
        Said::Frame(1, _, _, FromWarden::Hello { receipt, .. }) => Some(receipt.clone()),
        _ => None,
    });
    let fact = |key: &str| facts.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    assert_eq!(fact("mode"), Some("resident"));
    assert_eq!(fact("isolation"), Some("none: shared login"));
    // Whoever runs the tests as root can make groups, and gets none without asking for limits.
    assert!(fact("cgroup").is_some_and(|said| said.starts_with("none of its own")));
    assert!(fact("uid").is_some() && fact("no_new_privs").is_some());
    assert!(!facts.iter().any(|(key, _)| key.starts_with("try.") || key.ends_with("limit_bytes")));
    assert!(agent.facts.iter().all(|fact| facts.contains(fact)), "the hub says the same of all");
    agent.finish(1);
}

#[test]
fn a_hundred_jobs_at_once_each_have_their_own_end() {
    let rig = new_rig();
    let mut agent = rig.agent();
    for n in 1..=100_u16 {
        agent.begin(n, &format!("job-{n}"), &shell(&format!("echo {n}; sleep 0.2; exit {}", n % 50)));
    }
    for n in 1..=100 {
        let (exit, output) = agent.finish(n);
        assert_eq!((exit.code, output), (i32::from(n % 50), format!("{n}\n")));
    }
    assert_eq!(rig.folders(), [""; 0]);
}

#[test]
fn what_leaves_the_session_of_a_job_ends_with_it() {
    let rig = new_rig();
    let mut agent = rig.agent();
    // A daemon by the book, one without variables, one that is stopped, and one that forks for ever.
    let line = "(setsid sh -c 'sleep 300 & sleep 300' &) ; (env -i setsid sleep 300 &) ; (setsid sh -c 'kill -STOP $$' &) ; \
                (setsid sh -c 'while :; do sh -c \"sleep 300 & sleep 0.01\" & wait $!; done' &) ; sleep 0.3; echo $$";
    let (exit, pid) = agent.run(1, "leaves", &shell(line));
    assert_eq!(exit.code, 0);
    assert!(exit.leftover > 3, "{}", exit.leftover);
    assert_eq!(of_job("leaves"), [0; 0]);
    assert!(!std::path::Path::new(&format!("/proc/{}", pid.trim())).exists());
}

#[test]
fn a_stop_asks_first_and_reaches_all() {
    let rig = new_rig();
    let mut agent = rig.agent();
    let line = "trap 'echo asked; wait; exit 3' TERM; setsid sh -c 'trap \"echo too; exit\" TERM; sleep 300 & wait' & echo ready; wait";
    agent.begin(1, "stop", &shell(line));
    agent.find(|said| matches!(said, Said::Frame(1, _, _, FromWarden::Output { .. })).then_some(()));
    // The one in another session sets its trap by itself.
    std::thread::sleep(Duration::from_millis(200));
    agent.tell(1, 1, &[ToWarden::Stop { level: 0, reason: 1, grace_ms: 5000 }]);
    let (exit, output) = agent.finish(1);
    assert_eq!((exit.code, exit.stop_reason), (3, 1));
    assert!(output.contains("asked") && output.contains("too"), "{output}");
    agent.begin(2, "deaf", &shell("trap '' TERM; echo ready; while :; do sleep 0.01; done"));
    agent.find(|said| matches!(said, Said::Frame(2, _, _, FromWarden::Output { .. })).then_some(()));
    agent.tell(2, 1, &[ToWarden::Stop { level: 0, reason: 1, grace_ms: 100 }]);
    let (exit, _) = agent.finish(2);
    assert_eq!((exit.kind, exit.code), (ExitKind::Signaled, 9));
}

#[test]
fn a_job_that_is_killed_by_name_is_gone_with_all_that_it_started() {
    let rig = new_rig();
    let mut agent = rig.agent();
    agent.begin(1, "killed", &shell("(setsid sleep 300 &); mkdir -p a/b; chmod 500 a/b a; trap '' TERM; sleep 300"));
    agent.started(1);
    until("it runs", || of_job("killed").len() >= 3);
    agent.kill("killed");
    assert_eq!(agent.ended(1), -9);
    assert_eq!((of_job("killed"), rig.folders()), (vec![], vec![]));
    // What is not there is gone, and what is no job's is nobody's.
    agent.kill("never-was");
    agent.kill("warden-test");
    // What somebody else has left, too.
    std::fs::create_dir(rig.job("left")).expect("made");
    std::fs::write(rig.job("left").join("file"), "x").expect("written");
    rig.give(&rig.job("left"));
    agent.kill("left");
    assert_eq!(rig.folders(), [""; 0]);
    assert_eq!(agent.run(1, "killed", &program(&["true"])).0.code, 0);
}

#[test]
fn a_keeper_that_dies_takes_its_job_along_and_no_other() {
    let rig = new_rig();
    let mut agent = rig.agent();
    agent.begin(1, "orphan", &shell("(setsid sleep 300 &); (env -i setsid sleep 300 &); sleep 300"));
    agent.begin(2, "other", &shell("read x; sleep 1; echo fine"));
    let keeper = agent.find(|said| match said {
        Said::Opened { channel: 1, pid, .. } => Some(*pid),
        _ => None,
    });
    agent.started(1);
    agent.started(2);
    until("it runs", || of_job("orphan").len() >= 2);
    end(keeper);
    assert_eq!(agent.ended(1), -9);
    assert_eq!(of_job("orphan"), [0; 0]);
    assert!(!rig.job("orphan").exists());
    assert_eq!(agent.finish(2).1, "fine\n");
}

#[test]
fn a_hub_that_dies_takes_all_jobs_along() {
    let rig = new_rig();
    let mut agent = rig.agent();
    for n in 1..=5 {
        agent.begin(
            n,
            &format!("hub-{n}"),
            &shell("(setsid sleep 300 &); (env -i setsid sleep 300 &); trap '' TERM; sleep 300"),
        );
    }
    for n in 1..=5 {
        agent.started(n);
    }
    until("they run", || (1..=5).all(|n| of_job(&format!("hub-{n}")).len() >= 2));
    let died = Instant::now();
    end(agent.hub);
    agent.find(|said| (*said == Said::Closed).then_some(()));
    until("nothing is left", || rig.folders().is_empty() && (1..=5).all(|n| of_job(&format!("hub-{n}")).is_empty()));
    assert!(died.elapsed() < Duration::from_secs(10), "{:?}", died.elapsed());
    // The next one begins a hub where the socket of the first still lies.
    let mut next = rig.agent();
    assert_ne!(next.hub, agent.hub);
    assert_eq!(next.run(1, "after", &program(&["true"])).0.code, 0);
}

#[test]
fn a_lease_ends_a_job_that_nobody_comes_for_and_then_all_of_it_goes() {
    let rig = new_rig().with(&["--linger-ms", "300", "--idle-ms", "500"]);
    let mut agent = rig.agent();
    agent.begin(
        1,
        "lease",
        &CellSpec { lease_ms: 700, grace_ms: 100, ..shell("trap '' TERM; while :; do sleep 0.1; done") },
    );
    agent.started(1);
    let hub = agent.hub;
    assert!(rig.socket().is_some());
    agent.cut();
    until("the job ends", || of_job("lease").is_empty());
    until("its folder goes", || rig.folders().is_empty());
    until("the hub goes", || !std::path::Path::new(&format!("/proc/{hub}")).exists() && rig.socket().is_none());
    // Somebody who comes in time finds the end.
    let rig = new_rig().with(&["--linger-ms", "20000"]);
    let mut agent = rig.agent();
    agent.begin(1, "end", &CellSpec { lease_ms: 1500, grace_ms: 100, ..shell("echo out; sleep 300") });
    agent.find(|said| matches!(said, Said::Frame(1, _, _, FromWarden::Output { .. })).then_some(()));
    agent.cut();
    until("the job ends", || of_job("end").is_empty());
    let mut next = rig.agent();
    next.say(&ToHub::Attach { channel: 9, name: "end".to_owned() });
    next.session(9, 2, "end", 0);
    let exit = next.exit(9);
    assert_eq!(exit.stop_reason, 5);
    assert_eq!(next.output(9).into_iter().flat_map(|(_, bytes)| bytes).collect::<Vec<_>>(), b"out\n");
    next.tell(9, 2, &[ToWarden::Close]);
    assert_eq!((next.ended(9), rig.folders()), (0, vec![]));
}

#[test]
fn scripts_inputs_results_and_secrets_have_their_places() {
    let rig = new_rig();
    let mut agent = rig.agent();
    let dir = rig.job("places");
    let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    let (mut stream, mut inputs) = (Vec::new(), InputWriter::default());
    inputs.file("given.txt", false, 5, &mut stream);
    inputs.data(b"given");
    stream.extend_from_slice(b"given");
    let totals = inputs.end(&mut stream);
    let script = b"#!/bin/sh\ncat given.txt\necho a=1 >> \"$JOBCELL_OUTPUT\"\n\"$JOBCELL_HELPER\" output b 2\n\
                   \"$JOBCELL_HELPER\" progress 40 half\nls -ld \"$(dirname \"$KEY\")\" \"$KEY\" | cut -c1-10\ncat \"$KEY\"; umask\n";
    let secret = Secret { name: "KEY".to_owned(), value: b"hunter2-hunter2".to_vec(), file: true };
    let job = CellSpec {
        argv: vec!["{script}".to_owned()],
        script_path: text(dir.join("script")),
        collect: Some(Collect { root: text(dir.join("work")), rules: Vec::new() }),
        inputs: Some(totals),
        secrets: vec![secret],
        ..program(&[])
    };
    agent.say(&ToHub::Open { channel: 1, name: "places".to_owned() });
    assert_eq!(agent.opened(1), text(dir.clone()));
    agent.say(&ToHub::Data { channel: 1, bytes: &attach(1, "places", 0) });
    agent.tell(
        1,
        1,
        &[ToWarden::Inputs { root: text(dir.join("work")) }, ToWarden::InputsPart { offset: 0, bytes: stream }],
    );
    let rest = beginning("places", &job, script).split_off(attach(1, "places", 0).len());
    agent.say(&ToHub::Data { channel: 1, bytes: &rest });
    let exit = agent.exit(1);
    let results = exit.results.clone().expect("asked for");
    let (exit, output) = (exit, {
        let output: Vec<u8> = agent.output(1).into_iter().flat_map(|(_, bytes)| bytes).collect();
        String::from_utf8(output).expect("text")
    });
    assert_eq!((exit.kind, exit.code), (ExitKind::Exited, 0), "{output} {exit:?}");
    // The login's own mask, which these tests have from whoever runs them.
    assert!(output.starts_with("givendrwx------\n-r--------\n***0"), "{output}");
    assert_eq!(results.outputs, b"a=1\nb=2\n");
    assert_eq!(results.advance.percent, 40);
    agent.tell(1, 1, &[ToWarden::Close]);
    assert_eq!((agent.ended(1), rig.folders()), (0, vec![]));
    let left = std::fs::read_dir("/dev/shm").expect("readable").flatten();
    assert!(!left.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().ends_with("-places")));
}

#[test]
fn no_folder_is_emptied_but_a_jobs_own() {
    let rig = new_rig();
    let mut agent = rig.agent();
    let others = rig.dir().join("others");
    std::fs::create_dir(&others).expect("made");
    std::fs::set_permissions(&others, std::fs::Permissions::from_mode(0o777)).expect("set");
    std::fs::write(others.join("file"), "x").expect("written");
    agent.say(&ToHub::Open { channel: 1, name: "empties".to_owned() });
    agent.say(&ToHub::Data { channel: 1, bytes: &attach(1, "empties", 0) });
    agent.tell(1, 1, &[ToWarden::Inputs { root: others.to_string_lossy().into_owned() }]);
    let exit = agent.exit(1);
    assert_eq!(exit.kind, ExitKind::StartFailed);
    assert!(exit.step.starts_with("inputs "), "{}", exit.step);
    assert!(others.join("file").exists());
    agent.tell(1, 1, &[ToWarden::Close]);
    assert_eq!(agent.ended(1), 0);
}

#[test]
fn a_jobs_files_have_the_logins_mask_whatever_that_of_its_connector_is() {
    let rig = new_rig().with(&["--umask", "0027"]);
    let (_, output) = rig.agent().run(1, "mask", &shell("umask; : > file; ls -l file | cut -c1-10"));
    assert_eq!(output, "0027\n-rw-r-----\n");
}

#[test]
fn a_job_that_cannot_start_says_why() {
    let rig = new_rig();
    let mut agent = rig.agent();
    let (exit, _) = agent.run(1, "no-program", &program(&["no-such-program-at-all"]));
    assert_eq!((exit.kind, exit.code, exit.step.as_str()), (ExitKind::StartFailed, 2, "interpreter"));
    let (exit, _) = agent.run(1, "no-folder", &CellSpec { cwd: "/nowhere".to_owned(), ..program(&["true"]) });
    assert_eq!((exit.kind, exit.code, exit.step.as_str()), (ExitKind::StartFailed, 2, "workdir"));
    // A folder of that name lies there already.
    std::fs::create_dir(rig.job("taken")).expect("made");
    agent.say(&ToHub::Open { channel: 1, name: "taken".to_owned() });
    assert_eq!(agent.failed(1), 17);
}

#[test]
fn what_runs_as_another_user_is_told_of_its_own_job_and_holds_up_no_other() {
    let rig = new_rig();
    let mut agent = rig.agent();
    // Only root can make a program that becomes another user's, as sudo does; anybody sees what that is without.
    let Some(becomes) = rig.set_uid_program("setpriv") else { return };
    let seconds = format!("333.{}", std::process::id());
    let foreign = format!("{becomes} --reuid 0 --regid 0 --clear-groups sleep {seconds}");
    // One that outlives its job, one that is there when its job is killed, and one that has nothing to do with them.
    agent.begin(1, "outlives", &shell(&format!("setsid {foreign} & sleep 0.2")));
    agent.begin(2, "foreign", &shell(&format!("{foreign} & (env -i setsid sleep 300 &); wait")));
    agent.begin(3, "innocent", &shell("(env -i setsid sleep 300 &); sleep 300"));
    for channel in 1..=3 {
        agent.started(channel);
    }
    // Once they are, and not the shells and the program that become them.
    let foreigners = || {
        let sleep = with_argument("sleep");
        with_argument(&seconds)
            .into_iter()
            .filter(move |pid| sleep.contains(pid) && with_argument("--reuid").iter().all(|one| one != pid))
    };
    until("they run", || foreigners().count() == 2);
    let mut other = rig.agent();
    agent.say(&ToHub::Kill { name: "foreign".to_owned() });
    let began = Instant::now();
    other.kill("innocent");
    assert_eq!(agent.ended(3), -9);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let left = |agent: &mut super::rig::Agent, wanted: &str| {
        agent.find(|said| match said {
            Said::Left(name, text) if name == wanted => Some(text.clone()),
            _ => None,
        })
    };
    assert!(left(&mut agent, "foreign").contains("another user"));
    assert_eq!(agent.ended(2), MUX_THINGS_LEFT);
    assert!(agent.exit(1).leftover > 0);
    agent.tell(1, 1, &[ToWarden::Close]);
    assert_eq!(agent.ended(1), MUX_THINGS_LEFT);
    foreigners().for_each(end);
    assert_eq!(agent.run(1, "outlives", &program(&["true"])).0.code, 0);
}

#[test]
fn where_others_processes_are_hidden_a_jobs_own_are_ended_and_what_cannot_be_seen_is_told() {
    let Some(rig) = new_rig().with_hidden_processes() else { return };
    let mut agent = rig.agent();
    let sees = agent.run(1, "sees", &shell("ls -d /proc/[0-9]* | wc -l; [ -e /proc/1 ] || echo hidden")).1;
    let (count, hidden) = sees.trim_end().split_once('\n').unwrap_or((sees.trim_end(), "nothing"));
    assert!(count.parse::<u32>().is_ok_and(|count| count < 20) && hidden == "hidden", "{sees}");

    // Told by its argument: what has no variables is not known by one.
    let rest = format!("300.{}", std::process::id());
    let tree = format!("(setsid sh -c 'sleep {rest} & sleep {rest}' &); (env -i setsid sleep {rest} &); ");
    let (exit, _) = agent.run(2, "ends", &shell(&tree));
    assert_eq!((exit.code, of_job("ends"), with_argument(&rest)), (0, vec![], vec![]));
    agent.begin(3, "killed", &shell(&format!("{tree} echo here; exec sleep {rest}")));
    agent.started(3);
    until("its tree is there", || with_argument(&rest).len() >= 4);
    agent.kill("killed");
    assert_eq!((agent.ended(3), with_argument(&rest), rig.folders()), (-9, vec![], vec![]));

    let becomes = rig.set_uid_program("setpriv").expect("root");
    let seconds = format!("334.{}", std::process::id());
    let foreign = format!("{becomes} --reuid 0 --regid 0 --clear-groups sleep {seconds}");
    agent.begin(4, "foreign", &shell(&format!("setsid {foreign} & sleep 0.2")));
    assert!(agent.exit(4).leftover > 0);
    agent.tell(4, 1, &[ToWarden::Close]);
    assert_eq!(agent.ended(4), MUX_THINGS_LEFT);
    with_argument(&seconds).into_iter().for_each(end);
    assert_eq!(agent.run(5, "foreign", &program(&["true"])).0.code, 0);
}

#[test]
fn secrets_without_a_job_are_removed_by_name_and_by_the_next_hub() {
    let rig = new_rig();
    let hash = crc32c::crc32c(rig.dir().to_str().expect("text").as_bytes());
    let lost = |name: &str| {
        let folder = std::path::PathBuf::from(format!("/dev/shm/jobcell-{OWNER}-{hash:08x}-{name}"));
        std::fs::create_dir(&folder).expect("made");
        std::fs::write(folder.join("KEY"), "x").expect("written");
        rig.give(&folder);
        folder
    };
    let before = lost("before");
    let mut agent = rig.agent();
    assert!(!before.exists());
    let named = lost("named");
    agent.kill("named");
    assert!(!named.exists());
}
