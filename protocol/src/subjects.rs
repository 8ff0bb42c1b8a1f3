//! Every NATS subject and stream name, spelled once.
//!
//! ```text
//! build.request.<node>        builders wait for jobs          stream BUILD (work queue)
//! build.outcome.<node>        how attempts ended              stream BUILD (work queue)
//! node.<node> | node.all      to API nodes                    core NATS, repaired by leases
//! log.<job>.<attempt>         numbered log events             stream LOGS      republished to live.log...
//! event.job.<crate>.<job>     domain events                   stream EVENTS    republished to live.event...
//! event.version.<crate>.<version>
//! event.builder.<builder>
//! event.queue
//! topic.<name>                user topics                     stream TOPICS    republished to live.topic...
//! timeline.event              published events of the
//!                             event API                       stream TIMELINE  republished to live.timeline...
//! pubsub.<subscription>       publications over CBOR          stream PUBSUB    heads republished to live.pubsub...
//! session                     a session is taken over         core NATS request, to live nodes
//! schedule                    something is due earlier        core NATS, a hint to who schedules
//! registry.refresh            look at one crate now           core NATS request, queue group of dispatchers
//! download.<node>             download batches                stream DOWNLOADS (work queue)
//! ```

use crate::{Attempt, BuilderId, CrateName, JobId, SubscriptionId, VersionId};

pub const BUILD_STREAM: &str = "BUILD";
pub const LOGS_STREAM: &str = "LOGS";
pub const EVENTS_STREAM: &str = "EVENTS";
pub const TOPICS_STREAM: &str = "TOPICS";
pub const TIMELINE_STREAM: &str = "TIMELINE";
pub const PUBSUB_STREAM: &str = "PUBSUB";
pub const DOWNLOADS_STREAM: &str = "DOWNLOADS";

pub const BUILD_ALL: &str = "build.>";
pub const BUILD_REQUESTS: &str = "build.request.*";
pub const BUILD_OUTCOMES: &str = "build.outcome.*";
pub const LOGS_ALL: &str = "log.>";
pub const EVENTS_ALL: &str = "event.>";
/// A user topic's subject is its text.
pub const TOPICS_ALL: &str = "topic.>";
pub const TIMELINE_ALL: &str = "timeline.>";
pub const PUBSUB_ALL: &str = "pubsub.>";
pub const DOWNLOADS_ALL: &str = "download.>";

/// Durable consumers of the work queues; every process of a kind shares one.
pub const REQUESTS_CONSUMER: &str = "dispatcher-requests";
pub const OUTCOMES_CONSUMER: &str = "dispatcher-outcomes";
pub const DOWNLOADS_CONSUMER: &str = "counter";

/// What a stream stored is sent again under this prefix, with its sequence in a header.
pub const LIVE_PREFIX: &str = "live.";
pub const LIVE_ALL: &str = "live.>";

/// `node` is a name that [`is_node_name`] accepts.
pub fn build_request(node: &str) -> String {
    format!("build.request.{node}")
}

/// `node` is a name that [`is_node_name`] accepts.
pub fn build_outcome(node: &str) -> String {
    format!("build.outcome.{node}")
}

/// `node` is a name that [`is_node_name`] accepts.
pub fn node(node: &str) -> String {
    format!("node.{node}")
}

pub const ALL_NODES: &str = "node.all";

pub fn log(job: JobId, attempt: Attempt) -> String {
    format!("log.{job}.{attempt}")
}

/// The logs of all attempts of a job.
pub fn log_of_job(job: JobId) -> String {
    format!("log.{job}.*")
}

pub fn job_event(krate: &CrateName, job: JobId) -> String {
    format!("event.job.{krate}.{job}")
}

pub fn version_event(krate: &CrateName, version: VersionId) -> String {
    format!("event.version.{krate}.{version}")
}

pub fn builder_event(builder: BuilderId) -> String {
    format!("event.builder.{builder}")
}

pub const QUEUE_EVENT: &str = "event.queue";

/// A hint to the dispatchers, without content: the outbox has something. Whoever misses it looks a second later.
pub const OUTBOX: &str = "outbox";

/// What is published to a subscription.
pub fn publications(subscription: SubscriptionId) -> String {
    format!("pubsub.{subscription}")
}

/// To all live nodes: whoever has this session lets go of it.
pub const SESSION: &str = "session";

/// All events of the event API: everybody gets all of them, in one order.
pub const TIMELINE_EVENT: &str = "timeline.event";

/// A hint to who schedules: something is due at these Unix seconds, in decimal. Whoever misses it looks soon anyway.
pub const SCHEDULE: &str = "schedule";

pub const REGISTRY_REFRESH: &str = "registry.refresh";
/// The queue group of whoever answers requests for dispatchers.
pub const DISPATCHERS_GROUP: &str = "dispatchers";

pub fn download(node: &str) -> String {
    format!("download.{node}")
}

/// Whether a name can stand as one token of a subject.
pub fn is_node_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name != "all"
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Whether `subject` falls under `filter`, with `*` for one token and a last `>` for one or more.
pub fn matches(filter: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    let mut filters = filter.split('.').peekable();
    while let Some(wanted) = filters.next() {
        if wanted == ">" && filters.peek().is_none() {
            return tokens.next().is_some();
        }
        match tokens.next() {
            Some(token) if wanted == "*" || wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_the_server_does() {
        for (filter, subject, expected) in [
            ("event.>", "event.queue", true),
            ("event.>", "event", false),
            ("event.job.*.7", "event.job.hexyl.7", true),
            ("event.job.*.7", "event.job.hexyl.17", false),
            ("event.*.hexyl.>", "event.version.hexyl.3", true),
            ("log.1.*", "log.1.2", true),
            ("log.1.*", "log.1.2.3", false),
            ("a.b", "a.b", true),
        ] {
            assert_eq!(matches(filter, subject), expected, "{filter} {subject}");
        }
    }
}
