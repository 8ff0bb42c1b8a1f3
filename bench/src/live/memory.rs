//! What a viewer costs in user space: while nothing happens, and after traffic.
//!
//! What a server needs once, however many follow, is no viewer's: the first quarter of them is there when the measuring
//! begins. What traffic leaves behind is counted for all of them.

use super::{
    crowd::{Crowd, Plan},
    servers::{Kind, Server, ours},
};
use crate::statistics::{count, hundredths, median};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;

const BROADCASTS: u64 = 200;
const OPEN_TIMEOUT: Duration = Duration::from_mins(2);
const ARRIVE_TIMEOUT: Duration = Duration::from_mins(2);

const WEBSOCKET: &str = "ws";
/// Who is measured, and how its fields are called.
const WHO: [(Kind, &str); 4] =
    [(Kind::Ours, "sse"), (Kind::Ours, WEBSOCKET), (Kind::Nchan, "nchan"), (Kind::Axum, "axum")];

/// Bytes of each connection.
struct Each {
    idle: f64,
    after_traffic: f64,
}

pub(super) async fn measure(viewers: usize, runs: usize) -> Result<Value> {
    let mut fields = json!({ "memory_connections": viewers });
    for (kind, prefix) in WHO {
        let mut all = Vec::new();
        for _ in 0..runs {
            let each = one(kind, prefix == WEBSOCKET, viewers).await?;
            println!(
                "  {kind}, {prefix}: {:.1} bytes for an idle connection, {:.1} after {BROADCASTS} broadcasts",
                each.idle, each.after_traffic
            );
            all.push(each);
        }
        let of = |field: fn(&Each) -> f64| hundredths(median(all.iter().map(field).collect()));
        fields[format!("{prefix}_bytes_per_connection")] = of(|each| each.idle).into();
        fields[format!("{prefix}_bytes_after_traffic")] = of(|each| each.after_traffic).into();
    }
    Ok(fields)
}

async fn one(kind: Kind, websocket: bool, viewers: usize) -> Result<Each> {
    let server = Server::start(kind).await?;
    let (path, subscribe) =
        if websocket { (ours::WEBSOCKET_PATH, ours::SUBSCRIBE) } else { (server.path(), "") };
    let (path, subscribe, servers) = (path.to_owned(), subscribe.to_owned(), vec![server.address()?]);
    let plan = Plan { servers, path, subscribe, topics: 1, viewers, processes: 1, apart: false };
    let mut crowd = Crowd::start(&plan)?;
    let nobody = server.pss().await?;
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
    println!("    {:.2} MB before the first, {:.2} more with {few}", nobody / 1e6, (with_few - nobody) / 1e6);
    let idle = (with_all - with_few) / count(viewers - few);
    Ok(Each { idle, after_traffic: idle + (after - with_all) / count(viewers) })
}
