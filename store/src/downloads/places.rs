//! Where an artifact's downloads belong: its crate, version, target and kind. An artifact never moves, so this is looked up
//! once and kept.

use super::{tally::shared, write::Error};
use deadpool_postgres::Transaction;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

/// More than are downloaded in a while; 100 bytes each.
const MAX_PLACES: usize = 200_000;

#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) krate: i64,
    pub(super) version: Arc<str>,
    pub(super) target: Arc<str>,
    pub(super) kind: Arc<str>,
}

#[derive(Debug, Default)]
pub(super) struct Places {
    known: HashMap<i64, Place>,
    texts: HashMap<String, Arc<str>>,
}

impl Places {
    pub(super) fn get(&self, artifact: i64) -> Option<&Place> {
        self.known.get(&artifact)
    }

    /// Looks up those that are not known yet; what does not exist is asked for again the next time.
    pub(super) async fn look_up(
        &mut self,
        tx: &Transaction<'_>,
        artifacts: impl Iterator<Item = i64>,
    ) -> Result<(), Error> {
        if self.known.len() > MAX_PLACES {
            *self = Self::default();
        }
        let new: BTreeSet<i64> = artifacts.filter(|artifact| !self.known.contains_key(artifact)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let new: Vec<i64> = new.into_iter().collect();
        let select = tx
            .prepare_cached(
                "SELECT a.id, v.crate_id, v.version, a.target, a.kind
                 FROM artifacts a JOIN versions v ON v.id = a.version_id WHERE a.id = ANY($1)",
            )
            .await?;
        for row in tx.query(&select, &[&new]).await? {
            let mut text = |column| Ok::<_, Error>(shared(&mut self.texts, row.try_get(column)?));
            let place = Place { krate: row.try_get(1)?, version: text(2)?, target: text(3)?, kind: text(4)? };
            self.known.insert(row.try_get(0)?, place);
        }
        Ok(())
    }
}
