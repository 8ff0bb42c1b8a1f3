//! The build agent: it logs in to a Cratemill service with an SSH key, builds what it is given in a sandbox, streams
//! the log, and uploads signed artifacts.
//!
//! ```text
//! agent (select loop) -- session (pure state machine) -- connection (WebSocket)
//!   \-- job (one task per attempt): source, unpack, cargo in a sandbox, package, upload
//!         \-- log -> events -> session, held back by credits
//! ```

pub mod agent;
mod backoff;
pub mod config;
mod connection;
pub mod events;
pub mod identity;
pub mod job;
mod load;
pub mod log;
pub mod sandbox;
pub mod session;
pub mod stop;
pub mod telemetry;
pub mod toolchain;
pub mod workdir;

use anyhow::Context as _;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Checks everything that can be checked here, then dials and works until told to stop.
pub async fn run(config: config::Config, signals: mpsc::Receiver<agent::Signal>) -> anyhow::Result<()> {
    let identity = identity::Identity::load(&config.key)?;
    let toolchain = toolchain::Toolchain::find(config.toolchain.as_deref())?;
    let targets = toolchain.targets(&config.targets)?;
    let work_dir = config.work_dir;
    let work = tokio::task::spawn_blocking(move || workdir::WorkDir::open(&work_dir)).await??;
    sandbox::Sandbox::check(&toolchain, work.root())?;
    let prefix = work.prefix();
    let cgroups = sandbox::Cgroups::detect(&prefix);
    cgroups.remove_leftovers(&prefix).await;
    tracing::info!(
        fingerprint = identity.fingerprint(),
        toolchain = toolchain.version,
        limits = cgroups.describe(),
        slots = config.slots,
        "Builder starts for {}",
        config.server.expected_name()
    );
    let settings = session::Settings {
        fingerprint: identity.fingerprint(),
        agent: concat!("cratemill-builder/", env!("CARGO_PKG_VERSION")).into(),
        targets,
        slots: config.slots,
    };
    let context = job::Context {
        server: config.server,
        identity,
        http: job::http_client().context("no HTTP client")?,
        sandbox: sandbox::Sandbox {
            toolchain: Arc::new(toolchain),
            cgroups,
            prefix,
            reserve_bytes: config.reserve_bytes,
        },
        work,
        caps: config.caps,
    };
    let agent = agent::Agent::new(Arc::new(context), settings, config.drain);
    agent.run(signals).await?;
    tracing::info!("Builder stopped");
    Ok(())
}
