//! What a live system may have for a while, and a system at rest may not.

use super::world::World;
use cratemill_protocol::subjects;
use cratemill_store::PgPool;
use std::time::Duration;

#[sqlx::test(migrations = "../migrations")]
async fn nothing_may_be_under_way_at_rest(pool: PgPool) {
    let world = World::at_rest(pool).await;
    assert_eq!(world.found(&["--at-rest"]).await, [""; 0], "{}", world.audit(&["--at-rest"]).await);
    let request = subjects::build_request("api-1");
    world.api.store(&request, "r", "x".into(), Duration::from_secs(30)).await.unwrap();
    assert_eq!(world.found(&[]).await, [""; 0]);
    assert_eq!(world.found(&["--at-rest"]).await, ["work-queues"]);
    world.admin.jetstream.get_stream(subjects::BUILD_STREAM).await.unwrap().purge().await.unwrap();

    sqlx::query("UPDATE finished_jobs SET log_object = NULL WHERE job_id = $1")
        .bind(world.good.0)
        .execute(&world.pool)
        .await
        .unwrap();
    assert_eq!(world.found(&[]).await, [""; 0]);
    assert_eq!(world.found(&["--at-rest"]).await, ["unarchived-logs"]);
}
