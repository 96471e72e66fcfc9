//! Jobs on other hosts that a warden there looks after, as a user sees them.

use super::super::stage::{Up, cause, fact, id, until};
use super::jobs::{on, processes, stage, stop};
use super::sshd::{self, Sshd};
use reqwest::Method;
use serde_json::{Value, json};
use std::path::PathBuf;

pub(super) fn script(text: &str) -> Value {
    on(&json!({"host": "web1"}), &json!({"script": text}))
}

/// The home of the login.
pub(crate) fn home() -> PathBuf {
    let passwd = std::fs::read_to_string("/etc/passwd").expect("reads");
    let line = passwd.lines().find(|line| line.split(':').next() == Some(sshd::login())).expect("the login is there");
    PathBuf::from(line.split(':').nth(5).expect("a home"))
}

/// The folder of an installation on its host, which is this one.
pub(super) fn base(up: &Up) -> PathBuf {
    let owner = std::fs::read_to_string(up.data().join("owner")).expect("is there");
    home().join(".jobcell").join(owner.trim())
}

/// Processes of this name that work in a folder.
pub(crate) fn wardens(folder: &std::path::Path, name: &str) -> Vec<u32> {
    let pids =
        std::fs::read_dir("/proc").expect("reads").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is = |pid: &u32| {
        let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
        let arguments = read("cmdline");
        let mut arguments = arguments.split(|byte| *byte == 0);
        read("comm").trim_ascii_end() == name.as_bytes()
            && arguments.any(|one| one == folder.as_os_str().as_encoded_bytes())
    };
    pids.filter(is).collect()
}

pub(super) fn hubs(up: &Up) -> Vec<u32> {
    wardens(&base(up), "jobcell-hub")
}

fn sessions(sshd: &Sshd) -> usize {
    sshd.log().matches("Starting session: command").count()
}

pub(super) async fn has_said(up: &Up, job: &Value, text: &str) {
    until("output", || async { up.text(job, "stdout").await.contains(text).then_some(()) }).await;
}

#[tokio::test]
async fn a_warden_stays_and_its_jobs_leave_nothing() {
    let Some((_folder, sshd, up)) = stage("", "").await else { return };
    let text = "pwd; cat; echo \"$GREETING $1\"; echo \"$HOME\"; echo err >&2; setsid sleep 300 & exit 3";
    let spec = on(
        &json!({"host": "web1"}),
        &json!({"script": text, "stdin": "given\n", "env": {"GREETING": "it's\n\"me\""}, "name": "first"}),
    );
    let job = up.run(&spec).await;
    assert_eq!((cause(&job), &job["ending"]["cause"]["exit_code"]), ("exit_code", &json!(3)), "{job}\n{}", up.log());
    let out = up.text(&job, "stdout").await;
    let (folder, rest) = out.split_once('\n').expect("a line");
    assert_eq!(rest, format!("given\nit's\n\"me\" \n{}\n", home().display()));
    assert!(folder.starts_with(&base(&up).display().to_string()) && folder.ends_with("/work"), "{folder}");
    assert_eq!((up.text(&job, "stderr").await.as_str(), &job["log"]["complete"]), ("err\n", &json!(true)), "{job}");
    assert_eq!((fact(&job, "executor"), fact(&job, "mode")), ("ssh", "resident"));
    assert_eq!((fact(&job, "host"), fact(&job, "login")), ("web1", sshd::login()));
    assert_eq!(fact(&job, "isolation"), "none: shared login");
    assert!(fact(&job, "cgroup").starts_with("none of its own: "), "{job}");
    assert!(processes(&job).is_empty(), "its end is told when nothing of it runs");
    // Its folder goes when its end is safe.
    until("no folder", || async { (!std::path::Path::new(folder).exists()).then_some(()) }).await;

    for (spec, wanted) in [
        (on(&json!({"host": "web1"}), &json!({"command": ["true"]})), "exit_code"),
        (script("kill -s SEGV $$"), "signal"),
        (on(&json!({"host": "web1"}), &json!({"command": ["no-such-program"]})), "program_not_found"),
        (on(&json!({"host": "web1"}), &json!({"command": ["/etc/passwd"]})), "program_not_executable"),
        (on(&json!({"host": "web1"}), &json!({"command": ["true"], "workdir": "/no/such"})), "workdir_unusable"),
    ] {
        let job = up.run(&spec).await;
        assert_eq!(cause(&job), wanted, "{job}\n{}", up.log());
    }
    let bytes = "head -c 20000000 /dev/zero | tr '\\0' 'x'; printf '\\0\\377\\303'; printf '\\351' >&2";
    let job = up.run(&script(bytes)).await;
    let out = up.stream(&job, "stdout").await;
    assert_eq!((out.len(), &out[20_000_000..]), (20_000_003, b"\0\xff\xc3".as_slice()));
    assert_eq!((hubs(&up).len(), sessions(&sshd)), (1, 1), "one channel for all of them");
    stop(up).await;
}

#[tokio::test]
async fn twenty_jobs_at_once_need_one_channel() {
    let Some((_folder, sshd, up)) = stage("MaxSessions 1\n", "agent: {slots: 20}\n").await else { return };
    let begun = std::time::Instant::now();
    let mut jobs = Vec::new();
    for n in 0..20 {
        jobs.push(up.submit(&script(&format!("echo {n}; sleep 3"))).await);
    }
    for (n, job) in jobs.iter().enumerate() {
        let job = up.ended(job).await;
        assert_eq!(job["ending"]["verdict"], "succeeded", "{job}\n{}", up.log());
        assert_eq!(up.text(&job, "stdout").await, format!("{n}\n"));
    }
    assert!(begun.elapsed().as_secs() < 40, "one after the other: {:?}", begun.elapsed());
    assert_eq!((sessions(&sshd), sshd.log().matches("Accepted publickey").count()), (1, 1));
    stop(up).await;
}

#[tokio::test]
async fn files_values_and_secrets_go_both_ways() {
    let Some((_folder, _sshd, up)) = stage("", "").await else { return };
    let text = r#"
cat data/given; cp data/given out.txt; echo "value=of $TOKEN" >> "$JOBCELL_OUTPUT"
"$JOBCELL_HELPER" progress 40% "half way"
stat -c '%a' "$KEY"; cat "$KEY"; echo; stat -f -c '%T' "$KEY"; echo "token $TOKEN"
while [ ! -e go ]; do sleep 0.05; done
"#;
    let mut spec = script(text);
    spec["inputs"] = json!([{"path": "data/given", "text": "brought\n"}]);
    spec["artifacts"] = json!(["out.txt"]);
    spec["secrets"] = json!({"TOKEN": {"value": "s3cr3t-t0ken"}, "KEY": {"value": "k3y-of-many", "as": "file"}});
    let job = up.submit(&spec).await;
    let path = format!("/v1/jobs/{}", id(&job));
    let live = until("live progress", || async {
        let job = up.get(&path).await;
        (job["progress"]["percent"] == 40).then_some(job)
    })
    .await;
    assert_eq!(live["progress"]["message"], "half way", "{live}");
    let seen = |pid: u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("s3cr3t-t0ken")
    };
    let pids =
        std::fs::read_dir("/proc").expect("reads").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    assert_eq!(pids.filter(|pid| seen(*pid)).count(), 0, "no argument has it");
    let folder = std::fs::read_dir(base(&up)).expect("reads").filter_map(Result::ok);
    let folder = folder.map(|entry| entry.path()).find(|path| path.is_dir()).expect("the job's folder");
    std::fs::write(folder.join("work/go"), "").expect("writes");
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), &job["outputs"]), ("exit_code", &json!({"value": "of ***"})), "{job}\n{}", up.log());
    assert_eq!(up.text(&job, "stdout").await, "brought\n400\n***\ntmpfs\ntoken ***\n");
    let answer = up.call(Method::GET, &format!("{path}/artifacts/out.txt"), None).await;
    assert_eq!(answer.text().await.expect("text"), "brought\n");
    assert_eq!(job["artifacts"]["complete"], true, "{job}");
    until("no folder", || async { (!folder.exists()).then_some(()) }).await;
    // What no host gives is refused here too.
    let mut spec = script("true");
    spec["resources"] = json!({"disk": "1MiB"});
    assert_eq!(cause(&up.run(&spec).await), "target_unsupported");
    stop(up).await;
}

#[tokio::test]
async fn stops_end_the_whole_tree_and_what_is_to_run_after_them_runs() {
    let Some((_folder, _sshd, up)) = stage("", "agent: {grace: 1s}\n").await else { return };
    // A child that has left the session, and one of a parent that is gone.
    let stubborn = "trap '' TERM; setsid sleep 300 & (setsid sh -c 'env -i sleep 300 & sleep 300' &); echo begun; \
                    while :; do sleep 0.1; done";
    let mut spec = script(stubborn);
    spec["on_cancel"] = json!({"command": ["sh", "-c", "echo after; pwd"]});
    let job = up.submit(&spec).await;
    has_said(&up, &job, "begun").await;
    assert!(processes(&job).len() >= 3, "{:?}", processes(&job));
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&job)), None).await;
    let job = up.ended(&job).await;
    assert_eq!(cause(&job), "canceled", "{job}");
    assert!(up.text(&job, "stdout").await.contains("after\n/"), "{}", up.text(&job, "stdout").await);
    assert!(processes(&job).is_empty(), "{:?}", processes(&job));
    assert!(wardens(&base(&up), "jobcell-keeper").is_empty());

    let mut spec = script("trap 'echo bye; exit 0' TERM; echo begun; while :; do sleep 0.1; done");
    spec["timeout"] = json!("1s");
    let job = up.run(&spec).await;
    assert_eq!((cause(&job), up.text(&job, "stdout").await.as_str()), ("timeout", "begun\nbye\n"), "{job}");
    let mut spec = script("echo begun; sleep 300");
    spec["silence_timeout"] = json!("1s");
    assert_eq!(cause(&up.run(&spec).await), "silence");
    let mut spec = script("yes");
    spec["resources"] = json!({"output": "64KiB"});
    let job = up.run(&spec).await;
    assert_eq!((cause(&job), up.stream(&job, "stdout").await.len()), ("output_limit", 65_536), "{job}");
    stop(up).await;
}

#[tokio::test]
async fn arguments_and_variables_arrive_as_they_are() {
    let Some((_folder, _sshd, up)) = stage("", "").await else { return };
    // Whatever a shell or a line protocol could take for its own; no NUL, which no argument can have.
    let mut state = 0x9e37_79b9_u32;
    let mut random = move |most: u32| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state % most
    };
    let alphabet: Vec<char> =
        "ab \t\n\r'\"\\$`!#&;|<>(){}[]*?~%^=+-_,.:/@\u{1}\u{7f}\u{1e}é漢𝄞{script}".chars().collect();
    for _ in 0..5 {
        let mut text = || -> String {
            let length = random(60) as usize;
            (0..length).map(|_| alphabet[random(u32::try_from(alphabet.len()).expect("few")) as usize]).collect()
        };
        let arguments: Vec<String> = (0..20).map(|_| text()).filter(|text| text != "{script}").collect();
        let variable = text();
        let program = "printf '%s\\0' \"$@\"; printf '%s' \"$ODD\"";
        let mut command = vec!["sh".to_owned(), "-c".to_owned(), program.to_owned(), "x".to_owned()];
        command.extend(arguments.iter().cloned());
        let spec = on(&json!({"host": "web1"}), &json!({"command": command, "env": {"ODD": variable}}));
        let job = up.run(&spec).await;
        assert_eq!(job["ending"]["verdict"], "succeeded", "{job}");
        let mut wanted: Vec<u8> = arguments.iter().flat_map(|one| [one.as_bytes(), b"\0"].concat()).collect();
        wanted.extend_from_slice(variable.as_bytes());
        assert!(up.stream(&job, "stdout").await == wanted, "{arguments:?} {variable:?}");
    }
    stop(up).await;
}
