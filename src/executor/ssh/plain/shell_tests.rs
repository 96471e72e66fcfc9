//! The programs of plain mode under this machine's own shells, without a server between.

use super::*;
use crate::programs;
use proptest::prelude::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

fn place(own: &str) -> Place {
    Place::new(&"0190b2d4".parse().expect("an owner"), own)
}

struct Opened {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    pid: u32,
    dir: String,
}

/// Opens a place as a server does: the login shell leads a session of its own.
fn open(home: &Path, login_shell: &str, place: &Place, grace: u64) -> Opened {
    let mut command = Command::new("setsid");
    match login_shell.strip_prefix("umask 027; exec ") {
        Some(shell) => command.args([shell, "-c", &format!("umask 027; {}", place.opener(grace))]),
        None => command.args([login_shell, "-c", &place.opener(grace)]),
    };
    let mut child = command
        .env("HOME", home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("setsid runs");
    let mut stderr = BufReader::new(child.stderr.take().expect("is piped"));
    let (pid, dir) = match read_said(&mut stderr) {
        Said::Ready { pid, dir } => (pid, dir),
        other => panic!("{other:?}"),
    };
    Opened { child, stderr, pid, dir }
}

fn read_said(stderr: &mut impl BufRead) -> Said {
    let mut line = Vec::new();
    stderr.read_until(b'\n', &mut line).expect("reads");
    let told = line.strip_prefix(SIGN).and_then(|line| said(line.trim_ascii_end()));
    told.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&line)))
}

impl Opened {
    fn give(&mut self, place: &Place, job: &Job<'_>) -> Said {
        let given = given(job, place, &self.dir);
        self.child.stdin.as_mut().expect("is piped").write_all(&given).expect("writes");
        read_said(&mut self.stderr)
    }

    fn say(&mut self, word: &str) {
        writeln!(self.child.stdin.as_mut().expect("is piped"), "{word}").expect("writes");
    }

    /// Its end, with what it wrote; its first line is the opener's.
    fn end(mut self) -> (ExitStatus, Vec<u8>, String) {
        let (mut out, mut err) = (Vec::new(), String::new());
        // Waiting would close it, and its end is the connection's.
        let stdin = self.child.stdin.take();
        let status = self.child.wait().expect("ends");
        drop(stdin);
        self.child.stdout.take().expect("is piped").read_to_end(&mut out).expect("reads");
        self.stderr.read_to_string(&mut err).expect("reads");
        // What never began says nothing there.
        let Some(line) = out.iter().position(|byte| *byte == b'\n') else { return (status, out, err) };
        assert_eq!(&out[..line], b"\x1ejobcell go");
        (status, out.split_off(line + 1), err)
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn argv(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn alive(name: &str) -> bool {
    let mark = format!("{MARK}={name}.");
    let has = |entry: std::io::Result<std::fs::DirEntry>| {
        let environ = std::fs::read(entry.ok()?.path().join("environ")).ok()?;
        environ.split(|byte| *byte == 0).any(|one| one == mark.as_bytes()).then_some(())
    };
    std::fs::read_dir("/proc").expect("reads").any(|entry| has(entry).is_some())
}

#[test]
fn the_programs_have_nothing_that_a_login_shell_reads_in_its_own_way() {
    for program in [OPENER, GUARD, SWEEPER] {
        assert!(!program.contains(['\'', '!', '\n']), "{program}");
        assert!(!program.contains("\\\\"), "{program}");
    }
}

#[test]
fn a_job_runs_in_its_own_folder_and_nothing_is_left() {
    let home = tempfile::tempdir().expect("a folder");
    for (number, shell) in ["/bin/sh", "/bin/bash"].into_iter().enumerate() {
        let place = place(&format!("job-{number}"));
        let mut opened = open(home.path(), shell, &place, 2);
        let (pid, dir) = (opened.pid, opened.dir.clone());
        let argv = argv(&["/bin/sh", "{script}", "a b"]);
        let env = [(b"A".to_vec(), b"it's \"$HOME\"\n\\".to_vec())];
        let script = b"pwd; echo \"$A\"; echo \"$1\"; cat; echo $$; sleep 300 & exit 7";
        let job = Job { argv: &argv, env: &env, script, stdin: b"given", ..Job::default() };
        assert_eq!(opened.give(&place, &job), Said::Go);
        until("the job ends", || opened_has_ended(pid));
        opened.say("KILL");
        let (status, out, err) = opened.end();
        let wanted = format!("{dir}/{WORK}\nit's \"$HOME\"\n\\\na b\ngiven{pid}\n");
        assert_eq!(
            (status.code(), String::from_utf8_lossy(&out).as_ref(), err.as_str()),
            (Some(7), wanted.as_str(), "")
        );
        until("its folder goes", || !Path::new(&dir).exists());
        until("what it left goes", || !alive(&place.own));
    }
}

/// It is a zombie of ours, or gone.
fn opened_has_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

#[test]
fn what_ends_by_a_signal_is_told_as_that_and_terms_are_passed_on() {
    use std::os::unix::process::ExitStatusExt;
    let home = tempfile::tempdir().expect("a folder");
    let place = place("job-s");
    let mut opened = open(home.path(), "/bin/sh", &place, 2);
    let argv = argv(&["sleep", "300"]);
    assert_eq!(opened.give(&place, &Job { argv: &argv, ..Job::default() }), Said::Go);
    opened.say("TERM");
    assert_eq!(opened.end().0.signal(), Some(15));
}

#[test]
fn a_job_whose_connection_goes_is_ended_and_so_is_what_left_its_group() {
    let home = tempfile::tempdir().expect("a folder");
    let place = place("job-l");
    let mut opened = open(home.path(), "/bin/sh", &place, 1);
    let argv = argv(&["/bin/sh", "-c", "trap '' TERM; setsid sleep 300 & while :; do sleep 0.1; done"]);
    assert_eq!(opened.give(&place, &Job { argv: &argv, ..Job::default() }), Said::Go);
    // It says that it begins, and has its variables a moment later.
    until("it runs", || alive(&place.own));
    let dir = opened.dir.clone();
    drop(opened.child.stdin.take());
    until("all of it ends", || !alive(&place.own) && !Path::new(&dir).exists());
    assert!(!opened.end().0.success());
}

#[test]
fn a_lease_that_nobody_renews_ends_the_job_although_its_connection_stands() {
    let home = tempfile::tempdir().expect("a folder");
    let place = place("job-e");
    let mut opened = open(home.path(), "/bin/sh", &place, 1);
    // Nothing of what looks after it lies where it works, for it to be swept away.
    let argv = argv(&[
        "/bin/sh",
        "-c",
        "trap '' TERM; ls; setsid sleep 1 & while :; do rm -rf ./*; echo 9 > lease; sleep 0.1; done",
    ]);
    assert_eq!(opened.give(&place, &Job { argv: &argv, lease: 1, ..Job::default() }), Said::Go);
    let began = Instant::now();
    opened.say("LEASE 6");
    until("it ends", || opened_has_ended(opened.pid));
    assert!(began.elapsed() >= Duration::from_secs(5), "a renewal counts: {:?}", began.elapsed());
    let (status, out, _) = opened.end();
    assert_eq!((status.success(), out.len()), (false, 0), "its folder was empty");
}

#[test]
fn who_watches_the_lease_goes_with_the_job() {
    let home = tempfile::tempdir().expect("a folder");
    let program = |name: &str, text: &str| {
        let path = home.path().join(name);
        programs::put(&path, text, 0o700);
        path.display().to_string()
    };
    // Who sleeps there does not wake up by itself.
    program("sleep", "#!/bin/sh\nexec /bin/sleep 300\n");
    let shell = program("login", &format!("#!/bin/sh\nPATH={}:$PATH exec /bin/sh \"$@\"\n", home.path().display()));
    let place = place("job-w");
    let mut opened = open(home.path(), &shell, &place, 1);
    let sleepers = || {
        let found = Command::new("pgrep").args(["-f", "-x", "/bin/sleep 300"]).output().expect("runs").stdout;
        let mark = format!("HOME={}", home.path().display());
        let ours = |pid: &str| {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|one| one == mark.as_bytes())
        };
        String::from_utf8_lossy(&found).lines().filter(|pid| ours(pid)).count()
    };
    let argv = argv(&["/bin/sh", "-c", "read line < ../go"]);
    let fifo = Path::new(&opened.dir).join("go");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("runs").success());
    assert_eq!(opened.give(&place, &Job { argv: &argv, lease: 60, ..Job::default() }), Said::Go);
    until("the lease is watched", || sleepers() == 1);
    std::fs::write(fifo, "\n").expect("writes");
    assert!(opened.end().0.success());
    until("nobody sleeps", || sleepers() == 0);
}

#[test]
fn a_job_has_the_logins_umask_and_its_secrets_lie_nowhere() {
    let home = tempfile::tempdir().expect("a folder");
    let work = home.path().join("work");
    std::fs::create_dir(&work).expect("makes");
    std::fs::write(work.join("run"), "the user's own").expect("writes");
    let place = place("job-u");
    // As a server's child: whatever this process has.
    let mut opened = open(home.path(), "umask 027; exec /bin/sh", &place, 1);
    let workdir = work.display().to_string();
    let argv = argv(&["/bin/sh", "-c", "umask; ls \"$0\"; cat run", &opened.dir.clone()]);
    let env = [(b"PEM".to_vec(), b"a\nb".to_vec()), (b"PATH".to_vec(), b"/usr/bin:/bin".to_vec())];
    let job = Job { argv: &argv, env: &env, workdir: &workdir, secrets: true, ..Job::default() };
    assert_eq!(opened.give(&place, &job), Said::Go);
    let (_, out, err) = opened.end();
    let out = String::from_utf8_lossy(&out).into_owned();
    assert_eq!((out.as_str(), err.as_str()), ("0027\npid\nwork\nthe user's own", ""));
}

#[test]
fn a_sweeper_is_heard_behind_what_a_login_prints() {
    assert_eq!(swept(b"Welcome\n\x1ejobcell gone\n"), Some(Swept::Gone));
    assert_eq!(swept(b"Welcome\n\x1ejobcell folder\n"), Some(Swept::Folder));
    assert_eq!(swept(b"\x1ejobcell left /proc/7/stat\n"), Some(Swept::Left("/proc/7/stat".into())));
    assert_eq!((swept(b"gone\n"), swept(b"\x1ejobcell gone")), (None, None));
}

#[test]
fn a_name_that_begins_like_another_one_is_another_job() {
    let home = tempfile::tempdir().expect("a folder");
    let (one, ten) = (place("job-4-1"), place("job-4-10"));
    let mut opened = open(home.path(), "/bin/sh", &ten, 60);
    let argv = argv(&["sleep", "300"]);
    assert_eq!(opened.give(&ten, &Job { argv: &argv, ..Job::default() }), Said::Go);
    until("it runs", || alive(&ten.own));
    let sweep = |place: &Place| {
        let sweeper = Command::new("/bin/sh").args(["-c", &place.sweeper()]).env("HOME", home.path()).output();
        swept(&sweeper.expect("runs").stdout)
    };
    assert_eq!(sweep(&one), Some(Swept::Gone));
    assert!(alive(&ten.own));
    assert_eq!(sweep(&ten), Some(Swept::Gone));
    assert!(!opened.end().0.success());
}

#[test]
fn half_a_job_is_not_begun() {
    let home = tempfile::tempdir().expect("a folder");
    let place = place("job-h");
    let argv = argv(&["touch", "/tmp/never-made-by-half-a-job"]);
    let env = [(b"LONG".to_vec(), b"a\nb".to_vec())];
    let wholes = [&[] as &[_], &env]
        .map(|env| given(&Job { argv: &argv, env, script: b"text", ..Job::default() }, &place, "/x"));
    assert!(wholes[0].starts_with(b"0 ") && !wholes[1].starts_with(b"0 "), "one in a line, one in a file");
    for (whole, cut) in wholes
        .iter()
        .flat_map(|whole| [0, 3, 20, whole.len() - "commit\n".len(), whole.len() - 1].map(|cut| (whole, cut)))
    {
        let mut opened = open(home.path(), "/bin/sh", &place, 1);
        opened.child.stdin.as_mut().expect("is piped").write_all(&whole[..cut]).expect("writes");
        let dir = opened.dir.clone();
        drop(opened.child.stdin.take());
        let (_, out, err) = opened.end();
        assert!(out.is_empty() && !err.contains("jobcell go"), "{cut}: {err}");
        assert!(!Path::new(&dir).exists(), "{cut}");
    }
    assert!(!Path::new("/tmp/never-made-by-half-a-job").exists());
}

#[test]
fn what_cannot_begin_says_at_which_step() {
    let home = tempfile::tempdir().expect("a folder");
    for (job, wanted) in [
        (Job { argv: &argv(&["no-such-program"]), ..Job::default() }, "program"),
        (Job { argv: &argv(&["/etc/passwd"]), ..Job::default() }, "noexec"),
        (Job { argv: &argv(&["/etc"]), ..Job::default() }, "noexec"),
        (Job { argv: &argv(&["true"]), workdir: "/no/such", ..Job::default() }, "workdir"),
        (Job { argv: &argv(&["true"]), nofile: Some(u64::MAX), ..Job::default() }, "nofile"),
    ] {
        // The guard of the one before may still be at work.
        let place = place(&format!("job-f-{wanted}-{}", job.argv.join("").replace('/', "")));
        let mut opened = open(home.path(), "/bin/sh", &place, 1);
        let given = given(&job, &place, &opened.dir);
        opened.child.stdin.as_mut().expect("is piped").write_all(&given).expect("writes");
        let dir = opened.dir.clone();
        let (_, _, err) = opened.end();
        assert!(err.contains(&format!("\u{1e}jobcell fail {wanted}\n")), "{err}");
        until("its folder goes", || !Path::new(&dir).exists());
    }
}

#[test]
fn the_sweeper_ends_what_nobody_can_talk_to_and_what_is_gone_already() {
    let home = tempfile::tempdir().expect("a folder");
    let place = place("job-w");
    let mut opened = open(home.path(), "/bin/sh", &place, 60);
    let argv = argv(&["/bin/sh", "-c", "trap '' TERM; setsid sleep 300 & sleep 300"]);
    assert_eq!(opened.give(&place, &Job { argv: &argv, ..Job::default() }), Said::Go);
    for _ in 0..2 {
        let sweeper =
            Command::new("/bin/sh").args(["-c", &place.sweeper()]).env("HOME", home.path()).output().expect("runs");
        assert_eq!(swept(&sweeper.stdout), Some(Swept::Gone));
        assert!(!alive(&place.own) && !Path::new(&opened.dir).exists());
    }
    assert!(!opened.end().0.success());
}

#[test]
fn the_sweeper_removes_what_lies_in_memory() {
    let home = tempfile::tempdir().expect("a folder");
    let runtime = tempfile::tempdir().expect("a folder");
    // No other test's, nor another run's.
    let own = format!("job-m{}", std::process::id());
    let folder = |base: &Path, own: &str| base.join(format!("jobcell-0190b2d4-0a1b2c3d-{own}"));
    let ours = [folder(runtime.path(), &own), folder(Path::new("/dev/shm"), &own)];
    let other = folder(runtime.path(), "job-other");
    for folder in ours.iter().chain([&other]) {
        std::fs::create_dir_all(folder).expect("makes");
        std::fs::write(folder.join("secret"), "of a job").expect("writes");
    }
    let mut sweeper = Command::new("/bin/sh");
    sweeper.args(["-c", &place(&own).sweeper()]).env("HOME", home.path()).env("XDG_RUNTIME_DIR", runtime.path());
    assert_eq!(swept(&sweeper.output().expect("runs").stdout), Some(Swept::Gone));
    assert!(ours.iter().all(|folder| !folder.exists()) && other.exists());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever stands in variables and arguments arrives as it was.
    #[test]
    fn variables_and_arguments_arrive_as_they_are(
        value in prop::collection::vec(1u8..=255, 0..64),
        words in prop::collection::vec("[^\0]{0,40}", 0..4),
    ) {
        // Each has a name of its own, as jobs have: the guard of the one before may still look for what that left.
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let home = tempfile::tempdir().expect("a folder");
        let place = place(&format!("job-p{number}"));
        let mut opened = open(home.path(), "/bin/sh", &place, 1);
        let mut argv = argv(&["/bin/sh", "-c", "printf '%s\\0' \"$V\" \"$@\"", "x"]);
        argv.extend(words.iter().cloned());
        let env = [(b"V".to_vec(), value.clone())];
        prop_assert_eq!(opened.give(&place, &Job { argv: &argv, env: &env, ..Job::default() }), Said::Go);
        let (status, out, _) = opened.end();
        let mut wanted = value;
        wanted.push(0);
        for word in words.iter().filter(|word| word.as_str() != SCRIPT_ARGUMENT) {
            wanted.extend_from_slice(word.as_bytes());
            wanted.push(0);
        }
        prop_assert_eq!((status.success(), out), (true, wanted));
    }
}
