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

/// Counts a viewer for as long as it is kept.
#[derive(Debug)]
pub struct Viewing(());

impl Viewing {
    pub fn start() -> Self {
        gauge!(VIEWERS).increment(1.0);
        Self(())
    }
}

impl Drop for Viewing {
    fn drop(&mut self) {
        gauge!(VIEWERS).decrement(1.0);
    }
}

/// Frames handed to viewers' sockets.
pub fn frames(count: u64) {
    counter!(FRAMES).increment(count);
}

/// A viewer reads what it missed; `from` is events, logs or archive.
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

/// A message on the bus that this program cannot decode.
pub fn unreadable() {
    counter!(UNREADABLE).increment(1);
}
