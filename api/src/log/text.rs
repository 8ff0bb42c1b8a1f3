//! The body of a log that was on the bus when it was asked for.

use super::{
    archive::Archive,
    live::{Live, Read},
};
use crate::App;
use axum::body::Body;
use bytes::Bytes;
use cratemill_store::attempts;
use futures_util::stream;
use std::io;

enum Source {
    Bus(Box<Live>),
    Archive(Box<Archive>),
}

/// What the bus has, and from where it stops having it, what the archive has.
pub(crate) fn body(app: App, live: Live) -> Body {
    let start = Some((app, Source::Bus(Box::new(live))));
    Body::from_stream(stream::unfold(start, async |state| {
        let (app, mut source) = state?;
        match next(&app, &mut source).await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some((app, source)))),
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%error, "a log broke off");
                Some((Err(error), None))
            }
        }
    }))
}

async fn next(app: &App, source: &mut Source) -> io::Result<Option<Bytes>> {
    if let Source::Bus(live) = source {
        match live.read().await.map_err(io::Error::other)? {
            Read::Text(text) => return Ok(Some(text)),
            Read::End => return Ok(None),
            Read::Gone => *source = Source::Archive(Box::new(open_archive(app, live).await?)),
        }
    }
    match source {
        Source::Archive(archive) => archive.next().await,
        Source::Bus(_) => Ok(None),
    }
}

async fn open_archive(app: &App, live: &Live) -> io::Result<Archive> {
    let mut conn = app.pool.acquire().await.map_err(io::Error::other)?;
    let log = attempts::log(&mut conn, live.job, Some(live.attempt)).await.map_err(io::Error::other)?;
    let object = log.and_then(|log| log.log_object).ok_or_else(|| {
        io::Error::new(io::ErrorKind::UnexpectedEof, "the log is neither on the bus nor in the archive")
    })?;
    let object = app.objects.get(&object, None).await.map_err(io::Error::other)?;
    Ok(Archive::new(object.body, live.offset))
}
