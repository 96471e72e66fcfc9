//! The door without a cell: what a warden that does not keep to what was agreed gets, and what becomes of streams.

use super::{Door, EgressSettings, Out, Outside};
use crate::job::{AttemptId, JobId, JobSpec, SpecRules, UnixMillis};
use crate::protocol::wire::{EGRESS_WINDOW, Egress, EgressFault};
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

fn door(settings: EgressSettings) -> Door {
    door_to("127.0.0.1:1-65535", &Outside::new(settings))
}

fn door_to(rule: &str, outside: &Outside) -> Door {
    let document = json!({"image": "x", "command": ["x"], "egress": {"allow": [rule]}});
    let spec = JobSpec::check(&document, &SpecRules::default()).expect("valid");
    let attempt = AttemptId::new(JobId::new(UnixMillis::now()), 1);
    Door::of(attempt, &spec, outside).expect("it asks for one")
}

fn open(stream: u32, port: u16, credit: u32) -> Egress {
    Egress::Open { stream, host: "127.0.0.1".into(), port, credit }
}

async fn next(door: &mut Door) -> Out {
    timeout(PATIENCE, door.next()).await.expect("it comes")
}

async fn word(door: &mut Door) -> Egress {
    match next(door).await {
        Out::Word(word) => word,
        Out::Data(stream, bytes) => panic!("{} bytes of {stream}", bytes.len()),
    }
}

async fn opened(door: &mut Door, listener: &TcpListener, stream: u32, credit: u32) -> TcpStream {
    door.take(open(stream, listener.local_addr().expect("bound").port(), credit)).expect("is taken");
    assert!(matches!(word(door).await, Egress::Opened { stream: one, .. } if one == stream));
    timeout(PATIENCE, listener.accept()).await.expect("it comes").expect("accepts").0
}

#[tokio::test]
async fn a_server_is_read_as_far_as_the_cell_takes_it() {
    let (listener, _) = listener().await;
    let mut door = door(EgressSettings::default());
    let mut server = opened(&mut door, &listener, 1, 1000).await;
    server.write_all(&[7; 5000]).await.expect("writes");
    let mut got = 0;
    while got < 1000 {
        let Out::Data(1, bytes) = next(&mut door).await else { panic!("data was to come") };
        got += bytes.len();
    }
    assert_eq!(got, 1000);
    assert!(timeout(Duration::from_millis(100), door.next()).await.is_err(), "without credit nothing comes");
    door.take(Egress::Credit { stream: 1, bytes: 100_000 }).expect("is taken");
    server.shutdown().await.expect("ends");
    loop {
        match next(&mut door).await {
            Out::Data(1, bytes) => got += bytes.len(),
            Out::Word(Egress::Eof { stream: 1 }) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((got, door.told().bytes_in), (5000, 5000));
}

#[tokio::test]
async fn what_a_cell_says_goes_out_and_is_credited_when_it_is_written() {
    let (listener, _) = listener().await;
    let mut door = door(EgressSettings::default());
    let mut server = opened(&mut door, &listener, 256, 10).await;
    let (mut stream, mut all) = (0, 0);
    // What was written, and as much as the window grows by while the server takes all at once: it doubles.
    for (part, credit) in [(50_000, 50_000 + 64 * 1024), (20_000, 70_000 + (64 + 128) * 1024)] {
        door.take(Egress::Data { stream: 256, bytes: vec![1; part] }).expect("is taken");
        while stream < credit || (part == 20_000 && all < 70_000) {
            match word(&mut door).await {
                Egress::Credit { stream: 0, bytes } => all += bytes,
                Egress::Credit { stream: 256, bytes } => stream += bytes,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(stream, credit);
    }
    door.take(Egress::Eof { stream: 256 }).expect("is taken");
    let mut got = Vec::new();
    tokio::select! {
        read = server.read_to_end(&mut got) => drop(read.expect("reads")),
        out = door.next() => panic!("{out:?}"),
    }
    assert_eq!((got.len(), door.told().bytes_out), (70_000, 70_000));
}

#[tokio::test]
async fn a_warden_that_does_not_keep_to_it_is_told_on() {
    let (listener, port) = listener().await;
    for bad in [
        vec![open(0, port, 1)],
        vec![open(1, port, u32::MAX)],
        vec![open(1, port, 1), open(1, port, 1)],
        vec![Egress::Opened { stream: 1, credit: 1 }],
        vec![Egress::Failed { stream: 1, fault: EgressFault::Late, text: String::new() }],
        vec![Egress::Data { stream: 9, bytes: vec![0; EGRESS_WINDOW as usize + 1] }],
        vec![open(1, port, 1), Egress::Data { stream: 1, bytes: vec![0; 200_000] }],
        vec![open(1, port, 1), Egress::Eof { stream: 1 }, Egress::Data { stream: 1, bytes: vec![0] }],
        vec![open(1, port, 1 << 20), Egress::Credit { stream: 1, bytes: u32::MAX }],
    ] {
        let mut door = door(EgressSettings::default());
        let (last, first) = bad.split_last().expect("one");
        for message in first {
            door.take(message.clone()).expect("is taken");
        }
        assert!(door.take(last.clone()).is_err(), "{bad:?}");
    }
    // What is of a stream that is over is nobody's.
    let mut door = door(EgressSettings::default());
    for late in [Egress::Credit { stream: 5, bytes: u32::MAX }, Egress::Eof { stream: 5 }, Egress::Reset { stream: 5 }]
    {
        door.take(late).expect("is passed over");
    }
    drop(listener);
}

#[tokio::test]
async fn no_more_streams_than_the_settings_say_and_the_link_takes_all_with_it() {
    let (listener, port) = listener().await;
    let mut door = door(EgressSettings { concurrent: 1, ..EgressSettings::default() });
    let mut first = opened(&mut door, &listener, 1, 10).await;
    let _second = opened(&mut door, &listener, 2, 10).await;
    door.take(open(3, port, 10)).expect("is taken");
    assert!(matches!(word(&mut door).await, Egress::Failed { stream: 3, fault: EgressFault::Limit, .. }));
    assert_eq!(door.told().refusals[0].code, "too_many_at_once");
    door.reset();
    let mut rest = Vec::new();
    let ended = timeout(PATIENCE, first.read_to_end(&mut rest)).await.expect("its end is seen");
    assert!(ended.is_err() || rest.is_empty());
    let _ = opened(&mut door, &listener, 1, 10).await;
    assert_eq!(door.told().connections, 3);
}

#[tokio::test]
async fn what_does_not_answer_and_what_does_not_move_is_given_up() {
    let (listener, port) = listener().await;
    let mut door = door(EgressSettings {
        idle_timeout: Duration::from_millis(200),
        connect_timeout: Duration::from_secs(5),
        ..EgressSettings::default()
    });
    let _server = opened(&mut door, &listener, 1, 10).await;
    assert_eq!(word(&mut door).await, Egress::Reset { stream: 1 });
    drop(listener);
    door.take(open(2, port, 10)).expect("is taken");
    assert!(matches!(word(&mut door).await, Egress::Failed { stream: 2, fault: EgressFault::NoAnswer, .. }));
    let codes: Vec<String> = door.told().refusals.into_iter().map(|one| one.code).collect();
    assert_eq!(codes, ["idle", "unreachable"]);
}

#[tokio::test]
async fn names_that_nobody_answers_for_hold_up_their_own_job_only() {
    let server = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let resolver = Some(server.local_addr().expect("bound"));
    let answers = async {
        let mut question = [0; 512];
        loop {
            let (count, from) = server.recv_from(&mut question).await.expect("receives");
            if question[..count].windows(5).any(|part| part == b"quick") {
                // A response, and no such name.
                (question[2], question[3]) = (question[2] | 0x80, 3);
                server.send_to(&question[..count], from).await.expect("sends");
            }
        }
    };
    let outside = Outside::new(EgressSettings { resolver, ..EgressSettings::default() });
    let (mut slow, mut quick) = (door_to("*.slow.example:1", &outside), door_to("quick.example:1", &outside));
    for n in 0..40 {
        let name = format!("h{n}.slow.example");
        slow.take(Egress::Open { stream: 256 + n, host: name, port: 1, credit: 1 }).expect("is taken");
    }
    let found = async {
        quick.take(Egress::Open { stream: 1, host: "quick.example".into(), port: 1, credit: 1 }).expect("is taken");
        word(&mut quick).await
    };
    let found = tokio::select! {
        biased;
        _ = slow.next() => panic!("nobody answers for these"),
        () = answers => unreachable!("it goes on"),
        found = found => found,
    };
    assert!(matches!(found, Egress::Failed { fault: EgressFault::NoName, .. }), "{found:?}");
}

#[tokio::test]
async fn refusals_are_counted_and_the_list_of_them_is_bounded() {
    let mut door = door(EgressSettings::default());
    for n in 0..200 {
        door.take(Egress::Open { stream: 256 + n, host: format!("h{}.example", n % 100), port: 1, credit: 1 })
            .expect("is taken");
        assert!(matches!(word(&mut door).await, Egress::Failed { fault: EgressFault::Refused, .. }));
    }
    let told = door.told();
    assert_eq!((told.refused, told.refusals.len(), told.refusals[0].times), (200, 64, 2));
}

/// Of a name, not of an address: who may reach an address may say there what he likes.
#[tokio::test]
async fn inside_tls_only_hosts_that_are_allowed_are_asked_for() {
    let (listener, port) = listener().await;
    let document = json!({"image": "x", "command": ["x"], "egress": {"allow": ["localhost:1-65535", "127.0.0.1:1-65535", "[::1]:1-65535"]}});
    let spec = JobSpec::check(&document, &SpecRules::default()).expect("valid");
    let attempt = AttemptId::new(JobId::new(UnixMillis::now()), 1);
    let mut door = Door::of(attempt, &spec, &Outside::default()).expect("it asks for one");
    let hello = super::hello::tests::client;
    // Kept to the end: that a server goes is told too.
    let mut servers = Vec::new();
    for (stream, host, says) in
        [(1, "localhost", "localhost"), (2, "localhost", "evil.example"), (3, "127.0.0.1", "evil.example")]
    {
        door.take(Egress::Open { stream, host: host.into(), port, credit: 10 }).expect("is taken");
        assert!(matches!(word(&mut door).await, Egress::Opened { .. }));
        let (mut server, _) = listener.accept().await.expect("accepts");
        let whole = hello(says);
        let (first, second) = whole.split_at(30);
        for part in [first, second] {
            door.take(Egress::Data { stream, bytes: part.to_vec() }).expect("is taken");
        }
        let said = word(&mut door).await;
        if stream == 2 {
            assert_eq!(said, Egress::Reset { stream });
            let mut got = Vec::new();
            let _ = server.read_to_end(&mut got).await;
            assert!(got.is_empty(), "nothing of it went out");
        } else {
            assert!(matches!(said, Egress::Credit { .. }), "{said:?}");
            let mut got = vec![0; whole.len()];
            server.read_exact(&mut got).await.expect("reads");
            assert_eq!(got, whole);
            servers.push(server);
        }
    }
    let told = door.told();
    assert_eq!(
        (told.refused, told.refusals[0].code.as_str(), told.refusals[0].host.as_str()),
        (1, "other_name", "localhost")
    );
    assert!(told.refusals[0].reason.contains("`evil.example`"));
}
