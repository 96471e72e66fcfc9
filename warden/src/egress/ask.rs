//! What a client of the proxy asks for: the head of an HTTP request, or SOCKS5. Pure.
//!
//! Only so much is understood as is needed to know where it wants to go; whether it may is the agent's to say. A plain request is written
//! anew in the form that a server expects, with the host that was asked for and with the word that it is the last one on its connection:
//! so a second request, which may be for another host, comes on a connection of its own and is judged by itself.

/// Longest head of a request; also all that a client may say before it is answered.
pub(crate) const HEAD_MAX: usize = 16 * 1024;
/// Longest host that is passed on; the agent knows better what is one.
const HOST_MAX: usize = 1024;

/// How the client is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Connect,
    Plain,
    Socks,
}

/// What became of the bytes so far.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// They go on.
    More,
    /// This is to be answered, and so many bytes are done with.
    Answer(&'static [u8], usize),
    /// It wants to go there.
    Go(Target),
    /// It is told this, and that is the end.
    Bad(Vec<u8>),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// What goes to the server first.
    pub(crate) first: Vec<u8>,
}

/// Reads what a client has said so far; `greeted` after a SOCKS greeting.
pub(crate) fn read(bytes: &[u8], greeted: bool) -> Asked {
    match bytes.first() {
        None => Asked::More,
        Some(5) if greeted => socks_request(bytes),
        Some(5) => socks_greeting(bytes),
        Some(_) if greeted => Asked::Bad(socks_answer(1)),
        Some(_) => http(bytes),
    }
}

fn socks_greeting(bytes: &[u8]) -> Asked {
    let Some(methods) = bytes.get(1).and_then(|count| bytes.get(2..2 + usize::from(*count))) else {
        return Asked::More;
    };
    match methods.contains(&0) {
        true => Asked::Answer(b"\x05\x00", 2 + methods.len()),
        false => Asked::Bad(b"\x05\xff".to_vec()),
    }
}

fn socks_request(bytes: &[u8]) -> Asked {
    const CONNECT: u8 = 1;
    let Some((head, rest)) = bytes.split_at_checked(4) else { return Asked::More };
    if head[1] != CONNECT {
        return Asked::Bad(socks_answer(7));
    }
    let (address, length) = match head[3] {
        1 => (rest.get(..4).map(|octets| octets.iter().map(u8::to_string).collect::<Vec<_>>().join(".")), 4),
        3 => {
            let Some(count) = rest.first().map(|count| usize::from(*count)) else { return Asked::More };
            let text = rest.get(1..1 + count);
            (text.map(|text| String::from_utf8_lossy(text).into_owned()), 1 + count)
        }
        4 => {
            let octets = rest.get(..16).and_then(|octets| <[u8; 16]>::try_from(octets).ok());
            (octets.map(|octets| std::net::Ipv6Addr::from(octets).to_string()), 16)
        }
        _ => return Asked::Bad(socks_answer(8)),
    };
    let (Some(host), Some(port)) = (address, rest.get(length..length + 2)) else { return Asked::More };
    let port = u16::from_be_bytes([port[0], port[1]]);
    Asked::Go(Target { kind: Kind::Socks, host, port, first: rest[length + 2..].to_vec() })
}

/// The answer to a SOCKS request: 0 is that it may begin.
pub(crate) fn socks_answer(code: u8) -> Vec<u8> {
    vec![5, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

fn http(bytes: &[u8]) -> Asked {
    const END: &[u8] = b"\r\n\r\n";
    let Some(end) = bytes.windows(END.len()).position(|part| part == END) else {
        return if bytes.len() < HEAD_MAX {
            Asked::More
        } else {
            bad("431 Request Header Fields Too Large", "the head is too long")
        };
    };
    let (head, rest) = (&bytes[..end], &bytes[end + END.len()..]);
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = std::str::from_utf8(lines.next().unwrap_or_default()).unwrap_or_default();
    let words: Vec<&str> = first.split(' ').collect();
    let [method, target, version @ ("HTTP/1.1" | "HTTP/1.0")] = words[..] else {
        return bad("400 Bad Request", "that is no request of HTTP/1.1");
    };
    if method == "CONNECT" {
        return match authority(target, None) {
            Ok((host, port)) => Asked::Go(Target { kind: Kind::Connect, host, port, first: rest.to_vec() }),
            Err(text) => bad("400 Bad Request", text),
        };
    }
    let scheme = target.get(..7).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("http://") {
        return bad("400 Bad Request", "this is a proxy: it takes CONNECT host:port, and http:// addresses");
    }
    let behind = &target[7..];
    let (place, path) = behind.split_at(behind.find(['/', '?', '#']).unwrap_or(behind.len()));
    let (host, port) = match authority(place, Some(80)) {
        Ok(place) => place,
        Err(text) => return bad("400 Bad Request", text),
    };
    let path = path.split('#').next().unwrap_or_default();
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut out = format!("{method} {slash}{path} {version}\r\nHost: {place}\r\n").into_bytes();
    let mut kept = false;
    for line in lines {
        // A line that begins with a blank goes on with the one before.
        if !line.starts_with(b" ") && !line.starts_with(b"\t") {
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default().to_ascii_lowercase();
            let hop =
                [&b"host"[..], b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"upgrade"];
            kept = !hop.contains(&name.as_slice());
        }
        if kept {
            out.extend_from_slice(line);
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"Connection: close\r\n\r\n");
    out.extend_from_slice(rest);
    Asked::Go(Target { kind: Kind::Plain, host, port, first: out })
}

/// Host and port of `host:port` or `[v6]:port`.
fn authority(text: &str, usual: Option<u16>) -> Result<(String, u16), &'static str> {
    if text.contains('@') {
        return Err("the address has a user in it");
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, behind)) => (host, Some(behind.strip_prefix(':').ok_or("behind the bracket is no port")?)),
            None => return Err("the address has a bracket that is not closed"),
        },
        None => text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let plain = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = match port {
        None => usual,
        Some(text) => Some(text).filter(plain).and_then(|text| text.parse().ok()),
    };
    if host.is_empty() || host.len() > HOST_MAX {
        return Err("the address has no host, or a very long one");
    }
    Ok((host.to_owned(), port.ok_or("the address has no port, or one that is no number")?))
}

fn bad(status: &str, text: &str) -> Asked {
    Asked::Bad(http_answer(status, text))
}

/// An answer with a sentence for people.
pub(crate) fn http_answer(status: &str, text: &str) -> Vec<u8> {
    // The text may have a part that the job chose: no line of it becomes a header.
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let length = text.len() + "jobcell: \n".len();
    format!("HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n\r\njobcell: {text}\n")
        .into_bytes()
}

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;
