//! What viewers speak. A dialect parses what is asked for, names what [`crate::auth`] is to allow, and encodes what the
//! engine delivers; it touches neither the bus nor a socket.
//!
//! A new one is a variant here and a module that the match arms call: the engine and the reactors know no other words.

pub mod cbor;
pub mod event_api;
pub mod mastodon;
pub mod native;

use crate::{
    engine::{
        frame::{Frame, Issue, Message},
        position::Position,
        viewer::{DropReason, Item, ResetReason, What},
    },
    ws::frames::{self, RESTART, TRY_AGAIN},
};
use bytes::{Bytes, BytesMut};
use cbor::IdForm;
use cratemill_protocol::topic::Topic;
use native::{encode, ws};

/// One byte for each connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Our own, as server-sent events: what is followed stands in the request.
    #[default]
    NativeEvents,
    /// Our own, as JSON over WebSocket: it asks when it is open, topic by topic.
    NativeSocket,
    /// The zero-code event API: all events, as server-sent events.
    EventApi,
    /// Publish and subscribe in CBOR over WebSocket; ids are written as the client writes them.
    Cbor(IdForm),
    /// Mastodon's streaming API; its reactors write what it has to say themselves, each viewer's by its rules.
    MastodonEvents,
    MastodonSocket,
}

/// What a connection over WebSocket asks for.
pub use native::ws::Request;

/// How often viewers of the event API are told that we are there, whatever else they get,
const EVENT_API_BEAT_S: usize = 10;
/// and those of Mastodon's streams of events, and of its WebSockets.
const THUMP_S: usize = 15;
const MASTODON_PING_S: usize = 30;

/// What is said of a topic, beside its messages.
#[derive(Debug, Clone, Copy)]
pub enum Said<'a> {
    /// What comes after the position follows.
    Subscribed(&'a Topic, &'a Position),
    Unsubscribed(&'a Topic),
    /// Something is gone for good.
    Reset(&'a Topic, &'a Position, ResetReason),
    Error(Option<&'a Topic>, &'a str),
    Pong,
}

impl Dialect {
    pub fn is_socket(self) -> bool {
        match self {
            Self::NativeEvents | Self::EventApi | Self::MastodonEvents => false,
            Self::NativeSocket | Self::Cbor(_) | Self::MastodonSocket => true,
        }
    }

    /// Whether more is known of each than its place in a channel.
    pub fn has_talk(self) -> bool {
        self.is_socket() || self.is_listener()
    }

    /// Whether it listens to Mastodon.
    pub fn is_listener(self) -> bool {
        matches!(self, Self::MastodonEvents | Self::MastodonSocket)
    }

    /// Whether it is one whose messages are commands that tasks do.
    pub fn is_guest(self) -> bool {
        matches!(self, Self::Cbor(_))
    }

    /// How often there is a sign of life, whatever else is said; nothing where it is shown to the silent.
    pub fn beat_s(self) -> Option<usize> {
        match self {
            Self::NativeEvents | Self::NativeSocket | Self::Cbor(_) => None,
            Self::EventApi => Some(EVENT_API_BEAT_S),
            Self::MastodonEvents => Some(THUMP_S),
            Self::MastodonSocket => Some(MASTODON_PING_S),
        }
    }

    /// What that sign is.
    pub fn beat(self) -> Bytes {
        match self {
            Self::NativeEvents | Self::NativeSocket | Self::Cbor(_) => Bytes::new(),
            Self::EventApi => event_api::ping(),
            Self::MastodonEvents => mastodon::thump(),
            Self::MastodonSocket => frames::ping(),
        }
    }

    /// Of the channel of `topics`, for whoever has then seen everything up to `position`.
    pub fn message(self, frame: &Frame, topics: &[Topic], position: &Position, out: &mut BytesMut) {
        match self {
            Self::NativeEvents => encode::frame(frame, position, out),
            Self::EventApi => event_api::frame(frame, out),
            Self::Cbor(ids) => {
                if let Message::Issue(Issue { subscription, publication }) = frame.message {
                    frames::put_binary(&cbor::issue(subscription, publication, ids), out);
                }
            }
            // It has no topics.
            Self::MastodonEvents | Self::MastodonSocket => {}
            // It has a channel for each of its topics.
            Self::NativeSocket => {
                for topic in topics {
                    frames::put_text(&ws::event(&topic.to_string(), frame, position), out);
                }
            }
        }
    }

    /// A sign of life, with how far it is in all that it follows, where that can be said.
    pub fn alive(self, position: Option<&Position>) -> Bytes {
        match (self, position) {
            (Self::NativeEvents, Some(position)) => {
                encoded(&Item { what: What::Alive, position: position.clone() })
            }
            (Self::NativeEvents, None) => encode::heartbeat(),
            (Self::NativeSocket, position) => text(&ws::heartbeat(position)),
            // It beats, or is asked for its pong.
            (Self::EventApi | Self::Cbor(_) | Self::MastodonEvents | Self::MastodonSocket, _) => Bytes::new(),
        }
    }

    /// Nothing where the dialect has no words for it.
    pub fn say(self, said: Said<'_>) -> Bytes {
        match (self, said) {
            (Self::NativeEvents, Said::Reset(topic, position, reason)) => {
                let what = What::Reset { topic: topic.clone(), reason };
                encoded(&Item { what, position: position.clone() })
            }
            (
                Self::NativeEvents
                | Self::EventApi
                | Self::Cbor(_)
                | Self::MastodonEvents
                | Self::MastodonSocket,
                _,
            ) => Bytes::new(),
            (Self::NativeSocket, Said::Subscribed(topic, position)) => text(&ws::subscribed(topic, position)),
            (Self::NativeSocket, Said::Unsubscribed(topic)) => text(&ws::unsubscribed(topic)),
            (Self::NativeSocket, Said::Reset(topic, position, reason)) => {
                text(&ws::reset(topic, position, reason))
            }
            (Self::NativeSocket, Said::Error(topic, why)) => text(&ws::error(topic, why)),
            (Self::NativeSocket, Said::Pong) => text(&ws::pong()),
        }
    }

    /// What somebody says over a WebSocket; nothing is expected of others.
    pub fn request(self, text: &str) -> Result<Request, ws::Error> {
        Request::parse(text)
    }

    /// The last words to one that is let go; it may come back.
    pub fn dropped(self, reason: DropReason) -> Bytes {
        match (self, reason) {
            (Self::NativeEvents, _) => encode::dropped(reason),
            (Self::EventApi, _) => event_api::dropped(reason),
            (Self::MastodonEvents, _) => mastodon::last_words(encode::drop_reason(reason)),
            (Self::NativeSocket | Self::Cbor(_) | Self::MastodonSocket, DropReason::Slow) => {
                frames::close(TRY_AGAIN, encode::drop_reason(reason))
            }
            (Self::NativeSocket | Self::Cbor(_) | Self::MastodonSocket, DropReason::Broken) => {
                frames::close(RESTART, encode::drop_reason(reason))
            }
        }
    }

    /// The last words of a node that goes away.
    pub fn draining(self) -> Bytes {
        match self {
            Self::NativeEvents => encode::draining(),
            Self::EventApi => event_api::draining(),
            Self::MastodonEvents => mastodon::last_words("draining"),
            Self::NativeSocket | Self::Cbor(_) | Self::MastodonSocket => frames::close(RESTART, "draining"),
        }
    }
}

fn encoded(item: &Item) -> Bytes {
    let mut out = BytesMut::new();
    encode::item(item, &mut out);
    out.freeze()
}

/// In a frame.
fn text(message: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    frames::put_text(message, &mut out);
    out.freeze()
}
