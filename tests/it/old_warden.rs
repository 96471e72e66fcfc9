//! A warden of an earlier version is adopted by the agent of today. It runs as process 1 of a namespace of its own, without an engine.

use super::programs;
use super::stage::root;
use futures_util::StreamExt;
use jobcell::executor::warden::{Conversation, Orders, Progress, converse};
use jobcell::executor::{Cell, CellOrder, Link, Seen};
use jobcell::job::{AttemptId, Cause, JobId, JobSpec, Millis, SpecRules, UnixMillis};
use jobcell::logstore::LogStore;
use jobcell::protocol::wire::{CellSpec, Decoder, FromWarden, ToWarden};
use serde_json::json;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::{mpsc, watch};

/// Bytes at the end of a spec that came after the first version: a duration, an empty list, a time, flags and a size.
const LATER: usize = 8 + 4 + 4 + 1 + 8;

struct Old {
    spec: CellSpec,
    input: OwnedFd,
    output: OwnedFd,
}

impl Old {
    fn input(&self) -> Sender {
        Sender::from_owned_fd(self.input.try_clone().expect("clones")).expect("a pipe")
    }

    fn output(&self) -> Receiver {
        Receiver::from_owned_fd(self.output.try_clone().expect("clones")).expect("a pipe")
    }
}

impl Cell for Old {
    fn cell_spec(&self) -> &CellSpec {
        &self.spec
    }

    async fn attach(&self) -> Result<Link, String> {
        let output = futures_util::stream::unfold(self.output(), |mut output| async {
            let mut bytes = vec![0; 65_536];
            let count = output.read(&mut bytes).await.expect("reads");
            bytes.truncate(count);
            (count > 0).then(|| (Ok(bytes.into()), output))
        });
        Ok(Link { output: output.boxed(), input: Box::pin(self.input()) })
    }

    async fn look(&self) -> Result<Seen, String> {
        Ok(Seen::Running)
    }

    async fn kill(&self) -> Result<(), String> {
        Err("nobody is to be killed here".to_owned())
    }

    async fn destroy(self) {}
}

#[tokio::test]
async fn the_agent_of_today_takes_over_a_job_from_a_warden_of_the_first_version() {
    let dir = tempfile::tempdir().expect("a folder");
    // For a user that is nobody.
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("may");
    let packed = std::fs::File::open(root().join("tests/fixtures/warden/v1.gz")).expect("is there");
    let program = dir.path().join("warden");
    let unpacked = Command::new("gzip").args(["-d", "-c"]).stdin(packed).output().expect("gzip runs");
    programs::put(&program, unpacked.stdout, 0o755);
    let started = Command::new("unshare")
        .args(["--fork", "--pid", "--kill-child", "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = started else {
        assert!(std::env::var("JOBCELL_TEST_ENGINE").as_deref() != Ok("required"), "unshare and setpriv are needed");
        return eprintln!("SKIPPED: unshare and setpriv (util-linux) are needed");
    };
    let attempt = AttemptId::new(JobId::new(UnixMillis::now()), 1);
    let script = "for ((i = 1; i <= 40; i++)); do echo line $i; sleep 0.02; done; exit 3";
    let path = dir.path().join("script").to_str().expect("text").to_owned();
    let spec = CellSpec {
        attempt: attempt.to_string(),
        argv: vec!["/bin/bash".into(), "{script}".into()],
        inherit_env: vec!["PATH".into()],
        cwd: "/".into(),
        script_path: path,
        wall_timeout_ms: 60_000,
        grace_ms: 1_000,
        lease_ms: 60_000,
        output_pipe_bytes: 65_536,
        ..CellSpec::default()
    };
    let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    let cell = Old { spec, input: input.into(), output: output.into() };

    // The agent of before: gives it the job in its own words, and dies when the first line has come.
    let mut head = Vec::new();
    cell.spec.encode(&mut head);
    head.truncate(head.len() - LATER);
    let mut said = Vec::new();
    let attach =
        ToWarden::Attach { min_version: 1, max_version: 1, attempt: attempt.to_string(), stored: 0, window: 4096 };
    attach.encode(7, &mut said);
    for (section, bytes) in [(0, head.as_slice()), (1, script.as_bytes())] {
        ToWarden::SpecChunk { section, offset: 0, bytes: bytes.to_vec() }.encode(7, &mut said);
    }
    ToWarden::commit(&head, script.as_bytes(), b"").encode(7, &mut said);
    cell.input().write_all(&said).await.expect("writes");
    let (mut decoder, mut heard, mut bytes) = (Decoder::new(), Vec::new(), [0; 512]);
    let mut from = cell.output();
    while !heard.iter().any(|message| matches!(message, FromWarden::Output { .. })) {
        let read = tokio::time::timeout(Duration::from_secs(30), from.read(&mut bytes)).await;
        decoder.feed(&bytes[..read.unwrap_or_else(|_| panic!("{heard:?}")).expect("reads")]);
        while let Some(frame) = decoder.next() {
            heard.push(FromWarden::decode(&frame).expect("is understood"));
        }
    }
    drop(from);

    // The agent of today.
    let document = json!({"image": "x", "interpreter": "/bin/bash", "script": script});
    let order = CellOrder {
        secrets: Vec::new(),
        inputs: None,
        attempt,
        spec: Arc::new(JobSpec::check(&document, &SpecRules::default()).expect("a job")),
        image: "x".into(),
        argv: cell.spec.argv.clone(),
        grace: Millis::from_secs(1),
        lease: Millis::from_secs(60),
    };
    let logs = LogStore::open(&dir.path().join("logs"), 1 << 20).expect("opens");
    let (_stops, stops) = mpsc::channel(1);
    let (_lease, lease) = watch::channel(None);
    let conversation = Conversation {
        outside: &jobcell::egress::Outside::default(),
        order: &order,
        log: logs.create(attempt).expect("creates"),
        orders: Orders { stops, lease },
        reconnect: Duration::from_secs(10),
        output_share: 32 << 20,
        generation: 1,
        keep: None,
        noted: true,
    };
    let mut progress = Vec::new();
    let talk = converse(&cell, None, conversation, |what| progress.push(matches!(what, Progress::Started)));
    let finished = tokio::time::timeout(Duration::from_secs(60), talk).await.expect("ends");
    assert_eq!((&finished.cause, finished.log.complete), (&Cause::ExitCode { exit_code: 3 }, true), "{finished:?}");
    assert_eq!((finished.not_begun, progress.as_slice()), (false, [true].as_slice()));
    assert_eq!(finished.usage.map(|usage| usage.on_cancel_exit_code), Some(None));
    finished.farewell.say().await;
    let frames = logs.reader(attempt).expect("is there").read(1, 1 << 20).expect("reads");
    let text: Vec<u8> = frames.iter().flat_map(|frame| frame.bytes.to_vec()).collect();
    let wanted: String = (1..=40).map(|number| format!("line {number}\n")).collect();
    assert_eq!(String::from_utf8_lossy(&text), wanted);
    // Let go, it ends.
    assert!(tokio::task::spawn_blocking(move || child.wait()).await.expect("waits").expect("waits").success());
}
