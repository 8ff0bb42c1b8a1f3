//! How a running attempt is told to end: first it is asked, and at a given time what is left of it is killed.

use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// The longest that anybody may wait for a build to end by itself.
const MAX_GRACE: Duration = Duration::from_mins(1);

/// The side that tells. When it is gone without a word, the attempt is to end at once.
#[derive(Debug)]
pub struct Stopper(watch::Sender<Option<Instant>>);

/// The side that listens; it can be cloned to each phase.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<Option<Instant>>);

pub fn channel() -> (Stopper, Stop) {
    let (sender, receiver) = watch::channel(None);
    (Stopper(sender), Stop(receiver))
}

impl Stopper {
    /// Asks for the end within `grace`. Said again it can only come sooner.
    pub fn stop(&self, grace: Duration) {
        let kill_at = Instant::now() + grace.min(MAX_GRACE);
        self.0.send_if_modified(|at| {
            let sooner = at.is_none_or(|at| kill_at < at);
            if sooner {
                *at = Some(kill_at);
            }
            sooner
        });
    }
}

impl Stop {
    /// Somebody wants the attempt to end.
    pub async fn asked(&self) {
        let mut receiver = self.0.clone();
        // An error means that nobody is left who could ask, and nobody who waits for a result.
        drop(receiver.wait_for(Option::is_some).await);
    }

    /// The time to end by itself is over.
    pub async fn overdue(&self) {
        let mut receiver = self.0.clone();
        let mut told = true;
        loop {
            let kill_at = *receiver.borrow_and_update();
            match kill_at {
                None if told => told = receiver.changed().await.is_ok(),
                None => return,
                Some(at) => tokio::select! {
                    () = sleep_until(at) => return,
                    changed = receiver.changed(), if told => told = changed.is_ok(),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_asked_and_then_killed_and_never_later_than_first_said() {
        let (stopper, stop) = channel();
        let begun = Instant::now();
        stopper.stop(Duration::from_secs(10));
        stopper.stop(Duration::from_secs(20));
        stop.asked().await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        tokio::join!(stop.overdue(), async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            stopper.stop(Duration::from_secs(1));
        });
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_left_to_ask_means_now() {
        let (stopper, stop) = channel();
        drop(stopper);
        stop.asked().await;
        stop.overdue().await;
        let (stopper, stop) = channel();
        stopper.stop(Duration::from_secs(3));
        drop(stopper);
        stop.overdue().await;
    }
}
