//! A client of server-sent events that keeps to the standard.

use crate::farm::{Node, PATIENCE};
use serde_json::Value;

pub(crate) struct Viewer {
    response: reqwest::Response,
    buffer: Vec<u8>,
    /// Of the last event, or of the last block that was only an id.
    pub(crate) last_id: String,
}

#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: Value,
}

pub(crate) fn request(node: &Node, topics: &[&str]) -> reqwest::RequestBuilder {
    let query: Vec<_> = topics.iter().map(|topic| format!("topic={topic}")).collect();
    reqwest::Client::new().get(format!("{}/live/events?{}", node.url, query.join("&")))
}

impl Viewer {
    pub(crate) async fn open(node: &Node, topics: &[&str]) -> Self {
        Self::answer(request(node, topics), String::new()).await
    }

    /// At any node, after the last event of another viewer.
    pub(crate) async fn resume(node: &Node, topics: &[&str], last_id: &str) -> Self {
        Self::answer(request(node, topics).header("last-event-id", last_id), last_id.to_owned()).await
    }

    pub(crate) async fn answer(request: reqwest::RequestBuilder, last_id: String) -> Self {
        let response = tokio::time::timeout(PATIENCE, request.send()).await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
        let mut this = Self { response, buffer: Vec::new(), last_id };
        // The first id says that everything from here on will come.
        this.until_alive().await;
        this
    }

    pub(crate) fn version(&self) -> reqwest::Version {
        self.response.version()
    }

    /// Waits for an id that comes without an event.
    pub(crate) async fn quietly_reaches(&mut self, id: &str) {
        while self.last_id != id {
            self.sign_of_life().await;
        }
    }

    /// The next of what comes, which is no event.
    pub(crate) async fn sign_of_life(&mut self) {
        match tokio::time::timeout(PATIENCE, self.block()).await.expect("a sign of life") {
            Some(Block::Id | Block::Other) => {}
            Some(Block::Event(event)) => panic!("unexpected {event:?}"),
            None => panic!("closed"),
        }
    }

    async fn until_alive(&mut self) {
        loop {
            match tokio::time::timeout(PATIENCE, self.block()).await.expect("a first id") {
                Some(Block::Id) => return,
                Some(Block::Other) => {}
                Some(Block::Event(event)) => panic!("{event:?} before the first id"),
                None => panic!("closed before the first id"),
            }
        }
    }

    /// The next event; none when the server closed. Signs of life do not make the wait longer.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match tokio::time::timeout_at(deadline, self.block()).await.expect("an event in time")? {
                Block::Event(event) => return Some(event),
                Block::Id | Block::Other => {}
            }
        }
    }

    /// The next, which has this name.
    pub(crate) async fn expect(&mut self, name: &str) -> Value {
        let event = self.next().await.expect("an event");
        assert_eq!(event.name, name, "{event:?}");
        event.data
    }

    /// The next `count` queue events, by their numbers.
    pub(crate) async fn queue_numbers(&mut self, count: usize) -> Vec<u64> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            numbers.push(self.expect("queue").await["queued"].as_u64().unwrap());
        }
        numbers
    }

    /// The text of an attempt's log from `offset` on until its end, which is returned too.
    pub(crate) async fn log(&mut self, attempt: i32, offset: usize) -> (String, Value) {
        let mut text = String::new();
        loop {
            let event = self.next().await.expect("an event");
            assert_eq!(event.data["attempt"], attempt, "{event:?}");
            match &*event.name {
                "log" => {
                    assert_eq!(event.data["offset"], offset + text.len(), "{event:?}");
                    text.push_str(event.data["text"].as_str().unwrap());
                }
                "stage" => {}
                "end" => return (text, event.data),
                other => panic!("unexpected {other}"),
            }
        }
    }

    async fn block(&mut self) -> Option<Block> {
        let end = loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                break end;
            }
            self.buffer.extend(self.response.chunk().await.ok().flatten()?);
        };
        let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
        Some(self.parse(std::str::from_utf8(&block).unwrap()))
    }

    fn parse(&mut self, block: &str) -> Block {
        let (mut name, mut data, mut has_id) = (None, None, false);
        for line in block.lines() {
            match line.split_once(": ") {
                Some(("id", id)) => {
                    id.clone_into(&mut self.last_id);
                    has_id = true;
                }
                Some(("event", event)) => name = Some(event.to_owned()),
                Some(("data", json)) => data = Some(serde_json::from_str(json).unwrap()),
                _ => {
                    assert!(line.is_empty() || line.starts_with(':') || line.starts_with("retry:"), "{line}");
                }
            }
        }
        match (name, data) {
            (Some(name), Some(data)) => Block::Event(Event { name, data }),
            _ if has_id => Block::Id,
            _ => Block::Other,
        }
    }
}

enum Block {
    Event(Event),
    Id,
    Other,
}
