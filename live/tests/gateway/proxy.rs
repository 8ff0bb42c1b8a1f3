//! A connection to the bus that a test can cut, for one node alone.

use std::sync::Arc;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

pub(crate) struct Proxy {
    pub(crate) port: u16,
    cut: watch::Sender<bool>,
    server: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (cut, is_cut) = watch::channel(false);
        let server = tokio::spawn(serve(listener, target.into(), is_cut));
        Self { port, cut, server }
    }

    /// Ends what is connected, and what connects.
    pub(crate) fn cut(&self) {
        self.cut.send_replace(true);
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

async fn serve(listener: TcpListener, target: Arc<str>, is_cut: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        let (target, mut is_cut) = (Arc::clone(&target), is_cut.clone());
        connections.spawn(async move {
            let copy = async {
                let mut server = TcpStream::connect(&*target).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            };
            tokio::select! {
                _ = copy => {}
                _ = is_cut.wait_for(|cut| *cut) => {}
            }
        });
    }
}
