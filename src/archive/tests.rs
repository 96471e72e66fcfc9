//! Crafted archives, each with its exact outcome, and archives that no one crafted: whatever comes, nothing is named that leaves the
//! workspace, and the bounds hold.

use super::crafted::{self, Case};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// Writes down what is made, and holds it to the rules that everything relies on.
#[derive(Default)]
struct Strict {
    made: BTreeSet<String>,
    links: BTreeSet<String>,
    left: u64,
    bytes: u64,
}

impl Strict {
    fn enter(&mut self, path: &str) {
        assert_eq!(self.left, 0, "a file was left before its end");
        assert!(!path.is_empty() && path.split('/').all(|name| !matches!(name, "" | "." | "..")), "{path:?}");
        assert!(!path.chars().any(char::is_control), "{path:?}");
        for (at, _) in path.match_indices('/') {
            assert!(self.made.contains(&path[..at]) && !self.links.contains(&path[..at]), "{path:?}");
        }
        assert!(self.made.insert(path.to_owned()), "{path:?} is made twice");
        let folded: BTreeSet<String> = self.made.iter().map(|path| path.to_lowercase()).collect();
        assert_eq!(folded.len(), self.made.len());
    }
}

impl Sink for Strict {
    fn folder(&mut self, path: &str) -> io::Result<()> {
        self.enter(path);
        Ok(())
    }
    fn file(&mut self, path: &str, _: bool, bytes: u64) -> io::Result<()> {
        self.enter(path);
        self.links.insert(path.to_owned());
        self.left = bytes;
        Ok(())
    }
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.left = self.left.checked_sub(bytes.len() as u64).expect("no more than was said");
        self.bytes += bytes.len() as u64;
        Ok(())
    }
    fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.enter(path);
        self.links.insert(path.to_owned());
        let mut depth = path.matches('/').count();
        assert!(!target.starts_with('/'));
        for name in target.split('/').filter(|name| !matches!(*name, "" | ".")) {
            depth = if name == ".." { depth.checked_sub(1).expect("stays inside") } else { depth + 1 };
        }
        Ok(())
    }
}

fn read(archive: &[u8], folder: &str, bounds: Bounds) -> (Result<(), Unread>, Strict, Contents) {
    let (mut tree, mut sink) = (Tree::new(bounds), Strict::default());
    let read = unpack(archive, folder, &mut tree, &mut sink);
    (read, sink, tree.contents())
}

#[test]
fn every_crafted_archive_has_its_outcome() {
    let cases = crafted::all();
    assert!(cases.len() >= 60, "{}", cases.len());
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len(), "a name is there twice");
    for Case { name, archive, outcome } in &cases {
        let (got, sink, contents) = read(archive, ".", crafted::BOUNDS);
        match (got, outcome) {
            (Ok(()), Ok(paths)) => {
                assert_eq!(sink.made.iter().map(String::as_str).collect::<Vec<_>>(), *paths, "{name}");
                assert_eq!(sink.left, 0, "{name}");
                assert_eq!(contents.entries, paths.len() as u64, "{name}");
            }
            (Err(Unread::Refused(refusal)), Err(code)) => assert_eq!(refusal.code, *code, "{name}: {refusal}"),
            (got, wanted) => panic!("{name}: {got:?} instead of {wanted:?}"),
        }
        assert!(contents.bytes <= crafted::BOUNDS.bytes && contents.entries <= crafted::BOUNDS.entries + 1, "{name}");
    }
}

#[test]
fn a_folder_for_an_archive_is_before_every_path() {
    let archive = crafted::tar(|tar| tar.file("a/b", b"x").file("c", b"y"));
    let (got, sink, _) = read(&archive, "lib/v1", Bounds::MOST);
    assert!(got.is_ok());
    assert_eq!(sink.made.iter().collect::<Vec<_>>(), ["lib", "lib/v1", "lib/v1/a", "lib/v1/a/b", "lib/v1/c"]);
    // Links stay in the workspace, and may leave the folder of their archive.
    let archive = crafted::tar(|tar| tar.link("l", "../other"));
    assert!(read(&archive, "lib", Bounds::MOST).0.is_ok());
    let archive = crafted::tar(|tar| tar.link("l", "../../other"));
    assert!(matches!(
        read(&archive, "lib", Bounds::MOST).0,
        Err(Unread::Refused(Refusal { code: "link_outside", .. }))
    ));
}

#[test]
fn archives_of_one_job_share_a_tree() {
    let (mut tree, mut sink) = (Tree::new(Bounds::MOST), Strict::default());
    let first = crafted::tar(|tar| tar.file("a/x", b"1").link("out", "a"));
    unpack(first.as_slice(), ".", &mut tree, &mut sink).expect("is good");
    for (second, code) in [
        (crafted::tar(|tar| tar.file("a/x", b"2")), "duplicate"),
        (crafted::tar(|tar| tar.file("A/y", b"2")), "case_clash"),
        (crafted::tar(|tar| tar.file("out/y", b"2")), "through_link"),
        (crafted::tar(|tar| tar.file("a/x/y", b"2")), "through_file"),
    ] {
        match unpack(second.as_slice(), ".", &mut tree, &mut sink) {
            Err(Unread::Refused(refusal)) => assert_eq!(refusal.code, code),
            other => panic!("{code}: {other:?}"),
        }
    }
    let third = crafted::tar(|tar| tar.folder("a").file("a/y", b"2"));
    unpack(third.as_slice(), ".", &mut tree, &mut sink).expect("folders are shared");
}

#[test]
fn a_source_that_fails_says_so_and_is_no_refusal() {
    struct Broken(usize, Vec<u8>);
    impl Read for Broken {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let rest = &self.1[self.0..];
            if rest.is_empty() {
                return Err(io::Error::other("the line went dead"));
            }
            let count = rest.len().min(to.len()).min(100);
            to[..count].copy_from_slice(&rest[..count]);
            self.0 += count;
            Ok(count)
        }
    }
    let plain = crafted::tar(|tar| tar.file("a", &[7; 5000]));
    for whole in [crafted::zstd(&plain), plain] {
        for cut in [0, 5, 300, whole.len() / 2] {
            let mut tree = Tree::new(Bounds::MOST);
            let got = unpack(Broken(0, whole[..cut.min(whole.len() - 1)].to_vec()), ".", &mut tree, &mut Nowhere);
            assert!(matches!(&got, Err(Unread::Failed(error)) if error.to_string().contains("dead")), "{cut}: {got:?}");
        }
    }
}

#[test]
fn a_million_entries_stop_at_the_bound() {
    let mut archive = Vec::new();
    for n in 0..=2000 {
        archive.extend_from_slice(&crafted::header(&format!("d{n}/"), b'5', 0, 0o755));
    }
    archive.resize(archive.len() + 1024, 0);
    let bounds = Bounds { entries: 1000, bytes: 1 << 20 };
    let (got, sink, _) = read(&archive, ".", bounds);
    assert!(matches!(got, Err(Unread::Refused(Refusal { code: "too_many", .. }))));
    assert_eq!(sink.made.len(), 1000);
    // The same folder again and again makes nothing, and does not go on for ever either.
    let mut archive = crafted::header("d/", b'5', 0, 0o755).repeat(5000);
    archive.resize(archive.len() + 1024, 0);
    assert!(matches!(read(&archive, ".", bounds).0, Err(Unread::Refused(Refusal { code: "too_many", .. }))));
}

/// Those that are quick to read.
static SMALL: LazyLock<Vec<Case>> = LazyLock::new(|| {
    crafted::all().into_iter().filter(|case| case.archive.len() < 100_000 && case.name != "a bomb of zeros").collect()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_comes_the_rules_hold(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let _ = read(&bytes, ".", crafted::BOUNDS);
        let _ = read(&crafted::zstd(&bytes), ".", crafted::BOUNDS);
    }

    #[test]
    fn a_good_archive_with_changed_bytes_keeps_the_rules(
        which in 0usize..1000,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..6),
    ) {
        let mut archive = SMALL[which % SMALL.len()].archive.clone();
        if !archive.is_empty() {
            for (at, byte, fix) in changes {
                let at = at.index(archive.len());
                archive[at] = byte;
                // With a right checksum the change gets further.
                if fix && let Some(block) = archive.get_mut(at / 512 * 512..at / 512 * 512 + 512) {
                    crafted::sum(block);
                }
            }
        }
        let (got, _, contents) = read(&archive, ".", crafted::BOUNDS);
        prop_assert!(contents.bytes <= crafted::BOUNDS.bytes);
        if let Err(Unread::Failed(error)) = got {
            prop_assert!(false, "{error}");
        }
    }

    #[test]
    fn what_is_packed_comes_out_equal(files in proptest::collection::btree_map("[a-z]{1,8}(/[a-z]{1,8}){0,3}\\.f", proptest::collection::vec(any::<u8>(), 0..2000), 0..8), packed in any::<bool>()) {
        let archive = crafted::tar(|tar| files.iter().fold(tar, |tar, (path, content)| tar.file(path, content)));
        let archive = if packed { crafted::zstd(&archive) } else { archive };
        let (got, sink, _) = read(&archive, ".", Bounds::MOST);
        prop_assert!(got.is_ok(), "{:?}", got);
        prop_assert_eq!(sink.bytes, files.values().map(|content| content.len() as u64).sum::<u64>());
        prop_assert!(files.keys().all(|path| sink.made.contains(path)));
    }
}
