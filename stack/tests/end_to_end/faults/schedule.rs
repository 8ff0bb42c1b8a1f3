//! What breaks when, and when it is back: made from a seed alone, so that a run can be replayed.

use super::plan::Plan;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use std::{collections::BTreeMap, fmt, ops::RangeInclusive, time::Duration};

/// What happens to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    // Killed with SIGKILL, and started again.
    Api,
    Live,
    Dispatcher,
    Counter,
    Builder,
    LoadBalancer,
    Postgres,
    NatsServer,
    /// The NATS server that leads the stream of work.
    WorkLeader,
    /// The NATS server that leads the stream of logs.
    LogsLeader,
    // Not there for a while.
    PostgresAway,
    ObjectStoreAway,
    /// All NATS servers.
    BusAway,
    /// One builder's link is cut, and no connection hears of it.
    NetworkCut,
}

/// How many there are of each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    pub(super) api: usize,
    pub(super) live: usize,
    pub(super) dispatchers: usize,
    pub(super) counters: usize,
    pub(super) builders: usize,
    pub(super) nats: usize,
    /// Whether a builder has a network that can be cut.
    pub(super) network: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) at: Duration,
    pub(super) kind: Kind,
    /// Which one, where there are several.
    pub(super) number: usize,
    pub(super) lasts: Duration,
}

impl Fault {
    pub(super) fn end(&self) -> Duration {
        self.at + self.lasts
    }

    /// From when on the same thing may break again.
    fn free(&self, plan: &Plan) -> Duration {
        let settle = if self.thing().0 == Kind::BusAway { plan.settle } else { Duration::ZERO };
        self.end() + settle
    }

    /// Faults of the same thing do not overlap.
    fn thing(&self) -> (Kind, usize) {
        match self.kind {
            Kind::NatsServer | Kind::WorkLeader | Kind::LogsLeader | Kind::BusAway => (Kind::BusAway, 0),
            Kind::Postgres | Kind::PostgresAway => (Kind::Postgres, 0),
            kind => (kind, self.number),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_secs_f32(), self.lasts.as_secs_f32());
        write!(f, "{at:6.1} s: {:?} {} for {lasts:.1} s", self.kind, self.number)
    }
}

impl Kind {
    const ALL: [Self; 14] = [
        Self::Api,
        Self::Live,
        Self::Dispatcher,
        Self::Counter,
        Self::Builder,
        Self::LoadBalancer,
        Self::Postgres,
        Self::NatsServer,
        Self::WorkLeader,
        Self::LogsLeader,
        Self::PostgresAway,
        Self::ObjectStoreAway,
        Self::BusAway,
        Self::NetworkCut,
    ];

    fn count(self, counts: &Counts) -> usize {
        match self {
            Self::Api => counts.api,
            Self::Live => counts.live,
            Self::Dispatcher => counts.dispatchers,
            Self::Counter => counts.counters,
            Self::Builder => counts.builders,
            Self::NatsServer => counts.nats,
            Self::NetworkCut => usize::from(counts.network),
            _ => 1,
        }
    }

    fn lasts(self, plan: &Plan) -> &RangeInclusive<Duration> {
        match self {
            Self::PostgresAway | Self::ObjectStoreAway | Self::BusAway | Self::NetworkCut => &plan.away,
            _ => &plan.restart,
        }
    }
}

/// The faults of a plan, in the order of their moments. No kind comes again before each has come.
pub(super) fn schedule(plan: &Plan, counts: &Counts) -> Vec<Fault> {
    let mut random = StdRng::seed_from_u64(plan.seed);
    let mut free: BTreeMap<(Kind, usize), Duration> = BTreeMap::new();
    let mut deck = Vec::new();
    let mut faults = Vec::new();
    let step = plan.length / u32::try_from(plan.faults.max(1)).unwrap_or(u32::MAX);
    for slot in (0..).take(plan.faults) {
        if deck.is_empty() {
            deck.extend(Kind::ALL.into_iter().filter(|kind| kind.count(counts) > 0));
            deck.shuffle(&mut random);
        }
        let Some(kind) = deck.pop() else { break };
        let mut fault = Fault {
            at: step * slot + step.mul_f64(random.random_range(0.0..1.0)),
            kind,
            number: random.random_range(0..kind.count(counts)),
            lasts: random.random_range(kind.lasts(plan).clone()),
        };
        let free = free.entry(fault.thing()).or_default();
        fault.at = fault.at.max(*free);
        *free = fault.free(plan);
        faults.push(fault);
    }
    faults.sort_by_key(|fault| fault.at);
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(network: bool) -> Counts {
        Counts { api: 3, live: 2, dispatchers: 2, counters: 2, builders: 3, nats: 3, network }
    }

    proptest! {
        #[test]
        fn a_seed_makes_one_schedule_in_which_nothing_breaks_twice_at_once(
            seed in any::<u64>(), count in 0_usize..100, network in any::<bool>()
        ) {
            let plan = Plan { faults: count, ..Plan::short(seed) };
            let counts = counts(network);
            let faults = schedule(&plan, &counts);
            prop_assert_eq!(&faults, &schedule(&plan, &counts));
            prop_assert_eq!(faults.len(), count);
            prop_assert!(faults.is_sorted_by_key(|fault| fault.at));
            for (position, fault) in faults.iter().enumerate() {
                prop_assert!(fault.number < fault.kind.count(&counts));
                prop_assert!(fault.kind.lasts(&plan).contains(&fault.lasts));
                for later in &faults[position + 1..] {
                    prop_assert!(fault.thing() != later.thing() || fault.free(&plan) <= later.at, "{} {}", fault, later);
                }
            }
        }

        #[test]
        fn each_kind_comes_before_one_comes_again(seed in any::<u64>()) {
            let plan = Plan { faults: Kind::ALL.len(), ..Plan::short(seed) };
            let mut kinds: Vec<_> = schedule(&plan, &counts(true)).iter().map(|fault| fault.kind).collect();
            kinds.sort_unstable();
            prop_assert_eq!(kinds, Kind::ALL);
        }
    }
}
