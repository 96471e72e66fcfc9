//! What is handed out, and what is not, decided on tables.

use super::Groups;
use super::routing::*;
use crate::job::{Beside, ByteSize, Capacity, Cpus, JobSpec, SpecRules, UnixMillis};
use serde_json::{Value, json};

fn shape(document: &Value, groups: &Groups) -> Shape {
    let mut spec = json!({"preset": "bash", "script": "x", "resources": {"cpu": 1, "memory": "64MiB"}});
    for (key, value) in document.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    Shape::of(&JobSpec::check(&spec, &SpecRules::default()).expect("valid"), groups)
}

fn job(seq: u64, priority: i32, waited: u64) -> Candidate {
    Candidate { seq, priority, submitted_at: UnixMillis::new(1_000_000 - waited * 1000) }
}

fn room(slots: u32, cpu: u32, mib: u64) -> Capacity {
    Capacity { slots, cpu: Cpus::from_milli(cpu * 1000), memory: ByteSize::from_mib(mib), ..Capacity::default() }
}

fn large() -> Profile {
    Profile { presets: vec!["bash".into()], capacity: room(99, 99, 99_999), ..Profile::default() }
}

fn asker(free: Capacity, max: u32) -> Asker<'static> {
    Asker { agent: "a", profile: None, peers: &[], free, max, now: UnixMillis::new(1_000_000) }
}

#[test]
fn a_shape_is_read_back_from_its_name() {
    let groups = Groups::from([("team".to_owned(), 2)]);
    let requires =
        json!({"labels": {"zone": "eu", "disk": ["a", "b"], "rack": {"not": ["r"]}}, "apart": ["team", "none"]});
    let one = shape(&json!({"labels": {"team": "x"}, "requires": requires}), &groups);
    assert_eq!(Shape::named(&one.name()), Some(one.clone()));
    assert!(one.minds_others() && !shape(&json!({}), &groups).minds_others());
    assert_eq!(Shape::named("[]"), None);
    let disk = shape(&json!({"resources": {"disk": "1GiB"}}), &groups);
    assert_eq!(Shape::named(&disk.name()), Some(disk));
    // Files have names from before there were disks, and they are the same jobs.
    let before = r#"["bash","1","64MiB",{},{},{}]"#;
    assert_eq!(
        (shape(&json!({}), &groups).name().as_str(), Shape::named(before)),
        (before, Some(shape(&json!({}), &groups)))
    );
}

#[test]
fn a_job_on_another_host_goes_to_who_reaches_hosts_and_takes_a_slot() {
    let none = Groups::new();
    let asked = json!({"target": {"host": "web1"}, "command": ["x"], "resources": {"cpu": 64, "memory": "1TiB"}});
    let there = Shape::of(&JobSpec::check(&asked, &SpecRules::default()).expect("valid"), &none);
    assert_eq!(Shape::named(&there.name()), Some(there.clone()));
    let told = |shape: &Shape, executors: &[&str]| {
        let executors = executors.iter().map(|&name| name.to_owned()).collect();
        let small = Profile { executors, presets: vec!["bash".into()], capacity: room(1, 1, 64), ..Profile::default() };
        shape.lasting(&small).iter().map(Obstacle::sentence).collect::<Vec<_>>()
    };
    let cannot = "it runs no jobs on other hosts: its settings have no ssh.inventory";
    // One that says nothing of itself is one of before there was a choice.
    assert_eq!((told(&there, &["docker"]), told(&there, &[])), (vec![cannot.to_owned()], vec![cannot.to_owned()]));
    assert!(told(&there, &["docker", "ssh"]).is_empty() && told(&there, &["ssh"]).is_empty());
    let here = shape(&json!({}), &none);
    assert!(told(&here, &[]).is_empty() && told(&here, &["docker"]).is_empty());
    assert_eq!(told(&here, &["ssh"]), ["it runs no jobs in containers"]);
    // Cores and memory are all taken, and it needs none.
    let full = Capacity { slots: 2, ..room(2, 0, 0) };
    let queues = vec![(there, vec![job(1, 0, 1), job(2, 0, 1), job(3, 0, 1)])];
    assert_eq!(choose(queues, asker(full, 8), &Running::default(), &none).jobs, [1, 2]);
}

#[test]
fn what_a_cell_takes_beside_its_job_needs_room_too() {
    let none = Groups::new();
    let beside = Beside { fixed: ByteSize::from_mib(80), disk: ByteSize::from_mib(256) };
    let with = |mib| Capacity { beside, ..room(8, 8, mib) };
    let queues = || {
        let disk = json!({"resources": {"memory": "64MiB", "disk": "16MiB"}});
        vec![(shape(&json!({}), &none), vec![job(1, 0, 1), job(3, 0, 1)]), (shape(&disk, &none), vec![job(2, 0, 1)])]
    };
    // 400 MiB for one, 160 for the other.
    for (mib, jobs) in [(159, vec![]), (160, vec![2]), (559, vec![1]), (560, vec![1, 2]), (960, vec![1, 2, 3])] {
        assert_eq!(choose(queues(), asker(with(mib), 8), &Running::default(), &none).jobs, jobs, "{mib} MiB");
    }
    let profile = Profile { capacity: with(399), ..large() };
    assert_eq!(
        shape(&json!({}), &none).lasting(&profile).iter().map(Obstacle::sentence).collect::<Vec<_>>(),
        [
            "400MiB (64MiB of its own, the rest for its files and its warden) of memory are asked for, and it has 399MiB in all"
        ]
    );
}

#[test]
fn every_lasting_obstacle_is_told() {
    let one = shape(
        &json!({"resources": {"cpu": 8, "memory": "4GiB"}, "requires": {"labels": {"zone": "eu", "disk": "ssd"}}}),
        &Groups::new(),
    );
    let labels = [("zone".to_owned(), "us".to_owned())].into();
    let profile = Profile { labels, capacity: room(4, 4, 1024), ..Profile::default() };
    let told: Vec<String> = one.lasting(&profile).iter().map(Obstacle::sentence).collect();
    assert_eq!(
        told,
        [
            "it has no label disk, and ssd is required",
            "its label zone is us, and eu is required",
            "it has no preset bash",
            "8 of cpu are asked for, and it has 4 in all",
            "4GiB of memory are asked for, and it has 1GiB in all",
        ]
    );
}

#[test]
fn by_priority_then_age_over_all_shapes_as_far_as_there_is_room() {
    let none = Groups::new();
    let (small, large) = (shape(&json!({}), &none), shape(&json!({"resources": {"cpu": 3}}), &none));
    let queues =
        vec![(small.clone(), vec![job(2, 0, 1), job(5, 0, 1)]), (large.clone(), vec![job(3, 5, 1), job(4, 0, 1)])];
    let choice = choose(queues.clone(), asker(room(8, 5, 9999), 8), &Running::default(), &none);
    assert_eq!((choice.jobs, choice.held_back), (vec![3, 2, 5], true), "the second large one does not fit");
}

#[test]
fn a_job_that_lacks_only_room_for_long_is_waited_for_by_one_agent() {
    let groups = Groups::from([("team".to_owned(), 1)]);
    let small = shape(&json!({}), &groups);
    let three = json!({"cpu": 3, "memory": "64MiB"});
    let behind = |first: &Value, waited| {
        let large = shape(first, &groups);
        vec![(small.clone(), vec![job(2, 0, 1), job(5, 0, 1)]), (large, vec![job(4, 0, waited)])]
    };
    let (large, here) = (json!({"resources": three}), large());
    let ask = Asker { profile: Some(&here), ..asker(room(8, 2, 9999), 8) };
    let running = Running::default();
    let told = |choice: Choice| (choice.jobs, choice.held_back, choice.reserves);
    assert_eq!(told(choose(behind(&large, 31), ask, &running, &groups)), (vec![2], true, Some(4)));
    assert_eq!(told(choose(behind(&large, 29), ask, &running, &groups)), (vec![2, 5], true, None));
    // Somebody of whom nobody knows whether it ever fits does not wait for it.
    let unknown = Asker { profile: None, ..ask };
    assert_eq!(told(choose(behind(&large, 31), unknown, &running, &groups)), (vec![2, 5], true, None));
    // Only where most of it fits already, and of two alike at the first by name.
    let peer = |agent: &str, free, profile| [Peer { agent: agent.to_owned(), profile, free }];
    for (peers, reserves) in [
        (peer("b", room(1, 2, 9999), here.clone()), true),
        (peer("0", room(1, 2, 9999), here.clone()), false),
        (peer("b", room(1, 9, 9999), here.clone()), false),
        (peer("b", room(0, 9, 9999), here.clone()), true),
        (peer("0", room(1, 1, 9999), here.clone()), true),
        (peer("b", room(1, 9, 9999), Profile::default()), true),
    ] {
        let choice = choose(behind(&large, 31), Asker { peers: &peers, ..ask }, &running, &groups);
        assert_eq!(choice.reserves.is_some(), reserves, "{peers:?}");
    }
    // Room would not help it.
    let mut running = Running::default();
    running.add("b", "team", "x", 1);
    let grouped = json!({"resources": three, "labels": {"team": "x"}});
    let choice = choose(behind(&grouped, 31), ask, &running, &groups);
    assert_eq!((choice.held_back, choice.reserves), (true, None));
}

#[test]
fn groups_and_those_that_have_to_be_apart_wait_for_what_runs() {
    let groups = Groups::from([("team".to_owned(), 2)]);
    let grouped = shape(&json!({"labels": {"team": "x"}}), &groups);
    let queues = || vec![(grouped.clone(), vec![job(1, 0, 0), job(2, 0, 0)])];
    let mut running = Running::default();
    running.add("b", "team", "x", 1);
    running.add("b", "team", "y", 5);
    let choice = choose(queues(), asker(room(8, 8, 9999), 8), &running, &groups);
    assert_eq!((choice.jobs, choice.held_back), (vec![1], true));
    running.add("a", "team", "x", 1);
    let choice = choose(queues(), asker(room(8, 8, 9999), 8), &running, &groups);
    assert_eq!((choice.jobs, choice.held_back), (vec![], true));
    let apart = shape(&json!({"labels": {"db": "m"}, "requires": {"apart": ["db"]}}), &Groups::new());
    let mut running = Running::default();
    running.add("b", "db", "m", 1);
    let choice = choose(vec![(apart.clone(), vec![job(1, 0, 0)])], asker(room(8, 8, 9999), 8), &running, &groups);
    assert_eq!(choice.jobs, [1], "on another agent");
    running.add("a", "db", "m", 1);
    let told = apart.passing(room(1, 1, 1024), "a", &running, &groups);
    assert_eq!(told, [Obstacle::Apart { label: "db".into(), value: "m".into() }]);
}
