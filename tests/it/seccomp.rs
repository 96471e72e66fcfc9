//! The seccomp profiles: the files are what their source makes, and keep the rules of seccomp/README.md.

#[path = "../../seccomp/generate/generator.rs"]
mod generator;

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect(name)
}

#[test]
fn the_files_are_what_the_source_makes() {
    for (name, text) in generator::files(&read(generator::SOURCE)).expect("a source without faults") {
        assert!(
            read(&name) == text,
            "{name} is not what {} makes: run `cargo run --example seccomp-profiles`",
            generator::SOURCE
        );
    }
}

/// Looks at the files themselves, so that a fault of the generator's own checks does not hide one of theirs.
#[test]
fn each_profile_keeps_the_rules() {
    for (profile, most) in generator::PROFILES {
        let json: Value = serde_json::from_str(&read(&format!("seccomp/{profile}.json"))).expect("JSON");
        assert_eq!((&json["defaultAction"], &json["defaultErrnoRet"]), (&"SCMP_ACT_ERRNO".into(), &1.into()));
        assert_eq!(json["architectures"], serde_json::json!(["SCMP_ARCH_X86_64"]));
        let mut allowed = BTreeSet::new();
        for rule in json["syscalls"].as_array().expect("rules") {
            let (action, errno) = (rule["action"].as_str().expect("an action"), rule["errnoRet"].as_u64());
            match action {
                "SCMP_ACT_ALLOW" => {
                    allowed.extend(rule["names"].as_array().expect("names").iter().map(Value::to_string))
                }
                "SCMP_ACT_ERRNO" => assert!(errno.is_some_and(|errno| errno != 1), "{profile}: {rule}"),
                "SCMP_ACT_TRACE" => assert_eq!(profile, "tripwire", "{rule}"),
                other => panic!("{profile}: {other}"),
            }
            let mut indexes = BTreeSet::new();
            for argument in rule["args"].as_array().into_iter().flatten() {
                assert_eq!(argument["op"], "SCMP_CMP_MASKED_EQ", "{profile}: {rule}");
                let [mask, value] = ["value", "valueTwo"].map(|key| argument[key].as_u64().expect("a number"));
                assert!(mask <= u64::from(u32::MAX) && mask != 0 && value & !mask == 0, "{profile}: {rule}");
                assert!(indexes.insert(argument["index"].as_u64()), "{profile}: {rule}");
            }
            assert!(rule["comment"].as_str().is_some_and(|comment| comment.len() > 10), "{profile}: {rule}");
        }
        assert!(allowed.len() > 150 && allowed.len() <= most, "{profile}: {}", allowed.len());
    }
}
