//! Sessions of clients that publish and subscribe: each connection begins an epoch.

use cratemill_protocol::SubscriptionId;
use cratemill_store::{
    PgPool,
    pubsub::{
        members::{self, Joined},
        sessions,
    },
};
use std::time::Duration;
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
    assert_eq!(members::leave(&mut conn, (SESSION, older), wanted).await.unwrap(), None);
    assert!(members::exists(&mut conn, wanted).await.unwrap());
    sessions::detach(&mut conn, SESSION, older, 99).await.unwrap();
    assert_eq!(sessions::node(&mut conn, SESSION).await.unwrap().as_deref(), Some("node-2"));
    assert!(sessions::confirm(&mut conn, &[(SESSION, older, 99)]).await.unwrap().is_empty());
    assert_eq!(members::leave(&mut conn, (SESSION, newer), wanted).await.unwrap(), Some(Vec::new()));
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
