//! One child process: how it is started, watched, waited for and ended.
//!
//! A child dies with this process, even by `kill -9`: `setpriv` arms the kernel's parent-death signal, and a line of
//! shell then checks that the parent was still there to arm it for. It has a process group of its own, so that a
//! Ctrl-C reaches only this process, which then ends its children in order.

use crate::spawner;
use anyhow::{Context, Result, bail};
use nix::{sys::signal, unistd::Pid};
pub use signal::Signal;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

/// How often a condition is looked at: short against the 100 ms the quickest of our programs needs to start.
const POLL: Duration = Duration::from_millis(15);
/// One look at a condition may hang on a half-dead socket no longer than this.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a child that was told to die may take: Postgres itself gives its backends five seconds.
const DEATH_TIMEOUT: Duration = Duration::from_secs(6);
/// As much of a log as helps in an error message.
const LOG_TAIL_BYTES: usize = 2_000;
const LOG_TAIL_LINES: usize = 15;

/// Runs its arguments if the process named in `$0` is still its parent.
const IF_PARENT_LIVES: &str = r#"test "$PPID" = "$0" && exec "$@""#;

/// What to start, and under which conditions.
#[derive(Debug, Clone)]
pub struct Command {
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// All of its environment but PATH.
    pub env: BTreeMap<String, OsString>,
    /// A user to become, when we are root.
    pub user: Option<String>,
    /// Where its output is appended; without one it shares ours, and our environment.
    pub log: Option<PathBuf>,
    /// The signal that ends it at once and with all of its own children.
    pub last_signal: Signal,
}

impl Command {
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>, log_dir: &Path) -> Self {
        let name = name.into();
        Self {
            log: Some(log_dir.join(format!("{name}.log"))),
            name,
            program: program.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            user: None,
            last_signal: Signal::SIGKILL,
        }
    }

    /// A program of people's: it writes where we write, and a signal reaches what it has started too.
    pub fn foreground(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self { log: None, last_signal: Signal::SIGTERM, ..Self::new(name, program, Path::new("")) }
    }

    #[must_use]
    pub fn args<T: Into<OsString>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    #[must_use]
    pub fn env(mut self, key: &str, value: impl Into<OsString>) -> Self {
        self.env.insert(key.to_owned(), value.into());
        self
    }

    fn build(&self) -> Result<std::process::Command> {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--pdeathsig", self.last_signal.as_str().trim_start_matches("SIG")]);
        if let Some(user) = &self.user {
            command.args(["--reuid", user, "--regid", user, "--init-groups"]);
        }
        command.args(["--", "sh", "-c", IF_PARENT_LIVES]);
        command.arg(std::process::id().to_string()).arg(&self.program).args(&self.args);
        if let Some(log) = &self.log {
            let file = fs::File::options().create(true).append(true).open(log);
            let file = file.with_context(|| format!("cannot write the log {}", log.display()))?;
            command.stdout(file.try_clone()?).stderr(file);
            command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        }
        command.envs(&self.env).stdin(Stdio::null()).process_group(0);
        Ok(command)
    }

    pub async fn spawn(&self) -> Result<Process> {
        let child = spawner::spawn(self.build()?).await?;
        Ok(Process {
            pid: child.id(),
            child: Mutex::new(child),
            name: self.name.clone(),
            log: self.log.clone(),
            last_signal: self.last_signal,
        })
    }

    /// Runs a short program to its end; anything but success is an error with its output.
    pub async fn run(&self, limit: Duration) -> Result<()> {
        let process = self.spawn().await?;
        match process.exited_within(limit).await? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("{} failed ({status}){}", self.name, process.log_tail()),
            None => bail!("{} did not end within {limit:?}{}", self.name, process.log_tail()),
        }
    }
}

/// A running child. Dropping it ends it at once.
#[derive(Debug)]
pub struct Process {
    // Under the lock a process that we have not reaped keeps its pid: a signal cannot hit a stranger.
    child: Mutex<Child>,
    pid: u32,
    name: String,
    log: Option<PathBuf>,
    last_signal: Signal,
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it ended, if it has.
    pub fn exited(&self) -> Result<Option<ExitStatus>> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.try_wait().with_context(|| format!("cannot look after {}", self.name))
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Ok(None), Ok(pid)) = (child.try_wait(), i32::try_from(self.pid)) {
            // What runs in the foreground has children that nobody else would end.
            let pid = if self.log.is_none() { -pid } else { pid };
            // It can only fail for a process that is gone, which is what a signal is for.
            let _ = signal::kill(Pid::from_raw(pid), signal);
        }
    }

    pub async fn exited_within(&self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exited()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            sleep(POLL).await;
        }
    }

    /// Asks with `signal`, waits up to `grace`, then ends it. Tells how it ended and whether it did so by itself.
    pub async fn stop(&self, signal: Signal, grace: Duration) -> Result<(ExitStatus, bool)> {
        self.signal(signal);
        if let Some(status) = self.exited_within(grace).await? {
            return Ok((status, true));
        }
        tracing::warn!(process = self.name, ?grace, "did not stop in time and was killed");
        Ok((self.kill().await?, false))
    }

    /// `kill -9`, and waits until it is gone.
    pub async fn kill(&self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL);
        let status = self.exited_within(DEATH_TIMEOUT).await?;
        status.with_context(|| format!("{} (pid {}) cannot be killed", self.name, self.pid))
    }

    /// Waits until `probe` succeeds; an error if the process ends before, or at the deadline.
    pub async fn ready<F, Fut>(&self, limit: Duration, mut probe: F) -> Result<()>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<()>>,
    {
        let deadline = Instant::now() + limit;
        loop {
            let result = timeout(PROBE_TIMEOUT, probe()).await.unwrap_or_else(|_| bail!("no answer"));
            // Asked after the probe: somebody else may answer on the port of a process that could not bind it.
            if let Some(status) = self.exited()? {
                bail!("{} ended before it was ready ({status}){}", self.name, self.log_tail());
            }
            match result {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() >= deadline => {
                    bail!("{} is not ready after {limit:?}: {error:#}{}", self.name, self.log_tail())
                }
                Err(_) => sleep(POLL).await,
            }
        }
    }

    /// The end of its log, for an error message.
    pub fn log_tail(&self) -> String {
        let Some(log) = &self.log else { return String::new() };
        let bytes = fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned();
        let lines: Vec<_> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n  ");
        format!("\n  log: {}\n  {tail}", log.display())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(self.last_signal);
        let deadline = std::time::Instant::now() + DEATH_TIMEOUT;
        while matches!(self.exited(), Ok(None)) {
            if std::time::Instant::now() >= deadline {
                self.signal(Signal::SIGKILL);
                return;
            }
            std::thread::sleep(POLL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(dir: &Path, script: &str) -> Command {
        Command::new("shell", "sh", dir).args(["-c", script])
    }

    #[tokio::test]
    async fn a_failure_shows_the_end_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let error = shell(dir.path(), "echo it broke; exit 3").run(DEATH_TIMEOUT).await.unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("exit status: 3") && text.contains("it broke"), "{text}");
    }

    #[tokio::test]
    async fn ending_before_it_is_ready_is_an_error_even_if_somebody_answers() {
        let dir = tempfile::tempdir().unwrap();
        let process = shell(dir.path(), "exit 0").spawn().await.unwrap();
        process.exited_within(DEATH_TIMEOUT).await.unwrap().expect("ends by itself");
        let error = process.ready(DEATH_TIMEOUT, async || Ok(())).await.unwrap_err();
        assert!(error.to_string().contains("ended before it was ready"), "{error}");
    }

    #[tokio::test]
    async fn what_ignores_a_request_to_stop_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let ready = dir.path().join("ready");
        let script = format!("trap '' TERM; touch {}; while :; do sleep 1; done", ready.display());
        let process = shell(dir.path(), &script).spawn().await.unwrap();
        let probe = async || if ready.exists() { Ok(()) } else { bail!("not yet") };
        process.ready(DEATH_TIMEOUT, probe).await.unwrap();
        let (_, by_itself) = process.stop(Signal::SIGTERM, Duration::from_millis(50)).await.unwrap();
        assert!(!by_itself);
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Command::new("ghost", "/nonexistent/ghost", dir.path()).run(DEATH_TIMEOUT).await;
        assert!(format!("{:#}", error.unwrap_err()).contains("/nonexistent/ghost"));
    }
}
