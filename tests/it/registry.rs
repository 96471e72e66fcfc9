//! A real registry on loopback, images that are only there, and a proxy before it that counts and breaks what passes.
//!
//! Engines take 127.0.0.0/8 for hosts that need no TLS. Every image has a marker of its own, so no two tests share one.

use super::stage::{docker, until};
use std::io::Write;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A user of registries that ask for one; the password has what some alphabets of base64 lose.
pub(crate) const USER: &str = "ci";
pub(crate) const PASSWORD: &str = "pull>me?~1";
/// The line of a password file for them.
const HTPASSWD: &str = "ci:$2y$05$abcdefghijklmnopqrstuuqhNTLsXj5pR4sjjwRNVw61ynUgwjNBq\n";

/// A registry; it ends with the value.
pub(crate) struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    host: String,
    pub(crate) address: SocketAddr,
    /// Names that were given on the engine, to be taken back.
    names: Mutex<Vec<String>>,
}

impl Registry {
    /// Starts one; with `login`, only [`USER`] gets anything. `None` after saying loudly that the test is skipped.
    pub(crate) async fn start(engine: &str, login: bool) -> Option<Self> {
        if Command::new("docker-registry").arg("--version").output().is_err() {
            assert!(
                std::env::var("JOBCELL_TEST_ENGINE").as_deref() != Ok("required"),
                "docker-registry is not installed"
            );
            eprintln!("SKIPPED: docker-registry is not installed");
            return None;
        }
        let dir = tempfile::tempdir().expect("a folder");
        // Free a moment ago; whoever takes it first is seen by the registry's end.
        let address = StdListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let mut text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: \"{address}\"}}\n",
            dir.path().join("data").display()
        );
        if login {
            let file = dir.path().join("htpasswd");
            std::fs::write(&file, HTPASSWD).expect("writes");
            text.push_str(&format!("auth: {{htpasswd: {{realm: tests, path: {}}}}}\n", file.display()));
        }
        let config = dir.path().join("registry.yml");
        std::fs::write(&config, text).expect("writes");
        let log = std::fs::File::create(dir.path().join("log")).expect("makes");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("clones"))
            .stderr(log)
            .spawn()
            .expect("starts");
        until("the registry", || async { TcpStream::connect(address).await.ok() }).await;
        if login {
            let auth = r#"{"auths": {"HOST": {"auth": "AUTH"}}}"#.replace("HOST", &address.to_string());
            // base64 of `ci:pull>me?~1`.
            let auth = auth.replace("AUTH", "Y2k6cHVsbD5tZT9+MQ==");
            std::fs::write(dir.path().join("config.json"), auth).expect("writes");
        }
        Some(Self { child, dir, host: engine.to_owned(), address, names: Mutex::default() })
    }

    /// A login file of Docker's for it.
    pub(crate) fn login_file(&self) -> std::path::PathBuf {
        self.dir.path().join("config.json")
    }

    /// An image of a shell with `bytes` of its own, known to the registry as `repo:tag` and not to the engine; its name, and its name with
    /// the digest.
    pub(crate) fn push(&self, repo: &str, tag: &str, bytes: usize) -> (String, String) {
        let name = self.local(repo, tag, bytes);
        let config = self.dir.path().display().to_string();
        docker(&self.host, &["--config", &config, "push", "--quiet", &name]);
        let digest = docker(&self.host, &["image", "inspect", "--format", "{{index .RepoDigests 0}}", &name]);
        docker(&self.host, &["rmi", "--force", &name]);
        (name, digest)
    }

    /// The same, known to the engine and not to the registry.
    pub(crate) fn local(&self, repo: &str, tag: &str, bytes: usize) -> String {
        let name = format!("{}/{repo}:{tag}", self.address);
        let mut import = Command::new("docker")
            .args(["--host", &self.host, "import", "-", &name])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("starts");
        import.stdin.take().expect("a pipe").write_all(&root(bytes)).expect("writes");
        assert!(import.wait().expect("ends").success());
        self.names.lock().expect("not poisoned").push(name.clone());
        name
    }

    /// The name behind a proxy.
    pub(crate) fn through(&self, proxy: &Proxy, name: &str) -> String {
        let name = name.replace(&self.address.to_string(), &proxy.address.to_string());
        self.names.lock().expect("not poisoned").push(name.clone());
        name
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for name in self.names.lock().expect("not poisoned").iter() {
            let _ = Command::new("docker").args(["--host", &self.host, "rmi", "--force", name]).output();
        }
    }
}

/// A root file system with a shell, and a file that no other has.
fn root(bytes: usize) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        archive.append_data(&mut header, path.trim_start_matches('/'), content).expect("appends");
    };
    let mut files = vec!["/bin/bash".to_owned(), "/bin/sleep".to_owned(), "/bin/cat".to_owned()];
    for program in files.clone() {
        let said = Command::new("ldd").arg(&program).output().expect("ldd runs");
        let said = String::from_utf8(said.stdout).expect("text");
        files.extend(said.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    }
    files.sort();
    files.dedup();
    for file in files {
        add(&file, &std::fs::read(Path::new(&file)).expect("reads"));
    }
    let mut marker = vec![0; bytes.max(32)];
    getrandom::fill(&mut marker).expect("random bytes");
    add("/marker", &marker);
    archive.into_inner().expect("ends")
}

/// What happens to a request on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    Pass,
    /// This answer, whatever was asked.
    Answer(&'static str),
    /// No answer at all.
    Hang,
    /// Blobs come in pieces of 64 KiB with a pause before each.
    Slow(Duration),
    /// The first blob is cut in the middle, the others are whole.
    CutOnce,
    /// One byte of each blob is another one.
    Flip,
    /// The same of manifests.
    FlipManifest,
}

/// A proxy before a registry; it ends with the runtime of its test.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    fault: watch::Sender<Fault>,
    seen: Arc<Mutex<Vec<String>>>,
    /// Connections that are open.
    open: watch::Sender<usize>,
}

impl Proxy {
    pub(crate) async fn start(registry: &Registry) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("is bound");
        let (fault, seen, open) = (watch::Sender::new(Fault::Pass), Arc::default(), watch::Sender::new(0));
        let proxy = Self { address, fault, seen: Arc::clone(&seen), open: open.clone() };
        let (faults, upstream) = (proxy.fault.clone(), registry.address);
        jobcell::supervise::spawn("registry proxy", async move {
            loop {
                let (client, _) = listener.accept().await.expect("accepts");
                let (fault, seen, open) = (faults.clone(), Arc::clone(&seen), open.clone());
                jobcell::supervise::spawn("proxied", async move {
                    open.send_modify(|open| *open += 1);
                    let _ = pass(client, upstream, &fault, &seen).await;
                    open.send_modify(|open| *open -= 1);
                });
            }
        });
        proxy
    }

    pub(crate) fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// How many requests had this in their first line.
    pub(crate) fn seen(&self, part: &str) -> usize {
        self.seen.lock().expect("not poisoned").iter().filter(|line| line.contains(part)).count()
    }

    /// Waits until a request had this in its first line.
    pub(crate) async fn sees(&self, part: &str) {
        until(part, || async { (self.seen(part) > 0).then_some(()) }).await;
    }

    /// Waits until nobody is connected.
    pub(crate) async fn is_left(&self) {
        let mut open = self.open.subscribe();
        let left = tokio::time::timeout(super::stage::PATIENCE, open.wait_for(|open| *open == 0)).await;
        assert!(left.is_ok(), "somebody stays connected");
    }
}

/// One request, and its answer; then the connection is closed.
async fn pass(
    mut client: TcpStream,
    registry: SocketAddr,
    fault: &watch::Sender<Fault>,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
        // An engine tries TLS first, and goes on without it after an answer as other servers have it.
        if head == [0x16] {
            client.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent a TLS hello to an HTTP server.\n").await?;
            return client.shutdown().await;
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let line = text.lines().next().unwrap_or_default().to_owned();
    let (blob, manifest) = (line.contains("/blobs/"), line.contains("/manifests/"));
    let whole = line.starts_with("GET");
    seen.lock().expect("not poisoned").push(line);
    let now = *fault.borrow();
    match now {
        Fault::Answer(answer) => {
            client.write_all(answer.as_bytes()).await?;
            return client.shutdown().await;
        }
        // Until whoever asked goes.
        Fault::Hang => return client.read_u8().await.map(drop),
        _ => {}
    }
    let mut upstream = TcpStream::connect(registry).await?;
    upstream.write_all(text.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer).await?;
    let body = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let middle = body + (answer.len() - body) / 2;
    match now {
        Fault::Slow(pause) if blob && whole => {
            let (mut gone, mut rest) = ([0; 1], &answer[..]);
            while !rest.is_empty() {
                let piece = rest.len().min(64 << 10);
                client.write_all(&rest[..piece]).await?;
                rest = &rest[piece..];
                // Whoever goes is noticed at once.
                if let Ok(left) = tokio::time::timeout(pause, client.read(&mut gone)).await {
                    return left.map(drop);
                }
            }
        }
        Fault::CutOnce if blob && whole && answer.len() > 1 << 20 => {
            fault.send_replace(Fault::Pass);
            client.write_all(&answer[..middle]).await?;
        }
        Fault::Flip if blob && whole && middle < answer.len() => {
            answer[middle] ^= 1;
            client.write_all(&answer).await?;
        }
        Fault::FlipManifest if manifest && whole && middle < answer.len() => {
            // Still JSON: a digit of a digest.
            let digit = answer[middle..].iter().position(u8::is_ascii_digit).map_or(middle, |at| middle + at);
            answer[digit] = if answer[digit] == b'9' { b'8' } else { answer[digit] + 1 };
            client.write_all(&answer).await?;
        }
        _ => client.write_all(&answer).await?,
    }
    client.shutdown().await
}
