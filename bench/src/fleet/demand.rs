//! How many jobs a builder asks for, and when it says so again. Pure.

/// A job takes its slot until its outcome is acknowledged, so that a service that does not keep up is not flooded.
#[derive(Debug)]
pub(super) struct Demand {
    slots: u16,
    /// Jobs whose outcome is not acknowledged.
    busy: u16,
    /// What the service has left of what it was asked for; none before it was asked.
    asked: Option<u16>,
}

impl Demand {
    pub(super) fn new(slots: u16) -> Self {
        Self { slots, busy: 0, asked: None }
    }

    pub(super) fn assigned(&mut self, jobs: usize) {
        let jobs = u16::try_from(jobs).unwrap_or(u16::MAX);
        self.busy = self.busy.saturating_add(jobs);
        self.asked = self.asked.map(|asked| asked.saturating_sub(jobs));
    }

    pub(super) fn ended(&mut self, jobs: usize) {
        self.busy = self.busy.saturating_sub(u16::try_from(jobs).unwrap_or(u16::MAX));
    }

    /// What to ask for now. Not after every job: while the service has more than half of the slots to fill, no builder
    /// of it waits.
    pub(super) fn ask(&mut self) -> Option<u16> {
        let free = self.slots.saturating_sub(self.busy);
        let due = match self.asked {
            None => true,
            Some(asked) => asked <= self.slots / 2 && free > asked,
        };
        due.then(|| {
            self.asked = Some(free);
            free
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_asks_again_when_half_of_its_slots_are_taken_and_some_are_free() {
        let mut demand = Demand::new(4);
        assert_eq!(demand.ask(), Some(4));
        assert_eq!(demand.ask(), None);
        demand.assigned(1);
        demand.ended(1);
        assert_eq!(demand.ask(), None, "three are left to fill");
        demand.assigned(2);
        demand.ended(1);
        assert_eq!(demand.ask(), Some(3));
        demand.assigned(3);
        assert_eq!(demand.ask(), None, "all are busy");
        demand.ended(4);
        assert_eq!(demand.ask(), Some(4));
    }

    #[test]
    fn one_slot_is_asked_for_after_each_job() {
        let mut demand = Demand::new(1);
        for _ in 0..3 {
            assert_eq!(demand.ask(), Some(1));
            demand.assigned(1);
            assert_eq!(demand.ask(), None);
            demand.ended(1);
        }
    }
}
