//! The way between agents and their server, with faults: on loopback, each connection treated as the mode says.
//!
//! A change of the mode resets what is open, except for [`Mode::HalfOpen`], which lets it hang until the next change.

use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Longest head of a request that is looked at.
const HEAD: usize = 16 << 10;

/// What is done to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Nothing.
    Pass,
    /// Reset as soon as they are there.
    Refuse,
    /// Every piece of either direction waits so many milliseconds.
    Slow(u64),
    /// Every request gets this answer, and its server none of it.
    Answer(&'static str),
    /// Every request gets bytes that are no HTTP.
    Garbage,
    /// Every request reaches the server twice; the second answer counts. Streams pass.
    Twice,
    /// Every request reaches the server, and of every two answers one is lost. Streams pass.
    LoseAnswers,
    /// Open, and nothing goes through.
    HalfOpen,
    /// Reset when so many bytes have come from the agent: in the middle of a frame, as soon as it writes enough.
    CutAfter(u64),
}

/// A proxy; it ends with the runtime of its test.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    mode: watch::Sender<Mode>,
    /// How many connections were treated so; counted per mode.
    treated: watch::Sender<u32>,
}

impl Proxy {
    pub(super) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("is bound");
        let (mode, (treated, _)) = (watch::Sender::new(Mode::Pass), watch::channel(0));
        let (modes, count) = (mode.subscribe(), treated.clone());
        jobcell::supervise::spawn("proxy", async move {
            loop {
                let (client, _) = listener.accept().await.expect("accepts");
                let (modes, count) = (modes.clone(), count.clone());
                jobcell::supervise::spawn("proxied", async move {
                    // What breaks here breaks for both sides, as in a real network.
                    let _ = treat(client, server, modes, count).await;
                });
            }
        });
        Self { address, mode, treated }
    }

    pub(super) fn set(&self, mode: Mode) {
        self.treated.send_replace(0);
        self.mode.send_replace(mode);
    }

    /// Waits until the fault has met so many connections, requests or cuts.
    pub(super) async fn met(&self, count: u32) {
        let mut treated = self.treated.subscribe();
        let met = tokio::time::timeout(crate::stage::PATIENCE, treated.wait_for(|seen| *seen >= count)).await;
        assert!(met.is_ok(), "{:?} met only {} in place of {count}", *self.mode.borrow(), *self.treated.borrow());
    }
}

async fn treat(
    mut client: TcpStream,
    server: SocketAddr,
    mut modes: watch::Receiver<Mode>,
    treated: watch::Sender<u32>,
) -> std::io::Result<()> {
    let mode = *modes.borrow_and_update();
    let once = || treated.send_modify(|count| *count += 1);
    let treatment = async {
        match mode {
            Mode::Pass => relay(&mut client, server, Duration::ZERO, u64::MAX).await,
            Mode::Slow(pause) => {
                once();
                relay(&mut client, server, Duration::from_millis(pause), u64::MAX).await
            }
            Mode::CutAfter(bytes) => {
                let done = relay(&mut client, server, Duration::ZERO, bytes).await;
                once();
                done
            }
            Mode::Refuse => {
                once();
                Ok(())
            }
            Mode::Answer(text) => {
                once();
                head(&mut client).await?;
                client.write_all(text.as_bytes()).await?;
                client.shutdown().await
            }
            Mode::Garbage => {
                once();
                head(&mut client).await?;
                client.write_all(b"\x16\x03\x01 what is this \0\xff\xfe\r\n\r\n{\"claims\": 7}").await?;
                client.shutdown().await
            }
            Mode::Twice | Mode::LoseAnswers => whole_request(&mut client, server, mode, &treated).await,
            Mode::HalfOpen => {
                once();
                std::future::pending().await
            }
        }
    };
    let done = tokio::select! {
        done = treatment => done,
        _ = modes.changed() => Ok(()),
    };
    if *modes.borrow() == Mode::HalfOpen {
        once();
        let _ = modes.wait_for(|mode| *mode != Mode::HalfOpen).await;
    }
    // Not closed in order: whoever still writes is told at once.
    if matches!(mode, Mode::Pass | Mode::Refuse | Mode::CutAfter(_) | Mode::Slow(_)) {
        client.set_zero_linger()?;
    }
    done
}

/// Both directions, until one ends or `most` bytes have come from the client.
async fn relay(client: &mut TcpStream, server: SocketAddr, pause: Duration, most: u64) -> std::io::Result<()> {
    let mut server = TcpStream::connect(server).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    tokio::select! {
        done = pass(&mut from_client, &mut to_server, pause, most) => done,
        done = pass(&mut from_server, &mut to_client, pause, u64::MAX) => done,
    }
}

async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    pause: Duration,
    mut most: u64,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    while most > 0 {
        let size = buffer.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let count = from.read(&mut buffer[..size]).await?;
        if count == 0 {
            return Ok(());
        }
        most -= count as u64;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        to.write_all(&buffer[..count]).await?;
    }
    Ok(())
}

/// Reads up to the end of a request's head.
async fn head(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.windows(4).any(|part| part == b"\r\n\r\n") && head.len() < HEAD {
        if client.read_buf(&mut head).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

/// One request and its answer, on connections that are used once.
async fn whole_request(
    client: &mut TcpStream,
    server: SocketAddr,
    mode: Mode,
    treated: &watch::Sender<u32>,
) -> std::io::Result<()> {
    let mut request = head(client).await?;
    let end = request.windows(4).position(|part| part == b"\r\n\r\n").unwrap_or(request.len() - 4) + 4;
    let lines = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
    if lines.contains("upgrade: websocket") {
        let mut upstream = TcpStream::connect(server).await?;
        upstream.write_all(&request).await?;
        return tokio::io::copy_bidirectional(client, &mut upstream).await.map(drop);
    }
    let length = lines.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let whole = end + length.unwrap_or_default();
    while request.len() < whole {
        if client.read_buf(&mut request).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let single = [&request[..end - 2], b"connection: close\r\n\r\n", &request[end..whole]].concat();
    let mut answer = ask(server, &single).await?;
    let mut lost = false;
    treated.send_modify(|count| {
        *count += 1;
        lost = mode == Mode::LoseAnswers && *count % 2 == 1;
    });
    if mode == Mode::Twice {
        answer = ask(server, &single).await?;
    }
    if !lost {
        client.write_all(&answer).await?;
    }
    client.shutdown().await
}

async fn ask(server: SocketAddr, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let (mut upstream, mut answer) = (TcpStream::connect(server).await?, Vec::new());
    upstream.write_all(request).await?;
    upstream.read_to_end(&mut answer).await?;
    Ok(answer)
}
