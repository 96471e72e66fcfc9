//! Images of jobs from a real registry: when they are pulled, with which login, what goes wrong with each name, and what is removed when.

use super::programs;
use super::registry::{Fault, PASSWORD, Proxy, Registry, USER};
use super::stage::{Up, cause, docker, engine, id, said, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// A job in an image.
fn job(image: &str, pull: &str, command: &str) -> Value {
    json!({"image": image, "pull": pull, "command": ["/bin/bash", "-c", command], "retry": {"infrastructure": 0}})
}

/// The engine's id of an image; empty when it has none of this name.
fn local(host: &str, name: &str) -> String {
    let found = std::process::Command::new("docker")
        .args(["--host", host, "image", "inspect", "--format", "{{.Id}}", name])
        .output()
        .expect("docker runs");
    String::from_utf8_lossy(&found.stdout).trim().to_owned()
}

/// Reasons of what is in a job's history.
fn notes(job: &Value) -> Vec<&str> {
    job["history"].as_array().into_iter().flatten().filter_map(|event| event["reason"].as_str()).collect()
}

#[tokio::test]
async fn a_tag_is_pulled_as_the_job_wants_it_and_the_result_says_what_it_stood_for() {
    let Some(host) = engine() else { return };
    let Some(registry) = Registry::start(&host, false).await else { return };
    let up = Up::start(&host, "").await;
    let (name, first) = registry.push("policies", "1", 0);
    let never = up.run(&job(&name, "never", "true")).await;
    assert_eq!((cause(&never), &never["image"]), ("image_missing", &Value::Null), "{never}");
    assert!(never["ending"]["message"].as_str().is_some_and(|said| said.contains("pull: never")), "{never}");

    let pulled = up.run(&job(&name, "if_absent", "exit 3")).await;
    assert_eq!((cause(&pulled), &pulled["ending"]["cause"]["exit_code"]), ("exit_code", &json!(3)), "{pulled}");
    let image = &pulled["image"];
    assert_eq!((&image["reference"], &image["digest"]), (&json!(name), &json!(first)));
    assert_eq!((&image["id"], &image["pulled"]), (&json!(local(&host, &name)), &json!(true)));
    assert!(notes(&pulled).iter().any(|note| note.starts_with("image_pull: it is there after ")), "{pulled}");
    let shown = up.command(&["job", "get", id(&pulled)]).await;
    assert!(String::from_utf8_lossy(&shown.stdout).contains(&format!("{name}: {first}, pulled for it")));

    // The tag is moved: what is there is another one now, and each policy has its own.
    let (_, second) = registry.push("policies", "1", 0);
    assert_ne!(first, second);
    let by_digest = up.run(&job(&first, "if_absent", "true")).await;
    assert_eq!((cause(&by_digest), &by_digest["image"]["digest"]), ("exit_code", &json!(first)), "{by_digest}");
    docker(&host, &["tag", &first, &name]);
    for (pull, wanted) in [("if_absent", &first), ("never", &first), ("always", &second), ("never", &second)] {
        let job = up.run(&job(&name, pull, "true")).await;
        assert_eq!((cause(&job), &job["image"]["digest"]), ("exit_code", &json!(wanted)), "{pull}: {job}");
        assert_eq!(job["image"]["pulled"], pull == "always");
    }
    // A digest means this content, wherever the tag is by now, and also under `always`.
    for pull in ["always", "never"] {
        let job = up.run(&job(&first, pull, "true")).await;
        assert_eq!((cause(&job), &job["image"]["digest"]), ("exit_code", &json!(first)), "{pull}: {job}");
    }
    // Of another digest there is nothing, and a tag beside it says nothing.
    let (repository, _) = first.split_once('@').expect("a digest");
    let other = format!("{repository}:1@sha256:{}", "0".repeat(64));
    let none = up.run(&job(&other, "if_absent", "true")).await;
    assert_eq!((cause(&none), &none["ending"]["verdict"]), ("image_missing", &json!("cell_error")), "{none}");
    docker(&host, &["rmi", "--force", &first, &second]);
    up.stop().await;
}

#[tokio::test]
async fn a_private_registry_wants_a_login_which_is_read_each_time_and_seen_nowhere() {
    let Some(host) = engine() else { return };
    let Some(registry) = Registry::start(&host, true).await else { return };
    let (name, _) = registry.push("private", "1", 0);
    let gone = || drop(docker(&host, &["rmi", "--force", &name]));
    let up = Up::start(&host, "").await;
    let denied = up.run(&job(&name, "always", "true")).await;
    assert_eq!((cause(&denied), &denied["ending"]["verdict"]), ("image_denied", &json!("cell_error")), "{denied}");
    assert!(denied["ending"]["hint"].as_str().is_some_and(|hint| hint.contains("images.registries")), "{denied}");
    up.stop().await;

    // By a password in a file: wrong, then right, without a new start.
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("password");
    std::fs::write(&file, "canary-wrong\n").expect("writes");
    let settings = |login: &str| format!("images: {{registries: {{\"{}\": {login}}}}}", registry.address);
    let up = Up::start(&host, &settings(&format!("{{username: {USER}, password_file: {}}}", file.display()))).await;
    let denied = up.run(&job(&name, "always", "true")).await;
    assert_eq!(cause(&denied), "image_denied", "{denied}");
    std::fs::write(&file, format!("{PASSWORD}\n")).expect("writes");
    let here = up.submit(&job(&name, "always", "echo up; sleep 600")).await;
    until("output", || async { (up.text(&here, "stdout").await == "up\n").then_some(()) }).await;
    let container = up.containers().pop().expect("its cell");
    let mut seen = docker(&host, &["inspect", &container]);
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&here)), None).await;
    let here = up.ended(&here).await;
    seen.push_str(&up.log());
    seen.push_str(&here.to_string());
    seen.push_str(&denied.to_string());
    let mut files = 0;
    for entry in
        std::fs::read_dir(up.data()).expect("reads").filter_map(Result::ok).filter(|entry| entry.path().is_file())
    {
        seen.push_str(&String::from_utf8_lossy(&std::fs::read(entry.path()).expect("reads")));
        files += 1;
    }
    assert!(files > 3, "the data directory was looked at");
    // As it is, and as base64 has the middle of it, wherever it begins.
    for secret in [PASSWORD, "canary-wrong", "cHVsbD5tZT", "B1bGw+bWU", "wdWxsPm1l"] {
        assert!(!seen.contains(secret), "{secret} was found");
    }
    gone();
    up.stop().await;

    // By a file of Docker's, and by a helper program that says the same.
    let helper = dir.path().join("docker-credential-jobcelltest");
    programs::put(
        &helper,
        format!(
            "#!/bin/sh\nread host; [ \"$host\" = {} ] || exit 1\necho '{{\"Username\": \"{USER}\", \"Secret\": \"{PASSWORD}\"}}'\n",
            registry.address
        ),
        0o755,
    );
    let store = dir.path().join("helpers.json");
    std::fs::write(&store, format!("{{\"credHelpers\": {{\"{}\": \"jobcelltest\"}}}}", registry.address))
        .expect("writes");
    for (file, path, wanted) in [
        (registry.login_file(), None, "exit_code"),
        (store.clone(), Some(dir.path()), "exit_code"),
        // A helper that cannot be found is told by name.
        (store, None, "image_denied"),
    ] {
        let settings = format!("images: {{auth_file: {}}}", file.display());
        let usual = std::env::var("PATH").expect("a path");
        let programs = path.map_or_else(|| usual.clone(), |path| format!("{}:{usual}", path.display()));
        let up = Up::start_with(tempfile::tempdir().expect("a folder"), &host, &settings, &[("PATH", &programs)]).await;
        let job = up.run(&job(&name, "if_absent", "true")).await;
        assert_eq!(cause(&job), wanted, "{job}");
        assert_eq!(job.to_string().contains("docker-credential-jobcelltest"), wanted == "image_denied", "{job}");
        if wanted == "exit_code" {
            gone();
        }
        up.stop().await;
    }
}

#[tokio::test]
async fn what_a_registry_does_wrong_has_a_name_and_is_never_the_jobs_failure() {
    let Some(host) = engine() else { return };
    let Some(registry) = Registry::start(&host, false).await else { return };
    let proxy = Proxy::start(&registry).await;
    let (name, pinned) = registry.push("broken", "1", 3 << 20);
    let (name, pinned) = (registry.through(&proxy, &name), registry.through(&proxy, &pinned));
    let up = Up::start(&host, "images: {pull_timeout: 4s}").await;
    let limited = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{\"errors\":[{\"code\":\"TOOMANYREQUESTS\",\"message\":\"slow down\"}]}";
    let broken = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let strange =
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>pay for the Wi-Fi</html>";
    for (fault, wanted) in [
        (Fault::Answer(limited), "registry_limited"),
        (Fault::Answer(broken), "registry_unreachable"),
        (Fault::Hang, "pull_timeout"),
        // Before the engine has seen the true one, which it keeps for a while.
        (Fault::FlipManifest, "image_corrupt"),
        (Fault::Flip, "image_corrupt"),
        (Fault::Answer(strange), "image_corrupt"),
    ] {
        proxy.set(fault);
        // Of a manifest only a digest says what it has to be.
        let name = if fault == Fault::FlipManifest { &pinned } else { &name };
        let job = up.run(&job(name, "if_absent", "true")).await;
        eprintln!("{fault:?}: {}", job["ending"]["message"]);
        assert_eq!((cause(&job), &job["ending"]["verdict"]), (wanted, &json!("cell_error")), "{fault:?}: {job}");
        assert_eq!(job["ending"]["process_exit_code"], 125);
        assert!(job["ending"]["hint"].is_string() && job["image"].is_null(), "{job}");
        assert_eq!(local(&host, name), "", "{fault:?}");
    }
    // Nobody there at all.
    let nobody = up.run(&job("127.0.0.1:1/x:1", "if_absent", "true")).await;
    assert_eq!(cause(&nobody), "registry_unreachable", "{nobody}");
    // What is cut off is asked for again by the engine, and a job that may be tried again is.
    proxy.set(Fault::CutOnce);
    // The time here is too short for its pauses: the first try ends, and the next one has it.
    let again = json!({"backoff": "0s", "infrastructure": 2});
    let cut = up.run(&json!({"image": name, "command": ["/bin/bash", "-c", "true"], "retry": again})).await;
    assert_eq!(cause(&cut), "exit_code", "{cut}");
    up.stop().await;
}

#[tokio::test]
async fn many_jobs_wait_for_one_pull_and_only_the_last_one_ends_it() {
    let Some(host) = engine() else { return };
    let Some(registry) = Registry::start(&host, false).await else { return };
    let proxy = Proxy::start(&registry).await;
    let (name, _) = registry.push("crowd", "1", 4 << 20);
    let name = registry.through(&proxy, &name);
    let up = Up::start(&host, "").await;
    let history = async |job: &Value| up.get(&format!("/v1/jobs/{}", id(job))).await;
    proxy.set(Fault::Slow(Duration::from_millis(100)));
    let one = job(&name, "if_absent", "true");
    let all = futures_util::future::join_all((0..4).map(|_| up.submit(&one))).await;
    proxy.sees("/blobs/").await;
    // Live: how far it is, in bytes.
    for job in &all {
        let told =
            |job: &Value| notes(job).iter().any(|note| note.starts_with("image_pull: ") && note.contains(" MiB"));
        until("progress", || async { told(&history(job).await).then_some(()) }).await;
    }
    let cancel = async |job: &Value| drop(up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(job)), None).await);
    cancel(&all[0]).await;
    let gone = up.ended(&all[0]).await;
    assert_eq!((cause(&gone), &gone["started_at"]), ("canceled", &Value::Null), "{gone}");
    proxy.set(Fault::Pass);
    for job in &all[1..] {
        let job = up.ended(job).await;
        assert_eq!((cause(&job), &job["image"]["pulled"]), ("exit_code", &json!(true)), "{job}");
        // However often it was told, one note is kept.
        assert_eq!(notes(&job).iter().filter(|note| note.starts_with("image_pull")).count(), 1, "{job}");
    }
    assert_eq!(proxy.seen("/manifests/1"), 1, "four jobs, one question");

    // The last one that waits takes the pull with it.
    let (other, _) = registry.push("crowd", "2", 8 << 20);
    let other = registry.through(&proxy, &other);
    proxy.set(Fault::Slow(Duration::from_millis(300)));
    let both = [up.submit(&job(&other, "always", "true")).await, up.submit(&job(&other, "always", "true")).await];
    proxy.sees("/manifests/2").await;
    for job in &both {
        until("progress", || async {
            notes(&history(job).await).iter().any(|note| note.contains(" MiB")).then_some(())
        })
        .await;
    }
    for job in &both {
        cancel(job).await;
        assert_eq!(cause(&up.ended(job).await), "canceled");
    }
    proxy.is_left().await;
    assert_eq!(local(&host, &other), "");
    up.stop().await;
}

#[tokio::test]
async fn an_agent_that_dies_in_mid_pull_begins_it_anew() {
    let Some(host) = engine() else { return };
    let Some(registry) = Registry::start(&host, false).await else { return };
    let proxy = Proxy::start(&registry).await;
    let (name, _) = registry.push("killed", "1", 4 << 20);
    let name = registry.through(&proxy, &name);
    let mut up = Up::start(&host, "").await;
    proxy.set(Fault::Slow(Duration::from_millis(300)));
    let job = up.submit(&job(&name, "if_absent", "echo $JOBCELL_ATTEMPT")).await;
    proxy.sees("/blobs/").await;
    up.kill().await;
    // The engine lets go of what nobody wants any more.
    proxy.is_left().await;
    assert_eq!(local(&host, &name), "");
    proxy.set(Fault::Pass);
    up.revive().await;
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), up.text(&job, "stdout").await.as_str()), ("exit_code", "2\n"), "{job}");
    let known = std::fs::read_to_string(up.data().join("images.json")).expect("is there");
    let known: Value = serde_json::from_str(&known).expect("JSON");
    assert_eq!(known["images"][local(&host, &name)]["pulled_as"], json!([name]), "{known}");
    assert_eq!(known["pulling"], json!({}));
    up.stop().await;
}

/// Passes everything on to the engine; before each of so many containers that are made, an image is taken away.
fn thief(engine: &str, socket: &std::path::Path, image: &str) -> Arc<AtomicUsize> {
    let path = engine.strip_prefix("unix://").expect("a socket").to_owned();
    let (engine, image) = (engine.to_owned(), image.to_owned());
    let listener = UnixListener::bind(socket).expect("binds");
    let left = Arc::new(AtomicUsize::new(0));
    let thefts = Arc::clone(&left);
    jobcell::supervise::spawn("thief", async move {
        loop {
            let (client, _) = listener.accept().await.expect("accepts");
            let (path, engine, image, left) = (path.clone(), engine.clone(), image.clone(), Arc::clone(&left));
            jobcell::supervise::spawn("robbed", async move {
                let Ok(upstream) = UnixStream::connect(path).await else { return };
                let ((mut from, mut to), (mut back, mut answer)) = (client.into_split(), upstream.into_split());
                let ask = async {
                    let mut piece = vec![0; 64 << 10];
                    while let Ok(read) = from.read(&mut piece).await.map(|read| &piece[..read]) {
                        let makes = read.windows(18).any(|bytes| bytes == b"/containers/create");
                        // The warden's volume is filled through one too.
                        let cell = makes && !read.windows(6).any(|bytes| bytes == b"-fill-");
                        let take = |left: usize| left.checked_sub(1);
                        if cell && left.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok() {
                            docker(&engine, &["rmi", "--force", &image]);
                        }
                        if read.is_empty() || answer.write_all(read).await.is_err() {
                            break;
                        }
                    }
                    let _ = answer.shutdown().await;
                };
                tokio::join!(ask, async {
                    let _ = tokio::io::copy(&mut back, &mut to).await;
                    let _ = to.shutdown().await;
                });
            });
        }
    });
    thefts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_vanishes_between_look_and_use_is_pulled_once_more() {
    let Some(host) = engine() else { return };
    let Some(registry) = Registry::start(&host, false).await else { return };
    let dir = tempfile::tempdir().expect("a folder");
    for (times, pull, wanted) in
        [(1, "if_absent", "exit_code"), (2, "if_absent", "image_missing"), (1, "never", "image_missing")]
    {
        let (name, _) = registry.push("vanishing", &format!("{times}{pull}"), 0);
        docker(&host, &["pull", "--quiet", &name]);
        let socket = dir.path().join(format!("{times}{pull}"));
        let thefts = thief(&host, &socket, &name);
        let up = Up::start(&format!("unix://{}", socket.display()), "").await;
        // The warden's volume is made sure of, so that only the cell's own container is left to be made.
        assert_eq!(cause(&up.run(&json!({"preset": "bash", "script": "true", "pull": "never"})).await), "exit_code");
        thefts.store(times, Ordering::Release);
        let robbed = up.run(&job(&name, pull, "true")).await;
        assert_eq!(cause(&robbed), wanted, "{times} {pull}: {robbed}");
        assert_eq!(thefts.load(Ordering::Acquire), 0, "each theft was done");
        if wanted == "exit_code" {
            assert_eq!((&robbed["image"]["pulled"], &robbed["attempt"]), (&json!(true), &json!(1)), "{robbed}");
        }
        up.stop().await;
    }
}

#[tokio::test]
async fn what_nothing_uses_is_removed_and_what_runs_or_is_anothers_never() {
    let Some(host) = engine() else { return };
    let Some(registry) = Registry::start(&host, false).await else { return };
    let names: Vec<String> = (1..=4).map(|n| registry.push(&format!("room{n}"), "1", 0).0).collect();
    let foreign = registry.local("foreign", "1", 0);
    // Nothing fits: whatever is not used goes at the next look.
    let up = Up::start(&host, "images: {size_max: 1B}").await;
    let runs = up.submit(&job(&names[0], "if_absent", "echo up; sleep 600")).await;
    until("output", || async { (up.text(&runs, "stdout").await == "up\n").then_some(()) }).await;
    assert_eq!(cause(&up.run(&job(&names[1], "if_absent", "true")).await), "exit_code");
    until("its cell to go", || async { (up.containers().len() == 1).then_some(()) }).await;
    // A pull brings the next look.
    assert_eq!(cause(&up.run(&job(&names[2], "if_absent", "true")).await), "exit_code");
    until("the unused one to go", || async { local(&host, &names[1]).is_empty().then_some(()) }).await;
    assert!(!local(&host, &names[0]).is_empty() && !local(&host, &foreign).is_empty());

    // Jobs that begin while others' images are removed have theirs all the same, again and again.
    let again: Vec<Value> = (0..8).map(|n| job(&names[1 + n % 3], "if_absent", "true")).collect();
    for job in futures_util::future::join_all(again.iter().map(|spec| up.submit(spec))).await {
        let job = up.ended(&job).await;
        assert_eq!(cause(&job), "exit_code", "{job}");
    }

    // By hand: what would go, with why; while an agent runs nothing more than that.
    let gc = async |more: &[&str]| said(&up.command(&[&["image", "gc", "-o", "json"], more].concat()).await);
    let (code, out, err) = gc(&["--dry-run"]).await;
    assert_eq!(code, 0, "{err}");
    let shown: Value = serde_json::from_str(&out).expect("JSON");
    let of = |shown: &Value, name: &str| {
        let all = shown["images"].as_array().expect("a list").clone();
        let named = |one: &&Value| one["names"].as_array().is_some_and(|names| names.contains(&json!(name)));
        all.iter().find(named).unwrap_or_else(|| panic!("{name} is not in {shown}")).clone()
    };
    let used = of(&shown, &names[0]);
    assert_eq!((&used["result"], &used["in_use"], &used["pulled_here"]), (&json!("kept"), &json!(true), &json!(true)));
    assert_eq!(used["why"], "a container has it");
    let other = of(&shown, &foreign);
    assert_eq!((&other["result"], &other["why"]), (&json!("kept"), &json!("this agent did not pull it")));
    assert_eq!((gc(&[]).await.0, gc(&["--all"]).await.0), (69, 69), "an agent runs");
    let (code, out, err) = said(&up.command(&["image", "pull", &names[3]]).await);
    assert_eq!((code, out.contains("@sha256:")), (0, true), "{err}");
    let (code, out, _) = said(&up.command(&["image", "ls", "-o", "json"]).await);
    let shown: Value = serde_json::from_str(&out).expect("JSON");
    let pulled = of(&shown, &names[3]);
    assert_eq!((code, &pulled["pulled_here"], &pulled["in_use"]), (0, &json!(true), &json!(false)));
    assert!(pulled["bytes"].as_u64() > Some(1 << 20) && pulled["last_used"].is_u64(), "{pulled}");
    let (code, out, _) = said(&up.command(&["image", "ls"]).await);
    assert!(code == 0 && out.lines().any(|line| line.starts_with(&names[3])), "{out}");
    let (code, _, err) = said(&up.command(&["image", "pull", "127.0.0.1:1/none:1"]).await);
    assert!(code == 1 && err.contains("cannot be reached"), "{err}");

    up.call(Method::POST, &format!("/v1/jobs/{}/cancel", id(&runs)), None).await;
    assert_eq!(cause(&up.ended(&runs).await), "canceled");
    let dir = up.retire().await;
    let data = dir.path().join("data");
    let collect = || {
        let mut command = tokio::process::Command::new(super::stage::JOBCELL);
        command.args(["image", "gc", "--all", "-o", "json", "--data-dir"]).arg(&data).env("DOCKER_HOST", &host);
        command.kill_on_drop(true).output()
    };
    // Two at a time: one does it, and the other one waits for nothing.
    let (one, two) = tokio::join!(collect(), collect());
    let ends = [one.expect("runs"), two.expect("runs")].map(|output| output.status.code());
    assert!(ends.contains(&Some(0)) && ends.iter().all(|end| matches!(end, Some(0 | 69))), "{ends:?}");
    for name in &names {
        assert_eq!(local(&host, name), "", "{name}");
    }
    assert!(!local(&host, &foreign).is_empty() && !local(&host, "jobcell/bash:1").is_empty());
}
