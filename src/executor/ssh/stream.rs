//! A TCP connection that does not wait for its own acknowledgements.
//!
//! A server that keeps Nagle's algorithm on holds back each small packet until the one before is acknowledged, and this side's kernel holds
//! back its acknowledgement for some 40 ms: twice in a handshake, and in each job over a channel that stays. So the first reads of a connection
//! are acknowledged at once, and so are small ones later. A flood of output is left to the kernel.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Reads before which the kernel is told to acknowledge at once; it forgets that by itself. A handshake with a login has about 20.
const QUICK_READS: u32 = 64;
/// Bytes of a read behind which somebody may wait for the acknowledgement.
const SMALL: usize = 8 * 1024;

/// A connection to a host.
#[derive(Debug)]
pub(super) struct QuickStream {
    tcp: TcpStream,
    reads: u32,
}

impl QuickStream {
    /// Connects to the first address of a name that answers. Errors: why none does.
    pub(super) async fn connect(host: &str, port: u16, deadline: Instant) -> Result<Self, String> {
        let none = |error: io::Error| format!("its name leads nowhere ({error})");
        let late = || "its name could not be looked up in time".to_owned();
        let found = tokio::time::timeout_at(deadline, tokio::net::lookup_host((host, port))).await;
        let addresses: Vec<SocketAddr> = found.map_err(|_| late())?.map_err(none)?.take(16).collect();
        let mut last = "its name leads nowhere".to_owned();
        for (at, address) in addresses.iter().enumerate() {
            // Each of those that are left gets its share of the time.
            let left = u32::try_from(addresses.len() - at).unwrap_or(1);
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            match tokio::time::timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => {
                    let _ = tcp.set_nodelay(true);
                    let _ = rustix::net::sockopt::set_tcp_quickack(&tcp, true);
                    return Ok(Self { tcp, reads: 0 });
                }
                Ok(Err(error)) => last = format!("{address}: {error}"),
                Err(_) => last = format!("{address} does not answer"),
            }
        }
        Err(last)
    }
}

impl AsyncRead for QuickStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.tcp).poll_read(cx, buf);
        if read.is_ready() && (self.reads < QUICK_READS || buf.filled().len() - before < SMALL) {
            self.reads = self.reads.saturating_add(1);
            let _ = rustix::net::sockopt::set_tcp_quickack(&self.tcp, true);
        }
        read
    }
}

impl AsyncWrite for QuickStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}
