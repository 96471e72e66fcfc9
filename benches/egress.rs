//! The figures of the way out: what a job gets through its proxy, and how much later, against the same program outside a cell and without
//! a proxy, in turns. A report, not a test.
//!
//! `cargo bench --bench egress -- [--short] [NAME…]` with the names throughput, latency.

mod asked;
#[allow(dead_code, reason = "shared with the other benches")]
mod fleet;

use asked::Asked;
use fleet::{Member, Outcome};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

/// Takes the port of a server, and what to do; prints one number a line. Without a proxy in its surroundings it goes straight.
const CLIENT: &str = "
import os, socket, sys, time
port, what, times = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
proxy = os.environ.get('http_proxy')
def connect():
    s = socket.create_connection(('127.0.0.1', int(proxy.rsplit(':', 1)[1]) if proxy else port))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if proxy:
        s.sendall(b'CONNECT 127.0.0.1:%d HTTP/1.1\\r\\n\\r\\n' % port)
        head = b''
        while not head.endswith(b'\\r\\n\\r\\n'): head += s.recv(1)
        assert b' 200 ' in head, head
    return s
def timed(work):
    begun = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - begun) / 1e9
piece = bytearray(1 << 20)
def down():
    # The server has no end: not a byte more than asked for is taken, and an end before that is an error.
    s = connect(); s.sendall(b'd'); left = times << 20
    while left:
        count = s.recv_into(piece, min(left, len(piece)))
        assert count, left
        left -= count
def up():
    s = connect(); s.sendall(b'u')
    for _ in range(times): s.sendall(piece)
    s.shutdown(socket.SHUT_WR); assert s.recv(1) == b'k'
def back_and_forth():
    s.sendall(b'e'); assert s.recv(1)
if what == 'down': print(times * 1.048576 / timed(down))
elif what == 'up': print(times * 1.048576 / timed(up))
elif what == 'echo':
    s = connect(); s.sendall(b'e'); s.recv(1)
    for _ in range(times): print(timed(back_and_forth) * 1e3)
else:
    for _ in range(times): print(timed(lambda: connect().close()) * 1e3)
";

#[tokio::main]
async fn main() -> Outcome<()> {
    let asked = Asked::read();
    let port = serve()?;
    let dir = tempfile::tempdir()?;
    let policy = dir.path().join("policy.yaml");
    std::fs::write(&policy, format!("{{version: 1, allow: {{egress: ['127.0.0.1:{port}']}}}}"))?;
    let up = Member::up(&format!("docker: {{shared: true}}\npolicy: {{file: {}}}\n", policy.display())).await?;
    println!("{:<58} {:>10} {:>10} {:>6}   goal", "figure", "by proxy", "direct", "");
    let mebibytes = if asked.short { 64 } else { 1024 };
    if asked.wants("throughput") {
        for (what, name) in [("down", "one download (MB/s)"), ("up", "one upload (MB/s)")] {
            let (mut by, mut direct) = (Vec::new(), Vec::new());
            for _ in 0..if asked.short { 1 } else { 3 } {
                by.extend(inside(&up, port, what, mebibytes).await?);
                direct.extend(outside(port, what, mebibytes)?);
            }
            let (by, direct) = (quantile(&mut by, 0.5), quantile(&mut direct, 0.5));
            println!("{name:<58} {by:>10.0} {direct:>10.0} {:>6.2}   >= 150 MB/s", by / direct);
        }
    }
    if asked.wants("latency") {
        let times = if asked.short { 100 } else { 3000 };
        for (what, name) in [("echo", "a byte there and back"), ("open", "a new connection")] {
            let mut by = inside(&up, port, what, times).await?;
            let mut direct = outside(port, what, times)?;
            for part in [0.5, 0.95] {
                let (by, direct) = (quantile(&mut by, part), quantile(&mut direct, part));
                let name = format!("{name}, p{:.0} (ms)", part * 100.0);
                println!("{name:<58} {by:>10.3} {direct:>10.3} {:>+6.2}   <= 1 ms more", by - direct);
            }
        }
    }
    up.stop().await
}

fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(part * (values.len() - 1) as f64).round() as usize]
}

async fn inside(up: &Member, port: u16, what: &str, times: usize) -> Outcome<Vec<f64>> {
    let spec = json!({
        "preset": "python",
        "command": ["python3", "-c", CLIENT, port.to_string(), what, times.to_string()],
        "egress": {"allow": [format!("127.0.0.1:{port}")]},
    });
    let id = up.submit(&spec).await?;
    let job = up.ended(&id).await?;
    if job["ending"]["verdict"] != "succeeded" {
        let said = String::from_utf8_lossy(&up.stream(&id, "stderr").await?).into_owned();
        return Err(format!("the client failed: {} {said}", job["ending"]).into());
    }
    numbers(&String::from_utf8(up.stream(&id, "stdout").await?)?)
}

fn outside(port: u16, what: &str, times: usize) -> Outcome<Vec<f64>> {
    let arguments = ["-c", CLIENT, &port.to_string(), what, &times.to_string()];
    let output = Command::new("python3").args(arguments).env_remove("http_proxy").output()?;
    if !output.status.success() {
        return Err(format!("the client failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    numbers(&String::from_utf8(output.stdout)?)
}

fn numbers(text: &str) -> Outcome<Vec<f64>> {
    Ok(text.lines().map(str::parse).collect::<Result<_, _>>()?)
}

/// A server on the loopback, with a thread for each client.
fn serve() -> Outcome<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || client.set_nodelay(true).and_then(|()| answer(client)));
        }
    });
    Ok(port)
}

fn answer(mut client: TcpStream) -> std::io::Result<()> {
    let mut piece = vec![0; 1 << 20];
    let mut first = [0];
    if client.read(&mut first)? == 0 {
        return Ok(());
    }
    match first[0] {
        b'd' => loop {
            client.write_all(&piece)?;
        },
        b'u' => {
            while client.read(&mut piece)? > 0 {}
            client.write_all(b"k")
        }
        _ => loop {
            client.write_all(&first)?;
            if client.read(&mut first)? == 0 {
                return Ok(());
            }
        },
    }
}
