//! Rules: how they are written, what they admit, what they open, and which lie within others.

use super::*;
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

fn rule(text: &str) -> EgressRule {
    EgressRule::read(text).unwrap_or_else(|error| panic!("{text} {error}"))
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn rules_have_one_form() {
    for (text, form) in [
        ("PyPI.org:443", "pypi.org:443"),
        ("pypi.org", "pypi.org:80,443"),
        ("*.Example.com.:443,80", "*.example.com:80,443"),
        ("*:22", "*:22"),
        ("10.1.2.0/24:8000-8100,8101", "10.1.2.0/24:8000-8101"),
        ("10.1.2.3/32:1", "10.1.2.3:1"),
        ("[2001:DB8::/32]:443", "[2001:db8::/32]:443"),
        ("[::1]", "[::1]:80,443"),
        ("127.0.0.1:1-65535", "127.0.0.1:1-65535"),
    ] {
        assert_eq!(rule(text).to_string(), form);
        assert_eq!(rule(form).to_string(), form, "its form is its own");
    }
}

#[test]
fn what_is_no_rule_is_told() {
    for (text, word) in [
        ("https://pypi.org", "URL"),
        ("pypi.org/simple:443", "path"),
        ("2001:db8::1", "brackets"),
        ("[pypi.org]:443", "brackets"),
        ("[::1", "not closed"),
        ("[::1]443", "behind the bracket"),
        ("a.*.b:443", "wildcard"),
        ("*b.com:443", "wildcard"),
        ("*.10.0.0.1:1", "wildcard before an address"),
        ("010.0.0.1:443", "octal"),
        ("2130706433:80", "decimal"),
        ("0x7f.1:80", "hexadecimal"),
        ("010.0.0.0/8:443", "octal"),
        ("10.1.2.3/24:443", "write 10.1.2.0/24"),
        ("10.0.0.0/33:443", "prefix"),
        ("10.0.0.0/08:443", "prefix"),
        ("10.0.0.0/:443", "prefix"),
        ("[::ffff:10.0.0.1]:443", "IPv4 address in IPv6"),
        ("[64:ff9b::/96]:443", "NAT64"),
        ("[2002::/16]:443", "6to4"),
        ("x:0", "1 to 65535"),
        ("x:65536", "1 to 65535"),
        ("x:", "1 to 65535"),
        ("x:+1", "1 to 65535"),
        ("x:http", "1 to 65535"),
        ("x:9-8", "before it begins"),
        ("", "empty"),
        (":443", "empty"),
    ] {
        let said = EgressRule::read(text).expect_err(text);
        assert!(said.contains(word), "{text}: {said}");
    }
}

#[test]
fn names_and_addresses_are_never_each_other() {
    let admits = |text: &str, host: &str, port| rule(text).admits(&Host::read(host).expect("a host"), port);
    for (text, host, port) in [
        ("pypi.org:443", "PYPI.ORG.", 443),
        ("*.example.com:443", "a.b.example.com", 443),
        ("*:443", "x", 443),
        ("10.0.0.0/8:1-9", "10.9.9.9", 9),
        ("[2001:db8::/32]:443", "2001:db8::5", 443),
        ("0.0.0.0/0:53", "9.9.9.9", 53),
    ] {
        assert!(admits(text, host, port), "{text} {host}");
    }
    for (text, host, port) in [
        ("pypi.org:443", "pypi.org", 80),
        ("pypi.org:443", "files.pypi.org", 443),
        ("pypi.org:443", "pypi.org.evil.example", 443),
        ("*.example.com:443", "example.com", 443),
        ("*.example.com:443", "badexample.com", 443),
        ("*:443", "10.0.0.1", 443),
        ("10.0.0.0/8:443", "11.0.0.1", 443),
        ("0.0.0.0/0:443", "2001:db8::5", 443),
    ] {
        assert!(!admits(text, host, port), "{text} {host}");
    }
}

#[test]
fn what_is_not_of_the_internet_is_opened_by_who_names_it() {
    let opens = |text: &str, address: &str, own| rule(text).opens(ip(address), 443, own);
    for (text, address, own) in [
        ("10.1.0.0/16:443", "10.1.2.3", false),
        ("10.1.2.3:443", "10.1.2.3", true),
        ("127.0.0.1:443", "127.0.0.1", true),
        ("[::1]:443", "::1", true),
        ("[fd00::/8]:443", "fd00::7", false),
        ("169.254.169.254:443", "169.254.169.254", false),
        ("0.0.0.0/0:443", "9.9.9.9", false),
    ] {
        assert!(opens(text, address, own), "{text} {address}");
    }
    for (text, address, own) in [
        ("0.0.0.0/0:443", "10.1.2.3", false),
        ("0.0.0.0/1:443", "127.0.0.1", false),
        ("[::/0]:443", "fd00::7", false),
        ("[::/0]:443", "::1", false),
        ("10.0.0.0/8:443", "10.1.2.3", true),
        ("127.0.0.0/8:443", "127.0.0.1", true),
        ("169.254.0.0/16:443", "169.254.169.254", false),
        ("100.64.0.0/10:443", "100.100.100.200", false),
        ("[fd00::/8]:443", "fd00:ec2::254", false),
        ("10.1.2.3:80", "10.1.2.3", false),
        ("9.9.9.9:443", "9.9.9.9", true),
        ("*:443", "10.1.2.3", false),
        ("10.0.0.0/8:443", "::ffff:10.0.0.1", false),
    ] {
        assert!(!opens(text, address, own), "{text} {address}");
    }
}

#[test]
fn every_special_range_is_known() {
    for address in [
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "127.255.255.255",
        "169.254.1.1",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.168.255.1",
        "198.19.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "168.63.129.16",
        "::",
        "::1",
        "::ffff:9.9.9.9",
        "::9.9.9.9",
        "64:ff9b::909:909",
        "64:ff9b:1::1",
        "2002:a00:1::",
        "2001::1",
        "2001:db8::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "100::1",
        "4000::1",
        "5f00::1",
    ] {
        assert!(class(ip(address)).is_some(), "{address}");
    }
    for address in ["9.9.9.9", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1", "2001:4860::8888"]
    {
        assert_eq!(class(ip(address)), None, "{address}");
    }
}

#[test]
fn a_rule_of_a_job_lies_within_those_of_the_operator() {
    let within = |text: &str, allowed: &[&str]| {
        uncovered(&rule(text), &allowed.iter().map(|text| rule(text)).collect::<Vec<_>>())
    };
    assert_eq!(within("pypi.org:443", &["pypi.org:443"]), None);
    assert_eq!(within("pypi.org:80,443", &["pypi.org:443", "*.org:1-100"]), None);
    assert_eq!(within("a.example.com:5-9", &["*.example.com:7-20", "a.example.com:1-6"]), None);
    assert_eq!(within("*.a.b:443", &["*.b:443"]), None);
    assert_eq!(within("*:443", &["*:443"]), None);
    assert_eq!(within("10.1.2.3:443", &["10.0.0.0/8:443"]), None);
    assert_eq!(within("8.8.8.8:53", &["0.0.0.0/0:53"]), None);
    assert_eq!(within("x:65535", &["x:1-65535"]), None);
    for (text, allowed) in [
        ("pypi.org:443", &[][..]),
        ("*.b:443", &["*.a.b:443", "b:443"]),
        ("*:443", &["*.com:443"]),
        ("10.0.0.1:443", &["*:443"]),
        ("a:443", &["0.0.0.0/0:443"]),
        // The operator has to name what is not of the Internet as well.
        ("10.0.0.1:443", &["0.0.0.0/0:443"]),
        ("169.254.169.254:443", &["169.254.0.0/16:443"]),
        ("168.63.129.16:443", &["0.0.0.0/0:443"]),
        ("10.0.0.0/8:443", &["10.0.0.0/9:443", "10.128.0.0/9:443"]),
    ] {
        assert_eq!(within(text, allowed), Some(443), "{text}");
    }
    assert_eq!(within("x:5-9", &["x:5-7", "x:9"]), Some(8));
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
        prop::sample::select(vec![
            "10.1.2.3",
            "127.0.0.1",
            "169.254.169.254",
            "9.9.9.9",
            "fd00::1",
            "::1",
            "2606:4700::1"
        ])
        .prop_map(ip),
    ]
}

fn a_rule() -> impl Strategy<Value = EgressRule> {
    let net = (address(), 0u8..=128).prop_map(|(address, prefix)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let net = IpNet::new(address, prefix.min(most)).expect("within").trunc();
        if address.is_ipv4() { net.to_string() } else { format!("[{net}]") }
    });
    let host = prop_oneof![net, "(\\*\\.)?[ab]{1,2}(\\.[ab]){0,2}", Just("*".to_owned())];
    (host, "[1-9]{1,2}(,[1-9]{1,2})?")
        .prop_filter_map("not a rule", |(host, ports)| EgressRule::read(&format!("{host}:{ports}")).ok())
}

proptest! {
    #[test]
    fn a_rule_is_read_as_it_is_shown(rule in a_rule()) {
        prop_assert_eq!(EgressRule::read(&rule.to_string()), Ok(rule));
    }

    /// The heart of it: what a job's rule lets through, the operator's rules that cover it let through too.
    #[test]
    fn nothing_is_reached_that_the_operator_did_not_allow(
        mine in a_rule(), allowed in prop::collection::vec(a_rule(), 0..4), address in address(), port in 1u16..100,
        name in "[ab]{1,2}(\\.[ab]){0,3}",
    ) {
        if uncovered(&mine, &allowed).is_none() {
            for host in [Host::Address(address), Host::Name(name)] {
                if mine.admits(&host, port) {
                    prop_assert!(allowed.iter().any(|one| one.admits(&host, port)));
                }
            }
            if class(address).is_some() && mine.opens(address, port, false) {
                prop_assert!(allowed.iter().any(|one| one.opens(address, port, false)), "{}", address);
            }
        }
    }

    #[test]
    fn any_text_is_read_without_harm(text in "\\PC{0,60}") {
        let _ = EgressRule::read(&text);
    }
}

#[test]
fn what_is_allowed_by_name_is_not_kept_from_the_proxy() {
    let said = |texts: &[&str]| {
        let rules: Vec<EgressRule> = texts.iter().map(|text| EgressRule::read(text).expect("a rule")).collect();
        past_proxy(&rules)
    };
    for usual in [&["pypi.org:443"][..], &["127.0.0.0/8:80"], &["*"], &["127.0.0.2:80"], &["*.localhost"]] {
        assert_eq!(said(usual), None, "{usual:?}");
    }
    assert_eq!(said(&["127.0.0.1:5432"]).as_deref(), Some("localhost,::1"));
    assert_eq!(said(&["[::1]:80", "x.test"]).as_deref(), Some("localhost,127.0.0.1"));
    assert_eq!(said(&["localhost:80", "127.0.0.1:80", "[::1]:80"]).as_deref(), Some(""));
}
