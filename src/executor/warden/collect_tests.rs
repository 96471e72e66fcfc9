//! Which files are fetched, and what becomes of those that are not as they should be.

use super::*;
use proptest::prelude::*;

fn limits() -> CollectLimits {
    CollectLimits {
        max_size: ByteSize::from_mib(1),
        max_total: ByteSize::from_mib(2),
        max_count: 5,
        timeout: Millis::from_secs(1),
    }
}

fn rule(path: &str, required: bool) -> ArtifactRule {
    ArtifactRule { path: path.to_owned(), required, may_change: false, max_size: None, max_count: None }
}

fn file(path: &str, size: u64, rules: u64) -> Entry {
    let stamp = Stamp { size, mtime_ns: 5_000_000, inode: 7 };
    Entry { kind: EntryKind::File, rules, mode: 0o644, stamp, path: path.as_bytes().to_vec() }
}

fn not_a_file(path: &str, kind: EntryKind, rules: u64) -> Entry {
    Entry { kind, ..file(path, 13, rules) }
}

/// A warden that has these files, all of zeros; what it does to a piece before it goes.
struct Cell<'a> {
    entries: Vec<Entry>,
    spoil: &'a dyn Fn(&mut Piece, &str),
}

#[derive(Debug, Default)]
struct Done {
    kept: Vec<(String, u64)>,
    dropped: Vec<String>,
    most_asked: u64,
}

impl Cell<'_> {
    /// Serves a collector to its end. Every `cut`-th answer is lost with its link.
    fn serve(&self, collector: &mut Collector, cut: usize) -> Done {
        let (mut done, mut asked, mut open) = (Done::default(), VecDeque::new(), None::<(String, u64)>);
        let mut todo: VecDeque<Do> = collector.begin().into();
        let mut answers = 0;
        loop {
            while let Some(one) = todo.pop_front() {
                match one {
                    Do::Send(message) => asked.push_back(message),
                    Do::Begin(wanted) => open = Some((wanted.path, 0)),
                    Do::Bytes(bytes) => open.as_mut().expect("one is open").1 += bytes.len() as u64,
                    Do::Keep => done.kept.push(open.take().expect("one is open")),
                    Do::Drop => done.dropped.push(open.take().expect("one is open").0),
                    Do::Done => return done,
                }
            }
            let lens = asked.iter().map(|one| if let ToWarden::Read { len, .. } = one { u64::from(*len) } else { 0 });
            done.most_asked = done.most_asked.max(lens.sum());
            answers += 1;
            if cut > 0 && answers % cut == 0 {
                asked.clear();
                todo.extend(collector.begin());
                continue;
            }
            match asked.pop_front().expect("something is asked for") {
                ToWarden::List { from } => {
                    let at = usize::try_from(from).expect("small");
                    let entries: Vec<Entry> = self.entries[at..].iter().take(3).cloned().collect();
                    let end = at + entries.len() == self.entries.len();
                    todo.extend(collector.page(Page { from, entries, end }).expect("was asked for"));
                }
                ToWarden::Read { number, offset, len, path } => {
                    let entry = self.entries.iter().find(|entry| entry.path == path).expect("is there");
                    let bytes = vec![
                        0;
                        usize::try_from(entry.stamp.size.saturating_sub(offset).min(len.into()))
                            .expect("small")
                    ];
                    let mut piece = Piece { number, offset, error: 0, last: true, stamp: entry.stamp, bytes };
                    (self.spoil)(&mut piece, &String::from_utf8_lossy(&path));
                    todo.extend(collector.piece(piece).expect("was asked for"));
                    todo.extend(collector.ask(true));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

fn codes(collector: &Collector) -> Vec<(&str, &str)> {
    collector.told.problems.iter().map(|problem| (problem.path.as_str(), problem.code.as_str())).collect()
}

fn kept(done: &Done) -> Vec<(&str, u64)> {
    done.kept.iter().map(|(path, size)| (path.as_str(), *size)).collect()
}

#[test]
fn files_come_whole_in_the_order_of_the_list() {
    let cell = Cell { entries: vec![file("a", 200_000, 1), file("empty", 0, 1), file("b/c", 5, 1)], spoil: &|_, _| {} };
    let mut collector = Collector::new(vec![rule("**", true)], limits());
    let done = cell.serve(&mut collector, 0);
    assert_eq!(kept(&done), [("a", 200_000), ("empty", 0), ("b/c", 5)]);
    assert!(collector.is_complete() && collector.missing().is_empty() && codes(&collector).is_empty());
    assert!(done.most_asked <= WINDOW_BYTES);
}

#[test]
fn what_is_no_file_and_what_has_no_proper_name_is_told_and_not_kept() {
    let mut bad = file("x", 1, 1);
    bad.path = b"\xff".to_vec();
    let entries = vec![
        not_a_file("link", EntryKind::Link, 1),
        not_a_file("pipe", EntryKind::Other, 1),
        not_a_file("secret", EntryKind::Unreadable, 1),
        not_a_file("named ***", EntryKind::Secret, 1),
        not_a_file("deep", EntryKind::TooDeep, u64::MAX),
        bad,
        file("../out", 1, 1),
        file("nobodys", 1, 2),
        file("ok", 1, 1),
    ];
    let mut collector = Collector::new(vec![rule("**", true)], limits());
    let done = Cell { entries, spoil: &|_, _| {} }.serve(&mut collector, 0);
    assert_eq!(kept(&done), [("ok", 1)]);
    let wanted = [
        ("link", "link"),
        ("pipe", "not_a_file"),
        ("secret", "unreadable"),
        ("named ***", "bad_name"),
        ("deep", "too_deep"),
        ("\\xff", "bad_name"),
        ("../out", "bad_name"),
    ];
    assert_eq!(codes(&collector), wanted);
    assert_eq!(
        (collector.is_complete(), collector.missing()),
        (false, vec!["**: not all of it could be kept".to_owned()])
    );
}

#[test]
fn links_alone_spoil_nothing() {
    let entries = vec![not_a_file("link", EntryKind::Link, 1), file("ok", 1, 1)];
    let mut collector = Collector::new(vec![rule("**", true)], limits());
    Cell { entries, spoil: &|_, _| {} }.serve(&mut collector, 0);
    assert!(collector.is_complete() && collector.missing().is_empty());
}

#[test]
fn what_is_too_large_or_too_many_is_told_with_its_numbers() {
    let mut few = rule("few/*", false);
    few.max_count = Some(1);
    let mut small = rule("small", false);
    small.max_size = Some(ByteSize::new(10));
    let mib = 1 << 20;
    let entries = vec![
        file("few/1", 1, 1),
        file("few/2", 1, 1),
        file("few/3", 1, 1),
        file("small", 11, 2),
        file("huge", mib + 1, 4),
        file("big1", mib, 4),
        file("big2", mib, 4),
        file("n1", 1, 4),
        file("n2", 1, 4),
        file("n3", 1, 4),
        file("n4", 1, 4),
    ];
    let mut collector = Collector::new(vec![few, small, rule("**", false), rule("none", true)], limits());
    let done = Cell { entries, spoil: &|_, _| {} }.serve(&mut collector, 0);
    assert_eq!(kept(&done), [("few/1", 1), ("big1", mib), ("n1", 1), ("n2", 1), ("n3", 1)]);
    let wanted = [
        ("small", "too_large"),
        ("huge", "too_large"),
        ("big2", "too_much"),
        ("few/*", "too_many"),
        ("", "too_many"),
        ("none", "missing"),
    ];
    assert_eq!(codes(&collector), wanted);
    assert!(collector.told.problems[3].sentence.contains("means 3 files; the first 1 "));
    assert!(collector.told.problems[4].sentence.contains("there are 6 files; the first 5 "));
    assert_eq!(collector.missing(), ["none: there is no such file"]);
}

#[test]
fn a_rule_that_matched_nothing_is_told_of_and_harms_nothing() {
    let entries = vec![not_a_file("link", EntryKind::Link, 2), file("ok", 1, 4)];
    let rules = || vec![rule("*.xml", false), rule("link", false), rule("ok", false)];
    let mut collector = Collector::new(rules(), limits());
    Cell { entries, spoil: &|_, _| {} }.serve(&mut collector, 0);
    assert_eq!(codes(&collector), [("link", "link"), ("*.xml", "no_match"), ("link", "no_match")]);
    assert!(collector.told.problems[1].sentence.contains("matched no file"));
    assert!(collector.is_complete() && collector.missing().is_empty());
    // Of what nobody has looked into, nothing is said.
    let mut collector = Collector::new(rules(), limits());
    let entries = vec![not_a_file("deep", EntryKind::TooDeep, u64::MAX)];
    Cell { entries, spoil: &|_, _| {} }.serve(&mut collector, 0);
    assert_eq!(codes(&collector), [("deep", "too_deep")]);
}

#[test]
fn a_file_that_the_store_does_not_take_is_not_fetched_to_its_end() {
    let mut collector = Collector::new(vec![rule("**", false)], limits());
    collector.begin();
    let entries = vec![file("large", 1 << 20, 1), file("next", 3, 1)];
    let asked = collector.page(Page { from: 0, entries, end: true }).expect("was asked for");
    assert_eq!(asked.len() as u64 * READ_BYTES, WINDOW_BYTES);
    let stamp = Stamp { size: 1 << 20, mtime_ns: 5_000_000, inode: 7 };
    let piece = |number: u32, offset| Piece {
        number,
        offset,
        error: 0,
        last: true,
        stamp,
        bytes: vec![0; READ_BYTES as usize],
    };
    collector.piece(piece(1, 0)).expect("was asked for");
    collector.skip();
    let sent = collector.ask(true);
    assert!(matches!(&sent[..], [Do::Send(ToWarden::Read { path, .. })] if path == b"next"), "{sent:?}");
    // What was under way comes, and goes nowhere.
    for n in 1..4 {
        assert_eq!(collector.piece(piece(n + 1, u64::from(n) * READ_BYTES)), Ok(Vec::new()));
    }
    let stamp = Stamp { size: 3, ..stamp };
    let next = Piece { number: 5, offset: 0, error: 0, last: true, stamp, bytes: vec![0; 3] };
    assert_eq!(collector.piece(next).expect("was asked for").last(), Some(&Do::Keep));
    // Nothing is open: there is nothing to be passed over.
    collector.skip();
    assert_eq!(collector.ask(true), [Do::Done]);
}

#[test]
fn a_hundred_thousand_files_are_counted_and_so_many_kept_as_may_be() {
    let entries: Vec<Entry> = (0..100_000).map(|n| file(&format!("f{n}"), 1, 1)).collect();
    let mut collector = Collector::new(vec![rule("**", false)], limits());
    let done = Cell { entries, spoil: &|_, _| {} }.serve(&mut collector, 0);
    assert_eq!((done.kept.len(), codes(&collector)), (5, vec![("", "too_many")]));
    assert!(collector.told.problems[0].sentence.contains("100000 files"));
    assert_eq!(collector.wanted.len(), 5, "the rest is not remembered");
}

#[test]
fn a_file_that_changes_is_an_error_by_name_unless_it_may() {
    let grows = |piece: &mut Piece, path: &str| {
        if path == "log" && piece.offset > 0 {
            piece.stamp.mtime_ns += 1;
        }
    };
    let entries = vec![file("log", 150_000, 1), file("after", 3, 1)];
    let mut strict = Collector::new(vec![rule("**", true)], limits());
    let done = Cell { entries: entries.clone(), spoil: &grows }.serve(&mut strict, 0);
    assert_eq!(
        (kept(&done), done.dropped.clone(), codes(&strict)),
        (vec![("after", 3)], vec!["log".to_owned()], vec![("log", "changed")])
    );
    assert_eq!(strict.missing().len(), 1);
    let may = ArtifactRule { may_change: true, ..rule("**", true) };
    let mut lax = Collector::new(vec![may.clone()], limits());
    let done = Cell { entries: entries.clone(), spoil: &grows }.serve(&mut lax, 0);
    assert_eq!((kept(&done), lax.is_complete()), (vec![("log", 150_000), ("after", 3)], true));
    // It has become shorter.
    let shrinks = |piece: &mut Piece, path: &str| {
        if path == "log" {
            piece.bytes.truncate(10);
        }
    };
    let mut strict = Collector::new(vec![rule("**", true)], limits());
    let done = Cell { entries: entries.clone(), spoil: &shrinks }.serve(&mut strict, 0);
    assert_eq!((kept(&done), codes(&strict)), (vec![("after", 3)], vec![("log", "changed")]));
    let mut lax = Collector::new(vec![may], limits());
    let done = Cell { entries, spoil: &shrinks }.serve(&mut lax, 0);
    assert_eq!(kept(&done), [("log", 10), ("after", 3)]);
}

#[test]
fn a_file_that_cannot_be_read_is_told_and_the_next_one_comes() {
    let gone = |piece: &mut Piece, path: &str| {
        if path == "a" {
            (piece.error, piece.bytes) = (2, Vec::new());
        }
    };
    let mut collector = Collector::new(vec![rule("**", false)], limits());
    let done = Cell { entries: vec![file("a", 200_000, 1), file("b", 1, 1)], spoil: &gone }.serve(&mut collector, 0);
    assert_eq!((kept(&done), codes(&collector)), (vec![("b", 1)], vec![("a", "unreadable")]));
}

#[test]
fn what_was_not_asked_for_is_a_fault() {
    let mut collector = Collector::new(vec![rule("**", false)], limits());
    assert!(collector.page(Page::default()).is_err(), "before the beginning nothing was");
    collector.begin();
    assert!(collector.page(Page { from: 1, ..Page::default() }).is_err());
    assert!(collector.page(Page { from: 0, entries: Vec::new(), end: false }).is_err(), "it would never end");
    collector.page(Page { from: 0, entries: vec![file("a", 10, 1)], end: true }).expect("was asked for");
    let piece = |number, offset, bytes| Piece { number, offset, bytes: vec![0; bytes], ..Piece::default() };
    for wrong in [piece(2, 0, 10), piece(1, 1, 9), piece(1, 0, 11), piece(1, 0, 0)] {
        assert!(collector.piece(wrong).is_err());
    }
}

proptest! {
    /// However often the link is cut, every file comes once and whole.
    #[test]
    fn cuts_lose_nothing_and_double_nothing(sizes in prop::collection::vec(0u64..300_000, 0..5), cut in 2usize..9) {
        let entries: Vec<Entry> = sizes.iter().enumerate().map(|(n, size)| file(&format!("f{n}"), *size, 1)).collect();
        let mut collector = Collector::new(vec![rule("**", false)], limits());
        let done = Cell { entries, spoil: &|_, _| {} }.serve(&mut collector, cut);
        let wanted: Vec<(String, u64)> = sizes.iter().enumerate().map(|(n, size)| (format!("f{n}"), *size)).collect();
        prop_assert_eq!(done.kept, wanted);
        prop_assert!(done.most_asked <= WINDOW_BYTES);
    }

    /// Whatever a warden sends, nothing panics and nothing is asked for without bound.
    #[test]
    fn nothing_that_a_warden_sends_harms(
        pages in prop::collection::vec((0u64..4, prop::collection::vec((0u64..200_000, any::<u64>(), any::<Vec<u8>>()), 0..6), any::<bool>()), 0..6),
        pieces in prop::collection::vec((0u32..6, 0u64..200_000, -3i32..3, any::<bool>(), 0usize..70_000), 0..20),
    ) {
        let mut collector = Collector::new(vec![rule("**", false), rule("b", true)], limits());
        collector.begin();
        for (from, entries, end) in pages {
            let entry = |(size, rules, path): (u64, u64, Vec<u8>)| Entry { path, ..file("", size, rules) };
            let _ = collector.page(Page { from, entries: entries.into_iter().map(entry).collect(), end });
        }
        for (number, offset, error, last, bytes) in pieces {
            let _ = collector.piece(Piece { number, offset, error, last, bytes: vec![0; bytes], ..Piece::default() });
            let asked: u64 = collector.flights.iter().map(|flight| flight.left).sum();
            prop_assert!(asked <= WINDOW_BYTES && collector.flights.len() <= WINDOW_REQUESTS);
        }
        let _ = (collector.missing(), collector.is_complete());
    }
}
