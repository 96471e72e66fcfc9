//! Which images may go, and in which order. Pure: what is known comes in, and each image comes out with a reason.

use super::ledger::Book;
use crate::job::{ByteSize, ImageName, UnixMillis};
use std::collections::{BTreeSet, HashSet};

/// An image that the engine has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::executor::docker) struct Listed {
    /// The engine's id.
    pub(in crate::executor::docker) id: String,
    /// Its names with tags.
    pub(in crate::executor::docker) tags: Vec<String>,
    /// Its names with digests.
    pub(in crate::executor::docker) digests: Vec<String>,
    /// Bytes, with what it shares with others.
    pub(in crate::executor::docker) size: u64,
}

/// What an operator wants.
#[derive(Debug, Clone, Default)]
pub struct Bounds {
    /// With fewer bytes free, images go; 0 for never.
    pub free_low: ByteSize,
    /// Until so many are free.
    pub free_high: ByteSize,
    /// Most bytes of images that were pulled here; 0 for no bound.
    pub size_max: ByteSize,
    /// Never to go.
    pub keep: BTreeSet<ImageName>,
    /// Others' may go too.
    pub remove_others: bool,
}

/// What is known at the moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    pub(super) images: Vec<Listed>,
    /// Ids of images that containers have, running or not, whosever they are.
    pub(super) in_use: HashSet<String>,
    /// Ids of images in which a job is about to begin.
    pub(super) held: HashSet<String>,
    pub(super) book: Book,
    /// Bytes free where images are, if that can be seen.
    pub(super) free: Option<u64>,
}

/// An image, and what may become of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The engine's id.
    pub id: String,
    /// Its names, tags first.
    pub names: Vec<String>,
    /// Bytes.
    pub size: u64,
    /// When a job last began in it, or it was pulled; as far as is known here.
    pub last_used: Option<UnixMillis>,
    /// This installation brought it to the engine.
    pub ours: bool,
    /// A container has it, or a job is about to begin in it.
    pub in_use: bool,
    /// It would go now.
    pub goes: bool,
    /// Why it stays, or goes.
    pub why: String,
}

/// Judges every image; those that go come first, in their order.
pub(super) fn judge(known: &Known, bounds: &Bounds, all: bool) -> Vec<Judged> {
    let (mut judged, mut may_go) = (Vec::new(), Vec::new());
    for image in &known.images {
        let entry = known.book.images.get(&image.id);
        let ours = entry.is_some_and(|entry| !entry.pulled_as.is_empty());
        let names: Vec<&String> = image.tags.iter().chain(&image.digests).collect();
        let full = || names.iter().filter_map(|name| ImageName::parse(name));
        // A tag that is not ours was given by somebody who means to keep the image.
        let strange = image.tags.iter().find(|tag| {
            let name = ImageName::parse(tag).map(|name| name.to_string());
            !entry.is_some_and(|entry| name.is_some_and(|name| entry.pulled_as.contains(&name)))
        });
        let in_use = known.in_use.contains(&image.id) || known.held.contains(&image.id);
        let stays = if known.in_use.contains(&image.id) {
            Some("a container has it".to_owned())
        } else if known.held.contains(&image.id) {
            Some("a job is about to begin in it".to_owned())
        } else if let Some(kept) = full().find(|name| bounds.keep.contains(name)) {
            Some(format!("{kept} is to be kept"))
        } else if bounds.remove_others {
            None
        } else if !ours {
            Some("this agent did not pull it".to_owned())
        } else {
            strange.map(|tag| format!("somebody else named it {tag}"))
        };
        let one = Judged {
            id: image.id.clone(),
            names: names.into_iter().cloned().collect(),
            size: image.size,
            last_used: entry.map(|entry| entry.last_used),
            ours,
            in_use,
            goes: false,
            why: stays.clone().unwrap_or_default(),
        };
        if stays.is_some() { judged.push(one) } else { may_go.push(one) }
    }
    // What nobody is known to have used goes first; of two that were used at the same time, the larger.
    may_go.sort_by_key(|one| (one.last_used, u64::MAX - one.size, one.id.clone()));
    let counts = |one: &&Judged| one.ours || bounds.remove_others;
    let total: u64 = may_go.iter().chain(&judged).filter(counts).map(|one| one.size).sum();
    let (mut lacks, why) = lack(known.free, total, bounds);
    let why = if all { "nothing uses it".to_owned() } else { why };
    for one in &mut may_go {
        one.goes = all || lacks > 0;
        one.why = if one.goes { why.clone() } else { "there is room".to_owned() };
        lacks = lacks.saturating_sub(one.size);
    }
    may_go.append(&mut judged);
    may_go
}

/// Bytes that have to go, and why.
fn lack(free: Option<u64>, total: u64, bounds: &Bounds) -> (u64, String) {
    let (low, high, most) = (bounds.free_low.as_u64(), bounds.free_high.as_u64(), bounds.size_max.as_u64());
    let tight = free.filter(|free| *free < low).map(|free| high.max(low) - free);
    let over = Some(total.saturating_sub(most)).filter(|over| most > 0 && *over > 0);
    match (tight, over) {
        (Some(tight), over) => {
            (tight.max(over.unwrap_or_default()), format!("less than {} free, images.free_low", bounds.free_low))
        }
        (None, Some(over)) => (over, format!("more than {} of images, images.size_max", bounds.size_max)),
        (None, None) => (0, String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn image(id: &str, tag: &str, size: u64) -> Listed {
        Listed { id: id.into(), tags: vec![tag.into()], digests: vec![], size: size * GIB }
    }

    /// Three of ours, a built one, and one that is ours and has another's name.
    fn known() -> Known {
        let mut book = Book::default();
        for (id, name, at) in
            [("a", "r.io/a:1", 30), ("b", "r.io/b:1", 10), ("c", "r.io/c:1", 20), ("s", "r.io/s:1", 1)]
        {
            book.pulled(name, id, None, UnixMillis::new(at));
        }
        let mut images = vec![
            image("a", "r.io/a:1", 1),
            image("b", "r.io/b:1", 2),
            image("c", "r.io/c:1", 4),
            image("x", "built:1", 9),
        ];
        let mut strange = image("s", "r.io/s:1", 1);
        strange.tags.push("mine:1".into());
        images.push(strange);
        Known { images, book, ..Known::default() }
    }

    fn gone(known: &Known, bounds: &Bounds) -> String {
        let judged = judge(known, bounds, false);
        assert_eq!(judged.len(), known.images.len());
        assert!(judged.iter().all(|one| !one.why.is_empty()), "{judged:?}");
        judged.iter().filter(|one| one.goes).map(|one| one.id.as_str()).collect()
    }

    #[test]
    fn the_longest_unused_go_until_there_is_room_and_no_further() {
        let free = |low: u64, high: u64| Bounds {
            free_low: ByteSize::new(low * GIB),
            free_high: ByteSize::new(high * GIB),
            ..Bounds::default()
        };
        let with = |bytes: u64| Known { free: Some(bytes), ..known() };
        assert_eq!(gone(&with(10 * GIB), &free(5, 8)), "", "there is room");
        assert_eq!(gone(&with(4 * GIB), &free(5, 6)), "b");
        assert_eq!(gone(&with(4 * GIB), &free(5, 8)), "bc");
        assert_eq!(gone(&with(0), &free(5, 50)), "bca", "all that may");
        assert_eq!(gone(&with(0), &free(0, 0)), "", "0 is never");
        assert_eq!(gone(&Known { free: None, ..known() }, &free(5, 8)), "", "what is not seen is not acted on");
        let most = |most: u64| Bounds { size_max: ByteSize::new(most * GIB), ..Bounds::default() };
        assert_eq!((gone(&known(), &most(8)), gone(&known(), &most(7))), (String::new(), "b".into()), "8 GiB are ours");
        assert_eq!(gone(&known(), &most(1)), "bca");
    }

    #[test]
    fn what_is_used_kept_or_anothers_stays() {
        let all = Bounds { size_max: ByteSize::new(1), ..Bounds::default() };
        let used = Known { in_use: ["b".into()].into(), held: ["c".into()].into(), ..known() };
        assert_eq!(gone(&used, &all), "a");
        let keep = ["r.io/a:1", "r.io/b:1"].iter().filter_map(|name| ImageName::parse(name)).collect();
        assert_eq!(gone(&known(), &Bounds { keep, ..all.clone() }), "c");
        let others = Bounds { remove_others: true, ..all };
        // What is not known to be used goes first.
        assert_eq!(gone(&known(), &others), "xsbca");
        assert_eq!(gone(&Known { in_use: ["x".into()].into(), ..known() }, &others), "sbca");
        let judged = judge(&known(), &Bounds::default(), true);
        assert_eq!(judged.iter().filter(|one| one.goes).count(), 3, "all of ours that nothing uses");
    }
}
