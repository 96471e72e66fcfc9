//! The Debian package: built with the program under test, installed, upgraded and purged in a small Debian of its own.

use super::debian::{Container, DEBIAN, debian};
use super::stage::{JOBCELL, docker, engine, root};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Answers in place of systemd, of which there is none in a container: what is asked of it is noted, and units are active or enabled as
/// two files say.
const SYSTEMCTL: &str = r#"#!/bin/sh
echo "$*" >>/test/asked
for word in "$@"; do
  case $word in
    -*) ;;
    is-active | is-enabled) kind=$word ;;
    *) if [ -n "${kind:-}" ]; then
         grep -qx "$word" "/test/$kind" && echo enabled && exit 0
         exit 3
       fi ;;
  esac
done
exit 0
"#;

/// Everything that is there, but for what dpkg itself keeps.
const EVERYTHING: &str = "find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /test -o -path /var/lib/dpkg -o -path /var/log \
    -o -path /run/lock -o -path /run/adduser -o -path /tmp -o -name 'passwd*' -o -name 'group*' -o -name '*shadow*' -o -name 'sub[ug]id*' \\) -prune -o -print | sort";

/// The package of the program under test, that all tests of this process share, as it takes a while to make; `None` after saying loudly
/// that the test is skipped.
pub(crate) fn package() -> Option<&'static Path> {
    static MADE: OnceLock<Option<PathBuf>> = OnceLock::new();
    MADE.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    let script = root().join("scripts/deb.sh");
    let required = std::env::var("JOBCELL_TEST_ENGINE").as_deref() == Ok("required");
    let tool = root().join("target/tools/bin/cargo-deb").exists()
        || Command::new("cargo-deb").arg("--version").output().is_ok();
    if !tool && !required {
        eprintln!("SKIPPED: cargo-deb is not installed; scripts/deb.sh --tool does it");
        return None;
    }
    // The next run's takes its place.
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package-under-test");
    let _ = std::fs::remove_dir_all(&dir);
    let output = Command::new(script).args(["--fast", "--binary", JOBCELL, "--out"]).arg(&dir).output().expect("runs");
    assert!(output.status.success(), "deb.sh: {}", String::from_utf8_lossy(&output.stderr));
    let found = std::fs::read_dir(&dir).expect("reads").map(|entry| entry.expect("an entry").path());
    let packages: Vec<_> = found.filter(|path| path.extension().is_some_and(|kind| kind == "deb")).collect();
    let [package] = &packages[..] else { panic!("{packages:?}") };
    Some(package.clone())
}

/// Installs it anew, as an upgrade does: exit code and all that is said.
fn install(there: &Container) -> (i32, String) {
    let (code, out, err) = there.exec(&["dpkg", "--install", "/test/jobcell.deb"]);
    (code, out + &err)
}

/// What was asked of systemd since the last look.
fn asked(there: &Container) -> String {
    there.sh("cat /test/asked 2>/dev/null || true; rm -f /test/asked")
}

#[test]
fn the_package_is_installed_upgraded_and_purged_without_a_rest() {
    let Some(host) = engine() else { return };
    if !debian(&host) {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let Some(package) = package() else { return };
    let there = Container::run(&host, &["--network=none", DEBIAN, "sleep", "3600"]);
    there.sh("mkdir -p /test /run/systemd/system; touch /test/is-active /test/is-enabled");
    std::fs::write(dir.path().join("systemctl"), SYSTEMCTL).expect("writes");
    let from = dir.path().join("systemctl").display().to_string();
    docker(&host, &["cp", &from, &format!("{}:/usr/bin/systemctl", there.id)]);
    docker(&host, &["cp", &package.display().to_string(), &format!("{}:/test/jobcell.deb", there.id)]);
    there.sh("chmod 755 /usr/bin/systemctl");
    let before = there.sh(EVERYTHING);
    let users = there.sh("cut -d: -f1 /etc/passwd /etc/group");

    // A fresh host: nothing is started, and it is said how.
    let (code, told) = install(&there);
    assert!(code == 0 && told.contains("systemctl enable --now jobcell-up"), "{told}");
    let asks = asked(&there);
    assert!(!asks.contains("start") && asks.contains("daemon-reload"), "{asks}");
    assert_eq!(there.sh("dpkg-query -W -f '${db:Status-Abbrev}' jobcell"), "ii");
    assert_eq!(there.sh("dpkg --verify jobcell"), "");
    let version = there.sh("jobcell version");
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    let conffiles = there.sh("dpkg-query -W -f '${Conffiles}' jobcell");
    assert_eq!(conffiles.split_whitespace().next(), Some("/etc/jobcell/config.yaml"), "{conffiles}");
    assert_eq!(conffiles.lines().filter(|line| !line.trim().is_empty()).count(), 1);
    let account = there.sh("getent passwd jobcell");
    assert!(account.contains(":/var/lib/jobcell:/usr/sbin/nologin"), "{account}");
    // Owned by root, and written to by nobody else.
    let owners =
        there.sh("dpkg -L jobcell | sort -u | xargs stat -c '%U %G %A %n' | grep -v '^root root .....-..-. ' || true");
    assert_eq!(owners, "");
    let modes = "stat -c '%a %n' /usr/bin/jobcell /etc/jobcell/config.yaml /usr/share/jobcell/scripts/images.sh";
    assert_eq!(
        there.sh(modes),
        "755 /usr/bin/jobcell\n644 /etc/jobcell/config.yaml\n755 /usr/share/jobcell/scripts/images.sh"
    );
    // Units, pages and completions where they are looked for.
    assert_eq!(there.sh("ls /usr/lib/systemd/system/jobcell-*.service | wc -l"), "3");
    assert!(there.sh("zcat /usr/share/man/man1/jobcell-job-submit.1.gz").contains(".TH jobcell-job-submit"));
    there.sh("bash -n /usr/share/bash-completion/completions/jobcell");
    there.sh(
        "test -s /usr/share/zsh/vendor-completions/_jobcell -a -s /usr/share/fish/vendor_completions.d/jobcell.fish",
    );
    there.sh("test -s /usr/share/doc/jobcell/copyright -a -s /usr/share/doc/jobcell/examples/policy.example.yaml");
    there.sh("bash -n /usr/share/jobcell/scripts/images.sh");
    // Whose licences come with the program.
    there.sh("cd /usr/share/doc/jobcell; grep -q '^  tokio ' THIRD-PARTY; grep -q '\"bomFormat\": \"CycloneDX\"' jobcell.cdx.json; gzip -t changelog.gz changelog.Debian.gz");

    // An upgrade of a host that runs one and has another enabled, with settings that the new program does not take.
    there.sh("echo jobcell-up.service >/test/is-active; echo jobcell-server.service >/test/is-enabled");
    there.sh("mkdir -p /etc/jobcell/conf.d; echo 'agent: {slots: lots}' >/etc/jobcell/conf.d/bad.yaml");
    let (code, told) = install(&there);
    assert!(code == 0 && told.contains("agent.slots") && told.contains("nothing was started or stopped"), "{told}");
    let asks = asked(&there);
    assert!(!asks.contains("start") && !asks.contains("stop"), "{asks}");
    // Good ones; the operator's own are kept.
    there.sh("rm -r /etc/jobcell/conf.d; echo 'agent: {slots: 3}' >>/etc/jobcell/config.yaml");
    let (code, told) = install(&there);
    assert!(code == 0 && !told.contains("enable --now"), "{told}");
    let asks = asked(&there);
    let restarts: Vec<&str> = asks.lines().filter(|line| line.contains("restart")).collect();
    assert!(!restarts.is_empty(), "{asks}");
    for unit in ["jobcell-up.service", "jobcell-server.service"] {
        assert!(restarts.iter().any(|line| line.contains(unit)), "{unit}: {asks}");
    }
    assert!(!restarts.iter().any(|line| line.contains("jobcell-agent")) && !asks.contains(" stop "), "{asks}");
    assert!(there.sh("jobcell config show").contains("slots: 3"));

    // As a service leaves its data, and as `systemctl enable` leaves a link.
    there.sh("install -d -o jobcell -g jobcell -m 700 /var/lib/jobcell; touch /var/lib/jobcell/queue.db");
    there.sh("mkdir -p /etc/systemd/system/multi-user.target.wants; ln -s /usr/lib/systemd/system/jobcell-up.service /etc/systemd/system/multi-user.target.wants/");
    // Removed: stopped, and what is not the program's stays.
    let (code, out, err) = there.exec(&["dpkg", "--remove", "jobcell"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(asked(&there).contains("stop jobcell-up.service"));
    there.sh("test -e /etc/jobcell/config.yaml -a -e /var/lib/jobcell/queue.db");
    let (code, out, err) = there.exec(&["dpkg", "--purge", "jobcell"]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    there.sh("rmdir /etc/systemd/system/multi-user.target.wants 2>/dev/null || true");
    let after = there.sh(EVERYTHING);
    let left: Vec<&str> = after.lines().filter(|line| !before.lines().any(|old| old == *line)).collect();
    assert_eq!(left, Vec::<&str>::new());
    assert_eq!(there.sh("cut -d: -f1 /etc/passwd /etc/group"), users);
}

/// Debian's own reader of packages finds nothing; what it is wrong about is in deploy/debian/lintian-overrides, with the reason.
#[test]
fn lintian_has_no_errors_and_no_warnings() {
    if Command::new("lintian").arg("--version").output().is_err() {
        let required = std::env::var("JOBCELL_TEST_ENGINE").as_deref() == Ok("required");
        assert!(!required, "no lintian, and JOBCELL_TEST_ENGINE=required: apt-get install lintian");
        return eprintln!("SKIPPED: lintian is not installed");
    }
    let Some(package) = package() else { return };
    let mut command = Command::new("lintian");
    command.args(["--allow-root", "--tag-display-limit", "0", "--fail-on", "error,warning"]);
    // What it would say for people is in their language, and a file of settings is theirs.
    let output = command.arg("--no-cfg").arg(package).env("LC_ALL", "C.UTF-8").output().expect("runs");
    let (code, out, err) = super::stage::said(&output);
    assert_eq!(code, 0, "{out}{err}");
    // An override that overrides nothing any more is told as a warning of its own.
    assert!(!out.contains("unused-override") && !out.contains("mismatched-override"), "{out}");
}
