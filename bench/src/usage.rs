//! Where the time of a cluster goes: CPU of each kind of process, for each job or download.

use crate::{
    cpu,
    statistics::{each_us, hundredths, median},
};
use anyhow::{Context, Result};
use cratemill_stack::Cluster;
use serde_json::Value;
use std::{collections::BTreeMap, process, time::Duration};

/// This process: whoever makes the work.
const LOAD: &str = "load";

/// CPU time since the processes began, by kind.
#[derive(Debug, Clone)]
pub(crate) struct Usage(BTreeMap<String, Duration>);

/// CPU time for each thing that was done, by kind, in microseconds.
#[derive(Debug, Clone)]
pub(crate) struct Each(BTreeMap<String, f64>);

impl Usage {
    pub(crate) fn read(cluster: &Cluster) -> Result<Self> {
        let postgres = cluster.postgres.process().context("Postgres is not running")?.pid();
        let mut kinds = BTreeMap::from([(LOAD.to_owned(), cpu::of(process::id())?)]);
        for process in cluster.processes() {
            // A session of Postgres is a process of its own.
            let used = match process.pid() {
                pid if pid == postgres => cpu::of_tree(pid)?,
                pid => cpu::of(pid)?,
            };
            *kinds.entry(kind(process.name()).to_owned()).or_default() += used;
        }
        Ok(Self(kinds))
    }

    pub(crate) fn since(&self, before: &Self, things: usize) -> Each {
        let each = |(kind, used): (&String, &Duration)| {
            let used = used.saturating_sub(before.0.get(kind).copied().unwrap_or_default());
            (kind.clone(), each_us(used, things))
        };
        Each(self.0.iter().map(each).collect())
    }
}

impl Each {
    /// Of each kind the median.
    pub(crate) fn medians(runs: &[&Self]) -> Self {
        let kinds = runs.first().map(|run| run.0.keys()).into_iter().flatten();
        let median = |kind: &String| median(runs.iter().filter_map(|run| run.0.get(kind).copied()).collect());
        Self(kinds.map(|kind| (kind.clone(), median(kind))).collect())
    }

    /// Of a kind, or 0 where there is none.
    pub(crate) fn us(&self, kind: &str) -> f64 {
        self.0.get(kind).copied().unwrap_or_default()
    }

    pub(crate) fn json(&self) -> Value {
        self.0.iter().map(|(kind, us)| (kind.clone(), Value::from(hundredths(*us)))).collect()
    }
}

/// `api` of `api-2`.
fn kind(name: &str) -> &str {
    name.trim_end_matches(|of: char| of.is_ascii_digit()).trim_end_matches('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_a_kind_count_together() {
        assert_eq!(["api-1", "api-12", "postgres"].map(kind), ["api", "api", "postgres"]);
    }

    #[test]
    fn the_median_is_of_each_kind() {
        let run = |us| Each(BTreeMap::from([("api".to_owned(), us)]));
        let runs = [run(3.0), run(1.0), run(2.0)];
        assert_eq!(Each::medians(&runs.iter().collect::<Vec<_>>()).json()["api"], 2.0);
    }
}
