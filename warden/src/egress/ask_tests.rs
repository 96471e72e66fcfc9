use super::*;

fn go(bytes: &[u8], greeted: bool) -> Target {
    match read(bytes, greeted) {
        Asked::Go(target) => target,
        other => panic!("{other:?}"),
    }
}

#[test]
fn connect_names_a_host_and_a_port() {
    let target = go(b"CONNECT pypi.org:443 HTTP/1.1\r\nHost: other\r\n\r\nearly", false);
    assert_eq!((target.kind, target.host.as_str(), target.port), (Kind::Connect, "pypi.org", 443));
    assert_eq!(target.first, b"early");
    let target = go(b"CONNECT [::1]:22 HTTP/1.0\r\n\r\n", false);
    assert_eq!((target.host.as_str(), target.port), ("::1", 22));
}

#[test]
fn a_plain_request_is_written_anew_for_its_server() {
    let request = b"GET HTTP://a.example:8080/x?y#z HTTP/1.1\r\nHost: evil.example\r\nAccept: */*\r\nProxy-Connection: keep-alive\r\nconnection: keep-alive,\r\n x\r\nProxy-Authorization: secret\r\n\r\nbody";
    let target = go(request, false);
    assert_eq!((target.kind, target.host.as_str(), target.port), (Kind::Plain, "a.example", 8080));
    let wanted = "GET /x?y HTTP/1.1\r\nHost: a.example:8080\r\nAccept: */*\r\nConnection: close\r\n\r\nbody";
    assert_eq!(String::from_utf8_lossy(&target.first), wanted);
    let target = go(b"GET http://a?q HTTP/1.1\r\n\r\n", false);
    assert!(target.port == 80 && target.first.starts_with(b"GET /?q HTTP/1.1\r\nHost: a\r\n"));
}

#[test]
fn socks_is_spoken_with_names_and_addresses() {
    assert_eq!(read(b"\x05\x02\x02\x00", false), Asked::Answer(b"\x05\x00", 4));
    assert_eq!(read(b"\x05\x01\x02", false), Asked::Bad(b"\x05\xff".to_vec()));
    let target = go(b"\x05\x01\x00\x03\x08pypi.org\x01\xbbmore", true);
    assert_eq!((target.kind, target.host.as_str(), target.port), (Kind::Socks, "pypi.org", 443));
    assert_eq!(target.first, b"more");
    assert_eq!(go(b"\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50", true).host, "10.0.0.1");
    let mapped = [&b"\x05\x01\x00\x04"[..], &[0; 10], &[255, 255, 10, 0, 0, 1, 0, 80]].concat();
    assert_eq!(go(&mapped, true).host, "::ffff:10.0.0.1", "as it was asked for: the agent refuses it by name");
    assert_eq!(read(b"\x05\x02\x00\x01", true), Asked::Bad(socks_answer(7)));
    assert_eq!(read(b"\x05\x01\x00\x09", true), Asked::Bad(socks_answer(8)));
}

#[test]
fn what_is_not_whole_is_waited_for_and_what_is_not_understood_is_answered() {
    for (whole, greeted) in [
        (&b"CONNECT a:1 HTTP/1.1\r\n\r\n"[..], false),
        (b"GET http://a/ HTTP/1.1\r\nx: y\r\n\r\n", false),
        (b"\x05\x01\x00\x03\x01a\x00\x01", true),
        (b"\x05\x01\x00", false),
    ] {
        for end in 0..whole.len() {
            assert_eq!(read(&whole[..end], greeted), Asked::More, "{end} of {whole:?}");
        }
        assert_ne!(read(whole, greeted), Asked::More);
    }
    for bad in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"GET https://a/ HTTP/1.1\r\n\r\n",
        b"GET ftp://a/ HTTP/1.1\r\n\r\n",
        b"CONNECT a HTTP/1.1\r\n\r\n",
        b"CONNECT a:x HTTP/1.1\r\n\r\n",
        b"CONNECT a:+1 HTTP/1.1\r\n\r\n",
        b"CONNECT a:70000 HTTP/1.1\r\n\r\n",
        b"CONNECT u@a:1 HTTP/1.1\r\n\r\n",
        b"CONNECT [::1:1 HTTP/1.1\r\n\r\n",
        b"CONNECT [::1]x HTTP/1.1\r\n\r\n",
        b"CONNECT :1 HTTP/1.1\r\n\r\n",
        b"GET http:///x HTTP/1.1\r\n\r\n",
        b"GET http://a/ HTTP/2\r\n\r\n",
        b"\xff\xfe HTTP/1.1\r\n\r\n",
        b"x\r\n\r\n",
    ] {
        assert!(matches!(read(bad, false), Asked::Bad(text) if text.starts_with(b"HTTP/1.1 400")), "{bad:?}");
    }
    let long = vec![b'x'; HEAD_MAX];
    assert!(matches!(read(&long, false), Asked::Bad(text) if text.starts_with(b"HTTP/1.1 431")));
}

#[test]
fn no_bytes_do_harm() {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let parts: [&[u8]; 12] = [
        b"CONNECT ",
        b"GET ",
        b"http://",
        b"[",
        b"]",
        b":",
        b"443",
        b" HTTP/1.1",
        b"\r\n",
        b"\x05\x01\x00",
        b"\x03\xff",
        b"\xff",
    ];
    for _ in 0..20_000 {
        let mut bytes = Vec::new();
        for _ in 0..8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(parts[(state % 12) as usize]);
        }
        bytes.extend_from_slice(b"\r\n\r\n");
        read(&bytes, false);
        read(&bytes, true);
    }
}
