//! The proxy with real sockets, and the test in the agent's place.

use super::*;
use crate::wire::Decoder;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

struct Stage {
    egress: Egress,
    decoder: Decoder,
}

impl Stage {
    fn new(connections: u16) -> Self {
        Self { egress: Egress::start(connections).expect("listens"), decoder: Decoder::new() }
    }

    fn client(&self) -> TcpStream {
        let client = TcpStream::connect(("127.0.0.1", self.egress.port)).expect("connects");
        client.set_read_timeout(Some(Duration::from_secs(10))).expect("is set");
        client
    }

    /// One turn of the loop.
    fn turn(&mut self) {
        let now = sys::boot_ns();
        let mut fds = Vec::new();
        self.egress.poll_entries(now, &mut fds);
        sys::poll(&mut fds, Some(1_000_000));
        self.egress.turn(&fds, now);
    }

    /// What the agent is told next.
    fn told(&mut self) -> Message {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if let Some(frame) = self.decoder.next() {
                match FromWarden::decode(&frame) {
                    Ok(FromWarden::Egress(message)) => return message,
                    other => panic!("{other:?}"),
                }
            }
            self.turn();
            let mut out = Vec::new();
            self.egress.frame(1, &mut out);
            self.decoder.feed(&out);
        }
        panic!("nothing is told");
    }

    /// A client whose stream is open.
    fn opened(&mut self, credit: u32) -> (TcpStream, u32, u32) {
        let mut client = self.client();
        client.write_all(b"CONNECT a.example:443 HTTP/1.1\r\n\r\n").expect("writes");
        let Message::Open { stream, host, port, credit: window } = self.told() else { panic!("it was to be opened") };
        assert_eq!((host.as_str(), port), ("a.example", 443));
        self.egress.obey(Message::Opened { stream, credit });
        let mut answer = [0; 39];
        client.read_exact(&mut answer).expect("is answered");
        assert!(answer.starts_with(b"HTTP/1.1 200 "));
        (client, stream, window)
    }
}

#[test]
fn bytes_go_both_ways_and_ends_are_told_by_halves() {
    let mut stage = Stage::new(4);
    let (mut client, stream, _) = stage.opened(5);
    client.write_all(b"hello there").expect("writes");
    assert_eq!(stage.told(), Message::Data { stream, bytes: b"hello".to_vec() }, "as far as the credit goes");
    stage.egress.obey(Message::Credit { stream, bytes: 100 });
    assert_eq!(stage.told(), Message::Data { stream, bytes: b" there".to_vec() });
    client.shutdown(Shutdown::Write).expect("ends");
    assert_eq!(stage.told(), Message::Eof { stream });
    stage.egress.obey(Message::Data { stream, bytes: b"and back".to_vec() });
    stage.egress.obey(Message::Eof { stream });
    let mut all = String::new();
    client.read_to_string(&mut all).expect("reads");
    assert_eq!(all, "and back");
    assert!(
        stage.egress.conns.iter().all(Option::is_none)
            && stage.egress.common == COMMON_BYTES
            && stage.egress.heads == 0
    );
}

#[test]
fn what_may_be_under_way_together_has_a_bound() {
    let mut stage = Stage::new(4);
    let (mut client, stream, _) = stage.opened(u32::MAX);
    let writer = std::thread::spawn(move || {
        let _ = client.write_all(&vec![7; 1 << 20]);
        client
    });
    let mut got = 0;
    while got < EGRESS_WINDOW as usize {
        let Message::Data { bytes, .. } = stage.told() else { panic!("data was to come") };
        got += bytes.len();
    }
    assert_eq!(got, EGRESS_WINDOW as usize);
    for _ in 0..20 {
        stage.turn();
        assert!(!stage.egress.has_frame());
    }
    stage.egress.obey(Message::Credit { stream: ALL_STREAMS, bytes: 1000 });
    let Message::Data { bytes, .. } = stage.told() else { panic!("data was to come") };
    assert_eq!(bytes.len(), 1000);
    stage.egress.obey(Message::Reset { stream });
    assert!(writer.join().expect("ends").read(&mut [0]).is_err(), "it was cut off");
}

#[test]
fn refusals_are_told_in_the_clients_own_words() {
    let mut stage = Stage::new(4);
    for (asks, wanted) in [
        (&b"CONNECT a:1 HTTP/1.1\r\n\r\n"[..], &b"HTTP/1.1 403 Forbidden"[..]),
        (b"GET http://a/ HTTP/1.1\r\n\r\n", b"HTTP/1.1 403 Forbidden"),
    ] {
        let mut client = stage.client();
        client.write_all(asks).expect("writes");
        let Message::Open { stream, .. } = stage.told() else { panic!("it was to be opened") };
        stage.egress.obey(Message::Failed { stream, fault: EgressFault::Refused, text: "not\r\nX: this".into() });
        let mut all = Vec::new();
        client.read_to_end(&mut all).expect("reads");
        assert!(all.starts_with(wanted), "{}", String::from_utf8_lossy(&all));
        assert!(String::from_utf8_lossy(&all).ends_with("\r\n\r\njobcell: not  X: this\n"));
        drop(client);
        stage.turn();
    }
    let mut client = stage.client();
    client.write_all(b"\x05\x01\x00").expect("writes");
    let mut answer = [0; 2];
    while stage.egress.conns.iter().flatten().next().is_none_or(|conn| conn.state == State::Head { greeted: false }) {
        stage.turn();
    }
    client.read_exact(&mut answer).expect("reads");
    client.write_all(b"\x05\x01\x00\x03\x01a\x00\x01").expect("writes");
    let Message::Open { stream, host, port, .. } = stage.told() else { panic!("it was to be opened") };
    assert_eq!((answer, host.as_str(), port), ([5, 0], "a", 1));
    stage.egress.obey(Message::Failed { stream, fault: EgressFault::Refused, text: String::new() });
    let mut answer = [0; 10];
    client.read_exact(&mut answer).expect("reads");
    assert_eq!(answer[..2], [5, 2]);
}

#[test]
fn a_new_session_cuts_off_what_was_carried_and_asks_again_for_what_waits() {
    let mut stage = Stage::new(4);
    let (mut open, ..) = stage.opened(10);
    let mut waits = stage.client();
    waits.write_all(b"CONNECT b:2 HTTP/1.1\r\n\r\n").expect("writes");
    let first = stage.told();
    stage.egress.begin();
    assert!(open.read(&mut [0]).is_err(), "it was cut off");
    assert_eq!(stage.told(), first, "asked again");
}

#[test]
fn more_clients_than_places_wait_and_each_has_its_turn() {
    let mut stage = Stage::new(2);
    let mut clients: Vec<TcpStream> = (0..6).map(|_| stage.client()).collect();
    for client in &mut clients {
        client.write_all(b"CONNECT a:1 HTTP/1.1\r\n\r\n").expect("writes");
    }
    for _ in 0..6 {
        let Message::Open { stream, .. } = stage.told() else { panic!("it was to be opened") };
        assert!(stage.egress.conns.iter().flatten().count() <= 2);
        stage.egress.obey(Message::Opened { stream, credit: 1 });
        stage.egress.obey(Message::Reset { stream });
    }
}

#[test]
fn an_agent_that_sends_more_than_it_may_loses_the_stream_and_nothing_else() {
    let mut stage = Stage::new(2);
    let (_client, stream, window) = stage.opened(1);
    stage.egress.obey(Message::Data { stream, bytes: vec![0; window as usize + 1] });
    assert_eq!(stage.told(), Message::Reset { stream });
    for message in [
        Message::Data { stream: 77, bytes: vec![1] },
        Message::Opened { stream: 0, credit: 1 },
        Message::Eof { stream: u32::MAX },
        Message::Credit { stream: ALL_STREAMS, bytes: u32::MAX },
    ] {
        stage.egress.obey(message);
    }
    assert_eq!(stage.egress.credit, EGRESS_WINDOW);
    stage.opened(1);
}
