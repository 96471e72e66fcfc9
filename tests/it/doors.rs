//! The API's own doors: slow, large, deep, frequent and foreign requests each get their answer, and are in nobody else's way.

use super::stage::{Up, engine, id, until};
use futures_util::{SinkExt, StreamExt};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Message, protocol::WebSocketConfig};

/// Longer than any answer takes here, on a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(30);

fn client() -> Client {
    Client::builder().no_proxy().timeout(SOON).build().expect("builds")
}

async fn connect(up: &Up) -> TcpStream {
    TcpStream::connect(up.url.trim_start_matches("http://")).await.expect("connects")
}

/// All that comes until the other side closes.
async fn rest(mut stream: TcpStream) -> String {
    let mut said = Vec::new();
    let read = tokio::time::timeout(SOON, stream.read_to_end(&mut said)).await.expect("closes in time");
    // Who is cut off in the middle of sending may see a reset.
    let _ = read;
    String::from_utf8_lossy(&said).into_owned()
}

/// Memory of the process, in bytes.
fn resident(up: &Up) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", up.pid())).expect("runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1024
}

/// How long `/livez` takes, in the middle of many.
async fn livez(up: &Up) -> Duration {
    let mut took = Vec::new();
    for _ in 0..21 {
        let begun = Instant::now();
        // A connection of its own, as a probe has.
        let mut stream = connect(up).await;
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("writes");
        assert!(rest(stream).await.starts_with("HTTP/1.1 200 "));
        took.push(begun.elapsed());
    }
    took.sort();
    took[took.len() / 2]
}

#[tokio::test]
async fn five_hundred_slow_senders_hold_up_nobody_and_are_sent_away() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "server: {header_timeout: 4s, body_timeout: 4s}").await;
    let before = resident(&up);
    let mut slow = Vec::new();
    for n in 0..500 {
        let mut stream = connect(&up).await;
        let part: &[u8] = match n % 3 {
            0 => b"GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: ",
            1 => b"G",
            _ => b"POST /v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\nauthorization: Bearer x\r\n",
        };
        stream.write_all(part).await.expect("writes");
        slow.push(stream);
    }
    let took = livez(&up).await;
    assert!(took < Duration::from_millis(100), "/livez takes {took:?}");
    for stream in &mut slow {
        let _ = stream.write_all(b"a").await;
    }
    assert!(resident(&up).saturating_sub(before) < 64 << 20, "memory grows");
    for stream in slow {
        let said = rest(stream).await;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{said}");
    }
    // A whole head, and a body that does not come.
    let mut stream = connect(&up).await;
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 1000\r\n\r\n{{",
        up.key
    );
    stream.write_all(head.as_bytes()).await.expect("writes");
    let said = rest(stream).await;
    assert!(said.starts_with("HTTP/1.1 400") && said.contains("server.body_timeout"), "{said}");
    until("the places", || async {
        let (_, text) = up.plain("/metrics").await?;
        let open = text.lines().find_map(|line| line.strip_prefix("jobcell_connections ")?.parse::<u32>().ok());
        open.filter(|open| *open < 10)
    })
    .await;
    up.stop().await;
}

/// A connection from an address of this machine, with little room for what comes.
async fn connect_from(up: &Up, from: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("is set");
    socket.bind(format!("{from}:0").parse().expect("an address")).expect("binds");
    socket.connect(up.url.trim_start_matches("http://").parse().expect("an address")).await.expect("connects")
}

/// What a request on a connection of its own is answered, from there.
async fn asked_from(up: &Up, from: &str, path: &str) -> String {
    let mut stream = connect_from(up, from).await;
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n", up.key);
    // Who is turned away at once may see a reset.
    let _ = stream.write_all(request.as_bytes()).await;
    rest(stream).await
}

async fn open_connections(up: &Up) -> Option<u32> {
    let (_, text) = up.plain("/metrics").await?;
    text.lines().find_map(|line| line.strip_prefix("jobcell_connections ")?.parse().ok())
}

#[tokio::test]
async fn connections_have_a_bound_an_address_has_its_share_and_probes_are_answered_all_the_same() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "server: {connections_max: 64}").await;
    until("places", || async { open_connections(&up).await.filter(|open| *open < 3) }).await;
    let mut held = Vec::new();
    for _ in 0..48 {
        held.push(connect_from(&up, "127.0.0.2").await);
    }
    let said = until("its share", || async {
        Some(asked_from(&up, "127.0.0.2", "/v1/jobs").await).filter(|said| said.starts_with("HTTP/1.1 503"))
    })
    .await;
    assert!(said.contains("server.connections_per_address"), "{said}");
    assert!(asked_from(&up, "127.0.0.2", "/livez").await.starts_with("HTTP/1.1 200"), "a probe from there");
    assert!(asked_from(&up, "127.0.0.1", "/v1/jobs").await.starts_with("HTTP/1.1 200"), "another address");
    for _ in 0..16 {
        held.push(connect_from(&up, "127.0.0.3").await);
    }
    let said = until("a full house", || async {
        Some(asked_from(&up, "127.0.0.4", "/v1/jobs").await).filter(|said| said.starts_with("HTTP/1.1 503"))
    })
    .await;
    assert!(said.contains("server.connections_max"), "{said}");
    for path in ["/livez", "/readyz", "/health", "/metrics"] {
        let said = asked_from(&up, "127.0.0.4", path).await;
        assert!(said.starts_with("HTTP/1.1 200"), "{path}: {said}");
    }
    // Those that are kept are bounded too, and nobody keeps one for long.
    let mut beyond = Vec::new();
    for n in 0..60 {
        beyond.push(connect_from(&up, &format!("127.0.1.{n}")).await);
    }
    for stream in beyond {
        rest(stream).await;
    }
    drop(held);
    until("a place", || async {
        Some(asked_from(&up, "127.0.0.2", "/v1/jobs").await).filter(|said| said.starts_with("HTTP/1.1 200"))
    })
    .await;
    let (_, text) = up.plain("/metrics").await.expect("answers");
    assert!(!text.contains("jobcell_connections_refused_total 0\n"), "{text}");
    up.stop().await;
}

#[tokio::test]
async fn five_hundred_slow_readers_senders_and_viewers_of_one_key_are_in_nobodys_way_and_lose_their_places() {
    let Some(host) = engine() else { return };
    let settings = "server: {header_timeout: 10s, body_timeout: 10s, write_timeout: 10s}\nlimits: {rate: 0}";
    let up = Up::start(&host, settings).await;
    let made = up.call(Method::POST, "/v1/keys", Some(&json!({"name": "mob", "role": "submit"}))).await;
    let mob = made.json::<Value>().await.expect("JSON")["key"].as_str().expect("a key").to_owned();
    let job = up.bash("head -c 8000000 /dev/zero | tr '\\0' 'x'").await;
    let live = up.submit(&json!({"preset": "bash", "script": "echo begun; sleep 600"})).await;
    up.phase(&live, "running").await;
    let content = vec![b'c'; 8 << 20];
    let stored = up.request(Method::POST, "/v1/blobs").body(content).send().await.expect("answers");
    let digest = stored.json::<Value>().await.expect("JSON")["digest"].as_str().expect("one").to_owned();
    let job = id(&job);
    // Held against what this machine takes for it while nothing of that is there.
    let usual = livez(&up).await;
    let key = format!("host: x\r\nauthorization: Bearer {mob}\r\n");
    let kinds = [
        "GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: ".to_owned(),
        format!("POST /v1/jobs HTTP/1.1\r\n{key}content-length: 1000\r\n\r\n{{"),
        format!("POST /v1/blobs HTTP/1.1\r\n{key}content-length: 100000000\r\n\r\nslow"),
        format!("GET /v1/blobs/{digest} HTTP/1.1\r\n{key}\r\n"),
        format!("GET /v1/jobs/{job}/logs?stream=stdout&max_bytes=8000000 HTTP/1.1\r\n{key}\r\n"),
        format!("GET /v1/jobs/{job}/logs/events HTTP/1.1\r\n{key}\r\n"),
        format!(
            "GET /v1/jobs/{job}/logs/live HTTP/1.1\r\n{key}connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ),
    ];
    let mut slow = Vec::new();
    for n in 0..500 {
        let mut stream = connect_from(&up, "127.0.0.2").await;
        let _ = stream.write_all(kinds[n % kinds.len()].as_bytes()).await;
        slow.push(stream);
    }
    let most = until("all of them", || async { open_connections(&up).await.filter(|open| *open > 300) }).await;
    assert!(most <= 520, "{most} connections");
    // Another key has everything that these have too much of.
    let took = livez(&up).await;
    assert!(took < (usual * 10).max(Duration::from_millis(100)), "/livez takes {took:?}, and {usual:?} before");
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(up.call(Method::GET, "/v1/jobs?limit=1", None).await.status().as_u16(), 200);
    }
    let took = begun.elapsed() / 20;
    assert!(took < (usual * 20).max(Duration::from_millis(200)), "a list takes {took:?}, and /livez {usual:?} before");
    let uploaded = up.request(Method::POST, "/v1/blobs").body("of another").send().await.expect("answers");
    assert_eq!(uploaded.status().as_u16(), 201, "{}", uploaded.text().await.unwrap_or_default());
    let read = up.call(Method::GET, &format!("/v1/blobs/{digest}"), None).await;
    assert_eq!(read.status().as_u16(), 200);
    assert_eq!(read.bytes().await.expect("comes whole").len(), 8 << 20);
    // A stream that is a WebSocket keeps its place among the connections until it ends.
    let before = open_connections(&up).await.expect("a number");
    let url = format!("{}/v1/jobs/{}/logs/live", up.url.replacen("http", "ws", 1), id(&live));
    let mut request = url.into_client_request().expect("a request");
    request.headers_mut().insert("authorization", format!("Bearer {}", up.key).parse().expect("a header"));
    let mut viewer = tokio_tungstenite::connect_async(request).await.expect("connects").0;
    let first = tokio::time::timeout(SOON, viewer.next()).await.expect("comes in time");
    assert!(matches!(first, Some(Ok(Message::Binary(_)))), "{first:?}");
    // Drops, so that nobody can say that nothing came; and a few bytes are taken.
    let mut all_gone = tokio::time::interval(Duration::from_millis(500));
    let end = Instant::now() + 2 * SOON;
    loop {
        all_gone.tick().await;
        for stream in &mut slow {
            let _ = stream.try_write(b"a");
            let _ = stream.try_read(&mut [0; 64]);
        }
        let open = open_connections(&up).await.expect("a number");
        if open < 10 {
            assert!(open >= 1 && before > 10, "the viewer has a place: {open}");
            break;
        }
        assert!(Instant::now() < end, "{open} connections are still open");
    }
    let (_, text) = up.plain("/metrics").await.expect("answers");
    assert!(text.contains("\njobcell_viewers 1\n"), "{text}");
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel?force=true", id(&live)), None).await;
    up.ended(&live).await;
    drop((slow, viewer));
    up.stop().await;
}

#[tokio::test]
async fn what_is_too_large_or_too_deep_is_refused_at_once_and_costs_little() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let (http, url) = (client(), format!("{}/v1/jobs", up.url));
    let large =
        http.get(&url).bearer_auth(&up.key).header("x-large", "x".repeat(20 << 10)).send().await.expect("answers");
    assert_eq!(large.status().as_u16(), 431);
    let problem: Value = large.json().await.expect("is JSON");
    assert_eq!(problem["code"], "headers_too_large");
    let mut many = http.get(&url).bearer_auth(&up.key);
    for n in 0..300 {
        many = many.header(format!("x-{n}"), "y");
    }
    assert_eq!(many.send().await.expect("answers").status().as_u16(), 431);
    let long =
        http.get(format!("{url}?text={}", "x".repeat(20 << 10))).bearer_auth(&up.key).send().await.expect("answers");
    assert_eq!(long.status().as_u16(), 431);

    let warm = up.call(Method::POST, "/v1/jobs", Some(&json!({}))).await;
    assert_eq!(warm.status().as_u16(), 422);
    let before = resident(&up);
    let (deep, deeper) = ("[".repeat(10_000), format!("{}1{}", "{\"env\":".repeat(10_000), "}".repeat(10_000)));
    let mut bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (one, next) in "abcdefghijkl".chars().zip("bcdefghijklm".chars()) {
        let list = vec![format!("*{one}"); 9].join(",");
        let _ = writeln!(bomb, "{next}: &{next} [{list}]");
    }
    let script = |rest: &str| format!("{{\"preset\": \"bash\", \"script\": \"true\", {rest}}}");
    for (kind, body) in [
        ("application/json", deep),
        ("application/json", deeper),
        ("application/json", script("\"resources\": {\"cpu\": 1e308}")),
        ("application/json", script("\"resources\": {\"cpu\": 1e999}")),
        ("application/json", script("\"priority\": 1e308")),
        ("application/json", script("\"priority\": -99999999999999999999999999")),
        ("application/json", script("\"script\": \"false\"")),
        ("application/json", script("\"env\": {\"A\": \"1\", \"A\": \"2\"}")),
        ("application/json", "\"".to_owned()),
        ("application/json", "\u{0}".to_owned()),
        ("application/yaml", bomb),
        ("application/yaml", format!("preset: bash\nscript: true\nenv: {}", "[".repeat(10_000))),
        ("application/yaml", "- ".repeat(100_000)),
    ] {
        let shown: String = body.chars().take(60).collect();
        let begun = Instant::now();
        let sent = http.post(&url).bearer_auth(&up.key).header("content-type", kind).body(body).send().await;
        let answer = sent.unwrap_or_else(|error| panic!("{shown}: {error}"));
        let (status, took) = (answer.status().as_u16(), begun.elapsed());
        assert!(matches!(status, 400 | 422), "{shown}: {status}");
        assert!(took < Duration::from_secs(1), "{shown}: {took:?}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{shown}");
    }
    let grown = resident(&up).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    assert_eq!(up.get("/v1/jobs").await["jobs"], json!([]), "nothing was made");

    // A hundred megabytes: the first are read and thrown away, then the connection is cut.
    let body = vec![b' '; 100 << 20];
    match http.post(&url).bearer_auth(&up.key).body(body).send().await {
        Ok(answer) => assert_eq!(answer.status().as_u16(), 413),
        Err(error) => assert!(!error.is_timeout(), "{error}"),
    }
    let grown = resident(&up).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    assert!(livez(&up).await < Duration::from_millis(100));
    up.stop().await;
}

#[tokio::test]
async fn a_viewer_that_sends_frames_pings_or_fragments_without_end_is_cut_off_or_outlived() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let job = up.submit(&json!({"preset": "bash", "script": "echo begun; sleep 600"})).await;
    up.phase(&job, "running").await;
    let open = async || {
        let url = format!("{}/v1/jobs/{}/logs/live", up.url.replacen("http", "ws", 1), id(&job));
        let mut request = url.into_client_request().expect("a request");
        request.headers_mut().insert("authorization", format!("Bearer {}", up.key).parse().expect("a header"));
        let any = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let mut socket =
            tokio_tungstenite::connect_async_with_config(request, Some(any), false).await.expect("connects").0;
        let first = tokio::time::timeout(SOON, socket.next()).await.expect("comes in time");
        assert!(matches!(first, Some(Ok(Message::Binary(_)))), "{first:?}");
        socket
    };
    let before = resident(&up);
    // One frame of 16 MiB.
    let mut socket = open().await;
    let _ = socket.send(Message::Binary(vec![0; 16 << 20].into())).await;
    let ended = async {
        while let Some(Ok(message)) = socket.next().await {
            assert!(!matches!(message, Message::Pong(_)), "goes on");
        }
    };
    tokio::time::timeout(SOON, ended).await.expect("is cut off");
    // Fragments that never come to an end, with something in them and without.
    for piece in [1000, 0] {
        let mut socket = open().await;
        let mut sent =
            socket.send(Message::Frame(Frame::message(vec![0; piece], OpCode::Data(Data::Binary), false))).await;
        for _ in 0..20_000 {
            if sent.is_err() {
                break;
            }
            sent =
                socket.send(Message::Frame(Frame::message(vec![0; piece], OpCode::Data(Data::Continue), false))).await;
        }
        assert!(piece == 0 || sent.is_err(), "twenty megabytes were taken");
    }
    // Pings, as fast as they go, while nobody reads the answers.
    let mut socket = open().await;
    let flood = async {
        for _ in 0..50_000 {
            if socket.feed(Message::Ping(vec![1; 100].into())).await.is_err() {
                return;
            }
        }
        let _ = socket.flush().await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(10), flood).await;
    assert!(livez(&up).await < Duration::from_millis(100));
    let grown = resident(&up).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel?force=true", id(&job)), None).await;
    up.ended(&job).await;
    up.stop().await;
}

#[tokio::test]
async fn ten_thousand_wrong_keys_keep_no_good_one_out_and_each_is_counted() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let made = up.call(Method::POST, "/v1/keys", Some(&json!({"name": "web", "role": "read"}))).await;
    let good = made.json::<Value>().await.expect("JSON")["key"].as_str().expect("a key").to_owned();
    let (http, url) = (client(), format!("{}/v1/jobs?limit=1", up.url));
    let (mut unauthorized, mut limited) = (0, 0);
    for _ in 0..100 {
        let guess = |n: usize| {
            // As long as a good one, with most of it right.
            let key = format!("{}{n:02x}", &good[..good.len() - 2]);
            let key = if key == good { "x".to_owned() } else { key };
            let request = http.get(&url).bearer_auth(key);
            async move { request.send().await.expect("answers") }
        };
        let answers = futures_util::future::join_all((0..100).map(guess)).await;
        for answer in answers {
            match answer.status().as_u16() {
                401 => unauthorized += 1,
                429 => {
                    limited += 1;
                    assert!(answer.headers().contains_key("retry-after"));
                }
                other => panic!("{other}"),
            }
        }
        let answer = http.get(&url).bearer_auth(&good).send().await.expect("answers");
        assert_eq!(answer.status().as_u16(), 200, "the good key is let in from the same address");
    }
    assert!(unauthorized >= 200 && limited > 5000, "{unauthorized} and {limited}");
    let data = up.retire().await;
    let log = std::fs::read_to_string(data.path().join("data/audit.jsonl")).expect("is there");
    assert!(!log.contains(&good[4..40]), "a part of a key is in the log");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let refused: Vec<&Value> = lines.iter().filter(|line| line["outcome"] == "refused").collect();
    let all: u64 = refused.iter().map(|line| line["count"].as_u64().unwrap_or(1)).sum();
    assert_eq!(all, 10_000);
    assert!(refused.len() < 40, "{} lines", refused.len());
    assert!(lines.len() < 60 && lines.iter().any(|line| line["action"] == "key.add"), "nothing was pushed out");
}

#[tokio::test]
async fn a_key_has_a_rate_and_a_quota_that_change_at_once() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "agent: {slots: 1}").await;
    let add = async |name: &str| {
        let made = up.call(Method::POST, "/v1/keys", Some(&json!({"name": name, "role": "submit"}))).await;
        made.json::<Value>().await.expect("JSON")["key"].as_str().expect("a key").to_owned()
    };
    let (ci, web) = (add("ci").await, add("web").await);
    let http = client();
    let get = async |key: &str| http.get(format!("{}/v1/jobs", up.url)).bearer_auth(key).send().await.expect("answers");
    let limit = async |limits: Value| {
        let said = up.call(Method::PUT, "/v1/keys/ci/limits", Some(&limits)).await;
        assert_eq!(said.status().as_u16(), 200, "{limits}");
    };
    let first = get(&ci).await;
    assert_eq!(first.headers()["ratelimit-policy"], "\"key\";q=400;w=2");
    limit(json!({"rate": 1, "burst": 3})).await;
    let mut answers = Vec::new();
    for _ in 0..10 {
        answers.push(get(&ci).await);
    }
    let refused = answers.iter().filter(|answer| answer.status().as_u16() == 429).count();
    // One may still be missing from before, and some come back meanwhile.
    assert!((4..=8).contains(&refused), "{refused} of ten");
    let last = answers.pop().expect("ten");
    assert_eq!(last.status().as_u16(), 429);
    let header = |name: &str| last.headers()[name].to_str().expect("text").to_owned();
    assert_eq!((header("retry-after"), header("ratelimit-policy")), ("1".to_owned(), "\"key\";q=3;w=3".to_owned()));
    assert!(header("ratelimit").starts_with("\"key\";r=0;t="), "{}", header("ratelimit"));
    let problem: Value = last.json().await.expect("JSON");
    assert_eq!(problem["code"], "rate_limited");
    assert_eq!(get(&web).await.status().as_u16(), 200, "another key is not slowed down");
    assert!(up.call(Method::GET, "/v1/jobs", None).await.headers().get("ratelimit").is_none(), "admin.key has no rate");
    for bad in [json!({"burst": 0}), json!({"rte": 1}), json!({"rate": -1}), json!({"jobs": 1e20})] {
        assert_eq!(up.call(Method::PUT, "/v1/keys/ci/limits", Some(&bad)).await.status().as_u16(), 400, "{bad}");
    }
    assert_eq!(up.call(Method::PUT, "/v1/keys/none/limits", Some(&json!({}))).await.status().as_u16(), 404);

    // The settings may say another number for all keys while the server runs.
    std::fs::write(up.dir.path().join("config.new"), "agent: {slots: 1}\nlimits: {burst: 7}").expect("writes");
    std::fs::rename(up.dir.path().join("config.new"), up.dir.path().join("config.yaml")).expect("renames");
    up.signal("-HUP");
    until("the other burst", || async {
        (get(&web).await.headers()["ratelimit-policy"] == "\"key\";q=7;w=1").then_some(())
    })
    .await;
    std::fs::write(up.dir.path().join("config.yaml"), "agent: {slots: 1}").expect("writes");
    up.signal("-HUP");

    // Two jobs at a time, whatever their state.
    limit(json!({"jobs": 2})).await;
    let waits = json!({"preset": "bash", "script": "sleep 600"});
    let submit = async |path: &str, body: &Value| {
        let sent = http.post(format!("{}{path}", up.url)).bearer_auth(&ci).json(body).send().await.expect("answers");
        (sent.status().as_u16(), sent.json::<Value>().await.expect("JSON"))
    };
    let (status, one) = submit("/v1/jobs", &waits).await;
    assert_eq!(status, 201);
    let (status, said) = submit("/v1/jobs/bulk", &json!([waits, waits])).await;
    assert_eq!((status, said["code"].as_str()), (429, Some("quota_full")), "all or none: {said}");
    let (status, said) = submit("/v1/jobs/bulk?partial=true", &json!([waits, waits])).await;
    assert_eq!((status, &said["created"], &said["refused"]), (201, &json!(1), &json!(1)), "{said}");
    let (status, said) = submit("/v1/jobs", &waits).await;
    assert_eq!((status, said["code"].as_str()), (429, Some("quota_full")), "{said}");
    up.submit(&json!({"preset": "bash", "script": "true"})).await;
    up.call(Method::POST, &format!("/v1/jobs/{}/cancel?force=true", id(&one)), None).await;
    up.ended(&one).await;
    assert_eq!(submit("/v1/jobs", &waits).await.0, 201, "an end makes room");
    limit(json!({})).await;
    assert_eq!(submit("/v1/jobs", &waits).await.0, 201);
    up.call(
        Method::POST,
        "/v1/jobs/bulk-cancel?force=true",
        Some(&json!({"state": ["queued", "running", "claimed", "preparing"]})),
    )
    .await;
    until("all ends", || async {
        let open = up.get("/v1/jobs?state=queued,claimed,preparing,running,finishing").await;
        open["jobs"].as_array().expect("a list").is_empty().then_some(())
    })
    .await;
    up.stop().await;
}

#[tokio::test]
async fn pages_of_named_origins_may_ask_and_no_others_and_answers_say_what_browsers_leave_alone() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "server: {cors_origins: ['https://ci.example.com']}").await;
    let http = client();
    let ask = async |origin: &str| {
        let asks = http.request(Method::OPTIONS, format!("{}/v1/jobs", up.url)).header("origin", origin);
        asks.header("access-control-request-method", "POST").send().await.expect("answers")
    };
    let good = ask("https://ci.example.com").await;
    assert_eq!(
        (good.status().as_u16(), good.headers()["access-control-allow-origin"].to_str().ok()),
        (204, Some("https://ci.example.com"))
    );
    assert!(good.headers()["access-control-allow-headers"].to_str().is_ok_and(|names| names.contains("Authorization")));
    assert!(!good.headers().contains_key("access-control-allow-credentials"));
    for foreign in ["https://evil.example", "https://ci.example.com.evil.example", "null", "https://CI.example.com"] {
        let answer = ask(foreign).await;
        assert!(!answer.headers().contains_key("access-control-allow-origin"), "{foreign}");
        assert_eq!(answer.headers()["vary"], "Origin", "{foreign}");
    }
    let read =
        up.request(Method::GET, "/v1/jobs").header("origin", "https://ci.example.com").send().await.expect("answers");
    assert_eq!(read.headers()["access-control-allow-origin"], "https://ci.example.com");
    let refused = http
        .get(format!("{}/v1/jobs", up.url))
        .header("origin", "https://ci.example.com")
        .send()
        .await
        .expect("answers");
    assert_eq!(
        (refused.status().as_u16(), refused.headers()["access-control-allow-origin"].to_str().ok()),
        (401, Some("https://ci.example.com")),
        "the page can read why"
    );
    let job = up.run(&json!({"preset": "bash", "script": "true"})).await;
    let events = format!("/v1/jobs/{}/logs/events", id(&job));
    for (origin, status) in [("https://ci.example.com", 200), ("https://evil.example", 403)] {
        let answer = up.request(Method::GET, &events).header("origin", origin).send().await.expect("answers");
        assert_eq!(answer.status().as_u16(), status, "{origin}");
    }
    for path in ["/livez", "/v1/jobs", "/docs", "/nothing", &events] {
        let answer = up.call(Method::GET, path, None).await;
        let header =
            |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("none").to_owned();
        assert_eq!(
            (header("x-content-type-options"), header("x-frame-options")),
            ("nosniff".into(), "DENY".into()),
            "{path}"
        );
        assert!(header("content-security-policy").contains("default-src 'none'"), "{path}");
        assert!(
            ["no-store", "no-cache"].contains(&header("cache-control").as_str()),
            "{path}: {}",
            header("cache-control")
        );
    }
    up.stop().await;
}

#[tokio::test]
async fn what_jobs_are_called_injects_nothing_into_lists_and_metrics() {
    let Some(host) = engine() else { return };
    let up = Up::start(&host, "").await;
    let evil = "x\"} 1\njobcell_evil{a=\"";
    let mut spec =
        json!({"preset": "bash", "script": "true", "name": "=cmd|'/c calc'!A1", "labels": {"team": "a,\"b\";c"}});
    up.run(&spec).await;
    for field in ["name", "labels"] {
        spec[field] = if field == "name" { json!(evil) } else { json!({"team": evil}) };
        let answer = up.call(Method::POST, "/v1/jobs?wait=60s", Some(&spec)).await;
        assert!(matches!(answer.status().as_u16(), 201 | 422), "{field}");
    }
    let jobs = up.get("/v1/jobs").await["jobs"].as_array().expect("a list").len();
    let lines =
        up.request(Method::GET, "/v1/jobs").header("accept", "application/x-ndjson").send().await.expect("answers");
    let lines = lines.text().await.expect("reads");
    assert_eq!(
        lines.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok_and(|line| line.is_object())).count(),
        jobs,
        "{lines}"
    );
    let path = format!("/v1/{}", "%22%7D%201%0Ajobcell_evil%201");
    up.plain(&path).await.expect("answers");
    let (_, metrics) = up.plain("/metrics").await.expect("answers");
    assert!(!metrics.contains("evil"), "{metrics}");
    up.stop().await;
}
