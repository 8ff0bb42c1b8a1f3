//! An S3 server in this process, over a folder: the local stack takes the same code path as production.

use crate::{data_dir::DataDir, ports::Port, secrets::Secrets};
use anyhow::{Result, anyhow};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use s3s::{
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use s3s_fs::FileSystem;
use std::{fs, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle};

pub const BUCKET: &str = "cratemill";
pub const REGION: &str = "us-east-1";

/// Of clients at once: beyond it they wait in the listen queue.
const MAX_CONNECTIONS: usize = 512;
/// When the process is out of file descriptors, accepting again at once would only spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct S3 {
    port: Port,
    access_key: String,
    secret_key: String,
    service: S3Service,
    server: Option<JoinHandle<()>>,
}

impl S3 {
    /// Starts it with one bucket. It runs on the current runtime until it is dropped.
    pub async fn start(data_dir: &DataDir, secrets: &mut Secrets) -> Result<Self> {
        let (access_key, secret_key) = (secrets.get("s3_access")?, secrets.get("s3_secret")?);
        let root = data_dir.path().join("s3");
        fs::create_dir_all(root.join(BUCKET))?;
        let files = FileSystem::new(&root).map_err(|error| anyhow!("{}: {error:?}", root.display()))?;
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(access_key.as_str(), secret_key.as_str()));
        let (port, service) = (Port::reserve()?, service.build());
        let mut this = Self { port, access_key, secret_key, service, server: None };
        this.restart().await?;
        Ok(this)
    }

    /// Takes it away: its connections break, and nobody listens any more.
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            // It ends in no other way.
            let _ = server.await;
        }
    }

    /// Brings it back, on the same port and data.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await;
        let listener = TcpListener::bind(self.port.address()).await?;
        self.server = Some(tokio::spawn(serve(listener, self.service.clone())));
        Ok(())
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.port.address())
    }

    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    pub fn secret_key(&self) -> &str {
        &self.secret_key
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

async fn serve(listener: TcpListener, service: S3Service) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Ends its connections with itself.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the S3 server cannot accept");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone());
        connections.spawn(async move {
            // A client that goes away is no concern of the server's.
            let _ = connection.await;
            drop(permit);
        });
    }
}
