//! Sockets that outlive their request: a handler answers with [`TakeOver`] in the extensions of its response, and gets the
//! socket once everything before it is written, without hyper, its buffers and its task.
//!
//! ```text
//! request -> router (with its layers) -> response with TakeOver -> earlier answers flushed -> Taken{socket, head, early}
//! ```
//! The body of such a response is dropped: whoever takes the socket writes the head, and what comes after it.

use crate::http::{self, PeerAddr};
use axum::{
    Router,
    body::Body,
    http::{HeaderValue, StatusCode, header, response::Parts},
    response::Response,
};
use bytes::{BufMut as _, Bytes, BytesMut};
use hyper::{
    body::Incoming,
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1::{self, Connection},
    service::{HttpService, service_fn},
};
use hyper_util::rt::TokioIo;
use std::{
    convert::Infallible,
    fmt,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::SystemTime,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

type Taker = Box<dyn FnOnce(Taken) + Send>;

/// Goes into the extensions of a response; dropped without a call where the peer goes first.
#[derive(Clone)]
pub struct TakeOver(Arc<Mutex<Option<Taker>>>);

/// A socket that nobody else reads or writes any more. It does not block.
#[derive(Debug)]
pub struct Taken {
    pub stream: std::net::TcpStream,
    /// The head of the response, still to be written.
    pub head: Bytes,
    /// What the peer sent behind its request.
    pub early: Bytes,
}

impl TakeOver {
    pub fn new(taker: impl FnOnce(Taken) + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(taker)))))
    }

    fn take(&self, taken: Taken) {
        let call = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(call) = call {
            call(taken);
        }
    }
}

impl fmt::Debug for TakeOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TakeOver")
    }
}

/// As [`http::serve`], for routers whose responses may take sockets over.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> anyhow::Result<()> {
    let drained = shutdown.clone();
    http::accept(listener, shutdown, move |stream, peer| {
        connection(stream, peer, router.clone(), drained.clone())
    })
    .await;
    Ok(())
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, shutdown: CancellationToken) {
    let offered = Arc::new(Offer::default());
    let service = service_fn({
        let offered = Arc::clone(&offered);
        move |mut request: hyper::Request<Incoming>| {
            let offered = Arc::clone(&offered);
            request.extensions_mut().insert(PeerAddr(peer));
            // A router is always ready.
            let answer = tower_service::Service::call(&mut router.clone(), request.map(Body::new));
            answer_or_offer(answer, offered)
        }
    });
    let socket = Socket { io: TokioIo::new(stream), offered: Arc::clone(&offered) };
    let mut connection = http::builder().serve_connection(socket, service);
    let end = tokio::select! {
        end = drive(&mut connection, &offered) => end,
        () = shutdown.cancelled() => {
            Pin::new(&mut connection).graceful_shutdown();
            drive(&mut connection, &offered).await
        }
    };
    match end {
        End::Closed(Ok(())) => {}
        End::Closed(Err(error)) => tracing::debug!(%error, %peer, "connection ended"),
        End::TakenOver(parts, take_over) => hand_over(connection.into_parts(), &parts, &take_over, peer),
    }
}

/// Between a connection, its requests and its socket.
#[derive(Debug, Default)]
struct Offer {
    response: Mutex<Option<(Parts, TakeOver)>>,
    /// Hyper has something that the socket did not take yet: the answer to an earlier request.
    owing: AtomicBool,
}

impl Offer {
    fn lock(&self) -> MutexGuard<'_, Option<(Parts, TakeOver)>> {
        self.response.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is offered is never answered by hyper.
async fn answer_or_offer(
    answer: impl Future<Output = Result<Response, Infallible>>,
    offered: Arc<Offer>,
) -> Result<Response, Infallible> {
    let Ok(mut response) = answer.await;
    let Some(take_over) = response.extensions_mut().remove::<TakeOver>() else { return Ok(response) };
    *offered.lock() = Some((response.into_parts().0, take_over));
    std::future::pending().await
}

enum End {
    Closed(hyper::Result<()>),
    TakenOver(Box<Parts>, TakeOver),
}

/// Until the connection ends, or its socket is offered and everything before it is written.
async fn drive<S>(connection: &mut Connection<Socket, S>, offered: &Offer) -> End
where
    S: HttpService<Incoming, ResBody = Body, Error = Infallible> + Unpin,
{
    let end = poll_fn(|cx| match Pin::new(&mut *connection).poll(cx) {
        Poll::Ready(result) => Poll::Ready(End::Closed(result)),
        // The poll has tried to write everything; if the socket did not take it, it wakes us when it does.
        Poll::Pending if offered.owing.load(Ordering::Relaxed) => Poll::Pending,
        Poll::Pending => match offered.lock().take() {
            Some((parts, take_over)) => Poll::Ready(End::TakenOver(Box::new(parts), take_over)),
            None => Poll::Pending,
        },
    });
    end.await
}

fn hand_over<S>(rest: http1::Parts<Socket, S>, parts: &Parts, take_over: &TakeOver, peer: SocketAddr) {
    match rest.io.io.into_inner().into_std() {
        Ok(stream) => take_over.take(Taken { stream, head: head(parts), early: rest.read_buf }),
        Err(error) => tracing::debug!(%error, %peer, "a socket cannot be taken over"),
    }
}

/// As HTTP/1.1 has it. What says where a body ends is left out: this one ends with the connection, or never.
fn head(parts: &Parts) -> Bytes {
    let mut out = BytesMut::with_capacity(256);
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(parts.status.as_str().as_bytes());
    out.put_slice(b" ");
    out.put_slice(parts.status.canonical_reason().unwrap_or_default().as_bytes());
    out.put_slice(b"\r\n");
    let upgrade = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in &parts.headers {
        let framing = *name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING;
        if !framing && (upgrade || *name != header::CONNECTION) {
            put_header(&mut out, name.as_str(), value);
        }
    }
    if !parts.headers.contains_key(header::DATE)
        && let Ok(now) = HeaderValue::from_str(&httpdate::fmt_http_date(SystemTime::now()))
    {
        put_header(&mut out, "date", &now);
    }
    if !upgrade {
        put_header(&mut out, "connection", &HeaderValue::from_static("close"));
    }
    out.put_slice(b"\r\n");
    out.freeze()
}

fn put_header(out: &mut BytesMut, name: &str, value: &HeaderValue) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value.as_bytes());
    out.put_slice(b"\r\n");
}

/// Knows whether hyper got rid of everything it had to write: it flushes only then.
struct Socket {
    io: TokioIo<TcpStream>,
    offered: Arc<Offer>,
}

impl Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.offered.owing.store(true, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.offered.owing.store(false, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.offered.owing.store(true, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_ends_with_the_connection_and_keeps_an_upgrade() {
        let parts = |status: u16| {
            let response =
                Response::builder().status(status).header("date", "now").header("content-length", "3");
            let response = response.header("transfer-encoding", "chunked").header("connection", "Upgrade");
            response.header("x-a", "b").body(Body::empty()).unwrap().into_parts().0
        };
        assert_eq!(head(&parts(200)), "HTTP/1.1 200 OK\r\ndate: now\r\nx-a: b\r\nconnection: close\r\n\r\n");
        assert_eq!(
            head(&parts(101)),
            "HTTP/1.1 101 Switching Protocols\r\ndate: now\r\nconnection: Upgrade\r\nx-a: b\r\n\r\n"
        );
    }
}
