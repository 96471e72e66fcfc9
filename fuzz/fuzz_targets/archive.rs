//! Archives: whatever comes, nothing is named that leaves the workspace or goes through a link, and the bounds hold.
#![no_main]

use jobcell::archive::{Bounds, Sink, Tree, Unread, unpack};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeSet;
use std::io;

const BOUNDS: Bounds = Bounds { entries: 200, bytes: 1 << 20 };

#[derive(Default)]
struct Strict {
    folders: BTreeSet<String>,
    others: BTreeSet<String>,
    left: u64,
}

impl Strict {
    fn enter(&mut self, path: &str) {
        assert_eq!(self.left, 0);
        assert!(path.split('/').all(|name| !matches!(name, "" | "." | "..")) && !path.contains('\0'));
        assert!(path.match_indices('/').all(|(at, _)| self.folders.contains(&path[..at])));
        assert!(!self.folders.contains(path) && !self.others.contains(path));
    }
}

impl Sink for Strict {
    fn folder(&mut self, path: &str) -> io::Result<()> {
        self.enter(path);
        self.folders.insert(path.to_owned());
        Ok(())
    }
    fn file(&mut self, path: &str, _: bool, bytes: u64) -> io::Result<()> {
        self.enter(path);
        self.others.insert(path.to_owned());
        self.left = bytes;
        Ok(())
    }
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.left = self.left.checked_sub(bytes.len() as u64).expect("no more than was said");
        Ok(())
    }
    fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.enter(path);
        self.others.insert(path.to_owned());
        assert!(!target.starts_with('/'));
        Ok(())
    }
}

fuzz_target!(|archive: &[u8]| {
    let (mut tree, mut sink) = (Tree::new(BOUNDS), Strict::default());
    let read = unpack(archive, ".", &mut tree, &mut sink);
    assert!(!matches!(read, Err(Unread::Failed(_))), "{read:?}");
    assert!(tree.contents().bytes <= BOUNDS.bytes && sink.folders.len() + sink.others.len() <= BOUNDS.entries as usize);
    assert!(read.is_err() || sink.left == 0);
});
