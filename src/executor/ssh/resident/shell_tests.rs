//! The opener under this machine's own shells, without a server between.

use super::*;
use crate::programs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn owner() -> OwnerId {
    "0190b2d4".parse().expect("an owner")
}

/// A stand-in for the program: says what it was run with, and what it reads.
const STAND_IN: &[u8] = b"#!/bin/sh\necho \"ran $*\"; cat; exit 0\n";

fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn file_of(bytes: &[u8]) -> String {
    format!("warden-1.2.3-{}", digest(bytes))
}

/// The opener of the stand-in, which is brought if it is not there unless `bytes` is 0.
fn command_of(bytes: usize, machine: &str) -> String {
    let (name, id) = (file_of(STAND_IN), owner().to_string());
    let base = format!("{BASE}/{id}");
    command(OPENER, "jobcell-connect", &[&base, &name, &digest(STAND_IN), &bytes.to_string(), machine, &id])
}

/// Runs it by `shell`, with `input` and with `path` before the programs that everybody has.
fn run(home: &Path, shell: &str, command: &str, input: &[u8], path: Option<&Path>) -> Output {
    let path = path.map_or_else(|| "/usr/bin:/bin".to_owned(), |first| format!("{}:/usr/bin:/bin", first.display()));
    let mut child = Command::new(shell)
        .args(["-c", command])
        .env_clear()
        .envs([("HOME", home.as_os_str()), ("PATH", path.as_ref())])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the shell runs");
    let mut stdin = child.stdin.take().expect("is piped");
    let input = input.to_vec();
    let writing = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    child.stdout.take().expect("is piped").read_to_end(&mut stdout).expect("reads");
    child.stderr.take().expect("is piped").read_to_end(&mut stderr).expect("reads");
    writing.join().expect("no panic");
    Output { status: child.wait().expect("ends"), stdout, stderr }
}

/// What it said, and what came behind its last word.
fn said(output: &Output) -> (Vec<Said>, Option<String>) {
    let at = output.stdout.windows(MUX.len()).position(|window| window == MUX);
    let behind = at.map(|at| String::from_utf8_lossy(&output.stdout[at + MUX.len()..]).into_owned());
    (lines(&output.stderr).0, behind)
}

fn base(home: &Path) -> PathBuf {
    home.join(BASE).join(owner().to_string())
}

fn files(home: &Path) -> Vec<String> {
    let mut all: Vec<String> = std::fs::read_dir(base(home))
        .expect("is there")
        .map(|entry| entry.expect("reads").file_name().to_string_lossy().into_owned())
        .collect();
    all.sort();
    all
}

fn with_more(more: &[u8]) -> Vec<u8> {
    [STAND_IN, more].concat()
}

#[test]
fn the_program_has_nothing_that_a_login_shell_reads_in_its_own_way() {
    assert!(!OPENER.contains(['\'', '!', '\n']), "{OPENER}");
    assert!(!OPENER.contains("\\\\"), "{OPENER}");
    let command = opener(&owner(), &program());
    assert!(command.len() < 16_000, "{}", command.len());
    assert!(is_program(&program()) && program().contains(warden_digest()));
    for bad in ["warden-", "warden-1-abc", &format!("warden-1'-{}", digest(b"")), &format!("x-{}", digest(b""))] {
        assert!(!is_program(bad), "{bad}");
    }
}

#[test]
fn the_program_is_brought_once_and_found_again() {
    for shell in ["/bin/sh", "/bin/bash"] {
        let home = tempfile::tempdir().expect("a folder");
        let command = format!("umask 027; {}", command_of(STAND_IN.len(), MACHINE));
        let first = run(home.path(), shell, &command, &with_more(b"hello"), None);
        let ran = |output: &Output| {
            let (said, behind) = said(output);
            let behind = behind.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
            (said, behind)
        };
        let wanted = format!("ran connect --dir {} --owner 0190b2d4 --umask 0027\nhello", base(home.path()).display());
        assert_eq!(ran(&first), (vec![Said::Want], wanted.clone()));
        assert_eq!(files(home.path()), [file_of(STAND_IN)]);
        let mode = |path: &Path| std::fs::metadata(path).expect("is there").permissions().mode() & 0o777;
        assert_eq!((mode(&base(home.path())), mode(&home.path().join(BASE))), (0o700, 0o700));
        let again = run(home.path(), shell, &command, b"hello", None);
        assert_eq!(ran(&again), (vec![], wanted.clone()));
        // One of before is there or it is not; nobody has it to bring.
        let old = run(home.path(), shell, &format!("umask 027; {}", command_of(0, MACHINE)), b"hello", None);
        assert_eq!(ran(&old), (vec![], wanted));
    }
}

#[test]
fn what_is_not_the_program_is_never_run() {
    let home = tempfile::tempdir().expect("a folder");
    let command = command_of(STAND_IN.len(), MACHINE);
    assert!(run(home.path(), "/bin/sh", &command, STAND_IN, None).status.success());
    let file = base(home.path()).join(file_of(STAND_IN));
    let bad = b"#!/bin/sh\ntouch \"$HOME/ran\"\n";
    let elsewhere = home.path().join("elsewhere");
    std::fs::write(&elsewhere, bad).expect("writes");
    std::fs::set_permissions(&elsewhere, std::fs::Permissions::from_mode(0o755)).expect("sets the mode");
    let change: [&dyn Fn(); 4] = [
        &|| std::fs::write(&file, bad).expect("writes"),
        &|| std::fs::write(&file, b"").expect("writes"),
        &|| {
            std::fs::remove_file(&file).expect("removes");
            symlink(&elsewhere, &file).expect("links");
        },
        &|| {
            std::fs::remove_file(&file).expect("removes");
            std::fs::create_dir(&file).expect("makes");
        },
    ];
    for change in change {
        change();
        let output = run(home.path(), "/bin/sh", &command, &with_more(b"x"), None);
        let (said, behind) = said(&output);
        assert_eq!(said, [Said::Want]);
        assert!(behind.is_some_and(|text| text.ends_with("\nx")), "it was replaced, and runs");
        assert!(!home.path().join("ran").exists());
        assert_eq!(std::fs::read(&file).expect("is there"), STAND_IN);
    }
    assert_eq!(std::fs::read(&elsewhere).expect("is there"), bad, "a link is not followed");
    // One that is cut off, or is another, is not put there.
    std::fs::remove_file(&file).expect("removes");
    for brought in [&STAND_IN[..10], bad] {
        let output = run(home.path(), "/bin/sh", &command, &[brought, &[b' '; 99]].concat(), None);
        let (said, behind) = said(&output);
        assert!(matches!(&said[..], [Said::Want, Said::NotNow(why)] if why.contains("did not arrive")), "{said:?}");
        assert!(behind.is_none() && files(home.path()).is_empty());
    }
    assert_eq!(said(&run(home.path(), "/bin/sh", &command_of(0, MACHINE), b"", None)), (vec![Said::Missing], None));
}

#[test]
fn what_a_host_cannot_have_is_told() {
    let home = tempfile::tempdir().expect("a folder");
    let fail = |output: &Output| match &said(output) {
        (said, None) => match &said[..] {
            [Said::Fail(why)] => why.clone(),
            other => panic!("{other:?}"),
        },
        (_, Some(behind)) => panic!("{behind}"),
    };
    let other = run(home.path(), "/bin/sh", &command_of(STAND_IN.len(), "sparc64"), b"", None);
    assert!(fail(&other).contains("its processor is x86_64"), "{}", fail(&other));
    assert!(!home.path().join(BASE).exists(), "nothing was made");
    // A PATH with nothing in it but what is linked there.
    let few = tempfile::tempdir().expect("a folder");
    for program in ["uname", "mkdir", "chmod", "dd", "rm", "mv", "id", "ls"] {
        symlink(format!("/bin/{program}"), few.path().join(program)).expect("links");
    }
    let command = command_of(STAND_IN.len(), MACHINE);
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &command]).env_clear().env("HOME", home.path()).env("PATH", few.path()).stdin(Stdio::null());
    let output = shell.output().expect("runs");
    assert!(fail(&output).contains("no sha256sum"), "{}", fail(&output));
    // Somebody else's folder, or a way to one.
    let elsewhere = tempfile::tempdir().expect("a folder");
    symlink(elsewhere.path(), home.path().join(BASE)).expect("links");
    let output = run(home.path(), "/bin/sh", &command, STAND_IN, None);
    assert!(fail(&output).contains("is not the login's own folder"), "{}", fail(&output));
    std::fs::remove_file(home.path().join(BASE)).expect("removes");
    // A host that ends what a login leaves behind.
    let fake = tempfile::tempdir().expect("a folder");
    for (name, text) in [("busctl", "echo b true"), ("id", "case $1 in -u) echo 1000;; *) echo nobody-lingers;; esac")]
    {
        put_fake(fake.path(), name, text);
    }
    let with_session = format!("XDG_SESSION_ID=1; export XDG_SESSION_ID; {command}");
    let output = run(home.path(), "/bin/sh", &with_session, STAND_IN, Some(fake.path()));
    assert!(fail(&output).contains("KillUserProcesses"), "{}", fail(&output));
    let output = run(home.path(), "/bin/sh", &command, STAND_IN, Some(fake.path()));
    assert!(said(&output).1.is_some(), "without a session of logind's nobody ends anything");
}

/// A program of the host's that does something else there.
fn put_fake(folder: &Path, name: &str, text: &str) {
    programs::put(&folder.join(name), format!("#!/bin/sh\n{text}\n"), 0o755);
}

#[test]
fn what_a_lack_of_processes_does_passes() {
    let home = tempfile::tempdir().expect("a folder");
    let command = command_of(STAND_IN.len(), MACHINE);
    assert!(run(home.path(), "/bin/sh", &command, STAND_IN, None).status.success());
    // Programs that are killed before they have said anything, or cannot be begun.
    for (name, text) in [("uname", "kill -KILL $$"), ("uname", "exit 0"), ("sha256sum", "kill -KILL $$")] {
        let fake = tempfile::tempdir().expect("a folder");
        put_fake(fake.path(), name, text);
        for bytes in [0, STAND_IN.len()] {
            let output = run(home.path(), "/bin/sh", &command_of(bytes, MACHINE), STAND_IN, Some(fake.path()));
            let (said, behind) = said(&output);
            assert!(matches!(&said[..], [Said::NotNow(_)]) && behind.is_none(), "{name} {text}: {said:?}");
            assert_eq!(files(home.path()), [file_of(STAND_IN)], "it is still there");
        }
    }
    // What looks for programs of before and fails removes none.
    let old = base(home.path()).join("warden-0.1-of-before");
    std::fs::copy("/bin/true", &old).expect("copies");
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o700)).expect("sets the mode");
    for name in ["grep", "find"] {
        let fake = tempfile::tempdir().expect("a folder");
        put_fake(fake.path(), name, "kill -KILL $$");
        assert!(said(&run(home.path(), "/bin/sh", &command, b"", Some(fake.path()))).1.is_some());
        assert!(old.exists(), "{name}");
    }
    // One of before that was changed is none, and is told from one that cannot be read.
    std::fs::write(base(home.path()).join(file_of(STAND_IN)), "changed").expect("writes");
    assert_eq!(said(&run(home.path(), "/bin/sh", &command_of(0, MACHINE), b"", None)), (vec![Said::Missing], None));
}

#[test]
fn two_that_bring_it_at_once_do_not_undo_each_other() {
    let home = tempfile::tempdir().expect("a folder");
    let command = command_of(STAND_IN.len(), MACHINE);
    // One of them has seen that it is not there, and is slow to remove what is in its way.
    let fake = tempfile::tempdir().expect("a folder");
    let (at, go) = (fake.path().join("at"), fake.path().join("go"));
    let slow =
        format!(": > {}; while ! [ -e {} ]; do sleep 0.01; done; exec /bin/rm \"$@\"", at.display(), go.display());
    put_fake(fake.path(), "rm", &slow);
    let mut child = Command::new("/bin/sh")
        .args(["-c", &command])
        .env_clear()
        .env("HOME", home.path())
        .env("PATH", format!("{}:/usr/bin:/bin", fake.path().display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the shell runs");
    while !at.exists() {
        assert!(child.try_wait().expect("is a child").is_none(), "it removes something");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let ran = |output: &Output| said(output).1.is_some_and(|text| text.starts_with("ran connect"));
    let other = run(home.path(), "/bin/sh", &command, STAND_IN, None);
    assert!(ran(&other), "{}", String::from_utf8_lossy(&other.stderr));
    std::fs::write(go, "").expect("writes");
    let mut want = [0; b"\x1ejobcell want\n".len()];
    child.stderr.as_mut().expect("is piped").read_exact(&mut want).expect("it wants it");
    assert!(files(home.path()).contains(&file_of(STAND_IN)), "what the other one is about to run is there");
    child.stdin.take().expect("is piped").write_all(STAND_IN).expect("writes");
    assert!(ran(&child.wait_with_output().expect("ends")));
    assert_eq!(files(home.path()), [file_of(STAND_IN)]);
}

#[test]
fn programs_of_before_go_when_nothing_runs_from_them() {
    let home = tempfile::tempdir().expect("a folder");
    let command = command_of(STAND_IN.len(), MACHINE);
    std::fs::create_dir_all(base(home.path())).expect("makes");
    let put = |name: &str| {
        let path = base(home.path()).join(name);
        std::fs::copy("/bin/true", &path).expect("copies");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("sets the mode");
        path
    };
    // Names that no other test, and nothing of this machine, listens by.
    let name = |version: &str| format!("warden-{version}-{}", std::process::id());
    let (running, idle) = (put(&name("0.1")), put(&name("0.2")));
    let (half, coming) = (put(".warden.1.old"), put(".warden.2.new"));
    let ago = |seconds| std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
    std::fs::File::open(&half).and_then(|file| file.set_modified(ago(7200))).expect("sets the time");
    let socket = base(home.path()).join(format!(".0a1b2c3d@{}.sock", name("0.1")));
    let listening = std::os::unix::net::UnixListener::bind(&socket).expect("listens");
    let output = run(home.path(), "/bin/sh", &command, STAND_IN, None);
    assert!(said(&output).1.is_some(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(running.exists() && !idle.exists(), "{:?}", files(home.path()));
    assert!(!half.exists() && coming.exists(), "only what nobody brings any more goes");
    std::fs::remove_file(coming).expect("removes");
    drop(listening);
    // It may be one of another host that has the same home.
    run(home.path(), "/bin/sh", &command, b"", None);
    assert!(running.exists());
    let long_ago = ago(40 * 86_400);
    std::fs::remove_file(&socket)
        .and_then(|()| std::fs::File::create(&socket))
        .and_then(|file| file.set_modified(long_ago))
        .expect("sets the time");
    run(home.path(), "/bin/sh", &command, b"", None);
    assert_eq!(files(home.path()), [file_of(STAND_IN)]);
}

#[test]
fn what_is_heard_is_taken_line_by_line() {
    assert_eq!(lines(b"\x1ejobcell want"), (vec![], 0));
    let (said, read) =
        lines(b"motd\nno end\x1ejobcell want\nnoise\n\x1ejobcell fail machine arm\x1b64\n\x1ejobcell fa");
    assert_eq!(said.len(), 2);
    assert!(matches!(&said[1], Said::Fail(why) if why.contains("arm\\u{1b}64")), "{said:?}");
    assert_eq!(read, b"motd\nno end\x1ejobcell want\nnoise\n\x1ejobcell fail machine arm\x1b64\n".len());
}
