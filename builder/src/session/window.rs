//! The events of one attempt that the server has not acknowledged, numbered from 1 without gaps.
//!
//! Pure: what is sent, sent again after a reconnect, and forgotten once it is durable. The number of events it holds is
//! bounded by the credits of [`crate::events`], so a slow server holds the build's output back instead of filling memory.

use cratemill_protocol::builder::Event;
use std::collections::VecDeque;

#[derive(Debug)]
pub struct Window {
    events: VecDeque<Event>,
    /// The number of the first event in `events`.
    first: u64,
    /// How many from the front went out on this connection.
    sent: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("event {named} was named, the last one is {last}")]
pub struct NeverMade {
    pub named: u64,
    pub last: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self { events: VecDeque::new(), first: 1, sent: 0 }
    }
}

impl Window {
    pub fn push(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// The number of the first event that is not acknowledged.
    pub fn next_unacked(&self) -> u64 {
        self.first
    }

    /// The number of the attempt's last event so far; 0 before the first.
    pub fn last_seq(&self) -> u64 {
        self.first + self.events.len() as u64 - 1
    }

    /// Everything up to `seq` is durable: forgets it and says how many events that were. A repeated ack is 0.
    pub fn ack(&mut self, seq: u64) -> Result<usize, NeverMade> {
        let last = self.last_seq();
        if seq > last {
            return Err(NeverMade { named: seq, last });
        }
        let count = usize::try_from((seq + 1).saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.events.drain(..count);
        self.first += count as u64;
        self.sent = self.sent.saturating_sub(count);
        Ok(count)
    }

    /// Nothing counts as sent any more: the connection is gone.
    pub fn rewind(&mut self) {
        self.sent = 0;
    }

    /// The next event to send, if fewer than `max_in_flight` wait for their ack.
    pub fn take_next(&mut self, max_in_flight: usize) -> Option<(u64, Event)> {
        if self.sent >= max_in_flight.max(1) {
            return None;
        }
        let event = self.events.get(self.sent)?.clone();
        let seq = self.first + self.sent as u64;
        self.sent += 1;
        Some((seq, event))
    }

    pub fn can_send(&self, max_in_flight: usize) -> bool {
        self.sent < self.events.len() && self.sent < max_in_flight.max(1)
    }
}
