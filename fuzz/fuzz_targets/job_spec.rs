//! Any text is a job or is told to be none; a job that is written and read again is the same one.
#![no_main]

use jobcell::job::{JobSpec, SpecRules};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let rules = SpecRules::default();
    match JobSpec::from_yaml(text, &rules) {
        Ok(spec) => {
            let document = serde_json::to_value(&spec).expect("a spec has only string keys");
            assert_eq!(JobSpec::check(&document, &rules).ok(), Some(spec));
        }
        Err(problems) => assert!(!problems.to_string().is_empty()),
    }
});
