//! Clients: over WebSocket, and of server-sent events.

use crate::farm::{Node, PATIENCE};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use std::collections::VecDeque;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{self, Message},
};

pub(crate) struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    pub(crate) async fn open(node: &Node, account: i64) -> Self {
        Self::try_open(node, account).await.unwrap_or_else(|status| panic!("refused with {status}"))
    }

    /// Or with which status it is refused.
    pub(crate) async fn try_open(node: &Node, account: i64) -> Result<Self, u16> {
        let url = format!("ws://127.0.0.1:{}/api/v1/streaming?access_token=token-{account}", node.port);
        match tokio_tungstenite::connect_async(url).await {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) async fn subscribe(&mut self, stream: &str) {
        let command = json!({ "type": "subscribe", "stream": stream });
        self.0.send(Message::text(command.to_string())).await.unwrap();
    }

    /// The next message, which is not a sign of life; none when it has ended.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        let next = async {
            loop {
                match self.0.next().await {
                    Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).ok(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    _ => return None,
                }
            }
        };
        timeout(PATIENCE, next).await.expect("a message in time")
    }

    /// The code and the words with which it is closed, and nothing before.
    pub(crate) async fn farewell(&mut self) -> (u16, String) {
        loop {
            match timeout(PATIENCE, self.0.next()).await.expect("an end in time") {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(Some(frame)))) => {
                    return (frame.code.into(), frame.reason.as_str().to_owned());
                }
                other => panic!("no end but {other:?}"),
            }
        }
    }

    /// The id of the status that comes next.
    pub(crate) async fn number(&mut self) -> u64 {
        let message = self.next().await.expect("a status");
        let status: Value = serde_json::from_str(message["payload"].as_str().unwrap()).unwrap();
        status["id"].as_str().unwrap().parse().unwrap()
    }
}

/// Of server-sent events.
pub(crate) struct Events {
    response: reqwest::Response,
    buffer: String,
    blocks: VecDeque<String>,
    pub(crate) last_id: String,
}

impl Events {
    /// Once it is told that it listens.
    pub(crate) async fn open(node: &Node, path: &str, account: i64, last_id: &str) -> Self {
        let mut request = reqwest::Client::new()
            .get(format!("{}/api/v1/streaming/{path}", node.url))
            .bearer_auth(format!("token-{account}"));
        if !last_id.is_empty() {
            request = request.header("last-event-id", last_id);
        }
        let response = timeout(PATIENCE, request.send()).await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
        let mut this =
            Self { response, buffer: String::new(), blocks: VecDeque::new(), last_id: last_id.into() };
        let begun = async {
            while !this.buffer.starts_with(":)\n") {
                this.read().await;
            }
        };
        timeout(PATIENCE, begun).await.expect("it begins");
        this.buffer.drain(..3);
        this
    }

    /// All that comes until it ends, but for signs of life.
    pub(crate) async fn farewell(mut self) -> String {
        let ended = async {
            while let Some(bytes) = self.response.chunk().await.unwrap() {
                self.buffer.push_str(std::str::from_utf8(&bytes).unwrap());
            }
        };
        timeout(PATIENCE, ended).await.expect("an end in time");
        self.buffer.replace(":thump\n\n", "")
    }

    async fn read(&mut self) {
        let bytes = self.response.chunk().await.unwrap().expect("it goes on");
        self.buffer.push_str(std::str::from_utf8(&bytes).unwrap());
    }

    /// The id of the status that comes next.
    pub(crate) async fn number(&mut self) -> u64 {
        let next = async {
            loop {
                while let Some(end) = self.buffer.find("\n\n") {
                    let block: String = self.buffer.drain(..end + 2).collect();
                    if !block.starts_with(':') {
                        self.blocks.push_back(block);
                    }
                }
                match self.blocks.pop_front() {
                    Some(block) => return block,
                    None => self.read().await,
                }
            }
        };
        let block = timeout(PATIENCE, next).await.expect("an event in time");
        let line = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line("id: ").clone_into(&mut self.last_id);
        let status: Value = serde_json::from_str(line("data: ")).unwrap();
        status["id"].as_str().unwrap().parse().unwrap()
    }
}
