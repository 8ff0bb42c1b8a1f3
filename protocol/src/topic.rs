//! Topics: what a viewer can follow, and which subjects feed it.

use crate::{CrateName, JobId, SubscriptionId, UserTopic, subjects, user_topic};
use std::{fmt, str::FromStr};

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// `job.<id>`: state and stages of one job.
    Job(JobId),
    /// `job.<id>.log`: the log of a job, attempt after attempt.
    JobLog(JobId),
    /// `crate.<name>`: versions and jobs of one crate.
    Crate(CrateName),
    /// `builds`: all jobs.
    Builds,
    /// `builders`: who comes and goes.
    Builders,
    /// `queue`: how long it is.
    Queue,
    /// `topic.<name>`: what people publish.
    User(UserTopic),
    /// What is published through the event API. It has no name: nobody asks for it in other words than that API's.
    Timeline,
    /// What is published to a subscription over CBOR. It has no name either.
    Publications(SubscriptionId),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "unknown topic {0:?}: expected job.<id>, job.<id>.log, crate.<name>, builds, builders, queue or topic.<name>"
    )]
    Unknown(String),
    #[error(transparent)]
    User(#[from] user_topic::Error),
}

impl Topic {
    /// The stream that stores it, and the subjects in it that feed it.
    pub fn source(&self) -> (&'static str, String) {
        match self {
            Self::Job(job) => (subjects::EVENTS_STREAM, format!("event.job.*.{job}")),
            Self::JobLog(job) => (subjects::LOGS_STREAM, subjects::log_of_job(*job)),
            Self::Crate(name) => (subjects::EVENTS_STREAM, format!("event.*.{name}.>")),
            Self::Builds => (subjects::EVENTS_STREAM, "event.job.>".into()),
            Self::Builders => (subjects::EVENTS_STREAM, "event.builder.>".into()),
            Self::Queue => (subjects::EVENTS_STREAM, subjects::QUEUE_EVENT.into()),
            Self::User(topic) => (subjects::TOPICS_STREAM, topic.to_string()),
            Self::Publications(id) => (subjects::PUBSUB_STREAM, subjects::publications(*id)),
            Self::Timeline => (subjects::TIMELINE_STREAM, subjects::TIMELINE_EVENT.into()),
        }
    }

    /// The topics that a message on `subject` is for: [`Topic::source`] the other way round.
    pub fn fed_by(subject: &str) -> Vec<Self> {
        let tokens: Vec<&str> = subject.split('.').collect();
        let krate = |name: &str| name.parse().map(Self::Crate).ok();
        let topics = match *tokens {
            ["log", job, _] => [job.parse().map(Self::JobLog).ok(), None, None],
            ["event", "job", name, job] => [job.parse().map(Self::Job).ok(), krate(name), Some(Self::Builds)],
            ["event", "version", name, _] => [krate(name), None, None],
            ["event", "builder", _] => [Some(Self::Builders), None, None],
            ["event", "queue"] => [Some(Self::Queue), None, None],
            ["topic", ..] => [subject.parse().map(Self::User).ok(), None, None],
            ["pubsub", id] => [id.parse().map(Self::Publications).ok(), None, None],
            ["timeline", "event"] => [Some(Self::Timeline), None, None],
            _ => [None, None, None],
        };
        topics.into_iter().flatten().collect()
    }
}

impl FromStr for Topic {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let error = || Error::Unknown(text.chars().take(80).collect());
        let job = |id: &str| id.parse().ok().filter(|id: &JobId| id.0 > 0).ok_or_else(error);
        match text.split_once('.') {
            None if text == "builds" => Ok(Self::Builds),
            None if text == "builders" => Ok(Self::Builders),
            None if text == "queue" => Ok(Self::Queue),
            Some(("crate", name)) => name.parse().map(Self::Crate).map_err(|_| error()),
            Some(("job", rest)) => match rest.strip_suffix(".log") {
                Some(id) => job(id).map(Self::JobLog),
                None => job(rest).map(Self::Job),
            },
            Some(("topic", _)) => Ok(Self::User(text.parse()?)),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(job) => write!(f, "job.{job}"),
            Self::JobLog(job) => write!(f, "job.{job}.log"),
            Self::Crate(name) => write!(f, "crate.{name}"),
            Self::Builds => f.write_str("builds"),
            Self::Builders => f.write_str("builders"),
            Self::Queue => f.write_str("queue"),
            Self::User(topic) => topic.fmt(f),
            Self::Publications(id) => write!(f, "pubsub.{id}"),
            Self::Timeline => f.write_str("timeline"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_feeds_the_topics_whose_source_matches_it() {
        let names = [
            "job.7",
            "job.8",
            "job.7.log",
            "crate.hexyl",
            "crate.bat",
            "builds",
            "builders",
            "queue",
            "topic.a",
            "topic.a.b",
        ];
        let mut topics: Vec<Topic> = names.iter().map(|name| name.parse().unwrap()).collect();
        let subscription = "6d1f8a3e-7f0f-4b5a-9a3a-0d2f8c5b1e77".parse().unwrap();
        topics.extend([Topic::Timeline, Topic::Publications(subscription)]);
        for subject in [
            "log.7.1",
            "event.job.hexyl.7",
            "event.job.bat.8",
            "event.version.bat.3",
            "event.builder.1",
            "event.queue",
            "event.other",
            "topic.a",
            "topic.a.b",
            "topic.a.*",
            "timeline.event",
            "timeline.other",
            "pubsub.6d1f8a3e-7f0f-4b5a-9a3a-0d2f8c5b1e77",
            "pubsub.x",
            "download.a",
        ] {
            let mut expected: Vec<_> = topics
                .iter()
                .filter(|topic| subjects::matches(&topic.source().1, subject))
                .cloned()
                .collect();
            let mut fed = Topic::fed_by(subject);
            expected.sort();
            fed.sort();
            assert_eq!(fed, expected, "{subject}");
        }
    }

    #[test]
    fn topics_parse_back() {
        for text in [
            "job.7",
            "job.7.log",
            "crate.hexyl",
            "builds",
            "builders",
            "queue",
            "topic.a",
            "topic.private.b.c",
        ] {
            assert_eq!(text.parse::<Topic>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "job",
            "job.",
            "job.x",
            "job.0",
            "job.-1",
            "job.1.log.log",
            "crate.",
            "crate.a.b",
            "crate.*",
            "builds.x",
            "log.>",
            "topic",
            "topic.",
            "topic.*",
            "topic.a b",
            "timeline",
        ] {
            assert!(bad.parse::<Topic>().is_err(), "{bad}");
        }
    }
}
