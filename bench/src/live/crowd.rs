//! Viewers in processes of their own, as one.

use super::{
    clock::now_us,
    viewers::{self, Ask, Report},
};
use anyhow::{Context, Result, ensure};
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{Instant, sleep, timeout},
};

/// A process of one thread may be busy with a backlog before it looks at its input.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
/// Connections of one process: a process of this kind of machine may have 20,000 files open.
pub(super) const MAX_EACH: usize = 18_750;
/// A report costs a process less than a millisecond.
const POLL: Duration = Duration::from_millis(20);

/// Who connects where.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) servers: Vec<SocketAddrV4>,
    pub(super) path: String,
    /// What viewers over WebSocket say first; empty for streams of events.
    pub(super) subscribe: String,
    pub(super) topics: usize,
    pub(super) viewers: usize,
    pub(super) processes: usize,
    /// Whether each process has one of the servers for itself; else all take turns.
    pub(super) apart: bool,
}

pub(super) struct Crowd {
    processes: Vec<Process>,
    each: usize,
}

struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Crowd {
    /// Starts the processes; nobody is connected yet.
    pub(super) fn start(plan: &Plan) -> Result<Self> {
        let each = plan.viewers.div_ceil(plan.processes);
        ensure!((1..=MAX_EACH).contains(&each), "{each} viewers do not fit into a process");
        let processes = (0..plan.processes).map(|number| {
            let own = plan.servers[number % plan.servers.len()];
            let to = if plan.apart { vec![own] } else { plan.servers.clone() };
            let arguments = viewers::Arguments {
                to,
                // Each address of loopback has ports of its own.
                from: Ipv4Addr::new(127, 0, 1, u8::try_from(number + 1)?),
                path: plan.path.clone(),
                subscribe: plan.subscribe.clone(),
                first: number * each,
                topics: plan.topics,
            };
            Process::start(&arguments)
        });
        Ok(Self { processes: processes.collect::<Result<_>>()?, each })
    }

    /// As many in all, rounded up to as many for each process; waits until all follow. Tells how long that took.
    pub(super) async fn open(&mut self, viewers: usize, limit: Duration) -> Result<Duration> {
        let each = viewers.div_ceil(self.processes.len()).min(self.each);
        let started = Instant::now();
        self.ask(Ask::Open(each)).await?;
        let wanted = each * self.processes.len();
        self.wait("not all follow", limit, |report| report.following == wanted).await?;
        Ok(started.elapsed())
    }

    pub(super) async fn report(&mut self) -> Result<Report> {
        self.ask(Ask::Report).await
    }

    /// What was counted until now; it is counted anew from here on.
    pub(super) async fn reset(&mut self) -> Result<Report> {
        self.ask(Ask::Reset).await
    }

    pub(super) async fn wait(
        &mut self,
        what: &str,
        limit: Duration,
        until: impl Fn(&Report) -> bool,
    ) -> Result<Report> {
        let deadline = Instant::now() + limit;
        loop {
            let report = self.report().await?;
            if until(&report) {
                return Ok(report);
            }
            ensure!(Instant::now() < deadline, "{what} within {limit:?}: {}", brief(&report));
            sleep(POLL).await;
        }
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        self.processes.iter().filter_map(|process| process.child.id()).collect()
    }

    /// Closes all connections, and waits until they are.
    pub(super) async fn stop(self) -> Result<()> {
        for Process { mut child, input, output } in self.processes {
            drop((input, output));
            timeout(ANSWER_TIMEOUT, child.wait()).await.context("viewers do not end")??;
        }
        Ok(())
    }

    async fn ask(&mut self, ask: Ask) -> Result<Report> {
        for process in &mut self.processes {
            let line = serde_json::to_string(&ask)? + "\n";
            process.input.write_all(line.as_bytes()).await.context("viewers have ended")?;
        }
        let mut sum: Option<Report> = None;
        for process in &mut self.processes {
            let line = timeout(ANSWER_TIMEOUT, process.output.next_line()).await;
            let line = line.context("viewers do not answer")??.context("viewers have ended")?;
            let report = serde_json::from_str(&line)?;
            match &mut sum {
                Some(sum) => sum.merge(report),
                None => sum = Some(report),
            }
        }
        sum.context("there are no viewers")
    }
}

impl Process {
    fn start(arguments: &viewers::Arguments) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments.to_args()?).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start viewers")?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?).lines();
        Ok(Self { child, input, output })
    }
}

/// Without its histogram.
pub(super) fn brief(report: &Report) -> String {
    let Report { following, events, missed, repeated, cuts, failures, last_failure, behind, lowest, .. } =
        report;
    format!(
        "{following} follow, {events} events, lowest number {lowest}, {missed} missed, {repeated} repeated, {cuts} cut, \
         {behind} behind, {failures} failures{}, at {} us",
        last_failure.as_ref().map(|why| format!(" ({why})")).unwrap_or_default(),
        now_us()
    )
}
