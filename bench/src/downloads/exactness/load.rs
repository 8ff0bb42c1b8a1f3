//! Clients that download in a closed loop, from every node directly, and write down what they saw.

use super::tally::Tally;
use crate::downloads::connection::{Connection, Failure};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{sleep, timeout};

/// For one answer: longer than a node waits for its database or its bus, and than a bus needs for a new leader.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// After what was no download: what is away does not come back sooner by being asked.
const PAUSE: Duration = Duration::from_millis(20);
/// Answers from another node before a client looks whether its own is back.
const AWAY_FROM_HOME: u32 = 200;

pub(super) struct Load {
    pub(super) tally: Tally,
    /// What to send, at the positions of the tally.
    requests: Vec<Vec<u8>>,
    nodes: Vec<SocketAddr>,
    next: AtomicUsize,
    /// Downloads that nobody has begun.
    left: AtomicU64,
    done: AtomicU64,
    others: Mutex<BTreeMap<String, u64>>,
}

/// A connection, and how many more answers to take from it.
struct Link {
    connection: Connection,
    answers: Option<u32>,
}

impl Load {
    pub(super) fn new(tally: Tally, requests: Vec<Vec<u8>>, nodes: Vec<SocketAddr>, downloads: u64) -> Self {
        Self {
            tally,
            requests,
            nodes,
            next: AtomicUsize::new(0),
            left: AtomicU64::new(downloads),
            done: AtomicU64::new(0),
            others: Mutex::default(),
        }
    }

    /// One client, until all is downloaded. Its own node is the one of this number.
    pub(super) async fn client(&self, home: usize) {
        let mut link = None;
        while self.take() {
            while !self.download(home, &mut link).await {
                sleep(PAUSE).await;
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Once more from this node, and nobody else.
    pub(super) async fn probe(&self, node: SocketAddr) -> bool {
        let Ok(connection) = Connection::open(node).await else { return false };
        self.ask(&mut Some(Link { connection, answers: None })).await
    }

    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// What was no redirect and not cut off, by status; and why connections broke.
    pub(super) fn others(&self) -> BTreeMap<String, u64> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn take(&self) -> bool {
        let less = |left: u64| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    /// False if it was none.
    async fn download(&self, home: usize, link: &mut Option<Link>) -> bool {
        if link.as_ref().is_none_or(|link| link.answers == Some(0)) {
            *link = self.connect(home).await;
        }
        link.is_some() && self.ask(link).await
    }

    /// To its own node, or to the next one that listens.
    async fn connect(&self, home: usize) -> Option<Link> {
        for step in 0..self.nodes.len() {
            let address = self.nodes[(home + step) % self.nodes.len()];
            if let Ok(connection) = Connection::open(address).await {
                let answers = (step > 0).then_some(AWAY_FROM_HOME);
                return Some(Link { connection, answers });
            }
        }
        None
    }

    /// A request, of which exactly one thing is written down. A broken link is taken away.
    async fn ask(&self, link: &mut Option<Link>) -> bool {
        let Some(Link { connection, answers }) = link else { return false };
        let position = self.next.fetch_add(1, Ordering::Relaxed) % self.requests.len();
        match timeout(ANSWER_TIMEOUT, connection.ask(&self.requests[position])).await {
            Ok(Ok(head)) => {
                let is_redirect = head.status == 302 && head.leads;
                if is_redirect {
                    self.tally.answered(position);
                } else {
                    self.note(&head.status.to_string());
                }
                *answers = answers.map(|left| left.saturating_sub(1));
                if head.closes {
                    *link = None;
                }
                return is_redirect;
            }
            Ok(Err(Failure::NotSent(_))) => self.note("not_sent"),
            Ok(Err(Failure::Cut(_))) => {
                self.tally.in_flight(position);
                self.note("cut");
            }
            Err(_) => {
                self.tally.in_flight(position);
                self.note("timeout");
            }
        }
        *link = None;
        false
    }

    fn note(&self, what: &str) {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        *others.entry(what.to_owned()).or_default() += 1;
    }
}
