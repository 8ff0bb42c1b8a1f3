//! What a viewer costs in user space: while nothing happens, and after traffic.
//!
//! What a server needs once, however many follow, is no viewer's: the first quarter of them is there when the measuring
//! begins. What traffic leaves behind is counted for all of them.

use super::{
    crowd::{Crowd, Plan},
    servers::{Kind, Server},
};
use crate::statistics::{count, hundredths, median};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;

const BROADCASTS: u64 = 200;
const OPEN_TIMEOUT: Duration = Duration::from_mins(2);
const ARRIVE_TIMEOUT: Duration = Duration::from_mins(2);

/// Bytes of each connection.
struct Each {
    idle: f64,
    after_traffic: f64,
}

pub(super) async fn measure(viewers: usize, runs: usize) -> Result<Value> {
    let mut fields = json!({ "memory_connections": viewers, "ws_bytes_per_connection": null });
    for kind in [Kind::Ours, Kind::Nchan, Kind::Axum] {
        let mut all = Vec::new();
        for _ in 0..runs {
            let each = one(kind, viewers).await?;
            println!(
                "  {kind}: {:.1} bytes for an idle connection, {:.1} after {BROADCASTS} broadcasts",
                each.idle, each.after_traffic
            );
            all.push(each);
        }
        let of = |field: fn(&Each) -> f64| hundredths(median(all.iter().map(field).collect()));
        let prefix = if kind == Kind::Ours { "sse".to_owned() } else { kind.to_string() };
        fields[format!("{prefix}_bytes_per_connection")] = of(|each| each.idle).into();
        fields[format!("{prefix}_bytes_after_traffic")] = of(|each| each.after_traffic).into();
    }
    Ok(fields)
}

async fn one(kind: Kind, viewers: usize) -> Result<Each> {
    let server = Server::start(kind).await?;
    let path = server.path().to_owned();
    let servers = vec![server.address()?];
    let mut crowd = Crowd::start(&Plan { servers, path, topics: 1, viewers, processes: 1, apart: false })?;
    let few = viewers / 4;
    crowd.open(few, OPEN_TIMEOUT).await?;
    let with_few = server.pss().await?;
    crowd.open(viewers, OPEN_TIMEOUT).await?;
    let with_all = server.pss().await?;
    let mut publisher = server.publisher().await?;
    let mut last = 0;
    for _ in 0..BROADCASTS {
        last = publisher.send().await?;
        // One at a time: each is a write of its own.
        crowd.wait("a broadcast did not arrive", ARRIVE_TIMEOUT, |report| report.lowest >= last).await?;
    }
    publisher.flush().await?;
    let report = crowd.report().await?;
    ensure!(report.missed + report.repeated == 0, "events were missed: {}", super::crowd::brief(&report));
    let after = server.pss().await?;
    ensure!(last == BROADCASTS && report.cuts == 0, "connections were cut");
    crowd.stop().await?;
    server.stop().await?;
    let idle = (with_all - with_few) / count(viewers - few);
    Ok(Each { idle, after_traffic: idle + (after - with_all) / count(viewers) })
}
