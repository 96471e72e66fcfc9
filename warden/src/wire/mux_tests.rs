//! Round trips of the envelope, and what is refused.

use super::*;

fn to_hub() -> Vec<ToHub<'static>> {
    vec![
        ToHub::Hello { version: 1 },
        ToHub::Open { channel: 1, name: "a-1.b_2".into() },
        ToHub::Attach { channel: u16::MAX, name: "a".into() },
        ToHub::Data { channel: 7, bytes: b"\0\xff piece" },
        ToHub::Data { channel: 7, bytes: b"" },
        ToHub::Leave { channel: 7 },
        ToHub::Kill { name: "a".into() },
        ToHub::List,
    ]
}

fn from_hub() -> Vec<FromHub<'static>> {
    vec![
        FromHub::Hello {
            version: 1,
            build: "0.1.0".into(),
            dir: "/home/a/.jobcell/x".into(),
            pid: 7,
            home: "/home/a".into(),
            facts: vec![("uid".into(), "1000".into())],
        },
        FromHub::Opened { channel: 1, dir: "/d".into(), pid: 9 },
        FromHub::Failed { channel: 1, errno: -2, step: "no such job".into() },
        FromHub::Data { channel: 9, bytes: b"piece" },
        FromHub::Ended { channel: 9, name: "a".into(), code: -9 },
        FromHub::Gone { name: "a".into() },
        FromHub::Left { name: "a".into(), text: "busy".into() },
        FromHub::Names { more: true, names: vec!["a".into(), "b".into()] },
        FromHub::Names { more: false, names: vec![] },
        FromHub::Fault { text: "why".into() },
    ]
}

#[test]
fn everything_comes_back_in_pieces_of_every_size() {
    let (mut sent, mut said) = (Vec::new(), Vec::new());
    to_hub().iter().for_each(|message| message.encode(&mut sent));
    from_hub().iter().for_each(|message| message.encode(&mut said));
    for size in [1, 2, 3, 7, 64, 10_000] {
        let (mut decoder, mut count) = (MuxDecoder::new(), 0);
        for piece in sent.chunks(size) {
            decoder.feed(piece);
            while let Some(envelope) = decoder.next().expect("well formed") {
                assert_eq!(ToHub::decode(&envelope).as_ref(), Ok(&to_hub()[count]));
                count += 1;
            }
        }
        assert_eq!((count, decoder.waiting()), (to_hub().len(), 0));
        let (mut decoder, mut count) = (MuxDecoder::new(), 0);
        for piece in said.chunks(size) {
            decoder.feed(piece);
            while let Some(envelope) = decoder.next().expect("well formed") {
                assert_eq!(FromHub::decode(&envelope).as_ref(), Ok(&from_hub()[count]));
                count += 1;
            }
        }
        assert_eq!((count, decoder.waiting()), (from_hub().len(), 0));
    }
}

#[test]
fn a_long_piece_becomes_several_and_a_text_is_cut() {
    let (long, mut out) = (vec![7; 2 * MUX_PAYLOAD + 1], Vec::new());
    ToHub::Data { channel: 3, bytes: &long }.encode(&mut out);
    FromHub::Fault { text: "é".repeat(MUX_TEXT) }.encode(&mut out);
    let mut decoder = MuxDecoder::new();
    decoder.feed(&out);
    for wanted in [MUX_PAYLOAD, MUX_PAYLOAD, 1] {
        let envelope = decoder.next().expect("well formed").expect("whole");
        assert_eq!((envelope.kind, envelope.channel, envelope.payload.len()), (4, 3, wanted));
    }
    let envelope = decoder.next().expect("well formed").expect("whole");
    assert_eq!(FromHub::decode(&envelope), Ok(FromHub::Fault { text: "é".repeat(MUX_TEXT / 2) }));
}

#[test]
fn the_header_alone_is_that_of_a_piece() {
    let mut whole = Vec::new();
    FromHub::Data { channel: 515, bytes: b"abc" }.encode(&mut whole);
    assert_eq!(whole[..MUX_HEADER], from_hub_data(515, 3));
}

#[test]
fn what_is_malformed_is_an_error_and_what_is_cut_waits() {
    let refused = |bytes: &[u8]| {
        let mut decoder = MuxDecoder::new();
        decoder.feed(bytes);
        match decoder.next() {
            Err(_) => true,
            Ok(Some(envelope)) => ToHub::decode(&envelope).is_err() && FromHub::decode(&envelope).is_err(),
            Ok(None) => false,
        }
    };
    let over = (MUX_PAYLOAD as u32 + 1).to_le_bytes();
    assert!(refused(&[over[0], over[1], over[2], over[3], 4, 0, 1, 0]), "too long, and known before it is there");
    assert!(refused(&[0, 0, 0, 0, 7, 1, 0, 0]), "reserved");
    assert!(refused(&[0, 0, 0, 0, 7, 0, 1, 0]), "a list has no channel");
    assert!(refused(&[0, 0, 0, 0, 5, 0, 0, 0]), "a leave has one");
    assert!(refused(&[1, 0, 0, 0, 7, 0, 0, 0, 9]), "more than the fields");
    assert!(refused(&[0, 0, 0, 0, 99, 0, 0, 0]), "no kind");
    assert!(!refused(&[9, 0, 0, 0, 4, 0, 1, 0, 1]), "cut");
    for name in ["", ".", "..", ".a", "-a", "a/b", "a b", "é", "a\n", &"a".repeat(MUX_NAME + 1)] {
        let mut out = Vec::new();
        ToHub::Kill { name: name.to_owned() }.encode(&mut out);
        assert!(refused(&out), "{name:?}");
        assert!(!is_mux_name(name));
    }
    assert!(is_mux_name(&"a".repeat(MUX_NAME)));
}

#[test]
fn no_input_panics_and_every_cut_is_told_from_a_whole() {
    let mut sent = Vec::new();
    to_hub().iter().for_each(|message| message.encode(&mut sent));
    from_hub().iter().for_each(|message| message.encode(&mut sent));
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for _ in 0..20_000 {
        let mut bytes = sent.clone();
        for _ in 0..4 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = (state % bytes.len() as u64) as usize;
            bytes[at] = (state >> 32) as u8;
        }
        let mut decoder = MuxDecoder::new();
        decoder.feed(&bytes);
        while let Ok(Some(envelope)) = decoder.next() {
            assert!(envelope.payload.len() <= MUX_PAYLOAD);
            let (_, _) = (ToHub::decode(&envelope), FromHub::decode(&envelope));
        }
    }
}
