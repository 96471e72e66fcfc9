//! What opens a host: keys in every form, certificates, agents, passwords; and what is said when it does not.

use super::sshd::{Folder, Sshd, login, must, present};
use super::{Inventory, Rig, settings};
use base64::Engine;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A pool with one host that the credential `c` opens.
fn rig(folder: &Folder, sshd: &Sshd, credential: &str) -> Rig {
    Inventory::new(folder).host("web", sshd, "credential: c").credential("c", credential).pool(folder, settings())
}

async fn opens(folder: &Folder, sshd: &Sshd, credential: &str) {
    let ran = rig(folder, sshd, credential).run("web", "id -un").await;
    assert_eq!(
        ran.unwrap_or_else(|error| panic!("{credential}: {error}")).text(),
        format!("{}\n", login()),
        "{credential}"
    );
}

/// The sentence with which nobody is let in: for good, and not as a fault of the host.
async fn stays_out(folder: &Folder, sshd: &Sshd, credential: &str) -> String {
    let rig = rig(folder, sshd, credential);
    let route = rig.route("web");
    let mut said = String::new();
    for _ in 0..6 {
        let error = rig.pool.check(&route).await.expect_err("is not let in");
        assert!(error.is_permanent() && error.class() == "login", "{credential}: {error:?}");
        said = error.to_string();
    }
    assert!(rig.pool.states().iter().all(|state| state.breaker == "admit"));
    said
}

fn authorize(folder: &Folder, names: &[&str]) {
    let keys: String = names.iter().map(|name| folder.public(name) + "\n").collect();
    folder.write("authorized_keys", &keys);
}

fn private(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("sets the mode");
}

#[tokio::test]
async fn keys_open_in_every_form() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let kinds: [(&str, &[&str]); 10] = [
        ("ed", &["-t", "ed25519"]),
        ("edlocked", &["-t", "ed25519", "-N", "open sesame"]),
        ("rsa", &["-t", "rsa", "-b", "2048"]),
        ("rsapem", &["-t", "rsa", "-b", "2048", "-m", "PEM"]),
        ("rsapkcs8", &["-t", "rsa", "-b", "2048", "-m", "PKCS8"]),
        ("ec256", &["-t", "ecdsa", "-b", "256"]),
        ("ec384", &["-t", "ecdsa", "-b", "384"]),
        ("ecpem", &["-t", "ecdsa", "-b", "256", "-m", "PEM"]),
        ("ecpkcs8", &["-t", "ecdsa", "-b", "256", "-m", "PKCS8"]),
        ("rsalocked8", &["-t", "rsa", "-b", "2048", "-m", "PKCS8", "-N", "open sesame"]),
    ];
    for (name, args) in kinds {
        folder.keygen(name, args);
    }
    authorize(&folder, &kinds.map(|(name, _)| name));
    let sshd = folder.sshd("");
    let heads: Vec<String> =
        kinds.iter().map(|(name, _)| folder.read(name).lines().next().expect("a line").to_owned()).collect();
    for head in ["OPENSSH PRIVATE", "RSA PRIVATE", "BEGIN PRIVATE", "EC PRIVATE", "ENCRYPTED PRIVATE"] {
        assert!(heads.iter().any(|line| line.contains(head)), "no key is of the form {head}: {heads:?}");
    }
    private(&folder.write("pass", "open sesame\n"));
    for (name, _) in kinds {
        let file = format!("key_file: {}", folder.shown(name));
        let locked = name.contains("locked");
        let pass = if locked { format!(", passphrase_file: {}", folder.shown("pass")) } else { String::new() };
        opens(&folder, &sshd, &format!("{file}{pass}")).await;
        // As it comes out of a variable or a secret store.
        let wrapped = base64::engine::general_purpose::STANDARD.encode(folder.read(name));
        private(&folder.write("wrapped", &format!("{wrapped}\n")));
        opens(&folder, &sshd, &format!("key: {{file: {}}}{pass}", folder.shown("wrapped"))).await;
        if locked {
            assert!(
                stays_out(&folder, &sshd, &file).await.contains("the key is encrypted; name its passphrase"),
                "{name}"
            );
            private(&folder.write("wrong", "open says me"));
            let said = stays_out(&folder, &sshd, &format!("{file}, passphrase_file: {}", folder.shown("wrong"))).await;
            assert!(said.contains("cannot be decrypted, so the passphrase is not its own"), "{name}: {said}");
            assert!(!said.contains("open says me"), "{said}");
        }
    }
}

#[tokio::test]
async fn what_does_not_open_is_told_with_what_to_do() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    folder.keygen("stranger", &["-t", "ed25519"]);
    let said = stays_out(&folder, &sshd, &format!("key_file: {}", folder.shown("stranger"))).await;
    assert!(said.contains(&format!("does not let {} in with credential `c`", login())), "{said}");
    assert!(said.contains("it takes publickey") && said.contains("authorized_keys"), "{said}");

    std::fs::set_permissions(folder.path("stranger"), std::fs::Permissions::from_mode(0o640)).expect("sets the mode");
    let said = stays_out(&folder, &sshd, &format!("key_file: {}", folder.shown("stranger"))).await;
    assert!(said.contains("others than its owner can read it (mode 0640); run chmod 600"), "{said}");
    private(&folder.write("nonsense", "-----BEGIN OPENSSH PRIVATE KEY-----\nnonsense\n"));
    for (credential, wanted) in [
        ("key_file: /nonexistent/key".to_owned(), "/nonexistent/key: No such file"),
        ("key: {env: JOBCELL_TEST_NO_SUCH_KEY}".to_owned(), "has no variable JOBCELL_TEST_NO_SUCH_KEY"),
        (format!("key_file: {}", folder.shown("nonsense")), "it is no private key that is understood"),
        (format!("key_file: {}", folder.shown("pass")), "it is neither a key as PEM"),
        (format!("agent_socket: {}", folder.shown("none.sock")), "none.sock cannot be reached"),
    ] {
        private(&folder.write("pass", "hunter2-hunter2"));
        let said = stays_out(&folder, &sshd, &credential).await;
        assert!(said.contains(wanted), "{credential}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn a_rotated_key_is_used_without_a_restart() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    folder.keygen("turning", &["-t", "ed25519"]);
    authorize(&folder, &["turning"]);
    let rig = rig(&folder, &sshd, &format!("key_file: {}", folder.shown("turning")));
    assert_eq!(rig.run("web", "true").await.expect("runs").code(), Some(0));
    folder.keygen("turning", &["-t", "ecdsa"]);
    authorize(&folder, &["turning"]);
    // What is connected stays so.
    assert_eq!(rig.run("web", "true").await.expect("runs").code(), Some(0));
    let other = rig.route("web");
    let other = jobcell::executor::ssh::Route { name: "again".to_owned(), ..other };
    let ran = super::run(&rig.pool, &other, "true").await.expect("a new connection has the new key");
    assert_eq!((ran.code(), rig.connections()), (Some(0), 2));
}

#[tokio::test]
async fn a_certificate_of_the_user_opens_until_it_expires() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    for (ca, key) in [("caed", "ed25519"), ("carsa", "rsa")] {
        folder.keygen(ca, &["-t", key]);
    }
    folder.write("authorized_keys", "");
    let cas = folder.public("caed") + "\n" + &folder.public("carsa") + "\n";
    let sshd = folder.sshd(&format!("TrustedUserCAKeys {}", folder.write("cas", &cas).display()));
    let (user, id) = (login(), "test");
    for (ca, kind) in [("caed", "ed25519"), ("caed", "rsa"), ("carsa", "ecdsa"), ("carsa", "rsa")] {
        folder.keygen("signed", &["-t", kind]);
        let (ca, public) = (folder.shown(ca), folder.shown("signed.pub"));
        let credential =
            |file: &str| format!("key_file: {}, certificate_file: {}", folder.shown("signed"), folder.shown(file));
        must("ssh-keygen", &["-q", "-s", &ca, "-I", id, "-n", user, &public]);
        opens(&folder, &sshd, &credential("signed-cert.pub")).await;
        must("ssh-keygen", &["-q", "-s", &ca, "-I", id, "-n", user, "-V", "20200101:20200201", &public]);
        let said = stays_out(&folder, &sshd, &credential("signed-cert.pub")).await;
        assert!(said.contains("it was valid until 2020-") && said.contains("have a new one signed"), "{said}");
        must("ssh-keygen", &["-q", "-s", &ca, "-I", id, "-n", "somebody-else", &public]);
        assert!(stays_out(&folder, &sshd, &credential("signed-cert.pub")).await.contains("did not take it"));
        must("ssh-keygen", &["-q", "-s", &ca, "-I", id, "-h", "-n", user, &public]);
        assert!(
            stays_out(&folder, &sshd, &credential("signed-cert.pub")).await.contains("is for hosts, not for users")
        );
    }
    folder.keygen("another", &["-t", "ed25519"]);
    let mixed = format!("key_file: {}, certificate_file: {}", folder.shown("another"), folder.shown("signed-cert.pub"));
    assert!(stays_out(&folder, &sshd, &mixed).await.contains("it is for"));
}

/// An ssh-agent that ends with the test.
struct Agent(std::process::Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn an_agent_signs_with_the_keys_that_it_has() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let sshd = folder.sshd("");
    let socket = folder.shown("agent.sock");
    let agent =
        std::process::Command::new("ssh-agent").args(["-D", "-a", &socket]).stdout(std::process::Stdio::null()).spawn();
    let _agent = Agent(agent.expect("ssh-agent starts"));
    super::super::stage::until("the agent's socket", || async { folder.path("agent.sock").exists().then_some(()) })
        .await;
    let add = |name: &str| {
        let added = std::process::Command::new("ssh-add")
            .arg("-q")
            .arg(folder.path(name))
            .env("SSH_AUTH_SOCK", &socket)
            .output();
        let added = added.expect("ssh-add runs");
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    };
    let any = format!("agent_socket: {socket}");
    assert!(stays_out(&folder, &sshd, &any).await.contains("has no key; add it with ssh-add"));
    folder.keygen("stranger", &["-t", "ed25519"]);
    folder.keygen("rsa", &["-t", "rsa", "-b", "2048"]);
    add("stranger");
    add("rsa");
    authorize(&folder, &["rsa"]);
    opens(&folder, &sshd, &any).await;
    let one = |name: &str| format!("agent_socket: {socket}, fingerprint: '{}'", folder.fingerprint(name));
    opens(&folder, &sshd, &one("rsa")).await;
    assert!(stays_out(&folder, &sshd, &one("stranger")).await.contains("did not take it"));
    assert!(stays_out(&folder, &sshd, &one("user")).await.contains("has no key SHA256:"));
}
