//! A host whose disk is full, in both modes: what cannot be begun says so, what fills it ends by itself, and nothing else of the host is lost.

use super::super::stage::{Up, cause, fact, id, until};
use super::driver::run_one;
use super::jobs::{inventory, on, stop, up_with};
use super::resident::has_said;
use super::resident_beside::{self, Stage};
use super::sshd::{self, Folder, Sshd, must};
use serde_json::{Value, json};
use std::path::PathBuf;

/// A home of the login on a file system of its own, of so many KiB; gone with the value.
struct Home(PathBuf);

impl Home {
    fn new(folder: &Folder, kib: u32) -> Self {
        let path = folder.path("home");
        std::fs::create_dir(&path).expect("makes");
        let options = format!("size={kib}k,mode=700,uid={}", must("id", &["-u", sshd::login()]).trim());
        must("mount", &["-t", "tmpfs", "-o", &options, "jobcell-test", &path.display().to_string()]);
        Self(path)
    }

    /// Nothing fits on it any more.
    fn fill(&self) -> PathBuf {
        let filler = self.0.join("filler");
        let mut file = std::fs::File::create(&filler).expect("makes");
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        filler
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Lazily: a warden of the test may still be there.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// `None` where nothing can be mounted, or there is no sshd.
async fn stage(kib: u32) -> Option<(Folder, Home, Sshd, Up)> {
    if !sshd::present() {
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can mount a small disk");
        return None;
    }
    let folder = Folder::new();
    let home = Home::new(&folder, kib);
    let sshd = folder.sshd(&format!("SetEnv HOME={}", home.0.display()));
    let up = up_with(&folder, &inventory(&folder, &sshd), "").await;
    Some((folder, home, sshd, up))
}

fn job(mode: &str, script: &str) -> Value {
    on(&json!({"host": "web1", "mode": mode}), &json!({"script": script, "retry": {"infrastructure": 0}}))
}

#[tokio::test]
async fn where_no_warden_fits_jobs_run_in_plain_mode_and_say_so() {
    let Some((_folder, home, _sshd, up)) = stage(512).await else { return };
    let ran = up.run(&job("auto", "echo here; exit 3")).await;
    assert_eq!((cause(&ran), &ran["ending"]["cause"]["exit_code"]), ("exit_code", &json!(3)), "{ran}\n{}", up.log());
    assert_eq!(up.text(&ran, "stdout").await, "here\n");
    assert_eq!(fact(&ran, "mode"), "plain");
    let why = "the warden's program could not be written there";
    assert!(fact(&ran, "plain_because").contains(why), "{ran}");
    let history = ran["history"].as_array().expect("one");
    assert!(history.iter().any(|event| event["reason"] == "started_plain"), "{ran}");
    // The agent tells it of the host, too.
    let login = format!("{}@web1", sshd::login());
    until("the agent to tell it", || async {
        let agents = up.get("/v1/agents").await;
        agents["agents"][0]["load"]["plain_hosts"][&login].as_str().is_some_and(|told| told.contains(why)).then_some(())
    })
    .await;
    // What needs a warden is not begun without one.
    let mut wants = job("auto", "echo made >out.txt");
    wants["artifacts"] = json!(["out.txt"]);
    let refused = up.run(&wants).await;
    assert_eq!(cause(&refused), "host_unreachable", "{refused}");
    let told = refused["ending"]["message"].as_str().expect("words");
    assert!(told.contains("could not be written there"), "{told}");

    // Not even a folder's record: nothing of the job was told to the host.
    let filler = home.fill();
    let refused = up.run(&job("plain", "echo here")).await;
    assert_eq!(cause(&refused), "host_unreachable", "{refused}\n{}", up.log());
    let hint = refused["ending"]["hint"].as_str().expect("one");
    assert!(hint.contains("disk"), "{hint}");
    std::fs::remove_file(filler).expect("removes");
    let again = up.run(&job("plain", "echo here")).await;
    assert_eq!(cause(&again), "exit_code", "{again}");
    stop(up).await;
}

#[tokio::test]
async fn a_job_that_fills_its_host_ends_by_itself_and_others_go_on() {
    for mode in ["auto", "plain"] {
        let Some((_folder, home, _sshd, up)) = stage(8192).await else { return };
        let gate = home.0.join("gate");
        let beside = format!("echo begun; until [ -e {} ]; do sleep 0.1; done; echo through", gate.display());
        let beside = up.submit(&job(mode, &beside)).await;
        has_said(&up, &beside, "begun").await;
        let fills = "echo kept >out.txt; dd if=/dev/zero of=big bs=64k; echo \"dd $?\"; head -c 200000 /dev/zero | tr '\\0' x; exit 7";
        let mut fills = job(mode, fills);
        if mode == "auto" {
            fills["artifacts"] = json!(["out.txt"]);
        }
        let full = up.run(&fills).await;
        assert_eq!(
            (cause(&full), &full["ending"]["cause"]["exit_code"]),
            ("exit_code", &json!(7)),
            "{full}\n{}",
            up.log()
        );
        assert_eq!(fact(&full, "mode"), if mode == "auto" { "resident" } else { "plain" }, "{full}");
        assert!(up.text(&full, "stderr").await.contains("No space left on device"), "{full}");
        assert_eq!(up.text(&full, "stdout").await, format!("dd 1\n{}", "x".repeat(200_000)));
        assert_eq!(full["log"]["complete"], true, "{full}");
        if mode == "auto" {
            assert_eq!(
                (&full["artifacts"]["complete"], &full["artifacts"]["count"]),
                (&json!(true), &json!(1)),
                "{full}"
            );
        }
        // Its folder is gone, so there is room again, and who ran beside it never noticed.
        until("room", || async { std::fs::write(&gate, "open").ok() }).await;
        let beside = up.ended(&beside).await;
        assert_eq!((cause(&beside), &beside["ending"]["cause"]["exit_code"]), ("exit_code", &json!(0)), "{beside}");
        assert_eq!(up.text(&beside, "stdout").await, "begun\nthrough\n");
        let folder = format!("{}-1-0", id(&full).replace('-', ""));
        until("its folder to go", || async {
            let left = must("find", &[&home.0.display().to_string(), "-name", &folder]);
            left.is_empty().then_some(())
        })
        .await;
        stop_here(up, &home).await;
    }
}

/// As `stop`, for a warden below this home.
async fn stop_here(up: Up, home: &Home) {
    let owner = std::fs::read_to_string(up.data().join("owner")).expect("is there");
    let base = home.0.join(".jobcell").join(owner.trim());
    let hubs = super::resident::wardens(&base, "jobcell-hub");
    stop(up).await;
    for pid in hubs {
        must("kill", &["-KILL", &pid.to_string()]);
    }
}

#[tokio::test]
async fn where_an_agent_cannot_write_what_it_begins_nothing_is_begun() {
    if !sshd::present() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can mount a small disk");
        return;
    }
    let folder = Folder::new();
    let own = Home::new(&folder, 128);
    let sshd = folder.sshd("");
    let stage = Stage::with_records(&folder, &sshd, &own.0.join("records"));
    let quick = resident_beside::job(&json!(["true"]));
    run_one(&stage.executor, &quick).await.expect("runs");
    let filler = own.fill();
    // What is left of the last page takes some more.
    let mut refused = None;
    for _ in 0..100 {
        refused = run_one(&stage.executor, &quick).await.err();
        if refused.is_some() {
            break;
        }
    }
    let refused = refused.expect("the disk is full");
    assert!(refused.contains("ssh records") && refused.contains("No space left"), "{refused}");
    // What waited on the host to be told the job has gone, before its own time: nothing is left there but the program and its hub.
    let jobs = || {
        std::fs::read_dir(&stage.base).expect("is there").flatten().filter(|entry| entry.path().join("work").exists())
    };
    let mine = || jobs().filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b".")).count();
    until("the host to be clear", || async { (mine() == 0).then_some(()) }).await;
    std::fs::remove_file(filler).expect("goes");
    run_one(&stage.executor, &quick).await.expect("there is room again");
}
