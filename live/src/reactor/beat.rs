//! Signs of life for those who are promised them at intervals, whatever else they get, and a look at those who promise them.

use super::{run::Reactor, table::SlotId};
use crate::dialects::BEAT_S;
use std::time::{Duration, Instant};

/// Once a second each connection is looked at, in so many parts: all at once would hold up what is due to others.
const STEPS: usize = 10;
const STEP: Duration = Duration::from_millis(100);

impl Reactor {
    /// The next part. A connection's is the same each time, and so is its second among those of an interval, so that the
    /// first beat comes within one.
    pub(super) fn beat(&mut self) {
        self.next_beat = Instant::now() + STEP;
        let (part, second) = (self.beat % STEPS, self.beat / STEPS);
        for id in (part..self.table.len()).step_by(STEPS) {
            let is_due = (id / STEPS + second).is_multiple_of(BEAT_S);
            let Ok(id) = SlotId::try_from(id) else { break };
            let Some(slot) = self.table.get(id).filter(|slot| !slot.leaving) else { continue };
            if slot.dialect.is_guest() {
                self.look_after_guest(id);
            } else if is_due
                && !slot.owing
                && let Some(bytes) = slot.dialect.beat()
            {
                self.give(id, &bytes);
            }
        }
        self.beat = self.beat.wrapping_add(1);
    }
}
