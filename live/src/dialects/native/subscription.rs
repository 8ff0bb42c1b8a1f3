//! What a viewer asks for: topics, and from where on.

use crate::{dialects::native::id, engine::viewer::Since};
use cratemill_protocol::topic::{self, Topic};
use std::{collections::BTreeSet, sync::Arc};

/// Enough for a dashboard; more is for several connections.
pub const MAX_TOPICS: usize = 50;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Sorted, each once.
    pub topics: Arc<[Topic]>,
    pub since: Since,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("name at least one topic: ?topic=builds")]
    NoTopic,
    #[error("at most {MAX_TOPICS} topics on one connection")]
    TooManyTopics,
    #[error(transparent)]
    Topic(#[from] topic::Error),
}

impl Subscription {
    /// `query` are the decoded pairs of the URL. The header wins over `since`: a browser that reconnects repeats the URL.
    pub fn parse(query: &[(String, String)], last_event_id: Option<&str>) -> Result<Self, Error> {
        let named = query.iter().filter(|(key, _)| key == "topic").map(|(_, value)| value);
        let mut topics = BTreeSet::new();
        for name in named {
            topics.insert(name.parse::<Topic>()?);
            if topics.len() > MAX_TOPICS {
                return Err(Error::TooManyTopics);
            }
        }
        if topics.is_empty() {
            return Err(Error::NoTopic);
        }
        let since = query.iter().find(|(key, _)| key == "since").map(|(_, value)| value.as_str());
        let since = match last_event_id.filter(|id| !id.is_empty()).or(since) {
            None => Since::Now,
            Some(text) => id::parse(text).map_or(Since::Unreadable, Since::After),
        };
        Ok(Self { topics: topics.into_iter().collect(), since })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::position::Position;

    fn parse(query: &[(&str, &str)], header: Option<&str>) -> Result<Subscription, Error> {
        let query: Vec<_> = query.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Subscription::parse(&query, header)
    }

    fn after(events: u64) -> Since {
        Since::After(Position { events, ..Position::default() })
    }

    #[test]
    fn topics_are_each_once_whatever_else_is_asked() {
        let query = [("topic", "queue"), ("x", "y"), ("topic", "builds"), ("topic", "queue")];
        let topics: Vec<_> = parse(&query, None).unwrap().topics.iter().map(ToString::to_string).collect();
        assert_eq!(topics, ["builds", "queue"]);
    }

    #[test]
    fn the_header_wins_over_the_url() {
        for (since, header, expected) in [
            (None, None, Since::Now),
            (Some("5"), None, after(5)),
            (Some("5"), Some("9"), after(9)),
            (Some("5"), Some(""), after(5)),
            (Some("x"), None, Since::Unreadable),
            (Some("5"), Some("x"), Since::Unreadable),
            (Some(""), None, Since::Unreadable),
        ] {
            let mut query = vec![("topic", "queue")];
            query.extend(since.map(|since| ("since", since)));
            assert_eq!(parse(&query, header).unwrap().since, expected, "{since:?} {header:?}");
        }
    }

    #[test]
    fn bad_topics_are_named() {
        assert_eq!(parse(&[], None), Err(Error::NoTopic));
        let error = parse(&[("topic", "queue"), ("topic", "job.x")], None).unwrap_err();
        assert!(error.to_string().contains("job.x"), "{error}");
        let many: Vec<_> = (1..=51).map(|job| ("topic".to_owned(), format!("job.{job}"))).collect();
        assert!(Subscription::parse(&many[..50], None).is_ok());
        assert_eq!(Subscription::parse(&many, None), Err(Error::TooManyTopics));
    }
}
