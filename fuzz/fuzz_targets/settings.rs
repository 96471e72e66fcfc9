//! Any text is a settings file or is told to be none.
#![no_main]

use jobcell::config::{HostFacts, LoadInput, load};
use jobcell::job::ByteSize;
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;

fuzz_target!(|text: &[u8]| {
    let file = std::env::temp_dir().join(format!("jobcell-fuzz-{}.yaml", std::process::id()));
    std::fs::write(&file, text).expect("writes");
    let host = HostFacts {
        cores: 4,
        memory: ByteSize::from_mib(8192),
        root: true,
        hostname: "h".to_owned(),
        user_data: "/x".into(),
    };
    let input = LoadInput { file: Some(file), env: BTreeMap::new(), flags: Vec::new(), host };
    if let Err(problems) = load(&input) {
        assert!(!problems.to_string().is_empty());
    }
});
