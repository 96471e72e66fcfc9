//! Connections: how many there are, how long each may take to say what it wants and to take what it is told, and how they end.
//!
//! Owns the accepting and the bounds below HTTP. A sender that is slow with its head holds one place for `header_timeout` and nothing else, a
//! reader that takes nothing one for `write_timeout`; one that comes when all places are taken hears so at once, unless it asks for health or
//! metrics: those have places of their own. Knows nothing of other routes.

use super::places::{Full, Place, Places};
use super::problem::ProblemDocument;
use super::steady::Steady;
use crate::supervise::spawn;
use crate::telemetry::Metrics;
use crate::tls::{ServerTls, Wire};
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
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
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Bytes of a connection that are read ahead: a whole head, four times over.
const READ_AHEAD: usize = 64 << 10;
/// After an accept that failed for want of files or memory: others have to end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// A connection that is kept for health and metrics has one request, and so long for all of it.
const KEPT_LIMIT: Duration = Duration::from_secs(5);
/// What it may ask for.
const KEPT_PATHS: [&str; 7] = ["/livez", "/live", "/readyz", "/ready", "/healthz", "/health", "/metrics"];
/// The answer when there is not even such a place. Nothing of the request was read.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n\
connection: close\r\ncontent-length: 165\r\n\r\n\
{\"type\":\"urn:jobcell:error:unavailable\",\"title\":\"too many connections\",\"status\":503,\"code\":\"unavailable\",\
\"detail\":\"server.connections_max connections are open\"}\n    ";

/// The first byte of TLS.
const HANDSHAKE: u8 = 0x16;
/// What somebody is told who speaks none where it is wanted.
const NO_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: 43\r\n\r\n\
TLS is spoken here: write https:// for it.\n";

/// Bounds of connections.
#[derive(Debug, Clone)]
pub struct Connections {
    /// At the same time.
    pub most: usize,
    /// Of these, from one address.
    pub of_one: usize,
    /// For the head of a request, and between two requests.
    pub header_timeout: Duration,
    /// For a reader that takes too little of an answer.
    pub write_timeout: Duration,
    /// What is shown to clients, where TLS is spoken; who speaks none is turned away.
    pub tls: Option<Arc<ServerTls>>,
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
    let places = Places::new(bounds.most, bounds.of_one, Arc::clone(&bounds.metrics));
    let open = TaskTracker::new();
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
        let taken = places.take(peer.ip());
        let full = taken.as_ref().map_or_else(|full| Some(*full), |(_, full)| *full);
        match full {
            None => said = false,
            Some(_) if std::mem::replace(&mut said, true) => {}
            Some(Full::All) => {
                tracing::warn!(most = bounds.most, "all places for connections are taken; more are turned away")
            }
            Some(Full::Address) => {
                tracing::warn!(from = %peer.ip(), most = bounds.of_one, "an address has its share of connections; more are turned away")
            }
        }
        let Ok((place, full)) = taken else {
            bounds.metrics.connections_refused_total.inc();
            if bounds.tls.is_none() {
                turn_away(&stream);
            }
            continue;
        };
        let (router, bounds, stop) = (router.clone(), bounds.clone(), stop.clone());
        spawn(
            "connection",
            open.track_future(async move {
                match full {
                    None => converse(stream, peer.ip(), place, router, &bounds, stop).await,
                    Some(full) => {
                        let kept = converse_kept(stream, full, place, router, &bounds);
                        let _ = tokio::time::timeout(KEPT_LIMIT, kept).await;
                    }
                }
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

/// The connection as it is served.
fn steady(stream: TcpStream, place: Place, bounds: &Connections) -> Steady<TcpStream> {
    // Pieces of live output are small, and none waits for the next.
    let _ = stream.set_nodelay(true);
    // What nobody takes is not kept by the kernel for longer either, also after the connection was closed here.
    let limit = u32::try_from(bounds.write_timeout.as_millis()).unwrap_or(u32::MAX);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, limit);
    Steady::new(stream, bounds.write_timeout, Some(place))
}

/// The connection, with its TLS where it is spoken. None when the other side does not get that far in time.
async fn wire(stream: TcpStream, place: Place, bounds: &Connections) -> Option<Box<dyn Wire>> {
    let Some(tls) = &bounds.tls else { return Some(Box::new(steady(stream, place, bounds))) };
    let shaken = tokio::time::timeout(bounds.header_timeout, async {
        let mut first = [0];
        stream.peek(&mut first).await?;
        let mut stream = steady(stream, place, bounds);
        if first[0] != HANDSHAKE {
            stream.write_all(NO_TLS).await?;
            stream.shutdown().await?;
            // What was sent is read: closing before that would throw the answer away.
            let mut sent = [0; 4096];
            for _ in 0..16 {
                if stream.read(&mut sent).await? == 0 {
                    break;
                }
            }
            return Err(std::io::Error::new(ErrorKind::InvalidData, "no TLS"));
        }
        TlsAcceptor::from(tls.current()).accept(stream).await
    });
    match shaken.await {
        Ok(Ok(stream)) => Some(Box::new(stream)),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a connection did not come to speak TLS");
            None
        }
        Err(_) => None,
    }
}

/// One connection, to its end; or until it is no HTTP any more, when whoever took it over has its place too.
async fn converse(
    stream: TcpStream,
    peer: IpAddr,
    place: Place,
    router: Router,
    bounds: &Connections,
    stop: CancellationToken,
) {
    let stream = tokio::select! {
        wire = wire(stream, place, bounds) => wire,
        () = stop.cancelled() => None,
    };
    let Some(stream) = stream else { return };
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

/// A connection for which there is no ordinary place: one request for health or metrics, or the reason.
async fn converse_kept(stream: TcpStream, full: Full, place: Place, router: Router, bounds: &Connections) {
    let Some(stream) = wire(stream, place, bounds).await else { return };
    let inner = TowerToHyperService::new(router);
    let metrics = Arc::clone(&bounds.metrics);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let let_in = KEPT_PATHS.contains(&request.uri().path());
        let answer = let_in.then(|| inner.call(request.map(Body::new)));
        let metrics = Arc::clone(&metrics);
        async move {
            match answer {
                Some(answer) => answer.await,
                None => {
                    metrics.connections_refused_total.inc();
                    Ok(no_place(full))
                }
            }
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(bounds.header_timeout.min(KEPT_LIMIT));
    trace(http.keep_alive(false).max_buf_size(READ_AHEAD).serve_connection(TokioIo::new(stream), service).await);
}

fn no_place(full: Full) -> Response {
    let detail = match full {
        Full::All => "server.connections_max connections are open",
        Full::Address => "server.connections_per_address connections from your address are open",
    };
    ProblemDocument::new("unavailable", detail).retry_after(1).into_response()
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
    fn whoever_speaks_no_tls_gets_a_whole_answer() {
        let text = std::str::from_utf8(NO_TLS).expect("is text");
        let (head, body) = text.split_once("\r\n\r\n").expect("has both");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
    }

    #[test]
    fn whoever_is_turned_away_gets_a_whole_answer() {
        let text = std::str::from_utf8(FULL).expect("is text");
        let (head, body) = text.split_once("\r\n\r\n").expect("has both");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        let problem: serde_json::Value = serde_json::from_str(body).expect("is JSON");
        assert_eq!(problem["code"], "unavailable");
    }
}
