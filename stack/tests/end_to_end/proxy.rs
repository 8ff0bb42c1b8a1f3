//! A network that fails exactly when a test wants it: a TCP proxy between a builder and the load balancer.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

/// What happens to the connections to come; each happens once.
#[derive(Debug, Default)]
struct Plan {
    /// The next upload gets this far, then stands still.
    upload: Option<(usize, oneshot::Sender<()>)>,
    /// The connection in which the server says this is cut, and the word is lost.
    word: Option<(&'static str, oneshot::Sender<()>)>,
}

#[derive(Debug)]
pub(super) struct Proxy {
    address: SocketAddr,
    to: Arc<OnceLock<String>>,
    plan: Arc<Mutex<Plan>>,
    server: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to, plan) = (Arc::<OnceLock<String>>::default(), Arc::<Mutex<Plan>>::default());
        let (target, plans) = (to.clone(), plan.clone());
        let server = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, plan) = (target.clone(), plans.clone());
                tokio::spawn(async move {
                    // Not there yet: the connection ends, and the client tries again.
                    if let Some(target) = target.get()
                        && let Ok(server) = TcpStream::connect(target).await
                    {
                        pass(client, server, &plan).await;
                    }
                });
            }
        });
        Self { address, to, plan, server }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it leads, as `http://host:port`.
    pub(super) fn lead_to(&self, url: &str) {
        self.to.set(url.trim_start_matches("http://").to_owned()).unwrap();
    }

    /// The next upload stops after so many bytes; tells when.
    pub(super) fn stop_upload(&self, after: usize) -> oneshot::Receiver<()> {
        let (told, tell) = oneshot::channel();
        self.plan.lock().unwrap().upload = Some((after, told));
        tell
    }

    /// Cuts the connection in which the server says `word`; tells when.
    pub(super) fn cut_at(&self, word: &'static str) -> oneshot::Receiver<()> {
        let (told, tell) = oneshot::channel();
        self.plan.lock().unwrap().word = Some((word, told));
        tell
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Until either side ends, or the plan says so.
async fn pass(mut client: TcpStream, mut server: TcpStream, plan: &Mutex<Plan>) {
    let (mut from_client, mut from_server) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let Ok(count @ 1..) = read else { return };
                let stopped = from_client.starts_with(b"PUT ").then(|| plan.lock().unwrap().upload.take()).flatten();
                if let Some((after, told)) = stopped {
                    let _ = server.write_all(&from_client[..count.min(after)]).await;
                    let _ = told.send(());
                    // Nothing more comes, and the connection stays: only the node's death ends it, or what the load
                    // balancer says of that.
                    let _ = server.read(&mut from_server).await;
                    return;
                }
                if server.write_all(&from_client[..count]).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut from_server) => {
                let Ok(count @ 1..) = read else { return };
                let said = &from_server[..count];
                let is_word = |word: &str| said.windows(word.len()).any(|window| window == word.as_bytes());
                let cut = plan.lock().unwrap().word.take_if(|(word, _)| is_word(word));
                if let Some((_, told)) = cut {
                    let _ = told.send(());
                    return;
                }
                if client.write_all(said).await.is_err() {
                    return;
                }
            }
        }
    }
}
