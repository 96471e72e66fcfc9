//! The first words of TLS: which host a client names inside a connection that it asked for under another name, perhaps. Pure.
//!
//! Many sites share the addresses of one front, which goes by this name. Without a look at it, a job that may reach one of them reaches all.

/// The message that names a host is far shorter; whoever sends a longer one wants something else.
const HELLO_MAX: usize = 32 * 1024;

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hello {
    /// They go on.
    More,
    /// No TLS.
    Other,
    /// TLS, for this host, if it names one.
    Names(Option<String>),
    /// What no client says.
    Bad,
}

/// Reads what a client has said so far.
pub(super) fn read(bytes: &[u8]) -> Hello {
    const HANDSHAKE: u8 = 22;
    const CLIENT_HELLO: u8 = 1;
    let (mut rest, mut message) = (bytes, Vec::new());
    loop {
        if let [kind, _, _, _, ..] = message[..]
            && kind != CLIENT_HELLO
        {
            return Hello::Bad;
        }
        if let Some(length) = message.get(1..4) {
            let length = length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            if length > HELLO_MAX {
                return Hello::Bad;
            }
            if let Some(hello) = message.get(4..4 + length) {
                return name(hello).map_or(Hello::Bad, Hello::Names);
            }
        }
        // A message may lie in several records.
        let head = [HANDSHAKE, 3];
        let seen = rest.len().min(head.len());
        if rest[..seen] != head[..seen] {
            return if message.is_empty() { Hello::Other } else { Hello::Bad };
        }
        let Some(length) = rest.get(3..5) else { return Hello::More };
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        if length == 0 || bytes.len() > 2 * HELLO_MAX {
            return Hello::Bad;
        }
        let Some(record) = rest.get(5..5 + length) else { return Hello::More };
        message.extend_from_slice(record);
        rest = &rest[5 + length..];
    }
}

/// Takes `length` bytes, whose number stands before them in `wide` bytes.
fn part<'a>(rest: &mut &'a [u8], wide: usize) -> Option<&'a [u8]> {
    let (length, behind) = rest.split_at_checked(wide)?;
    let length = length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let (found, behind) = behind.split_at_checked(length)?;
    *rest = behind;
    Some(found)
}

/// The host that a hello names. `None`: it is none.
fn name(hello: &[u8]) -> Option<Option<String>> {
    const SERVER_NAME: u16 = 0;
    const HOST: u8 = 0;
    // Version and random bytes.
    let mut rest = hello.get(34..)?;
    let (_session, _ciphers, _compressions) = (part(&mut rest, 1)?, part(&mut rest, 2)?, part(&mut rest, 1)?);
    if rest.is_empty() {
        return Some(None);
    }
    let mut extensions = part(&mut rest, 2)?;
    while !extensions.is_empty() {
        let (kind, behind) = extensions.split_at_checked(2)?;
        let kind = u16::from_be_bytes([kind[0], kind[1]]);
        extensions = behind;
        let mut body = part(&mut extensions, 2)?;
        if kind == SERVER_NAME {
            let mut names = part(&mut body, 2)?;
            let (kind, behind) = names.split_at_checked(1)?;
            names = behind;
            let host = part(&mut names, 2)?;
            // One name, of the one kind that there is: more would be for another reader.
            if kind[0] != HOST || !names.is_empty() {
                return None;
            }
            return Some(Some(std::str::from_utf8(host).ok()?.to_owned()));
        }
    }
    Some(None)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sized(wide: usize, bytes: &[u8]) -> Vec<u8> {
        let length = (bytes.len() as u32).to_be_bytes();
        [&length[4 - wide..], bytes].concat()
    }

    fn hello(names: Option<&str>) -> Vec<u8> {
        let mut extensions = [&[0, 10][..], &sized(2, b"curves")].concat();
        if let Some(name) = names {
            let list = sized(2, &[&[0][..], &sized(2, name.as_bytes())].concat());
            extensions.extend([&[0, 0][..], &sized(2, &list)].concat());
        }
        let body =
            [&[3; 34][..], &sized(1, &[7; 32]), &sized(2, &[1; 4]), &sized(1, &[0]), &sized(2, &extensions)].concat();
        [&[1][..], &sized(3, &body)].concat()
    }

    /// What a client says that wants this host.
    pub(in crate::egress) fn client(name: &str) -> Vec<u8> {
        records(&hello(Some(name)), 60)
    }

    fn records(message: &[u8], each: usize) -> Vec<u8> {
        message.chunks(each).flat_map(|piece| [&[22, 3, 1][..], &sized(2, piece)].concat()).collect()
    }

    #[test]
    fn the_name_is_found_however_it_is_cut() {
        for each in [1, 3, 50, 1000] {
            let whole = records(&hello(Some("a.example")), each);
            assert_eq!(read(&whole), Hello::Names(Some("a.example".into())));
            assert_eq!(read(&[&whole[..], b"more"].concat()), Hello::Names(Some("a.example".into())));
            for end in 1..whole.len() {
                assert_eq!(read(&whole[..end]), Hello::More, "{end}");
            }
        }
        assert_eq!(read(&records(&hello(None), 1000)), Hello::Names(None));
    }

    #[test]
    fn what_is_no_hello_is_told_apart() {
        assert_eq!(read(b"GET / HTTP/1.1"), Hello::Other);
        assert_eq!(read(b"SSH-2.0"), Hello::Other);
        assert_eq!(read(&records(&[2, 0, 0, 1, 0], 9)), Hello::Bad, "a server's");
        assert_eq!(read(&records(&[1, 1, 0, 0, 0], 9)), Hello::Bad, "too long");
        assert_eq!(read(&records(&[1, 0, 0, 2, 3, 3], 9)), Hello::Bad, "too short");
        assert_eq!(read(&[22, 3, 1, 0, 0]), Hello::Bad, "an empty record");
        let mut torn = records(&hello(Some("a")), 20);
        torn[25] = 23;
        assert_eq!(read(&torn), Hello::Bad, "another record in the middle");
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), to in any::<u8>()) {
            read(&bytes);
            bytes.splice(0..0, [22, 3, 1]);
            read(&bytes);
            let mut whole = records(&hello(Some("a.example")), 40);
            let at = at.index(whole.len());
            whole[at] = to;
            read(&whole);
        }
    }
}
