use super::entry::{Names, matches};
use super::*;
use proptest::prelude::*;

const ED: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHrN2GfIrJ+jmx3BXRqYCKisvVTAyQPOOdOTLUrEvrJf";
const OTHER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHmGi2vQyeE6r3RGcB2DfE8ENs3VCBK9hi46OZIjqwiP";
const EC: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBGyGsw3MrK1pO7K3x3K/t7wnG78ouXoY4DEZVk7hM5cUefubDTeZIWSL3Coj0ytcLes0dQTUtllmgUES4nGl/GU=";

fn key(text: &str) -> PublicKeyOrCertificate {
    PublicKey::from_openssh(text).expect("a key").into()
}

fn known(text: &str) -> KnownHosts {
    let mut known = KnownHosts::default();
    known.add("file", text).expect("reads");
    known
}

fn asked(host: &str, port: u16) -> Asked {
    Asked::new(host, port, None, Vec::new())
}

#[test]
fn names_are_found_as_openssh_finds_them() {
    for (names, name, found) in [
        ("web1", "web1", true),
        ("WEB1", "web1", true),
        ("web1,web2", "web2", true),
        ("web*", "web17", true),
        ("web?", "web1", true),
        ("web?", "web", false),
        ("web?", "web12", false),
        ("*.example.com", "a.b.example.com", true),
        ("*.example.com", "example.com", false),
        ("*,!web1", "web1", false),
        ("!web1,*", "web1", false),
        ("!web1", "web2", false),
        ("*,!web1", "web2", true),
        ("[web1]:2222", "web1", false),
        ("[web1]:2222", "[web1]:2222", true),
        ("[*]:2222", "[web1]:2222", true),
        (",", "", false),
    ] {
        assert_eq!(Names::read(names).expect("reads").matches(name), found, "{names} and {name}");
    }
    // Made by `ssh-keygen -H` of `web1` and `[web1]:2222`.
    for line in [HASHED_WEB1, HASHED_PORT] {
        let names = Names::read(line).expect("reads");
        let found: Vec<bool> = ["web1", "[web1]:2222", "web2", line].map(|name| names.matches(name)).to_vec();
        assert_eq!(found, [line == HASHED_WEB1, line == HASHED_PORT, false, false], "{line}");
    }
    for bad in ["|1|", "|1|aaa|", "|1|AAAA|AAAA", "|2|AAAA|AAAA", "|"] {
        assert_eq!(Names::read(bad), None, "{bad}");
    }
}

// printf 'web1 KEY\n[web1]:2222 KEY\n' > f && ssh-keygen -H -f f
const HASHED_WEB1: &str = "|1|yMvbErzAFTFxBee1yKYSaP0hh0Y=|CvAW3BAFjzmYghdZWLHydgQuTTQ=";
const HASHED_PORT: &str = "|1|1/zWd8054RcPPyECUqHKdJeacFs=|sA27xwIVv1AGQj4qFT5SnH8bgmo=";

#[test]
fn a_key_is_believed_only_where_a_line_says_so() {
    let (web, port) = (asked("web1", 22), asked("Web1", 2222));
    let one = known(&format!("web1 {ED} a comment\n"));
    assert_eq!(one.check(&web, &key(ED), 0), Ok(()));
    assert_eq!(one.check(&asked("web2", 22), &key(ED), 0), Err(Distrust::Unknown));
    assert!(
        matches!(one.check(&web, &key(OTHER), 0), Err(Distrust::Changed(place)) if place.starts_with("file:1 has"))
    );
    assert!(matches!(one.check(&web, &key(EC), 0), Err(Distrust::Changed(_))), "another type is another key");
    // Under another port: believed by the name alone, never distrusted by it.
    assert_eq!(one.check(&port, &key(ED), 0), Ok(()));
    assert_eq!(one.check(&port, &key(OTHER), 0), Err(Distrust::Unknown));
    let two = known(&format!("web1 {ED}\n[web1]:2222 {OTHER}\nweb1 {EC}"));
    assert!(matches!(two.check(&port, &key(ED), 0), Err(Distrust::Changed(place)) if place.starts_with("file:2 has")));
    assert_eq!((two.check(&web, &key(EC), 0), two.check(&web, &key(ED), 0)), (Ok(()), Ok(())));
    let revoked = known(&format!("web1 {ED}\n@revoked * {ED}"));
    assert_eq!(revoked.check(&web, &key(ED), 0), Err(Distrust::Revoked("file:2".to_owned())));
    let pinned =
        Asked { pinned: vec![PublicKey::from_openssh(ED).expect("a key").fingerprint(HashAlg::Sha256)], ..web.clone() };
    assert_eq!(KnownHosts::default().check(&pinned, &key(ED), 0), Ok(()));
    assert_eq!(known(&format!("web1 {OTHER}")).check(&pinned, &key(OTHER), 0), Err(Distrust::NotPinned));
    assert_eq!(revoked.check(&pinned, &key(ED), 0), Err(Distrust::Revoked("file:2".to_owned())));
    // An authority's key is no host's.
    assert_eq!(known(&format!("@cert-authority web1 {ED}")).check(&web, &key(ED), 0), Err(Distrust::Unknown));
}

#[test]
fn lines_that_are_not_understood_believe_nobody_and_one_that_revokes_stops_all() {
    let odd = format!(
        "\n# web1 {ED}\nweb1\nweb1 ssh-ed25519 nonsense\n@odd web1 {ED}\n|9|x|y {ED}\nweb1 ssh-ed25519 {}\n",
        &EC[20..]
    );
    assert_eq!(known(&odd).len(), 0);
    let mut hosts = KnownHosts::default();
    let said = hosts.add("f", "a b\n@revoked web1 ssh-ed25519 nonsense\n").expect_err("cannot be read");
    assert!(said.starts_with("f:2 revokes a key and cannot be read"), "{said}");
}

#[test]
fn types_that_are_known_are_asked_for_first() {
    let all = all_types();
    assert_eq!(preferred_types(&Types::default()), all);
    let types =
        known(&format!("web1 {EC}\nweb1 {ED}\n@cert-authority *.com {ED}\nother {OTHER}")).types(&asked("web1", 22));
    assert_eq!((types.plain.len(), types.authority), (2, false));
    let order = preferred_types(&types);
    assert_eq!((&order[..2], order.len()), (&all[..2], all.len()));
    let types = known(&format!("web1.com {EC}\n@cert-authority *.com {ED}")).types(&asked("web1.com", 22));
    assert!(types.authority && preferred_types(&types)[0] == all[1]);
}

/// As plain as it can be, and slow.
fn slowly(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], rest) => rest.is_empty(),
        ([b'*', more @ ..], rest) => (0..=rest.len()).any(|at| slowly(more, &rest[at..])),
        ([b'?', more @ ..], [_, rest @ ..]) => slowly(more, rest),
        ([one, more @ ..], [first, rest @ ..]) => one == first && slowly(more, rest),
        (_, []) => false,
    }
}

proptest! {
    #[test]
    fn patterns_match_what_the_plain_way_matches(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
        prop_assert_eq!(matches(&pattern, &text), slowly(pattern.as_bytes(), text.as_bytes()));
    }

    #[test]
    fn no_file_panics(text in "\\PC{0,80}(\\n\\PC{0,80}){0,3}") {
        let _ = KnownHosts::default().add("f", &text);
    }
}
