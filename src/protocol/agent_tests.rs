//! The shapes as they are on the wire, kept as files: what an older program reads must not change.

use super::*;
use serde_json::json;
use std::path::Path;

const JOB: &str = "01a1fc8c-4c8b-78fb-94fc-32d760d3b15b";

/// Reads a kept message of version 1, and writes it again to the same document.
fn golden<T: Serialize + serde::de::DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/agent-v1").join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let kept: Value = serde_json::from_str(&text).expect("JSON");
    let read: T = serde_json::from_value(kept.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(serde_json::to_value(&read).expect("writes"), kept, "{name}");
    read
}

#[test]
fn every_message_of_version_1_reads_and_writes_as_it_is_kept() {
    let register: Register = golden("register");
    assert_eq!((register.protocols.as_slice(), register.who.capacity.slots), (&[1][..], 4));
    let registered: Registered = golden("registered");
    assert_eq!((registered.protocol, registered.capabilities.lease), (1, Some(Millis::from_secs(60))));
    assert_eq!(golden::<ClaimRequest>("claim").number, 7);
    assert_eq!(golden::<ClaimAnswer>("claim-answer").claims[0].token, LeaseToken(41));
    golden::<Holdings>("renew");
    assert_eq!(golden::<RenewAnswer>("renew-answer").renewals[1], Renewed::Refused);
    assert_eq!(golden::<LookupAnswer>("lookup-answer").standings.len(), 3);
    assert_eq!(golden::<Advance>("advance").phase, Phase::Running);
    golden::<Release>("release");
    assert_eq!(golden::<StepAnswer>("step-answer").step, Step::Applied);
    assert_eq!(golden::<ReportRequest>("report").report.log.frames, 3);
    assert_eq!(golden::<ReportAnswer>("report-answer").outcome, Reported::AlreadyEnded);
    assert_eq!(golden::<Vec<FromAgent>>("stream-from-agent").len(), 4);
    let to_agent: Vec<ToAgent> = golden("stream-to-agent");
    assert!(matches!(to_agent[3..], [ToAgent::Cancel { force: false, .. }, ToAgent::Cancel { force: true, .. }]));
}

#[test]
fn what_a_later_version_adds_is_passed_over_and_what_is_missing_has_a_default() {
    let said: ToAgent = serde_json::from_value(json!({"type": "dance", "song": 1})).expect("reads");
    assert_eq!(said, ToAgent::Other);
    let registered = json!({"protocol": 1, "session": "s", "agent": "a", "max_wait": "1s", "colour": "red"});
    let registered: Registered = serde_json::from_value(registered).expect("reads");
    assert_eq!((registered.capabilities.lease, registered.capabilities.log), (None, false));
    let renewed: Renewed = serde_json::from_value(json!({"state": "renewed", "until": 1})).expect("reads");
    assert!(matches!(renewed, Renewed::Renewed { cancel_requested: false, .. }));
    let announced: Register = serde_json::from_value(json!({"protocols": [1]})).expect("reads");
    assert_eq!(announced.who, Announcement::default());
}

#[test]
fn the_newest_version_that_both_have_is_chosen() {
    assert_eq!(common_version(&[3, 2, 1]), Some(1));
    assert_eq!(common_version(&[1]), Some(1));
    assert_eq!(common_version(&[9, 8]), None);
    assert_eq!(common_version(&[]), None);
}

#[test]
fn attempts_are_named_as_the_description_says() {
    let attempt: AttemptId = format!("{JOB}/2/0").parse().expect("reads");
    let said = FromAgent::Open { channel: 1, holding: Holding { attempt, token: LeaseToken(7) } };
    let wanted = json!({"type": "open", "channel": 1, "attempt": format!("{JOB}/2/0"), "token": 7});
    assert_eq!(serde_json::to_value(said).expect("writes"), wanted);
}
