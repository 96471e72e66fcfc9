//! The machine, step by step, and a random walk: whatever a warden and a link do, it ends, and never acknowledges what
//! is not stored.

use super::*;
use crate::protocol::wire::ExitKind;
use proptest::prelude::*;

const CANCEL: Input = Input::Stop { reason: StopReason::Cancel, force: false };
const FORCE: Input = Input::Stop { reason: StopReason::Cancel, force: true };

fn session() -> Session {
    Session::new("a/1/0".into(), 0, 1_000, 60_000)
}

fn hello(state: WardenState) -> Input {
    Input::Message(FromWarden::Hello {
        version: 1,
        build: "x".into(),
        attempt: String::new(),
        state,
        next_seq: 1,
        receipt: vec![("uid".into(), "7".into())],
    })
}

fn started() -> Input {
    Input::Message(FromWarden::Started { pid: 2, time_us: 1 })
}

fn exit(last_seq: u64) -> Exit {
    Exit {
        last_seq,
        kind: ExitKind::Exited,
        code: 0,
        step: String::new(),
        stop_reason: 0,
        started_us: 1,
        ended_us: 2,
        wall_ms: 3,
        utime_us: 0,
        stime_us: 0,
        max_rss_bytes: 0,
        peak_memory_bytes: 0,
        oom_kills: 0,
        peak_pids: 0,
        stdout_bytes: 0,
        stderr_bytes: 0,
        leftover: 0,
        on_cancel: None,
        met: Vec::new(),
        results: None,
    }
}

/// A session in which the job runs.
fn running() -> Session {
    let mut session = session();
    session.on(Input::Attached, 0);
    session.on(hello(WardenState::Waiting), 1);
    assert_eq!(session.on(started(), 2), [Action::Started]);
    session
}

fn over(actions: &VecDeque<Action>) -> Option<&Over> {
    actions.iter().find_map(|action| match action {
        Action::Over(over) => Some(&**over),
        _ => None,
    })
}

#[test]
fn the_spec_follows_the_attach_at_once_and_only_before_the_start() {
    let mut session = session();
    let actions = session.on(Input::Attached, 0);
    assert!(matches!(&actions[0], Action::Send(ToWarden::Attach { stored: 0, .. })) && actions[1] == Action::SendSpec);
    let mut session = running();
    assert_eq!(session.on(Input::Cut("x".into()), 5), [Action::Reattach]);
    let actions = session.on(Input::Attached, 6);
    assert_eq!(actions.len(), 1, "{actions:?}");
}

#[test]
fn output_is_kept_in_order_and_acknowledged_when_stored() {
    let mut session = running();
    assert_eq!(session.on(Input::Output(1), 3), [Action::Keep]);
    assert_eq!(session.on(Input::Output(1), 3), []);
    assert_eq!(session.on(Input::Output(2), 3), [Action::Keep]);
    assert_eq!(session.on(Input::Stored(2), 4), [Action::Send(ToWarden::Ack { seq: 2 })]);
    assert_eq!(session.on(Input::Stored(2), 4), []);
}

#[test]
fn a_hole_makes_a_new_link_that_asks_for_what_is_not_stored() {
    let mut session = running();
    session.on(Input::Output(1), 3);
    session.on(Input::Stored(1), 3);
    session.on(Input::Output(2), 3);
    assert_eq!(session.on(Input::Output(4), 3), [Action::Reattach]);
    let actions = session.on(Input::Attached, 4);
    assert!(matches!(actions[0], Action::Send(ToWarden::Attach { stored: 1, .. })));
    // The second one is on its way to the store already.
    assert_eq!(session.on(Input::Output(2), 5), []);
    assert_eq!(session.on(Input::Output(3), 5), [Action::Keep]);
}

#[test]
fn the_end_waits_until_all_output_is_stored() {
    let mut session = running();
    session.on(Input::Output(1), 3);
    assert_eq!(session.on(Input::Message(FromWarden::Exit(exit(1))), 4), []);
    let actions = session.on(Input::Stored(1), 5);
    assert!(!actions.contains(&Action::Send(ToWarden::Close)), "that is for whoever has the end safe");
    assert_eq!(over(&actions), Some(&Over::Exited(exit(1))));
}

#[test]
fn an_end_that_came_before_lost_output_fetches_it() {
    let mut session = running();
    assert_eq!(session.on(Input::Message(FromWarden::Exit(exit(2))), 4), [Action::Reattach]);
    session.on(Input::Attached, 5);
    session.on(Input::Output(1), 6);
    session.on(Input::Output(2), 6);
    session.on(Input::Message(FromWarden::Exit(exit(2))), 7);
    assert_eq!(over(&session.on(Input::Stored(2), 8)), Some(&Over::Exited(exit(2))));
}

#[test]
fn a_stop_asks_and_then_kills_and_the_cause_is_its_reason() {
    let mut session = running();
    let actions = session.on(CANCEL, 10);
    let stop = Action::Send(ToWarden::Stop { level: 0, reason: 1, grace_ms: 1_000 });
    assert_eq!(actions, [stop, Action::Send(ToWarden::Ping { nonce: 1 })]);
    assert_eq!(session.on(CANCEL, 11), []);
    session.on(pong(1), 12);
    let at = 10 + 1_000 + STOP_SLACK_MS;
    assert!(session.wake_at() <= at);
    assert!(session.on(Input::Tick, at).contains(&Action::Kill));
    let actions = session.on(Input::Gone("killed".into()), at + 1);
    assert_eq!(over(&actions), Some(&Over::Broken(Cause::Canceled)));
}

#[test]
fn a_canceled_job_whose_cell_is_lost_was_canceled() {
    let mut session = running();
    session.on(CANCEL, 10);
    session.on(Input::Cut("the link".into()), 11);
    assert_eq!(over(&session.on(Input::Gone("the host".into()), 12)), Some(&Over::Broken(Cause::Canceled)));
    // Whoever only ran out of time here may run again elsewhere.
    let mut session = running();
    session.on(Input::Stop { reason: StopReason::Drain, force: false }, 10);
    let lost = Over::Broken(Cause::CellLost { reason: "the host".into() });
    assert_eq!(over(&session.on(Input::Gone("the host".into()), 12)), Some(&lost));
}

fn pong(nonce: u64) -> Input {
    Input::Message(FromWarden::Pong { nonce, stalled: 0 })
}

#[test]
fn who_does_not_hear_a_stop_is_ended_from_outside_within_a_second_and_not_because_we_looked_late() {
    let mut session = running();
    session.on(CANCEL, 10);
    assert!(session.wake_at() <= 10 + STOP_ANSWER_MS / 2);
    // This process was held up: what came meanwhile is heard first.
    assert!(!session.on(Input::Tick, 5_000).contains(&Action::Kill));
    assert!(session.on(Input::Tick, 5_000 + STOP_ANSWER_MS / 2).contains(&Action::Kill));

    let mut session = running();
    session.on(CANCEL, 10);
    session.on(Input::Tick, 510);
    session.on(pong(1), 900);
    assert!(!session.on(Input::Tick, 1_010).contains(&Action::Kill), "it has its grace");
    // A new link hears it anew, and has its time for that.
    session.on(Input::Cut("x".into()), 1_020);
    assert!(session.on(Input::Attached, 1_030).contains(&Action::Send(ToWarden::Ping { nonce: 2 })));
    session.on(pong(1), 1_040);
    session.on(Input::Tick, 1_530);
    assert!(session.on(Input::Tick, 2_030).contains(&Action::Kill));
}

#[test]
fn the_command_after_a_stop_has_its_own_time() {
    let mut session = running().cleaning_up(30_000);
    session.on(CANCEL, 10);
    session.on(pong(1), 11);
    let at = 10 + 1_000 + 30_000 + STOP_SLACK_MS;
    assert!(!session.on(Input::Tick, at - 1).contains(&Action::Kill));
    assert!(session.on(Input::Tick, at).contains(&Action::Kill));
    // It is for stops that leave time.
    let mut session = running().cleaning_up(30_000);
    session.on(Input::Stop { reason: StopReason::Lease, force: false }, 10);
    session.on(pong(1), 11);
    assert!(session.on(Input::Tick, 10 + 1_000 + STOP_SLACK_MS).contains(&Action::Kill));
}

#[test]
fn a_forced_stop_has_no_grace_and_replaces_one_that_has() {
    let kill = |reason, nonce| {
        [Action::Send(ToWarden::Stop { level: 1, reason, grace_ms: 0 }), Action::Send(ToWarden::Ping { nonce })]
    };
    let mut session = running();
    assert_eq!(session.on(FORCE, 10), kill(1, 1));
    assert!(session.wake_at() <= 10 + FORCED_SLACK_MS);
    // Whatever comes after it is no weaker stop.
    assert_eq!(session.on(CANCEL, 11), []);
    assert_eq!(session.on(FORCE, 11), []);
    assert_eq!(session.on(Input::Stop { reason: StopReason::Drain, force: false }, 12), kill(4, 2));
    assert!(session.on(Input::Tick, 10 + FORCED_SLACK_MS).contains(&Action::Kill));

    let mut session = running();
    session.on(CANCEL, 10);
    assert_eq!(session.on(FORCE, 20), kill(1, 2));
    // A new link hears it too.
    session.on(Input::Cut("x".into()), 21);
    assert!(session.on(Input::Attached, 22).contains(&kill(1, 3)[0]));
    assert!(session.on(Input::Tick, 20 + FORCED_SLACK_MS).contains(&Action::Kill));
    assert_eq!(over(&session.on(Input::Gone("killed".into()), 3_000)), Some(&Over::Broken(Cause::Canceled)));

    // A job whose time is over is not one that was canceled, however it is then hurried on.
    let mut session = running();
    session.on(Input::Stop { reason: StopReason::Timeout, force: false }, 10);
    assert_eq!(session.on(FORCE, 20), kill(2, 2));
}

#[test]
fn a_stop_before_the_start_ends_the_cell_at_once() {
    let mut session = session();
    session.on(Input::Attached, 0);
    let actions = session.on(Input::Stop { reason: StopReason::Drain, force: false }, 1);
    assert_eq!(actions[0], Action::Kill);
    assert_eq!(over(&actions), Some(&Over::Broken(Cause::AgentStopped)));
}

#[test]
fn a_weaker_cell_is_named_and_closed() {
    let mut session = session();
    session.on(Input::Attached, 0);
    let mismatch = crate::protocol::wire::Mismatch { key: "uid".into(), wanted: "7".into(), got: "0".into() };
    let actions = session.on(Input::Message(FromWarden::Refused { mismatches: vec![mismatch] }), 1);
    assert!(matches!(over(&actions), Some(Over::Broken(Cause::CellWeaker { mismatches })) if mismatches[0].got == "0"));
}

#[test]
fn silence_makes_a_new_link_and_too_many_of_them_end_it() {
    let mut session = running();
    let mut now = 2;
    let mut links = 0;
    loop {
        now = now.max(session.wake_at());
        let actions = session.on(Input::Tick, now);
        if actions.contains(&Action::Reattach) {
            links += 1;
            session.on(Input::Attached, now);
        }
        if let Some(end) = over(&actions) {
            assert!(matches!(end, Over::Broken(Cause::WardenFault { reason }) if reason.contains("ping")), "{end:?}");
            break;
        }
        assert!(now < 1_000_000, "it does not end");
    }
    assert_eq!(links, FRUITLESS_ATTACHES);
}

#[test]
fn links_on_which_only_old_frames_come_are_not_fruitless() {
    let mut session = running();
    for now in 0..3 * u64::from(FRUITLESS_ATTACHES) {
        assert_eq!(session.on(Input::Cut("cut".into()), now), [Action::Reattach]);
        session.on(Input::Attached, now);
        session.on(Input::Stale, now);
    }
}

#[test]
fn a_warden_that_never_says_hello_is_given_up() {
    let mut session = session();
    session.on(Input::Attached, 0);
    let actions = session.on(Input::Tick, GREETING_MS);
    assert!(matches!(over(&actions), Some(Over::Broken(Cause::WardenFault { .. }))));
}

#[test]
fn the_wall_clock_of_the_agent_is_the_second_lock() {
    let mut session = running();
    let at = 2 + 60_000 + STOP_SLACK_MS;
    let actions = session.on(Input::Tick, at);
    assert!(actions.contains(&Action::Send(ToWarden::Stop { level: 0, reason: 2, grace_ms: 1_000 })), "{actions:?}");
}

fn input() -> impl Strategy<Value = u8> {
    0u8..15
}

proptest! {
    #[test]
    fn whatever_happens_nothing_unstored_is_acknowledged_and_it_ends(steps in prop::collection::vec((input(), 0u64..6, 0u64..4_000), 0..80)) {
        let mut session = session();
        let (mut now, mut stored, mut kept) = (0, 0, 0);
        let mut ended = false;
        for (kind, number, pause) in steps {
            now += pause;
            let what = match kind {
                0 => Input::Attached,
                1 => Input::Cut("x".into()),
                2 => Input::Gone("x".into()),
                3 => hello(WardenState::Waiting),
                4 => hello(WardenState::Running),
                5 => started(),
                6 | 7 => Input::Output(number),
                8 => { stored = kept.max(stored); Input::Stored(stored) }
                9 => Input::Message(FromWarden::Exit(exit(number))),
                10 => CANCEL,
                11 => Input::Message(FromWarden::Pong { nonce: number, stalled: 0 }),
                13 => FORCE,
                12 => Input::Message(FromWarden::Fault { text: "x".into() }),
                _ => Input::Tick,
            };
            let output = if let Input::Output(seq) = &what { Some(*seq) } else { None };
            for action in session.on(what, now) {
                prop_assert!(!ended, "nothing comes after the end");
                match action {
                    Action::Keep => {
                        let seq = output.expect("only for output");
                        prop_assert!(seq <= kept + 1, "a hole was kept");
                        kept = seq.max(kept);
                    }
                    Action::Send(ToWarden::Ack { seq }) => prop_assert!(seq <= stored),
                    Action::Over(over) => {
                        if let Over::Exited(exit) = &*over {
                            // Unless the cell is gone, or nothing comes from it any more: the log is not complete then.
                            prop_assert!(stored >= exit.last_seq || !matches!(kind, 6..=9), "ended by {kind}");
                        }
                        ended = true;
                    }
                    _ => {}
                }
            }
        }
        // Left alone, every session comes to an end by its own deadlines; a cell that is killed is gone, and so in the end is one that cannot
        // be attached to any more.
        for round in 0..200 {
            if ended {
                return Ok(());
            }
            now = now.max(session.wake_at());
            let mut actions = session.on(Input::Tick, now);
            if actions.contains(&Action::Kill) || round == 100 {
                actions.extend(session.on(Input::Gone("killed".into()), now));
            }
            ended = over(&actions).is_some();
            now += 1;
        }
        prop_assert!(ended, "it never ends: {session:?}");
    }
}

#[test]
fn what_became_of_a_job_that_has_ended_is_its_end_whatever_comes_after_it() {
    let draining = || {
        let mut session = running().leased(10_000);
        session.on(Input::Output(1), 3);
        session.on(Input::Message(FromWarden::Exit(exit(1))), 4);
        assert!(session.is_ending());
        session
    };
    // Its output waits for room: no clock and no order ends it meanwhile, and nothing is killed.
    let mut session = draining();
    for now in [1_000, 61_000, 100_000] {
        session.on(pong(session.nonce), now - 1);
        assert!(!session.on(Input::Tick, now).contains(&Action::Kill));
        assert_eq!(session.on(FORCE, now), []);
    }
    assert_eq!(over(&session.on(Input::Stored(1), 100_001)), Some(&Over::Exited(exit(1))));
    // Its cell goes away.
    assert_eq!(over(&draining().on(Input::Gone("the engine died".into()), 5)), Some(&Over::Exited(exit(1))));
    // A stop that was on its way when it ended is over too.
    let mut session = running();
    session.on(CANCEL, 3);
    session.on(Input::Message(FromWarden::Exit(exit(0))), 4);
    assert_eq!(over(&session.on(Input::Tick, 60_000)), None, "it is over already");
}

#[test]
fn a_lease_that_runs_out_ends_the_job_and_a_renewal_puts_it_off() {
    let mut session = session().leased(10_000);
    session.on(Input::Attached, 0);
    session.on(hello(WardenState::Waiting), 1);
    let lease = |remaining_ms| Action::Send(ToWarden::Lease { remaining_ms });
    assert_eq!(session.on(started(), 4_000), [Action::Started, lease(6_000)], "the warden counts from its own start");
    session.on(Input::Renewed(9_000), 6_000);
    session.on(Input::Tick, 14_999);
    assert_eq!(session.stop, None);
    let actions = session.on(Input::Tick, 15_000);
    assert!(matches!(actions[0], Action::Send(ToWarden::Stop { reason: 5, .. })), "{actions:?}");
    assert!(session.wake_at() > 15_000, "it is not asked again");
}

#[test]
fn what_is_for_something_else_is_taken_from_the_window_of_output() {
    let window = |session: &mut Session| match session.on(Input::Attached, 0).pop_front() {
        Some(Action::Send(ToWarden::Attach { window, .. })) => window,
        other => panic!("{other:?}"),
    };
    let new = || Session::new("a/1/0".to_owned(), 0, 1000, 1000);
    assert_eq!(window(&mut new()), WINDOW_BYTES);
    assert_eq!(window(&mut new().sharing(256 * 1024)), WINDOW_BYTES - 256 * 1024);
    assert_eq!(window(&mut new().sharing(u32::MAX)), WINDOW_BYTES / 2, "output never goes without");
}

/// Inputs go before the spec, which goes when they are in their places.
#[test]
fn inputs_go_first_begin_again_with_each_link_and_have_time_as_long_as_they_get_on() {
    let mut session = session().with_inputs(true);
    let sends = |actions: &VecDeque<Action>| -> Vec<bool> {
        actions
            .iter()
            .filter_map(|action| match action {
                Action::SendInputs => Some(true),
                Action::SendSpec => Some(false),
                _ => None,
            })
            .collect()
    };
    assert_eq!(sends(&session.on(Input::Attached, 0)), [true]);
    session.on(hello(WardenState::Waiting), 1);
    // A minute and a half without a byte is not the end, and with one it all begins anew.
    let mut now = 1;
    for _ in 0..5 {
        now += INPUTS_STALL_MS - 30_000;
        answer_pings(&mut session, now);
        assert_eq!(over(&session.on(Input::Tick, now)), None);
        session.on(Input::InputsMoved, now);
    }
    let cut = session.on(Input::Cut("torn".into()), now);
    assert!(cut.contains(&Action::Reattach));
    assert_eq!(sends(&session.on(Input::Attached, now)), [true]);
    session.on(hello(WardenState::Waiting), now);
    assert_eq!(sends(&session.on(Input::InputsGiven, now)), [false]);
    assert_eq!(session.on(started(), now + 1), [Action::Started]);
    // Of what has started nothing is given again.
    session.on(Input::Cut("torn".into()), now + 2);
    assert_eq!(sends(&session.on(Input::Attached, now + 2)), Vec::<bool>::new());
}

#[test]
fn inputs_that_do_not_get_on_and_stops_in_the_middle_of_them_end_it() {
    let mut session = session().with_inputs(true);
    session.on(Input::Attached, 0);
    session.on(hello(WardenState::Waiting), 1);
    answer_pings(&mut session, INPUTS_STALL_MS);
    let actions = session.on(Input::Tick, INPUTS_STALL_MS + 1);
    assert!(matches!(over(&actions), Some(Over::Broken(Cause::WardenFault { .. }))), "{actions:?}");
    let mut session = self::session().with_inputs(true);
    session.on(Input::Attached, 0);
    session.on(hello(WardenState::Waiting), 1);
    let actions = session.on(CANCEL, 2);
    assert_eq!(over(&actions), Some(&Over::Broken(Cause::Canceled)));
    assert!(actions.contains(&Action::Kill));
}

/// Lets time pass up to `now` with a warden that answers.
fn answer_pings(session: &mut Session, now: u64) {
    while session.wake_at() < now {
        let at = session.wake_at();
        for action in session.on(Input::Tick, at) {
            if let Action::Send(ToWarden::Ping { nonce }) = action {
                session.on(Input::Message(FromWarden::Pong { nonce, stalled: 0 }), at);
            }
        }
    }
}

#[test]
fn who_was_away_hears_what_was_said_meanwhile_before_it_ends_anything() {
    let mut session = running();
    session.on(Input::Stop { reason: StopReason::Cancel, force: false }, 100);
    // Twelve seconds later: grace and all are over.
    session.on(Input::Late, 12_000);
    assert!(!session.on(Input::Tick, 12_000).contains(&Action::Kill), "the warden may have ended the job long ago");
    let end = session.on(Input::Message(FromWarden::Exit(exit(0))), 12_001);
    assert_eq!(over(&end), Some(&Over::Exited(exit(0))));
    // One that has nothing to say is ended all the same.
    let mut session = running();
    session.on(Input::Stop { reason: StopReason::Cancel, force: false }, 100);
    session.on(Input::Late, 12_000);
    session.on(Input::Tick, 12_000);
    assert!((12_001..14_001).any(|now| session.on(Input::Tick, now).contains(&Action::Kill)));
}

#[test]
fn a_cell_that_nobody_reaches_is_lost_and_ended() {
    let mut session = running();
    session.on(Input::Cut("the engine is away".into()), 100);
    let actions = session.on(Input::Lost("no answer for 30 s".into()), 31_000);
    assert!(actions.contains(&Action::Kill), "it may run");
    assert!(matches!(over(&actions), Some(Over::Broken(Cause::CellLost { .. }))), "{actions:?}");
}
