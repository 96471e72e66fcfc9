//! A proxy between an agent and its engine that lets the calls of the table through, refuses all else, and remembers both.

use jobcell::executor::docker::EngineCall;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};

/// Of a request's head; ours have a fraction of it.
const MOST_HEAD: usize = 64 << 10;

/// What was asked.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// Calls of the table.
    pub(crate) used: BTreeSet<EngineCall>,
    /// Everything else, as `METHOD target`.
    pub(crate) refused: Vec<String>,
}

/// One that runs until the test ends.
pub(crate) struct Recorder {
    asked: Arc<Mutex<Asked>>,
    socket: PathBuf,
}

impl Recorder {
    /// In front of the engine at that socket.
    pub(crate) fn start(engine: &Path, dir: &Path) -> Self {
        Self::serve(engine, dir, false)
    }

    /// One that has no engine behind it when a call is made for the first time, and says so as HAProxy does.
    pub(crate) fn that_answers_for_it_first(engine: &Path, dir: &Path) -> Self {
        Self::serve(engine, dir, true)
    }

    fn serve(engine: &Path, dir: &Path, answers_first: bool) -> Self {
        let socket = dir.join("recorder.sock");
        let listener = UnixListener::bind(&socket).expect("binds");
        let asked: Arc<Mutex<Asked>> = Arc::default();
        let (engine, noted) = (engine.to_owned(), Arc::clone(&asked));
        jobcell::supervise::spawn("recorder", async move {
            loop {
                let (client, _) = listener.accept().await.expect("accepts");
                let (engine, noted) = (engine.clone(), Arc::clone(&noted));
                jobcell::supervise::spawn("recorded", async move {
                    // Either side may break off at any moment; who asked sees it.
                    let _ = pass(client, &engine, &noted, answers_first).await;
                });
            }
        });
        Self { asked, socket }
    }

    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    pub(crate) fn asked(&self) -> Asked {
        std::mem::take(&mut self.asked.lock().expect("not poisoned"))
    }
}

/// One request of a connection: the engine is told to close behind its answer, so that the next one comes by a new connection and is seen.
async fn pass(mut client: UnixStream, engine: &Path, asked: &Mutex<Asked>, answers_first: bool) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|part| part == b"\r\n\r\n") {
            break at;
        }
        if bytes.len() > MOST_HEAD || client.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let Some(call) = EngineCall::of(method, target) else {
        asked.lock().expect("not poisoned").refused.push(format!("{method} {target}"));
        let said = r#"{"message":"not one of the calls that this proxy lets through"}"#;
        let length = said.len();
        let answer = format!(
            "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{said}"
        );
        return client.write_all(answer.as_bytes()).await;
    };
    if asked.lock().expect("not poisoned").used.insert(*call) && answers_first {
        let said = "<html><body><h1>503 Service Unavailable</h1>\nNo server is available to handle this request.\n</body></html>\n";
        let length = said.len();
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: {length}\r\ncache-control: no-cache\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n{said}"
        );
        return client.write_all(answer.as_bytes()).await;
    }
    let mut server = UnixStream::connect(engine).await?;
    server.write_all(&bytes[..end]).await?;
    // An attach says itself what becomes of its connection.
    if !head.to_ascii_lowercase().contains("\r\nupgrade:") {
        server.write_all(b"\r\nConnection: close").await?;
    }
    server.write_all(&bytes[end..]).await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}
