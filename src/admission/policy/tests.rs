//! What is judged how; and for any policy and any job: nothing above a maximum is given, and what is given is allowed.

mod target_tests;

use super::*;
use crate::job::{Limit, Pull, SpecRules};
use proptest::prelude::*;
use serde_json::{Value, json};

const EXAMPLE: &str = include_str!("../../../config/policy.example.yaml");

fn spec(document: &Value) -> JobSpec {
    JobSpec::check(document, &SpecRules::default()).expect("valid")
}

fn read(text: &str) -> Policy {
    Policy::read(text).unwrap_or_else(|problems| panic!("{problems}"))
}

const DEFAULTS: Defaults =
    Defaults { disk: ByteSize::from_mib(256), inodes: 262_144, output: ByteSize::from_mib(1024), nofile: 4096 };

fn facts<'a>() -> Facts<'a> {
    static SECRETS: std::sync::LazyLock<std::collections::BTreeSet<String>> =
        std::sync::LazyLock::new(|| ["deploy-token".to_owned(), "db".to_owned()].into());
    static ROUTES: std::sync::LazyLock<Routes> = std::sync::LazyLock::new(|| Routes::new(target_tests::inventory));
    Facts {
        secrets: &SECRETS,
        backend: "main",
        submitter: None,
        image: "jobcell/bash:1",
        routes: &ROUTES,
        pull: Pull::IfAbsent,
        oci_runtime: "",
        uids: (200_000, 209_999),
        defaults: DEFAULTS,
        filter: Filter::default(),
    }
}

#[test]
fn a_rule_for_a_key_is_for_jobs_that_were_submitted_with_it_only() {
    let policy = read(
        "version: 1\nallow: {limits: {timeout: 1h}}\nrules:\n\
         - {name: ours, when: {keys: [ops, 'ci-*']}, allow: {limits: {timeout: 9h}}}\n",
    );
    let mut job = job();
    job["timeout"] = json!("5h");
    let job = spec(&job);
    let rule = |submitter| policy.judge(&job, &Facts { submitter, ..facts() }).rule;
    assert_eq!([Some("ops"), Some("ci-7")].map(rule), ["ours", "ours"]);
    // A job of before keys had names, or of a server that does not say, is nobody's.
    assert_eq!([Some("ops2"), Some("ci"), Some(""), None].map(rule), ["default"; 4]);
}

#[test]
fn what_a_job_may_reach_lies_within_what_the_operator_names() {
    let mut wants = job();
    wants["egress"] = json!({"allow": ["pypi.org:443", "a.example.com:80,443", "10.1.2.3:5432"]});
    let allow = |list: &str| format!("{{version: 1, allow: {{egress: {list}}}}}");
    let refused = "egress_not_allowed";
    assert_eq!(codes("{version: 1}", &wants), [refused; 3], "nothing by default");
    assert_eq!(codes(&allow("['pypi.org:443', '*.example.com:443', '0.0.0.0/0:5432']"), &wants), [refused; 2]);
    let all = allow("['*:80,443', '10.1.0.0/16:5000-6000']");
    assert!(codes(&all, &wants).is_empty());
    let offline = Facts { filter: Filter { least: Seccomp::Offline, ..Filter::default() }, ..facts() };
    assert_eq!(codes_with(&all, &wants, &offline), ["egress_not_offered"]);
    // A rule puts its own list in place of the one at the top.
    let ruled = format!(
        "{}, rules: [{{name: r, when: {{backends: [main]}}, allow: {{egress: []}}}}]}}",
        all.strip_suffix('}').expect("a map")
    );
    assert_eq!(codes(&ruled, &wants), [refused; 3]);
    let problems = Policy::read(&allow("['010.0.0.1:443', 'https://x']")).expect_err("no rules");
    let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert!(told[0].starts_with("allow.egress[0]: ") && told[0].contains("octal"), "{told:?}");
    assert!(told[1].starts_with("allow.egress[1]: ") && told[1].contains("URL"), "{told:?}");
}

fn codes(policy: &str, job: &Value) -> Vec<String> {
    codes_with(policy, job, &facts())
}

fn codes_with(policy: &str, job: &Value, facts: &Facts<'_>) -> Vec<String> {
    let (policy, job) = (read(policy), spec(job));
    let judged = policy.judge(&job, facts);
    let refusals = judged.refusals();
    assert_eq!(judged.given.is_none(), !refusals.is_empty());
    assert!(refusals.iter().all(|one| !one.sentence.is_empty()));
    refusals.into_iter().map(|one| one.code).collect()
}

fn job() -> Value {
    json!({"preset": "bash", "command": ["make", "all"]})
}

fn with(key: &str, value: &Value) -> Value {
    let mut job = job();
    job[key] = value.clone();
    job
}

const NONE: [&str; 0] = [];

#[test]
fn without_a_policy_everything_is_allowed_as_it_is_but_a_way_out() {
    let plain = spec(&job());
    let judged = Policy::default().judge(&plain, &facts());
    assert_eq!((judged.rule.as_str(), judged.clamped().len(), judged.given.as_deref()), ("default", 0, Some(&plain)));
    assert_eq!(codes("version: 1", &with("network", &json!("bridge"))), ["network_not_allowed"]);
    assert_eq!(codes("{version: 1, allow: {networks: [none, bridge]}}", &with("network", &json!("bridge"))), NONE);
}

#[test]
fn each_list_allows_what_is_on_it() {
    let other = Facts { image: "r.example/x:1", oci_runtime: "runc", uids: (1000, 1010), ..facts() };
    let pinned = format!("jobcell/bash@sha256:{}", "a".repeat(64));
    let pinned = Facts { image: &pinned, ..facts() };
    for (policy, good, bad, code) in [
        ("images: ['jobcell/*']", facts(), other.clone(), "image_not_allowed"),
        ("image_digest: required", pinned, facts(), "digest_required"),
        ("oci_runtimes: [default, runsc]", facts(), other.clone(), "oci_runtime_not_allowed"),
        ("uids: {first: 200000, last: 210000}", facts(), other, "uids_not_allowed"),
    ] {
        let policy = format!("{{version: 1, allow: {{{policy}}}}}");
        assert_eq!(codes_with(&policy, &job(), &good), NONE, "{policy}");
        assert_eq!(codes_with(&policy, &job(), &bad), [code], "{policy}");
    }
    assert_eq!(codes("{version: 1, allow: {presets: [python]}}", &job()), ["preset_not_allowed"]);
    // What a job does not say is the settings'.
    let always = json!({"preset": "bash", "script": "true", "pull": "always"});
    let policy = "{version: 1, allow: {pulls: [never, if_absent]}}";
    assert_eq!((codes(policy, &job()), codes(policy, &always)), (Vec::new(), vec!["pull_not_allowed".to_owned()]));
    let eager = Facts { pull: Pull::Always, ..facts() };
    assert_eq!(codes_with(policy, &job(), &eager), ["pull_not_allowed"]);
    assert_eq!(codes("{version: 1, allow: {networks: []}}", &job()), ["network_not_allowed"]);
}

#[test]
fn a_list_of_programs_is_for_everything_that_a_job_can_run() {
    let script = "echo hello\n";
    let policy = format!(
        "version: 1\nallow:\n  env: ['APP_*']\n  programs:\n    - command: [make, '*']\n    - script_sha256: {0}\n    \
         - {{script_sha256: {0}, interpreter: [/bin/sh, -e]}}\n",
        sha256(script)
    );
    let scripted = |more: &Value| {
        let mut job = json!({"preset": "bash", "script": script});
        for (key, value) in more.as_object().into_iter().flatten() {
            job[key] = value.clone();
        }
        job
    };
    for good in [
        job(),
        with("env", &json!({"APP_X": "1"})),
        with("on_cancel", &json!({"command": ["make", "clean"]})),
        scripted(&json!({})),
        scripted(&json!({"interpreter": ["/bin/sh", "-e"]})),
    ] {
        assert_eq!(codes(&policy, &good), NONE, "{good}");
    }
    for (bad, code) in [
        (with("command", &json!(["sh", "-c", "make all"])), "program_not_allowed"),
        (with("on_cancel", &json!({"command": ["sh"]})), "program_not_allowed"),
        (with("env", &json!({"BASH_ENV": "$(evil)"})), "env_not_allowed"),
        (scripted(&json!({"script": "echo hello; evil\n"})), "program_not_allowed"),
        // The script as it is, and something else that runs before it.
        (scripted(&json!({"interpreter": ["/bin/sh", "-c", "evil"]})), "program_not_allowed"),
    ] {
        assert_eq!(codes(&policy, &bad), [code], "{bad}");
    }
    // Who lists programs and no variables means these programs and nothing that changes them.
    let strict = "{version: 1, allow: {programs: [{command: [make, '*']}]}}";
    assert_eq!(codes(strict, &with("env", &json!({"A": "b"}))), ["env_not_allowed"]);
}

#[test]
fn an_image_by_its_id_is_on_no_list() {
    for id in ["9c7a54a9a43c", &"a".repeat(64), &format!("sha256:{}", "a".repeat(64))] {
        let facts = Facts { image: id, ..facts() };
        for list in ["['**']", "['docker.io/library/*', 'sha256']"] {
            let policy = format!("{{version: 1, allow: {{images: {list}}}}}");
            assert_eq!(codes_with(&policy, &job(), &facts), ["image_not_allowed"], "{list} {id}");
        }
        assert_eq!(codes_with("version: 1", &job(), &facts), NONE, "{id}");
    }
}

#[test]
fn a_program_of_the_list_is_fed_and_moved_only_where_its_entry_says_so() {
    let policy = "version: 1\nallow:\n  programs:\n    - {command: [make, '*']}\n    - {command: [psql], stdin: true}\n    \
                  - {command: [npm, ci], workdir: true}\n    - {command: [cat], stdin: true}\n    - {command: [cat], workdir: true}\n    \
                  - {command: [tee], stdin: true, workdir: true}\n";
    let runs = |argv: &[&str], more: Value| {
        let mut job = json!({"preset": "bash", "command": argv});
        for (key, value) in more.as_object().into_iter().flatten() {
            job[key] = value.clone();
        }
        codes(policy, &job)
    };
    let (fed, moved, both) =
        (json!({"stdin": "x"}), json!({"workdir": "/tmp"}), json!({"stdin": "x", "workdir": "/tmp"}));
    for (argv, more) in [
        (&["make", "all"][..], json!({"workdir": "/workspace"})),
        (&["psql"], fed.clone()),
        (&["npm", "ci"], moved.clone()),
        (&["cat"], fed.clone()),
        (&["cat"], moved.clone()),
        (&["tee"], both.clone()),
    ] {
        assert_eq!(runs(argv, more), NONE, "{argv:?}");
    }
    assert_eq!(runs(&["make", "all"], fed.clone()), ["stdin_not_allowed"]);
    assert_eq!(runs(&["make", "all"], moved.clone()), ["workdir_not_allowed"]);
    assert_eq!(runs(&["psql"], moved), ["workdir_not_allowed"]);
    assert_eq!(runs(&["npm", "ci"], fed), ["stdin_not_allowed"]);
    // Two entries that each allow the half of it are not one that allows it.
    assert_eq!(runs(&["cat"], both), ["workdir_not_allowed"]);
    // What comes after a cancel runs in the job's folder too, and reads nothing.
    let after = json!({"stdin": "x", "workdir": "/tmp", "on_cancel": {"command": ["make", "clean"]}});
    assert_eq!(runs(&["tee"], after), ["workdir_not_allowed"]);
    let after = json!({"stdin": "x", "on_cancel": {"command": ["make", "clean"]}});
    assert_eq!(runs(&["tee"], after), NONE);
    assert_eq!(codes("version: 1", &with("stdin", &json!("x"))), NONE);
}

#[test]
fn a_program_of_the_list_finds_files_of_the_job_only_where_its_entry_says_so() {
    let policy = "version: 1\nallow:\n  programs:\n    - {command: [make, '*']}\n    - {command: [tar, '**'], inputs: true}\n    \
                  - {command: [tar, x], workdir: true}\n";
    let runs = |argv: &[&str], more: Value| {
        let mut job = json!({"preset": "bash", "command": argv, "inputs": [{"path": "Makefile", "text": "x"}]});
        for (key, value) in more.as_object().into_iter().flatten() {
            job[key] = value.clone();
        }
        codes(policy, &job)
    };
    assert_eq!(runs(&["tar", "x"], json!({})), NONE);
    assert_eq!(runs(&["make", "all"], json!({})), ["inputs_not_allowed"]);
    assert_eq!(runs(&["make", "all"], json!({"inputs": []})), NONE);
    assert_eq!(runs(&["tar", "x"], json!({"workdir": "/tmp"})), ["workdir_not_allowed"]);
    assert_eq!(runs(&["tar", "x"], json!({"on_cancel": {"command": ["make", "clean"]}})), ["inputs_not_allowed"]);
    assert_eq!(codes("version: 1", &with("inputs", &json!([{"path": "a", "text": "b"}]))), NONE);
}

#[test]
fn the_first_rule_that_matches_decides_and_keeps_what_it_does_not_name() {
    let policy = read(
        "version: 1\nallow: {images: ['jobcell/*'], limits: {timeout: 1h, resources.cpu: 2}}\nrules:\n  \
         - {name: mining, when: {labels: {kind: 'mine*'}}, refuse: We do not mine here.}\n  \
         - {name: ci, when: {labels: {team: [ci, build]}, backends: [main]}, allow: {limits: {timeout: {max: 4h, over: clamp}}}}\n  \
         - {name: team, when: {labels: {team: '*'}}, allow: {limits: {timeout: 2h}}}\n",
    );
    let told = |labels: Value, backend| {
        let mut job = job();
        job["labels"] = labels;
        job["timeout"] = json!("5h");
        job["resources"] = json!({"cpu": 3});
        let job = spec(&job);
        let judged = policy.judge(&job, &Facts { backend, image: "evil:1", ..facts() });
        let codes: Vec<String> =
            judged.refusals().into_iter().map(|one| format!("{} {}", one.path, one.code)).collect();
        (judged.rule.clone(), codes, judged.clamped().len())
    };
    let (image, cpu) = ("image image_not_allowed".to_owned(), "resources.cpu above_maximum".to_owned());
    let timeout = "timeout above_maximum".to_owned();
    assert_eq!(told(json!({"kind": "miner", "team": "ci"}), "main"), ("mining".into(), vec![" rule".into()], 0));
    assert_eq!(told(json!({"team": "ci"}), "main"), ("ci".into(), vec![image.clone(), cpu.clone()], 1));
    let all = vec![image, cpu, timeout];
    assert_eq!(told(json!({"team": "ci"}), "other"), ("team".into(), all.clone(), 0));
    assert_eq!(told(json!({}), "main"), ("default".into(), all, 0));
}

#[test]
fn the_example_is_read_and_does_what_it_says() {
    let policy = read(EXAMPLE);
    assert!(policy.rules() >= 2);
    let long = spec(&with("timeout", &json!("7d")));
    let judged = policy.judge(&long, &facts());
    let clamps = judged.clamped();
    assert!(judged.given.is_some() && clamps.iter().any(|clamp| clamp.path == "timeout"), "{judged:?}");
}

#[test]
fn everything_that_is_wrong_with_a_document_is_told_with_its_path() {
    let text = "allow: {images: ['a b', 1], image_digest: maybe, networks: [host], uids: {first: 5}, limits: {resources.cpus: 2, \
                timeout: never, resources.memory: 1KiB, resources.pids: {max: 5, over: ignore}}, programs: [{}, {command: ['**']}, \
                {script_sha256: abc}, {command: [a], stdin: often}], ports: []}\nrules: [{name: default, when: {labels: {a: b}}, refuse: Not here.}, {when: {}}, 5]\n";
    let told = Policy::read(text).expect_err("is bad").to_string();
    for wanted in [
        "version: is missing",
        "allow.images[0]: `a b` has characters",
        "allow.images[1]: is a number",
        "allow.image_digest: is no word that is known; write required or optional",
        "allow.networks[0]: `host` is no network",
        "allow.uids: is no range of user ids",
        "allow.limits.resources.cpus: unknown limit; did you mean `resources.cpu`?",
        "allow.limits.timeout: `never` is no maximum of it",
        "allow.limits.resources.memory: `1KiB` is no maximum of it",
        "allow.limits.resources.pids.over: `ignore`",
        "allow.programs[0]: has to have one of",
        "allow.programs[1].command: begins with `**`",
        "allow.programs[2].script_sha256: is not 64",
        "allow.programs[3].stdin: is a string",
        "allow.ports: unknown key",
        "rules[0].name: `default` is the name of another one",
        "rules[1].name: is missing",
        "rules[1].when: is missing or empty",
        "rules[1]: says neither",
        "rules[2]: is a number",
    ] {
        assert!(told.contains(wanted), "{wanted} is not in:\n{told}");
    }
    assert!(Policy::read("[1").is_err() && Policy::read("5").is_err() && Policy::read("").is_err());
}

fn any_maximum() -> impl Strategy<Value = Option<(u64, bool)>> {
    prop::option::of((1u64..40, any::<bool>()))
}

proptest! {
    /// Whatever is asked for, and whatever the maxima: refused, or at most the maxima and at most what was asked for; and who asks for
    /// what was given gets it as it is.
    #[test]
    fn nothing_above_a_maximum_is_given(
        maxima in prop::collection::vec(any_maximum(), LIMITS.len()),
        asked in prop::collection::vec(1u64..40, LIMITS.len()),
        (silent, cancels) in (any::<bool>(), any::<bool>()),
    ) {
        // In units that any job can have.
        let unit = |limit: &Limit| match limit.path {
            "resources.cpu" => 100,
            "resources.memory" => 4 << 20,
            "resources.pids" => 1,
            "resources.disk" | "resources.output" => 1 << 20,
            _ => 1000,
        };
        let mut document = json!({"image": "x", "command": ["x"]});
        if silent { document["silence_timeout"] = json!("1m"); }
        if cancels { document["on_cancel"] = json!({"command": ["x"]}); }
        let mut job = spec(&document);
        let mut policy = Policy::default();
        for (at, limit) in LIMITS.iter().enumerate() {
            if limit.of(&job).is_some_and(|has| has != crate::job::UNBOUNDED) {
                job = limit.set(&job, asked[at] * unit(limit)).expect("valid");
            }
            if let Some((most, clamp)) = maxima[at] {
                let over = if clamp { Over::Clamp } else { Over::Refuse };
                policy.allow.limits.insert(limit.path, Maximum { most: most * unit(limit), over });
            }
        }
        let judged = policy.judge(&job, &facts());
        let above = |limit: &&Limit| {
            let maximum = policy.allow.limits.get(limit.path);
            limit.of(&job).zip(maximum).is_some_and(|(asked, maximum)| asked > maximum.most)
        };
        let has_to_be_refused = LIMITS.iter().filter(above).any(|limit| policy.allow.limits[limit.path].over == Over::Refuse);
        prop_assert_eq!(judged.given.is_none(), has_to_be_refused);
        if let Some(given) = &judged.given {
            for limit in &LIMITS {
                let most = policy.allow.limits.get(limit.path).map_or(u64::MAX, |maximum| maximum.most);
                let gets = facts().defaults.of(limit, given);
                prop_assert!(gets.is_none_or(|gets| gets <= most || gets == crate::job::UNBOUNDED && most == u64::MAX), "{}", limit.path);
                let wanted = limit.of(&job).map(|asked| asked.min(most));
                prop_assert!(wanted.is_none() || limit.of(given) == wanted, "{}", limit.path);
            }
            prop_assert_eq!(job.clamped_to(&given.limits()), judged.clamped());
            let again = policy.judge(given, &facts());
            prop_assert_eq!((again.clamped().len(), again.given.as_ref()), (0, Some(given)));
        }
    }

    #[test]
    fn any_text_is_a_policy_or_told_to_be_none(text in "\\PC{0,200}") {
        let _ = Policy::read(&text);
    }
}

#[test]
fn what_a_job_does_not_name_is_within_the_maxima_too() {
    let policy = "{version: 1, allow: {limits: {resources.output: {max: 10MiB, over: refuse}, resources.disk: 64MiB, resources.inodes: 1000, resources.nofile: 256}}}";
    let plain = spec(&job());
    let policy = read(policy);
    let judged = policy.judge(&plain, &facts());
    let given = judged.given.expect("nothing that it named is too much").into_owned();
    let got = given.resources();
    assert_eq!((got.output, got.disk), (Some(ByteSize::from_mib(10)), Some(ByteSize::from_mib(64))));
    assert_eq!((got.inodes, got.nofile), (Some(1000), Some(256)));
    // The files that come with a size are counted, and a smaller default stays.
    let large = spec(&with("resources", &json!({"disk": "32MiB", "nofile": 100})));
    let given = policy.judge(&large, &facts()).given.expect("allowed").into_owned();
    assert_eq!((given.resources().inodes, given.resources().nofile), (Some(1000), Some(100)));
    let small = Facts { defaults: Defaults { nofile: 64, ..DEFAULTS }, ..facts() };
    assert_eq!(policy.judge(&plain, &small).given.expect("allowed").resources().nofile, None);
    // What it names is refused as before.
    let named = with("resources", &json!({"output": "11MiB"}));
    assert_eq!(
        codes("{version: 1, allow: {limits: {resources.output: {max: 10MiB, over: refuse}}}}", &named),
        ["above_maximum"]
    );
}

#[test]
fn a_profile_that_cells_cannot_have_is_refused_and_no_cell_is_made() {
    let under = |filter: Filter, asked: &str| {
        let facts = Facts { filter, oci_runtime: if filter.none { "runsc" } else { "" }, ..facts() };
        codes_with("version: 1", &with("seccomp", &json!(asked)), &facts)
    };
    let strict = Filter { least: Seccomp::Strict, ..Filter::default() };
    let (own, none) = (Filter { own: true, ..Filter::default() }, Filter { none: true, ..Filter::default() });
    for (filter, asked) in
        [(strict, "offline"), (strict, "tripwire"), (own, "strict"), (own, "tripwire"), (none, "strict")]
    {
        assert_eq!(under(filter, asked), ["seccomp_not_offered"], "{filter:?} {asked}");
    }
    for (filter, asked) in
        [(strict, "strict"), (strict, "default"), (own, "default"), (none, "default"), (Filter::default(), "offline")]
    {
        assert_eq!(under(filter, asked), NONE, "{filter:?} {asked}");
    }
}
