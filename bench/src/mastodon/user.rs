//! Listeners to a user's own stream: nothing is filtered, and all get the same.

use super::{
    ORIGINAL_UNFILTERED, compared,
    farm::Farm,
    posts::{Publisher, update},
    tally::{Deliveries, QUIET, Tally, settle},
    viewers::Viewers,
};
use crate::{dialects::add, statistics::median};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

const MANY: usize = 16_000;
const MANY_PER_S: u64 = 5;
const FEW: usize = 1_000;
const FEW_PER_S: u64 = 400;
/// All listen to the stream of this account.
const ACCOUNT: usize = 1;
const LISTEN: Duration = Duration::from_mins(1);

pub(super) async fn measure(runs: usize, seconds: u64) -> Result<Value> {
    let many = one(MANY, MANY_PER_S, runs, seconds).await?;
    let few = one(FEW, FEW_PER_S, runs, seconds).await?;
    let mut fields = json!({ "user_listeners": MANY });
    add(&mut fields, compared("user_per_cpu_s_5", many, ORIGINAL_UNFILTERED));
    add(&mut fields, compared("user_per_cpu_s_400", few, ORIGINAL_UNFILTERED));
    Ok(fields)
}

async fn one(listeners: usize, per_s: u64, runs: usize, seconds: u64) -> Result<f64> {
    let farm = Farm::start(ACCOUNT).await?;
    let viewers = Viewers::open(farm.address()?, listeners, "user", |_| ACCOUNT).await?;
    let mut publisher = Publisher::connect(farm.redis()).await?;
    let channel = format!("timeline:{ACCOUNT}");
    let listen = async {
        while viewers.messages()? < listeners as u64 {
            publisher.publish(&channel, &update(0)).await?;
            sleep(QUIET).await;
        }
        anyhow::Ok(())
    };
    timeout(LISTEN, listen).await.context("they do not listen")??;
    settle(&viewers).await?;
    let (mut all, mut number) = (Vec::new(), 0);
    for run in 1..=runs {
        let (tally, began) = (Tally::begin(&farm, &viewers)?, Instant::now());
        let mut every = interval(Duration::from_secs(1) / u32::try_from(per_s)?);
        every.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for _ in 0..per_s * seconds {
            every.tick().await;
            number += 1;
            publisher.publish(&channel, &update(number)).await?;
        }
        let took = began.elapsed();
        let Deliveries { count, per_cpu_s, bytes } = tally.end(&farm, &viewers).await?;
        ensure!(count == per_s * seconds * listeners as u64, "{count} deliveries: some are missing");
        println!(
            "  {run}: {listeners} listeners, {per_s} events/s: {count} deliveries of {bytes} bytes in {took:.1?}, {per_cpu_s:.0} per CPU-second"
        );
        all.push(per_cpu_s);
    }
    drop(viewers);
    farm.stop().await?;
    Ok(median(all))
}
