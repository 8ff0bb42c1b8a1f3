//! Which of many things somebody asks for: the n-th most popular one 1/n as often as the first, as downloads of a registry go.

use rand::Rng;

/// The share of each and of all before it; the last is 1.
#[derive(Debug, Clone)]
pub(super) struct Zipf(Vec<f64>);

impl Zipf {
    /// Of at least one thing.
    pub(super) fn new(things: u32) -> Self {
        let mut sum = 0.0;
        let mut shares: Vec<f64> = (1..=things.max(1))
            .map(|rank| {
                sum += 1.0 / f64::from(rank);
                sum
            })
            .collect();
        for share in &mut shares {
            *share /= sum;
        }
        Self(shares)
    }

    /// A position, from 0.
    pub(super) fn sample(&self, random: &mut impl Rng) -> usize {
        let at: f64 = random.random();
        self.0.partition_point(|share| *share <= at).min(self.0.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng};

    #[test]
    fn the_second_is_asked_for_half_as_often_and_none_never() {
        let (zipf, mut random) = (Zipf::new(100), StdRng::seed_from_u64(1));
        let mut counts = [0_u32; 100];
        for _ in 0..100_000 {
            counts[zipf.sample(&mut random)] += 1;
        }
        let ratio = f64::from(counts[0]) / f64::from(counts[1]);
        assert!((1.9..2.1).contains(&ratio), "{ratio}");
        assert!(counts.iter().all(|count| *count > 0));
        assert_eq!(Zipf::new(0).sample(&mut random), 0);
    }
}
