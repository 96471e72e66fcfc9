//! Words of how far jobs are, at a backend that may be asked once in a second; and which answers end the way of files.

use super::*;
use crate::backend::{Backend, Http, HttpSettings};
use crate::job::{JobId, Millis, UnixMillis};
use crate::logstore::LogStore;
use crate::protocol::agent::{Capabilities, Registered, RenewAnswer, Renewed, Step};
use std::num::NonZeroU32;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const RENEWALS: usize = 3;

fn attempt() -> AttemptId {
    AttemptId::new(JobId::new(UnixMillis::now()), 1)
}

fn progress(percent: u8) -> Option<Progress> {
    Some(Progress { percent, message: String::new(), at: UnixMillis::new(0), eta: None })
}

fn word(attempt: AttemptId, percent: u8) -> TellProgress {
    let holding = Holding { attempt, token: LeaseToken(1) };
    TellProgress { holding, progress: progress(percent), steps: Vec::new() }
}

#[tokio::test(start_paused = true)]
async fn there_is_one_word_of_each_job_the_newest_and_one_who_brings_them() {
    let (words, one, two) = (Words::default(), attempt(), attempt());
    assert!(words.keep(word(one, 1)), "somebody has to bring them");
    tokio::time::advance(TELL_PAUSE / 2).await;
    for percent in 2..100 {
        assert!(!words.keep(word(one, percent)) && !words.keep(word(two, percent)));
    }
    assert_eq!(words.waiting().turns.len(), 2);
    assert_eq!(words.next(), Some(Instant::now() + TELL_PAUSE / 2), "a newer word does not put it off");
    assert_eq!(words.take(), Some(word(one, 99)));
    words.forget(two);
    assert!(!words.keep(word(one, 100)), "they are being brought");
    assert_eq!(words.next(), Some(Instant::now() + TELL_PAUSE));
    assert_eq!((words.take(), words.next()), (Some(word(one, 100)), None));
    assert!(words.keep(word(two, 1)), "who brought them has gone");
}

#[test]
fn only_answers_that_stay_end_the_way_of_files() {
    let no = |retry| BackendError { retry, message: "no".to_owned() };
    let of = |code: Option<&str>, retry| patience(code, &no(retry), &mut std::iter::repeat(PAUSES.0));
    for code in FINAL {
        assert_eq!(of(Some(code), Retry::Never), Err("no".to_owned()), "{code}");
    }
    assert!(of(Some("store_full"), Retry::Transient).is_err(), "507");
    // A key that is being changed, and whatever stands between the two.
    for code in [Some("unauthorized"), Some("forbidden"), Some("bad_body"), None] {
        assert_eq!(of(code, Retry::Never), Ok(REFUSED_PAUSE), "{code:?}");
    }
    assert_eq!(of(None, Retry::Transient), Ok(PAUSES.0));
    assert_eq!(of(Some("unavailable"), Retry::Throttled(REFUSED_PAUSE * 2)), Ok(REFUSED_PAUSE * 2));
}

/// Answers one call on each connection as a server does that takes everything, and tells what was called.
async fn serve(mut stream: TcpStream, called: tokio::sync::mpsc::Sender<(String, Vec<u8>)>) {
    let mut read = Vec::new();
    let (head, body) = loop {
        let mut piece = [0; 4096];
        match stream.read(&mut piece).await {
            Ok(count @ 1..) => read.extend_from_slice(&piece[..count]),
            _ => return,
        }
        let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        if read.len() >= end + 4 + length {
            break (head, read[end + 4..].to_vec());
        }
    };
    let what = head.split(' ').nth(1).unwrap_or_default().trim_start_matches("/v1/agent/").to_owned();
    let renewed = Renewed::Renewed { until: UnixMillis::now(), cancel_requested: false };
    let capabilities = Capabilities {
        lease: Some(Millis::from_secs(60)),
        fenced_end: true,
        log: false,
        cancel: false,
        later: false,
        traces: false,
    };
    let answer = match what.as_str() {
        "register" => serde_json::to_vec(&Registered {
            protocol: crate::protocol::agent::VERSION,
            session: "s".to_owned(),
            agent: "a".to_owned(),
            capabilities,
            max_wait: Millis::from_secs(1),
            drained: None,
        }),
        "renew" => serde_json::to_vec(&RenewAnswer { renewals: vec![renewed], drained: None }),
        _ => serde_json::to_vec(&StepAnswer { step: Step::Applied }),
    };
    let answer = answer.expect("is written");
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        answer.len()
    );
    let _ = called.send((what, body)).await;
    let _ = stream.write_all(&[head.as_bytes(), &answer].concat()).await;
}

#[tokio::test]
async fn words_are_never_in_the_way_of_renewals_and_do_not_pile_up() {
    let dir = tempfile::tempdir().expect("a folder");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}", listener.local_addr().expect("has one"));
    let (called, mut calls) = tokio::sync::mpsc::channel(1000);
    let server = crate::supervise::spawn("server", async move {
        while let Ok((stream, _)) = listener.accept().await {
            crate::supervise::spawn("call", serve(stream, called.clone()));
        }
    });
    let settings =
        HttpSettings { name: "slow".to_owned(), url, key: "k".to_owned(), rate: NonZeroU32::MIN, spool_max: 1 << 20 };
    let logs = LogStore::open(dir.path(), 1 << 20).expect("opens");
    let stop = CancellationToken::new();
    let backend = Http::new(settings, logs, stop.clone()).expect("is made");
    let (began, jobs) = (Instant::now(), (0..100).map(|_| attempt()).collect::<Vec<_>>());
    for renewal in 0..RENEWALS {
        // Each job speaks all the time.
        for percent in 0..30 {
            jobs.iter().for_each(|job| backend.tell_progress(*job, LeaseToken(1), progress(percent), Vec::new()));
        }
        // By now somebody waits for the rate, with many words behind.
        tokio::time::sleep(TELL_PAUSE + Duration::from_millis(300)).await;
        let asked = Instant::now();
        let renewed = backend.renew(&[(jobs[0], LeaseToken(1))]).await.expect("is answered");
        assert!(matches!(renewed[..], [Renewed::Renewed { .. }]));
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(2), "renewal {renewal} waited {took:?}");
        assert!(backend.shared.words.waiting().newest.len() <= jobs.len());
    }
    let most = began.elapsed().as_secs() + 2;
    stop.cancel();
    server.abort();
    let mut words = 0;
    while let Ok((what, body)) = calls.try_recv() {
        if what == "progress" {
            let told: TellProgress = serde_json::from_slice(&body).expect("a word");
            assert_eq!(told.progress.map(|told| told.percent), Some(29), "the newest");
            words += 1;
        }
    }
    assert!((1..=most).contains(&words), "{words} words, and the rate is one in a second for {most} s");
}
