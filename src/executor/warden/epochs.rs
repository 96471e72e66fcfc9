//! Numbers of links to one warden. A warden hears the highest it knows and nobody else, so that who was cut off or replaced cannot meddle.
//!
//! Each process that talks to a warden has a window of numbers to itself, above those of the processes before it. Within it they are drawn
//! at random: output which a torn stream shows as if it were frames cannot pass for the warden's.

/// Processes with a wide window. One that is beyond these is part of a crash loop.
const WIDE: u32 = 128;
/// Bits of a wide window, and of a narrow one.
const BITS: (u32, u32) = (24, 16);

/// The numbers of one process's links.
pub(super) struct Epochs {
    /// Of the last link, or what the first one will be above.
    now: u32,
    /// Of the first link.
    first: Option<u32>,
    random_below: fn(u32) -> u32,
}

impl Epochs {
    /// For a process that had `generation` processes before it.
    ///
    /// `noted` is whether the next process will find that in the journal. Where it will not, it believes that it is this one, and has
    /// this one's window: so this one takes what is left above the numbers of the process before it, in that one's window.
    pub(super) fn new(generation: u32, noted: bool, random_below: fn(u32) -> u32) -> Self {
        let (start, size) = window(if noted { generation } else { generation.saturating_sub(1) });
        let start = if noted { start } else { start + size / 2 };
        Self { now: start + random_below(size / 4), first: None, random_below }
    }

    /// For another link.
    pub(super) fn next(&mut self) {
        self.now = self.now.saturating_add(1 + (self.random_below)(1 << 8));
        self.first.get_or_insert(self.now);
    }

    pub(super) fn now(&self) -> u32 {
        self.now
    }

    /// One of an earlier link of this process.
    pub(super) fn was_ours(&self, epoch: u32) -> bool {
        self.first.is_some_and(|first| (first..self.now).contains(&epoch))
    }
}

fn window(generation: u32) -> (u32, u32) {
    match generation.checked_sub(WIDE) {
        None => (generation << BITS.0, 1 << BITS.0),
        Some(beyond) => ((WIDE << BITS.0) + (beyond.min((1 << 15) - 1) << BITS.1), 1 << BITS.1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: fn(u32) -> u32 = |_| 0;
    const MOST: fn(u32) -> u32 = |limit| limit - 1;

    /// The numbers of so many links.
    fn links(generation: u32, noted: bool, random: fn(u32) -> u32, count: u32) -> Vec<u32> {
        let mut epochs = Epochs::new(generation, noted, random);
        (0..count)
            .map(|_| {
                epochs.next();
                epochs.now()
            })
            .collect()
    }

    #[test]
    fn each_process_is_above_the_one_before_it() {
        for generation in 0..(WIDE + (1 << 15)) - 1 {
            let (last, first) = (links(generation, true, MOST, 60), links(generation + 1, true, LEAST, 1));
            assert!(last[59] < first[0], "after {generation}: {last:?} {first:?}");
            assert!(first[0] > 0);
        }
    }

    #[test]
    fn a_process_that_could_not_be_noted_is_between_the_last_one_and_the_next() {
        for generation in [1, 2, WIDE - 1, WIDE, WIDE + 1, 30_000] {
            let before = links(generation - 1, true, MOST, 60);
            let (least, most) = (links(generation, false, LEAST, 1), links(generation, false, MOST, 60));
            assert!(before[59] < least[0], "{generation}");
            // It knows nothing of the one that was not noted.
            let after = links(generation, true, LEAST, 1);
            assert!(most[59] < after[0], "{generation}");
        }
    }

    #[test]
    fn what_is_from_another_process_is_not_ours() {
        let mut epochs = Epochs::new(1, true, MOST);
        assert!(!epochs.was_ours(epochs.now()));
        epochs.next();
        let first = epochs.now();
        assert!(!epochs.was_ours(first), "it is the current one");
        epochs.next();
        assert!(epochs.was_ours(first) && !epochs.was_ours(first - 1) && !epochs.was_ours(epochs.now()));
    }
}
