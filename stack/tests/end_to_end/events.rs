//! A viewer of `/live/events`, frame by frame.

use futures_util::{Stream, StreamExt};
use serde_json::Value;
use std::{pin::Pin, time::Duration};

/// Longer than any step of a test takes on a busy machine; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_mins(2);

pub(super) struct Viewer {
    bytes: Pin<Box<dyn Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) id: String,
    pub(super) event: String,
    pub(super) data: Value,
}

impl Viewer {
    /// Opens the stream; what happened before counts too if `since` says so.
    pub(super) async fn open(base: &str, topics: &[&str], since: Option<&str>) -> Self {
        Self::try_open(base, topics, since).await.expect("a live node answers")
    }

    /// None while no node takes viewers.
    pub(super) async fn try_open(base: &str, topics: &[&str], since: Option<&str>) -> Option<Self> {
        let mut query: Vec<String> = topics.iter().map(|topic| format!("topic={topic}")).collect();
        query.extend(since.map(|id| format!("since={id}")));
        let url = format!("{base}/live/events?{}", query.join("&"));
        // The load balancer may be what is not there.
        let response = reqwest::get(&url).await.ok()?;
        if response.status().is_server_error() {
            return None;
        }
        assert_eq!(response.status(), 200, "{url}: {:?}", response.text().await);
        Some(Self { bytes: Box::pin(response.bytes_stream()), buffer: Vec::new() })
    }

    /// The next event; comments are passed over.
    pub(super) async fn next(&mut self) -> Frame {
        self.try_next().await.expect("the stream goes on")
    }

    /// None once the stream has ended or is broken.
    pub(super) async fn try_next(&mut self) -> Option<Frame> {
        tokio::time::timeout(PATIENCE, self.read()).await.expect("an event within the test's patience")
    }

    async fn read(&mut self) -> Option<Frame> {
        loop {
            while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let frame: Vec<u8> = self.buffer.drain(..end + 2).collect();
                if let Some(frame) = parse(std::str::from_utf8(&frame).expect("frames are UTF-8")) {
                    return Some(frame);
                }
            }
            let chunk = self.bytes.next().await?.ok()?;
            self.buffer.extend_from_slice(&chunk);
        }
    }

    /// The next event that `wanted` says yes to.
    pub(super) async fn wait_for(&mut self, mut wanted: impl FnMut(&Frame) -> bool) -> Frame {
        loop {
            let frame = self.next().await;
            if wanted(&frame) {
                return frame;
            }
        }
    }

    /// The end of a job of this crate and kind.
    pub(super) async fn job_end(&mut self, krate: &str, kind: &str) -> Value {
        let ended = |data: &Value| {
            data["crate"] == krate
                && data["kind"] == kind
                && ["succeeded", "failed", "cancelled"].iter().any(|state| data["state"] == *state)
        };
        self.wait_for(|frame| frame.event == "job" && ended(&frame.data)).await.data
    }
}

fn parse(text: &str) -> Option<Frame> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let data = field("data")?;
    Some(Frame {
        id: field("id").unwrap_or_default().to_owned(),
        event: field("event").unwrap_or("message").to_owned(),
        data: serde_json::from_str(data).expect("data is JSON"),
    })
}
