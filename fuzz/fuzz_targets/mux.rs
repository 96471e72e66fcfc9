//! What comes over a connection of many jobs is read strictly: whole envelopes or a reason to hang up, in bounded memory.
#![no_main]

use jobcell::protocol::wire::{FromHub, MUX_PAYLOAD, MuxDecoder, ToHub};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, u8, u16, Vec<u8>)| {
    // As it came, in two pieces; and as the payload of a whole envelope.
    let (bytes, kind, channel, payload) = input;
    let payload = &payload[..payload.len().min(MUX_PAYLOAD)];
    let mut whole = (payload.len() as u32).to_le_bytes().to_vec();
    whole.extend_from_slice(&[kind, 0]);
    whole.extend_from_slice(&channel.to_le_bytes());
    whole.extend_from_slice(payload);
    whole.extend_from_slice(&bytes);
    for stream in [bytes, whole] {
        let mut decoder = MuxDecoder::new();
        let (first, second) = stream.split_at(stream.len() / 2);
        'stream: for piece in [first, second] {
            decoder.feed(piece);
            loop {
                match decoder.next() {
                    Ok(Some(envelope)) => {
                        assert!(envelope.payload.len() <= MUX_PAYLOAD);
                        if let Ok(message) = ToHub::decode(&envelope) {
                            let mut again = Vec::new();
                            message.encode(&mut again);
                            assert!(again.ends_with(envelope.payload));
                        }
                        let _ = FromHub::decode(&envelope);
                    }
                    Ok(None) => break,
                    Err(_) => break 'stream,
                }
            }
        }
    }
});
