//! Which waiting builder gets which job: a pure decision over what a round sees.
//!
//! Jobs are served in their order. Each goes to a builder that can build it, has a slot left and got the fewest in
//! this round; among equals to the most specialised one, so that the versatile stay free for what only they can do,
//! and then to the one that waits longest.

use cratemill_protocol::Target;

#[derive(Debug, Clone)]
pub struct Builder<'a> {
    pub targets: &'a [String],
    pub slots: usize,
}

/// Pairs of positions: (job, builder). `builders` are in the order in which they came, `jobs` best first.
pub fn pairs(builders: &[Builder<'_>], jobs: &[&Target]) -> Vec<(usize, usize)> {
    let mut given = vec![0_usize; builders.len()];
    let mut pairs = Vec::new();
    for (job, target) in jobs.iter().enumerate() {
        let best = builders
            .iter()
            .enumerate()
            .filter(|(b, builder)| given[*b] < builder.slots && can_build(builder, target))
            .min_by_key(|(b, builder)| (given[*b], builder.targets.len(), *b));
        if let Some((builder, _)) = best {
            given[builder] += 1;
            pairs.push((job, builder));
        }
    }
    pairs
}

fn can_build(builder: &Builder<'_>, target: &Target) -> bool {
    target.is_any() || builder.targets.iter().any(|offered| **offered == **target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAMES: [&str; 4] = ["any", "linux", "mac", "arm"];

    fn target(name: &str) -> Target {
        Target::parse(name).unwrap()
    }

    fn run(builders: &[(&[&str], usize)], jobs: &[&str]) -> Vec<(usize, usize)> {
        let offered: Vec<Vec<String>> =
            builders.iter().map(|(targets, _)| targets.iter().map(|t| (*t).to_owned()).collect()).collect();
        let builders: Vec<_> = offered
            .iter()
            .zip(builders)
            .map(|(targets, (_, slots))| Builder { targets, slots: *slots })
            .collect();
        let targets: Vec<_> = jobs.iter().map(|job| target(job)).collect();
        pairs(&builders, &targets.iter().collect::<Vec<_>>())
    }

    #[test]
    fn table() {
        // Nobody waits, or nothing is to do.
        assert_eq!(run(&[], &["any"]), []);
        assert_eq!(run(&[(&["linux"], 2)], &[]), []);
        // Only what a builder can build; `any` goes anywhere.
        assert_eq!(run(&[(&["linux"], 2)], &["mac", "any", "linux"]), [(1, 0), (2, 0)]);
        // No more than its slots, the best first.
        assert_eq!(run(&[(&["linux"], 1)], &["linux", "linux"]), [(0, 0)]);
        // Spread over builders.
        assert_eq!(
            run(&[(&["linux"], 2), (&["linux"], 2)], &["linux", "linux", "linux"]),
            [(0, 0), (1, 1), (2, 0)]
        );
        // The versatile one stays free.
        assert_eq!(run(&[(&["linux", "mac"], 1), (&["linux"], 1)], &["linux", "mac"]), [(0, 1), (1, 0)]);
    }

    proptest! {
        #[test]
        fn every_pair_is_allowed_and_none_is_left_out(
            builders in prop::collection::vec((prop::collection::vec(1_usize..4, 0..3), 0_usize..4), 0..6),
            jobs in prop::collection::vec(0_usize..4, 0..12),
        ) {
            let offered: Vec<Vec<String>> =
                builders.iter().map(|(t, _)| t.iter().map(|t| NAMES[*t].to_owned()).collect()).collect();
            let waiting: Vec<_> =
                offered.iter().zip(&builders).map(|(targets, (_, slots))| Builder { targets, slots: *slots }).collect();
            let targets: Vec<_> = jobs.iter().map(|job| target(NAMES[*job])).collect();
            let pairs = pairs(&waiting, &targets.iter().collect::<Vec<_>>());

            let mut given = vec![0; waiting.len()];
            for (job, builder) in &pairs {
                given[*builder] += 1;
                prop_assert!(can_build(&waiting[*builder], &targets[*job]));
            }
            for (builder, given) in waiting.iter().zip(&given) {
                prop_assert!(*given <= builder.slots);
            }
            // Each job once, in order, and one that got no builder could have got none.
            prop_assert!(pairs.windows(2).all(|two| two[0].0 < two[1].0));
            for (job, target) in targets.iter().enumerate() {
                if !pairs.iter().any(|pair| pair.0 == job) {
                    let free = waiting.iter().zip(&given).any(|(b, given)| *given < b.slots && can_build(b, target));
                    prop_assert!(!free, "job {job} could have been built");
                }
            }
        }
    }
}
