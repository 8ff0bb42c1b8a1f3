//! How busy this machine is, for heartbeats.

use cratemill_protocol::builder::Load;
use std::{fs, path::Path};

/// What can be found out; the rest is 0.
pub(crate) fn measure(work_dir: &Path) -> Load {
    Load {
        load1: load1().unwrap_or(0.0),
        free_memory_bytes: free_memory().unwrap_or(0),
        free_disk_bytes: free_disk(work_dir).unwrap_or(0),
    }
}

/// In bytes, on the disk that `folder` is on.
pub(crate) fn free_disk(folder: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(folder).ok()?;
    Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Whether one more job may start: as much again as jobs must leave free, or the job would be killed before it has
/// written much. A disk that says nothing of itself stops nobody.
pub(crate) fn has_room(folder: &Path, reserve_bytes: u64) -> bool {
    free_disk(folder).is_none_or(|free| free >= reserve_bytes.saturating_mul(2))
}

fn load1() -> Option<f32> {
    fs::read_to_string("/proc/loadavg").ok()?.split_ascii_whitespace().next()?.parse().ok()
}

fn free_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}
