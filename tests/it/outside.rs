//! What the tests of the proxy find outside: a web server and a name server on the host's loopback.

use simple_dns::rdata::{A, AAAA, RData};
use simple_dns::{CLASS, Packet, PacketFlag, QTYPE, ResourceRecord, TYPE};
use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::AbortHandle;

/// A script in Python that can ask the proxy of its cell: `connect(host, port)` and `fetch(host, port, path)`.
pub(crate) fn proxied(script: &str) -> String {
    let head = r"
import asyncio, os, socket, sys, threading, time
PORT = int(os.environ['http_proxy'].rsplit(':', 1)[1])
def connect(host, port):
    s = socket.create_connection(('127.0.0.1', PORT))
    s.sendall(f'CONNECT {host}:{port} HTTP/1.1\r\n\r\n'.encode())
    head = b''
    while not head.endswith(b'\r\n\r\n'): head += s.recv(1)
    assert b' 200 ' in head, head
    return s
def fetch(host, port, path):
    s = connect(host, port)
    s.sendall(f'GET {path} HTTP/1.0\r\n\r\n'.encode())
    whole = 0
    while True:
        b = s.recv(65536)
        if not b: break
        whole += len(b)
    return whole - 19
";
    format!("{head}{script}")
}

#[derive(Default)]
struct Counts {
    seen: AtomicU64,
    open: AtomicU64,
    sent: AtomicU64,
}

/// A web server on the loopback; gone with the value.
pub(crate) struct Server {
    pub(crate) port: u16,
    counts: Arc<Counts>,
    task: AbortHandle,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        repository(dir.path());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("bound").port();
        let counts = Arc::new(Counts::default());
        let (root, shared) = (dir.path().to_owned(), Arc::clone(&counts));
        let task = jobcell::supervise::spawn("outside", async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.seen.fetch_add(1, SeqCst);
                shared.open.fetch_add(1, SeqCst);
                let (root, counts) = (root.clone(), Arc::clone(&shared));
                jobcell::supervise::spawn("outside", async move {
                    let _ = serve(stream, port, &root, &counts).await;
                    counts.open.fetch_sub(1, SeqCst);
                });
            }
        });
        Self { port, counts, task: task.abort_handle(), _dir: dir }
    }

    /// Connections so far.
    pub(crate) fn seen(&self) -> u64 {
        self.counts.seen.load(SeqCst)
    }

    /// Connections now.
    pub(crate) fn open(&self) -> u64 {
        self.counts.open.load(SeqCst)
    }

    /// Bytes that were written.
    pub(crate) fn sent(&self) -> u64 {
        self.counts.sent.load(SeqCst)
    }
}

/// A repository that can be cloned from plain files.
fn repository(dir: &Path) {
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=x", "-c", "user.email=x@x", "-c", "init.defaultBranch=main"]).args(args);
        let output = command.current_dir(dir).output().expect("git runs");
        assert!(output.status.success(), "git {args:?}: {output:?}");
    };
    git(&["init", "-q", "work"]);
    std::fs::write(dir.join("work/README"), "read me\n").expect("writes");
    git(&["-C", "work", "add", "."]);
    git(&["-C", "work", "commit", "-q", "-m", "first"]);
    git(&["clone", "-q", "--bare", "work", "repo.git"]);
    git(&["-C", "repo.git", "update-server-info"]);
}

async fn serve(stream: TcpStream, port: u16, root: &Path, counts: &Counts) -> std::io::Result<()> {
    let (from, mut to) = stream.into_split();
    let mut from = BufReader::new(from);
    let mut first = [0; 6];
    from.read_exact(&mut first).await?;
    if &first == b"COUNT " {
        let count = tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
        return to.write_all(count.to_string().as_bytes()).await;
    }
    let (mut line, mut length) = (String::new(), 0);
    from.read_line(&mut line).await?;
    let line = format!("{}{line}", String::from_utf8_lossy(&first));
    let path = line.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
    loop {
        let mut header = String::new();
        from.read_line(&mut header).await?;
        let (name, value) = header.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or_default();
        }
        if header.trim().is_empty() {
            break;
        }
    }
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";
    let place = match path.as_str() {
        "/redirect" => Some(format!("http://good.test:{port}/hello")),
        "/redirect-to-metadata" => Some(format!("http://169.254.169.254:{port}/latest")),
        _ => None,
    };
    if let Some(place) = place {
        let answer = format!("HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n");
        return to.write_all(answer.as_bytes()).await;
    }
    match path.as_str() {
        "/hello" => to.write_all(&[OK, b"hello\n"].concat()).await,
        "/mega" => to.write_all(&[OK, &vec![b'x'; 1 << 20]].concat()).await,
        "/echo" => {
            let mut body = vec![0; length];
            from.read_exact(&mut body).await?;
            to.write_all(&[OK, &body].concat()).await
        }
        "/silent" => {
            to.write_all(OK).await?;
            tokio::io::copy(&mut from, &mut tokio::io::sink()).await.map(drop)
        }
        "/big" | "/endless" => {
            to.write_all(OK).await?;
            let most = if path == "/big" { 20 } else { u64::MAX };
            let piece = vec![b'x'; 1 << 20];
            for _ in 0..most {
                to.write_all(&piece).await?;
                counts.sent.fetch_add(piece.len() as u64, SeqCst);
            }
            Ok(())
        }
        _ => match std::fs::read(root.join(path.trim_start_matches('/'))) {
            Ok(bytes) => to.write_all(&[OK, &bytes].concat()).await,
            Err(_) => to.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await,
        },
    }
}

#[derive(Default)]
struct Names {
    v4: HashMap<String, Vec<Ipv4Addr>>,
    v6: HashMap<String, Ipv6Addr>,
    /// One of the addresses for each question, in turn.
    turns: HashMap<String, Vec<Ipv4Addr>>,
    /// Questions for IPv4.
    asked: HashMap<String, usize>,
}

/// A name server on the loopback; gone with the value.
pub(crate) struct Dns {
    pub(crate) address: SocketAddr,
    names: Arc<Mutex<Names>>,
    task: AbortHandle,
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Dns {
    pub(crate) async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        let address = socket.local_addr().expect("bound");
        let names = Arc::new(Mutex::new(Names::default()));
        let shared = Arc::clone(&names);
        let task = jobcell::supervise::spawn("outside", async move {
            let mut buffer = [0; 4096];
            while let Ok((count, from)) = socket.recv_from(&mut buffer).await {
                let answer = answer(&buffer[..count], &mut shared.lock().expect("whole"));
                let _ = socket.send_to(&answer, from).await;
            }
        });
        Self { address, names, task: task.abort_handle() }
    }

    pub(crate) fn leads(&self, name: &str, to: &[Ipv4Addr]) {
        self.names.lock().expect("whole").v4.insert(name.to_owned(), to.to_vec());
    }

    pub(crate) fn leads_v6(&self, name: &str, to: Ipv6Addr) {
        self.names.lock().expect("whole").v6.insert(name.to_owned(), to);
    }

    pub(crate) fn leads_in_turn(&self, name: &str, to: &[Ipv4Addr]) {
        self.names.lock().expect("whole").turns.insert(name.to_owned(), to.to_vec());
    }

    /// Questions for the IPv4 addresses of a name.
    pub(crate) fn asked(&self, name: &str) -> usize {
        self.names.lock().expect("whole").asked.get(name).copied().unwrap_or_default()
    }
}

fn answer(question: &[u8], names: &mut Names) -> Vec<u8> {
    let asked = Packet::parse(question).expect("a question");
    let mut reply = Packet::new_reply(asked.id());
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
    let question = asked.questions[0].clone();
    let name = question.qname.to_string();
    let mut data = Vec::new();
    if question.qtype == QTYPE::TYPE(TYPE::A) {
        let count = names.asked.entry(name.clone()).or_default();
        *count += 1;
        let turn = names.turns.get(&name).map(|all| vec![all[(*count - 1) % all.len()]]);
        let all = turn.or_else(|| names.v4.get(&name).cloned()).unwrap_or_default();
        data.extend(all.into_iter().map(|one| RData::A(A { address: one.to_bits() })));
    } else if let Some(one) = names.v6.get(&name) {
        data.push(RData::AAAA(AAAA { address: one.to_bits() }));
    }
    for one in data {
        reply.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, 1, one));
    }
    reply.questions.push(question);
    reply.build_bytes_vec().expect("an answer")
}
