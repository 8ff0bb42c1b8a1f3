//! Giving up on a database that says nothing.

use futures_util::FutureExt as _;
use std::{io, time::Duration};
use tokio::time::timeout;

/// The server gives a statement thirty seconds: an answer that has not come by then got lost with the connection.
const NO_ANSWER: Duration = Duration::from_secs(35);

/// Gives up a transaction that the database says nothing about: where a network swallows packets, nobody else tells. It may
/// have been committed all the same.
pub fn in_time<T, E>(transaction: impl Future<Output = Result<T, E>>) -> impl Future<Output = Result<T, E>>
where
    E: From<sqlx::Error>,
{
    within(NO_ANSWER, transaction)
}

fn within<T, E>(
    limit: Duration,
    transaction: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, E>>
where
    E: From<sqlx::Error>,
{
    timeout(limit, transaction).map(|answer| {
        answer.unwrap_or_else(|_| {
            let silent = io::Error::new(io::ErrorKind::TimedOut, "no answer from the database");
            Err(sqlx::Error::Io(silent).into())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_database_that_says_nothing_is_away() {
        let silent = std::future::pending::<Result<(), sqlx::Error>>();
        let given_up = within(Duration::from_millis(1), silent).await;
        assert!(matches!(given_up, Err(sqlx::Error::Io(_))));
        assert_eq!(in_time(async { Ok::<_, sqlx::Error>(7) }).await.unwrap(), 7);
    }
}
