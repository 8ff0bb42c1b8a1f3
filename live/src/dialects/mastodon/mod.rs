//! Mastodon's streaming API: what clients ask for, what Mastodon publishes, and what each viewer gets of it. Pure.
//!
//! ```text
//! path, "subscribe" -> [request] -> Stream -> the Channels that it is made of   [stream], [channel]
//! a message of Redis -> Post, parsed once -> frames, encoded once for each form  [post], [encode]
//!                            | public and hashtag streams: Rules of the viewer   [filter], [keywords], [text]
//! ```

pub mod channel;
pub mod encode;
pub mod filter;
pub mod hashtag;
pub mod keywords;
pub mod post;
pub mod request;
pub mod scopes;
pub mod stream;
pub mod text;

use bytes::Bytes;

/// How a connection is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Server-sent events: one stream, named in the path.
    Events,
    /// WebSocket: many streams, each message with the name of its own.
    Socket,
}

/// Opens a stream of events, once everything published from now on reaches it.
pub fn hello() -> Bytes {
    Bytes::from_static(b":)\n")
}

/// A sign of life.
pub fn thump() -> Bytes {
    Bytes::from_static(b":thump\n\n")
}

/// The last words to a stream of events: a comment, since clients know no event that says so.
pub fn last_words(reason: &str) -> Bytes {
    format!(":{reason}\n\n").into()
}
