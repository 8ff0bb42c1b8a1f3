//! Runs one sandbox: takes its output, measures it, and ends it when it is over a limit.

use super::{
    Bounds, Breach, Ended, Error, Phase, Report, Sandbox,
    cgroup::Group,
    launch,
    output::Watched,
    process::{self, Asker, Usage},
};
use crate::log::{Log, READ_BYTES, Stream};
use bytes::{Buf, Bytes, BytesMut};
use cratemill_protocol::Limits;
use std::{
    path::Path,
    pin::pin,
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Child,
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};

/// How often memory and processes are looked at: what a runaway can take in that time is still bearable.
const USAGE_EVERY: Duration = Duration::from_millis(100);
/// How often the written files are added up, and at least so many times longer than adding up takes.
const OUTPUT_EVERY: Duration = Duration::from_millis(500);
const OUTPUT_REST: u32 = 20;
/// How often a sandbox that was asked to end is looked at for what it has started since.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// A killed sandbox is gone within milliseconds; then its launcher is killed too.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// What is kept of standard error, to tell why a command failed: its last lines.
const TAIL_BYTES: usize = 16 * 1024;
/// The longest line of a program's messages that we read.
const MAX_LINE_BYTES: usize = 1 << 20;

/// What becomes of the command's standard output.
#[derive(Debug)]
pub enum Stdout {
    /// It is part of the log.
    Log,
    /// Lines are sorted by `sort`; what it keeps, up to `max`, is the result.
    Lines { sort: fn(&str) -> Line, max: usize, kept: Vec<String>, partial: BytesMut },
    /// All of it is the result, if it is not larger than `max_bytes`.
    Result { max_bytes: usize, bytes: Vec<u8>, too_large: bool },
}

/// What to do with a line.
#[derive(Debug)]
pub enum Line {
    Keep(String),
    Drop,
    Log,
}

impl Stdout {
    pub fn lines(sort: fn(&str) -> Line, max: usize) -> Self {
        Self::Lines { sort, max, kept: Vec::new(), partial: BytesMut::new() }
    }

    pub fn result(max_bytes: usize) -> Self {
        Self::Result { max_bytes, bytes: Vec::new(), too_large: false }
    }

    async fn take(&mut self, read: Bytes, log: &Log) -> Result<(), crate::events::Abandoned> {
        match self {
            Self::Log => log.output(Stream::Out, read).await,
            Self::Result { max_bytes, bytes, too_large } => {
                *too_large |= bytes.len() + read.len() > *max_bytes;
                if !*too_large {
                    bytes.extend_from_slice(&read);
                }
                Ok(())
            }
            Self::Lines { sort, max, kept, partial } => {
                partial.extend_from_slice(&read);
                while let Some(end) = partial.iter().position(|byte| *byte == b'\n') {
                    let line = partial.split_to(end + 1).freeze();
                    match str::from_utf8(&line).map_or(Line::Log, *sort) {
                        Line::Keep(text) if kept.len() < *max => kept.push(text),
                        Line::Keep(_) | Line::Drop => {}
                        Line::Log => log.output(Stream::Out, line).await?,
                    }
                }
                if partial.len() > MAX_LINE_BYTES {
                    log.output(Stream::Out, partial.split().freeze()).await?;
                }
                Ok(())
            }
        }
    }
}

pub(super) async fn run(
    sandbox: &Sandbox,
    phase: &Phase<'_>,
    bounds: &Bounds,
    group: Option<&Group>,
    stdout: &mut Stdout,
    log: &Log,
) -> Result<Report, Error> {
    let report = phase.scratch.join("sandbox.json");
    drop(std::fs::remove_file(&report));
    let mut command = launch::command(&sandbox.toolchain, phase, &bounds.limits, group, &report);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let started = Instant::now();
    // From an async worker thread: the sandbox dies with the thread that started it, and those live as long as we do.
    let mut child = command.spawn()?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let mut tail = BytesMut::new();
    let watched = Watched {
        written: phase.written.clone(),
        max_bytes: bounds.limits.output_bytes,
        cache: phase.cache.clone(),
        disk: phase.scratch.to_owned(),
        reserve_bytes: sandbox.reserve_bytes,
    };
    let supervised = supervise(&mut child, &watched, bounds, group, &report, log);
    let pumps = async {
        tokio::join!(pump_out(out, stdout, log), pump_err(err, &mut tail, log));
    };
    // A log that nobody takes holds the pumps up, so only they end with the attempt's time; the sandbox is watched all
    // the time.
    let pumps = async {
        tokio::select! {
            () = pumps => {}
            () = bounds.stop.overdue() => {}
        }
    };
    let (ended, ()) = tokio::join!(supervised, pumps);
    let took = started.elapsed();
    let ended = if let Some(ended) = ended? {
        ended
    } else {
        let Some(code) = process::exit_code(&report) else { return Err(Error::Setup) };
        let breach = if code == 0 { None } else { breach_behind(&watched, group).await };
        breach.map_or(Ended::Exited { code }, Ended::Killed)
    };
    Ok(Report { ended, took, stderr_tail: String::from_utf8_lossy(&tail).into_owned() })
}

/// Waits for the end and brings it about when a limit is passed; none if the command ended by itself.
async fn supervise(
    child: &mut Child,
    watched: &Watched,
    bounds: &Bounds,
    group: Option<&Group>,
    report: &Path,
    log: &Log,
) -> Result<Option<Ended>, Error> {
    let launcher = child.id().unwrap_or_default();
    let mut breach = pin!(async {
        tokio::select! {
            () = sleep_until(bounds.deadline.into()) => Breach::Wall,
            () = log.overflow().cancelled() => Breach::Log,
            breach = watch_usage(launcher, &bounds.limits, group) => breach,
            breach = watch_output(watched) => breach,
        }
    });
    let ended = tokio::select! {
        status = child.wait() => {
            status?;
            return Ok(None);
        }
        breach = &mut breach => Ended::Killed(breach),
        () = bounds.stop.asked() => Ended::Cancelled,
    };
    if ended == Ended::Cancelled {
        tokio::select! {
            () = ask_to_end(launcher, report) => {}
            status = child.wait() => {
                status?;
                return Ok(Some(ended));
            }
            () = bounds.stop.overdue() => {}
            // Time to end is no time to do more harm.
            _ = &mut breach => {}
        }
    }
    process::kill_sandbox(launcher, report);
    if timeout(KILL_WAIT, child.wait()).await.is_err() {
        child.kill().await?;
    }
    Ok(Some(ended))
}

/// Never ends.
async fn ask_to_end(launcher: u32, report: &Path) {
    let mut asker = Asker::default();
    let mut ticks = interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        asker.ask(launcher, report);
    }
}

async fn watch_usage(launcher: u32, limits: &Limits, group: Option<&Group>) -> Breach {
    let mut ticks = interval(USAGE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let breach = match group {
            Some(group) => group_breach(group),
            None => usage_breach(process::usage_of_tree(launcher), limits),
        };
        if let Some(breach) = breach {
            return breach;
        }
    }
}

fn group_breach(group: &Group) -> Option<Breach> {
    if group.ran_out_of_memory() {
        Some(Breach::Memory)
    } else if group.ran_out_of_processes() {
        Some(Breach::Processes)
    } else {
        None
    }
}

fn usage_breach(usage: Usage, limits: &Limits) -> Option<Breach> {
    if usage.memory_bytes > limits.memory_bytes {
        Some(Breach::Memory)
    } else if usage.processes > u64::from(limits.processes) {
        Some(Breach::Processes)
    } else {
        None
    }
}

async fn watch_output(watched: &Watched) -> Breach {
    loop {
        let started = Instant::now();
        if let Some(breach) = output_breach(watched).await {
            return breach;
        }
        tokio::time::sleep(OUTPUT_EVERY.max(started.elapsed() * OUTPUT_REST)).await;
    }
}

async fn output_breach(watched: &Watched) -> Option<Breach> {
    let watched = watched.clone();
    // It ends early only when the runtime does.
    tokio::task::spawn_blocking(move || watched.breach()).await.unwrap_or(None)
}

/// A command that failed by itself may have failed because of a limit that was looked at too late.
async fn breach_behind(watched: &Watched, group: Option<&Group>) -> Option<Breach> {
    match group.and_then(group_breach) {
        Some(breach) => Some(breach),
        None => output_breach(watched).await,
    }
}

async fn pump_out(pipe: Option<impl AsyncRead + Unpin>, stdout: &mut Stdout, log: &Log) {
    let Some(mut pipe) = pipe else { return };
    while let Some(bytes) = read(&mut pipe).await {
        if stdout.take(bytes, log).await.is_err() {
            return;
        }
    }
    if let Stdout::Lines { partial, .. } = stdout
        && !partial.is_empty()
    {
        // Nobody to tell if the log is abandoned.
        drop(log.output(Stream::Out, partial.split().freeze()).await);
    }
}

async fn pump_err(pipe: Option<impl AsyncRead + Unpin>, tail: &mut BytesMut, log: &Log) {
    let Some(mut pipe) = pipe else { return };
    while let Some(bytes) = read(&mut pipe).await {
        tail.extend_from_slice(&bytes);
        let too_much = tail.len().saturating_sub(TAIL_BYTES);
        tail.advance(too_much);
        if log.output(Stream::Err, bytes).await.is_err() {
            return;
        }
    }
}

/// What the pipe holds; none at its end.
async fn read(pipe: &mut (impl AsyncRead + Unpin)) -> Option<Bytes> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    match pipe.read_buf(&mut buffer).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(buffer.freeze()),
    }
}
