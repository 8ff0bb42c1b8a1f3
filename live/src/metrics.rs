//! The names of the gateway's metrics, in one place.

use crate::dialects::mastodon::Form;
use metrics::{counter, gauge};

const VIEWERS: &str = "cratemill_live_viewers";
const FRAMES: &str = "cratemill_live_frames_total";
const REPLAYS: &str = "cratemill_live_replays_total";
const REPAIRS: &str = "cratemill_live_repairs_total";
const OVERFLOWS: &str = "cratemill_live_queue_overflows_total";
const DROPPED: &str = "cratemill_live_viewers_dropped_total";
const REFUSED: &str = "cratemill_live_viewers_refused_total";
const UNREADABLE: &str = "cratemill_live_unreadable_messages_total";

const PUBLISHED: &str = "cratemill_live_published_total";
const NOT_PUBLISHED: &str = "cratemill_live_publishes_refused_total";

const EVENT_API_INSERTED: &str = "cratemill_live_event_api_inserted_total";
const EVENT_API_REFUSED: &str = "cratemill_live_event_api_refused_total";

/// Of Mastodon's streaming server, whose dashboards go on showing them.
const CONNECTED_CLIENTS: &str = "connected_clients";
const CONNECTED_CHANNELS: &str = "connected_channels";
const MESSAGES_SENT: &str = "messages_sent_total";
const REDIS_SUBSCRIPTIONS: &str = "redis_subscriptions";
const REDIS_MESSAGES: &str = "redis_messages_received_total";
const PG_TOTAL: &str = "pg_pool_total_connections";
const PG_IDLE: &str = "pg_pool_idle_connections";
const PG_WAITING: &str = "pg_pool_waiting_queries";
const MASTODON_OVERFLOWS: &str = "cratemill_live_mastodon_overflows_total";
const MASTODON_MALFORMED: &str = "cratemill_live_mastodon_malformed_messages_total";

/// Channels that each connection has beside those it asks for: of its token, and of its account.
const SYSTEM_CHANNELS: f64 = 2.0;

fn kind(form: Form) -> &'static str {
    match form {
        Form::Events => "eventsource",
        Form::Socket => "websocket",
    }
}

/// More listeners to Mastodon, or fewer.
pub fn mastodon_client(form: Form, change: f64) {
    gauge!(CONNECTED_CLIENTS, "type" => kind(form)).increment(change);
    mastodon_channel(form, "system", change * SYSTEM_CHANNELS);
}

pub fn mastodon_channel(form: Form, name: &'static str, change: f64) {
    gauge!(CONNECTED_CHANNELS, "type" => kind(form), "channel" => name).increment(change);
}

pub fn mastodon_sent(form: Form, count: u64) {
    if count > 0 {
        counter!(MESSAGES_SENT, "type" => kind(form)).increment(count);
    }
}

pub fn redis_subscriptions(change: f64) {
    gauge!(REDIS_SUBSCRIPTIONS).increment(change);
}

pub fn redis_message() {
    counter!(REDIS_MESSAGES).increment(1);
}

/// A message of Mastodon that cannot be read.
pub fn mastodon_malformed() {
    counter!(MASTODON_MALFORMED).increment(1);
}

/// A message that nobody gets: the node is too far behind.
pub fn mastodon_overflow() {
    counter!(MASTODON_OVERFLOWS).increment(1);
}

#[allow(clippy::cast_precision_loss, reason = "they are few")]
pub fn pg_pool(total: usize, idle: usize, waiting: usize) {
    gauge!(PG_TOTAL).set(total as f64);
    gauge!(PG_IDLE).set(idle as f64);
    gauge!(PG_WAITING).set(waiting as f64);
}

/// Events of the event API that are in the database.
pub fn event_api_inserted(count: usize) {
    counter!(EVENT_API_INSERTED).increment(count as u64);
}

/// A request to the event API ended with this status.
pub fn event_api_refused(status: u16) {
    counter!(EVENT_API_REFUSED, "status" => status.to_string()).increment(1);
}

/// More viewers, or fewer.
pub fn viewers(change: f64) {
    gauge!(VIEWERS).increment(change);
}

/// Frames handed to viewers' sockets.
pub fn frames(count: u64) {
    counter!(FRAMES).increment(count);
}

/// Somebody reads what was missed; `from` is events, logs, topics or archive, or shared where it is for several viewers.
pub fn replay(from: &'static str) {
    counter!(REPLAYS, "from" => from).increment(1);
}

/// The node reads what it missed itself.
pub fn repair(stream: &'static str) {
    counter!(REPAIRS, "stream" => stream).increment(1);
}

/// A viewer's queue was full: it is let go, or reads the stream once more if it was replaying.
pub fn overflow() {
    counter!(OVERFLOWS).increment(1);
}

/// A viewer was told to go.
pub fn dropped(reason: &'static str) {
    counter!(DROPPED, "reason" => reason).increment(1);
}

pub fn refused(reason: &'static str) {
    counter!(REFUSED, "reason" => reason).increment(1);
}

/// Somebody's message is on the bus; `duplicate` if it was before.
pub fn published(duplicate: bool) {
    counter!(PUBLISHED, "duplicate" => if duplicate { "true" } else { "false" }).increment(1);
}

/// Why a message was not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotPublished {
    Bad,
    Denied,
    Full,
    Bus,
}

pub fn not_published(reason: NotPublished) {
    let reason = match reason {
        NotPublished::Bad => "bad",
        NotPublished::Denied => "denied",
        NotPublished::Full => "full",
        NotPublished::Bus => "bus",
    };
    counter!(NOT_PUBLISHED, "reason" => reason).increment(1);
}

/// A message on the bus that this program cannot decode.
pub fn unreadable() {
    counter!(UNREADABLE).increment(1);
}
