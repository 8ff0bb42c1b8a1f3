//! A message of Mastodon: parsed once, encoded once for all who get it in the same form.

use super::{Form, channel::AccountId, encode, keywords::Text, stream::Label, text::Parts};
use bytes::Bytes;
use cratemill_protocol::JsonText;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use smallvec::SmallVec;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The event that says that a viewer's filters are others now; it has no payload.
pub const FILTERS_CHANGED: &str = "filters_changed";

#[derive(Debug)]
pub struct Post {
    /// As it stands in JSON, within quotes.
    pub event: Box<str>,
    pub payload: Payload,
    /// Of a status on a stream that is filtered.
    status: Option<Status>,
    text: OnceLock<Option<Text>>,
    id: OnceLock<Box<str>>,
    escaped: OnceLock<Box<str>>,
    /// A few: one for each spelling of a stream's name.
    encoded: Mutex<SmallVec<[(Kind, Bytes); 2]>>,
}

/// Frames that are kept: hardly anybody spells a tag in more ways.
const MAX_ENCODED: usize = 8;

/// Which of its frames: of a stream over WebSocket, or the event.
type Kind = Option<Label>;

#[derive(Debug, PartialEq, Eq)]
pub enum Payload {
    /// There is none, and there has to be none.
    None,
    /// What a string of JSON says.
    Text(Box<str>),
    /// JSON in one line, without what stands for nothing.
    Json(Box<str>),
}

/// Of a status what decides who sees it.
#[derive(Debug)]
pub struct Status {
    pub author: AccountId,
    /// Where the author is, if elsewhere.
    pub domain: Option<Box<str>>,
    pub is_local: bool,
    pub mentions: SmallVec<[AccountId; 4]>,
    pub language: Option<Box<str>>,
    /// It says itself what filters it matches.
    pub is_filtered: bool,
}

/// Why a message is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("it is not JSON with an event")]
    Malformed,
    #[error("it has no payload")]
    NoPayload,
    #[error("it is an update and its payload is no status")]
    NoStatus,
}

#[derive(Deserialize)]
struct Message<'a> {
    event: String,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

impl Post {
    /// `filtered`: it came on a channel of which each viewer sees what is right for them.
    pub fn parse(message: &[u8], filtered: bool) -> Result<Self, Error> {
        let Message { event, payload } = serde_json::from_slice(message).map_err(|_| Error::Malformed)?;
        let payload = match payload.map(RawValue::get) {
            _ if event == FILTERS_CHANGED => Payload::None,
            None => return Err(Error::NoPayload),
            Some(text) => Payload::parse(text)?,
        };
        let is_status = matches!(&*event, "update" | "status.update");
        let status = match &payload {
            Payload::Json(json) if filtered && is_status => {
                Some(Status::parse(json).map_err(|_| Error::NoStatus)?)
            }
            _ if filtered && is_status => return Err(Error::NoStatus),
            _ => None,
        };
        Ok(Self {
            event: escape(&event)?,
            payload,
            status,
            text: OnceLock::new(),
            id: OnceLock::new(),
            escaped: OnceLock::new(),
            encoded: Mutex::default(),
        })
    }

    pub fn status(&self) -> Option<&Status> {
        self.status.as_ref()
    }

    /// What the status says.
    pub fn text(&self) -> Option<&Text> {
        let Payload::Json(json) = &self.payload else { return None };
        let read = || Some(Text::new(serde_json::from_str::<Parts>(json).ok()?.plain()));
        self.text.get_or_init(read).as_ref()
    }

    /// The same wherever it is received: whoever resumes may do so at another node.
    pub fn id(&self) -> &str {
        self.id.get_or_init(|| encode::id(self))
    }

    /// As all get it to whom nothing else is said about it.
    pub fn encoded(&self, form: Form, label: &Label) -> Bytes {
        let kind = (form == Form::Socket).then(|| label.clone());
        let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = encoded.iter().find(|(known, _)| *known == kind) {
            return bytes.clone();
        }
        let bytes = self.encode(form, label, self.status.as_ref().map(|_| "[]"));
        // Of a tag anybody may make up spellings; those beyond are encoded for each who has them.
        if encoded.len() < MAX_ENCODED {
            encoded.push((kind, bytes.clone()));
        }
        bytes
    }

    /// With matches of a viewer's filters, in JSON.
    pub fn annotated(&self, form: Form, label: &Label, matches: &str) -> Bytes {
        self.encode(form, label, Some(matches))
    }

    fn encode(&self, form: Form, label: &Label, filtered: Option<&str>) -> Bytes {
        let filtered = filtered.filter(|_| self.status.as_ref().is_some_and(|status| !status.is_filtered));
        match form {
            Form::Events => encode::event(self, filtered),
            Form::Socket => encode::frame(self, label, filtered),
        }
    }

    /// The payload within a string of JSON, for all frames.
    pub(super) fn escaped(&self) -> &str {
        self.escaped.get_or_init(|| match &self.payload {
            Payload::None => Box::default(),
            Payload::Text(text) | Payload::Json(text) => escape(text).unwrap_or_default(),
        })
    }

    /// About what it takes in memory.
    pub fn cost(&self) -> usize {
        let payload = match &self.payload {
            Payload::None => 0,
            Payload::Text(text) | Payload::Json(text) => text.len(),
        };
        size_of::<Self>() + self.event.len() + 3 * payload
    }
}

impl Payload {
    fn parse(json: &str) -> Result<Self, Error> {
        match json.as_bytes().first() {
            Some(b'{' | b'[') => {
                let text = JsonText::parse(json.as_bytes()).map_err(|_| Error::Malformed)?;
                Ok(Self::Json(String::from(text).into()))
            }
            Some(b'"') => {
                let text: Box<str> = serde_json::from_str(json).map_err(|_| Error::Malformed)?;
                if text.is_empty() { Err(Error::NoPayload) } else { Ok(Self::Text(text)) }
            }
            // As Mastodon's server: what stands for nothing is nothing.
            Some(b'n' | b'f') | None => Err(Error::NoPayload),
            Some(_) if json == "0" => Err(Error::NoPayload),
            Some(_) => Ok(Self::Text(json.into())),
        }
    }
}

/// A string of JSON without its quotes.
pub(super) fn escape(text: &str) -> Result<Box<str>, Error> {
    let quoted = serde_json::to_string(text).map_err(|_| Error::Malformed)?;
    Ok(quoted[1..quoted.len() - 1].into())
}

#[derive(Deserialize)]
struct StatusJson {
    account: Account,
    #[serde(default)]
    mentions: Option<Vec<Mention>>,
    #[serde(default)]
    language: Option<Box<str>>,
    #[serde(default, deserialize_with = "is_there")]
    filtered: bool,
}

#[derive(Deserialize)]
struct Account {
    #[serde(deserialize_with = "id")]
    id: i64,
    username: String,
    acct: String,
}

#[derive(Deserialize)]
struct Mention {
    #[serde(deserialize_with = "id")]
    id: i64,
}

impl Status {
    fn parse(json: &str) -> serde_json::Result<Self> {
        let StatusJson { account, mentions, language, filtered } = serde_json::from_str(json)?;
        Ok(Self {
            author: AccountId(account.id),
            domain: account.acct.split_once('@').map(|(_, domain)| ascii(domain)),
            is_local: account.acct == account.username,
            mentions: mentions.into_iter().flatten().map(|mention| AccountId(mention.id)).collect(),
            language,
            is_filtered: filtered,
        })
    }
}

/// As blocks of domains have it, whatever letters viewers are shown.
fn ascii(domain: &str) -> Box<str> {
    idna::domain_to_ascii(domain).map_or_else(|_| domain.into(), Into::into)
}

/// Mastodon writes ids as strings.
fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Id<'a> {
        Text(#[serde(borrow)] std::borrow::Cow<'a, str>),
        Number(i64),
    }
    match Id::deserialize(deserializer)? {
        Id::Text(text) => text.parse().map_err(serde::de::Error::custom),
        Id::Number(number) => Ok(number),
    }
}

/// Whatever it is.
fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(message: &str, filtered: bool) -> Result<Post, Error> {
        Post::parse(message.as_bytes(), filtered)
    }

    #[test]
    fn payloads_are_text_or_json() {
        for (payload, expected) in [
            (r#""12""#, Ok(Payload::Text("12".into()))),
            (r#"{ "a" : 1.0 }"#, Ok(Payload::Json(r#"{"a":1.0}"#.into()))),
            ("12", Ok(Payload::Text("12".into()))),
            ("true", Ok(Payload::Text("true".into()))),
            (r#""""#, Err(Error::NoPayload)),
            ("null", Err(Error::NoPayload)),
            ("false", Err(Error::NoPayload)),
            ("0", Err(Error::NoPayload)),
        ] {
            let message = format!(r#"{{"event":"delete","payload":{payload},"queued_at":7}}"#);
            assert_eq!(parse(&message, true).map(|post| post.payload), expected, "{payload}");
        }
        assert_eq!(parse(r#"{"event":"delete"}"#, false).unwrap_err(), Error::NoPayload);
        assert_eq!(parse(r#"{"event":"filters_changed"}"#, false).unwrap().payload, Payload::None);
        for message in ["", "x", "[]", r#"{"payload":"1"}"#, r#"{"event":7,"payload":"1"}"#] {
            assert_eq!(parse(message, false).unwrap_err(), Error::Malformed, "{message}");
        }
    }

    #[test]
    fn a_status_says_who_may_see_it_or_is_none() {
        let message = |payload: &str| format!(r#"{{"event":"update","payload":{payload}}}"#);
        let good = r#"{"id":"9","account":{"id":"1","username":"a","acct":"a@b.example"},"mentions":[{"id":"2"},{"id":3}]}"#;
        let post = parse(&message(good), true).unwrap();
        let status = post.status().unwrap();
        assert_eq!((status.author, status.domain.as_deref()), (AccountId(1), Some("b.example")));
        assert_eq!(status.mentions[..], [AccountId(2), AccountId(3)]);
        assert!(!status.is_local && status.language.is_none() && !status.is_filtered);
        let shown = good.replace("b.example", "bücher.example");
        let post = parse(&message(&shown), true).unwrap();
        assert_eq!(post.status().unwrap().domain.as_deref(), Some("xn--bcher-kva.example"));
        for bad in [r#"{"id":"9"}"#, r#"{"account":{"id":"x","username":"a","acct":"a"}}"#, "[]", r#""text""#]
        {
            assert_eq!(parse(&message(bad), true).unwrap_err(), Error::NoStatus, "{bad}");
            assert!(parse(&message(bad), false).is_ok(), "nobody looks at it elsewhere");
        }
    }
}
