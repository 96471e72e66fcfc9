//! `jobcell ssh scan` and `jobcell ssh check`.

use super::super::stage::JOBCELL;
use super::sshd::{Folder, login, present};
use serde_json::Value;
use std::process::{Command, Output};

fn jobcell(args: &[&str]) -> Output {
    let output = Command::new(JOBCELL).args(args).env_remove("JOBCELL_CONFIG").env_remove("RUST_LOG").output();
    output.expect("jobcell runs")
}

#[test]
fn what_scan_prints_is_what_known_hosts_takes() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    folder.keygen("rsa", &["-t", "rsa", "-b", "2048"]);
    folder.keygen("ed", &["-t", "ed25519"]);
    let all = ["rsa", "ed"].map(|key| format!("HostKey {}", folder.shown(key))).join("\n");
    let sshd = folder.sshd_with("ed", &all);
    let target = format!("{}:{}", sshd.address, sshd.port);
    let scanned = jobcell(&["ssh", "scan", &target]);
    let (lines, told) = (String::from_utf8_lossy(&scanned.stdout), String::from_utf8_lossy(&scanned.stderr));
    assert!(scanned.status.success(), "{told}");
    for key in ["rsa", "ed"] {
        assert!(lines.contains(&format!("{} {}\n", sshd.known_name(), folder.public(key))), "{lines}");
        assert!(lines.contains(&folder.fingerprint(key)), "{lines}");
    }
    assert!(told.contains("compare the fingerprints"), "{told}");

    let json: Value = serde_json::from_slice(&jobcell(&["ssh", "scan", "-o", "json", &target]).stdout).expect("JSON");
    let keys: Vec<&str> =
        json[0]["keys"].as_array().expect("keys").iter().filter_map(|key| key["fingerprint"].as_str()).collect();
    assert_eq!(keys, [folder.fingerprint("ed"), folder.fingerprint("rsa")]);

    // The whole text is a file of known hosts.
    folder.write("known_hosts", &lines);
    let inventory = format!(
        "hosts:\n  web: {{address: {}, port: {}, login: {}, credential: key}}\ncredentials:\n  key: {{key_file: {}}}\nknown_hosts: [{}]\n",
        sshd.address,
        sshd.port,
        login(),
        folder.user_key().display(),
        folder.shown("known_hosts")
    );
    let inventory = folder.write("inventory.yaml", &inventory);
    let config = folder.write(
        "config.yaml",
        &format!("data_dir: {}\nssh:\n  inventory: {}\n", folder.shown("data"), inventory.display()),
    );
    let config = config.display().to_string();
    let checked = jobcell(&["--config", &config, "ssh", "check", "web"]);
    let (out, told) = (String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    assert!(checked.status.success() && out.contains("web") && out.contains("ok"), "{out}{told}");
    folder.write("known_hosts", "");
    let checked = jobcell(&["--config", &config, "ssh", "check", "web", "db"]);
    let out = String::from_utf8_lossy(&checked.stdout);
    assert_eq!(checked.status.code(), Some(1), "{out}");
    assert!(
        out.contains("host_key") && out.contains("jobcell ssh scan") && out.contains("the inventory has no host `db`"),
        "{out}"
    );
}

#[test]
fn a_host_that_shows_no_key_is_told() {
    if !present() {
        return;
    }
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
    let target = silent.local_addr().expect("an address").to_string();
    drop(silent);
    let scanned = jobcell(&["ssh", "scan", &target, "no/host"]);
    let told = String::from_utf8_lossy(&scanned.stderr);
    assert_eq!(scanned.status.code(), Some(2), "{told}");
    assert!(told.contains("no/host"), "{told}");
    let scanned = jobcell(&["ssh", "scan", &target]);
    let told = String::from_utf8_lossy(&scanned.stderr);
    assert_eq!(scanned.status.code(), Some(1), "{told}");
    assert!(told.contains(&target) && told.contains("refused"), "{told}");
}
