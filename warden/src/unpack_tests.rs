//! What a stream makes, and that nothing is made outside its folder whatever it says.

use super::*;
use crate::wire::InputWriter;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A folder for a workspace, and one beside it that must stay as it is.
struct Room(PathBuf);

impl Room {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("jobcell-unpack-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        for folder in ["workspace", "outside"] {
            std::fs::create_dir_all(path.join(folder)).expect("a folder");
        }
        std::fs::write(path.join("outside/kept"), b"kept").expect("writes");
        Self(path)
    }

    fn root(&self) -> String {
        self.0.join("workspace").to_string_lossy().into_owned()
    }

    fn begin(&self, again: bool) -> Unpack {
        let begin = if again { Unpack::begin } else { Unpack::into };
        begin(&self.root()).unwrap_or_else(|failed| panic!("{failed:?}"))
    }

    /// The folder outside is as it was.
    fn assert_untouched(&self) {
        let names: Vec<_> = std::fs::read_dir(self.0.join("outside")).expect("a folder").collect();
        assert_eq!(names.len(), 1);
        assert_eq!(std::fs::read(self.0.join("outside/kept")).expect("is there"), b"kept");
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A stream as the agent writes it.
fn stream(write: impl FnOnce(&mut InputWriter, &mut Vec<u8>)) -> (Vec<u8>, InputTotals) {
    let (mut writer, mut out) = (InputWriter::default(), Vec::new());
    write(&mut writer, &mut out);
    let totals = writer.end(&mut out);
    (out, totals)
}

fn file(writer: &mut InputWriter, out: &mut Vec<u8>, path: &str, executable: bool, content: &[u8]) {
    writer.file(path, executable, content.len() as u64, out);
    writer.data(content);
    out.extend_from_slice(content);
}

fn good(big: &[u8]) -> (Vec<u8>, InputTotals) {
    stream(|writer, out| {
        writer.folder("a", out);
        writer.folder("a/b", out);
        file(writer, out, "a/b/big", false, big);
        file(writer, out, "a/b/run", true, b"#!/bin/sh\n");
        file(writer, out, "a/empty", false, b"");
        file(writer, out, "top", false, b"t");
        writer.link("a/link", "b/big", out);
    })
}

fn looks_good(room: &Room, big: &[u8]) {
    let at = |path: &str| room.0.join("workspace").join(path);
    assert!(std::fs::read(at("a/b/big")).expect("is there") == big);
    assert!(std::fs::read(at("a/link")).expect("leads there") == big);
    assert_eq!(std::fs::read(at("a/empty")).expect("is there"), b"");
    assert_eq!(std::fs::read(at("top")).expect("is there"), b"t");
    let mode = |path: &str| std::fs::symlink_metadata(at(path)).expect("is there").permissions().mode() & 0o7777;
    assert_eq!([mode("a/b/big"), mode("a/b/run"), mode("a/b")], [0o644, 0o755, 0o755]);
}

#[test]
fn a_stream_in_any_pieces_makes_the_same() {
    let big: Vec<u8> = (0..5000u32).map(|at| at as u8).collect();
    let (bytes, totals) = good(&big);
    for size in [1, 2, 3, 7, 64, 4096, 1 << 20] {
        let room = Room::new(&format!("pieces-{size}"));
        let mut unpack = room.begin(false);
        let mut offset = 0;
        for piece in bytes.chunks(size) {
            assert_eq!(unpack.totals(), None);
            // A repeat, and what lies behind a hole, change nothing.
            assert_eq!(unpack.part(offset + 1, piece), Ok(offset));
            let next = offset + piece.len() as u64;
            assert_eq!(unpack.part(offset, piece), Ok(next));
            offset = next;
        }
        assert_eq!(unpack.totals(), Some(totals));
        looks_good(&room, &big);
    }
}

#[test]
fn what_is_in_its_place_is_told_in_large_steps_soon_and_at_the_end_at_once() {
    let room = Room::new("told");
    let (bytes, _) = good(&vec![7; 3 * TELL_BYTES as usize]);
    let mut unpack = room.begin(false);
    let (mut at, mut words) = (0, Vec::new());
    let mut give = |unpack: &mut Unpack, count: usize| {
        at = unpack.part(at, &bytes[at as usize..bytes.len().min(at as usize + count)]).expect("is taken");
        at
    };
    assert_eq!((unpack.tell(0), unpack.tell_at()), (None, None));
    give(&mut unpack, 1000);
    assert_eq!((unpack.tell(5), unpack.tell_at()), (None, Some(5 + TELL_WITHIN_NS)));
    let taken = give(&mut unpack, 1000);
    assert_eq!(unpack.tell(4 + TELL_WITHIN_NS), None);
    assert_eq!((unpack.tell(5 + TELL_WITHIN_NS), unpack.tell_at()), (Some(taken), None));
    while unpack.totals().is_none() {
        give(&mut unpack, 1000);
        words.extend(unpack.tell(9 + TELL_WITHIN_NS));
    }
    assert_eq!(words.len(), 3, "two full steps and the end: {words:?}");
    assert_eq!(words.last(), Some(&(bytes.len() as u64)));
    assert_eq!(unpack.tell(u64::MAX / 2), None, "once");
}

#[test]
fn a_stream_that_begins_again_leaves_nothing_of_the_first() {
    let room = Room::new("again");
    let big = vec![7; 3000];
    let (bytes, totals) = good(&big);
    let mut first = room.begin(false);
    first.part(0, &bytes[..2000]).expect("is taken");
    std::os::unix::fs::symlink(room.0.join("outside"), room.0.join("workspace/out")).expect("a link");
    let mut second = room.begin(true);
    second.part(0, &bytes).expect("is taken");
    assert_eq!(second.totals(), Some(totals));
    looks_good(&room, &big);
    assert!(!room.0.join("workspace/out").exists());
    room.assert_untouched();
}

#[test]
fn nothing_is_made_outside_whatever_the_stream_says() {
    let outside = |writer: &mut InputWriter, out: &mut Vec<u8>, path: &str| file(writer, out, path, false, b"x");
    // What is there when the stream comes, as if it had been made by somebody else.
    type Before = fn(&Path);
    let nothing: Before = |_| {};
    let link: Before = |at| std::os::unix::fs::symlink("../outside", at.join("d")).expect("a link");
    let link_to_file: Before = |at| std::os::unix::fs::symlink("../outside/kept", at.join("f")).expect("a link");
    let cases: [(&str, Before, &str); 12] = [
        ("parent", nothing, "../outside/x"),
        ("deep-parent", nothing, "a/../../outside/x"),
        ("absolute", nothing, "/tmp/jobcell-unpack-never"),
        ("empty", nothing, ""),
        ("slash", nothing, "a/"),
        ("dot", nothing, "./x"),
        ("zero", nothing, "a\0b"),
        ("missing", nothing, "nowhere/x"),
        ("through-link", link, "d/x"),
        ("over-link", link, "d"),
        ("through-file-link", link_to_file, "f/x"),
        ("over-file-link", link_to_file, "f"),
    ];
    for (name, before, path) in cases {
        let room = Room::new(name);
        before(Path::new(&room.root()));
        let (bytes, _) = stream(|writer, out| outside(writer, out, path));
        assert!(room.begin(false).part(0, &bytes).is_err(), "{name}");
        room.assert_untouched();
        let (bytes, _) = stream(|writer, out| {
            writer.folder(path, out);
        });
        assert!(room.begin(false).part(0, &bytes).is_err() || name == "missing", "{name}");
        let (bytes, _) = stream(|writer, out| writer.link(path, "x", out));
        assert!(room.begin(false).part(0, &bytes).is_err(), "{name}");
        room.assert_untouched();
    }
    assert!(!Path::new("/tmp/jobcell-unpack-never").exists());
    // Links that the stream made itself are not followed either.
    let room = Room::new("own-link");
    let (bytes, _) = stream(|writer, out| {
        writer.link("d", "../outside", out);
        outside(writer, out, "d/x");
    });
    assert_eq!(room.begin(false).part(0, &bytes), Err(("inputs d/x".into(), sys::ENOTDIR)));
    room.assert_untouched();
}

#[test]
fn a_fifo_that_is_in_the_way_stops_nothing() {
    let room = Room::new("fifo");
    let made = std::process::Command::new("mkfifo").arg(room.0.join("workspace/pipe")).status();
    assert!(made.expect("mkfifo").success());
    let (bytes, _) = stream(|writer, out| file(writer, out, "pipe", false, b"x"));
    assert_eq!(room.begin(false).part(0, &bytes), Err(("inputs pipe".into(), sys::EEXIST)));
}

#[test]
fn garbage_is_answered_without_a_panic_and_stays_inside() {
    let room = Room::new("garbage");
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut roll = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let (whole, _) = good(&[1; 300]);
    for _ in 0..300 {
        let mut bytes = whole.clone();
        for _ in 0..=roll(4) {
            let at = roll(bytes.len() as u64) as usize;
            bytes[at] = roll(256) as u8;
        }
        let mut unpack = room.begin(true);
        let mut offset = 0;
        for piece in bytes.chunks(1 + roll(400) as usize) {
            match unpack.part(offset, piece) {
                Ok(next) => offset = next,
                Err(_) => break,
            }
        }
    }
    room.assert_untouched();
}

#[test]
fn an_end_that_counts_other_entries_and_what_follows_it_are_refused() {
    let room = Room::new("end");
    let (mut bytes, _) = stream(|writer, out| writer.folder("a", out));
    let at = bytes.len() - 8;
    bytes[at] = 2;
    assert!(room.begin(false).part(0, &bytes).is_err());
    let (mut bytes, _) = stream(|writer, out| writer.folder("b", out));
    bytes.push(1);
    assert!(room.begin(true).part(0, &bytes).is_err());
}
