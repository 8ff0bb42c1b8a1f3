//! How a running attempt talks to the session, held back by credits.
//!
//! An attempt may have so many events that are not durable yet; then it waits, its log stops taking output, the pipe of
//! the build fills, and the build waits too. That bounds memory whatever the server or the network do.

use crate::session::Finished;
use cratemill_protocol::builder::{Event, JobRef};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};

/// Two megabytes of log at the most per attempt, and at ten chunks a second more than five seconds without an ack.
pub const CREDITS: usize = 64;
/// Between all attempts and the session: a hand-over, the credits are the bound that counts.
pub const UPDATES: usize = 64;

#[derive(Debug)]
pub struct Update {
    pub job: JobRef,
    pub news: News,
}

#[derive(Debug)]
pub enum News {
    Event(Event),
    Finished(Box<Finished>),
}

#[derive(Debug, Clone)]
pub struct Events {
    job: JobRef,
    credits: Arc<Semaphore>,
    updates: mpsc::Sender<Update>,
}

/// The session is gone: nobody listens any more.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the attempt is abandoned")]
pub struct Abandoned;

impl Events {
    /// The second half gives credits back.
    pub fn new(job: JobRef, updates: mpsc::Sender<Update>) -> (Self, Arc<Semaphore>) {
        let credits = Arc::new(Semaphore::new(CREDITS));
        (Self { job, credits: Arc::clone(&credits), updates }, credits)
    }

    pub async fn send(&self, event: Event) -> Result<(), Abandoned> {
        self.credits.acquire().await.map_err(|_| Abandoned)?.forget();
        self.updates.send(Update { job: self.job, news: News::Event(event) }).await.map_err(|_| Abandoned)
    }

    pub async fn finish(&self, finished: Finished) -> Result<(), Abandoned> {
        let news = News::Finished(Box::new(finished));
        self.updates.send(Update { job: self.job, news }).await.map_err(|_| Abandoned)
    }
}
