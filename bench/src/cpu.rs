//! CPU time of processes, as the kernel counts it: on a machine that others use too, it says more than a clock.

use anyhow::{Context, Result};
use std::{fs, time::Duration};

/// The kernel tells CPU time in hundredths of a second, on every architecture.
const TICK: Duration = Duration::from_millis(10);

/// Of the process and its children that live, and of those that have ended.
pub(crate) fn of_tree(pid: u32) -> Result<Duration> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let children = stats.filter_map(|stat| parent_and_cpu(&stat)).filter(|(parent, _)| *parent == pid);
    Ok(of(pid)? + children.map(|(_, cpu)| cpu).sum::<Duration>())
}

/// The processes that the process has started and that live.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |child: &u32| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok();
        stat.and_then(|stat| parent_and_cpu(&stat)).is_some_and(|(parent, _)| parent == pid)
    };
    pids.filter(is_child).collect()
}

/// Of the process and of its children that have ended.
pub(crate) fn of(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, cpu) = parent_and_cpu(&stat).with_context(|| format!("/proc/{pid}/stat is unreadable"))?;
    Ok(cpu)
}

/// The name in parentheses may hold anything, so fields are counted from behind it.
fn parent_and_cpu(stat: &str) -> Option<(u32, Duration)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let parent = fields.get(1)?.parse().ok()?;
    let ticks = fields.get(11..15)?.iter().map(|ticks| ticks.parse::<u32>().ok()).sum::<Option<u32>>()?;
    Some((parent, TICK * ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "7 (a) b (c) S 3 7 7 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 5 6 7";
        assert_eq!(parent_and_cpu(stat), Some((3, Duration::from_secs(1))));
        assert_eq!(parent_and_cpu("7 (x) S"), None);
    }
}
