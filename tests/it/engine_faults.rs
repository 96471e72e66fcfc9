//! Engines that are not there, die, or cut the stream. A private engine is broken, never the shared one.

use super::engine_proxy::Recorder;
use super::private::Private;
use super::stage::{Up, cause, docker, engine, until};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

#[tokio::test]
async fn an_engine_that_comes_later_and_dies_in_mid_job() {
    let (Some(_), Some(private)) = (engine(), Private::prepare()) else { return };
    let host = private.host();
    // It has the image when it comes: a job is claimed as soon as it answers.
    private.start();
    private.script("kill9");
    let up = Up::start_unready(&host, "docker: {reconnect_timeout: 3s, call_timeout: 5s}").await;
    // Alive, not ready, and it says why; jobs are taken in and wait.
    assert_eq!(up.plain("/livez").await.expect("answers").0, 200);
    let told = || async { up.plain("/healthz").await.filter(|(_, health)| health.contains("docker.sock")) };
    let (status, health) = until("it to say why", told).await;
    assert_eq!(status, 503, "{health}");
    let job = up.submit(&json!({"preset": "bash", "script": "echo patience"})).await;
    private.script("restart");
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), up.text(&job, "stdout").await.as_str()), ("exit_code", "patience\n"));

    // As long as the engine stays away, the job's lease and grace are what says that it has ended.
    let spec = json!({"preset": "bash", "script": "echo begun; sleep 600", "lost_after": "15s",
        "retry": {"infrastructure": 0}});
    let job = up.submit(&spec).await;
    until("output", || async { (up.text(&job, "stdout").await == "begun\n").then_some(()) }).await;
    private.script("kill9");
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), job["ending"]["verdict"].as_str()), ("cell_lost", Some("cell_error")));
    assert_eq!(up.text(&job, "stdout").await, "begun\n");
    let waiting = up.submit(&json!({"preset": "bash", "script": "echo again"})).await;
    until("the engine to be missed", || async { up.plain("/readyz").await.filter(|(status, _)| *status == 503) }).await;
    private.script("restart");
    let job = up.ended(&waiting).await;
    assert_eq!((cause(&job), up.text(&job, "stdout").await.as_str()), ("exit_code", "again\n"));
    // What could not be removed while the engine was away is removed now.
    until("nothing left", || async { up.containers().is_empty().then_some(()) }).await;
    up.stop().await;
}

/// Passes everything on to the engine, but cuts attached streams after some bytes from it, each time at another place.
async fn cutting_proxy(engine: PathBuf, socket: &Path, cuts: usize) -> Arc<AtomicUsize> {
    let listener = UnixListener::bind(socket).expect("binds");
    let (done, limit) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(300_007)));
    let counted = Arc::clone(&done);
    jobcell::supervise::spawn("proxy", async move {
        loop {
            let (client, _) = listener.accept().await.expect("accepts");
            let (engine, counted, limit) = (engine.clone(), Arc::clone(&counted), Arc::clone(&limit));
            jobcell::supervise::spawn("proxied", async move {
                let _ = pass(client, engine, cuts, counted, limit).await;
            });
        }
    });
    done
}

async fn pass(
    mut client: UnixStream,
    engine: PathBuf,
    cuts: usize,
    counted: Arc<AtomicUsize>,
    limit: Arc<AtomicU64>,
) -> std::io::Result<()> {
    let mut server = UnixStream::connect(engine).await?;
    let mut first = vec![0; 65536];
    let count = client.read(&mut first).await?;
    first.truncate(count);
    server.write_all(&first).await?;
    let attach = first.windows(8).any(|part| part == b"/attach?");
    if !attach || counted.load(Ordering::SeqCst) >= cuts {
        tokio::io::copy_bidirectional(&mut client, &mut server).await?;
        return Ok(());
    }
    let most = limit.fetch_add(77_777, Ordering::SeqCst);
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let mut output = (&mut from_server).take(most);
    tokio::select! {
        _ = tokio::io::copy(&mut output, &mut to_client) => { counted.fetch_add(1, Ordering::SeqCst); }
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attached_stream_cut_in_mid_frame_loses_nothing() {
    let Some(host) = engine() else { return };
    let Some(path) = host.strip_prefix("unix://") else {
        eprintln!("SKIPPED: the proxy is for an engine on a unix socket, not {host}");
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("proxy.sock");
    let cuts = cutting_proxy(PathBuf::from(path), &socket, 12).await;
    let up = Up::start(&format!("unix://{}", socket.display()), "").await;
    let job = up.bash("yes 'the quick brown fox jumps over the lazy dog' | head -n 400000").await;
    let wanted = "the quick brown fox jumps over the lazy dog\n".repeat(400_000);
    let sum: String = Sha256::digest(wanted.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((cause(&job), job["log"]["complete"].as_bool()), ("exit_code", Some(true)), "{job}\n{}", up.log());
    assert_eq!(job["log"]["stdout"]["sha256"], sum.as_str());
    assert_eq!(cuts.load(Ordering::SeqCst), 12);
    let (_, metrics) = up.plain("/metrics").await.expect("answers");
    assert!(metrics.lines().any(|line| line == "jobcell_reattach_total 12"), "{metrics}");
    up.stop().await;
}

#[tokio::test]
async fn what_stands_before_an_engine_and_answers_for_it_is_not_its_no() {
    let Some(host) = engine() else { return };
    let Some(path) = host.strip_prefix("unix://") else {
        eprintln!("SKIPPED: the proxy is for an engine on a unix socket, not {host}");
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let recorder = Recorder::that_answers_for_it_first(Path::new(path), dir.path());
    let mut up = Up::start(&recorder.host(), "").await;
    let job = up.bash("echo begun").await;
    assert_eq!((cause(&job), up.text(&job, "stdout").await.as_str()), ("exit_code", "begun\n"), "{job}\n{}", up.log());
    let asked = recorder.asked();
    for step in ["create", "attach", "start"] {
        assert!(asked.used.iter().any(|call| call.path.ends_with(step)), "{step}: {asked:?}");
    }
    up.host = host;
    up.stop().await;
}

#[tokio::test]
async fn a_killed_cell_and_a_removed_volume_are_survived() {
    let Some(private) = engine().and_then(|_| Private::prepare()) else { return };
    private.start();
    let host = private.host();
    let up = Up::start(&host, "").await;
    // As long as the engine stays away, the job's lease and grace are what says that it has ended.
    let spec = json!({"preset": "bash", "script": "echo begun; sleep 600", "lost_after": "15s",
        "retry": {"infrastructure": 0}});
    let job = up.submit(&spec).await;
    until("output", || async { (up.text(&job, "stdout").await == "begun\n").then_some(()) }).await;
    docker(&host, &["kill", &up.containers()[0]]);
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), job["ending"]["verdict"].as_str()), ("cell_lost", Some("cell_error")));
    assert_eq!(up.text(&job, "stdout").await, "begun\n");
    until("nothing left", || async { up.containers().is_empty().then_some(()) }).await;
    let volumes = docker(&host, &["volume", "ls", "--quiet", "--filter", "label=jobcell.warden"]);
    docker(&host, &["volume", "rm", &volumes]);
    let job = up.bash("echo after").await;
    assert_eq!(up.text(&job, "stdout").await, "after\n", "{job}");
    up.stop().await;
}
