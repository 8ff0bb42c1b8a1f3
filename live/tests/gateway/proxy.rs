//! A connection to the bus that a test can cut, or keep the answers of, for one node alone.

use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

pub(crate) struct Proxy {
    pub(crate) port: u16,
    cut: watch::Sender<bool>,
    mute: watch::Sender<bool>,
    server: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (cut, is_cut) = watch::channel(false);
        let (mute, is_mute) = watch::channel(false);
        let server = tokio::spawn(serve(listener, target.into(), is_cut, is_mute));
        Self { port, cut, mute, server }
    }

    /// Ends what is connected, and what connects.
    pub(crate) fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// The server is still told everything, and nothing that it says arrives.
    pub(crate) fn mute(&self) {
        self.mute.send_replace(true);
    }

    pub(crate) fn heal(&self) {
        self.cut.send_replace(false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(
    listener: TcpListener,
    target: Arc<str>,
    is_cut: watch::Receiver<bool>,
    is_mute: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let (target, mut is_cut, is_mute) = (Arc::clone(&target), is_cut.clone(), is_mute.clone());
        connections.spawn(async move {
            tokio::select! {
                _ = pass(client, &target, is_mute) => {}
                _ = is_cut.wait_for(|cut| *cut) => {}
            }
        });
    }
}

/// Until either side ends.
async fn pass(
    mut client: TcpStream,
    target: &str,
    mut is_mute: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut server = TcpStream::connect(target).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let answers = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = from_server.read(&mut buffer).await?;
            if count == 0 || is_mute.wait_for(|mute| !mute).await.is_err() {
                return Ok(());
            }
            to_client.write_all(&buffer[..count]).await?;
        }
    };
    tokio::select! {
        result = tokio::io::copy(&mut from_client, &mut to_server) => result.map(drop),
        result = answers => result,
    }
}
