//! Viewers of a log in a process of one thread. The bench asks for a report with a line on its input, and ends it with the
//! end of its input.

use super::reader::{Reader, Report};
use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use std::{
    io::{self, BufRead, Write},
    net::SocketAddrV4,
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{Instant, sleep, timeout},
};

/// More than a server sends in one write.
const READ_BYTES: usize = 256 << 10;
/// Whose input it is that is ready; no viewer has this number.
const COMMANDS: u64 = u64::MAX;
/// A process of one thread may be busy with a backlog before it looks at its input.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
/// A report costs a process less than a millisecond.
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    to: SocketAddrV4,
    #[arg(long)]
    path: String,
    #[arg(long)]
    viewers: usize,
}

/// All viewers connect one after the other before anything is read.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { to, path, viewers } = arguments;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(io::stdin(), EpollEvent::new(EpollFlags::EPOLLIN, COMMANDS)).context("cannot watch")?;
    let mut readers = Vec::new();
    for place in 0..*viewers {
        let reader = Reader::open(*to, path)?;
        epoll.add(reader.socket(), EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(place)?))?;
        readers.push(reader);
    }
    let mut report = Report { following: *viewers, ..Report::default() };
    let mut buffer = vec![0; READ_BYTES];
    let mut events = vec![EpollEvent::empty(); viewers + 1];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(Errno::EINTR) => 0,
            count => count.context("cannot wait")?,
        };
        for event in &events[..count] {
            if event.data() == COMMANDS {
                if !answer(&report)? {
                    return Ok(());
                }
                continue;
            }
            let reader = &mut readers[usize::try_from(event.data())?];
            if reader.read(&mut buffer, &mut report)? {
                continue;
            }
            epoll.delete(reader.socket())?;
            if !reader.ended {
                report.cuts += 1;
                reader.reopen(*to, path)?;
                epoll.add(reader.socket(), EpollEvent::new(EpollFlags::EPOLLIN, event.data()))?;
            }
        }
    }
}

/// False at the end of the input.
fn answer(report: &Report) -> Result<bool> {
    if io::stdin().lock().read_line(&mut String::new())? == 0 {
        return Ok(false);
    }
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, report)?;
    writeln!(out)?;
    out.flush()?;
    Ok(true)
}

/// Such a process.
pub(super) struct Readers {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Readers {
    pub(super) fn start(to: SocketAddrV4, path: &str, viewers: usize) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["live-log-readers", "--to", &to.to_string(), "--path", path]);
        command.args(["--viewers", &viewers.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start viewers")?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?).lines();
        Ok(Self { child, input, output })
    }

    /// The first answer comes when all follow.
    pub(super) async fn report(&mut self) -> Result<Report> {
        self.input.write_all(b"\n").await.context("viewers have ended")?;
        let line = timeout(ANSWER_TIMEOUT, self.output.next_line()).await.context("viewers do not answer")?;
        Ok(serde_json::from_str(&line?.context("viewers have ended")?)?)
    }

    /// Until so many have read the end of the log.
    pub(super) async fn ended(&mut self, viewers: usize, limit: Duration) -> Result<Report> {
        let deadline = Instant::now() + limit;
        loop {
            let report = self.report().await?;
            if report.ended >= viewers {
                return Ok(report);
            }
            let Report { ended, lines, faults, last_fault, cuts, .. } = &report;
            ensure!(
                Instant::now() < deadline,
                "{ended} of {viewers} have read the end within {limit:?}; {lines} lines, {faults} faults, {cuts} cut, {last_fault:?}"
            );
            sleep(POLL).await;
        }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    pub(super) async fn stop(mut self) -> Result<()> {
        drop((self.input, self.output));
        timeout(ANSWER_TIMEOUT, self.child.wait()).await.context("viewers do not end")??;
        Ok(())
    }
}
