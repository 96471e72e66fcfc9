//! Hosts over SSH: which, as whom, and what concerns them of the rest of a policy.

use super::*;

/// Two hosts of an inventory; others are not in it.
pub(super) fn inventory(target: &crate::job::Target) -> Reached {
    let own = |text: &str| Some(text.to_owned());
    let named = match target.host.as_str() {
        "web1" => Reached {
            address: own("10.1.0.1"),
            port: Some(22),
            login: own("deploy"),
            credential: own("deploy"),
            ..Reached::default()
        },
        "old" => Reached {
            address: own("10.9.0.1"),
            port: Some(22),
            login: own("root"),
            credential: own("legacy"),
            jump: vec!["bastion".to_owned()],
            password: false,
        },
        _ => Reached::default(),
    };
    let password = target.access.credential.as_ref().or(named.credential.as_ref()).is_some_and(|name| name == "legacy");
    Reached { password, ..named }
}

fn to(target: &Value) -> Value {
    json!({"target": target, "command": ["systemctl", "restart", "nginx"]})
}

#[test]
fn without_a_list_hosts_are_reached_as_the_inventory_has_them_and_in_no_other_way() {
    let v1 = "version: 1";
    assert_eq!(codes(v1, &to(&json!({"host": "web1"}))), NONE);
    assert_eq!(codes(v1, &to(&json!({"host": "web1", "login": "deploy", "credential": "deploy", "port": 22}))), NONE);
    for (target, code) in [
        (json!({"host": "web1", "login": "root"}), "login_not_allowed"),
        (json!({"host": "web1", "credential": "legacy"}), "credential_not_allowed"),
        (json!({"host": "web1", "port": 2222}), "port_not_allowed"),
        (json!({"host": "web1", "jump": ["bastion"]}), "jump_not_allowed"),
        (json!({"host": "other", "login": "me"}), "login_not_allowed"),
        (json!({"host": "old"}), "password_not_allowed"),
    ] {
        assert_eq!(codes(v1, &to(&target)), [code], "{target}");
    }
}

#[test]
fn limits_bound_what_a_job_on_a_host_asks_for() {
    let most = "{version: 1, allow: {limits: {resources.memory: 1GiB, resources.pids: 100}}}";
    let asks = |resources: Value| {
        let mut job = to(&json!({"host": "web1"}));
        job["resources"] = resources;
        codes(most, &job)
    };
    // It is not held to what it does not ask for, there or anywhere.
    assert_eq!(asks(json!({})), NONE);
    assert_eq!(asks(json!({"memory": "1GiB", "pids": 100, "cpu": 64})), NONE);
    assert_eq!(asks(json!({"memory": "2GiB"})), ["above_maximum"]);
    assert_eq!(asks(json!({"pids": 101})), ["above_maximum"]);
}

const TARGETS: &str = "
version: 1
allow:
  targets:
    - {hosts: ['web*', 10.1.0.0/16], logins: [deploy, 'ci-*']}
    - {hosts: [old], logins: [root], passwords: true}
    - {hosts: [192.0.2.7], logins: ['*'], credentials: ['*'], ports: [22, 2222], jumps: [bastion]}
";

#[test]
fn hosts_logins_and_credentials_are_those_of_one_entry() {
    let codes = |target: &Value| super::codes(TARGETS, &to(target));
    assert_eq!(codes(&json!({"host": "WEB1"})), ["login_not_allowed"], "the inventory has none of that name");
    assert_eq!(codes(&json!({"host": "web1"})), NONE);
    assert_eq!(codes(&json!({"host": "web1", "login": "ci-7"})), NONE);
    assert_eq!(codes(&json!({"host": "web1", "login": "root"})), ["login_not_allowed"], "that one is for another host");
    assert_eq!(codes(&json!({"host": "old"})), NONE, "with its password");
    assert_eq!(codes(&json!({"host": "10.1.2.3", "login": "deploy"})), NONE);
    assert_eq!(codes(&json!({"host": "10.2.2.3", "login": "deploy"})), ["host_not_allowed"]);
    assert_eq!(codes(&json!({"host": "10.1.0.1.example", "login": "deploy"})), ["host_not_allowed"], "a name");
    let far = |more: &Value| {
        let mut target = json!({"host": "192.0.2.7", "login": "me", "credential": "mine", "port": 22});
        target.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        codes(&target)
    };
    assert_eq!(far(&json!({})), NONE);
    assert_eq!(far(&json!({"port": 23})), ["port_not_allowed"]);
    assert_eq!(far(&json!({"jump": ["bastion"]})), NONE);
    assert_eq!(far(&json!({"jump": ["bastion", "web1"]})), ["jump_not_allowed"]);
    assert_eq!(far(&json!({"credential": "legacy"})), ["password_not_allowed"]);
    let job = spec(&to(&json!({"host": "web1", "login": "root"})));
    let why = read(TARGETS).judge(&job, &facts()).refusals()[0].sentence.clone();
    assert_eq!(why, "login `root` at `web1` is not allowed; allowed: deploy, ci-*");
    assert_eq!(super::codes("{version: 1, allow: {targets: []}}", &to(&json!({"host": "web1"}))), ["host_not_allowed"]);
}

#[test]
fn what_the_inventory_dials_is_judged_and_not_what_a_name_looks_like() {
    let policy = "{version: 1, allow: {targets: [{hosts: [10.9.0.0/16], passwords: true}]}}";
    assert_eq!(codes(policy, &to(&json!({"host": "old"}))), NONE);
    assert_eq!(codes(policy, &to(&json!({"host": "web1"}))), ["host_not_allowed"]);
}

#[test]
fn a_host_is_judged_by_what_concerns_hosts_and_programs_and_by_nothing_of_containers() {
    let policy = "
version: 1
allow:
  images: [nothing]
  image_digest: required
  presets: []
  oci_runtimes: []
  uids: {first: 1, last: 2}
  pulls: [never]
  limits: {resources.cpu: 0.1, resources.memory: 4MiB, timeout: 30m}
rules:
  - name: hosts
    when: {hosts: ['web*']}
    allow: {programs: [{command: [systemctl, restart, '*']}], limits: {timeout: 2h}}
";
    assert_eq!(codes(policy, &to(&json!({"host": "web1"}))), NONE);
    let with = |key: &str, value: Value| {
        let mut job = to(&json!({"host": "web1"}));
        job[key] = value;
        codes(policy, &job)
    };
    assert_eq!(with("command", json!(["rm", "-rf", "/"])), ["program_not_allowed"]);
    assert_eq!(with("workdir", json!("/srv")), ["workdir_not_allowed"]);
    assert_eq!(with("workdir", json!("/workspace")), ["workdir_not_allowed"], "there it is a folder like any other");
    assert_eq!(with("timeout", json!("3h")), ["above_maximum"]);
    // Neither another host nor a container is what the rule is for.
    for other in [to(&json!({"host": "elsewhere"})), job()] {
        assert_eq!(read(policy).judge(&spec(&other), &facts()).rule, "default", "{other}");
    }
    let script = json!({"target": {"host": "web1"}, "script": "uptime\n"});
    let by_hash = |more: &str| {
        let hash = sha256("uptime\n");
        format!("{{version: 1, allow: {{programs: [{{script_sha256: {hash}{more}}}]}}}}")
    };
    assert_eq!(codes(&by_hash(""), &script), NONE, "by the host's /bin/sh");
    assert_eq!(codes(&by_hash(", interpreter: [/bin/bash]"), &script), ["program_not_allowed"]);
}

#[test]
fn what_is_wrong_with_targets_is_named() {
    for (text, wanted) in [
        ("[web1]", "allow.targets[0]: is a string"),
        ("[{logins: [x]}]", "allow.targets[0].hosts: is missing"),
        ("[{hosts: ['10.0.0.0/99']}]", "allow.targets[0].hosts[0]: `10.0.0.0/99` is no network"),
        ("[{hosts: [a], ports: [0]}]", "allow.targets[0].ports[0]: is no port"),
        ("[{hosts: [a], passwords: 'yes'}]", "allow.targets[0].passwords: is a string"),
        ("[{hosts: [a], login: x}]", "allow.targets[0].login: unknown key; did you mean `logins`?"),
    ] {
        let told =
            Policy::read(&format!("{{version: 1, allow: {{targets: {text}}}}}")).expect_err("is wrong").to_string();
        assert!(told.contains(wanted), "{text}: {told}");
    }
}
