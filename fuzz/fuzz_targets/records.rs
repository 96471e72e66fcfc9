//! Records of output as an agent uploads them, and as a viewer gets them.
#![no_main]

use jobcell::logstore::FrameRef;
use jobcell::protocol::record::read_records;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for record in read_records(bytes).into_iter().flatten() {
        let _ = FrameRef::carried(record.seq, record.time_us, record.stream, record.bytes);
    }
});
