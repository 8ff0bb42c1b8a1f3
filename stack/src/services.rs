//! Cratemill's own programs as children: where they are, and how each is started, killed and started again.

use crate::{
    network::Network,
    ports::Port,
    process::{Command, Process, Signal},
};
use anyhow::{Context, Result, bail};
use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

/// A service gives up waiting for its dependencies after this; the others may start later than it does.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// More than DRAIN_S of the local stack, also where a test makes it longer.
const STOP_GRACE: Duration = Duration::from_secs(30);
/// What a stack's services have for their drain: nobody waits for a local stack as for a production one.
const DRAIN_S: u64 = 5;

/// Of our own environment, what a child may see: no variable that configures a service.
const INHERITED: &[&str] = &[
    "HOME",
    "USER",
    "LANG",
    "TMPDIR",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Api,
    Live,
    Dispatcher,
    Counter,
    Builder,
}

impl Role {
    pub const ALL: [Self; 5] = [Self::Api, Self::Live, Self::Dispatcher, Self::Counter, Self::Builder];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Live => "live",
            Self::Dispatcher => "dispatcher",
            Self::Counter => "counter",
            Self::Builder => "builder",
        }
    }

    /// The name of its program, and of its crate.
    pub fn program(self) -> String {
        format!("cratemill-{self}")
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where our programs are: as told, or beside the program that asks, which cargo has put there.
pub fn bin_dir(told: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = told {
        return Ok(dir.to_owned());
    }
    if let Some(dir) = std::env::var_os("CRATEMILL_BIN_DIR") {
        return Ok(dir.into());
    }
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let dir = program.parent().context("this program is in no folder")?;
    // Tests lie one folder deeper.
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    Ok(dir.to_owned())
}

/// One process of ours. It keeps its port, its command and its data over restarts.
#[derive(Debug)]
pub struct Service {
    role: Role,
    process: Option<Process>,
    command: Command,
    port: Option<Port>,
}

impl Service {
    /// A service that listens for HTTP; it is not started yet.
    pub fn new(role: Role, number: usize, bin_dir: &Path, log_dir: &Path) -> Result<Self> {
        let program = bin_dir.join(role.program());
        if !program.is_file() {
            bail!("{} is not built: run `cargo build --bins` first", program.display());
        }
        let mut command = Command::new(format!("{role}-{number}"), program, log_dir);
        for key in INHERITED {
            if let Some(value) = std::env::var_os(key) {
                command = command.env(key, value);
            }
        }
        command = command.env("DRAIN_S", DRAIN_S.to_string());
        let mut port = None;
        if role != Role::Builder {
            let reserved = Port::reserve()?;
            command = command.env("LISTEN", reserved.address().to_string());
            port = Some(reserved);
        }
        Ok(Self { role, process: None, command, port })
    }

    #[must_use]
    pub fn env(mut self, key: &str, value: impl Into<std::ffi::OsString>) -> Self {
        self.command = self.command.env(key, value);
        self
    }

    #[must_use]
    pub fn args<T: Into<std::ffi::OsString>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.command = self.command.args(args);
        self
    }

    /// From its next start on it sees no network but this one.
    pub fn enter(&mut self, network: &Network) -> Result<()> {
        self.command = network.inside(self.command.clone())?;
        Ok(())
    }

    /// For its next start.
    pub fn set_env<'a>(&mut self, pairs: impl IntoIterator<Item = (&'a str, String)>) {
        let pairs = pairs.into_iter().map(|(key, value)| (key.to_owned(), value.into()));
        self.command.env.extend(pairs);
    }

    pub fn role(&self) -> Role {
        self.role
    }

    /// Such as `api-1`.
    pub fn name(&self) -> &str {
        &self.command.name
    }

    pub fn port(&self) -> Option<&Port> {
        self.port.as_ref()
    }

    /// Its own address, past the load balancer.
    pub fn url(&self) -> Option<String> {
        self.port.as_ref().map(|port| format!("http://{}", port.address()))
    }

    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// Starts it, without waiting.
    pub async fn spawn(&mut self) -> Result<()> {
        self.process = Some(self.command.spawn().await?);
        Ok(())
    }

    /// Waits until it says that it can serve. A builder has no say: whoever registered it looks it up.
    pub async fn ready(&self) -> Result<()> {
        let process = self.process.as_ref().with_context(|| format!("{} does not run", self.name()))?;
        let Some(url) = self.url() else { return Ok(()) };
        let probe = async || {
            let response = reqwest::get(format!("{url}/readyz")).await?;
            if response.status().is_success() {
                return Ok(());
            }
            bail!("{}: {}", response.status(), response.text().await?)
        };
        process.ready(START_TIMEOUT, probe).await
    }

    /// SIGTERM: it drains.
    pub async fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.stop(Signal::SIGTERM, STOP_GRACE).await.map(drop),
            None => Ok(()),
        }
    }

    pub async fn kill9(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.kill().await.map(drop),
            None => Ok(()),
        }
    }

    /// Starts it again and waits until it can serve.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.spawn().await?;
        self.ready().await
    }
}
