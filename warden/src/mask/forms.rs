//! In which forms a secret is written, by accident: as it is, a line of it, or encoded as programs do before they print.

use super::PIECE;
use crate::wire::SECRET_MIN;

/// Base64 is cut into pieces of so many characters, each of which is found across the ends of lines as well. They begin where four characters that
/// belong together do, which is where tools break lines, so that no line's end is within the first four of a piece.
pub(super) const BASE64_PIECE: usize = 64;
/// Blanks that a line may begin with. They bound what is held back: a piece with a line's end between all of its characters fits into [`PIECE`].
const MOST_BLANKS: usize = 4;
const _: () = assert!(BASE64_PIECE * (1 + 2 + MOST_BLANKS) < PIECE && BASE64_PIECE * (1 + 4) < PIECE);
pub(super) const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// All forms of a secret, none shorter than [`SECRET_MIN`] and none longer than [`PIECE`]. What it ends with of line ends does not belong to
/// it: a file ends with one, and who prints it leaves it out.
pub(crate) fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let secret = trimmed(secret);
    let mut all = Vec::new();
    let mut add = |form: &[u8], piece: usize| pieces(form, piece, &mut all);
    add(secret, PIECE);
    for line in secret.split(|byte| *byte == b'\n').map(|line| line.trim_ascii()) {
        // A short line, such as a bracket, is in every text.
        if line.len() < secret.len() && line.len() >= SECRET_MIN {
            add(line, PIECE);
        }
    }
    for alphabet in [STANDARD, URL] {
        for before in 0..3 {
            let form = base64(secret, before, alphabet);
            // The first characters of what stands behind something else are the rest of a four.
            let rest = (4 - (before * 8).div_ceil(6) % 4) % 4;
            if rest > 0 && form.len() >= rest + SECRET_MIN {
                add(&form[..form.len().min(BASE64_PIECE)], BASE64_PIECE);
                add(&form[rest..], BASE64_PIECE);
            } else {
                add(&form, BASE64_PIECE);
            }
        }
    }
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let path = |byte: u8| unreserved(byte) || byte == b'/';
    add(&percent(secret, b"0123456789ABCDEF", unreserved), PIECE);
    add(&percent(secret, b"0123456789abcdef", unreserved), PIECE);
    add(&percent(secret, b"0123456789ABCDEF", path), PIECE);
    // As scripts of pages write parts of addresses.
    add(&percent(secret, b"0123456789ABCDEF", |byte| unreserved(byte) || b"!*'()".contains(&byte)), PIECE);
    let form = percent(secret, b"0123456789ABCDEF", |byte| unreserved(byte) || byte == b' ');
    add(&form.iter().map(|byte| if *byte == b' ' { b'+' } else { *byte }).collect::<Vec<_>>(), PIECE);
    for ascii in [false, true] {
        let plain = json(secret, ascii);
        // What writes JSON into pages escapes more of it, or all slashes.
        add(&replaced(&plain, &[(b'<', "\\u003c"), (b'>', "\\u003e"), (b'&', "\\u0026")]), PIECE);
        add(&replaced(&plain, &[(b'/', "\\/")]), PIECE);
        add(&plain, PIECE);
    }
    // A shell's, within quotes.
    add(&replaced(secret, &[(b'\'', "'\\''")]), PIECE);
    all.sort_unstable();
    all.dedup();
    all
}

/// Without the line ends behind it.
pub(crate) fn trimmed(mut secret: &[u8]) -> &[u8] {
    while let [rest @ .., b'\n' | b'\r'] = secret {
        secret = rest;
    }
    secret
}

/// Cuts a form; the last piece reaches back, so that it is as long as the others.
fn pieces(form: &[u8], piece: usize, all: &mut Vec<Vec<u8>>) {
    let mut at = 0;
    while at < form.len() {
        let end = (at + piece).min(form.len());
        let from = if end - at < SECRET_MIN { end.saturating_sub(piece) } else { at };
        if end - from >= SECRET_MIN {
            all.push(form[from..end].to_vec());
        }
        at = end;
    }
}

/// The characters that are the secret's alone, when `before` bytes of something else stand before it.
pub(super) fn base64(secret: &[u8], before: usize, alphabet: &[u8; 64]) -> Vec<u8> {
    let mut bytes = vec![0; before];
    bytes.extend_from_slice(secret);
    let mut out = Vec::with_capacity(bytes.len() * 4 / 3 + 4);
    for three in bytes.chunks(3) {
        let get = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let bits = get(0) << 16 | get(1) << 8 | get(2);
        out.extend([18, 12, 6, 0].map(|shift| alphabet[(bits >> shift & 63) as usize]));
    }
    let (from, to) = ((before * 8).div_ceil(6), bytes.len() * 8 / 6);
    out.truncate(to);
    out.drain(..from.min(to));
    out
}

/// Whether it stands for bits in base64, in one of the two alphabets.
pub(super) fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_')
}

/// How long the end of a line is that a text begins with, as it is or as it stands in a string of a program, with up to [`MOST_BLANKS`] blanks
/// before the next line. One that may go on behind the text is as long as that.
pub(super) fn line_end(text: &[u8]) -> Option<usize> {
    let end = match text {
        [b'\r'] | [b'\\'] | [b'\\', b'r'] | [b'\\', b'r', b'\\'] => return Some(text.len()),
        [b'\n', ..] => 1,
        [b'\r', b'\n', ..] | [b'\\', b'n', ..] => 2,
        [b'\\', b'r', b'\\', b'n', ..] => 4,
        _ => return None,
    };
    let blanks = text[end..].iter().take(MOST_BLANKS).take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    Some(end + blanks)
}

fn percent(secret: &[u8], digits: &[u8; 16], keep: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(secret.len());
    for byte in secret {
        if keep(*byte) {
            out.push(*byte);
        } else {
            out.extend([b'%', digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]);
        }
    }
    out
}

fn replaced(form: &[u8], each: &[(u8, &str)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(form.len());
    for byte in form {
        match each.iter().find(|(from, _)| from == byte) {
            Some((_, to)) => out.extend_from_slice(to.as_bytes()),
            None => out.push(*byte),
        }
    }
    out
}

/// As it stands in a JSON string; with `ascii`, characters beyond ASCII are escaped too, where it is text.
fn json(secret: &[u8], ascii: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(secret.len());
    let escape = |unit: u16, out: &mut Vec<u8>| out.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
    let one = |byte: u8, out: &mut Vec<u8>| match byte {
        b'"' | b'\\' => out.extend([b'\\', byte]),
        b'\n' => out.extend(b"\\n"),
        b'\r' => out.extend(b"\\r"),
        b'\t' => out.extend(b"\\t"),
        8 => out.extend(b"\\b"),
        12 => out.extend(b"\\f"),
        0..32 => escape(byte.into(), out),
        _ => out.push(byte),
    };
    match std::str::from_utf8(secret) {
        Ok(text) if ascii => {
            for c in text.chars() {
                match u8::try_from(c) {
                    Ok(byte) if byte.is_ascii() => one(byte, &mut out),
                    _ => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| escape(*unit, &mut out)),
                }
            }
        }
        _ => secret.iter().for_each(|byte| one(*byte, &mut out)),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(secret: &[u8], form: &str) -> bool {
        forms(secret).iter().any(|one| one == form.as_bytes())
    }

    #[test]
    fn each_form_is_what_programs_print() {
        let secret = b"pa ss/wo\"rd+\xc3\xbc\n";
        for form in [
            "pa ss/wo\"rd+\u{fc}",
            // `printf 'pa ss/wo"rd+ü' | base64`, and behind one and two other bytes.
            "cGEgc3Mvd28icmQrw7",
            "BhIHNzL3dvInJkK8O8",
            "wYSBzcy93byJyZCvDv",
            "pa%20ss%2Fwo%22rd%2B%C3%BC",
            "pa%20ss%2fwo%22rd%2b%c3%bc",
            "pa%20ss/wo%22rd%2B%C3%BC",
            "pa+ss%2Fwo%22rd%2B%C3%BC",
            "pa ss/wo\\\"rd+\u{fc}",
            "pa ss/wo\\\"rd+\\u00fc",
        ] {
            let found = forms(secret);
            let found: Vec<_> = found.iter().map(|form| String::from_utf8_lossy(form).into_owned()).collect();
            assert!(found.iter().any(|one| one == form), "{form} is not in {found:#?}");
        }
        for form in ["it'\\''s<a>&/b!", "it's\\u003ca\\u003e\\u0026/b!", "it's<a>&\\/b!", "it's%3Ca%3E%26%2Fb!"] {
            assert!(has(b"it's<a>&/b!", form), "{form}");
        }
        // The two alphabets differ where the bits do.
        assert!(has(b"\xff\xef\xfe\xff\xef\xfe", "/+/+/+/+"), "{:?}", forms(b"\xff\xef\xfe\xff\xef\xfe"));
        assert!(has(b"\xff\xef\xfe\xff\xef\xfe", "_-_-_-_-"));
    }

    #[test]
    fn lines_are_masked_by_themselves_unless_they_are_in_every_text() {
        let key = b"-----BEGIN KEY-----\r\nMIIEvQIBADAN\n}\n  indented-line\n";
        for line in ["-----BEGIN KEY-----", "MIIEvQIBADAN", "indented-line"] {
            assert!(has(key, line), "{line}");
        }
        assert!(!has(key, "}"));
        assert!(has(key, "-----BEGIN KEY-----\\r\\nMIIEvQIBADAN\\n}\\n  indented-line"));
    }

    #[test]
    fn no_form_is_too_short_or_too_long_and_pieces_leave_nothing_out() {
        let long: Vec<u8> = (0..5000u32).map(|n| b'a' + (n * 7 % 23) as u8).collect();
        for secret in [&long[..], &long[..513], &long[..512], b"123456", b"\x00\x01\x02\x03\x04\x05"] {
            let all = forms(secret);
            assert!(all.iter().all(|form| (SECRET_MIN..=PIECE).contains(&form.len())), "{}", secret.len());
            assert!(all.iter().any(|form| secret.starts_with(form)) && all.iter().any(|form| secret.ends_with(form)));
        }
        // Six bytes in base64 behind one other byte: the shortest form of the shortest secret.
        assert!(forms(b"123456").iter().all(|form| form.len() > 5));
    }
}
