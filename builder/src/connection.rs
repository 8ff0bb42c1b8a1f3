//! The WebSocket to the service: messages in, messages out, every wait bounded.

use cratemill_protocol::{
    builder::{ClientMessage, MAX_FRAME_BYTES, SUBPROTOCOL_MSGPACK, ServerMessage},
    codec::{self, Encoding},
};
use futures_util::{SinkExt, StreamExt};
use std::time::Duration;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        http::{HeaderValue, header::SEC_WEBSOCKET_PROTOCOL},
        protocol::WebSocketConfig,
    },
};

/// Name lookup, TCP, TLS and the upgrade together.
const DIAL_WAIT: Duration = Duration::from_secs(15);
/// A server that takes nothing for this long is as good as gone.
const WRITE_WAIT: Duration = Duration::from_secs(10);
/// To say goodbye: it is a courtesy.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no answer in time")]
    Timeout,
    #[error("the server does not speak {SUBPROTOCOL_MSGPACK}")]
    Subprotocol,
    #[error("the connection ended")]
    Closed,
    #[error("not a message of the protocol: {0}")]
    Codec(#[from] codec::Error),
    #[error("{0}")]
    WebSocket(#[from] Box<tungstenite::Error>),
}

impl From<tungstenite::Error> for Error {
    fn from(error: tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => Self::Closed,
            error => Self::WebSocket(Box::new(error)),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Incoming {
    Message(ServerMessage),
    /// A ping or a pong: the server lives.
    Alive,
}

#[derive(Debug)]
pub(crate) struct Connection {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Connection {
    pub(crate) async fn dial(url: String) -> Result<Self, Error> {
        let mut request = url.into_client_request()?;
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL_MSGPACK));
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_FRAME_BYTES))
            .max_frame_size(Some(MAX_FRAME_BYTES));
        let dialling = connect_async_with_config(request, Some(config), true);
        let (socket, response) = match timeout(DIAL_WAIT, dialling).await.map_err(|_| Error::Timeout)? {
            Ok(both) => both,
            Err(tungstenite::Error::Protocol(
                tungstenite::error::ProtocolError::SecWebSocketSubProtocolError(_),
            )) => {
                return Err(Error::Subprotocol);
            }
            Err(error) => return Err(error.into()),
        };
        let chosen = response.headers().get(SEC_WEBSOCKET_PROTOCOL).map(HeaderValue::as_bytes);
        if chosen == Some(SUBPROTOCOL_MSGPACK.as_bytes()) {
            Ok(Self { socket })
        } else {
            Err(Error::Subprotocol)
        }
    }

    /// The next message; safe to drop and call again.
    pub(crate) async fn receive(&mut self) -> Result<Incoming, Error> {
        loop {
            match self.socket.next().await.ok_or(Error::Closed)?? {
                Message::Binary(bytes) => return Ok(Incoming::Message(Encoding::MsgPack.decode(&bytes)?)),
                Message::Text(text) => return Ok(Incoming::Message(Encoding::Json.decode(text.as_bytes())?)),
                Message::Ping(_) | Message::Pong(_) => return Ok(Incoming::Alive),
                // The socket answers by itself and ends with the next read.
                Message::Close(_) | Message::Frame(_) => {}
            }
        }
    }

    pub(crate) async fn send(&mut self, message: &ClientMessage) -> Result<(), Error> {
        self.write(Message::Binary(Encoding::MsgPack.encode(message).into())).await
    }

    /// Asks for a sign of life.
    pub(crate) async fn ping(&mut self) -> Result<(), Error> {
        self.write(Message::Ping(Vec::new().into())).await
    }

    async fn write(&mut self, message: Message) -> Result<(), Error> {
        timeout(WRITE_WAIT, self.socket.send(message)).await.map_err(|_| Error::Timeout)?.map_err(Error::from)
    }

    pub(crate) async fn close(mut self) {
        // Nothing is left to do if it does not work out.
        drop(timeout(CLOSE_WAIT, self.socket.close(None)).await);
    }
}
