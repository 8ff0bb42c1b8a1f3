//! How long and how hard a run is: one bounded for every test run, one for a person who has an hour.

use std::{env, ops::RangeInclusive, str::FromStr, time::Duration};

/// The numbers of a run of the random schedule, and of the tests of one thing being away.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Replays the schedule.
    pub(super) seed: u64,
    pub(super) jobs: usize,
    pub(super) faults: usize,
    /// Over which the faults are spread, and the jobs asked for.
    pub(super) length: Duration,
    /// How long a database, bus or object store, or a network, is away.
    pub(super) away: RangeInclusive<Duration>,
    /// A process that was killed is started again after this: its supervisor takes a moment.
    pub(super) restart: RangeInclusive<Duration>,
    /// After a fault of the bus, for its servers to choose who leads and to have everything again: two dying one right
    /// after the other are another fault, all of them being away.
    pub(super) settle: Duration,
    pub(super) heartbeat_s: u32,
    pub(super) lease_s: u32,
    /// The grace of a rescue after the database was away.
    pub(super) catch_up_s: u32,
    /// From the end of the last fault to the end of the last job.
    pub(super) patience: Duration,
}

/// Most of it is waiting: a lease, the grace of a rescue after an outage, and retries with their backoff.
const PATIENCE: Duration = Duration::from_mins(3);
const RESTART: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3);
/// Longer than a lease of those tests.
const SHORT_AWAY: Duration = Duration::from_secs(8);
const LONG_AWAY: Duration = Duration::from_secs(30);
const LONG_MINUTES: u64 = 10;
const LONG_JOBS: usize = 300;
/// A fault each so often in a long run: several are there at once now and then, and each kind comes every two minutes.
const LONG_STEP: Duration = Duration::from_secs(10);

impl Plan {
    /// As the environment wants it: `FAULTS_SEED`, `FAULTS_LONG`, and `FAULTS_JOBS` and `FAULTS_MINUTES` of a long run.
    pub(super) fn from_env() -> Self {
        let seed = variable("FAULTS_SEED").unwrap_or_else(rand::random);
        if !is_long() {
            return Self::short(seed);
        }
        let length = Duration::from_mins(variable("FAULTS_MINUTES").unwrap_or(LONG_MINUTES));
        Self::long(seed, variable("FAULTS_JOBS").unwrap_or(LONG_JOBS), length)
    }

    /// About a minute and a half on two busy cores.
    pub(super) fn short(seed: u64) -> Self {
        Self {
            seed,
            jobs: 60,
            faults: 10,
            length: Duration::from_secs(30),
            away: Duration::from_secs(5)..=Duration::from_secs(8),
            restart: RESTART,
            settle: Duration::from_secs(5),
            heartbeat_s: 2,
            lease_s: 20,
            catch_up_s: 5,
            patience: PATIENCE,
        }
    }

    /// With leases and heartbeats as they are by default.
    fn long(seed: u64, jobs: usize, length: Duration) -> Self {
        let faults = usize::try_from(length.as_secs() / LONG_STEP.as_secs()).unwrap_or(usize::MAX);
        Self {
            seed,
            jobs,
            faults,
            length,
            away: LONG_AWAY..=LONG_AWAY,
            restart: RESTART,
            settle: Duration::from_secs(10),
            heartbeat_s: 10,
            lease_s: 60,
            catch_up_s: 30,
            patience: 4 * PATIENCE,
        }
    }
}

/// How long a test takes one thing away.
pub(super) fn away() -> Duration {
    if is_long() { LONG_AWAY } else { SHORT_AWAY }
}

fn is_long() -> bool {
    variable::<u8>("FAULTS_LONG") == Some(1)
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number that it can be")))
}
