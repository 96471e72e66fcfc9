//! Any text is a policy or is told to be none; what a policy gives is no more than it allows.
#![no_main]

use jobcell::admission::policy::{Facts, Policy};
use jobcell::job::{JobSpec, SpecRules};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|texts: (&str, &str)| {
    let (policy, job) = texts;
    let Ok(policy) = Policy::read(policy) else { return };
    let Ok(job) = JobSpec::from_yaml(job, &SpecRules::default()) else { return };
    let (routes, secrets) = (Default::default(), Default::default());
    let facts = Facts {
        backend: "main",
        submitter: None,
        image: "jobcell/bash:1",
        routes: &routes,
        secrets: &secrets,
        pull: jobcell::job::Pull::Never,
        oci_runtime: "",
        uids: (200_000, 209_999),
        defaults: Default::default(),
        filter: Default::default(),
    };
    let judged = policy.judge(&job, &facts);
    if let Some(given) = &judged.given {
        let again = policy.judge(given, &facts);
        assert_eq!(again.given.as_ref(), Some(given));
    }
});
