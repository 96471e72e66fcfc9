//! A folder with the warden in it, on this machine, as an unprivileged user: hubs that are begun there, and agents that talk to them over the
//! pipes of a connector, as an SSH channel would. Needs nothing but the standard library and the wire.

use super::wire::{
    CellSpec, Decoder, Exit, Fact, FromHub, FromWarden, MUX_VERSION, MuxDecoder, ToHub, ToWarden, VERSION,
};
use crate::programs;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Nothing here takes longer, also on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// What is not acknowledged.
const WINDOW: u32 = 960 * 1024;
/// Said and not heard; then the connection waits.
const MOST_UNHEARD: usize = 2000;
/// Whose installation.
pub(crate) const OWNER: &str = "0a1b2c3d";

/// An installation's folder.
pub(crate) struct Rig {
    dir: PathBuf,
    warden: PathBuf,
    options: Vec<String>,
    user: Option<(u32, u32)>,
    files: Option<u32>,
    hides: bool,
}

impl Rig {
    /// With this program, as this user and group, or as whoever runs the tests.
    pub(crate) fn new(warden: &[u8], user: Option<(u32, u32)>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("jobcell-resident-{}-{number}", std::process::id()));
        let program = dir.join("warden-test");
        std::fs::create_dir_all(&dir).expect("a folder");
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).expect("set");
        programs::put(&program, warden, 0o700);
        let rig = Self { dir, warden: program, options: Vec::new(), user, files: None, hides: false };
        rig.give(&rig.warden);
        rig.give(&rig.dir);
        rig
    }

    /// Makes it the login's.
    pub(crate) fn give(&self, path: &Path) {
        let (user, group) = self.user.unzip();
        std::os::unix::fs::chown(path, user, group).expect("given");
    }

    /// The same with hubs that are told this.
    pub(crate) fn with(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// The same for a login that may have no more than so many files open in a process.
    pub(crate) fn with_files(mut self, most: u32) -> Self {
        self.files = Some(most);
        self
    }

    /// The same on a machine that shows a login nobody else's processes; only root can make it one.
    pub(crate) fn with_hidden_processes(mut self) -> Option<Self> {
        self.user?;
        self.hides = true;
        Some(self)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The program, to be run as the login.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let (user, group) = self.user.unzip();
        let mut command = match (self.files, self.hides) {
            (Some(most), _) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={most}:{most}"));
                command
            }
            // A /proc of its own, before it becomes the login.
            (None, true) => {
                let mut command = Command::new("unshare");
                let become_it = r#"mount -t proc -o hidepid=2 proc /proc; u=$0 g=$1; shift; exec setpriv --reuid "$u" --regid "$g" --clear-groups -- "$@""#;
                let ids = [user, group].map(|id| id.unwrap_or_default().to_string());
                command.args(["--mount", "sh", "-ec", become_it]).args(ids);
                command
            }
            (None, false) => Command::new(&self.warden),
        };
        if self.files.is_some() || self.hides {
            command.arg(&self.warden);
        }
        command
            .args(args)
            .env("SSH_CONNECTION", "1.2.3.4 5 6.7.8.9 22")
            .env_remove("XDG_RUNTIME_DIR")
            .env("PATH", "/usr/local/bin:/usr/bin:/bin");
        if let Some((user, group)) = self.user.filter(|_| !self.hides) {
            command.uid(user).gid(group);
        }
        command
    }

    /// Whether the login is root.
    pub(crate) fn is_root(&self) -> bool {
        self.user.is_some_and(|(user, _)| user == 0)
    }

    /// A copy of this program of the machine's that runs as root, whoever runs it. Only root can make one.
    pub(crate) fn set_uid_program(&self, name: &str) -> Option<String> {
        self.user?;
        let copy = self.dir.join(name);
        programs::put(&copy, std::fs::read(Path::new("/usr/bin").join(name)).expect("is there"), 0o4755);
        Some(copy.to_string_lossy().into_owned())
    }

    /// A connector, with nothing said yet.
    pub(crate) fn connect(&self) -> Agent {
        let mut command = self.command(&["connect", "--dir", self.dir.to_str().expect("text"), "--owner", OWNER]);
        command.args(&self.options).stdin(Stdio::piped()).stdout(Stdio::piped());
        Agent::new(command.spawn().expect("the connector starts"))
    }

    /// One that has said hello, and was greeted.
    pub(crate) fn agent(&self) -> Agent {
        let mut agent = self.connect();
        agent.hello();
        agent
    }

    /// The folder of a job.
    pub(crate) fn job(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The socket of a hub, while there is one.
    pub(crate) fn socket(&self) -> Option<PathBuf> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|end| end == "sock"))
    }

    /// Names of jobs that have a folder.
    pub(crate) fn folders(&self) -> Vec<String> {
        // What is set aside for jobs to come is no job's, and called as none can be.
        self.all_folders().into_iter().filter(|name| !name.starts_with('.')).collect()
    }

    /// Folders that wait for a job.
    pub(crate) fn spares(&self) -> Vec<String> {
        self.all_folders().into_iter().filter(|name| name.starts_with('.')).collect()
    }

    fn all_folders(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // The hub of this folder, and not its keepers: those end what they keep when it is gone.
        let hubs = with_argument("jobcell-hub");
        for pid in with_argument(self.dir.to_str().expect("text")).into_iter().filter(|pid| hubs.contains(pid)) {
            end(pid);
        }
        let started = Instant::now();
        while !self.folders().is_empty() && started.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// What an agent is told.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "few of them are there at a time")]
pub(crate) enum Said {
    Hello {
        dir: String,
        pid: u32,
        home: String,
        facts: Vec<Fact>,
    },
    Opened {
        channel: u16,
        dir: String,
        pid: u32,
    },
    Failed {
        channel: u16,
        errno: i32,
        step: String,
    },
    /// A frame of a job's, with its session and number.
    Frame(u16, u32, u64, FromWarden),
    Ended {
        channel: u16,
        name: String,
        code: i32,
    },
    Gone(String),
    Left(String, String),
    Names(bool, Vec<String>),
    Fault(String),
    /// The connection has ended.
    Closed,
}

/// An agent's end of a connection.
pub(crate) struct Agent {
    child: Child,
    stdin: Option<ChildStdin>,
    said: Receiver<Said>,
    /// Passed over while something else was waited for.
    early: Vec<Said>,
    /// Sessions that are not the first of their channel: what a keeper said in earlier ones comes before.
    sessions: BTreeMap<u16, u32>,
    /// What the hub said of itself.
    pub(crate) hub: u32,
    pub(crate) dir: String,
    pub(crate) facts: Vec<Fact>,
}

impl Agent {
    fn new(mut child: Child) -> Self {
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("piped"));
        // More than any test lets lie: one that waits for something hears all that comes before.
        let (tell, said) = sync_channel(MOST_UNHEARD);
        std::thread::spawn(move || listen(stdout, &tell));
        Self {
            child,
            stdin,
            said,
            early: Vec::new(),
            sessions: BTreeMap::new(),
            hub: 0,
            dir: String::new(),
            facts: Vec::new(),
        }
    }

    fn hello(&mut self) {
        self.say(&ToHub::Hello { version: MUX_VERSION });
        match self.next() {
            Said::Hello { dir, pid, facts, .. } => (self.dir, self.hub, self.facts) = (dir, pid, facts),
            other => panic!("{other:?} instead of a greeting"),
        }
    }

    /// The connector's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn say(&mut self, message: &ToHub<'_>) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.write(&bytes);
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        // One that is gone is seen by what it says, or does not.
        let _ = self.stdin.as_mut().expect("open").write_all(bytes);
    }

    /// Says something to a job's keeper.
    pub(crate) fn tell(&mut self, channel: u16, epoch: u32, messages: &[ToWarden]) {
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| message.encode(epoch, &mut bytes));
        self.say(&ToHub::Data { channel, bytes: &bytes });
    }

    /// What is said next, of all that was said.
    pub(crate) fn next(&mut self) -> Said {
        if self.early.is_empty() { self.hear(PATIENCE).expect("something is said") } else { self.early.remove(0) }
    }

    fn hear(&mut self, patience: Duration) -> Option<Said> {
        let until = Instant::now() + patience;
        loop {
            match self.said.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Said::Frame(channel, epoch, ..))
                    if self.sessions.get(&channel).is_some_and(|session| epoch != *session) => {}
                Ok(said) => return Some(said),
                Err(RecvTimeoutError::Disconnected) => return Some(Said::Closed),
                Err(RecvTimeoutError::Timeout) => return None,
            }
        }
    }

    /// Begins a session with a job that had one before.
    pub(crate) fn session(&mut self, channel: u16, epoch: u32, name: &str, stored: u64) {
        self.sessions.insert(channel, epoch);
        self.say(&ToHub::Data { channel, bytes: &attach(epoch, name, stored) });
    }

    /// Waits until something is said for which this gives an answer; what is said before is kept.
    pub(crate) fn find<T>(&mut self, wanted: impl Fn(&Said) -> Option<T>) -> T {
        if let Some(at) = self.early.iter().position(|said| wanted(said).is_some()) {
            return wanted(&self.early.remove(at)).expect("was found");
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let said = self.hear(until.saturating_duration_since(Instant::now()));
            let said = said.unwrap_or_else(|| panic!("not said in time; said was {:?}", self.early));
            if let Some(found) = wanted(&said) {
                return found;
            }
            assert!(said != Said::Closed, "the connection has ended; said was {:?}", self.early);
            self.early.push(said);
        }
    }

    /// Whether anything is said within this time; it is kept.
    pub(crate) fn hears_within(&mut self, patience: Duration) -> bool {
        let said = self.hear(patience);
        let heard = said.is_some();
        self.early.extend(said);
        heard
    }

    pub(crate) fn opened(&mut self, wanted: u16) -> String {
        self.find(|said| match said {
            Said::Opened { channel, dir, .. } if *channel == wanted => Some(Ok(dir.clone())),
            Said::Failed { channel, errno, step } if *channel == wanted => Some(Err((*errno, step.clone()))),
            _ => None,
        })
        .unwrap_or_else(|failed| panic!("{failed:?}"))
    }

    pub(crate) fn failed(&mut self, wanted: u16) -> i32 {
        self.find(|said| match said {
            Said::Failed { channel, errno, .. } if *channel == wanted => Some(*errno),
            _ => None,
        })
    }

    /// Opens a channel and begins a job; says nothing of what became of it.
    pub(crate) fn begin(&mut self, channel: u16, name: &str, job: &CellSpec) {
        let mut bytes = Vec::new();
        ToHub::Open { channel, name: name.to_owned() }.encode(&mut bytes);
        ToHub::Data { channel, bytes: &beginning(name, job, &[]) }.encode(&mut bytes);
        self.write(&bytes);
    }

    pub(crate) fn exit(&mut self, channel: u16) -> Exit {
        self.find(|said| match said {
            Said::Frame(at, _, _, FromWarden::Exit(exit)) if *at == channel => Some(Ok(exit.clone())),
            Said::Frame(at, _, _, FromWarden::Refused { mismatches }) if *at == channel => {
                Some(Err(format!("{mismatches:?}")))
            }
            Said::Ended { channel: at, code, .. } if *at == channel => Some(Err(format!("ended with {code}"))),
            _ => None,
        })
        .unwrap_or_else(|why| panic!("no end: {why}"))
    }

    pub(crate) fn started(&mut self, channel: u16) {
        self.find(|said| {
            matches!(said, Said::Frame(at, _, _, FromWarden::Started { .. }) if *at == channel).then_some(())
        });
    }

    pub(crate) fn ended(&mut self, wanted: u16) -> i32 {
        self.find(|said| match said {
            Said::Ended { channel, code, .. } if *channel == wanted => Some(*code),
            _ => None,
        })
    }

    /// What has come of a job's output that was said so far.
    pub(crate) fn output(&mut self, channel: u16) -> Vec<(u64, Vec<u8>)> {
        let mut found = Vec::new();
        self.early.retain(|said| match said {
            Said::Frame(at, _, seq, FromWarden::Output { bytes, .. }) if *at == channel => {
                found.push((*seq, bytes.clone()));
                false
            }
            _ => true,
        });
        found
    }

    /// Waits for a job's end, lets it go, and says how it ended and what it wrote. For output that fits the window.
    pub(crate) fn finish(&mut self, channel: u16) -> (Exit, String) {
        let exit = self.exit(channel);
        let output = self.output(channel).into_iter().flat_map(|(_, bytes)| bytes).collect();
        self.tell(channel, 1, &[ToWarden::Close]);
        assert_eq!(self.ended(channel), 0);
        (exit, String::from_utf8(output).expect("text"))
    }

    /// The whole of a job.
    pub(crate) fn run(&mut self, channel: u16, name: &str, job: &CellSpec) -> (Exit, String) {
        self.begin(channel, name, job);
        self.opened(channel);
        self.finish(channel)
    }

    pub(crate) fn kill(&mut self, name: &str) {
        self.say(&ToHub::Kill { name: name.to_owned() });
        let gone = self.find(|said| match said {
            Said::Gone(gone) if gone == name => Some(Ok(())),
            Said::Left(left, text) if left == name => Some(Err(text.clone())),
            _ => None,
        });
        gone.unwrap_or_else(|text| panic!("{name}: {text}"));
    }

    pub(crate) fn names(&mut self) -> Vec<String> {
        self.say(&ToHub::List);
        let mut all = Vec::new();
        loop {
            let (more, names) = self.find(|said| match said {
                Said::Names(more, names) => Some((*more, names.clone())),
                _ => None,
            });
            all.extend(names);
            if !more {
                return all;
            }
        }
    }

    /// The agent goes, as a connection that is cut.
    pub(crate) fn cut(mut self) {
        self.child.kill().expect("is there");
        self.child.wait().expect("has ended");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The frames that begin a job: attach, the spec, its script, the commit.
pub(crate) fn beginning(attempt: &str, job: &CellSpec, script: &[u8]) -> Vec<u8> {
    let (mut head, mut bytes) = (Vec::new(), attach(1, attempt, 0));
    CellSpec { attempt: attempt.to_owned(), ..job.clone() }.encode(&mut head);
    ToWarden::SpecChunk { section: 0, offset: 0, bytes: head.clone() }.encode(1, &mut bytes);
    if !script.is_empty() {
        ToWarden::SpecChunk { section: 1, offset: 0, bytes: script.to_vec() }.encode(1, &mut bytes);
    }
    ToWarden::commit(&head, script, b"").encode(1, &mut bytes);
    bytes
}

pub(crate) fn attach(epoch: u32, attempt: &str, stored: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (min_version, max_version) = (VERSION, VERSION);
    ToWarden::Attach { min_version, max_version, attempt: attempt.to_owned(), stored, window: WINDOW }
        .encode(epoch, &mut bytes);
    bytes
}

/// A job that is a program.
pub(crate) fn program(argv: &[&str]) -> CellSpec {
    CellSpec {
        argv: argv.iter().map(|item| (*item).to_owned()).collect(),
        inherit_env: vec!["*".to_owned(), "HOME".to_owned()],
        grace_ms: 1000,
        lease_ms: 120_000,
        ..CellSpec::default()
    }
}

/// A job that is a line for a shell.
pub(crate) fn shell(line: &str) -> CellSpec {
    program(&["sh", "-c", line])
}

fn listen(mut from: impl Read, tell: &SyncSender<Said>) {
    let (mut mux, mut jobs, mut buffer) = (MuxDecoder::new(), BTreeMap::<u16, Decoder>::new(), vec![0; 256 * 1024]);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        mux.feed(&buffer[..count]);
        while let Some(envelope) = mux.next().expect("a stream of envelopes") {
            let said = match FromHub::decode(&envelope).expect("a message") {
                FromHub::Hello { dir, pid, home, facts, .. } => Said::Hello { dir, pid, home, facts },
                FromHub::Opened { channel, dir, pid } => {
                    jobs.insert(channel, Decoder::new());
                    Said::Opened { channel, dir, pid }
                }
                FromHub::Failed { channel, errno, step } => Said::Failed { channel, errno, step },
                FromHub::Data { channel, bytes } => {
                    let decoder = jobs.entry(channel).or_default();
                    decoder.feed(bytes);
                    while let Some(frame) = decoder.next() {
                        let (epoch, seq) = (frame.epoch, frame.seq);
                        let message = FromWarden::decode(&frame).expect("a message");
                        let _ = tell.send(Said::Frame(channel, epoch, seq, message));
                    }
                    continue;
                }
                FromHub::Ended { channel, name, code } => Said::Ended { channel, name, code },
                FromHub::Gone { name } => Said::Gone(name),
                FromHub::Left { name, text } => Said::Left(name, text),
                FromHub::Names { more, names } => Said::Names(more, names),
                FromHub::Fault { text } => Said::Fault(text),
            };
            let _ = tell.send(said);
        }
    }
    let _ = tell.send(Said::Closed);
}

/// Processes that have this among their arguments.
pub(crate) fn with_argument(wanted: &str) -> Vec<u32> {
    matching("cmdline", |argument| argument == wanted.as_bytes())
}

/// Processes that have this variable.
pub(crate) fn with_variable(name: &str, value: &str) -> Vec<u32> {
    let wanted = format!("{name}={value}");
    matching("environ", |variable| variable == wanted.as_bytes())
}

/// Processes of a job.
pub(crate) fn of_job(name: &str) -> Vec<u32> {
    with_variable("JOBCELL_CELL", &format!("{name}."))
}

fn matching(file: &str, wanted: impl Fn(&[u8]) -> bool) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").expect("readable").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has = |pid: &u32| {
        let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        bytes.split(|byte| *byte == 0).any(&wanted)
    };
    pids.filter(has).collect()
}

/// KILL to one process.
pub(crate) fn end(pid: u32) {
    signal("-KILL", pid);
}

pub(crate) fn signal(name: &str, pid: u32) {
    let _ = Command::new("kill").args([name, &pid.to_string()]).stderr(Stdio::null()).status();
}

/// Waits until it is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(2));
    }
}
