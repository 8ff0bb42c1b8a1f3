//! A day's counts as a file: `downloads/2026-11-20.csv.gz`, sorted, with a head line.

use anyhow::Context as _;
use cratemill_store::{
    PgConnection, PgPool, database,
    downloads::{self, dumps},
    objects::Objects,
    patience::in_time,
};
use flate2::{Compression, write::GzEncoder};
use futures_util::TryStreamExt;
use std::{io::Write, time::Duration};
use tempfile::NamedTempFile;
use time::Date;
use tokio::{sync::mpsc, task::spawn_blocking, time::timeout};

/// Pieces between the database and the file, a few kilobytes each.
const PIECES: usize = 16;
/// The first piece comes when the day is sorted, the others at once.
const PIECE: Duration = Duration::from_mins(1);
/// Any statement of it. With what follows it ends before somebody else may claim the day.
const LONGEST: Duration = Duration::from_mins(10);
/// Longer than the tries that the object store is given, each with a bound of its own.
const UPLOAD: Duration = Duration::from_mins(2);

pub fn key(day: Date) -> String {
    format!("downloads/{day}.csv.gz")
}

/// Takes as much memory for a million rows as for one: it passes through a file.
pub(super) async fn make(pool: &PgPool, objects: &Objects, day: Date) -> anyhow::Result<()> {
    // Its own connection, which ends with this: a copy that is broken off leaves one on which nothing else can be said.
    let mut conn = in_time(database::dedicated(pool, LONGEST)).await?;
    let (file, count) = read(&mut conn, day).await?;
    drop(conn);
    let key = key(day);
    let stored = objects.put_file(&key, file.path(), "application/gzip");
    timeout(UPLOAD, stored).await.context("the object store takes no dump of download counts")??;
    in_time(async { dumps::done(&mut *pool.acquire().await?, day, count).await }).await?;
    tracing::info!(%day, count, "dumped the counts of a day");
    Ok(())
}

/// The file, and how many downloads are in it.
async fn read(conn: &mut PgConnection, day: Date) -> anyhow::Result<(NamedTempFile, i64)> {
    let mut snapshot = in_time(database::snapshot_on(conn)).await?;
    let count = in_time(dumps::count(&mut snapshot, day)).await?;
    let (pieces, mut taken) = mpsc::channel::<bytes::Bytes>(PIECES);
    let writer = spawn_blocking(move || -> std::io::Result<NamedTempFile> {
        let mut gz = GzEncoder::new(NamedTempFile::new()?, Compression::default());
        while let Some(piece) = taken.blocking_recv() {
            gz.write_all(&piece)?;
        }
        gz.finish()
    });
    let mut rows = in_time(downloads::dump(&mut snapshot, day)).await?;
    let silent = "the database sends no more download counts";
    while let Some(piece) = timeout(PIECE, rows.try_next()).await.context(silent)?? {
        if pieces.send(piece).await.is_err() {
            // The writer has failed, and says why.
            break;
        }
    }
    drop((rows, pieces));
    let file = writer.await?.context("cannot write a dump of download counts")?;
    // Said, and not left to the end of the connection, which the server may notice later: what wants the month's table for
    // itself would have to wait for it.
    in_time(snapshot.rollback()).await?;
    Ok((file, count))
}
