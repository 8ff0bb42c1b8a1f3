//! SIGTERM: viewers are told, and the process ends in time whether they listen or not.

use crate::{farm::Farm, viewer::Viewer};
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

#[sqlx::test(migrations = "../migrations")]
async fn viewers_are_told_and_continue_elsewhere(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let (node, other) = (farm.node().await, farm.node().await);
    let mut viewer = Viewer::open(&node, &["queue"]).await;
    farm.queue_event(1).await;
    assert_eq!(viewer.queue_numbers(1).await, [1]);
    // One that never reads, and one that has not even asked.
    let mut deaf = TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();
    deaf.write_all(b"GET /live/events?topic=queue HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    deaf.read_u8().await.unwrap();
    let _silent = TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();

    let (ended_well, ()) = tokio::join!(node.terminate(), async {
        viewer.expect("draining").await;
        assert!(viewer.next().await.is_none());
    });
    assert!(ended_well, "{}", node.process.log_tail());
    farm.queue_event(2).await;
    let mut resumed = Viewer::resume(&other, &["queue"], &viewer.last_id).await;
    assert_eq!(resumed.queue_numbers(1).await, [2]);
}
