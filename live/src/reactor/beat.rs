//! Signs of life for those who are promised them at intervals, whatever else they get.

use super::{run::Reactor, table::SlotId};
use crate::dialects::BEAT;
use std::time::Instant;

/// Parts of the interval, each for some of the connections: all at once would hold up what is due to others.
const STEPS: usize = 100;

impl Reactor {
    /// The next part. A connection's is the same each time, so that the first comes within an interval.
    pub(super) fn beat(&mut self) {
        self.next_beat = Instant::now() + BEAT / 100;
        for id in (self.beat..self.table.len()).step_by(STEPS) {
            let Ok(id) = SlotId::try_from(id) else { break };
            let Some(slot) = self.table.get(id).filter(|slot| !slot.owing && !slot.leaving) else { continue };
            if let Some(bytes) = slot.dialect.beat() {
                self.give(id, &bytes);
            }
        }
        self.beat = (self.beat + 1) % STEPS;
    }
}
