//! The figure of masking: how fast the warden looks for secrets in what a job writes, on one core, against the SHA-256 that every byte of output
//! goes through as well. A report, not a test.
//!
//! `cargo bench --bench masking -- [--short] [10] [1000]`

mod asked;
#[allow(dead_code, clippy::cast_possible_truncation, reason = "the warden's own file")]
#[path = "../warden/src/mask.rs"]
mod mask;
use jobcell::protocol::wire;

use asked::Asked;
use mask::{Masker, Patterns};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// As the warden reads.
const READ: usize = 60_000;

/// The same bytes in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
    fn letters(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| LETTERS[self.roll(64)]).collect()
    }
}

fn main() {
    let asked = Asked::read();
    let span = Duration::from_millis(if asked.short { 100 } else { 1000 });
    let mut dice = Dice(88_172_645_463_325_252);
    println!("{:<58} {:>10} {:>10} {:>6}   goal", "figure", "MB/s", "SHA-256", "ratio");
    for (count, goal) in [(10, ">= 300 MB/s"), (1000, ">= 100 MB/s")] {
        if !asked.wants(&count.to_string()) {
            continue;
        }
        let secrets: Vec<Vec<u8>> = (0..count).map(|_| dice.letters(40)).collect();
        let patterns = Arc::new(Patterns::new(secrets.iter().map(Vec::as_slice)));
        let mut lines = Vec::new();
        while lines.len() < 4 << 20 {
            let (a, b, c) = (dice.roll(60), dice.roll(9999), dice.roll(500));
            let line =
                format!("2026-11-21T22:{a:02}:07 INFO compiled module {b} in {c} ms, nothing to be seen in it\n");
            lines.extend_from_slice(line.as_bytes());
        }
        let base64: Vec<u8> = dice.letters(4 << 20).chunks(76).flat_map(|line| [line, b"\n"].concat()).collect();
        let mut full = lines.clone();
        for at in (0..full.len() - 4096).step_by(4096) {
            let secret = &secrets[dice.roll(count)];
            full[at..at + secret.len()].copy_from_slice(secret);
        }
        for (name, text) in [("lines of a log", &lines), ("base64", &base64), ("a secret in every 4 KiB", &full)] {
            let mut room = vec![0; READ + mask::PIECE];
            let mut masker = Masker::new(Arc::clone(&patterns));
            let masked = rate(text, span, |read| {
                let held = masker.begin(&mut room);
                room[held..held + read.len()].copy_from_slice(read);
                masker.pass(&mut room[..held + read.len()], false)
            });
            let mut sum = Sha256::new();
            let hashed = rate(text, span, |read| {
                sum.update(read);
                read.len()
            });
            let name = format!("{count} secrets of 40 bytes, {name}");
            println!("{name:<58} {masked:>10.0} {hashed:>10.0} {:>6.2}   {goal}", masked / hashed);
        }
    }
}

/// Megabytes in a second of a processor, whoever else uses it.
fn rate(text: &[u8], span: Duration, mut work: impl FnMut(&[u8]) -> usize) -> f64 {
    let (begun, mut bytes) = (processor_time(), 0);
    while processor_time() - begun < span {
        for read in text.chunks(READ) {
            std::hint::black_box(work(read));
            bytes += read.len();
        }
    }
    bytes as f64 / 1e6 / (processor_time() - begun).as_secs_f64()
}

/// Of this thread.
fn processor_time() -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").expect("is there");
    Duration::from_nanos(told.split(' ').next().and_then(|first| first.parse().ok()).expect("a number"))
}
