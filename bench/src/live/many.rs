//! 150,000 connections that are open at once on one machine, all of which get a broadcast.

use super::{
    crowd::{Crowd, MAX_EACH, Plan, brief},
    servers::ours::{Ours, QUEUE_PATH},
    usage,
};
use crate::statistics::{count, hundredths};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// As many viewers in each as a process has open files for.
const NODES: usize = 8;
const BROADCASTS: u64 = 5;
const OPEN_TIMEOUT: Duration = Duration::from_mins(5);
const ARRIVE_TIMEOUT: Duration = Duration::from_mins(2);

pub(super) async fn measure() -> Result<Value> {
    let ours = Ours::start(NODES).await?;
    let viewers = NODES * MAX_EACH;
    let plan = Plan {
        servers: ours.addresses()?,
        path: QUEUE_PATH.to_owned(),
        subscribe: String::new(),
        topics: 1,
        viewers,
        processes: NODES,
        apart: true,
    };
    let mut crowd = Crowd::start(&plan)?;
    let (idle, kernel) = (usage::settled_pss(&ours.pids()).await?, usage::kernel()?);
    let opened = crowd.open(viewers, OPEN_TIMEOUT).await?;
    let open = usage::settled_pss(&ours.pids()).await?;
    let kernel = usage::kernel()? - kernel;
    println!("  {viewers} connections are open after {:.1} s", opened.as_secs_f64());

    let mut publisher = ours.publisher(1);
    let started = Instant::now();
    for _ in 0..BROADCASTS {
        let number = publisher.send().await?;
        crowd.wait("a broadcast did not arrive", ARRIVE_TIMEOUT, |report| report.lowest >= number).await?;
    }
    let each = started.elapsed() / u32::try_from(BROADCASTS)?;
    publisher.flush().await?;
    let report = crowd.report().await?;
    let after = usage::settled_pss(&ours.pids()).await?;
    crowd.stop().await?;
    ours.stop().await?;
    let whole = report.cuts + report.missed + report.repeated == 0;
    ensure!(whole && report.following == viewers, "not all got everything: {}", brief(&report));

    let p99_ms = count(usize::try_from(report.delays.at(99))?) / 1e3;
    println!(
        "  nodes grow from {:.2} MB to {:.2} and after broadcasts {:.2} MB; the kernel has {:.0} bytes for both ends of each",
        idle / 1e6,
        open / 1e6,
        after / 1e6,
        kernel / count(viewers)
    );
    println!("  a broadcast is with everybody after {:.0} ms, p99 {p99_ms:.0} ms", each.as_secs_f64() * 1e3);
    Ok(json!({
        "connections_150k": viewers,
        "total_pss_150k": (after - idle).round(),
        "total_pss_idle_150k": (open - idle).round(),
        "total_pss_absolute_150k": after.round(),
        "open_s_150k": hundredths(opened.as_secs_f64()),
        "kernel_bytes_per_connection_150k": (kernel / count(viewers)).round(),
        "broadcast_ms_150k": hundredths(each.as_secs_f64() * 1e3),
        "broadcast_p99_ms_150k": p99_ms,
    }))
}
