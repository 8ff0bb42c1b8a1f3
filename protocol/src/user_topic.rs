//! Topics that people publish to. The text of one is its subject on the bus too.

use serde::{Deserialize, Serialize};
use std::{fmt, ops::Deref, str::FromStr};

const PREFIX: &str = "topic.";
/// What is below `topic.private.` takes a token to follow.
const PRIVATE: &str = "private";
const MAX_BYTES: usize = 128;
const MAX_SEGMENTS: usize = 8;
const MAX_SEGMENT_BYTES: usize = 64;

/// `topic.<name>`: safe as a subject, in a URL and in JSON as it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserTopic(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a user topic is `topic.` and 1 to {MAX_SEGMENTS} names with dots between them, each of 1 to {MAX_SEGMENT_BYTES} \
     ASCII letters, digits, '-' or '_', and {MAX_BYTES} bytes in all"
)]
pub struct Error;

impl UserTopic {
    pub fn parse(text: impl Into<String>) -> Result<Self, Error> {
        let text = text.into();
        if is_user_topic(&text) { Ok(Self(text)) } else { Err(Error) }
    }

    pub fn is_private(&self) -> bool {
        self.0.split('.').nth(1) == Some(PRIVATE)
    }
}

fn is_user_topic(text: &str) -> bool {
    let Some(name) = text.strip_prefix(PREFIX) else { return false };
    text.len() <= MAX_BYTES && name.split('.').count() <= MAX_SEGMENTS && name.split('.').all(is_segment)
}

fn is_segment(text: &str) -> bool {
    (1..=MAX_SEGMENT_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

impl Deref for UserTopic {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for UserTopic {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl TryFrom<String> for UserTopic {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl From<UserTopic> for String {
    fn from(topic: UserTopic) -> Self {
        topic.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_safe_as_a_subject_is_a_topic() {
        let longest = format!("topic.{}.{}", "a".repeat(64), "b".repeat(57));
        assert_eq!(longest.len(), MAX_BYTES);
        for (text, private) in [
            ("topic.a", false),
            ("topic.Team-1.de_ploys", false),
            ("topic.a.b.c.d.e.f.g.h", false),
            (&*longest, false),
            ("topic.private", true),
            ("topic.private.team.deploys", true),
            ("topic.privateer", false),
            ("topic.a.private", false),
        ] {
            let topic = UserTopic::parse(text).unwrap();
            assert_eq!((&*topic, topic.is_private()), (text, private));
        }
        for bad in [
            "",
            "topic",
            "topic.",
            "topic..a",
            "topic.a.",
            "topic.a..b",
            "topic.*",
            "topic.>",
            "topic.a b",
            "topic.a\n",
            "topic.ä",
            "Topic.a",
            "event.a",
            "topic.a.b.c.d.e.f.g.h.i",
            &format!("topic.{}", "a".repeat(65)),
            &format!("{longest}b"),
        ] {
            assert_eq!(UserTopic::parse(bad), Err(Error), "{bad}");
        }
    }
}
