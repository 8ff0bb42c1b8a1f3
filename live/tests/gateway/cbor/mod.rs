//! Publish and subscribe over CBOR: nodes that speak nothing else.

mod queues;
mod schedule;

use crate::farm::{Farm, Node, PATIENCE};
use futures_util::{SinkExt as _, StreamExt as _};
use minicbor::{Decoder, Encoder, data::Type};
use std::collections::VecDeque;
use tokio::{
    net::TcpStream,
    time::{timeout, timeout_at},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, tungstenite::Message};
use uuid::Uuid;

pub(crate) async fn node(farm: &Farm) -> Node {
    node_with(farm, &[]).await
}

pub(crate) async fn node_with(farm: &Farm, env: &[(&str, &str)]) -> Node {
    let bus = farm.nats.url("admin").unwrap();
    let mut all = vec![("DIALECTS", "cbor"), ("NATS_URL", bus.as_str())];
    all.extend(env);
    farm.node_with(&all).await
}

/// A connection of a session.
pub(crate) struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// That came and were not looked at: subscription and publication.
    pub(crate) issues: VecDeque<(Uuid, Uuid)>,
    answers: VecDeque<Answer>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Index(Vec<Uuid>),
    /// Their data.
    Entries(Vec<Vec<u8>>),
    /// Its code.
    Error(String),
}

impl Client {
    pub(crate) async fn open(node: &Node, session: Uuid) -> Self {
        let url = format!("ws://127.0.0.1:{}/ws/{session}", node.port);
        let (socket, _) = timeout(PATIENCE, tokio_tungstenite::connect_async(url)).await.unwrap().unwrap();
        Self { socket, issues: VecDeque::new(), answers: VecDeque::new() }
    }

    async fn send(&mut self, name: &str, fields: impl FnOnce(&mut Encoder<&mut Vec<u8>>)) {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&mut out);
        encoder.map(1).unwrap().str(name).unwrap();
        fields(&mut encoder);
        self.socket.send(Message::binary(out)).await.unwrap();
    }

    async fn of(&mut self, name: &str, subscription: Uuid) {
        self.send(name, |e| {
            e.map(1).unwrap().str("subscription_id").unwrap().bytes(subscription.as_bytes()).unwrap();
        })
        .await;
    }

    pub(crate) async fn subscribe(&mut self, subscription: Uuid) {
        self.of("Subscribe", subscription).await;
    }

    pub(crate) async fn unsubscribe(&mut self, subscription: Uuid) {
        self.of("Unsubscribe", subscription).await;
    }

    pub(crate) async fn subscribe_queue(&mut self, subscription: Uuid, group: &str) {
        self.send("SubscribeQueue", |e| {
            e.map(2).unwrap().str("subscription_id").unwrap().bytes(subscription.as_bytes()).unwrap();
            e.str("group").unwrap().str(group).unwrap();
        })
        .await;
    }

    pub(crate) async fn publish(&mut self, subscription: Uuid, data: &[u8]) {
        self.send("SubmitPublication", |e| {
            e.map(2).unwrap().str("subscription_id").unwrap().bytes(subscription.as_bytes()).unwrap();
            e.str("submission").unwrap().array(data.len() as u64).unwrap();
            for byte in data {
                e.u8(*byte).unwrap();
            }
        })
        .await;
    }

    pub(crate) async fn ack(&mut self, publication: Uuid) {
        self.send("Ack", |e| {
            e.map(1).unwrap().str("publication_id").unwrap().bytes(publication.as_bytes()).unwrap();
        })
        .await;
    }

    /// The next that is no Issue.
    pub(crate) async fn answer(&mut self) -> Answer {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return answer;
            }
            let deadline = tokio::time::Instant::now() + PATIENCE;
            timeout_at(deadline, self.read()).await.expect("an answer").expect("a connection");
        }
    }

    pub(crate) async fn issue(&mut self) -> (Uuid, Uuid) {
        loop {
            if let Some(issue) = self.issues.pop_front() {
                return issue;
            }
            timeout(PATIENCE, self.read()).await.expect("an Issue").expect("a connection");
        }
    }

    pub(crate) async fn index(&mut self, log: Uuid) -> Answer {
        self.send("GetLogIndex", |e| {
            e.map(1).unwrap().str("log_id").unwrap().bytes(log.as_bytes()).unwrap();
        })
        .await;
        self.answer().await
    }

    /// All that was said before is done: what comes of it has come, or is an Issue.
    pub(crate) async fn settle(&mut self) {
        let nothing = Uuid::new_v4();
        assert_eq!(self.index(nothing).await, Answer::Error("unknown_log".into()));
    }

    /// Says goodbye, and takes in what comes before that is answered.
    pub(crate) async fn close(mut self) -> VecDeque<(Uuid, Uuid)> {
        self.socket.close(None).await.unwrap();
        while timeout(PATIENCE, self.read()).await.expect("a goodbye").is_some() {}
        self.issues
    }

    /// One message more; none when the node has closed.
    pub(crate) async fn read(&mut self) -> Option<()> {
        let bytes = loop {
            match self.socket.next().await? {
                Ok(Message::Binary(bytes)) => break bytes,
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        };
        let mut d = Decoder::new(&bytes);
        assert_eq!(d.map().unwrap(), Some(1));
        let id = |d: &mut Decoder<'_>| Uuid::from_slice(d.bytes().unwrap()).unwrap();
        match d.str().unwrap() {
            "Issue" => {
                assert_eq!(d.array().unwrap(), Some(2));
                let issue = (id(&mut d), id(&mut d));
                self.issues.push_back(issue);
            }
            "LogIndex" => {
                assert_eq!(d.array().unwrap(), Some(2));
                id(&mut d);
                let count = d.array().unwrap().unwrap();
                self.answers.push_back(Answer::Index((0..count).map(|_| id(&mut d)).collect()));
            }
            "LogEntry" => {
                let count = d.array().unwrap().unwrap();
                let entries = (0..count).map(|_| {
                    assert_eq!(d.map().unwrap(), Some(3));
                    for _ in 0..2 {
                        d.str().unwrap();
                        id(&mut d);
                    }
                    assert_eq!(d.str().unwrap(), "data");
                    d.array_iter::<u8>().unwrap().map(Result::unwrap).collect()
                });
                let entries = entries.collect();
                self.answers.push_back(Answer::Entries(entries));
            }
            "Error" => {
                d.map().unwrap();
                assert_eq!(d.str().unwrap(), "code");
                self.answers.push_back(Answer::Error(d.str().unwrap().into()));
                assert_eq!(d.str().unwrap(), "message");
                assert!(matches!(d.datatype().unwrap(), Type::String));
            }
            other => panic!("{other}"),
        }
        Some(())
    }
}
