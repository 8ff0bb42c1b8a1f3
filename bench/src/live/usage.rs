//! What processes and the kernel use, as the kernel tells it.

use crate::cpu;
use anyhow::{Context, Result, ensure};
use std::{fs, time::Duration};
use tokio::time::{Instant, sleep};

/// The kernel counts the buffers of sockets in pages.
const PAGE_BYTES: f64 = 4_096.0;
/// More than twice as long as our gateway waits before it takes a wave for over.
const STILL_FOR: Duration = Duration::from_secs(5);
/// What a server does beside may touch a few pages.
const STILL_BYTES: f64 = 65_536.0;
const SETTLE_TIMEOUT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(500);

/// Bytes of user space: of pages that others share, the part. Those of the program's file are not counted, which the kernel
/// keeps or drops as it likes, and which no connection has more of.
pub(crate) fn pss(pids: &[u32]) -> Result<f64> {
    let mut sum = 0.0;
    for pid in pids {
        for pid in tree(*pid) {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            sum += data(&rollup).with_context(|| format!("process {pid} tells no Pss"))?;
        }
    }
    Ok(sum)
}

fn data(rollup: &str) -> Option<f64> {
    Some(kib(rollup, "Pss:")? - kib(rollup, "Pss_File:")?)
}

/// Once it no longer changes: a server gives back what a wave of connections took some time after the wave.
pub(crate) async fn settled_pss(pids: &[u32]) -> Result<f64> {
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    let (mut last, mut since) = (pss(pids)?, Instant::now());
    while since.elapsed() < STILL_FOR {
        sleep(POLL).await;
        let now = pss(pids)?;
        if (now - last).abs() > STILL_BYTES {
            (last, since) = (now, Instant::now());
        }
        ensure!(Instant::now() < deadline, "memory does not settle within {SETTLE_TIMEOUT:?}");
    }
    Ok(last)
}

/// Of the processes and of their children.
pub(crate) fn cpu(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| cpu::of_tree(*pid)).sum()
}

/// Bytes of the kernel for both ends of each connection of this machine: its objects, and what waits in sockets.
pub(super) fn kernel() -> Result<f64> {
    let slab = kib(&fs::read_to_string("/proc/meminfo")?, "Slab:").context("/proc/meminfo has no Slab")?;
    let sockets = fs::read_to_string("/proc/net/sockstat")?;
    Ok(slab + socket_pages(&sockets).context("/proc/net/sockstat tells no memory")? * PAGE_BYTES)
}

/// A process and its children.
pub(super) fn tree(pid: u32) -> Vec<u32> {
    std::iter::once(pid).chain(cpu::children(pid)).collect()
}

/// A line such as `Pss:    1234 kB`, in bytes.
fn kib(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib * 1_024.0)
}

fn socket_pages(sockstat: &str) -> Option<f64> {
    let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = tcp.split_whitespace().skip_while(|word| *word != "mem");
    words.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells_is_in_bytes() {
        let rollup =
            "Rss:     99 kB\nPss:             12 kB\nPss_Dirty:   8 kB\nPss_Anon:   4 kB\nPss_File:  8 kB\n";
        assert!((data(rollup).unwrap() - 4_096.0).abs() < 0.5);
        assert!(kib(rollup, "Swap:").is_none());
        let sockets = "sockets: used 22\nTCP: inuse 3 orphan 0 tw 0 alloc 3 mem 289\nUDP: inuse 0 mem 1\n";
        assert!((socket_pages(sockets).unwrap() - 289.0).abs() < 0.5);
    }

    #[test]
    fn a_process_is_of_its_own_tree() {
        assert_eq!(tree(std::process::id())[0], std::process::id());
    }
}
