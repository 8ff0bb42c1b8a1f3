//! Which artifact is asked for: from what the node remembers, or from the database.

use super::headers;
use crate::{
    App,
    crates::find_version,
    latest::LATEST,
    problem::{Problem, Result},
};
use axum::http::{HeaderValue, StatusCode};
use cratemill_protocol::{ArtifactId, CrateName, Features, Kind, Sha256Hex, Target};
use cratemill_store::artifacts::{self, Served};
use std::{fmt::Write as _, sync::Arc, time::Duration};
use tokio::sync::OnceCell;

/// A rebuild takes the place of an artifact that is remembered no later than this; the objects of both are there.
const PINNED_LIFE: Duration = Duration::from_secs(10);
/// A version that is published becomes `latest` no later than this.
const LATEST_LIFE: Duration = Duration::from_secs(2);
/// Long enough for a client to follow the redirect, and to follow one that it keeps for a minute. A URL is given out for
/// no longer than its artifact is remembered.
const PRESIGNED_FOR: Duration = Duration::from_mins(5);

/// The artifact that a request names.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub name: &'a CrateName,
    /// A version, or `latest`.
    pub version: &'a str,
    pub target: &'a Target,
    pub kind: Kind,
    pub features: &'a Features,
}

/// What a download needs to know, shared by all that are answered with it.
#[derive(Debug)]
pub(crate) struct Artifact {
    pub(super) id: ArtifactId,
    pub(super) name: String,
    pub(super) object: String,
    pub(super) size: u64,
    pub(super) sha256: Sha256Hex,
    pub(super) yanked: bool,
    pub(super) etag: HeaderValue,
    pub(super) disposition: Option<HeaderValue>,
    /// Signing one costs more than all else of a redirect.
    url: OnceCell<HeaderValue>,
}

impl Wanted<'_> {
    pub(super) fn is_pinned(&self) -> bool {
        self.version != LATEST
    }

    /// From what the node remembers, if it can.
    pub(super) async fn find(&self, app: &App, key: &str) -> Result<Arc<Artifact>> {
        let life = if self.is_pinned() { PINNED_LIFE } else { LATEST_LIFE };
        // In a box, as what is large and rare: room for it in each request would cost more than finding the answer.
        app.hot.get(key, life, || Box::pin(self.load(app))).await
    }

    /// From the database.
    pub(super) async fn load(&self, app: &App) -> Result<Arc<Artifact>> {
        let mut conn = app.pool.acquire().await?;
        let version = find_version(&mut conn, self.name, self.version).await?;
        if version.blocked {
            let detail = format!("{} {} was taken down", version.krate, version.version);
            return Err(Problem::new(StatusCode::GONE, detail));
        }
        let served = artifacts::served(&mut conn, version.id, self.target, self.kind, self.features).await?;
        let Some(served) = served else {
            let (kind, target, features) = (self.kind, self.target, self.features);
            let (krate, version) = (version.krate, version.version);
            let detail = format!("there is no {kind} of {krate} {version} for {target}, features {features}");
            return Err(Problem::not_found(detail));
        };
        Ok(Arc::new(Artifact::new(served, version.yanked)))
    }

    /// The same for all spellings of the crate's name and of the features. No part but the version can hold a '/', so
    /// that no two requests have one.
    pub(super) fn key(&self) -> String {
        let Self { name, version, target, kind, features } = self;
        let mut key = String::with_capacity(name.len() + version.len() + target.len() + 32);
        key.extend(name.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }));
        // Writing to a string cannot fail.
        let _ = write!(key, "/{version}/{}/{}/{features}", &***target, kind.as_str());
        key
    }
}

impl Artifact {
    fn new(served: Served, yanked: bool) -> Self {
        Self {
            id: served.id,
            etag: headers::quoted(&served.sha256),
            disposition: headers::disposition(&served.name),
            name: served.name,
            object: served.object,
            size: served.size.unsigned_abs(),
            sha256: served.sha256,
            yanked,
            url: OnceCell::new(),
        }
    }

    /// Where it is, if somebody has asked before.
    pub(super) fn known_url(&self) -> Option<HeaderValue> {
        self.url.get().cloned()
    }

    /// Where the object store gives it to anybody, for some minutes.
    pub(super) async fn url(&self, app: &App) -> Result<HeaderValue> {
        if let Some(url) = self.url.get() {
            return Ok(url.clone());
        }
        let sign = async {
            let url = app.objects.presign_get(&self.object, &self.name, PRESIGNED_FOR).await?;
            HeaderValue::try_from(url).map_err(|error| {
                tracing::error!(%error, object = self.object, "a presigned URL fits into no header");
                Problem::internal()
            })
        };
        Box::pin(self.url.get_or_try_init(|| sign)).await.cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, version: &str, target: &str, features: &str) -> String {
        let (name, target) = (name.parse().unwrap(), target.parse().unwrap());
        let features = features.parse().unwrap();
        let kind = Kind::Tarball;
        Wanted { name: &name, version, target: &target, kind, features: &features }.key()
    }

    #[test]
    fn a_key_is_that_of_one_artifact() {
        let one = key("Demo-Tool", "1.0.0", "any", "default,b,a");
        assert_eq!(one, "demo_tool/1.0.0/any/tarball/default,a,b");
        assert_eq!(one, key("demo_tool", "1.0.0", "any", ",a,b"));
        let others = [
            key("demo_tool", "1.0.0", "any", "default"),
            key("demo_tool", "1.0.0", "any", "no-default,a,b"),
            key("demo_tool", "1.0.1", "any", "default,a,b"),
            key("demo_tool", "1.0.0/any", "any", "default,a,b"),
            key("demo", "1.0.0", "any", "default,a,b"),
        ];
        assert!(!others.contains(&one));
    }
}
