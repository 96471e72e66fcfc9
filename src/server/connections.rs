//! Connections: how many there are, how long each may take to say what it wants, and how they end.
//!
//! Owns the accepting and the bounds below HTTP. A sender that is slow with its head holds one place for `header_timeout` and nothing else;
//! one that comes when all places are taken hears so at once. Knows nothing of routes.

use crate::supervise::spawn;
use crate::telemetry::Metrics;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Bytes of a connection that are read ahead: a whole head, four times over.
const READ_AHEAD: usize = 64 << 10;
/// After an accept that failed for want of files or memory: others have to end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// The answer then. Nothing of the request was read.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n\
connection: close\r\ncontent-length: 165\r\n\r\n\
{\"type\":\"urn:jobcell:error:unavailable\",\"title\":\"too many connections\",\"status\":503,\"code\":\"unavailable\",\
\"detail\":\"server.connections_max connections are open\"}\n    ";

/// Bounds of connections.
#[derive(Debug, Clone)]
pub struct Connections {
    /// At the same time.
    pub most: usize,
    /// For the head of a request, and between two requests.
    pub header_timeout: Duration,
    /// Where they are counted.
    pub metrics: Arc<Metrics>,
}

/// The address at the other end of a request's connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

/// Serves until `stop`, then lets requests that are being answered end within `grace`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    bounds: Connections,
    stop: CancellationToken,
    grace: Duration,
) {
    let (places, open) = (Arc::new(Semaphore::new(bounds.most)), TaskTracker::new());
    let mut said = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            // Of a connection that is gone before it was taken.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => continue,
            Err(error) => {
                tracing::error!(%error, "a connection cannot be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            bounds.metrics.connections_refused_total.inc();
            if !std::mem::replace(&mut said, true) {
                tracing::warn!(most = bounds.most, "all places for connections are taken; more are turned away");
            }
            turn_away(&stream);
            continue;
        };
        said = false;
        let (router, bounds, stop) = (router.clone(), bounds.clone(), stop.clone());
        spawn(
            "connection",
            open.track_future(async move {
                bounds.metrics.connections.inc();
                converse(stream, peer.ip(), router, &bounds, stop).await;
                bounds.metrics.connections.dec();
                drop(place);
            }),
        );
    }
    drop(listener);
    open.close();
    if tokio::time::timeout(grace, open.wait()).await.is_err() {
        tracing::warn!("requests were still being answered when the server stopped");
    }
}

/// Says that there is no place. What does not fit into the kernel's buffer at once is not waited for.
fn turn_away(stream: &TcpStream) {
    let _ = stream.try_write(FULL);
}

/// One connection, to its end.
async fn converse(stream: TcpStream, peer: IpAddr, router: Router, bounds: &Connections, stop: CancellationToken) {
    // Pieces of live output are small, and none waits for the next.
    let _ = stream.set_nodelay(true);
    let inner = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        inner.call(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(bounds.header_timeout).max_buf_size(READ_AHEAD);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service).with_upgrades());
    tokio::select! {
        ended = connection.as_mut() => return trace(ended),
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    trace(connection.await);
}

fn trace(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::trace!(%error, "a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_turned_away_gets_a_whole_answer() {
        let text = std::str::from_utf8(FULL).expect("is text");
        let (head, body) = text.split_once("\r\n\r\n").expect("has both");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        let problem: serde_json::Value = serde_json::from_str(body).expect("is JSON");
        assert_eq!(problem["code"], "unavailable");
    }
}
