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

#[test]
fn keys_behind_a_jump_host_are_looked_at_from_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let inventory = "hosts:\n  web: {address: 10.0.0.1, port: 2222, jump: [gate]}\n  gate: {address: 10.0.0.2, login: x, credential: key}\n\
        credentials: {key: {key: {env: NO_KEY}}}\n";
    std::fs::write(path("inventory.yaml"), inventory).expect("writes");
    let config = format!("data_dir: {}\nssh: {{inventory: {}}}\n", path("data"), path("inventory.yaml"));
    std::fs::write(path("config.yaml"), config).expect("writes");
    let scanned = jobcell(&["--config", &path("config.yaml"), "ssh", "scan", "web"]);
    let told = String::from_utf8_lossy(&scanned.stderr);
    assert_eq!(scanned.status.code(), Some(2), "{told}");
    assert!(told.contains("reached over gate") && told.contains("`ssh-keyscan -p 2222 10.0.0.1`"), "{told}");
}

#[test]
fn check_says_how_jobs_would_run_and_fails_where_none_could() {
    if !present() {
        return;
    }
    let folder = Folder::new();
    let mut hosts = String::new();
    let mut servers = Vec::new();
    let missing = folder.shown("not-there");
    for (name, settings) in [
        ("well", String::new()),
        ("forced", "ForceCommand echo only this".to_owned()),
        ("nologin", "ForceCommand echo 'This account is currently not available.'; exit 1".to_owned()),
        ("homeless", format!("SetEnv HOME={missing}/home")),
        ("files", "ForceCommand internal-sftp".to_owned()),
    ] {
        let sshd = folder.sshd(&settings);
        let (address, port, user) = (&sshd.address, sshd.port, login());
        hosts.push_str(&format!("  {name}: {{address: {address}, port: {port}, login: {user}, credential: key}}\n"));
        servers.push(sshd);
    }
    let inventory = folder.write(
        "inventory.yaml",
        &format!(
            "hosts:\n{hosts}credentials:\n  key: {{key_file: {}}}\nknown_hosts: [{}]\n",
            folder.user_key().display(),
            folder.shown("known_hosts")
        ),
    );
    let text = format!("data_dir: {}\nssh:\n  inventory: {}\n", folder.shown("data"), inventory.display());
    let config = folder.write("config.yaml", &text).display().to_string();
    let check = |hosts: &[&str]| {
        let args: Vec<&str> =
            ["--config", &config, "-o", "json", "ssh", "check"].into_iter().chain(hosts.iter().copied()).collect();
        let checked = jobcell(&args);
        let said: Value = serde_json::from_slice(&checked.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&checked.stderr)));
        let row = |host: &Value| {
            let text = |key: &str| host[key].as_str().expect("text").to_owned();
            (text("result"), text("why"))
        };
        (checked.status.code(), said.as_array().expect("rows").iter().map(row).collect::<Vec<_>>())
    };
    let mode = |host: &str| {
        let said = jobcell(&["--config", &config, "-o", "json", "ssh", "check", host]).stdout;
        serde_json::from_slice::<Value>(&said).expect("JSON")[0]["mode"].clone()
    };
    // No agent has run yet, so there is no warden whose it would be.
    let (code, rows) = check(&["well"]);
    assert_eq!((code, rows[0].0.as_str()), (Some(0), "ok"), "{rows:?}");
    assert!(rows[0].1.contains("whether a warden can stay is known when an agent has run"), "{rows:?}");

    assert_eq!(mode("well"), "untried");
    std::fs::create_dir(folder.path("data")).expect("makes");
    let owner = jobcell::job::OwnerId::random().to_string();
    folder.write("data/owner", &owner);
    let (code, rows) = check(&["well"]);
    assert_eq!((code, rows[0].0.as_str()), (Some(0), "ok"), "{rows:?}");
    assert!(rows[0].1.contains("a warden that stays"), "{rows:?}");
    assert_eq!((mode("well"), mode("forced")), (Value::from("resident"), Value::Null));
    for host in ["forced", "nologin", "homeless", "files"] {
        let (code, rows) = check(&[host]);
        assert_eq!((code, rows[0].0.as_str()), (Some(1), "no_jobs"), "{host}: {rows:?}");
        assert!(rows[0].1.starts_with("it lets this login in, and runs no jobs for it: "), "{host}: {rows:?}");
    }
    let (_, rows) = check(&["nologin"]);
    assert!(rows[0].1.contains("currently not available"), "{rows:?}");
    let (_, rows) = check(&["homeless"]);
    assert!(rows[0].1.contains("not-there"), "{rows:?}");

    // Nothing but the warden is left there, which goes by itself.
    let base = super::resident::home().join(".jobcell").join(&owner);
    let left: Vec<String> = std::fs::read_dir(&base)
        .expect("is there")
        .map(|entry| entry.expect("reads").file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.') && !name.starts_with("warden-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    for pid in super::resident::wardens(&base, "jobcell-hub") {
        super::sshd::must("kill", &["-KILL", &pid.to_string()]);
    }
    std::fs::remove_dir_all(base).expect("removes");
}
