//! What the load asks for: each download as one client sends it, in an order in which popular ones come often.

use crate::downloads::{clients::CLIENTS, connection::request, seed::Artifact, zipf::Zipf};
use anyhow::Result;
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Requests after which the order repeats.
const ORDER: usize = 1 << 16;
/// A part of an artifact, which is no download: the node redirects as it does otherwise, and counts nothing.
const PART: &str = "range: bytes=1-2\r\n";

pub(super) struct Corpus {
    counted: Vec<Vec<u8>>,
    uncounted: Vec<Vec<u8>>,
    order: Vec<usize>,
}

impl Corpus {
    pub(super) fn new(artifacts: &[Artifact]) -> Result<Self> {
        let requests = |more: &str| -> Vec<Vec<u8>> {
            let of = |artifact: &Artifact| CLIENTS.map(|client| request(&artifact.path, client.agent, more));
            artifacts.iter().flat_map(of).collect()
        };
        let (zipf, mut random) = (Zipf::new(u32::try_from(artifacts.len())?), StdRng::seed_from_u64(1));
        let mut next = || zipf.sample(&mut random) * CLIENTS.len() + random.random_range(0..CLIENTS.len());
        let order = (0..ORDER).map(|_| next()).collect();
        Ok(Self { counted: requests(""), uncounted: requests(PART), order })
    }

    /// The request at a place in the order.
    pub(super) fn get(&self, place: usize, counted: bool) -> &[u8] {
        let position = self.order[place % ORDER];
        if counted { &self.counted[position] } else { &self.uncounted[position] }
    }

    /// Where one of several connections begins, so that they do not ask for the same.
    pub(super) fn start(connection: usize) -> usize {
        connection * 257
    }
}
