//! What a terminal is shown of text that others wrote: nothing that moves the cursor, sets a title, asks the terminal for an answer, or
//! hides text. What would is shown as it is spelled (`\u{1b}`), so that nothing is left out unseen. Only what goes to a terminal is
//! changed, and never with `--raw`: files and pipes get each byte.
//!
//! Of styles those pass that leave text readable on any background: bold, italic, underline and six colours of the foreground.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::sync::OnceLock;
use unicode_width::UnicodeWidthChar;

/// Ends all styles.
const RESET: &str = "\u{1b}[0m";

static RAW: OnceLock<bool> = OnceLock::new();

/// A sequence for styles that is longer is none.
const LONGEST: usize = 64;
/// Marks on one letter, and what joins letters, that pass in a row. Writing and pictures need up to four; a pile of them covers the lines around
/// it, and a long row is a text that is not seen.
const MOST_MARKS: u8 = 4;

/// Settles for the whole process whether terminals get what others wrote as it is.
pub(super) fn decide(raw: bool) {
    let _ = RAW.set(raw);
}

/// A cleaner for what goes to `stream`, when that is a terminal.
pub(super) fn cleaner(stream: &impl IsTerminal) -> Option<Cleaner> {
    let raw = RAW.get().copied().unwrap_or(false);
    (stream.is_terminal() && !raw).then(|| Cleaner { styles: super::paint::is_on(), ..Cleaner::default() })
}

/// True for a character that a terminal obeys in place of showing it, or that changes how its neighbours are shown, or that is not seen.
pub(super) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Blanks that are not seen, and fillers.
            '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}' | '\u{3164}'
            | '\u{feff}' | '\u{ffa0}'
            // Direction of writing, line ends that are none, and annotations.
            | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}'
            // Marks on letters that choose a form, and marks of shorthand, music and hieroglyphs: rows of them are a second text that is not seen.
            | '\u{fe00}'..='\u{fe0e}' | '\u{13430}'..='\u{1345f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            // Tags: a second text that is not seen.
            | '\u{e0000}'..='\u{e0fff}')
}

/// Text of one line or of many, without anything that a terminal obeys but the line's end.
pub(super) fn lines(text: &str) -> String {
    let (mut clean, mut marks) = (String::with_capacity(text.len()), 0);
    for c in text.chars() {
        match c {
            '\n' => clean.push(c),
            c => show(c, &mut marks, &mut clean),
        }
    }
    clean
}

/// Text of one line.
pub(super) fn line(text: &str) -> String {
    let (mut clean, mut marks) = (String::with_capacity(text.len()), 0);
    text.chars().for_each(|c| show(c, &mut marks, &mut clean));
    clean
}

/// A JSON document that means the same.
pub(super) fn json(document: &str) -> String {
    let mut clean = String::with_capacity(document.len());
    for c in document.chars() {
        // What is left of these stands in strings; line ends are between them.
        if c == '\n' || !is_unsafe(c) {
            clean.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(clean, "\\u{unit:04x}");
            }
        }
    }
    clean
}

/// Shows a character behind `marks` of those that take no room.
fn show(c: char, marks: &mut u8, clean: &mut String) {
    *marks = if c.width() == Some(0) { marks.saturating_add(1) } else { 0 };
    if is_unsafe(c) || *marks > MOST_MARKS { clean.extend(c.escape_default()) } else { clean.push(c) }
}

/// Cleans a stream of bytes that comes in pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Cleaner {
    /// The beginning of something that the next piece decides; never more than [`LONGEST`].
    pending: Vec<u8>,
    /// Styles pass.
    styles: bool,
    /// Those in force. They end with each piece and begin again with the next: whoever is interrupted between leaves a terminal as it was.
    style: Vec<String>,
    /// What takes no room, in a row.
    marks: u8,
}

/// What begins with ESC.
enum Escape {
    /// A sequence of so many bytes that sets these styles.
    Style(usize, String),
    /// The rest is yet to come.
    Unfinished,
    /// One that is not let through.
    Other,
}

impl Cleaner {
    /// What is to be shown of the next piece.
    pub(super) fn clean(&mut self, piece: &[u8]) -> String {
        let mut bytes = std::mem::take(&mut self.pending);
        bytes.extend_from_slice(piece);
        let (mut clean, mut at) = (String::with_capacity(bytes.len()), 0);
        if !self.style.is_empty() {
            let _ = write!(clean, "\u{1b}[{}m", self.style.join(";"));
        }
        while let Some(used) = self.step(&bytes[at..], &mut clean) {
            at += used;
        }
        self.pending = bytes.split_off(at);
        if !self.style.is_empty() {
            clean.push_str(RESET);
        }
        clean
    }

    /// What is left at the end.
    pub(super) fn end(&mut self) -> String {
        let pending = std::mem::take(&mut self.pending);
        let mut clean = String::new();
        // A return at the very end does nothing.
        for byte in pending.iter().filter(|byte| **byte != b'\r') {
            byte_as_text(*byte, &mut self.marks, &mut clean);
        }
        self.style.clear();
        clean
    }

    /// Keeps what is in force after a sequence: of bold, italic, underline and colour one each, so that it stays short.
    fn wear(&mut self, style: &str) {
        let kind = |number: &str| match number {
            "1" | "22" => 1,
            "3" | "23" => 3,
            "4" | "24" => 4,
            _ => 39,
        };
        for number in style.split(';') {
            if number == "0" {
                self.style.clear();
                continue;
            }
            self.style.retain(|worn| kind(worn) != kind(number));
            if !matches!(number, "22" | "23" | "24" | "39") {
                self.style.push(number.to_owned());
            }
        }
    }

    /// Takes the first of `bytes`; `None` when there is none, or the next piece decides what it is.
    fn step(&mut self, bytes: &[u8], clean: &mut String) -> Option<usize> {
        match *bytes.first()? {
            b'\r' => {
                // What follows a return would overwrite the line: it gets a line of its own.
                if *bytes.get(1)? != b'\n' {
                    clean.push('\n');
                }
                Some(1)
            }
            0x1b => match escape(bytes) {
                Escape::Style(length, style) => {
                    if self.styles && !style.is_empty() {
                        let _ = write!(clean, "\u{1b}[{style}m");
                        self.wear(&style);
                    }
                    Some(length)
                }
                Escape::Unfinished => None,
                Escape::Other => {
                    show('\u{1b}', &mut self.marks, clean);
                    Some(1)
                }
            },
            byte @ (b'\n' | b'\t') => {
                self.marks = 0;
                clean.push(char::from(byte));
                Some(1)
            }
            byte if byte.is_ascii() => {
                show(char::from(byte), &mut self.marks, clean);
                Some(1)
            }
            first => {
                let part = &bytes[..bytes.len().min(4)];
                let (valid, wrong) = match std::str::from_utf8(part) {
                    Ok(text) => (text, None),
                    Err(error) => {
                        let valid = std::str::from_utf8(&part[..error.valid_up_to()]).unwrap_or_default();
                        (valid, Some(error.error_len()))
                    }
                };
                match (valid.chars().next(), wrong) {
                    (Some(c), _) => {
                        show(c, &mut self.marks, clean);
                        Some(c.len_utf8())
                    }
                    (None, Some(None)) if bytes.len() < 4 => None,
                    (None, _) => {
                        byte_as_text(first, &mut self.marks, clean);
                        Some(1)
                    }
                }
            }
        }
    }
}

fn byte_as_text(byte: u8, marks: &mut u8, clean: &mut String) {
    if byte.is_ascii() {
        show(char::from(byte), marks, clean);
    } else {
        *marks = 0;
        let _ = write!(clean, "\\x{byte:02x}");
    }
}

fn escape(bytes: &[u8]) -> Escape {
    match bytes.get(1) {
        None => return Escape::Unfinished,
        Some(b'[') => {}
        Some(_) => return Escape::Other,
    }
    let digits = bytes[2..].iter().take_while(|byte| matches!(byte, b'0'..=b'9' | b';')).count();
    if digits + 3 > LONGEST {
        return Escape::Other;
    }
    match bytes.get(2 + digits) {
        None => Escape::Unfinished,
        Some(b'm') => {
            let numbers = std::str::from_utf8(&bytes[2..2 + digits]).unwrap_or_default();
            Escape::Style(3 + digits, styles(numbers))
        }
        Some(_) => Escape::Other,
    }
}

/// Those of the numbers that pass, in their order.
fn styles(numbers: &str) -> String {
    let mut numbers = numbers.split(';').map(|number| if number.is_empty() { Some(0) } else { number.parse().ok() });
    let mut pass: Vec<String> = Vec::new();
    while let Some(number) = numbers.next() {
        match number {
            Some(0) => pass = vec!["0".to_owned()],
            Some(style @ (1 | 3 | 4 | 22 | 23 | 24 | 31..=36 | 39 | 91..=96)) => pass.push(u8::to_string(&style)),
            // One of many colours: by a number, or by three.
            Some(38 | 48 | 58) => {
                let more = match numbers.next() {
                    Some(Some(5)) => 1,
                    Some(Some(2)) => 3,
                    _ => 0,
                };
                numbers.by_ref().take(more).for_each(drop);
            }
            _ => {}
        }
    }
    pass.join(";")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(styles: bool, pieces: &[&[u8]]) -> String {
        let mut cleaner = Cleaner { styles, ..Cleaner::default() };
        let mut all = String::new();
        let begin =
            |style: &[String]| if style.is_empty() { String::new() } else { format!("\u{1b}[{}m", style.join(";")) };
        for piece in pieces {
            // What is in force ends with each piece and begins again with the next, which is left out here.
            let again = begin(&cleaner.style);
            let clean = cleaner.clean(piece);
            let clean = clean.strip_prefix(&again).expect("it begins again");
            let over = if cleaner.style.is_empty() { "" } else { RESET };
            all.push_str(clean.strip_suffix(over).expect("it ends"));
        }
        let over = if cleaner.style.is_empty() { "" } else { RESET };
        all.push_str(&cleaner.end());
        all.push_str(over);
        all
    }

    #[test]
    fn what_a_terminal_would_obey_is_spelled() {
        for (written, seen) in [
            (&b"plain\ttext\n\xc3\xa9 \xe6\x97\xa5\n"[..], "plain\ttext\né 日\n"),
            // The cursor, the screen, a title, a link, a question that types its answer, the clipboard.
            (b"\x1b[2J\x1b[1;1H", "\\u{1b}[2J\\u{1b}[1;1H"),
            (b"\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}"),
            (b"\x1b]8;;http://x\x1b\\y", "\\u{1b}]8;;http://x\\u{1b}\\y"),
            (b"\x1b[6n\x1bc\x1b(0", "\\u{1b}[6n\\u{1b}c\\u{1b}(0"),
            (b"a\x08b\x7f\x0b\x0c\x00", "a\\u{8}b\\u{7f}\\u{b}\\u{c}\\u{0}"),
            // The same by one character, as text and as a byte that is no text.
            (b"\xc2\x9b2J \x9b2J", "\\u{9b}2J \\x9b2J"),
            // A line that is written over shows both.
            (b"password: \rdone\r\nnext\r", "password: \ndone\nnext"),
            // Right to left, and what is not seen.
            ("a\u{202e}b\u{2066}c\u{200b}d\u{e0041}".as_bytes(), "a\\u{202e}b\\u{2066}c\\u{200b}d\\u{e0041}"),
            // What joins letters is seen.
            ("👨\u{200d}👩".as_bytes(), "👨\u{200d}👩"),
            (b"cut \xe6\x97", "cut \\xe6\\x97"),
            (b"\xf0\x9f\x98z \xff", "\\xf0\\x9f\\x98z \\xff"),
        ] {
            assert_eq!(shown(true, &[written]), seen, "{written:?}");
        }
    }

    #[test]
    fn styles_pass_when_text_stays_readable_and_end_with_the_output() {
        for (written, seen) in [
            ("\u{1b}[31mred\u{1b}[0m.", "\u{1b}[31mred\u{1b}[0m."),
            ("\u{1b}[1;33;40mx", "\u{1b}[1;33mx\u{1b}[0m"),
            // Black, white, any background, concealed, faint, inverse, blinking.
            ("\u{1b}[30ma\u{1b}[37;97mb\u{1b}[41mc\u{1b}[8md\u{1b}[2;7;5me", "abcde"),
            // The numbers of a colour are none of their own.
            ("\u{1b}[38;5;31mx\u{1b}[38;2;1;3;31;4my", "x\u{1b}[4my\u{1b}[0m"),
            ("\u{1b}[31;mx\u{1b}[mz", "\u{1b}[0mx\u{1b}[0mz"),
            ("\u{1b}[4:3mx", "\\u{1b}[4:3mx"),
        ] {
            assert_eq!(shown(true, &[written.as_bytes()]), seen, "{written:?}");
        }
        assert_eq!(shown(false, &[b"\x1b[31mred\x1b[0m"]), "red");
        let long = [&b"\x1b["[..], &[b'1'; 100], b"m"].concat();
        assert!(shown(true, &[&long]).starts_with("\\u{1b}[111"));
    }

    #[test]
    fn a_style_ends_with_each_piece_and_begins_again_with_the_next() {
        let mut cleaner = Cleaner { styles: true, ..Cleaner::default() };
        assert_eq!(cleaner.clean(b"\x1b[31mred \x1b[1mand"), "\u{1b}[31mred \u{1b}[1mand\u{1b}[0m");
        assert_eq!(cleaner.clean(b"bold\x1b[32m"), "\u{1b}[31;1mbold\u{1b}[32m\u{1b}[0m");
        assert_eq!(cleaner.clean(b"x\x1b[39;22my"), "\u{1b}[1;32mx\u{1b}[39;22my");
        assert_eq!((cleaner.clean(b"z"), cleaner.end()), ("z".to_owned(), String::new()));
    }

    #[test]
    fn a_few_marks_on_a_letter_pass_and_a_pile_of_them_is_spelled() {
        // Thai, Devanagari, a family.
        for text in ["ที่นี่", "क्षि", "👩\u{200d}❤\u{fe0f}\u{200d}👩", "e\u{301}\u{323}\u{302}\u{303}x"]
        {
            assert_eq!(shown(true, &[text.as_bytes()]), text);
            assert_eq!(line(text), text);
        }
        let pile = format!("a{}b", "\u{336}".repeat(6));
        let seen = "a\u{336}\u{336}\u{336}\u{336}\\u{336}\\u{336}b";
        assert_eq!(
            (line(&pile), lines(&pile), shown(true, &[pile.as_bytes()])),
            (seen.into(), seen.into(), seen.into())
        );
        // Also when it comes mark by mark.
        let marks: Vec<&[u8]> = pile.split_inclusive(|_| true).map(str::as_bytes).collect();
        assert_eq!(shown(true, &marks), seen);
        let unseen = "\u{200c}\u{200d}".repeat(20);
        assert!(line(&unseen).ends_with("\\u{200c}\\u{200d}"));
    }

    #[test]
    fn a_document_in_json_means_the_same() {
        let document = serde_json::json!({"a\u{9b}": "x\u{202e}\u{1b}[2J\u{e0041}\u{7f}\n", "b": ["日本", 1]});
        let text = json(&serde_json::to_string_pretty(&document).expect("is written"));
        assert!(!text.chars().any(|c| c != '\n' && is_unsafe(c)), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("is read"), document);
    }

    proptest! {
        /// Whatever is written, in whatever pieces: the same is seen, and of what a terminal obeys only styles and line ends.
        #[test]
        fn pieces_do_not_matter_and_nothing_slips_through(
            parts in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..6),
                prop::sample::select(vec!["\u{1b}[", "\u{1b}[31", ";1m", "m", "\r", "\r\n", "\u{9b}", "\u{202e}", "\u{1b}]0;", "38;5;", "é"])
                    .prop_map(|text| text.as_bytes().to_vec()),
            ], 0..12),
        ) {
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let seen = shown(true, &parts);
            prop_assert_eq!(&seen, &shown(true, &[&parts.concat()]));
            let mut rest = seen.as_str();
            while let Some(at) = rest.find(|c| is_unsafe(c) && !matches!(c, '\n' | '\t')) {
                let style = rest[at..].strip_prefix("\u{1b}[").and_then(|text| text.split_once('m'));
                let Some((numbers, behind)) = style else { panic!("{seen:?}") };
                prop_assert!(numbers.chars().all(|c| c.is_ascii_digit() || c == ';'), "{:?}", seen);
                rest = behind;
            }
        }
    }
}
