//! The S3 server of a stack, through the client that the services use.

use bytes::Bytes;
use cratemill_stack::{
    data_dir::DataDir,
    s3::{BUCKET, REGION, S3},
    secrets::Secrets,
};
use cratemill_store::objects::{Error, ObjectStore, Objects};
use http_body_util::{BodyExt, Full};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

fn objects(s3: &S3, secret_key: &str) -> Objects {
    Objects::new(&ObjectStore {
        s3_endpoint: s3.endpoint(),
        s3_bucket: BUCKET.into(),
        s3_region: REGION.into(),
        s3_access_key: s3.access_key().into(),
        s3_secret_key: secret_key.into(),
    })
}

#[tokio::test]
async fn it_does_what_the_services_ask_of_it() {
    let data_dir = DataDir::temporary().unwrap();
    let mut secrets = Secrets::open(data_dir.path()).unwrap();
    let s3 = S3::start(&data_dir, &mut secrets).await.unwrap();
    let objects = objects(&s3, s3.secret_key());
    objects.check().await.unwrap();
    let key = "artifacts/a/b.tar.gz";
    let body: Bytes = (0..=255).cycle().take(3_000_000).collect::<Vec<u8>>().into();
    objects.put_stream(key, 3_000_000, Full::new(body.clone()).map_err(std::io::Error::other)).await.unwrap();
    assert_eq!(objects.get_bytes(key, 3_000_000).await.unwrap(), body);

    let part = objects.get(key, Some("bytes=256-511")).await.unwrap();
    assert_eq!((part.length, part.content_range.as_deref()), (256, Some("bytes 256-511/3000000")));
    assert_eq!(part.body.collect().await.unwrap().into_bytes(), body[256..512]);
    assert!(matches!(objects.get(key, Some("bytes=4000000-")).await, Err(Error::Range)));

    let url = objects.presign_get(key, "b.tar.gz", Duration::from_mins(1)).await.unwrap();
    let answer = reqwest::get(&url).await.unwrap();
    assert!(answer.status().is_success());
    assert_eq!(answer.bytes().await.unwrap(), body);
    let forged = url.replace("b.tar.gz?", "c.tar.gz?");
    assert!(reqwest::get(forged).await.unwrap().status().is_client_error());

    objects.delete(key).await.unwrap();
    objects.delete(key).await.unwrap();
    assert!(matches!(objects.get(key, None).await, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn a_wrong_key_is_refused_and_objects_stay_over_a_restart() {
    let data_dir = DataDir::temporary().unwrap();
    let mut secrets = Secrets::open(data_dir.path()).unwrap();
    let s3 = S3::start(&data_dir, &mut secrets).await.unwrap();
    assert!(objects(&s3, "wrong").check().await.is_err());
    objects(&s3, s3.secret_key()).put("log", Bytes::from_static(b"text"), "text/plain").await.unwrap();
    drop(s3);
    let s3 = S3::start(&data_dir, &mut secrets).await.unwrap();
    assert_eq!(objects(&s3, s3.secret_key()).get_bytes("log", 10).await.unwrap(), "text");
}

#[tokio::test]
async fn it_goes_away_and_comes_back_where_it_was() {
    let data_dir = DataDir::temporary().unwrap();
    let mut s3 = S3::start(&data_dir, &mut Secrets::open(data_dir.path()).unwrap()).await.unwrap();
    let objects = objects(&s3, s3.secret_key());
    objects.put("log", Bytes::from_static(b"text"), "text/plain").await.unwrap();
    // A connection under way, with half of a request.
    let address = s3.endpoint().trim_start_matches("http://").to_owned();
    let mut connection = TcpStream::connect(&address).await.unwrap();
    connection.write_all(b"GET /cratemill/log HTTP/1.1\r\n").await.unwrap();

    s3.stop().await;
    assert_eq!(connection.read(&mut [0]).await.unwrap_or(0), 0, "it breaks");
    TcpStream::connect(&address).await.unwrap_err();
    assert!(matches!(objects.get_bytes("log", 10).await, Err(Error::Unavailable(_))));
    s3.restart().await.unwrap();
    assert_eq!(objects.get_bytes("log", 10).await.unwrap(), "text");
}
