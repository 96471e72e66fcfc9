//! What jobs are given: uploaded, checked, carried into the cell, and gone with it.

use super::stage::{JOBCELL, PATIENCE, Up, cause, engine, id, read, said, until};
use jobcell::archive::Bounds;
use jobcell::job::Digest;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[path = "../../src/archive/crafted.rs"]
#[allow(dead_code, reason = "shared with the tests of the reader")]
mod crafted;

/// Uploads a content under its name.
async fn put(up: &Up, content: &[u8]) -> (StatusCode, Value) {
    put_as(up, &Digest::of(content).to_string(), content).await
}

async fn put_as(up: &Up, name: &str, content: &[u8]) -> (StatusCode, Value) {
    let request = up.request(Method::PUT, &format!("/v1/blobs/{name}")).body(content.to_vec());
    let response = request.send().await.expect("is answered");
    (response.status(), response.json().await.expect("is JSON"))
}

async fn stored(up: &Up, content: &[u8]) -> String {
    let (status, told) = put(up, content).await;
    assert!(status.is_success(), "{told}");
    told["digest"].as_str().expect("a name").to_owned()
}

/// Bytes that do not compress, and hold beginnings of frames.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut all: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(bytes)
    .collect();
    for at in (0..bytes.saturating_sub(8)).step_by(bytes / 20 + 1) {
        all[at..at + 4].copy_from_slice(&[0xC3, 0x4A, 0x43, 0x9B]);
    }
    all
}

/// Files below a folder that hold contents of this test, by what they begin with.
fn left_in(folder: &Path, of: &[u8]) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => {
                    let mut first = vec![0; of.len()];
                    let read = std::fs::File::open(entry.path());
                    if read.is_ok_and(|mut file| std::io::Read::read_exact(&mut file, &mut first).is_ok())
                        && first == of
                    {
                        found.push(entry.path().display().to_string());
                    }
                }
                _ => {}
            }
        }
    }
    found
}

#[tokio::test]
async fn a_job_finds_what_it_is_given_and_nothing_of_it_stays() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let big = noise(3_000_000);
    let archive = crafted::tar(|tar| {
        tar.folder("src")
            .entry(&crafted::header("src/run", b'0', 20, 0o755), b"#!/bin/sh\necho ran\n\n")
            .link("src/link", "run")
    });
    let inputs = json!([
        {"path": "hello.txt", "text": "hé\n"},
        {"path": "deep/in/bytes", "content_base64": "AP8="},
        {"path": "tool", "text": "#!/bin/sh\necho tool\n", "mode": "0755"},
        {"path": "big", "blob": stored(&up, &big).await},
        {"path": "lib", "blob": stored(&up, &crafted::zstd(&archive)).await, "kind": "archive"},
    ]);
    let script = "cat hello.txt; od -An -tx1 deep/in/bytes; ./tool; sha256sum < big; lib/src/link; stat -c '%a %n' big tool lib/src/run deep; \
                  find . | sort; rm -r deep big; echo more >> hello.txt";
    let job = up.run(&json!({"preset": "bash", "script": script, "inputs": inputs})).await;
    assert_eq!(job["ending"]["process_exit_code"], 0, "{job}\n{}", up.log());
    let wanted = format!(
        "hé\n 00 ff\ntool\n{}  -\nran\n644 big\n755 tool\n755 lib/src/run\n755 deep\n.\n./.jobcell-script\n./big\n./deep\n./deep/in\n\
         ./deep/in/bytes\n./hello.txt\n./lib\n./lib/src\n./lib/src/link\n./lib/src/run\n./tool\n",
        Digest::of(&big).hex()
    );
    assert_eq!(up.text(&job, "stdout").await, wanted);
    // What the server found out stands in the spec.
    assert_eq!(job["spec"]["inputs"][3]["bytes"], 3_000_000);
    assert_eq!((&job["spec"]["inputs"][4]["bytes"], &job["spec"]["inputs"][4]["entries"]), (&json!(4096), &json!(3)));
    // The store has it, once, and nobody else.
    let first = &big[..4096];
    assert_eq!(left_in(up.dir.path(), first).len(), 1);
    assert_eq!(left_in(&std::env::temp_dir().join("jobcell"), first), Vec::<String>::new());
    // Done again, it finds the same.
    let again = up.call(Method::POST, &format!("/v1/jobs/{}/retry", id(&job)), None).await;
    let again: Value = again.json().await.expect("is JSON");
    let again = up.ended(&again).await;
    assert_eq!(up.text(&again, "stdout").await, wanted);
    up.stop().await;
}

#[tokio::test]
async fn every_crafted_archive_is_refused_by_name_or_makes_what_it_should() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let mut ran = 0;
    for case in crafted::all() {
        let blob = stored(&up, &case.archive).await;
        let spec = json!({"preset": "bash", "script": "find . -mindepth 1 ! -name .jobcell-script | sort | sed 's,^./,,'",
            "inputs": [{"path": ".", "blob": blob, "kind": "archive"}]});
        let response = up.call(Method::POST, "/v1/jobs", Some(&spec)).await;
        let (status, told): (_, Value) = (response.status(), response.json().await.expect("is JSON"));
        match case.outcome {
            Ok(paths) => {
                assert_eq!(status, 201, "{}: {told}", case.name);
                // A few are enough: each is a cell.
                ran += 1;
                if ran % 4 == 1 {
                    let job = up.ended(&told).await;
                    let made: String = paths.iter().map(|path| format!("{path}\n")).collect();
                    assert_eq!(up.text(&job, "stdout").await, made, "{}: {job}", case.name);
                }
            }
            // The server's bounds are wider than those of the test's own reading: it is good there, or bad for another reason.
            Err("too_large" | "too_many") if status == 201 => {}
            Err(code) => {
                assert_eq!((status.as_u16(), told["code"].as_str()), (422, Some("bad_spec")), "{}: {told}", case.name);
                assert_eq!(told["problems"][0]["path"], "inputs[0].blob", "{}: {told}", case.name);
                let reason = told["problems"][0]["reason"].as_str().unwrap_or_default();
                let wider = matches!(code, "too_large" | "too_many");
                assert!(wider || reason.ends_with(&format!("({code})")), "{}: {reason}", case.name);
            }
        }
    }
    let cancel = json!({"phase": ["queued", "claimed", "preparing", "running"]});
    up.call(Method::POST, "/v1/jobs/bulk-cancel?force=true", Some(&cancel)).await;
    until("nothing runs", || async { up.containers().is_empty().then_some(()) }).await;
    up.stop().await;
}

#[tokio::test]
async fn what_does_not_go_together_or_does_not_fit_ends_before_the_job_begins() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let one = stored(&up, &crafted::tar(|tar| tar.file("a/x", b"1"))).await;
    let two = stored(&up, &crafted::tar(|tar| tar.file("a/x", b"2"))).await;
    let archive = |blob: &str| json!({"path": ".", "blob": blob, "kind": "archive"});
    let job = up.run(&json!({"preset": "bash", "script": "echo ran", "inputs": [archive(&one), archive(&two)]})).await;
    assert_eq!(cause(&job), "input_refused", "{job}");
    assert_eq!(job["ending"]["cause"]["input"], "inputs[1]");
    assert!(
        job["ending"]["message"].as_str().is_some_and(|said| said.contains("`a/x` is there twice (duplicate)")),
        "{job}"
    );
    assert!(job["started_at"].is_null() && up.text(&job, "stdout").await.is_empty(), "{job}");

    let big = stored(&up, &vec![7; 3 << 20]).await;
    let inputs = json!([{"path": "big", "blob": big}]);
    let small = json!({"preset": "bash", "script": "x", "inputs": inputs, "resources": {"disk": "2MiB"}});
    let refused: Value = up.call(Method::POST, "/v1/jobs", Some(&small)).await.json().await.expect("is JSON");
    assert_eq!(refused["problems"][0]["path"], "inputs", "{refused}");
    let missing =
        json!({"preset": "bash", "script": "x", "inputs": [{"path": "x", "blob": Digest::of(b"never").to_string()}]});
    let refused: Value = up.call(Method::POST, "/v1/jobs", Some(&missing)).await.json().await.expect("is JSON");
    assert_eq!(refused["problems"][0]["path"], "inputs[0].blob", "{refused}");
    assert!(
        refused["problems"][0]["fix"].as_str().is_some_and(|fix| fix.contains("PUT /v1/blobs/sha256:")),
        "{refused}"
    );
    // Of many, each by itself.
    let good = json!({"preset": "bash", "script": "true"});
    let many = up.call(Method::POST, "/v1/jobs/bulk?partial=true", Some(&json!([good, missing]))).await;
    let many: Value = many.json().await.expect("is JSON");
    assert_eq!((&many["created"], &many["refused"]), (&json!(1), &json!(1)), "{many}");
    until("the end of all", || async { up.containers().is_empty().then_some(()) }).await;
    up.stop().await;
}

#[tokio::test]
async fn contents_are_bounded_checked_and_read_by_range() {
    let settings = "blobs: {max_blob: 1MiB, max_bytes: 2MiB}";
    let up = Up::start_unready("unix:///no/such.sock", settings).await;
    let one = noise(1 << 20);
    let (status, told) = put(&up, &one).await;
    assert_eq!((status.as_u16(), &told["bytes"]), (201, &json!(1 << 20)), "{told}");
    assert_eq!(put(&up, &one).await.0, 200);
    let name = Digest::of(&one);
    let head = |name: Digest| up.call(Method::HEAD, Box::leak(format!("/v1/blobs/{name}").into_boxed_str()), None);
    let there = head(name).await;
    assert_eq!((there.status().as_u16(), there.headers()["content-length"].to_str().expect("text")), (200, "1048576"));
    assert_eq!(head(Digest::of(b"none")).await.status(), 404);
    for (range, wanted) in [
        (None, Some(&one[..])),
        (Some("bytes=0-"), Some(&one[..])),
        (Some("bytes=1000-1999"), Some(&one[1000..2000])),
        (Some("bytes=-5"), Some(&one[one.len() - 5..])),
        (Some("bytes=1048570-9999999"), Some(&one[1_048_570..])),
        (Some("bytes=1048576-"), None),
    ] {
        let mut request = up.request(Method::GET, &format!("/v1/blobs/{name}"));
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let response = request.send().await.expect("is answered");
        let status = match (range, wanted) {
            (None, _) => 200,
            (Some(_), Some(_)) => 206,
            (Some(_), None) => 416,
        };
        assert_eq!(response.status().as_u16(), status, "{range:?}");
        assert!(wanted.is_none_or(|_| true));
        if let Some(wanted) = wanted {
            assert!(response.bytes().await.expect("reads") == wanted, "{range:?}");
        }
    }
    let other = noise(1000);
    for (name, content, status, code) in [
        (name.to_string(), &[&one[..], b"x"].concat(), 200, ""),
        (Digest::of(b"x").to_string(), &other, 422, "blob_mismatch"),
        (Digest::of(b"y").to_string(), &[&one[..], b"x"].concat(), 413, "blob_too_large"),
        ("sha256:../../x".to_owned(), &other, 400, "bad_id"),
        ("nonsense".to_owned(), &other, 400, "bad_id"),
    ] {
        let (got, told) = put_as(&up, &name, content).await;
        assert_eq!((got.as_u16(), told["code"].as_str().unwrap_or_default()), (status, code), "{name}: {told}");
    }
    let two = vec![1; 1 << 20];
    assert_eq!(put(&up, &two).await.0, 201);
    let (status, told) = put(&up, &other).await;
    assert_eq!((status.as_u16(), told["code"].as_str()), (507, Some("blobs_full")), "{told}");
    // Without a key nothing is read, and nothing told.
    let bare = reqwest::Client::builder().no_proxy().build().expect("builds");
    for method in [Method::GET, Method::PUT] {
        let response = bare.request(method, format!("{}/v1/blobs/{name}", up.url)).send().await.expect("is answered");
        assert_eq!(response.status(), 401);
    }
    let agents = bare.get(format!("{}/v1/agent/blobs/{name}", up.url)).bearer_auth(&up.key).send().await;
    assert_eq!(agents.expect("is answered").status(), 401);
}

/// What takes a while on its way.
fn large() -> Vec<u8> {
    noise(1 << 20).repeat(160)
}

/// A job whose input takes a while, when its cell is there and it has not begun.
async fn underway(up: &Up, content: &[u8]) -> Value {
    let blob = stored(up, content).await;
    let job = up
        .submit(
            &json!({"preset": "bash", "script": "sha256sum < big; ls -A", "inputs": [{"path": "big", "blob": blob}],
            "resources": {"disk": "200MiB"}}),
        )
        .await;
    until("its cell", || async { (!up.containers().is_empty()).then_some(()) }).await;
    job
}

#[tokio::test]
async fn an_agent_that_dies_in_the_middle_of_the_inputs_costs_nothing() {
    let Some(host) = engine() else { return };
    let mut up = Up::start(&host, "").await;
    let content = large();
    let job = underway(&up, &content).await;
    up.kill().await;
    let running =
        |job: &Value| job["history"].as_array().is_some_and(|all| all.iter().any(|event| event["phase"] == "running"));
    up.revive().await;
    let now = up.get(&format!("/v1/jobs/{}", id(&job))).await;
    assert!(!running(&now), "it was too fast for this test: {now}");
    let job = up.ended(&job).await;
    let wanted = format!("{}  -\n.jobcell-script\nbig\n", Digest::of(&content).hex());
    assert_eq!(up.text(&job, "stdout").await, wanted, "{job}\n{}", up.log());
    up.stop().await;
}

#[tokio::test]
async fn a_cancel_is_not_held_up_by_inputs() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let job = underway(&up, &large()).await;
    let asked = Instant::now();
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&job)), None).await;
    let job = up.ended(&job).await;
    assert_eq!(cause(&job), "canceled", "{job}");
    assert!(job["started_at"].is_null(), "it was too fast for this test: {job}");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    up.stop().await;
}

#[tokio::test]
async fn the_command_line_gives_files_and_folders() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let tree = up.dir.path().join("tree");
    std::fs::create_dir_all(tree.join("sub")).expect("a folder");
    std::fs::write(tree.join("sub/data"), noise(20_000)).expect("writes");
    std::os::unix::fs::symlink("sub/data", tree.join("link")).expect("a link");
    std::fs::write(up.dir.path().join("job.yaml"), "preset: bash\nscript: cat note; sha256sum < link; ls lib\n")
        .expect("writes");
    let at = |path: &str| up.dir.path().join(path).display().to_string();
    std::fs::write(at("note"), "from here\n").expect("writes");
    let wanted = format!("from here\n{}  -\nlink\nsub\n", Digest::of(&noise(20_000)).hex());
    let (note, tree, lib) = (format!("note={}", at("note")), at("tree"), format!("lib={}", at("tree")));
    let flags = ["--file", &note, "--input", &tree, "--input", &lib];
    let job = at("job.yaml");
    let (code, out, err) = said(&up.command(&[&["job", "submit", &job, "--follow"], &flags[..]].concat()).await);
    assert_eq!((code, out.as_str()), (0, wanted.as_str()), "{err}\n{}", up.log());
    let exec = ["exec", "--no-stdin", "--", "bash", "-c", "cat note; sha256sum < link; ls lib"];
    let (code, out, err) = said(&up.command(&[&exec[..1], &flags[..], &exec[1..]].concat()).await);
    assert_eq!((code, out.as_str()), (0, wanted.as_str()), "{err}");
    let mut here = tokio::process::Command::new(JOBCELL);
    here.args([&["job", "run", &job], &flags[..]].concat())
        .env("DOCKER_HOST", &host)
        .env("JOBCELL_DOCKER__SHARED", "true");
    let ran =
        tokio::time::timeout(PATIENCE, here.stdin(Stdio::null()).output()).await.expect("ends in time").expect("runs");
    let (code, out, err) = said(&ran);
    assert_eq!((code, out.as_str()), (0, wanted.as_str()), "{err}");
    let (code, _, err) = said(&up.command(&["job", "submit", &job, "--file", "x"]).await);
    assert!(code == 2 && err.contains("write PATH=LOCAL"), "{err}");
    up.stop().await;
}

#[tokio::test]
async fn an_agent_elsewhere_gets_contents_by_the_protocol() {
    let Some(host) = engine() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let spawn = |name: &str, args: &[&str], env: &[(&str, &str)]| {
        let log = std::fs::File::create(dir.path().join(format!("{name}.log"))).expect("opens");
        let mut command = tokio::process::Command::new(JOBCELL);
        command.args(args).arg("--data-dir").arg(dir.path().join(name)).envs(env.iter().copied());
        command.env("DOCKER_HOST", &host).env("JOBCELL_DOCKER__SHARED", "true").env("RUST_LOG", "info,jobcell=debug");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("clones")).stderr(log).kill_on_drop(true);
        command.spawn().expect("starts")
    };
    let log = |name: &str| std::fs::read_to_string(dir.path().join(format!("{name}.log"))).unwrap_or_default();
    let mut server = spawn("server", &["server", "--listen", "127.0.0.1:0"], &[]);
    let url = until("the endpoint", || async { read(&dir.path().join("server/endpoint")) }).await;
    let key = read(&dir.path().join("server/admin.key")).expect("there");
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("builds");
    let call = async |method: Method, path: &str, body: Vec<u8>| -> Value {
        let request =
            http.request(method, format!("{url}{path}")).bearer_auth(&key).header("content-type", "application/json");
        request.body(body).send().await.expect("is answered").json().await.expect("is JSON")
    };
    let made = call(Method::POST, "/v1/agents", br#"{"name": "one"}"#.to_vec()).await;
    let agent_key = made["key"].as_str().expect("a key").to_owned();
    let mut agent =
        spawn("agent", &["agent", "--backend", &url, "--listen", "127.0.0.1:0"], &[("JOBCELL_AGENT_KEY", &agent_key)]);
    let content = noise(30 << 20);
    let name = Digest::of(&content).to_string();
    call(Method::PUT, &format!("/v1/blobs/{name}"), content).await;
    let archive = crafted::zstd(&crafted::tar(|tar| tar.file("a/b", b"from afar")));
    let packed = call(Method::POST, "/v1/blobs", archive).await;
    let spec = json!({"preset": "bash", "script": "sha256sum < big; cat a/b", "inputs": [
        {"path": "big", "blob": name}, {"path": ".", "blob": packed["digest"], "kind": "archive"}]});
    let job = call(Method::POST, "/v1/jobs", spec.to_string().into_bytes()).await;
    let path = format!("/v1/jobs/{}?wait=60s", id(&job));
    let job = until("the end", || async {
        Some(call(Method::GET, &path, Vec::new()).await).filter(|job| !job["ending"].is_null())
    })
    .await;
    assert_eq!(job["ending"]["process_exit_code"], 0, "{job}\n{}", log("agent"));
    let out = http.get(format!("{url}/v1/jobs/{}/logs", id(&job))).bearer_auth(&key).send().await.expect("is answered");
    assert_eq!(out.text().await.expect("reads"), format!("{}  -\nfrom afar", &name["sha256:".len()..]));
    for child in [&mut agent, &mut server] {
        let pid = child.id().expect("runs").to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
        let code = tokio::time::timeout(PATIENCE, child.wait()).await.expect("ends in time").expect("is waited for");
        assert!(code.success(), "{}\n{}", log("agent"), log("server"));
    }
}
