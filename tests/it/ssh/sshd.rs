//! A real sshd on a loopback address, with its own settings and host keys, and what belongs to it: keys, certificates, known_hosts.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// Who logs in where root runs the tests.
const USER: &str = "jobcell-ssh-test";

/// True if there is an sshd to test with; says loudly if not.
pub(crate) fn present() -> bool {
    if sshd_program().is_some() {
        return true;
    }
    assert!(
        std::env::var("JOBCELL_TEST_ENGINE").as_deref() != Ok("required"),
        "there is no sshd, and JOBCELL_TEST_ENGINE=required: install openssh-server"
    );
    eprintln!("SKIPPED: there is no sshd; install openssh-server");
    false
}

fn sshd_program() -> Option<&'static Path> {
    ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/sbin/sshd"].into_iter().map(Path::new).find(|path| path.exists())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a program that has to succeed.
pub(crate) fn must(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The user that logs in: an unprivileged one, made once, or whoever runs the tests.
pub(crate) fn login() -> &'static str {
    static LOGIN: OnceLock<String> = OnceLock::new();
    LOGIN.get_or_init(|| {
        if !is_root() {
            return must("id", &["-un"]).trim().to_owned();
        }
        let exists = || Command::new("id").arg(USER).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !exists().is_ok_and(|status| status.success()) {
            // Another test process may be doing the same.
            let made = Command::new("useradd").args(["--create-home", "--shell", "/bin/sh", USER]).output();
            let made = made.expect("useradd runs");
            let there = made.status.success() || exists().is_ok_and(|status| status.success());
            assert!(there, "useradd: {}", String::from_utf8_lossy(&made.stderr));
        }
        // Not locked, and without a password that opens it.
        must("usermod", &["-p", "*", USER]);
        USER.to_owned()
    })
}

/// A folder of one test: keys of users and hosts, known_hosts, settings.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a folder");
        // The login reads its authorized_keys itself.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("sets the mode");
        let folder = Self(dir);
        folder.keygen("user", &["-t", "ed25519"]);
        folder.write("known_hosts", "");
        folder
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("writes");
        path
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("reads")
    }

    /// Makes a key pair, without a passphrase unless the arguments have one.
    pub(crate) fn keygen(&self, name: &str, args: &[&str]) -> String {
        let path = self.shown(name);
        let mut all = vec!["-q", "-f", &path, "-C", "test"];
        if !args.contains(&"-N") {
            all.extend(["-N", ""]);
        }
        all.extend(args);
        let _ = std::fs::remove_file(&path);
        must("ssh-keygen", &all);
        path
    }

    pub(crate) fn user_key(&self) -> PathBuf {
        self.path("user")
    }

    /// The public key of a pair, without its comment.
    pub(crate) fn public(&self, name: &str) -> String {
        let text = self.read(&format!("{name}.pub"));
        text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn fingerprint(&self, name: &str) -> String {
        let text = must("ssh-keygen", &["-lf", &self.shown(&format!("{name}.pub"))]);
        text.split_whitespace().nth(1).expect("a fingerprint").to_owned()
    }

    /// A server whose host key is known from the start, and that knows the folder's user key.
    pub(crate) fn sshd(&self, more: &str) -> Sshd {
        let sshd = self.stranger(more);
        self.know(&sshd);
        sshd
    }

    /// A server whose host key nobody knows.
    pub(crate) fn stranger(&self, more: &str) -> Sshd {
        let name = format!("host{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.keygen(&name, &["-t", "ed25519"]);
        self.sshd_with(&name, more)
    }

    pub(crate) fn know(&self, sshd: &Sshd) {
        let line = format!("{} {}\n", sshd.known_name(), self.public(&sshd.host_key));
        self.write("known_hosts", &(self.read("known_hosts") + &line));
    }

    /// A server with this host key.
    pub(crate) fn sshd_with(&self, host_key: &str, more: &str) -> Sshd {
        let keys = self.path("authorized_keys");
        if !keys.exists() {
            self.write("authorized_keys", &format!("{}\n", self.public("user")));
        }
        Sshd::start(self, host_key, more, None)
    }

    /// A server in a network namespace, at port 22 of its address, known from the start.
    pub(crate) fn sshd_in(&self, network: &str, address: &str, more: &str) -> Sshd {
        self.keygen("host-in-network", &["-t", "ed25519"]);
        self.write("authorized_keys", &format!("{}\n", self.public("user")));
        let sshd = Sshd::start(self, "host-in-network", more, Some((network, address)));
        self.know(&sshd);
        sshd
    }
}

static COUNT: AtomicU8 = AtomicU8::new(0);

/// A server that ends with what it runs when it is dropped.
pub(crate) struct Sshd {
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) host_key: String,
    log: PathBuf,
    config: PathBuf,
    /// Where it is, when not here.
    network: Option<String>,
    child: Child,
}

impl Sshd {
    fn start(folder: &Folder, host_key: &str, more: &str, network: Option<(&str, &str)>) -> Self {
        let nth = COUNT.fetch_add(1, Ordering::Relaxed);
        let near = || format!("127.0.{}.{}", 1 + nth % 200, 1 + nth % 250);
        let address = network.map_or_else(near, |(_, address)| address.to_owned());
        let network = network.map(|(name, _)| name.to_owned());
        let (config, log) = (folder.path(&format!("sshd{nth}.conf")), folder.path(&format!("sshd{nth}.log")));
        if is_root() {
            login();
            // Where a service would have made it.
            std::fs::create_dir_all("/run/sshd").expect("a folder for sshd");
        }
        for _ in 0..5 {
            let free = || std::net::TcpListener::bind((address.as_str(), 0)).and_then(|free| free.local_addr());
            let port = if network.is_some() { 22 } else { free().expect("a free port").port() };
            let mut text = format!(
                "ListenAddress {address}:{port}\nPidFile none\nAuthorizedKeysFile {}\nStrictModes no\n",
                folder.shown("authorized_keys")
            );
            for (line, usual) in [
                ("LogLevel", "VERBOSE"),
                ("UsePAM", "no"),
                ("PasswordAuthentication", "no"),
                ("HostKey", &folder.shown(host_key)),
            ] {
                if !more.lines().any(|own| own.trim_start().starts_with(line)) {
                    text.push_str(&format!("{line} {usual}\n"));
                }
            }
            std::fs::write(&config, text + more + "\n").expect("writes");
            if let Some(child) = Self::spawn(&config, &log, network.as_deref()) {
                return Self { address, port, host_key: host_key.to_owned(), log, config, network, child };
            }
        }
        panic!("sshd does not start: {}", std::fs::read_to_string(&log).unwrap_or_default());
    }

    /// None if its port was taken in between.
    fn spawn(config: &Path, log: &Path, network: Option<&str>) -> Option<Child> {
        let file = std::fs::File::create(log).expect("a log");
        let program = sshd_program().expect("is there");
        let mut command = match network {
            None => Command::new(program),
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(program);
                command
            }
        };
        let mut child = command
            .args(["-D", "-e", "-f"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("sshd starts");
        let addresses = std::fs::read_to_string(config).expect("reads").matches("ListenAddress ").count();
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            if said.matches("Server listening on").count() == addresses {
                return Some(child);
            }
            if let Ok(Some(_)) = child.try_wait() {
                assert!(said.contains("Address already in use"), "sshd: {said}");
                return None;
            }
            assert!(Instant::now() < end, "sshd does not listen: {said}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Of the process that listens.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// As known_hosts has it.
    pub(crate) fn known_name(&self) -> String {
        if self.port == 22 { self.address.clone() } else { format!("[{}]:{}", self.address, self.port) }
    }

    /// What it wrote to its log.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("reads")
    }

    fn tree(&self) -> Vec<rustix::process::Pid> {
        let mut all = vec![i32::try_from(self.child.id()).expect("a pid")];
        let parents = parents();
        let mut at = 0;
        while at < all.len() {
            let own = all[at];
            all.extend(parents.iter().filter(|(_, parent)| *parent == own).map(|(pid, _)| *pid));
            at += 1;
        }
        all.into_iter().filter_map(rustix::process::Pid::from_raw).collect()
    }

    /// Sends a signal to the server and to everything that it started.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        for pid in self.tree() {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Its connections end at once; the server stays, and so does what they had begun.
    pub(crate) fn cut(&self) {
        let listener = i32::try_from(self.child.id()).ok();
        for pid in self.tree() {
            let name = std::fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())).unwrap_or_default();
            if name.starts_with("sshd") && Some(pid.as_raw_nonzero().get()) != listener {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    /// The server and its connections end at once.
    pub(crate) fn kill(&mut self) {
        self.signal(rustix::process::Signal::KILL);
        let _ = self.child.wait();
    }

    /// Starts again at the same address, as its file says now.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.child = Self::spawn(&self.config, &self.log, self.network.as_deref()).expect("its port is still free");
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Every process with its parent.
fn parents() -> Vec<(i32, i32)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name in brackets may have anything in it.
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        all.extend(rest.split(' ').nth(1).and_then(|parent| parent.parse().ok()).map(|parent| (pid, parent)));
    }
    all
}
