//! The object store, over S3.

use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
        retry::RetryConfig, timeout::TimeoutConfig,
    },
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    presigning::PresigningConfig,
    primitives::{ByteStream, SdkBody},
};
use bytes::Bytes;
use std::{path::Path, time::Duration};

/// One try at reaching the store.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A store that sends nothing for this long is away.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
const ATTEMPTS: u32 = 3;

#[derive(Clone, clap::Args)]
pub struct ObjectStore {
    /// S3 endpoint: `https://host[:port]`; buckets are addressed by path.
    #[arg(long, env = "S3_ENDPOINT", value_name = "URL")]
    pub s3_endpoint: String,
    /// Bucket for artifacts and logs; it must exist.
    #[arg(long, env = "S3_BUCKET", value_name = "NAME")]
    pub s3_bucket: String,
    /// Region that requests are signed for; a store without regions takes any
    #[arg(long, env = "S3_REGION", value_name = "NAME", default_value = "us-east-1")]
    pub s3_region: String,
    /// Access key id, with the right to read, write and delete objects of the bucket
    #[arg(long, env = "S3_ACCESS_KEY", value_name = "KEY", hide_env_values = true)]
    pub s3_access_key: String,
    /// Secret of the access key
    #[arg(long, env = "S3_SECRET_KEY", value_name = "SECRET", hide_env_values = true)]
    pub s3_secret_key: String,
}

impl std::fmt::Debug for ObjectStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ObjectStore({} {})", self.s3_endpoint, self.s3_bucket)
    }
}

#[derive(Debug, Clone)]
pub struct Objects {
    client: Client,
    bucket: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no object {0}")]
    NotFound(String),
    #[error("the asked range is not in the object")]
    Range,
    #[error("the object store failed: {0}")]
    Unavailable(String),
}

/// The bytes of an object, chunk by chunk.
pub use aws_sdk_s3::primitives::ByteStream as Body;

/// An object, or the asked part of it, as it arrives.
#[derive(Debug)]
pub struct Object {
    pub body: ByteStream,
    /// Bytes in the body.
    pub length: u64,
    /// `bytes a-b/n`, where a range was asked for.
    pub content_range: Option<String>,
}

impl Objects {
    pub fn new(config: &ObjectStore) -> Self {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(aws_smithy_http_client::tls::Provider::Rustls(
                aws_smithy_http_client::tls::rustls_provider::CryptoMode::Ring,
            ))
            .build_https();
        let timeouts =
            TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT).build();
        let config_s3 = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http)
            .endpoint_url(&config.s3_endpoint)
            .force_path_style(true)
            .region(Region::new(config.s3_region.clone()))
            .credentials_provider(Credentials::new(
                &config.s3_access_key,
                &config.s3_secret_key,
                None,
                None,
                "config",
            ))
            // Some stores refuse streaming checksums; we keep a sha256 of our own for every object.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(timeouts)
            .build();
        Self { client: Client::from_conf(config_s3), bucket: config.s3_bucket.clone() }
    }

    /// For `/readyz`.
    pub async fn check(&self) -> Result<(), Error> {
        self.client.head_bucket().bucket(&self.bucket).send().await.map_err(|e| sort(e, &self.bucket))?;
        Ok(())
    }

    pub async fn put(&self, key: &str, bytes: Bytes, content_type: &str) -> Result<(), Error> {
        let put = self.client.put_object().bucket(&self.bucket).key(key).content_type(content_type);
        put.body(ByteStream::from(bytes)).send().await.map_err(|e| sort(e, key))?;
        Ok(())
    }

    /// Stores a file, in constant memory; it is read again where a try fails.
    pub async fn put_file(&self, key: &str, file: &Path, content_type: &str) -> Result<(), Error> {
        let body =
            ByteStream::from_path(file).await.map_err(|error| Error::Unavailable(error.to_string()))?;
        let put = self.client.put_object().bucket(&self.bucket).key(key).content_type(content_type);
        put.body(body).send().await.map_err(|e| sort(e, key))?;
        Ok(())
    }

    /// Stores a body of known length as it arrives, in constant memory. It is tried once: the sender must send again.
    pub async fn put_stream<B>(&self, key: &str, length: u64, body: B) -> Result<(), Error>
    where
        B: http_body::Body<Data = Bytes> + Send + Sync + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let length = i64::try_from(length).map_err(|_| Error::Range)?;
        let put = self.client.put_object().bucket(&self.bucket).key(key).content_length(length);
        let body = ByteStream::new(SdkBody::from_body_1_x(body));
        put.content_type("application/octet-stream").body(body).send().await.map_err(|e| sort(e, key))?;
        Ok(())
    }

    /// `range` is an HTTP Range value, `bytes=...`, of one range.
    pub async fn get(&self, key: &str, range: Option<&str>) -> Result<Object, Error> {
        let get = self.client.get_object().bucket(&self.bucket).key(key).set_range(range.map(str::to_owned));
        let object = get.send().await.map_err(|e| sort(e, key))?;
        Ok(Object {
            length: object.content_length().and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
            content_range: object.content_range().map(str::to_owned),
            body: object.body,
        })
    }

    /// The whole object, if it is not longer than `most`.
    pub async fn get_bytes(&self, key: &str, most: u64) -> Result<Bytes, Error> {
        let object = self.get(key, None).await?;
        if object.length > most {
            return Err(Error::Unavailable(format!(
                "{key} has {} bytes, at most {most} are read",
                object.length
            )));
        }
        let bytes = object.body.collect().await.map_err(|error| Error::Unavailable(error.to_string()))?;
        Ok(bytes.into_bytes())
    }

    /// Deleting what is not there is no error.
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        self.client.delete_object().bucket(&self.bucket).key(key).send().await.map_err(|e| sort(e, key))?;
        Ok(())
    }

    /// A URL at which anyone can get the object for `valid`.
    pub async fn presign_get(&self, key: &str, file_name: &str, valid: Duration) -> Result<String, Error> {
        let presigning =
            PresigningConfig::expires_in(valid).map_err(|error| Error::Unavailable(error.to_string()))?;
        let get = self.client.get_object().bucket(&self.bucket).key(key);
        let get = get.response_content_disposition(format!("attachment; filename=\"{file_name}\""));
        let request = get.presigned(presigning).await.map_err(|e| sort(e, key))?;
        Ok(request.uri().to_owned())
    }
}

fn sort<E>(error: SdkError<E>, key: &str) -> Error
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    match (error.code(), status) {
        (Some("NoSuchKey"), _) | (_, Some(404)) => Error::NotFound(key.to_owned()),
        (Some("InvalidRange"), _) | (_, Some(416)) => Error::Range,
        _ => Error::Unavailable(DisplayErrorContext(error).to_string()),
    }
}
