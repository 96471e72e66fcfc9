//! What comes from a cell is data from an untrusted place: it is read or passed over, and the memory that it takes is bounded.
#![no_main]

use jobcell::protocol::wire::{Decoder, FromWarden, MAX_PAYLOAD, ToWarden, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, u8, Vec<u8>)| {
    // As it came, in two pieces; and as the payload of a whole frame, which its checksum lets through.
    let (bytes, kind, payload) = input;
    let mut framed = bytes.clone();
    encode(kind, 0, 7, 1, &[&payload[..payload.len().min(MAX_PAYLOAD)]], &mut framed);
    for stream in [bytes, framed] {
        let mut decoder = Decoder::new();
        let (first, second) = stream.split_at(stream.len() / 2);
        for piece in [first, second] {
            decoder.feed(piece);
            while let Some(frame) = decoder.next() {
                assert!(frame.payload.len() <= MAX_PAYLOAD);
                let _ = FromWarden::decode(&frame);
                let _ = ToWarden::decode(&frame);
            }
        }
    }
});
