//! Group commit: what many tasks ask for while a round is under way is done together in the next.
//!
//! Nobody waits for a group to fill: a lone item is a round of its own, and rounds grow with what comes in meanwhile.

use tokio::sync::{mpsc, oneshot};

/// The end that asks; clones share the rounds.
#[derive(Debug)]
pub struct Group<T, R> {
    items: mpsc::Sender<(T, oneshot::Sender<R>)>,
}

impl<T, R> Clone for Group<T, R> {
    fn clone(&self) -> Self {
        Self { items: self.items.clone() }
    }
}

/// The end that does what is asked.
#[derive(Debug)]
pub struct Rounds<T, R> {
    items: mpsc::Receiver<(T, oneshot::Sender<R>)>,
}

/// Whoever does the rounds has ended; whether the item was done is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this process is ending")]
pub struct Ended;

/// At most `waiting` items wait for a round; whoever asks for more waits to ask.
pub fn group<T, R>(waiting: usize) -> (Group<T, R>, Rounds<T, R>) {
    let (sender, receiver) = mpsc::channel(waiting);
    (Group { items: sender }, Rounds { items: receiver })
}

impl<T, R> Group<T, R> {
    /// Returns what became of the item once its round is done.
    pub async fn submit(&self, item: T) -> Result<R, Ended> {
        let (answer, answered) = oneshot::channel();
        self.items.send((item, answer)).await.map_err(|_| Ended)?;
        answered.await.map_err(|_| Ended)
    }
}

impl<T, R> Rounds<T, R> {
    /// What waits, at most `most` items; none once nobody can ask any more.
    pub async fn next(&mut self, most: usize) -> Option<(Vec<T>, Answers<R>)> {
        let mut taken = Vec::new();
        if self.items.recv_many(&mut taken, most).await == 0 {
            return None;
        }
        let (items, answers) = taken.into_iter().unzip();
        Some((items, Answers(answers)))
    }
}

/// Those who wait for what becomes of their items.
#[derive(Debug)]
pub struct Answers<R>(Vec<oneshot::Sender<R>>);

impl<R> Answers<R> {
    /// Answers each item, in their order. Whoever gets none hears that the process ends.
    pub fn send(self, results: Vec<R>) {
        for (answer, result) in self.0.into_iter().zip(results) {
            // Whoever asked may have gone.
            let _ = answer.send(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;

    #[tokio::test]
    async fn what_comes_in_during_a_round_is_done_together() {
        let (group, mut rounds) = group::<u32, (u32, usize)>(16);
        let running = tokio::spawn(async move {
            while let Some((items, answers)) = rounds.next(4).await {
                tokio::task::yield_now().await;
                let together = items.len();
                answers.send(items.into_iter().map(|item| (item * 2, together)).collect());
            }
        });
        let answers = join_all((0..10).map(|item| group.submit(item))).await;
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        assert!(answers.iter().zip(0..).all(|((double, _), item)| *double == item * 2), "{answers:?}");
        assert!(answers.iter().all(|(_, together)| *together <= 4));
        assert!(answers.iter().any(|(_, together)| *together > 1), "{answers:?}");
        drop(group);
        running.await.unwrap();
    }

    #[tokio::test]
    async fn whoever_asks_hears_of_the_end() {
        let (group, rounds) = group::<(), ()>(1);
        drop(rounds);
        assert_eq!(group.submit(()).await, Err(Ended));
    }
}
