//! Every byte of a job's output, whatever it is and however it comes.

use super::stage::{PATIENCE, Up, cause, engine, id};
use futures_util::StreamExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn watch(up: &Up, job: &serde_json::Value, from: u64) -> Socket {
    let url = format!("{}/v1/jobs/{}/logs/live?from={from}", up.url.replacen("http", "ws", 1), id(job));
    let mut request = url.into_client_request().expect("a request");
    request.headers_mut().insert("authorization", format!("Bearer {}", up.key).parse().expect("a header"));
    tokio_tungstenite::connect_async(request).await.expect("connects").0
}

/// Reads a live stream to its end: records as (number, stream, bytes).
async fn all(mut socket: Socket) -> Vec<(u64, u8, Vec<u8>)> {
    let mut records = Vec::new();
    while let Some(message) = socket.next().await {
        match message.expect("a message") {
            Message::Binary(bytes) => {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let len = u32::from_le_bytes(rest[..4].try_into().expect("four")) as usize;
                    let seq = u64::from_le_bytes(rest[4..12].try_into().expect("eight"));
                    records.push((seq, rest[20], rest[21..21 + len].to_vec()));
                    rest = &rest[21 + len..];
                }
            }
            Message::Text(text) => {
                assert!(text.contains("\"end\":true"), "{text}");
                return records;
            }
            _ => {}
        }
    }
    panic!("the stream ended without saying so");
}

#[tokio::test]
async fn binary_output_is_byte_exact_by_range_and_by_hash() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let script = "import sys\nsys.stdout.buffer.write(bytes(range(256)) * 1000 + b'\\xff\\xfe no newline')\n";
    let job = up.run(&json!({"preset": "python", "script": script})).await;
    let mut wanted: Vec<u8> = (0..=255).collect::<Vec<u8>>().repeat(1000);
    wanted.extend(b"\xff\xfe no newline");
    assert_eq!(up.stream(&job, "stdout").await, wanted);
    assert_eq!(job["log"]["stdout"]["bytes"], wanted.len());
    assert_eq!(job["log"]["stdout"]["sha256"], hex(&wanted));
    assert_eq!(job["log"]["complete"], true);
    let path = format!("/v1/jobs/{}/logs?stream=stdout", id(&job));
    let part = up.request(reqwest::Method::GET, &path).header("Range", "bytes=100-355").send().await.expect("answers");
    assert_eq!(
        (part.status().as_u16(), part.headers()["content-range"].to_str().ok()),
        (206, Some("bytes 100-355/256013"))
    );
    assert_eq!(part.bytes().await.expect("reads"), wanted[100..356]);
    up.stop().await;
}

#[tokio::test]
async fn a_line_of_fifty_megabytes_is_a_line_of_fifty_megabytes() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let job = up.bash("head -c 50000000 /dev/zero | tr '\\0' x; echo").await;
    assert_eq!(cause(&job), "exit_code");
    let wanted = [&vec![b'x'; 50_000_000][..], b"\n"].concat();
    assert_eq!(job["log"]["stdout"]["sha256"], hex(&wanted));
    assert_eq!(hex(&up.stream(&job, "stdout").await), hex(&wanted));
    up.stop().await;
}

#[tokio::test]
async fn two_hundred_thousand_lines_on_both_streams_keep_their_order() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let script = "for i in $(seq 200000); do echo \"out $i\"; if (( i % 10 == 0 )); then echo \"err $i\" >&2; fi; done";
    let job = up.submit(&json!({"preset": "bash", "script": script})).await;
    let records = all(watch(&up, &job, 1).await).await;
    let job = up.ended(&job).await;
    let numbers: Vec<u64> = records.iter().map(|record| record.0).collect();
    assert_eq!(numbers, (1..=records.len() as u64).collect::<Vec<_>>());
    let of = |stream: u8| {
        records.iter().filter(|record| record.1 == stream).flat_map(|record| record.2.clone()).collect::<Vec<u8>>()
    };
    let out: String = (1..=200_000).map(|i| format!("out {i}\n")).collect();
    let err: String = (1..=20_000).map(|i| format!("err {}\n", i * 10)).collect();
    assert_eq!((hex(&of(1)), hex(&of(2))), (hex(out.as_bytes()), hex(err.as_bytes())));
    assert_eq!(job["log"]["stdout"]["sha256"], hex(out.as_bytes()));
    assert_eq!(job["log"]["stderr"]["sha256"], hex(err.as_bytes()));
    up.stop().await;
}

#[tokio::test]
async fn a_background_child_that_holds_stdout_does_not_hold_the_job() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let asked = Instant::now();
    let job = up.bash("sleep 600 & setsid sleep 600 & echo started").await;
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    assert_eq!((cause(&job), job["ending"]["process_exit_code"].as_u64()), ("exit_code", Some(0)));
    assert_eq!(job["usage"]["leftover_processes"], 2);
    assert_eq!(up.text(&job, "stdout").await, "started\n");
    up.stop().await;
}

#[tokio::test]
async fn a_viewer_that_stops_reading_stops_nobody_and_may_come_back() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let job = up
        .submit(&json!({"preset": "bash", "script": "yes 'a line of output that is long enough' | head -c 60000000"}))
        .await;
    let mut idle = watch(&up, &job, 1).await;
    let first = tokio::time::timeout(PATIENCE, idle.next()).await.expect("in time").expect("open").expect("a message");
    assert!(matches!(first, Message::Binary(_)));
    // It reads nothing more; another one gets all.
    let records = all(watch(&up, &job, 1).await).await;
    let bytes: usize = records.iter().map(|record| record.2.len()).sum();
    assert_eq!(bytes, 60_000_000);
    let job = up.ended(&job).await;
    assert_eq!((cause(&job), job["log"]["complete"].as_bool()), ("exit_code", Some(true)));
    drop(idle);
    let middle = records[records.len() / 2].0;
    let rest = all(watch(&up, &job, middle).await).await;
    assert_eq!(rest.first().map(|record| record.0), Some(middle));
    assert_eq!(rest.last().map(|record| record.0), records.last().map(|record| record.0));
    up.stop().await;
}

#[tokio::test]
async fn a_viewer_may_come_before_the_job_starts_and_strangers_may_not() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "agent: {slots: 1}").await;
    let first = up.submit(&json!({"preset": "bash", "script": "sleep 1; echo first"})).await;
    let second = up.submit(&json!({"preset": "bash", "script": "echo second"})).await;
    let records = all(watch(&up, &second, 1).await).await;
    assert_eq!(records.iter().map(|record| record.2.clone()).collect::<Vec<_>>().concat(), b"second\n");
    up.ended(&first).await;
    let url = format!("{}/v1/jobs/{}/logs/live", up.url.replacen("http", "ws", 1), id(&first));
    for (header, value, status) in [("origin", "http://evil.example", 403), ("authorization", "Bearer wrong", 401)] {
        let mut request = url.as_str().into_client_request().expect("a request");
        request.headers_mut().insert("authorization", format!("Bearer {}", up.key).parse().expect("a header"));
        request.headers_mut().insert(header, value.parse().expect("a header"));
        match tokio_tungstenite::connect_async(request).await {
            Err(Error::Http(response)) => assert_eq!(response.status().as_u16(), status),
            other => panic!("{other:?}"),
        }
    }
    up.stop().await;
}

#[tokio::test]
async fn output_that_looks_like_frames_is_only_output() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    // Whole frames of an exit with code 0, in many epochs, and halves of them.
    let mut forged = Vec::new();
    for epoch in 0..2000u32 {
        let message = jobcell::protocol::wire::FromWarden::Fault { text: "forged".into() };
        message.encode(epoch, 0, &mut forged);
        forged.extend_from_slice(&jobcell::protocol::wire::MARKER);
    }
    let escaped: String = forged.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    let script = format!("import os,sys\nos.write(1, b'{escaped}')\nsys.exit(3)\n");
    let job = up.run(&json!({"preset": "python", "script": script})).await;
    assert_eq!((cause(&job), job["ending"]["process_exit_code"].as_u64()), ("exit_code", Some(3)));
    assert_eq!(up.stream(&job, "stdout").await, forged);
    up.stop().await;
}

/// What a job writes to take a terminal over is seen as it is spelled; files, pipes and `--raw` get each byte.
#[tokio::test]
async fn a_terminal_is_shown_what_a_job_wrote_and_does_not_obey_it() {
    const SCRIPT: &str = r"printf '\e]0;owned\a\e[2J\e[31mred\e[0m secret\rpublic\xe2\x80\xae\x9b6n \xc3\xa9\n'; printf '\e[8mhidden' >&2";
    const OUT: &[u8] = b"\x1b]0;owned\x07\x1b[2J\x1b[31mred\x1b[0m secret\rpublic\xe2\x80\xae\x9b6n \xc3\xa9\n";
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let job = up.bash(SCRIPT).await;
    assert_eq!(up.stream(&job, "stdout").await, OUT);
    let shown =
        r"\u{1b}]0;owned\u{7}\u{1b}[2J".to_owned() + "\u{1b}[31mred\u{1b}[0m secret\r\npublic" + r"\u{202e}\x9b6n é";
    for command in ["job logs", "job logs -f"] {
        let (code, seen) = up.typed(&format!("{command} {}", id(&job)), "").await;
        assert_eq!(code, 0, "{seen:?}");
        assert!(seen.contains(&shown) && seen.contains("hidden") && !seen.contains("\u{1b}[8m"), "{seen:?}");
        let (_, raw) = up.typed(&format!("{command} {} --raw", id(&job)), "").await;
        assert!(raw.contains("\u{1b}]0;owned\u{7}\u{1b}[2J") && raw.contains("\u{1b}[8mhidden"), "{raw:?}");
        let mut args: Vec<&str> = command.split(' ').collect();
        args.extend([id(&job), "--stream", "stdout"]);
        assert_eq!(up.command(&args).await.stdout, OUT);
    }
    let file = up.dir.path().join("job.json");
    let spec = json!({"preset": "bash", "script": SCRIPT, "env": {"X": "x\u{202e}y"}});
    std::fs::write(&file, spec.to_string()).expect("writes");
    for args in ["job submit --follow", "job run"] {
        let (code, seen) = up.typed(&format!("{args} {}", file.display()), "").await;
        assert!(code == 0 && seen.contains(&shown) && !seen.contains("\u{1b}[2J"), "{args}: {seen:?}");
    }
    // Neither do documents about it; they mean the same.
    let job = up.run(&spec).await;
    for output in ["json", "yaml"] {
        let out = up.command(&["job", "get", id(&job), "-o", output]).await.stdout;
        let text = String::from_utf8(out).expect("text");
        assert!(!text.contains('\u{202e}'), "{output}: {text}");
        let read: Value = serde_saphyr::from_str(&text).expect("both are YAML");
        assert_eq!(read["spec"]["env"], spec["env"]);
    }
    up.stop().await;
}

/// While others run, a job that floods is held to its share, and loses nothing by it.
#[tokio::test]
async fn a_flood_beside_another_job_goes_at_its_share_and_keeps_each_byte() {
    const BYTES: usize = 12 << 20;
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "agent: {slots: 2}\nlogs: {output_share: 2MiB}\n").await;
    let flood = json!({"preset": "bash", "script": format!("head -c {BYTES} /dev/zero")});
    let wall = |job: &Value| {
        job["usage"]["wall"].as_str().map(|wall| wall.parse::<jobcell::job::Millis>().expect("a span").as_u64())
    };
    let other = up.submit(&json!({"preset": "bash", "script": "read -r never < <(sleep 1000)"})).await;
    up.phase(&other, "running").await;
    let beside = up.run(&flood).await;
    assert_eq!(up.stream(&beside, "stdout").await.len(), BYTES);
    assert!(beside["log"]["complete"] == json!(true) && beside["log"]["gaps"].is_null(), "{}", beside["log"]);
    // Half a megabyte passes at once, and some two megabytes lie in pipes and the warden when the job has written its last.
    assert!(wall(&beside) >= Some(3_000), "{}", beside["usage"]);
    up.call(reqwest::Method::POST, &format!("/v1/jobs/{}/cancel", id(&other)), None).await;
    up.ended(&other).await;
    let alone = up.run(&flood).await;
    assert!(wall(&alone) < wall(&beside), "{} {}", alone["usage"], beside["usage"]);
    up.stop().await;
}
