//! The masker against one that looks at everything at once, and the ways in which a stream is cut.

use super::*;

/// All occurrences of all forms, run by run.
fn naive(secrets: &[&[u8]], text: &[u8]) -> Vec<u8> {
    let all: Vec<Vec<u8>> = secrets.iter().flat_map(|secret| forms(secret)).collect();
    let mut covered = vec![false; text.len()];
    for form in &all {
        for at in 0..text.len().saturating_sub(form.len() - 1) {
            if text[at..].starts_with(form) {
                covered[at..at + form.len()].fill(true);
            }
        }
    }
    let mut out = Vec::new();
    for (at, byte) in text.iter().enumerate() {
        match covered[at] {
            false => out.push(*byte),
            true if at == 0 || !covered[at - 1] => out.extend_from_slice(MASK),
            true => {}
        }
    }
    out
}

fn masker(secrets: &[&[u8]]) -> Masker {
    Masker::new(Arc::new(Patterns::new(secrets.iter().copied())))
}

/// Masks `text` as it comes in these pieces.
fn cut(masker: &mut Masker, pieces: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut room = vec![0; 70_000];
    for (n, piece) in pieces.iter().enumerate() {
        let held = masker.begin(&mut room);
        room[held..held + piece.len()].copy_from_slice(piece);
        let kept = masker.pass(&mut room[..held + piece.len()], n + 1 == pieces.len());
        out.extend_from_slice(&room[..kept]);
    }
    assert_eq!(masker.waiting(), 0);
    out
}

/// Enough of a generator for a test without crates.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
    fn bytes(&mut self, len: usize, letters: &[u8]) -> Vec<u8> {
        (0..len).map(|_| letters[self.below(letters.len())]).collect()
    }
}

#[test]
fn a_secret_is_masked_wherever_reads_cut_it() {
    let secrets: [&[u8]; 3] = [b"hunter2-hunter2", b"line one\nline two\nend", b"\x00\xff\"bin/ary\\"];
    for secret in secrets {
        for form in forms(secret) {
            let mut text = b"before ".to_vec();
            text.extend_from_slice(&form);
            text.extend_from_slice(b" behind\n");
            let wanted = naive(&secrets, &text);
            assert!(wanted == b"before *** behind\n", "{:?}", String::from_utf8_lossy(&wanted));
            for at in 0..=text.len() {
                let (one, two) = text.split_at(at);
                assert_eq!(cut(&mut masker(&secrets), &[one, two]), wanted, "cut at {at}");
            }
            let bytes: Vec<&[u8]> = text.chunks(1).collect();
            assert_eq!(cut(&mut masker(&secrets), &bytes), wanted);
        }
    }
}

#[test]
fn it_agrees_with_one_that_sees_everything_at_once() {
    let mut random = Random(0x1234_5678_9ABC_DEF1);
    for round in 0..3000 {
        // Few letters, so that secrets overlap, contain and repeat each other.
        let letters: &[u8] = if round % 2 == 0 { b"ab" } else { b"ab%2\n\"" };
        let count = 1 + random.below(4);
        let secrets: Vec<Vec<u8>> = (0..count)
            .map(|_| {
                let len = 6 + random.below(8);
                random.bytes(len, letters)
            })
            .filter(|secret| forms::trimmed(secret).len() >= SECRET_MIN)
            .collect();
        let secrets: Vec<&[u8]> = secrets.iter().map(Vec::as_slice).collect();
        let len = random.below(200);
        let mut text = random.bytes(len, letters);
        for secret in &secrets {
            let at = random.below(text.len() + 1);
            let form = forms(secret).swap_remove(0);
            text.splice(at..at, form);
        }
        let (mut pieces, mut rest) = (Vec::new(), text.as_slice());
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(1 + random.below(rest.len()).min(random.below(40)));
            pieces.push(piece);
            rest = behind;
        }
        if pieces.is_empty() {
            pieces.push(b"");
        }
        let wanted = naive(&secrets, &text);
        let got = cut(&mut masker(&secrets), &pieces);
        let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(got == wanted, "{secrets:?} in {}: {} instead of {}", shown(&text), shown(&got), shown(&wanted));
    }
}

#[test]
fn what_is_waited_for_too_long_is_shown_and_the_rest_of_a_secret_is_not() {
    let mut masker = masker(&[b"sesame-open"]);
    let mut room = [0; 64];
    let pass = |masker: &mut Masker, text: &[u8], last| {
        let mut room = [0; 64];
        let held = masker.begin(&mut room);
        room[held..held + text.len()].copy_from_slice(text);
        let kept = masker.pass(&mut room[..held + text.len()], last);
        room[..kept].to_vec()
    };
    assert_eq!(pass(&mut masker, b"Say: ses", false), b"Say: ");
    assert_eq!((masker.waiting(), masker.patience_ns()), (3, WAIT_FEW_NS));
    let kept = masker.show(&mut room);
    assert_eq!((&room[..kept], masker.waiting()), (&b"ses"[..], 0));
    assert_eq!(pass(&mut masker, b"ame-op", false), b"");
    assert_eq!((masker.waiting(), masker.patience_ns()), (6, WAIT_NS));
    assert_eq!(pass(&mut masker, b"en", false), b"***");
    // And when it is none after all, nothing is lost and nothing comes twice.
    assert_eq!(pass(&mut masker, b" ses", false), b" ");
    let kept = masker.show(&mut room);
    assert_eq!(&room[..kept], b"ses");
    assert_eq!(pass(&mut masker, b"t", true), b"t");
}

#[test]
fn what_is_a_secret_already_is_not_shown_while_a_longer_one_is_waited_for() {
    let secrets: [&[u8]; 2] = [b"hunter", b"xx-hunter-and-more"];
    let mut masker = masker(&secrets);
    let mut room = [0; 64];
    let text = b"a xx-hunter-";
    room[..text.len()].copy_from_slice(text);
    assert_eq!(masker.pass(&mut room[..text.len()], false), 2);
    let kept = masker.show(&mut room);
    assert_eq!(&room[..kept], b"xx-***-");
    let held = masker.begin(&mut room);
    room[held..held + 9].copy_from_slice(b"and-more.");
    let kept = masker.pass(&mut room[..held + 9], true);
    assert_eq!(&room[..kept], b"***.");
}

#[test]
fn a_prompt_that_begins_no_secret_is_not_held_back() {
    let mut masker = masker(&[b"hunter2-hunter2"]);
    let mut room = *b"Password: ";
    assert_eq!(masker.pass(&mut room, false), 10);
}

#[test]
fn texts_beside_the_output_are_masked_too() {
    let patterns = Arc::new(Patterns::new([b"hunter2".as_slice()].into_iter()));
    assert_eq!(patterns.text("a hunter2 b aHVudGVyMg== c hunter"), "a *** b ***g== c hunter");
    assert_eq!(Arc::new(Patterns::new([].into_iter())).text("as it is"), "as it is");
}

#[test]
fn a_thousand_secrets_take_a_bounded_place() {
    let mut random = Random(7);
    let secrets: Vec<Vec<u8>> =
        (0..1000).map(|_| random.bytes(64, b"abcdefghijklmnopqrstuvwxyz/+0123456789")).collect();
    let patterns = Patterns::new(secrets.iter().map(Vec::as_slice));
    let place = patterns.bytes.len() + patterns.items.len() * size_of::<Item>() + patterns.filter.len() * 8;
    assert!(place < 2 << 20, "{place} bytes");
    // The worst there is: bytes that every form escapes.
    let patterns = Patterns::new([vec![1u8; crate::wire::SECRETS_BYTES].as_slice()].into_iter());
    assert!(patterns.bytes.len() < 2 << 20);
}
