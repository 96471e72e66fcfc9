//! Hosts and rules of egress: what is taken has one form, which is read again as itself and is never an address in disguise.
#![no_main]

use jobcell::job::egress::{EgressRule, Host};
use libfuzzer_sys::fuzz_target;
use std::net::IpAddr;

fuzz_target!(|text: &str| {
    if let Ok(host) = Host::read(text) {
        assert_eq!(Host::read(&host.to_string()).as_ref(), Ok(&host), "{text:?}");
        if let Host::Name(name) = &host {
            let last = name.rsplit('.').next().unwrap_or_default();
            assert!(name.parse::<IpAddr>().is_err() && !last.bytes().all(|byte| byte.is_ascii_digit()), "{text:?}");
            assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()), "{text:?}");
        }
    }
    if let Ok(rule) = EgressRule::read(text) {
        assert_eq!(EgressRule::read(&rule.to_string()).as_ref(), Ok(&rule), "{text:?}");
    }
});
