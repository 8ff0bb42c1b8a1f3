//! The life of a process: start, serve, drain, end.
//!
//! The first SIGTERM or SIGINT cancels the shutdown token: intake stops, work under way is finished or handed back.
//! A second signal, or the drain deadline, ends the process at once, with failure. An essential task that ends early
//! ends the process, with failure.

use crate::{config::Process, health::Health, telemetry};
use anyhow::{Context as _, anyhow};
use std::{process::ExitCode, sync::Arc, sync::Mutex, sync::PoisonError, time::Duration};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What the main function of a service gets.
#[derive(Debug, Clone)]
pub struct Context {
    /// Cancelled when the process is to drain.
    pub shutdown: CancellationToken,
    pub health: Health,
    tasks: TaskTracker,
    failure: Arc<Mutex<Option<anyhow::Error>>>,
}

impl Context {
    /// Runs `task` beside the service; the process ends, with failure, if it ends before the shutdown or with an error.
    pub fn essential<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let context = self.clone();
        let task = self.tasks.spawn(task);
        self.tasks.spawn(async move {
            let error = match task.await {
                Ok(Ok(())) if context.shutdown.is_cancelled() => return,
                Ok(Ok(())) => anyhow!("{name} ended"),
                Ok(Err(error)) => error.context(name),
                Err(error) => anyhow!(error).context(name),
            };
            context.fail(error);
        });
    }

    /// Runs `task` beside the service and waits for it when the process drains; it reports its own errors.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task);
    }

    fn fail(&self, error: anyhow::Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.shutdown.cancel();
    }
}

/// Runs a service to its end: `main` returns once it has drained, which it begins when the shutdown token is cancelled.
pub fn run<F, Fut>(name: &'static str, process: &Process, main: F) -> ExitCode
where
    F: FnOnce(Context) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    telemetry::init_log(process.log_format);
    let result = start(name, Duration::from_secs(process.drain_s), main);
    match result {
        Ok(()) => {
            tracing::info!(service = name, "ended");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(service = name, error = format!("{error:#}"), "failed");
            ExitCode::FAILURE
        }
    }
}

fn start<F, Fut>(name: &'static str, drain: Duration, main: F) -> anyhow::Result<()>
where
    F: FnOnce(Context) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start a runtime")?;
    let result = runtime.block_on(run_here(name, drain, CancellationToken::new(), main));
    // Whatever still runs has had its deadline.
    runtime.shutdown_background();
    result
}

/// The same within a program that has a runtime, and its own way to log: until `shutdown`, a signal or a failure.
pub async fn run_here<F, Fut>(
    name: &'static str,
    drain: Duration,
    shutdown: CancellationToken,
    main: F,
) -> anyhow::Result<()>
where
    F: FnOnce(Context) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let mut signals = Signals::new()?;
    let metrics = telemetry::init_metrics()?;
    let upkeep = tokio::spawn(telemetry::keep_small(metrics.clone()));
    let health = Health::new(shutdown.clone(), metrics);
    let context =
        Context { shutdown: shutdown.clone(), health, tasks: TaskTracker::new(), failure: Arc::default() };
    tracing::info!(service = name, version = env!("CARGO_PKG_VERSION"), "starting");
    let result = tokio::select! {
        result = serve(context, main) => result,
        error = watch(&mut signals, &shutdown, drain) => Err(error),
    };
    upkeep.abort();
    result
}

async fn serve<F, Fut>(context: Context, main: F) -> anyhow::Result<()>
where
    F: FnOnce(Context) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let result = main(context.clone()).await;
    let early = result.is_ok() && !context.shutdown.is_cancelled();
    context.shutdown.cancel();
    context.tasks.close();
    context.tasks.wait().await;
    if let Some(failure) = context.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(failure);
    }
    result?;
    if early { Err(anyhow!("the service ended without being asked to")) } else { Ok(()) }
}

/// Turns the first signal into a drain; returns when the process must end now.
async fn watch(signals: &mut Signals, shutdown: &CancellationToken, drain: Duration) -> anyhow::Error {
    tokio::select! {
        name = signals.next() => tracing::info!(signal = name, drain_s = drain.as_secs(), "draining"),
        () = shutdown.cancelled() => {}
    }
    shutdown.cancel();
    tokio::select! {
        name = signals.next() => anyhow!("{name} again: ended without draining"),
        () = tokio::time::sleep(drain) => anyhow!("the drain took longer than {} s", drain.as_secs()),
    }
}

struct Signals {
    term: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
