//! Bytes to messages and back, for both subprotocols and for the bus.

use serde::{Serialize, de::DeserializeOwned};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// MessagePack with named fields, in binary frames.
    MsgPack,
    /// JSON, in text frames.
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("not a message in MessagePack: {0}")]
    MsgPack(#[from] rmp_serde::decode::Error),
    #[error("not a message in JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Encoding {
    /// The encoding that goes with a subprotocol's name.
    pub fn of_subprotocol(name: &str) -> Option<Self> {
        match name {
            crate::builder::SUBPROTOCOL_MSGPACK => Some(Self::MsgPack),
            crate::builder::SUBPROTOCOL_JSON => Some(Self::Json),
            _ => None,
        }
    }

    pub fn subprotocol(self) -> &'static str {
        match self {
            Self::MsgPack => crate::builder::SUBPROTOCOL_MSGPACK,
            Self::Json => crate::builder::SUBPROTOCOL_JSON,
        }
    }

    pub fn encode<T: Serialize>(self, message: &T) -> Vec<u8> {
        match self {
            Self::MsgPack => {
                rmp_serde::to_vec_named(message).expect("our messages have no type that MessagePack lacks")
            }
            Self::Json => serde_json::to_vec(message).expect("our messages have only text keys"),
        }
    }

    pub fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, Error> {
        Ok(match self {
            Self::MsgPack => rmp_serde::from_slice(bytes)?,
            Self::Json => serde_json::from_slice(bytes)?,
        })
    }
}
