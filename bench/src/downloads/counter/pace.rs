//! Keeps publishers from running away: they wait while a stream holds more than it may.

use anyhow::{Context, Result};
use async_nats::jetstream;
use std::time::Duration;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// How often the stream is asked: at what is measured here a tenth of a bound comes in meanwhile.
const POLL: Duration = Duration::from_millis(20);
/// A stream that stays as full for so long is not read any more.
const STALL: Duration = Duration::from_mins(1);

/// What a stream may hold.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bound {
    Bytes(u64),
    Messages(u64),
}

/// Whether there is room. Clones look at the same.
#[derive(Debug, Clone)]
pub(super) struct Pace(watch::Receiver<Looks>);

/// How often the stream was looked at, and how often it was full.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Looks {
    all: u32,
    full: u32,
    is_full: bool,
}

impl Looks {
    /// How much of the time since then whoever reads the stream was what others waited for, from 0 to 1.
    pub(super) fn full_since(self, before: Self) -> f64 {
        f64::from(self.full - before.full) / f64::from((self.all - before.all).max(1))
    }
}

/// Ends with its watcher.
#[derive(Debug)]
pub(super) struct Watcher(JoinHandle<()>);

impl Pace {
    pub(super) async fn start(
        client: async_nats::Client,
        stream: &str,
        bound: Bound,
    ) -> Result<(Self, Watcher)> {
        let mut stream = jetstream::new(client).get_stream(stream).await?;
        let (sender, receiver) = watch::channel(Looks::default());
        let watch = async move {
            loop {
                // An answer that fails to come is no room.
                let is_full = !stream.info().await.is_ok_and(|info| match bound {
                    Bound::Bytes(most) => info.state.bytes < most,
                    Bound::Messages(most) => info.state.messages < most,
                });
                sender.send_modify(|looks| {
                    looks.all += 1;
                    looks.full += u32::from(is_full);
                    looks.is_full = is_full;
                });
                sleep(POLL).await;
            }
        };
        Ok((Self(receiver), Watcher(tokio::spawn(watch))))
    }

    pub(super) fn looks(&self) -> Looks {
        *self.0.borrow()
    }

    pub(super) async fn room(&mut self) -> Result<()> {
        let room = timeout(STALL, self.0.wait_for(|looks| !looks.is_full)).await;
        room.context("the stream stays full: nobody reads it")?.map(drop).context("nobody watches the stream")
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.abort();
    }
}
