//! What jobs give back through a real engine: files, values, progress and steps.

use super::stage::{Up, cause, engine, id, said, until};
use reqwest::Method;
use serde_json::{Value, json};

fn job(script: &str, artifacts: &Value) -> Value {
    json!({"preset": "bash", "script": script, "artifacts": artifacts})
}

/// Paths of the files of a job, by the API.
async fn paths(up: &Up, job: &Value) -> Vec<String> {
    let list = up.get(&format!("/v1/jobs/{}/artifacts", id(job))).await;
    let files = list["artifacts"].as_array().unwrap_or_else(|| panic!("no list: {list}"));
    files.iter().map(|file| file["path"].as_str().expect("a path").to_owned()).collect()
}

async fn bytes(up: &Up, job: &Value, path: &str) -> Vec<u8> {
    let answer = up.call(Method::GET, &format!("/v1/jobs/{}/artifacts/{path}", id(job)), None).await;
    assert_eq!(answer.status().as_u16(), 200, "{path}");
    answer.bytes().await.expect("reads").to_vec()
}

fn problems(job: &Value) -> Vec<(&str, &str)> {
    let all = job["artifacts"]["problems"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().map(|one| (one["path"].as_str().expect("text"), one["code"].as_str().expect("text"))).collect()
}

#[tokio::test]
async fn files_come_back_byte_for_byte_however_the_job_ended() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let script = "mkdir -p out/deep && head -c 3000000 /dev/urandom > out/big && sha256sum < out/big && : > out/deep/empty && echo not > other";
    let rules = json!(["out", {"path": "**/empty", "required": true}]);
    let done = up.run(&job(script, &rules)).await;
    assert_eq!((cause(&done), &done["artifacts"]["complete"]), ("exit_code", &json!(true)), "{done}");
    assert_eq!(paths(&up, &done).await, ["out/big", "out/deep/empty"]);
    let big = bytes(&up, &done, "out/big").await;
    let sum: String = sha256(&big);
    assert!(up.text(&done, "stdout").await.starts_with(&sum), "byte for byte");
    assert_eq!(bytes(&up, &done, "out/deep/empty").await, b"");
    // By ranges, and not again with the same tag.
    let path = format!("/v1/jobs/{}/artifacts/out/big", id(&done));
    let part = up.request(Method::GET, &path).header("range", "bytes=10-19").send().await.expect("answers");
    let (status, tag) = (part.status().as_u16(), part.headers()["etag"].clone());
    let range = part.headers()["content-range"].to_str().expect("text").to_owned();
    assert_eq!((status, range.as_str()), (206, "bytes 10-19/3000000"));
    assert_eq!(part.bytes().await.expect("reads").as_ref(), &big[10..20]);
    let again = up.request(Method::GET, &path).header("if-none-match", tag).send().await.expect("answers");
    assert_eq!(again.status().as_u16(), 304);
    let beyond = up.request(Method::GET, &path).header("range", "bytes=3000000-").send().await.expect("answers");
    assert_eq!(beyond.status().as_u16(), 416);
    let none = up.call(Method::GET, &format!("/v1/jobs/{}/artifacts/other", id(&done)), None).await;
    assert_eq!(none.status().as_u16(), 404);

    let ends = [
        (json!({"preset": "bash", "script": "echo 1 > f; exit 3", "artifacts": ["f"]}), "exit_code"),
        (
            json!({"preset": "bash", "script": "echo 1 > f; sleep 99", "timeout": "300ms", "artifacts": ["f"]}),
            "timeout",
        ),
        (
            json!({"preset": "bash", "script": "echo 1 > f; sleep 99", "silence_timeout": "300ms", "artifacts": ["f"]}),
            "silence",
        ),
        (
            json!({"preset": "bash", "script": "echo 1 > f; yes", "resources": {"output": "1MiB"}, "artifacts": ["f"]}),
            "output_limit",
        ),
    ];
    for (spec, wanted) in ends {
        let done = up.run(&spec).await;
        assert_eq!((cause(&done), paths(&up, &done).await), (wanted, vec!["f".to_owned()]), "{done}");
    }
    let on_cancel = json!({"command": ["/bin/bash", "-c", "echo late > late"]});
    let spec = json!({"preset": "bash", "script": "echo 1 > f; sleep 99", "artifacts": ["*"], "on_cancel": on_cancel});
    let canceled = up.submit(&spec).await;
    up.phase(&canceled, "running").await;
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&canceled)), None).await;
    let canceled = up.ended(&canceled).await;
    assert_eq!(
        (cause(&canceled), paths(&up, &canceled).await.contains(&"late".to_owned())),
        ("canceled", true),
        "{canceled}"
    );
    up.stop().await;
}

/// The SHA-256 of some bytes, in digits.
fn sha256(bytes: &[u8]) -> String {
    jobcell::job::Digest::of(bytes).hex()
}

fn python(script: &str, artifacts: &Value) -> Value {
    json!({"preset": "python", "script": script, "artifacts": artifacts})
}

#[tokio::test]
async fn what_is_required_and_not_there_fails_the_job_with_a_name() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "artifacts: {max_size: 1MiB}").await;
    let required = json!([{"path": "report.xml", "required": true}]);
    let none = up.run(&job("true", &required)).await;
    assert_eq!(
        none["ending"]["cause"],
        json!({"code": "artifacts_missing", "missing": ["report.xml: there is no such file"]})
    );
    assert_eq!(
        (&none["ending"]["verdict"], &none["ending"]["process_exit_code"]),
        (&json!("failed"), &json!(73)),
        "{none}"
    );
    assert_eq!((problems(&none), paths(&up, &none).await.len()), (vec![("report.xml", "missing")], 0));
    // A job that fails by itself is told of for that.
    assert_eq!(cause(&up.run(&job("exit 3", &required)).await), "exit_code");
    let large = up.run(&job("head -c 2000000 /dev/zero > report.xml", &required)).await;
    assert_eq!((cause(&large), problems(&large)), ("artifacts_missing", vec![("report.xml", "too_large")]));
    let there = up.run(&job("echo '<x/>' > report.xml", &required)).await;
    assert_eq!((cause(&there), &there["artifacts"]["complete"]), ("exit_code", &json!(true)));
    let optional = up.run(&job("true", &json!(["report.xml"]))).await;
    assert_eq!((cause(&optional), &optional["artifacts"]["complete"]), ("exit_code", &json!(true)));
    assert_eq!(problems(&optional), [("report.xml", "no_match")]);
    let (_, out, _) = said(&up.command(&["job", "get", id(&optional)]).await);
    assert!(out.contains("report.xml is optional, and matched no file"), "{out}");
    up.stop().await;
}

#[tokio::test]
async fn names_and_kinds_of_every_sort_have_their_outcome_and_nothing_hangs() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let script = r#"
import os
os.mkdir("d")
os.mkfifo("d/pipe")
os.symlink("/etc/passwd", "d/link")
os.symlink("/etc", "d/folder")
os.symlink("loop", "d/loop")
import socket
socket.socket(socket.AF_UNIX).bind("d/socket")
open(b"d/bad\xff", "w").write("1")
open("d/two\nlines \u65e5 \x1b[2J", "w").write("2")
open("d/..hidden", "w").write("3")
open("d/locked", "w").write("4"); os.chmod("d/locked", 0)
deep = "d"
for n in range(70):
    deep += "/x"
    os.mkdir(deep)
open(deep + "/f", "w").write("5")
"#;
    let done = up.run(&python(script, &json!(["d"]))).await;
    assert_eq!(cause(&done), "exit_code", "{}", up.text(&done, "stderr").await);
    let mut found = paths(&up, &done).await;
    found.sort();
    assert_eq!(found, ["d/..hidden", "d/two\nlines \u{65e5} \u{1b}[2J"]);
    assert_eq!(bytes(&up, &done, "d/two%0Alines%20%E6%97%A5%20%1B%5B2J").await, b"2");
    let mut told = problems(&done);
    told.sort_unstable();
    let deep = format!("d{}", "/x".repeat(63));
    let wanted = [
        ("d/bad\\xff", "bad_name"),
        ("d/folder", "link"),
        ("d/link", "link"),
        ("d/locked", "unreadable"),
        ("d/loop", "link"),
        ("d/pipe", "not_a_file"),
        ("d/socket", "not_a_file"),
        (deep.as_str(), "too_deep"),
    ];
    assert_eq!((told, &done["artifacts"]["complete"]), (wanted.to_vec(), &json!(false)));
    // On a terminal no name steers, and a folder gets them as they are.
    let (code, out, _) = said(&up.command(&["job", "artifacts", "ls", id(&done)]).await);
    assert!(code == 0 && out.contains("two\\nlines") && !out.contains('\u{1b}'), "{out}");
    let to = up.dir.path().join("fetched");
    let to = to.to_str().expect("text");
    let (code, _, err) = said(&up.command(&["job", "artifacts", "get", id(&done), "--to", to]).await);
    assert_eq!(code, 0, "{err}");
    assert_eq!(std::fs::read(format!("{to}/d/..hidden")).expect("is there"), b"3");
    let (code, _, err) = said(&up.command(&["job", "artifacts", "get", id(&done), "--to", to]).await);
    assert!(code == 2 && err.contains("--force"), "{err}");
    // A link in the folder leads nowhere else.
    let outside = up.dir.path().join("outside");
    std::fs::create_dir(&outside).expect("made");
    std::fs::remove_dir_all(format!("{to}/d")).expect("removed");
    std::os::unix::fs::symlink(&outside, format!("{to}/d")).expect("a link");
    let (code, _, _) = said(&up.command(&["job", "artifacts", "get", id(&done), "--to", to, "--force"]).await);
    assert_eq!((code != 0, std::fs::read_dir(&outside).expect("a folder").count()), (true, 0));
    let (code, out, _) = said(&up.command(&["job", "artifacts", "get", id(&done), "d/..hidden", "--to", "-"]).await);
    assert_eq!((code, out.as_str()), (0, "3"));
    up.stop().await;
}

#[tokio::test]
async fn a_folder_that_is_swapped_for_a_link_until_the_end_leads_nowhere() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    // One process swaps as long as it lives; the job ends, and with it everything of it, at some moment of that.
    let script = r#"
import os, time
os.mkdir("d")
open("d/passwd", "w").write("mine")
if os.fork() == 0:
    while True:
        os.rename("d", "x"); os.symlink("/etc", "d"); os.remove("d"); os.rename("x", "d")
time.sleep(float(os.environ["AFTER"]))
"#;
    for after in ["0.05", "0.1013", "0.1507"] {
        let mut spec = python(script, &json!(["d", "x"]));
        spec["env"] = json!({"AFTER": after});
        let done = up.run(&spec).await;
        assert_eq!(cause(&done), "exit_code", "{}", up.text(&done, "stderr").await);
        let found = paths(&up, &done).await;
        assert_eq!(found.len(), 1, "the file is somewhere, once: {done}");
        assert_eq!(bytes(&up, &done, &found[0]).await, b"mine");
        // Where it is not, its rule means nothing.
        let expected = |one: &(&str, &str)| *one == ("d", "link") || one.1 == "no_match";
        assert!(problems(&done).iter().all(expected), "{done}");
    }
    up.stop().await;
}

#[tokio::test]
async fn a_hundred_thousand_files_have_an_exact_outcome() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "artifacts: {max_count: 100}").await;
    let script =
        "import os\nos.mkdir('d')\nfor n in range(100000): os.close(os.open(f'd/{n}', os.O_CREAT | os.O_WRONLY))\n";
    let done = up.run(&python(script, &json!(["d"]))).await;
    assert_eq!(cause(&done), "exit_code", "{done}");
    assert_eq!((paths(&up, &done).await.len(), problems(&done)), (100, vec![("", "too_many")]));
    let sentence = done["artifacts"]["problems"][0]["sentence"].as_str().expect("text");
    assert!(sentence.contains("there are 100000 files; the first 100 "), "{sentence}");
    up.stop().await;
}

#[tokio::test]
async fn a_full_store_is_told_and_fails_only_who_requires() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "artifacts: {quota: 1MiB}").await;
    let script = "head -c 2000000 /dev/urandom > f; echo small > g";
    let lax = up.run(&job(script, &json!(["*"]))).await;
    assert_eq!(
        (cause(&lax), problems(&lax), paths(&up, &lax).await),
        ("exit_code", vec![("f", "not_stored")], vec!["g".to_owned()])
    );
    let strict = json!({"preset": "bash", "script": script, "artifacts": [{"path": "f", "required": true}], "retry": {"infrastructure": 0}});
    let strict = up.run(&strict).await;
    assert_eq!((cause(&strict), &strict["ending"]["verdict"]), ("artifacts_failed", &json!("cell_error")), "{strict}");
    up.stop().await;
}

#[tokio::test]
async fn values_steps_and_progress_come_with_the_end_and_before_it() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let script = r#"
echo "answer=42" >> "$JOBCELL_OUTPUT"
printf 'notes<<END\nline 1\nline 2\nEND\nno equals\n' >> "$JOBCELL_OUTPUT"
"$JOBCELL_HELPER" output path "a=b c"
printf 'x\ny\n' | "$JOBCELL_HELPER" output lines
"$JOBCELL_HELPER" step begin "build all"
echo "progress 10 starting" > "$JOBCELL_PROGRESS"
"$JOBCELL_HELPER" progress 40% "compiling" it
while [ ! -e go ]; do sleep 0.05; done
"$JOBCELL_HELPER" step end "build all"
echo "step begin test" > "$JOBCELL_PROGRESS"
"$JOBCELL_HELPER" progress nothing || echo "refused $?"
"$JOBCELL_HELPER" output "k k" v || echo "key $?"
"$JOBCELL_HELPER" --help | grep -c "progress PERCENT"
"$JOBCELL_HELPER" progres 40 2>&1 || echo "word $?"
echo "progress 90 nearly" > "$JOBCELL_PROGRESS"
"#;
    let running = up.submit(&json!({"preset": "bash", "script": script})).await;
    let path = format!("/v1/jobs/{}", id(&running));
    let live = until("live progress", || async {
        let job = up.get(&path).await;
        (job["progress"]["percent"] == 40).then_some(job)
    })
    .await;
    assert_eq!(live["progress"]["message"], "compiling it", "{live}");
    assert!(live["progress"]["eta"].as_u64() > live["progress"]["at"].as_u64(), "{live}");
    assert_eq!((&live["steps"][0]["name"], &live["steps"][0]["ended_at"]), (&json!("build all"), &Value::Null));
    let container = up.containers().pop().expect("its cell");
    super::stage::docker(&up.host, &["exec", &container, "touch", "/workspace/go"]);
    let done = up.ended(&running).await;
    let wanted = json!({"answer": "42", "notes": "line 1\nline 2", "path": "a=b c", "lines": "x\ny"});
    assert_eq!(
        (&done["outputs"], &done["output_problems"]),
        (&wanted, &json!(["line 6 has no `=`: `no equals`"])),
        "{done}"
    );
    assert_eq!((&done["progress"]["percent"], &done["progress"]["message"]), (&json!(90), &json!("nearly")));
    let steps = done["steps"].as_array().expect("steps");
    assert_eq!((steps.len(), steps[0]["ended_at"].is_u64(), &steps[1]["ended_at"]), (2, true, &Value::Null));
    let usage = "use: progress PERCENT [MESSAGE] | step begin|end NAME | output KEY [VALUE]";
    let wanted = format!("refused 2\nkey 2\n1\njobcell: \"progres\" is nothing that it can do; {usage}\nword 2\n");
    assert_eq!(up.text(&done, "stdout").await, wanted);
    let (code, out, _) = said(&up.command(&["job", "get", id(&done)]).await);
    assert!(code == 0 && out.contains("output    answer=42") && out.contains("progress  90 % nearly"), "{out}");
    up.stop().await;
}

#[tokio::test]
async fn a_million_lines_of_progress_harm_nobody() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let script = "import os\nwith open(os.environ['JOBCELL_PROGRESS'], 'w') as f:\n    for n in range(1000000): f.write(f'progress {n // 10000}\\n')\n    f.write('x' * 5000000)\n    f.write('\\nprogress 100 done\\n')\n";
    let flood = up.submit(&python(script, &json!([]))).await;
    up.phase(&flood, "running").await;
    let beside = std::time::Instant::now();
    assert_eq!(cause(&up.bash("true").await), "exit_code");
    assert!(beside.elapsed().as_secs() < 20, "a job beside it took {:?}", beside.elapsed());
    let done = up.ended(&flood).await;
    assert_eq!((cause(&done), &done["progress"]["message"]), ("exit_code", &json!("done")), "{done}");
    up.stop().await;
}

#[tokio::test]
async fn an_agent_that_is_killed_while_it_fetches_goes_on_and_doubles_nothing() {
    let Some(host) = engine() else { return };
    let mut up = Up::start(&host, "").await;
    let script = "for n in 1 2 3 4 5 6 7 8; do head -c 25000000 /dev/urandom > f$n; done; sha256sum f* > sums";
    let spec =
        json!({"preset": "bash", "script": script, "artifacts": ["f*", "sums"], "resources": {"disk": "256MiB"}});
    let fetched = up.submit(&spec).await;
    let arriving = up.data().join("blobs/content");
    let holds = || walk(&arriving);
    until("files on their way", || async { (holds() > 0).then_some(()) }).await;
    up.crash().await;
    let done = up.ended(&fetched).await;
    assert_eq!((cause(&done), &done["artifacts"]["complete"]), ("exit_code", &json!(true)), "{done}");
    assert_eq!((paths(&up, &done).await.len(), &done["attempt"]), (9, &json!(1)));
    let sums = String::from_utf8(bytes(&up, &done, "sums").await).expect("text");
    for line in sums.lines() {
        let (sum, path) = line.split_once("  ").expect("a sum and a path");
        assert_eq!(sha256(&bytes(&up, &done, path).await), sum, "{path}");
    }
    assert_eq!(walk(&arriving), 10, "each content once, and the list");
    up.stop().await;
}

/// Files beneath a folder.
fn walk(folder: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.flatten().map(|entry| if entry.path().is_dir() { walk(&entry.path()) } else { 1 }).sum()
}

#[tokio::test]
async fn files_whose_time_is_over_are_gone_and_said_to_be() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "artifacts: {keep: 1s}").await;
    let done = up.run(&job("echo 1 > f", &json!(["f"]))).await;
    assert_eq!(bytes(&up, &done, "f").await, b"1\n");
    let ended = std::time::Instant::now();
    until("its time to be over", || async { (ended.elapsed().as_millis() > 1100).then_some(()) }).await;
    let path = format!("/v1/jobs/{}/artifacts/f", id(&done));
    let gone = until("the file to be gone", || async {
        let answer = up.call(Method::GET, &path, None).await;
        (answer.status().as_u16() == 404).then_some(answer)
    })
    .await;
    let gone: Value = gone.json().await.expect("JSON");
    assert_eq!(gone["code"], "artifact_not_found", "{gone}");
    assert_eq!(up.get(&format!("/v1/jobs/{}", id(&done))).await["artifacts"]["count"], 1, "the record stays");
    up.stop().await;
}
