//! Publish and subscribe in CBOR over WebSocket: an older system's messages, and what it left out. Pure.
//!
//! ```text
//! client -> {"Subscribe": {"subscription_id": h'..'}}         broadcast: everything that is published from now on
//!           {"SubscribeQueue": {"subscription_id": h'..', "group": "workers"}}     each thing to one of the group
//!           {"Unsubscribe": {"subscription_id": h'..'}}
//!           {"SubmitPublication": {"subscription_id": h'..', "submission": [1, 2, 3]}}
//!           {"Ack": {"publication_id": h'..'}}
//!           {"GetLogIndex": {"log_id": h'..'}}      {"GetLogEntries": {"log_id": h'..', "entries": [h'..']}}
//! server -> {"Issue": [subscription_id, publication_id]}
//!           {"LogIndex": [log_id, [publication_id, ..]]}
//!           {"LogEntry": [{"publication_id": .., "subscription_id": .., "data": [1, 2, 3]}, ..]}
//!           {"Error": {"code": "..", "message": "..", "about": id?}}
//! ```
//! Ids are byte strings of 16 bytes, or text; data are arrays of integers, or byte strings: who says it in one form is
//! answered in it.

mod answer;
mod command;

pub use answer::{Entry, entries, entry, error, ids, index, issue};
pub use command::{Command, Parsed, Refusal, parse};

/// How a client writes ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IdForm {
    #[default]
    Bytes,
    Text,
}

/// How a client writes data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DataForm {
    #[default]
    Array,
    Bytes,
}

/// What is wrong, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Not CBOR, or no command.
    Malformed,
    /// A text message.
    Text,
    TooLarge,
    /// More subscriptions, or entries at once, than one may have.
    TooMany,
    UnknownSubscription,
    UnknownLog,
    UnknownEntry,
    UnknownPublication,
    InvalidGroup,
    /// Something is away: the same again may work.
    Unavailable,
}

impl Code {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Text => "text",
            Self::TooLarge => "too_large",
            Self::TooMany => "too_many",
            Self::UnknownSubscription => "unknown_subscription",
            Self::UnknownLog => "unknown_log",
            Self::UnknownEntry => "unknown_entry",
            Self::UnknownPublication => "unknown_publication",
            Self::InvalidGroup => "invalid_group",
            Self::Unavailable => "unavailable",
        }
    }
}
