//! What is found and read, and what is not.

use super::*;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("jobcell-collect-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }
    fn collector(&self, rules: &[&str]) -> Collector {
        let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
        Collector::new(Collect { root: self.0.to_string_lossy().into_owned(), rules }, None)
    }
    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, bytes).expect("written");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn page(collector: &mut Collector, from: u64) -> Page {
    collector.list(from);
    while collector.walks() {
        collector.turn();
    }
    match collector.say() {
        Some(FromWarden::Page(page)) => page,
        other => panic!("{other:?} is no page"),
    }
}

fn all(collector: &mut Collector) -> Vec<Entry> {
    let mut all = Vec::new();
    loop {
        let page = page(collector, all.len() as u64);
        all.extend(page.entries);
        if page.end {
            all.sort_by(|a, b| a.path.cmp(&b.path));
            return all;
        }
    }
}

fn pieces(collector: &mut Collector) -> (Vec<u8>, i32) {
    let mut bytes = Vec::new();
    loop {
        let Some(FromWarden::Piece(piece)) = collector.say() else { panic!("no piece") };
        bytes.extend(piece.bytes);
        if piece.last {
            return (bytes, piece.error);
        }
    }
}

#[test]
fn what_rules_mean_is_found_once_with_what_it_is() {
    let place = Place::new("found");
    place.write("a/x.txt", b"12345");
    place.write("a/b/y.txt", b"1");
    place.write("z.bin", b"");
    place.write(".jobcell-script", b"own");
    std::os::unix::fs::symlink("/etc/passwd", place.0.join("a/link.txt")).expect("a link");
    std::os::unix::fs::symlink("a", place.0.join("folder")).expect("a link");
    let pipe = CString::new(place.0.join("a/pipe.txt").as_os_str().as_bytes()).expect("a path");
    sys::named_pipe(&pipe).expect("a pipe");
    place.write("a/\u{e9}\n.txt", b"1");
    std::fs::write(place.0.join("a").join(std::ffi::OsStr::from_bytes(b"\xff.txt")), b"1").expect("written");
    let mut collector = place.collector(&["**/*.txt", "a", "nothing"]);
    let found: Vec<_> = all(&mut collector).into_iter().map(|entry| (entry.path, entry.kind, entry.rules)).collect();
    let one = |path: &[u8], kind| (path.to_vec(), kind, 3);
    let wanted = [
        one(b"a/b/y.txt", EntryKind::File),
        one(b"a/link.txt", EntryKind::Link),
        one(b"a/pipe.txt", EntryKind::Other),
        one(b"a/x.txt", EntryKind::File),
        one("a/\u{e9}\n.txt".as_bytes(), EntryKind::File),
        one(b"a/\xff.txt", EntryKind::File),
    ];
    assert_eq!(found, wanted);
}

#[test]
fn a_path_with_a_secret_in_it_is_told_without_it() {
    let place = Place::new("secret");
    place.write("a/x-hunter22.txt", b"1");
    place.write("hunter22/y.txt", b"1");
    place.write("z.txt", b"hunter22");
    let mut collector = place.collector(&["**/*.txt"]);
    collector.secrets = Some(Arc::new(Patterns::new([b"hunter22".as_slice()].into_iter())));
    let found: Vec<_> = all(&mut collector).into_iter().map(|entry| (entry.path, entry.kind)).collect();
    let one = |path: &[u8], kind| (path.to_vec(), kind);
    let wanted =
        [one(b"***/y.txt", EntryKind::Secret), one(b"a/x-***.txt", EntryKind::Secret), one(b"z.txt", EntryKind::File)];
    assert_eq!(found, wanted);
}

#[test]
fn ten_thousand_files_come_in_pages_and_any_page_can_be_asked_for_again() {
    let place = Place::new("many");
    for n in 0..10_000 {
        place.write(&format!("d{}/file-{n}", n % 7), b"");
    }
    let mut collector = place.collector(&["**"]);
    let found = all(&mut collector);
    assert_eq!(found.len(), 10_000);
    assert!(found.windows(2).all(|pair| pair[0].path < pair[1].path), "each once");
    let (again, behind) = (page(&mut collector, 3), page(&mut collector, 9_990));
    assert!(again.entries.len() > 100 && !again.end);
    assert_eq!((behind.from, behind.entries.len(), behind.end), (9_990, 10, true));
}

#[test]
fn folders_beyond_the_depth_are_told_and_not_walked() {
    let place = Place::new("deep");
    place.write(&format!("{}x", "d/".repeat(80)), b"1");
    let found = all(&mut place.collector(&["**/x"]));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].kind, found[0].path.len()), (EntryKind::TooDeep, 2 * MOST_DEPTH - 1));
}

#[test]
fn parts_of_files_come_as_they_are_asked_for() {
    let place = Place::new("parts");
    let bytes: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    place.write("a/f", &bytes);
    let mut collector = place.collector(&[]);
    collector.read(1, 0, 150_000, b"a/f".to_vec()).expect("taken");
    collector.read(2, 150_000, 150_000, b"a/f".to_vec()).expect("taken");
    collector.read(3, 0, 10, b"a/nothing".to_vec()).expect("taken");
    assert!(pieces(&mut collector) == (bytes[..150_000].to_vec(), 0));
    assert!(pieces(&mut collector) == (bytes[150_000..].to_vec(), 0));
    assert_eq!(pieces(&mut collector), (Vec::new(), sys::ENOENT));
    assert!(collector.say().is_none());
    for n in 0..MOST_READS as u32 {
        collector.read(n, 0, 1, b"a/f".to_vec()).expect("taken");
    }
    assert!(collector.read(0, 0, 1, b"a/f".to_vec()).is_err());
}

#[test]
fn nothing_but_regular_files_beneath_the_root_is_read() {
    let place = Place::new("beneath");
    place.write("a/f", b"1");
    std::os::unix::fs::symlink("/etc/passwd", place.0.join("link")).expect("a link");
    std::os::unix::fs::symlink("/etc", place.0.join("folder")).expect("a link");
    let pipe = CString::new(place.0.join("pipe").as_os_str().as_bytes()).expect("a path");
    sys::named_pipe(&pipe).expect("a pipe");
    let mut collector = place.collector(&[]);
    for bad in
        ["../../etc/passwd", "/etc/passwd", "a/../f", "", "a/", "./a/f", "link", "folder/passwd", "pipe", "a", "a\0f"]
    {
        collector.read(1, 0, 10, bad.into()).expect("taken");
        let (bytes, error) = pieces(&mut collector);
        assert!(bytes.is_empty() && error != 0, "{bad:?}");
    }
    // A file that is swapped for a link between the listing and the reading is not followed either.
    std::fs::remove_file(place.0.join("a/f")).expect("removed");
    std::os::unix::fs::symlink("/etc/passwd", place.0.join("a/f")).expect("a link");
    collector.read(1, 0, 10, b"a/f".to_vec()).expect("taken");
    assert_eq!(pieces(&mut collector).0, b"");
}

#[test]
fn a_file_that_changes_shows_it() {
    let place = Place::new("changes");
    place.write("f", &[1; 100_000]);
    let mut collector = place.collector(&["f"]);
    let listed = all(&mut collector)[0].stamp;
    collector.read(1, 0, 100_000, b"f".to_vec()).expect("taken");
    let Some(FromWarden::Piece(before)) = collector.say() else { panic!("no piece") };
    let grown = std::fs::File::options().append(true).open(place.0.join("f")).expect("opens");
    std::io::Write::write_all(&mut &grown, b"more").expect("written");
    let Some(FromWarden::Piece(after)) = collector.say() else { panic!("no piece") };
    assert_eq!(before.stamp, listed);
    assert_ne!(after.stamp, listed);
    assert!(Path::new(&place.0).exists());
}
