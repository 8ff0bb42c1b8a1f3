//! How busy this machine is, for heartbeats.

use cratemill_protocol::builder::Load;
use std::{fs, path::Path};

/// What can be found out; the rest is 0.
pub(crate) fn measure(work_dir: &Path) -> Load {
    let free_disk_bytes = nix::sys::statvfs::statvfs(work_dir)
        .map_or(0, |stat| stat.blocks_available().saturating_mul(stat.fragment_size()));
    Load { load1: load1().unwrap_or(0.0), free_memory_bytes: free_memory().unwrap_or(0), free_disk_bytes }
}

fn load1() -> Option<f32> {
    fs::read_to_string("/proc/loadavg").ok()?.split_ascii_whitespace().next()?.parse().ok()
}

fn free_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}
