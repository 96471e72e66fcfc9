use super::*;
use crate::protocol::wire::{Decoder, Secret};
use bytes::Bytes;

const US: u64 = 1_000_000;

fn at(ms: u64) -> Now {
    Now { ms, us: US + ms * 1000 }
}

struct Stage {
    machine: Machine,
    epoch: u32,
    now: Now,
}

fn stage() -> Stage {
    let place = Place::new(&"0190b2d4".parse().expect("an owner"), "job-1-0");
    let machine = Machine::new("job/1/0".into(), place, 77, "/home/x/.jobcell/o/job-1-0".into(), vec![]);
    Stage { machine, epoch: 0, now: at(0) }
}

fn spec() -> CellSpec {
    CellSpec {
        attempt: "job/1/0".into(),
        argv: vec!["true".into()],
        wall_timeout_ms: 60_000,
        grace_ms: 3000,
        lease_ms: 100_000,
        ..CellSpec::default()
    }
}

impl Stage {
    fn say(&mut self, message: ToWarden) {
        self.machine.hear(self.epoch, message, self.now);
    }

    fn attach(&mut self, stored: u64, window: u32) {
        self.epoch += 1;
        let (min_version, max_version) = (VERSION, VERSION);
        self.say(ToWarden::Attach { min_version, max_version, attempt: "job/1/0".into(), stored, window });
    }

    fn give(&mut self, spec: &CellSpec, script: &[u8], stdin: &[u8]) {
        let mut head = Vec::new();
        spec.encode(&mut head);
        for (section, bytes) in [(0, head.as_slice()), (1, script), (2, stdin)] {
            self.say(ToWarden::SpecChunk { section, offset: 0, bytes: bytes.to_vec() });
        }
        self.say(ToWarden::commit(&head, script, stdin));
    }

    fn begin(&mut self, spec: &CellSpec) {
        self.attach(0, 2 << 20);
        self.give(spec, b"", b"");
        self.host();
        self.go();
        let heard = self.heard();
        assert!(heard.iter().any(|(_, message)| matches!(message, FromWarden::Started { pid: 77, .. })), "{heard:?}");
    }

    fn go(&mut self) {
        for event in [Event::Stdout, Event::Stderr] {
            self.on(event(Bytes::from_static(b"\x1ejobcell go\n")));
        }
    }

    fn on(&mut self, event: Event) {
        self.machine.on(event, self.now);
    }

    fn out(&mut self, text: &str) {
        self.on(Event::Stdout(Bytes::copy_from_slice(text.as_bytes())));
    }

    fn later(&mut self, ms: u64) {
        self.now = at(self.now.ms + ms);
        self.machine.tick(self.now);
    }

    fn heard(&mut self) -> Vec<(u64, FromWarden)> {
        let mut decoder = Decoder::new();
        decoder.feed(&self.machine.say(4 << 20));
        let mut all = Vec::new();
        while let Some(frame) = decoder.next() {
            all.push((frame.seq, FromWarden::decode(&frame).expect("a message")));
        }
        all
    }

    fn output(&mut self) -> String {
        let text = |(_, message)| match message {
            FromWarden::Output { stream: 1 | 2, bytes, .. } => String::from_utf8(bytes).expect("text"),
            FromWarden::Output { bytes, .. } => format!("[{} dropped]", String::from_utf8(bytes).expect("digits")),
            _ => String::new(),
        };
        self.heard().into_iter().map(text).collect()
    }

    fn exit(&mut self) -> Option<Exit> {
        self.heard().into_iter().find_map(|(_, message)| match message {
            FromWarden::Exit(exit) => Some(exit),
            _ => None,
        })
    }

    fn host(&mut self) -> String {
        let (bytes, _) = self.machine.for_host();
        String::from_utf8(std::mem::take(bytes)).expect("text")
    }
}

#[test]
fn a_job_goes_to_the_host_whole_and_its_end_comes_back_after_its_output() {
    let mut stage = stage();
    stage.attach(0, 1 << 20);
    let spec = CellSpec { env: vec![(b"A".to_vec(), b"it's\n$x".to_vec())], ..spec() };
    stage.give(&spec, b"echo hi", b"in");
    let told = stage.host();
    let (head, rest) = told.split_once('\n').expect("a line");
    let lengths: Vec<usize> = head.split(' ').map(|length| length.parse().expect("a number")).collect();
    let (run, rest) = rest.split_at(lengths[0]);
    assert!(run.contains("export A='it'\\''s\n$x'\n") && run.ends_with("exec 'true'\n"), "{run}");
    assert_eq!((lengths[1], lengths[2], lengths[3], rest), (7, 2, 100, "echo hiincommit\n"));
    // What a login prints is not the job's, and what comes right behind the word is.
    stage.on(Event::Stderr(Bytes::from_static(b"motd\n\x1ejobcell go\nfirst")));
    // The streams come in any order.
    stage.out("motd\n\x1ejobcell go\nhello");
    assert_eq!(stage.output(), "firsthello");
    stage.on(Event::Exit(3));
    assert_eq!(stage.host(), "KILL\n", "what it left goes");
    assert!(stage.machine.for_host().1, "and the guard hears that nothing follows");
    stage.out(" world");
    assert_eq!(stage.exit(), None, "the channel is open: more may come");
    stage.on(Event::Closed);
    let exit = stage.exit().expect("it has ended");
    assert_eq!(
        (exit.kind, exit.code, exit.last_seq, exit.stdout_bytes, exit.stderr_bytes),
        (ExitKind::Exited, 3, 3, 11, 5)
    );
}

#[test]
fn code_signal_and_a_lost_link_are_three_outcomes() {
    let mut signal = stage();
    signal.begin(&spec());
    signal.on(Event::Signal { name: "TERM".into(), core_dumped: false });
    signal.on(Event::Closed);
    assert_eq!(signal.exit().map(|exit| (exit.kind, exit.code, exit.stop_reason)), Some((ExitKind::Signaled, 15, 0)));

    for last in [Event::Lost("reset".into()), Event::Closed] {
        let mut lost = stage();
        lost.begin(&spec());
        lost.out("so far");
        lost.on(last);
        assert!(lost.machine.gone().is_some() && lost.exit().is_none(), "nobody invents a code");
        lost.attach(0, 1 << 20);
        assert_eq!(lost.output(), "so far", "what had come is passed on");
        assert!(!lost.machine.is_drained());
        lost.say(ToWarden::Ack { seq: 1 });
        assert!(lost.machine.is_drained());
    }

    // The code had come, and not all output: the one is told, and nobody takes the other for all.
    let mut torn = stage();
    torn.begin(&spec());
    torn.on(Event::Exit(0));
    torn.on(Event::Lost("reset".into()));
    assert_eq!(torn.exit().map(|exit| (exit.code, exit.stdout_bytes)), Some((0, 1)));
    assert!(!torn.machine.is_clean());
    let mut whole = stage();
    whole.begin(&spec());
    whole.on(Event::Exit(0));
    whole.on(Event::Eof);
    whole.on(Event::Lost("reset".into()));
    assert_eq!(whole.exit().map(|exit| exit.code), Some(0));
}

#[test]
fn a_start_that_fails_says_at_which_step() {
    for (said, step, code) in [
        ("\x1ejobcell fail program\n", "interpreter", ENOENT),
        ("\x1ejobcell fail workdir\n", "workdir", ENOENT),
        ("\x1ejobcell fail disk\n", "disk", ENOSPC),
        ("sh: 1: ulimit: error\n\x1ejobcell fail nofile\n", "nofile: sh: 1: ulimit: error", EIO),
    ] {
        let mut stage = stage();
        stage.attach(0, 1 << 20);
        stage.give(&spec(), b"", b"");
        stage.on(Event::Stderr(Bytes::copy_from_slice(said.as_bytes())));
        let exit = stage.exit().expect("it did not start");
        assert_eq!((exit.kind, exit.step.as_str(), exit.code, exit.started_us), (ExitKind::StartFailed, step, code, 0));
    }
    let mut stage = stage();
    stage.attach(0, 1 << 20);
    stage.give(&spec(), b"", b"");
    stage.on(Event::Stderr(Bytes::from_static(b"sh: syntax error\n")));
    stage.on(Event::Exit(2));
    assert!(stage.exit().is_none(), "it may have run, and its word be on its way");
    stage.on(Event::Closed);
    assert!(stage.exit().expect("it did not start").step.contains("syntax error"));
}

#[test]
fn an_end_that_comes_before_the_word_that_the_job_began_is_the_jobs() {
    let mut stage = stage();
    stage.attach(0, 1 << 20);
    stage.give(&spec(), b"", b"");
    stage.on(Event::Exit(3));
    stage.out("\x1ejobcell go\nall of it");
    stage.on(Event::Stderr(Bytes::from_static(b"\x1ejobcell go\n")));
    stage.on(Event::Eof);
    stage.on(Event::Closed);
    let heard = stage.heard();
    let wrote = |message: &FromWarden| matches!(message, FromWarden::Output { bytes, .. } if bytes == b"all of it");
    assert!(heard.iter().any(|(_, message)| wrote(message)), "{heard:?}");
    let [.., (_, FromWarden::Exit(exit))] = &heard[..] else { panic!("its end comes last: {heard:?}") };
    assert_eq!((exit.kind, exit.code), (ExitKind::Exited, 3));
}

#[test]
fn stops_are_asked_for_first_and_a_stronger_reason_stays() {
    let mut stage = stage();
    stage.begin(&spec());
    stage.say(ToWarden::Stop { level: 0, reason: 1, grace_ms: 3000 });
    assert_eq!(stage.host(), "TERM\nCONT\n");
    stage.later(2999);
    assert_eq!(stage.host(), "");
    stage.say(ToWarden::Stop { level: 0, reason: 4, grace_ms: 3000 });
    assert_eq!(stage.host(), "", "a second one asks no second time, and gives no more time");
    stage.later(1);
    assert_eq!(stage.host(), "KILL\n");
    stage.later(1000);
    assert_eq!(stage.host(), "");
    stage.on(Event::Signal { name: "KILL".into(), core_dumped: false });
    stage.on(Event::Closed);
    assert_eq!(stage.exit().map(|exit| exit.stop_reason), Some(4));
}

#[test]
fn its_own_clocks_end_a_job() {
    let ended = |spec: CellSpec, feed: &dyn Fn(&mut Stage)| {
        let mut stage = stage();
        stage.begin(&spec);
        feed(&mut stage);
        for _ in 0..200 {
            stage.later(1000);
            if stage.host().contains("TERM") {
                break;
            }
        }
        (stage.now.ms, stage.machine.reason)
    };
    assert_eq!(ended(spec(), &|_| {}), (60_000, TIMEOUT));
    assert_eq!(ended(CellSpec { lease_ms: 7000, ..spec() }, &|_| {}), (7000, LEASE));
    let renewed = |stage: &mut Stage| {
        stage.later(5000);
        stage.say(ToWarden::Lease { remaining_ms: 7000 });
    };
    assert_eq!(ended(CellSpec { lease_ms: 7000, ..spec() }, &renewed), (12_000, LEASE));
    assert_eq!(ended(CellSpec { silence_ms: 4000, ..spec() }, &|_| {}), (4000, SILENCE));
    let talks = |stage: &mut Stage| {
        stage.later(3000);
        stage.out("x");
    };
    assert_eq!(ended(CellSpec { silence_ms: 4000, ..spec() }, &talks), (7000, SILENCE));
}

#[test]
fn a_job_that_waits_for_us_is_not_silent() {
    let mut stage = stage();
    stage.begin(&CellSpec { silence_ms: 4000, ..spec() });
    while stage.machine.has_room() {
        stage.out(&"x".repeat(60_000));
    }
    for _ in 0..10 {
        stage.later(3000);
    }
    assert_eq!(stage.machine.reason, 0);
}

#[test]
fn no_more_is_kept_than_there_is_room_for_and_sent_again_until_it_is_stored() {
    let mut stage = stage();
    stage.begin(&spec());
    let mut wrote = 0;
    while stage.machine.has_room() {
        stage.out(&"x".repeat(60_000));
        wrote += 1;
    }
    assert!(wrote * 60_064 < (1 << 20) + 60_065);
    stage.attach(0, 200_000);
    let sent = |heard: &[(u64, FromWarden)]| {
        heard.iter().filter(|(_, message)| matches!(message, FromWarden::Output { .. })).count()
    };
    assert_eq!(sent(&stage.heard()), 3, "the window");
    assert_eq!(sent(&stage.heard()), 0);
    stage.say(ToWarden::Ack { seq: 2 });
    assert_eq!(sent(&stage.heard()), 2);
    stage.attach(2, 1 << 20);
    let again = stage.heard();
    assert_eq!((sent(&again), again.iter().find(|(seq, _)| *seq > 0).map(|(seq, _)| *seq)), (wrote - 2, Some(3)));
    assert!(stage.machine.has_room());
}

#[test]
fn output_beyond_its_limit_ends_the_job_or_is_one_gap() {
    let mut ends = stage();
    ends.begin(&CellSpec { output_limit: 10, ..spec() });
    ends.out("0123456789ab");
    assert_eq!(ends.host(), "KILL\n");
    ends.on(Event::Signal { name: "KILL".into(), core_dumped: false });
    ends.on(Event::Closed);
    let heard = ends.heard();
    let Some((_, FromWarden::Exit(exit))) = heard.last() else { panic!("{heard:?}") };
    assert_eq!((exit.stop_reason, exit.met[0].limit, exit.met[0].peak), (OUTPUT, 10, 12));

    let mut cut = stage();
    cut.begin(&CellSpec { output_limit: 10, cut_output: true, ..spec() });
    cut.out("0123456789ab");
    cut.out("cd");
    cut.on(Event::Exit(0));
    cut.on(Event::Closed);
    assert_eq!(cut.output(), "0123456789[4 dropped]");
}

#[test]
fn without_room_what_may_be_dropped_is_counted() {
    let mut stage = stage();
    stage.begin(&CellSpec { drop_output: true, ..spec() });
    for _ in 0..30 {
        stage.out(&"x".repeat(60_000));
    }
    assert!(stage.machine.has_room(), "it is read on");
    let kept = stage.heard().len() as u64;
    stage.say(ToWarden::Ack { seq: kept });
    stage.out("y");
    assert_eq!(stage.output(), format!("[{} dropped]y", (30 - kept) * 60_000));
}

#[test]
fn secrets_are_given_and_never_seen_again() {
    let secret = Secret { name: "TOKEN".into(), value: b"s3cr3t-value".to_vec(), file: false };
    let mut stage = stage();
    stage.attach(0, 1 << 20);
    let env = vec![(b"LONG".to_vec(), b"a\nb".to_vec())];
    stage.give(&CellSpec { secrets: vec![secret], env, ..spec() }, b"", b"");
    let told = stage.host();
    assert!(
        told.contains("export TOKEN='s3cr3t-value'") && told.contains("\nrm -f ../run\n"),
        "what brings them goes: {told}"
    );
    stage.go();
    stage.heard();
    stage.out("a s3cr3");
    assert_eq!(stage.output(), "a ");
    stage.out("t-value b");
    assert_eq!(stage.output(), "*** b");
    stage.out("s3cr");
    assert_eq!(stage.output(), "");
    stage.later(2000);
    assert_eq!(stage.output(), "s3cr", "what begins none is not kept back for ever");
}

#[test]
fn a_stop_before_the_job_is_a_job_that_never_ran() {
    let mut stage = stage();
    stage.attach(0, 1 << 20);
    stage.say(ToWarden::Stop { level: 0, reason: 1, grace_ms: 0 });
    assert!(stage.machine.for_host().1, "the opener goes");
    assert_eq!(stage.exit().map(|exit| exit.stop_reason), Some(1));
}

#[test]
fn a_spec_that_did_not_come_whole_is_no_job() {
    let mut stage = stage();
    stage.attach(0, 1 << 20);
    let mut head = Vec::new();
    spec().encode(&mut head);
    stage.say(ToWarden::SpecChunk { section: 0, offset: 0, bytes: head[..10].to_vec() });
    stage.say(ToWarden::commit(&head, b"", b""));
    assert!(stage.heard().iter().any(|(_, message)| matches!(message, FromWarden::Fault { .. })));
    assert_eq!(stage.host(), "");
}
