//! Viewers of the public stream, each of whom has blocked, muted and filtered something else.

use super::{
    ORIGINAL_FILTERED, compared,
    farm::Farm,
    posts::{Publisher, update},
    tally::{QUIET, Tally},
    viewers::Viewers,
};
use crate::{
    dialects::add,
    statistics::{count, median},
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

const VIEWERS: usize = 1_000;
const CHANNEL: &str = "timeline:public";
/// Statuses a second, slowly.
const SLOWLY: u64 = 10;
/// Statuses that have not reached everybody, as fast as it goes: what a server that keeps up may have before it.
const WINDOW: u64 = 32;
const ARRIVE: Duration = Duration::from_mins(2);

struct Scene {
    farm: Farm,
    viewers: Viewers,
    publisher: Publisher,
    /// Of the last status.
    number: u64,
}

pub(super) async fn measure(runs: usize, seconds: u64) -> Result<Value> {
    let farm = Farm::start(VIEWERS).await?;
    let viewers = Viewers::open(farm.address()?, VIEWERS, "public", |number| number + 1).await?;
    let publisher = Publisher::connect(farm.redis()).await?;
    let mut scene = Scene { farm, viewers, publisher, number: 0 };
    timeout(ARRIVE, scene.begin()).await.context("the viewers do not listen")??;
    let (mut slowly, mut fast) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        let (per_cpu_s, shown) = scene.slowly(run, seconds).await?;
        slowly.push(per_cpu_s);
        fast.push(scene.fast(run, seconds, shown).await?);
    }
    let Scene { farm, viewers, .. } = scene;
    drop(viewers);
    farm.stop().await?;
    let mut fields = json!({ "filtered_viewers": VIEWERS });
    add(&mut fields, compared("filtered_per_cpu_s_10", median(slowly), ORIGINAL_FILTERED));
    add(&mut fields, compared("filtered_per_cpu_s_max", median(fast), ORIGINAL_FILTERED));
    Ok(fields)
}

impl Scene {
    async fn publish(&mut self) -> Result<()> {
        self.number += 1;
        self.publisher.publish(CHANNEL, &update(self.number)).await.map(drop)
    }

    /// Until most listen: a few do not want to see what comes first.
    async fn begin(&mut self) -> Result<()> {
        loop {
            let before = self.viewers.messages()?;
            self.publish().await?;
            sleep(QUIET).await;
            if self.viewers.messages()? - before > VIEWERS as u64 / 2 {
                return Ok(());
            }
        }
    }

    /// Returns also how many viewers a status is shown to.
    async fn slowly(&mut self, run: usize, seconds: u64) -> Result<(f64, f64)> {
        let tally = Tally::begin(&self.farm, &self.viewers)?;
        let mut every = interval(Duration::from_secs(1) / u32::try_from(SLOWLY)?);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let sent = SLOWLY * seconds;
        for _ in 0..sent {
            every.tick().await;
            self.publish().await?;
        }
        let seen = tally.end(&self.farm, &self.viewers).await?;
        let (all, per_cpu_s) = (seen.count, seen.per_cpu_s);
        println!("  {run}: {sent} statuses at {SLOWLY}/s: {all} deliveries, {per_cpu_s:.0} per CPU-second");
        Ok((per_cpu_s, count(usize::try_from(all)?) / count(usize::try_from(sent)?)))
    }

    async fn fast(&mut self, run: usize, seconds: u64, shown: f64) -> Result<f64> {
        let tally = Tally::begin(&self.farm, &self.viewers)?;
        let (first, since) = (self.number, Instant::now());
        while since.elapsed() < Duration::from_secs(seconds) {
            self.publish().await?;
            // About what they will have seen of all but the last few.
            let due = count(usize::try_from((self.number - first).saturating_sub(WINDOW))?) * shown;
            while count(usize::try_from(tally.so_far(&self.viewers)?)?) < due {
                sleep(Duration::from_millis(1)).await;
            }
        }
        let seen = tally.end(&self.farm, &self.viewers).await?;
        println!(
            "  {run}: {} statuses as fast as it goes: {} deliveries of {} bytes, {:.0} per CPU-second",
            self.number - first,
            seen.count,
            seen.bytes,
            seen.per_cpu_s
        );
        Ok(seen.per_cpu_s)
    }
}
