//! Viewers, thousands in a process of one thread, so that what they use is no part of what a server uses.
//!
//! The bench that started it says on its input how many connections there are to be, and asks for a report; each is a
//! line, and so is each answer. It ends with its input.

mod report;
mod stream;
mod viewer;

pub(in crate::live) use report::Report;

use super::{clock::now_us, files};
use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    io::{self, BufRead, Write},
    net::{Ipv4Addr, SocketAddrV4},
};
use viewer::{Asks, Progress, Viewer};

/// Connections that are being made: what a server's queue takes, many times over.
const MAX_CONNECTING: usize = 512;
/// A try that failed is repeated after this.
const RETRY_US: u64 = 100_000;
/// As often as anything may be due: the only timer is that of a retry.
const TICK_MS: u16 = 20;
const IDLE_MS: u16 = 1_000;
/// Ready connections that are looked at before the clock.
const EVENTS: usize = 1_024;
/// More than a server sends in one write.
const READ_BYTES: usize = 256 << 10;
/// Whose input it is that is ready; no viewer has this number.
const COMMANDS: u64 = u64::MAX;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Servers, that viewers take in turns.
    #[arg(long, required = true)]
    pub(crate) to: Vec<SocketAddrV4>,
    /// The address to connect from: each has ports of its own.
    #[arg(long)]
    pub(crate) from: Ipv4Addr,
    /// Path and query, with `{n}` for a number.
    #[arg(long)]
    pub(crate) path: String,
    /// What viewers say once they have a WebSocket; without it they follow a stream of events.
    #[arg(long, default_value = "")]
    pub(crate) subscribe: String,
    /// That number of the first viewer; each further one has the next.
    #[arg(long, default_value_t = 0)]
    pub(crate) first: usize,
    /// Numbers begin anew after so many.
    #[arg(long, default_value_t = 1)]
    pub(crate) topics: usize,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// So many viewers in all; answered at once, before they are connected.
    Open(usize),
    Report,
    /// Answered with a report as well; events are counted from here on.
    Reset,
}

pub(crate) fn run(arguments: Arguments) -> Result<()> {
    files::raise_limit()?;
    Viewers::new(arguments)?.run()
}

struct Viewers {
    arguments: Arguments,
    epoll: Epoll,
    all: Vec<Viewer>,
    /// Who is to connect, and who is to do so later, in order of time.
    waiting: VecDeque<usize>,
    retries: VecDeque<(u64, usize)>,
    connecting: usize,
    report: Report,
    buffer: Vec<u8>,
}

impl Viewers {
    fn new(arguments: Arguments) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(io::stdin(), EpollEvent::new(EpollFlags::EPOLLIN, COMMANDS)).context("cannot watch")?;
        Ok(Self {
            arguments,
            epoll,
            all: Vec::new(),
            waiting: VecDeque::new(),
            retries: VecDeque::new(),
            connecting: 0,
            report: Report::default(),
            buffer: vec![0; READ_BYTES],
        })
    }

    fn run(mut self) -> Result<()> {
        let mut events = vec![EpollEvent::empty(); EVENTS];
        loop {
            self.connect_some();
            let is_busy = !(self.waiting.is_empty() && self.retries.is_empty());
            let limit = EpollTimeout::from(if is_busy { TICK_MS } else { IDLE_MS });
            let count = match self.epoll.wait(&mut events, limit) {
                Err(Errno::EINTR) => 0,
                count => count.context("cannot wait")?,
            };
            for event in &events[..count] {
                match usize::try_from(event.data()) {
                    Ok(index) if event.data() != COMMANDS => self.ready(index),
                    _ if self.obey()? => {}
                    _ => return Ok(()),
                }
            }
        }
    }

    /// False at the end of the input.
    fn obey(&mut self) -> Result<bool> {
        let mut line = String::new();
        if io::stdin().lock().read_line(&mut line)? == 0 {
            return Ok(false);
        }
        match serde_json::from_str(&line).context("no command")? {
            Ask::Open(count) => {
                let from = self.all.len();
                self.all.resize_with(count.max(from), Viewer::default);
                self.waiting.extend(from..self.all.len());
                self.answer()?;
            }
            Ask::Report => self.answer()?,
            Ask::Reset => {
                self.answer()?;
                self.report.events = 0;
                self.report.delays = super::histogram::Histogram::default();
            }
        }
        Ok(true)
    }

    fn answer(&mut self) -> Result<()> {
        self.report.lowest = self.all.iter().map(|viewer| viewer.number).min().unwrap_or_default();
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &self.report)?;
        writeln!(out)?;
        Ok(out.flush()?)
    }

    fn connect_some(&mut self) {
        let now = now_us();
        while let Some((_, index)) = self.retries.pop_front_if(|(at_us, _)| *at_us <= now) {
            self.waiting.push_back(index);
        }
        while self.connecting < MAX_CONNECTING
            && let Some(index) = self.waiting.pop_front()
        {
            self.connecting += 1;
            let (from, to) = (self.arguments.from, self.arguments.to[index % self.arguments.to.len()]);
            let place = u64::try_from(index).expect("fewer than 2^64");
            if let Err(error) = self.all[index].connect(&self.epoll, place, from, to) {
                self.failed(index, format!("{error:#}"));
            }
        }
    }

    fn ready(&mut self, index: usize) {
        let Self { arguments, epoll, all, report, buffer, .. } = self;
        let asks = || {
            let number = ((arguments.first + index) % arguments.topics).to_string();
            let [path, subscribe] =
                [&arguments.path, &arguments.subscribe].map(|text| text.replace("{n}", &number));
            Asks { path, subscribe }
        };
        match all[index].advance(epoll, u64::try_from(index).unwrap_or(COMMANDS), asks, buffer, report) {
            Ok(Progress::None) => {}
            Ok(Progress::Follows) => {
                self.connecting -= 1;
                self.report.following += 1;
            }
            Ok(Progress::Cut) => {
                self.report.following -= 1;
                self.report.cuts += 1;
                self.waiting.push_back(index);
            }
            Err(error) => self.failed(index, format!("{error:#}")),
        }
    }

    /// To connect.
    fn failed(&mut self, index: usize, why: String) {
        self.connecting -= 1;
        self.report.failures += 1;
        self.report.last_failure = Some(why);
        self.retries.push_back((now_us() + RETRY_US, index));
    }
}

impl Arguments {
    /// As they are given to a process.
    pub(crate) fn to_args(&self) -> Result<Vec<String>> {
        if self.topics == 0 || self.to.is_empty() {
            bail!("viewers need a server and a topic");
        }
        let mut args = vec!["live-viewers".to_owned()];
        args.extend(self.to.iter().flat_map(|to| ["--to".to_owned(), to.to_string()]));
        args.extend(["--from".to_owned(), self.from.to_string(), "--path".to_owned(), self.path.clone()]);
        args.extend(["--subscribe".to_owned(), self.subscribe.clone()]);
        args.extend(["--first".to_owned(), self.first.to_string()]);
        args.extend(["--topics".to_owned(), self.topics.to_string()]);
        Ok(args)
    }
}
