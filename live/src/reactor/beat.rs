//! Signs of life for those who are promised them at intervals, whatever else they get, and a look at those who promise them.

use super::{run::Reactor, table::SlotId};
use std::time::{Duration, Instant};

/// Once a second each connection is looked at, in so many parts: all at once would hold up what is due to others.
const STEPS: usize = 10;
const STEP: Duration = Duration::from_millis(100);
/// What is later than this is left out.
const LATEST: Duration = Duration::from_secs(5);

impl Reactor {
    /// The next part. A connection's is the same each time, and so is its second among those of an interval, so that the
    /// first beat comes within one.
    pub(super) fn beat(&mut self) {
        // What is late does not make the next one late, unless the whole machine was away.
        let now = Instant::now();
        self.next_beat = (self.next_beat + STEP).max(now.checked_sub(LATEST).unwrap_or(now));
        let (part, second) = (self.beat % STEPS, self.beat / STEPS);
        for id in (part..self.table.len()).step_by(STEPS) {
            let Ok(id) = SlotId::try_from(id) else { break };
            let Some(slot) = self.table.get(id).filter(|slot| !slot.leaving) else { continue };
            if slot.dialect.is_guest() {
                self.look_after_guest(id);
                continue;
            }
            let (dialect, owing) = (slot.dialect, slot.owing);
            let place = id as usize / STEPS;
            if dialect.beat_s().is_none_or(|period| !(place + second).is_multiple_of(period)) {
                continue;
            }
            if dialect.is_listener() {
                self.beat_listener(id);
            } else if !owing {
                self.give(id, &dialect.beat());
            }
        }
        self.beat = self.beat.wrapping_add(1);
    }
}
