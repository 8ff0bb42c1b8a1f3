//! Builders that end one attempt after the other badly.

use crate::support::{LINUX, connected, job, version};
use cratemill_protocol::{BuilderId, builder::JobRef, bus::BuildRequest};
use cratemill_store::{PgConnection, PgPool, builders, faults, queue, sessions};

async fn is_served(conn: &mut PgConnection) -> bool {
    !sessions::waiting(conn, 1).await.unwrap().is_empty()
}

/// The pause is over.
async fn wait_out(conn: &mut PgConnection, builder: BuilderId) {
    sqlx::query("UPDATE builder_faults SET paused_until = now() WHERE builder_id = $1")
        .bind(builder.0)
        .execute(conn)
        .await
        .unwrap();
}

#[sqlx::test(migrations = "../migrations")]
async fn pauses_grow_until_an_attempt_ends_well(pool: PgPool) {
    let mut conn = pool.acquire().await.unwrap();
    let id = connected(&mut conn, "b", LINUX).await;
    let version = version(&mut conn, "queued").await;
    queue::enqueue(&mut conn, &job(version)).await.unwrap();
    let request = BuildRequest {
        builder: id,
        connection: "c-b".into(),
        node: "node-1".into(),
        targets: vec![],
        slots: 2,
        answered: Vec::<JobRef>::new(),
        serial: 1,
    };
    sessions::request(&mut conn, &request).await.unwrap();

    for _ in 0..2 {
        assert_eq!(faults::note(&mut conn, id).await.unwrap(), None);
        assert!(is_served(&mut conn).await, "once or twice is no habit");
    }
    for expected in [10.0, 20.0, 40.0] {
        assert_eq!(faults::note(&mut conn, id).await.unwrap(), Some(expected));
        assert!(!is_served(&mut conn).await);
        assert_eq!(faults::note(&mut conn, id).await.unwrap(), None, "what it had in hand counts once");
        assert!(builders::find(&mut conn, id).await.unwrap().unwrap().paused_until.is_some());
        wait_out(&mut conn, id).await;
        assert!(is_served(&mut conn).await);
    }
    for _ in 0..20 {
        wait_out(&mut conn, id).await;
        assert!(faults::note(&mut conn, id).await.unwrap().unwrap() <= 3_600.0);
    }
    faults::forget(&mut conn, &[id]).await.unwrap();
    assert!(is_served(&mut conn).await);
    assert_eq!(builders::find(&mut conn, id).await.unwrap().unwrap().paused_until, None);
    assert_eq!(faults::note(&mut conn, id).await.unwrap(), None, "it begins anew");

    // What was long ago does not count.
    for _ in 0..2 {
        sqlx::query("UPDATE builder_faults SET last_at = now() - interval '1 day', faults = 9")
            .execute(&mut *conn)
            .await
            .unwrap();
        assert_eq!(faults::note(&mut conn, id).await.unwrap(), None);
    }
}
