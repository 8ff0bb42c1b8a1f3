//! What is killed when, and when it is started again: made from a seed alone, so that a run can be repeated.
//!
//! Each thing has a line of faults of its own, as long as somebody downloads, so that several are away at once now and then.

use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{ops::RangeInclusive, time::Duration};

/// How long what was killed stays away.
const AWAY_MS: RangeInclusive<u64> = 500..=3_000;
/// How long a service of several lives until it is killed again.
const SERVICE_MS: RangeInclusive<u64> = 3_000..=15_000;
/// Postgres, and one of the bus's servers after all of them are whole: each outage is to be followed by a time without.
const SERVER_MS: RangeInclusive<u64> = 10_000..=30_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thing {
    Api(usize),
    Counter(usize),
    /// One of three servers.
    Nats,
    Postgres,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    /// Since the one before was over.
    pub(super) after: Duration,
    pub(super) away: Duration,
    /// Of the servers of the bus.
    pub(super) victim: Victim,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    /// Who leads the stream of downloads.
    Leader,
    /// Whoever has this number.
    Number(usize),
}

impl Thing {
    /// No two have the same.
    fn line(self) -> usize {
        match self {
            Self::Nats => 0,
            Self::Postgres => 1,
            Self::Api(number) => 2 + 2 * number,
            Self::Counter(number) => 3 + 2 * number,
        }
    }
}

/// Without an end.
pub(super) fn faults(seed: u64, thing: Thing, servers: usize) -> impl Iterator<Item = Fault> {
    let mut seeds = StdRng::seed_from_u64(seed);
    let mut seeds = std::iter::repeat_with(move || seeds.random());
    let mut random = StdRng::seed_from_u64(seeds.nth(thing.line()).unwrap_or(seed));
    let between = match thing {
        Thing::Api(_) | Thing::Counter(_) => SERVICE_MS,
        Thing::Nats | Thing::Postgres => SERVER_MS,
    };
    std::iter::repeat_with(move || Fault {
        after: Duration::from_millis(random.random_range(between.clone())),
        away: Duration::from_millis(random.random_range(AWAY_MS)),
        // The leader every other time: without it nothing is counted, without another one the bus is slower.
        victim: if random.random() {
            Victim::Leader
        } else {
            Victim::Number(random.random_range(0..servers.max(1)))
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const THINGS: [Thing; 7] = [
        Thing::Api(0),
        Thing::Api(1),
        Thing::Api(2),
        Thing::Counter(0),
        Thing::Counter(1),
        Thing::Nats,
        Thing::Postgres,
    ];

    fn first(seed: u64, thing: Thing) -> Vec<Fault> {
        faults(seed, thing, 3).take(200).collect()
    }

    #[test]
    fn a_seed_makes_one_schedule_and_each_thing_has_its_own() {
        for (position, thing) in THINGS.into_iter().enumerate() {
            assert_eq!(first(7, thing), first(7, thing));
            assert_ne!(first(7, thing), first(8, thing));
            for other in &THINGS[position + 1..] {
                assert_ne!(first(7, thing), first(7, *other), "{thing:?} {other:?}");
            }
        }
    }

    #[test]
    fn everything_comes_back_and_every_server_is_killed() {
        let faults = first(1, Thing::Nats);
        for fault in &faults {
            assert!(fault.away >= Duration::from_millis(500) && fault.away <= Duration::from_secs(3));
            assert!(fault.after >= Duration::from_secs(10));
        }
        for victim in [Victim::Leader, Victim::Number(0), Victim::Number(1), Victim::Number(2)] {
            assert!(faults.iter().any(|fault| fault.victim == victim), "{victim:?}");
        }
    }
}
