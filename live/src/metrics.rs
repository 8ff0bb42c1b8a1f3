//! The names of the gateway's metrics, in one place.

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
