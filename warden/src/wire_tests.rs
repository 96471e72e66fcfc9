//! Round trips, and every way in which a stream can be torn.

use super::*;
use crate::crc::{crc32c, crc32c_append};

/// A small generator, so that the warden's tests need nothing but the standard library.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
}

fn to_warden() -> Vec<ToWarden> {
    vec![
        ToWarden::Attach { min_version: 1, max_version: 1, attempt: "a/1/0".into(), stored: 7, window: 4096 },
        ToWarden::SpecChunk { section: 1, offset: 32, bytes: vec![1, 2, 3] },
        ToWarden::commit(b"head", b"", b"stdin"),
        ToWarden::Ack { seq: u64::MAX },
        ToWarden::Stop { level: 1, reason: 5, grace_ms: 100 },
        ToWarden::Ping { nonce: 9 },
        ToWarden::Lease { remaining_ms: 60_000 },
        ToWarden::Close,
        ToWarden::Inputs { root: "/workspace".into() },
        ToWarden::InputsPart { offset: 1 << 40, bytes: vec![1, 2, 3] },
        ToWarden::List { from: 7 },
        ToWarden::Read { number: 1, offset: 2, len: 3, path: b"a/\xff".to_vec() },
    ]
    .into_iter()
    .chain(egress().into_iter().map(ToWarden::Egress))
    .collect()
}

fn egress() -> Vec<Egress> {
    vec![
        Egress::Open { stream: 256, host: "a.example".into(), port: 443, credit: 8192 },
        Egress::Opened { stream: 256, credit: 1 },
        Egress::Failed { stream: 256, fault: EgressFault::Late, text: "why".into() },
        Egress::Data { stream: 256, bytes: vec![0xC3, 0x4A, 0x43, 0x9B] },
        Egress::Data { stream: 256, bytes: Vec::new() },
        Egress::Eof { stream: 256 },
        Egress::Reset { stream: u32::MAX },
        Egress::Credit { stream: ALL_STREAMS, bytes: u32::MAX },
    ]
}

fn from_warden() -> Vec<FromWarden> {
    let exit = Exit {
        last_seq: 3,
        kind: ExitKind::StartFailed,
        code: -2,
        step: "interpreter".into(),
        stop_reason: 0,
        started_us: 1,
        ended_us: 2,
        wall_ms: 3,
        utime_us: 4,
        stime_us: 5,
        max_rss_bytes: 6,
        peak_memory_bytes: 7,
        oom_kills: 8,
        peak_pids: 9,
        stdout_bytes: 10,
        stderr_bytes: 11,
        leftover: 12,
        on_cancel: Some(CleanUp { kind: ExitKind::Signaled, code: 9 }),
        met: vec![Met { name: "pids".into(), limit: 12, peak: 11, times: 3 }],
        results: None,
    };
    let advance = Advance {
        percent: 40,
        text: "half".into(),
        time_us: 5,
        steps: vec![StepMark { name: "build".into(), began_us: 1, ended_us: 0 }],
        ignored: 2,
    };
    let results = Results { outputs: b"a=1\n".to_vec(), outputs_bytes: 4, outputs_error: 13, advance: advance.clone() };
    let stamp = Stamp { size: 1, mtime_ns: 2, inode: 3 };
    let entry = Entry { kind: EntryKind::Link, rules: 5, mode: 0o755, stamp, path: b"a/\xff".to_vec() };
    let piece = Piece { number: 1, offset: 2, error: 5, last: true, stamp, bytes: vec![0xC3, 0x4A] };
    let mismatch = Mismatch { key: "uid".into(), wanted: "1".into(), got: "0".into() };
    vec![
        FromWarden::Hello {
            version: 1,
            build: "x".into(),
            attempt: String::new(),
            state: WardenState::Ended,
            next_seq: 1,
            receipt: vec![("uid".into(), "200000".into())],
        },
        FromWarden::Refused { mismatches: vec![mismatch] },
        FromWarden::Started { pid: 7, time_us: 8 },
        FromWarden::Output { stream: 2, time_us: 5, bytes: vec![0xC3, 0x4A, 0x43, 0x9B, 0, 255] },
        FromWarden::Exit(Exit { on_cancel: None, met: Vec::new(), ..exit.clone() }),
        FromWarden::Exit(Exit { on_cancel: None, ..exit.clone() }),
        FromWarden::Exit(Exit { met: Vec::new(), ..exit.clone() }),
        FromWarden::Exit(Exit { results: Some(results.clone()), on_cancel: None, met: Vec::new(), ..exit.clone() }),
        FromWarden::Exit(Exit { results: Some(results), ..exit.clone() }),
        FromWarden::Exit(exit),
        FromWarden::Advance(advance),
        FromWarden::Page(Page { from: 3, entries: vec![entry], end: true }),
        FromWarden::Piece(piece),
        FromWarden::Pong { nonce: 1, stalled: 1 },
        FromWarden::Fault { text: "x".into() },
        FromWarden::InputsTaken { offset: 1 << 40 },
    ]
    .into_iter()
    .chain(egress().into_iter().map(FromWarden::Egress))
    .collect()
}

#[test]
fn messages_round_trip() {
    let (mut decoder, mut out) = (Decoder::new(), Vec::new());
    for message in to_warden() {
        message.encode(3, &mut out);
        decoder.feed(&out);
        out.clear();
        let frame = decoder.next().expect("a frame");
        assert_eq!((frame.epoch, ToWarden::decode(&frame)), (3, Ok(message)));
    }
    for message in from_warden() {
        message.encode(4, 11, &mut out);
        decoder.feed(&out);
        out.clear();
        let frame = decoder.next().expect("a frame");
        assert_eq!((frame.epoch, frame.seq, FromWarden::decode(&frame)), (4, 11, Ok(message)));
    }
    assert_eq!(decoder.skipped(), 0);
}

#[test]
fn the_spec_round_trips() {
    let spec = CellSpec {
        attempt: "a/1/0".into(),
        argv: vec!["/bin/sh".into(), "{script}".into()],
        env: vec![(b"A".to_vec(), b"\xff".to_vec())],
        inherit_env: vec!["*".into()],
        cwd: "/".into(),
        script_path: "/workspace/x".into(),
        wall_timeout_ms: 1,
        grace_ms: 2,
        lease_ms: 3,
        rlimits: vec![Rlimit { resource: 7, soft: 1, hard: 2 }],
        output_pipe_bytes: 4,
        expect: vec![Expect::eq("uid", "1"), Expect::at_most("m", 5), Expect::one_of("t", "a,b")],
        silence_ms: 5,
        on_cancel: vec!["rm".into()],
        on_cancel_ms: 6,
        drop_output: true,
        tripwire: true,
        output_limit: 1 << 30,
        secrets: vec![Secret { name: "TOKEN".into(), value: b"\xffhunter2".to_vec(), file: true }],
        cut_output: true,
        collect: None,
        egress_connections: 0,
        inputs: Some(InputTotals { entries: 3, bytes: 1 << 40, sum: 7 }),
        limits: GroupLimits::default(),
    };
    let mut bytes = Vec::new();
    spec.encode(&mut bytes);
    assert_eq!(CellSpec::decode(&bytes), Ok(spec.clone()));
    // Its parts are behind what is always there.
    let mut always = Vec::new();
    CellSpec { secrets: Vec::new(), inputs: None, ..spec.clone() }.encode(&mut always);
    let mut inputs = Vec::new();
    CellSpec { secrets: Vec::new(), ..spec.clone() }.encode(&mut inputs);
    assert!(bytes.starts_with(&always) && bytes.starts_with(&inputs));
    for cut in 0..bytes.len() {
        assert_eq!(CellSpec::decode(&bytes[..cut]).is_ok(), cut == always.len() || cut == inputs.len());
    }
    let secret = format!("{spec:?}");
    assert!(secret.contains("TOKEN") && !secret.contains("hunter2") && !secret.contains("104, 117"), "{secret}");
    for unknown in [&[99, 0, 0, 0, 0][..], &bytes[always.len()..inputs.len()], &bytes[inputs.len()..]] {
        assert!(CellSpec::decode(&[&bytes[..], unknown].concat()).is_err(), "{unknown:?}");
    }

    // And one more, only where there is something to say.
    let plain = bytes.len();
    let spec = CellSpec { egress_connections: 256, ..spec };
    bytes.clear();
    spec.encode(&mut bytes);
    assert_eq!(CellSpec::decode(&bytes), Ok(spec));
    for cut in plain + 1..bytes.len() {
        assert!(CellSpec::decode(&bytes[..cut]).is_err());
    }
    // The first of them.
    let collect = Some(Collect { root: "/workspace".into(), rules: vec!["**/*.xml".into()] });
    let spec = CellSpec { collect, ..CellSpec::decode(&bytes).expect("reads back") };
    bytes.clear();
    spec.encode(&mut bytes);
    assert_eq!(CellSpec::decode(&bytes).as_ref(), Ok(&spec));
    // The last of them.
    let plain = bytes.len();
    let limits = GroupLimits { memory_bytes: 1 << 40, pids: 3, cpu_milli: 1500 };
    let spec = CellSpec { limits, ..spec };
    assert!(
        limits.asked().eq(["memory", "pids", "cpu"]) && GroupLimits { pids: 0, ..limits }.asked().eq(["memory", "cpu"])
    );
    bytes.clear();
    spec.encode(&mut bytes);
    for cut in plain + 1..bytes.len() {
        assert!(CellSpec::decode(&bytes[..cut]).is_err());
    }
    bytes.clear();
    spec.encode(&mut bytes);
    assert_eq!(CellSpec::decode(&bytes), Ok(spec));
}

#[test]
fn a_piece_is_the_same_frame_by_either_way() {
    for from_warden in [false, true] {
        let (mut one, mut other) = (Vec::new(), Vec::new());
        let message = Egress::Data { stream: 7, bytes: vec![3; EGRESS_PIECE] };
        match from_warden {
            true => FromWarden::Egress(message).encode(5, 0, &mut one),
            false => ToWarden::Egress(message).encode(5, &mut one),
        }
        egress_data(from_warden, 7, &vec![3; EGRESS_PIECE], 5, &mut other);
        assert_eq!(one, other);
    }
}

/// Bit by bit, as the standard has it.
fn castagnoli(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    let bit = |state: u32, _| if state & 1 == 1 { state >> 1 ^ POLYNOMIAL } else { state >> 1 };
    !bytes.iter().fold(!0, |state, byte| (0..8).fold(state ^ u32::from(*byte), bit))
}

#[test]
fn the_checksum_is_castagnoli_at_every_length_and_in_any_parts() {
    assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
    let bytes: Vec<u8> = (0..20_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 21) as u8).collect();
    for length in [0, 1, 7, 8, 9, 63, 1000, 4096, 4097, bytes.len()] {
        let part = &bytes[..length];
        assert_eq!(crc32c(part), castagnoli(part), "{length} bytes");
        for at in [0, length / 3, length / 2, length] {
            let (first, rest) = part.split_at(at);
            assert_eq!(crc32c_append(crc32c(first), rest), castagnoli(part), "{length} bytes, cut at {at}");
        }
    }
}

#[test]
fn frames_survive_any_split_and_any_garbage_between_them() {
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
    for _ in 0..200 {
        let mut stream = Vec::new();
        let mut wanted = Vec::new();
        for seq in 1..=20u64 {
            if dice.roll(3) == 0 {
                // Garbage: markers, halves of headers, torn frames.
                let mut torn = Vec::new();
                FromWarden::Output { stream: 1, time_us: 0, bytes: vec![b'x'; dice.roll(50)] }
                    .encode(1, 999, &mut torn);
                let keep = dice.roll(torn.len() - 1);
                stream.extend_from_slice(&torn[..keep]);
                stream.extend_from_slice(&MARKER[..dice.roll(4)]);
            }
            FromWarden::Output { stream: 1, time_us: seq, bytes: vec![dice.roll(256) as u8; dice.roll(300)] }.encode(
                1,
                seq,
                &mut stream,
            );
            wanted.push(seq);
        }
        // A torn head can claim a length that swallows a whole frame until its sum proves wrong: so end with enough.
        stream.resize(stream.len() + MAX_PAYLOAD + HEADER_BYTES, 0);
        let (mut decoder, mut found) = (Decoder::new(), Vec::new());
        let mut rest = stream.as_slice();
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(rest.len().min(1 + dice.roll(700)));
            decoder.feed(head);
            rest = tail;
            while let Some(frame) = decoder.next() {
                found.push(frame.seq);
            }
        }
        assert_eq!(found, wanted);
    }
}

#[test]
fn no_flipped_bit_gets_through() {
    let mut whole = Vec::new();
    FromWarden::Started { pid: 1, time_us: 2 }.encode(1, 0, &mut whole);
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let mut decoder = Decoder::new();
        decoder.feed(&flipped);
        assert!(decoder.next().is_none(), "bit {bit}");
    }
}

#[test]
fn random_payloads_are_answered_without_a_panic() {
    let mut dice = Dice(42);
    for _ in 0..20_000 {
        let payload: Vec<u8> = (0..dice.roll(60)).map(|_| dice.roll(256) as u8).collect();
        let frame = Frame { kind: dice.roll(100) as u8, channel: 0, epoch: 0, seq: 0, payload: &payload };
        let _ = (ToWarden::decode(&frame), FromWarden::decode(&frame), CellSpec::decode(&payload));
    }
}

#[test]
fn unmet_names_what_is_weaker() {
    let facts = vec![("uid".to_owned(), "0".to_owned()), ("pids".to_owned(), "max".to_owned())];
    let expect = [Expect::eq("uid", "1000"), Expect::at_most("pids", 64), Expect::one_of("uid", "0,1")];
    let keys: Vec<_> = unmet(&expect, &facts).into_iter().map(|one| one.key).collect();
    assert_eq!(keys, ["uid", "pids"]);
    assert_eq!(unmet(&[Expect::eq("absent", "x")], &facts)[0].got, "(not there)");
}

#[test]
fn restamped_frames_are_whole() {
    let mut frame = Vec::new();
    FromWarden::Pong { nonce: 1, stalled: 0 }.encode(1, 0, &mut frame);
    restamp(&mut frame, 9);
    let mut decoder = Decoder::new();
    decoder.feed(&frame);
    assert_eq!(decoder.next().expect("whole").epoch, 9);
}
