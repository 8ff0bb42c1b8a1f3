//! SIGTERM: clients are told, and the process ends in time whether they listen or not.

use super::{
    Scene,
    people::{Events, Socket},
};
use serde_json::json;
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

#[sqlx::test(migrations = false)]
async fn clients_are_told_and_continue_elsewhere(pool: PgPool) {
    let scene = Scene::start(&pool).await;
    let (node, other) = (scene.node().await, scene.node().await);
    let mut socket = Socket::open(&node, 1).await;
    socket.subscribe("user").await;
    let mut events = Events::open(&node, "user", 1, "").await;
    // The other has heard what comes, since somebody listens there too.
    let mut elsewhere = Events::open(&other, "user", 1, "").await;
    let mut publisher = scene.publisher().await;
    publisher.is_subscribed("timeline:1", 2).await;
    publisher.status("timeline:1", 9, 1).await;
    assert_eq!((socket.number().await, events.number().await, elsewhere.number().await), (1, 1, 1));
    // One that never reads, and one that has not even asked.
    let small = TcpSocket::new_v4().unwrap();
    small.set_recv_buffer_size(4_096).unwrap();
    let mut deaf = small.connect(([127, 0, 0, 1], node.port).into()).await.unwrap();
    let request = "GET /api/v1/streaming/user?access_token=token-2 HTTP/1.1\r\nhost: x\r\n\r\n";
    deaf.write_all(request.as_bytes()).await.unwrap();
    deaf.read_u8().await.unwrap();
    publisher.is_subscribed("timeline:2", 1).await;
    // It is owed more than it may be: it has its last words coming, and the kernel takes nothing more for it.
    let long = json!({ "text": "x".repeat(100_000) });
    while node.metric("cratemill_live_viewers_dropped_total{reason=\"slow\"} ").await < 1.0 {
        publisher.publish("timeline:2", "update", long.clone()).await;
    }
    let _silent = TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();

    let last_id = events.last_id.clone();
    let (ended_well, farewell, rest) = tokio::join!(node.terminate(), socket.farewell(), events.farewell());
    assert!(ended_well, "{}", node.process.log_tail());
    assert_eq!((farewell, &*rest), ((1012, "draining".to_owned()), ":draining\n\n"));
    publisher.is_subscribed("timeline:1", 1).await;
    publisher.status("timeline:1", 9, 2).await;
    assert_eq!(elsewhere.number().await, 2);
    let mut resumed = Events::open(&other, "user", 1, &last_id).await;
    assert_eq!(resumed.number().await, 2);
}
