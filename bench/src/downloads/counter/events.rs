//! Downloads that everybody counts here, ours and peers: popular artifacts often, each by some class of client, today.

use super::super::{clients::CLIENTS, seed::Artifact, zipf::Zipf};
use anyhow::Result;
use rand::{Rng, SeedableRng, rngs::StdRng};

/// After so many they repeat: more than there are rows, four times over.
const EVENTS: usize = 1 << 18;

/// One download.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Event {
    pub(super) artifact: i64,
    pub(super) class: &'static str,
}

pub(super) fn events(artifacts: &[Artifact]) -> Result<Vec<Event>> {
    let (zipf, mut random) = (Zipf::new(u32::try_from(artifacts.len())?), StdRng::seed_from_u64(1));
    let event = |_| Event {
        artifact: artifacts[zipf.sample(&mut random)].id.0,
        class: CLIENTS[random.random_range(0..CLIENTS.len())].class,
    };
    Ok((0..EVENTS).map(event).collect())
}
