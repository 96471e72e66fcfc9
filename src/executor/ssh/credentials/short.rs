//! ECDSA keys of OpenSSH's form whose number begins with zero bytes, one of 256 of those on P-256: OpenSSH writes them without, and the library
//! takes none of less than 32 bytes. Makes them whole; what is encrypted cannot be looked at here.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

const MAGIC: &[u8] = b"openssh-key-v1\0";
const FIRST: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const LAST: &str = "-----END OPENSSH PRIVATE KEY-----";
/// What the library takes at least.
const LEAST: usize = 32;
/// The private part of a key that is not encrypted is filled up to this.
const BLOCK: usize = 8;

/// The same key with its number in 32 bytes; `None` for any other key.
pub(super) fn whole(text: &str) -> Option<String> {
    let body = text.trim().strip_prefix(FIRST)?.strip_suffix(LAST)?;
    let bytes = STANDARD.decode(body.split_whitespace().collect::<String>()).ok()?;
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let (cipher, kdf, options) = (string(&mut rest)?, string(&mut rest)?, string(&mut rest)?);
    let (one, rest_of) = rest.split_at_checked(4)?;
    rest = rest_of;
    if (cipher, kdf, options, one) != (b"none", b"none", b"", &1u32.to_be_bytes()) {
        return None;
    }
    let (public, mut private) = (string(&mut rest)?, string(&mut rest)?);
    let (checks, after) = private.split_at_checked(8)?;
    private = after;
    let (kind, curve, point, number) =
        (string(&mut private)?, string(&mut private)?, string(&mut private)?, string(&mut private)?);
    if !kind.starts_with(b"ecdsa-sha2-") || number.len() >= LEAST || number.is_empty() {
        return None;
    }
    let comment = string(&mut private)?;
    let mut whole = vec![0; LEAST - number.len()];
    whole.extend_from_slice(number);
    let mut section = checks.to_vec();
    for part in [kind, curve, point, &whole, comment] {
        put(&mut section, part);
    }
    section.extend((1u8..).take((BLOCK - section.len() % BLOCK) % BLOCK));
    let mut key = MAGIC.to_vec();
    for part in [b"none".as_slice(), b"none", b""] {
        put(&mut key, part);
    }
    key.extend_from_slice(one);
    put(&mut key, public);
    put(&mut key, &section);
    let encoded = STANDARD.encode(key);
    let lines: Vec<&str> = encoded.as_bytes().chunks(70).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    Some(format!("{FIRST}\n{}\n{LAST}\n", lines.join("\n")))
}

/// The next text with its length before it.
fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_at_checked(4)?;
    let length = u32::from_be_bytes(length.try_into().ok()?);
    let (text, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = after;
    Some(text)
}

fn put(to: &mut Vec<u8>, part: &[u8]) {
    to.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
    to.extend_from_slice(part);
}
