//! Viewers of the public stream, each of whom has blocked, muted and filtered something else.

use super::{
    ORIGINAL_FILTERED, add, compared,
    farm::Farm,
    posts::{Publisher, update},
    viewers::Viewers,
};
use crate::statistics::{count, median};
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
/// Nothing comes any more.
const QUIET: Duration = Duration::from_millis(500);

pub(super) async fn measure(runs: usize, seconds: u64) -> Result<Value> {
    let farm = Farm::start(VIEWERS).await?;
    let viewers = Viewers::open(farm.address()?, VIEWERS, "public", |number| number + 1).await?;
    let mut publisher = Publisher::connect(farm.redis()).await?;
    let mut number = 0;
    // Until most listen: a few do not want to see it.
    let begin = async {
        loop {
            number += 1;
            let before = viewers.messages()?;
            publisher.publish(CHANNEL, &update(number)).await?;
            sleep(QUIET).await;
            if viewers.messages()? - before > VIEWERS as u64 / 2 {
                return anyhow::Ok(());
            }
        }
    };
    timeout(ARRIVE, begin).await.context("the viewers do not listen")??;
    let (mut slowly, mut fast) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        let (before, cpu) = (viewers.messages()?, farm.cpu()?);
        let mut every = interval(Duration::from_secs(1) / u32::try_from(SLOWLY)?);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for _ in 0..SLOWLY * seconds {
            every.tick().await;
            number += 1;
            publisher.publish(CHANNEL, &update(number)).await?;
        }
        settle(&viewers).await?;
        let (seen, cpu) = (viewers.messages()? - before, farm.cpu()? - cpu);
        let per_cpu_s = count(usize::try_from(seen)?) / cpu.as_secs_f64();
        let sent = SLOWLY * seconds;
        println!("  {run}: {sent} statuses at {SLOWLY}/s: {seen} deliveries, {per_cpu_s:.0} per CPU-second");
        slowly.push(per_cpu_s);
        // What the others do not want to see never comes.
        let shown = count(usize::try_from(seen)?) / count(usize::try_from(sent)?);

        let (before, bytes, cpu, began) = (viewers.messages()?, viewers.bytes(), farm.cpu()?, Instant::now());
        let first = number;
        while began.elapsed() < Duration::from_secs(seconds) {
            number += 1;
            publisher.publish(CHANNEL, &update(number)).await?;
            // About what they will have seen of all but the last few.
            let due = count(usize::try_from((number - first).saturating_sub(WINDOW))?) * shown;
            while count(usize::try_from(viewers.messages()? - before)?) < due {
                sleep(Duration::from_millis(1)).await;
            }
        }
        settle(&viewers).await?;
        let (seen, cpu) = (viewers.messages()? - before, farm.cpu()? - cpu);
        let per_cpu_s = count(usize::try_from(seen)?) / cpu.as_secs_f64();
        println!(
            "  {run}: {} statuses as fast as it goes: {seen} deliveries of {} bytes, {per_cpu_s:.0} per CPU-second",
            number - first,
            (viewers.bytes() - bytes) / seen.max(1)
        );
        fast.push(per_cpu_s);
    }
    drop(viewers);
    farm.stop().await?;
    let mut fields = json!({ "filtered_viewers": VIEWERS });
    add(&mut fields, compared("filtered_per_cpu_s_10", median(slowly), ORIGINAL_FILTERED));
    add(&mut fields, compared("filtered_per_cpu_s_max", median(fast), ORIGINAL_FILTERED));
    Ok(fields)
}

/// Until nothing more comes.
pub(super) async fn settle(viewers: &Viewers) -> Result<()> {
    let mut last = viewers.messages()?;
    loop {
        sleep(QUIET).await;
        let now = viewers.messages()?;
        if now == last {
            return Ok(());
        }
        last = now;
    }
}
