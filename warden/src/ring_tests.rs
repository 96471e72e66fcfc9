//! The ring against a plain list of frames, under random traffic.

use super::*;
use crate::wire::{Decoder, FromWarden};
use std::collections::VecDeque;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
}

fn push(ring: &mut Ring, bytes: &[u8]) -> bool {
    let Some(slot) = ring.slot() else { return false };
    slot[..bytes.len()].copy_from_slice(bytes);
    ring.commit(1, 7, bytes.len());
    true
}

fn frames(decoder: &mut Decoder) -> Vec<(u32, u64, Vec<u8>)> {
    let mut found = Vec::new();
    while let Some(frame) = decoder.next() {
        let FromWarden::Output { stream: 1, time_us: 7, bytes } = FromWarden::decode(&frame).expect("output") else {
            panic!("not what was put in");
        };
        found.push((frame.epoch, frame.seq, bytes));
    }
    found
}

#[test]
fn every_byte_arrives_once_and_in_order_whatever_happens() {
    let mut dice = Dice(0x2545_F491_4F6C_DD1D);
    for round in 0..60 {
        let mut ring = Ring::new(200_000);
        ring.rewind(1, 0);
        let window = [1, 1000, 70_000, 500_000][round % 4];
        let (mut epoch, mut decoder) = (1, Decoder::new());
        // What the agent has stored, and what was put in after that.
        let (mut stored, mut unstored) = (0u64, VecDeque::<Vec<u8>>::new());
        let mut received = 0u64;
        for _ in 0..3000 {
            match dice.roll(10) {
                0..=3 => {
                    let len = if dice.roll(3) == 0 { 1 + dice.roll(MAX_OUTPUT) } else { 1 + dice.roll(200) };
                    let bytes = vec![dice.roll(200) as u8; len];
                    if push(&mut ring, &bytes) {
                        unstored.push_back(bytes);
                    } else {
                        assert!(!ring.has_room());
                    }
                }
                4..=6 => {
                    let bytes = ring.sendable(window);
                    if bytes.is_empty() {
                        continue;
                    }
                    let count = 1 + dice.roll(bytes.len());
                    decoder.feed(&bytes[..count]);
                    ring.advance(count);
                    for (of, seq, bytes) in frames(&mut decoder) {
                        assert_eq!((of, seq), (epoch, received + 1));
                        assert_eq!(bytes, unstored[(seq - stored - 1) as usize]);
                        received = seq;
                    }
                }
                7 | 8 => {
                    let upto = stored + dice.roll((received - stored) as usize + 1) as u64;
                    ring.acknowledge(upto);
                    unstored.drain(..(upto - stored) as usize);
                    stored = upto;
                }
                _ if dice.roll(20) == 0 => {
                    // The torn frame is finished as it was, then everything comes again.
                    decoder.feed(ring.torn());
                    assert!(frames(&mut decoder).iter().all(|frame| frame.0 == epoch && frame.1 == received + 1));
                    epoch += 1;
                    ring.rewind(epoch, stored);
                    received = stored;
                }
                _ => {}
            }
            assert_eq!(ring.oldest_seq(), stored + 1);
            assert_eq!(ring.next_seq(), stored + unstored.len() as u64 + 1);
        }
        assert_eq!(decoder.skipped(), 0);
        assert!(ring.next_seq() > 30, "the round moved something");
    }
}

#[test]
fn no_more_than_the_window_is_in_flight() {
    let mut ring = Ring::new(RING_BYTES);
    while push(&mut ring, &[0; 1000]) {}
    let mut sent = 0;
    loop {
        let count = ring.sendable(10_000).len();
        if count == 0 {
            break;
        }
        ring.advance(count);
        sent += count;
    }
    assert_eq!(sent, 9 * (BEFORE_BYTES + 1000));
    assert!(!ring.all_sent());
    ring.acknowledge(1);
    assert_eq!(ring.sendable(10_000).len(), BEFORE_BYTES + 1000);
}

#[test]
fn a_full_ring_takes_nothing_until_something_is_stored() {
    let mut ring = Ring::new(RING_BYTES);
    let mut held = 0;
    while push(&mut ring, &[1; MAX_OUTPUT]) {
        held += FRAME_MAX;
    }
    assert!(held > RING_BYTES - 2 * FRAME_MAX);
    // Nothing was sent, so nothing can have been stored.
    ring.acknowledge(u64::MAX);
    assert!(!ring.has_room());
    ring.advance(ring.sendable(usize::MAX).len());
    ring.acknowledge(2);
    assert!(ring.has_room());
}

#[test]
fn a_session_that_has_more_than_there_is_gets_nothing() {
    let mut ring = Ring::new(RING_BYTES);
    push(&mut ring, b"x");
    ring.rewind(3, 99);
    assert!(ring.all_sent());
    assert_eq!((ring.oldest_seq(), ring.next_seq()), (2, 2));
}
