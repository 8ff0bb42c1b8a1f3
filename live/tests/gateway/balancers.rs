//! Through what stands in front of the nodes: TLS and HTTP/2 are the load balancer's, and it must hold nothing back.

use crate::{
    farm::{Farm, Node, PATIENCE},
    viewer::Viewer,
};
use cratemill_stack::{
    data_dir::DataDir,
    haproxy::{Haproxy, Nodes},
    ports::Port,
    process::{Command, Process},
    programs,
};
use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::{Client, Version};
use sqlx::PgPool;
use std::{fs, net::Ipv4Addr, path::PathBuf};
use tokio_tungstenite::tungstenite::Message;

/// A certificate that nobody trusts, with its key, as the load balancer wants them.
fn certificate(folder: &DataDir) -> PathBuf {
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let path = folder.path().join("certificate.pem");
    fs::write(&path, signed.cert.pem() + &signed.signing_key.serialize_pem()).unwrap();
    path
}

fn client() -> Client {
    Client::builder().danger_accept_invalid_certs(true).build().unwrap()
}

/// Follows, is shown each event as it happens, and resumes.
async fn follows(farm: &Farm, url: &str, version: Version, first: u64) {
    let follow = || client().get(format!("{url}/live/events?topic=queue"));
    let mut viewer = Viewer::answer(follow(), String::new()).await;
    assert_eq!(viewer.version(), version);
    for number in first..first + 3 {
        // The next is published when this one has come: nothing waits for more.
        farm.queue_event(number).await;
        assert_eq!(viewer.queue_numbers(1).await, [number]);
    }
    let last_id = viewer.last_id.clone();
    drop(viewer);
    farm.queue_event(first + 3).await;
    let mut resumed = Viewer::answer(follow().header("last-event-id", &last_id), last_id).await;
    assert_eq!(resumed.queue_numbers(1).await, [first + 3]);
}

async fn talks(farm: &Farm, url: &str, number: u64) {
    let url = format!("{}/live/ws", url.replacen("http", "ws", 1));
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    socket.send(Message::text(r#"{"type":"subscribe","topic":"queue"}"#)).await.unwrap();
    for word in ["subscribed", &format!("\"queued\":{number}")] {
        let came = async {
            loop {
                match socket.next().await {
                    Some(Ok(Message::Text(text))) if text.contains("heartbeat") => {}
                    Some(Ok(Message::Text(text))) => return text,
                    other => panic!("{other:?}"),
                }
            }
        };
        let text = tokio::time::timeout(PATIENCE, came).await.unwrap();
        assert!(text.contains(word), "{text}");
        if word == "subscribed" {
            farm.queue_event(number).await;
        }
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn through_haproxy_over_http_2_and_tls(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    let folder = DataDir::temporary().unwrap();
    let nodes = Nodes { api: Vec::new(), live: vec![([127, 0, 0, 1], node.port).into()] };
    let plain = Haproxy::start(&folder, Ipv4Addr::LOCALHOST, &nodes).await.unwrap();
    plain.wait_for_nodes(PATIENCE).await.unwrap();
    follows(&farm, &plain.url(), Version::HTTP_11, 10).await;
    talks(&farm, &plain.url(), 20).await;

    let secure = DataDir::temporary().unwrap();
    let certificate = certificate(&secure);
    let tls = Haproxy::start_with_tls(&secure, Ipv4Addr::LOCALHOST, &nodes, &certificate).await.unwrap();
    tls.wait_for_nodes(PATIENCE).await.unwrap();
    assert!(tls.url().starts_with("https://"));
    follows(&farm, &tls.url(), Version::HTTP_2, 30).await;
}

/// Without buffers, as the README says.
async fn nginx(node: &Node, folder: &DataDir) -> (Process, String) {
    let port = Port::reserve().unwrap();
    let (path, listen) = (folder.path().display(), port.address());
    let config = folder.path().join("nginx.conf");
    let text = format!(
        "daemon off; master_process off; pid {path}/nginx.pid; events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {path}/body; proxy_temp_path {path}/proxy; fastcgi_temp_path {path}/fastcgi;
    uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    server {{
        listen {listen};
        location /live/ {{
            proxy_pass {url};
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_read_timeout 75s;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }}
    }}
}}
",
        url = node.url
    );
    fs::write(&config, text).unwrap();
    let command = Command::new("nginx", programs::NGINX.find().unwrap(), &folder.log());
    let command = command.args(["-e", "stderr", "-c"]).args([&config]);
    let process = command.spawn().await.unwrap();
    let url = format!("http://{listen}");
    let probe = async || reqwest::get(format!("{url}/live/nothing")).await.map(drop).map_err(Into::into);
    process.ready(PATIENCE, probe).await.unwrap();
    (process, url)
}

#[sqlx::test(migrations = "../migrations")]
async fn through_nginx_with_buffering_off(pool: PgPool) {
    let farm = Farm::start(pool).await;
    let node = farm.node().await;
    let folder = DataDir::temporary().unwrap();
    let (_nginx, url) = nginx(&node, &folder).await;
    follows(&farm, &url, Version::HTTP_11, 10).await;
    talks(&farm, &url, 20).await;
}
