//! Secrets in what a job writes are replaced before it is numbered, hashed or sent, so that nobody behind has to know them.
//! Pure: bytes in, fewer bytes out.
//!
//! Owns what was read and cannot be told apart from the beginning of a secret yet. Every byte that belongs to a secret, in any of the
//! forms that [`forms`] makes, is covered; each run of covered bytes becomes one [`MASK`]. So where reads cut a stream makes no
//! difference, and neither does the order of secrets that overlap. A mask is shorter than anything that it stands for: what is masked
//! never needs more room than what was read.
//!
//! ```text
//!   held ──┬── new bytes ────────────────────┬────────────┐
//!          │  every place whose next four    │ may become │
//!          │  bytes begin a form is compared │ a secret   │
//!          └─► masked, out                   └─► held ────┘
//! ```

// By path, because a benchmark loads this file from another folder.
#[path = "mask/forms.rs"]
mod forms;

use crate::wire::SECRET_MIN;
pub(crate) use forms::forms;
use std::sync::Arc;

/// What is read in place of a secret.
const MASK: &[u8] = b"***";
/// Bytes that the filter looks at; every form has more.
const BEGIN: usize = 4;
/// Places that are looked at together.
const BLOCK: usize = 8;
/// The longest form: longer ones are cut into pieces of this length, each of which is masked by itself. It bounds what is held back, and
/// what a place costs that looks like a secret.
pub(crate) const PIECE: usize = 512;
/// No earlier form.
const NONE: u32 = u32::MAX;
/// How long a few bytes are held back that may begin a secret: a prompt without a line's end is not to be waited for.
const WAIT_FEW_NS: u64 = 100_000_000;
/// As many begin a secret by chance.
const FEW: usize = 3;
/// How long more of them are: a job that stops in the middle of a secret has not got on, as a rule.
const WAIT_NS: u64 = 1_000_000_000;

const _: () = assert!(SECRET_MIN > BEGIN && SECRET_MIN > MASK.len() && PIECE > 2 * SECRET_MIN);

/// What is looked for: all forms of all secrets, in order.
#[derive(Debug, Default)]
pub(crate) struct Patterns {
    bytes: Vec<u8>,
    items: Vec<Item>,
    /// A bit for each hash of a form's first bytes.
    filter: Vec<u64>,
    shift: u32,
    longest: usize,
}

#[derive(Debug, Clone, Copy)]
struct Item {
    at: u32,
    len: u32,
    /// The longest other form that it begins with.
    within: u32,
}

impl Patterns {
    /// All forms of these secrets.
    pub(crate) fn new<'a>(secrets: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut all: Vec<Vec<u8>> = secrets.flat_map(forms).collect();
        all.sort_unstable();
        all.dedup();
        // About one place in a hundred of other text gets past the filter, within bounds: it has to stay in the processor's cache.
        let bits = (all.len() * 128).next_power_of_two().clamp(1 << 12, 1 << 20);
        let shift = 32 - bits.trailing_zeros();
        let mut made = Self { filter: vec![0; bits / 64], shift, ..Self::default() };
        let mut open: Vec<u32> = Vec::new();
        for form in &all {
            let (at, number) = (made.bytes.len() as u32, made.items.len() as u32);
            // In order, whatever a form begins with stands before it, and is still open.
            while open.last().is_some_and(|last| !form.starts_with(made.form(*last as usize))) {
                open.pop();
            }
            let within = open.last().copied().unwrap_or(NONE);
            made.bytes.extend_from_slice(form);
            made.items.push(Item { at, len: form.len() as u32, within });
            made.longest = made.longest.max(form.len());
            let (word, bit) = made.place(form);
            made.filter[word] |= bit;
            open.push(number);
        }
        all.iter_mut().for_each(|form| wipe(form));
        made
    }

    fn form(&self, number: usize) -> &[u8] {
        let Item { at, len, .. } = self.items[number];
        &self.bytes[at as usize..(at + len) as usize]
    }

    fn place(&self, bytes: &[u8]) -> (usize, u64) {
        let first = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let hash = first.wrapping_mul(0x9E37_79B1) >> self.shift;
        ((hash >> 6) as usize, 1 << (hash & 63))
    }

    /// The first place from `from` on at which something may be.
    fn next(&self, bytes: &[u8], from: usize) -> usize {
        let mut at = from;
        // Eight places at a time: where there is nothing, which is nearly everywhere, no place is decided about by itself.
        while let Some(eleven) = bytes.get(at..at + BLOCK + BEGIN - 1) {
            let any = eleven.windows(BEGIN).fold(0, |any, begin| any | self.hit(begin));
            if any != 0 {
                break;
            }
            at += BLOCK;
        }
        let rest = &bytes[at.min(bytes.len())..];
        // What is too short for the filter is always looked at.
        let found = rest.windows(BEGIN).position(|begin| self.hit(begin) != 0);
        at + found.unwrap_or_else(|| rest.len().saturating_sub(BEGIN - 1))
    }

    fn hit(&self, begin: &[u8]) -> u64 {
        let (word, bit) = self.place(begin);
        self.filter[word] & bit
    }

    /// How many bytes of the longest form `text` begins with, and whether more bytes could make it the beginning of a longer one.
    fn at(&self, text: &[u8]) -> (usize, bool) {
        let seen = &text[..text.len().min(self.longest)];
        let after = self.items.partition_point(|item| self.slice(*item) <= seen);
        let grows = text.len() < self.longest && after < self.items.len() && self.form(after).starts_with(seen);
        let mut number = (after as u32).wrapping_sub(1);
        while number != NONE && !seen.starts_with(self.form(number as usize)) {
            number = self.items[number as usize].within;
        }
        (if number == NONE { 0 } else { self.items[number as usize].len as usize }, grows)
    }

    fn slice(&self, item: Item) -> &[u8] {
        &self.bytes[item.at as usize..(item.at + item.len) as usize]
    }

    /// A text that stands for itself.
    pub(crate) fn text(self: &Arc<Self>, text: &str) -> String {
        String::from_utf8_lossy(&self.hide(text.as_bytes().to_vec())).into_owned()
    }

    /// The same for bytes.
    pub(crate) fn hide(self: &Arc<Self>, mut bytes: Vec<u8>) -> Vec<u8> {
        let kept = Masker::new(Arc::clone(self)).pass(&mut bytes, true);
        bytes.truncate(kept);
        bytes
    }
}

/// One stream on its way.
pub(crate) struct Masker {
    patterns: Arc<Patterns>,
    /// The end of what came, which may begin a secret.
    held: Vec<u8>,
    /// So much of it is out already: it was waited for too long.
    shown: usize,
    /// So much of it belongs to a secret.
    covered: usize,
    /// The last byte that went out was a mask's.
    open: bool,
}

impl Masker {
    pub(crate) fn new(patterns: Arc<Patterns>) -> Self {
        // The memory is asked for before the job can take it.
        Self { held: Vec::with_capacity(PIECE), patterns, shown: 0, covered: 0, open: false }
    }

    /// Bytes that are held back, and that somebody would see if they were not.
    pub(crate) fn waiting(&self) -> usize {
        self.held.len() - self.shown.max(if self.open { self.covered } else { 0 })
    }

    /// Another stream follows.
    pub(crate) fn start_anew(&mut self) {
        *self = Self::new(Arc::clone(&self.patterns));
    }

    /// How long they are.
    pub(crate) fn patience_ns(&self) -> u64 {
        if self.waiting() <= FEW { WAIT_FEW_NS } else { WAIT_NS }
    }

    /// Puts what is held in front of `room`, where what is read next goes behind it. Says how many bytes that is.
    pub(crate) fn begin(&self, room: &mut [u8]) -> usize {
        room[..self.held.len()].copy_from_slice(&self.held);
        self.held.len()
    }

    /// Masks `bytes`, which [`begin`](Self::begin) with what is held. What remains is their beginning; says how long that is. The `last`
    /// ones are not held back.
    pub(crate) fn pass(&mut self, bytes: &mut [u8], last: bool) -> usize {
        self.mask(bytes, if last { Rest::None } else { Rest::Held })
    }

    /// Lets go of what is held, into `room`: it was waited for long enough. What would make a secret of it is masked all the same. Says how
    /// many bytes that is.
    pub(crate) fn show(&mut self, room: &mut [u8]) -> usize {
        let all = self.begin(room);
        self.mask(&mut room[..all], Rest::Shown)
    }

    fn mask(&mut self, bytes: &mut [u8], rest: Rest) -> usize {
        let patterns = Arc::clone(&self.patterns);
        let mut out = Out { at: self.shown, len: 0, open: self.open };
        // The run of covered bytes that may go on.
        let (mut from, mut to) = (0, self.covered);
        // From here on everything may be a secret's beginning.
        let mut begins = None;
        let mut place = patterns.next(bytes, 0);
        while place < bytes.len() {
            let (found, grows) = patterns.at(&bytes[place..]);
            if grows && begins.is_none() && rest != Rest::None {
                begins = Some(place);
                if rest == Rest::Held {
                    break;
                }
                // Before anything is moved.
                self.held.clear();
                self.held.extend_from_slice(&bytes[place..]);
            }
            if found > 0 {
                if place > to {
                    out.cover(bytes, from, to);
                    from = place;
                }
                to = to.max(place + found);
            }
            place = patterns.next(bytes, place + 1);
        }
        let begins = begins.unwrap_or(bytes.len());
        let cut = if rest == Rest::Held { begins } else { bytes.len() };
        if rest != Rest::Shown || begins == bytes.len() {
            self.held.clear();
            self.held.extend_from_slice(&bytes[begins..]);
        }
        out.cover(bytes, from, to.min(cut));
        out.plain(bytes, cut);
        self.covered = to.saturating_sub(begins).min(self.held.len());
        self.shown = out.at.saturating_sub(begins);
        self.open = out.open;
        out.len
    }
}

/// What becomes of the end of what came, if it may begin a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// It is held back.
    Held,
    /// It goes out, and is remembered.
    Shown,
    /// It is all there is.
    None,
}

/// Moves what goes out to the front.
struct Out {
    /// Everything before it is out.
    at: usize,
    len: usize,
    open: bool,
}

impl Out {
    fn plain(&mut self, bytes: &mut [u8], to: usize) {
        if to > self.at {
            bytes.copy_within(self.at..to, self.len);
            self.len += to - self.at;
            self.at = to;
            self.open = false;
        }
    }

    fn cover(&mut self, bytes: &mut [u8], from: usize, to: usize) {
        self.plain(bytes, from);
        if to > self.at {
            if !self.open {
                bytes[self.len..self.len + MASK.len()].copy_from_slice(MASK);
                self.len += MASK.len();
                self.open = true;
            }
            self.at = to;
        }
    }
}

/// Overwrites what is not needed any more.
pub(crate) fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    // So that nobody finds that it is never read.
    std::hint::black_box(bytes);
}

#[cfg(test)]
#[path = "mask_tests.rs"]
mod tests;
