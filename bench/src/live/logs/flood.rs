//! A log of many lines a second that many follow through one node: whether each of them gets all of it, how late, and what
//! that costs the node.
//!
//! The log is published as an API node does it for a builder: in pieces as the builder cuts them, each once the bus has
//! stored the one before it.

use super::{
    lines::{self, LINE_BYTES},
    readers::Readers,
};
use crate::{
    live::{clock::now_us, servers::ours::Ours, usage},
    statistics::{count, hundredths, median},
};
use anyhow::{Context, Result};
use cratemill_protocol::{
    Attempt, JobId, JobState,
    bus::{self, LogBody, LogMessage},
    subjects,
};
use cratemill_service::bus::Bus;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

pub(super) const VIEWERS: usize = 100;
/// A builder sends text when it has so much of it.
pub(super) const PIECE_BYTES: usize = 16 << 10;
const SECONDS: u32 = 10;
const STORE_TIMEOUT: Duration = Duration::from_secs(10);
/// From the last line to the last viewer.
const END_TIMEOUT: Duration = Duration::from_mins(2);
const ATTEMPT: Attempt = Attempt(1);

struct Run {
    lines_per_s: f64,
    lost: f64,
    per_cpu_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    cuts: f64,
}

pub(super) async fn measure(runs: usize, lines_per_s: u32) -> Result<Value> {
    let mut all = Vec::new();
    for _ in 0..runs {
        all.push(one(lines_per_s).await?);
    }
    let of = |field: fn(&Run) -> f64| hundredths(median(all.iter().map(field).collect()));
    let worst = |field: fn(&Run) -> f64| all.iter().map(field).fold(0.0, f64::max);
    Ok(json!({
        "log_viewers": VIEWERS,
        "log_lines_per_s": of(|run| run.lines_per_s).round(),
        "log_lost": worst(|run| run.lost),
        "log_cuts": worst(|run| run.cuts),
        "log_per_cpu_s": of(|run| run.per_cpu_s).round(),
        "log_p50_ms": of(|run| run.p50_ms),
        "log_p99_ms": of(|run| run.p99_ms),
    }))
}

async fn one(lines_per_s: u32) -> Result<Run> {
    let ours = Ours::start(1).await?;
    let (job, pids) = (JobId(ours.job().await?), ours.pids());
    let path = format!("/live/events?topic=job.{job}.log");
    let mut readers = Readers::start(ours.addresses()?[0], &path, VIEWERS)?;
    readers.report().await?;
    let watching = readers.pid().context("viewers have ended")?;

    let (cpu, bus, viewers) = (usage::cpu(&pids)?, ours.bus_cpu()?, usage::cpu(&[watching])?);
    let started = Instant::now();
    let lines = Printer { bus: ours.bus(), job, sequence: 0 }.print(lines_per_s).await?;
    let printed = started.elapsed();
    let report = readers.ended(VIEWERS, END_TIMEOUT).await?;
    let time = started.elapsed();
    let (cpu, bus) = (usage::cpu(&pids)?.saturating_sub(cpu), ours.bus_cpu()?.saturating_sub(bus));
    let viewers = usage::cpu(&[watching])?.saturating_sub(viewers);
    readers.stop().await?;
    ours.stop().await?;

    let wanted = count(usize::try_from(lines)? * VIEWERS);
    let got = count(usize::try_from(report.lines)?);
    let at = |percent| anyhow::Ok(count(usize::try_from(report.delays.at(percent))?) / 1e3);
    let run = Run {
        lines_per_s: count(usize::try_from(lines)?) / time.as_secs_f64(),
        lost: wanted - got + count(usize::try_from(report.faults)?),
        per_cpu_s: got / cpu.as_secs_f64(),
        p50_ms: at(50)?,
        p99_ms: at(99)?,
        cuts: count(usize::try_from(report.cuts)?),
    };
    println!(
        "  {lines} lines printed in {:.1} s, read by {VIEWERS} viewers in {:.1} s: {:.0} lines a second, lost {}, cut {}, \
         {:.0} deliveries a CPU second, p50 {:.1} ms, p99 {:.1} ms, CPU {:.2} s, bus {:.2} s, viewers {:.2} s{}",
        printed.as_secs_f64(),
        time.as_secs_f64(),
        run.lines_per_s,
        run.lost,
        run.cuts,
        run.per_cpu_s,
        run.p50_ms,
        run.p99_ms,
        cpu.as_secs_f64(),
        bus.as_secs_f64(),
        viewers.as_secs_f64(),
        report.last_fault.map(|fault| format!(", {fault}")).unwrap_or_default(),
    );
    Ok(run)
}

/// A build, its builder and their API node.
struct Printer<'a> {
    bus: &'a Bus,
    job: JobId,
    sequence: u64,
}

impl Printer<'_> {
    /// Lines at an even pace, and the end. Tells how many lines there are.
    async fn print(mut self, lines_per_s: u32) -> Result<u64> {
        let (started_us, all) = (now_us(), u64::from(lines_per_s) * u64::from(SECONDS));
        let due_us = |line: u64| started_us + line * 1_000_000 / u64::from(lines_per_s);
        let (mut text, mut line, mut offset) = (String::new(), 0, 0);
        while line < all || !text.is_empty() {
            while text.len() < PIECE_BYTES && line < all {
                lines::put(line, due_us(line), &mut text);
                line += 1;
            }
            let rest = text.split_off(text.len().min(PIECE_BYTES));
            let piece = std::mem::replace(&mut text, rest);
            let end = offset + u64::try_from(piece.len())?;
            let wait_us = due_us(end / LINE_BYTES).saturating_sub(now_us());
            if wait_us > 0 {
                sleep(Duration::from_micros(wait_us)).await;
            }
            self.store(LogBody::Text { offset, text: piece }).await?;
            offset = end;
        }
        self.store(LogBody::End { state: JobState::Succeeded }).await?;
        Ok(all)
    }

    async fn store(&mut self, body: LogBody) -> Result<()> {
        self.sequence += 1;
        let (job, seq) = (self.job, self.sequence);
        let id = format!("l-{job}-{ATTEMPT}-{seq}");
        let payload = bus::encode(&LogMessage { job, attempt: ATTEMPT, seq, at_ms: 0, body });
        let stored = self.bus.store(&subjects::log(job, ATTEMPT), &id, payload.into(), STORE_TIMEOUT).await;
        stored.map(drop).context("the bus did not take a piece of the log")
    }
}
