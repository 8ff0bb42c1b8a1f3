//! Counts of downloads on their way from API nodes to counters.
//!
//! A busy node sends millions of counts, so each is an array and not a map, and [`DownloadBatch`] has a codec of its own
//! that reads them straight from the bytes. What programs of before sent, counts as maps, is read too, and they read ours.

use crate::{ArtifactId, bus, codec::Encoding};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Visitor};
use std::fmt;

/// Counts wait this long for a bus that is away; after that they are given up. A counter knows a publisher's run for longer.
pub const JOURNAL_DAYS: i32 = 7;

/// API node -> counters, on `download.<node>`: counts since the batch before it.
///
/// (`node`, `epoch`) names one run of one publisher and `batch` counts up from 1 within it: that, not a stream's
/// sequence, tells a counter what it has applied already.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DownloadBatch {
    pub node: String,
    /// Tells this run of the publisher from all others, also where a clock was set back: see [`epoch`].
    pub epoch: i64,
    pub batch: u64,
    pub counts: Vec<DownloadCount>,
    /// What the counters have to pair before they count it.
    pub installs: Vec<Install>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct DownloadCount {
    pub artifact: ArtifactId,
    /// Days since 1970-01-01, UTC.
    pub day: i32,
    pub client: ClientClass,
    pub count: u64,
}

impl Serialize for DownloadCount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.artifact, self.day, self.client, self.count).serialize(serializer)
    }
}

/// One request of a client that asks twice for what it installs, to see whether it is there and to have it: two of these
/// are one download.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Install {
    pub artifact: ArtifactId,
    /// Days since 1970-01-01, UTC.
    pub day: i32,
    pub client: ClientClass,
    /// The client's address, as nobody can read it: see [`crate::token::Signer::pseudonym`].
    pub who: i64,
    /// Unix seconds.
    pub at_s: i64,
}

impl Serialize for Install {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.artifact, self.day, self.client, self.who, self.at_s).serialize(serializer)
    }
}

/// As it is on the wire.
#[derive(Serialize)]
struct Written<'a> {
    v: u8,
    node: &'a str,
    epoch: i64,
    batch: u64,
    counts: &'a [DownloadCount],
    #[serde(skip_serializing_if = "<[Install]>::is_empty")]
    installs: &'a [Install],
}

#[derive(Deserialize)]
struct Read {
    v: u8,
    node: String,
    epoch: i64,
    batch: u64,
    counts: Vec<DownloadCount>,
    #[serde(default)]
    installs: Vec<Install>,
}

impl DownloadBatch {
    pub fn encode(&self) -> Vec<u8> {
        let Self { node, epoch, batch, counts, installs } = self;
        let (epoch, batch) = (*epoch, *batch);
        Encoding::MsgPack.encode(&Written { v: bus::VERSION, node, epoch, batch, counts, installs })
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, bus::Error> {
        match Encoding::MsgPack.decode::<Read>(bytes) {
            Ok(Read { v: bus::VERSION, node, epoch, batch, counts, installs }) => {
                Ok(Self { node, epoch, batch, counts, installs })
            }
            Ok(Read { v, .. }) => Err(bus::Error::Version(v)),
            // A later version may have other fields.
            Err(error) => match bus::version(bytes) {
                Ok(v) if v != bus::VERSION => Err(bus::Error::Version(v)),
                _ => Err(error.into()),
            },
        }
    }

    /// Of the batch's counts and the requests that are to be paired.
    pub fn downloads(&self) -> u64 {
        self.counts.iter().fold(self.installs.len() as u64, |all, count| all.saturating_add(count.count))
    }
}

/// A publisher's run: the moment of its start, in milliseconds, and a random part below, so that it is of no other run
/// though the clock be set back.
pub fn epoch(now_ms: i64, random: u32) -> i64 {
    const RANDOM_BITS: u32 = 20;
    (now_ms << RANDOM_BITS) | i64::from(random >> (u32::BITS - RANDOM_BITS))
}

/// What asked for a download, from its user agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientClass {
    Binstall,
    Apt,
    Cargo,
    Curl,
    Browser,
    Other,
}

/// A class that only a later program knows is [`ClientClass::Other`] here: its downloads count.
impl<'de> Deserialize<'de> for ClientClass {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = ClientClass;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a class of clients")
            }
            fn visit_str<E>(self, name: &str) -> Result<ClientClass, E> {
                let known = ClientClass::ALL.into_iter().find(|class| class.as_str() == name);
                Ok(known.unwrap_or(ClientClass::Other))
            }
        }
        deserializer.deserialize_str(Name)
    }
}

/// What tells a client's class stands at the beginning.
const MAX_AGENT_BYTES: usize = 256;

impl ClientClass {
    pub const ALL: [Self; 6] =
        [Self::Binstall, Self::Apt, Self::Cargo, Self::Curl, Self::Browser, Self::Other];

    /// `agent` is whatever a client sent: any bytes, in any encoding.
    pub fn of_user_agent(agent: &[u8]) -> Self {
        let agent = &agent[..agent.len().min(MAX_AGENT_BYTES)];
        let has = |word: &[u8]| agent.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
        let begins =
            |word: &[u8]| agent.get(..word.len()).is_some_and(|part| part.eq_ignore_ascii_case(word));
        if [&b"bot"[..], b"crawler", b"spider"].into_iter().any(has) {
            Self::Other
        } else if begins(b"cargo-binstall/") {
            Self::Binstall
        } else if has(b"apt-http/") || begins(b"debian apt") {
            Self::Apt
        } else if begins(b"cargo/") || begins(b"cargo ") {
            Self::Cargo
        } else if begins(b"curl/") || begins(b"wget/") {
            Self::Curl
        } else if begins(b"mozilla/") {
            Self::Browser
        } else {
            Self::Other
        }
    }

    /// Whether it asks for a file twice each time it installs it.
    pub fn asks_twice(self) -> bool {
        self == Self::Binstall
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Binstall => "binstall",
            Self::Apt => "apt",
            Self::Cargo => "cargo",
            Self::Curl => "curl",
            Self::Browser => "browser",
            Self::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_agents_have_a_class() {
        for (agent, class) in [
            (&b"cargo-binstall/1.17.4"[..], ClientClass::Binstall),
            (b"Debian APT-HTTP/1.3 (2.6.1)", ClientClass::Apt),
            (b"cargo/1.95.0 (f2d3ce0bd 2026-03-21)", ClientClass::Cargo),
            (b"curl/7.88.1", ClientClass::Curl),
            (b"Wget/1.21", ClientClass::Curl),
            (b"Mozilla/5.0 (X11; Linux x86_64)", ClientClass::Browser),
            (b"Mozilla/5.0 (compatible; Googlebot/2.1)", ClientClass::Other),
            (b"", ClientClass::Other),
            (b"\xff\x00curl/", ClientClass::Other),
            (&[b'\xc3'; 8_192], ClientClass::Other),
        ] {
            assert_eq!(ClientClass::of_user_agent(agent), class, "{}", agent.escape_ascii());
        }
    }

    #[test]
    fn a_later_version_is_told_from_rubbish() {
        let batch = DownloadBatch { node: "n".into(), epoch: 1, batch: 1, ..DownloadBatch::default() };
        let mut bytes = batch.encode();
        assert_eq!(DownloadBatch::decode(&bytes).unwrap(), batch);
        let position = bytes.iter().position(|byte| *byte == bus::VERSION).unwrap();
        bytes[position] = 9;
        assert!(matches!(DownloadBatch::decode(&bytes), Err(bus::Error::Version(9))));
        // One that has nothing else of what we know.
        assert!(matches!(DownloadBatch::decode(b"\x81\xa1v\x02"), Err(bus::Error::Version(2))));
        for rubbish in [&b""[..], b"x", b"\x81\xa1v\x01", b"\x80"] {
            assert!(matches!(DownloadBatch::decode(rubbish), Err(bus::Error::Decode(_))));
        }
    }

    #[test]
    fn a_class_that_is_not_known_yet_is_none_of_ours() {
        let sent = |client| {
            let count = DownloadCount { artifact: ArtifactId(1), day: 2, client, count: 3 };
            DownloadBatch { node: "n".into(), counts: vec![count], ..DownloadBatch::default() }
        };
        for class in ClientClass::ALL {
            assert_eq!(DownloadBatch::decode(&sent(class).encode()).unwrap(), sent(class));
        }
        let mut bytes = sent(ClientClass::Curl).encode();
        let position = bytes.windows(4).position(|part| part == b"curl").unwrap();
        bytes[position..position + 4].copy_from_slice(b"nix!");
        assert_eq!(DownloadBatch::decode(&bytes).unwrap(), sent(ClientClass::Other));
    }

    #[test]
    fn runs_differ_though_clocks_do_not() {
        assert_ne!(epoch(1_767_323_045_000, 0), epoch(1_767_323_045_000, u32::MAX));
        assert!(epoch(1_767_323_045_000, u32::MAX) < epoch(1_767_323_045_001, 0));
        assert!(epoch(253_402_300_799_000, u32::MAX) > 0);
    }
}
