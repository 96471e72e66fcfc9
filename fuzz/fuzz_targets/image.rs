//! Image references: what is taken is plain, and can be no option of anybody's command line.
#![no_main]

use jobcell::job::{JobSpec, Source, SpecRules};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|image: &str| {
    let document = json!({"image": image, "command": ["true"]});
    if let Ok(spec) = JobSpec::check(&document, &SpecRules::default()) {
        let Source::Image(taken) = spec.source() else { panic!("{image:?} became something else") };
        assert_eq!(taken, image);
        assert!(!taken.is_empty() && taken.len() <= 4096 && !taken.starts_with('-'));
        assert!(taken.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte)), "{taken:?}");
    }
});
