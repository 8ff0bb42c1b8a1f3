//! Sessions of clients that publish and subscribe: each connection begins an epoch.

use cratemill_protocol::SubscriptionId;
use cratemill_store::{
    PgPool,
    pubsub::{
        members::{self, Joined, Left},
        sessions,
    },
};
use std::time::Duration;
use tokio::time::timeout;
use uuid::Uuid;

const MOST: (i64, i64) = (3, 1);
const SESSION: Uuid = Uuid::from_u128(1);

fn subscription(number: u128) -> SubscriptionId {
    SubscriptionId(Uuid::from_u128(number))
}

#[sqlx::test(migrations = "../migrations")]
async fn what_an_older_connection_still_says_is_void(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let [older, newer] = [
        sessions::attach(&mut conn, SESSION, None, "node-1").await.unwrap().unwrap().epoch,
        sessions::attach(&mut conn, SESSION, None, "node-2").await.unwrap().unwrap().epoch,
    ];
    let wanted = subscription(7);
    let join = members::join(&mut conn, (SESSION, newer), wanted, "", 5, MOST).await.unwrap();
    assert_eq!(join, Joined::Done { since: 5, group: None });
    let again = members::join(&mut conn, (SESSION, newer), wanted, "", 9, MOST).await.unwrap();
    assert_eq!(again, Joined::Before { since: 5, group: None });
    let late = members::join(&mut conn, (SESSION, older), subscription(8), "", 5, MOST).await.unwrap();
    assert_eq!(late, Joined::Superseded);
    assert_eq!(members::leave(&mut conn, (SESSION, older), wanted).await.unwrap(), Left::Superseded);
    assert!(members::exists(&mut conn, wanted).await.unwrap());
    sessions::detach(&mut conn, SESSION, older, 99).await.unwrap();
    assert_eq!(sessions::node(&mut conn, SESSION).await.unwrap().as_deref(), Some("node-2"));
    assert!(sessions::confirm(&mut conn, &[(SESSION, older, 99)]).await.unwrap().is_empty());
    assert_eq!(members::leave(&mut conn, (SESSION, newer), wanted).await.unwrap(), Left::Done(vec![]));
    assert_eq!(members::leave(&mut conn, (SESSION, newer), wanted).await.unwrap(), Left::NotThere);
    assert!(!members::exists(&mut conn, wanted).await.unwrap());
    let third = sessions::attach(&mut conn, SESSION, None, "node-1").await.unwrap().unwrap();
    assert_eq!((third.epoch, third.confirmed), (newer + 1, 0));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_session_that_nobody_came_back_to_is_forgotten_with_all_it_had(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let epoch = sessions::attach(&mut conn, SESSION, None, "node-1").await.unwrap().unwrap().epoch;
    let own = (SESSION, epoch);
    members::join(&mut conn, own, subscription(1), "", 0, MOST).await.unwrap();
    let joined = members::join(&mut conn, own, subscription(2), "workers", 0, MOST).await.unwrap();
    let Joined::Done { group: Some(group), .. } = joined else { panic!("{joined:?}") };
    let too_many = members::join(&mut conn, own, subscription(3), "others", 0, MOST).await.unwrap();
    assert_eq!(too_many, Joined::TooMany);
    let long = Duration::from_hours(1);
    assert!(sessions::forget(&mut conn, SESSION, long).await.unwrap().is_empty());
    assert!(sessions::old(&mut conn, Duration::ZERO, 9).await.unwrap().contains(&SESSION));
    assert_eq!(sessions::forget(&mut conn, SESSION, Duration::ZERO).await.unwrap(), [group]);
    for number in [1, 2] {
        assert!(!members::exists(&mut conn, subscription(number)).await.unwrap());
    }
    assert!(sessions::memberships(&mut conn, SESSION).await.unwrap().is_empty());
}

/// Until so many wait for others' transactions in this database.
async fn wait_for_each_other(pool: &PgPool, count: i64) {
    let waiting = async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        while sqlx::query_scalar::<_, i64>(sql).fetch_one(pool).await.unwrap() < count {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), waiting).await.expect("they wait");
}

/// The last one leaves while somebody comes, who makes it again.
#[sqlx::test(migrations = "../migrations")]
async fn who_comes_while_the_last_one_leaves_is_there(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let other = Uuid::from_u128(2);
    for session in [SESSION, other] {
        sessions::attach(&mut conn, session, None, "node-1").await.unwrap().unwrap();
    }
    let wanted = subscription(7);
    members::join(&mut conn, (SESSION, 1), wanted, "", 0, MOST).await.unwrap();
    let mut leaving = pool.begin().await.unwrap();
    sqlx::query("SELECT FROM pubsub_subscriptions FOR UPDATE").execute(&mut *leaving).await.unwrap();
    let coming = tokio::spawn({
        let pool = pool.clone();
        async move {
            let mut conn = pool.acquire().await.unwrap();
            members::join(&mut conn, (other, 1), wanted, "", 5, MOST).await.unwrap()
        }
    });
    wait_for_each_other(&pool, 1).await;
    let left = members::leave(&mut leaving, (SESSION, 1), wanted).await.unwrap();
    assert_eq!(left, Left::Done(vec![]));
    leaving.commit().await.unwrap();
    assert_eq!(coming.await.unwrap(), Joined::Done { since: 5, group: None });
    assert!(members::exists(&mut conn, wanted).await.unwrap());
}

/// They have the same subscriptions, and began with another one of them.
#[sqlx::test(migrations = "../migrations")]
async fn sessions_that_are_forgotten_at_once_do_not_wait_for_each_other(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let others = [Uuid::from_u128(2), Uuid::from_u128(3)];
    for (session, order) in others.into_iter().zip([[1, 2], [2, 1]]) {
        sessions::attach(&mut conn, session, None, "node-1").await.unwrap().unwrap();
        for (since, number) in (0..).zip(order) {
            members::join(&mut conn, (session, 1), subscription(number), "", since, MOST).await.unwrap();
        }
    }
    // Each waits where it begins, until all have begun.
    let mut gate = pool.begin().await.unwrap();
    sqlx::query("SELECT FROM pubsub_subscriptions FOR UPDATE").execute(&mut *gate).await.unwrap();
    let forgetting = others.map(|session| {
        let pool = pool.clone();
        tokio::spawn(async move {
            let mut tx = pool.begin().await.unwrap();
            sessions::forget(&mut tx, session, Duration::ZERO).await.unwrap();
            tx.commit().await.unwrap();
        })
    });
    wait_for_each_other(&pool, 2).await;
    gate.rollback().await.unwrap();
    for one in forgetting {
        one.await.unwrap();
    }
    assert!(!members::exists(&mut conn, subscription(1)).await.unwrap());
}
