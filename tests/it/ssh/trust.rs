//! Whose host key is believed: known, hashed, unknown, changed, revoked, pinned, signed for.

use super::sshd::{Folder, Sshd, must, present};
use super::{Inventory, settings};
use jobcell::executor::ssh::ConnectError;

/// What connecting comes to.
async fn outcome(folder: &Folder, sshd: &Sshd, more: &str) -> Result<String, ConnectError> {
    let rig = Inventory::new(folder).host("web", sshd, more).pool(folder, settings());
    let ran = rig.run("web", "echo in").await?;
    assert_eq!(rig.pool.states()[0].breaker, "admit");
    Ok(ran.text())
}

/// The sentence with which a host key is refused: for good, and not as a fault of the host.
async fn distrusted(folder: &Folder, sshd: &Sshd, more: &str) -> String {
    let rig = Inventory::new(folder).host("web", sshd, more).pool(folder, settings());
    let route = rig.route("web");
    let mut said = String::new();
    // A breaker would refuse the sixth.
    for _ in 0..7 {
        let error = rig.pool.check(&route).await.expect_err("is not believed");
        assert!(error.is_permanent() && error.class() == "host_key", "{error:?}");
        said = error.to_string();
    }
    said
}

#[tokio::test]
async fn a_known_host_is_believed_and_an_unknown_one_is_not() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.stranger("");
    let said = distrusted(&folder, &sshd, "").await;
    let scan = format!("run `jobcell ssh scan {}:{}`", sshd.address, sshd.port);
    assert!(said.contains("is not known (ED25519 SHA256:") && said.contains(&scan), "{said}");
    assert!(said.contains(&folder.fingerprint(&sshd.host_key)), "{said}");
    folder.know(&sshd);
    assert_eq!(outcome(&folder, &sshd, "").await, Ok("in\n".to_owned()));

    // As `ssh-keygen -H` leaves it: names that only who knows them finds.
    must("ssh-keygen", &["-q", "-H", "-f", &folder.shown("known_hosts")]);
    assert!(folder.read("known_hosts").starts_with("|1|"));
    assert_eq!(outcome(&folder, &sshd, "").await, Ok("in\n".to_owned()));

    let key = folder.public(&sshd.host_key);
    let port = sshd.port;
    for (names, good) in [
        (format!("[127.0.*]:{port}"), true),
        (format!("other,[127.?.*.?*]:{port}"), true),
        (format!("[127.0.*]:{port},![{}]:{port}", sshd.address), false),
        ("*".to_owned(), true),
        (sshd.address.clone(), true),
        (format!("[{}]:22", sshd.address), false),
        ("web".to_owned(), false),
    ] {
        folder.write("known_hosts", &format!("# a word\n\n{names} {key} a comment\n"));
        assert_eq!(outcome(&folder, &sshd, "").await.is_ok(), good, "{names}");
    }
    // By the name that the inventory says.
    folder.write("known_hosts", &format!("web.example.com {key}\n"));
    assert!(outcome(&folder, &sshd, "").await.is_err());
    assert_eq!(outcome(&folder, &sshd, "known_as: web.example.com").await, Ok("in\n".to_owned()));
}

#[tokio::test]
async fn a_changed_or_revoked_key_is_refused_for_good() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.stranger("");
    folder.keygen("other", &["-t", "ed25519"]);
    let (name, own, other) = (sshd.known_name(), folder.public(&sshd.host_key), folder.public("other"));
    folder.write("known_hosts", &format!("# a\n{name} {other}\n"));
    let said = distrusted(&folder, &sshd, "").await;
    assert!(said.contains("is another one than was accepted") && said.contains("known_hosts:2 has"), "{said}");
    assert!(said.contains("somebody may be in between") && said.contains("jobcell ssh scan"), "{said}");

    // A key of another type than the known one is another key.
    folder.keygen("rsa", &["-t", "rsa", "-b", "2048"]);
    folder.write("known_hosts", &format!("{name} {}\n", folder.public("rsa")));
    let said = distrusted(&folder, &sshd, "").await;
    assert!(said.contains("is another one than was accepted"), "{said}");

    for revoked in [format!("@revoked {name} {own}\n"), format!("@revoked * {own}\n")] {
        folder.write("known_hosts", &format!("{name} {own}\n{revoked}"));
        let said = distrusted(&folder, &sshd, "").await;
        assert!(said.contains("was revoked") && said.contains("known_hosts:2"), "{said}");
        let pinned = format!("fingerprints: ['{}']", folder.fingerprint(&sshd.host_key));
        assert!(distrusted(&folder, &sshd, &pinned).await.contains("was revoked"), "a pin does not make it good again");
    }
    folder.write("known_hosts", &format!("{name} {own}\n@revoked * ssh-ed25519 AAAAnonsense\n"));
    let said = distrusted(&folder, &sshd, "").await;
    assert!(said.contains("known_hosts:2 revokes a key and cannot be read"), "{said}");
}

#[tokio::test]
async fn a_key_of_a_type_that_is_known_is_asked_for() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    folder.keygen("rsa", &["-t", "rsa", "-b", "2048"]);
    folder.keygen("ecdsa", &["-t", "ecdsa", "-b", "384"]);
    folder.keygen("ed", &["-t", "ed25519"]);
    let all = ["rsa", "ecdsa", "ed"].map(|key| format!("HostKey {}", folder.shown(key))).join("\n");
    let sshd = folder.sshd_with("ed", &all);
    for kind in ["rsa", "ecdsa", "ed"] {
        folder.write("known_hosts", &format!("{} {}\n", sshd.known_name(), folder.public(kind)));
        assert_eq!(outcome(&folder, &sshd, "").await, Ok("in\n".to_owned()), "{kind}");
    }
    // Of a fingerprint nobody sees the type.
    folder.write("known_hosts", "");
    for kind in ["rsa", "ecdsa", "ed"] {
        let pinned = format!("fingerprints: ['{}']", folder.fingerprint(kind));
        assert_eq!(outcome(&folder, &sshd, &pinned).await, Ok("in\n".to_owned()), "{kind}");
    }
    let pinned = format!("fingerprints: ['{}']", folder.fingerprint("user"));
    folder.know(&sshd);
    let said = distrusted(&folder, &sshd, &pinned).await;
    assert!(said.contains("none of the host keys whose fingerprints the inventory has"), "{said}");
}

#[tokio::test]
async fn a_short_key_is_not_believed_whoever_knows_it() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    folder.keygen("short", &["-t", "rsa", "-b", "1024"]);
    let sshd = folder.sshd_with("short", "RequiredRSASize 1024");
    folder.know(&sshd);
    let said = distrusted(&folder, &sshd, "").await;
    assert!(said.contains("has 1024 bits"), "{said}");
}

/// Signs the host key of `name` with the authority `ca`.
fn sign(folder: &Folder, ca: &str, name: &str, more: &[&str]) {
    let (ca, key) = (folder.shown(ca), folder.shown(&format!("{name}.pub")));
    let mut args = vec!["-q", "-s", &ca, "-I", "test", "-h"];
    args.extend(more);
    args.push(&key);
    must("ssh-keygen", &args);
}

#[tokio::test]
async fn a_certificate_of_a_known_authority_stands_for_the_key_as_long_as_it_holds() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    folder.keygen("ca", &["-t", "ed25519"]);
    folder.keygen("otherca", &["-t", "ed25519"]);
    folder.keygen("hk", &["-t", "ed25519"]);
    let certified = format!("HostCertificate {}", folder.shown("hk-cert.pub"));
    sign(&folder, "ca", "hk", &["-n", "web.example.com,*.internal"]);
    let mut sshd = folder.sshd_with("hk", &certified);
    let by = |ca: &str| {
        folder.write("known_hosts", &format!("@cert-authority *.example.com,*.internal {}\n", folder.public(ca)))
    };
    by("ca");
    assert_eq!(outcome(&folder, &sshd, "known_as: web.example.com").await, Ok("in\n".to_owned()));
    assert_eq!(outcome(&folder, &sshd, "known_as: db.internal").await, Ok("in\n".to_owned()));
    let said = distrusted(&folder, &sshd, "known_as: db.example.com").await;
    assert!(said.contains("it is for web.example.com, *.internal, not for db.example.com"), "{said}");
    assert!(distrusted(&folder, &sshd, "").await.contains("is not known"), "the authority is not known for that name");
    by("otherca");
    assert!(distrusted(&folder, &sshd, "known_as: web.example.com").await.contains("is not known"));
    // Known by itself, the key needs no authority.
    let plain = format!("web.example.com {}\n", folder.public("hk"));
    folder.write("known_hosts", &(folder.read("known_hosts") + &plain));
    assert_eq!(outcome(&folder, &sshd, "known_as: web.example.com").await, Ok("in\n".to_owned()));

    by("ca");
    let authority = folder.read("known_hosts");
    folder.write("known_hosts", &format!("{authority}@revoked * {}\n", folder.public("ca")));
    assert!(distrusted(&folder, &sshd, "known_as: web.example.com").await.contains("was revoked"));
    by("ca");
    for (more, wanted) in [
        (&["-n", "web.example.com", "-V", "20200101:20200201"][..], "it was valid until 2020-"),
        (&["-n", "web.example.com", "-V", "20990101:20990201"], "it is not valid yet, but from "),
        (&["-n", "web.example.com", "-O", "critical:odd@example.com=1"], "it asks for `odd@example.com`"),
        (&[], "it names no host"),
    ] {
        sign(&folder, "ca", "hk", more);
        sshd.restart();
        let said = distrusted(&folder, &sshd, "known_as: web.example.com").await;
        assert!(said.contains(wanted) && said.contains("does not hold"), "{more:?}: {said}");
    }
}
