//! The HTTP server that every process runs: HTTP/1.1, bounded, drained with the process.
//!
//! A peer that stops reading is dropped by the kernel, which alone knows what it takes: a write may wait for minutes on a
//! slow peer with large buffers that takes byte after byte, as on one that takes nothing.

use anyhow::Context as _;
use axum::{Router, body::Body, extract::Request, response::Response, routing::future::RouteFuture};
use futures_util::{
    FutureExt,
    future::{Either, Map, Ready},
};
use hyper::{
    body::Incoming,
    service::{Service, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use std::{convert::Infallible, net::SocketAddr, pin::pin, time::Duration};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Half a request and then silence holds a connection no longer than this.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Room for every header we read and a long token; more is refused by the server.
const MAX_HEADER_BYTES: usize = 32 * 1024;
/// After an accept error such as "too many open files", wait for some to close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A peer that takes nothing for so long, while something is sent to it, is gone, or means harm: what it asked for is held
/// for it, down to the read from the object store. Over any pause of a line that works.
const STALLED: Duration = Duration::from_secs(30);

/// Connections that the kernel keeps until they are accepted: when a node dies all its viewers come at once, and whoever finds
/// no room tries again a second later. The kernel has a bound of its own.
const BACKLOG: u32 = 16_384;

pub fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restart does not wait for connections of before.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    let listener = listen().with_context(|| format!("cannot listen on {address}"))?;
    drop_stalled(&listener, STALLED)?;
    Ok(listener)
}

/// Connections inherit it from the listener: those whose peer takes or acknowledges nothing for `after` are ended.
pub fn drop_stalled(listener: &TcpListener, after: Duration) -> anyhow::Result<()> {
    let after_ms = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
    setsockopt(listener, sockopt::TcpUserTimeout, &after_ms).context("cannot set TCP_USER_TIMEOUT")
}

/// Serves until `shutdown`, then lets requests that are under way finish. Handlers see [`PeerAddr`] as an extension.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> anyhow::Result<()> {
    serve_with(listener, router, |_: &Request<Incoming>, _| None::<Ready<Response>>, shutdown).await
}

/// As [`serve`], but `shortcut` sees each request first: what it answers never gets to the router and its layers.
pub async fn serve_with<S, F>(
    listener: TcpListener,
    router: Router,
    shortcut: S,
    shutdown: CancellationToken,
) -> anyhow::Result<()>
where
    S: Fn(&Request<Incoming>, PeerAddr) -> Option<F> + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let drained = shutdown.clone();
    accept(listener, shutdown, move |stream, peer| {
        let service = service(router.clone(), shortcut.clone(), PeerAddr(peer));
        connection(stream, peer, service, drained.clone())
    })
    .await;
    Ok(())
}

/// Serves each connection in a task of its own; returns once they all ended, which takes no new one after `shutdown`.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    shutdown: CancellationToken,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Small frames must not wait for each other; a socket that is gone already fails at its first read.
                let _ = stream.set_nodelay(true);
                connections.spawn(serve(stream, peer));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// How every connection is spoken to.
pub(crate) fn builder() -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(MAX_HEADER_BYTES);
    builder
}

/// Who is at the other end of the socket.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddr(pub SocketAddr);

type Answered = Result<Response, Infallible>;
type Answer<F> = Either<Map<F, fn(Response) -> Answered>, RouteFuture<Infallible>>;

/// The requests of one connection. Not a layer around the router: that would be a copy of all its routes for each
/// connection, and one more box for each request.
fn service<S, F>(
    router: Router,
    shortcut: S,
    peer: PeerAddr,
) -> impl Service<
    Request<Incoming>,
    Response = Response,
    Error = Infallible,
    Future: Future<Output = Answered> + Send,
>
where
    S: Fn(&Request<Incoming>, PeerAddr) -> Option<F>,
    F: Future<Output = Response> + Send,
{
    service_fn(move |mut request: Request<Incoming>| -> Answer<F> {
        if let Some(answer) = shortcut(&request, peer) {
            return Either::Left(answer.map(Ok));
        }
        request.extensions_mut().insert(peer);
        // A router is always ready.
        Either::Right(tower_service::Service::call(&mut router.clone(), request.map(Body::new)))
    })
}

async fn connection<S>(stream: TcpStream, peer: SocketAddr, service: S, shutdown: CancellationToken)
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible>,
{
    let mut connection = pin!(builder().serve_connection(TokioIo::new(stream), service).with_upgrades());
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, %peer, "connection ended");
    }
}
