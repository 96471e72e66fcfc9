//! The classes of bad input, each with the path it must be reported at.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn base() -> Value {
    json!({"preset": "bash", "script": "echo hi\n"})
}

fn with(key: &str, value: Value) -> Value {
    let mut document = base();
    document[key] = value;
    document
}

fn paths(document: &Value) -> Vec<String> {
    match check(document, &SpecRules::default()) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(|problem| problem.path.clone()).collect(),
    }
}

#[test]
fn the_smallest_spec_gets_every_default() {
    let spec = check(&base(), &SpecRules::default()).expect("valid");
    assert_eq!(spec.timeout(), DEFAULT_TIMEOUT);
    assert_eq!(spec.resources(), Resources::default());
    assert_eq!(spec.workdir(), Some("/workspace"));
}

#[test]
fn one_limit_keeps_the_defaults_of_the_others() {
    let spec = check(&with("resources", json!({"cpu": 0.5})), &SpecRules::default()).expect("valid");
    assert_eq!(spec.resources().cpu, "0.5".parse().expect("cores"));
    assert_eq!(spec.resources().memory, Resources::default().memory);
    assert_eq!(spec.resources().pids, Resources::default().pids);
}

#[test]
fn every_class_of_bad_field_is_named_by_its_path() {
    let kib = |n: usize| "x".repeat(n * 1024);
    for (document, path) in [
        (with("name", json!("")), "name"),
        (with("silence_timeout", json!("1ms")), "silence_timeout"),
        (with("output_overflow", json!("lose")), "output_overflow"),
        (with("output_excess", json!("truncate")), "output_excess"),
        (with("on_cancel", json!({})), "on_cancel.command"),
        (with("on_cancel", json!({"command": []})), "on_cancel.command"),
        (with("on_cancel", json!({"command": ["a", 1]})), "on_cancel.command[1]"),
        (with("on_cancel", json!({"command": ["a"], "timeout": "11m"})), "on_cancel.timeout"),
        (with("on_cancel", json!({"command": ["a"], "script": "x"})), "on_cancel.script"),
        (with("name", json!("a\u{202e}b")), "name"),
        (with("name", json!("n".repeat(300))), "name"),
        (with("preset", json!("../etc")), "preset"),
        (with("image", json!("debian")), "preset"),
        (json!({"image": "-v", "command": ["x"]}), "image"),
        (json!({"image": kib(4), "command": ["x"]}), "image"),
        (json!({"image": "debian", "script": "x"}), "interpreter"),
        (json!({"script": "x"}), "image"),
        (json!({"preset": "bash"}), "script"),
        (json!({"preset": "bash", "script": "x", "command": ["y"]}), "command"),
        (json!({"preset": "bash", "command": ["y"], "interpreter": "sh"}), "interpreter"),
        (json!({"preset": "bash", "command": []}), "command"),
        (json!({"preset": "bash", "command": ["a", 1]}), "command[1]"),
        (json!({"preset": "bash", "command": ["a\u{0}"]}), "command[0]"),
        (with("script", json!("a\u{0}b")), "script"),
        (with("script", json!("a\r\nb")), "script"),
        (with("script", json!(kib(10 * 1024))), "script"),
        (with("stdin", json!(kib(600))), "stdin"),
        (with("workdir", json!("relative")), "workdir"),
        (with("workdir", json!("/a/../b")), "workdir"),
        (with("env", json!({"A=B": "x"})), "env.A=B"),
        (with("env", json!({"A\nB": "x"})), "env.A\\nB"),
        (with("env", json!({"A": "x\u{0}"})), "env.A"),
        (with("env", json!({"LD_PRELOAD": "x"})), "env.LD_PRELOAD"),
        (with("env", json!({"JOBCELL_JOB_ID": "x"})), "env.JOBCELL_JOB_ID"),
        (with("env", json!({"A": kib(129)})), "env"),
        (with("timeout", json!("0s")), "timeout"),
        (with("timeout", json!(30)), "timeout"),
        (with("timeout", json!("30d")), "timeout"),
        (with("resources", json!({"cpu": 0})), "resources.cpu"),
        (with("resources", json!({"cpu": -1})), "resources.cpu"),
        (with("resources", json!({"cpu": "NaN"})), "resources.cpu"),
        (with("resources", json!({"memory": "0"})), "resources.memory"),
        (with("resources", json!({"memory": "99999999TiB"})), "resources.memory"),
        (with("resources", json!({"pids": 0})), "resources.pids"),
        (with("resources", json!({"pids": -5})), "resources.pids"),
        (with("resources", json!({"disk": "0"})), "resources.disk"),
        (with("resources", json!({"disk": "9PiB"})), "resources.disk"),
        (with("resources", json!({"disk": "-1MiB"})), "resources.disk"),
        (with("resources", json!({"inodes": 3})), "resources.inodes"),
        (with("resources", json!({"inodes": 1e300})), "resources.inodes"),
        (with("resources", json!({"output": "1KB"})), "resources.output"),
        (with("resources", json!({"output": true})), "resources.output"),
        (with("resources", json!({"nofile": 0})), "resources.nofile"),
        (with("resources", json!({"nofile": 99_999_999})), "resources.nofile"),
        (with("resources", json!({"memroy": "1GiB"})), "resources.memroy"),
        (with("network", json!("host")), "network"),
        (with("seccomp", json!("unconfined")), "seccomp"),
        (with("seccomp", json!(["strict"])), "seccomp"),
        (with("labels", json!({"a b": "x"})), "labels.a b"),
        (with("priority", json!(1000)), "priority"),
        (with("priority", json!(1.5)), "priority"),
        (with("privileged", json!(true)), "privileged"),
        (with("cap_add", json!(["SYS_ADMIN"])), "cap_add"),
        (with("user", json!("0")), "user"),
        (json!([]), ""),
    ] {
        let found = paths(&document);
        assert!(found.iter().any(|found| found == path), "wanted {path:?}, found {found:?}");
    }
}

#[test]
fn all_problems_are_listed_and_unknown_keys_get_a_suggestion() {
    let document = json!({"preset": "bash", "scirpt": "x", "timeout": "soon", "resources": {"cpu": 0, "disk": "1KiB"}});
    let problems = check(&document, &SpecRules::default()).expect_err("bad");
    let found: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(found, ["script", "timeout", "resources.cpu", "resources.disk", "scirpt"]);
    assert!(problems.to_string().contains("did you mean `script`?"), "{problems}");
}

#[test]
fn an_unknown_preset_gets_a_suggestion() {
    let rules = SpecRules { presets: Some(vec!["bash".into(), "python".into()]) };
    let problems = check(&with("preset", json!("pyhton")), &rules).expect_err("bad");
    assert!(problems.to_string().contains("did you mean `python`?"), "{problems}");
}

#[test]
fn a_yaml_bomb_is_refused_quickly() {
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
    for n in 1..12 {
        let refs = vec![format!("*a{}", n - 1); 9].join(",");
        bomb.push_str(&format!("a{n}: &a{n} [{refs}]\n"));
    }
    assert!(JobSpec::from_yaml(&bomb, &SpecRules::default()).is_err());
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        ".{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,8}", inner, 0..4).prop_map(Value::from_iter),
        ]
    })
}

proptest! {
    #[test]
    fn any_document_is_answered_without_a_panic(key in "[a-z_]{1,16}", value in json_value()) {
        let _ = check(&with(&key, value.clone()), &SpecRules::default());
        let _ = check(&value, &SpecRules::default());
    }

    #[test]
    fn the_canonical_document_checks_to_an_equal_spec(
        script in "[ -~]{1,40}x", cpu in 10u32..4000, priority in -100i64..=100, env in prop::collection::btree_map("[A-K][A-Z0-9_]{0,8}", "[ -~]{0,20}", 0..4),
        stdin in prop::option::of("[ -~]{0,20}"),
    ) {
        let document = json!({"preset": "bash", "script": script, "resources": {"cpu": f64::from(cpu) / 1000.0}, "priority": priority, "env": env, "stdin": stdin});
        let spec = check(&document, &SpecRules::default()).expect("valid");
        let canonical = serde_json::to_value(&spec).expect("serialises");
        prop_assert_eq!(check(&canonical, &SpecRules::default()).expect("canonical is valid"), spec);
    }
}

#[test]
fn a_number_that_may_have_been_another_text_is_refused() {
    for (text, good) in [("8080", true), ("-1", true), ("0", true), ("1.10", false), ("0755", false), ("1e3", false)] {
        for field in ["env", "labels"] {
            let document = format!("preset: bash\nscript: x\n{field}: {{A: {text}}}\n");
            let checked = JobSpec::from_yaml(&document, &SpecRules::default());
            assert_eq!(checked.is_ok(), good, "{field} {text}: {checked:?}");
            if let Err(problems) = checked {
                let told = problems.to_string();
                assert!(told.contains(&format!("{field}.A")) && told.contains("quote it"), "{told}");
            }
        }
    }
}

#[test]
fn what_yaml_takes_for_something_else_than_a_word_is_to_be_quoted() {
    for (field, value) in [("name", json!(123)), ("workdir", json!(true))] {
        let mut document = json!({"preset": "bash", "script": "true"});
        document[field] = value;
        let told = JobSpec::check(&document, &SpecRules::default()).expect_err("refused").to_string();
        assert!(told.contains(&format!("{field}: is a")) && told.contains("quote it to make it a string"), "{told}");
    }
    let document = json!({"preset": "bash", "script": "true", "artifacts": [{"path": true}]});
    let told = JobSpec::check(&document, &SpecRules::default()).expect_err("refused").to_string();
    assert!(told.contains("quote it to make it a string"), "{told}");
}
